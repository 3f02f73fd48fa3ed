"""The calls on a node's storages: their state, content, and single volumes."""

from typing import Any

from libs.pvesim.access.permissions import needs
from libs.pvesim.cluster.nodes import GIB
from libs.pvesim.endpoints import Call, Routes
from libs.pvesim.errors import PveError, parameter_error
from libs.pvesim.params import (
    NODE_OPTIONAL,
    STORAGE,
    VMID,
    VMID_OPTIONAL,
    Param,
    boolean,
    integer,
    one_of,
    split_list,
    text,
)
from libs.pvesim.storage.configuration import visible
from libs.pvesim.storage.kinds import FOLDERS, Storage
from libs.pvesim.storage.ova import metadata
from libs.pvesim.storage.volume import Volume
from libs.pvesim.tasks import TaskRun

routes = Routes()
_PATH = "/nodes/{node}/storage"
_STORAGE = {"storage": STORAGE.must()}
_VOLUME = {"storage": STORAGE, "volume": text(required=True)}
_READ = needs("/storage/{storage}", "Datastore.Audit", "Datastore.AllocateSpace", any_of=True)
_SIZE_UNITS = {"M": 1024**2, "G": GIB}


def _state(call: Call, storage: Storage) -> dict[str, Any]:
    """A storage as it is on the call's node; one that the node does not use has zeros."""
    storages, node = call.lab.storages, call.node
    enabled = not storage.disabled and storages.serves(storage, node)
    total = storages.total_bytes(storage, node) if enabled else 0
    used = storages.used_bytes(storage, node) if enabled else 0
    content = call.lab.rng.sample(storage.content, len(storage.content))
    state: dict[str, Any] = {
        "storage": storage.id,
        "type": storage.type,
        "content": ",".join(content),
        "shared": int(storage.shared),
        "enabled": int(enabled),
        "active": int(enabled),
        "total": total,
        "used": used,
        "avail": total - used,
    }
    return state | ({"used_fraction": used / total} if total else {})


@routes.get(
    _PATH,
    {
        "storage": STORAGE,
        "content": Param(many=True),
        "enabled": boolean(0),
        "target": NODE_OPTIONAL,
        "format": boolean(0),
    },
)
async def list_storages(call: Call) -> list[dict[str, Any]]:
    """Storages as this node sees them. Asked for a content, only those in use are told."""
    storages = call.lab.storages
    wanted, target = call.get("storage"), call.get("target")
    if wanted is not None and wanted not in storages.by_id:
        raise parameter_error("storage", "No such storage.")
    if target is not None:
        call.lab.nodes.known(target)
    elsewhere = target not in {None, call.node}
    contents = set(split_list(call.get("content", "")))
    found = []
    for storage in storages.by_id.values():
        entry = _state(call, storage)
        fits = wanted in {None, storage.id} and (not contents or contents & set(storage.content))
        if elsewhere:
            fits = fits and storage.shared and not storage.disabled and storages.serves(storage, str(target))
        if contents or call.flag("enabled") or elsewhere:
            fits = fits and bool(entry["enabled"])
        if fits and visible(call, storage):
            found.append(entry | (_formats(storage) if call.flag("format") else {}))
    return found


def _formats(storage: Storage) -> dict[str, Any]:
    """What images can be made as, in the new form and in the old one."""
    default = storage.formats[0]
    return {
        "formats": {"supported": list(storage.formats), "default": default},
        "format": [dict.fromkeys(storage.formats, 1), default],
        "select_existing": 0,
    }


def _known(call: Call) -> Storage:
    storage = call.lab.storages.by_id.get(call.get("storage"))
    if storage is None:
        raise parameter_error("storage", "No such storage.")
    return storage


@routes.get(f"{_PATH}/{{storage}}", _STORAGE, _READ, on_node=False)
async def index(call: Call) -> list[dict[str, str]]:  # noqa: ARG001  (an index is the same for every storage)
    return [{"subdir": name} for name in ("content", "download-url", "status", "upload")]


@routes.get(f"{_PATH}/{{storage}}/status", _STORAGE, _READ)
async def status(call: Call) -> dict[str, Any]:
    return {key: value for key, value in _state(call, _known(call)).items() if key not in {"storage", "used_fraction"}}


@routes.get(
    f"{_PATH}/{{storage}}/content",
    {**_STORAGE, "content": text(), "vmid": VMID_OPTIONAL},
    _READ,
)
async def list_content(call: Call) -> list[dict[str, Any]]:
    lab = call.lab
    storage = lab.storages.usable(call.get("storage"), call.node)
    scope = lab.storages.scope(storage, call.node)
    found = [
        _entry(volume)
        for volume in lab.storages
        if (volume.storage, volume.node) == (storage.id, scope)
        and call.get("content") in {None, volume.content}
        and call.get("vmid") in {None, volume.vmid}
        and _may_see(call, volume)
    ]
    lab.rng.shuffle(found)
    return found


def _may_see(call: Call, volume: Volume) -> bool:
    if volume.vmid is None or call.allows(f"/storage/{volume.storage}", "Datastore.Allocate"):
        return True
    return call.allows(f"/vms/{volume.vmid}", "VM.Audit", "VM.Config.Disk", any_of=True)


