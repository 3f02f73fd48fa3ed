import asyncio
import contextlib
from collections.abc import Awaitable, Callable

import psycopg
import pytest

from tests.contract.vms.harness import KEY, Service

Eventually = Callable[..., Awaitable[None]]


async def test_a_machine_is_made_from_a_template_and_runs(service: Service, eventually: Eventually) -> None:
    user = await service.new_user()
    begun = await service.begin(
        user, name="My web", os_type="Debian", cores=2, memory_mib=1024, disk_gib=8, ssh_public_key=KEY, user="ada"
    )
    assert begun["vm"]["state"] == begun["vm"]["status"] == "creating"
    assert begun["kind"] == "vm.create"
    assert (await service.ended(begun["id"], user))["state"] == "succeeded"

    shown = await service.shown(begun["vm"]["id"], user)
    assert (shown["state"], shown["status"], shown["cores"], shown["disk_gib"]) == ("running", "enabled", 2, 8)
    assert shown["live"]["status"] == "running"
    machine = service.machine(shown)
    assert (machine.node, machine.running, machine.name) == (shown["node"], True, "My-web")
    assert machine.config["description"] == f"telar-vm {shown['id']}"
    assert "telar" in machine.config["tags"].split(";")
    assert (int(machine.config["cores"]), machine.memory_mib, machine.disk_bytes) == (2, 1024, 8 * 1024**3)
    assert machine.config["ciuser"] == "ada"
    assert service.used(user) == {"vms": 1, "cores": 2, "memory_mib": 1024, "disk_gib": 8}

    async def addressed() -> bool:
        return bool((await service.shown(shown["id"], user))["addresses"])

    await eventually(addressed)
    told = ["vms.vm.created.v1", "vms.vm.state_changed.v1"]
    await eventually(lambda: [event.type for event in service.events(shown["id"])] == told)


async def test_a_machine_gets_what_its_template_has_when_nothing_is_said(service: Service) -> None:
    user = await service.new_user()
    vm = await service.vm(user, cores=None, memory_mib=None, disk_gib=None, start=False)
    assert (vm["cores"], vm["memory_mib"], vm["disk_gib"], vm["state"]) == (2, 2048, 3, "stopped")
    assert not service.machine(vm).running


async def test_a_password_reaches_the_guest_and_nothing_else(service: Service) -> None:
    user = await service.new_user()
    vm = await service.vm(user, user="ada", password="canary-password")
    assert "canary" not in str(vm)
    assert service.machine(vm).config["cipassword"].startswith("$5$")
    assert service.rows("SELECT sealed_password FROM vms WHERE id = %s", vm["id"]) == [(None,)]
    stored = service.rows("SELECT o::text FROM operations o") + service.rows("SELECT o::text FROM outbox o")
    assert "canary" not in str(stored)


async def test_sizes_grow_and_a_restart_brings_them_into_force(service: Service) -> None:
    user = await service.new_user(cores=4, disk_gib=20)
    vm = await service.vm(user)
    url = f"/api/v1/vms/{vm['id']}"
    await service.done("PATCH", url, user, json={"cores": 2, "memory_mib": 1024, "disk_gib": 10, "name": "bigger"})
    shown = await service.shown(vm["id"], user)
    assert (shown["cores"], shown["memory_mib"], shown["disk_gib"], shown["name"]) == (2, 1024, 10, "bigger")
    assert shown["restart_needed"]
    assert service.machine(vm).disk_bytes == 10 * 1024**3
    assert service.machine(vm).memory_mib == 512
    await service.done("PATCH", url, user, json={"restart": True})
    shown = await service.shown(vm["id"], user)
    assert (shown["restart_needed"], shown["state"], service.machine(vm).memory_mib) == (False, "running", 1024)
    assert service.used(user) == {"vms": 1, "cores": 2, "memory_mib": 1024, "disk_gib": 10}

    shrinking = await service.call("PATCH", url, user, json={"disk_gib": 9})
    assert (shrinking.status_code, shrinking.json()["type"]) == (409, "/problems/disk-only-grows")
    greedy = await service.call("PATCH", url, user, json={"cores": 5})
    assert (greedy.status_code, greedy.json()["type"]) == (409, "/problems/quota-exceeded")
    same = await service.call("PATCH", url, user, json={"cores": 2})
    assert (same.status_code, same.json()["cores"]) == (200, 2)
    await service.done("PATCH", url, user, json={"cores": 1, "restart": True})
    assert service.used(user)["cores"] == 1


