from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest

from libs.pvesim.app import RunningLab
from tests.contract.pvesim.conftest import Client, eventually, lab_at
from tests.contract.pvesim.test_agent import agent_up

NewVm = Callable[..., Awaitable[int]]
FreshId = Callable[[], int]


@pytest.fixture(scope="module")
async def stores(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[RunningLab]:
    """A lab with more kinds of storage."""
    async with lab_at(tmp_path_factory.mktemp("stores")) as lab:
        root = Client(lab, user="root@pam", password=lab.root_password.get_secret_value())
        await root("post", "storage", storage="tank", type="zfspool", pool="tank")
        await root("post", "storage", storage="thick", type="lvm", vgname="vg0")
        await root("post", "storage", storage="ceph", type="rbd", pool="vms")
        yield lab


async def test_a_snapshot_with_memory_runs_again_by_itself(root: Client, running_vm: str) -> None:
    await agent_up(root, running_vm)
    await root("post", f"{running_vm}/agent/file-write", file="/root/before", content="x")
    upid = await root("post", f"{running_vm}/snapshot", snapname="live", vmstate=1, description="with memory")
    assert (await root.task(upid))["exitstatus"] == "OK"
    assert any("saving VM state" in line for line in await root.log(upid))
    listed = {entry["name"]: entry for entry in await root("get", f"{running_vm}/snapshot")}
    assert (listed["live"]["vmstate"], listed["current"]["running"], listed["current"]["parent"]) == (1, 1, "live")
    vmid = running_vm.rsplit("/", 1)[1]
    config = await root("get", f"{running_vm}/snapshot/live/config")
    assert config["vmstate"] == f"shared:{vmid}/vm-{vmid}-state-live.raw"
    await root("post", f"{running_vm}/agent/file-write", file="/root/after", content="x")
    await root.done("post", f"{running_vm}/status/stop")
    assert await root.done("post", f"{running_vm}/snapshot/live/rollback") == "OK"
    assert (await root("get", f"{running_vm}/status/current"))["status"] == "running"
    assert await root("post", f"{running_vm}/agent/ping") == {"result": {}}
    assert (await root("get", f"{running_vm}/agent/file-read", file="/root/before"))["content"] == "x"
    assert "No such file" in (await root.fails("get", f"{running_vm}/agent/file-read", file="/root/after")).content
    assert await root.done("delete", f"{running_vm}/snapshot/live") == "OK"
    assert not [v for v in await root("get", "nodes/sv2/storage/shared/content", vmid=vmid) if "state" in v["volid"]]


async def test_a_snapshot_of_a_machine_that_is_off_has_no_memory(token: Client, new_vm: NewVm) -> None:
    path = f"nodes/sv2/qemu/{await new_vm()}"
    assert await token.done("post", f"{path}/snapshot", snapname="cold", vmstate=1) == "OK"
    assert "vmstate" not in {entry["name"]: entry for entry in await token("get", f"{path}/snapshot")}["cold"]
    assert await token.done("post", f"{path}/snapshot/cold/rollback", start=1) == "OK"
    await eventually(lambda: token("get", f"{path}/status/current"), lambda status: status["status"] == "running")
    assert await token.done("post", f"{path}/snapshot/gone/rollback") == "snapshot 'gone' does not exist"
    assert await token.done("delete", f"{path}/snapshot/gone") == "snapshot 'gone' does not exist"


async def test_snapshots_hang_on_their_parents(token: Client, new_vm: NewVm) -> None:
    path = f"nodes/sv2/qemu/{await new_vm()}/snapshot"
    for name in ("one", "two", "three"):
        await token.done("post", path, snapname=name)
    assert await token.done("delete", f"{path}/two") == "OK"
    parents = {entry["name"]: entry.get("parent") for entry in await token("get", path)}
    assert parents == {"one": None, "three": "one", "current": "three"}
    await token("put", f"{path}/one/config", description="first")
    assert (await token("get", f"{path}/one/config"))["description"] == "first"
    wrong = await token.fails("post", path, snapname="1abc")
    assert wrong.errors == {"snapname": "invalid format - invalid configuration ID '1abc'\n"}
    template = await token.done("post", "nodes/sv2/qemu/9001/snapshot", snapname="never")
    assert template == "you can't take a snapshot if it's a template"


async def machine(token: Client, vmid: int, **config: Any) -> str:
    assert await token.done("post", "nodes/sv1/qemu", vmid=vmid, **config) == "OK"
    return f"nodes/sv1/qemu/{vmid}"


async def test_some_storages_take_no_snapshots(stores: RunningLab) -> None:
    token = Client(stores)
    for vmid, disk in ((300, "thick:1"), (301, "shared:1")):
        path = await machine(token, vmid, scsi0=disk)
        assert await token("get", f"{path}/feature", feature="snapshot") == {"hasFeature": 0, "nodes": _nodes(disk)}
        assert await token.done("post", f"{path}/snapshot", snapname="no") == "snapshot feature is not available"
    path = await machine(token, 302, scsi0="shared:1,format=qcow2")
    assert (await token("get", f"{path}/feature", feature="snapshot"))["hasFeature"] == 1


def _nodes(disk: str) -> list[str]:
    return ["sv1", "sv2", "sv3", "sv4", "sv5"] if disk.startswith("shared") else ["sv1"]


async def test_zfs_goes_back_to_the_newest_snapshot_only(stores: RunningLab) -> None:
    token = Client(stores)
    path = await machine(token, 310, scsi0="tank:1")
    for name in ("old", "new"):
        assert await token.done("post", f"{path}/snapshot", snapname=name) == "OK"
    refused = await token.done("post", f"{path}/snapshot/old/rollback")
    assert refused == "can't rollback, 'old' is not most recent snapshot on 'tank:vm-310-disk-0'"
    assert await token.done("post", f"{path}/snapshot/new/rollback") == "OK"


async def test_18_where_linked_clones_are_possible_and_what_they_are_called(stores: RunningLab) -> None:
    token = Client(stores)
    names = {
        "tank:1": "tank:base-{t}-disk-0/vm-{c}-disk-0",
        "ceph:1": "ceph:base-{t}-disk-0/vm-{c}-disk-0",
        "local-lvm:1": "local-lvm:vm-{c}-disk-0",
        "shared:1": "shared:{t}/base-{t}-disk-0.raw/{c}/vm-{c}-disk-0.qcow2",
    }
    for number, (disk, name) in enumerate(names.items()):
        template, copy = 400 + 2 * number, 401 + 2 * number
        path = await machine(token, template, scsi0=disk)
        await token.done("post", f"{path}/template")
        assert await token.done("post", f"{path}/clone", newid=copy) == "OK"
        config = await token("get", f"nodes/sv1/qemu/{copy}/config")
        assert config["scsi0"].split(",")[0] == name.format(t=template, c=copy)
    path = await machine(token, 450, scsi0="thick:1")
    await token.done("post", f"{path}/template")
    refused = await token.fails("post", f"{path}/clone", newid=451)
    assert refused.content == "Linked clone feature is not supported for 'thick:base-450-disk-0' (scsi0)"


async def test_18_a_base_on_lvm_thin_goes_even_while_it_has_children(stores: RunningLab) -> None:
    token = Client(stores)
    path = await machine(token, 460, scsi0="local-lvm:1")
    await token.done("post", f"{path}/template")
    await token.done("post", f"{path}/clone", newid=461)
    assert await token.done("delete", path) == "OK"
    assert (await token("get", "nodes/sv1/qemu/461/config"))["scsi0"].startswith("local-lvm:vm-461-disk-0,")


async def test_18_a_linked_clone_of_a_snapshot_needs_the_storage_to_do_it(stores: RunningLab) -> None:
    token = Client(stores)
    path = await machine(token, 470, scsi0="shared:1,format=qcow2")
    await token.done("post", f"{path}/snapshot", snapname="here")
    refused = await token.fails("post", f"{path}/clone", newid=471, full=0, snapname="here")
    volume = "shared:470/vm-470-disk-0.qcow2"
    assert refused.content == f"Linked clone feature is not supported for a snapshot of '{volume}' (scsi0)"
    assert await token.done("post", f"{path}/clone", newid=471, full=1, snapname="here") == "OK"


async def test_snapshots_survive_a_restart(tmp_path: Path) -> None:
    async with lab_at(tmp_path) as lab:
        token = Client(lab)
        await token.done("post", "nodes/sv2/qemu/9001/clone", newid=200)
        await token.done("post", "nodes/sv2/qemu/200/snapshot", snapname="kept")
        await token("put", "nodes/sv2/qemu/200/config", cores=7)
    async with lab_at(tmp_path) as lab:
        token = Client(lab)
        assert await token.done("post", "nodes/sv2/qemu/200/snapshot/kept/rollback") == "OK"
        assert (await token("get", "nodes/sv2/qemu/200/config"))["cores"] == 2
