"""Making a machine: place, clone, configure, resize, start, confirm; a node that fails is left and the next tried."""

from uuid import UUID

from libs.common import quotas
from libs.common.operations import Json, Operation, Saga, Step, StepContext
from libs.common.operations import State as OperationState
from libs.common.sealing import Sealer
from libs.common.uow import UnitOfWork
from services.vms.domain.cluster import Inventory, sizing
from services.vms.domain.network import card, ipconfig
from services.vms.domain.placement import Demand, explain
from services.vms.domain.states import State
from services.vms.errors import (
    NoNodeFits,
    ProxmoxFailure,
    ProxmoxRefused,
    TemplateNotFound,
)
from services.vms.events import VmDeleted, VmFailed
from services.vms.models import Vm
from services.vms.operations.cloning import Cloning
from services.vms.operations.failover import elsewhere, second_chance
from services.vms.operations.machines import Machines, grow_disk, start_machine, unless_gone
from services.vms.operations.placing import Case, Placer
from services.vms.operations.seeding import Seeding
from services.vms.repository import VmidRepository, VmRepository
from services.vms.service import Catalog
from services.vms.service.locating import Found
from services.vms.service.records import enter, tell, touch

_TRIES = 30
_TEMPLATES_AGE_S = 5.0
"""How old the list may be in which the template's copies are looked for first; a clone of one that is gone fails."""


