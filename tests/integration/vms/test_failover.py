import asyncio
from collections.abc import Awaitable, Callable
from typing import Any

import pytest

from libs.pvesim.app import serve
from libs.pvesim.faults import Fault
from tests.contract.vms.harness import Service

Eventually = Callable[..., Awaitable[None]]


def steps(ended: dict[str, Any]) -> dict[str, str]:
    return {step["name"]: step["state"] for step in ended["steps"]}


async def second_copy(service: Service, node: str) -> int:
    """Another copy of the Debian template on a node."""
    vmid = 9101
    lab = service.lab.lab
    original = lab.vms.by_id[9001]
    config = {**original.config, "net0": original.config["net0"]}
    copy = type(original)(vmid, node, config, created=lab.clock.now())
    lab.vms.add(copy)
    copy.latest_tick = 0
    lab.vms.save(copy)
    return vmid


async def test_a_node_that_dies_in_the_middle_of_a_clone_is_left_for_another(
    service: Service, eventually: Eventually
) -> None:
    user = await service.new_user()
    await second_copy(service, "sv4")
    async with service.fault("slow_task", task_type="qmclone", factor=500) as slow:
        begun = await service.begin(user)
        first = begun["vm"]["vmid"]
        await eventually(lambda: first in service.lab.lab.vms.by_id)
        source = service.lab.lab.vms.by_id[first].node
        async with service.fault("node_down", node=source):
            await service.lab.lab.withdraw(slow.id)
            ended = await service.ended(begun["id"], user)
            assert ended["state"] == "succeeded", ended
            vm = await service.shown(begun["vm"]["id"], user)
            assert vm["node"] != source
            assert vm["vmid"] != first
            assert service.machine(vm).running
            assert service.rows("SELECT state, node FROM vmid_leases WHERE vmid = %s", first) == [("leftover", source)]
    # The node is back, with a stub that only root may unlock: it stays known, and is removed once it is unlocked.
    assert service.lab.lab.vms.by_id[first].lock == "clone"
    service.lab.lab.vms.by_id[first].config.pop("lock")

    def forgotten() -> bool:
        return first not in service.lab.lab.vms.by_id and not service.rows(
            "SELECT 1 FROM vmid_leases WHERE vmid = %s", first
        )

    await eventually(forgotten)
    assert sorted(service.machines()) == [vm["vmid"]]


async def test_a_node_that_dies_after_the_clone_gets_its_leftover_removed_when_it_is_back(
    service: Service, eventually: Eventually
) -> None:
    user = await service.new_user()
    async with service.fault("slow_task", task_type="qmstart", factor=500) as slow:
        begun = await service.begin(user, cores=20, memory_mib=60_000)  # fits sv1, sv2 and sv3; the template is on sv2
        first = begun["vm"]["vmid"]
        await eventually(lambda: bool(service.lab.lab.tasks.running("qmstart", str(first))))
        target = service.lab.lab.vms.by_id[first].node
        if target == "sv2":
            await second_copy(service, "sv4")
        async with service.fault("node_down", node=target):
            await service.lab.lab.withdraw(slow.id)
            ended = await service.ended(begun["id"], user)
            assert ended["state"] == "succeeded", ended
            vm = await service.shown(begun["vm"]["id"], user)
            assert vm["node"] != target
            assert sorted(service.machines()) == sorted([first, vm["vmid"]])
    await eventually(lambda: sorted(service.machines()) == [vm["vmid"]], 20)
    await eventually(lambda: service.rows("SELECT vmid FROM vmid_leases") == [(vm["vmid"],)], 20)
    assert service.machine(vm).running


async def test_a_start_that_fails_on_one_node_succeeds_on_the_next_and_leaves_nothing_behind(service: Service) -> None:
    user = await service.new_user()
    async with service.fault("task_failure", task_type="qmstart", count=2):
        vm = await service.vm(user)
    assert service.machine(vm).running
    assert sorted(service.machines()) == [vm["vmid"]]
    operation = service.rows("SELECT memo FROM operations WHERE resource_id = %s", vm["id"])[0][0]
    assert len(operation["avoided"]) == 2
    assert vm["node"] not in operation["avoided"]


@pytest.mark.parametrize(
    "task", ["qmclone", *(pytest.param(one, marks=pytest.mark.long) for one in ("resize", "qmstart"))]
)
async def test_a_machine_that_no_node_takes_is_undone_whole(
    service: Service, eventually: Eventually, task: str
) -> None:
    user = await service.new_user()
    async with service.fault("task_failure", task_type=task):
        begun = await service.begin(user)
        ended = await service.ended(begun["id"], user)
    assert (ended["state"], ended["error"]["type"]) == ("failed", "/problems/no-node-fits")
    assert service.machines() == {}
    assert service.volumes() == []
    assert service.used(user) == {}
    assert service.rows("SELECT 1 FROM vmid_leases") == []
    shown = await service.shown(begun["vm"]["id"], user)
    assert (shown["state"], shown["status"], shown["vmid"]) == ("error", "error", None)
    assert "sv1" in shown["reason"]
    await eventually(lambda: service.events(shown["id"])[-1].type == "vms.vm.failed.v1")
    await service.done("DELETE", f"/api/v1/vms/{shown['id']}", user)


