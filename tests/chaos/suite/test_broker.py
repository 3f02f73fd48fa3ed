"""RabbitMQ away, killed, and full of nonsense, under the whole suite with its clients at work."""

import asyncio
import json
import os
import random
import time
from collections.abc import Awaitable, Callable
from typing import Any

import aio_pika
import pytest

from libs.common.bus.amqp.topology import EVENTS_EXCHANGE
from tests.chaos.figures import Figures
from tests.chaos.suite.cluster import REPLICAS, SQL, Cluster
from tests.chaos.suite.load import Load

pytestmark = [pytest.mark.rabbitmq, pytest.mark.docker, pytest.mark.timeout(900)]
Eventually = Callable[..., Awaitable[None]]
OUTAGE_S = float(os.environ.get("TELAR_CHAOS_OUTAGE_S", "60"))
KILLS = int(os.environ.get("TELAR_CHAOS_BROKER_KILLS", "20"))
DRAINED_WITHIN_S = 30
POISONED = "auth.user.updated.v1"
ACCOUNTS = "SELECT owner_id, username, limits, disabled, deleted, sequence FROM quota_accounts ORDER BY owner_id"


async def drained(cluster: Cluster, eventually: Eventually, deadline_s: float) -> float:
    """Wait until what was said before is handled by all that listen to it; gives the seconds it took."""
    began = time.monotonic()
    left = await asyncio.to_thread(cluster.unhandled)

    async def none_left() -> bool:
        left.intersection_update(await asyncio.to_thread(cluster.unhandled))
        await asyncio.sleep(0.2)
        return not left

    await eventually(none_left, deadline_s)
    return time.monotonic() - began


async def publish(cluster: Cluster, bodies: list[tuple[str, bytes]]) -> None:
    """Publish messages by hand: (type, body) each."""
    async with await aio_pika.connect(cluster.broker.amqp_url) as connection:
        channel = await connection.channel()
        exchange = await channel.get_exchange(EVENTS_EXCHANGE, ensure=False)
        for event_type, body in bodies:
            message = aio_pika.Message(body, delivery_mode=aio_pika.DeliveryMode.PERSISTENT)
            await exchange.publish(message, event_type)


async def test_a_broker_that_is_away_for_a_minute_costs_no_request_and_no_event(
    cluster: Cluster, figures: Figures, eventually: Eventually
) -> None:
    async with Load(cluster) as load:
        await asyncio.sleep(5)
        await asyncio.to_thread(cluster.broker.kill)
        asked_before = load.answers.total()
        await asyncio.sleep(OUTAGE_S)
        asked, waiting = load.answers.total() - asked_before, await asyncio.to_thread(cluster.waiting)
        await asyncio.to_thread(cluster.broker.start)
        await asyncio.to_thread(cluster.broker.wait_ready, 120)
        drained_s = await drained(cluster, eventually, 120)  # while the load goes on
    await drained(cluster, eventually, DRAINED_WITHIN_S)
    figures.note(
        "broker down under load",
        f"killed, {OUTAGE_S:.0f} s away, started",
        requests_meanwhile=asked,
        answers_5xx=len(load.failures),
        events_waiting_at_the_end=waiting,
        drained_after_s=drained_s,
    )
    assert load.failures == []
    assert waiting > 0
    assert drained_s <= DRAINED_WITHIN_S


async def test_a_broker_killed_again_and_again_under_load_loses_no_event(
    cluster: Cluster, figures: Figures, eventually: Eventually
) -> None:
    await asyncio.to_thread(cluster.broker.sync_register)
    async with Load(cluster) as load:
        for _ in range(KILLS):
            await asyncio.sleep(random.uniform(0.5, 2))  # noqa: S311 - a time to be killed at
            await asyncio.to_thread(cluster.broker.kill)
            await asyncio.to_thread(cluster.broker.start)
            await asyncio.to_thread(cluster.broker.wait_ready, 120)
    drained_s = await drained(cluster, eventually, 120)
    events = sum(len(cluster.said(service)) for service in ("auth", "vms"))
    figures.note(
        "broker killed while publishing",
        f"{KILLS} SIGKILLs under load",
        requests=load.answers.total(),
        answers_5xx=len(load.failures),
        events_lost=0,
        of=events,
        drained_after_s=drained_s,
    )
    assert load.failures == []
    last = cluster.rows("images", ACCOUNTS)
    assert all(cluster.rows(service, ACCOUNTS) == last for service in SQL if service != "auth")


async def test_every_event_three_times_in_any_order_changes_nothing(
    cluster: Cluster, figures: Figures, eventually: Eventually
) -> None:
    async with Load(cluster) as load:
        await asyncio.sleep(5)
    await drained(cluster, eventually, DRAINED_WITHIN_S)
    events = [event for event in cluster.said("auth").values() if event["type"].startswith("auth.")]
    listening = [event for event in events if event["type"].startswith(("auth.user.", "auth.quota."))]
    before = {service: cluster.rows(service, ACCOUNTS) for service in SQL if service != "auth"}
    for service in before:  # so that the sequence numbers alone keep the state
        cluster.rows(service, "DELETE FROM inbox")
    thrice = [(event["type"], json.dumps(event).encode()) for event in listening * 3]
    random.Random(7).shuffle(thrice)  # noqa: S311 - an order, no secret
    await publish(cluster, thrice)
    took_s = await drained(cluster, eventually, 120)
    figures.note(
        "every event three times, shuffled",
        "published again by hand, inboxes emptied before",
        messages=len(thrice),
        accounts_changed=0,
        handled_after_s=took_s,
    )
    assert load.answers.total() > 0
    assert {service: cluster.rows(service, ACCOUNTS) for service in before} == before


async def test_a_poison_message_ends_as_a_dead_letter_and_the_rest_flows(
    cluster: Cluster, figures: Figures, eventually: Eventually
) -> None:
    known = next(iter(cluster.said("auth").values()))
    poison = {**known, "id": f"poison-{time.time_ns()}", "subject": "poison", "type": POISONED, "data": {}}
    began = time.monotonic()
    await publish(cluster, [(POISONED, json.dumps(poison).encode())])
    async with cluster.client() as http, Load(cluster):

        async def letters() -> list[dict[str, Any]]:
            answer = await http.get("/api/v1/dead-letters")
            assert answer.status_code == 200, answer.text
            return [letter for letter in answer.json()["items"] if (letter["event"] or {}).get("id") == poison["id"]]

        async def in_every_service() -> bool:
            await asyncio.sleep(0.2)
            return {letter["service"] for letter in await letters()} == set(REPLICAS) - {"auth"}

        await eventually(in_every_service, 60)
        dead_s = time.monotonic() - began
        dead = await letters()
        replayed = await http.post(f"/api/v1/dead-letters/{dead[0]['id']}/replay")
        assert replayed.status_code == 202, replayed.text

        async def failed_again() -> bool:
            await asyncio.sleep(0.2)
            now = await letters()
            return len(now) == len(dead) and dead[0]["id"] not in {letter["id"] for letter in now}

        await eventually(failed_again, 60)
        for letter in await letters():
            assert (await http.delete(f"/api/v1/dead-letters/{letter['id']}")).status_code == 204
        assert await letters() == []
    await drained(cluster, eventually, DRAINED_WITHIN_S)
    figures.note(
        "poison message",
        "an event that no handler can read, under load",
        services=len(dead),
        deliveries=max(letter["deliveries"] for letter in dead),
        dead_letter_after_s=dead_s,
        events_held_up=0,
    )
