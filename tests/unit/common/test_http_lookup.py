"""Names whose servers never answer."""

import asyncio
import os
import socket
import threading
from typing import Any

import pytest

from libs.common.http.resolver import SystemLookup
from libs.common.tasks import cancel


async def test_names_that_hang_keep_no_thread_from_anything_else(monkeypatch: pytest.MonkeyPatch) -> None:
    released = threading.Event()

    def hang(*_where: Any, **_how: Any) -> list[Any]:
        released.wait(30)
        return []

    monkeypatch.setattr(socket, "getaddrinfo", hang)
    lookup = SystemLookup()
    asking = [asyncio.create_task(lookup(f"hangs-{number}.example", 80)) for number in range(40)]
    try:
        await asyncio.sleep(0)  # they are in their threads' queue now
        async with asyncio.timeout(10):
            await asyncio.to_thread(os.getpid)
        assert not any(one.done() for one in asking)
    finally:
        released.set()
        lookup.close()
        await cancel(*asking)
