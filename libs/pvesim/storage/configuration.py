"""The calls on the cluster's storage configuration: list, add, change, remove."""

import hashlib
import json
from dataclasses import replace
from typing import Any

from libs.pvesim.access.permissions import needs
from libs.pvesim.endpoints import Call, Routes
from libs.pvesim.errors import PveError
from libs.pvesim.params import OPTION_LIST, STORAGE, Param, Schema, boolean, integer, one_of, split_list, text
from libs.pvesim.storage.kinds import Storage, changed, configured

routes = Routes()
_DROPPED = replace(OPTION_LIST, max_length=4096)
_STORAGE = {"storage": STORAGE.must()}
_CHANGE = needs("/storage", "Datastore.Allocate")
_TYPES = (
    "btrfs", "cephfs", "cifs", "dir", "esxi", "iscsi", "iscsidirect", "lvm", "lvmthin", "nfs", "pbs", "rbd", "zfs",
    "zfspool",
)  # fmt: skip
_CHANGEABLE: Schema = {
    **{name: text() for name in (
        "blocksize", "bwlimit", "comstar_hg", "comstar_tg", "content-dirs",
        "data-pool", "encryption-key", "is_mountpoint", "keyring", "lio_tpg", "master-pubkey", "monhost",
        "mountpoint", "namespace", "options", "pool", "prune-backups", "saferemove_throughput", "server", "subdir",
        "username", "zfs-base-path",
    )},
    **{name: boolean() for name in (
        "create-base-path", "create-subdirs", "disable", "fuse", "krbd", "mkdir", "nocow", "nowritecache",
        "saferemove", "shared", "skip-cert-verification", "snapshot-as-volume-chain", "sparse", "tagged_only",
    )},
    "content": Param(many=True),
    "domain": text(256),
    "fingerprint": text(pattern="([A-Fa-f0-9]{2}:){31}[A-Fa-f0-9]{2}"),
    "format": one_of("raw", "qcow2", "subvol", "vmdk"),
    "fs-name": text(),
    "max-protected-backups": integer(-1),
    "nodes": Param(many=True),
    "password": text(256),
    "port": integer(1, 65535),
    "preallocation": one_of("off", "metadata", "falloc", "full"),
    "saferemove-stepsize": Param("integer", enum=("1", "2", "4", "8", "16", "32")),
    "smbversion": one_of("default", "2.0", "2.1", "3", "3.0", "3.11"),
}  # fmt: skip
_FIXED: Schema = {
    **{name: text() for name in (
        "authsupported", "base", "datastore", "export", "iscsiprovider", "path", "portal", "share", "target",
        "thinpool", "vgname",
    )},
    "type": one_of(*_TYPES).must(),
}  # fmt: skip
_SECRETS = frozenset({"password", "encryption-key", "keyring", "master-pubkey"})


def visible(call: Call, storage: Storage) -> bool:
    return call.allows(f"/storage/{storage.id}", "Datastore.Audit", "Datastore.AllocateSpace", any_of=True)


def _shown(storage: Storage) -> dict[str, Any]:
    entry: dict[str, Any] = {"storage": storage.id, "type": storage.type, "content": ",".join(storage.content)}
    entry |= {name: value for name, value in storage.options.items() if name not in _SECRETS}
    if storage.path is not None:
        entry["path"] = storage.path
    if storage.nodes:
        entry["nodes"] = ",".join(storage.nodes)
    if storage.disabled:
        entry["disable"] = 1
    return entry | {"shared": int(storage.shared), "digest": _digest(storage)}


def _digest(storage: Storage) -> str:
    stored = json.dumps(storage.document(), sort_keys=True).encode()
    return hashlib.sha1(stored, usedforsecurity=False).hexdigest()


@routes.get("/storage", {"type": one_of(*_TYPES)})
async def list_configuration(call: Call) -> list[dict[str, Any]]:
    wanted = call.get("type")
    every = call.lab.storages.by_id.values()
    return [_shown(storage) for storage in every if visible(call, storage) and wanted in {None, storage.type}]


@routes.get("/storage/{storage}", _STORAGE, needs("/storage/{storage}", "Datastore.Allocate"))
async def read_configuration(call: Call) -> dict[str, Any]:
    return _shown(call.lab.storages.get(call.get("storage")))


def _options(call: Call) -> dict[str, Any]:
    """What the call sets; lists are split, and the nodes named must exist."""
    options = {name: call.get(name) for name in (*_CHANGEABLE, *_FIXED) if name in call.params and name != "type"}
    for name in ("content", "nodes"):
        if name in options:
            options[name] = split_list(options[name])
    for node in options.get("nodes", ()):
        call.lab.nodes.known(node)
    return options


@routes.post("/storage", {**_CHANGEABLE, **_FIXED, **_STORAGE}, _CHANGE)
async def create_configuration(call: Call) -> dict[str, Any]:
    storage_id, kind = call.get("storage"), call.get("type")
    if storage_id in call.lab.storages.by_id:
        raise PveError(f"create storage failed: storage ID '{storage_id}' already defined")
    call.lab.storages.configure(configured(storage_id, kind, _options(call), call.lab.settings.release))
    return {"storage": storage_id, "type": kind}


@routes.put(
    "/storage/{storage}",
    {**_CHANGEABLE, **_STORAGE, "delete": _DROPPED, "digest": text(64)},
    _CHANGE,
)
async def change_configuration(call: Call) -> dict[str, Any]:
    storage = call.lab.storages.get(call.get("storage"))
    if call.get("digest") not in {None, _digest(storage)}:
        raise PveError("detected modified configuration - file changed by other user? Try again.")
    options: dict[str, Any] = dict.fromkeys(split_list(call.get("delete", "")))
    storage = changed(storage, options | _options(call), call.lab.settings.release)
    call.lab.storages.configure(storage)
    return {"storage": storage.id, "type": storage.type}


@routes.delete("/storage/{storage}", _STORAGE, _CHANGE)
async def delete_configuration(call: Call) -> None:
    call.lab.storages.get(call.get("storage"))
    call.lab.storages.deconfigure(call.get("storage"))
