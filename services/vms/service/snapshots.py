"""What users do with snapshots: what can be told at once is told at once, the rest is an operation's."""

from collections.abc import Mapping

from sqlalchemy import select

from libs.common import quotas
from libs.common.auth import Principal
from libs.common.operations import Operation, operations_table
from libs.common.operations import State as OperationState
from libs.common.uow import UnitOfWork, UnitOfWorkFactory
from services.vms.domain.snapshots import (
    SnapshotState,
    SnapshotTree,
    require_memory,
    require_takeable,
    safe_snapshot,
)
from services.vms.domain.states import State, require_changeable
from services.vms.errors import SnapshotsImpossible
from services.vms.models import Vm
from services.vms.schemas import TakeSnapshot
from services.vms.service.access import Reference, begin, changeable, visible
from services.vms.service.fleet import Fleet
from services.vms.service.locating import Found, locate
from services.vms.service.records import sizes

TAKE, ROLL_BACK, DELETE = "vm.snapshot", "vm.rollback", "vm.snapshot_delete"
_STATES: Mapping[str, SnapshotState] = {
    TAKE: SnapshotState.CREATING,
    ROLL_BACK: SnapshotState.ROLLING_BACK,
    DELETE: SnapshotState.DELETING,
}


class Snapshots:
    """Use cases of snapshots. The cluster keeps them; Telar keeps no second list that could differ."""

    def __init__(self, uow: UnitOfWorkFactory, fleet: Fleet, *, limit: int) -> None:
        self._uow = uow
        self._fleet = fleet
        self._limit = limit

    async def tree(self, principal: Principal, reference: Reference) -> SnapshotTree:
        """All of a machine's snapshots, with what is being done to them; raises VmNotFound or VmState."""
        async with self._uow() as uow:
            vm = await visible(uow, principal, reference)
            under_way = await _under_way(uow, vm)
        if State(vm.state) is not State.SUSPENDED:
            require_changeable(State(vm.state), "a snapshot")
        found = await locate(self._fleet, vm)
        tree = await found.cluster.snapshots.tree(found.node, found.vmid)
        for kind, name in under_way:
            tree = tree.with_state(name, _STATES[kind])
        return tree

    async def take(self, principal: Principal, reference: Reference, wish: TakeSnapshot) -> tuple[Vm, Operation]:
        """Begin to take a snapshot.

        Raises SnapshotTaken, SnapshotLimit, SnapshotsImpossible, VmState or VmBusy.
        """
        vm, found = await self._seen(principal, reference)
        if wish.include_memory:
            require_memory(State(vm.state))
        snapshots = found.cluster.snapshots
        require_takeable(await snapshots.tree(found.node, found.vmid), wish.name, limit=self._limit)
        if not await snapshots.possible(found.node, found.vmid):
            raise SnapshotsImpossible(_unable(found))
        given = {"name": wish.name, "description": wish.description, "memory": wish.include_memory}
        return await self._begin(principal, vm, TAKE, given)

    async def roll_back(
        self, principal: Principal, reference: Reference, name: str, *, start: bool | None
    ) -> tuple[Vm, Operation]:
        """Begin to go back to a snapshot, with what the machine had then reserved for.

        Raises SnapshotNotFound, QuotaExceeded, VmState or VmBusy.
        """
        vm, found = await self._seen(principal, reference)
        (await found.cluster.snapshots.tree(found.node, found.vmid)).require(safe_snapshot(name))
        then = await found.cluster.snapshots.config(found.node, found.vmid, name)
        async with self._uow() as uow:
            vm = await changeable(uow, principal, vm.id)
            require_changeable(State(vm.state), "a rollback")
            more = {key: count - getattr(vm, key) for key, count in then.sizes.items() if count > getattr(vm, key)}
            if more:
                await quotas.reserve(uow.session, vm.owner_id, more)
                vm.reserved = {key: vm.reserved.get(key, 0) + more.get(key, 0) for key in sizes(vm)}
            runs = vm.state == State.RUNNING if start is None else start
            operation = await begin(uow, ROLL_BACK, vm, {"name": name, "start": runs})
            await uow.commit()
        return vm, operation

    async def delete(self, principal: Principal, reference: Reference, name: str) -> tuple[Vm, Operation]:
        """Begin to delete a snapshot; raises SnapshotNotFound, VmState or VmBusy."""
        vm, found = await self._seen(principal, reference)
        (await found.cluster.snapshots.tree(found.node, found.vmid)).require(safe_snapshot(name))
        return await self._begin(principal, vm, DELETE, {"name": name})

    async def _seen(self, principal: Principal, reference: Reference) -> tuple[Vm, Found]:
        async with self._uow() as uow:
            vm = await visible(uow, principal, reference)
        return vm, await self._found(vm)

    async def _found(self, vm: Vm) -> Found:
        require_changeable(State(vm.state), "a snapshot")
        return await locate(self._fleet, vm)

    async def _begin(self, principal: Principal, vm: Vm, kind: str, given: dict[str, object]) -> tuple[Vm, Operation]:
        async with self._uow() as uow:
            vm = await changeable(uow, principal, vm.id)
            require_changeable(State(vm.state), "a snapshot")
            operation = await begin(uow, kind, vm, given)
            await uow.commit()
        return vm, operation


async def _under_way(uow: UnitOfWork, vm: Vm) -> list[tuple[str, str]]:
    """The kinds of operations on the machine's snapshots that wait or run, with the snapshots' names."""
    table = operations_table.c
    query = select(table.kind, table.input).where(
        table.resource_type == "vm",
        table.resource_id == str(vm.id),
        table.kind.in_(_STATES),
        table.state.in_((OperationState.PENDING, OperationState.RUNNING)),
    )
    return [(kind, str(given["name"])) for kind, given in (await uow.session.execute(query)).all()]


def _unable(found: Found) -> str:
    storages = ", ".join(sorted(found.config.storages)) or "its storage"
    return f"The machine's disks lie on {storages}, which keeps no snapshots of them; an administrator can move them"
