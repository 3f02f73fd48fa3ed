"""What is promised on a cluster's nodes: to Telar's machines by their records, to others by what runs."""

from collections import defaultdict
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from uuid import UUID

from sqlmodel.ext.asyncio.session import AsyncSession

from services.vms.domain.cluster import Inventory, Machine, Template
from services.vms.domain.placement import Candidate, Demand, template_for
from services.vms.ports import Cluster
from services.vms.repository import NodeRepository, Promised, VmRepository

_NOTHING = Promised()


@dataclass(slots=True)
class Tally:
    """What records say of a cluster: promises by node, Telar's VMIDs, and nodes under maintenance with the reason."""

    promised: dict[str, Promised]
    own: frozenset[int]
    maintained: Mapping[str, str]
    _others: tuple[Inventory, Mapping[str, Sequence[Machine]]] | None = None

    def promise(self, node: str, demand: Demand) -> None:
        """Count one machine more on a node."""
        known = self.promised.get(node, _NOTHING)
        self.promised[node] = replace(
            known,
            cores=known.cores + demand.cores,
            memory_mib=known.memory_mib + demand.memory_mib,
            machines=known.machines + 1,
        )

    def strangers(self, known: Inventory) -> Mapping[str, Sequence[Machine]]:
        """By node, the machines of others that are not off; looked for once in each inventory."""
        if self._others is None or self._others[0] is not known:
            found: dict[str, list[Machine]] = defaultdict(list)
            for machine in known.machines.values():
                if machine.vmid not in self.own and not machine.template and machine.status != "stopped":
                    found[machine.node].append(machine)
            self._others = known, found
        return self._others[1]


async def tally(session: AsyncSession, cluster: str, *, without: Collection[UUID] = ()) -> Tally:
    """Count a cluster's promises, leaving out those to some machines, whose VMIDs are Telar's all the same."""
    promised, own = await VmRepository(session).promised(cluster, without=without)
    return Tally(promised, own, await NodeRepository(session).maintained(cluster))


def candidates(
    cluster: Cluster,
    known: Inventory,
    told: Tally,
    *,
    copies: Sequence[Template],
    avoided: Mapping[str, str] | None = None,
    avoided_sources: frozenset[str] = frozenset(),
) -> list[Candidate]:
    """Every node of a cluster with what is promised on it."""
    strangers = told.strangers(known)
    found = []
    for node in known.nodes.values():
        telar, others = told.promised.get(node.name, _NOTHING), strangers.get(node.name, ())
        template = template_for(node.name, copies, _usable(known, node.name, avoided_sources))
        found.append(
            Candidate(
                node=node,
                promised_cores=telar.cores + sum(machine.cores for machine in others),
                promised_memory_mib=telar.memory_mib + sum(machine.memory_mib for machine in others),
                machines=telar.machines + len(others),
                template=template,
                free_gib=_free_gib(known, node.name, template),
                avoided=(avoided or {}).get(node.name),
                maintenance=told.maintained.get(node.name),
                trouble=cluster.trouble(node.name),
            )
        )
    return found


def _usable(known: Inventory, node: str, avoided_sources: frozenset[str]) -> Callable[[Template], bool]:
    """Tells whether a copy can be cloned to a node: its own node is up, and the target reaches all its storages."""

    def usable(template: Template) -> bool:
        reached = [known.storages.get((node, storage)) for storage in template.storages]
        return (
            known.online(template.node)
            and template.node not in avoided_sources
            and all(storage is not None and storage.available for storage in reached)
        )

    return usable


def _free_gib(known: Inventory, node: str, template: Template | None) -> float:
    storages = () if template is None else template.storages
    return min((known.storages[node, name].free_gib for name in storages), default=0.0)
