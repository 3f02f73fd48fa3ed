"""One cluster for all proofs of the distributed suite: each leaves it well for the next."""

from collections.abc import Iterator

import pytest

from tests.chaos.suite.cluster import Cluster, running_cluster
from tests.chaos.suite.collector import Collector, collecting


@pytest.fixture(scope="session")
def collector() -> Iterator[Collector]:
    with collecting() as collector:
        yield collector


@pytest.fixture(scope="session")
def whole_cluster(tmp_path_factory: pytest.TempPathFactory, collector: Collector) -> Iterator[Cluster]:
    with running_cluster(tmp_path_factory.mktemp("cluster"), TELAR_OTLP_ENDPOINT=collector.url) as cluster:
        yield cluster


@pytest.fixture
def cluster(whole_cluster: Cluster) -> Cluster:
    """The cluster, all of it ready."""
    whole_cluster.wait_ready()
    return whole_cluster
