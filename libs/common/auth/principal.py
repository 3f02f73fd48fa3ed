"""Who a signed token speaks of, and what they may see."""

from dataclasses import dataclass
from enum import StrEnum
from functools import lru_cache


class Role(StrEnum):
    ADMIN = "ADMIN"
    CLIENT = "CLIENT"
    SERVICE = "SERVICE"
    """Another process of Telar, never a person."""


@dataclass(frozen=True, slots=True)
class Principal:
    """The caller a signed token speaks of. `session_id` is the session, or `key:<id>` for an API key's token."""

    user_id: str
    username: str
    role: Role
    session_id: str
    scopes: frozenset[str]
    issued_at: float
    expires_at: float

    @property
    def is_admin(self) -> bool:
        return self.role is Role.ADMIN and self.has_scope("admin")

    @property
    def is_service(self) -> bool:
        return self.role is Role.SERVICE

    def has_scope(self, scope: str) -> bool:
        """Whether a scope is held: `*` holds all, `vms` holds `vms:read`, `read` holds every `…:read`."""
        return not self.scopes.isdisjoint(_holders(scope))

    def may_see(self, owner_id: str | None) -> bool:
        return self.is_admin or self.is_service or (owner_id is not None and owner_id == self.user_id)


@lru_cache(maxsize=256)
def _holders(scope: str) -> frozenset[str]:
    area, _, verb = scope.partition(":")
    return frozenset({"*", scope, area, "read" if verb == "read" else scope})
