"""Writes a stack's compose file as a model: every service limited, labelled, on the stack's own network."""

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from services.containers.domain.policy import Grants
from services.containers.domain.stacks import Limits, StackService
from services.containers.domain.templates import Build, Kind, Template

STACK_LABEL = "telar.stack"
OWNER_LABEL = "telar.owner"
REVISION_LABEL = "telar.revision"
COMPOSE_FILE = "docker-compose.yml"
_PLACEHOLDER = re.compile(r"\{\{ *([A-Za-z][A-Za-z0-9_]*) *\}\}")
_BYTES_PER_MIB = 1024**2


@dataclass(frozen=True, slots=True)
class PlannedService:
    """A service with all that its part of the file needs; `values` are its template's variables.

    `build_image` is the image its build runs on, if its template is built. Those of an own file have no template.
    """

    record: StackService
    template: Template | None
    image: str
    values: Mapping[str, Any]
    build_image: str = ""


@dataclass(frozen=True, slots=True)
class Plan:
    """A whole stack, ready to be written down. `code_folder` is absolute; the primary service and builds get it.

    `code_owner` is "uid:gid" of that folder. A build runs before its service does, within limits of its own.
    """

    project: str
    labels: Mapping[str, str]
    services: Sequence[PlannedService]
    primary: str
    code_folder: str
    publish_address: str
    limits: Limits
    build_limits: Limits
    sidecar_limits: Limits | None = None
    """The stack's own limits unless they are given."""
    build_environment: Mapping[str, str] = field(default_factory=dict)
    code_owner: str = "65534:65534"
    route: Mapping[str, str] = field(default_factory=dict)
    """Labels of the primary service that tell a reverse proxy of it."""


def labels_of(stack_id: str, owner_id: str, revision: int) -> dict[str, str]:
    return {STACK_LABEL: stack_id, OWNER_LABEL: owner_id, REVISION_LABEL: str(revision)}


def build_name(service: str) -> str:
    """The name of the service's build in the compose file."""
    return f"{service}-build"


def render(plan: Plan, own: Mapping[str, Any] | None = None) -> dict[str, Any]:
    """The compose model in its long form, as `docker compose config` would show it; `own` are adopted sections."""
    services = dict(_services(plan))
    sections = own or {"services": {}, "networks": {}, "volumes": {}}
    return {
        "name": plan.project,
        "services": {**sections["services"], **services},
        "networks": {"default": {"name": plan.project, "labels": dict(plan.labels)}, **sections["networks"]},
        "volumes": {
            **sections["volumes"],
            **{
                mount["source"]: {"name": f"{plan.project}_{mount['source']}", "labels": dict(plan.labels)}
                for service in services.values()
                for mount in service["volumes"]
                if mount["type"] == "volume"
            },
        },
    }


def grants_of(plan: Plan, most: Limits, own: Mapping[str, Any] | None = None) -> Grants:
    """What the policy gate lets this very stack have; services of an own file may mount the code read-only."""
    binds = {
        (mount["source"], mount["target"]): mount["read_only"]
        for service in plan.services
        for mount in _code_mounts(plan, service)
    }
    for service in (own or {"services": {}})["services"].values():
        for mount in service["volumes"]:
            if isinstance(mount, Mapping) and mount.get("source") == plan.code_folder:
                binds.setdefault((plan.code_folder, mount.get("target", "")), True)
    return Grants(
        project=plan.project,
        binds=frozenset(bind for bind, read_only in binds.items() if read_only),
        writable_binds=frozenset(bind for bind, read_only in binds.items() if not read_only),
        devices=frozenset(device for one in plan.services if one.template for device in one.template.devices),
        host_ports=frozenset(one.record.host_port for one in plan.services if one.record.host_port is not None),
        publish_address=plan.publish_address,
        labels={**plan.labels, **plan.route},
        max_cpus=most.cpus,
        max_memory_bytes=most.memory_mib * _BYTES_PER_MIB,
        max_pids=most.pids,
    )


def _services(plan: Plan) -> Iterator[tuple[str, dict[str, Any]]]:
    for service in plan.services:
        if service.template is None:
            continue
        if service.template.build is not None:
            yield build_name(service.record.name), _build(plan, service, service.template.build)
        yield service.record.name, _service(plan, service, service.template)


