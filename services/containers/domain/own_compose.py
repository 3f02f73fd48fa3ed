"""A compose file of a stack's owner: judged as written, and once compose resolved it held in like every stack; pure."""

import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from libs.common.errors import FieldError
from services.containers.domain.compose import Plan, contained
from services.containers.domain.policy import require_known_keys
from services.containers.domain.policy.values import byte_size
from services.containers.domain.stacks import OWN, Limits, StackService
from services.containers.domain.templates import FILE_MANAGER
from services.containers.errors import ComposeRefused

VARIABLE_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]{0,63}")
MAX_SERVICES = 20
MAX_PORTS = 20
_ALWAYS_DROPPED = ("AUDIT_WRITE", "MKNOD", "NET_RAW")
"""Engines grant these by default; no ordinary service needs them."""
_MIB = 1024**2
_NAME = re.compile(r"[a-z0-9][a-z0-9_-]{0,62}")
_SHORT_FORMS = {"ports": (str, int), "volumes": (str,), "environment": (str,)}


def require_sound(document: Mapping[str, Any]) -> None:
    """Judge the file as it was written, before compose reads it; raises ComposeRefused.

    What compose resolves by looking at the host (other files, its environment) must not get that far.
    """
    require_known_keys(document)
    errors = list(_unsound(document))
    if errors:
        raise ComposeRefused(errors)


def _unsound(document: Mapping[str, Any]) -> Iterator[FieldError]:
    if "name" in document:
        yield _error("name", "projects are named by Telar; leave it out")
    services = document.get("services")
    if not isinstance(services, Mapping) or not services:
        yield _error("services", "at least one service is needed")
        return
    if len(services) > MAX_SERVICES:
        yield _error("services", f"a stack has at most {MAX_SERVICES} services")
    yield from _unsound_resources("networks", document.get("networks"))
    yield from _unsound_resources("volumes", document.get("volumes"))
    for name, service in services.items():
        path = f"services.{name}"
        if not _NAME.fullmatch(name):
            yield _error(path, "a name is made of a-z, 0-9, - and _")
        if name == FILE_MANAGER:
            yield _error(path, "this name is the file manager's")
        if not isinstance(service.get("image"), str):
            yield _error(f"{path}.image", "must name an image")
        yield from _open_environment(f"{path}.environment", service.get("environment"))
        for key, kinds in _SHORT_FORMS.items():
            yield from _misshapen(f"{path}.{key}", service.get(key), kinds)


def _unsound_resources(section: str, entries: Any) -> Iterator[FieldError]:
    """Compose drops networks and volumes that no service uses: what they ask for is refused all the same."""
    if entries is not None and not isinstance(entries, Mapping):
        yield _error(section, "must be a mapping")
        return
    for name, entry in (entries or {}).items():
        path = f"{section}.{name}"
        if not _NAME.fullmatch(name):
            yield _error(path, "a name is made of a-z, 0-9, - and _")
        if not isinstance(entry, Mapping):
            continue
        if "name" in entry:
            yield _error(f"{path}.name", "is given by Telar; leave it out")
        if entry.get("ipam"):
            yield _error(f"{path}.ipam", "addresses are the engine's to choose")
        if entry.get("driver") not in (None, "bridge"):
            yield _error(f"{path}.driver", "must be bridge")


def _open_environment(path: str, value: Any) -> Iterator[FieldError]:
    """Names without values would be filled from the environment of whoever runs compose."""
    if isinstance(value, Mapping):
        yield from (_error(f"{path}.{key}", "must have a value in the file") for key, v in value.items() if v is None)
    elif isinstance(value, list):
        for place, entry in enumerate(value):
            if not isinstance(entry, str) or "=" not in entry:
                yield _error(f"{path}[{place}]", "must be NAME=value")


def _misshapen(path: str, value: Any, short: tuple[type, ...]) -> Iterator[FieldError]:
    if value is None or (path.endswith("environment") and isinstance(value, Mapping)):
        return
    if not isinstance(value, list):
        yield _error(path, "must be a list")
        return
    for place, entry in enumerate(value):
        if not isinstance(entry, (*short, Mapping)):
            yield _error(f"{path}[{place}]", "cannot be read")


def endpoints(resolved: Mapping[str, Any]) -> list[StackService]:
    """The ports that a resolved file opens; `host_port` is the one it asks for, if any. Raises ComposeRefused."""
    found: list[StackService] = []
    for name, service in resolved["services"].items():
        ports = service.get("ports") or []
        found += [_endpoint(f"services.{name}.ports[{place}]", name, port) for place, port in enumerate(ports)]
        if not ports:
            found.append(StackService(name, OWN))
    if sum(one.port is not None for one in found) > MAX_PORTS:
        raise ComposeRefused([_error(f"services.{found[-1].name}.ports", f"a stack opens at most {MAX_PORTS} ports")])
    seen: set[tuple[str, int | None]] = set()
    for one in found:
        if one.port is not None and (one.name, one.port) in seen:
            path = f"services.{one.name}.ports"
            raise ComposeRefused([_error(path, f"port {one.port} is there twice")])
        seen.add((one.name, one.port))
    return found


