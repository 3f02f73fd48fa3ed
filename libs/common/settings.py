"""Typed settings from environment, `.env` and secret files; a default secret outside embedded mode stops the start."""

import os
from ipaddress import IPv4Network, IPv6Network
from pathlib import Path
from typing import Annotated, Literal, Self

from pydantic import BeforeValidator, Field, SecretStr, model_validator
from pydantic_settings import (
    BaseSettings,
    NoDecode,
    PydanticBaseSettingsSource,
    SecretsSettingsSource,
    SettingsConfigDict,
)

SECRETS_DIR = "/run/secrets"
Network = IPv4Network | IPv6Network
DEFAULT_SECRET = "change-me"  # noqa: S105 - this very value is what production refuses


def _split(value: object) -> object:
    """Take a comma- or space-separated list as people write it in an environment."""
    return value.replace(",", " ").split() if isinstance(value, str) else value


Words = Annotated[tuple[str, ...], NoDecode, BeforeValidator(_split)]
Networks = Annotated[tuple[Network, ...], NoDecode, BeforeValidator(_split)]


class FileSettings(BaseSettings):
    """Settings that may also be files named after them, such as `/run/secrets/telar_service_secret`.

    Compose, Swarm and Kubernetes give secrets so; `TELAR_SECRETS_DIR` names another folder. The environment goes first.
    """

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,
        dotenv_settings: PydanticBaseSettingsSource,
        file_secret_settings: PydanticBaseSettingsSource,
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        folder = Path(os.environ.get("TELAR_SECRETS_DIR", SECRETS_DIR))
        files = SecretsSettingsSource(settings_cls, folder) if folder.is_dir() else file_secret_settings
        return init_settings, env_settings, dotenv_settings, files


class CommonSettings(FileSettings):
    """What every process of Telar reads, as `TELAR_<NAME>`."""

    model_config = SettingsConfigDict(env_prefix="TELAR_", env_file=".env", extra="ignore", frozen=True)

    embedded: bool = False
    """Set by `telar up`: one process on loopback, whose secrets are made on first start."""
    data_dir: Path = Path("data")
    bus_url: str = "local:"
    """`local:` (one process) or `amqp[s]://user:password@host:5672/vhost`."""
    gateway_url: str = "http://127.0.0.1:8000"
    """Where services fetch the signing keys; the issuer's address inside the deployment."""
    auth_url: str = "http://127.0.0.1:8101"
    issuer: str = "telar"
    audience: str = "telar"
    service_secret: SecretStr = SecretStr(DEFAULT_SECRET)
    """Shared by all processes: client credentials for service-to-service tokens."""
    outbound_allow_networks: Networks = ()
    """CIDRs that guarded outbound calls may reach besides the public internet."""
    metrics_allow_networks: Networks = (IPv4Network("127.0.0.0/8"), IPv6Network("::1/128"))
    gateway_networks: Networks = (IPv4Network("127.0.0.0/8"), IPv6Network("::1/128"))
    """Where the gateway calls services from: its X-Forwarded-For is believed there."""
    max_body_bytes: int = Field(default=1_048_576, gt=0)
    """Largest JSON or form body; streamed uploads have limits of their own."""
    log_format: Literal["console", "json"] = "console"
    log_level: Literal["debug", "info", "warning", "error"] = "info"
    log_dir: Path | None = None
    """If set, application.log and audit.log are also written there, rotated at `log_rotate_bytes`."""
    log_rotate_bytes: int = Field(default=50_000_000, gt=0)
    log_rotate_keep: int = Field(default=10, ge=1)
    otlp_endpoint: str | None = None
    """OTLP/HTTP collector, such as http://collector:4318; traces are not exported without it."""
    database_pool_size: int = Field(default=10, ge=1)

    @model_validator(mode="after")
    def _refuse_default_secrets(self) -> Self:
        if not self.embedded:
            refuse_weak_secret("TELAR_SERVICE_SECRET", self.service_secret)
        return self


def refuse_weak_secret(name: str, secret: SecretStr) -> None:
    """Raise ValueError if a secret is a default or too short to be one."""
    value = secret.get_secret_value()
    if value == DEFAULT_SECRET or len(value) < 24:  # noqa: PLR2004 - 24 characters of base64 hold 144 bits
        raise ValueError(f"{name} must be set to a secret of at least 24 characters: openssl rand -base64 32")


class ServiceSettings(FileSettings):
    """Base of a service's own settings; subclasses set `env_prefix` to `TELAR_<SERVICE>_`."""

    model_config = SettingsConfigDict(env_file=".env", extra="ignore", frozen=True)

    host: str = "127.0.0.1"
    port: int = Field(default=0, ge=0, le=65535)
    """0 lets the system choose."""
    common: CommonSettings = Field(default_factory=CommonSettings)
