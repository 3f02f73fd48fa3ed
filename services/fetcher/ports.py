"""What the fetcher needs of the world: a job store, source collections, downloads, a decoder and a picture store."""

from collections.abc import AsyncIterator, Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from libs.common.events import Event
from libs.common.quotas import Usage
from services.fetcher.domain.jobs import Check, ItemState, JobState
from services.fetcher.domain.troubles import DomainState
from services.fetcher.models import DomainFailures, DomainTally, Item, ItemFilter, Job, Permit


class JobRepository(Protocol):
    """Jobs, each with the events that tell of it: a change and its event are durable together or not at all."""

    async def add(self, job: Job, event: Event) -> None: ...

    async def get(self, job_id: str) -> Job | None:
        """The job; None if there is none or only its tombstone."""
        ...

    async def change(self, job: Job, event: Event | None, **changes: Any) -> Job | None:
        """Write changes of fields and raise the version by one, if it is still `job.version`; None if it is not."""
        ...

    async def page(
        self, *, owner_id: str | None, states: Collection[JobState], before: str | None, limit: int
    ) -> list[Job]:
        """Newest first, older than the id `before`; of all owners if `owner_id` is None."""
        ...

    async def in_states(self, states: Collection[JobState]) -> list[Job]: ...

    async def unsettled(self, *, ended_since_ms: int) -> list[Job]:
        """Those whose items workers may have: they run, are paused, or were cancelled or failed since then."""
        ...

    async def claim_planning(self, job_id: str, *, holder: str, now_ms: int, until_ms: int) -> bool:
        """Take (or keep) the sole right to plan an unplanned job until then; False if another holds it."""
        ...

    async def claim(self, job_id: str, *, holder: str, now_ms: int, until_ms: int) -> bool:
        """Take (or keep) the sole right to write back or purge a job until then; False if another holds it."""
        ...

    async def note_planning(self, job_id: str, *, holder: str, **changes: Any) -> bool:
        """Write what the work found out, if the right to it is still held."""
        ...

    async def sweep(self) -> None:
        """Forget tombstones whose events have left and whose items are gone."""


class ItemRepository(Protocol):
    """Items of jobs; one is `downloading` under a holder's lease, and only that holder may end it."""

    async def add(self, items: Sequence[Item]) -> None:
        """Write items; those whose id is known stay as they are."""

    async def claim(
        self, job_id: str, *, limit: int, holder: str, now_ms: int, until_ms: int, without: Collection[str]
    ) -> list[Item]:
        """Take up to `limit` due items whose domain is not in `without`; each counts one more attempt.

        A holder makes one call at a time.
        """
        ...

    async def renew(self, holder: str, job_ids: Collection[str], *, until_ms: int) -> None: ...

    async def settle(self, holder: str, outcomes: Sequence[tuple[Item, Mapping[str, Any]]]) -> int:
        """Write what changed of items, as they were claimed, that the holder still has; give how many those were."""
        ...

    async def give_back(self, holder: str, ids: Collection[str], state: ItemState, *, now_ms: int) -> None:
        """End the holder's claim on items without an outcome (shutdown, pause, cancel)."""

    async def held(self, holder: str, job_ids: Collection[str]) -> set[str]:
        """Ids of these jobs' items that are `downloading` under the holder's lease."""
        ...

    async def expire(self, job_id: str, now_ms: int) -> bool:
        """Make a job's items pending again whose lease ran out; whether there were any."""
        ...

    async def move(
        self, job_id: str, state: ItemState, to: ItemState, *, now_ms: int, only: ItemFilter | None = None
    ) -> None:
        """Move all of a job's items in one state (that `only` matches) to another; their attempts begin anew."""

    async def counts_if_ended(self, job_id: str) -> dict[str, int] | None:
        """Items by state, if none of them is pending or under way."""
        ...

    async def counts(self, job_id: str) -> tuple[dict[str, int], int]:
        """Items by state, and the bytes of all fetched ones."""
        ...

    async def domains(self, job_id: str) -> list[DomainTally]: ...
    async def ended_since(self, job_id: str, since_ms: int) -> int:
        """How many items were fetched or failed for good since then."""
        ...

    async def failures(self, job_id: str) -> list[DomainFailures]:
        """The reasons of failed items by domain, the domain with most of them first."""
        ...

    async def page(self, job_id: str, only: ItemFilter, *, after: str | None, limit: int) -> list[Item]:
        """By rising id: the items of one document together, in its order."""
        ...

    async def with_file(self, job_id: str, path: str) -> bool:
        """Whether the job fetched the file at this path of the store (or wrote the metadata there, or processed it)."""
        ...

    async def delete_of(self, job_id: str) -> None: ...


