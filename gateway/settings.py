"""Settings of the gateway, from `TELAR_GATEWAY_*` and `TELAR_PORT`."""

from pathlib import Path

from pydantic import Field, field_validator
from pydantic_settings import SettingsConfigDict

from libs.common.settings import Networks, ServiceSettings, Words


class GatewaySettings(ServiceSettings):
    """What the gateway reads."""

    model_config = SettingsConfigDict(env_prefix="TELAR_GATEWAY_", env_file=".env", extra="ignore", frozen=True)

    port: int = Field(default=8000, ge=0, le=65535, validation_alias="TELAR_PORT")
    auth_urls: Words = ("http://127.0.0.1:8101",)
    """Base URLs of a service's replicas, asked in turn; empty if the service is not installed."""
    images_urls: Words = ()
    vms_urls: Words = ()
    containers_urls: Words = ()
    fetcher_urls: Words = ()
    keys_file: Path | None = None
    """The signing keys (a private JWK set) that replicas share; default `<data dir>/gateway/keys.json`."""
    token_seconds: int = Field(default=600, ge=30, le=3600)
    key_cache_seconds: float = Field(default=30.0, ge=0, le=30)
    """How long the exchange of an API key is believed; deletion ends it at once."""
    trusted_proxies: Networks = ()
    """Proxies in front of the gateway whose X-Forwarded-For is believed."""
    cors_origins: Words = ("http://localhost:3000",)
    """Origins of browser front ends; `*` is refused, because credentials are sent."""
    rate_per_second: float = Field(default=100.0, gt=0)
    rate_burst: float = Field(default=300.0, gt=0)
    """Each caller may spend this at once and earns `rate_per_second` back; routes cost 1 to 20."""
    event_history: int = Field(default=1000, ge=0)
    log_history: int = Field(default=2000, ge=0)

    @field_validator("cors_origins")
    @classmethod
    def _no_wildcard(cls, origins: tuple[str, ...]) -> tuple[str, ...]:
        if "*" in origins:
            raise ValueError("TELAR_GATEWAY_CORS_ORIGINS must name origins; * would let any site act for the user")
        return origins

    def upstream_urls(self) -> dict[str, tuple[str, ...]]:
        return {
            "auth": self.auth_urls,
            "images": self.images_urls,
            "vms": self.vms_urls,
            "containers": self.containers_urls,
            "fetcher": self.fetcher_urls,
        }

    def keys_path(self) -> Path:
        return self.keys_file or self.common.data_dir / "gateway" / "keys.json"
