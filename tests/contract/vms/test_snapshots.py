import contextlib
from typing import Any

import pytest

from libs.pvesim.qemu.disks import owned_volume
from tests.contract.vms.harness import PLENTY, Service


async def listed(service: Service, vm: dict[str, Any], user: str) -> dict[str, Any]:
    answer = await service.call("GET", f"/api/v1/vms/{vm['id']}/snapshots", user)
    assert answer.status_code == 200, answer.text
    shown: dict[str, Any] = answer.json()
    return shown


async def parents(service: Service, vm: dict[str, Any], user: str) -> dict[str, str | None]:
    return {one["name"]: one["parent"] for one in (await listed(service, vm, user))["items"]}


async def take(service: Service, vm: dict[str, Any], user: str, name: str, **options: Any) -> None:
    await service.done("POST", f"/api/v1/vms/{vm['id']}/snapshots", user, json={"name": name, **options})


async def refused(service: Service, user: str, path: str, slug: str, method: str = "POST", **body: Any) -> str:
    answer = await service.call(method, path, user, **({"json": body} if body else {}))
    assert answer.json()["type"] == f"/problems/{slug}", answer.text
    return str(answer.json()["detail"])


async def test_snapshots_are_taken_shown_as_a_tree_gone_back_to_and_deleted(service: Service) -> None:
    user = await service.new_user()
    vm = await service.vm(user, cores=1, memory_mib=512)
    path = f"/api/v1/vms/{vm['id']}"
    assert await listed(service, vm, user) == {"items": [], "current": None}
    await take(service, vm, user, "first", description="before\nthe change")
    await service.done("PATCH", path, user, json={"cores": 2, "memory_mib": 1024, "restart": True})
    await take(service, vm, user, "second", include_memory=True)
    tree = await listed(service, vm, user)
    assert tree["current"] == "second"
    first, second = tree["items"]
    assert (first["name"], first["description"], first["parent"]) == ("first", "before\nthe change", None)
    assert (first["children"], first["current"], first["includes_memory"]) == (["second"], False, False)
    assert (second["parent"], second["current"], second["includes_memory"]) == ("first", True, True)
    assert {one["state"] for one in tree["items"]} == {"ready"}
    assert first["created_at"] is not None
    await service.done("POST", f"{path}/snapshots/first/rollback", user)
    back = await service.shown(vm["id"], user)
    assert (back["state"], back["cores"], back["memory_mib"]) == ("running", 1, 512)
    assert service.used(user)["memory_mib"] == 512
    await take(service, vm, user, "other")
    assert await parents(service, vm, user) == {"first": None, "second": "first", "other": "first"}
    await service.done("POST", f"{path}/snapshots/second/rollback", user, json={"start": False})
    back = await service.shown(vm["id"], user)
    assert (back["state"], back["cores"]) == ("running", 2)  # its memory goes on where it was
    assert service.used(user)["cores"] == 2
    await service.done("DELETE", f"{path}/snapshots/first", user)
    assert await parents(service, vm, user) == {"second": None, "other": None}
    await service.done("DELETE", path, user)
    assert service.volumes() == [volume for volume in service.volumes() if str(vm["vmid"]) not in volume]


async def test_a_machine_that_is_off_stays_off_and_has_no_memory_to_keep(service: Service) -> None:
    user = await service.new_user()
    vm = await service.vm(user, start=False)
    path = f"/api/v1/vms/{vm['id']}/snapshots"
    await refused(service, user, path, "vm-state", name="hot", include_memory=True)
    await take(service, vm, user, "cold")
    await service.done("POST", f"{path}/cold/rollback", user)
    assert (await service.shown(vm["id"], user))["state"] == "stopped"
    await service.done("POST", f"{path}/cold/rollback", user, json={"start": True})
    assert (await service.shown(vm["id"], user))["state"] == "running"


