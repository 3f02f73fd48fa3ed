"""Changing a machine's configuration: what is refused up front, what applies at once, what stays pending."""

import hashlib
import re
import secrets
from typing import Any

from libs.pvesim.endpoints import Call
from libs.pvesim.errors import PveError, parameter_error
from libs.pvesim.lab import Lab
from libs.pvesim.params import split_list
from libs.pvesim.qemu.cloudinit import check_keys
from libs.pvesim.qemu.disks import check_drives, detach, make_drive, owned_volume
from libs.pvesim.qemu.model import Config, Vm
from libs.pvesim.qemu.network import missing_bridge, require_bridges
from libs.pvesim.qemu.options import (
    INTERNAL,
    NETS,
    OPTIONS,
    ROOT_PRIVILEGE,
    boot_devices,
    hotplug_feature,
    is_cdrom,
    is_drive,
    tag_text,
)
from libs.pvesim.qemu.properties import UNITS, parse, parse_net, render, render_net
from libs.pvesim.releases import Release
from libs.pvesim.storage.volume import Volume

_CRYPTED = re.compile(r"\$[0-9a-z]{1,2}\$.+")
_MIB = UNITS["M"]


def options_of(call: Call) -> Config:
    """The configuration options among a call's parameters, in the form they are stored in."""
    options = {name: value for name, value in call.params.items() if name in OPTIONS and name != "freeze"}
    if "cdrom" in options:
        value = str(options.pop("cdrom"))
        options["ide2"] = value if "media=cdrom" in value else f"{value},media=cdrom"
    if "tags" in options:
        options["tags"] = tag_text(str(options["tags"]))
    if "startup" in options:
        options["startup"] = render(parse(str(options["startup"]), "order"), "")
    return options


def check_options(call: Call, options: Config, vm: Vm | None) -> None:
    """Privileges and plausibility of options, before anything is locked."""
    root = call.lab.access.is_root(call.identity.authid)
    vmid = vm.vmid if vm is not None else call.vmid
    for name, value in options.items():
        privilege = OPTIONS[name].privilege
        socket = not name.startswith("serial") or value == "socket"
        if (privilege == ROOT_PRIVILEGE or not socket) and not root:
            raise PveError(f"only root can set '{name}' config")
        if vm is not None and privilege != ROOT_PRIVILEGE:
            _check_privilege(call, f"/vms/{vmid}", name, str(value))
    require_bridges(call, options)
    check_drives(call, vm, options)
    if "sshkeys" in options:
        check_keys(str(options["sshkeys"]))
    then = {**vm.config, **vm.pending, **options} if vm is not None else options
    memory = int(str(then.get("memory", 512)).removeprefix("current="))
    if {"memory", "balloon"} & options.keys() and int(then.get("balloon", 0)) > memory:
        raise PveError("balloon value too large (must be smaller than assigned memory)")


def _check_privilege(call: Call, path: str, name: str, value: str) -> None:
    option = OPTIONS[name]
    if option.cloudinit:
        call.require(path, "VM.Config.Cloudinit", "VM.Config.Network", any_of=True)
    elif is_cdrom(name, value):
        call.require(path, "VM.Config.CDROM")
    else:
        call.require(path, option.privilege)


class Change:
    """One update of one machine, checked at construction and applied under its config lock."""

    def __init__(self, call: Call, vm: Vm) -> None:
        self._call = call
        self._lab: Lab = call.lab
        self._vm = vm
        self.options = options_of(call)
        self.deletes = self._listed("delete")
        self.reverts = self._listed("revert")
        if not self.options and not self.deletes and not self.reverts:
            raise PveError("no options specified")
        for name in self.deletes:
            if name in self.options:
                raise parameter_error("delete", f"you can't use '-{name}' and -delete {name}' at the same time")
            _check_privilege(call, f"/vms/{vm.vmid}", name, str(vm.config.get(name, "")))
        if call.flag("skiplock") and not self._lab.access.is_root(call.identity.authid):
            raise parameter_error("skiplock", "Only root may use this option.")
        check_options(call, self.options, vm)
        self._check_state()

    def _listed(self, parameter: str) -> list[str]:
        names = split_list(self._call.get(parameter, ""))
        for name in names:
            if name not in OPTIONS:
                raise parameter_error(parameter, f"unknown option '{name}'")
        return names

    def _check_state(self) -> None:
        digest = self._call.get("digest")
        if digest is not None and digest != self._vm.digest():
            raise PveError(self._lab.settings.release.digest_mismatch)
        if not self._call.flag("skiplock") and "lock" not in self.deletes:
            self._vm.check_lock()

    async def apply(self) -> None:
        """Take the config lock and change option by option; earlier ones stay when a later one fails."""
        vm = self._vm
        async with self._lab.locks.guest(vm.node, vm.vmid):
            self._lab.vms.located(vm.node, vm.vmid)
            self._check_state()
            for name in self.reverts:
                vm.pending.pop(name, None)
                vm.deletes.pop(name, None)
            for name in self.deletes:
                await self._delete(name)
            for name, value in self.options.items():
                await self._set(name, value)
            self._lab.vms.save(vm)

    async def _delete(self, name: str) -> None:
        vm = self._vm
        vm.pending.pop(name, None)
        if name not in vm.config:
            return
        if name.startswith("unused"):
            volume = owned_volume(self._lab, vm, str(vm.config[name]))
            if volume is not None:
                await self._lab.storages.free(volume)
            del vm.config[name]
        elif self._applies_now(name, delete=True):
            await remove_option(self._lab, vm, name, force=self._call.flag("force"))
        else:
            vm.deletes[name] = 2 if self._call.flag("force") else 1

    async def _set(self, name: str, value: Any) -> None:
        vm = self._vm
        stored = await stored_value(self._lab, vm, name, value, self._call.get("storage"), [])
        if name == "boot":
            _check_boot(vm, self.options, str(stored))
        vm.deletes.pop(name, None)
        if not self._applies_now(name, delete=False):
            if vm.config.get(name) != stored:
                vm.pending[name] = stored
            else:
                vm.pending.pop(name, None)
            return
        bridge = missing_bridge(name, str(stored)) if vm.running else None
        if bridge is not None:
            vm.pending[name] = stored
            self._lab.vms.save(vm)
            raise parameter_error(name, f"hotplug problem - bridge '{bridge}' does not exist")
        vm.pending.pop(name, None)
        put_option(self._lab, vm, name, stored)

    def _applies_now(self, name: str, *, delete: bool) -> bool:
        vm = self._vm
        if not vm.running or OPTIONS[name].live:
            return True
        if is_cdrom(name, str(vm.config.get(name, ""))) and not delete:
            return True
        return hotplug_feature(name, vm.config)