def _endpoint(path: str, name: str, port: Mapping[str, Any]) -> StackService:
    target, published = port.get("target"), str(port.get("published") or "")
    if isinstance(target, bool) or not isinstance(target, int) or port.get("protocol", "tcp") != "tcp":
        raise ComposeRefused([_error(path, "must be one TCP port")])
    if published and not published.isdecimal():
        raise ComposeRefused([_error(f"{path}.published", "must be one port, or left out to be given one")])
    return StackService(name, OWN, target, int(published) if published else None)


def primary_of(services: Sequence[StackService]) -> str:
    """The service that is the face of the stack: the first that opens a port, else the first."""
    return next((one.name for one in services if one.port is not None), services[0].name)


def mounts(resolved: Mapping[str, Any], folder: str) -> bool:
    """Whether a service mounts the folder."""
    found = [mount for service in resolved["services"].values() for mount in service.get("volumes") or []]
    return any(isinstance(mount, Mapping) and mount.get("source") == folder for mount in found)


def limits_in(resolved: Mapping[str, Any], limits: Limits) -> list[Limits]:
    """What each service of a resolved file may use, where it names less or more than the stack's own limits."""
    return [_limits_of(service, limits) for service in resolved["services"].values()]


def _limits_of(service: Mapping[str, Any], limits: Limits) -> Limits:
    memory = byte_size(service.get("mem_limit"))
    cpus, pids = service.get("cpus"), service.get("pids_limit")
    return Limits(
        cpus=float(cpus) if isinstance(cpus, int | float) and cpus > 0 else limits.cpus,
        memory_mib=-(-memory // _MIB) if memory else limits.memory_mib,
        pids=pids if isinstance(pids, int) and pids > 0 else limits.pids,
    )


def adopted(plan: Plan, resolved: Mapping[str, Any]) -> dict[str, Any]:
    """The services, networks and volumes of a resolved file as they run: named, labelled, limited, ports given.

    What the file itself says stays, for the policy gate to judge.
    """
    labels = dict(plan.labels)
    services = {name: _service(plan, name, service) for name, service in resolved["services"].items()}
    networks = {"default": {}, **(resolved.get("networks") or {})}
    volumes = resolved.get("volumes") or {}
    return {
        "services": services,
        "networks": {name: _named(plan.project, name, entry, labels) for name, entry in networks.items()},
        "volumes": {name: _named(plan.project, name, entry, labels) for name, entry in volumes.items()},
    }


def _service(plan: Plan, name: str, service: Mapping[str, Any]) -> dict[str, Any]:
    said = {key: value for key, value in service.items() if value is not None}
    held = contained(plan, _limits_of(said, plan.limits))
    kept = ("cpus", "mem_limit", "pids_limit", "security_opt", "logging", "networks")
    written = {**held, "restart": "unless-stopped", **said}
    written.update({key: said.get(key, held[key]) for key in kept})
    memory = said.get("mem_limit", held["mem_limit"])
    written["memswap_limit"] = said.get("memswap_limit", memory)
    route = plan.route if name == plan.primary else {}
    written["labels"] = {**held["labels"], **route, **_mapping(said.get("labels"))}
    written["cap_drop"] = sorted({*_ALWAYS_DROPPED, *(said.get("cap_drop") or [])})
    written["volumes"] = [_mount(plan, mount) for mount in said.get("volumes") or []]
    given = {one.record.port: one.record.host_port for one in plan.services if one.record.name == name}
    written["ports"] = [_port(plan, port, given) for port in said.get("ports") or []]
    return written


def _mount(plan: Plan, mount: Any) -> Any:
    if isinstance(mount, Mapping) and mount.get("type") == "bind" and mount.get("source") == plan.code_folder:
        return {**mount, "bind": {**_mapping(mount.get("bind")), "create_host_path": False}}
    return mount


def _port(plan: Plan, port: Mapping[str, Any], given: Mapping[int | None, int | None]) -> dict[str, Any]:
    host_port = given.get(port.get("target"))
    ours = {"mode": "host", "host_ip": plan.publish_address, "published": str(host_port)}
    return {**port, **({} if port.get("host_ip") not in (None, "", plan.publish_address) else ours), "mode": "host"}


def _named(project: str, name: str, entry: Any, labels: Mapping[str, str]) -> dict[str, Any]:
    said = {key: value for key, value in (entry or {}).items() if key != "ipam" or value}
    said["labels"] = {**labels, **_mapping(said.get("labels"))}
    return {**said, "name": said.get("name") or (project if name == "default" else f"{project}_{name}")}


def _mapping(value: Any) -> Mapping[str, Any]:
    return value if isinstance(value, Mapping) else {}


def _error(path: str, reason: str) -> FieldError:
    return FieldError(f"/compose/{path}", f"{path}: {reason}")
