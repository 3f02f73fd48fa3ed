"""The options of a QEMU machine: types, the privilege to change each, and which change a running guest at once."""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from libs.pvesim.params import (
    DIGEST,
    OPTION_LIST,
    POOL,
    STORAGE,
    TAGS,
    Param,
    boolean,
    check_dns_name,
    check_urlencoded,
    integer,
    number,
    one_of,
    text,
)
from libs.pvesim.qemu.properties import check_agent, check_drive, check_ipconfig, check_net, check_startup

SLOTS = {"ide": 4, "sata": 6, "scsi": 31, "virtio": 16}
DRIVES = frozenset(f"{bus}{i}" for bus, count in SLOTS.items() for i in range(count)) | {"efidisk0", "tpmstate0"}
NETS = frozenset(f"net{i}" for i in range(32))
UNUSED_COUNT = 256
ROOT_PRIVILEGE = ""
_INDEXED = re.compile(r"([a-z]+)(\d+)")
KEYBOARDS = (
    "de", "de-ch", "da", "en-gb", "en-us", "es", "fi", "fr", "fr-be", "fr-ca", "fr-ch", "hu", "is", "it", "ja", "lt",
    "mk", "nl", "no", "pl", "pt", "pt-br", "sv", "sl", "tr",
)  # fmt: skip
_OS_TYPES = (
    "other", "wxp", "w2k", "w2k3", "w2k8", "wvista", "win7", "win8", "win10", "win11", "l24", "l26", "solaris",
)  # fmt: skip
_LOCKS = (
    "backup", "clone", "create", "migrate", "rollback", "snapshot", "snapshot-delete", "suspending", "suspended",
)  # fmt: skip
_SCSI = ("lsi", "lsi53c810", "virtio-scsi-pci", "virtio-scsi-single", "megasas", "pvscsi")
_NAME = Param(check=check_dns_name)


@dataclass(frozen=True, slots=True)
class Option:
    """`privilege` is empty for options that only root@pam may set; `live` ones apply to a running guest at once."""

    param: Param
    privilege: str
    live: bool = False
    cloudinit: bool = False


def _set(privilege: str, *, live: bool = False, cloudinit: bool = False, **params: Param) -> dict[str, Option]:
    return {name.replace("__", "-"): Option(param, privilege, live, cloudinit) for name, param in params.items()}


def _each(prefix: str, count: int, param: Param, privilege: str, *, cloudinit: bool = False) -> dict[str, Option]:
    return {f"{prefix}{i}": Option(param, privilege, live=cloudinit, cloudinit=cloudinit) for i in range(count)}


