import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

import pytest

from libs.pvesim.app import RunningLab
from tests.contract.vms.harness import PLENTY, Service, running

Eventually = Callable[..., Awaitable[None]]
ABSENT = "01890000-0000-7000-8000-000000000000"


@pytest.fixture(scope="module")
async def service(database_url: str, lab: RunningLab) -> AsyncIterator[Service]:
    async with running(database_url, lab, drift_every_s=0.1) as service:
        yield service


@pytest.fixture(scope="module")
async def admin(service: Service) -> str:
    return await service.new_user()


async def drift_of(service: Service, admin: str, vmid: int) -> dict[str, Any] | None:
    answer = await service.call("GET", "/api/v1/drift", admin, role="ADMIN")
    assert answer.status_code == 200, answer.text
    return next((item for item in answer.json()["items"] if item["vmid"] == vmid), None)


async def found(service: Service, admin: str, eventually: Eventually, vmid: int) -> dict[str, Any]:
    """The difference of a machine, when it has been reported."""

    async def reported() -> bool:
        return await drift_of(service, admin, vmid) is not None

    await eventually(reported)
    told = await drift_of(service, admin, vmid)
    assert told is not None
    return told


async def told(service: Service, drift: dict[str, Any], event: str) -> None:
    """Wait until the bus has an event of a difference as its last one."""
    async with asyncio.timeout(20):
        while True:
            types = [one.type for one in service.heard if one.subject == drift["id"]]
            if types[-1:] == [event]:
                return
            await asyncio.sleep(0.01)


async def resolve(service: Service, admin: str, drift: dict[str, Any], action: str, **more: Any) -> dict[str, Any]:
    path = f"/api/v1/drift/{drift['id']}/resolve"
    answer = await service.call("POST", path, admin, role="ADMIN", json={"action": action, **more})
    assert answer.status_code in (200, 202), answer.text
    done: dict[str, Any] = answer.json()
    if answer.status_code == 202 or done["operation"]:
        ended = await service.ended(done["operation"]["id"], done["vm"]["owner_id"])
        assert ended["state"] == "succeeded", ended
    assert await drift_of(service, admin, drift["vmid"]) is None
    await told(service, drift, "vms.drift.resolved.v1")
    return done


async def refused(service: Service, admin: str, drift: dict[str, Any], action: str, **more: Any) -> str:
    path = f"/api/v1/drift/{drift['id']}/resolve"
    answer = await service.call("POST", path, admin, role="ADMIN", json={"action": action, **more})
    assert answer.status_code == 409, answer.text
    return str(answer.json()["type"].removeprefix("/problems/"))


def stray(service: Service, vmid: int, like: dict[str, Any], **config: Any) -> Any:
    """A machine that nobody has a record of, made of another one's configuration."""
    machine = service.machine(like)
    drives = {name: value for name, value in machine.config.items() if name not in ("scsi0", "ide2", "description")}
    vm = type(machine)(vmid, machine.node, {**drives, "name": f"stray-{vmid}", **config}, created=0)
    service.lab.lab.vms.add(vm)
    service.lab.lab.vms.save(vm)
    return vm


async def test_a_machine_that_was_changed_behind_telars_back_is_shown_and_the_record_is_believed(
    service: Service, admin: str, eventually: Eventually
) -> None:
    user = await service.new_user()
    vm = await service.vm(user, name="steady", cores=2, start=False)
    machine = service.machine(vm)
    machine.config |= {"cores": 3, "memory": "4096", "tags": "os-debian-13"}
    service.lab.lab.vms.save(machine)
    drift = await found(service, admin, eventually, vm["vmid"])
    assert (drift["kind"], drift["vm_id"], drift["actions"]) == ("changed", vm["id"], ["adopt", "fix"])
    assert {one["what"]: (one["record"], one["cluster"]) for one in drift["differences"]} == {
        "cores": (2, 3), "memory_mib": (512, 4096), "tag": ("telar", ""),
    }  # fmt: skip
    assert await refused(service, admin, drift, "forget") == "drift-unresolvable"
    await resolve(service, admin, drift, "fix")
    assert (int(machine.config["cores"]), machine.memory_mib) == (2, 512)
    assert "telar" in machine.config["tags"].split(";")


