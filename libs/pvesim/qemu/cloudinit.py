"""Cloud-init: what a machine's drive was made with, what has changed since, and the texts that go onto it."""

import hashlib
import re
from typing import Any
from urllib.parse import unquote

from libs.pvesim.access.permissions import needs
from libs.pvesim.endpoints import Call, Routes
from libs.pvesim.errors import PveError
from libs.pvesim.lab import Lab
from libs.pvesim.params import one_of
from libs.pvesim.qemu.model import Config, Vm
from libs.pvesim.qemu.options import NETS, OPTIONS
from libs.pvesim.qemu.properties import parse, parse_net

routes = Routes()
_PATH = "/nodes/{node}/qemu/{vmid}/cloudinit"
_MASKED = "**********"
_KEY = re.compile(r"(.* )?(ssh-(rsa|dss|ed25519)|ecdsa-sha2-nistp\d+|sk-[\w@.-]+) [A-Za-z0-9+/=]+( .*)?")


def values_of(config: Config) -> Config:
    """What goes onto the drive: the cloud-init options, the name, and the cards' addresses."""
    return {
        name: value
        for name, value in config.items()
        if name == "name" or name in NETS or (name in OPTIONS and OPTIONS[name].cloudinit)
    }


def has_drive(vm: Vm) -> bool:
    return any("cloudinit" in value for value in vm.drives.values())


def regenerate(lab: Lab, vm: Vm) -> None:
    """Make the drive anew from the configuration."""
    vm.cloudinit = values_of(vm.config)
    lab.vms.save(vm)


def check_keys(encoded: str) -> None:
    """Raise the error of text that is not a list of public keys in OpenSSH's form."""
    for line in unquote(encoded).splitlines():
        if line.strip() and not line.startswith("#") and _KEY.fullmatch(line.strip()) is None:
            raise PveError("SSH public key validation error")


def _shown(name: str, value: Any) -> Any:
    return _MASKED if name == "cipassword" else str(value)


@routes.get(_PATH, permission=needs("/vms/{vmid}", "VM.Audit"))
async def pending(call: Call) -> list[Config]:
    """Each value: what is on the drive, and what would come with the next one."""
    vm = call.lab.vms.configured(call.node, call.vmid)
    new = values_of({name: value for name, value in vm.config.items() if name not in vm.deletes} | vm.pending)
    entries = []
    for name in sorted({*vm.cloudinit, *new}):
        entry: Config = {"key": name}
        if name in vm.cloudinit:
            entry["value"] = _shown(name, vm.cloudinit[name])
        if name not in new:
            entry["delete"] = 1
        elif vm.cloudinit.get(name) != new[name]:
            entry["pending"] = _shown(name, new[name])
        entries.append(entry)
    return entries


@routes.put(_PATH, permission=needs("/vms/{vmid}", "VM.Config.Cloudinit"))
async def renew(call: Call) -> None:
    lab = call.lab
    vm = lab.vms.located(call.node, call.vmid)
    async with lab.locks.guest(vm.node, vm.vmid):
        vm.check_lock()
        if has_drive(vm):
            regenerate(lab, vm)


@routes.get(f"{_PATH}/dump", {"type": one_of("user", "network", "meta").must()}, needs("/vms/{vmid}", "VM.Audit"))
async def dump(call: Call) -> str:
    """The text of one file of the drive, as the next one would have it."""
    vm = call.lab.vms.configured(call.node, call.vmid)
    kind = call.get("type")
    custom = parse(str(vm.config.get("cicustom", "")), "user").get(kind)
    if custom is not None:
        volume = call.lab.storages.require(vm.node, custom)
        return await call.lab.threads.run(call.lab.storages.file_of(volume).read_text)
    makers = {"user": _user_data, "network": _network_config, "meta": _meta_data}
    return makers[kind](vm)


def _user_data(vm: Vm) -> str:
    config = vm.config
    name = str(config.get("name", f"VM{vm.vmid}")).partition(".")[0]
    lines = ["#cloud-config", f"hostname: {name}", "manage_etc_hosts: true"]
    if config.get("searchdomain"):
        lines.append(f"fqdn: {name}.{config['searchdomain']}")
    lines.append(f"user: {config['ciuser']}" if config.get("ciuser") else "disable_root: False")
    if config.get("cipassword"):
        lines.append(f"password: {config['cipassword']}")
    if config.get("sshkeys"):
        keys = [line for line in unquote(str(config["sshkeys"])).splitlines() if line.strip()]
        lines += ["ssh_authorized_keys:", *(f"  - {key}" for key in keys)]
    upgrade = "true" if int(config.get("ciupgrade", 1)) else "false"
    lines += ["chpasswd:", "  expire: False", "users:", "  - default", f"package_upgrade: {upgrade}"]
    return "\n".join([*lines, ""])


def _network_config(vm: Vm) -> str:
    """Version 1 of the network configuration: one physical card after the other, then name servers."""
    lines = ["version: 1", "config:"]
    for position, name in enumerate(sorted(name for name in vm.config if name in NETS)):
        mac = parse_net(str(vm.config[name]))["macaddr"].lower()
        lines += ["    - type: physical", f"      name: eth{position}", f"      mac_address: '{mac}'", "      subnets:"]
        wanted = parse(str(vm.config.get(f"ipconfig{name[3:]}", "ip=dhcp")), "ip")
        for family, key, gateway in (("4", "ip", "gw"), ("6", "ip6", "gw6")):
            address = wanted.get(key)
            if address in {"dhcp", "auto"}:
                lines.append(f"      - type: {'ipv6_slaac' if address == 'auto' else f'dhcp{family}'}")
            elif address:
                lines += [f"      - type: static{'' if family == '4' else '6'}", f"        address: '{address}'"]
                lines += [f"        gateway: '{wanted[gateway]}'"] if gateway in wanted else []
    servers = str(vm.config.get("nameserver", "")).split()
    if servers:
        lines += ["    - type: nameserver", "      address:", *(f"      - '{server}'" for server in servers)]
        lines += ["      search:", f"      - '{vm.config.get('searchdomain', '')}'"]
    return "\n".join([*lines, ""])


def _meta_data(vm: Vm) -> str:
    """The instance's id changes with the other texts, so that the guest is set up again."""
    digest = hashlib.sha1((_user_data(vm) + _network_config(vm)).encode(), usedforsecurity=False)
    return f"instance-id: {digest.hexdigest()}\n"
