"""Settings of the vms service, from `TELAR_VMS_*`."""

import re
from pathlib import Path
from typing import Annotated, Literal, Self
from urllib.parse import urlsplit

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, SecretStr, StringConstraints, model_validator
from pydantic_settings import SettingsConfigDict

from libs.common.settings import ServiceSettings, Words

_TOKEN_ID = re.compile(r"[^\s@!:/=]+@[A-Za-z0-9._-]+![A-Za-z][A-Za-z0-9._-]+")
_SPAN = re.compile(r"([0-9]{1,4})(?:-([0-9]{1,4}))?")
_MAX_VLAN = 4094
_SHA256 = re.compile(r"[0-9a-fA-F]{64}")


def _api_url(value: str) -> str:
    url = urlsplit(value)
    if url.scheme != "https" or not url.hostname or url.username or url.path.strip("/") or url.query or url.fragment:
        raise ValueError("a cluster's url is https://host:8006, without a path")
    return value


def _token_id(value: str) -> str:
    if not _TOKEN_ID.fullmatch(value):
        raise ValueError("a token id looks like telar@pve!telar")
    if value.startswith("root@pam!"):
        raise ValueError("root@pam can do everything: give Telar a user of its own with the provisioner's privileges")
    return value


def _fingerprint(value: str) -> str:
    plain = value.replace(":", "")
    if not _SHA256.fullmatch(plain):
        raise ValueError("a fingerprint is the certificate's SHA-256: 64 hexadecimal digits, colons allowed")
    return plain.lower()


def _vlans(value: tuple[str, ...]) -> tuple[str, ...]:
    for word in value:
        found = _SPAN.fullmatch(word)
        if found is None or not 1 <= int(found[1]) <= int(found[2] or found[1]) <= _MAX_VLAN:
            raise ValueError(f"{word!r} is not a VLAN from 1 to {_MAX_VLAN}, or a span of them like 100-199")
    return value


StorageName = Annotated[str, StringConstraints(pattern=r"^[A-Za-z][A-Za-z0-9._-]{0,61}[A-Za-z0-9]$")]


class ClusterSettings(BaseModel):
    """One Proxmox VE cluster and the API token that opens it.

    Its certificate is trusted by the CA file `ca`, or by its SHA-256 `fingerprint`, or by the system's authorities.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    name: Annotated[str, StringConstraints(pattern=r"^[a-z0-9][a-z0-9-]{0,31}$")]
    url: Annotated[str, AfterValidator(_api_url)]
    token_id: Annotated[str, AfterValidator(_token_id)]
    token_secret: SecretStr
    ca: Path | None = None
    fingerprint: Annotated[str, AfterValidator(_fingerprint)] | None = None
    image_storage: StorageName | None = None
    """Where disks of templates made of images lie; a shared storage for images if not given, else each node's own."""
    import_storage: StorageName | None = None
    """Where their files are downloaded to (content `import`, Proxmox VE 8.4 or newer); found if not given."""
    iso_storage: StorageName | None = None
    """Where seeds of machines with `user_data` lie (content `iso`); a shared one if there is one and none is given."""

    @model_validator(mode="after")
    def _trust_one(self) -> Self:
        if self.ca is not None and self.fingerprint is not None:
            raise ValueError("give either ca or fingerprint")
        return self


