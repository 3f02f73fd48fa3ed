"""A stack's compose model as Docker Swarm takes it (Compose file format 3, which knows other keys); pure."""

import re
from collections.abc import Mapping
from typing import Any

from services.containers.domain.policy.values import byte_size

FORMAT = "3.13"
_KEPT = (
    *("image", "command", "entrypoint", "environment", "working_dir", "user", "healthcheck", "stop_grace_period"),
    *("stop_signal", "init", "read_only", "cap_drop", "expose", "labels", "networks"),
)
_RESTART = {"no": "none", "on-failure": "on-failure"}
_RESTART_DELAY = "2s"
_TMPFS = re.compile(r"(?P<target>/[^:]*):.*?size=(?P<size>[0-9]+[kmg]?)")


def swarm_model(model: Mapping[str, Any]) -> dict[str, Any]:
    """The same stack for `docker stack deploy`.

    Swarm has no `no-new-privileges` for stacks and opens host ports on every address of a node; what a stack waits for
    is in `waves`.
    """
    return {
        "version": FORMAT,
        "services": {name: _service(service) for name, service in model["services"].items()},
        "networks": {name: _network(network) for name, network in model.get("networks", {}).items()},
        "volumes": {
            name: {"name": volume["name"], "labels": volume.get("labels", {})}
            for name, volume in model.get("volumes", {}).items()
        },
    }


def waves(model: Mapping[str, Any]) -> list[list[str]]:
    """The services in the order of their starts: Swarm itself starts all at once, whatever they depend on."""
    waiting = {name: set(service.get("depends_on") or {}) for name, service in model["services"].items()}
    ordered: list[list[str]] = []
    begun: set[str] = set()
    while waiting:
        ready = [name for name, needs in waiting.items() if needs <= begun] or list(
            waiting
        )  # a circle waits for nobody
        ordered.append(ready)
        begun.update(ready)
        waiting = {name: needs for name, needs in waiting.items() if name not in begun}
    return ordered


def ends_by_itself(model: Mapping[str, Any], name: str) -> bool:
    """Whether a service is waited for until it has ended, as a build is."""
    needs = [service.get("depends_on") or {} for service in model["services"].values()]
    return any(one.get(name, {}).get("condition") == "service_completed_successfully" for one in needs)


def _service(service: Mapping[str, Any]) -> dict[str, Any]:
    written = {key: service[key] for key in _KEPT if key in service}
    written["logging"] = service["logging"]
    written["volumes"] = [_mount(mount) for mount in service.get("volumes", [])]
    written["volumes"] += [_memory(text) for text in _list(service.get("tmpfs"))]
    ports = service.get("ports", [])
    written["ports"] = [
        {"mode": "host", "protocol": "tcp", "target": port["target"], "published": int(port["published"])}
        for port in ports
    ]
    limits = {"cpus": str(service["cpus"]), "memory": str(service["mem_limit"]), "pids": service["pids_limit"]}
    restart = {"condition": _RESTART.get(service.get("restart", ""), "any"), "delay": _RESTART_DELAY}
    written["deploy"] = {
        "replicas": 1,
        "labels": dict(service.get("labels", {})),
        "restart_policy": restart,
        "resources": {"limits": limits},
    }
    return written


def _mount(mount: Mapping[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in mount.items() if key != "bind"}


def _memory(text: str) -> dict[str, Any]:
    found = _TMPFS.match(text)
    target, size = (found["target"], byte_size(found["size"])) if found else (text.partition(":")[0], None)
    return {"type": "tmpfs", "target": target, "tmpfs": {"size": size or 0}}


def _network(network: Mapping[str, Any]) -> dict[str, Any]:
    written = {"driver": "overlay", "name": network["name"], "labels": network.get("labels", {})}
    return {**written, "internal": True} if network.get("internal") else written


def _list(value: Any) -> list[str]:
    return [value] if isinstance(value, str) else list(value or [])