async def test_a_change_that_fails_gives_back_what_it_had_reserved(service: Service) -> None:
    user = await service.new_user()
    vm = await service.vm(user)
    async with service.fault("error", method="PUT", path=f"/{vm['vmid']}/config", message="nothing doing"):
        answer = await service.call(
            "PATCH", f"/api/v1/vms/{vm['id']}", user, json={"cores": 3, "memory_mib": 4096, "disk_gib": 12}
        )
        ended = await service.ended(answer.json()["id"], user)
    assert (ended["state"], ended["error"]["type"]) == ("failed", "/problems/proxmox-refused")
    assert "nothing doing" not in str(ended)
    assert service.used(user) == {"vms": 1, "cores": 1, "memory_mib": 512, "disk_gib": 12}  # a disk cannot shrink again
    assert (await service.shown(vm["id"], user))["disk_gib"] == 12


async def test_power_actions_do_what_they_say_and_doing_one_twice_is_no_failure(
    service: Service, eventually: Eventually
) -> None:
    user = await service.new_user()
    vm = await service.vm(user)
    machine = service.machine(vm)

    async def boots() -> bool:
        return bool((await service.shown(vm["id"], user))["addresses"])

    await eventually(boots)
    for action, state, status in (
        ("pause", "paused", "paused"),
        ("resume", "running", "enabled"),
        ("reboot", "running", "enabled"),
        ("stop", "stopped", "disabled"),
        ("stop", "stopped", "disabled"),
        ("start", "running", "enabled"),
        ("start", "running", "enabled"),
    ):
        await service.done("POST", f"/api/v1/vms/{vm['id']}/{action}", user)
        shown = await service.shown(vm["id"], user)
        assert (shown["state"], shown["status"]) == (state, status), action
        assert machine.running == (state != "stopped"), action
    await eventually(boots)
    await service.done("POST", f"/api/v1/vms/{vm['id']}/shutdown", user)
    assert not machine.running
    refused = await service.call("POST", f"/api/v1/vms/{vm['id']}/pause", user)
    ended = await service.ended(refused.json()["id"], user)
    assert (ended["state"], ended["error"]["type"]) == ("failed", "/problems/vm-state")


async def test_a_guest_that_powers_itself_off_is_noticed(service: Service, eventually: Eventually) -> None:
    user = await service.new_user()
    vm = await service.vm(user)
    machine = service.machine(vm)
    machine.qmp, machine.started, machine.guest_up, machine.pid = "stopped", None, None, None
    service.lab.lab.vms.save(machine)

    async def noticed() -> bool:
        return bool((await service.shown(vm["id"], user))["state"] == "stopped")

    await eventually(noticed)

    def states() -> list[str]:
        return [event.data["state"] for event in service.events(vm["id"])]

    await eventually(lambda: states() == ["creating", "running", "stopped"])
    assert [event.sequence for event in service.events(vm["id"])] == sorted(
        {event.sequence for event in service.events(vm["id"])}
    )


async def test_an_empty_inventory_means_nothing(service: Service) -> None:
    user = await service.new_user()
    vm = await service.vm(user)
    async with service.fault("empty_inventory"):
        calls = service.lab.lab.calls["GET /cluster/resources"]
        while service.lab.lab.calls["GET /cluster/resources"] < calls + 3:
            await service.shown(vm["id"], user)
    assert (await service.shown(vm["id"], user))["state"] == "running"


async def test_deleting_leaves_nothing(service: Service, eventually: Eventually) -> None:
    user = await service.new_user()
    vm = await service.vm(user)
    await service.done("DELETE", f"/api/v1/vms/{vm['id']}", user)
    assert (await service.call("GET", f"/api/v1/vms/{vm['id']}", user)).status_code == 404
    assert vm["vmid"] not in service.lab.lab.vms.by_id
    assert service.lab.lab.storages.owned(vm["vmid"]) == []
    assert service.used(user) == {}
    assert service.rows("SELECT 1 FROM vmid_leases WHERE vmid = %s", vm["vmid"]) == []
    await eventually(lambda: service.events(vm["id"])[-1].type == "vms.vm.deleted.v1")
    usage = service.events(vm["id"])[-1].data["usage"]
    assert (usage["used"]["vms"], usage["used"]["disk_gib"]) == (0, 0)


