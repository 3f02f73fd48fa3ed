"""Requests and responses of the images service."""

from datetime import UTC, datetime
from typing import Annotated
from uuid import UUID

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    PlainSerializer,
    StringConstraints,
)

from services.images.domain import Arrival, Format, Status, Visibility


def _printable(value: str) -> str:
    if not all(character.isprintable() or character in "\n\t\r" for character in value):
        raise ValueError("must not have control characters")
    return value


def _one_line(value: str) -> str:
    if not value.isprintable():
        raise ValueError("must be one line without control characters")
    return value


def _listed(value: object) -> object:
    return [part for part in value.split(",") if part.strip()] if isinstance(value, str) else value


Line = Annotated[str, StringConstraints(strip_whitespace=True, max_length=200), AfterValidator(_one_line)]
Name = Annotated[Line, Field(min_length=1)]
Word = Annotated[str, StringConstraints(strip_whitespace=True, min_length=1, max_length=64), AfterValidator(_one_line)]
Architecture = Annotated[str, StringConstraints(pattern="^[A-Za-z0-9_.-]{1,32}$")]
Prose = Annotated[str, StringConstraints(max_length=4000), AfterValidator(_printable)]
Tags = Annotated[list[Word], Field(max_length=50), BeforeValidator(_listed)]
"""A list, or as a form has it a text with commas."""
Sha256 = Annotated[str, StringConstraints(to_lower=True, pattern="^[0-9a-fA-F]{64}$")]
OlderMoment = Annotated[
    datetime,
    PlainSerializer(lambda moment: f"{moment.astimezone(UTC):%Y-%m-%dT%H:%M:%S}", return_type=str, when_used="json"),
]
"""UTC in whole seconds and without a zone: so the older image API wrote it, and its clients read nothing else."""


class ImageDescription(BaseModel):
    """What an uploader says of an image; `version` is the operating system's."""

    model_config = ConfigDict(extra="forbid")

    name: Name
    os_type: Word
    version: Line = ""
    architecture: Architecture = "x86_64"
    description: Prose = ""
    visibility: Visibility = Visibility.PRIVATE
    tags: Tags = []
    min_disk_gib: Annotated[int, Field(ge=0, le=1_000_000)] = 0
    min_memory_mib: Annotated[int, Field(ge=0, le=100_000_000)] = 0
    sha256: Sha256 | None = None
    """If given, the file is refused unless it has this digest."""


class ImportRequest(ImageDescription):
    """An image to be downloaded from a URL; `filename` and `format` are read from the URL if they are not given."""

    url: Annotated[str, StringConstraints(max_length=8192)]
    filename: Annotated[Line, Field(min_length=1)] | None = None
    """Its extensions tell the format and how the file is packed: `disk.qcow2.xz`."""
    format: Format | None = None


class ConvertRequest(BaseModel):
    """The format that a new image shall have; `name` is the old one's if not given, `compress` is for qcow2."""

    model_config = ConfigDict(extra="forbid")

    format: Format
    name: Name | None = None
    compress: bool = False


class ImagePatch(BaseModel):
    """What may be changed of an image; what is absent or null stays."""

    model_config = ConfigDict(extra="forbid")

    name: Name | None = None
    description: Prose | None = None
    visibility: Visibility | None = None
    protected: bool | None = None
    os_type: Word | None = None
    version: Line | None = None
    architecture: Architecture | None = None
    tags: Tags | None = None
    min_disk_gib: Annotated[int, Field(ge=0, le=1_000_000)] | None = None
    min_memory_mib: Annotated[int, Field(ge=0, le=100_000_000)] | None = None


class ImageOut(BaseModel):
    """An image. `os` and `created` repeat `os_type` and `created_at` under the names that older clients read."""

    id: UUID
    name: str
    os: str
    os_type: str
    version: str
    architecture: str
    description: str
    format: Format
    size: str = Field(examples=["2.4 GB"])
    size_bytes: int
    virtual_size_bytes: int
    sha256: str | None
    sha512: str | None
    status: Status
    reason: str | None
    visibility: Visibility
    protected: bool
    tags: list[str]
    min_disk_gib: int
    min_memory_mib: int
    derived_from: UUID | None
    downloads: int
    owner_id: str
    created: OlderMoment = Field(examples=["2025-01-05T12:34:56"])
    created_at: datetime
    updated_at: datetime
    etag: str


class MembersIn(BaseModel):
    """The users with whom an image is shared, each by id, name or external id."""

    model_config = ConfigDict(extra="forbid")

    members: Annotated[list[Annotated[Line, Field(min_length=1)]], Field(max_length=200)]


class MemberOut(BaseModel):
    id: str
    username: str


class MembersOut(BaseModel):
    """Who is on an image's list: it counts (`effective`) while the visibility is `shared`, and is kept when not."""

    members: list[MemberOut]
    visibility: Visibility
    effective: bool


class UseOut(BaseModel):
    """A template or machine that was made of an image."""

    type: str
    id: str
    name: str


class SourceOut(BaseModel):
    """How an image's file came in. All but `kind` and `filename` is for the image's owner and administrators.

    `final_url` is where the URL led in the end; `qemu_img` is the converter's version, `arguments` what it was told.
    """

    kind: Arrival
    filename: str | None = None
    uploader_id: str | None = None
    url: str | None = None
    final_url: str | None = None
    etag: str | None = None
    last_modified: str | None = None
    qemu_img: str | None = None
    arguments: list[str] | None = None


class DigestsOut(BaseModel):
    """`expected_sha256` was announced, `downloaded_sha256` is that of the file at the URL, before it was unpacked."""

    sha256: str | None
    sha512: str | None
    expected_sha256: str | None = None
    downloaded_sha256: str | None = None


class InspectionOut(BaseModel):
    """What was seen in the file when it came: the formats whose marks it bears, and the disk that it claims to hold."""

    formats: list[str]
    size_bytes: int
    virtual_size_bytes: int


class OriginOut(BaseModel):
    """The image that another one was converted from; its id alone once it is gone or hidden from the caller."""

    id: UUID
    name: str | None = None
    sha256: str | None = None


class DerivedOut(BaseModel):
    id: UUID
    name: str
    format: Format


class BlobOut(BaseModel):
    """The stored file: when it last had its digest, and since when it is known to have another one."""

    verified_at: datetime
    rotten_at: datetime | None


class ProvenanceOut(BaseModel):
    """Where an image came from and what became of it, as far as the caller may see it."""

    source: SourceOut
    digests: DigestsOut
    inspection: InspectionOut | None
    inspected_at: datetime | None
    derived_from: OriginOut | None
    derived: list[DerivedOut]
    used_by: list[UseOut]
    blob: BlobOut | None


class UploadOut(BaseModel):
    success: bool = True
    image: ImageOut


class ImagePage(BaseModel):
    items: list[ImageOut]
    next_cursor: str | None = None


class Share(BaseModel):
    """A part of the images."""

    images: int = 0
    bytes: int = 0
    downloads: int = 0


class Totals(Share):
    """Sums over images, and the same by operating system, format and status."""

    by_os: dict[str, Share] = Field(default_factory=dict)
    by_format: dict[str, Share] = Field(default_factory=dict)
    by_status: dict[str, Share] = Field(default_factory=dict)


class StatsOut(Totals):
    """The caller's own images; `all` is everyone's, for administrators only."""

    all: Totals | None = None
