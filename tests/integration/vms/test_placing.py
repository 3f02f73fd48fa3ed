"""Machines that wait to be placed at the same time, on a real database and a cluster of one node."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any, cast

import pytest
from sqlalchemy import event

from libs.common.clock import SystemClock
from libs.common.db import Database
from libs.common.ids import uuid7
from libs.common.uow import UnitOfWorkFactory
from services.vms.domain.cluster import Inventory, Node, Storage, Template
from services.vms.domain.placement import Demand, Policy, Verdict
from services.vms.errors import ProxmoxUnavailable, VmNotFound
from services.vms.main import migrate
from services.vms.models import Vm
from services.vms.operations.placing import Case, Placer
from services.vms.ports import Cluster
from services.vms.service import Catalog, Fleet
from tests.contract.vms.harness import settings

Eventually = Callable[..., Awaitable[None]]
SIZE = 1024
NODE = Node("sv1", online=True, cores=64, memory_mib=2 * SIZE)
LOCAL = Storage("local", "sv1", shared=False, available=True, free_gib=1000)
KNOWN = Inventory({"sv1": NODE}, {}, {("sv1", "local"): LOCAL})
TEMPLATE = Template(9000, "sv1", "debian", "debian", 1, 512, 3, frozenset({"local"}), shared=False, cloud_init=True)


class OneNode:
    """A cluster of one node, which has room for two machines; it may keep who looks at it waiting, or be away."""

    name = "lab"

    def __init__(self) -> None:
        self.looks = 0
        self.known = KNOWN
        self.open = asyncio.Event()
        self.open.set()

    def trouble(self, node: str) -> str | None:
        assert node == "sv1"

    async def inventory(self, *, max_age_s: float) -> Inventory:
        assert max_age_s > 0
        self.looks += 1
        await self.open.wait()
        return self.known


@pytest.fixture
async def database(new_database_url: str) -> AsyncIterator[Database]:
    await migrate(settings(new_database_url, None))
    database = Database(new_database_url, pool_size=2)
    yield database
    await database.close()


@pytest.fixture
def uow(database: Database) -> UnitOfWorkFactory:
    return UnitOfWorkFactory(database, source="/telar/vms")


@pytest.fixture
def placer(uow: UnitOfWorkFactory) -> Placer:
    return Placer(uow, Catalog(uow, Fleet([]), Policy(memory_reserve_mib=0)))


def machine() -> Vm:
    now = SystemClock().now()
    sizes = {"cores": 1, "memory_mib": SIZE, "disk_gib": 4}
    named = {"owner_id": "ada", "name": "web", "os_type": "debian", "template": "debian", "cluster": "lab"}
    return Vm(id=uuid7(), state="creating", reserved={}, created_at=now, updated_at=now, state_at=now, **sizes, **named)


async def recorded(uow: UnitOfWorkFactory, count: int) -> list[Vm]:
    async with uow() as unit:
        vms = [machine() for _ in range(count)]
        unit.session.add_all(vms)
        await unit.commit()
    return vms


def place(placer: Placer, cluster: OneNode, vm: Vm) -> "asyncio.Task[Any]":
    case = Case(vm, Demand(vm.cores, vm.memory_mib, vm.disk_gib), [TEMPLATE], {}, frozenset())
    return asyncio.create_task(cast("Any", placer.place(cast("Cluster", cluster), case)))


async def nodes(uow: UnitOfWorkFactory, vms: list[Vm]) -> list[str | None]:
    async with uow.looking() as session:
        found = [await session.get(Vm, vm.id) for vm in vms]
    return [None if vm is None else vm.node for vm in found]


async def test_those_that_wait_are_decided_in_one_transaction_and_each_counts_for_the_next(
    database: Database, uow: UnitOfWorkFactory, placer: Placer
) -> None:
    vms, cluster, locks = await recorded(uow, 12), OneNode(), 0

    def count(_connection: Any, _cursor: Any, statement: str, *_rest: Any) -> None:
        nonlocal locks
        locks += "pg_advisory_xact_lock" in statement

    event.listen(database.engine.sync_engine, "before_cursor_execute", count)
    judged: list[list[Verdict]] = await asyncio.gather(*(place(placer, cluster, vm) for vm in vms))
    assert [verdicts[0].fits for verdicts in judged] == [True, True, *[False] * 10]
    assert "0 MiB can still be promised" in judged[-1][0].reasons[0]
    assert await nodes(uow, vms) == ["sv1", "sv1", *[None] * 10]
    assert locks == 2  # the first had nobody to wait for


async def test_a_machine_placed_again_does_not_count_against_itself(uow: UnitOfWorkFactory, placer: Placer) -> None:
    vms, cluster = await recorded(uow, 2), OneNode()
    for _ in range(2):
        for vm in vms:
            assert (await place(placer, cluster, vm))[0].fits


async def test_a_failure_is_everyones_who_waits_and_the_next_is_tried_anew(
    uow: UnitOfWorkFactory, placer: Placer, eventually: Eventually
) -> None:
    vms, cluster = await recorded(uow, 4), OneNode()
    cluster.known = Inventory()
    cluster.open.clear()
    waiting = [place(placer, cluster, vm) for vm in vms[:3]]
    await eventually(lambda: cluster.looks == 1)
    cluster.open.set()
    told = await asyncio.gather(*waiting, return_exceptions=True)
    assert [type(one) for one in told] == [ProxmoxUnavailable] * 3
    assert cluster.looks == 2
    cluster.known = KNOWN
    assert (await place(placer, cluster, vms[3]))[0].fits


async def test_one_that_is_cancelled_while_it_decides_leaves_the_others_to_the_next(
    uow: UnitOfWorkFactory, placer: Placer, eventually: Eventually
) -> None:
    vms, cluster = await recorded(uow, 3), OneNode()
    cluster.open.clear()
    first, second, third = (place(placer, cluster, vm) for vm in vms)
    await eventually(lambda: cluster.looks == 1)
    first.cancel()
    await eventually(lambda: cluster.looks == 2)
    cluster.open.set()
    assert (await second)[0].fits
    assert (await third)[0].fits
    assert first.cancelled()
    assert await nodes(uow, vms) == [None, "sv1", "sv1"]


async def test_a_machine_without_a_record_is_placed_nowhere(uow: UnitOfWorkFactory, placer: Placer) -> None:
    gone, (there,) = machine(), await recorded(uow, 1)
    cluster = OneNode()
    told = await asyncio.gather(place(placer, cluster, gone), place(placer, cluster, there), return_exceptions=True)
    assert isinstance(told[0], VmNotFound)
    assert told[1][0].fits
