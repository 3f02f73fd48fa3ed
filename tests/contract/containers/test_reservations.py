"""What parallel requests may not do: exceed a quota, share a port or a name. The engine is a fake that only answers."""

import asyncio
from collections.abc import AsyncIterator, Sequence
from pathlib import Path
from typing import Any
from uuid import UUID

import pytest
from pydantic import SecretStr

from libs.common.db import Database
from libs.common.errors import QuotaExceeded, Unavailable
from libs.common.http import AddressPolicy, GuardedClient
from libs.common.ids import uuid7
from libs.common.quotas import Owners, on_user_event
from libs.common.sealing import Sealer
from libs.common.testing.serving import user_event
from libs.common.uow import UnitOfWorkFactory
from services.containers.adapters.code import FolderCodeStore
from services.containers.adapters.compose import ComposeCommand
from services.containers.adapters.git import GitCommand
from services.containers.adapters.templates import ConfiguredImages, FolderCatalog
from services.containers.domain.revisions import ImageRecord
from services.containers.domain.stacks import Observed, ServiceUsage
from services.containers.errors import HostPortTaken, NoPortLeft, StackNameTaken
from services.containers.main import migrate
from services.containers.ports import LogLine
from services.containers.repository import PortRepository
from services.containers.schemas import StackCreate
from services.containers.service import Endings, NewStack, Planner, Renderer, Sources, Stacks, Sweeper
from services.containers.service.reservations import Reservations
from tests.contract.containers.harness import settings, zip_of

FIRST, LAST = 20_000, 20_059


async def nobody(_userid: str) -> bool:
    return False


class IdleEngine:
    """An engine that answers and has nothing."""

    async def ping(self) -> None: ...

    async def has_image(self, name: str) -> bool:
        return bool(name)

    async def observe(self, _project: str | None = None) -> Sequence[Observed]:
        return []

    async def check_health(self, container_id: str) -> bool | None:
        return None if container_id else False

    async def remove_project(self, project: str, *, keep_volumes: bool = False) -> None: ...

    async def image_id(self, name: str) -> str | None:
        return name or None

    async def images_of(self, project: str) -> dict[str, ImageRecord]:
        return {project: ImageRecord("web", "sha256:0")}

    async def usage(self, project: str) -> Sequence[ServiceUsage]:
        return [ServiceUsage(project, 0.0, 0, 0, 0, 0, 0, 0, 0)]

    async def changes(self) -> AsyncIterator[str]:
        yield ""

    async def logs(
        self, project: str, *, tail: int, follow: bool, service: str | None = None
    ) -> AsyncIterator[LogLine]:
        for _ in range(0 if project or follow or service else tail):
            yield  # type: ignore[misc] # never reached: it only makes this a generator


class World:
    """The use cases on a real database."""

    def __init__(self, database_url: str, folder: Path) -> None:
        self.settings = settings(database_url, folder, port_range_first=FIRST, port_range_last=LAST)
        self.database = Database(database_url, pool_size=20, pool_wait_s=60)
        self.uow = UnitOfWorkFactory(self.database, source="/telar/containers")
        self.code = FolderCodeStore(self.settings.stacks_dir)
        engine, compose = IdleEngine(), ComposeCommand(self.settings.docker_host)
        images = ConfiguredImages(engine, {}, "telar")
        renderer = Renderer(FolderCatalog(), images, compose, self.code, self.settings)
        planner = Planner(FolderCatalog(), renderer, self.settings)
        repositories = GitCommand(GuardedClient(AddressPolicy()), timeout_s=1, max_bytes=1)
        sources = Sources(repositories, Sealer(SecretStr("secret"), "tests"))
        self.stacks = Stacks(self.uow, engine, self.code, planner, sources, self.settings, Owners(self.uow, nobody))

    async def user(self, user_id: str, stacks: int = -1, cores: int = -1) -> str:
        async with self.uow() as uow:
            await on_user_event(uow, user_event(user_id, stacks=stacks, cores=cores, memory_mib=-1))
            await uow.commit()
        return user_id

    async def create(self, owner: str, name: str, **fields: Any) -> NewStack:
        async def save(path: Path) -> None:
            await asyncio.to_thread(path.write_bytes, zip_of({"a": "b"}))

        return await self.stacks.create(
            owner, StackCreate(name=name, service_types=["static"], file_manager=False, **fields), save
        )

    async def give_back(self, made: Sequence[NewStack]) -> None:
        """Release stacks' ports, of which there are few, for the tests that follow."""
        async with self.uow() as uow:
            for new in made:
                await PortRepository(uow.session, FIRST, LAST).release_but(new.stack.id, [])
            await uow.commit()


