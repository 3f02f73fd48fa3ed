"""Cloning: the documented checks in their order, then a worker that claims the new id only when it runs."""

import asyncio
import contextlib
import copy
import re
from dataclasses import dataclass
from typing import Any

from libs.pvesim.access.permissions import AllOf, AnyOf, Needs, needs
from libs.pvesim.endpoints import Call, Routes
from libs.pvesim.errors import PveError
from libs.pvesim.lab import Lab
from libs.pvesim.locks import CLONE_WAIT_S
from libs.pvesim.params import (
    NODE_OPTIONAL,
    POOL,
    SNAPNAME,
    STORAGE,
    VMID,
    Param,
    boolean,
    check_dns_name,
    integer,
    one_of,
    text,
)
from libs.pvesim.qemu.disks import can_link, check_storage, local_drives
from libs.pvesim.qemu.model import Config, Vm, new_generation, new_smbios
from libs.pvesim.qemu.network import require_bridges
from libs.pvesim.qemu.options import NETS, is_cdrom, is_drive
from libs.pvesim.qemu.properties import parse, parse_net, render, render_net, size_text
from libs.pvesim.storage.volume import CLOUDINIT_BYTES, Volume
from libs.pvesim.tasks import TaskRun

routes = Routes()
_PARAMS = {
    "newid": VMID,
    "name": Param(check=check_dns_name),
    "description": text(),
    "pool": POOL,
    "snapname": SNAPNAME,
    "full": boolean(),
    "storage": STORAGE,
    "format": one_of("raw", "qcow2", "vmdk"),
    "target": NODE_OPTIONAL,
    "bwlimit": integer(0),
}
_PERMISSION = AllOf((
    needs("/vms/{vmid}", "VM.Clone"),
    AnyOf((needs("/vms/{newid}", "VM.Allocate"), Needs("/pool/{pool}", ("VM.Allocate",), given="pool"))),
))  # fmt: skip
_ALWAYS_FULL = re.compile(r"cloudinit|tpmstate")
_NOT_COPIED = frozenset({"template", "lock", "parent", "vmstate", "snaptime"})
_PROGRESS_STEPS = 4


@dataclass(slots=True)
class Order:
    """A checked request to clone."""

    lab: Lab
    source: Vm
    newid: int
    full: bool
    params: dict[str, Any]

    @property
    def target(self) -> str | None:
        target = self.params.get("target")
        return target if target != self.source.node else None

    @property
    def config(self) -> Config:
        """The configuration to copy: the machine's own, or a snapshot's."""
        snapname = self.params.get("snapname")
        return self.source.config if snapname is None else self.source.snapshots[snapname]["config"]

    @property
    def guest(self) -> Config:
        """What lies on the disks that are copied."""
        snapname = self.params.get("snapname")
        return self.source.guest if snapname is None else dict(self.source.snapshots[snapname].get("guest", {}))


@routes.post("/nodes/{node}/qemu/{vmid}/clone", _PARAMS, _PERMISSION)
async def clone(call: Call) -> str:
    lab = call.lab
    source = lab.vms.located(call.node, call.vmid)
    if "pool" in call.params:
        lab.pools.check(call.get("pool"))
    _check_places(call, source)
    lab.check_quorum()
    order = Order(lab, source, int(call.get("newid")), _is_full(call, source), call.params)
    _check_source(order)
    _check_privileges(call, order)
    _check_target(order)
    return lab.tasks.start(source.node, "qmclone", str(source.vmid), call.identity.authid, _Worker(order).run)


def _is_full(call: Call, source: Vm) -> bool:
    return bool(call.get("full", int(not source.template)))


def _check_places(call: Call, source: Vm) -> None:
    lab, target, storage_id = call.lab, call.get("target"), call.get("storage")
    if target is not None:
        lab.nodes.known(target)
    if storage_id is not None:
        storage = check_storage(lab, source.node, storage_id)
        lab.storages.usable(storage_id, target or source.node)
        if target not in {None, source.node} and not storage.shared:
            raise PveError(f"can't clone to non-shared storage '{storage_id}'")


