"""Which machines a caller may see, and which may be worked on now."""

from collections.abc import Mapping
from uuid import UUID

from libs.common.auth import Principal
from libs.common.etag import check_if_match
from libs.common.operations import Operation, enqueue
from libs.common.uow import UnitOfWork
from services.vms.errors import VmAmbiguous, VmBusy, VmNotFound
from services.vms.models import Vm
from services.vms.repository import VmRepository
from services.vms.service.records import RESOURCE_TYPE

Reference = UUID | tuple[int, bool]
"""A machine's id, or an older client's integer and whether it means the VMID first (else the record's number)."""


async def visible(uow: UnitOfWork, principal: Principal, reference: Reference) -> Vm:
    """The machine; raises VmNotFound, also for one of somebody else's, or VmAmbiguous."""
    machines = VmRepository(uow.session)
    if isinstance(reference, UUID):
        vm = await machines.get(reference)
        found = [] if vm is None or not principal.may_see(vm.owner_id) else [vm]
    else:
        number, vmid_first = reference
        known = [vm for vm in await machines.by_integer(number) if principal.may_see(vm.owner_id)]
        by_vmid = [vm for vm in known if vm.vmid == number]
        by_number = [vm for vm in known if vm.number == number]
        found = (by_vmid or by_number) if vmid_first else (by_number or by_vmid)
    if len(found) > 1:
        ids = ", ".join(sorted(str(vm.id) for vm in found))
        raise VmAmbiguous(f"Several clusters have a machine of this VMID; ask by its id, one of {ids}")
    if not found:
        raise VmNotFound("There is no such machine, or it is not yours")
    return found[0]


async def changeable(
    uow: UnitOfWork, principal: Principal, reference: Reference, if_match: str | None = None, *, busy: bool = False
) -> Vm:
    """Lock a machine that the caller may change; raises PreconditionFailed, or VmBusy unless `busy` may be."""
    machines = VmRepository(uow.session)
    vm = await machines.get((await visible(uow, principal, reference)).id, for_update=True)
    if vm is None:
        raise VmNotFound("The machine has just gone")
    check_if_match(if_match, vm.version)
    under_way = None if busy else await machines.unfinished(vm.id)
    if under_way is not None:
        raise VmBusy(f"Wait for the operation {under_way}, or cancel it", retry_after_s=2)
    return vm


async def begin(uow: UnitOfWork, kind: str, vm: Vm, given: Mapping[str, object]) -> Operation:
    """Add an operation on a machine to the unit of work."""
    return await enqueue(
        uow, kind=kind, resource_type=RESOURCE_TYPE, resource_id=str(vm.id), owner_id=vm.owner_id, input=given
    )
