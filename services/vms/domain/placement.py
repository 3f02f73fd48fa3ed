"""Where a machine fits: every node is judged by filters and weighed, and says why; pure."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

from services.vms.domain.cluster import Node, Template


@dataclass(frozen=True, slots=True)
class Demand:
    """What a machine needs; `node` if its owner wants that one and no other."""

    cores: int
    memory_mib: int
    disk_gib: int
    node: str | None = None
    ha: bool = False
    """Whether it must be able to start on another node: nothing of it may lie on local storage."""


@dataclass(frozen=True, slots=True)
class Candidate:
    """A node with what is promised on it, the copy of the template it would clone, and the space it has for disks."""

    node: Node
    promised_cores: int = 0
    promised_memory_mib: int = 0
    machines: int = 0
    template: Template | None = None
    free_gib: float = 0.0
    avoided: str | None = None
    """Why this machine shall not be tried there again."""
    maintenance: str | None = None
    """Why an administrator wants nothing new there; empty if no reason was given, None if it is in service."""
    trouble: str | None = None
    """Why calls to it are not made for now."""


@dataclass(frozen=True, slots=True)
class Policy:
    """How much may be promised: cores per core, memory per memory, and what a node and a storage keep for themselves.

    `pack` fills one node after the other instead of spreading machines over all.
    """

    cpu_ratio: float = 4.0
    memory_ratio: float = 1.0
    memory_reserve_mib: int = 2048
    disk_reserve_gib: int = 0
    pack: bool = False

    def cores(self, node: Node) -> float:
        return node.cores * self.cpu_ratio

    def memory_mib(self, node: Node) -> float:
        return max(0.0, (node.memory_mib - self.memory_reserve_mib) * self.memory_ratio)


@dataclass(frozen=True, slots=True)
class Verdict:
    """What is said of one node: it fits, with a score from 0 to 1 made of `weights`, or why it does not."""

    node: str
    fits: bool
    reasons: tuple[str, ...] = ()
    score: float = 0.0
    weights: Mapping[str, float] = field(default_factory=dict)
    template: Template | None = None


Filter = Callable[[Demand, Candidate, Policy], str | None]
"""Gives the reason why a node is out of the question, or None."""
Weigher = Callable[[Demand, Candidate, Policy], float]
"""Rates a node that fits, from 0 (worst) to 1 (best)."""


def _wanted(demand: Demand, candidate: Candidate, _policy: Policy) -> str | None:
    if demand.node is not None and demand.node != candidate.node.name:
        return f"another node was asked for: {demand.node}"
    return candidate.avoided


def _online(_demand: Demand, candidate: Candidate, _policy: Policy) -> str | None:
    return None if candidate.node.online else "the node is offline"


def _maintenance(_demand: Demand, candidate: Candidate, _policy: Policy) -> str | None:
    if candidate.maintenance is None:
        return None
    return f"under maintenance: {candidate.maintenance}" if candidate.maintenance else "under maintenance"


def _answers(_demand: Demand, candidate: Candidate, _policy: Policy) -> str | None:
    return None if candidate.trouble is None else f"left alone for now: {candidate.trouble}"


def _movable(demand: Demand, candidate: Candidate, _policy: Policy) -> str | None:
    local = candidate.template is not None and not candidate.template.shared
    return "high availability needs a template on shared storage" if demand.ha and local else None


def _template(_demand: Demand, candidate: Candidate, _policy: Policy) -> str | None:
    return None if candidate.template is not None else "no copy of the template can be cloned to it"


def _processor(demand: Demand, candidate: Candidate, policy: Policy) -> str | None:
    if demand.cores > candidate.node.cores:
        return f"{demand.cores} cores are wanted, the node has {candidate.node.cores}"
    free = policy.cores(candidate.node) - candidate.promised_cores
    if demand.cores > free:
        return f"{demand.cores} cores are wanted, {max(0, int(free))} can still be promised"
    return None


def _memory(demand: Demand, candidate: Candidate, policy: Policy) -> str | None:
    free = policy.memory_mib(candidate.node) - candidate.promised_memory_mib
    if demand.memory_mib > free:
        return f"{demand.memory_mib} MiB of memory are wanted, {max(0, int(free))} MiB can still be promised"
    return None


def _space(demand: Demand, candidate: Candidate, policy: Policy) -> str | None:
    if candidate.template is None:
        return None
    free = candidate.free_gib - policy.disk_reserve_gib
    if demand.disk_gib > free:
        return f"{demand.disk_gib} GiB of disk are wanted, {max(0, int(free))} GiB are free"
    return None


def _share(used: float, whole: float) -> float:
    return min(1.0, max(0.0, 1.0 - used / whole)) if whole > 0 else 0.0


def _free_memory(demand: Demand, candidate: Candidate, policy: Policy) -> float:
    free = _share(candidate.promised_memory_mib + demand.memory_mib, policy.memory_mib(candidate.node))
    return 1.0 - free if policy.pack else free


def _free_cores(demand: Demand, candidate: Candidate, policy: Policy) -> float:
    free = _share(candidate.promised_cores + demand.cores, policy.cores(candidate.node))
    return 1.0 - free if policy.pack else free


def _calm(_demand: Demand, candidate: Candidate, _policy: Policy) -> float:
    return min(1.0, max(0.0, 1.0 - candidate.node.cpu_load))


def _near(_demand: Demand, candidate: Candidate, _policy: Policy) -> float:
    """A copy of the template on the node itself needs no hop."""
    return 1.0 if candidate.template is not None and candidate.template.node == candidate.node.name else 0.0


FILTERS: Sequence[Filter] = (
    _wanted,
    _online,
    _maintenance,
    _answers,
    _template,
    _movable,
    _processor,
    _memory,
    _space,
)
WEIGHERS: Mapping[str, tuple[float, Weigher]] = {
    "free_memory": (0.55, _free_memory),
    "free_cores": (0.30, _free_cores),
    "calm": (0.10, _calm),
    "template_near": (0.05, _near),
}


def judge(demand: Demand, candidate: Candidate, policy: Policy) -> Verdict:
    """Say whether one node fits, and how well, or everything that speaks against it."""
    if not candidate.node.online:  # nothing else is known of it
        rules: Sequence[Filter] = (_wanted, _online, _maintenance)
    else:
        rules = FILTERS
    reasons = [reason for rule in rules if (reason := rule(demand, candidate, policy)) is not None]
    if reasons:
        return Verdict(candidate.node.name, fits=False, reasons=tuple(reasons))
    weights = {name: round(share * rate(demand, candidate, policy), 6) for name, (share, rate) in WEIGHERS.items()}
    return Verdict(
        candidate.node.name, fits=True, score=sum(weights.values()), weights=weights, template=candidate.template
    )


def rank(demand: Demand, candidates: Sequence[Candidate], policy: Policy) -> list[Verdict]:
    """Judge every node: those that fit first, the best of them at the top, equals by name."""
    verdicts = [judge(demand, candidate, policy) for candidate in candidates]
    return sorted(verdicts, key=lambda verdict: (not verdict.fits, -verdict.score, verdict.node))


def explain(verdicts: Sequence[Verdict]) -> str:
    """One line for people on why no node fits."""
    if not verdicts:
        return "The cluster shows no nodes"
    return "; ".join(f"{verdict.node}: {', '.join(verdict.reasons)}" for verdict in verdicts)


def template_for(node: str, copies: Sequence[Template], usable: Callable[[Template], bool]) -> Template | None:
    """The copy to clone for a machine on `node`: one that is there, else one on storage that all nodes share."""
    reachable = [one for one in copies if usable(one) and (one.node == node or one.shared)]
    return min(reachable, key=lambda one: (one.node != node, one.vmid), default=None)
