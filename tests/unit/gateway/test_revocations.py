"""What a revocation cuts off at the gateway."""

import asyncio
import time
from collections.abc import Awaitable, Callable
from pathlib import Path

import pytest

from gateway.main import _Gateway
from gateway.proxy.upstream import Upstream
from gateway.settings import GatewaySettings
from libs.common.auth import Principal, Role
from libs.common.bus.local import LocalBus
from libs.common.clock import SystemClock
from libs.common.errors import TelarError
from libs.common.events import Event
from libs.common.settings import CommonSettings


def gateway_on(bus: LocalBus, folder: Path) -> _Gateway:
    common = CommonSettings(embedded=True, data_dir=folder)
    return _Gateway(GatewaySettings(_env_file=None, common=common, images_urls=("http://127.0.0.1:9",)), bus)


async def test_a_stream_that_a_revocation_ends_does_not_tell_of_it(tmp_path: Path) -> None:
    bus = LocalBus()
    gateway = gateway_on(bus, tmp_path)
    await gateway._feed()
    await bus.start()
    caller = Principal("u1", "ada", Role.CLIENT, "s1", frozenset({"*"}), 0.0, 9e9)
    stream = gateway.events.stream(lambda _event: True, principal=caller, revocations=gateway.revocations)
    assert await anext(stream) == ": telar\n\n"
    revokes = [{"scope": "session", "id": "s1", "revoked_at": time.time()}]
    await bus.publish(Event("auth.session.revoked.v1", "u1", "/telar/auth", SystemClock().now(), {"revokes": revokes}))
    async with asyncio.timeout(5):
        assert [text async for text in stream] == []
    await bus.close()


async def test_the_answer_of_auth_to_the_call_that_revokes_is_not_cut_off(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, eventually: Callable[..., Awaitable[None]]
) -> None:
    cut: list[str] = []

    def end_sessions(self: Upstream, belongs: Callable[[str], bool], _reason: TelarError) -> int:
        if belongs("u1 s1"):
            cut.append(self.name)
        return 0

    monkeypatch.setattr(Upstream, "end_sessions", end_sessions)
    bus = LocalBus()
    gateway = gateway_on(bus, tmp_path)
    await gateway._cut_revoked()
    await bus.start()
    revokes = [{"scope": "user", "id": "u1", "revoked_at": 1.0}]
    now = SystemClock().now()
    await bus.publish(Event("auth.user.updated.v1", "u1", "/telar/auth", now, {"revokes": revokes}))
    await eventually(lambda: "images" in cut)
    await bus.close()
    assert cut == ["images"]
