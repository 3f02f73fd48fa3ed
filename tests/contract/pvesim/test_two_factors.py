import asyncio
import base64
import hashlib
import hmac
import json
import time
from collections.abc import Callable, Iterator
from itertools import count
from typing import Any

import pytest
import requests
from proxmoxer import ProxmoxAPI
from proxmoxer.core import AuthenticationError, ResourceException

from libs.pvesim.access.tfa import totp_code
from libs.pvesim.app import RunningLab
from tests.contract.pvesim.conftest import THREADS, Client
from tests.contract.pvesim.test_http import raw, token_header

SECRET = base64.b32encode(b"12345678901234567890").decode()
URI = f"otpauth://totp/lab:ann?secret={SECRET}&issuer=lab"
_names: Iterator[int] = count()
Code = Callable[[int], str]


def code(later_s: int = 0) -> str:
    """The code of this moment or a later one, made without the lab."""
    counter = int((time.time() + later_s) // 30).to_bytes(8, "big")
    digest = hmac.new(b"12345678901234567890", counter, hashlib.sha1).digest()
    at = digest[-1] & 15
    return f"{(int.from_bytes(digest[at : at + 4], 'big') & 0x7FFFFFFF) % 1_000_000:06d}"


@pytest.fixture
async def user(root: Client) -> str:
    userid = f"two{next(_names)}@pve"
    await root("post", "access/users", userid=userid, password="right-password")
    return userid


async def log_in(lab: RunningLab, userid: str, otp: str | None) -> ProxmoxAPI:
    return await asyncio.get_running_loop().run_in_executor(
        THREADS,
        lambda: ProxmoxAPI(
            "127.0.0.1", port=lab.port, verify_ssl=str(lab.ca_path), user=userid, password="right-password", otp=otp
        ),
    )


def test_codes_are_those_of_the_standard() -> None:
    assert [totp_code(SECRET, at // 30) for at in (59, 1111111109, 20000000000)] == ["287082", "081804", "353130"]


async def test_05_a_second_factor_is_asked_for_and_its_code_used_up(lab: RunningLab, root: Client, user: str) -> None:
    first = code()
    made = await root("post", f"access/tfa/{user}", type="totp", totp=URI, value=first, description="phone")
    listed = await root("get", f"access/tfa/{user}")
    assert [(entry["id"], entry["type"], entry["enable"]) for entry in listed] == [(made["id"], "totp", 1)]
    with pytest.raises(AuthenticationError):
        await log_in(lab, user, None)
    with pytest.raises(AuthenticationError):
        await log_in(lab, user, first)
    second = code(30)
    api = await log_in(lab, user, second)
    assert (await asyncio.to_thread(api.version.get))["release"]
    with pytest.raises(AuthenticationError):
        await log_in(lab, user, second)
    await root("put", f"access/tfa/{user}/{made['id']}", enable=0)
    assert await log_in(lab, user, None)


async def test_05_half_a_ticket_opens_nothing(lab: RunningLab, root: Client, user: str) -> None:
    await root("post", f"access/tfa/{user}", type="totp", totp=URI, value=code())
    form = f"username={user.replace('@', '%40')}&password=right-password".encode()
    _, body = await raw(lab, "POST", "/api2/json/access/ticket", {}, form)
    answer: dict[str, Any] = json.loads(body)["data"]
    assert answer["NeedTFA"] == 1
    assert answer["ticket"].startswith("PVE:!tfa!")
    assert "cap" not in answer
    head, _ = await raw(lab, "GET", "/api2/json/version", {"Cookie": f"PVEAuthCookie={answer['ticket']}"})
    assert head.startswith("HTTP/1.1 401 No ticket")


async def test_05_recovery_keys_open_once(lab: RunningLab, root: Client, user: str) -> None:
    keys = (await root("post", f"access/tfa/{user}", type="recovery"))["recovery"]
    assert len(set(keys)) == 10
    opened, again = [
        await asyncio.get_running_loop().run_in_executor(THREADS, lambda: _by_key(lab, user, keys[3])) for _ in "12"
    ]
    assert (opened, again) == (200, 401)


def _by_key(lab: RunningLab, userid: str, key: str) -> int:
    url, ca = f"{lab.url}/api2/json/access/ticket", str(lab.ca_path)
    first = requests.post(url, data={"username": userid, "password": "right-password"}, verify=ca).json()["data"]
    form = {"username": userid, "password": f"recovery:{key}", "tfa-challenge": first["ticket"]}
    return requests.post(url, data=form, verify=ca).status_code


async def test_05_wrong_codes_lock_the_codes_until_somebody_unlocks(lab: RunningLab, root: Client, user: str) -> None:
    await root("post", f"access/tfa/{user}", type="totp", totp=URI, value=code())
    for _ in range(8):
        with pytest.raises(AuthenticationError):
            await log_in(lab, user, "000000")
    with pytest.raises(AuthenticationError):
        await log_in(lab, user, code(30))
    locked = {entry["userid"]: entry.get("totp-locked") for entry in await root("get", "access/tfa")}
    assert locked[user] == 1
    assert await root("put", f"access/users/{user}/unlock-tfa") == 1
    assert await log_in(lab, user, code(30))


@pytest.mark.parametrize(
    ("method", "path"),
    [
        ("PUT", "/access/password"),
        ("POST", "/access/tfa/ann@pve"),
        ("PUT", "/access/tfa/ann@pve/x"),
        ("DELETE", "/access/tfa/ann@pve/x"),
    ],
)
async def test_05_tokens_are_refused_where_a_ticket_is_wanted(lab: RunningLab, method: str, path: str) -> None:
    head, _ = await raw(lab, method, f"/api2/json{path}", token_header(lab))
    expected = f"Permission check failed (URI '{path}' not available with API token, need proper ticket."
    assert head.splitlines()[0] == f"HTTP/1.1 403 {expected}"


async def test_05_everybody_but_root_repeats_the_password(lab: RunningLab, user: str) -> None:
    api = await log_in(lab, user, None)  # one session: a new one would be asked for the second factor

    def said(**form: str) -> ResourceException:
        with pytest.raises(ResourceException) as caught:
            api.access.tfa(user).post(type="recovery", **form)
        return caught.value

    assert (await asyncio.to_thread(said)).errors == {"password": "password is required to modify TFA data"}
    wrong = await asyncio.to_thread(said, password="wrong-one")
    assert (wrong.status_code, wrong.content) == (500, "authentication failure")
    made = await asyncio.to_thread(api.access.tfa(user).post, type="recovery", password="right-password")
    assert made["id"] == "recovery"
    assert await asyncio.to_thread(api.access.users(user).tfa.get, multiple=1) == {"types": ["recovery"]}
    await asyncio.to_thread(api.access.tfa(user)("recovery").delete, password="right-password")
    assert await asyncio.to_thread(api.access.tfa(user).get) == []
