"""Revocations are read from auth again and again, whatever it answers."""

import asyncio
import json
from collections.abc import Awaitable, Callable, Iterable, Mapping
from typing import Any

from libs.common.auth import Principal, Revocations, Role, follow_revocations
from libs.common.bus import LocalBus
from libs.common.tasks import cancel

ADA = Principal("ada", "ada", Role.CLIENT, "s1", frozenset({"*"}), 0.0, 9e9)


async def test_an_answer_that_cannot_be_read_is_asked_for_again(eventually: Callable[..., Awaitable[None]]) -> None:
    answers: list[Any] = [json.JSONDecodeError("Expecting value", "<html>", 0), [{}]]

    async def read() -> Iterable[Mapping[str, Any]]:
        answer = answers.pop(0) if answers else [{"scope": "session", "id": "s1", "revoked_at": 1.0}]
        if isinstance(answer, Exception):
            raise answer
        return list(answer)

    bus, revocations = LocalBus(), Revocations(lambda: 2.0)
    await bus.start()
    following = asyncio.create_task(follow_revocations(revocations, bus, read))

    async def is_refused() -> bool:
        return revocations.refuses(ADA)

    assert not await is_refused()
    await eventually(is_refused)
    assert answers == []
    await cancel(following)
    await bus.close()
