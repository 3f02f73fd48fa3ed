"""Idempotency-Key on every POST: equal keys of one caller give one effect and one answer, also across replicas.

Source: the IETF draft «The Idempotency-Key HTTP Header Field». The key's row is marked in the very transaction that
changes something (`uow.before_commit`), so that a crash between the change and its answer is never repeated.
"""

import asyncio
import contextlib
import hmac
from collections.abc import AsyncIterator
from dataclasses import dataclass
from typing import Protocol

from pydantic import SecretStr
from sqlalchemy import Column, DateTime, Integer, LargeBinary, Table, Text, Update, func, select, text, update
from sqlalchemy.dialects.postgresql import JSONB, insert
from sqlmodel.ext.asyncio.session import AsyncSession
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from libs.common.auth import Principal
from libs.common.db import COMMON_METADATA, Database, transaction
from libs.common.errors import Conflict, Invalid, Malformed, TelarError
from libs.common.middleware import header
from libs.common.problems import CONTENT_TYPE, from_exception, problem_response
from libs.common.uow import before_commit

LEASE_S = 30
RETENTION = "24 hours"
WAIT_S = 30.0
MAX_KEY_LENGTH = 255
MAX_STORED_BODY_BYTES = 262_144

keys_table = Table(
    "idempotency_keys",
    COMMON_METADATA,
    Column("caller", Text, primary_key=True),
    Column("key", Text, primary_key=True),
    Column("fingerprint", Text, nullable=False),
    Column("state", Text, nullable=False),
    Column("lease_until", DateTime(timezone=True), nullable=False),
    Column("status", Integer),
    Column("headers", JSONB),
    Column("body", LargeBinary),
    Column("created_at", DateTime(timezone=True), nullable=False, server_default=func.now(), index=True),
)


_KEPT_HEADERS = frozenset({b"content-type", b"location", b"etag", b"retry-after", b"upload-offset", b"upload-expires"})
_TELLING_HEADERS = (b"upload-length", b"upload-metadata")
"""tus 1.0 describes what a POST creates in its header."""


class IdempotencyKeyReused(Invalid):
    slug = "idempotency-key-reused"
    title = "This Idempotency-Key was used for another request"


class AnswerLost(Conflict):
    slug = "idempotency-answer-lost"
    title = "The earlier request took effect, but its answer was lost"


class StillRunning(Conflict):
    slug = "idempotency-still-running"
    title = "The earlier request with this Idempotency-Key is still under way"


@dataclass(frozen=True, slots=True)
class Stored:
    """An answer as it was given the first time."""

    status: int
    headers: list[tuple[str, str]]
    body: bytes


class IdempotencyStore(Protocol):
    """Keeps keys. `begin` gives None when the caller may go on (it now holds the key), or the stored answer.

    It raises StillRunning, AnswerLost or IdempotencyKeyReused otherwise.
    """

    async def begin(self, caller: str, key: str, fingerprint: str) -> Stored | None: ...
    async def renew(self, caller: str, key: str) -> None: ...
    async def finish(self, caller: str, key: str, answer: Stored) -> None: ...
    async def forget(self, caller: str, key: str) -> None:
        """Give the key back, unless something was changed under it."""

    async def mark(self, session: AsyncSession, caller: str, key: str) -> None:
        """Note in the caller's transaction that something is changed under the key."""


