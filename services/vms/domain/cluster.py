"""What a Proxmox VE cluster consists of, as Telar sees it, and which ids are safe to send to one."""

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from uuid import UUID

from services.vms.errors import UnsafeId

MIN_VMID, MAX_VMID = 100, 999_999_999
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,62}")
_FILE = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,120}\.(?:iso|qcow2|raw|vmdk)")
_SLOT = re.compile(r"(?:ide|sata|scsi|virtio)[0-9]{1,2}")
_UPID = re.compile(
    r"UPID:(?P<node>[A-Za-z0-9-]+):[0-9A-Fa-f]{8}:[0-9A-Fa-f]{8,9}:(?P<start>[0-9A-Fa-f]{8})"
    r":(?P<type>[^:/\s]+):(?P<id>[^:/\s]*):[^:/\s]+:"
)
_GIB = 1024**3
_MARK = "telar-vm "
SEED_FILE = "iso/telar-seed-"
"""How volumes of seeds begin, after their storage."""


def safe_vmid(vmid: object) -> int:
    """Give a VMID back, or raise UnsafeId: no other text may become part of a call's path."""
    if not isinstance(vmid, int) or isinstance(vmid, bool) or not MIN_VMID <= vmid <= MAX_VMID:
        raise UnsafeId("A VMID is a whole number from 100 to 999999999")
    return vmid


def safe_name(name: object) -> str:
    """Give a node's or storage's name back, or raise UnsafeId."""
    if not isinstance(name, str) or not _NAME.fullmatch(name):
        raise UnsafeId("Names of nodes and storages are letters, digits, dots, hyphens and underscores")
    return name


def safe_file(name: object) -> str:
    """Give the name of a file on a storage back, or raise UnsafeId."""
    if not isinstance(name, str) or not _FILE.fullmatch(name):
        raise UnsafeId("Not the name of a file that Telar keeps on a storage")
    return name


def safe_slot(slot: object) -> str:
    if not isinstance(slot, str) or not _SLOT.fullmatch(slot):
        raise UnsafeId("A disk's slot looks like scsi0")
    return slot


def safe_upid(upid: object) -> str:
    if not isinstance(upid, str) or not _UPID.fullmatch(upid):
        raise UnsafeId("Not the id of a task")
    return upid


def node_of(upid: str) -> str:
    """The node on which a task runs, and where its log lies."""
    found = _UPID.fullmatch(safe_upid(upid))
    return found["node"] if found else ""


def kind_of(upid: str) -> str:
    """What a task does, in the cluster's word: such as qmclone."""
    found = _UPID.fullmatch(safe_upid(upid))
    return found["type"] if found else ""


def mark_of(vm_id: str) -> str:
    """The line in a machine's notes by which Telar knows its own."""
    return _MARK + vm_id


def carries_mark(notes: str, vm_id: str) -> bool:
    return mark_of(vm_id) in (line.strip() for line in notes.splitlines())


def marked_id(notes: str) -> UUID | None:
    """The id in a machine's mark, if it has one."""
    for line in notes.splitlines():
        if line.strip().startswith(_MARK):
            try:
                return UUID(line.strip().removeprefix(_MARK))
            except ValueError:
                continue
    return None


def without_mark(notes: str) -> str:
    return "\n".join(line for line in notes.splitlines() if not line.strip().startswith(_MARK)).strip()


@dataclass(frozen=True, slots=True)
class Node:
    """A member of the cluster; what an offline one has is not known and counts as nothing."""

    name: str
    online: bool
    cores: int = 0
    memory_mib: int = 0
    memory_used_mib: int = 0
    cpu_load: float = 0.0
    uptime_s: int = 0


@dataclass(frozen=True, slots=True)
class Storage:
    """A storage as one node sees it."""

    name: str
    node: str
    shared: bool
    available: bool
    free_gib: float
    size_bytes: int = 0
    used_bytes: int = 0
    content: frozenset[str] = frozenset()
    """What may lie on it: images, iso, import and so on."""


@dataclass(frozen=True, slots=True)
class Used:
    """What a guest uses (`cpu_load` of its cores, from 0 to 1), and what it has moved since it was started."""

    cpu_load: float = 0.0
    memory_bytes: int = 0
    disk_read_bytes: int = 0
    disk_written_bytes: int = 0
    network_received_bytes: int = 0
    network_sent_bytes: int = 0


@dataclass(frozen=True, slots=True)
class Machine:
    """A guest in the cluster's list: where it is, is current; the rest may be 10 s old, or missing when it is new."""

    vmid: int
    node: str
    name: str = ""
    status: str = "unknown"
    template: bool = False
    tags: frozenset[str] = frozenset()
    lock: str | None = None
    cores: int = 0
    memory_mib: int = 0
    disk_bytes: int = 0
    uptime_s: int = 0
    ha_state: str | None = None
    used: Used = Used()


