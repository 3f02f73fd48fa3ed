"""What a machine's record means to others: how its changes are counted and told."""

from libs.common.quotas import ResourceRef, Usage
from libs.common.uow import UnitOfWork
from services.vms.domain.states import State
from services.vms.events import VmEvent, VmStateChanged
from services.vms.models import Vm

RESOURCE_TYPE = "vm"


def sizes(vm: Vm) -> dict[str, int]:
    """What a machine counts in its owner's quotas."""
    return {"vms": 1, "cores": vm.cores, "memory_mib": vm.memory_mib, "disk_gib": vm.disk_gib}


def touch(uow: UnitOfWork, vm: Vm) -> None:
    """Count a change of the record."""
    vm.version += 1
    vm.updated_at = uow.clock.now()


def tell(uow: UnitOfWork, event: type[VmEvent], vm: Vm, usage: Usage | None = None) -> None:
    """Tell of a machine as it is now; `usage` is what the owner uses if that changed with it."""
    told = event(
        resource=ResourceRef(type=RESOURCE_TYPE, id=str(vm.id), name=vm.name),
        usage=usage,
        name=vm.name,
        state=vm.state,
        os_type=vm.os_type,
        cluster=vm.cluster,
        node=vm.node,
        vmid=vm.vmid,
        cores=vm.cores,
        memory_mib=vm.memory_mib,
        disk_gib=vm.disk_gib,
        image_id=vm.image_id,
        reason=vm.reason,
    )
    uow.add_event(told, subject=str(vm.id), owner=vm.owner_id, sequence=vm.version)


def enter(uow: UnitOfWork, vm: Vm, state: State, *, reason: str | None = None) -> None:
    """Note a state known at first hand, and tell of it if it is another one than before."""
    changed = vm.state != state.value
    vm.state, vm.reason, vm.state_at = state.value, reason, uow.clock.now()
    if changed:
        touch(uow, vm)
        tell(uow, VmStateChanged, vm)
