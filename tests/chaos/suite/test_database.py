"""PostgreSQL restarted under load, and clients that go away in the middle of everything."""

import asyncio
import os
import random
import socket
import struct
import time
from collections.abc import Awaitable, Callable

import httpx
import psutil
import pytest

from tests.chaos.figures import Figures
from tests.chaos.suite.cluster import POOL_SIZE, SQL, Cluster
from tests.chaos.suite.load import Load

pytestmark = [pytest.mark.rabbitmq, pytest.mark.docker, pytest.mark.timeout(900)]
Eventually = Callable[..., Awaitable[None]]
RECOVERED_WITHIN_S = 5
CLIENTS = int(os.environ.get("TELAR_CHAOS_CLIENTS", "10000"))
AT_ONCE = 100
PATHS = {"auth": "/api/v1/users/", "images": "/api/v1/images", "vms": "/api/v1/vms", "containers": "/api/v1/stacks"}
IDLE = (
    "SELECT count(*) FROM pg_stat_activity WHERE state LIKE 'idle in transaction%'"
    " AND application_name LIKE 'telar-%' AND xact_start < now() - interval '1 second'"
)


async def all_served(http: httpx.AsyncClient, *, at_once: int) -> bool:
    """Whether each service answers so many calls at once; four times a pool empties both replicas' pools twice."""
    calls = [http.get(path) for path in PATHS.values() for _ in range(at_once)]
    answers = await asyncio.gather(*calls, return_exceptions=True)
    return all(isinstance(answer, httpx.Response) and answer.status_code == 200 for answer in answers)


def in_use(cluster: Cluster) -> float:
    """Connections that the pools of all processes have given out."""
    members = [member for service in SQL for member in cluster.of(service)]
    return sum(member.metrics()["telar_database_connections_used"] for member in members)


async def test_a_database_restarted_under_load_is_used_again_within_seconds(
    cluster: Cluster, figures: Figures, eventually: Eventually
) -> None:
    async with cluster.client() as http, Load(cluster) as load:
        await asyncio.sleep(5)
        assert load.failures == []
        away = time.monotonic()
        await asyncio.to_thread(cluster.postgres.restart)
        back = time.monotonic()
        await eventually(lambda: all_served(http, at_once=1), 60)
        recovered_s = time.monotonic() - back
        await eventually(lambda: all_served(http, at_once=POOL_SIZE * 4), 60)
        settled = time.monotonic()
        await asyncio.sleep(10)
        late = [failure for failure in load.failures if failure[0] > settled]
    surprises = [failure for failure in load.failures if failure[2] not in (503, 504)]
    await eventually(lambda: asyncio.to_thread(lambda: in_use(cluster) == 0), 30)
    figures.note(
        "PostgreSQL restarted under load",
        f"restarted, {back - away:.1f} s away",
        recovered_after_s=recovered_s,
        calls_at_once_then=POOL_SIZE * 4 * len(PATHS),
        answers_503_meanwhile=len(load.failures) - len(surprises),
        other_5xx=len(surprises),
    )
    assert surprises == []
    assert late == []
    assert recovered_s <= RECOVERED_WITHIN_S


async def test_clients_that_go_away_leave_no_connection_and_no_transaction_behind(
    cluster: Cluster, figures: Figures, eventually: Eventually
) -> None:
    gateway = psutil.Process(cluster.gateway.pid)
    async with cluster.client() as http:
        user = (await http.get("/api/v1/users/me")).json()["id"]
    head = f"Host: x\r\nAuthorization: Bearer {cluster.token()}\r\n"
    body = b'{"email": "admin@telar.local"}'
    requests = [f"GET {path} HTTP/1.1\r\n{head}\r\n".encode() for path in PATHS.values()]
    change = f"PATCH /api/v1/users/{user} HTTP/1.1\r\n{head}Content-Type: application/json\r\n"
    requests.append(f"{change}Content-Length: {len(body)}\r\n\r\n".encode() + body)
    requests.append(f"{change}Content-Length: 1000\r\n\r\n".encode() + body)  # and the rest never comes
    requests.append(f"GET /api/v1/events HTTP/1.1\r\n{head}\r\n".encode())
    descriptors, places, chance = gateway.num_fds(), asyncio.Semaphore(AT_ONCE), random.Random(7)  # noqa: S311

    async def come_and_go(request: bytes, after_s: float) -> None:
        async with places:
            _, writer = await asyncio.open_connection("127.0.0.1", cluster.gateway.port)
            writer.write(request)
            await writer.drain()
            await asyncio.sleep(after_s)
            connected = writer.get_extra_info("socket")
            if chance.random() < 0.5:  # reset, as a crashed client's system does
                connected.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            writer.close()

    began = time.monotonic()
    await asyncio.gather(*(come_and_go(chance.choice(requests), chance.uniform(0, 0.03)) for _ in range(CLIENTS)))
    took_s = time.monotonic() - began
    await eventually(lambda: asyncio.to_thread(lambda: in_use(cluster) == 0), 60)
    await eventually(lambda: gateway.num_fds() <= descriptors + AT_ONCE, 60)
    idle = cluster.rows("auth", IDLE)[0][0]
    async with cluster.client() as http:
        assert await all_served(http, at_once=POOL_SIZE * 4)
    figures.note(
        f"{CLIENTS} clients disconnect mid-request",
        f"{AT_ONCE} at a time, half by a reset, over {took_s:.0f} s",
        connections_leaked=0,
        idle_in_transaction=idle,
        gateways_descriptors_more=gateway.num_fds() - descriptors,
    )
    assert idle == 0