async def test_locks_are_waited_out_on_the_same_node(service: Service) -> None:
    user = await service.new_user()
    await service.lab.lab.inject(_fault("lock_timeout", task_type="qmclone"))
    await service.lab.lab.inject(_fault("lock_timeout", method="PUT", path="/config"))
    await service.lab.lab.inject(_fault("lock_timeout", task_type="qmstart"))
    vm = await service.vm(user)
    assert service.machine(vm).running
    assert not service.rows("SELECT memo -> 'avoided' FROM operations WHERE resource_id = %s", vm["id"])[0][0]
    assert sorted(service.machines()) == [vm["vmid"]]


def _fault(kind: str, **how: Any) -> Any:
    return Fault(kind=kind, count=1, **how)  # type: ignore[arg-type] # checked by the model


WRITES = [("POST", "/clone$"), ("PUT", "/config$"), ("PUT", "/resize$"), ("POST", "/status/start$")]


@pytest.mark.parametrize("applied", [True, False], ids=["applied", "lost"])
@pytest.mark.parametrize(("method", "path"), WRITES, ids=[path for _, path in WRITES])
async def test_a_call_without_an_answer_is_looked_up(service: Service, method: str, path: str, applied: bool) -> None:
    user = await service.new_user()
    async with service.fault("gateway_timeout", method=method, path=path, applied=applied, count=1):
        vm = await service.vm(user, disk_gib=7)
    machine = service.machine(vm)
    assert machine.running
    assert machine.disk_bytes == 7 * 1024**3
    assert sorted(service.machines()) == [vm["vmid"]]
    assert len(service.volumes()) == 2  # its disk and its cloud-init drive


@pytest.mark.parametrize(("method", "path"), [("POST", "/status/stop$"), ("DELETE", "/qemu/")])
async def test_a_removal_without_an_answer_is_looked_up(service: Service, method: str, path: str) -> None:
    user = await service.new_user()
    vm = await service.vm(user)
    for applied in (True, False):
        async with service.fault("gateway_timeout", method=method, path=path, applied=applied, count=1):
            await service.done("DELETE", f"/api/v1/vms/{vm['id']}", user)
        assert service.machines() == {}
        vm = await service.vm(user)


async def test_a_vmid_that_a_stranger_took_is_left_to_them(service: Service) -> None:
    user = await service.new_user()
    lab = service.lab.lab
    taken = int(service.rows("SELECT last_value + 1 FROM vmid_turns")[0][0])
    size = service.settings.vmid_last - service.settings.vmid_first + 1
    vmids = [service.settings.vmid_first + (taken + turn) % size for turn in range(2)]
    template = lab.vms.by_id[9001]
    for vmid, node in zip(vmids, ("sv2", "sv3"), strict=True):
        stranger = type(template)(vmid, node, {"name": "stranger", "memory": "512"}, created=lab.clock.now())
        lab.vms.add(stranger)
    vm = await service.vm(user)
    assert vm["vmid"] not in vmids
    assert [lab.vms.by_id[vmid].config["name"] for vmid in vmids] == ["stranger", "stranger"]
    foreign = service.rows("SELECT vmid FROM vmid_leases WHERE state = 'foreign' ORDER BY vmid")
    assert [row[0] for row in foreign] == sorted(vmids)
    await service.done("DELETE", f"/api/v1/vms/{vm['id']}", user)
    assert sorted(service.machines()) == sorted(vmids)


async def test_a_cluster_that_is_restarted_in_the_middle_leaves_no_orphan(
    service: Service, eventually: Eventually
) -> None:
    user = await service.new_user()
    async with service.fault("slow_task", task_type="qmclone", factor=20):
        begun = [await service.begin(user, name=f"vm-{number}") for number in range(8)]
        await eventually(lambda: len(service.machines()) >= 4)
        options = service.lab.lab.settings.model_copy(update={"port": service.lab.port})
        await service.lab.aclose()
        await asyncio.sleep(0.3)  # a restart takes a moment, in which nobody answers
        again = await serve(options)
    try:
        service.lab = again
        for fault in again.lab.faults.list():
            await again.lab.withdraw(fault.id)
        ended = [await service.ended(one["id"], user) for one in begun]
        assert {one["state"] for one in ended} == {"succeeded"}
        shown = [await service.shown(one["vm"]["id"], user) for one in begun]
        assert sorted(vm["vmid"] for vm in shown) == sorted(service.machines())
        assert all(service.machine(vm).running for vm in shown)
    finally:
        for one in begun:
            await service.done("DELETE", f"/api/v1/vms/{one['vm']['id']}", user)
        assert service.machines() == {}
        await again.aclose()
