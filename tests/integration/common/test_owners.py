"""Finding the user whom an older client calls `userid`, also one that is still on the way from auth."""

import asyncio

import httpx
import pytest

from libs.common.auth import ServiceTokens
from libs.common.bus import LocalBus
from libs.common.db import Database
from libs.common.quotas import ARRIVAL_S, Owners, on_user_event
from libs.common.runtime import Identity
from libs.common.settings import CommonSettings
from libs.common.testing.serving import user_event
from libs.common.uow import UnitOfWorkFactory


class Auth:
    """What auth says; `asked` are the names that it was asked for."""

    def __init__(self, *, exists: bool) -> None:
        self.asked: list[str] = []
        self._exists = exists

    async def __call__(self, userid: str) -> bool:
        self.asked.append(userid)
        return self._exists


@pytest.fixture
def uow(database: Database) -> UnitOfWorkFactory:
    return UnitOfWorkFactory(database, source="/telar/tests")


async def arrive(uow: UnitOfWorkFactory, user_id: str, external_id: str) -> None:
    async with uow() as unit:
        await on_user_event(unit, user_event(user_id, external_id=external_id))
        await unit.commit()


async def test_a_known_user_is_found_without_asking_auth(uow: UnitOfWorkFactory) -> None:
    await arrive(uow, "id-1", "ext-1")
    auth = Auth(exists=False)
    for name in ("id-1", "ext-1", "name-of-id-1"):
        assert await Owners(uow, auth).named(name) == "id-1"
    assert auth.asked == []


async def test_a_user_whom_auth_does_not_know_is_not_waited_for(uow: UnitOfWorkFactory) -> None:
    auth = Auth(exists=False)
    async with asyncio.timeout(ARRIVAL_S / 2):
        assert await Owners(uow, auth).named("nobody") is None
    assert auth.asked == ["nobody"]


async def test_a_user_whom_auth_knows_is_waited_for(uow: UnitOfWorkFactory) -> None:
    finding = asyncio.create_task(Owners(uow, Auth(exists=True)).named("ext-2"))
    await asyncio.sleep(0.1)
    assert not finding.done()
    await arrive(uow, "id-2", "ext-2")
    assert await finding == "id-2"


async def test_who_may_not_act_for_others_waits_for_nobody(uow: UnitOfWorkFactory) -> None:
    auth = Auth(exists=True)
    assert await Owners(uow, auth).named("ext-3", arriving=False) is None
    assert auth.asked == []


async def test_auth_is_asked_as_a_service_and_its_silence_means_that_the_user_may_be_there() -> None:
    seen: list[httpx.Request] = []

    async def answer(request: httpx.Request) -> httpx.Response:
        seen.append(request)
        if request.url.path == "/oauth/token":
            return httpx.Response(200, json={"access_token": "t", "expires_in": 600})
        userid = request.url.params["userid"]
        return httpx.Response(500) if userid == "broken" else httpx.Response(200, json={"exists": userid == "there"})

    settings = CommonSettings(_env_file=None, embedded=True, auth_url="http://auth")
    identity = Identity("tests", settings, LocalBus())
    async with httpx.AsyncClient(transport=httpx.MockTransport(answer)) as http:
        await identity.http.aclose()
        identity.http = http
        identity.tokens = ServiceTokens("tests", gateway_url="http://g", secret=settings.service_secret, http=http)
        told = [await identity.knows_user(name) for name in ("there", "nobody/else", "broken")]
    assert told == [True, False, True]
    assert seen[1].headers["authorization"] == "Bearer t"
