"""Quotas by reservation: an owner's limits and use in this service's database, under one row lock.

auth owns the limits; each service keeps a copy fed by auth's events and enforces its own part: whoever creates, resizes
or starts something reserves first, in the same transaction, so that parallel requests never exceed a limit.
"""

import asyncio
from collections.abc import Awaitable, Callable, Iterable, Mapping
from typing import Any

from pydantic import BaseModel
from sqlalchemy import BigInteger, Boolean, Column, Table, Text, case, select, update
from sqlalchemy.dialects.postgresql import JSONB, insert
from sqlmodel.ext.asyncio.session import AsyncSession

from libs.common.db import COMMON_METADATA
from libs.common.errors import Forbidden, QuotaExceeded, Unavailable
from libs.common.events import Event, Payload
from libs.common.inbox import NewestOnly
from libs.common.uow import UnitOfWork, UnitOfWorkFactory

ARRIVAL_S = 2.0
"""How long an administrator's call waits for the account it names, if there is one."""
Exists = Callable[[str], Awaitable[bool]]
"""Whether auth has a user by that external id, name or id; True where it cannot be asked."""
RESOURCES = ("vms", "cores", "memory_mib", "disk_gib", "stacks", "image_bytes", "fetch_jobs")
UNLIMITED = -1

accounts_table = Table(
    "quota_accounts",
    COMMON_METADATA,
    Column("owner_id", Text, primary_key=True),
    Column("username", Text, nullable=False),
    Column("external_id", Text, index=True),
    Column("limits", JSONB, nullable=False),
    Column("used", JSONB, nullable=False, server_default="{}"),
    Column("disabled", Boolean, nullable=False, server_default="false"),
    Column("deleted", Boolean, nullable=False, server_default="false"),
    Column("sequence", BigInteger, nullable=False, server_default="0"),
    Column("used_sequence", BigInteger, nullable=False, server_default="0"),
)


class Usage(BaseModel):
    """All that an owner uses in one service after a change; `sequence` counts the owner's changes there."""

    used: dict[str, int]
    sequence: int


class ResourceRef(BaseModel):
    """A resource as auth lists it to who wants to delete its owner."""

    type: str
    id: str
    name: str


class OwnedPayload(Payload):
    """Base of the events by which auth knows what a user owns and uses; a `deleted` event ends the ownership."""

    resource: ResourceRef
    usage: Usage | None = None


async def reserve(session: AsyncSession, owner_id: str, amounts: Mapping[str, int]) -> Usage:
    """Add to the owner's use, or raise QuotaExceeded and change nothing; the row stays locked until the commit."""
    account = await _locked(session, owner_id)
    if account.disabled or account.deleted:
        raise Forbidden("The account is disabled")
    used = dict(account.used)
    for resource, amount in amounts.items():
        limit = account.limits.get(resource, 0)
        wanted = used.get(resource, 0) + amount
        if amount > 0 and limit != UNLIMITED and wanted > limit:
            free = max(0, limit - used.get(resource, 0))
            raise QuotaExceeded(
                f"{resource}: {amount} more would make {wanted}, the limit is {limit} ({free} left);"
                " delete something or ask an administrator"
            )
        used[resource] = wanted
    return await _store(session, owner_id, used)


async def require_within(session: AsyncSession, owner_id: str, resources: Iterable[str]) -> None:
    """Raise QuotaExceeded if the owner uses more of these than the limits are now, Forbidden for a disabled account."""
    account = await _locked(session, owner_id)
    if account.disabled or account.deleted:
        raise Forbidden("The account is disabled")
    for resource in resources:
        limit, used = account.limits.get(resource, 0), account.used.get(resource, 0)
        if limit != UNLIMITED and used > limit:
            raise QuotaExceeded(f"{resource}: {used} are in use, the limit is {limit} now; delete something first")


async def release(session: AsyncSession, owner_id: str, amounts: Mapping[str, int]) -> Usage:
    """Take from the owner's use; never below zero."""
    account = await _locked(session, owner_id)
    used = dict(account.used)
    for resource, amount in amounts.items():
        used[resource] = max(0, used.get(resource, 0) - amount)
    return await _store(session, owner_id, used)


async def _on_user_event(uow: UnitOfWork, event: Event) -> None:
    """Keep the copy true on auth.user.* and auth.quota.changed; an event older than the last seen changes nothing."""
    data: dict[str, Any] = event.data
    row = {
        "owner_id": event.subject,
        "username": data["username"],
        "external_id": data.get("external_id"),
        "limits": data["quota"],
        "disabled": data["disabled"],
        "deleted": event.type.startswith("auth.user.deleted."),
        "sequence": event.sequence,
    }
    changes = {name: value for name, value in row.items() if name != "owner_id"}
    await uow.session.execute(
        insert(accounts_table)
        .values(**row)
        .on_conflict_do_update(
            index_elements=["owner_id"], set_=changes, where=accounts_table.c.sequence < event.sequence
        )
    )


on_user_event = NewestOnly(_on_user_event)


async def owner_named(uow: UnitOfWorkFactory, userid: str) -> str | None:
    """The user whom older clients call `userid`: an external id, else an id of Telar's, else a name.

    People choose their names, and one may be another's id.
    """
    account = accounts_table.c
    rank = case((account.external_id == userid, 0), (account.owner_id == userid, 1), else_=2)
    named = (account.external_id == userid) | (account.username == userid) | (account.owner_id == userid)
    query = select(account.owner_id).where(named, ~account.deleted).order_by(rank).limit(1)
    async with uow() as unit:
        found: str | None = await unit.session.scalar(query)
    return found


class Owners:
    """Finds users by `userid`, also one whose account was made a moment ago and arrives by event only now.

    `exists` is auth's own word, asked for names that are not known here: whom it does not know is not waited for.
    """

    def __init__(self, uow: UnitOfWorkFactory, exists: Exists) -> None:
        self._uow = uow
        self._exists = exists

    async def named(self, userid: str, *, arriving: bool = True) -> str | None:
        """As `owner_named`; `arriving`: wait for an account that auth has and this service has not, for ARRIVAL_S."""
        found = await owner_named(self._uow, userid)
        if found is not None or not arriving or not await self._exists(userid):
            return found
        deadline = asyncio.get_running_loop().time() + ARRIVAL_S
        while found is None and asyncio.get_running_loop().time() < deadline:
            await asyncio.sleep(0.05)
            found = await owner_named(self._uow, userid)
        return found


USER_EVENTS = (
    "auth.user.created.v1",
    "auth.user.updated.v1",
    "auth.user.disabled.v1",
    "auth.user.deleted.v1",
    "auth.quota.changed.v1",
)
"""All carry the user's whole public state, so that any of them alone brings the copy up to date."""


async def _locked(session: AsyncSession, owner_id: str) -> Any:
    row = await session.execute(select(accounts_table).where(accounts_table.c.owner_id == owner_id).with_for_update())
    account = row.one_or_none()
    if account is None:
        raise Unavailable("The account has not reached this service yet; try again in a second", retry_after_s=1)
    return account


async def _store(session: AsyncSession, owner_id: str, used: dict[str, int]) -> Usage:
    sequence = await session.scalar(
        update(accounts_table)
        .where(accounts_table.c.owner_id == owner_id)
        .values(used=used, used_sequence=accounts_table.c.used_sequence + 1)
        .returning(accounts_table.c.used_sequence)
    )
    return Usage(used=used, sequence=int(sequence or 0))
