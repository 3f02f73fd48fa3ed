"""The machines and files that a template is made of: found again, removed, or left for the sweep."""

from dataclasses import dataclass
from uuid import UUID

import structlog

from libs.common.operations import RetryFrom, StepContext
from services.vms.domain import templates as rules
from services.vms.domain.storages import CopyPlan
from services.vms.errors import MachineMissing, MachineNotOurs, NoNodeFits, ProxmoxFailure, TemplateUnknown
from services.vms.models import TemplateRecord
from services.vms.operations.machines import Machines, reaching
from services.vms.repository import FOREIGN, LEFTOVER, TemplateRepository, VmidRepository
from services.vms.service import Vmids
from services.vms.service.locating import Found

_COLLISIONS = 50

_log = structlog.get_logger()


@dataclass(frozen=True, slots=True)
class Copy:
    """One machine of a template, as `Machines.find` looks for it."""

    id: UUID
    cluster: str
    node: str
    vmid: int
    plan: CopyPlan | None = None


def copies_of(record: TemplateRecord) -> list[Copy]:
    """A template's machines; one that Telar made has a plan of where it lies."""
    return [
        Copy(
            record.id,
            record.cluster,
            told["node"],
            told["vmid"],
            CopyPlan(told["node"], told["storage"], told["import_storage"]) if "storage" in told else None,
        )
        for told in record.copies
    ]


def first_there(plan: CopyPlan, done: set[tuple[str, str]]) -> bool:
    """Whether nobody has seen to this place's file yet; notes it."""
    place = (plan.node, plan.import_storage)
    first = place not in done
    done.add(place)
    return first


class Copies:
    """What the steps of `template.create` and `template.delete` do with a template's machines and files."""

    def __init__(self, machines: Machines, vmids: Vmids) -> None:
        self._machines = machines
        self._vmids = vmids

    async def record(self, context: StepContext) -> TemplateRecord:
        """The record that the operation works on; raises TemplateUnknown."""
        async with self._machines.uow() as uow:
            record = await TemplateRepository(uow.session).get(UUID(context.operation.resource_id))
        if record is None:
            raise TemplateUnknown("The template's record is gone")
        return record

    async def found(self, copy: Copy) -> Found | None:
        """The copy's machine; None if there is none, or a stranger has its VMID."""
        try:
            return await self._machines.find(copy, near=copy.node)
        except (MachineMissing, MachineNotOurs):
            return None

    async def remove(self, context: StepContext, copy: Copy, *, unclear: bool = False) -> None:
        """Remove the copy's machine; `unclear` if a call that may have made it got no answer."""
        try:
            found = await self._machines.find(copy, near=copy.node)
            if found.config.lock is not None:
                await self.give_up(copy, LEFTOVER, f"locked: {found.config.lock}")
                return
            await self._machines.stop(context, found, suffix=f" {copy.vmid}")
            await self._machines.destroy(context, found, suffix=f" {copy.vmid}")
        except MachineMissing:
            if unclear:  # an unanswered call may still show
                await self.give_up(copy, LEFTOVER, "the outcome of its making is not known")
            elif not await self._machines.surely_gone(copy):
                raise
        except MachineNotOurs:
            await self.give_up(copy, FOREIGN, "not ours")

    async def remove_files(self, context: StepContext) -> None:
        """Remove the downloaded files; one that stays is told in the log, it keeps nobody from anything."""
        record = await self.record(context)
        cluster = self._machines.fleet.get(record.cluster)
        name = rules.file_name(str(record.id), record.format or "raw")
        done: set[tuple[str, str]] = set()
        for copy in copies_of(record):
            if copy.plan is None or not first_there(copy.plan, done):
                continue
            volume = f"{copy.plan.import_storage}:import/{name}"
            try:
                node = await reaching(cluster, copy.plan.import_storage, copy.node)
                upid = await cluster.files.remove(node, volume)
                if upid is not None:
                    await self._machines.follow(context, cluster, upid)
            except ProxmoxFailure as error:
                _log.warning("image_file_stays", node=copy.node, volume=volume, error=error.slug)

    async def give_up(self, copy: Copy, state: str, reason: str) -> None:
        """Keep the copy's VMID from everybody, until the sweep knows that nothing has it."""
        async with self._machines.uow() as uow:
            await VmidRepository(uow.session).mark(
                copy.cluster, copy.vmid, state, node=copy.node, reason=reason, now=uow.clock.now()
            )
            await uow.commit()
        _log.warning("vmid_given_up", template_id=str(copy.id), vmid=copy.vmid, state=state, node=copy.node)

    async def another_vmid(self, context: StepContext, record: TemplateRecord, copy: Copy) -> None:
        """A stranger has the VMID: leave it to them and go on with another one."""
        collisions = int(context.memo.get("collisions", 0)) + 1
        context.memo["collisions"] = collisions
        await self.give_up(copy, FOREIGN, "taken by another machine")
        if collisions > _COLLISIONS:
            raise NoNodeFits("Too many VMIDs of Telar's range are in use by others; an operator must give it a range")
        async with self._machines.uow() as uow:
            kept = await TemplateRepository(uow.session).get(record.id, for_update=True)
            if kept is not None:
                other = await self._vmids.lease_for(uow, record.cluster, record.id)
                kept.copies = [{**one, "vmid": other} if one["vmid"] == copy.vmid else one for one in kept.copies]
            await uow.commit()
        raise RetryFrom("import", undo=False, reason="The VMID was taken; going on with another one")
