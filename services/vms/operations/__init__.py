"""The slow work of the vms service, as sagas for the shared runner."""

from collections.abc import Sequence

from libs.common.operations import Saga
from libs.common.sealing import Sealer
from libs.common.uow import UnitOfWorkFactory
from services.vms.domain.states import Action
from services.vms.operations.adopt import AdoptVm
from services.vms.operations.cloning import Cloning
from services.vms.operations.create import CreateVm
from services.vms.operations.delete import DeleteVm
from services.vms.operations.machines import Machines
from services.vms.operations.power import PowerAction
from services.vms.operations.seeding import Seeding
from services.vms.operations.snapshots import SnapshotWork
from services.vms.operations.templates import TemplateSagas
from services.vms.operations.update import UpdateVm
from services.vms.ports import Images, Seeds
from services.vms.service import Catalog, Fleet, Vmids
from services.vms.settings import VmsSettings


def sagas(
    settings: VmsSettings,
    uow: UnitOfWorkFactory,
    fleet: Fleet,
    catalog: Catalog,
    vmids: Vmids,
    sealer: Sealer,
    seeds: Seeds,
    images: Images,
) -> Sequence[Saga]:
    """Every kind of operation on virtual machines and templates."""
    machines = Machines(uow, fleet, settle_s=settings.settle_s)
    seeding = Seeding(machines, sealer, seeds)
    timeout_s = settings.shutdown_timeout_s
    return (
        CreateVm(machines, catalog, Cloning(machines, vmids), seeding, sealer, tag=settings.ownership_tag).saga(),
        UpdateVm(machines, shutdown_timeout_s=timeout_s).saga(),
        *(PowerAction(action, machines, shutdown_timeout_s=timeout_s).saga() for action in Action),
        AdoptVm(machines, tag=settings.ownership_tag).saga(),
        *SnapshotWork(machines, limit=settings.snapshots_per_vm).sagas(),
        DeleteVm(machines, seeding).saga(),
        *TemplateSagas(machines, vmids, images, link_lifetime_s=settings.link_lifetime_s).sagas(),
    )