class VmsSettings(ServiceSettings):
    """What the vms service reads; durations are in seconds."""

    model_config = SettingsConfigDict(env_prefix="TELAR_VMS_", env_file=".env", extra="ignore", frozen=True)

    database_url: str = "postgresql://telar_vms@127.0.0.1/telar_vms"
    clusters: tuple[ClusterSettings, ...] = ()
    """Given as a JSON list in the environment."""
    vmid_first: int = Field(default=10_000, ge=100, le=999_999_999)
    vmid_last: int = Field(default=19_999, ge=100, le=999_999_999)
    """The private range of VMIDs: nobody else may make machines with these."""
    ownership_tag: Annotated[str, StringConstraints(pattern=r"^[a-z0-9_][a-z0-9_.+-]{0,30}$")] = "telar"
    cpu_ratio: float = Field(default=4.0, gt=0)
    """Virtual cores that may be promised per core of a node."""
    memory_ratio: float = Field(default=1.0, gt=0)
    memory_reserve_mib: int = Field(default=2048, ge=0)
    """Memory of each node that is left to the node itself."""
    disk_reserve_gib: int = Field(default=10, ge=0)
    """Space of each storage that no new machine may fill."""
    placement: Literal["spread", "pack"] = "spread"
    """Whether machines go to the emptiest node that fits, or fill one node after the other."""
    breaker_failures: int = Field(default=5, ge=1)
    """How many calls in a row a node may leave unanswered before it is left alone for a while."""
    breaker_open_s: float = Field(default=15.0, gt=0)
    network_bridges: Words = ("vmbr0",)
    """Bridges that users may choose."""
    network_vlans: Annotated[Words, AfterValidator(_vlans)] = ()
    """VLANs that users may choose, such as `100-199,300`."""
    images_url: str = "http://127.0.0.1:8102"
    """The images service's address inside the deployment."""
    template_policy: Literal["none", "public", "all"] = "none"
    """Of which images a template is made as soon as they are active, without being asked for."""
    operations_at_once: int = Field(default=64, ge=1, le=1024)
    """How many operations one process works on; others wait their turn. They mostly wait for the cluster's tasks."""
    template_cores: int = Field(default=2, ge=1, le=128)
    template_memory_mib: int = Field(default=2048, ge=128)
    """What a template made of an image has unless it is asked for; machines made of it may have other sizes."""
    link_lifetime_s: int = Field(default=7200, ge=60, le=86_400)
    """How long a cluster may take to begin the download of an image."""
    request_timeout_s: float = Field(default=45.0, ge=1, le=300)
    connections: int = Field(default=16, ge=1, le=128)
    """Parallel API calls per cluster; each is a thread with a client of its own."""
    task_poll_s: float = Field(default=0.25, gt=0)
    """How often the one list of a cluster's tasks is read while any of them is waited for."""
    settle_s: float = Field(default=6.0, gt=0)
    """How long the effect of a call without an answer may take to show; the next such call waits for it."""
    sync_every_s: float = Field(default=5.0, gt=0)
    statistics_lag_s: float = Field(default=20.0, ge=0)
    """How long a cluster's list may show a machine's earlier state (Proxmox VE collects statistics every 10 s)."""
    sweep_every_s: float = Field(default=30.0, gt=0)
    shutdown_timeout_s: int = Field(default=90, ge=1, le=3600)
    drift_every_s: float = Field(default=30.0, gt=0)
    drift_settle_s: float = Field(default=120.0, ge=0)
    """How long something has to differ before it is reported."""
    drift_doubt_s: float = Field(default=3600.0, ge=0)
    """How long a list that suddenly lacks many machines is not believed."""
    addresses_at_once: int = Field(default=8, ge=1)
    """Guests of a cluster that are asked for their addresses in one round of `sync_every_s`."""
    addresses_wanting_s: float = Field(default=15.0, gt=0)
    addresses_known_s: float = Field(default=300.0, gt=0)
    metrics_guests: int = Field(default=500, ge=0)
    """Of how many of Telar's machines in each cluster /metrics shows figures."""
    snapshots_per_vm: int = Field(default=10, ge=0)
    console_ticket_s: float = Field(default=30.0, gt=0, le=30)
    """How long a console ticket may wait for its WebSocket."""
    console_open_s: float = Field(default=6.0, gt=0)
    """How long a display may take to open; the gateway waits 7 s for the WebSocket."""
    console_max_s: float = Field(default=28_800.0, gt=0)
    """After that a console is closed, whoever still looks at it."""
    console_watch_s: float = Field(default=0.4, gt=0, le=1)
    """How often a process looks whether the machines of its open consoles are gone or another's."""
    consoles_at_once: int = Field(default=64, ge=1, le=90)
    """Consoles that one process keeps open; a node has 100 ports for them."""

    @property
    def vlan_spans(self) -> tuple[tuple[int, int], ...]:
        """The VLANs that users may choose, each with its first and last."""
        pairs = [word.partition("-")[::2] for word in self.network_vlans]
        return tuple((int(first), int(last or first)) for first, last in pairs)

    @model_validator(mode="after")
    def _check(self) -> Self:
        if self.vmid_last < self.vmid_first:
            raise ValueError("TELAR_VMS_VMID_LAST is below TELAR_VMS_VMID_FIRST")
        names = [cluster.name for cluster in self.clusters]
        if len(names) != len(set(names)):
            raise ValueError("two clusters have the same name")
        return self
