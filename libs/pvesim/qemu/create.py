"""Creating a machine: the id is claimed before the answer, disks and defaults are made in the task."""

import asyncio
import contextlib

from libs.pvesim.access.permissions import ANYONE
from libs.pvesim.endpoints import Call, Routes
from libs.pvesim.errors import PveError, denied
from libs.pvesim.locks import CREATE_WAIT_S
from libs.pvesim.params import VMID
from libs.pvesim.qemu.disks import check_storage
from libs.pvesim.qemu.model import Config, Vm, new_generation, new_smbios
from libs.pvesim.qemu.options import CREATE_PARAMS, NETS, is_cdrom, is_drive
from libs.pvesim.qemu.power_work import start_task
from libs.pvesim.qemu.update import check_options, options_of, stored_value
from libs.pvesim.storage.volume import Volume
from libs.pvesim.tasks import TaskRun

routes = Routes()


@routes.post("/nodes/{node}/qemu", {**CREATE_PARAMS, "vmid": VMID}, ANYONE)
async def create(call: Call) -> str:
    lab, vmid = call.lab, call.vmid
    options = _checked(call)
    try:
        async with lab.locks.guest(call.node, vmid, wait_s=CREATE_WAIT_S):
            taken = lab.vms.by_id.get(vmid)
            if taken is not None:
                raise PveError(f"VM {vmid} already exists on node '{taken.node}'")  # noqa: TRY301  (worded below)
            vm = Vm(vmid, call.node, {"lock": "create"}, created=lab.clock.now())
            lab.vms.add(vm)
    except PveError as failure:
        raise PveError(f"unable to create VM {vmid} - {failure.text}") from failure

    async def worker(run: TaskRun) -> None:
        made: list[Volume] = []
        try:
            async with lab.locks.guest(vm.node, vmid):
                await _build(call, run, vm, options, made)
        except BaseException as cause:
            if not run.killed:
                for volume in made:
                    with contextlib.suppress(PveError):
                        await lab.storages.free(volume)
                lab.vms.remove(vm)
            if isinstance(cause, asyncio.CancelledError):
                raise PveError(f"unable to create VM {vmid} - received interrupt") from cause
            if isinstance(cause, PveError):
                raise PveError(f"unable to create VM {vmid} - {cause.text}") from cause
            raise
        if call.flag("start"):
            start_task(lab, vm, call.identity.authid)

    return lab.tasks.start(call.node, "qmcreate", str(vmid), call.identity.authid, worker)


def _checked(call: Call) -> Config:
    pool = call.get("pool")
    if pool is not None:
        call.lab.pools.check(pool)
    if pool is None or not call.allows(f"/pool/{pool}", "VM.Allocate"):
        call.require(f"/vms/{call.vmid}", "VM.Allocate")
    if "archive" in call.params:
        raise PveError(f"volume '{call.get('archive')}' does not exist")
    if call.flag("ha-managed") and not call.allows("/", "Sys.Console"):
        raise denied("/, Sys.Console")
    if "storage" in call.params:
        check_storage(call.lab, call.node, call.get("storage"))
    options = options_of(call)
    check_options(call, options, None)
    return options


async def _build(call: Call, run: TaskRun, vm: Vm, options: Config, made: list[Volume]) -> None:
    lab = call.lab
    config: Config = {}
    for name, value in options.items():
        config[name] = await stored_value(lab, vm, name, value, call.get("storage"), made)
        if is_drive(name) and "import-from" in str(value):
            run.log(f"importing disk '{value}' to VM {vm.vmid} ...")
        if is_drive(name):
            run.log(f"{name}: successfully created disk '{config[name]}'")
    await run.work(lab.settings.seconds_of("qmcreate"))
    config.setdefault("boot", f"order={';'.join(_boot_order(config))}")
    config.setdefault("smbios1", new_smbios())
    if config.get("vmgenid", "1") == "1":
        config["vmgenid"] = new_generation()
    config["meta"] = f"creation-qemu=10.1.2,ctime={lab.clock.epoch()}"
    vm.config = config
    lab.vms.save(vm)
    if "pool" in call.params:
        lab.pools.join(call.get("pool"), vm.vmid)
        lab.access.forget()
    if call.flag("ha-managed"):
        lab.ha.put(f"vm:{vm.vmid}", state="started" if call.flag("start") else "stopped")


def _boot_order(config: Config) -> list[str]:
    """The first disk, the first CD drive, the first network card."""
    drives = [name for name in sorted(config) if is_drive(name) and name not in {"efidisk0", "tpmstate0"}]
    disks = [name for name in drives if not is_cdrom(name, str(config[name]))]
    cdroms = [name for name in drives if is_cdrom(name, str(config[name])) and "cloudinit" not in str(config[name])]
    nets = [name for name in sorted(config) if name in NETS]
    return [*disks[:1], *cdroms[:1], *nets[:1]]
