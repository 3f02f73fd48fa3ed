"""Bodies of the fetcher's requests and answers."""

from datetime import datetime
from typing import Annotated, Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator

from services.fetcher.domain.jobs import Check, ItemState, JobKind, JobState

SearchField = Annotated[
    str | None,
    Field(
        max_length=300, description="Dotted path of the field that holds URLs; a usual name is looked for without it"
    ),
]
Filter = Annotated[
    dict[str, Any] | None,
    Field(
        description="MongoDB query of plain operators; ids and dates as Extended JSON",
        examples=[{"year": {"$gte": 2020}}],
    ),
]
Limit = Annotated[int | None, Field(ge=1, le=100_000_000, description="How many documents at most")]


class _Step(BaseModel):
    model_config = ConfigDict(extra="forbid")


OutputFormat = Literal["JPEG", "PNG", "WEBP", "AVIF"]
Side = Annotated[int, Field(ge=1, le=8192)]
Quality = Annotated[int | None, Field(ge=1, le=95)]


class ThumbnailStep(_Step):
    """The upright picture inside a square."""

    kind: Literal["thumbnail"]
    size: Annotated[int, Field(ge=16, le=2048)] = 256
    format: OutputFormat | None = None
    quality: Quality = None


class ResizeStep(_Step):
    """`inside` keeps all of it within width and height, `cover` fills them and crops, `exact` distorts."""

    kind: Literal["resize"]
    width: Side | None = None
    height: Side | None = None
    fit: Literal["inside", "cover", "exact"] = "inside"
    format: OutputFormat | None = None
    quality: Quality = None

    @model_validator(mode="after")
    def _need_a_side(self) -> Self:
        if self.width is None and self.height is None:
            raise ValueError("width, height or both are needed")
        return self


class ConvertStep(_Step):
    kind: Literal["convert"]
    format: OutputFormat
    quality: Quality = None


class StripExifStep(_Step):
    """Without EXIF, XMP and comments; losslessly where the picture is upright."""

    kind: Literal["strip_exif"]


class PerceptualHashStep(_Step):
    kind: Literal["perceptual_hash"]
    algorithm: Literal["dhash", "ahash", "phash"] = "phash"


Step = Annotated[
    ThumbnailStep | ResizeStep | ConvertStep | StripExifStep | PerceptualHashStep, Field(discriminator="kind")
]


class Options(BaseModel):
    """How politely and how stubbornly (the operator's settings bound both), how strictly, and what else to do."""

    model_config = ConfigDict(extra="forbid")

    max_per_domain: int | None = Field(default=None, ge=1, le=1000)
    max_attempts: int | None = Field(default=None, ge=1, le=20)
    rate_per_domain: float | None = Field(default=None, gt=0, le=10_000, description="Requests a second to one host")
    check: Check = Field(default=Check.FULL, description="Decode every frame, or only read the header")
    robots: bool = Field(default=False, description="Ask for nothing that a site's robots.txt forbids")
    refetch: bool = Field(default=False, description="Download also what is stored and has not changed")
    process: list[Step] = Field(default=[], max_length=10, description="What to make of each picture in processed/")
    write_back: str | None = Field(
        default=None, max_length=64, description="Field of the source documents that takes path, digest and status"
    )


class DocumentRequest(BaseModel):
    model_config = ConfigDict(extra="forbid")

    search_field: SearchField = None
    options: Options = Options()


class CollectionRequest(DocumentRequest):
    filter: Filter = None
    limit: Limit = None


class BatchRequest(CollectionRequest):
    database: str = Field(max_length=64)
    collection: str = Field(max_length=120)


class JobError(BaseModel):
    slug: str
    detail: str | None


class JobOut(BaseModel):
    """A job. `status` is its state; `search_field_guessed` tells that the fetcher chose the field.

    `documents_written` had their results written back; `documents_refused` have other data in that field, or are gone.
    """

    job_id: str
    status: JobState
    kind: JobKind
    owner_id: str
    database: str
    collection: str
    document_id: str | None
    search_field: str | None
    search_field_guessed: bool
    limit: int | None
    documents: int
    planned: bool
    error: JobError | None
    options: dict[str, Any]
    documents_written: int
    documents_refused: int
    version: int
    created_at: datetime
    updated_at: datetime
    started_at: datetime | None
    finished_at: datetime | None


class DomainOut(BaseModel):
    domain: str
    items: dict[str, int]
    bytes: int


class JobDetail(JobOut):
    """A job and how far it is. `items` counts by state, `rate_per_s` is of the last 30 s, `eta_s` of what is left."""

    items: dict[str, int]
    total_items: int
    bytes: int
    rate_per_s: float
    eta_s: float | None
    domains: list[DomainOut]


class DomainEstimate(BaseModel):
    domain: str
    pictures: int


class TimeAndRoom(BaseModel):
    seconds_at_least: float
    bytes: int | None


class DryRun(BaseModel):
    """What a job would fetch. `complete` is false where the collection was too large to be counted to its end."""

    dry_run: bool
    search_field: str | None
    search_field_guessed: bool
    documents: int
    documents_without_pictures: int
    pictures: int
    complete: bool
    domain_count: int
    domains: list[DomainEstimate]
    estimate: TimeAndRoom


class DomainReport(BaseModel):
    domain: str
    failed: int
    dead: int
    reasons: dict[str, int]
    examples: list[str]


class Report(BaseModel):
    """Failed pictures by domain; `dead` are links that lead nowhere (404, 410, no such host, nothing answers)."""

    job_id: str
    status: JobState
    items: dict[str, int]
    failed: int
    dead: int
    by_class: dict[str, int]
    domains: list[DomainReport]


class JobsPage(BaseModel):
    items: list[JobOut]
    next_cursor: str | None = None


class ItemOut(BaseModel):
    """One picture of one document; `reason` is one word, `path` leads to its file under …/files/."""

    id: str
    document_id: str
    search_field: str
    position: int
    url: str
    domain: str
    status: ItemState
    attempts: int
    reason: str | None
    error_class: str | None
    unchanged: bool
    detail: str | None
    final_url: str | None
    http_status: int | None
    sha256: str | None
    perceptual_hash: str | None
    format: str | None
    width: int | None
    height: int | None
    bytes: int
    path: str | None
    fetched_at: datetime | None


class ItemsPage(BaseModel):
    items: list[ItemOut]
    next_cursor: str | None = None
