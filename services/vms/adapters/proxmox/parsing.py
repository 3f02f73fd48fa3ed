"""From Proxmox VE's answers to Telar's values: shapes are checked, numbers may arrive as text, absent means unset."""

import math
import re
from collections.abc import Mapping
from ipaddress import ip_address
from typing import Any

from services.vms.domain.cluster import (
    SEED_FILE,
    Inventory,
    Machine,
    MachineConfig,
    Node,
    PendingChange,
    Power,
    Storage,
    Template,
    Used,
    os_type_of,
)

_MIB, _GIB = 1024**2, 1024**3
_UNITS = {"": 1, "K": 1024, "M": _MIB, "G": _GIB, "T": 1024**4}
_SIZE = re.compile(r"([0-9]+(?:\.[0-9]+)?)([KMGT]?)")
_DRIVE = re.compile(r"(?:ide|sata|scsi|virtio)[0-9]+|efidisk0|tpmstate0")
_DISK = re.compile(r"(?:ide|sata|scsi|virtio)[0-9]+")
_BOOT = re.compile(r"order=([^,]*)")
Entry = Mapping[str, Any]


class BadShape(ValueError):
    """An answer is not what the API's schema says; a proxy's web page, for instance."""


def entries(answer: object) -> list[Entry]:
    """A list of objects; raises BadShape."""
    if not isinstance(answer, list) or not all(isinstance(item, dict) for item in answer):
        raise BadShape("not a list of objects")
    return answer


def entry(answer: object) -> Entry:
    """One object; raises BadShape. proxmoxer gives `{"errors": bytes}` for what is not JSON."""
    if not isinstance(answer, dict) or isinstance(answer.get("errors"), bytes):
        raise BadShape("not an object")
    return answer


def whole(value: object) -> int:
    return int(real(value))


def real(value: object) -> float:
    try:
        return float(str(value)) if value not in (None, "") else 0.0
    except ValueError:
        return 0.0


def words(value: object) -> frozenset[str]:
    """Tags, which are separated by semicolons, commas or blanks."""
    return frozenset(word for word in re.split(r"[;, ]+", str(value or "")) if word)


def inventory(answer: object) -> Inventory:
    """The list of all resources; entries of other types are left out."""
    nodes: dict[str, Node] = {}
    machines: dict[int, Machine] = {}
    storages: dict[tuple[str, str], Storage] = {}
    for item in entries(answer):
        kind = item.get("type")
        if kind == "node":
            node = _node(item)
            nodes[node.name] = node
        elif kind in ("qemu", "lxc"):
            machine = _machine(item)
            machines[machine.vmid] = machine
        elif kind == "storage":
            storage = _storage(item)
            storages[storage.node, storage.name] = storage
    return Inventory(nodes, machines, storages)


def _node(item: Entry) -> Node:
    return Node(
        name=str(item.get("node", "")),
        online=item.get("status") == "online",
        cores=whole(item.get("maxcpu")),
        memory_mib=whole(item.get("maxmem")) // _MIB,
        memory_used_mib=whole(item.get("mem")) // _MIB,
        cpu_load=real(item.get("cpu")),
        uptime_s=whole(item.get("uptime")),
    )


def _machine(item: Entry) -> Machine:
    return Machine(
        vmid=whole(item.get("vmid")),
        node=str(item.get("node", "")),
        name=str(item.get("name", "")),
        status=str(item.get("status", "unknown")),
        template=whole(item.get("template")) == 1,
        tags=words(item.get("tags")),
        lock=str(item["lock"]) if item.get("lock") else None,
        cores=whole(item.get("maxcpu")),
        memory_mib=whole(item.get("maxmem")) // _MIB,
        disk_bytes=whole(item.get("maxdisk")),
        uptime_s=whole(item.get("uptime")),
        ha_state=str(item["hastate"]) if item.get("hastate") else None,
        used=Used(
            cpu_load=real(item.get("cpu")),
            memory_bytes=whole(item.get("mem")),
            disk_read_bytes=whole(item.get("diskread")),
            disk_written_bytes=whole(item.get("diskwrite")),
            network_received_bytes=whole(item.get("netin")),
            network_sent_bytes=whole(item.get("netout")),
        ),
    )


def _storage(item: Entry) -> Storage:
    free = max(0.0, real(item.get("maxdisk")) - real(item.get("disk")))
    return Storage(
        name=str(item.get("storage", "")),
        node=str(item.get("node", "")),
        shared=whole(item.get("shared")) == 1,
        available=item.get("status") == "available",
        free_gib=free / _GIB,
        size_bytes=whole(item.get("maxdisk")),
        used_bytes=whole(item.get("disk")),
        content=words(item.get("content")),
    )


