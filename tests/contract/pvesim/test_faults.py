import contextlib
import ssl
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from proxmoxer.core import ResourceException

from libs.pvesim.app import RunningLab
from tests.contract.pvesim.conftest import Client, eventually, lab_at

CLONE = "nodes/sv2/qemu/9001/clone"


@pytest.fixture(scope="module")
async def broken(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[RunningLab]:
    async with lab_at(tmp_path_factory.mktemp("faults"), stats_expiry_s=20) as lab:
        yield lab


class Desk:
    def __init__(self, lab: RunningLab) -> None:
        self._base = f"{lab.url}/sim"
        self._context = ssl.create_default_context(cafile=str(lab.ca_path))

    async def ask(self, method: str, path: str, /, **fault: Any) -> httpx.Response:
        async with httpx.AsyncClient(verify=self._context) as client:
            return await client.request(method, f"{self._base}/{path}", json=fault or None)

    async def inject(self, **fault: Any) -> str:
        answer = await self.ask("POST", "faults", **fault)
        assert answer.status_code == 201, answer.text
        return str(answer.json()["id"])


@pytest.fixture
async def desk(broken: RunningLab) -> AsyncIterator[Desk]:
    desk = Desk(broken)
    yield desk
    assert (await desk.ask("DELETE", "faults")).status_code == 204


@pytest.fixture
def token(broken: RunningLab) -> Client:
    return Client(broken)


async def test_a_dead_node_answers_595_and_its_machines_turn_unknown_late(token: Client, desk: Desk) -> None:
    await token.done("post", CLONE, newid=300, target="sv3", name="victim")
    await token.done("post", "nodes/sv3/qemu/300/status/start")

    async def state() -> str:
        found = await token("get", "cluster/resources", type="vm")
        return str(next(vm["status"] for vm in found if vm["vmid"] == 300))

    await eventually(state, lambda status: status == "running")
    fault = await desk.inject(kind="node_down", node="sv3")
    dead = await token.fails("get", "nodes/sv3/qemu/300/status/current")
    assert (dead.status_code, dead.content) == (595, "No route to host")
    assert await state() == "running"
    nodes = {node["node"]: node["status"] for node in await token("get", "nodes")}
    assert (nodes["sv3"], nodes["sv1"]) == ("offline", "online")
    await eventually(state, lambda status: status == "unknown")
    assert (await desk.ask("DELETE", f"faults/{fault}")).status_code == 204
    assert (await token("get", "nodes/sv3/qemu/300/status/current"))["status"] == "stopped"


async def test_a_node_that_dies_takes_its_workers_with_it(token: Client, desk: Desk) -> None:
    await desk.inject(kind="slow_task", task_type="qmclone", factor=1000)
    upid = await token("post", CLONE, newid=310)
    fault = await desk.inject(kind="node_down", node="sv2")
    assert (await token.fails("post", CLONE, newid=311)).status_code == 595
    await desk.ask("DELETE", f"faults/{fault}")
    assert (await token.task(upid))["exitstatus"] == "unexpected status"
    assert (await token("get", "nodes/sv2/qemu/310/config"))["lock"] == "clone"


async def test_596_can_hide_work_that_takes_effect(token: Client, desk: Desk) -> None:
    await desk.inject(kind="gateway_timeout", method="POST", path="/clone$", count=1)
    cut = await token.fails("post", CLONE, newid=320)
    assert (cut.status_code, cut.content) == (596, "Connection timed out")
    await eventually(lambda: token("get", "nodes/sv2/qemu"), lambda vms: 320 in {vm["vmid"] for vm in vms})
    await desk.inject(kind="gateway_timeout", method="POST", path="/clone$", count=1, applied=False)
    assert (await token.fails("post", CLONE, newid=321)).status_code == 596
    assert await token.done("post", CLONE, newid=321) == "OK"


async def test_locks_time_out_on_calls_and_in_tasks(token: Client, desk: Desk) -> None:
    await desk.inject(kind="lock_timeout", method="PUT", path="/config$", count=1)
    refused = await token.fails("put", "nodes/sv1/qemu/9000/config", description="x")
    assert refused.content == "can't lock file '/var/lock/qemu-server/lock-9000.conf' - got timeout"
    await desk.inject(kind="lock_timeout", task_type="qmclone", count=1)
    assert "got timeout" in await token.done("post", CLONE, newid=330)
    assert await token.done("post", CLONE, newid=330) == "OK"


async def test_html_can_come_with_status_200(token: Client, desk: Desk) -> None:
    await desk.inject(kind="html", path="^/version$", count=1)
    assert b"<html>" in (await token("get", "version"))["errors"]
    assert "release" in await token("get", "version")


async def test_tasks_warn_and_fail_at_a_chosen_step_and_clean_up(token: Client, desk: Desk) -> None:
    await desk.inject(kind="task_warnings", task_type="qmclone", count=1)
    assert await token.done("post", CLONE, newid=340) == "WARNINGS: 1"
    await desk.inject(kind="task_failure", task_type="qmclone", step=3, message="disk full", count=1)
    assert await token.done("post", CLONE, newid=341, full=1) == "clone failed: disk full"
    assert 341 not in {vm["vmid"] for vm in await token("get", "nodes/sv2/qemu")}


async def test_the_inventory_can_turn_out_empty_once(token: Client, desk: Desk) -> None:
    await desk.inject(kind="empty_inventory", count=1)
    assert await token("get", "cluster/resources") == []
    assert await token("get", "cluster/resources") != []


async def test_a_token_can_lose_its_privileges(token: Client, desk: Desk) -> None:
    await desk.inject(kind="token_without_privileges", token="telar@pve!telar")
    assert (await token.fails("post", CLONE, newid=350)).content == "Permission check failed (/vms/9001, VM.Clone)"
    assert await token("get", "cluster/resources", type="vm") == []


async def test_without_quorum_writes_fail(token: Client, desk: Desk) -> None:
    await desk.inject(kind="no_quorum")
    assert (await token.fails("post", CLONE, newid=360)).content == "cluster not ready - no quorum?"
    assert {entry.get("quorate") for entry in await token("get", "cluster/status")} == {0, None}


async def test_any_error_can_be_ordered(token: Client, desk: Desk) -> None:
    await desk.inject(kind="error", path="/clone$", message="VM is locked (backup)", count=1)
    assert (await token.fails("post", CLONE, newid=370)).content == "VM is locked (backup)"


async def test_faults_are_listed_and_wrong_ones_refused(desk: Desk) -> None:
    await desk.inject(kind="slow_call", path="/version", seconds=0.1)
    assert [fault["kind"] for fault in (await desk.ask("GET", "faults")).json()] == ["slow_call"]
    assert (await desk.ask("POST", "faults", kind="earthquake")).status_code == 422
    assert (await desk.ask("DELETE", "faults/unknown")).status_code == 404


async def test_calls_are_counted_by_endpoint(token: Client, desk: Desk) -> None:
    await desk.ask("DELETE", "calls")
    for vmid in (9000, 9004):
        with contextlib.suppress(ResourceException):
            await token("get", f"nodes/sv1/qemu/{vmid}/config")
    assert (await desk.ask("GET", "calls")).json() == {"GET /nodes/{node}/qemu/{vmid}/config": 2}


async def test_faults_survive_a_restart(tmp_path: Path) -> None:
    async with lab_at(tmp_path) as lab:
        await Desk(lab).inject(kind="node_down", node="sv4")
    async with lab_at(tmp_path) as lab:
        assert (await Client(lab).fails("get", "nodes/sv4/qemu")).status_code == 595
