from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest

from libs.pvesim.app import RunningLab
from tests.contract.pvesim.conftest import Client, eventually, lab_at
from tests.contract.pvesim.rfb_client import viewer
from tests.contract.pvesim.test_console_doors import at_end

NewVm = Callable[..., Awaitable[int]]
FreshId = Callable[[], int]


async def test_a_machine_that_is_off_moves_with_its_local_disks(token: Client, new_vm: NewVm) -> None:
    vmid = await new_vm()
    path = f"nodes/sv2/qemu/{vmid}"
    await token("put", f"{path}/config", scsi1="local-lvm:1")
    await token("put", f"{path}/config", delete="scsi1")
    await token("put", f"{path}/config", scsi2="local-lvm:2,ssd=1")
    assert await token.done("post", f"{path}/migrate", target="sv3", online=1) == "OK"
    gone = await token.fails("get", f"{path}/config")
    assert gone.content == f"Configuration file 'nodes/sv2/qemu-server/{vmid}.conf' does not exist"
    moved = await token("get", f"nodes/sv3/qemu/{vmid}/config")
    assert moved["scsi2"] == f"local-lvm:vm-{vmid}-disk-1,size=2G,ssd=1"
    assert moved["unused0"] == f"local-lvm:vm-{vmid}-disk-0"
    assert "lock" not in moved
    assert await token("get", "nodes/sv2/storage/local-lvm/content", vmid=vmid) == []
    assert len(await token("get", "nodes/sv3/storage/local-lvm/content", vmid=vmid)) == 2


async def test_a_running_machine_moves_live_and_goes_on_in_another_process(
    lab: RunningLab, token: Client, running_vm: str
) -> None:
    vmid = running_vm.rsplit("/", 1)[1]
    before = await token("get", f"{running_vm}/status/current")
    asked = await token.fails("post", f"{running_vm}/migrate", target="sv4")
    assert asked.content == "can't migrate running VM without --online"
    async with viewer(lab, token, running_vm) as client:
        upid = await token("post", f"{running_vm}/migrate", target="sv4", online=1)
        assert upid.split(":")[5:7] == ["qmigrate", vmid]
        assert (await token.task(upid))["exitstatus"] == "OK"
        await at_end(client)
    after = await token("get", f"nodes/sv4/qemu/{vmid}/status/current")
    assert (after["status"], after["qmpstatus"]) == ("running", "running")
    assert after["pid"] != before["pid"]
    assert any("migration active" in line for line in await token.log(upid))


async def test_local_disks_go_along_live_only_when_asked_to(token: Client, running_vm: str) -> None:
    vmid = running_vm.rsplit("/", 1)[1]
    await token("put", f"{running_vm}/config", scsi1="local-lvm:1")
    told = await token("get", f"{running_vm}/migrate")
    assert [(disk["volid"], disk["is_unused"], disk["cdrom"]) for disk in told["local_disks"]] == [
        (f"local-lvm:vm-{vmid}-disk-0", 0, 0)
    ]
    upid = await token("post", f"{running_vm}/migrate", target="sv5", online=1)
    assert (await token.task(upid))["exitstatus"] == "migration aborted"
    assert any("without with-local-disks option" in line for line in await token.log(upid))
    assert "lock" not in await token("get", f"{running_vm}/config")
    how: dict[str, Any] = {"online": 1, "with-local-disks": 1, "targetstorage": "local-lvm:shared"}
    assert await token.done("post", f"{running_vm}/migrate", target="sv5", **how) == "OK"
    moved = await token("get", f"nodes/sv5/qemu/{vmid}/config")
    assert moved["scsi1"].startswith(f"shared:{vmid}/vm-{vmid}-disk-1.raw,")


@pytest.mark.parametrize(
    ("params", "status", "text"),
    [
        ({"target": "sv2"}, 400, {"target": "target is local node."}),
        ({"target": "sv9"}, 500, "no such cluster node 'sv9'"),
        ({"target": "sv1", "force": 1}, 400, {"force": "Only root may use this option."}),
        ({"target": "sv1", "targetstorage": "nowhere"}, 500, "storage 'nowhere' does not exist"),
    ],
)
async def test_migrations_are_refused_before_the_task(
    token: Client, new_vm: NewVm, params: dict[str, Any], status: int, text: Any
) -> None:
    refused = await token.fails("post", f"nodes/sv2/qemu/{await new_vm()}/migrate", **params)
    assert (refused.status_code, refused.errors or refused.content) == (status, text)


async def test_a_storage_that_the_target_lacks_is_told_and_stops_the_migration(tmp_path: Path) -> None:
    async with lab_at(tmp_path) as lab:
        token, root = Client(lab), Client(lab, user="root@pam", password=lab.root_password.get_secret_value())
        path = "nodes/sv2/qemu/200"
        await token.done("post", "nodes/sv2/qemu/9001/clone", newid=200)
        await root("post", "storage", storage="pair", type="dir", path="/srv/pair", content="images", nodes="sv2,sv3")
        await token("put", f"{path}/config", scsi1="pair:1")
        told = await token("get", f"{path}/migrate")
        assert (told["running"], told["allowed_nodes"]) == (0, ["sv3"])
        assert told["not_allowed_nodes"]["sv1"] == {"unavailable_storages": ["pair"]}
        refused = await token.fails("post", f"{path}/migrate", target="sv1")
        assert refused.content == "storage 'pair' is not available on node 'sv1'"


