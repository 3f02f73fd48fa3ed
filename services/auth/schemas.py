"""What clients send and get."""

from datetime import UTC, datetime
from ipaddress import ip_network
from typing import Annotated, Any, Literal, Self
from uuid import UUID

from pydantic import BaseModel, ConfigDict, EmailStr, Field, SecretStr, StringConstraints, field_validator

from services.auth.domain import Quota, valid_scope

Username = Annotated[
    str, StringConstraints(strip_whitespace=True, min_length=1, max_length=64, pattern=r"^[\w.@+ -]+$")
]
Name = Annotated[str, StringConstraints(strip_whitespace=True, min_length=1, max_length=100)]
Password = Annotated[SecretStr, Field(min_length=1, max_length=4096)]
RoleName = Literal["ADMIN", "CLIENT"]


class _In(BaseModel):
    model_config = ConfigDict(extra="forbid")


class UserIn(_In):
    email: EmailStr
    username: Username
    password: Password
    role: RoleName = "CLIENT"


class UserPatch(_In):
    """What an administrator may change; absent fields stay."""

    email: EmailStr | None = None
    username: Username | None = None
    role: RoleName | None = None
    disabled: bool | None = None
    quota: dict[str, Annotated[int, Field(ge=-1)]] | None = None
    """Some of the limits; those not named stay."""
    password: Password | None = None
    """For who forgot theirs, and for accounts that older clients made by a `userid`, which have none."""

    @property
    def touches_access(self) -> bool:
        return self.role is not None or self.disabled is not None

    @field_validator("quota")
    @classmethod
    def _known_limits(cls, quota: dict[str, int] | None) -> dict[str, int] | None:
        unknown = set(quota or ()) - set(Quota.model_fields)
        if unknown:
            raise ValueError(f"unknown limits: {', '.join(sorted(unknown))}; there are {', '.join(Quota.model_fields)}")
        return quota


class MePatch(_In):
    email: EmailStr | None = None
    username: Username | None = None


class PasswordChange(_In):
    current_password: Password
    new_password: Password


class UserOut(BaseModel):
    id: UUID
    email: str
    username: str
    role: RoleName
    is_superuser: bool
    disabled: bool
    created_at: datetime
    updated_at: datetime
    external_id: str | None = None
    quota: Quota

    @classmethod
    def of(cls, user: object) -> Self:
        """The user's row as clients see it."""
        return cls.model_validate(user, from_attributes=True)


class OwnedOut(BaseModel):
    service: str
    type: str
    id: str
    name: str


class LegacyUser(BaseModel):
    """A user as the older VM and stack API shows it."""

    userid: str
    username: str
    id: UUID
    vms: list[OwnedOut]
    services: list[OwnedOut]


class UsageOut(BaseModel):
    """Limit and use of each quota; a limit of -1 is unlimited."""

    quota: dict[str, int]
    used: dict[str, int]
    resources: list[OwnedOut]


class ApiKeyIn(_In):
    name: Name
    scopes: list[str] = Field(default=["*"], min_length=1, max_length=20)
    expires_at: datetime | None = None
    cidrs: list[str] = Field(default=[], max_length=20)

    @field_validator("scopes")
    @classmethod
    def _known_scopes(cls, scopes: list[str]) -> list[str]:
        for scope in scopes:
            if not valid_scope(scope):
                raise ValueError(f"unknown scope {scope!r}")
        return sorted(set(scopes))

    @field_validator("cidrs")
    @classmethod
    def _networks(cls, cidrs: list[str]) -> list[str]:
        return [str(ip_network(cidr)) for cidr in cidrs]

    @field_validator("expires_at")
    @classmethod
    def _aware(cls, moment: datetime | None) -> datetime | None:
        if moment is not None and moment.tzinfo is None:
            raise ValueError("give the time zone, such as 2027-01-31T12:00:00Z")
        try:
            return None if moment is None else moment.astimezone(UTC)
        except OverflowError as error:  # stored, it could not be read back
            raise ValueError("must be within the years 1 to 9999 of UTC") from error


class ApiKeyOut(BaseModel):
    id: UUID
    name: str
    prefix: str
    scopes: list[str]
    cidrs: list[str]
    created_at: datetime
    expires_at: datetime | None
    last_used_at: datetime | None
    last_used: datetime | None
    """The same, under the name that older clients read."""


class NewApiKeyOut(ApiKeyOut):
    key: str
    """Shown this once; only a digest is kept."""


class SessionOut(BaseModel):
    id: UUID
    address: str
    user_agent: str
    created_at: datetime
    last_used_at: datetime
    expires_at: datetime
    current: bool


class AuditEntryOut(BaseModel):
    number: int
    at: datetime
    actor_id: str | None
    actor: str
    action: str
    target: str
    address: str
    detail: dict[str, Any]
    hash: str


class AuditVerification(BaseModel):
    intact: bool
    entries: int
    first_broken: int | None
    """The number of the first entry whose hash does not follow from the one before."""
    head: str
    """The hash at the chain's end: keep it elsewhere to notice a cut-off end."""


# Between the gateway and auth


class LoginIn(_In):
    username: Annotated[str, Field(min_length=1, max_length=320)]
    password: Password
    address: str
    user_agent: str = ""


class RefreshIn(_In):
    refresh_token: SecretStr
    address: str


class KeyExchangeIn(_In):
    key: SecretStr
    address: str


class LogoutIn(_In):
    session_id: Annotated[str, StringConstraints(pattern=r"^(key:)?[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}$")]
    user_id: UUID


class SessionGrant(BaseModel):
    """Who somebody proved to be: what the gateway signs an access token for."""

    user: UserOut
    session_id: str
    scopes: list[str]
    refresh_token: str | None = None
    expires_at: datetime | None = None
    """An API key's end, if it has one: no access token outlives it."""


class RevocationOut(BaseModel):
    scope: str
    id: str
    revoked_at: float


class Revocations(BaseModel):
    items: list[RevocationOut]


class Accounts(BaseModel):
    """Each as the JSON text of the event that tells of it."""

    items: list[str]


class UserExistence(BaseModel):
    exists: bool
