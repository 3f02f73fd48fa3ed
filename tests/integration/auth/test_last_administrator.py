"""Whatever happens at once, somebody stays who can administer."""

import asyncio
import itertools
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from tests.contract.auth.harness import Service, running


@pytest.fixture
async def service(database_url: str, tmp_path: Path) -> AsyncIterator[Service]:
    async with running(database_url, tmp_path) as service:
        yield service


async def test_the_last_administrator_cannot_go_however_many_try_at_once(service: Service) -> None:
    ways: list[tuple[str, Any]] = [("PATCH", {"role": "CLIENT"}), ("PATCH", {"disabled": True}), ("DELETE", None)]
    for _ in range(5):
        for _ in range(3):
            await service.person(role="ADMIN")
        ids = [row[0] for row in service.rows("SELECT id FROM users WHERE role = 'ADMIN' AND NOT disabled")]
        assert len(ids) == 4
        answers = await asyncio.gather(
            *(
                service.http.request(method, f"/api/v1/users/{user_id}", json=body, headers=service.admin)
                for user_id, (method, body) in itertools.product(ids, ways)
            )
        )
        codes = {answer.status_code for answer in answers}
        assert codes <= {200, 204, 404, 409}, [answer.text for answer in answers]
        assert 409 in codes
        assert len(service.rows("SELECT 1 FROM users WHERE role = 'ADMIN' AND NOT disabled")) == 1
        refusal = next(answer for answer in answers if answer.status_code == 409)
        assert refusal.json()["type"] == "/problems/last-administrator"
