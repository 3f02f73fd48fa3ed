"""Two hundred creations at once: beside a stranger who takes VMIDs, and while a fifth of all calls fail."""

import asyncio
import os
import random
import sys
from collections import Counter
from typing import Any

import pytest

from libs.pvesim.faults import Fault, Faults
from tests.contract.vms.harness import FINAL, Service

COUNT = int(os.environ.get("TELAR_CHAOS_CREATES", "200"))
STRANGERS_EVERY_S = 0.2
WISH: dict[str, Any] = {"cores": 1, "memory_mib": 512, "disk_gib": 4}
FAILED_SHARE = 0.2
CHANCE = random.Random(7)  # noqa: S311 - it chooses what breaks
KINDS = ("gateway_timeout", "lock_timeout", "html", "error")
TASKS_SHARE = 0.05


async def stranger(service: Service, ended: asyncio.Event) -> int:
    """Somebody else makes machines with VMIDs that Telar is about to use, until told to stop."""
    lab, taken = service.lab.lab, 0
    template = lab.vms.by_id[9001]
    size = service.settings.vmid_last - service.settings.vmid_first + 1
    while not ended.is_set():
        turn = int(service.rows("SELECT last_value FROM vmid_turns")[0][0])
        vmid = service.settings.vmid_first + (turn + CHANCE.randrange(1, 40)) % size
        if vmid not in lab.vms.by_id:
            node = CHANCE.choice(list(lab.nodes)).name
            lab.vms.add(type(template)(vmid, node, {"name": "stranger", "memory": "16"}, created=lab.clock.now()))
            taken += 1
        await asyncio.sleep(STRANGERS_EVERY_S)
    return taken


async def created(service: Service, user: str, number: int) -> dict[str, Any]:
    """Ask for a machine, again when the service says that it is busy, and wait for the end."""
    body = {"name": f"vm-{number}", "os_type": "debian-13", **WISH}
    key = {"idempotency-key": f"{user}-{number}"}
    while True:
        answer = await service.call("POST", "/api/v1/vms", user, json=body, headers=key)
        if answer.status_code != 503:
            break
        await asyncio.sleep(1)
    assert answer.status_code == 202, answer.text
    begun = answer.json()
    while True:
        shown = await service.call("GET", f"/api/v1/operations/{begun['id']}", user)
        if shown.status_code == 200 and shown.json()["state"] in FINAL:
            return dict(shown.json()) | {"vm_id": begun["vm"]["id"]}
        await asyncio.sleep(3)


@pytest.mark.timeout(1200)
async def test_no_vmid_is_given_twice_beside_a_stranger_who_takes_them(service: Service) -> None:
    user, over = await service.new_user(), asyncio.Event()
    racing = asyncio.create_task(stranger(service, over))
    ended = await asyncio.gather(*(created(service, user, number) for number in range(COUNT)))
    over.set()
    taken = await racing
    states = Counter(one["state"] for one in ended)
    shown = [await service.shown(one["vm_id"], user) for one in ended if one["state"] == "succeeded"]
    vmids = [vm["vmid"] for vm in shown]
    strangers = {vmid for vmid, vm in service.machines().items() if vm.config.get("name") == "stranger"}
    collisions = service.rows("SELECT count(*) FROM vmid_leases WHERE state = 'foreign'")[0][0]
    told = f"{dict(states)}; {taken} VMIDs taken by the stranger, {collisions} collisions"
    sys.stdout.write(f"{COUNT} creations: {told}\n")
    assert states["succeeded"] >= 0.99 * COUNT
    assert len(set(vmids)) == len(vmids)
    assert not strangers & set(vmids)
    assert set(service.machines()) == strangers | set(vmids)
    assert all(service.lab.lab.vms.by_id[vmid].config["name"] == "stranger" for vmid in strangers)


class Weather(Faults):
    """Breaks a fifth of all calls on machines, in every way there is, and one task in twenty."""

    def __init__(self) -> None:
        self._faults = {}
        self._doom: str | None = None
        self.calls, self.struck, self.tasks_failed = 0, 0, 0

    def call(self, kind: str, *, method: str, path: str) -> Fault | None:  # noqa: ARG002 - the lab's own signature
        """The lab asks for each kind in turn, `slow_call` first: that is when a call is counted, and perhaps doomed."""
        if "/qemu" not in path:
            return None
        if kind == "slow_call":
            self.calls += 1
            self._doom = CHANCE.choice(KINDS) if CHANCE.random() < FAILED_SHARE else None
        if kind != self._doom:
            return None
        self._doom = None
        self.struck += 1
        how: dict[str, Any] = {"applied": CHANCE.random() < 0.5} if kind == "gateway_timeout" else {}
        if kind == "error":
            how = {"status": 595, "message": "No route to host"}
        return Fault(kind=kind, **how)  # type: ignore[arg-type] # checked by the model

    def task_step(self, task_type: str, node: str, task_id: str, step: int) -> str | None:
        if task_type not in ("qmclone", "resize", "qmstart") or step != 1 or CHANCE.random() >= TASKS_SHARE:
            return None
        self.tasks_failed += 1
        return f"injected into {task_type} {task_id} on {node}"


@pytest.mark.timeout(1200)
async def test_with_a_fifth_of_all_calls_failing_nearly_all_end_well_and_none_falsely(service: Service) -> None:
    user = await service.new_user()
    lab, weather = service.lab.lab, Weather()
    calm, lab.faults, lab.tasks.faults = lab.faults, weather, weather
    ended = await asyncio.gather(*(created(service, user, number) for number in range(COUNT)))
    lab.faults = lab.tasks.faults = calm
    states = Counter(one["state"] for one in ended)
    told = f"{dict(states)}; {weather.struck} of {weather.calls} calls and {weather.tasks_failed} tasks failed"
    sys.stdout.write(f"{COUNT} creations: {told}\n")
    vmids = []
    for one in ended:
        shown = await service.shown(one["vm_id"], user)
        if one["state"] == "succeeded":
            machine = service.machine(shown)
            assert machine.running
            assert machine.disk_bytes == WISH["disk_gib"] * 1024**3
            assert int(machine.config["cores"]) == WISH["cores"]
            vmids.append(shown["vmid"])
        else:
            assert (shown["state"], shown["vmid"]) == ("error", None)
    assert states["succeeded"] >= 0.99 * COUNT
    assert len(set(vmids)) == len(vmids)
    leftovers = {row[0] for row in service.rows("SELECT vmid FROM vmid_leases WHERE state = 'leftover'")}
    assert set(service.machines()) - set(vmids) <= leftovers  # known, and removed by the sweep
