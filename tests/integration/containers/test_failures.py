"""Deployments that fail or are cancelled: nothing is left but the record that says why."""

import asyncio
import os
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any
from uuid import UUID

import docker
import pytest

from services.containers.domain.stacks import project_name
from tests.contract.containers.harness import SITE, Service, running, zip_of
from tests.corpora.zip import hostile
from tests.integration.containers.conftest import Remains

pytestmark = pytest.mark.docker
Eventually = Callable[..., Awaitable[None]]


async def assert_nothing_is_left(
    service: Service, user: str, stack: dict[str, Any], remains: Remains
) -> dict[str, Any]:
    """Check that a stack failed without remains; gives it as it is shown, then deletes its record."""
    shown = await service.get(user, stack["id"])
    assert shown["state"] == "failed"
    assert (shown["services"], shown["urls"]) == ([], [])
    assert remains(project_name(UUID(stack["id"]))) == []
    assert UUID(stack["id"]).hex not in service.folders()
    assert service.used_stacks(user) == 0
    assert service.rows("SELECT * FROM host_ports WHERE stack_id = %s", stack["id"]) == []
    answer = await service.http.delete(f"/api/v1/stacks/{stack['id']}", headers=service.as_user(user))
    assert (await service.ended(user, answer.json()["id"]))["state"] == "succeeded"
    assert service.used_stacks(user) == 0
    return shown


async def test_a_service_that_ends_at_once_fails_and_leaves_nothing(
    own_database: str, tmp_path: Path, remains: Remains, eventually: Eventually
) -> None:
    async with running(own_database, tmp_path, images={"static": "telar/base:trixie"}) as service:
        user = await service.new_user()
        answer = await service.create(user, files=SITE)
        stack = answer.json()["stack"]
        operation = await service.ended(user, answer.json()["id"], 90)
        assert operation["state"] == "failed"
        assert operation["error"]["type"] == "/problems/stack-unhealthy"
        shown = await assert_nothing_is_left(service, user, stack, remains)
        assert "static is" in shown["reason"]
        await eventually(lambda: service.events(stack["id"])[-1:] == ["deleted"])
        assert service.events(stack["id"])[:2] == ["created", "failed"]


async def test_an_image_that_cannot_be_had_fails_and_leaves_nothing(
    own_database: str, tmp_path: Path, remains: Remains
) -> None:
    missing = "127.0.0.1:9/telar/no-such-image:1"
    async with running(own_database, tmp_path, images={"static": missing}) as service:
        user = await service.new_user()
        answer = await service.create(user)
        operation = await service.ended(user, answer.json()["id"], 90)
        assert operation["state"] == "failed"
        assert operation["error"]["type"] == "/problems/engine-failed"
        assert str(tmp_path) not in str(operation)
        await assert_nothing_is_left(service, user, answer.json()["stack"], remains)


@pytest.mark.parametrize("name", ["parent", "symbolic link", "ratio bomb", "overlap", "not a ZIP"])
async def test_a_hostile_zip_fails_with_its_reason_and_leaves_nothing(
    service: Service, remains: Remains, name: str
) -> None:
    user = await service.new_user()
    answer = await service.create(user, files=hostile.CASES[name]())
    assert answer.status_code == 202, answer.text
    operation = await service.ended(user, answer.json()["id"])
    assert operation["state"] == "failed"
    assert operation["error"]["type"] == "/problems/archive-refused"
    await assert_nothing_is_left(service, user, answer.json()["stack"], remains)


async def test_a_cancelled_deployment_is_undone(service: Service, remains: Remains, eventually: Eventually) -> None:
    user = await service.new_user()
    answer = await service.create(user, files=zip_of({f"{n}.html": "x" for n in range(500)}))
    operation_id = answer.json()["id"]
    path = f"/api/v1/operations/{operation_id}"

    async def cancelled() -> bool:
        asked = await service.http.delete(path, headers=service.as_user(user))
        return asked.status_code in (200, 202)

    await eventually(cancelled)
    operation = await service.ended(user, operation_id)
    if operation["state"] == "succeeded":
        pytest.fail("it was faster than its cancellation; the test proves nothing")
    assert operation["state"] == "cancelled"
    if operation["attempts"]:
        await assert_nothing_is_left(service, user, answer.json()["stack"], remains)


async def test_deleting_a_stack_whose_containers_somebody_removed_succeeds(service: Service, remains: Remains) -> None:
    user = await service.new_user()
    stack = await service.done(user, await service.create(user, name="by-hand"))
    client = docker.from_env()
    for container in client.containers.list(filters={"label": f"telar.stack={stack['id']}"}):
        container.remove(force=True)
    client.close()
    assert (await service.get(user, stack["id"]))["health"] == "unknown"
    await service.act(user, stack["id"], "start")
    assert (await service.get(user, stack["id"]))["health"] == "healthy"
    await service.act(user, stack["id"], "delete")
    assert remains(project_name(UUID(stack["id"]))) == []


async def test_a_health_check_that_never_ends_holds_up_nobody(
    own_database: str, tmp_path: Path, remains: Remains
) -> None:
    check = "{test: [CMD, sleep, infinity], interval: 1s, timeout: 1s, retries: 1000, start_period: 1h}"
    text = f"services: {{a: {{image: 'telar/nginx:1.26', healthcheck: {check}}}}}"
    async with running(own_database, tmp_path, healthy_timeout_s=6) as service:
        user = await service.new_user()
        answer = await service.create(user, compose=text, service_types=[])
        stack = answer.json()["stack"]

        async def is_asked_for_until_it_has_failed() -> None:
            while (await service.get(user, stack["id"]))["state"] == "creating":
                pass

        async with asyncio.timeout(60), asyncio.TaskGroup() as readers:
            for _ in range(2 * (os.cpu_count() or 1) + 8):  # more than there are threads
                readers.create_task(is_asked_for_until_it_has_failed())
        operation = await service.ended(user, answer.json()["id"])
        assert operation["error"]["type"] == "/problems/stack-unhealthy"
        await assert_nothing_is_left(service, user, stack, remains)