async def test_devices_of_the_node_and_linked_clones_on_local_storage_do_not_move(
    token: Client, root: Client, new_vm: NewVm, fresh_id: FreshId
) -> None:
    vmid, template, linked = await new_vm(), fresh_id(), fresh_id()
    await root("put", f"nodes/sv2/qemu/{vmid}/config", hostpci0="0000:01:00.0")
    stuck = await token.done("post", f"nodes/sv2/qemu/{vmid}/migrate", target="sv1")
    assert stuck == "can't migrate VM which uses local devices: hostpci0"
    await token.done("post", "nodes/sv1/qemu", vmid=template, scsi0="local-lvm:1")
    await token.done("post", f"nodes/sv1/qemu/{template}/template")
    await token.done("post", f"nodes/sv1/qemu/{template}/clone", newid=linked)
    upid = await token("post", f"nodes/sv1/qemu/{linked}/migrate", target="sv2")
    assert (await token.task(upid))["exitstatus"] == "migration aborted"
    assert any("it's a clone of" in line for line in await token.log(upid))


async def test_a_migration_locks_the_machine_and_can_be_interrupted(tmp_path: Path) -> None:
    async with lab_at(tmp_path, task_seconds={"qmigrate": 600}) as lab:
        token, path = Client(lab), "nodes/sv2/qemu/200"
        await token.done("post", "nodes/sv2/qemu/9001/clone", newid=200)
        await token("put", f"{path}/config", scsi1="local-lvm:1")
        await token.done("post", f"{path}/snapshot", snapname="before")
        upid = await token("post", f"{path}/migrate", target="sv1")
        await eventually(lambda: token("get", f"{path}/config"), lambda config: config.get("lock") == "migrate")
        assert (await token.fails("get", f"{path}/migrate")).content == "VM is locked (migrate)"
        busy = await token.done("delete", f"{path}/snapshot/before")
        assert busy == "Failed to obtain guest migration lock - replication running?"
        await token("delete", f"nodes/sv2/tasks/{upid}")
        assert (await token.task(upid))["exitstatus"] == "migration aborted"
        assert "lock" not in await token("get", f"{path}/config")
        assert await token("get", "nodes/sv1/storage/local-lvm/content", vmid=200) == []


async def test_older_releases_tell_allowed_nodes_of_stopped_machines_only(tmp_path: Path) -> None:
    async with lab_at(tmp_path, version="8.4.1") as lab:
        token, path = Client(lab), "nodes/sv2/qemu/200"
        await token.done("post", "nodes/sv2/qemu/9001/clone", newid=200)
        assert "allowed_nodes" in await token("get", f"{path}/migrate")
        await token.done("post", f"{path}/status/start")
        assert "allowed_nodes" not in await token("get", f"{path}/migrate")
        unknown = await token.fails("post", f"{path}/migrate", target="sv1", **{"with-conntrack-state": 1})
        assert set(unknown.errors) == {"with-conntrack-state"}


async def test_a_disk_moves_to_another_storage_and_leaves_its_source_unused(token: Client, new_vm: NewVm) -> None:
    vmid = await new_vm()
    path = f"nodes/sv2/qemu/{vmid}"
    assert await token.done("post", f"{path}/move_disk", disk="scsi0", storage="local-lvm") == "OK"
    config = await token("get", f"{path}/config")
    assert config["scsi0"] == f"local-lvm:vm-{vmid}-disk-0,size=3G"
    assert config["unused0"].startswith("shared:")
    same = await token.fails("post", f"{path}/move_disk", disk="scsi0", storage="local-lvm")
    assert same.content == "you can't move to the same storage with same format"
    back = await token("post", f"{path}/move_disk", disk="scsi0", storage="shared", format="qcow2", delete=1)
    assert (await token.task(back))["exitstatus"] == "OK"
    assert any(line.startswith("transferred") for line in await token.log(back))
    config = await token("get", f"{path}/config")
    assert config["scsi0"] == f"shared:{vmid}/vm-{vmid}-disk-1.qcow2,size=3G"
    assert "unused1" not in config
    assert await token("get", "nodes/sv2/storage/local-lvm/content", vmid=vmid) == []


async def test_moving_a_disk_is_refused_where_it_cannot_be(token: Client, new_vm: NewVm) -> None:
    path = f"nodes/sv2/qemu/{await new_vm()}/move_disk"
    for given in ({}, {"storage": "shared", "target-vmid": 9001}):
        assert set((await token.fails("post", path, disk="scsi0", **given)).errors) == {"storage", "target-vmid"}
    assert (await token.fails("post", path, disk="scsi9", storage="shared")).content == "disk 'scsi9' does not exist"
    assert (await token.fails("post", path, disk="ide2", storage="shared")).content == "you can't move a cdrom"
    unfit = await token.fails("post", path, disk="scsi0", storage="local")
    assert unfit.errors == {"storage": "storage 'local' does not support vm images"}
    stale = await token.fails("post", path, disk="scsi0", storage="local-lvm", digest="0" * 40)
    assert stale.content == "detected modified configuration - file changed by other user? Try again."


async def test_a_disk_is_handed_over_to_another_machine(token: Client, new_vm: NewVm) -> None:
    giver, taker = await new_vm(), await new_vm()
    path = f"nodes/sv2/qemu/{giver}"
    await token("put", f"{path}/config", scsi1="local-lvm:4,discard=on")
    upid = await token("post", f"{path}/move_disk", disk="scsi1", **{"target-vmid": taker, "target-disk": "scsi5"})
    assert upid.split(":")[6] == f"{giver}-scsi1>{taker}-scsi5"
    assert (await token.task(upid))["exitstatus"] == "OK"
    assert "scsi1" not in await token("get", f"{path}/config")
    taken = await token("get", f"nodes/sv2/qemu/{taker}/config")
    assert taken["scsi5"] == f"local-lvm:vm-{taker}-disk-0,discard=on,size=4G"
    linked = await token.fails("post", f"{path}/move_disk", disk="scsi0", **{"target-vmid": taker})
    assert linked.content == f"Target disk key 'scsi0' is already in use for VM '{taker}'"
