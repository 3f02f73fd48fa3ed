"""What an administrator does about a difference: believe the cluster, believe the record, or give one of them up."""

from collections.abc import Sequence
from typing import Any
from uuid import UUID

from sqlalchemy import select
from sqlalchemy.dialects.postgresql import insert
from sqlmodel import col

from libs.common import quotas
from libs.common.auth import Principal
from libs.common.ids import uuid7
from libs.common.logging import audit_log
from libs.common.operations import Operation
from libs.common.pagination import PageRequest, keyset
from libs.common.uow import UnitOfWork, UnitOfWorkFactory
from services.vms.domain.cluster import MachineConfig, marked_id, without_mark
from services.vms.domain.drift import RESOLUTIONS, Kind, Resolution
from services.vms.domain.states import State, hostname
from services.vms.errors import DriftNotFound, DriftSettled, DriftUnresolvable, MachineMissing, OwnerNotFound
from services.vms.events import DriftResolved, VmCreated, VmDeleted, VmUpdated
from services.vms.models import Drift, Vm, VmidLease
from services.vms.ports import Cluster
from services.vms.repository import HELD, LEFTOVER, VmidRepository, VmRepository
from services.vms.schemas import ResolveDrift
from services.vms.service.access import begin, changeable
from services.vms.service.fleet import Fleet
from services.vms.service.locating import locate
from services.vms.service.records import sizes, tell, touch

ADOPT = "vm.adopt"
DRIFT_SORT = "first_seen_at"
_SIZES = ("cores", "memory_mib", "disk_gib")