def _service(plan: Plan, service: PlannedService, template: Template) -> dict[str, Any]:
    is_sidecar = template.kind is Kind.SIDECAR
    limits = (plan.sidecar_limits if is_sidecar else None) or plan.limits
    written = _filled_in(plan, service, template.fragment, limits) | {
        "image": _literal(service.image),
        "restart": "unless-stopped",
        "ports": [_port(plan.publish_address, service.record)],
    }
    if service.record.name == plan.primary:
        written["labels"] = {**written["labels"], **plan.route}
    if template.build is None:
        written["volumes"] += _code_mounts(plan, service)
    if template.devices:
        written["devices"] = [f"{device}:{device}" for device in template.devices]
    if template.kind is Kind.APP:
        provided = {name: _literal(value) for name, value in _provided(plan).items()}
        written["environment"] = provided | written.get("environment", {})
        if waits_for := dict(_waits_for(plan, service, template)):
            written["depends_on"] = waits_for
    return written


def _build(plan: Plan, service: PlannedService, build: Build) -> dict[str, Any]:
    written = _filled_in(plan, service, build.fragment, plan.build_limits)
    settings = {name: _literal(value) for name, value in plan.build_environment.items()}
    return written | {
        "image": _literal(service.build_image),
        "restart": "no",
        "entrypoint": ["sh", "-euc"],
        "command": [_literal(build.script)],
        "environment": settings | written.get("environment", {}),
        "volumes": [*written["volumes"], *_code_mounts(plan, service)],
    }


def contained(plan: Plan, limits: Limits) -> dict[str, Any]:
    """What holds every container of a stack in its place."""
    return {
        "cpus": limits.cpus,
        "mem_limit": str(limits.memory_mib * _BYTES_PER_MIB),
        "memswap_limit": str(limits.memory_mib * _BYTES_PER_MIB),  # the same: no swap on top of the memory
        "pids_limit": limits.pids,
        "security_opt": ["no-new-privileges:true"],
        "logging": {"driver": "json-file", "options": {"max-size": "10m", "max-file": "3"}},
        "labels": dict(plan.labels),
        "networks": {"default": None},
    }


def _filled_in(plan: Plan, service: PlannedService, fragment: Mapping[str, Any], limits: Limits) -> dict[str, Any]:
    values = {**service.values, **_provided(plan), "code_owner": plan.code_owner}
    filled = _filled(fragment, values)
    volumes = [{**mount, "source": f"{service.record.name}-{mount['source']}"} for mount in filled.get("volumes", [])]
    return {**filled, **contained(plan, limits), "volumes": volumes}


def _provided(plan: Plan) -> dict[str, str]:
    """The environment that backing services bring to apps; of two that bring the same, the first."""
    provided: dict[str, str] = {}
    for service in reversed(plan.services):
        if service.template is not None:
            provided |= {name: _substituted(text, service.values) for name, text in service.template.provides.items()}
    return provided


def _waits_for(plan: Plan, service: PlannedService, template: Template) -> Iterator[tuple[str, dict[str, str]]]:
    if template.build is not None:
        yield build_name(service.record.name), {"condition": "service_completed_successfully"}
    for other in plan.services:
        if other.template is not None and other.template.kind is Kind.BACKING:
            yield other.record.name, {"condition": "service_healthy"}


def _code_mounts(plan: Plan, service: PlannedService) -> list[dict[str, Any]]:
    """The code, for the primary service, for builds, and writable for sidecars."""
    template = service.template
    if template is None:
        return []
    is_sidecar = template.kind is Kind.SIDECAR
    if template.code is None or not (service.record.name == plan.primary or template.build or is_sidecar):
        return []
    return [
        {
            "type": "bind",
            "source": _literal(plan.code_folder),
            "target": template.code,
            "read_only": not is_sidecar,
            "bind": {"create_host_path": False},
        }
    ]


def _port(address: str, record: StackService) -> dict[str, Any]:
    return {
        "mode": "host",
        "protocol": "tcp",
        "host_ip": address,
        "target": record.port,
        "published": str(record.host_port),
    }


def _filled(value: Any, values: Mapping[str, Any]) -> Any:
    """Put the variables in. Only whole strings' contents change: a value never adds a key or a list's item."""
    if isinstance(value, Mapping):
        return {key: _filled(inner, values) for key, inner in value.items()}
    if isinstance(value, list):
        return [_filled(inner, values) for inner in value]
    if isinstance(value, str):
        return _literal(_substituted(value, values))
    return value


def _substituted(text: str, values: Mapping[str, Any]) -> str:
    return _PLACEHOLDER.sub(lambda found: _text(values[found[1]]), text)


def _text(value: Any) -> str:
    return str(value).lower() if isinstance(value, bool) else str(value)


def _literal(text: str) -> str:
    """Keep compose from reading a variable into a text."""
    return text.replace("$", "$$")
