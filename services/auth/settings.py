"""Settings of the auth service, from `TELAR_AUTH_*` (and the administrator's from `TELAR_ADMIN_*`)."""

from pathlib import Path

from pydantic import Field, SecretStr, ValidationInfo, field_validator
from pydantic_settings import SettingsConfigDict

from libs.common.quotas import RESOURCES, UNLIMITED
from libs.common.settings import ServiceSettings

_CLIENT_QUOTA = {
    "vms": 10,
    "cores": 32,
    "memory_mib": 65_536,
    "disk_gib": 1000,
    "stacks": 20,
    "image_bytes": 200 * 1024**3,
    "fetch_jobs": 5,
}


class AuthSettings(ServiceSettings):
    """What the auth service reads; every duration and limit has its unit in its name."""

    model_config = SettingsConfigDict(env_prefix="TELAR_AUTH_", env_file=".env", extra="ignore", frozen=True)

    database_url: str = "postgresql://telar_auth@127.0.0.1/telar_auth"
    open_registration: bool = False
    """Whether anyone may register (as CLIENT only)."""
    refresh_token_days: int = Field(default=30, ge=1)
    admin_username: str = Field(default="admin", validation_alias="TELAR_ADMIN_USERNAME")
    admin_email: str = Field(default="admin@telar.local", validation_alias="TELAR_ADMIN_EMAIL")
    admin_password: SecretStr | None = Field(default=None, validation_alias="TELAR_ADMIN_PASSWORD")
    """The first administrator's; made and printed once if not given."""
    initial_password_file: Path | None = None
    """Where a made-up password is also left (mode 0600), for who did not see it printed."""
    api_key: SecretStr | None = None
    """An older client's key, seeded for a service account; another one ends the one before."""
    client_quota: dict[str, int] = Field(default_factory=lambda: dict(_CLIENT_QUOTA))
    """A new client's limits, as JSON; -1 is unlimited, those not named are as they are here."""
    admin_quota: dict[str, int] = Field(default_factory=lambda: dict.fromkeys(RESOURCES, UNLIMITED))
    hash_concurrency: int = Field(default=2, ge=1)
    """Password hashes computed at a time; each takes 64 MiB and a core."""
    hash_queue: int = Field(default=64, ge=1)
    """Password checks that may wait for their turn before callers are told to come back."""
    account_failures: int = Field(default=5, ge=1)
    """Wrong passwords for one name from one network before it has to wait."""
    network_failures: int = Field(default=50, ge=1)
    """Wrong passwords from one network, for any names, before it has to wait."""
    failure_window_s: int = Field(default=900, ge=1)
    lock_s: int = Field(default=60, ge=1)
    """First wait; it doubles with each further failure, up to the window."""

    @field_validator("client_quota", "admin_quota")
    @classmethod
    def _whole_quotas(cls, given: dict[str, int], info: ValidationInfo) -> dict[str, int]:
        whole = _CLIENT_QUOTA if info.field_name == "client_quota" else dict.fromkeys(RESOURCES, UNLIMITED)
        if not given.keys() <= whole.keys() or any(limit < UNLIMITED for limit in given.values()):
            raise ValueError(f"must be limits of at least {UNLIMITED} for some of {', '.join(whole)}")
        return {**whole, **given}
