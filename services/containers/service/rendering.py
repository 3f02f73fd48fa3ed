"""Writes a revision's compose model, from templates or its owner's file; all of it passes the policy gate."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from services.containers.domain import own_compose
from services.containers.domain.compose import Plan, PlannedService, build_name, grants_of, labels_of, render
from services.containers.domain.interpolation import interpolated
from services.containers.domain.policy import Grants, read_document, require_allowed
from services.containers.domain.revisions import rebased
from services.containers.domain.routing import host_name, route_labels
from services.containers.domain.stacks import OWN, Limits, StackService
from services.containers.domain.templates import FILE_MANAGER, TemplateImage
from services.containers.errors import EngineUnavailable, InvalidStack
from services.containers.models import Stack, StackRevision
from services.containers.ports import Catalog, CodeStore, Compose, Images
from services.containers.service.limits import most_allowed, sidecar_limits
from services.containers.settings import ContainersSettings


class Renderer:
    """Raises ComposeRefused for what the gate does not let pass."""

    def __init__(
        self, catalog: Catalog, images: Images, compose: Compose, code: CodeStore, settings: ContainersSettings
    ) -> None:
        self._templates = {template.name: template for template in catalog.templates}
        self._images = images
        self._compose = compose
        self._code = code
        self._settings = settings

    async def render(self, stack: Stack, revision: StackRevision) -> dict[str, Any]:
        """A revision's compose model, which has passed the policy gate; raises ComposeRefused."""
        folder = self._code.code_folder(stack.id, revision.copy_number)
        services = [StackService.from_json(service) for service in revision.services]
        return await self.model(
            stack.project,
            labels_of(str(stack.id), stack.owner_id, revision.number),
            folder,
            services,
            revision.primary_app_type or "",
            revision.variables,
            Limits(**revision.limits),
            revision.own_compose,
            route=self._route(stack, services, revision.primary_app_type or ""),
        )

    def render_again(
        self, stack: Stack, revision: StackRevision, before: StackRevision, images: Mapping[str, str]
    ) -> dict[str, Any]:
        """The model of a revision that ran `before`, made to run again on those images; raises ComposeRefused."""
        labels = labels_of(str(stack.id), stack.owner_id, revision.number)
        services = [StackService.from_json(service) for service in revision.services]
        folder = str(self._code.code_folder(stack.id, revision.copy_number))
        old = yaml.safe_load(before.compose or "")
        route = self._route(stack, services, revision.primary_app_type or "")
        routes = {revision.primary_app_type or "": route}
        model = rebased(
            old,
            labels=labels,
            code_folder=folder,
            services=services,
            publish_address=self._settings.publish_address,
            images=images,
            routes=routes,
        )
        require_allowed(model, self._grants_again(stack, model, services, {**labels, **route}))
        return model

    def _route(self, stack: Stack, services: Sequence[StackService], primary: str) -> dict[str, str]:
        """The labels for a reverse proxy, if there is one and the primary service speaks http."""
        found = next((one for one in services if one.name == primary), None)
        if not self._settings.domain or found is None or found.port is None or found.scheme != "http":
            return {}
        return route_labels(stack.project, host_name(stack.name, stack.number, self._settings.domain), found.port)

    def _grants_again(
        self, stack: Stack, model: Mapping[str, Any], services: Sequence[StackService], labels: Mapping[str, str]
    ) -> Grants:
        most = most_allowed(self._settings)
        mounts = [
            (name == FILE_MANAGER, (mount["source"], mount["target"]))
            for name, service in model["services"].items()
            for mount in service.get("volumes", [])
            if mount["type"] == "bind"
        ]
        templates = [self._templates[one.template] for one in services if one.template in self._templates]
        return Grants(
            project=stack.project,
            publish_address=self._settings.publish_address,
            max_cpus=most.cpus,
            max_memory_bytes=most.memory_mib * 1024**2,
            max_pids=most.pids,
            binds=frozenset(bind for is_writable, bind in mounts if not is_writable),
            writable_binds=frozenset(bind for is_writable, bind in mounts if is_writable),
            devices=frozenset(device for template in templates for device in template.devices),
            host_ports=frozenset(one.host_port for one in services if one.host_port is not None),
            labels=labels,
        )

    async def model(
        self,
        project: str,
        labels: dict[str, str],
        folder: Path,
        services: Sequence[StackService],
        primary: str,
        variables: Mapping[str, Any],
        limits: Limits,
        text: str | None,
        *,
        route: Mapping[str, str] | None = None,
        is_preview: bool = False,
    ) -> dict[str, Any]:
        """The model of a revision that is there or only wished for."""
        plan = Plan(
            project=project,
            labels=labels,
            services=[await self._planned(service, variables, is_preview=is_preview) for service in services],
            primary=primary,
            code_folder=str(folder),
            publish_address=self._settings.publish_address,
            limits=limits,
            build_limits=most_allowed(self._settings),
            sidecar_limits=sidecar_limits(self._settings),
            build_environment=self._settings.build_environment,
            code_owner=self._code.owner,
            route=route or {},
        )
        own = None
        if text is not None:
            values = {name: value for name, value in variables.items() if name != "admin_pass"}
            own = own_compose.adopted(plan, await self.resolve(project, text, values, folder))
        model = render(plan, own)
        require_allowed(model, grants_of(plan, most_allowed(self._settings), own))
        return model

    async def resolve(self, project: str, text: str, variables: Mapping[str, Any], base: Path) -> dict[str, Any]:
        """An own file, judged as written and with the variables put in, in its long form."""
        document = read_document(text)
        own_compose.require_sound(document)
        filled = interpolated(document, _texts(variables))
        own_compose.require_sound(filled)  # a variable may have put in what was not there: `${A:-=}` for an equals sign
        written = yaml.safe_dump(filled, sort_keys=False, allow_unicode=True)
        resolved = await self._compose.resolve(project, written, base)
        # In the order of the file, of which compose makes an alphabet.
        return {**resolved, "services": {name: resolved["services"][name] for name in document["services"]}}

    async def _planned(self, service: StackService, values: Mapping[str, Any], *, is_preview: bool) -> PlannedService:
        if service.template == OWN:
            return PlannedService(service, None, "", values)
        template = self._templates[service.template]
        image = await self._image(template.name, template.image, is_preview=is_preview)
        build_image = ""
        if template.build is not None:
            name = build_name(template.name)
            build_image = await self._image(name, template.build.image, is_preview=is_preview)
        return PlannedService(service, template, image, values, build_image)

    async def _image(self, name: str, image: TemplateImage, *, is_preview: bool) -> str:
        """A preview needs no engine: without one it names the official image."""
        try:
            return await self._images.choose(name, image)
        except EngineUnavailable:
            if not is_preview or image.official is None:
                raise
            return image.official


def _texts(variables: Mapping[str, Any]) -> dict[str, str]:
    for name, value in variables.items():
        if not own_compose.VARIABLE_NAME.fullmatch(name):
            raise InvalidStack(f"/body/variables/{name}", "A variable's name is made of letters, digits and _")
        if isinstance(value, dict | list) or value is None:
            raise InvalidStack(f"/body/variables/{name}", "A variable of a compose file is a text or a number")
    return {name: str(value).lower() if isinstance(value, bool) else str(value) for name, value in variables.items()}
