"""Console tickets: drawn for one user and one machine, kept as a digest alone, taken by whichever replica is asked."""

import hashlib
import secrets
from datetime import datetime, timedelta
from uuid import UUID

from sqlalchemy import delete
from sqlmodel import col
from sqlmodel.ext.asyncio.session import AsyncSession

from libs.common.auth import Principal, Role
from services.vms.errors import TicketRefused
from services.vms.models import ConsoleTicket

_BYTES = 32


def draw(session: AsyncSession, principal: Principal, vm_id: UUID, *, expires_at: datetime) -> str:
    """Add a ticket in the caller's transaction; gives the text that is never shown again."""
    text = secrets.token_urlsafe(_BYTES)
    session.add(
        ConsoleTicket(
            digest=_digest(text),
            vm_id=vm_id,
            user_id=principal.user_id,
            username=principal.username,
            session_id=principal.session_id,
            is_admin=principal.is_admin,
            token_issued_at=principal.issued_at,
            expires_at=expires_at,
        )
    )
    return text


async def take(session: AsyncSession, text: str, vm_id: UUID, *, now: datetime, lasts: timedelta) -> Principal:
    """Use a ticket up and give whom it speaks for, for as long as a console `lasts`.

    Raises TicketRefused, with the ticket used up all the same if it was for another machine: the caller commits.
    """
    using = delete(ConsoleTicket).where(col(ConsoleTicket.digest) == _digest(text)).returning(ConsoleTicket)
    ticket = (await session.execute(using)).scalar_one_or_none()
    if ticket is None or ticket.vm_id != vm_id or ticket.expires_at <= now:
        raise TicketRefused("Ask for another one at POST …/console; each opens one console within 30 seconds")
    return Principal(
        user_id=ticket.user_id,
        username=ticket.username,
        role=Role.ADMIN if ticket.is_admin else Role.CLIENT,
        session_id=ticket.session_id,
        scopes=frozenset({"vms", "admin"} if ticket.is_admin else {"vms"}),
        issued_at=ticket.token_issued_at,
        expires_at=(now + lasts).timestamp(),
    )


async def sweep(session: AsyncSession, *, now: datetime) -> None:
    await session.execute(delete(ConsoleTicket).where(col(ConsoleTicket.expires_at) <= now))


def _digest(text: str) -> bytes:
    return hashlib.sha256(text.encode("utf-8", "replace")).digest()
