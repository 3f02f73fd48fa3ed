"""The poller of a cluster's tasks, by a list that is told to it."""

import asyncio
from collections.abc import Mapping, Sequence
from typing import Any

from services.vms.adapters.proxmox.tasks import TaskWatch

UPID = "UPID:sv1:00001000:00002000:65000000:qmclone:100:telar@pve!telar:"


class Cluster:
    """Lists what it is told to, round after round, and counts who asks for a task itself."""

    def __init__(self, *rounds: Sequence[Mapping[str, Any]]) -> None:
        self.rounds = list(rounds)
        self.listed = 0
        self.asked_after: list[int] = []

    async def list(self) -> Sequence[Mapping[str, Any]]:
        self.listed += 1
        return self.rounds.pop(0) if self.rounds else []

    async def read(self, upid: str) -> Mapping[str, Any]:
        assert upid == UPID
        self.asked_after.append(self.listed)
        return {"status": "stopped", "exitstatus": "OK"}

    async def online(self, _node: str) -> bool:
        return True


async def awaited(cluster: Cluster) -> str:
    watch = TaskWatch(cluster.list, cluster.read, cluster.online, poll_s=0.01)
    try:
        return await asyncio.wait_for(watch.wait(UPID), 15)
    finally:
        await watch.close()


async def test_a_task_that_was_at_work_and_is_listed_no_more_is_asked_for_at_once() -> None:
    cluster = Cluster([{"upid": UPID}], [])
    assert await awaited(cluster) == "OK"
    assert cluster.asked_after == [2]


async def test_a_task_that_was_never_listed_is_given_a_while_to_show() -> None:
    cluster = Cluster([], [])
    assert await awaited(cluster) == "OK"
    assert cluster.asked_after == [4]


async def test_a_task_that_the_list_shows_at_its_end_is_not_asked_for() -> None:
    cluster = Cluster([], [{"upid": UPID}], [{"upid": UPID, "endtime": 1, "status": "job errors"}])
    assert await awaited(cluster) == "job errors"
    assert cluster.asked_after == []
