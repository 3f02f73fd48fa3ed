"""Who uses an image, as the vms service tells, and what that means for its deletion."""

import itertools
import random
from typing import Any

import httpx
import pytest

from libs.common.clock import SystemClock
from libs.common.db import Database
from libs.common.events import Event
from libs.common.quotas import ResourceRef
from libs.common.uow import UnitOfWorkFactory
from services.images.events import MadeOfImage
from services.images.service import Uses
from services.images.service.uses import USE_EVENTS
from services.vms.events import VmCreated
from tests.contract.images.harness import Service

_numbers = itertools.count(1)


def told(
    kind: str, *, verb: str, name: str = "", owner: str = "someone", sequence: int = 1, image_id: str | None = None
) -> Event:
    """What vms tells of a template or machine; `name` is its id, too."""
    data: dict[str, Any] = {"resource": {"type": kind, "id": name, "name": name}, "usage": None, "state": "running"}
    return Event(
        type=f"vms.{kind}.{verb}.v1",
        subject=name,
        source="/telar/vms",
        time=SystemClock().now(),
        data={**data, "image_id": image_id},
        owner=owner,
        sequence=sequence,
    )


def new_name(kind: str) -> str:
    return f"{kind}-{next(_numbers)}"


async def delete(service: Service, user: str, image_id: str, **options: Any) -> httpx.Response:
    return await service.http.delete(f"/api/v1/images/{image_id}", headers=service.as_user(user, **options))


async def is_used(service: Service, image_id: str) -> bool:
    provenance = await service.http.get(
        f"/api/v1/images/{image_id}/provenance", headers=service.as_user("root", role="ADMIN")
    )
    return bool(provenance.json()["used_by"])


@pytest.mark.parametrize(
    ("kind", "verb"),
    [
        *(("vm", verb) for verb in ("created", "updated", "state_changed", "failed")),
        *(("template", verb) for verb in ("created", "ready", "updated")),
    ],
)
async def test_whatever_tells_of_a_use_keeps_the_image(service: Service, kind: str, verb: str) -> None:
    owner, name = await service.new_user(), new_name(kind)
    image_id = (await service.image(owner))["id"]
    await service.bus.publish(told(kind, verb=verb, name=name, owner=owner, image_id=image_id))
    refused = await delete(service, owner, image_id)
    assert (refused.status_code, refused.json()["type"]) == (409, "/problems/image-in-use")
    assert refused.json()["used_by"] == [{"type": kind, "id": name, "name": name}]
    await service.bus.publish(told(kind, verb="deleted", name=name, owner=owner, sequence=2, image_id=image_id))
    assert (await delete(service, owner, image_id)).status_code == 204


async def test_a_template_that_failed_needs_no_image_and_a_machine_that_failed_does(service: Service) -> None:
    owner = await service.new_user()
    image_id = (await service.image(owner))["id"]
    await service.bus.publish(told("template", verb="failed", name=new_name("template"), image_id=image_id))
    assert not await is_used(service, image_id)
    await service.bus.publish(told("vm", verb="failed", name=new_name("vm"), image_id=image_id))
    assert await is_used(service, image_id)


async def test_the_refusal_names_what_the_caller_may_see_and_counts_the_rest(service: Service) -> None:
    owner = await service.new_user()
    image_id = (await service.image(owner, visibility="public"))["id"]
    uses = [("vm", owner), ("template", owner), ("vm", "stranger"), ("template", "stranger"), ("vm", "stranger")]
    named = []
    for kind, user in uses:
        name = new_name(kind)
        await service.bus.publish(told(kind, verb="updated", name=name, owner=user, image_id=image_id))
        named.append((kind, name, user))
    refused = (await delete(service, owner, image_id)).json()
    mine = [{"type": kind, "id": name, "name": name} for kind, name, user in sorted(named) if user == owner]
    assert refused["used_by"] == mine
    assert refused["detail"] == (
        "2 templates and 3 machines made of it must be deleted first; 3 of them belong to other users"
    )
    seen_by_admin = (await delete(service, "root", image_id, role="ADMIN")).json()
    assert len(seen_by_admin["used_by"]) == len(uses)
    assert seen_by_admin["detail"] == "2 templates and 3 machines made of it must be deleted first"