async def test_deleting_a_machine_that_is_gone_already_succeeds(service: Service) -> None:
    user = await service.new_user()
    vm = await service.vm(user)
    service.lab.lab.vms.remove(service.machine(vm))
    await service.done("DELETE", f"/api/v1/vms/{vm['id']}", user)
    assert service.used(user) == {}


async def test_another_machine_under_the_same_vmid_is_neither_touched_nor_shown(
    service: Service, eventually: Eventually
) -> None:
    user = await service.new_user()
    vm = await service.vm(user)
    machine = service.machine(vm)
    machine.config["description"] = "telar-vm somebody-elses"
    service.lab.lab.vms.save(machine)
    stopped = await service.call("POST", f"/api/v1/vms/{vm['id']}/stop", user)
    ended = await service.ended(stopped.json()["id"], user)
    assert ended["error"]["type"] == "/problems/machine-not-ours"
    shown = await service.shown(vm["id"], user)
    assert (shown["state"], shown["live"], shown["pending"]) == ("running", None, [])
    await eventually(lambda: machine.guest_up is not None and machine.guest_up <= service.lab.lab.clock.now())
    await service.change("UPDATE vms SET addresses = '[]', addresses_at = NULL WHERE id = %s", vm["id"])
    asked = "SELECT addresses FROM vms WHERE addresses_at IS NOT NULL AND id = %s"
    await eventually(lambda: bool(service.rows(asked, vm["id"])))
    assert service.rows(asked, vm["id"]) == [([],)]
    assert (await service.shown(vm["id"], user))["addresses"] == []
    await service.done("DELETE", f"/api/v1/vms/{vm['id']}", user)
    assert machine.running
    assert service.rows("SELECT state FROM vmid_leases WHERE vmid = %s", vm["vmid"]) == [("foreign",)]


async def test_one_operation_at_a_time_works_on_a_machine(service: Service) -> None:
    user = await service.new_user()
    begun = await service.begin(user)
    url = f"/api/v1/vms/{begun['vm']['id']}"
    busy = await service.call("POST", f"{url}/stop", user)
    assert (busy.status_code, busy.json()["type"]) in ((409, "/problems/vm-busy"), (409, "/problems/vm-state"))
    deleting = await service.call("DELETE", url, user)
    assert deleting.status_code == 202
    assert (await service.call("DELETE", url, user)).status_code == 409
    assert (await service.ended(deleting.json()["id"], user))["state"] == "succeeded"
    assert (await service.call("GET", url, user)).status_code == 404
    assert service.used(user) == {}


async def test_a_deletion_that_is_cancelled_before_it_begins_leaves_the_machine_as_it_is(service: Service) -> None:
    user = await service.new_user()

    async def cancelled(url: str) -> None:
        deleting = (await service.call("DELETE", url, user)).json()
        assert deleting["vm"]["state"] == "deleting"
        ended = await service.call("DELETE", f"/api/v1/operations/{deleting['id']}", user)
        assert ended.json()["state"] == "cancelled", ended.text

    async with service.fault("slow_task", task_type="qmclone", factor=100):
        begun = await service.begin(user)
        url = f"/api/v1/vms/{begun['vm']['id']}"
        await cancelled(url)
        assert (await service.shown(begun["vm"]["id"], user))["state"] == "creating"
        assert (await service.ended(begun["id"], user))["state"] == "succeeded"
    assert (await service.shown(begun["vm"]["id"], user))["state"] == "running"
    async with service.fault("slow_task", task_type="qmreboot", factor=20):
        rebooting = (await service.call("POST", f"{url}/reboot", user)).json()
        await cancelled(url)
        assert (await service.shown(begun["vm"]["id"], user))["state"] == "running"
        assert (await service.ended(rebooting["id"], user))["state"] == "succeeded"


