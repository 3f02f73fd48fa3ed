"""The audit log: who did what to which target, when and from where, each entry chained to the one before."""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC
from typing import Any

from libs.common.auth import Principal
from libs.common.logging import audit_log
from libs.common.pagination import PageRequest
from libs.common.uow import UnitOfWork, UnitOfWorkFactory
from services.auth.domain import GENESIS, chain_hash
from services.auth.models import AuditEntry
from services.auth.repository import AuthRepository
from services.auth.schemas import AuditVerification

_BATCH = 1000


@dataclass(frozen=True, slots=True)
class Actor:
    """Who acts, and from which address."""

    user_id: str | None
    name: str
    address: str

    @classmethod
    def of(cls, principal: Principal, address: str) -> "Actor":
        return cls(principal.user_id, principal.username, address)


SYSTEM = Actor(None, "telar", "-")


async def record(uow: UnitOfWork, actor: Actor, action: str, target: str, **detail: Any) -> None:
    """Append an entry in the caller's transaction; `action` is `<noun>.<past verb>`, details hold no secrets.

    Call it last: from here to the commit all other changes wait, so that it must not wait for any of their rows.
    """
    repository = AuthRepository(uow.session)
    await repository.flush()
    last, previous = await repository.audit_head()
    entry = AuditEntry(
        number=last + 1,
        at=uow.clock.now(),
        actor_id=actor.user_id,
        actor=actor.name,
        action=action,
        target=target,
        address=actor.address,
        detail=detail,
        hash="",
    )
    entry.hash = chain_hash(previous, _content(entry))
    repository.add(entry)
    audit_log(action, actor=actor.name, actor_id=actor.user_id, target=target, address=actor.address, hash=entry.hash)


def _content(entry: AuditEntry) -> dict[str, Any]:
    return {
        "number": entry.number,
        "at": entry.at.astimezone(UTC).isoformat(),
        "actor_id": entry.actor_id,
        "actor": entry.actor,
        "action": entry.action,
        "target": entry.target,
        "address": entry.address,
        "detail": entry.detail,
    }


class Audit:
    """Reading and verifying the log."""

    def __init__(self, uow: UnitOfWorkFactory) -> None:
        self._uow = uow

    async def list(
        self, request: PageRequest, *, actor_id: str | None, action: str | None, target: str | None
    ) -> Sequence[AuditEntry]:
        async with self._uow() as uow:
            return await AuthRepository(uow.session).audit_entries(
                request, actor_id=actor_id, action=action, target=target
            )

    async def verify(self) -> AuditVerification:
        """Walk the whole chain, in batches of short transactions."""
        previous, number, entries = GENESIS, 0, 0
        while True:
            async with self._uow() as uow:
                batch = await AuthRepository(uow.session).audit_after(number, _BATCH)
            for entry in batch:
                if entry.hash != chain_hash(previous, _content(entry)):
                    return AuditVerification(intact=False, entries=entries, first_broken=entry.number, head=previous)
                previous, number, entries = entry.hash, entry.number, entries + 1
            if len(batch) < _BATCH:
                return AuditVerification(intact=True, entries=entries, first_broken=None, head=previous)
