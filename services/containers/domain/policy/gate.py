"""The allow-list itself: what a resolved compose model may hold, key by key; everything else is refused by its path."""

import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from libs.common.errors import FieldError
from services.containers.domain.policy import values
from services.containers.domain.policy.values import Findings, Violation, refuse
from services.containers.errors import ComposeRefused


@dataclass(frozen=True, slots=True)
class Grants:
    """What one stack may have beyond harmless settings; all of it is decided by the server.

    `binds` are (source, target) pairs, mounted read-only unless they are `writable_binds`; `devices` are paths, the
    same in the container; `labels` are those under `telar.`, each with its value.
    """

    project: str
    publish_address: str
    max_cpus: float
    max_memory_bytes: int
    max_pids: int
    binds: frozenset[tuple[str, str]] = frozenset()
    writable_binds: frozenset[tuple[str, str]] = frozenset()
    devices: frozenset[str] = frozenset()
    host_ports: frozenset[int] = frozenset()
    labels: Mapping[str, str] | None = None


Rule = Callable[[str, Any, Grants], Findings]
_NAME = re.compile(r"[a-z0-9][a-z0-9_-]{0,62}")
_REQUIRED = ("image", "cpus", "mem_limit", "pids_limit", "logging")


def _ports(path: str, value: Any, grants: Grants) -> Findings:
    for where, port in values.items(path, value):
        if not isinstance(port, Mapping):
            yield refuse(where, "must be in the long form")
            continue
        yield from values.only(where, port, {"mode", "protocol", "host_ip", "target", "published"})
        if str(port.get("published")) not in {str(number) for number in grants.host_ports}:
            yield refuse(f"{where}.published", "is not a host port reserved for this stack")
        if port.get("host_ip") != grants.publish_address:
            yield refuse(f"{where}.host_ip", f"must be {grants.publish_address}")
        if port.get("mode", "host") not in ("host", "ingress") or port.get("protocol", "tcp") != "tcp":
            yield refuse(where, "must be a TCP port")
        yield from values.whole(f"{where}.target", port.get("target"), 65_535)


def _mounts(path: str, value: Any, grants: Grants) -> Findings:
    for where, mount in values.items(path, value):
        if not isinstance(mount, Mapping):
            yield refuse(where, "must be in the long form")
        elif mount.get("type") == "bind":
            yield from _bind(where, mount, grants)
        elif mount.get("type") == "volume":
            yield from values.only(where, mount, {"type", "source", "target", "read_only", "volume"})
            if not _NAME.fullmatch(str(mount.get("source", ""))):
                yield refuse(f"{where}.source", "must name a volume of this file")
            yield from values.only(f"{where}.volume", mount.get("volume") or {}, {"nocopy"})
        else:
            yield refuse(f"{where}.type", "must be 'volume'")


def _bind(where: str, mount: Mapping[str, Any], grants: Grants) -> Findings:
    yield from values.only(where, mount, {"type", "source", "target", "read_only", "bind"})
    yield from values.only(f"{where}.bind", mount.get("bind") or {}, {"create_host_path"})
    pair = (mount.get("source"), mount.get("target"))
    if pair in grants.writable_binds:
        return
    if pair not in grants.binds:
        yield refuse(f"{where}.source", "folders of the host cannot be mounted; use a named volume")
    elif mount.get("read_only") is not True:
        yield refuse(f"{where}.read_only", "the code folder is mounted read-only")


def _devices(path: str, value: Any, grants: Grants) -> Findings:
    # As files name a device, and as newer versions of compose resolve it.
    granted: list[Any] = [f"{device}:{device}" for device in grants.devices]
    granted += [{"source": device, "target": device, "permissions": "rwm"} for device in grants.devices]
    if not isinstance(value, list) or not all(device in granted for device in value):
        yield refuse(path, "devices of the host are given by administrators' templates alone")


def _labels(path: str, value: Any, grants: Grants) -> Findings:
    granted = grants.labels or {}
    if not isinstance(value, Mapping):
        yield refuse(path, "must be in the long form")
        return
    for name, text in value.items():
        reserved = name.split(".")[0] in ("telar", "traefik") or name.startswith(("com.docker.", "io.docker."))
        if granted.get(name) == text:
            continue
        if reserved or not isinstance(text, str):
            yield refuse(f"{path}.{name}", "this label is not yours to set")


def _service_networks(path: str, value: Any, _grants: Grants) -> Findings:
    if not isinstance(value, Mapping):
        yield refuse(path, "must be in the long form")
        return
    for name, options in value.items():
        yield from values.only(f"{path}.{name}", options or {}, {"aliases"})


def _cpus(path: str, value: Any, grants: Grants) -> Findings:
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value <= grants.max_cpus:
        yield refuse(path, f"must be a number above 0 and at most {grants.max_cpus:g}")


def _memory(path: str, value: Any, grants: Grants) -> Findings:
    size = values.byte_size(value)
    if size is None or not 0 < size <= grants.max_memory_bytes:
        yield refuse(path, f"must be a size of at most {grants.max_memory_bytes} bytes")


def _pids(path: str, value: Any, grants: Grants) -> Findings:
    yield from values.whole(path, value, grants.max_pids)


def _free(rule: Callable[..., Findings], *arguments: Any) -> Rule:
    """A rule for a value that is judged by itself, without the grants."""
    return lambda path, value, _grants: rule(path, value, *arguments)


