"""What the auth service says to others."""

from typing import ClassVar

from pydantic import BaseModel

from libs.common.events import Payload


class Revoke(BaseModel):
    """Tokens of this session (a key's is `key:<id>`) or user, issued until `revoked_at` (Unix s), are refused."""

    scope: str
    id: str
    revoked_at: float


class UserState(Payload):
    """A user's whole public state, so that each event alone brings a copy up to date."""

    username: str
    email: str
    external_id: str | None
    role: str
    disabled: bool
    quota: dict[str, int]
    revokes: tuple[Revoke, ...] = ()


class UserCreated(UserState):
    event_type: ClassVar[str] = "auth.user.created.v1"


class UserUpdated(UserState):
    event_type: ClassVar[str] = "auth.user.updated.v1"


class UserDisabled(UserState):
    event_type: ClassVar[str] = "auth.user.disabled.v1"


class UserDeleted(UserState):
    event_type: ClassVar[str] = "auth.user.deleted.v1"


class QuotaChanged(UserState):
    event_type: ClassVar[str] = "auth.quota.changed.v1"


class SessionRevoked(Payload):
    event_type: ClassVar[str] = "auth.session.revoked.v1"
    revokes: tuple[Revoke, ...]


class ApiKeyRevoked(Payload):
    event_type: ClassVar[str] = "auth.api_key.revoked.v1"
    revokes: tuple[Revoke, ...]


class LoginLocked(Payload):
    """A name was guessed at too often from one network."""

    event_type: ClassVar[str] = "auth.login.locked.v1"
    network: str
    failures: int


class LoginUnlocked(Payload):
    """The right password came after failures."""

    event_type: ClassVar[str] = "auth.login.unlocked.v1"
    network: str
