"""What the lab is made of: nodes, timings, secrets and how faithful or how quick it plays."""

from pathlib import Path

from pydantic import BaseModel, ConfigDict, Field, SecretStr

from libs.pvesim.releases import Release

TASK_SECONDS = {
    "download": 0.5,
    "hamigrate": 0.1,
    "hastart": 0.1,
    "hastop": 0.1,
    "imgcopy": 0.5,
    "imgdel": 0.3,
    "qmclone": 2.0,
    "qmclone-full": 10.0,
    "qmconfig": 0.3,
    "qmcreate": 2.0,
    "qmdelsnapshot": 1.5,
    "qmdestroy": 1.5,
    "qmigrate": 6.0,
    "qmmove": 6.0,
    "qmpause": 0.5,
    "qmreboot": 4.0,
    "qmreset": 0.3,
    "qmresume": 0.5,
    "qmrollback": 2.0,
    "qmshutdown": 4.0,
    "qmsnapshot": 1.5,
    "qmstart": 2.0,
    "qmstop": 1.0,
    "qmsuspend": 4.0,
    "qmtemplate": 1.5,
    "resize": 0.8,
}


class NodeSettings(BaseModel):
    """One machine of the lab: `memory_gib` and the two disk sizes are binary gibibytes."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    name: str
    cores: int = Field(ge=1)
    memory_gib: int = Field(ge=1)
    local_gib: int = 200
    lvm_gib: int = 800


def default_nodes() -> list[NodeSettings]:
    return [
        NodeSettings(name="sv1", cores=32, memory_gib=128),
        NodeSettings(name="sv2", cores=32, memory_gib=128),
        NodeSettings(name="sv3", cores=24, memory_gib=96),
        NodeSettings(name="sv4", cores=16, memory_gib=64, lvm_gib=400),
        NodeSettings(name="sv5", cores=16, memory_gib=64, lvm_gib=400),
    ]


class LabSettings(BaseModel):
    """Settings of one lab.

    `time_scale` multiplies every simulated delay: 1.0 is a real cluster's pace, 0.01 a hundred times faster.
    Fields ending in `_s` are lab seconds, before scaling; what a client has to meet (`console_accept_s`,
    `console_password_s`, `idle_timeout_s`, ticket lifetimes) is real seconds. Secrets left out are made on the
    first start and kept in `data_dir`. `node_ports` gives nodes an API port of their own, which falls silent
    with the node (0 takes a free one); `port` is answered as long as any node lives.
    """

    model_config = ConfigDict(extra="forbid")

    data_dir: Path
    host: str = "127.0.0.1"
    port: int = Field(default=8006, ge=0, le=65535)
    advertised_names: list[str] = ["localhost", "pvesim"]
    time_scale: float = Field(default=1.0, gt=0)
    seed: int = 1
    cluster_name: str = "lab"
    version: str = "9.1.4"
    nodes: list[NodeSettings] = Field(default_factory=default_nodes, min_length=1)
    api_node: str = "sv1"
    node_ports: dict[str, int] = {}
    shared_gib: int = 4096
    root_password: SecretStr | None = None
    token_secret: SecretStr | None = None
    task_seconds: dict[str, float] = {}
    allocation_s: float = Field(default=0.01, ge=0)
    boot_s: float = Field(default=15.0, ge=0)
    stats_period_s: float = Field(default=10.0, gt=0)
    stats_expiry_s: float = Field(default=300.0, gt=0)
    ha_round_s: float = Field(default=10.0, gt=0)
    ha_fence_s: float = Field(default=60.0, ge=0)
    unauthorized_delay_s: float = Field(default=3.0, ge=0)
    dead_node_delay_s: float = Field(default=3.0, ge=0)
    proxy_timeout_s: float = Field(default=30.0, gt=0)
    idle_timeout_s: float = Field(default=5.0, gt=0)
    ticket_lifetime_s: int = Field(default=7200, ge=1)
    console_accept_s: float = Field(default=10.0, gt=0)
    console_password_s: float = Field(default=30.0, gt=0)
    console_ticket_s: int = Field(default=40, ge=1)
    archived_tasks_per_node: int = Field(default=1000, ge=25)
    cluster_log_lines: int = Field(default=500, ge=1)
    json_error_message: bool | None = None
    loose_types: bool = False

    def seconds_of(self, task_type: str) -> float:
        """How long the work of a task type takes, in lab seconds."""
        return self.task_seconds.get(task_type, TASK_SECONDS.get(task_type, 1.0))

    @property
    def release(self) -> Release:
        return Release.parse(self.version)

    @property
    def words_errors_in_json(self) -> bool:
        """As said, or as the release does."""
        return self.release.words_errors_in_json if self.json_error_message is None else self.json_error_message
