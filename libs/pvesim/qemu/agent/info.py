"""What a guest tells of itself: interfaces, system, names, times, file systems; answers are QGA's."""

from libs.pvesim.lab import Lab
from libs.pvesim.qemu.agent.answering import address_of, system_of
from libs.pvesim.qemu.model import Config, Vm
from libs.pvesim.qemu.options import NETS, is_cdrom
from libs.pvesim.qemu.properties import parse_net

FILE_SYSTEMS = 2
_SYSTEMS = {
    "ubuntu-24.04": ("Ubuntu", "24.04", "Ubuntu 24.04.3 LTS", "6.8.0-71-generic"),
    "debian-13": ("Debian GNU/Linux", "13", "Debian GNU/Linux 13 (trixie)", "6.12.38+deb13-amd64"),
    "centos-stream-10": ("CentOS Stream", "10", "CentOS Stream 10 (Coughlan)", "6.12.0-116.el10.x86_64"),
    "windows-2025": ("Microsoft Windows", "2025", "Windows Server 2025 Standard", "26100"),
}
_SERVER_IDS = {"windows-2025": "mswindows"}
_COUNTERS = ("rx-bytes", "rx-packets", "rx-errs", "rx-dropped", "tx-bytes", "tx-packets", "tx-errs", "tx-dropped")


def interfaces(vm: Vm) -> list[Config]:
    """All interfaces, loopback and link-local addresses included; one whose link is down has no addresses."""
    found = [_interface("lo", "00:00:00:00:00:00", [("127.0.0.1", "ipv4", 8), ("::1", "ipv6", 128)])]
    for position, name in enumerate(sorted(name for name in vm.config if name in NETS)):
        net = parse_net(str(vm.config[name]))
        mac = net["macaddr"].lower()
        octets = mac.split(":")
        local = f"fe80::{int(octets[0], 16) ^ 2:02x}{octets[1]}:{octets[2]}ff:fe{octets[3]}:{octets[4]}{octets[5]}"
        address, prefix = address_of(vm, position)
        entry = _interface(f"eth{position}", mac, [(address, "ipv4", prefix), (local, "ipv6", 64)])
        if net.get("link_down") == "1":
            del entry["ip-addresses"]
        found.append(entry)
    return found


def _interface(name: str, mac: str, addresses: list[tuple[str, str, int]]) -> Config:
    return {
        "name": name,
        "hardware-address": mac,
        "ip-addresses": [
            {"ip-address": address, "ip-address-type": kind, "prefix": prefix} for address, kind, prefix in addresses
        ],
        "statistics": dict.fromkeys(_COUNTERS, 0),
    }


def os_info(lab: Lab, vm: Vm) -> Config:
    system = system_of(lab, vm)
    name, version, pretty, kernel = _SYSTEMS.get(system, ("Linux", "1", "Linux", "6.12.0"))
    return {
        "id": _SERVER_IDS.get(system, system.split("-", 1)[0]),
        "name": name,
        "version": version,
        "version-id": version,
        "pretty-name": pretty,
        "kernel-release": kernel,
        "kernel-version": f"#1 SMP {kernel}",
        "machine": "x86_64",
    }


def file_systems(vm: Vm) -> list[Config]:
    """The root and the EFI file system of the boot disk."""
    disk = next((slot for slot, value in sorted(vm.drives.items()) if not is_cdrom(slot, value)), "scsi0")
    total = vm.disk_bytes
    shown = (("/", "ext4", "sda1", total * 9 // 10), ("/boot/efi", "vfat", "sda15", 104_634_368))
    return [
        {
            "name": partition,
            "mountpoint": mountpoint,
            "type": kind,
            "total-bytes": size,
            "used-bytes": size // 3,
            "disk": [{"bus-type": disk.rstrip("0123456789"), "bus": 0, "target": 0, "unit": 0, "dev": "/dev/sda"}],
        }
        for mountpoint, kind, partition, size in shown
    ]
