"""Records new machines: those that an owner asks for at once share a transaction and its lock of the quota."""

from collections import defaultdict
from collections.abc import Sequence
from contextvars import Context, copy_context
from dataclasses import dataclass, field
from datetime import datetime

from libs.common import quotas
from libs.common.batches import Batches
from libs.common.db import DatabaseUnavailable
from libs.common.ids import uuid7
from libs.common.operations import Operation, Wanted, enqueue_all
from libs.common.sealing import Sealer
from libs.common.uow import UnitOfWork, UnitOfWorkFactory
from services.vms.domain.states import State
from services.vms.domain.templates import TemplateStatus
from services.vms.errors import TemplateNotFound
from services.vms.events import VmCreated
from services.vms.models import Vm
from services.vms.repository import TemplateRepository, VmRepository
from services.vms.schemas import CreateVm
from services.vms.service.catalog import Offer, Placement
from services.vms.service.records import RESOURCE_TYPE, sizes, tell
from services.vms.service.vmids import Vmids


@dataclass(eq=False, slots=True)
class _Creation:
    """One request, and what became of it."""

    owner_id: str
    wish: CreateVm
    placement: Placement
    context: Context = field(default_factory=copy_context)
    made: tuple[Vm, Operation] | None = None


class Creating:
    """Records machines and begins to make them."""

    def __init__(self, uow: UnitOfWorkFactory, vmids: Vmids, sealer: Sealer) -> None:
        self._uow = uow
        self._vmids = vmids
        self._sealer = sealer
        self._batches = Batches(self._record_all)

    async def create(self, owner_id: str, wish: CreateVm, placement: Placement) -> tuple[Vm, Operation]:
        """Record a machine, reserve for it, lease its VMID and begin to make it, or nothing of all that.

        Raises TemplateNotFound, QuotaExceeded, Forbidden, VmidsExhausted or DatabaseUnavailable.
        """
        creation = _Creation(owner_id, wish, placement)
        await self._batches.do(creation)
        if creation.made is None:
            raise RuntimeError("a creation was neither made nor refused")
        return creation.made

    async def _record_all(self, creations: Sequence[_Creation]) -> Sequence[Exception | None]:
        """Record each owner's in a transaction."""
        alike: dict[tuple[str, str], list[_Creation]] = defaultdict(list)
        for creation in creations:
            alike[creation.owner_id, creation.placement.offer.cluster.name].append(creation)
        faults: dict[_Creation, Exception] = {}
        for together in alike.values():
            faults |= await self._record_together(together)
        return [faults.get(creation) for creation in creations]

    async def _record_together(self, creations: Sequence[_Creation]) -> dict[_Creation, Exception]:
        """Record them in one transaction; if one of them breaks it, each in its own."""
        try:
            async with self._uow() as uow:
                await self._record(uow, creations)
        except Exception as error:  # noqa: BLE001 - its caller is told
            if len(creations) == 1 or isinstance(error, DatabaseUnavailable):
                return dict.fromkeys(creations, error)
        else:
            return {}
        faults: dict[_Creation, Exception] = {}
        for creation in creations:
            faults |= await self._record_together([creation])
        return faults

    async def _record(self, uow: UnitOfWork, creations: Sequence[_Creation]) -> None:
        """Record machines of one owner on one cluster."""
        await _require_ready(uow, [creation.placement.offer for creation in creations])
        now = uow.clock.now()
        made = [(creation, self._machine(creation, now)) for creation in creations]
        vms = [vm for _, vm in made]
        wanted = {name: sum(vm.reserved[name] for vm in vms) for name in vms[0].reserved}
        usage = await quotas.reserve(uow.session, vms[0].owner_id, wanted)
        await self._vmids.lease(uow, *vms)
        await VmRepository(uow.session).add(*vms)
        operations = await enqueue_all(uow, [creation.context.run(_beginning, creation, vm) for creation, vm in made])
        for creation, vm in made:
            creation.context.run(tell, uow, VmCreated, vm, usage)
            uow.answer_also(creation.context)
        await uow.commit()
        for (creation, vm), operation in zip(made, operations, strict=True):
            creation.made = vm, operation

    def _machine(self, creation: _Creation, now: datetime) -> Vm:
        wish, placement, seal = creation.wish, creation.placement, self._sealer.seal
        offer, demand = placement.offer, placement.demand
        template = offer.copies[0]
        vm = Vm(
            id=uuid7(),
            owner_id=creation.owner_id,
            name=wish.name,
            os_type=template.os_type,
            # Copies of a template are equal; a VMID means that one copy alone.
            template=str(template.vmid) if wish.template == str(template.vmid) else template.name,
            template_id=None if offer.record is None else offer.record.id,
            image_id=None if offer.record is None else offer.record.image_id,
            cluster=offer.cluster.name,
            state=State.CREATING.value,
            cores=demand.cores,
            memory_mib=demand.memory_mib,
            disk_gib=demand.disk_gib,
            ha=wish.ha,
            network=None if wish.network is None else wish.network.model_dump(mode="json", exclude_none=True),
            reserved={},
            guest_user=wish.user,
            ssh_public_key=wish.ssh_public_key,
            sealed_password=None if wish.password is None else seal(wish.password.get_secret_value()),
            sealed_user_data=None if wish.user_data is None else seal(wish.user_data),
            created_at=now,
            updated_at=now,
            state_at=now,
        )
        vm.reserved = sizes(vm)
        return vm


async def _require_ready(uow: UnitOfWork, offers: Sequence[Offer]) -> None:
    """Keep the templates' records from being deleted; raises TemplateNotFound if one is being, or is gone."""
    records = {offer.record.id: offer.record for offer in offers if offer.record is not None}
    for template_id in sorted(records):
        record = await TemplateRepository(uow.session).share(template_id)
        if record is None or record.state != TemplateStatus.READY:
            raise TemplateNotFound(f"The template {records[template_id].name} is being deleted")


def _beginning(creation: _Creation, vm: Vm) -> Wanted:
    wish = creation.wish
    given = {"start": wish.start, "node": wish.node, "ha": wish.ha, "seed": wish.user_data is not None}
    return Wanted("vm.create", RESOURCE_TYPE, str(vm.id), vm.owner_id, given)