@pytest.mark.parametrize(("fault", "left"), [(None, "running"), ("QEMU exited with code 1", "error")])
async def test_a_deletion_that_is_cancelled_after_the_creations_end_leaves_what_was_made(
    service: Service, eventually: Eventually, fault: str | None, left: str
) -> None:
    user = await service.new_user()
    async with contextlib.AsyncExitStack() as faults:
        await faults.enter_async_context(service.fault("slow_task", task_type="qmclone", factor=50, count=1))
        if fault is not None:
            await faults.enter_async_context(service.fault("task_failure", task_type="qmstart", message=fault))
        begun = await service.begin(user)
        url = f"/api/v1/vms/{begun['vm']['id']}"
        deleting = (await service.call("DELETE", url, user)).json()["id"]
        await service.change("UPDATE operations SET run_at = now() + interval '1 hour' WHERE id = %s", deleting)
        await service.ended(begun["id"], user)
    assert (await service.shown(begun["vm"]["id"], user))["state"] == "deleting"
    ended = await service.call("DELETE", f"/api/v1/operations/{deleting}", user)
    assert ended.json()["state"] == "cancelled", ended.text

    async def seen() -> bool:
        return str((await service.shown(begun["vm"]["id"], user))["state"]) == left

    await eventually(seen)
    await service.done("DELETE", url, user)


async def test_a_cancelled_creation_leaves_nothing(service: Service, eventually: Eventually) -> None:
    user = await service.new_user()
    async with service.fault("slow_task", task_type="qmclone", factor=500):
        begun = await service.begin(user)
        vmid = begun["vm"]["vmid"]
        await eventually(lambda: vmid in service.lab.lab.vms.by_id)
        await service.call("DELETE", f"/api/v1/operations/{begun['id']}", user)
        assert (await service.ended(begun["id"], user))["state"] == "cancelled"
    assert vmid not in service.lab.lab.vms.by_id
    assert service.lab.lab.storages.owned(vmid) == []
    assert service.used(user) == {}
    assert (await service.call("GET", f"/api/v1/vms/{begun['vm']['id']}", user)).status_code == 404


async def test_what_is_refused_changes_nothing(service: Service) -> None:
    user = await service.new_user(vms=1, cores=2, memory_mib=2048, disk_gib=10)
    calls = {
        "template-not-found": {"name": "a", "os_type": "BeOS"},
        "disk-too-small": {"name": "a", "os_type": "centos", "disk_gib": 5},
        "quota-exceeded": {"name": "a", "os_type": "debian", "cores": 3},
        "invalid": {"name": "a", "os_type": "debian", "owner_id": "somebody"},
    }
    for slug, body in calls.items():
        answer = await service.call("POST", "/api/v1/vms", user, json=body)
        assert answer.json()["type"] == f"/problems/{slug}", answer.text
    for wrong in (
        {"vmid": 100},
        {"node": "../sv1"},
        {"cores": 0},
        {"template": "9001", "os_type": "debian"},
        {"ssh_public_key": "not a key"},
        {"ssh_public_key": "ssh-ed25519 AAAA ada"},
        {"ssh_public_key": KEY.replace("ssh-ed25519", "ssh-rsa")},
        {"ssh_public_key": KEY.replace("ID4/", "ID4")},
        {"name": "a\nb"},
        {"user": "a b"},
    ):
        answer = await service.call("POST", "/api/v1/vms", user, json={"name": "a", "os_type": "debian", **wrong})
        assert answer.status_code == 422, wrong
    assert service.used(user) == {}
    unknown = await service.call("POST", "/api/v1/vms", "nobody-ever-heard-of", json={"name": "a", "os_type": "debian"})
    assert unknown.status_code == 503


async def test_writes_are_guarded_by_etag_and_idempotency_key(service: Service) -> None:
    user = await service.new_user()
    body = {"name": "once", "os_type": "debian", "start": False}
    key = {"Idempotency-Key": "one-and-the-same"}
    first = await service.call("POST", "/api/v1/vms", user, json=body, headers=key)
    again = await service.call("POST", "/api/v1/vms", user, json=body, headers=key)
    assert first.json()["vm"]["id"] == again.json()["vm"]["id"]
    assert service.used(user)["vms"] == 1
    await service.ended(first.json()["id"], user)
    vm_id = first.json()["vm"]["id"]
    tag = (await service.call("GET", f"/api/v1/vms/{vm_id}", user)).headers["etag"]
    await service.done("PATCH", f"/api/v1/vms/{vm_id}", user, json={"name": "two"}, headers={"If-Match": tag})
    stale = await service.call("DELETE", f"/api/v1/vms/{vm_id}", user, headers={"If-Match": tag})
    assert stale.status_code == 412


