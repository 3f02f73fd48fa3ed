from collections.abc import Awaitable, Callable
from typing import Any

from tests.contract.vms.harness import Service

Eventually = Callable[..., Awaitable[None]]


async def failed(service: Service, user: str, vm: dict[str, Any], action: str) -> dict[str, Any]:
    """The problem with which an action ends, at once or as its operation's."""
    answer = await service.call("POST", f"/api/v1/vms/{vm['id']}/{action}", user)
    if answer.status_code != 202:
        return dict(answer.json())
    ended = await service.ended(answer.json()["id"], user)
    assert ended["state"] == "failed", ended
    return dict(ended["error"])


async def act(service: Service, user: str, vm: dict[str, Any], action: str) -> dict[str, Any]:
    await service.done("POST", f"/api/v1/vms/{vm['id']}/{action}", user)
    return await service.shown(vm["id"], user)


async def test_a_suspended_machine_is_off_and_goes_on_where_it_was(service: Service) -> None:
    user = await service.new_user()
    vm = await service.vm(user)
    shown = await act(service, user, vm, "suspend")
    assert (shown["state"], shown["status"], shown["live"]["status"]) == ("suspended", "paused", "stopped")
    assert service.machine(vm).lock == "suspended"
    assert (await act(service, user, vm, "suspend"))["state"] == "suspended"
    for action in ("stop", "shutdown", "reboot", "pause"):
        assert "resume it" in (await failed(service, user, vm, action))["detail"], action
    patched = await service.call("PATCH", f"/api/v1/vms/{vm['id']}", user, json={"cores": 2})
    assert (patched.status_code, patched.json()["type"]) == (409, "/problems/vm-state")
    for waking in ("resume", "start"):
        assert (await act(service, user, vm, waking))["state"] == "running", waking
        assert service.machine(vm).lock is None
        await act(service, user, vm, "suspend")
    await service.done("DELETE", f"/api/v1/vms/{vm['id']}", user)
    assert service.lab.lab.storages.owned(vm["vmid"]) == []


async def test_snapshots_of_a_suspended_machine_are_shown(service: Service) -> None:
    user = await service.new_user()
    vm = await service.vm(user)
    path = f"/api/v1/vms/{vm['id']}"
    await service.done("POST", f"{path}/snapshots", user, json={"name": "one"})
    await service.done("POST", f"{path}/suspend", user)
    listed = await service.call("GET", f"{path}/snapshots", user)
    assert listed.json()["current"] == "one", listed.text
    assert (await service.call("POST", f"{path}/snapshots", user, json={"name": "two"})).status_code == 409


async def test_a_machine_that_is_being_made_has_nothing_to_measure(service: Service) -> None:
    user = await service.new_user()
    async with service.fault("slow_task", task_type="qmclone", factor=50):
        begun = await service.begin(user)
        for what in ("metrics", "snapshots"):
            answer = await service.call("GET", f"/api/v1/vms/{begun['vm']['id']}/{what}", user)
            assert (answer.status_code, answer.json()["type"]) == (409, "/problems/vm-state"), answer.text
    await service.ended(begun["id"], user)


async def test_a_machine_that_was_suspended_by_others_is_noticed(service: Service, eventually: Eventually) -> None:
    user = await service.new_user()
    vm = await service.vm(user)
    await act(service, user, vm, "suspend")
    await service.change("UPDATE vms SET state = 'stopped' WHERE id = %s", vm["id"])

    async def noticed() -> bool:
        return bool((await service.shown(vm["id"], user))["state"] != "stopped")

    await eventually(noticed)
    assert (await service.shown(vm["id"], user))["state"] == "suspended"


async def test_actions_in_the_wrong_state_say_what_to_do(service: Service) -> None:
    user = await service.new_user()
    vm = await service.vm(user, start=False)
    for action in ("reboot", "pause", "resume", "suspend"):
        problem = await failed(service, user, vm, action)
        assert problem["type"] == "/problems/vm-state", action
        assert "it is stopped" in problem["detail"], action
    for action in ("stop", "shutdown"):  # as wished already
        assert (await act(service, user, vm, action))["state"] == "stopped"
    await act(service, user, vm, "start")
    await act(service, user, vm, "pause")
    for action, hint in (("start", "resume it"), ("shutdown", "or stop it"), ("reboot", "resume it")):
        assert hint in (await failed(service, user, vm, action))["detail"], action
    assert (await act(service, user, vm, "stop"))["state"] == "stopped"


async def test_the_ha_manager_is_asked_for_its_machines_and_waited_for(service: Service) -> None:
    user = await service.new_user()
    vm = await service.vm(user)
    ha = service.lab.lab.ha
    ha.put(f"vm:{vm['vmid']}", state="started")
    begun: list[str] = []
    service.lab.lab.tasks.on_start.append(lambda task: begun.append(task.type))
    assert (await act(service, user, vm, "stop"))["state"] == "stopped"
    assert ha.resources[f"vm:{vm['vmid']}"]["state"] == "stopped"
    assert not service.machine(vm).running
    assert (await act(service, user, vm, "start"))["state"] == "running"
    assert ha.resources[f"vm:{vm['vmid']}"]["state"] == "started"
    assert service.machine(vm).running
    assert "paused" in (await act(service, user, vm, "pause"))["state"]
    await act(service, user, vm, "resume")
    assert "HA manager" in (await failed(service, user, vm, "suspend"))["detail"]
    assert (await act(service, user, vm, "shutdown"))["state"] == "stopped"
    await act(service, user, vm, "start")
    await service.done("PATCH", f"/api/v1/vms/{vm['id']}", user, json={"cores": 2, "restart": True})
    assert service.machine(vm).running
    assert {"hastop", "hastart"} <= set(begun)
    assert "qmsuspend" not in begun
    ha.remove(f"vm:{vm['vmid']}", purge=True)


async def test_sizes_wait_for_a_restart_and_show_as_pending(service: Service) -> None:
    user = await service.new_user()
    vm = await service.vm(user)
    url = f"/api/v1/vms/{vm['id']}"
    assert (await service.shown(vm["id"], user))["pending"] == []
    await service.done("PATCH", url, user, json={"cores": 3, "memory_mib": 2048, "name": "hot"})
    shown = await service.shown(vm["id"], user)
    assert (shown["restart_needed"], shown["name"]) == (True, "hot")
    assert {one["name"]: (one["now"], one["then"]) for one in shown["pending"]} == {
        "cores": (1, 3),
        "memory_mib": (512, 2048),
    }
    assert service.machine(vm).name == "hot"  # what is no size is there at once
    await act(service, user, vm, "reboot")
    shown = await service.shown(vm["id"], user)
    assert (shown["restart_needed"], shown["pending"], service.machine(vm).memory_mib) == (False, [], 2048)


async def test_a_reboot_ends_when_the_machine_runs_again(service: Service) -> None:
    user = await service.new_user()
    vm = await service.vm(user)
    pid = service.machine(vm).pid
    assert (await act(service, user, vm, "reboot"))["state"] == "running"
    assert service.machine(vm).pid != pid
