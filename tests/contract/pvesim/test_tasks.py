import asyncio
import re
from collections.abc import Awaitable, Callable
from pathlib import Path

import pytest

from tests.contract.pvesim.conftest import Client, eventually, lab_at

NewVm = Callable[..., Awaitable[int]]
UPID = re.compile(
    r"UPID:(?P<node>[A-Za-z0-9-]+):(?P<pid>[0-9A-F]{8}):(?P<pstart>[0-9A-F]{8,9}):(?P<start>[0-9A-F]{8}):"
    r"(?P<type>[^:/\s]+):(?P<id>[^:/\s]*):(?P<user>[^:/\s]+):"
)


async def test_12_a_upid_tells_its_node_and_the_task_is_only_known_there(
    token: Client, fresh_id: Callable[[], int]
) -> None:
    upid = await token("post", "nodes/sv2/qemu/9001/clone", newid=fresh_id())
    fields = UPID.fullmatch(upid)
    assert fields is not None
    assert (fields["node"], fields["type"], fields["id"]) == ("sv2", "qmclone", "9001")
    assert fields["user"] == "telar@pve!telar"
    status = await token.task(upid)
    assert (status["pid"], status["starttime"]) == (int(fields["pid"], 16), int(fields["start"], 16))
    assert (status["user"], status["tokenid"]) == ("telar@pve", "telar")
    assert (await token.fails("get", f"nodes/sv1/tasks/{upid}/status")).errors == {"upid": "no such task"}
    assert (await token.fails("get", "nodes/sv1/tasks/UPID/status")).errors == {"upid": "unable to parse worker upid"}


async def test_13_a_task_runs_without_exit_status_and_ends_with_one(token: Client, fresh_id: Callable[[], int]) -> None:
    upid = await token("post", "nodes/sv2/qemu/9001/clone", newid=fresh_id())
    first = await token("get", f"nodes/sv2/tasks/{upid}/status")
    assert first["status"] == "running"
    assert "exitstatus" not in first
    assert (await token.task(upid))["exitstatus"] == "OK"
    log = await token.log(upid)
    assert log[0].startswith("create linked clone of drive scsi0 (shared:9001/base-9001-disk-0.qcow2)")
    assert log[-1] == "TASK OK"
    listed = {task["upid"]: task for task in await token("get", "cluster/tasks")}
    assert listed[upid]["status"] == "OK"
    archive = await token("get", "nodes/sv2/tasks", typefilter="qmclone", limit=500)
    assert upid in {task["upid"] for task in archive}


async def test_14_an_interrupted_clone_cleans_up(tmp_path: Path) -> None:
    async with lab_at(tmp_path, task_seconds={"qmclone-full": 600}) as lab:
        token = Client(lab)
        upid = await token("post", "nodes/sv2/qemu/9001/clone", newid=500, full=1)
        await eventually(lambda: token("get", "nodes/sv2/qemu"), lambda vms: 500 in {vm["vmid"] for vm in vms})
        await token("delete", f"nodes/sv2/tasks/{upid}")
        assert (await token.task(upid))["exitstatus"] == "clone failed: interrupted by signal"
        assert 500 not in {vm["vmid"] for vm in await token("get", "nodes/sv2/qemu")}
        assert await token("get", "nodes/sv2/storage/shared/content", vmid=500) == []


async def test_a_restart_keeps_the_state_and_ends_the_tasks_that_ran(tmp_path: Path) -> None:
    async with lab_at(tmp_path) as lab:
        token = Client(lab)
        assert await token.done("post", "nodes/sv2/qemu/9001/clone", newid=600, name="kept") == "OK"
        assert await token.done("post", "nodes/sv2/qemu/600/status/start") == "OK"
        before = await token("get", "nodes/sv2/qemu/600/config")
        old = (lab.fingerprint, lab.token_secret.get_secret_value())
    async with lab_at(tmp_path) as lab:
        token = Client(lab)
        assert (lab.fingerprint, lab.token_secret.get_secret_value()) == old
        assert await token("get", "nodes/sv2/qemu/600/config") == before
        assert (await token("get", "nodes/sv2/qemu/600/status/current"))["status"] == "running"


async def test_a_crash_leaves_tasks_without_a_last_line_and_locks_behind(tmp_path: Path) -> None:
    async with lab_at(tmp_path, task_seconds={"qmclone": 600}) as lab:
        token = Client(lab)
        upid = await token("post", "nodes/sv2/qemu/9001/clone", newid=700)
        await eventually(lambda: token("get", "nodes/sv2/qemu"), lambda vms: 700 in {vm["vmid"] for vm in vms})
        await lab.lab.store.durable()
        # A crash writes nothing more, so the file is taken as it is at this moment.
        crashed = tmp_path / "crashed"
        await asyncio.to_thread(copy_folder, tmp_path, crashed)
    async with lab_at(crashed) as lab:
        token = Client(lab)
        status = await token("get", f"nodes/sv2/tasks/{upid}/status")
        assert (status["status"], status["exitstatus"]) == ("stopped", "unexpected status")
        assert (await token.fails("put", "nodes/sv2/qemu/700/config", name="x")).content == "VM is locked (clone)"
        assert await token.done("delete", "nodes/sv2/qemu/700") == "VM is locked (clone)"


def copy_folder(source: Path, target: Path) -> None:
    target.mkdir()
    for file in source.iterdir():
        if file.is_file():
            (target / file.name).write_bytes(file.read_bytes())


@pytest.mark.parametrize("count", [200])
async def test_200_parallel_clones_all_get_their_own_machine(tmp_path: Path, count: int) -> None:
    async with lab_at(tmp_path, time_scale=0.5, allocation_s=0.002, task_seconds={"qmclone": 1.0}) as lab:
        token = Client(lab)
        upids = await asyncio.gather(
            *(token("post", "nodes/sv2/qemu/9001/clone", newid=1000 + i, target=f"sv{1 + i % 5}") for i in range(count))
        )
        statuses = await asyncio.gather(*(token.task(upid) for upid in upids))
        assert {status["exitstatus"] for status in statuses} == {"OK"}
        found = {vm["vmid"]: vm["node"] for vm in await token("get", "cluster/resources", type="vm")}
        assert all(found[1000 + i] == f"sv{1 + i % 5}" for i in range(count))
        macs = {
            (await token("get", f"nodes/{found[vmid]}/qemu/{vmid}/config"))["net0"]
            for vmid in range(1000, 1000 + count, 10)
        }
        assert len(macs) == count // 10
