import asyncio
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest

from tests.contract.pvesim.conftest import Client, eventually, lab_at

NewVm = Callable[..., Awaitable[int]]
FreshId = Callable[[], int]
TEMPLATE = "nodes/sv2/qemu/9001"


async def test_15_nextid_reserves_nothing(token: Client) -> None:
    first, second = await token("get", "cluster/nextid"), await token("get", "cluster/nextid")
    assert first == second
    taken = await token.fails("get", "cluster/nextid", vmid=9000)
    assert (taken.status_code, taken.errors) == (400, {"vmid": "VM 9000 already exists"})


async def test_15_the_same_new_id_on_the_same_node_fails_at_once_or_in_the_task(tmp_path: Path) -> None:
    async with lab_at(tmp_path, time_scale=0.1, task_seconds={"qmclone": 20}) as lab:
        token = Client(lab)
        first = await token("post", f"{TEMPLATE}/clone", newid=800)
        await eventually(lambda: token("get", "nodes/sv2/qemu"), lambda vms: 800 in {vm["vmid"] for vm in vms})
        late = await token.fails("post", f"{TEMPLATE}/clone", newid=800)
        assert late.content == "unable to create VM 800: config file already exists"
        both = await asyncio.gather(
            *(token("post", f"{TEMPLATE}/clone", newid=801) for _ in range(2)), return_exceptions=True
        )
        upids = [upid for upid in both if isinstance(upid, str)]
        statuses = [(await token.task(upid))["exitstatus"] for upid in upids]
        losers = [str(error) for error in both if not isinstance(error, str)] + [s for s in statuses if s != "OK"]
        assert len(losers) == 1
        assert "got timeout" in losers[0] or "config file already exists" in losers[0]
        assert (await token.task(first))["exitstatus"] == "OK"


async def test_15_the_same_new_id_on_another_node_fails_in_the_task_and_in_create_at_once(
    token: Client, new_vm: NewVm
) -> None:
    vmid = await new_vm()
    path = f"/etc/pve/nodes/sv1/qemu-server/{vmid}.conf"
    expected = f"close (rename) atomic file '{path}' failed: File exists"
    assert await token.done("post", "nodes/sv1/qemu/9000/clone", newid=vmid) == expected
    refused = await token.fails("post", "nodes/sv3/qemu", vmid=vmid)
    assert refused.content == f"unable to create VM {vmid} - VM {vmid} already exists on node 'sv2'"


async def test_16_a_clone_is_locked_on_the_source_node_and_hops_to_its_target(tmp_path: Path) -> None:
    async with lab_at(tmp_path, task_seconds={"qmclone": 50}) as lab:
        token = Client(lab)
        upid = await token("post", f"{TEMPLATE}/clone", newid=810, target="sv4", name="hopper")

        async def entry() -> dict[str, Any]:
            found = await token("get", "cluster/resources", type="vm")
            return next((vm for vm in found if vm["vmid"] == 810), {})

        seen = await eventually(entry, bool)
        assert (seen["node"], seen["lock"]) == ("sv2", "clone")
        assert (await token.fails("put", "nodes/sv2/qemu/810/config", cores=4)).content == "VM is locked (clone)"
        flock = "can't lock file '/var/lock/qemu-server/lock-810.conf' - got timeout"
        assert await token.done("post", "nodes/sv2/qemu/810/status/start") == flock
        assert (await token.task(upid))["exitstatus"] == "OK"
        seen = await entry()
        assert seen["node"] == "sv4"
        assert "lock" not in seen
        gone = await token.fails("get", "nodes/sv2/qemu/810/config")
        assert gone.content == "Configuration file 'nodes/sv2/qemu-server/810.conf' does not exist"


@pytest.mark.parametrize(
    ("params", "status", "text"),
    [
        ({"pool": "nowhere"}, 403, "Permission check failed (pool 'nowhere' does not exist)"),
        ({"target": "sv9"}, 500, "no such cluster node 'sv9'"),
        ({"storage": "none-such"}, 500, "storage 'none-such' does not exist"),
        ({"storage": "local"}, 400, "Parameter verification failed."),
        ({"storage": "local-lvm", "target": "sv1"}, 500, "can't clone to non-shared storage 'local-lvm'"),
        ({"snapname": "gone"}, 500, "snapshot 'gone' does not exist"),
        ({"storage": "shared"}, 500, "parameter 'storage' not allowed for linked clones"),
        ({"format": "raw"}, 500, "parameter 'format' not allowed for linked clones"),
    ],
)
async def test_16_refusals_come_before_the_task(
    token: Client, fresh_id: FreshId, params: dict[str, Any], status: int, text: str
) -> None:
    refused = await token.fails("post", f"{TEMPLATE}/clone", newid=fresh_id(), **params)
    assert (refused.status_code, refused.content) == (status, text)