def _entry(volume: Volume) -> dict[str, Any]:
    entry: dict[str, Any] = {
        "volid": volume.volid,
        "content": volume.content,
        "format": volume.format,
        "size": volume.size,
        "ctime": volume.ctime,
    }
    if volume.content == "images":
        entry["used"] = volume.used
    for name in ("vmid", "parent", "notes"):
        if getattr(volume, name) is not None:
            entry[name] = getattr(volume, name)
    if volume.protected:
        entry["protected"] = 1
    return entry


@routes.post(
    f"{_PATH}/{{storage}}/content",
    {
        **_STORAGE,
        "vmid": VMID,
        "filename": text(required=True),
        "size": text(pattern=r"\d+[MG]?", required=True),
        "format": one_of("raw", "qcow2", "subvol", "vmdk", requires="size"),
    },
    needs("/storage/{storage}", "Datastore.AllocateSpace"),
)
async def allocate(call: Call) -> str:
    vmid, filename, size = call.vmid, call.get("filename"), call.get("size")
    name, _, extension = filename.partition(".")
    if not name.startswith(f"vm-{vmid}-"):
        raise PveError(f"illegal name '{filename}' - should be 'vm-{vmid}-*'")
    storage = call.lab.storages.get(call.get("storage"))
    size_bytes = int(size[:-1]) * _SIZE_UNITS[size[-1]] if size[-1] in _SIZE_UNITS else int(size) * 1024
    volume = await call.lab.storages.allocate(
        call.node,
        storage.id,
        vmid,
        size=size_bytes,
        suffix=name.removeprefix(f"vm-{vmid}-"),
        format=extension or call.get("format"),
    )
    return volume.volid


def _volume(call: Call) -> Volume:
    name = call.get("volume")
    volid = name if ":" in name else f"{call.get('storage')}:{name}"
    return call.lab.storages.require(call.node, volid)


def _shown_path(call: Call, volume: Volume) -> str:
    storage = call.lab.storages.get(volume.storage)
    if storage.path is None:
        return f"/dev/pve/{volume.name}"
    if volume.content == "images":
        return f"{storage.path}/images/{'/'.join(volume.name.split('/')[-2:])}"
    return f"{storage.path}/{FOLDERS[volume.content]}/{volume.name.split('/', 1)[1]}"


@routes.get(f"{_PATH}/{{storage}}/content/{{volume}}", _VOLUME)
async def read_volume(call: Call) -> dict[str, Any]:
    volume = _volume(call)
    _check_access(call, volume, "Datastore.Audit")
    shown = {key: value for key, value in _entry(volume).items() if key in {"format", "size", "notes", "protected"}}
    return shown | {"used": volume.used, "path": _shown_path(call, volume)}


def _check_access(call: Call, volume: Volume, privilege: str) -> None:
    if not _may_see(call, volume):
        call.require(f"/vms/{volume.vmid}", "VM.Config.Disk")
    call.require(f"/storage/{volume.storage}", privilege, "Datastore.AllocateSpace", any_of=True)


@routes.put(f"{_PATH}/{{storage}}/content/{{volume}}", {**_VOLUME, "notes": text(), "protected": boolean()})
async def change_volume(call: Call) -> None:
    volume = _volume(call)
    _check_access(call, volume, "Datastore.Allocate")
    if "notes" in call.params:
        volume.notes = call.get("notes")
    if "protected" in call.params:
        volume.protected = call.flag("protected")
    call.lab.storages.put(volume)


@routes.delete(f"{_PATH}/{{storage}}/content/{{volume}}", {**_VOLUME, "delay": integer(1, 30)})
async def delete_volume(call: Call) -> str | None:
    lab = call.lab
    volume = _volume(call)
    _check_access(call, volume, "Datastore.Allocate")
    if volume.protected:
        raise PveError(f"can't remove protected volume '{volume.volid}'")
    file = lab.storages.file_of(volume) if volume.content != "images" else None
    owner = f"{volume.vmid}@{volume.storage}" if volume.vmid is not None else volume.storage

    async def worker(run: TaskRun) -> None:
        await run.work(lab.settings.seconds_of("imgdel"))
        await lab.storages.free(volume)
        if file is not None:
            file.unlink(missing_ok=True)
        run.log(f"Removed volume '{volume.volid}'")

    upid = lab.tasks.start(call.node, "imgdel", owner, call.identity.authid, worker)
    delay = call.get("delay")
    if delay is None or not await lab.tasks.wait(upid, delay):
        return upid
    task = lab.tasks.find(call.node, upid)
    if task is not None and task.failed:
        raise PveError(str(task.exitstatus))
    return None


@routes.get(f"{_PATH}/{{storage}}/import-metadata", {**_STORAGE, "volume": text(required=True)}, since=(8, 3))
async def import_metadata(call: Call) -> dict[str, Any]:
    """What the create call needs to make the machine that an archive describes."""
    volume = _volume(call)
    _check_access(call, volume, "Datastore.Audit")
    if volume.members is None:
        raise PveError(f"volume '{volume.volid}' has no import metadata")
    return await call.lab.threads.run(metadata, call.lab.storages.file_of(volume), volume.volid, volume.members)
