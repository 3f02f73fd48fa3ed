"""Changes made behind Telar's back, told by the engine's events; and an engine that goes away."""

import asyncio
import contextlib
from collections.abc import Awaitable, Callable, Sequence
from pathlib import Path
from typing import Any

import docker
import pytest

from libs.common.db import Database
from libs.common.uow import UnitOfWorkFactory
from services.containers.adapters.engine import DockerEngine
from services.containers.domain.stacks import Observed
from services.containers.service import Reconciler
from tests.contract.containers.harness import Service, running
from tests.integration.containers.conftest import Remains

pytestmark = pytest.mark.docker
Eventually = Callable[..., Awaitable[None]]


def containers(stack: dict[str, Any]) -> list[Any]:
    with contextlib.closing(docker.from_env()) as client:
        return list(client.containers.list(all=True, filters={"label": f"telar.stack={stack['id']}"}))


async def test_what_happens_to_containers_outside_telar_is_recorded_and_told(
    service: Service, eventually: Eventually
) -> None:
    user = await service.new_user()
    stack = await service.done(user, await service.create(user))

    async def is_shown(state: str, health: str) -> bool:
        shown = await service.get(user, stack["id"])
        return (shown["state"], shown["health"]) == (state, health)

    def recorded(state: str, health: str) -> bool:
        return service.rows("SELECT state, health FROM stacks WHERE id = %s", stack["id"]) == [(state, health)]

    (container,) = await asyncio.to_thread(containers, stack)
    await asyncio.to_thread(container.stop, timeout=5)
    await eventually(lambda: recorded("stopped", "stopped"))
    assert "outside Telar" in (await service.get(user, stack["id"]))["reason"]
    await asyncio.to_thread(container.start)
    await eventually(lambda: recorded("running", "starting"))
    await eventually(lambda: is_shown("running", "healthy"))
    await asyncio.to_thread(container.remove, force=True)
    await eventually(lambda: recorded("running", "unknown"))
    assert (await service.get(user, stack["id"]))["state"] == "running"
    await service.act(user, stack["id"], "restart")
    await eventually(lambda: recorded("running", "healthy"))
    await eventually(lambda: service.events(stack["id"])[1:4] == ["state_changed:running", *_OUTSIDE])
    await service.act(user, stack["id"], "delete")


_OUTSIDE = ["state_changed:stopped", "state_changed:running"]


async def test_what_was_seen_before_an_operation_ended_does_not_undo_what_it_told(service: Service) -> None:
    user = await service.new_user()
    stack = await service.done(user, await service.create(user))

    class LateEngine(DockerEngine):
        async def observe(self, project: str | None = None) -> Sequence[Observed]:
            found = await super().observe(project)
            await service.act(user, stack["id"], "stop")
            return found

    engine = LateEngine(service.settings.docker_host, max_log_streams=1)
    database = Database(service.settings.database_url, pool_size=2)
    uow = UnitOfWorkFactory(database, source="/telar/containers")
    await Reconciler(uow, engine, service.settings).look_at_all()
    await database.close()
    await engine.close()
    told = service.rows("SELECT state, reason FROM stacks WHERE id = %s", stack["id"])
    await service.act(user, stack["id"], "delete")
    assert told == [("stopped", None)]


async def test_while_the_engine_is_away_a_stack_is_unknown_and_what_needs_it_is_a_503(
    own_database: str, tmp_path: Path, remains: Remains
) -> None:
    async with running(own_database, tmp_path) as service:
        user = await service.new_user()
        stack = await service.done(user, await service.create(user))
    absent = f"unix://{tmp_path}/no-engine.sock"
    async with running(own_database, tmp_path, docker_host=absent) as service:
        shown = await service.get(user, stack["id"])
        assert (shown["state"], shown["health"]) == ("unknown", "unknown")
        listed = (await service.http.get("/api/v1/stacks", headers=service.as_user(user))).json()["items"]
        assert [one["state"] for one in listed] == ["unknown"]
        path = f"/api/v1/stacks/{stack['id']}"
        calls = [("POST", f"{path}/{verb}") for verb in ("start", "stop", "restart", "redeploy", "rollback")]
        calls += [("DELETE", path), ("GET", f"{path}/logs"), ("GET", f"{path}/stats")]
        for method, called in calls:
            if called.endswith("rollback"):
                continue  # there is nothing to go back to
            answer = await service.http.request(method, called, headers=service.as_user(user))
            assert answer.status_code == 503, (called, answer.text)
            assert answer.json()["type"] == "/problems/engine-unavailable"
            assert answer.headers["retry-after"]
        assert service.rows("SELECT state FROM stacks") == [("running",)]
    async with running(own_database, tmp_path) as service:
        assert (await service.get(user, stack["id"]))["state"] == "running"
        await service.act(user, stack["id"], "delete")
        assert remains(f"telar-{stack['id'].replace('-', '')[-12:]}") == []