async def test_what_cannot_be_is_refused_before_anything_is_done(service: Service) -> None:
    user = await service.new_user()
    vm = await service.vm(user, start=False)
    path = f"/api/v1/vms/{vm['id']}/snapshots"
    calls = service.calls()
    for wrong in ("", "a", "1abc", "current", "PENDING", "a" * 41, "a/b", "a b", "ä1", "../../x", "x\n"):
        answer = await service.call("POST", path, user, json={"name": wrong})
        assert answer.status_code == 422, wrong
        if wrong and "/" not in wrong:
            answer = await service.call("POST", f"{path}/{wrong.strip()}!/rollback", user)
            assert answer.status_code in (404, 422), wrong
    for extra in ({"vmstate": 1}, {"description": "a\x00b"}, {"description": "x" * 1001}):
        assert (await service.call("POST", path, user, json={"name": "ok", **extra})).status_code == 422
    assert service.calls() == calls
    await refused(service, user, f"{path}/gone/rollback", "snapshot-not-found")
    await refused(service, user, f"{path}/gone", "snapshot-not-found", "DELETE")
    await take(service, vm, user, "one")
    await refused(service, user, path, "snapshot-name-taken", name="one")
    other = await service.new_user()
    for method, url in (("GET", path), ("POST", f"{path}/one/rollback"), ("DELETE", f"{path}/one")):
        assert (await service.call(method, url, other)).status_code == 404


async def test_a_machine_keeps_so_many_snapshots_and_no_more(service: Service) -> None:
    user = await service.new_user()
    vm = await service.vm(user, start=False)
    path = f"/api/v1/vms/{vm['id']}/snapshots"
    limit = service.settings.snapshots_per_vm
    for number in range(limit):
        await take(service, vm, user, f"s{number}")
    assert str(limit) in await refused(service, user, path, "snapshot-limit", name="more")
    await service.done("DELETE", f"{path}/s3", user)
    await take(service, vm, user, "more")


async def test_a_storage_without_snapshots_says_so(service: Service) -> None:
    user = await service.new_user()
    vm = await service.vm(user, start=False)
    path = f"/api/v1/vms/{vm['id']}/snapshots"
    machine = service.machine(vm)
    volume = owned_volume(service.lab.lab, machine, machine.config["scsi0"])
    assert volume is not None
    volume.format = "raw"
    assert "shared" in await refused(service, user, path, "snapshots-impossible", name="never")


async def test_an_older_snapshot_may_be_out_of_a_storages_reach(service: Service) -> None:
    user = await service.new_user()
    vm = await service.vm(user, start=False)
    path = f"/api/v1/vms/{vm['id']}/snapshots"
    await take(service, vm, user, "old")
    words = "can't rollback, 'old' is not most recent snapshot on 'zfs:vm-1-disk-0'"
    async with service.fault("task_failure", task_type="qmrollback", message=words):
        answer = await service.call("POST", f"{path}/old/rollback", user)
        ended = await service.ended(answer.json()["id"], user)
    assert (ended["state"], ended["error"]["type"]) == ("failed", "/problems/snapshot-not-newest")
    assert (await service.shown(vm["id"], user))["state"] == "stopped"


async def test_what_is_being_done_to_a_snapshot_shows_while_it_lasts(service: Service) -> None:
    user = await service.new_user()
    vm = await service.vm(user, start=False)
    path = f"/api/v1/vms/{vm['id']}/snapshots"
    async with service.fault("slow_task", factor=40.0):
        begun = await service.call("POST", path, user, json={"name": "slow"})
        items = (await listed(service, vm, user))["items"]
        assert [(one["name"], one["state"]) for one in items] == [("slow", "creating")]
        await refused(service, user, path, "vm-busy", name="another")
        assert (await service.ended(begun.json()["id"], user))["state"] == "succeeded"
        assert [one["state"] for one in (await listed(service, vm, user))["items"]] == ["ready"]
        begun = await service.call("DELETE", f"{path}/slow", user)
        assert [one["state"] for one in (await listed(service, vm, user))["items"]] == ["deleting"]
        assert (await service.ended(begun.json()["id"], user))["state"] == "succeeded"


async def test_an_answer_that_got_lost_takes_no_snapshot_twice(service: Service) -> None:
    user = await service.new_user()
    vm = await service.vm(user, start=False)
    async with service.fault("gateway_timeout", method="POST", path="snapshot$", count=1, applied=True):
        await take(service, vm, user, "once")
    assert [one["name"] for one in (await listed(service, vm, user))["items"]] == ["once"]
    async with service.fault("gateway_timeout", method="POST", path="rollback", count=1, applied=False):
        await service.done("POST", f"/api/v1/vms/{vm['id']}/snapshots/once/rollback", user)
    async with service.fault("gateway_timeout", method="DELETE", path="snapshot/once", count=1, applied=True):
        await service.done("DELETE", f"/api/v1/vms/{vm['id']}/snapshots/once", user)
    assert (await listed(service, vm, user))["items"] == []


