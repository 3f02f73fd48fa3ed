"""Whether a guest's agent answers, in the original's order of errors, and the address it would tell."""

import ipaddress

from libs.pvesim.endpoints import Call
from libs.pvesim.errors import PveError
from libs.pvesim.lab import Lab
from libs.pvesim.qemu.disks import volume_of
from libs.pvesim.qemu.model import Vm
from libs.pvesim.qemu.properties import parse

_PING_WAIT_S = 3.0
_DHCP = ipaddress.ip_network("10.77.0.0/16")


async def answering(call: Call) -> Vm:
    """The machine whose agent answers; raises the original's errors in their order."""
    vm = call.lab.vms.configured(call.node, call.vmid)
    if "agent" not in vm.config:
        raise PveError("No QEMU guest agent configured")
    if not vm.running:
        raise PveError(f"VM {vm.vmid} is not running")
    enabled = str(vm.config["agent"]).removeprefix("enabled=").startswith("1")
    up = vm.guest_up is not None and call.lab.clock.now() >= vm.guest_up
    if not enabled or not up or vm.qmp != "running":
        await call.lab.clock.sleep(_PING_WAIT_S)
        raise PveError("QEMU guest agent is not running")
    return vm


def address_of(vm: Vm, position: int = 0) -> tuple[str, int]:
    """The IPv4 address and prefix of a network card: as configured, else what the lab's DHCP would lease."""
    configured = parse(str(vm.config.get(f"ipconfig{position}", "")), "ip").get("ip", "dhcp")
    if configured != "dhcp":
        interface = ipaddress.ip_interface(configured)
        return str(interface.ip), interface.network.prefixlen
    offset = (vm.vmid * 8 + position) % (_DHCP.num_addresses - 512) + 256
    return str(_DHCP[offset]), _DHCP.prefixlen


def system_of(lab: Lab, vm: Vm) -> str:
    """The name of the operating system on the machine's disks."""
    volumes = (volume_of(lab, vm, value) for value in vm.drives.values())
    return next((volume.os for volume in volumes if volume is not None and volume.os), "linux")
