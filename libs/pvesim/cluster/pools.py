"""Resource pools: their members, the API calls on them, and the rules of membership."""

from dataclasses import replace
from typing import Any

from libs.pvesim.access.permissions import needs
from libs.pvesim.endpoints import Call, Routes
from libs.pvesim.errors import PveError, denied, parameter_error
from libs.pvesim.params import POOL, STORAGE_LIST, VMID_LIST, boolean, one_of, split_list, text
from libs.pvesim.store import Store

routes = Routes()
_ALLOCATE = needs("/pool/{poolid}", "Pool.Allocate")
_TYPE = one_of("qemu", "lxc", "storage")
_CHANGE = {
    "poolid": POOL.must(),
    "comment": text(),
    "vms": VMID_LIST,
    "storage": STORAGE_LIST,
    "delete": boolean(0),
    "allow-move": boolean(0, since=(8, 1)),
}


class Pools:
    """Pools by name; a machine is in at most one, a storage may be in several."""

    def __init__(self, store: Store, loaded: dict[str, dict[str, Any]]) -> None:
        self._store = store
        self.by_name = loaded
        self._of_vm = {vmid: name for name, pool in loaded.items() for vmid in pool["vms"]}

    def of(self, vmid: int) -> str | None:
        return self._of_vm.get(vmid)

    def check(self, name: str) -> None:
        """Raise the 403 that create and clone give for an unknown pool."""
        if name not in self.by_name:
            raise denied(f"pool '{name}' does not exist")

    def create(self, name: str, comment: str | None) -> None:
        self.by_name[name] = {"comment": comment, "vms": [], "storage": []}
        self.save(name)

    def remove(self, name: str) -> None:
        del self.by_name[name]
        self._store.delete("pool", name)

    def save(self, name: str) -> None:
        self._store.put("pool", name, self.by_name[name])

    def join(self, name: str, vmid: int) -> None:
        self.leave(vmid)
        self.by_name[name]["vms"].append(vmid)
        self._of_vm[vmid] = name
        self.save(name)

    def leave(self, vmid: int) -> None:
        name = self._of_vm.pop(vmid, None)
        if name is not None:
            self.by_name[name]["vms"].remove(vmid)
            self.save(name)


@routes.get("/pools", {"poolid": replace(POOL, since=(8, 2)), "type": replace(_TYPE, since=(8, 2), requires="poolid")})
async def list_pools(call: Call) -> list[dict[str, Any]]:
    wanted = call.get("poolid")
    if wanted is not None and wanted not in call.lab.pools.by_name:
        raise PveError(f"pool '{wanted}' does not exist")
    found = []
    for name, pool in sorted(call.lab.pools.by_name.items()):
        if wanted in {None, name} and call.allows(f"/pool/{name}", "Pool.Audit"):
            entry: dict[str, Any] = {"poolid": name}
            if pool["comment"]:
                entry["comment"] = pool["comment"]
            if wanted is not None:
                entry["members"] = _of_type(call, members(call, name))
            found.append(entry)
    return found


@routes.get("/pools/{poolid}", {"poolid": POOL.must(), "type": _TYPE}, needs("/pool/{poolid}", "Pool.Audit"))
async def read_pool(call: Call) -> dict[str, Any]:
    name = call.get("poolid")
    pool = _existing(call, name)
    answer = {"members": _of_type(call, members(call, name))}
    return answer | ({"comment": pool["comment"]} if pool["comment"] else {})


def _of_type(call: Call, entries: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return [entry for entry in entries if call.get("type") in {None, entry["type"]}]


def members(call: Call, name: str) -> list[dict[str, Any]]:
    """Members as `/cluster/resources` shows them."""
    # Imported late: resources show the pool of a machine, and pools show the resources they hold.
    from libs.pvesim.cluster.resources import storage_entries, vm_entry  # noqa: PLC0415

    pool = call.lab.pools.by_name[name]
    machines = [vm_entry(call.lab, call.lab.vms.by_id[vmid]) for vmid in pool["vms"] if vmid in call.lab.vms.by_id]
    return machines + [entry for entry in storage_entries(call.lab) if entry["storage"] in pool["storage"]]


@routes.post("/pools", {"poolid": POOL.must(), "comment": text()}, _ALLOCATE)
async def create_pool(call: Call) -> None:
    name = call.get("poolid")
    pools = call.lab.pools
    if name in pools.by_name:
        raise PveError(f"create pool failed: pool '{name}' already exists")
    parent = name.rpartition("/")[0]
    if parent and not call.lab.settings.release.has((8, 1)):
        raise parameter_error("poolid", f"invalid format - value '{name}' does not look like a valid pool name\n")
    if parent and parent not in pools.by_name:
        raise PveError(f"create pool failed: parent pool '{parent}' does not exist")
    pools.create(name, call.get("comment"))


@routes.put("/pools", _CHANGE, _ALLOCATE, since=(8, 2))
async def change_pool(call: Call) -> None:
    name = call.get("poolid")
    pool = _existing(call, name)
    if "comment" in call.params:
        pool["comment"] = call.get("comment")
    for vmid in map(int, split_list(call.get("vms", ""))):
        _change_member(call, name, vmid)
    for storage in split_list(call.get("storage", "")):
        if call.flag("delete"):
            if storage not in pool["storage"]:
                raise PveError(f"update pools failed: Storage '{storage}' is not a pool member")
            pool["storage"].remove(storage)
        elif storage not in pool["storage"]:
            pool["storage"].append(storage)
    call.lab.pools.save(name)
    call.lab.access.forget()


def _change_member(call: Call, name: str, vmid: int) -> None:
    pools = call.lab.pools
    current = pools.of(vmid)
    if call.flag("delete"):
        if current != name:
            raise PveError(f"update pools failed: VM {vmid} is not a pool member")
        pools.leave(vmid)
        return
    if current == name:
        raise PveError(f"update pools failed: VM {vmid} is already a pool member")
    if current is not None and not call.flag("allow-move"):
        raise PveError(
            f"update pools failed: VM {vmid} belongs already to pool '{current}' and 'allow-move' is not set"
        )
    pools.join(name, vmid)


@routes.put("/pools/{poolid}", _CHANGE, _ALLOCATE)
async def change_pool_by_path(call: Call) -> None:
    await change_pool(call)


@routes.delete("/pools", {"poolid": POOL.must()}, _ALLOCATE, since=(8, 2))
async def delete_pool(call: Call) -> None:
    name = call.get("poolid")
    pool = _existing(call, name)
    for vmid in pool["vms"]:
        raise PveError(f"delete pool failed: pool '{name}' is not empty (contains VM {vmid})")
    for storage in pool["storage"]:
        raise PveError(f"delete pool failed: pool '{name}' is not empty (contains storage '{storage}')")
    call.lab.pools.remove(name)
    call.lab.access.revoke(f"/pool/{name}")


@routes.delete("/pools/{poolid}", {"poolid": POOL.must()}, _ALLOCATE)
async def delete_pool_by_path(call: Call) -> None:
    await delete_pool(call)


def _existing(call: Call, name: str) -> dict[str, Any]:
    pool: dict[str, Any] | None = call.lab.pools.by_name.get(name)
    if pool is None:
        raise PveError(f"pool '{name}' does not exist")
    return pool
