"""From what somebody asks for to what a stack is made of: types, variables, limits, ports; nothing is made here."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import yaml

from libs.common.errors import FieldError
from services.containers.domain import own_compose
from services.containers.domain.compose import labels_of
from services.containers.domain.stacks import Limits, StackService, quota_of
from services.containers.domain.templates import (
    Choice,
    Kind,
    Template,
    choose,
    file_manager_of,
    offered,
)
from services.containers.errors import ComposeRefused, InvalidStack
from services.containers.ports import Catalog
from services.containers.service.limits import sidecar_limits
from services.containers.service.rendering import Renderer
from services.containers.settings import ContainersSettings

_NOWHERE = Path("/code")
"""Stands for the code's folder while there is none."""
_NO_PROJECT = "telar-000000000000"


@dataclass(frozen=True, slots=True)
class Blueprint:
    """What a revision shall be; `services` have no host ports yet but those that an own file asks for.

    `primary` is None while the type of the app is still to be found out from the code.
    """

    service_types: Sequence[str]
    primary: str | None
    variables: dict[str, Any]
    limits: Limits
    services: Sequence[StackService]
    amounts: dict[str, int]
    file_manager: bool
    own_compose: str | None = None
    mounts_code: bool = False
    """Whether a service of the own file mounts the stack's code."""

    def fields(self) -> dict[str, Any]:
        """What a revision's record keeps of it."""
        return {
            "service_types": list(self.service_types),
            "primary_app_type": self.primary,
            "variables": self.variables,
            "limits": asdict(self.limits),
            "reserved": dict(self.amounts),
            "file_manager": self.file_manager,
            "own_compose": self.own_compose,
        }


class Planner:
    """Checks wishes against templates and the policy gate."""

    def __init__(self, catalog: Catalog, renderer: Renderer, settings: ContainersSettings) -> None:
        self._catalog = catalog
        self._renderer = renderer
        self._settings = settings

    @property
    def templates(self) -> Sequence[Template]:
        return offered(self._catalog.templates)

    def from_templates(
        self,
        service_types: Sequence[str],
        primary_app_type: str | None,
        variables: Mapping[str, Any],
        limits: Limits,
        *,
        file_manager: bool,
        as_admin: bool = False,
        detect: bool = False,
    ) -> Blueprint:
        """Raises InvalidStack or AdministratorsOnly; with `detect` an app may be found out later, from the code."""
        choice = None
        if service_types or not detect:
            choice = choose(self._catalog.templates, service_types, primary_app_type, as_admin=as_admin)
            self._require_runnable(choice)
        is_open = detect and (choice is None or choice.primary.kind is not Kind.APP)
        templates = [*(choice.templates if choice else ()), *self._sidecars(file_manager=file_manager)]
        given = dict(variables) if is_open else self._complete(templates, variables)
        return Blueprint(
            service_types=[template.name for template in (choice.templates if choice else ())],
            primary=choice.primary.name if choice is not None and not is_open else None,
            variables=given,
            limits=limits,
            services=[] if is_open else [_endpoint(template) for template in templates],
            amounts=quota_of([self._limits_of(template, limits) for template in templates] or [limits]),
            file_manager=file_manager,
        )

    async def from_compose(
        self, text: str, variables: Mapping[str, Any], limits: Limits, *, file_manager: bool
    ) -> Blueprint:
        """A file of its owner's, judged as written and as compose resolves it; raises ComposeRefused."""
        sidecars = self._sidecars(file_manager=file_manager)
        own = {name: value for name, value in variables.items() if name != "admin_pass"}
        resolved = await self._renderer.resolve(_NO_PROJECT, text, own, _NOWHERE)
        services = [*own_compose.endpoints(resolved), *(_endpoint(template) for template in sidecars)]
        self._require_ports(services)
        each = [*own_compose.limits_in(resolved, limits), *(sidecar_limits(self._settings) for _ in sidecars)]
        sidecar_values = self._complete(sidecars, {k: v for k, v in variables.items() if k == "admin_pass"})
        blueprint = Blueprint(
            service_types=[],
            primary=own_compose.primary_of(services),
            variables={**own, **sidecar_values},
            limits=limits,
            services=services,
            amounts=quota_of(each),
            file_manager=file_manager,
            own_compose=text,
            mounts_code=own_compose.mounts(resolved, str(_NOWHERE)),
        )
        await self._judge(blueprint)
        return blueprint

    async def preview(self, blueprint: Blueprint) -> str:
        """The file as it would run, with made-up ports, for a dry run; raises ComposeRefused."""
        return yaml.safe_dump(await self._judge(blueprint), sort_keys=False, allow_unicode=True)

    async def _judge(self, blueprint: Blueprint) -> dict[str, Any]:
        first = self._settings.port_range_first
        services = [
            replace(one, host_port=one.host_port or first + place) if one.port is not None else one
            for place, one in enumerate(blueprint.services)
        ]
        return await self._renderer.model(
            _NO_PROJECT,
            labels_of("stack", "owner", 1),
            _NOWHERE,
            services,
            blueprint.primary or "",
            blueprint.variables,
            blueprint.limits,
            blueprint.own_compose,
            is_preview=True,
        )

    def _sidecars(self, *, file_manager: bool) -> list[Template]:
        return [file_manager_of(self._catalog.templates)] if file_manager else []

    def _limits_of(self, template: Template, limits: Limits) -> Limits:
        return sidecar_limits(self._settings) if template.kind is Kind.SIDECAR else limits

    def _require_runnable(self, choice: Choice) -> None:
        for template in choice.templates:
            if template.devices and self._settings.orchestrator == "swarm":
                detail = (
                    f"{template.title} needs {', '.join(template.devices)} of its host, and a Swarm gives containers no"
                    " devices: ask an operator for a Telar whose TELAR_CONTAINERS_ORCHESTRATOR is compose"
                )
                raise InvalidStack("/body/service_types", detail)
            if template.image.official is None and template.name not in self._settings.images:
                detail = f"There is no image for {template.title}: an operator names one in TELAR_CONTAINERS_IMAGES"
                raise InvalidStack("/body/service_types", detail)

    def _require_ports(self, services: Sequence[StackService]) -> None:
        first, last = self._settings.port_range_first, self._settings.port_range_last
        for one in services:
            if one.host_port is not None and not first <= one.host_port <= last:
                path = f"services.{one.name}.ports"
                why = f"{path}: host ports are from {first} to {last}; leave it out to be given one"
                raise ComposeRefused([FieldError(f"/compose/{path}", why)])

    def _complete(self, templates: Sequence[Template], given: Mapping[str, Any]) -> dict[str, Any]:
        """Each template's own variables, complete; raises InvalidStack for one that no template of the stack knows."""
        known = {name for template in templates for name in template.variables["properties"]}
        for name in given.keys() - known:
            raise InvalidStack(f"/body/variables/{name}", f"There is no such variable; there are {sorted(known)}")
        completed: dict[str, Any] = {}
        for template in templates:
            own = {name: given[name] for name in template.variables["properties"] if name in given}
            completed |= self._catalog.complete(template, own)
        return completed


def _endpoint(template: Template) -> StackService:
    return StackService(template.name, template.name, template.port, None, template.scheme)
