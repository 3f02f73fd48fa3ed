"""Settings of the containers service, from `TELAR_CONTAINERS_*`."""

from pathlib import Path
from typing import Literal, Self

from pydantic import Field, SecretStr, model_validator
from pydantic_settings import SettingsConfigDict

from libs.common.settings import ServiceSettings

_MIB = 1024**2


class ContainersSettings(ServiceSettings):
    """What the containers service reads; sizes are in bytes or MiB, durations in seconds."""

    model_config = SettingsConfigDict(env_prefix="TELAR_CONTAINERS_", env_file=".env", extra="ignore", frozen=True)

    database_url: str = "postgresql://telar_containers@127.0.0.1/telar_containers"
    stacks_dir: Path = Path("data/stacks")
    """Holds each stack's code and compose file. The engine mounts it: it must be the same path on the engine's host."""
    docker_host: str = "unix:///var/run/docker.sock"
    images: dict[str, str] = Field(default_factory=dict)
    """JSON: image to use for a template instead of its own, such as `{"static": "registry.example/nginx:1.29"}`."""
    build_environment: dict[str, str] = Field(default_factory=dict)
    """JSON: environment of the builds of stacks' code, such as `{"npm_config_registry": "https://npm.example",
    "PIP_INDEX_URL": "https://pypi.example/simple"}`. Stacks' owners can read it: no secrets."""
    orchestrator: Literal["compose", "swarm"] = "compose"
    """`swarm`: stacks run on the Swarm that docker_host manages; its nodes share stacks_dir at the same path."""
    image_prefix: str = "telar"
    """Name prefix of the images that deploy/airgap/build.sh makes; used where an official image is not at hand."""
    publish_address: str = "127.0.0.1"
    """The address of the engine's host on which stacks' ports are opened."""
    public_host: str = "127.0.0.1"
    """The host name in stacks' URLs."""
    domain: str = Field(default="", pattern=r"^([a-z0-9-]+(\.[a-z0-9-]+)*)?$")
    """Where a reverse proxy (Traefik's Docker provider, on the engine's host network) serves stacks by name: with
    `apps.example.org` a stack is also reached as <name>-<number>.apps.example.org. No labels are set without it."""
    domain_scheme: Literal["http", "https"] = "https"
    port_range_first: int = Field(default=20_000, ge=1024, le=65_535)
    port_range_last: int = Field(default=29_999, ge=1024, le=65_535)
    max_zip_bytes: int = Field(default=100 * _MIB, gt=0)
    max_code_bytes: int = Field(default=512 * _MIB, gt=0)
    """Largest size of a stack's code after unpacking."""
    max_code_files: int = Field(default=10_000, gt=0)
    default_cpus: float = Field(default=0.5, gt=0)
    max_cpus: float = Field(default=2.0, gt=0)
    default_memory_mib: int = Field(default=256, ge=16)
    max_memory_mib: int = Field(default=2048, ge=16)
    default_pids: int = Field(default=128, ge=16)
    max_pids: int = Field(default=512, ge=16)
    git_timeout_s: float = Field(default=300, gt=0)
    max_git_bytes: int = Field(default=256 * _MIB, gt=0)
    """Largest pack that is fetched from a repository, and largest archive made of it."""
    git_ca_file: Path | None = None
    """PEM file of the authorities that repositories' certificates are checked with, instead of the system's."""
    secret: SecretStr | None = None
    """What deploy tokens are sealed with; TELAR_SERVICE_SECRET unless it is set."""
    keep_revisions: int = Field(default=10, ge=1)
    """How many revisions of each stack are kept to go back to, besides the one that runs."""
    file_manager_cpus: float = Field(default=0.25, gt=0)
    file_manager_memory_mib: int = Field(default=128, ge=64)
    """What the file manager beside a stack may use; it counts towards its owner's quota."""
    deploy_timeout_s: float = Field(default=900, gt=0)
    """How long `docker compose up` may take, pulling images included."""
    healthy_timeout_s: float = Field(default=90, gt=0)
    upload_idle_s: float = Field(default=60, gt=0)
    """A client that sends nothing for so long is given up."""
    max_log_streams: int = Field(default=64, gt=0)
    engine_retry_s: float = Field(default=5, gt=0)
    """How long after the engine went away it is asked for again."""
    sweep_every_s: float = Field(default=600, gt=0)

    @model_validator(mode="after")
    def _refuse_contradictions(self) -> Self:
        if self.port_range_last < self.port_range_first:
            raise ValueError("TELAR_CONTAINERS_PORT_RANGE_LAST is below TELAR_CONTAINERS_PORT_RANGE_FIRST")
        for name in ("cpus", "memory_mib", "pids"):
            if getattr(self, f"default_{name}") > getattr(self, f"max_{name}"):
                raise ValueError(f"TELAR_CONTAINERS_DEFAULT_{name.upper()} is above TELAR_CONTAINERS_MAX_…")
        return self