def _check_source(order: Order) -> None:
    """Repeated by the worker once it holds the locks."""
    source, params = order.source, order.params
    source.check_lock()
    snapname = params.get("snapname")
    if snapname is not None and snapname not in source.snapshots:
        raise PveError(f"snapshot '{snapname}' does not exist")
    for name in ("storage", "format"):
        if not order.full and name in params:
            raise PveError(f"parameter '{name}' not allowed for linked clones")


def _check_privileges(call: Call, order: Order) -> None:
    for name, value in order.config.items():
        if is_drive(name) and not is_cdrom(name, str(value)):
            storage = call.get("storage") or parse(str(value), "file")["file"].partition(":")[0]
            call.require(f"/storage/{storage}", "Datastore.AllocateSpace")
    require_bridges(call, order.config)


def _check_target(order: Order) -> None:
    lab, source = order.lab, order.source
    if order.target is not None and local_drives(lab, source):
        raise PveError(f"can't clone VM to node '{order.target}' (VM uses local storage)")
    taken = lab.vms.by_id.get(order.newid)
    if taken is not None and taken.node == source.node:
        raise PveError(f"unable to create VM {order.newid}: config file already exists")
    if order.full:
        if "tpmstate0" in order.config and source.running and "snapname" not in order.params:
            raise PveError("cannot clone TPM state while VM is running")
        return
    for slot, value in order.config.items():
        if is_drive(slot) and not is_cdrom(slot, str(value)) and not _ALWAYS_FULL.search(f"{slot} {value}"):
            named = parse(str(value), "file")["file"]
            volume = lab.storages.find(source.node, named)
            if volume is None or not can_link(lab, volume, order.params.get("snapname")):
                raise PveError(_refusal(order, slot, named))


def _refusal(order: Order, slot: str, volid: str) -> str:
    if not order.lab.settings.release.has((8,)):
        return f"Linked clone feature is not supported for drive '{slot}'"
    of = "a snapshot of " if "snapname" in order.params else ""
    return f"Linked clone feature is not supported for {of}'{volid}' ({slot})"


