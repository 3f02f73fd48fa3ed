"""What users do with virtual machines: each change is recorded, reserved for, and handed to an operation."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import structlog
from sqlalchemy import select

from libs.common import quotas
from libs.common.auth import Principal
from libs.common.operations import Operation
from libs.common.pagination import PageRequest
from libs.common.sealing import Sealer
from libs.common.uow import UnitOfWorkFactory
from services.vms.domain.cluster import SIZE_OPTIONS, PendingChange, Power
from services.vms.domain.network import Rules
from services.vms.domain.seed import require_hashable
from services.vms.domain.states import (
    AFTER,
    Action,
    State,
    require_actionable,
    require_changeable,
    require_deletable,
    require_growth,
)
from services.vms.errors import (
    ForeignOwner,
    NoCluster,
    OwnerNotFound,
    ProxmoxFailure,
    SeedRefused,
)
from services.vms.models import Vm
from services.vms.ports import Images
from services.vms.repository import VmFilter, VmRepository
from services.vms.schemas import CreateVm, UpdateVm, Wish
from services.vms.service.access import Reference, begin, changeable, visible
from services.vms.service.catalog import Catalog, Placement
from services.vms.service.creating import Creating
from services.vms.service.fleet import Fleet
from services.vms.service.locating import locate
from services.vms.service.records import enter, sizes
from services.vms.service.vmids import Vmids

_log = structlog.get_logger()


@dataclass(frozen=True, slots=True)
class Live:
    """What the cluster tells of a machine at this moment."""

    power: Power | None
    addresses: Sequence[str]
    pending: Sequence[PendingChange] = ()


class Vms:
    """Use cases of virtual machines. For who may not see one they raise VmNotFound, as if there were none."""

    def __init__(
        self,
        uow: UnitOfWorkFactory,
        fleet: Fleet,
        catalog: Catalog,
        vmids: Vmids,
        sealer: Sealer,
        *,
        networks: Rules,
        images: Images,
        owners: quotas.Owners,
    ) -> None:
        self._uow = uow
        self._owners = owners
        self._fleet = fleet
        self._catalog = catalog
        self._networks = networks
        self._images = images
        self._creating = Creating(uow, vmids, sealer)

    async def list(self, principal: Principal, wanted: VmFilter, request: PageRequest) -> Sequence[Any]:
        """One page of the caller's machines (everyone's for administrators), and one more if there is a next page."""
        owner_id = None if principal.is_admin or principal.is_service else principal.user_id
        async with self._uow.looking() as session:
            return await VmRepository(session).list(wanted, request, owner_id=owner_id)

    async def get(self, principal: Principal, reference: Reference) -> Vm:
        async with self._uow() as uow:
            return await visible(uow, principal, reference)

    async def live(self, vm: Vm) -> Live:
        """Look at the machine itself; what does not answer is left out, and so is a stranger under its VMID."""
        if vm.node is None or vm.vmid is None or not State(vm.state).settled:
            return Live(None, ())
        power: Power | None = None
        addresses: Sequence[str] = ()
        pending: Sequence[PendingChange] = ()
        try:
            found = await locate(self._fleet, vm)
            power = await found.cluster.power(found.node, found.vmid)
            if power.status == "running" and power.agent:
                addresses = await found.cluster.addresses(found.node, found.vmid)
            if vm.restart_needed:
                told = await found.cluster.pending(found.node, found.vmid)
                pending = [one for one in told if one.name in SIZE_OPTIONS]
        except (ProxmoxFailure, NoCluster) as error:
            _log.info("machine_not_seen", vm_id=str(vm.id), error=error.slug)
        return Live(power, addresses, pending)

    async def owner(self, principal: Principal, userid: str) -> str:
        """The user id that an older client's `userid` means; raises ForeignOwner unless it is the caller's own."""
        found = await self._owners.named(userid, arriving=principal.is_admin)
        if principal.user_id in (found, userid):
            return principal.user_id
        if not principal.is_admin:
            raise ForeignOwner(f"You are not {userid!r}")
        if found is None:
            raise OwnerNotFound(f"There is no user {userid!r}")
        return found

    async def userid(self, vm: Vm) -> str:
        """What older clients call a machine's owner: the external id, else the id."""
        account = quotas.accounts_table.c
        async with self._uow() as uow:
            query = select(account.external_id).where(account.owner_id == vm.owner_id)
            return await uow.session.scalar(query) or vm.owner_id

    async def create(self, owner_id: str, wish: CreateVm, *, bearer: str | None = None) -> tuple[Vm, Operation]:
        """Record a machine, reserve for it and lease its VMID in one transaction, and begin to make it.

        `bearer` is the caller's token, with which an image that is named is looked at. Raises TemplateNotFound,
        DiskTooSmall, NoNodeFits, NetworkRefused, SeedRefused, ImageUnknown, QuotaExceeded, VmidsExhausted, NoCluster,
        ImagesAway or ProxmoxUnavailable.
        """
        self._check(wish)
        if wish.image_id is not None:
            await self._images.get(wish.image_id, bearer=bearer)
        placement = await self._catalog.choose(wish, ha=wish.ha)
        template = placement.offer.copies[0]
        if wish.user_data is not None and not template.cloud_init:
            raise SeedRefused(f"{template.name} has no cloud-init drive that user_data could take the place of")
        return await self._creating.create(owner_id, wish, placement)

    def _check(self, wish: CreateVm) -> None:
        if wish.network is not None:
            self._networks.require(bridge=wish.network.bridge, vlan=wish.network.vlan)
        password = wish.password
        if wish.user_data is not None and password is not None:
            require_hashable(password.get_secret_value())

    async def dry_run(self, wish: Wish, *, ha: bool = False, bearer: str | None = None) -> Sequence[Placement]:
        """Where a machine would go now, cluster by cluster; raises TemplateNotFound, DiskTooSmall or ImageUnknown."""
        if wish.image_id is not None:
            await self._images.get(wish.image_id, bearer=bearer)
        return await self._catalog.place(wish, ha=ha)

    async def update(
        self, principal: Principal, reference: Reference, change: UpdateVm, *, if_match: str | None
    ) -> tuple[Vm, Operation | None]:
        """Begin to change a machine, with what it grows by reserved; None if nothing would change.

        Raises DiskShrinks, QuotaExceeded, VmBusy, VmState or PreconditionFailed.
        """
        async with self._uow() as uow:
            vm = await changeable(uow, principal, reference, if_match)
            require_changeable(State(vm.state), "a change")
            wanted = change.model_dump(exclude_none=True, exclude={"restart"})
            wanted = {name: value for name, value in wanted.items() if value != getattr(vm, name)}
            require_growth(vm.disk_gib, wanted.get("disk_gib", vm.disk_gib))
            if not wanted and not (change.restart and vm.restart_needed):
                return vm, None
            more = {
                name: wanted[name] - getattr(vm, name)
                for name in ("cores", "memory_mib", "disk_gib")
                if wanted.get(name, 0) > getattr(vm, name)
            }
            if more:
                await quotas.reserve(uow.session, vm.owner_id, more)
                vm.reserved = {name: vm.reserved.get(name, 0) + more.get(name, 0) for name in sizes(vm)}
            operation = await begin(uow, "vm.update", vm, {"wanted": wanted, "restart": change.restart})
            await uow.commit()
        return vm, operation

    async def act(
        self, principal: Principal, reference: Reference, action: Action, *, if_match: str | None = None
    ) -> tuple[Vm, Operation]:
        """Begin a power action; raises VmBusy, VmState or PreconditionFailed.

        Raises QuotaExceeded if its owner may not start so much more.

        A machine counts in the quotas whether it runs or not; a limit that was lowered since keeps it from starting.
        """
        async with self._uow() as uow:
            vm = await changeable(uow, principal, reference, if_match)
            require_actionable(State(vm.state), action)
            if AFTER[action] is State.RUNNING:
                await quotas.require_within(uow.session, vm.owner_id, sizes(vm))
            operation = await begin(uow, f"vm.{action}", vm, {})
            await uow.commit()
        return vm, operation

    async def delete(self, principal: Principal, reference: Reference, *, if_match: str | None) -> tuple[Vm, Operation]:
        """Begin to remove a machine, after whatever is under way on it; raises VmState if it is being removed."""
        async with self._uow() as uow:
            vm = await changeable(uow, principal, reference, if_match, busy=True)
            require_deletable(State(vm.state))
            was = {"was": vm.state, "reason": vm.reason}
            enter(uow, vm, State.DELETING)
            operation = await begin(uow, "vm.delete", vm, was)
            await uow.commit()
        return vm, operation
