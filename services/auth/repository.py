"""Queries of the auth service's tables, over one unit of work's session."""

import contextlib
from collections.abc import Sequence
from datetime import datetime, timedelta
from typing import Any
from uuid import UUID

from sqlalchemy import case, delete, func, null, or_, update
from sqlalchemy.dialects.postgresql import insert
from sqlmodel import col, select
from sqlmodel.ext.asyncio.session import AsyncSession

from libs.common.pagination import PageRequest, keyset
from services.auth.domain import GENESIS, name_key
from services.auth.models import (
    ApiKey,
    AuditEntry,
    LoginFailures,
    OwnedResource,
    RefreshToken,
    Revocation,
    ServiceUsage,
    Session,
    User,
)

_AUDIT_LOCK = 0x7E1A_0A0D
_FIRST_START_LOCK = 0x7E1A_0A0E
_NAMES_LOCK = 0x7E1A_0A0F
_ADMINISTRATORS_LOCK = 0x7E1A_0A10
_REVOCATION_LIFE = timedelta(hours=2)
_SIGNING = timedelta(minutes=1)
"""Longer than the gateway takes to sign a token after auth has said whose it is."""


class AuthRepository:
    """Loads and stores; decides nothing and never commits."""

    def __init__(self, session: AsyncSession) -> None:
        self._session = session

    def add(self, row: Any) -> None:
        self._session.add(row)

    async def flush(self) -> None:
        await self._session.flush()

    # users

    async def user(self, user_id: UUID, *, lock: bool = False) -> User | None:
        return await self._session.get(User, user_id, with_for_update=lock or None)

    async def user_by_name(self, name: str) -> User | None:
        """By username or e-mail, whatever the case."""
        key = name_key(name)
        query = select(User).where(or_(col(User.username_key) == key, col(User.email_key) == key))
        return (await self._session.exec(query)).first()

    async def user_by_external_id(self, external_id: str) -> User | None:
        return (await self._session.exec(select(User).where(User.external_id == external_id))).first()

    async def users_after(self, after: UUID | None, *, limit: int) -> Sequence[User]:
        """In the order of their ids."""
        query = select(User).order_by(col(User.id)).limit(limit)
        return (await self._session.exec(query if after is None else query.where(col(User.id) > after))).all()

    async def alone_among_names(self) -> None:
        """Keep others from taking a name until the commit: no constraint tells a username from another's e-mail."""
        await self._session.exec(select(func.pg_advisory_xact_lock(_NAMES_LOCK)))

    async def is_anybody(self, userid: str) -> bool:
        """Whether it is an external id, a username as it is written, or an id."""
        named = [col(User.external_id) == userid, col(User.username) == userid]
        with contextlib.suppress(ValueError):
            named.append(col(User.id) == UUID(userid))
        return (await self._session.exec(select(User.id).where(or_(*named)).limit(1))).first() is not None

    async def users(self, request: PageRequest, *, search: str | None, role: str | None) -> Sequence[User]:
        query: Any = select(User)
        if role is not None:
            query = query.where(User.role == role)
        if search:
            key = name_key(search)
            query = query.where(
                or_(
                    col(User.username_key).contains(key, autoescape=True),
                    col(User.email_key).contains(key, autoescape=True),
                )
            )
        columns: dict[str, Any] = {
            "id": col(User.id),
            "username": col(User.username_key),
            "email": col(User.email_key),
            "created_at": col(User.created_at),
        }
        query = keyset(query, request, columns=columns, key=columns["id"], default="id")
        rows: Sequence[User] = (await self._session.exec(query)).all()
        return rows

    async def administrators(self) -> int:
        """How many administrators can log in; who asks next waits for the commit, so that two cannot go at once.

        Asked for before any user is locked. Locks on the administrators' rows would not do: a row whose holder has just
        gone stays locked out of its turn.
        """
        await self._session.exec(select(func.pg_advisory_xact_lock(_ADMINISTRATORS_LOCK)))
        query = select(func.count()).where(col(User.role) == "ADMIN", col(User.disabled).is_(False))
        return (await self._session.exec(query)).one()

    async def delete_user(self, user: User) -> None:
        await self._session.delete(user)

    # sessions and refresh tokens

    async def session(self, session_id: UUID, *, lock: bool = False) -> Session | None:
        return await self._session.get(Session, session_id, with_for_update=lock or None)

    async def sessions(self, user_id: UUID, now: datetime, request: PageRequest) -> Sequence[Session]:
        query: Any = select(Session).where(
            Session.user_id == user_id, col(Session.revoked_at).is_(None), col(Session.expires_at) > now
        )
        columns: dict[str, Any] = {"id": col(Session.id), "last_used_at": col(Session.last_used_at)}
        query = keyset(query, request, columns=columns, key=columns["id"], default="-id")
        rows: Sequence[Session] = (await self._session.exec(query)).all()
        return rows

    async def refresh_token(self, digest: str) -> RefreshToken | None:
        """The token's row, locked: of two uses at once the second sees the first."""
        return await self._session.get(RefreshToken, digest, with_for_update=True)

    async def revoke_sessions(self, user_id: UUID, at: datetime) -> Sequence[UUID]:
        """End a user's sessions; gives those for which a token may be being signed at this moment."""
        ended = await self._session.exec(
            update(Session)
            .where(col(Session.user_id) == user_id, col(Session.revoked_at).is_(None))
            .values(revoked_at=at)
            .returning(col(Session.id), col(Session.last_used_at))
        )
        return [session_id for session_id, last_used_at in ended if last_used_at > at - _SIGNING]

    async def delete_dead_sessions(self, before: datetime) -> None:
        await self._session.exec(delete(Session).where(col(Session.expires_at) < before))
        await self._session.exec(delete(Session).where(col(Session.revoked_at) < before))

    # API keys

    async def api_key(self, key_id: UUID, *, lock: bool = False) -> ApiKey | None:
        return await self._session.get(ApiKey, key_id, with_for_update=lock or None)

    async def api_key_by_digest(self, digest: str) -> ApiKey | None:
        return (await self._session.exec(select(ApiKey).where(ApiKey.digest == digest))).first()

    async def api_keys(self, user_id: UUID, request: PageRequest) -> Sequence[ApiKey]:
        query: Any = select(ApiKey).where(ApiKey.user_id == user_id)
        columns: dict[str, Any] = {
            "id": col(ApiKey.id),
            "name": col(ApiKey.name),
            "created_at": col(ApiKey.created_at),
        }
        query = keyset(query, request, columns=columns, key=columns["id"], default="id")
        rows: Sequence[ApiKey] = (await self._session.exec(query)).all()
        return rows

    async def api_keys_named(self, user_id: UUID, name: str) -> Sequence[ApiKey]:
        query = select(ApiKey).where(ApiKey.user_id == user_id, ApiKey.name == name).with_for_update()
        return (await self._session.exec(query)).all()

    async def note_use(self, key_id: UUID, now: datetime) -> bool:
        """Note that a key was used; False if it was deleted meanwhile."""
        statement = update(ApiKey).where(col(ApiKey.id) == key_id).values(last_used_at=now).returning(col(ApiKey.id))
        return (await self._session.exec(statement)).first() is not None

    async def delete_api_key(self, key: ApiKey) -> None:
        await self._session.delete(key)

    # failures and revocations

    async def count_failure(self, key: str, now: datetime, window: timedelta) -> int:
        """Add a failure and give how many the key has in its window."""
        over = col(LoginFailures.window_ends_at) < now
        counted = case((over, 1), else_=col(LoginFailures.failures) + 1)
        statement = (
            insert(LoginFailures)
            .values(key=key, failures=1, window_ends_at=now + window)
            .on_conflict_do_update(
                index_elements=["key"],
                set_={
                    "failures": counted,
                    "window_ends_at": case((over, now + window), else_=col(LoginFailures.window_ends_at)),
                    "locked_until": case((over, null()), else_=col(LoginFailures.locked_until)),
                },
            )
            .returning(col(LoginFailures.failures))
        )
        return int((await self._session.exec(statement)).scalar_one())

    async def lock_failures(self, key: str, until: datetime) -> None:
        await self._session.exec(update(LoginFailures).where(col(LoginFailures.key) == key).values(locked_until=until))

    async def locked_until(self, keys: Sequence[str], now: datetime) -> datetime | None:
        """The latest moment until which any of the keys is locked."""
        query = select(func.max(LoginFailures.locked_until)).where(
            col(LoginFailures.key).in_(keys), col(LoginFailures.locked_until) > now
        )
        return (await self._session.exec(query)).one()

    async def forget_failures(self, key: str) -> int:
        """Forget a key's failures after a right password; gives how many there were."""
        statement = delete(LoginFailures).where(col(LoginFailures.key) == key).returning(col(LoginFailures.failures))
        return int((await self._session.exec(statement)).scalar_one_or_none() or 0)

    async def revoke(self, scope: str, subject_id: str, at: datetime) -> None:
        await self._session.exec(
            insert(Revocation)
            .values(scope=scope, subject_id=subject_id, revoked_at=at)
            .on_conflict_do_update(index_elements=["scope", "subject_id"], set_={"revoked_at": at})
        )

    async def revocations(self, since: datetime) -> Sequence[Revocation]:
        return (await self._session.exec(select(Revocation).where(col(Revocation.revoked_at) >= since))).all()

    async def sweep(self, now: datetime) -> None:
        """Forget what has run out."""
        await self._session.exec(delete(Revocation).where(col(Revocation.revoked_at) < now - _REVOCATION_LIFE))
        unlocked = or_(col(LoginFailures.locked_until).is_(None), col(LoginFailures.locked_until) < now)
        await self._session.exec(delete(LoginFailures).where(col(LoginFailures.window_ends_at) < now, unlocked))
        await self.delete_dead_sessions(now - timedelta(days=30))

    async def alone_at_first_start(self) -> None:
        """Wait until no other replica makes what a first start makes, and keep others waiting until the commit."""
        await self._session.exec(select(func.pg_advisory_xact_lock(_FIRST_START_LOCK)))

    # the audit chain

    async def audit_head(self) -> tuple[int, str]:
        """The last entry's number and hash, locked until the commit: entries are appended one at a time."""
        await self._session.exec(select(func.pg_advisory_xact_lock(_AUDIT_LOCK)))
        query = select(AuditEntry.number, AuditEntry.hash).order_by(col(AuditEntry.number).desc()).limit(1)
        return (await self._session.exec(query)).first() or (0, GENESIS)

    async def audit_entries(
        self, request: PageRequest, *, actor_id: str | None, action: str | None, target: str | None
    ) -> Sequence[AuditEntry]:
        query: Any = select(AuditEntry)
        for column, value in (
            (AuditEntry.actor_id, actor_id),
            (AuditEntry.action, action),
            (AuditEntry.target, target),
        ):
            if value is not None:
                query = query.where(col(column) == value)
        columns: dict[str, Any] = {"number": col(AuditEntry.number)}
        query = keyset(query, request, columns=columns, key=columns["number"], default="-number")
        rows: Sequence[AuditEntry] = (await self._session.exec(query)).all()
        return rows

    async def audit_after(self, number: int, limit: int) -> Sequence[AuditEntry]:
        query = select(AuditEntry).where(col(AuditEntry.number) > number).order_by(col(AuditEntry.number)).limit(limit)
        return (await self._session.exec(query)).all()

    # what users own elsewhere

    async def keep_resource(self, row: OwnedResource) -> None:
        """Store what an event says of a resource, unless a newer one has been seen."""
        values = row.model_dump()
        await self._session.exec(
            insert(OwnedResource)
            .values(**values)
            .on_conflict_do_update(
                index_elements=["service", "type", "id"],
                set_=values,
                where=col(OwnedResource.sequence) < row.sequence,
            )
        )

    async def keep_usage(self, row: ServiceUsage) -> None:
        values = row.model_dump()
        await self._session.exec(
            insert(ServiceUsage)
            .values(**values)
            .on_conflict_do_update(
                index_elements=["owner_id", "service"], set_=values, where=col(ServiceUsage.sequence) < row.sequence
            )
        )

    async def owned(self, owner_id: str, limit: int = 200) -> Sequence[OwnedResource]:
        query = (
            select(OwnedResource)
            .where(OwnedResource.owner_id == owner_id, col(OwnedResource.deleted).is_(False))
            .order_by(OwnedResource.service, OwnedResource.type, OwnedResource.id)
            .limit(limit)
        )
        return (await self._session.exec(query)).all()

    async def usage(self, owner_id: str) -> Sequence[ServiceUsage]:
        return (await self._session.exec(select(ServiceUsage).where(ServiceUsage.owner_id == owner_id))).all()