async def stored_value(lab: Lab, vm: Vm, name: str, value: Any, default_storage: str | None, made: list[Volume]) -> Any:
    """An option as it is stored: volumes made, MACs filled in, passwords hashed, property strings printed again."""
    if is_drive(name):
        return await make_drive(lab, vm, str(value), default_storage, made)
    if name in NETS:
        net = parse_net(str(value))
        return render_net({**net, "macaddr": net.get("macaddr", lab.datacenter.new_mac()).upper()})
    if name == "cipassword" and not _CRYPTED.fullmatch(str(value)):
        salt = secrets.token_hex(4)
        return f"$5${salt}${hashlib.sha256((salt + str(value)).encode()).hexdigest()}"
    if name.startswith("ipconfig"):
        return render(parse(str(value), "ip"), "")
    return value


def put_option(lab: Lab, vm: Vm, name: str, stored: Any) -> None:
    """Apply an option now. A disk that loses its slot becomes unused; a new CD drive joins the boot order."""
    old = str(vm.config.get(name, ""))
    if is_drive(name) and old:
        old_volume = owned_volume(lab, vm, old)
        if old_volume is not None and old_volume.volid != parse(str(stored), "file")["file"]:
            detach(vm, name)
    if name == "lock" and not stored:
        vm.config.pop("lock", None)
        return
    vm.config[name] = stored
    if is_cdrom(name, str(stored)) and not old and (order := boot_devices(vm.config)):
        vm.config["boot"] = "order=" + ";".join([*order, name])


async def remove_option(lab: Lab, vm: Vm, name: str, *, force: bool) -> None:
    """Remove an option now; a disk is kept as unused unless forced, and the boot order forgets the device."""
    if is_drive(name):
        volume = owned_volume(lab, vm, str(vm.config[name]))
        cloudinit = "cloudinit" in str(vm.config[name])
        if volume is not None and (force or cloudinit):
            await lab.storages.free(volume)
            vm.config.pop(name, None)
        else:
            detach(vm, name)
    else:
        vm.config.pop(name, None)
    order = boot_devices(vm.config)
    if name in order:
        order.remove(name)
        vm.config["boot"] = "order=" + ";".join(order)


def _check_boot(vm: Vm, options: Config, value: str) -> None:
    for device in boot_devices({"boot": value}):
        if device not in vm.config and device not in options and device not in vm.pending:
            raise PveError(f"invalid bootorder: device '{device}' does not exist'")


async def apply_pending(lab: Lab, vm: Vm) -> None:
    """What a start does with changes that waited for it."""
    deletes, vm.deletes = vm.deletes, {}
    for name, how in deletes.items():
        if name in vm.config:
            await remove_option(lab, vm, name, force=how > 1)
    pending, vm.pending = vm.pending, {}
    for name, value in pending.items():
        put_option(lab, vm, name, value)


def shown_config(vm: Vm, config: Config, release: Release) -> Config:
    """A configuration as the API shows it: booleans and integers are numbers, the rest is text, secrets are masked."""
    shown: Config = {}
    for name, value in config.items():
        option = OPTIONS.get(name)
        if name == "cipassword":
            shown[name] = "**********"
        elif name in INTERNAL or option is None:
            shown[name] = value
        elif option.param.type in {"boolean", "integer"} or (name == "memory" and not release.memory_is_text):
            shown[name] = int(value)
        elif option.param.type == "number":
            shown[name] = f"{float(value):g}"
        else:
            shown[name] = str(value)
    shown["digest"] = vm.digest()
    return shown