OPTIONS: dict[str, Option] = {
    **_set(
        "VM.Config.Options",
        live=True,
        name=_NAME,
        description=text(8192),
        onboot=boolean(),
        tags=TAGS,
        protection=boolean(),
        startup=Param(check=check_startup),
        migrate_speed=integer(0),
        migrate_downtime=number(0),
        vmstatestorage=STORAGE,
    ),
    **_set(
        "VM.Config.Options",
        acpi=boolean(),
        agent=Param(check=check_agent),
        autostart=boolean(),
        boot=text(),
        bootdisk=text(),
        freeze=boolean(),
        hotplug=text(),
        kvm=boolean(),
        localtime=boolean(),
        ostype=one_of(*_OS_TYPES),
        reboot=boolean(),
        startdate=text(),
        tablet=boolean(),
        tdf=boolean(),
        template=boolean(),
        watchdog=text(),
        vmgenid=text(),
        spice_enhancements=text(),
        keyboard=one_of(*KEYBOARDS),
    ),
    **_set(
        "VM.Config.Memory",
        balloon=integer(0),
        memory=text(pattern=r"(current=)?\d+"),
        hugepages=one_of("any", "2", "1024"),
        keephugepages=boolean(),
        allow__ksm=boolean(since=(9,)),
    ),
    **_set("VM.Config.Memory", live=True, shares=integer(0, 50000)),
    **_set(
        "VM.Config.CPU",
        affinity=text(),
        cores=integer(1),
        cpu=text(),
        cpulimit=number(0, 128),
        cpuunits=integer(1, 262144),
        numa=boolean(),
        smp=integer(1),
        sockets=integer(1),
        vcpus=integer(1),
    ),
    **_set(
        "VM.Config.HWType",
        arch=one_of("x86_64", "aarch64"),
        audio0=text(),
        bios=one_of("seabios", "ovmf"),
        ivshmem=text(),
        machine=text(),
        rng0=text(),
        scsihw=one_of(*_SCSI),
        smbios1=text(512),
        vga=text(),
        amd__sev=text(),
        intel__tdx=text(since=(9,)),
    ),
    **_set("VM.Config.CDROM", cdrom=Param(check=check_drive)),
    **_set(
        "VM.Config.Cloudinit",
        live=True,
        cloudinit=True,
        cicustom=text(),
        cipassword=text(),
        ciuser=text(),
        ciupgrade=boolean(since=(8,)),
        citype=one_of("configdrive2", "nocloud", "opennebula"),
        nameserver=text(),
        searchdomain=text(),
        sshkeys=Param(check=check_urlencoded),
    ),
    **_set(ROOT_PRIVILEGE, args=text()),
    **_set(ROOT_PRIVILEGE, live=True, hookscript=text(), lock=one_of(*_LOCKS)),
    **_each("ipconfig", 32, Param(check=check_ipconfig), "VM.Config.Cloudinit", cloudinit=True),
    **_each("net", 32, Param(check=check_net), "VM.Config.Network"),
    **{name: Option(Param(check=check_drive), "VM.Config.Disk") for name in sorted(DRIVES)},
    **_each("unused", UNUSED_COUNT, text(), "VM.Config.Disk"),
    **_each("serial", 4, text(pattern="(/dev/.+|socket)"), "VM.Config.HWType"),
    **_each("numa", 8, text(), "VM.Config.CPU"),
    **_each("usb", 14, text(), "VM.Config.HWType"),
    **_each("hostpci", 16, text(), "VM.Config.HWType"),
    **_each("virtiofs", 10, text(), "VM.Config.Options"),
    **_each("parallel", 3, text(pattern=r"/dev/parport\d+|/dev/usb/lp\d+"), ROOT_PRIVILEGE),
}
_PARAMS = {name: option.param for name, option in OPTIONS.items()}
CREATE_PARAMS: dict[str, Param] = _PARAMS | {
    "archive": text(255),
    "bwlimit": integer(0),
    "force": Param("boolean", requires="archive"),
    "ha-managed": boolean(since=(9, 1)),
    "import-working-storage": STORAGE,
    "live-restore": boolean(),
    "pool": POOL,
    "start": boolean(),
    "storage": STORAGE,
    "unique": Param("boolean", requires="archive"),
}
UPDATE_PARAMS: dict[str, Param] = _PARAMS | {
    "delete": OPTION_LIST,
    "digest": DIGEST,
    "force": Param("boolean", requires="delete"),
    "revert": OPTION_LIST,
    "skiplock": boolean(),
}
UPDATE_ASYNC_PARAMS: dict[str, Param] = UPDATE_PARAMS | {
    "background_delay": integer(1, 30),
    "import-working-storage": STORAGE,
}
INTERNAL = frozenset({"digest", "meta", "parent", "vmstate", "snaptime", "runningmachine", "runningcpu"})


def is_drive(name: str) -> bool:
    return name in DRIVES


def is_cdrom(name: str, value: str) -> bool:
    return is_drive(name) and "media=cdrom" in value


def hotplug_feature(name: str, config: Mapping[str, Any]) -> bool:
    """Whether a device of a running guest can be plugged or unplugged with the guest's `hotplug` setting."""
    match = _INDEXED.fullmatch(name)
    kind = match[1] if match else name
    wanted = {
        "net": "network", "scsi": "disk", "virtio": "disk", "usb": "usb", "memory": "memory", "vcpus": "cpu",
    }.get(kind)  # fmt: skip
    allowed = str(config.get("hotplug", "network,disk,usb"))
    allowed = "network,disk,usb" if allowed == "1" else allowed
    return wanted is not None and wanted in allowed.split(",")


def boot_devices(config: Mapping[str, Any]) -> list[str]:
    """Devices of the boot order, first to last."""
    boot = str(config.get("boot", ""))
    return [device for device in boot.removeprefix("order=").split(";") if device] if boot.startswith("order=") else []


def tag_text(tags: str) -> str:
    """Tags as stored: lower case, sorted, without duplicates, joined by semicolons."""
    return ";".join(sorted({tag.lower() for tag in re.split(r"[,;\s]+", tags) if tag}))
