"""What the auth service learns of images from their events: who owns them, how much is used."""

import random
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from typing import Any

import pytest

from libs.common.db import Database
from libs.common.events import Event
from libs.common.migrations import migrate
from libs.common.uow import UnitOfWorkFactory
from services.auth.consumers import HANDLERS
from services.auth.repository import AuthRepository
from tests.contract.images import importing
from tests.contract.images.harness import Service, running
from tests.contract.images.web import Web, serving_web
from tests.corpora.images import disks

Eventually = Callable[..., Awaitable[None]]


@pytest.fixture(scope="module")
async def web() -> AsyncIterator[Web]:
    async with serving_web() as web:
        web.publish("/good.qcow2", disks.qcow2(virtual_size=33 << 20))
        web.publish("/bad.qcow2", disks.iso())
        yield web


@pytest.fixture(scope="module")
async def service(database_url: str, tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Service]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TELAR_OUTBOUND_ALLOW_NETWORKS", "127.0.0.0/8")
        async with running(database_url, tmp_path_factory.mktemp("images")) as service:
            yield service


@pytest.fixture
async def auth(new_database_url: str) -> AsyncIterator[UnitOfWorkFactory]:
    await migrate(new_database_url, "auth")
    database = Database(new_database_url, pool_size=2)
    yield UnitOfWorkFactory(database, source="/telar/auth")
    await database.close()


async def consume(auth: UnitOfWorkFactory, events: Sequence[Event]) -> None:
    """Hand events to auth's consumer; the inbox is left out, so that it must stand repetitions by itself."""
    for event in events:
        async with auth() as uow:
            await HANDLERS[event.type](uow, event)
            await uow.commit()


async def known_to_auth(auth: UnitOfWorkFactory, owner: str) -> tuple[set[str], int]:
    """The ids of what a user owns, and the bytes of images in use."""
    async with auth() as uow:
        repository = AuthRepository(uow.session)
        owned = {one.id for one in await repository.owned(owner)}
        used = [usage.used.get("image_bytes", 0) for usage in await repository.usage(owner)]
    return owned, sum(used)


async def delete(service: Service, owner: str, image: dict[str, Any]) -> None:
    answer = await service.http.delete(f"/api/v1/images/{image['id']}", headers=service.as_user(owner))
    assert answer.status_code == 204, answer.text


async def live(service: Service, owner: str, web: Web) -> tuple[list[str], list[str]]:
    """Let images live every life there is; gives the ids of those that are there and of those that are gone."""
    kept = await service.image(owner, disks.raw_disk(), filename="a.img")
    gone = await service.image(owner, disks.qcow2(virtual_size=44 << 20))
    for verb in ("deactivate", "activate"):
        answer = await service.http.post(f"/api/v1/images/{gone['id']}/{verb}", headers=service.as_user(owner))
        assert answer.status_code == 200
    imported = await importing.imported(service, owner, web.url("/good.qcow2"))
    imported_and_gone = await importing.imported(service, owner, web.url("/good.qcow2"))
    rejected, rejected_and_gone = [await importing.begun(service, owner, web.url("/bad.qcow2")) for _ in range(2)]
    for one in (rejected, rejected_and_gone):
        assert (await importing.ended(service, owner, one["id"]))["state"] == "failed"
    for image in (gone, imported_and_gone, rejected_and_gone["image"]):
        await delete(service, owner, image)
    there = [kept["id"], imported["id"], rejected["image"]["id"]]
    return there, [gone["id"], imported_and_gone["id"], rejected_and_gone["image"]["id"]]


async def events_of(
    service: Service, owner: str, eventually: Eventually, there: list[str], gone: list[str]
) -> list[Event]:
    """All that was said of the owner's images, once the last word on each is out."""

    def heard() -> list[Event]:
        return [event for event in service.heard if event.owner == owner]

    def all_is_said() -> bool:
        last = {event.subject: event.data["status"] for event in heard()}
        return all(last.get(one) in ("active", "rejected") for one in there) and all(
            last.get(one) == "deleted" for one in gone
        )

    await eventually(all_is_said)
    return heard()


async def test_every_life_of_an_image_ends_right_in_auth_in_any_order(
    service: Service, auth: UnitOfWorkFactory, web: Web, eventually: Eventually
) -> None:
    owner = await service.new_user()
    there, gone = await live(service, owner, web)
    events = await events_of(service, owner, eventually, there, gone)
    assert {event.type.split(".")[2] for event in events} == {
        *("created", "rejected", "activated", "deactivated", "deleted"),
    }
    for event in events:
        assert event.data["resource"] == {"type": "image", "id": event.subject, "name": event.data["name"]}
    sequences: dict[str, list[int]] = {}
    for event in events:
        sequences.setdefault(event.subject, []).append(event.sequence)
    assert all(found == sorted(set(found)) for found in sequences.values()), "each later event has a higher sequence"
    shuffled = events * 3
    random.Random(11).shuffle(shuffled)  # noqa: S311 - a repeatable order
    await consume(auth, shuffled)
    assert await known_to_auth(auth, owner) == (set(there), service.used_bytes(owner))
    assert service.used_bytes(owner) > 0


async def test_an_owner_whose_last_image_is_deleted_owns_and_uses_nothing(
    service: Service, auth: UnitOfWorkFactory, web: Web, eventually: Eventually
) -> None:
    owner = await service.new_user()
    rejected = await importing.begun(service, owner, web.url("/bad.qcow2"))
    await importing.ended(service, owner, rejected["id"])
    image_id = rejected["image"]["id"]
    await consume(auth, await events_of(service, owner, eventually, [image_id], []))
    assert await known_to_auth(auth, owner) == ({image_id}, 0), "its record is there until it is deleted"
    await delete(service, owner, rejected["image"])
    await consume(auth, await events_of(service, owner, eventually, [], [image_id]))
    assert await known_to_auth(auth, owner) == (set(), 0)


async def test_a_reservation_is_known_while_the_file_is_on_its_way(
    service: Service, auth: UnitOfWorkFactory, eventually: Eventually
) -> None:
    owner = await service.new_user()
    headers = {
        **service.as_user(owner),
        "tus-resumable": "1.0.0",
        "upload-length": str(5 << 20),
        "upload-metadata": "filename ZGlzay5xY293Mg==,name ZA==,os_type ZA==",
    }
    begun = await service.http.post("/api/v1/uploads", headers=headers)
    assert begun.status_code == 201, begun.text
    upload_id = begun.headers["location"].rpartition("/")[2]
    await eventually(lambda: any(event.subject == upload_id for event in service.heard))
    await consume(auth, [event for event in service.heard if event.subject == upload_id])
    assert await known_to_auth(auth, owner) == ({upload_id}, 5 << 20)
    ended = await service.http.delete(
        f"/api/v1/uploads/{upload_id}", headers={**service.as_user(owner), "tus-resumable": "1.0.0"}
    )
    assert ended.status_code == 204
    await eventually(lambda: service.heard[-1].type == "images.image.deleted.v1")
    await consume(auth, [event for event in service.heard if event.subject == upload_id])
    assert await known_to_auth(auth, owner) == (set(), 0)
    assert service.used_bytes(owner) == 0