async def test_templates_nodes_and_placements_are_shown(service: Service) -> None:
    user = await service.new_user()
    items = (await service.call("GET", "/api/v1/templates", user)).json()["items"]
    assert {item["os_type"]: item["vmids"] for item in items} == {
        "ubuntu-24.04": [9000], "debian-13": [9001], "centos-stream-10": [9002], "windows-2025": [9003],
    }  # fmt: skip
    assert (await service.call("GET", "/api/v1/nodes", user)).status_code == 403
    nodes = (await service.call("GET", "/api/v1/nodes", user, role="ADMIN")).json()["items"]
    assert [node["name"] for node in nodes] == ["sv1", "sv2", "sv3", "sv4", "sv5"]
    before = service.used(user)
    async with service.fault("node_down", node="sv4"):
        wish = {"os_type": "ubuntu", "cores": 20, "memory_mib": 1024}
        placed = (await service.call("POST", "/api/v1/placements", user, json=wish)).json()
    verdicts = {verdict["node"]: verdict for verdict in placed["verdicts"]}
    assert placed["node"] in ("sv1", "sv2", "sv3")
    assert verdicts["sv4"]["reasons"] == ["the node is offline"]
    assert verdicts["sv5"]["reasons"] == ["20 cores are wanted, the node has 16"]
    assert verdicts["sv1"]["fits"]
    assert set(verdicts["sv1"]["weights"]) == {"free_memory", "free_cores", "calm", "template_near"}
    assert service.used(user) == before


async def test_the_list_is_paged_and_narrowed(service: Service) -> None:
    user = await service.new_user()
    begun = [await service.begin(user, name=f"page-{number}", start=False) for number in range(3)]
    for one in begun:
        await service.ended(one["id"], user)
    first = await service.call("GET", "/api/v1/vms?limit=2&sort=name", user)
    assert [vm["name"] for vm in first.json()["items"]] == ["page-0", "page-1"]
    assert 'rel="next"' in first.headers["link"]
    rest = await service.call("GET", f"/api/v1/vms?limit=2&sort=name&cursor={first.json()['next_cursor']}", user)
    assert [vm["name"] for vm in rest.json()["items"]] == ["page-2"]
    found = await service.call("GET", "/api/v1/vms?name=PAGE-1&state=stopped", user)
    assert [vm["name"] for vm in found.json()["items"]] == ["page-1"]


async def test_what_needed_an_operator_ends_when_its_machine_is_gone(service: Service) -> None:
    user = await service.new_user()
    begun = await service.begin(user, start=False)
    await service.ended(begun["id"], user)
    undoing = "UPDATE operations SET state = 'needs_operator', direction = 'backward' WHERE id = %s"
    await service.change(undoing, begun["id"])
    await service.done("DELETE", f"/api/v1/vms/{begun['vm']['id']}", user)
    resumed = await service.call("POST", f"/api/v1/operations/{begun['id']}/resume", "an-administrator", role="ADMIN")
    assert resumed.status_code in (200, 202), resumed.text
    assert (await service.ended(begun["id"], user, deadline_s=10))["state"] == "cancelled"


async def test_a_machine_that_goes_while_a_change_waits_for_it_is_not_found(
    service: Service, eventually: Eventually
) -> None:
    user = await service.new_user()
    vm = await service.vm(user, start=False)
    async with await psycopg.AsyncConnection.connect(service.settings.database_url) as going:
        await going.execute("DELETE FROM vms WHERE id = %s", [vm["id"]])
        waiting = asyncio.create_task(service.call("POST", f"/api/v1/vms/{vm['id']}/start", user))
        blocked = "SELECT 1 FROM pg_stat_activity WHERE wait_event_type = 'Lock' AND query ILIKE '%%FROM vms%%'"
        await eventually(lambda: bool(service.rows(blocked)))
    assert (await waiting).status_code == 404
