"""The auth service on a real database, its callers, and what it said on the bus."""

import contextlib
import itertools
import secrets
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import httpx
from pwdlib.hashers.argon2 import Argon2Hasher

from libs.common.clock import SystemClock
from libs.common.events import Event
from libs.common.ids import uuid7
from libs.common.settings import CommonSettings
from libs.common.testing.serving import Served, serving
from services.auth.adapters.passwords import PwdlibPasswords
from services.auth.main import create_app, migrate
from services.auth.settings import AuthSettings

PASSWORD = "correct horse battery staple"
ADMIN_PASSWORD = "the administrator's own password"
CHEAP = Argon2Hasher(time_cost=1, memory_cost=8, parallelism=1)
"""A real hash that costs next to nothing: most tests need a password, few what guessing it would take."""
_names = itertools.count(1)


def settings(database_url: str, folder: Path, **options: Any) -> AuthSettings:
    common = CommonSettings(embedded=True, data_dir=folder, auth_url="http://127.0.0.1:9")
    given = {"TELAR_ADMIN_PASSWORD": ADMIN_PASSWORD, "account_failures": 1000, "network_failures": 100_000, **options}
    return AuthSettings(common=common, database_url=database_url, **given)


@dataclass
class Person:
    """A user, as the service answered it."""

    id: str
    username: str
    email: str
    shown: dict[str, Any]
    headers: dict[str, str]


@dataclass
class Service(Served):
    """A running auth service, and what its tests do with it."""

    admin: dict[str, str] = field(default_factory=dict)
    gateway: dict[str, str] = field(default_factory=dict)

    async def person(self, *, role: str = "CLIENT", password: str = PASSWORD, **fields: Any) -> Person:
        """A new user made by the administrator."""
        name = fields.pop("username", f"user-{next(_names)}-{secrets.token_hex(3)}")
        body = {"email": f"{name}@example.org", "username": name, "password": password, "role": role, **fields}
        answer = await self.http.post("/api/v1/users/", json=body, headers=self.admin)
        assert answer.status_code == 201, answer.text
        shown = answer.json()
        scopes = ("*",) if role == "ADMIN" else ("account", "images", "vms", "stacks", "fetch")
        headers = self.issuer.headers(shown["id"], role=role, scopes=scopes)
        return Person(shown["id"], name, body["email"], shown, headers)

    async def login(self, username: str, password: str = PASSWORD, *, address: str = "198.51.100.7") -> httpx.Response:
        body = {"username": username, "password": password, "address": address, "user_agent": "test"}
        return await self.http.post("/internal/login", json=body, headers=self.gateway)

    async def session(self, person: Person) -> dict[str, Any]:
        answer = await self.login(person.username)
        assert answer.status_code == 200, answer.text
        grant: dict[str, Any] = answer.json()
        return grant

    async def refresh(self, token: str) -> httpx.Response:
        body = {"refresh_token": token, "address": "198.51.100.7"}
        return await self.http.post("/internal/refresh", json=body, headers=self.gateway)

    async def exchange(self, key: str, *, address: str = "198.51.100.7") -> httpx.Response:
        body = {"key": key, "address": address}
        return await self.http.post("/internal/api-keys/exchange", json=body, headers=self.gateway)

    async def key(self, headers: dict[str, str], **body: Any) -> dict[str, Any]:
        answer = await self.http.post("/api/v1/api-keys", json={"name": "key", **body}, headers=headers)
        assert answer.status_code == 201, answer.text
        made: dict[str, Any] = answer.json()
        return made

    def as_key(self, person: Person, key: dict[str, Any]) -> dict[str, str]:
        """The headers of who came with an API key: what the gateway's exchange makes of it."""
        claims = self.issuer.claims(person.id, role=person.shown["role"], scopes=tuple(key["scopes"]))
        claims["sid"] = f"key:{key['id']}"
        return {"authorization": f"Bearer {self.issuer.sign(claims)}"}

    def said(self, event_type: str, subject: str | None = None) -> list[Event]:
        return [one for one in self.heard if one.type == event_type and subject in (None, one.subject)]


def told(answer: httpx.Response) -> dict[str, Any]:
    """A problem without what differs for every request."""
    document: dict[str, Any] = answer.json()
    document.pop("trace_id", None)
    return document


def event(event_type: str, owner: str, *, sequence: int, data: dict[str, Any], subject: str = "s") -> Event:
    """An event of another service."""
    source = f"/telar/{event_type.partition('.')[0]}"
    now = SystemClock().now()
    return Event(event_type, subject, source=source, time=now, data=data, owner=owner, sequence=sequence)


@contextlib.asynccontextmanager
async def running(database_url: str, folder: Path, **options: Any) -> AsyncIterator[Service]:
    """Migrate and run the service in this process."""
    passwords = PwdlibPasswords(concurrency=2, queue=64, argon2=CHEAP)
    make_app = partial(create_app, passwords=passwords)
    async with serving("auth", make_app, migrate, settings(database_url, folder, **options)) as served:
        service = Service(**vars(served))
        service.admin = service.issuer.headers(str(uuid7()), role="ADMIN")  # one whom no test can disable
        service.gateway = service.issuer.headers("service:gateway", role="SERVICE")
        yield service
