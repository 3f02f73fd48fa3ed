"""What a stack template is, how it is found by the name a client gives, and which app of a stack gets the code."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any

from services.containers.errors import AdministratorsOnly, InvalidStack

FILE_MANAGER = "filemanager"
"""The sidecar beside a stack's code."""


class Kind(StrEnum):
    APP = "app"
    """Runs code: a stack's ZIP is mounted into its primary app."""
    BACKING = "backing"
    """Serves the stack's apps, which learn of it from what it provides."""
    SIDECAR = "sidecar"
    """Works on the stack's code beside the app; nobody names it as a type of a stack."""


@dataclass(frozen=True, slots=True)
class TemplateImage:
    """`official` is a public image's name; `airgap` that of deploy/airgap without its prefix; none if there is none."""

    official: str | None = None
    airgap: str | None = None


@dataclass(frozen=True, slots=True)
class Build:
    """How code becomes what the service runs: `script` runs once in a container of its own before the service starts.

    It finds the code in the template's `code`, and hands over what it made in a volume that both fragments name.
    """

    image: TemplateImage
    script: str
    fragment: Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class Template:
    """A kind of service. `code` is where it (or its build) expects code, `port` where it listens, in its container.

    `fragment` is its part of a compose file, in which `{{name}}` stands for a variable; `variables` is a JSON Schema,
    whose properties of format `password` are made up unless they are given. `provides` is the environment that a
    backing service brings to the stack's apps. `needs` are names of templates of which one has to be in the stack.
    """

    name: str
    title: str
    version: str
    description: str
    kind: Kind
    image: TemplateImage
    port: int
    code: str | None
    variables: Mapping[str, Any]
    fragment: Mapping[str, Any]
    starter: Mapping[str, str] = field(default_factory=dict)
    """Files of the code that a stack begins with when its owner brings none, by name."""
    build: Build | None = None
    scheme: str = "http"
    provides: Mapping[str, str] = field(default_factory=dict)
    needs: Sequence[str] = ()
    admin_only: bool = False
    devices: Sequence[str] = ()
    """Devices of the engine's host that it gets."""

    def answers_to(self, name: str) -> bool:
        return name.strip().casefold() in (self.name.casefold(), self.title.casefold())


@dataclass(frozen=True, slots=True)
class Choice:
    """The templates of a stack and the one among them that is its face: its code, its first URL."""

    templates: Sequence[Template]
    primary: Template


def choose(
    catalog: Iterable[Template],
    service_types: Sequence[str],
    primary_app_type: str | None,
    *,
    as_admin: bool = False,
) -> Choice:
    """Find the templates that a client named, in any case, and add what they need.

    Raises InvalidStack with the names there are, or AdministratorsOnly.
    """
    known = offered(catalog)
    if not service_types:
        raise InvalidStack("/body/service_types", f"Name at least one service type: {_names(known)}")
    chosen: list[Template] = []
    for place, wanted in enumerate(service_types):
        found = _find(known, wanted, f"/body/service_types/{place}")
        if found.admin_only and not as_admin:
            raise AdministratorsOnly(f"Stacks with {found.title} are made by administrators")
        if found not in chosen:
            chosen.append(found)
    apps = [template for template in chosen if template.kind is Kind.APP]
    primary = apps[0] if apps else chosen[0]
    if primary_app_type is not None:
        primary = _find(known, primary_app_type, "/body/primary_app_type")
        if primary not in apps:
            raise InvalidStack(
                "/body/primary_app_type", f"{primary.title} is not an app among this stack's service types"
            )
    return Choice([*chosen, *_missing(known, chosen)], primary)


def offered(catalog: Iterable[Template]) -> list[Template]:
    """The templates that a stack can be asked to have."""
    return [template for template in catalog if template.kind is not Kind.SIDECAR]


def file_manager_of(catalog: Iterable[Template]) -> Template:
    """The sidecar that shows and changes a stack's code."""
    return next(template for template in catalog if template.name == FILE_MANAGER)


def starter_of(templates: Iterable[Template], primary: str) -> list[tuple[str, str]]:
    """The files, by path, of a stack that begins without code of its own.

    The primary app's lie at the root; other built apps find theirs in a folder of their type's name.
    """
    files: list[tuple[str, str]] = []
    for template in templates:
        if template.name == primary or template.build is not None:
            folder = "" if template.name == primary else f"{template.name}/"
            files += [(f"{folder}{name}", content) for name, content in template.starter.items()]
    return files


def _missing(known: Sequence[Template], chosen: Sequence[Template]) -> list[Template]:
    """What the chosen templates need and nobody named: the first of each one's alternatives."""
    names = {template.name for template in chosen}
    wanted = [template.needs[0] for template in chosen if template.needs and names.isdisjoint(template.needs)]
    return [template for template in known if template.name in wanted]


def _find(known: Sequence[Template], wanted: str, pointer: str) -> Template:
    found = next((template for template in known if template.answers_to(wanted)), None)
    if found is None:
        raise InvalidStack(pointer, f"There is no service type {wanted!r}; there are {_names(known)}")
    return found


def _names(known: Iterable[Template]) -> str:
    return ", ".join(template.title for template in known)