class PermitRepository(Protocol):
    """Numbered permits per domain under their holders' leases; two holders never have the same one."""

    async def take(
        self, holder: str, wanted: Mapping[str, Sequence[int]], *, now_ms: int, until_ms: int
    ) -> list[Permit]:
        """Take those of the wanted numbers that are free; gives the ones taken."""
        ...

    async def holders(self, domains: Collection[str], *, now_ms: int) -> dict[str, dict[int, str]]:
        """Who holds which number of these domains."""
        ...

    async def renew(self, holder: str, *, now_ms: int, until_ms: int) -> list[Permit]:
        """Keep what is still held; gives it, `wanted` where another holder asks for it."""
        ...

    async def ask(self, permits: Collection[Permit]) -> None:
        """Ask the holders of these permits to give them up."""

    async def release(self, holder: str, permits: Collection[Permit], *, now_ms: int) -> None:
        """Give permits up; one whose `free_at_ms` lies ahead stays taken until then."""

    async def sweep(self, now_ms: int) -> None:
        """Forget permits whose lease ran out long ago."""


class DomainRepository(Protocol):
    """Domains in trouble, as all replicas see them."""

    async def in_trouble(self) -> list[DomainState]: ...

    async def note(self, state: DomainState) -> None:
        """Write a domain's state; whoever writes last is right."""

    async def forget(self, domains: Collection[str]) -> None: ...

    async def sweep(self, now_ms: int) -> None:
        """Forget domains that were left in peace long enough."""


class AccountRepository(Protocol):
    """Owners' limits and the slots their unfinished jobs take."""

    async def reserve(self, owner_id: str, job_id: str) -> Usage:
        """Take a slot for a job; one that has a slot takes it again. Raises QuotaExceeded, Forbidden or Unavailable."""
        ...

    async def begin_release(self, owner_id: str, job_id: str) -> Usage:
        """Stop counting the job's slot; nobody else gets it before `release`."""
        ...

    async def release(self, job_id: str, *, taken_at_ms: int | None = None) -> None:
        """Free the job's slot after `begin_release`, or the one taken then; not if it was taken again meanwhile."""

    async def slots(self) -> list[tuple[str, int]]:
        """The job of each slot and when it was taken (Unix ms), for the sweep."""
        ...


class SourceCollections(Protocol):
    """The documents that point to pictures. All calls raise SourceUnavailable or SourceRefused."""

    async def check(self, database: str, collection: str) -> None:
        """Raise SourceNotFound unless there are such a database and collection."""

    async def sample(self, database: str, collection: str, query: Mapping[str, Any], size: int) -> list[dict[str, Any]]:
        """Some whole documents, to guess from."""
        ...

    async def document_query(self, database: str, collection: str, document_id: str) -> dict[str, Any]:
        """The query for one document by its id as text. Raises DocumentNotFound or DocumentIdRefused."""
        ...

    async def write_back(
        self, database: str, collection: str, key: str, *, field: str, mark: str, value: Mapping[str, Any]
    ) -> bool:
        """Set a field of the document with this `_id` (Extended JSON), if it has none such or one marked so as `by`.

        False where the document is gone or the field is somebody else's.
        """
        ...

    def stream(
        self, database: str, collection: str, query: Mapping[str, Any], *, field: str, limit: int | None
    ) -> AsyncIterator[dict[str, Any]]:
        """`_id` and the field's top-level parent of each matching document, by rising `_id`."""
        ...


@dataclass(frozen=True, slots=True)
class Body:
    """A downloaded body: in memory while small, else in a temporary file that the caller removes."""

    data: bytes | None
    file: Path | None
    size_bytes: int
    sha256: str

    def discard(self) -> None:
        """Remove what the body takes on the disk."""
        if self.file is not None:
            self.file.unlink(missing_ok=True)


@dataclass(frozen=True, slots=True)
class Download:
    """A successful answer."""

    final_url: str
    http_status: int
    body: Body
    etag: str | None = None
    last_modified: str | None = None