class SqlIdempotencyStore:
    """Keys in the service's PostgreSQL database."""

    def __init__(self, database: Database) -> None:
        self._database = database

    async def begin(self, caller: str, key: str, fingerprint: str) -> Stored | None:
        async with transaction(self._database) as session:
            lease = func.now() + text(f"interval '{LEASE_S} seconds'")
            table = keys_table.c
            claim = insert(keys_table).values(
                caller=caller, key=key, fingerprint=fingerprint, state="running", lease_until=lease
            )
            claimed = await session.execute(
                claim.on_conflict_do_update(
                    index_elements=["caller", "key"],
                    set_={"lease_until": lease, "created_at": func.now()},
                    where=(table.state == "running")
                    & (table.lease_until < func.now())
                    & (table.fingerprint == fingerprint),
                ).returning(table.key)
            )
            if claimed.first() is not None:
                return None
            expired = (table.lease_until < func.now()).label("expired")
            row = (
                await session.execute(select(keys_table, expired).where(table.caller == caller, table.key == key))
            ).one_or_none()
        if row is None:
            raise StillRunning("It ended just now; send the request again", retry_after_s=1)
        if row.fingerprint != fingerprint:
            raise IdempotencyKeyReused("Make a new key for each different request")
        if row.state == "done":
            return Stored(row.status, [(name, value) for name, value in row.headers], row.body)
        if row.state == "committed" and row.expired:
            raise AnswerLost("Look at the resource's list before you send it again with a new key")
        raise StillRunning("Send the same request again in a moment to get its answer", retry_after_s=1)

    async def renew(self, caller: str, key: str) -> None:
        async with transaction(self._database) as session:
            await session.execute(
                self._row(caller, key).values(lease_until=func.now() + text(f"interval '{LEASE_S} seconds'"))
            )

    async def finish(self, caller: str, key: str, answer: Stored) -> None:
        async with transaction(self._database) as session:
            await session.execute(
                self._row(caller, key).values(
                    state="done", status=answer.status, headers=answer.headers, body=answer.body
                )
            )

    async def forget(self, caller: str, key: str) -> None:
        async with transaction(self._database) as session:
            await session.execute(
                keys_table.delete().where(
                    keys_table.c.caller == caller, keys_table.c.key == key, keys_table.c.state == "running"
                )
            )

    async def mark(self, session: AsyncSession, caller: str, key: str) -> None:
        await session.execute(self._row(caller, key).values(state="committed"))

    async def sweep(self) -> None:
        """Forget keys after the retention."""
        async with transaction(self._database) as session:
            await session.execute(
                keys_table.delete().where(keys_table.c.created_at < text(f"now() - interval '{RETENTION}'"))
            )

    def _row(self, caller: str, key: str) -> Update:
        return update(keys_table).where(keys_table.c.caller == caller, keys_table.c.key == key)


class IdempotencyMiddleware:
    """Honours Idempotency-Key on POSTs of authenticated callers; sits inside authentication.

    `secret` is what all replicas share: bodies hold passwords, which a bare digest would let be guessed.
    """

    def __init__(self, app: ASGIApp, *, store: IdempotencyStore, secret: SecretStr) -> None:
        self._app = app
        self._store = store
        self._secret = secret.get_secret_value().encode()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        raw_key = header(scope, b"idempotency-key") if scope["type"] == "http" and scope["method"] == "POST" else None
        identity = scope.get("state", {}).get("identity")
        if raw_key is None or not isinstance(identity, Principal):
            await self._app(scope, receive, send)
            return
        try:
            key = _valid(raw_key)
            fingerprint, receive = await _fingerprint(scope, receive, self._secret)
            stored = await self._begin(identity.user_id, key, fingerprint)
        except Exception as error:  # noqa: BLE001 - whatever it is, it is answered as a problem
            await problem_response(from_exception(error), instance=scope["path"])(scope, receive, send)
            return
        if stored is not None:
            await _replay(stored, send)
            return
        await self._run(scope, receive, send, identity.user_id, key)

    async def _begin(self, caller: str, key: str, fingerprint: str) -> Stored | None:
        """Claim the key, waiting for an equal request that is under way to finish."""
        deadline = asyncio.get_running_loop().time() + WAIT_S
        delay_s = 0.02
        while True:
            try:
                return await self._store.begin(caller, key, fingerprint)
            except StillRunning:
                if asyncio.get_running_loop().time() > deadline:
                    raise
            await asyncio.sleep(delay_s)
            delay_s = min(delay_s * 1.5, 0.5)

    async def _run(self, scope: Scope, receive: Receive, send: Send, caller: str, key: str) -> None:
        recorder = _Recorder(send, scope["path"])

        async def mark(session: AsyncSession) -> None:
            await self._store.mark(session, caller, key)

        reset = before_commit.set(mark)
        try:
            async with self._renewed(caller, key):
                await self._app(scope, receive, recorder)
        finally:
            before_commit.reset(reset)
            answer = recorder.answer()
            with contextlib.suppress(TelarError):  # the lease runs out by itself
                if answer is not None and recorder.succeeded:  # refusals changed nothing
                    await self._store.finish(caller, key, answer)
                else:
                    await self._store.forget(caller, key)

    @contextlib.asynccontextmanager
    async def _renewed(self, caller: str, key: str) -> AsyncIterator[None]:
        async def renew() -> None:
            while True:
                await asyncio.sleep(LEASE_S / 3)
                with contextlib.suppress(TelarError):
                    await self._store.renew(caller, key)

        task = asyncio.create_task(renew())
        try:
            yield
        finally:
            task.cancel()


