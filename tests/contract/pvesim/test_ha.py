from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest

from libs.pvesim.app import RunningLab
from libs.pvesim.faults import Fault
from tests.contract.pvesim.conftest import Client, eventually, lab_at

Manage = Callable[..., Awaitable[str]]


@pytest.fixture(scope="module")
async def cluster(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[RunningLab]:
    async with lab_at(tmp_path_factory.mktemp("ha"), ha_round_s=2, ha_fence_s=10) as lab:
        yield lab


def root_of(lab: RunningLab) -> Client:
    return Client(lab, user="root@pam", password=lab.root_password.get_secret_value())


@pytest.fixture
def root(cluster: RunningLab) -> Client:
    return root_of(cluster)


@pytest.fixture
async def manage(root: Client, fresh_id: Callable[[], int]) -> AsyncIterator[Manage]:
    """Clones a machine to a node and has it managed; gives its sid. Afterwards nothing of it is managed."""
    made: list[str] = []

    async def make(node: str = "sv1", **fields: Any) -> str:
        vmid = fresh_id()
        assert await root.done("post", "nodes/sv2/qemu/9001/clone", newid=vmid, target=node) == "OK"
        await root("post", "cluster/ha/resources", sid=f"vm:{vmid}", **fields)
        made.append(f"vm:{vmid}")
        return f"vm:{vmid}"

    yield make
    for sid in made:
        await root("delete", f"cluster/ha/resources/{sid}")


async def service(root: Client, sid: str) -> dict[str, Any]:
    found = await root("get", "cluster/ha/status/current")
    return next(entry for entry in found if entry.get("sid") == sid)


async def expect_at(root: Client, sid: str, node: str, state: str = "started") -> None:
    await eventually(lambda: service(root, sid), lambda seen: (seen["node"], seen["state"]) == (node, state))


async def test_27_a_dead_nodes_machine_is_fenced_and_recovered_elsewhere(
    cluster: RunningLab, root: Client, manage: Manage
) -> None:
    sid = await manage("sv3")
    await expect_at(root, sid, "sv3")
    fault = Fault(kind="node_down", node="sv3")
    await cluster.lab.inject(fault)
    try:
        await eventually(lambda: service(root, sid), lambda seen: seen["state"] == "fence")
        states = {entry["id"]: entry["status"] for entry in await root("get", "cluster/ha/status/current")}
        assert "dead" in states["lrm:sv3"]
        seen = await eventually(lambda: service(root, sid), lambda seen: seen["state"] == "started")
        assert seen["node"] != "sv3"
        path = f"nodes/{seen['node']}/qemu/{sid[3:]}/status/current"
        assert (await root("get", path))["status"] == "running"
    finally:
        await cluster.lab.withdraw(fault.id)


async def test_27_a_node_that_returns_in_time_keeps_its_machine(tmp_path: Path) -> None:
    async with lab_at(tmp_path, ha_round_s=2, ha_fence_s=1_000_000) as lab:
        root, sid = root_of(lab), "vm:200"
        assert await root.done("post", "nodes/sv2/qemu/9001/clone", newid=200, target="sv3") == "OK"
        await root("post", "cluster/ha/resources", sid=sid)
        await expect_at(root, sid, "sv3")
        fault = Fault(kind="node_down", node="sv3")
        await lab.lab.inject(fault)
        await expect_at(root, sid, "sv3", "fence")
        assert (await root.fails("get", "nodes/sv3/qemu/200/status/current")).status_code == 595
        await lab.lab.withdraw(fault.id)
        await expect_at(root, sid, "sv3")
        assert (await root("get", "nodes/sv3/qemu/200/status/current"))["status"] == "running"
        starts = await root("get", "nodes/sv3/tasks", vmid="200", typefilter="qmstart")
        assert [(task["node"], task["status"]) for task in starts] == [("sv3", "OK"), ("sv3", "OK")]


async def test_27_without_its_disks_a_recovered_machine_ends_in_error_until_it_is_disabled(
    cluster: RunningLab, root: Client, manage: Manage
) -> None:
    sid = await manage("sv3", state="stopped")
    await expect_at(root, sid, "sv3", "stopped")
    await root("put", f"nodes/sv3/qemu/{sid[3:]}/config", scsi1="local-lvm:1")
    await root("put", f"cluster/ha/resources/{sid}", state="started")
    await expect_at(root, sid, "sv3")
    fault = Fault(kind="node_down", node="sv3")
    await cluster.lab.inject(fault)
    try:
        await eventually(lambda: service(root, sid), lambda seen: seen["crm_state"] == "error")
    finally:
        await cluster.lab.withdraw(fault.id)
    refused = await root.fails("put", f"cluster/ha/resources/{sid}", state="started")
    assert refused.content == f"service '{sid}' in error state, must be disabled and fixed first"
    await root("put", f"cluster/ha/resources/{sid}", state="disabled")
    await eventually(lambda: service(root, sid), lambda seen: seen["state"] == "disabled")


async def test_27_migration_of_a_managed_machine_is_queued_and_done_by_the_manager(
    root: Client, manage: Manage
) -> None:
    sid = await manage("sv1")
    await expect_at(root, sid, "sv1")
    upid = await root("post", f"nodes/sv1/qemu/{sid[3:]}/migrate", target="sv4", online=1)
    assert ":hamigrate:" in upid
    assert (await root.task(upid))["exitstatus"] == "OK"
    await expect_at(root, sid, "sv4")
    moves = await root("get", "nodes/sv1/tasks", vmid=sid[3:], typefilter="qmigrate")
    assert [(task["user"], task["status"]) for task in moves] == [("root@pam", "OK")]
    assert (await root.log(moves[0]["upid"]))[0] == "task started by HA resource agent"
    answer = await root("post", f"cluster/ha/resources/{sid}/relocate", node="sv5")
    assert answer == {"sid": sid, "requested-node": "sv5"}
    await expect_at(root, sid, "sv5")
    starts = await root("get", "nodes/sv5/tasks", vmid=sid[3:], typefilter="qmstart")
    assert len(starts) == 1
    unmanaged = await root.fails("post", "cluster/ha/resources/vm:9001/migrate", node="sv5")
    assert unmanaged.content == "resource 'vm:9001' is not HA managed"


async def test_27_node_rules_draw_machines_to_their_nodes(root: Client, manage: Manage) -> None:
    sid = await manage("sv1")
    await expect_at(root, sid, "sv1")
    rule = {"rule": f"draw{sid[3:]}", "type": "node-affinity", "resources": sid}
    await root("post", "cluster/ha/rules", **rule, nodes="sv4:1,sv5:2")
    await expect_at(root, sid, "sv5")
    listed = await root("get", "cluster/ha/rules", resource=sid)
    assert [(entry["rule"], entry["type"]) for entry in listed] == [(rule["rule"], "node-affinity")]
    assert await root("get", "cluster/ha/rules", type="resource-affinity", resource=sid) == []


async def test_27_failback_can_be_turned_off(root: Client, manage: Manage) -> None:
    sid = await manage("sv1", failback=0)
    await expect_at(root, sid, "sv1")
    rule = {"rule": f"stay{sid[3:]}", "type": "node-affinity", "resources": sid}
    await root("post", "cluster/ha/rules", **rule, nodes="sv5")
    other = await manage("sv2")
    await expect_at(root, other, "sv2")
    assert (await service(root, sid))["node"] == "sv1"


async def test_27_a_strict_rule_without_a_living_node_leaves_the_machine_in_recovery(
    cluster: RunningLab, root: Client, manage: Manage
) -> None:
    sid, free = await manage("sv3"), await manage("sv3")
    for one in (sid, free):
        await expect_at(root, one, "sv3")
    rule = {"rule": f"only{sid[3:]}", "type": "node-affinity", "resources": sid}
    await root("post", "cluster/ha/rules", **rule, nodes="sv3", strict=1)
    fault = Fault(kind="node_down", node="sv3")
    await cluster.lab.inject(fault)
    try:
        await eventually(
            lambda: service(root, free), lambda seen: (seen["node"] != "sv3", seen["state"]) == (True, "started")
        )
        bound = await service(root, sid)
        assert (bound["node"], bound["state"]) == ("sv3", "recovery")
    finally:
        await cluster.lab.withdraw(fault.id)
    await expect_at(root, sid, "sv3")


async def test_27_company_follows_and_rivals_stand_in_the_way(root: Client, manage: Manage) -> None:
    first, friend, rival = await manage("sv1"), await manage("sv1"), await manage("sv4")
    for sid, node in ((first, "sv1"), (friend, "sv1"), (rival, "sv4")):
        await expect_at(root, sid, node)
    kind = {"type": "resource-affinity"}
    await root("post", "cluster/ha/rules", rule="together", affinity="positive", resources=f"{first},{friend}", **kind)
    await root("post", "cluster/ha/rules", rule="apart", affinity="negative", resources=f"{first},{rival}", **kind)
    blocked = await root("post", f"cluster/ha/resources/{first}/migrate", node="sv4")
    assert blocked["blocking-resources"] == [{"sid": rival, "cause": "resource-affinity"}]
    along = await root("post", f"cluster/ha/resources/{first}/migrate", node="sv5")
    assert along["comigrated-resources"] == [friend]
    for sid in (first, friend):
        await expect_at(root, sid, "sv5")


async def test_27_rules_and_resources_that_cannot_be_are_refused(root: Client, manage: Manage) -> None:
    sid = await manage("sv1", state="stopped")
    rules = "cluster/ha/rules"
    near = {"rule": "near", "type": "node-affinity"}
    unmanaged = await root.fails("post", rules, **near, nodes="sv1", resources="vm:9000")
    assert unmanaged.content == "cannot use unmanaged resource(s) vm:9000."
    nowhere = await root.fails("post", rules, **near, nodes="sv8,sv9", resources=sid)
    assert nowhere.content == "cannot use non-existent node(s) sv8, sv9."
    empty = await root.fails("post", rules, **near, resources=sid)
    assert (empty.status_code, empty.content) == (400, "Rule 'near' is invalid.")
    alone = await root.fails("post", rules, rule="alone", type="resource-affinity", affinity="negative", resources=sid)
    assert (alone.status_code, alone.content) == (400, "Rule 'alone' is invalid.")
    await root("post", rules, **near, nodes="sv1", resources=sid)
    again = await root.fails("post", rules, **near, nodes="sv1", resources=sid)
    assert again.content == "HA rule 'near' already defined"
    assert (await root.fails("get", f"{rules}/far")).content == "no such ha rule 'far'"
    twice = await root.fails("post", "cluster/ha/resources", sid=sid)
    assert twice.content == f"create resource failed: resource ID '{sid}' already defined"
    texts = {"vm:777": "resource 'vm:777' does not exist in cluster",
             "777": "unable to detect SID from VMID - VM/CT 777 does not exist"}  # fmt: skip
    for missing, text in texts.items():
        assert (await root.fails("post", "cluster/ha/resources", sid=missing)).content == text
    assert (await root.fails("get", "cluster/ha/resources/vm:777")).content == "no such resource 'vm:777'"
    changed = await root.fails("put", "cluster/ha/resources/vm:777", state="stopped")
    assert changed.content == "update resources config failed: no such resource 'vm:777'"
    removed = await root.fails("delete", "cluster/ha/resources/vm:777")
    assert removed.content == "cannot delete service 'vm:777', not HA managed!"
    grouped = await root.fails("put", f"cluster/ha/resources/{sid}", group="old")
    assert grouped.content == "invalid parameter 'group': ha groups have been migrated to rules"
    for method, path, doing in (
        ("get", "", "index groups"), ("get", "/old", "read group"), ("delete", "/old", "delete group"),
    ):  # fmt: skip
        refused = await root.fails(method, f"cluster/ha/groups{path}")
        assert refused.content == f"cannot {doing}: ha groups have been migrated to rules"


async def test_27_stop_and_suspend_of_managed_machines(root: Client, manage: Manage) -> None:
    sid = await manage("sv1")
    await expect_at(root, sid, "sv1")
    path = f"nodes/sv1/qemu/{sid[3:]}"
    overruled = await root.fails("post", f"{path}/status/stop", **{"overrule-shutdown": 1})
    assert overruled.errors == {"overrule-shutdown": "Not applicable for HA resources."}
    asleep = await root.fails("post", f"{path}/status/suspend", todisk=1)
    assert asleep.content == "Cannot suspend HA managed VM to disk"
    state = (await root("get", f"{path}/status/current"))["ha"]
    assert (state["managed"], state["state"]) == (1, "started")
    await root("put", f"cluster/ha/resources/{sid}", state="ignored")
    assert (await root("get", f"{path}/status/current"))["ha"] == {"managed": 0}
    assert (await service(root, sid))["state"] == "ignored"
    assert ":qmstop:" in await root("post", f"{path}/status/stop")


async def test_27_before_release_9_there_are_groups_and_no_rules(tmp_path: Path) -> None:
    async with lab_at(tmp_path, version="8.4.1", ha_round_s=2) as lab:
        root = root_of(lab)
        assert (await root.fails("get", "cluster/ha/rules")).status_code == 501
        await root("post", "cluster/ha/groups", group="pair", nodes="sv4:2,sv5", restricted=1)
        assert (await root("get", "cluster/ha/groups/pair"))["nodes"] == "sv4:2,sv5"
        await root.done("post", "nodes/sv2/qemu/9001/clone", newid=200)
        missing = await root.fails("post", "cluster/ha/resources", sid="vm:200", group="none")
        assert missing.content == "HA group 'none' does not exist"
        await root("post", "cluster/ha/resources", sid="200", group="pair")
        await expect_at(root, "vm:200", "sv4")
        assert await root("post", "cluster/ha/resources/vm:200/migrate", node="sv5") is None
        await expect_at(root, "vm:200", "sv4")
        unknown = await root.fails("put", "cluster/ha/resources/vm:200", failback=1)
        assert set(unknown.errors) == {"failback"}
        used = await root.fails("delete", "cluster/ha/groups/pair")
        assert used.content == "ha group is used by service 'vm:200'"


async def test_27_what_the_manager_was_asked_survives_a_restart(tmp_path: Path) -> None:
    async with lab_at(tmp_path, ha_round_s=60) as lab:
        root = root_of(lab)
        await root.done("post", "nodes/sv2/qemu/9001/clone", newid=200)
        await root("post", "cluster/ha/resources", sid="vm:200")
        await root("post", "cluster/ha/resources/vm:200/relocate", node="sv4")
        assert (await service(root, "vm:200"))["node"] == "sv2"
    async with lab_at(tmp_path, ha_round_s=1) as lab:
        await expect_at(root_of(lab), "vm:200", "sv4")
