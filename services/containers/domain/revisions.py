"""Revisions: what they are made from, and how one that ran before is made to run again; pure."""

import copy
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from enum import StrEnum
from typing import Any, Self

from services.containers.domain.routing import is_route_label
from services.containers.domain.stacks import StackService


class RevisionState(StrEnum):
    PENDING = "pending"
    ACTIVE = "active"
    SUPERSEDED = "superseded"
    FAILED = "failed"


class Cause(StrEnum):
    CREATE = "create"
    REDEPLOY = "redeploy"
    ROLLBACK = "rollback"


class SourceKind(StrEnum):
    STARTER = "starter"
    """The templates' own first files."""
    ZIP = "zip"
    GIT = "git"
    UNKNOWN = "unknown"


@dataclass(frozen=True, slots=True)
class Source:
    """Where a revision's code comes from; `commit` is known once a repository was cloned."""

    kind: SourceKind
    url: str | None = None
    ref: str | None = None
    commit: str | None = None

    @classmethod
    def from_json(cls, document: Mapping[str, Any]) -> Self:
        return cls(**{**document, "kind": SourceKind(document["kind"])})

    def to_json(self) -> dict[str, Any]:
        return {name: value for name, value in asdict(self).items() if value is not None}


@dataclass(frozen=True, slots=True)
class ImageRecord:
    """An image that a service ran: its name, its id on the engine, and its digest at a registry if it has one."""

    name: str
    image_id: str
    digest: str | None = None


def rebased(
    model: Mapping[str, Any],
    *,
    labels: Mapping[str, str],
    code_folder: str,
    services: Iterable[StackService],
    publish_address: str,
    images: Mapping[str, str],
    routes: Mapping[str, Mapping[str, str]],
) -> dict[str, Any]:
    """A model that ran before, made to run again: the same but for its labels, code folder, host's ports and images.

    `routes` are the labels for a reverse proxy, by service.
    """
    again: dict[str, Any] = copy.deepcopy(dict(model))
    ports = {(one.name, one.port): one.host_port for one in services}
    for name, service in again["services"].items():
        kept = {key: text for key, text in service.get("labels", {}).items() if not is_route_label(key)}
        service["labels"] = {**kept, **labels, **routes.get(name, {})}
        service["image"] = images.get(name, service["image"])
        for mount in service.get("volumes", []):
            if mount["type"] == "bind":
                mount["source"] = code_folder
        for port in service.get("ports", []):
            port |= {"published": str(ports[(name, port["target"])]), "host_ip": publish_address}
    for section in ("networks", "volumes"):
        for entry in again.get(section, {}).values():
            entry["labels"] = {**entry.get("labels", {}), **labels}
    return again


def to_prune(numbers: Sequence[int], current: int, keep: int) -> list[int]:
    """Which of a stack's ended revisions are forgotten: all but the newest `keep` and the one that runs."""
    kept = set(sorted(numbers, reverse=True)[:keep]) | {current}
    return [number for number in numbers if number not in kept]
