"""Requests and responses of the containers service."""

from datetime import datetime
from typing import Annotated, Any
from uuid import UUID

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, SecretStr, StringConstraints

from services.containers.domain.revisions import Cause, RevisionState, SourceKind
from services.containers.domain.stacks import Health, State
from services.containers.domain.tree import EntryKind


def _one_line(value: str) -> str:
    if not value.isprintable():
        raise ValueError("must be one line without control characters")
    return value


Name = Annotated[str, StringConstraints(strip_whitespace=True, min_length=1, max_length=64), AfterValidator(_one_line)]


AdminPass = Annotated[SecretStr, Field(min_length=5, max_length=128)]
"""The password of the file manager's account; made up unless it is given."""


class LimitsIn(BaseModel):
    """What each service of the stack may use at most; what is absent has the operator's default."""

    model_config = ConfigDict(extra="forbid")

    cpus: Annotated[float, Field(ge=0.05, allow_inf_nan=False)] | None = None
    memory_mib: Annotated[int, Field(ge=16)] | None = None
    pids: Annotated[int, Field(ge=16)] | None = None


class GitWanted(BaseModel):
    """A repository to clone over https. `git_token` is a deploy token for a private one, kept sealed."""

    git_repo_url: Annotated[str, StringConstraints(max_length=2000)] | None = None
    git_ref: Annotated[str, StringConstraints(min_length=1, max_length=200)] | None = None
    git_username: Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9._+@-]{1,100}$")] | None = None
    git_token: Annotated[SecretStr, Field(min_length=1, max_length=1000)] | None = None


Compose = Annotated[str, StringConstraints(min_length=1, max_length=65_536)]


class StackCreate(GitWanted):
    """A stack that is wanted, without its ZIP: from templates by `service_types`, or from a `compose` file.

    Without service types the type is found out from the code of the ZIP or the repository.
    """

    model_config = ConfigDict(extra="forbid")

    name: Name
    service_types: Annotated[list[Name], Field(max_length=10)] = Field(default_factory=list)
    primary_app_type: Name | None = None
    compose: Compose | None = None
    variables: Annotated[dict[str, Any], Field(max_length=50)] = Field(default_factory=dict)
    limits: LimitsIn = LimitsIn()
    file_manager: bool = True
    admin_pass: AdminPass | None = None


class StackRedeploy(GitWanted):
    """What the next revision of a stack has other than the one that runs, besides its ZIP; all may be left out.

    A repository is cloned anew, at `git_ref` or where it was cloned before. `variables` are put over those there are.
    """

    model_config = ConfigDict(extra="forbid")

    compose: Compose | None = None
    variables: Annotated[dict[str, Any], Field(max_length=50)] = Field(default_factory=dict)
    limits: LimitsIn = LimitsIn()


class StackRollback(BaseModel):
    """The revision to go back to; without one the revision deployed before."""

    model_config = ConfigDict(extra="forbid")

    revision: Annotated[int, Field(ge=1)] | None = None


class LegacyServiceCreate(BaseModel):
    """The older clients' form."""

    model_config = ConfigDict(extra="forbid")

    userid: Name
    service_name: Name
    service_types: Annotated[list[Name], Field(min_length=1, max_length=10)]
    primary_app_type: Name | None = None
    git_repo_url: Annotated[str, StringConstraints(max_length=2000)] | None = None
    admin_pass: AdminPass | None = None


class TemplateOut(BaseModel):
    """A service type; `variables` is a JSON Schema."""

    name: str
    title: str
    version: str
    description: str
    kind: str
    variables: dict[str, Any]


class ServiceOut(BaseModel):
    """One service of a stack; `state` is the engine's word for its container, null if there is none or no engine."""

    name: str
    type: str
    image: str | None
    state: str | None
    health: Health
    exit_code: int | None
    container_port: int | None
    host_port: int | None
    url: str | None


class FileManagerOut(BaseModel):
    """The file manager on the stack's code; the password is the variable `admin_pass`."""

    url: str
    username: str = "admin"
    state: str | None
    health: Health


class LimitsOut(BaseModel):
    cpus: float
    memory_mib: int
    pids: int


class StackOut(BaseModel):
    id: UUID
    number: int
    name: str
    owner_id: str
    state: State
    health: Health
    reason: str | None
    service_types: list[str]
    primary_app_type: str
    services: list[ServiceOut]
    url: str | None
    urls: list[str]
    file_manager: FileManagerOut | None
    limits: LimitsOut
    variables: dict[str, Any]
    revision: int
    created_at: datetime
    updated_at: datetime
    etag: str


class SourceOut(BaseModel):
    """Where a revision's code came from; `digest` is that of the archive of it."""

    kind: SourceKind
    url: str | None = None
    ref: str | None = None
    commit: str | None = None
    digest: str | None = None


class ImageOut(BaseModel):
    name: str
    image_id: str
    digest: str | None = None


class RevisionOut(BaseModel):
    """A revision; `of_revision` is the one that a rollback went back to, `images` what each service ran."""

    number: int
    state: RevisionState
    reason: str | None
    cause: Cause
    of_revision: int | None
    service_types: list[str]
    source: SourceOut
    images: dict[str, ImageOut]
    variables: dict[str, Any]
    limits: LimitsOut
    created_at: datetime


class RevisionList(BaseModel):
    items: list[RevisionOut]


class CheckedStack(BaseModel):
    """A dry run's answer: the stack may be made. `compose` is the file as it would run, its host ports made up."""

    valid: bool = True
    service_types: list[str]
    primary_app_type: str | None
    services: list[str]
    reserves: dict[str, int]
    compose: str | None


class StackPage(BaseModel):
    items: list[StackOut]
    next_cursor: str | None = None


class LogLineOut(BaseModel):
    service: str
    at: datetime
    text: str


class ServiceStats(BaseModel):
    """What a service uses: 100 `cpu_percent` is one core; totals count from its container's start."""

    service: str
    cpu_percent: float
    memory_bytes: int
    memory_limit_bytes: int
    pids: int
    received_bytes: int
    sent_bytes: int
    read_bytes: int
    written_bytes: int


class StackStats(BaseModel):
    services: list[ServiceStats]


class FileOut(BaseModel):
    """A file or folder of a stack's code; `etag` for If-Match of its next change."""

    name: str
    kind: EntryKind
    size_bytes: int
    modified_at: datetime | None
    etag: str | None


class FileListing(BaseModel):
    path: str
    entries: list[FileOut]


class LegacyService(BaseModel):
    """A stack as older clients read it: their `status` beside our `state`."""

    service_id: int
    service_name: str
    status: str = Field(examples=["creating", "enabled", "disabled", "error"])
    state: State
    service_types: list[str]
    primary_app_type: str
    access_urls: list[str]
    reason: str | None
    operation_id: str | None = None
    stack: StackOut
