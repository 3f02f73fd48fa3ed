"""The clusters that the service works with, by name."""

from collections.abc import Iterable, Iterator

from services.vms.errors import NoCluster
from services.vms.ports import Cluster


class Fleet:
    """Looks clusters up; the order is the operator's, and the first that can do a thing does it."""

    def __init__(self, clusters: Iterable[Cluster]) -> None:
        self._clusters = {cluster.name: cluster for cluster in clusters}

    def __iter__(self) -> Iterator[Cluster]:
        return iter(self._clusters.values())

    def get(self, name: str) -> Cluster:
        """A cluster by its name; raises NoCluster if it is configured no more."""
        found = self._clusters.get(name)
        if found is None:
            raise NoCluster(f"The cluster {name} is not configured; TELAR_VMS_CLUSTERS names those that are")
        return found

    def require_any(self) -> None:
        if not self._clusters:
            raise NoCluster("An operator has to name one in TELAR_VMS_CLUSTERS")
