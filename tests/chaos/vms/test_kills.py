"""The service is killed a hundred times, at every write of every saga: all must end, with nothing left behind."""

import os
import sys
import time
from dataclasses import dataclass
from typing import Any

import pytest

from libs.common.testing.serving import user_event
from libs.pvesim.app import RunningLab
from services.vms.main import migrate
from tests.contract.vms.harness import PLENTY, Service, cluster_of, running, settings
from tests.integration.vms.killing import free_leases, killed

RUNS = int(os.environ.get("TELAR_CHAOS_KILLS", "100"))
ENDED_WITHIN_S = 60.0
WISH = {
    "name": "web",
    "os_type": "debian",
    "cores": 1,
    "memory_mib": 512,
    "disk_gib": 7,
    "ha": True,
    "user_data": "#cloud-config\n",
}
# Changes of the cluster by one creation with all it may have: clone, upload, configure, resize, start, HA, its rule.
WRITES, TASKS = 7, {1, 2, 4, 5}
# By its removal: HA and its rule, stop, destroy, the seed.
REMOVALS, REMOVAL_TASKS = 5, {3, 4, 5}
MOMENTS = ("before", "after", "waiting")


@dataclass(frozen=True, slots=True)
class Kill:
    """What was going on, and at which change of the cluster it was killed."""

    write: int
    moment: str
    deleting: bool


def plan() -> list[Kill]:
    """Every write and moment of creation and removal, again and again."""
    every = [
        Kill(write, moment, deleting=deleting)
        for deleting, writes, tasks in ((False, WRITES, TASKS), (True, REMOVALS, REMOVAL_TASKS))
        for write in range(1, writes + 1)
        for moment in MOMENTS
        if moment != "waiting" or write in tasks
    ]
    return [every[number % len(every)] for number in range(RUNS)]


@pytest.mark.timeout(3600)
async def test_killed_at_every_step_all_end_within_a_minute_and_nothing_is_orphaned(
    database_url: str, lab: RunningLab
) -> None:
    await migrate(settings(database_url, None))
    slowest, died, states = 0.0, 0, {"succeeded": 0, "failed": 0}
    for number, kill in enumerate(plan()):
        user = f"user-of-run-{number}"
        given = {"database_url": database_url, "cluster": cluster_of(lab), "user": user}
        given |= {"write": kill.write, "moment": kill.moment}
        if kill.deleting:
            async with running(database_url, lab) as service:
                await service.bus.publish(_known(user))
                vm = await service.vm(user, **{name: value for name, value in WISH.items() if name != "name"})
            died += await killed(given | {"vm_id": vm["id"]})
        else:
            died += await killed(given | {"wish": WISH})
        async with running(database_url, lab) as service:
            await free_leases(service)
            began = time.monotonic()
            rows = service.rows("SELECT id, kind FROM operations WHERE owner_id = %s ORDER BY id", user)
            ended = [await service.ended(row[0], user, deadline_s=ENDED_WITHIN_S) for row in rows]
            slowest = max(slowest, time.monotonic() - began)
            states[ended[-1]["state"]] += 1
            await nothing_but(service, user, deleting=kill.deleting)
    sys.stdout.write(
        f"{RUNS} runs, {died} killed at their moment; {states}; slowest end {slowest:.1f} s after the restart\n"
    )
    assert states["failed"] == 0


def _known(user: str) -> Any:
    return user_event(user, **PLENTY)


async def nothing_but(service: Service, user: str, *, deleting: bool) -> None:
    """The cluster has the user's machine and no other, or nothing at all; then the machine is removed."""
    listed = (await service.call("GET", "/api/v1/vms", user)).json()["items"]
    assert len(listed) == (0 if deleting else 1)
    assert sorted(service.machines()) == sorted(vm["vmid"] for vm in listed)
    for vm in listed:
        assert service.machine(vm).running
        assert {volume.rpartition("/")[2] for volume in service.volumes()} <= {
            f"vm-{vm['vmid']}-disk-0.qcow2",
            f"vm-{vm['vmid']}-cloudinit.qcow2",  # the drive whose place the seed has taken; it goes with the machine
        }
        await service.done("DELETE", f"/api/v1/vms/{vm['id']}", user)
    assert (service.machines(), service.volumes()) == ({}, [])
    seeds = [volume.volid for volume in service.lab.lab.storages if "telar-seed-" in volume.volid]
    assert seeds == []
    assert (service.lab.lab.ha.resources, service.lab.lab.ha.rules) == ({}, {})
    assert service.used(user) == {}
    assert service.rows("SELECT 1 FROM vmid_leases") == []
