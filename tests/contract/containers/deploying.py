"""Stacks deployed on a real engine through the service, for tests of templates: made, looked at, removed."""

import contextlib
from typing import Any
from uuid import UUID

import docker
import httpx

from libs.common.testing.needs import missing
from libs.common.testing.stack import require_engine
from services.containers.domain.stacks import project_name
from tests.contract.containers.harness import Service
from tests.integration.containers.conftest import remains_of

_IMAGES = (
    "nginx:1.26 php:8.4 nodejs:20 python:3.13 mariadb:11.8 postgres:17 redis:8.0 ferretdb:1.24 wordpress:6.8 "
    "copyparty:1.20"
)
_KILLED = 137
_DEADLINE_S = 110


def require_images() -> None:
    """End the running test where the engine lacks the images of deploy/airgap."""
    require_engine()
    with contextlib.closing(docker.from_env()) as client:
        lacking = [f"telar/{name}" for name in _IMAGES.split() if not client.images.list(name=f"telar/{name}")]
    if lacking:
        missing(f"the engine has no {', '.join(lacking)}: deploy/airgap/build.sh stacks makes them")


async def deployed(service: Service, user: str, name: str, **fields: Any) -> dict[str, Any]:
    """Deploy a stack; gives it as it is shown once it runs."""
    return await running_stack(service, user, await service.create(user, name=name, **fields))


async def running_stack(service: Service, user: str, answer: httpx.Response) -> dict[str, Any]:
    """Wait for a deployment that was accepted; gives the stack as it is shown then."""
    stack = await service.done(user, answer, _DEADLINE_S)
    shown = await service.get(user, stack["id"])
    assert (shown["state"], shown["health"]) == ("running", "healthy"), shown
    return shown


async def removed(service: Service, user: str, stack: dict[str, Any]) -> None:
    """Stop the stack, which nothing in it may sit out, and delete it without remains."""
    await service.act(user, stack["id"], "stop")
    ends = {one["Name"]: one["State"]["ExitCode"] for one in containers_of(stack)}
    assert _KILLED not in ends.values(), ends
    await service.act(user, stack["id"], "delete")
    assert remains_of(project_name(UUID(stack["id"]))) == []


def containers_of(stack: dict[str, Any]) -> list[dict[str, Any]]:
    """Every container of the stack as the engine describes it, ended ones too."""
    wanted: dict[str, Any] = {"label": f"com.docker.compose.project={project_name(UUID(stack['id']))}"}
    with contextlib.closing(docker.from_env()) as client:
        return [one.attrs for one in client.containers.list(all=True, filters=wanted)]


def log_of(stack: dict[str, Any], service: str) -> str:
    with contextlib.closing(docker.from_env()) as client:
        container = client.containers.get(f"{project_name(UUID(stack['id']))}-{service}-1")
        return str(container.logs().decode())


def host_port(stack: dict[str, Any], name: str) -> int:
    return int(next(service["host_port"] for service in stack["services"] if service["name"] == name))


async def page(url: str, *, status: int = 200) -> str:
    async with httpx.AsyncClient(trust_env=False, follow_redirects=True) as web:
        answer = await web.get(url)
    assert answer.status_code == status, answer.text
    return answer.text
