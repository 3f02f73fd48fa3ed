"""The step that brings a machine's NoCloud seed to a storage, and its removal."""

import structlog

from libs.common.operations import Json, StepContext
from libs.common.sealing import Sealer
from services.vms.domain.cluster import SEED_FILE
from services.vms.domain.seed import Seed
from services.vms.domain.states import hostname
from services.vms.domain.storages import place_seed
from services.vms.errors import MachineMissing, NodeDown, ProxmoxFailure, SeedRefused
from services.vms.models import Vm
from services.vms.operations.failover import elsewhere
from services.vms.operations.machines import Machines, reaching
from services.vms.ports import Seeds
from services.vms.repository import VmRepository

_log = structlog.get_logger()


def seed_file(vm: Vm) -> str:
    return f"{SEED_FILE.removeprefix('iso/')}{vm.id}.iso"


class Seeding:
    """Runs and undoes the step `seed` of `vm.create`; for a machine without `user_data` there is nothing to do."""

    def __init__(self, machines: Machines, sealer: Sealer, seeds: Seeds) -> None:
        self._machines = machines
        self._sealer = sealer
        self._seeds = seeds

    async def run(self, context: StepContext) -> Json:
        vm = await self._machines.record(context)
        if vm.sealed_user_data is None:
            return {}
        node = str(context.results["clone"]["node"])
        try:
            await self._run(context, vm, node)
        except ProxmoxFailure as error:
            raise elsewhere(context, error, node=node) from error
        return {}

    async def _run(self, context: StepContext, vm: Vm, node: str) -> None:
        cluster = self._machines.fleet.get(vm.cluster)
        found = await self._machines.find(vm, near=node)
        storage = place_seed(await cluster.inventory(max_age_s=5), cluster.storages, node, ha=vm.ha)
        await self._note(vm, f"{storage.name}:iso/{seed_file(vm)}", None if storage.shared else node)
        try:
            user_data = self._sealer.open(vm.sealed_user_data or "")
            password = None if vm.sealed_password is None else self._sealer.open(vm.sealed_password)
        except ValueError as error:
            raise SeedRefused("What it was to be given was sealed with another secret; make it again") from error
        seed = Seed(
            vm_id=str(vm.id),
            hostname=hostname(vm.name),
            user_data=user_data,
            user=vm.guest_user,
            public_keys=(vm.ssh_public_key or "").splitlines(),
            network=vm.network or {},
            card=found.config.card,
        )
        content = await self._seeds.build(seed, password=password)

        async def begin() -> str:
            return await cluster.files.upload(node, storage.name, name=seed_file(vm), content=content)

        async def recall(_since: float) -> str | None:
            return None  # uploading once more puts the same file over it

        await self._machines.task(context, cluster, "upload", begin, recall)

    async def undo(self, context: StepContext) -> None:
        vm = await self._machines.record(context)
        await self.remove(context, vm, str(context.results.get("clone", {}).get("node", "")))

    async def remove(self, context: StepContext, vm: Vm, node: str | None) -> None:
        """Remove a machine's seed if it has one; a storage that is away keeps a file of a few kilobytes."""
        if vm.seed_volume is None:
            return
        cluster = self._machines.fleet.get(vm.cluster)
        try:
            at = vm.seed_node or await reaching(cluster, vm.seed_volume.partition(":")[0], node)
            upid = await cluster.files.remove(at, vm.seed_volume)
            if upid is not None:
                await self._machines.follow(context, cluster, upid)
        except (MachineMissing, NodeDown) as error:
            _log.warning("seed_stays", volume=vm.seed_volume, node=vm.seed_node, error=error.slug)
        await self._note(vm, None, None)

    async def _note(self, vm: Vm, volume: str | None, node: str | None) -> None:
        """Where the seed is, before it is there."""
        async with self._machines.uow() as uow:
            kept = await VmRepository(uow.session).get(vm.id, for_update=True)
            if kept is not None:
                kept.seed_volume, kept.seed_node = volume, node
            await uow.commit()
        vm.seed_volume, vm.seed_node = volume, node
