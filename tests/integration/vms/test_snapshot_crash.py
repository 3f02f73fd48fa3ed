from typing import Any

import pytest

from libs.pvesim.app import RunningLab
from tests.contract.vms.harness import cluster_of, running
from tests.integration.vms.killing import free_leases, killed


@pytest.mark.parametrize(
    ("method", "path", "body", "moment", "left"),
    [
        ("POST", "snapshots", {"name": "second"}, "after", ["first", "second"]),
        ("POST", "snapshots/first/rollback", None, "waiting", ["first"]),
        ("DELETE", "snapshots/first", None, "after", []),
    ],
    ids=["take", "rollback", "delete"],
)
async def test_snapshot_work_that_is_killed_goes_on_with_the_task_it_began(
    database_url: str, lab: RunningLab, method: str, path: str, body: Any, moment: str, left: list[str]
) -> None:
    async with running(database_url, lab) as service:
        user = await service.new_user()
        vm = await service.vm(user, start=False)
        base = f"/api/v1/vms/{vm['id']}"
        await service.done("POST", f"{base}/snapshots", user, json={"name": "first"})
    assert await killed(
        {
            "database_url": database_url,
            "cluster": cluster_of(lab),
            "user": user,
            "write": 1,
            "moment": moment,
            "ask": [method, f"{base}/{path}", body],
        }
    )
    begun: list[str] = []
    lab.lab.tasks.on_start.append(lambda task: begun.append(task.upid))
    async with running(database_url, lab) as service:
        await free_leases(service)
        operation = service.rows("SELECT id FROM operations WHERE owner_id = %s ORDER BY created_at DESC", user)[0][0]
        assert (await service.ended(operation, user))["state"] == "succeeded"
        shown = (await service.call("GET", f"{base}/snapshots", user)).json()
        assert [one["name"] for one in shown["items"]] == left
        assert begun == []
