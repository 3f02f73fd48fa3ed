"""The machines of the cluster: capacity, address, and whether they are up."""

from collections.abc import Iterator
from dataclasses import dataclass

from libs.pvesim.clock import LabClock
from libs.pvesim.errors import PveError
from libs.pvesim.settings import NodeSettings

GIB = 1024**3


@dataclass(slots=True)
class Node:
    """`down_since` is the epoch stamp of the node's failure, None while it is up; `booted` that of its last start."""

    settings: NodeSettings
    nodeid: int
    address: str
    booted: float
    down_since: float | None = None

    @property
    def name(self) -> str:
        return self.settings.name

    @property
    def up(self) -> bool:
        return self.down_since is None

    @property
    def memory_bytes(self) -> int:
        return self.settings.memory_gib * GIB


class Nodes:
    """All nodes by name; `local` is the one that answers at the cluster's own address."""

    def __init__(self, settings: list[NodeSettings], local: str, clock: LabClock) -> None:
        self._clock = clock
        self.by_name = {
            node.name: Node(node, position, f"10.20.0.{10 + position}", clock.now())
            for position, node in enumerate(settings, start=1)
        }
        self._first = self.by_name[local]

    def __iter__(self) -> Iterator[Node]:
        return iter(self.by_name.values())

    @property
    def local(self) -> Node:
        """The chosen node, or while that is down the first one alive."""
        return next((node for node in [self._first, *self] if node.up), self._first)

    def known(self, name: str) -> Node:
        """The node a parameter names; raises `no such cluster node`."""
        node = self.by_name.get(name)
        if node is None:
            raise PveError(f"no such cluster node '{name}'")
        return node

    @property
    def quorate(self) -> bool:
        return sum(node.up for node in self) * 2 > len(self.by_name)

    def statistics_tick(self, node: Node, period_s: float) -> int:
        """The last statistics round the node took part in."""
        return self._clock.tick(period_s, node.down_since)

    def statistics_age(self, node: Node) -> float:
        """Lab seconds since the node's last sign of life."""
        return 0.0 if node.down_since is None else self._clock.elapsed(node.down_since)
