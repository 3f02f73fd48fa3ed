"""Virtual machines as the cluster knows them: configuration, run state, and the statistics that others see late."""

import hashlib
import json
import secrets
import uuid
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

from libs.pvesim.clock import LabClock
from libs.pvesim.cluster.nodes import Nodes
from libs.pvesim.errors import PveError, locked
from libs.pvesim.qemu.options import boot_devices, is_cdrom, is_drive
from libs.pvesim.qemu.properties import parse, size_bytes
from libs.pvesim.store import Store

MIB = 1024**2
_DEFAULT_MEMORY_MIB = 512
Config = dict[str, Any]


@dataclass(slots=True)
class Vm:
    """`config` is what runs, `pending` and `deletes` what the next start brings, `qmp` QEMU's run state.

    `started` and `guest_up` are epoch stamps: of the process, and of the moment the guest's agent begins to answer.
    `guest` is what was changed inside the guest (files, passwords), `cloudinit` what its drive was made with.
    """

    vmid: int
    node: str
    config: Config
    created: float
    pending: Config = field(default_factory=dict)
    deletes: dict[str, int] = field(default_factory=dict)
    snapshots: dict[str, Config] = field(default_factory=dict)
    firewall: Config = field(default_factory=dict)
    guest: Config = field(default_factory=dict)
    cloudinit: Config = field(default_factory=dict)
    qmp: str = "stopped"
    started: float | None = None
    guest_up: float | None = None
    pid: int | None = None
    shown: Config | None = None
    latest: Config | None = None
    latest_tick: int = 0

    @property
    def running(self) -> bool:
        return self.qmp != "stopped"

    @property
    def lock(self) -> str | None:
        return self.config.get("lock")

    @property
    def template(self) -> bool:
        return bool(self.config.get("template"))

    @property
    def name(self) -> str:
        return str(self.config.get("name") or f"VM {self.vmid}")

    @property
    def cpus(self) -> int:
        return int(self.config.get("sockets", 1)) * int(self.config.get("cores", 1))

    @property
    def memory_mib(self) -> int:
        return int(str(self.config.get("memory", _DEFAULT_MEMORY_MIB)).removeprefix("current="))

    @property
    def drives(self) -> dict[str, str]:
        return {name: str(value) for name, value in self.config.items() if is_drive(name)}

    @property
    def disk_bytes(self) -> int:
        """Size of the boot disk."""
        drives = self.drives
        for name in [*boot_devices(self.config), *sorted(drives)]:
            if name in drives and not is_cdrom(name, drives[name]):
                size = parse(drives[name], "file").get("size")
                return size_bytes(size) if size else 0
        return 0

    def check_lock(self) -> None:
        if self.lock is not None:
            raise locked(self.lock)

    def document(self) -> dict[str, Any]:
        return {name: getattr(self, name) for name in self.__slots__}

    def digest(self) -> str:
        """SHA-1 of the stored configuration, pending changes and snapshots included."""
        stored = json.dumps([self.config, self.pending, self.deletes, self.snapshots], sort_keys=True)
        return hashlib.sha1(stored.encode(), usedforsecurity=False).hexdigest()

    def statistics(self) -> Config:
        return {
            "name": self.name,
            "status": self.qmp,
            "template": int(self.template),
            "maxcpu": self.cpus,
            "maxmem": self.memory_mib * MIB,
            "maxdisk": self.disk_bytes,
            "started": self.started,
        }


class Vms:
    """Every virtual machine by id. One exists on one node only."""

    def __init__(
        self, store: Store, clock: LabClock, nodes: Nodes, period_s: float, loaded: dict[str, dict[str, Any]]
    ) -> None:
        self._store = store
        self._clock = clock
        self._nodes = nodes
        self._period_s = period_s
        self.by_id = {int(key): Vm(**document) for key, document in loaded.items()}
        self.watchers: list[Callable[[Vm], None]] = []

    def __iter__(self) -> Iterator[Vm]:
        return iter([self.by_id[vmid] for vmid in sorted(self.by_id)])

    def configured(self, node: str, vmid: int) -> Vm:
        """The machine on that node; raises the text of calls that read its configuration file."""
        vm = self.by_id.get(vmid)
        if vm is None or vm.node != node:
            raise PveError(f"Configuration file 'nodes/{node}/qemu-server/{vmid}.conf' does not exist")
        return vm

    def located(self, node: str, vmid: int) -> Vm:
        """The machine on that node; raises the text of calls that look for its configuration file."""
        vm = self.by_id.get(vmid)
        if vm is None or vm.node != node:
            raise PveError(f"unable to find configuration file for VM {vmid} on node '{node}'")
        return vm

    def add(self, vm: Vm) -> None:
        self.by_id[vm.vmid] = vm
        self.save(vm)

    def remove(self, vm: Vm) -> None:
        if self.by_id.get(vm.vmid) is vm:
            del self.by_id[vm.vmid]
            self._store.delete("vm", str(vm.vmid))
            vm.qmp = "stopped"
            self._tell(vm)

    def save(self, vm: Vm) -> None:
        """Write a changed machine. What others see of it follows with the node's next statistics round."""
        tick = self._tick(vm)
        if vm.latest_tick < tick:
            vm.shown = vm.latest
            vm.latest_tick = tick
        vm.latest = vm.statistics()
        self._store.put("vm", str(vm.vmid), vm.document())
        self._tell(vm)

    def _tell(self, vm: Vm) -> None:
        for watcher in self.watchers:
            watcher(vm)

    def _tick(self, vm: Vm) -> int:
        return self._nodes.statistics_tick(self._nodes.by_name[vm.node], self._period_s)

    def broadcast(self, vm: Vm) -> Config | None:
        """The statistics the cluster has of a machine, None before its first round."""
        return vm.latest if vm.latest_tick < self._tick(vm) else vm.shown


def new_smbios() -> str:
    return f"uuid={uuid.uuid4()}"


def new_generation() -> str:
    return str(uuid.UUID(bytes=secrets.token_bytes(16), version=4))
