"""What differs between a cluster and the records, and how far a cluster's list is to be believed; pure."""

import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from uuid import UUID

from services.vms.domain.cluster import Inventory, Machine
from services.vms.domain.states import hostname

_GIB = 1024**3
_FEW = 2
_SHARE = 0.25


class Kind(StrEnum):
    CHANGED = "changed"
    """The machine is not what its record says."""
    VANISHED = "vanished"
    """The cluster has no machine for a record."""
    UNKNOWN = "unknown"
    """A machine carries Telar's tag, and no record knows it."""


class Resolution(StrEnum):
    ADOPT = "adopt"
    """Believe the cluster: the record becomes what the machine is, or an unknown machine gets a record."""
    FORGET = "forget"
    """Give up the record of a vanished machine, or take Telar's tag off an unknown one."""
    FIX = "fix"
    """Believe the record: the machine becomes what it says, and one that Telar left behind is removed."""


RESOLUTIONS: Mapping[Kind, Sequence[Resolution]] = {
    Kind.CHANGED: (Resolution.ADOPT, Resolution.FIX),
    Kind.VANISHED: (Resolution.FORGET,),
    Kind.UNKNOWN: (Resolution.ADOPT, Resolution.FORGET, Resolution.FIX),
}


@dataclass(frozen=True, slots=True)
class Recorded:
    """What a record says of its machine. Sizes that wait for a restart are not compared."""

    vm_id: UUID
    vmid: int
    node: str | None
    name: str
    cores: int
    memory_mib: int
    disk_gib: int
    restart_needed: bool = False


@dataclass(frozen=True, slots=True)
class Difference:
    """One thing that the record and the machine do not agree on."""

    what: str
    record: str | int
    cluster: str | int


@dataclass(frozen=True, slots=True)
class Finding:
    """One machine that differs."""

    kind: Kind
    vmid: int
    vm_id: UUID | None
    node: str | None
    name: str
    differences: tuple[Difference, ...] = ()


def is_doubtful(records: Collection[Recorded], known: Inventory) -> bool:
    """Whether a list is not to be believed: it is empty, or lacks a good part of the recorded machines at once.

    A token that lost privileges gets such a list with status 200.
    """
    missing = sum(1 for record in records if record.vmid not in known.machines)
    return not known.machines or (missing > _FEW and missing > _SHARE * len(records))


def compare(records: Collection[Recorded], known: Inventory, *, leased: Collection[int], tag: str) -> list[Finding]:
    """Everything that differs. `leased` are the VMIDs that Telar has something to do with, recorded or not."""
    found: list[Finding] = []
    for record in records:
        machine = known.machines.get(record.vmid)
        if machine is None:
            if record.node is None or known.online(record.node):
                found.append(Finding(Kind.VANISHED, record.vmid, record.vm_id, record.node, record.name))
            continue
        differences = _differences(record, machine, tag) if known.online(machine.node) else ()
        if differences:
            found.append(
                Finding(Kind.CHANGED, record.vmid, record.vm_id, machine.node, record.name, tuple(differences))
            )
    taken = {record.vmid for record in records} | set(leased)
    found += [
        Finding(Kind.UNKNOWN, machine.vmid, None, machine.node, machine.name)
        for machine in known.machines.values()
        if tag in machine.tags and not machine.template and machine.vmid not in taken
    ]
    return found


def _differences(record: Recorded, machine: Machine, tag: str) -> list[Difference]:
    if machine.status == "unknown" or not machine.name:  # it is new, or its node tells nothing
        return []
    pairs: list[tuple[str, str | int, str | int]] = [("name", hostname(record.name), machine.name)]
    if not record.restart_needed:
        pairs += [("cores", record.cores, machine.cores), ("memory_mib", record.memory_mib, machine.memory_mib)]
    pairs.append(("disk_gib", record.disk_gib, math.ceil(machine.disk_bytes / _GIB)))
    if tag not in machine.tags:
        pairs.append(("tag", tag, ""))
    return [Difference(what, ours, theirs) for what, ours, theirs in pairs if ours != theirs]
