"""Drives of a machine: what a drive's property string asks for, checking it, and making or freeing the volumes."""

import re
from dataclasses import dataclass

from libs.pvesim.endpoints import Call
from libs.pvesim.errors import PveError, parameter_error
from libs.pvesim.lab import Lab
from libs.pvesim.qemu.model import Config, Vm
from libs.pvesim.qemu.options import UNUSED_COUNT, is_cdrom, is_drive
from libs.pvesim.qemu.properties import parse, render, size_text
from libs.pvesim.storage.kinds import Storage
from libs.pvesim.storage.volume import CLOUDINIT_BYTES, Volume

GIB = 1024**3
_NEW_DISK = re.compile(r"(?:([a-zA-Z][\w.-]*):)?(\d+(?:\.\d+)?)")
_IMPORT_SYNTAX = "'import-from' requires special syntax - use <storage ID>:0,import-from=<source>"


@dataclass(frozen=True, slots=True)
class Wish:
    """What a drive string asks for: a new disk of `gib`, a cloud-init drive, or an existing volume (`volid`)."""

    properties: dict[str, str]
    storage: str | None = None
    gib: float | None = None
    cloudinit: bool = False
    volid: str | None = None

    @property
    def source(self) -> str | None:
        return self.properties.get("import-from")


def wish(text: str, default_storage: str | None = None) -> Wish:
    properties = parse(text, "file")
    file = properties["file"]
    if file in {"none", "cdrom"}:
        return Wish(properties)
    new = _NEW_DISK.fullmatch(file)
    if new is not None:
        return Wish(properties, storage=new[1] or default_storage, gib=float(new[2]))
    storage, _, rest = file.partition(":")
    if rest in {"cloudinit", "cloudinit.qcow2", "cloudinit.raw"}:
        return Wish(properties, storage=storage, cloudinit=True)
    return Wish(properties, volid=file)


def check_storage(lab: Lab, node: str, storage_id: str, parameter: str = "storage") -> Storage:
    """A storage for disk images; raises the texts of unknown and unsuitable ones."""
    storage = lab.storages.usable(storage_id, node)
    if "images" not in storage.content:
        raise parameter_error(parameter, f"storage '{storage_id}' does not support vm images")
    return storage


def check_drives(call: Call, vm: Vm | None, options: Config) -> None:
    """Everything about drives that is refused before any work begins: syntax, storages, sources, privileges."""
    lab, node = call.lab, call.node
    cloudinit = next((slot for slot, value in (vm.drives if vm else {}).items() if "cloudinit" in value), None)
    for slot, value in options.items():
        if not is_drive(slot):
            continue
        asked = wish(str(value), call.get("storage"))
        if asked.cloudinit:
            if cloudinit not in {None, slot}:
                raise PveError(f"{slot} - cloud-init drive is already attached at '{cloudinit}'")
            cloudinit = slot
        if asked.source is not None and asked.gib != 0:
            raise parameter_error(slot, _IMPORT_SYNTAX)
        if asked.cloudinit or asked.gib is not None:
            if asked.storage is None:
                raise parameter_error(slot, "no storage ID specified (and no default storage)")
            check_storage(lab, node, asked.storage, slot)
            call.require(f"/storage/{asked.storage}", "Datastore.AllocateSpace")
        if asked.source is not None:
            _check_source(call, slot, asked.source)
        if asked.volid is not None:
            _check_volume(call, node, slot, asked, vm)


def _check_source(call: Call, slot: str, source: str) -> None:
    if source.startswith("/"):
        if not call.lab.access.is_root(call.identity.authid):
            raise PveError("Only root can pass arbitrary filesystem paths.")
        raise PveError(f"file '{source}' does not exist")
    volume = call.lab.storages.source(call.node, source)
    if ".ova/" in source:
        _check_working_storage(call, volume)
    if volume.content not in {"images", "import"}:
        raise parameter_error(slot, f"{source} has wrong type '{volume.content}' - needs to be 'images' or 'import'")
    if volume.vmid is not None:
        call.require(f"/vms/{volume.vmid}", "VM.Clone")
    else:
        call.require(f"/storage/{volume.storage}", "Datastore.AllocateSpace", "Datastore.Audit", any_of=True)


def _check_working_storage(call: Call, volume: Volume) -> None:
    """An archive is unpacked on a file storage for images: the one that was named, or the archive's own."""
    name = "import-working-storage"
    place = call.lab.storages.usable(call.get(name, volume.storage), call.node)
    if place.path is None or "images" not in place.content:
        raise parameter_error(name, f"storage '{place.id}' does not support 'images' content or is not file based")
    call.require(f"/storage/{place.id}", "Datastore.AllocateSpace")