class _Recorder:
    """Passes an answer on and keeps a copy, if it is small enough and may be given again (no `no-store` on it)."""

    def __init__(self, send: Send, path: str) -> None:
        self._send = send
        self._path = path
        self._status = 0
        self._headers: list[tuple[str, str]] = []
        self._body = bytearray()
        self._complete = False
        self._secret = False

    async def __call__(self, message: Message) -> None:
        if message["type"] == "http.response.start":
            self._status = message["status"]
            self._headers = [
                (name.decode("latin-1"), value.decode("latin-1"))
                for name, value in message.get("headers", ())
                if name.lower() in _KEPT_HEADERS
            ]
            self._secret = (b"cache-control", b"no-store") in message.get("headers", ())
        elif message["type"] == "http.response.body":
            self._body += message.get("body", b"")[: MAX_STORED_BODY_BYTES + 1]
            self._complete = not message.get("more_body", False)
        await self._send(message)

    @property
    def succeeded(self) -> bool:
        return self._status < 400  # noqa: PLR2004 - HTTP's own border

    def answer(self) -> Stored | None:
        if not self._complete or len(self._body) > MAX_STORED_BODY_BYTES:
            return None
        if self._secret:
            refusal = problem_response(AnswerLost("Its answer held a secret that is shown once"), instance=self._path)
            return Stored(refusal.status_code, [("content-type", CONTENT_TYPE)], bytes(refusal.body))
        return Stored(self._status, self._headers, bytes(self._body))


def _valid(raw_key: bytes) -> str:
    key = raw_key.decode("latin-1").strip().strip('"')
    if not key or len(key) > MAX_KEY_LENGTH or not key.isprintable():
        raise Malformed(f"Idempotency-Key must be 1 to {MAX_KEY_LENGTH} printable characters, such as a UUID")
    return key


async def _fingerprint(scope: Scope, receive: Receive, secret: bytes) -> tuple[str, Receive]:
    """Digest what makes the request that request: the path, the query and the body.

    A multipart body is streamed and never held, so its length and type stand for it.
    """
    digest = hmac.new(secret, scope["path"].encode() + b"?" + scope["query_string"] + b"\n", "sha256")
    for name in _TELLING_HEADERS:
        told = header(scope, name)
        if told is not None:
            digest.update(name + b":" + told + b"\n")
    content_type = header(scope, b"content-type") or b""
    if content_type.startswith((b"multipart/", b"application/offset+octet-stream")):
        digest.update((header(scope, b"content-length") or b"") + content_type.partition(b";")[0])
        return digest.hexdigest(), receive
    message = await receive()
    messages = [message]
    while message["type"] == "http.request":
        digest.update(message.get("body", b""))
        if not message.get("more_body"):
            break
        message = await receive()
        messages.append(message)

    async def replay() -> Message:
        return messages.pop(0) if messages else await receive()

    return digest.hexdigest(), replay


async def _replay(stored: Stored, send: Send) -> None:
    headers = [(name.encode("latin-1"), value.encode("latin-1")) for name, value in stored.headers]
    headers += [(b"content-length", str(len(stored.body)).encode()), (b"idempotency-replayed", b"true")]
    await send({"type": "http.response.start", "status": stored.status, "headers": headers})
    await send({"type": "http.response.body", "body": stored.body})