async def test_17_no_target_while_any_drive_is_on_local_storage(
    token: Client, new_vm: NewVm, fresh_id: FreshId
) -> None:
    vmid = await new_vm()
    path = f"nodes/sv2/qemu/{vmid}"
    await token("put", f"{path}/config", scsi1="local-lvm:1")
    refused = await token.fails("post", f"{path}/clone", newid=fresh_id(), target="sv1", full=1)
    assert refused.content == "can't clone VM to node 'sv1' (VM uses local storage)"


async def test_18_linked_clones_need_a_base_and_a_base_with_children_stays(
    token: Client, new_vm: NewVm, fresh_id: FreshId
) -> None:
    vmid, template = await new_vm(), fresh_id()
    refused = await token.fails("post", f"nodes/sv2/qemu/{vmid}/clone", newid=fresh_id(), full=0)
    assert refused.content.startswith("Linked clone feature is not supported for 'shared:9001/base-9001-disk-0.qcow2/")
    assert await token.done("post", f"nodes/sv2/qemu/{vmid}/clone", newid=template) == "OK"
    assert await token.done("post", f"nodes/sv2/qemu/{template}/template") == "OK"
    child = fresh_id()
    assert await token.done("post", f"nodes/sv2/qemu/{template}/clone", newid=child) == "OK"
    volume = f"shared:{template}/base-{template}-disk-0.qcow2"
    config = await token("get", f"nodes/sv2/qemu/{child}/config")
    assert config["scsi0"].startswith(f"{volume}/{child}/vm-{child}-disk-0.qcow2,")
    in_use = f"base volume '{volume}' is still in use by linked cloned"
    assert await token.done("delete", f"nodes/sv2/qemu/{template}") == in_use
    assert await token.done("delete", f"nodes/sv2/qemu/{child}") == "OK"
    assert await token.done("delete", f"nodes/sv2/qemu/{template}") == "OK"


async def test_19_a_copy_has_its_own_identity_and_keeps_the_rest(
    token: Client, root: Client, new_vm: NewVm, fresh_id: FreshId
) -> None:
    await token("post", "pools", poolid="origin")
    vmid, copy = await new_vm(name="origin", pool="origin"), fresh_id()
    path = f"nodes/sv2/qemu/{vmid}"
    await token("put", f"{path}/config", onboot=1, tags="B,a", ciuser="me", cipassword="secret")
    await root("post", "cluster/ha/resources", sid=f"vm:{vmid}", state="ignored")
    assert await token.done("post", f"{path}/clone", newid=copy) == "OK"
    old, new = await token("get", f"{path}/config"), await token("get", f"nodes/sv2/qemu/{copy}/config")
    assert new["name"] == "Copy-of-VM-origin"
    for changed in ("net0", "smbios1", "vmgenid"):
        assert old[changed] != new[changed]
    assert new["net0"].startswith("virtio=BC:24:11:")
    for kept in ("onboot", "tags", "ciuser", "agent", "ipconfig0", "boot"):
        assert old[kept] == new[kept]
    assert (new["tags"], new["cipassword"]) == ("a;b", "**********")
    entry = next(vm for vm in await token("get", "cluster/resources") if vm.get("vmid") == copy)
    assert "pool" not in entry
    assert "hastate" not in entry


async def test_20_locks_block_with_the_lock_option_and_storage_allocation_is_serialised(tmp_path: Path) -> None:
    async with lab_at(tmp_path, allocation_s=6) as lab:
        token = Client(lab)
        upids = [await token("post", f"{TEMPLATE}/clone", newid=820 + i) for i in range(4)]
        statuses = [(await token.task(upid))["exitstatus"] for upid in upids]
        assert "clone failed: can't lock file '/var/lock/pve-manager/pve-storage-shared' - got timeout" in statuses
        left = {vm["vmid"] for vm in await token("get", "nodes/sv2/qemu")} & set(range(820, 824))
        assert len(left) == statuses.count("OK")


async def test_20_parallel_clones_share_the_template_while_a_change_waits_and_times_out(tmp_path: Path) -> None:
    async with lab_at(tmp_path, task_seconds={"qmclone": 60}) as lab:
        token = Client(lab)
        upids = [await token("post", f"{TEMPLATE}/clone", newid=830 + i) for i in range(3)]
        refused = await token.fails("put", f"{TEMPLATE}/config", description="busy")
        assert refused.content == "can't lock file '/var/lock/qemu-server/lock-9001.conf' - got timeout"
        assert [(await token.task(upid))["exitstatus"] for upid in upids] == ["OK"] * 3