async def test_the_cluster_is_believed_within_the_quota(service: Service, admin: str, eventually: Eventually) -> None:
    user = await service.new_user(**PLENTY | {"cores": 4})
    vm = await service.vm(user, start=False)
    machine = service.machine(vm)
    machine.config |= {"cores": 5, "name": "renamed"}
    service.lab.lab.vms.save(machine)
    drift = await found(service, admin, eventually, vm["vmid"])
    assert await refused(service, admin, drift, "adopt") == "quota-exceeded"
    machine.config["cores"] = 4
    service.lab.lab.vms.save(machine)
    await resolve(service, admin, drift, "adopt")
    shown = await service.shown(vm["id"], user)
    assert (shown["cores"], shown["name"]) == (4, "renamed")
    assert service.used(user)["cores"] == 4


async def test_a_vanished_machine_is_only_reported_until_an_administrator_gives_it_up(
    service: Service, admin: str, eventually: Eventually
) -> None:
    user = await service.new_user()
    vm = await service.vm(user, name="lost", start=False)
    machine = service.machine(vm)
    service.lab.lab.vms.remove(machine)
    drift = await found(service, admin, eventually, vm["vmid"])
    assert (drift["kind"], drift["actions"]) == ("vanished", ["forget"])
    assert (await service.shown(vm["id"], user))["state"] == "stopped"
    assert service.used(user)["vms"] == 1
    await told(service, drift, "vms.drift.found.v1")
    service.lab.lab.vms.add(machine)
    assert await refused(service, admin, drift, "forget") == "drift-settled"

    async def settled() -> bool:
        return await drift_of(service, admin, vm["vmid"]) is None

    await eventually(settled)
    service.lab.lab.vms.remove(machine)
    drift = await found(service, admin, eventually, vm["vmid"])
    await resolve(service, admin, drift, "forget")
    assert (await service.call("GET", f"/api/v1/vms/{vm['id']}", user)).status_code == 404
    assert service.used(user) == {}
    assert service.rows("SELECT 1 FROM vmid_leases WHERE vmid = %s", vm["vmid"]) == []


async def test_an_unknown_machine_with_the_tag_is_adopted_for_an_owner(
    service: Service, admin: str, eventually: Eventually
) -> None:
    user = await service.new_user(**PLENTY | {"vms": 2})
    like = await service.vm(user, start=False)
    machine = stray(service, 700, like, tags="os-debian-13;telar", description="by hand")
    drift = await found(service, admin, eventually, 700)
    assert (drift["kind"], drift["vm_id"], drift["actions"]) == ("unknown", None, ["adopt", "forget", "fix"])
    assert await refused(service, admin, drift, "fix") == "drift-unresolvable"
    path = f"/api/v1/drift/{drift['id']}/resolve"
    nobody = await service.call("POST", path, admin, role="ADMIN", json={"action": "adopt", "owner": "nobody"})
    assert nobody.status_code == 404
    done = await resolve(service, admin, drift, "adopt", owner=user)
    shown = await service.shown(done["vm"]["id"], user)
    assert (shown["name"], shown["state"], shown["vmid"], shown["os_type"]) == (
        "stray-700",
        "stopped",
        700,
        "debian-13",
    )
    assert machine.config["description"] == f"by hand\ntelar-vm {shown['id']}"
    assert service.used(user)["vms"] == 2
    await service.done("DELETE", f"/api/v1/vms/{shown['id']}", user)
    assert 700 not in service.lab.lab.vms.by_id


async def test_an_adoption_that_fails_leaves_nothing_recorded(
    service: Service, admin: str, eventually: Eventually
) -> None:
    user = await service.new_user()
    like = await service.vm(user, start=False)
    stray(service, 701, like, tags="telar")
    drift = await found(service, admin, eventually, 701)
    async with service.fault("error", method="PUT", path="/701/config", message="nothing doing"):
        answer = await service.call(
            "POST", f"/api/v1/drift/{drift['id']}/resolve", admin, role="ADMIN", json={"action": "adopt", "owner": user}
        )
        assert (await service.ended(answer.json()["operation"]["id"], user))["state"] == "failed"
    assert service.used(user)["vms"] == 1
    drift = await found(service, admin, eventually, 701)
    await resolve(service, admin, drift, "forget")
    assert service.lab.lab.vms.by_id[701].config.get("tags", "") == ""


