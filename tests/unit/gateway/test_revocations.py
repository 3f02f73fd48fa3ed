"""What a revocation cuts off at the gateway."""

from collections.abc import Awaitable, Callable
from pathlib import Path

import pytest

from gateway.main import _Gateway
from gateway.proxy.upstream import Upstream
from gateway.settings import GatewaySettings
from libs.common.bus.local import LocalBus
from libs.common.clock import SystemClock
from libs.common.errors import TelarError
from libs.common.events import Event
from libs.common.settings import CommonSettings


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
    common = CommonSettings(embedded=True, data_dir=tmp_path)
    gateway = _Gateway(GatewaySettings(_env_file=None, common=common, images_urls=("http://127.0.0.1:9",)), bus)
    await gateway._cut_revoked()
    await bus.start()
    revokes = [{"scope": "user", "id": "u1", "revoked_at": 1.0}]
    now = SystemClock().now()
    await bus.publish(Event("auth.user.updated.v1", "u1", "/telar/auth", now, {"revokes": revokes}))
    await eventually(lambda: "images" in cut)
    await bus.close()
    assert cut == ["images"]