class DownloadFailed(Exception):
    """An attempt that brought no body; `reason` is a word of the documented table."""

    def __init__(
        self,
        reason: str,
        detail: str,
        *,
        final_url: str | None = None,
        http_status: int | None = None,
        retry_after_s: float | None = None,
    ) -> None:
        super().__init__(f"{reason}: {detail}")
        self.reason = reason
        self.detail = detail
        self.final_url = final_url
        self.http_status = http_status
        self.retry_after_s = retry_after_s


@dataclass(frozen=True, slots=True)
class NotModified:
    """The server says that what is stored is still what it has."""

    final_url: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Wish:
    """How a URL is to be asked for: unless it is still what the validators stand for; only where robots.txt allows."""

    etag: str | None = None
    last_modified: str | None = None
    robots: bool = False


class Downloader(Protocol):
    async def fetch(self, url: str, wish: Wish) -> Download | NotModified:
        """Download a URL; whoever takes the body discards it. Raises DownloadFailed.

        `NotModified` only answers a wish with validators. A body that broke off may be gone on with at the next call.
        """
        ...


@dataclass(frozen=True, slots=True)
class Result:
    """What a processor made of a picture: a file (`name` and `data`), or only facts about it."""

    name: str | None
    data: bytes | None
    facts: Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class Picture:
    """A picture that passed its check. `extension` begins with a dot; only a decoded one has a hash."""

    format: str
    extension: str
    width: int
    height: int
    perceptual_hash: str | None
    results: tuple[Result, ...] = ()


class PictureRefused(Exception):
    """A body that is no acceptable picture; `reason` is a word of the documented table."""

    def __init__(self, reason: str, detail: str) -> None:
        super().__init__(f"{reason}: {detail}")
        self.reason = reason
        self.detail = detail


class Decoder(Protocol):
    async def inspect(self, body: Body, check: Check = Check.FULL, steps: Sequence[Mapping[str, Any]] = ()) -> Picture:
        """Decode every frame, or only read the header; then run processors. Raises PictureRefused."""
        ...


@dataclass(frozen=True, slots=True)
class Writing:
    """What one ended item changes in the store: its entry in metadata.json, and its picture if it has a body."""

    item: Item
    entry: Mapping[str, Any]
    body: Body | None = None
    extension: str = ""
    results: Sequence[Result] = ()
    keep: bool = False
    """The picture that is there stays; `entry` only adds to what is known of it."""

    @property
    def name(self) -> str | None:
        return f"img_{self.item.position:03d}{self.extension}" if self.body is not None else None

    @property
    def path(self) -> str | None:
        """Of the picture, in the store."""
        return f"{self.item.folder}/original/{self.name}" if self.body is not None else None

    def files(self) -> Iterator[tuple[str, bytes]]:
        """What the processors made, by path in the store."""
        for result in self.results:
            if result.name is not None and result.data is not None:
                yield f"{self.item.folder}/processed/img_{self.item.position:03d}-{result.name}", result.data


@dataclass(frozen=True, slots=True)
class StoredFile:
    """A file of the store; `local` where it lies on a disk of this machine."""

    size_bytes: int
    local: Path | None
    chunks: Callable[[], AsyncIterator[bytes]]


class PictureStore(Protocol):
    """The documented layout. All writes are atomic, and durable when `write` returns. Reading raises OSError."""

    @property
    def spool(self) -> Path:
        """A folder on this machine for bodies on their way."""
        ...

    @property
    def partials(self) -> Path:
        """A folder beside it for bodies that broke off, which outlives this process."""
        ...

    async def start(self) -> None:
        """Make ready; raises OSError if nothing can be written."""

    async def close(self) -> None: ...

    async def check_room(self) -> None:
        """Raise StorageFull when nothing more can be written."""

    async def write(self, batch: Sequence[Writing]) -> list[OSError | None]:
        """Write a batch, each folder's metadata once; gives for each what kept it from being stored.

        Bodies are used up, also those that could not be stored.
        """
        ...

    async def file(self, path: str) -> StoredFile | None:
        """The file at a picture's path; None if it is gone."""
        ...

    async def holds(self, database: str, collection: str) -> bool:
        """Whether anything of a collection was ever stored."""
        ...

    async def known(self, item: Item) -> Mapping[str, Any] | None:
        """What metadata.json tells of the item's picture, if it came from the same URL and is still there whole."""
        ...

    async def remove(self, folder: str, job_id: str) -> None:
        """Remove the pictures of a document's folder that this job wrote last; again and again if need be."""
