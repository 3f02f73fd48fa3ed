"""The lab as a whole: every part of the simulated cluster, opened from its data folder and closed in order."""

import json
import random
import secrets
import uuid
from collections import Counter
from collections.abc import Awaitable, Callable
from pathlib import Path

from pydantic import SecretStr

from libs.pvesim.access.accounts import Accounts
from libs.pvesim.access.control import AccessControl
from libs.pvesim.access.identity import TicketOffice
from libs.pvesim.access.tfa import SecondFactors
from libs.pvesim.certificate import Certificate, private_key
from libs.pvesim.clock import LabClock
from libs.pvesim.cluster.journal import Journal
from libs.pvesim.cluster.nodes import Node, Nodes
from libs.pvesim.cluster.options import DatacenterOptions
from libs.pvesim.cluster.pools import Pools
from libs.pvesim.console.desk import ConsoleDesk
from libs.pvesim.errors import PveError
from libs.pvesim.faults import Fault, Faults
from libs.pvesim.ha.manager import HaManager
from libs.pvesim.locks import Locks
from libs.pvesim.qemu.agent.processes import Processes
from libs.pvesim.qemu.model import Vms
from libs.pvesim.settings import LabSettings
from libs.pvesim.storage.model import Storages
from libs.pvesim.store import Store
from libs.pvesim.tasks import Tasks
from libs.pvesim.threads import Threads

_Documents = dict[str, dict[str, dict[str, object]]]


class Lab:
    """One simulated cluster. Use `await Lab.open(settings)` and `await lab.aclose()`."""

    def __init__(self, settings: LabSettings, store: Store, documents: _Documents) -> None:
        def loaded(kind: str) -> dict[str, dict[str, object]]:
            return documents.get(kind, {})

        self.settings = settings
        self.store = store
        self.fresh = not documents
        self.clock = LabClock(settings.time_scale)
        self.rng = random.Random(settings.seed)  # noqa: S311  (MACs and process ids, no secrets)
        self.calls: Counter[str] = Counter()
        self.threads = Threads(4, "pvesim")
        self.certificate = Certificate(settings.data_dir)
        self.faults = Faults(store, loaded("fault"))
        self.datacenter = DatacenterOptions(store, settings.release, self.rng, loaded("option"))
        self.journal = Journal(store, self.clock, loaded("journal"), lines=settings.cluster_log_lines)
        self.nodes = Nodes(settings.nodes, settings.api_node, self.clock)
        self.locks = Locks(self.clock)
        self.storages = Storages(
            settings, store, self.clock, self.nodes, self.locks, loaded("volume"), loaded("storage")
        )
        self.vms = Vms(store, self.clock, self.nodes, settings.stats_period_s, loaded("vm"))
        self.tasks = Tasks(
            store,
            self.clock,
            self.faults,
            archive=settings.archived_tasks_per_node,
            rng=self.rng,
            loaded=loaded("task"),
        )
        self.tasks.on_start.append(self.journal.begun)
        self.tasks.on_end.append(self.journal.ended)
        self.accounts = Accounts(store, self.clock, loaded("user"))
        self.second_factors = SecondFactors(self.accounts, self.clock)
        self.access = AccessControl(store, self.accounts, loaded("role"), loaded("acl"), settings.release)
        self.pools = Pools(store, loaded("pool"))
        self.ha = HaManager(store, loaded)
        self.consoles = ConsoleDesk()
        self.processes = Processes(self.clock)
        self.on_power: list[Callable[[Node], Awaitable[None]]] = []
        self.access.pool_of = self.pools.of
        self.access.stripped = self.faults.strips
        self.office: TicketOffice
        self.root_password: SecretStr
        self.token_secret: SecretStr

    @classmethod
    async def open(cls, settings: LabSettings) -> "Lab":
        """Load the lab from its folder, or found it there with its templates and its provisioner's token."""
        # Imported late: the founding uses rooms that themselves know the lab.
        from libs.pvesim.seed import found, renew_secrets  # noqa: PLC0415

        settings.data_dir.mkdir(parents=True, exist_ok=True)
        store = Store(settings.data_dir / "lab.sqlite")
        lab = cls(settings, store, await store.open())
        await lab.threads.run(lab._keys)
        if lab.fresh:
            found(lab)
            await store.durable()
        else:
            renew_secrets(lab)
        for fault in lab.faults.list():
            if fault.kind == "node_down" and fault.node in lab.nodes.by_name:
                lab.nodes.by_name[fault.node].down_since = lab.clock.now()
        lab.consoles.attach(lab)
        lab.ha.attach(lab)
        return lab

    def _keys(self) -> None:
        folder, settings = self.settings.data_dir, self.settings
        self.certificate.ensure([settings.host, *settings.advertised_names])
        kept = _kept_secrets(folder / "secrets.json")
        self.root_password = settings.root_password or SecretStr(kept["root_password"])
        self.token_secret = settings.token_secret or SecretStr(kept["token_secret"])
        self.office = TicketOffice(
            private_key(folder / "authkey.key"), kept["csrf_key"].encode(), self.clock, settings.ticket_lifetime_s
        )

    def check_quorum(self) -> None:
        if not self.nodes.quorate or self.faults.no_quorum():
            raise PveError("cluster not ready - no quorum?")

    async def inject(self, fault: Fault) -> None:
        """Put a fault in force. A node that goes down takes its machines and workers with it."""
        self.faults.add(fault)
        self.access.forget()
        if fault.kind == "node_down" and (node := self.nodes.by_name.get(fault.node or "")) is not None and node.up:
            node.down_since = self.clock.now()
            await self.tasks.interrupt_node(node.name)
            self.ha.wake()
            await self._power(node)

    async def withdraw(self, fault_id: str) -> bool:
        """Lift a fault; a node that comes back finds its machines off. Returns whether the fault was known."""
        fault = self.faults.remove(fault_id)
        if fault is None:
            return False
        self.access.forget()
        if fault.kind == "node_down" and (node := self.nodes.by_name.get(fault.node or "")) is not None:
            node.down_since, node.booted = None, self.clock.now()
            for vm in self.vms:
                if vm.node == node.name and vm.running:
                    vm.qmp, vm.started, vm.guest_up, vm.pid = "stopped", None, None, None
                    self.vms.save(vm)
            self.ha.wake()
            await self._power(node)
        return True

    async def _power(self, node: Node) -> None:
        """Tell everybody that a node failed or returned."""
        for listener in list(self.on_power):
            await listener(node)

    async def aclose(self) -> None:
        """Interrupt what runs, as a node's shutdown does, and write everything down."""
        await self.ha.aclose()
        await self.tasks.aclose()
        await self.store.aclose()
        self.threads.close()


def _kept_secrets(path: Path) -> dict[str, str]:
    if not path.exists():
        fresh = {
            "root_password": secrets.token_urlsafe(18),
            "token_secret": str(uuid.uuid4()),
            "csrf_key": secrets.token_urlsafe(32),
        }
        path.touch(mode=0o600)
        path.write_text(json.dumps(fresh))
    kept: dict[str, str] = json.loads(path.read_text())
    return kept
