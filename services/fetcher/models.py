"""Documents of the job store: flat, times as Unix milliseconds, one document per thing that is taken or changed alone.

Flat and integral because MongoDB-compatible servers differ in how they store nested documents and dates.
"""

from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any, Self

from services.fetcher.domain.jobs import Check, ItemState, JobKind, JobState


@dataclass(frozen=True, slots=True, kw_only=True)
class Job:
    """One request to fetch pictures. `version` counts its changes of state; `filter` and `process` are JSON texts.

    `conditional` tells that the collection was fetched before, so that its pictures are only asked for if they changed;
    None until planning has looked.
    """

    id: str
    owner_id: str
    kind: JobKind
    database: str
    collection: str
    created_at_ms: int
    updated_at_ms: int
    document_id: str | None = None
    search_field: str | None = None
    field_guessed: bool = False
    filter: str | None = None
    limit: int | None = None
    max_per_domain: int | None = None
    max_attempts: int | None = None
    rate_per_domain: float | None = None
    check: Check = Check.FULL
    robots: bool = False
    refetch: bool = False
    process: str | None = None
    write_back: str | None = None
    conditional: bool | None = None
    written_back: bool = False
    documents_written: int = 0
    documents_refused: int = 0
    remove_files: bool = False
    purged: bool = False
    state: JobState = JobState.PENDING
    version: int = 1
    planned: bool = False
    documents: int = 0
    planned_to: str | None = None
    """The `_id` of the last document whose items are written, as Extended JSON."""
    started_at_ms: int | None = None
    finished_at_ms: int | None = None
    error: str | None = None
    error_detail: str | None = None

    @classmethod
    def from_document(cls, document: dict[str, Any]) -> Self:
        """Truth values that were changed alone come back as 0 and 1 from nx-27017."""
        known = {field.name: document[field.name] for field in fields(cls) if field.name in document}
        known |= {name: bool(document[name]) for name in _JOB_FLAGS if document.get(name) is not None}
        known |= {"id": document["_id"], "kind": JobKind(document["kind"]), "state": JobState(document["state"])}
        known["check"] = Check(document.get("check", Check.FULL))
        return cls(**known)

    def to_document(self) -> dict[str, Any]:
        document = {field.name: getattr(self, field.name) for field in fields(self) if field.name != "id"}
        return {
            "_id": self.id,
            **document,
            "kind": self.kind.value,
            "state": self.state.value,
            "check": self.check.value,
        }


_JOB_FLAGS = tuple(field.name for field in fields(Job) if field.type in (bool, bool | None))


@dataclass(frozen=True, slots=True, kw_only=True)
class Item:
    """One picture of one document: `folder` and `path` are relative to the store's root."""

    id: str
    job_id: str
    document_id: str
    search_field: str
    position: int
    folder: str
    url: str
    domain: str
    state: ItemState = ItemState.PENDING
    attempts: int = 0
    not_before_ms: int = 0
    updated_at_ms: int = 0
    reason: str | None = None
    detail: str | None = None
    final_url: str | None = None
    http_status: int | None = None
    sha256: str | None = None
    perceptual_hash: str | None = None
    format: str | None = None
    width: int | None = None
    height: int | None = None
    size_bytes: int = 0
    path: str | None = None
    fetched_at_ms: int | None = None
    etag: str | None = None
    last_modified: str | None = None
    unchanged: bool = False
    error_class: str | None = None
    document_key: str | None = None
    """The document's `_id` as Extended JSON, where something is to be written back."""

    @classmethod
    def from_document(cls, document: dict[str, Any]) -> Self:
        known = {name: document[name] for name in _STORED if name in document}
        known["state"] = ItemState(document["state"])
        return cls(id=document["_id"], **known)

    def to_document(self, changes: Mapping[str, Any] | None = None) -> dict[str, Any]:
        """Without what is not known yet: a new item is half as large so, and so is all that is done with it.

        `key` is the id once more: not every MongoDB-compatible server finds a range of `_id`s by its index.
        """
        document = {name: getattr(self, name) for name in _STORED} | {"state": self.state.value} | dict(changes or {})
        known = {name: value for name, value in document.items() if value is not None}
        return {"_id": self.id, "key": self.id, **known}


_STORED = tuple(field.name for field in fields(Item) if field.name != "id")


@dataclass(frozen=True, slots=True, kw_only=True)
class ItemFilter:
    """Which of a job's items; None for any."""

    state: ItemState | None = None
    reason: str | None = None
    error_class: str | None = None
    domain: str | None = None
    document_id: str | None = None

    def given(self) -> dict[str, Any]:
        given = {field.name: getattr(self, field.name) for field in fields(self)}
        given["state"] = self.state.value if self.state else None
        return {name: value for name, value in given.items() if value is not None}


@dataclass(frozen=True, slots=True, kw_only=True)
class Fetched:
    """What came of one successful attempt."""

    final_url: str
    http_status: int
    sha256: str
    perceptual_hash: str | None
    format: str
    width: int
    height: int
    size_bytes: int
    etag: str | None = None
    last_modified: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Failure:
    """What came of an attempt that failed; `reason` is one word of the documented table."""

    reason: str
    detail: str
    final_url: str | None = None
    http_status: int | None = None
    retry_after_s: float | None = None


@dataclass(frozen=True, slots=True)
class DomainTally:
    """One host's part in a job."""

    domain: str
    items: dict[str, int]
    size_bytes: int


@dataclass(frozen=True, slots=True)
class DomainFailures:
    """How often which reason ended items of one host."""

    domain: str
    reasons: dict[str, int]


@dataclass(frozen=True, slots=True)
class Progress:
    """`rate_per_s` is of items ended in the last 30 s (of the whole run, once ended); `eta_s` needs a planned job."""

    items: Mapping[str, int]
    size_bytes: int
    rate_per_s: float
    eta_s: float | None


@dataclass(frozen=True, slots=True)
class Permit:
    """The right to one download at once: of a domain, or of the whole deployment; `free_at_ms` is its pace."""

    domain: str
    number: int
    free_at_ms: int = 0
    wanted: bool = False

    @property
    def id(self) -> str:
        return f"{self.domain}#{self.number:04d}"
