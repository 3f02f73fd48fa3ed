"""No secret that passes through auth is written down: not in logs, events, audit, problems, nor in any table."""

import logging
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any
from uuid import uuid4

import bcrypt
import pytest
import structlog

from libs.common.logging import setup_logging
from libs.common.settings import CommonSettings
from tests.contract.auth.harness import Service, running

CANARIES = {
    "password": "cAnaRy-password-0123456789",
    "next password": "cAnaRy-next-password-0123456789",
    "wrong password": "cAnaRy-wrong-0123456789",
    "wrong token": "cAnaRy-refresh-token-0123456789-0123456789x",
    "wrong key": "cAnaRy-api-key-0123456789",
    "mistyped key": "tlr_cAnaRy00_cAnaRy" + "0" * 43,
    "JWT": "eyJhbGciOiJFZERTQSJ9.eyJjQW5hUnkiOiJjQW5hUnkifQ.cAnaRycAnaRycAnaRy",
    "basic": "Y0FuYVJ5OmNBbmFSeQ==",
}


@pytest.fixture
def lines() -> Iterator[list[bytes]]:
    """Every log line of the process, as the real pipeline hands it on."""
    root = logging.getLogger()
    handlers, level, before = root.handlers, root.level, structlog.get_config()
    found: list[bytes] = []
    pipeline = setup_logging(CommonSettings(embedded=True, log_format="json", log_level="debug"))
    pipeline.add_sink(found.append)
    yield found
    pipeline.close()
    structlog.configure(**before)
    root.handlers, root.level = handlers, level


@pytest.fixture
async def service(lines: list[bytes], database_url: str, tmp_path: Path) -> AsyncIterator[Service]:
    assert lines == []
    async with running(database_url, tmp_path, account_failures=2) as service:
        yield service


async def _use(service: Service) -> tuple[dict[str, str], list[str]]:
    """Use every secret rightly and wrongly; gives the secrets that were made on the way, and all refusals' texts."""
    c = CANARIES
    person = await service.person(password=c["password"])
    imported = await service.person()
    digest = bcrypt.hashpw(c["password"].encode(), bcrypt.gensalt(4)).decode()
    await service.change("UPDATE users SET password_hash = %s WHERE id = %s", digest, imported.id)
    answers = [await service.login(one.username, c["password"]) for one in (person, imported)]
    first = answers[0].json()["refresh_token"]
    second = (await service.refresh(first)).json()["refresh_token"]
    third = (await service.login(person.username, c["password"])).json()["refresh_token"]
    keyed = {**person.headers, "idempotency-key": str(uuid4())}
    key = (await service.http.post("/api/v1/api-keys", json={"name": "k"}, headers=keyed)).json()
    answers += [await service.exchange(key["key"]), await service.exchange(key["key"], address="-")]
    answers += [await service.refresh(first)]
    answers += [await service.login(person.username, c["wrong password"]) for _ in range(4)]
    answers += [await service.login(c["wrong key"], c["wrong password"])]
    answers += [await service.refresh(text) for text in (second, c["wrong token"])]
    answers += [await service.exchange(c[name]) for name in ("wrong key", "mistyped key", "JWT")]
    for body in (
        {"current_password": c["wrong password"], "new_password": c["next password"]},
        {"current_password": c["password"], "new_password": c["next password"] * 100},
        {"current_password": c["password"], "new_password": c["next password"], "token": c["JWT"]},
        {"current_password": c["password"], "new_password": c["next password"]},
    ):
        answers.append(await service.http.post("/api/v1/users/me/password", json=body, headers=person.headers))
    for headers in (
        {"authorization": f"Bearer {c['JWT']}"},
        {"authorization": f"Basic {c['basic']}"},
        {"authorization": c["JWT"]},
        {"x-api-key": key["key"]},
        {"cookie": f"session={c['JWT']}"},
    ):
        answers.append(await service.http.get("/api/v1/users/me", headers=headers))
    bodies: list[Any] = [
        {"email": c["basic"], "username": "x", "password": c["password"], "secret": c["wrong key"]},
        {"email": "x@example.org", "username": "x", "password": [c["password"]]},
        {"email": "x@example.org", "username": person.username, "password": c["password"]},
        c["password"],
    ]
    for body in bodies:
        answers.append(await service.http.post("/api/v1/users/", json=body, headers=service.admin))
    broken = f'{{"password": "{c["password"]}", '.encode()
    headers = {**service.admin, "content-type": "application/json"}
    answers.append(await service.http.post("/api/v1/users/", content=broken, headers=headers))
    answers.append(await service.http.post("/internal/login", content=broken, headers=headers | service.gateway))
    await service.http.delete(f"/api/v1/api-keys/{key['id']}", headers=person.headers)
    made = {"API key": key["key"], "first refresh token": first, "second": second, "third": third}
    made["access token"] = person.headers["authorization"].partition(" ")[2]
    return made, [answer.text for answer in answers if answer.is_error]


async def test_no_secret_is_written_down_anywhere(service: Service, lines: list[bytes], eventually: Any) -> None:
    made, refusals = await _use(service)
    await eventually(lambda: not service.rows("SELECT 1 FROM outbox WHERE published_at IS NULL"))
    assert len(refusals) >= 15
    tables = service.rows("SELECT tablename FROM pg_tables WHERE schemaname = 'public'")
    kept = {name: str(service.rows(f"SELECT to_jsonb(t)::text FROM {name} t")) for (name,) in tables}  # noqa: S608 - own tables
    bodies = service.rows(
        "SELECT convert_from(body, 'UTF8') FROM idempotency_keys UNION ALL SELECT body::text FROM outbox"
    )
    events = service.rows("SELECT encode(body, 'escape') FROM outbox")
    places = {
        "logs": b"\n".join(lines).decode(),
        "problems": "\n".join(refusals),
        "events heard": "\n".join(one.to_json().decode() for one in service.heard),
        "bodies": str(bodies),
        "outbox": str(events),
        **{f"table {name}": text for name, text in kept.items()},
    }
    assert "user.password_changed" in places["logs"]
    assert "auth.login.locked.v1" in places["outbox"]
    assert "session.token_reused" in places["table audit_entries"]
    found = [
        (name, place) for name, secret in (CANARIES | made).items() for place, text in places.items() if secret in text
    ]
    # Who types a key where the name belongs: the throttle has to count that name.
    assert set(found) <= {("wrong key", "table login_failures")}