async def test_going_back_needs_the_quota_of_what_the_machine_was(service: Service) -> None:
    user = await service.new_user(**PLENTY | {"cores": 4})
    vm = await service.vm(user, cores=4, start=False)
    await take(service, vm, user, "big")
    await service.done("PATCH", f"/api/v1/vms/{vm['id']}", user, json={"cores": 1})
    await service.vm(user, cores=2, start=False)
    path = f"/api/v1/vms/{vm['id']}/snapshots/big/rollback"
    await refused(service, user, path, "quota-exceeded")
    assert service.used(user)["cores"] == 3


async def test_going_back_to_a_larger_disk_needs_the_quota_of_it(service: Service) -> None:
    user = await service.new_user(**PLENTY | {"disk_gib": 20})
    vm = await service.vm(user, disk_gib=4, start=False)
    path = f"/api/v1/vms/{vm['id']}"
    await take(service, vm, user, "small")
    await service.done("PATCH", path, user, json={"disk_gib": 16})
    await take(service, vm, user, "large")
    await service.done("POST", f"{path}/snapshots/small/rollback", user)
    assert service.used(user)["disk_gib"] == 4
    other = await service.vm(user, disk_gib=8, start=False)
    await refused(service, user, f"{path}/snapshots/large/rollback", "quota-exceeded")
    await service.done("DELETE", f"/api/v1/vms/{other['id']}", user)
    await service.done("POST", f"{path}/snapshots/large/rollback", user)
    assert service.used(user)["disk_gib"] == 16


async def test_what_came_back_counts_also_if_the_machine_does_not_start_again(service: Service) -> None:
    user = await service.new_user()
    vm = await service.vm(user, cores=4)
    path = f"/api/v1/vms/{vm['id']}"
    await take(service, vm, user, "big")
    await service.done("PATCH", path, user, json={"cores": 1, "restart": True})
    async with service.fault("task_failure", task_type="qmstart", message="start failed: QEMU exited with code 1"):
        begun = await service.call("POST", f"{path}/snapshots/big/rollback", user)
        assert (await service.ended(begun.json()["id"], user))["state"] == "failed"
    assert (service.machine(vm).cpus, service.used(user)["cores"]) == (4, 4)
    assert (await service.shown(vm["id"], user))["cores"] == 4


@pytest.mark.parametrize("lost", [False, True])
async def test_a_machine_stays_telars_when_it_goes_back_to_before_it_was(service: Service, lost: bool) -> None:
    user = await service.new_user()
    vm = await service.vm(user, start=False)
    await take(service, vm, user, "before")
    machine = service.machine(vm)
    machine.snapshots["before"]["config"]["description"] = "a note of old"
    async with contextlib.AsyncExitStack() as faults:
        if lost:
            cut_off = service.fault("gateway_timeout", method="POST", path="rollback", count=1, applied=True)
            await faults.enter_async_context(cut_off)
        await service.done("POST", f"/api/v1/vms/{vm['id']}/snapshots/before/rollback", user)
    assert machine.config["description"].splitlines()[0] == "a note of old"
    await service.done("DELETE", f"/api/v1/vms/{vm['id']}", user)


async def test_metrics_are_series_with_their_units_and_null_where_nothing_was_measured(service: Service) -> None:
    user = await service.new_user()
    vm = await service.vm(user)
    path = f"/api/v1/vms/{vm['id']}/metrics"
    for timeframe in ("hour", "day", "week", "month", "year"):
        shown = (await service.call("GET", path, user, params={"timeframe": timeframe})).json()
        series = {name: values for name, values in shown.items() if name not in ("timeframe", "times")}
        assert shown["timeframe"] == timeframe
        assert {len(values) for values in series.values()} == {len(shown["times"])}
        assert shown["times"] == sorted(shown["times"])
        assert len(shown["times"]) > 50
    shown = (await service.call("GET", path, user)).json()
    assert shown["timeframe"] == "hour"
    assert shown["cpu_ratio"][0] is None  # from before it was made
    assert 0 <= shown["cpu_ratio"][-1] <= 1
    assert shown["memory_total_bytes"][-1] == vm["memory_mib"] * 1024**2
    assert shown["network_received_bytes_per_s"][-1] >= 0
    assert (await service.call("GET", path, user, params={"timeframe": "decade"})).status_code == 422
    assert (await service.call("GET", path, await service.new_user())).status_code == 404
