"""Stack templates as data: a folder each, with metadata, compose fragments, a build script and starter files."""

import secrets
from collections.abc import Iterator, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import jsonschema_rs
import yaml

from services.containers.domain.templates import Build, Kind, Template, TemplateImage
from services.containers.errors import InvalidStack
from services.containers.ports import Engine

BUILT_IN = Path(__file__).parent.parent / "templates"
_SECRET_BYTES = 24
_MASK = "the value"


class FolderCatalog:
    """The templates that Telar brings, read on first use. A broken one stops the start, not a stack's owner."""

    @cached_property
    def templates(self) -> Sequence[Template]:
        return [_read(path.parent) for path in sorted(BUILT_IN.glob("*/template.yaml"))]

    def complete(self, template: Template, given: dict[str, object]) -> dict[str, object]:
        schema = dict(template.variables)
        values = {**dict(_defaults(schema["properties"])), **given}
        # The value may be a secret, which the message would repeat.
        for error in jsonschema_rs.validator_for(schema, mask=_MASK).iter_errors(values):
            pointer = "".join(f"/{part}" for part in error.instance_path)
            raise InvalidStack(f"/body/variables{pointer}", error.message)
        return values


def _defaults(properties: Mapping[str, Any]) -> Iterator[tuple[str, object]]:
    for name, rule in properties.items():
        if "default" in rule:
            yield name, rule["default"]
        elif rule.get("format") == "password":
            yield name, secrets.token_hex(_SECRET_BYTES)


def _read(folder: Path) -> Template:
    metadata: dict[str, Any] = _yaml(folder / "template.yaml")
    starter = folder / "starter"
    template = Template(
        name=folder.name,
        title=metadata["title"],
        version=metadata["version"],
        description=metadata["description"],
        kind=Kind(metadata["kind"]),
        image=TemplateImage(**metadata["image"]),
        port=metadata["port"],
        code=metadata.get("code"),
        variables=metadata["variables"],
        fragment=_yaml(folder / "compose.yaml"),
        starter={path.name: path.read_text() for path in sorted(starter.glob("*")) if path.is_file()},
        build=_read_build(folder, metadata),
        scheme=metadata.get("scheme", "http"),
        provides=metadata.get("provides", {}),
        needs=metadata.get("needs", ()),
        admin_only=metadata.get("admin_only", False),
        devices=metadata.get("devices", ()),
    )
    jsonschema_rs.meta.validate(dict(template.variables))
    return template


def _read_build(folder: Path, metadata: Mapping[str, Any]) -> Build | None:
    """A template is built if it has a script for it; it runs on the template's own image unless it names another."""
    script = folder / "build.sh"
    if not script.exists():
        return None
    return Build(
        image=TemplateImage(**metadata.get("build", metadata)["image"]),
        script=script.read_text(),
        fragment=_yaml(folder / "build.yaml"),
    )


def _yaml(path: Path) -> Any:
    """Read a file with libyaml, ten times as fast as Python's own reader: every start reads thirty."""
    return yaml.load(path.read_text(), yaml.CSafeLoader)


class ConfiguredImages:
    """The operator's image if one is set, else the official one if the engine has it, else the air-gap one likewise.

    Only when the engine has neither is the official one named, for compose to pull.
    """

    def __init__(self, engine: Engine, images: dict[str, str], airgap_prefix: str) -> None:
        self._engine = engine
        self._images = images
        self._airgap_prefix = airgap_prefix

    async def choose(self, template: str, image: TemplateImage) -> str:
        if template in self._images:
            return self._images[template]
        if image.official is None:
            raise InvalidStack("/body/service_types", f"No image is set for {template}: an operator has to name one")
        if not await self._engine.has_image(image.official) and image.airgap is not None:
            airgap = f"{self._airgap_prefix}/{image.airgap}"
            if await self._engine.has_image(airgap):
                return airgap
        return image.official
