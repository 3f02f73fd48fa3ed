"""The service against a real Docker engine."""

import itertools
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path
from typing import Any

import docker
import psycopg
import pytest
from sqlalchemy.engine import make_url

from libs.common.testing.stack import require_engine
from tests.contract.containers.harness import Service, running

Remains = Callable[[str], list[str]]
_numbers = itertools.count(1)


def remains_of(project: str) -> list[str]:
    """Whatever the engine still has of a compose project."""
    wanted: dict[str, Any] = {"label": f"com.docker.compose.project={project}"}
    client = docker.from_env()
    try:
        return [
            *(str(one.name) for one in client.containers.list(all=True, filters=wanted)),
            *(str(one.name) for one in client.networks.list(filters=wanted)),
            *(str(one.name) for one in client.volumes.list(filters=wanted)),
        ]
    finally:
        client.close()


@pytest.fixture(scope="module")
async def service(database_url: str, tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Service]:
    require_engine()
    folder: Path = tmp_path_factory.mktemp("containers")
    async with running(database_url, folder, healthy_timeout_s=15) as service:
        yield service


@pytest.fixture(scope="session")
def remains() -> Remains:
    require_engine()
    return remains_of


@pytest.fixture
def own_database(postgres_server: str) -> Iterator[str]:
    """A database for one test, whose services must not take up another one's work."""
    require_engine()
    name = f"stacks_{next(_numbers)}"
    with psycopg.connect(postgres_server, autocommit=True) as server:
        server.execute(f"CREATE DATABASE {name}")
        yield make_url(postgres_server).set(database=name).render_as_string(hide_password=False)
        server.execute(f"DROP DATABASE {name} WITH (FORCE)")