@pytest.fixture(scope="module")
async def world(database_url: str, tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[World]:
    world = World(database_url, tmp_path_factory.mktemp("reservations"))
    await migrate(world.settings)
    await world.code.prepare()
    yield world
    await world.database.close()


def split(results: list[Any]) -> tuple[list[NewStack], list[BaseException]]:
    made = [one for one in results if isinstance(one, NewStack)]
    return made, [one for one in results if not isinstance(one, NewStack)]


def port_of(new: NewStack) -> int:
    return int(new.stack.services[0]["host_port"])


async def test_fifty_parallel_requests_get_fifty_different_ports_and_the_last_is_told_that_none_is_left(
    world: World,
) -> None:
    owner = await world.user("fifty")
    made, refused = split(
        await asyncio.gather(*(world.create(owner, f"p{n}") for n in range(50)), return_exceptions=True)
    )
    assert refused == []
    ports = {port_of(new) for new in made}
    assert len(ports) == 50
    assert all(FIRST <= port <= LAST for port in ports)
    made, refused = split(
        await asyncio.gather(*(world.create(owner, f"q{n}") for n in range(20)), return_exceptions=True)
    )
    assert len(made) == 10
    assert {type(one) for one in refused} == {NoPortLeft}
    assert ports.isdisjoint(port_of(new) for new in made)
    await world.give_back(made)


async def test_requests_for_each_others_asked_ports_end_without_a_deadlock(world: World) -> None:
    owner = await world.user("asking")
    first, last = LAST + 1, LAST + 2

    made = [await world.create(owner, name) for name in ("one", "two")]

    async def place(stack_id: UUID, asked: int, other: asyncio.Event, here: asyncio.Event) -> list[int]:
        async with world.uow() as uow:
            ports = PortRepository(uow.session, first, last)
            await ports.take(stack_id, [asked])
            here.set()
            await asyncio.wait([asyncio.ensure_future(other.wait())], timeout=0.5)
            given = [asked, *await ports.reserve(stack_id, 1)]
            await uow.commit()
        return given

    one, two = asyncio.Event(), asyncio.Event()
    results = await asyncio.gather(
        place(made[0].stack.id, first, two, one), place(made[1].stack.id, last, one, two), return_exceptions=True
    )
    assert sorted(str(type(result)) for result in results) == sorted(map(str, (list, HostPortTaken))), results
    await world.give_back(made)


async def test_an_end_that_gives_a_port_back_and_a_request_that_asks_for_it_end_without_a_deadlock(
    world: World,
) -> None:
    owner = await world.user("giving")
    going, coming = await world.create(owner, "going"), await world.create(owner, "coming")

    async def end() -> None:
        async with world.uow() as uow:
            await Endings(world.settings).deleted(uow, going.stack.id)
            await uow.commit()

    async with world.uow() as uow:
        await Reservations(world.settings).settle(uow, coming.stack, {"stacks": 2})
        ending = asyncio.create_task(end())
        await asyncio.wait([ending], timeout=0.5)
        with pytest.raises(HostPortTaken):
            await PortRepository(uow.session, FIRST, LAST).take(coming.stack.id, [port_of(going)])
    await ending
    await world.give_back([coming])


async def test_parallel_requests_never_exceed_the_quota(world: World) -> None:
    owner = await world.user("quota", stacks=3)
    made, refused = split(
        await asyncio.gather(*(world.create(owner, f"s{n}") for n in range(20)), return_exceptions=True)
    )
    assert len(made) == 3
    assert {type(one) for one in refused} == {QuotaExceeded}
    kept = {stack_id for stack_id, _ in await world.code.stored()}
    assert {new.stack.id for new in made} <= kept


async def test_a_refused_stack_leaves_no_file(world: World) -> None:
    owner = await world.user("poor", stacks=0)
    before = await world.code.stored()
    with pytest.raises(QuotaExceeded):
        await world.create(owner, "x")
    assert {one for one, _ in await world.code.stored()} == {one for one, _ in before}


async def test_one_of_parallel_requests_gets_a_name(world: World) -> None:
    owner = await world.user("names")
    made, refused = split(
        await asyncio.gather(*(world.create(owner, name) for name in ("shop", "Shop", "SHOP")), return_exceptions=True)
    )
    assert len(made) == 1
    assert {type(one) for one in refused} == {StackNameTaken}
    assert (await world.create(await world.user("names-2"), "shop")).stack.name == "shop"


async def test_the_sweep_removes_folders_of_no_stack_and_keeps_the_others(world: World) -> None:
    kept = (await world.create(await world.user("sweep"), "kept")).stack.id
    orphan = uuid7()
    await asyncio.to_thread(world.code.new_archive, orphan, "a.zip")
    await Sweeper(world.uow, world.code, keep_revisions=10).sweep()
    assert orphan in {stack_id for stack_id, _ in await world.code.stored()}, "it may be an upload under way"
    await Sweeper(world.uow, world.code, keep_revisions=10, least_age_s=-1).sweep()
    left = {stack_id for stack_id, _ in await world.code.stored()}
    assert kept in left
    assert orphan not in left


async def test_files_that_cannot_be_removed_do_not_keep_those_of_others(world: World) -> None:
    await world.create(await world.user("sweep-2"), "kept")
    stubborn, orphan = sorted((uuid7(), uuid7()))

    class Stubborn(FolderCodeStore):
        async def remove(self, stack_id: UUID) -> None:
            if stack_id == stubborn:
                raise PermissionError
            await super().remove(stack_id)

        async def stored(self) -> Sequence[tuple[UUID, float]]:
            return sorted(await super().stored())

    code = Stubborn(world.settings.stacks_dir)
    for one in (stubborn, orphan):
        await asyncio.to_thread(code.new_archive, one, "a.zip")
    await Sweeper(world.uow, code, keep_revisions=10, least_age_s=-1).sweep()
    left = {stack_id for stack_id, _ in await world.code.stored()}
    assert stubborn in left
    assert orphan not in left


async def test_an_account_that_has_not_arrived_yet_is_a_503(world: World) -> None:
    with pytest.raises(Unavailable):
        await world.create("nobody-knows", "x")


async def test_cores_and_memory_are_reserved_with_the_stack_and_never_exceeded(world: World) -> None:
    owner = await world.user("few-cores", cores=3)
    made, refused = split(
        await asyncio.gather(
            *(world.create(owner, f"c{n}", limits={"cpus": 1.5}) for n in range(10)), return_exceptions=True
        )
    )
    assert len(made) == 1  # 1.5 of a core count as two
    assert {str(error).partition(":")[0] for error in refused} == {"cores"}