class CreateVm:
    """The steps of `vm.create`."""

    def __init__(
        self,
        machines: Machines,
        catalog: Catalog,
        cloning: Cloning,
        seeding: Seeding,
        sealer: Sealer,
        *,
        tag: str,
    ) -> None:
        self._seeding = seeding
        self._machines = machines
        self._catalog = catalog
        self._placer = Placer(machines.uow, catalog)
        self._cloning = cloning
        self._sealer = sealer
        self._tag = tag

    def saga(self) -> Saga:
        return Saga(
            "vm.create",
            (
                Step("place", self.place, max_attempts=_TRIES, interruptible=False, saves_first=True),
                Step(
                    "clone",
                    self._cloning.run,
                    unless_gone(self._cloning.undo),
                    timeout_s=3600,
                    max_attempts=_TRIES,
                    weight=5,
                    interruptible=False,
                    saves_first=True,
                ),
                Step(
                    "seed",
                    self._seeding.run,
                    unless_gone(self._seeding.undo),
                    max_attempts=_TRIES,
                    interruptible=False,
                    needed=lambda operation: bool(operation.input.get("seed", True)),
                ),
                Step("configure", self.configure, max_attempts=_TRIES, interruptible=False),
                Step(
                    "resize",
                    self.resize,
                    timeout_s=1800,
                    max_attempts=_TRIES,
                    weight=2,
                    interruptible=False,
                    saves_first=True,
                ),
                Step(
                    "start",
                    self.start,
                    timeout_s=900,
                    max_attempts=_TRIES,
                    weight=3,
                    interruptible=False,
                    needed=lambda operation: bool(operation.input.get("start", True)),
                    saves_first=True,
                ),
                Step("confirm", self.confirm, max_attempts=_TRIES, interruptible=False, saves_first=True),
                Step(
                    "protect",
                    self.protect,
                    unless_gone(self.unprotect),
                    max_attempts=_TRIES,
                    interruptible=False,
                    needed=lambda operation: bool(operation.input.get("ha", True)),
                    saves_first=True,
                ),
            ),
            cancellable=True,
            on_end=self.end,
        )

    async def place(self, context: StepContext) -> Json:
        """Choose the node: the best of those that fit and have not failed, by what is promised at this moment."""
        vm = await self._machines.record(context)
        cluster = self._machines.fleet.get(vm.cluster)
        memo = context.memo
        again = context.attempt > 1 or bool(memo.get("avoided"))
        copies = await self._catalog.copies_of(vm, cluster, max_age_s=0 if again else _TEMPLATES_AGE_S)
        if not copies:
            raise TemplateNotFound(f"The template {vm.template} is gone")
        case = Case(
            vm=vm,
            demand=Demand(vm.cores, vm.memory_mib, vm.disk_gib, context.input.get("node"), ha=vm.ha),
            copies=copies,
            avoided=memo.get("avoided", {}),
            avoided_sources=frozenset(memo.get("avoided_sources", ())),
        )
        verdicts = await self._placer.place(cluster, case)
        best = verdicts[0] if verdicts and verdicts[0].fits else None
        if best is None or best.template is None:
            raise second_chance(context) or NoNodeFits(explain(verdicts))
        return {"node": best.node, "source": best.template.node, "template": best.template.vmid, "score": best.score}

    async def configure(self, context: StepContext) -> Json:
        """Set cores, memory, cloud-init and the ownership tag; the same again changes nothing."""
        vm = await self._machines.record(context, kept=True)
        try:
            found = await self._found(context, vm)
            options = sizing(found.config, cores=vm.cores, memory_mib=vm.memory_mib)
            options["tags"] = ";".join(sorted({self._tag, f"os-{vm.os_type}"} | (found.config.tags - {"template"})))
            if found.config.protected:
                options["protection"] = 0  # it was its template's
            options |= self._first_start(vm, found)
            if vm.network is not None:
                wanted = vm.network
                options["net0"] = card(found.config.card, bridge=wanted.get("bridge"), vlan=wanted.get("vlan"))
            await found.cluster.configure(found.node, found.vmid, options, digest=found.config.digest)
        except ProxmoxFailure as error:
            raise elsewhere(context, error, node=self._node(context)) from error
        return {}

    async def resize(self, context: StepContext) -> Json:
        """Grow the boot disk to the size asked for; it never shrinks."""
        vm = await self._machines.record(context, kept=True)
        try:
            found = await self._found(context, vm)
            await grow_disk(self._machines, context, found, vm.disk_gib)
        except ProxmoxFailure as error:
            raise elsewhere(context, error, node=self._node(context)) from error
        return {}

    async def start(self, context: StepContext) -> Json:
        vm = await self._machines.record(context, kept=True)
        try:
            found = await self._found(context, vm)
            await start_machine(self._machines, context, found)
        except ProxmoxFailure as error:
            raise elsewhere(context, error, node=self._node(context)) from error
        return {}

    async def confirm(self, context: StepContext) -> Json:
        """See with own eyes that it runs: a task's success is only that of a process started."""
        vm = await self._machines.record(context, kept=True)
        wanted = "running" if context.input.get("start", True) else "stopped"
        cluster = self._machines.fleet.get(vm.cluster)
        node = self._node(context)
        try:
            power = await cluster.power(node, vm.vmid or 0)
            if power.status != wanted:
                reason = f"{power.status} instead of {wanted}"
                raise ProxmoxRefused("The machine did not stay up after its start", reason=reason, node=node)
        except ProxmoxFailure as error:
            raise elsewhere(context, error, node=node) from error
        return {"status": power.status}

    async def protect(self, context: StepContext) -> Json:
        """Hand it over to the HA manager, on every node that can run it."""
        vm = await self._machines.record(context, kept=True)
        if not vm.ha:
            return {}
        node = self._node(context)
        await context.save(intended=True)
        try:
            found = await self._found(context, vm)
            known = await found.cluster.inventory(max_age_s=30)
            nodes = [one for one in sorted(known.nodes) if _reaches(known, one, found.config.storages)]
            started = bool(context.input.get("start", True))
            await found.cluster.ha.protect(found.vmid, nodes=nodes or [found.node], started=started)
        except ProxmoxFailure as error:
            raise elsewhere(context, error, node=node) from error
        return {}

    async def unprotect(self, context: StepContext) -> None:
        vm = await self._machines.record(context)
        if vm.ha and vm.vmid is not None and context.checkpoint:
            await self._machines.fleet.get(vm.cluster).ha.release(vm.vmid)

    async def end(self, uow: UnitOfWork, operation: Operation) -> None:
        """Record how it ended: a machine, a failure that holds nothing, or nothing at all if it was cancelled."""
        vm = await VmRepository(uow.session).get(UUID(operation.resource_id), for_update=True)
        if vm is None:
            return
        vm.sealed_password = vm.sealed_user_data = None
        if operation.state is OperationState.SUCCEEDED:
            vm.node = str(next(step.result for step in operation.steps if step.name == "clone" and step.result)["node"])
            touch(uow, vm)
            if State(vm.state) is State.CREATING:
                enter(uow, vm, State.RUNNING if operation.input.get("start", True) else State.STOPPED)
            return
        reason = str((operation.error or {}).get("detail", operation.message))
        if operation.state is OperationState.NEEDS_OPERATOR:
            enter(uow, vm, State.ERROR, reason=reason)  # it keeps what it may still use
            return
        if vm.vmid is not None:
            await VmidRepository(uow.session).release(vm.cluster, vm.vmid)
        usage = await quotas.release(uow.session, vm.owner_id, vm.reserved)
        vm.vmid, vm.node, vm.reserved = None, None, {}
        touch(uow, vm)
        if operation.state is OperationState.CANCELLED:
            await VmRepository(uow.session).remove(vm)
            tell(uow, VmDeleted, vm, usage)
            return
        if State(vm.state) is State.CREATING:
            vm.state, vm.state_at = State.ERROR.value, uow.clock.now()
        vm.reason = reason
        tell(uow, VmFailed, vm, usage)

    # Parts of steps

    def _first_start(self, vm: Vm, found: Found) -> dict[str, str | int]:
        """What the guest is given: the seed in the place of the cluster's own drive, or that drive's values."""
        if vm.seed_volume is not None:
            # Two drives of that kind would leave it to the guest which of them it reads.
            slot = found.config.cloud_init_slot or found.config.seed_slot
            if slot is None:
                raise ProxmoxRefused("The template has no cloud-init drive", node=found.node)
            return {slot: f"{vm.seed_volume},media=cdrom"}
        if not found.config.cloud_init:
            return {}
        options: dict[str, str | int] = {}
        if vm.guest_user is not None:
            options["ciuser"] = vm.guest_user
        if vm.sealed_password is not None:
            options["cipassword"] = self._sealer.open(vm.sealed_password)
        if vm.ssh_public_key is not None:
            options["sshkeys"] = vm.ssh_public_key
        network = vm.network or {}
        if not found.config.addressed or network.keys() & {"ip", "ip6"}:
            options["ipconfig0"] = ipconfig(network)
        if network.get("nameservers"):
            options["nameserver"] = " ".join(network["nameservers"])
        if network.get("search_domain"):
            options["searchdomain"] = network["search_domain"]
        return options

    async def _found(self, context: StepContext, vm: Vm) -> Found:
        return await self._machines.find(vm, near=self._node(context))

    def _node(self, context: StepContext) -> str:
        return str(context.results["clone"]["node"])


def _reaches(known: Inventory, node: str, storages: frozenset[str]) -> bool:
    """Whether a node sees all storages that a machine's drives lie on."""
    return all((node, storage) in known.storages for storage in storages)