async def test_what_telar_left_behind_is_removed_when_an_administrator_says_so(
    service: Service, admin: str, eventually: Eventually
) -> None:
    user = await service.new_user()
    like = await service.vm(user, start=False)
    stray(service, 702, like, tags="telar", description=f"telar-vm {ABSENT}")
    drift = await found(service, admin, eventually, 702)
    await resolve(service, admin, drift, "fix")
    await eventually(lambda: 702 not in service.lab.lab.vms.by_id)
    stray(service, 703, like, tags="telar", description=f"telar-vm {like['id']}")
    drift = await found(service, admin, eventually, 703)
    assert await refused(service, admin, drift, "fix") == "drift-unresolvable"
    assert 703 in service.lab.lab.vms.by_id
    stray(service, 705, like, tags="telar")
    await found(service, admin, eventually, 705)
    first = (await service.call("GET", "/api/v1/drift?limit=1", admin, role="ADMIN")).json()
    path = f"/api/v1/drift?limit=1&cursor={first['next_cursor']}"
    rest = (await service.call("GET", path, admin, role="ADMIN")).json()
    assert ([one["vmid"] for one in (*first["items"], *rest["items"])], rest["next_cursor"]) == ([703, 705], None)
    service.lab.lab.vms.remove(service.lab.lab.vms.by_id[705])
    service.lab.lab.vms.remove(service.lab.lab.vms.by_id[703])


async def test_strangers_and_machines_at_work_are_no_drift(service: Service, admin: str) -> None:
    user = await service.new_user()
    like = await service.vm(user, start=False)
    stray(service, 704, like, tags="somebody")
    begun = await service.begin(user, name="young")
    await service.ended(begun["id"], user)
    rounds = service.lab.lab.calls["GET /cluster/resources"]
    while service.lab.lab.calls["GET /cluster/resources"] < rounds + 8:
        assert await drift_of(service, admin, 704) is None
        assert await drift_of(service, admin, begun["vm"]["vmid"]) is None


async def test_an_empty_or_suddenly_shrunken_list_reports_and_marks_nothing(service: Service, admin: str) -> None:
    user = await service.new_user()
    vms = [await service.vm(user, start=False) for _ in range(4)]
    machines = [service.machine(vm) for vm in vms]

    async def rounds(count: int) -> None:
        before = service.lab.lab.calls["GET /cluster/resources"]
        while service.lab.lab.calls["GET /cluster/resources"] < before + count:
            for vm in vms:
                assert await drift_of(service, admin, vm["vmid"]) is None

    async with service.fault("empty_inventory"):
        await rounds(7)
    every = dict(service.lab.lab.vms.by_id)
    for vmid in [vmid for vmid in every if vmid >= service.settings.vmid_first]:
        del service.lab.lab.vms.by_id[vmid]
    try:
        await rounds(7)
    finally:
        service.lab.lab.vms.by_id.update(every)
    for vm, machine in zip(vms, machines, strict=True):
        assert (await service.shown(vm["id"], user))["state"] == "stopped"
        assert service.machine(vm) is machine
    assert service.used(user)["vms"] == 4


async def test_a_machine_that_moved_is_followed(service: Service, eventually: Eventually) -> None:
    user = await service.new_user()
    vm = await service.vm(user)
    machine = service.machine(vm)
    target = "sv5" if machine.node != "sv5" else "sv4"
    machine.node = target
    service.lab.lab.vms.save(machine)

    async def moved() -> bool:
        return bool((await service.shown(vm["id"], user))["node"] != vm["node"])

    await eventually(moved)
    assert (await service.shown(vm["id"], user))["node"] == target


async def test_addresses_are_remembered_while_the_cluster_is_silent(service: Service, eventually: Eventually) -> None:
    user = await service.new_user()
    vm = await service.vm(user)

    async def addressed() -> bool:
        listed = (await service.call("GET", "/api/v1/vms", user)).json()["items"]
        return bool(listed[0]["addresses"])

    await eventually(addressed)
    known = (await service.shown(vm["id"], user))["addresses"]
    assert known
    async with service.fault("error", path="/agent/"):
        assert (await service.shown(vm["id"], user))["addresses"] == known


async def test_drift_is_an_administrators_business(service: Service, admin: str) -> None:
    user = await service.new_user()
    assert (await service.call("GET", "/api/v1/drift", user)).status_code == 403
    path = f"/api/v1/drift/{ABSENT}/resolve"
    assert (await service.call("POST", path, user, json={"action": "adopt"})).status_code == 403
    gone = await service.call("POST", path, admin, role="ADMIN", json={"action": "adopt"})
    assert (gone.status_code, gone.json()["type"]) == (404, "/problems/drift-not-found")
    for wrong in ({}, {"action": "destroy"}, {"action": "fix", "owner": "x"}, {"action": "adopt", "vmid": 1}):
        assert (await service.call("POST", path, admin, role="ADMIN", json=wrong)).status_code == 422