async def test_protection_is_told_before_use(service: Service) -> None:
    owner = await service.new_user()
    image_id = (await service.image(owner))["id"]
    url = f"/api/v1/images/{image_id}"
    await service.http.patch(url, headers=service.as_user(owner), json={"protected": True})
    await service.bus.publish(told("vm", verb="created", name=new_name("vm"), image_id=image_id))
    assert (await delete(service, owner, image_id)).json()["type"] == "/problems/image-protected"


async def test_a_machine_that_is_made_of_no_image_any_more_lets_it_go(service: Service) -> None:
    owner, name = await service.new_user(), new_name("vm")
    first, second = [(await service.image(owner))["id"] for _ in range(2)]
    await service.bus.publish(told("vm", verb="created", name=name, image_id=first))
    await service.bus.publish(told("vm", verb="updated", name=name, sequence=2, image_id=second))
    assert [await is_used(service, image_id) for image_id in (first, second)] == [False, True]
    await service.bus.publish(told("vm", verb="updated", name=name, sequence=3))
    assert [await is_used(service, image_id) for image_id in (first, second)] == [False, False]


def test_what_vms_tells_can_be_read() -> None:
    machine = VmCreated(
        resource=ResourceRef(type="vm", id="7", name="web"),
        name="web",
        state="creating",
        os_type="Debian",
        cluster="lab",
        node=None,
        vmid=None,
        cores=1,
        memory_mib=512,
        disk_gib=10,
    )
    assert machine.event_type in USE_EVENTS
    assert MadeOfImage.model_validate(machine.model_dump(mode="json")).resource == machine.resource


async def test_events_of_an_older_vms_service_name_no_image(service: Service) -> None:
    event = told("vm", verb="created", name=new_name("vm"))
    del event.data["image_id"]
    await service.bus.publish(event)
    assert service.rows("SELECT image_id FROM image_uses WHERE resource_id = %s", event.subject) == [(None,)]


async def test_events_three_times_in_any_order_end_as_once_in_order(service: Service) -> None:
    owner = await service.new_user()
    image_id = (await service.image(owner))["id"]
    shuffle = random.Random(7)  # noqa: S311 - a repeatable order
    for _ in range(20):
        name, survivor = new_name("vm"), new_name("template")
        events = [
            told("vm", verb="created", name=name, sequence=1, image_id=image_id),
            told("vm", verb="state_changed", name=name, sequence=2, image_id=image_id),
            told("vm", verb="deleted", name=name, sequence=3, image_id=image_id),
            told("template", verb="created", name=survivor, sequence=1, image_id=image_id),
            told("template", verb="ready", name=survivor, sequence=2, image_id=image_id),
        ] * 3
        shuffle.shuffle(events)
        for event in events:
            await service.bus.publish(event)
        kept = service.rows("SELECT image_id::text FROM image_uses WHERE resource_id = %s", name)
        assert kept == [(None,)]
        kept = service.rows("SELECT image_id::text, sequence FROM image_uses WHERE resource_id = %s", survivor)
        assert kept == [(image_id, 2)]


async def test_what_ended_long_ago_is_forgotten_and_what_is_in_use_is_not(service: Service) -> None:
    owner, gone, fresh, alive = await service.new_user(), new_name("vm"), new_name("vm"), new_name("vm")
    image_id = (await service.image(owner))["id"]
    for name, verb in ((gone, "deleted"), (fresh, "deleted"), (alive, "created")):
        await service.bus.publish(told("vm", verb=verb, name=name, image_id=image_id))
    long_ago = "UPDATE image_uses SET told_at = now() - interval '31 days' WHERE resource_id IN (%s, %s)"
    await service.change(long_ago, gone, alive)
    database = Database(service.settings.database_url, pool_size=1)
    await Uses(UnitOfWorkFactory(database, source="/telar/images")).sweep()
    await database.close()
    left = service.rows("SELECT resource_id FROM image_uses WHERE resource_id IN (%s, %s, %s)", gone, fresh, alive)
    assert sorted(left) == sorted([(fresh,), (alive,)])
