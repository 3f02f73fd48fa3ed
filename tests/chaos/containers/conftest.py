"""Long proofs of stacks: they share the fixtures of the suite's own tests of stacks and of its gateway."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from libs.common.testing.stack import require_engine
from tests.contract.containers.deploying import require_images
from tests.contract.containers.git_server import GitServer, serving_git
from tests.e2e.conftest import RunningSuite, log_in, start_suite
from tests.integration.containers.conftest import own_database, remains

__all__ = ["own_database", "remains"]


@pytest.fixture(scope="module")
def repositories(tmp_path_factory: pytest.TempPathFactory) -> Iterator[GitServer]:
    with serving_git(tmp_path_factory.mktemp("git")) as server:
        yield server


@pytest.fixture(scope="module")
def stacks_suite(tmp_path_factory: pytest.TempPathFactory, repositories: GitServer) -> Iterator[RunningSuite]:
    """The embedded suite, whose stacks may be cloned from the local Git server."""
    require_engine()
    require_images()
    folder: Path = tmp_path_factory.mktemp("suite")
    running = start_suite(folder / "data", TELAR_CONTAINERS_GIT_CA_FILE=str(repositories.ca_file))
    try:
        yield running
    finally:
        running.stop()


@pytest.fixture(scope="module")
def token(stacks_suite: RunningSuite) -> str:
    return str(log_in(stacks_suite.url, stacks_suite.username, stacks_suite.password)["access_token"])