class _Worker:
    """Carries out an order. Volumes made so far are freed, and the configuration is removed, when anything fails."""

    def __init__(self, order: Order) -> None:
        self._order = order
        self._lab = order.lab
        self._made: list[Volume] = []

    async def run(self, run: TaskRun) -> None:
        source, newid, lab = self._order.source, self._order.newid, self._lab
        async with lab.locks.guest(source.node, source.vmid, shared=not source.running, wait_s=CLONE_WAIT_S):
            if lab.vms.by_id.get(source.vmid) is not source:
                lab.vms.located(run.task.node, source.vmid)
            _check_source(self._order)
            async with lab.locks.guest(source.node, newid, wait_s=CLONE_WAIT_S):
                vm = self._claim()
                try:
                    await self._copy(run, vm)
                except BaseException as cause:
                    await self._clean_up(run, vm)
                    if isinstance(cause, PveError):
                        raise PveError(f"clone failed: {cause.text}") from cause
                    if isinstance(cause, asyncio.CancelledError):
                        raise PveError("clone failed: interrupted by signal") from cause
                    raise
                self._deliver(vm)

    def _claim(self) -> Vm:
        """Create the configuration file on the source's node: the moment the id is taken."""
        lab, node, newid = self._lab, self._order.source.node, self._order.newid
        taken = lab.vms.by_id.get(newid)
        if taken is not None and taken.node == node:
            raise PveError(f"unable to create VM {newid}: config file already exists")
        if taken is not None:
            path = f"/etc/pve/nodes/{node}/qemu-server/{newid}.conf"
            raise PveError(f"close (rename) atomic file '{path}' failed: File exists")
        vm = Vm(newid, node, {"lock": "clone"}, created=lab.clock.now())
        lab.vms.add(vm)
        return vm

    async def _copy(self, run: TaskRun, vm: Vm) -> None:
        source, order, lab = self._order.source, self._order, self._lab
        drives: Config = {}
        copied: Config = {}
        for name, value in order.config.items():
            if is_drive(name):
                drives[name] = value
            elif name in NETS:
                copied[name] = render_net(parse_net(value) | {"macaddr": lab.datacenter.new_mac()})
            elif name not in _NOT_COPIED and not name.startswith("unused"):
                copied[name] = value
        copied["name"] = order.params.get("name") or f"Copy-of-VM-{order.config.get('name') or source.vmid}"
        copied["smbios1"] = new_smbios()
        if "vmgenid" in copied:
            copied["vmgenid"] = new_generation()
        if "description" in order.params:
            copied["description"] = order.params["description"]
        vm.firewall = copy.deepcopy(source.firewall)
        vm.guest = copy.deepcopy(order.guest)
        vm.config |= copied
        lab.vms.save(vm)
        disks = sum(not is_cdrom(name, str(value)) for name, value in drives.items())
        kind = "qmclone-full" if order.full else "qmclone"
        seconds = lab.settings.seconds_of(kind) / max(1, disks)
        for slot, value in drives.items():
            vm.config[slot] = await self._copy_drive(run, vm, slot, str(value), seconds)
            lab.vms.save(vm)

    async def _copy_drive(self, run: TaskRun, vm: Vm, slot: str, value: str, seconds: float) -> str:
        lab, order = self._lab, self._order
        properties = parse(value, "file")
        volid = properties["file"]
        volume = lab.storages.find(order.source.node, volid)
        if is_cdrom(slot, value) and "cloudinit" not in volid:
            return value
        if volume is None:
            raise PveError(f"volume '{volid}' does not exist")
        storage = order.params.get("storage") or volume.storage
        if "cloudinit" in volid:
            made = await lab.storages.allocate(
                vm.node, storage, vm.vmid, size=CLOUDINIT_BYTES, suffix="cloudinit", format=volume.format
            )
            self._made.append(made)
            return render(properties | {"file": made.volid}, "file")
        linked = not order.full and not _ALWAYS_FULL.search(slot)
        run.log(f"create {'linked' if linked else 'full'} clone of drive {slot} ({volid})")
        made = await lab.storages.allocate(
            vm.node,
            storage,
            vm.vmid,
            size=volume.size,
            format="qcow2" if linked else order.params.get("format") or volume.format,
            base=volume if linked else None,
            used=volume.used,
            os=volume.os,
        )
        self._made.append(made)
        await self._transfer(run, volume, seconds, linked=linked)
        return render(properties | {"file": made.volid, "size": size_text(made.size)}, "file")

    async def _transfer(self, run: TaskRun, volume: Volume, seconds: float, *, linked: bool) -> None:
        if linked:
            await run.work(seconds)
            return
        whole = f"{volume.size / 1024**3:.1f} GiB"
        for step in range(1, _PROGRESS_STEPS + 1):
            await run.work(seconds / _PROGRESS_STEPS)
            part = volume.size * step / _PROGRESS_STEPS / 1024**3
            run.log(f"transferred {part:.1f} GiB of {whole} ({100 * step / _PROGRESS_STEPS:.2f}%)")

    async def _clean_up(self, run: TaskRun, vm: Vm) -> None:
        if run.killed:
            # A dead node frees nothing: the stub with its lock stays, as on a real cluster.
            return
        for volume in self._made:
            with contextlib.suppress(PveError):
                await self._lab.storages.free(volume)
        self._lab.vms.remove(vm)

    def _deliver(self, vm: Vm) -> None:
        """Unlock the copy, hop to the target, join the pool."""
        vm.config.pop("lock", None)
        if self._order.target is not None:
            vm.node = self._order.target
        self._lab.vms.save(vm)
        pool = self._order.params.get("pool")
        if pool is not None and pool in self._lab.pools.by_name:
            self._lab.pools.join(pool, vm.vmid)
            self._lab.access.forget()