class Drifts:
    """Use cases of differences, for administrators. Each looks at the cluster anew before it does anything."""

    def __init__(self, uow: UnitOfWorkFactory, fleet: Fleet, owners: quotas.Owners, *, tag: str) -> None:
        self._uow = uow
        self._owners = owners
        self._fleet = fleet
        self._tag = tag

    async def list(self, request: PageRequest) -> Sequence[Drift]:
        """One page of what has stayed different for long enough to be reported, and one more if there is any."""
        entity: Any = Drift
        query = select(Drift).where(col(Drift.reported_at).is_not(None))
        columns = {DRIFT_SORT: entity.first_seen_at}
        query = keyset(query, request, columns=columns, key=entity.id, default=DRIFT_SORT)
        async with self._uow() as uow:
            return (await uow.session.execute(query)).scalars().all()

    async def resolve(
        self, admin: Principal, drift_id: UUID, wish: ResolveDrift
    ) -> tuple[Drift, Vm | None, Operation | None]:
        """Do it; gives the record it is about and an operation, if there are any.

        Raises DriftNotFound, DriftUnresolvable, DriftSettled if it is so no more, OwnerNotFound, QuotaExceeded, VmBusy,
        or what the cluster says.
        """
        async with self._uow() as uow:
            drift = await uow.session.get(Drift, drift_id)
        if drift is None or drift.reported_at is None:
            raise DriftNotFound("There is no such difference, or it is gone")
        kind = Kind(drift.kind)
        if wish.action not in RESOLUTIONS[kind]:
            offered = " or ".join(RESOLUTIONS[kind])
            raise DriftUnresolvable(f"A {kind} machine can be resolved by {offered}")
        if kind is Kind.UNKNOWN:
            vm, operation = await self._unknown(admin, drift, wish)
        elif kind is Kind.VANISHED:
            vm, operation = await self._forget_record(admin, drift), None
        elif wish.action is Resolution.ADOPT:
            vm, operation = await self._adopt_changes(admin, drift), None
        else:
            vm, operation = await self._restore(admin, drift)
        audit_log(
            "drift_resolved", user_id=admin.user_id, action=wish.action, kind=kind, cluster=drift.cluster,
            vmid=drift.vmid, vm_id=str(drift.vm_id or (vm.id if vm is not None else "")),
        )  # fmt: skip
        return drift, vm, operation

    # A machine that carries the tag and has no record

    async def _unknown(self, admin: Principal, drift: Drift, wish: ResolveDrift) -> tuple[Vm | None, Operation | None]:
        cluster = self._fleet.get(drift.cluster)
        machine = (await cluster.inventory(max_age_s=0)).machines.get(drift.vmid)
        if machine is None:
            raise DriftSettled("The machine is gone")
        config = await cluster.config(machine.node, drift.vmid)
        if self._tag not in config.tags:
            raise DriftSettled("The machine carries Telar's tag no more")
        if wish.action is Resolution.ADOPT:
            return await self._adopt_machine(admin, drift, wish, machine.node, config)
        if wish.action is Resolution.FORGET:
            options = {"tags": ";".join(sorted(config.tags - {self._tag})), "description": without_mark(config.notes)}
            await cluster.configure(machine.node, drift.vmid, options, digest=config.digest)
            await self._settle(admin, drift, wish.action)
            return None, None
        left_by = marked_id(config.notes)
        if left_by is None:
            raise DriftUnresolvable(
                "It carries Telar's tag, but not its mark: Telar did not make it, and removes it not"
            )
        async with self._uow() as uow:
            if await VmRepository(uow.session).get(left_by) is not None:
                raise DriftUnresolvable(f"It carries the mark of the machine {left_by}, which has a record")
            await self._lease(uow, drift, left_by, LEFTOVER, machine.node)
            await self._close(uow, admin, drift, wish.action)
            await uow.commit()
        return None, None

    async def _adopt_machine(
        self, admin: Principal, drift: Drift, wish: ResolveDrift, node: str, config: MachineConfig
    ) -> tuple[Vm, Operation]:
        """Record the machine, and have an operation mark it: what fails then leaves it as unknown as it was."""
        owner_id = await self._owners.named(wish.owner or "")
        if owner_id is None:
            raise OwnerNotFound(f"There is no user {wish.owner!r} whom the machine could belong to; give an owner")
        async with self._uow() as uow:
            before = marked_id(config.notes)
            known = None if before is None else await VmRepository(uow.session).get(before)
            vm_id = before if before is not None and known is None else uuid7()
            vm = _record_of(vm_id, owner_id, drift, node, config, uow)
            vm.reserved = sizes(vm)
            usage = await quotas.reserve(uow.session, owner_id, vm.reserved)
            await self._lease(uow, drift, vm.id, HELD, node)
            await VmRepository(uow.session).add(vm)
            operation = await begin(uow, ADOPT, vm, {})
            tell(uow, VmCreated, vm, usage)
            await self._close(uow, admin, drift, Resolution.ADOPT, vm.id)
            await uow.commit()
        return vm, operation

    async def _lease(self, uow: UnitOfWork, drift: Drift, vm_id: UUID, state: str, node: str) -> None:
        """Take the VMID, whose lease nobody has, or had for a stranger that was there."""
        values = {"state": state, "vm_id": vm_id, "node": node, "reason": "drift", "since": uow.clock.now()}
        taking = insert(VmidLease).values(cluster=drift.cluster, vmid=drift.vmid, **values)
        taking = taking.on_conflict_do_update(
            index_elements=["cluster", "vmid"], set_=values, where=col(VmidLease.state) != HELD
        )
        if (await uow.session.execute(taking.returning(col(VmidLease.vmid)))).first() is None:
            raise DriftSettled("Another machine has this VMID by now")

    # A record whose machine is gone

    async def _forget_record(self, admin: Principal, drift: Drift) -> Vm:
        known = await self._fleet.get(drift.cluster).inventory(max_age_s=0)
        if not known.machines:
            raise MachineMissing("The cluster shows no machines at all; that proves nothing", retry_after_s=10)
        if drift.vmid in known.machines:
            raise DriftSettled("The machine is there again")
        async with self._uow() as uow:
            vm = await self._recorded(uow, admin, drift)
            await VmidRepository(uow.session).release(vm.cluster, drift.vmid)
            usage = await quotas.release(uow.session, vm.owner_id, vm.reserved)
            touch(uow, vm)
            await VmRepository(uow.session).remove(vm)
            tell(uow, VmDeleted, vm, usage)
            await self._close(uow, admin, drift, Resolution.FORGET, vm.id)
            await uow.commit()
        return vm

    # A machine that is not what its record says

    async def _adopt_changes(self, admin: Principal, drift: Drift) -> Vm:
        async with self._uow() as uow:
            vm = await self._recorded(uow, admin, drift)
        found = await locate(self._fleet, vm)
        await self._tagged(found.cluster, found.node, found.vmid, found.config)
        listed = (await found.cluster.inventory(max_age_s=0)).machines.get(found.vmid)
        now_has = None if listed is None else (listed.cores, listed.memory_mib)
        waits = now_has is not None and now_has != (found.config.cores, found.config.memory_mib)
        async with self._uow() as uow:
            vm = await self._recorded(uow, admin, drift)
            for key, value in found.config.sizes.items():
                setattr(vm, key, value)
            if hostname(vm.name) != found.config.name:
                vm.name = found.config.name
            now = sizes(vm)
            more = {key: now[key] - vm.reserved.get(key, 0) for key in now}
            usage = await quotas.reserve(uow.session, vm.owner_id, more)
            vm.reserved, vm.restart_needed = now, waits
            touch(uow, vm)
            tell(uow, VmUpdated, vm, usage)
            await self._close(uow, admin, drift, Resolution.ADOPT, vm.id)
            await uow.commit()
        return vm

    async def _restore(self, admin: Principal, drift: Drift) -> tuple[Vm, Operation]:
        """Put the tag back now, and the sizes and the name by an ordinary change of the machine."""
        async with self._uow() as uow:
            vm = await self._recorded(uow, admin, drift)
        found = await locate(self._fleet, vm)
        if found.config.sizes["disk_gib"] > vm.disk_gib:
            raise DriftUnresolvable("A disk cannot shrink to what the record says; adopt the larger one")
        await self._tagged(found.cluster, found.node, found.vmid, found.config)
        async with self._uow() as uow:
            vm = await self._recorded(uow, admin, drift)
            wanted: dict[str, object] = {"name": vm.name, **{key: getattr(vm, key) for key in _SIZES}}
            operation = await begin(uow, "vm.update", vm, {"wanted": wanted, "restart": False})
            await self._close(uow, admin, drift, Resolution.FIX, vm.id)
            await uow.commit()
        return vm, operation

    async def _tagged(self, cluster: Cluster, node: str, vmid: int, config: MachineConfig) -> None:
        if self._tag not in config.tags:
            tags = ";".join(sorted(config.tags | {self._tag}))
            await cluster.configure(node, vmid, {"tags": tags}, digest=config.digest)

    async def _recorded(self, uow: UnitOfWork, admin: Principal, drift: Drift) -> Vm:
        if drift.vm_id is None or await VmRepository(uow.session).get(drift.vm_id) is None:
            raise DriftSettled("The record is gone")
        return await changeable(uow, admin, drift.vm_id)

    # The end

    async def _settle(self, admin: Principal, drift: Drift, action: Resolution) -> None:
        async with self._uow() as uow:
            await self._close(uow, admin, drift, action)
            await uow.commit()

    async def _close(
        self, uow: UnitOfWork, admin: Principal, drift: Drift, action: Resolution, vm_id: UUID | None = None
    ) -> None:
        row = await uow.session.get(Drift, drift.id, with_for_update=True)
        if row is None:
            raise DriftSettled("Somebody else has resolved it, or it is so no more")
        await uow.session.delete(row)
        told = DriftResolved(
            cluster=drift.cluster, vmid=drift.vmid, kind=drift.kind, node=drift.node, vm_id=vm_id or drift.vm_id,
            action=action.value, resolved_by=admin.user_id,
        )  # fmt: skip
        uow.add_event(told, subject=str(drift.id))


def _record_of(vm_id: UUID, owner_id: str, drift: Drift, node: str, config: MachineConfig, uow: UnitOfWork) -> Vm:
    now, has = uow.clock.now(), config.sizes
    os_types = sorted(tag[3:] for tag in config.tags if tag.startswith("os-"))
    return Vm(
        id=vm_id,
        owner_id=owner_id,
        name=config.name or f"vm-{drift.vmid}",
        os_type=os_types[0] if os_types else "other",
        template="",
        cluster=drift.cluster,
        node=node,
        vmid=drift.vmid,
        state=State.CREATING.value,
        cores=has["cores"],
        memory_mib=has["memory_mib"],
        disk_gib=has["disk_gib"],
        reserved={},
        created_at=now,
        updated_at=now,
        state_at=now,
    )