def config(answer: object) -> MachineConfig:
    """A machine's configuration, pending changes included."""
    item = entry(answer)
    drives = {slot: _options(str(value)) for slot, value in item.items() if _DRIVE.fullmatch(slot)}
    disks = {
        slot: size_bytes(options["size"])
        for slot, options in drives.items()
        if _DISK.fullmatch(slot) and "size" in options and options.get("media") != "cdrom"
    }
    sockets = whole(item.get("sockets")) or 1
    return MachineConfig(
        name=str(item.get("name", "")),
        cores=(whole(item.get("cores")) or 1) * sockets,
        memory_mib=whole(re.sub(r"^current=|,.*$", "", str(item.get("memory", "512")))),
        notes=str(item.get("description", "")),
        tags=words(item.get("tags")),
        lock=str(item["lock"]) if item.get("lock") else None,
        digest=str(item.get("digest", "")),
        disks=disks,
        boot_disk=_boot_disk(item, disks),
        storages=frozenset(
            options["file"].partition(":")[0] for options in drives.values() if ":" in options.get("file", "")
        ),
        cloud_init=any("cloudinit" in options.get("file", "") for options in drives.values()),
        addressed="ipconfig0" in item,
        card=str(item["net0"]) if item.get("net0") else None,
        cloud_init_slot=next((slot for slot in sorted(drives) if "cloudinit" in drives[slot].get("file", "")), None),
        seed_slot=next((slot for slot in sorted(drives) if SEED_FILE in drives[slot].get("file", "")), None),
        sockets=sockets,
        balloon_mib=whole(item.get("balloon")),
        protected=whole(item.get("protection")) == 1,
    )


def _options(value: str) -> dict[str, str]:
    """A property string; what stands without a name is the drive's volume."""
    found: dict[str, str] = {}
    for part in value.split(","):
        name, equals, told = part.partition("=")
        found[name if equals else "file"] = told if equals else part
    return found


def _boot_disk(item: Entry, disks: Mapping[str, int]) -> str | None:
    order = _BOOT.search(str(item.get("boot", "")))
    named = [*(order[1].split(";") if order else ()), str(item.get("bootdisk", ""))]
    return next((slot for slot in named if slot in disks), min(disks, default=None))


def size_bytes(text: str) -> int:
    """`32G`, `3584M`; 0 for what is no size."""
    found = _SIZE.fullmatch(text)
    return int(float(found[1]) * _UNITS[found[2]]) if found else 0


def power(answer: object) -> Power:
    item = entry(answer)
    status = str(item.get("status", ""))
    if status not in ("running", "stopped"):
        raise BadShape("no status")
    inner = str(item.get("qmpstatus", status))
    return Power(
        status="paused" if status == "running" and inner in ("paused", "suspended", "prelaunch") else status,
        lock=str(item["lock"]) if item.get("lock") else None,
        agent=whole(item.get("agent")) == 1,
        uptime_s=whole(item.get("uptime")),
        cpu_load=real(item.get("cpu")),
        memory_bytes=whole(item.get("mem")),
        managed=_managed(item.get("ha")),
    )


def _managed(told: object) -> bool:
    return isinstance(told, dict) and whole(told.get("managed")) == 1


def pending(answer: object) -> list[PendingChange]:
    """Options that differ after the next start; an entry with neither `pending` nor `delete` is settled."""
    found = []
    for item in entries(answer):
        if "pending" in item or whole(item.get("delete")):
            now, then = item.get("value"), item.get("pending")
            found.append(
                PendingChange(
                    name=str(item.get("key", "")),
                    now=None if now is None else str(now),
                    then=None if then is None or whole(item.get("delete")) else str(then),
                )
            )
    return found


def template(machine: Machine, configured: MachineConfig, known: Inventory) -> Template:
    """A template as others are cloned from it; its disk is given in whole GiB, rounded up."""
    size = configured.disks.get(configured.boot_disk or "", machine.disk_bytes)
    reachable = [known.storages.get((machine.node, name)) for name in configured.storages]
    return Template(
        vmid=machine.vmid,
        node=machine.node,
        name=configured.name or machine.name,
        os_type=os_type_of(configured.name or machine.name, configured.tags),
        cores=configured.cores,
        memory_mib=configured.memory_mib,
        disk_gib=math.ceil(size / _GIB),
        storages=configured.storages,
        shared=all(storage is not None and storage.shared for storage in reachable),
        cloud_init=configured.cloud_init,
    )


def addresses(answer: object) -> list[str]:
    """A guest's addresses but loopback and link-local ones, in the order the agent gives them."""
    result = entry(answer).get("result")
    if not isinstance(result, list):  # the agent's own failure comes with status 200
        return []
    found: list[str] = []
    for interface in result:
        for item in interface.get("ip-addresses") or () if isinstance(interface, dict) else ():
            try:
                address = ip_address(str(item.get("ip-address", "")).partition("%")[0])
            except ValueError:
                continue
            if not address.is_loopback and not address.is_link_local:
                found.append(str(address))
    return found