SERVICE_RULES: Mapping[str, Rule] = {
    "image": _free(values.image),
    "command": _free(values.words),
    "entrypoint": _free(values.words),
    "environment": _free(values.environment),
    "working_dir": _free(values.text),
    "user": _free(values.text),
    "depends_on": _free(values.depends_on),
    "healthcheck": _free(values.healthcheck),
    "restart": _free(values.one_of, ("no", "always", "unless-stopped", "on-failure")),
    "stop_grace_period": _free(values.grace_period),
    "stop_signal": _free(values.text),
    "pull_policy": _free(values.one_of, ("missing", "if_not_present", "never")),
    "init": _free(values.boolean),
    "read_only": _free(values.boolean),
    "tmpfs": _free(values.tmpfs),
    "cap_drop": _free(values.words),
    "devices": _devices,
    "security_opt": _free(values.exactly, ["no-new-privileges:true"]),
    "expose": _free(values.words),
    "logging": _free(values.logging),
    "cpus": _cpus,
    "mem_limit": _memory,
    "memswap_limit": _memory,
    "pids_limit": _pids,
    "labels": _labels,
    "networks": _service_networks,
    "ports": _ports,
    "volumes": _mounts,
}
"""Every key that a service may have. No key here reads a file of the host or leaves the container."""

TOP_KEYS = frozenset({"name", "version", "services", "networks", "volumes"})
NETWORK_KEYS = frozenset({"name", "driver", "internal", "labels", "ipam"})
VOLUME_KEYS = frozenset({"name", "labels"})


def violations(document: Mapping[str, Any], grants: Grants) -> list[Violation]:
    """Every place of a resolved compose model that is not allowed, by its YAML path; empty if the file may run."""
    return [*_unknown_keys(document), *_values(document, grants), *values.interpolations("", document)]


def require_allowed(document: Mapping[str, Any], grants: Grants) -> None:
    """Raise ComposeRefused with every violation of a resolved model."""
    _raise(violations(document, grants))


def require_known_keys(document: Mapping[str, Any]) -> None:
    """Raise ComposeRefused for keys that are not in the allow-list.

    For files of users before `docker compose config` resolves them: resolving `include`, `extends`, `env_file`,
    `build`, `secrets` and `configs` already reads files of the host.
    """
    _raise(list(_unknown_keys(document)))


def _raise(found: list[Violation]) -> None:
    if found:
        raise ComposeRefused([FieldError(f"/compose/{one.path}", f"{one.path}: {one.reason}") for one in found])


def _unknown_keys(document: Mapping[str, Any]) -> Findings:
    yield from values.only("", document, TOP_KEYS)
    for section, keys in (("services", SERVICE_RULES), ("networks", NETWORK_KEYS), ("volumes", VOLUME_KEYS)):
        for path, entry in _entries(document, section):
            if isinstance(entry, Mapping):
                yield from values.only(path, entry, keys)
            elif entry is not None or section == "services":
                yield refuse(path, "must be a mapping")


def _entries(document: Mapping[str, Any], section: str) -> Iterator[tuple[str, Any]]:
    entries = document.get(section)
    if isinstance(entries, Mapping):
        yield from ((f"{section}.{name}", entry) for name, entry in entries.items())


def _values(document: Mapping[str, Any], grants: Grants) -> Findings:
    if document.get("name") != grants.project:
        yield refuse("name", f"must be {grants.project}")
    if not isinstance(document.get("services"), Mapping) or not document["services"]:
        yield refuse("services", "at least one service is needed")
    for section in ("services", "networks", "volumes"):
        if not isinstance(document.get(section) or {}, Mapping):
            yield refuse(section, "must be a mapping")
        for path, entry in _entries(document, section):
            if not _NAME.fullmatch(path.partition(".")[2]):
                yield refuse(path, "a name is made of a-z, 0-9, - and _")
            if isinstance(entry, Mapping):
                yield from _JUDGES[section](path, entry, grants)


def _service(path: str, service: Any, grants: Grants) -> Findings:
    for key in _REQUIRED:
        if service.get(key) is None:
            yield refuse(f"{path}.{key}", "is missing")
    for key, rule in SERVICE_RULES.items():
        if service.get(key) is not None:
            yield from rule(f"{path}.{key}", service[key], grants)


def _network(path: str, network: Any, grants: Grants) -> Findings:
    yield from _own_name(path, network, grants)
    yield from _labels(f"{path}.labels", network.get("labels") or {}, grants)
    if network.get("ipam"):
        yield refuse(f"{path}.ipam", "addresses are the engine's to choose")
    if network.get("driver") not in (None, "bridge"):
        yield refuse(f"{path}.driver", "must be bridge")


def _volume(path: str, volume: Any, grants: Grants) -> Findings:
    yield from _own_name(path, volume, grants)
    yield from _labels(f"{path}.labels", volume.get("labels") or {}, grants)


def _own_name(path: str, entry: Any, grants: Grants) -> Findings:
    name = entry.get("name")
    if name is not None and name != grants.project and not str(name).startswith(f"{grants.project}_"):
        yield refuse(f"{path}.name", "must belong to this stack")


_JUDGES: Mapping[str, Rule] = {"services": _service, "networks": _network, "volumes": _volume}