def _check_volume(call: Call, node: str, slot: str, asked: Wish, vm: Vm | None) -> None:
    volume = call.lab.storages.require(node, asked.volid or "")
    if volume.content == "iso" and asked.properties.get("media") != "cdrom":
        raise parameter_error(slot, "explicit 'media=cdrom' is required for iso images")
    if volume.vmid is None:
        call.require(f"/storage/{volume.storage}", "Datastore.AllocateSpace", "Datastore.Audit", any_of=True)
    elif vm is None or volume.vmid != vm.vmid:
        call.require(f"/vms/{volume.vmid}", "VM.Config.Disk")


async def make_drive(lab: Lab, vm: Vm, value: str, default_storage: str | None, made: list[Volume]) -> str:
    """Make what a drive string asks for; returns the string to store. New volumes are appended to `made`."""
    asked = wish(value, default_storage)
    properties = {key: item for key, item in asked.properties.items() if key not in {"import-from", "format"}}
    storages = lab.storages
    if asked.cloudinit:
        storage = storages.get(asked.storage or "")
        volume = await storages.allocate(
            vm.node, storage.id, vm.vmid, size=CLOUDINIT_BYTES, suffix="cloudinit",
            format="qcow2" if storage.path else "raw",
        )  # fmt: skip
        made.append(volume)
        return render(properties | {"file": volume.volid, "media": "cdrom"}, "file")
    if asked.gib is not None:
        volume = await _new_disk(lab, vm, asked)
        made.append(volume)
        return render(properties | {"file": volume.volid, "size": size_text(volume.size)}, "file")
    if asked.volid is None:
        return render(properties, "file")
    volume = storages.require(vm.node, asked.volid)
    return render(properties | {"size": size_text(volume.size)}, "file")


async def _new_disk(lab: Lab, vm: Vm, asked: Wish) -> Volume:
    source = lab.storages.source(vm.node, asked.source) if asked.source is not None else None
    size = source.size if source is not None else int((asked.gib or 0) * GIB)
    return await lab.storages.allocate(
        vm.node,
        asked.storage or "",
        vm.vmid,
        size=size,
        format=asked.properties.get("format") or (None if source is None else source.format),
        used=source.used if source is not None else 0,
        os=None if source is None else source.os or "linux",
    )


def volume_of(lab: Lab, vm: Vm, value: str) -> Volume | None:
    """The volume behind a drive string, None for empty drives and vanished volumes."""
    return lab.storages.find(vm.node, parse(value, "file").get("file", ""))


def owned_volume(lab: Lab, vm: Vm, value: str) -> Volume | None:
    """The volume behind a drive string if it belongs to this machine (not an ISO image)."""
    volume = volume_of(lab, vm, value)
    return volume if volume is not None and volume.vmid == vm.vmid else None


def can_link(lab: Lab, volume: Volume, snapname: str | None) -> bool:
    """Whether linked clones can be made of a volume: of a base image, or of a snapshot on some storages."""
    storage = lab.storages.get(volume.storage)
    if snapname is not None:
        return storage.type in {"lvmthin", "rbd"}
    return volume.is_base and storage.kind.bases


def can_snapshot(lab: Lab, vm: Vm) -> bool:
    """Whether every disk lies where it can be snapshotted."""
    disks = (owned_volume(lab, vm, value) for slot, value in vm.drives.items() if not is_cdrom(slot, value))
    return all(disk is None or lab.storages.get(disk.storage).snapshots(disk.format) for disk in disks)


def state_storage(vm: Vm) -> str:
    """Where a machine's memory is written to: beside its first disk."""
    disks = (parse(value, "file")["file"] for slot, value in sorted(vm.drives.items()) if not is_cdrom(slot, value))
    return next((file.partition(":")[0] for file in disks if ":" in file), "local-lvm")


def detach(vm: Vm, slot: str) -> None:
    """Take a disk off its slot and keep it as the first free `unused<n>`."""
    value = vm.config.pop(slot, None)
    if value is None or is_cdrom(slot, str(value)):
        return
    free = next(f"unused{i}" for i in range(UNUSED_COUNT) if f"unused{i}" not in vm.config)
    vm.config[free] = parse(str(value), "file")["file"]


def local_drives(lab: Lab, vm: Vm) -> list[str]:
    """Drives, ISO images included, on storage that other nodes cannot reach."""
    found = []
    for slot, value in vm.drives.items():
        file = parse(value, "file").get("file", "none")
        storage = lab.storages.by_id.get(file.partition(":")[0])
        if ":" in file and (storage is None or not storage.shared):
            found.append(slot)
    return found
