"""What is refused, where and with which words: the rows of the checklist that need more than one machine's life."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest

from libs.pvesim.app import RunningLab
from tests.contract.pvesim.conftest import Client, eventually, lab_at

NewVm = Callable[..., Awaitable[int]]
FreshId = Callable[[], int]
TEMPLATE = "nodes/sv2/qemu/9001"


@pytest.fixture(scope="module")
async def stores(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[RunningLab]:
    """A lab whose storages are off, elsewhere, or not for disks; with an ISO image on local storage."""
    async with lab_at(tmp_path_factory.mktemp("refusals")) as lab:
        root = Client(lab, user="root@pam", password=lab.root_password.get_secret_value())
        await root("post", "storage", storage="off", type="dir", path="/off", content="images", disable=1)
        await root("post", "storage", storage="there", type="dir", path="/there", content="images", nodes="sv5")
        await root(
            "post", "storage", storage="here", type="nfs", server="s", export="/e", content="images", nodes="sv2"
        )
        await root("post", "storage", storage="files", type="nfs", server="s", export="/f", content="iso")
        yield lab


@pytest.fixture
def client(stores: RunningLab) -> Client:
    return Client(stores)


@pytest.mark.parametrize(
    ("param", "value", "text"),
    [
        ("smbios1", "x" * 513, "value may only be 512 characters long"),
        ("shares", 50001, "value must have a maximum value of 50000"),
        ("memory", "lots", "value does not match the regex pattern"),
        ("cpulimit", "fast", "type check ('number') failed - got 'fast'"),
        ("net0", "virtio,bridge=vmbr0,tag=x", "invalid format - format error\nnet0.tag: type check ('integer') failed"),
        ("ipconfig0", "gw=10.0.0.1", "invalid format - format error\nipconfig0.gw: missing property required by 'ip'"),
    ],
)
async def test_07_values_are_checked_with_the_originals_words(
    client: Client, param: str, value: Any, text: str
) -> None:
    refused = await client.fails("put", f"{TEMPLATE}/config", **{param: value})
    assert (refused.status_code, set(refused.errors)) == (400, {param})
    assert refused.errors[param].startswith(text)


async def test_07_parameters_can_need_each_other_and_contradict_the_path(client: Client) -> None:
    alone = await client.fails("post", "nodes/sv1/qemu", vmid=300, force=1)
    assert alone.errors == {"archive": "missing property required by 'force'"}
    other = await client.fails("put", f"{TEMPLATE}/config", vmid=9000, description="x")
    assert set(other.errors) == {"vmid"}


@pytest.mark.parametrize(
    ("given", "text"),
    [
        ({"storage": "off", "full": 1}, "storage 'off' is disabled"),
        ({"storage": "there", "full": 1}, "storage 'there' is not available on node 'sv2'"),
        ({"storage": "here", "full": 1, "target": "sv1"}, "storage 'here' is not available on node 'sv1'"),
    ],
)
async def test_16_a_clones_storage_must_be_there(client: Client, given: dict[str, Any], text: str) -> None:
    refused = await client.fails("post", f"{TEMPLATE}/clone", newid=300, **given)
    assert (refused.status_code, refused.content) == (500, text)


async def test_16_a_machine_with_tpm_state_is_not_cloned_while_it_runs(client: Client) -> None:
    await client.done("post", f"{TEMPLATE}/clone", newid=310)
    await client("put", "nodes/sv2/qemu/310/config", tpmstate0="shared:1,version=v2.0")
    await client.done("post", "nodes/sv2/qemu/310/status/start")
    refused = await client.fails("post", "nodes/sv2/qemu/310/clone", newid=311, full=1)
    assert refused.content == "cannot clone TPM state while VM is running"
    await client.done("post", "nodes/sv2/qemu/310/snapshot", snapname="still")


async def test_17_an_iso_image_on_local_storage_keeps_a_clone_at_home(client: Client, tmp_path: Path) -> None:
    (tmp_path / "cd.iso").write_bytes(b"cd")

    def send() -> str:
        with (tmp_path / "cd.iso").open("rb") as file:
            upid: str = client.api().nodes("sv2").storage("local").upload.post(content="iso", filename=file)
            return upid

    await client.task(await asyncio.to_thread(send))
    await client.done("post", f"{TEMPLATE}/clone", newid=320)
    await client("put", "nodes/sv2/qemu/320/config", sata0="local:iso/cd.iso,media=cdrom")
    refused = await client.fails("post", "nodes/sv2/qemu/320/clone", newid=321, target="sv1", full=1)
    assert refused.content == "can't clone VM to node 'sv1' (VM uses local storage)"
    upid = await client("post", "nodes/sv2/qemu/320/migrate", target="sv1")
    assert (await client.task(upid))["exitstatus"] == "migration aborted"
    assert any("can't migrate local cdrom" in line for line in await client.log(upid))
    await client("put", "nodes/sv2/qemu/320/config", sata0="none,media=cdrom")
    assert await client.done("post", "nodes/sv2/qemu/320/clone", newid=321, target="sv1", full=1) == "OK"


async def test_20_a_running_source_takes_one_clone_at_a_time(tmp_path: Path) -> None:
    async with lab_at(tmp_path, task_seconds={"qmclone-full": 60}) as lab:
        token = Client(lab)
        await token.done("post", f"{TEMPLATE}/clone", newid=200)
        await token.done("post", "nodes/sv2/qemu/200/status/start")
        first = await token("post", "nodes/sv2/qemu/200/clone", newid=201)
        await eventually(lambda: token("get", "nodes/sv2/qemu"), lambda vms: 201 in {vm["vmid"] for vm in vms})
        second = await token.done("post", "nodes/sv2/qemu/200/clone", newid=202)
        assert second == "can't lock file '/var/lock/qemu-server/lock-200.conf' - got timeout"
        await token("delete", f"nodes/sv2/tasks/{first}")


async def test_22_locks_show_what_is_going_on(tmp_path: Path) -> None:
    async with lab_at(tmp_path, task_seconds={"qmcreate": 30, "qmsuspend": 30}) as lab:
        token = Client(lab)

        async def lock_of(path: str) -> Any:
            return (await token("get", f"{path}/status/current")).get("lock")

        await token("post", "nodes/sv1/qemu", vmid=200, scsi0="local-lvm:1")
        assert await lock_of("nodes/sv1/qemu/200") == "create"
        await token.done("post", f"{TEMPLATE}/clone", newid=201)
        await token.done("post", "nodes/sv2/qemu/201/status/start")
        await token("post", "nodes/sv2/qemu/201/status/suspend", todisk=1)
        await eventually(lambda: lock_of("nodes/sv2/qemu/201"), lambda lock: lock == "suspending")
        status = await token("get", "nodes/sv2/qemu/201/status/current")
        assert status["status"] == "running"
        await eventually(lambda: lock_of("nodes/sv2/qemu/201"), lambda lock: lock == "suspended")


async def test_23_a_stop_waits_for_a_shutdown_unless_it_overrules_it(tmp_path: Path) -> None:
    async with lab_at(tmp_path, boot_s=0, task_seconds={"qmshutdown": 50}) as lab:
        token, path = Client(lab), "nodes/sv2/qemu/200/status"
        await token.done("post", f"{TEMPLATE}/clone", newid=200)
        await token.done("post", f"{path}/start")
        upid = await token("post", f"{path}/shutdown")
        blocked = await token.done("post", f"{path}/stop")
        assert blocked == "can't lock file '/var/lock/qemu-server/lock-200.conf' - got timeout"
        assert await token.done("post", f"{path}/stop", **{"overrule-shutdown": 1}) == "OK"
        assert (await token.task(upid))["exitstatus"] == "received interrupt"
        assert (await token("get", f"{path}/current"))["status"] == "stopped"


async def test_24_a_card_that_cannot_be_plugged_stays_pending(client: Client) -> None:
    await client.done("post", f"{TEMPLATE}/clone", newid=330)
    await client.done("post", "nodes/sv2/qemu/330/status/start")
    refused = await client.fails("put", "nodes/sv2/qemu/330/config", net1="virtio,bridge=vmbr9")
    assert refused.errors == {"net1": "hotplug problem - bridge 'vmbr9' does not exist"}
    pending = {entry["key"]: entry for entry in await client("get", "nodes/sv2/qemu/330/pending")}
    assert "vmbr9" in pending["net1"]["pending"]
    assert "value" not in pending["net1"]
    await client("put", "nodes/sv2/qemu/330/config", revert="net1")
    assert "net1" not in await client("get", "nodes/sv2/qemu/330/config")


async def test_23_a_missing_bridge_stops_the_start_and_the_log_says_why(client: Client) -> None:
    await client.done("post", f"{TEMPLATE}/clone", newid=340)
    await client("put", "nodes/sv2/qemu/340/config", net1="virtio,bridge=vmbr9")
    upid = await client("post", "nodes/sv2/qemu/340/status/start")
    assert (await client.task(upid))["exitstatus"] == "start failed: QEMU exited with code 1"
    assert "bridge 'vmbr9' does not exist" in await client.log(upid)


async def test_13_a_log_has_pages_a_total_and_a_last_line(stores: RunningLab, client: Client) -> None:
    upid = await client("post", f"{TEMPLATE}/clone", newid=350, full=1)
    await client.task(upid)
    whole = await client.log(upid)
    assert whole[-1] == "TASK OK"
    page = await client("get", f"nodes/sv2/tasks/{upid}/log", start=1, limit=2)
    assert [(line["n"], line["t"]) for line in page] == [(2, whole[1]), (3, whole[2])]
    task = stores.lab.tasks.find("sv2", upid)
    assert task is not None
    assert len(whole) == len(task.lines)


async def test_26_references_that_are_not_the_machines_own_stay(client: Client) -> None:
    await client.done("post", f"{TEMPLATE}/clone", newid=360)
    await client("put", "nodes/sv2/qemu/360/config", scsi1="local-lvm:1", scsi2="shared:1")
    await client("put", "nodes/sv2/qemu/360/config", delete="scsi2")
    await client.done("post", "nodes/sv2/qemu/360/snapshot", snapname="kept", vmstate=1)
    kept = await client("post", "nodes/sv2/storage/shared/content", vmid=360, filename="vm-360-disk-77.raw", size="1M")
    assert await client.done("delete", "nodes/sv2/qemu/360") == "OK"
    left = [entry["volid"] for entry in await client("get", "nodes/sv2/storage/shared/content", vmid=360)]
    assert left == [kept]
    assert await client("get", "nodes/sv2/storage/local-lvm/content", vmid=360) == []
    await client.done("post", f"{TEMPLATE}/clone", newid=360)
    assert await client.done("delete", "nodes/sv2/qemu/360", **{"destroy-unreferenced-disks": 1}) == "OK"
    assert await client("get", "nodes/sv2/storage/shared/content", vmid=360) == []


async def test_23_a_machine_whose_disk_was_deleted_does_not_start(client: Client) -> None:
    await client.done("post", "nodes/sv2/qemu", vmid=370, scsi0="shared:1")
    await client.done("post", "nodes/sv2/qemu/370/template")
    await client.done("post", "nodes/sv2/qemu/370/clone", newid=371)
    volid = (await client("get", "nodes/sv2/qemu/371/config"))["scsi0"].split(",")[0]
    assert await client.done("delete", f"nodes/sv2/storage/shared/content/{volid}") == "OK"
    gone = await client.done("post", "nodes/sv2/qemu/371/status/start")
    assert gone == f"volume '{volid}' does not exist"