@dataclass(frozen=True, slots=True)
class Inventory:
    """All of a cluster at one moment. Empty `machines` prove nothing: a token without privileges sees none."""

    nodes: Mapping[str, Node] = field(default_factory=dict)
    machines: Mapping[int, Machine] = field(default_factory=dict)
    storages: Mapping[tuple[str, str], Storage] = field(default_factory=dict)
    """By node and storage."""

    def online(self, node: str) -> bool:
        found = self.nodes.get(node)
        return found is not None and found.online


@dataclass(frozen=True, slots=True)
class MachineConfig:
    """What a machine is configured to be. `disks` are its disks' sizes in bytes by slot; `digest` guards changes."""

    name: str
    cores: int
    memory_mib: int
    notes: str
    tags: frozenset[str]
    lock: str | None
    digest: str
    disks: Mapping[str, int]
    boot_disk: str | None
    storages: frozenset[str]
    cloud_init: bool
    addressed: bool
    """Whether its first network card has an `ipconfig`."""
    card: str | None = None
    """Its first network card as it is configured."""
    cloud_init_slot: str | None = None
    seed_slot: str | None = None
    """Where a seed of Telar's is."""
    sockets: int = 1
    """Among which `cores`, all of its cores, are spread."""
    balloon_mib: int = 0
    """What the cluster may shrink its memory to; it cannot be more than the memory."""
    protected: bool = False
    """Whether the cluster refuses to remove it."""

    @property
    def sizes(self) -> dict[str, int]:
        """What it has in a record's words."""
        disk = self.disks.get(self.boot_disk or "", 0)
        return {"cores": self.cores, "memory_mib": self.memory_mib, "disk_gib": max(1, -(-disk // _GIB))}


@dataclass(frozen=True, slots=True)
class Power:
    """A machine's process at this moment. `status` is running, paused or stopped; `memory_bytes` is what it uses."""

    status: str
    lock: str | None = None
    agent: bool = False
    uptime_s: int = 0
    cpu_load: float = 0.0
    memory_bytes: int = 0
    managed: bool = False
    """Whether the cluster's HA manager starts and stops it."""


SIZE_OPTIONS = frozenset({"cores", "sockets", "memory"})


def sizing(now: MachineConfig, *, cores: int | None, memory_mib: int | None) -> dict[str, str | int]:
    """The options that give a machine so many cores in all and so much memory, whatever it has of them now."""
    options: dict[str, str | int] = {}
    if cores is not None:
        options["cores"] = cores
        if now.sockets != 1:
            options["sockets"] = 1
    if memory_mib is not None:
        options["memory"] = memory_mib
        if now.balloon_mib > memory_mib:
            options["balloon"] = memory_mib
    return options


@dataclass(frozen=True, slots=True)
class PendingChange:
    """An option that a running machine has with one value, and will have with another after its next start."""

    name: str
    now: str | None
    then: str | None


@dataclass(frozen=True, slots=True)
class Template:
    """A machine that others are cloned from. `storages` hold its drives; `shared`: all nodes reach all of them."""

    vmid: int
    node: str
    name: str
    os_type: str
    cores: int
    memory_mib: int
    disk_gib: int
    storages: frozenset[str]
    shared: bool
    cloud_init: bool


_PREFIX = re.compile(r"^(?:template|tmpl|tpl)[-_.]|[-_.](?:template|tmpl|tpl)$", re.IGNORECASE)


def os_type_of(name: str, tags: Iterable[str]) -> str:
    """The operating system a template holds: its tag `os-…`, else its name without the word template."""
    tagged = sorted(tag[3:] for tag in tags if tag.startswith("os-") and len(tag) > 3)  # noqa: PLR2004 - "os-" itself
    return tagged[0] if tagged else _PREFIX.sub("", name).lower()


def choose_templates(templates: Iterable[Template], *, template: str | None, os_type: str | None) -> list[Template]:
    """The copies of one template that a wish names: a VMID, a name, or an operating system (`Ubuntu` is the newest)."""
    known = sorted(templates, key=lambda one: one.vmid)
    if template is not None:
        wanted = template.strip().lower()
        return [one for one in known if wanted in (str(one.vmid), one.name.lower())] or [
            one for one in known if one.os_type == wanted
        ]
    family = "-".join((os_type or "").lower().split())
    exact = [one for one in known if one.os_type == family]
    if exact or not family:
        return exact
    kin = {one.os_type for one in known if re.split(r"[-_.0-9]", one.os_type, maxsplit=1)[0] == family}
    kin |= {one.os_type for one in known if one.os_type.startswith(family + "-")}
    newest = max(kin, key=_version, default=None)
    return [one for one in known if one.os_type == newest]


def _version(os_type: str) -> tuple[list[int], str]:
    return [int(number) for number in re.findall(r"[0-9]+", os_type)], os_type
