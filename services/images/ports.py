"""What the images service needs from outside: blob storage, an inspector, and a file that arrives."""

from collections.abc import AsyncGenerator, Awaitable, Callable, Iterable, Iterator, Sequence
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol, runtime_checkable
from uuid import UUID

from services.images.domain import Compression, Format, Observation, Status
from services.images.schemas import ImageDescription

Chunk = bytes | bytearray


class StagedBlob(Protocol):
    """A blob being written in one go, invisible until it is published. Calls are made one after another.

    All of them raise BlobStoreFull or BlobStoreUnavailable, like those of BlobStore.
    """

    async def write(self, chunk: Chunk) -> None:
        """Append; the chunk is not touched by the caller until this returns."""

    async def publish(self, sha256: str) -> str:
        """Make what was written durable and readable; gives its storage key, which no other blob has."""
        ...

    async def abandon(self) -> None:
        """Let go of what this process holds of it; what was written is left to the sweep. Doing it again is nothing."""

    async def discard(self) -> None:
        """Remove what was written, published or not; nothing happens if it is gone already."""


class ResumableBlob(Protocol):
    """A blob that is written piece by piece and survives crashes; invisible until `BlobStore.publish`."""

    async def write(self, chunk: Chunk) -> None:
        """Append; the chunk is not touched by the caller until this returns."""

    async def sync(self) -> None:
        """Make all that was written so far durable."""

    def read(self, start: int, length: int) -> AsyncGenerator[bytes, None]:
        """Give what is there, in pieces of bounded size; raises StagedBytesLost if it is less than that."""
        ...

    async def close(self) -> None:
        """Let go of it; what was written after the last `sync` may be lost."""


class BlobReader(Protocol):
    """An open blob; if it is deleted meanwhile it can be read to its end, or reading fails."""

    @property
    def size_bytes(self) -> int:
        """How long the stored file is, whatever its record says."""
        ...

    def read(self, start: int, length: int) -> AsyncGenerator[bytes, None]:
        """Give `length` bytes from `start` on in pieces of bounded size; raises BlobStoreUnavailable."""
        ...

    async def close(self) -> None: ...


class BlobStore(Protocol):
    """Where image files lie. Keys are the store's own; an upload's id is part of its key."""

    async def prepare(self) -> None:
        """Get ready; raises OSError or TelarError now, rather than at the first upload, if nothing can be stored."""

    async def check(self) -> None:
        """Raise OSError or TelarError unless the store answers."""

    async def stage(self, upload_id: UUID) -> StagedBlob:
        """Begin a blob for an upload that comes in one go."""
        ...

    async def resume(self, upload_id: UUID, offset_bytes: int) -> ResumableBlob:
        """Begin a resumable blob (at 0), or go on after its first `offset_bytes`; what lies beyond is dropped.

        Raises StagedBytesLost if there is less, UploadBusy while another holds it (where the store can tell).
        """
        ...

    async def publish(self, upload_id: UUID, sha256: str, *, size_bytes: int) -> str:
        """Make a resumable blob readable; gives its storage key, the same one if a crash makes it happen again.

        Raises StagedBytesLost if there are not `size_bytes` of it.
        """
        ...

    async def discard(self, upload_id: UUID) -> None:
        """Remove a resumable blob that was not published; nothing happens if it is gone already."""

    async def open(self, key: str) -> BlobReader:
        """Open a blob; raises ImageNotFound if it is gone."""
        ...

    async def delete(self, key: str) -> None:
        """Remove a blob; nothing happens if it is gone already."""

    async def link(self, key: str, *, filename: str, expires_s: int) -> str | None:
        """A URL that gives a blob as an attachment of that name, without a login and without Telar in between.

        None if this store has none to give.
        """
        ...

    async def staged(self) -> Iterable[tuple[UUID, str]]:
        """Every unpublished blob: its upload's id and the key for `delete`."""
        ...

    async def published(self) -> Iterable[tuple[UUID, str]]:
        """Every published blob: its upload's id and its key."""
        ...


@runtime_checkable
class LocalFiles(Protocol):
    """What a BlobStore can do besides if its blobs are files of this machine: no byte is copied then."""

    async def lend(self, key: str, target: Path) -> bool:
        """Make a blob appear at `target`, to be read only; False if `target` lies on another file system."""
        ...

    async def adopt(self, upload_id: UUID, path: Path) -> bool:
        """Take a file over as all of a resumable blob, durably; False if it lies on another file system."""
        ...


class SourceFile(Protocol):
    """A file that a server is about to send, from byte `start` on."""

    start: int
    length: int | None
    """Its whole length, if the server told."""
    final_url: str
    """Where it was found after redirects, without the query."""
    etag: str | None
    last_modified: str | None
    validator: str | None
    """What to send as If-Range to go on later; None if the server cannot do that (RFC 9110, 13.1.5)."""

    def chunks(self) -> AsyncGenerator[bytes, None]:
        """The bytes as they are published; raises SourceInterrupted, FileTooLarge."""
        ...


class ImageSource(Protocol):
    """Servers that images are imported from, all of them chosen by users."""

    def check(self, url: str) -> str:
        """The URL in its normal form, all ASCII; raises UrlRefused or AddressRefused if that needs nobody's answer."""
        ...

    def open(
        self, url: str, *, packed: Compression | None, start: int = 0, validator: str | None = None
    ) -> AbstractAsyncContextManager[SourceFile]:
        """Ask for a file, from `start` on if it still is the one that `validator` names, else from its beginning.

        Raises SourceRefused (final), SourceInterrupted (worth another try), SourceChanged, FileTooLarge, and what the
        guarded client refuses.
        """
        ...


class Decompressor(Protocol):
    """Unpacks one file; its methods block and belong in a thread. They raise CompressedFileDamaged."""

    def feed(self, data: bytes) -> Iterator[bytes]:
        """What comes out of the next part of the file, in pieces of bounded size; to be read to its end."""
        ...

    def finish(self) -> None:
        """Look whether the file was whole; call once, after its last part."""


DecompressorFor = Callable[[Compression], Decompressor]


@dataclass(frozen=True, slots=True)
class Master:
    """The image that a conversion reads, as its record says."""

    image_id: UUID
    status: Status
    format: Format
    key: str
    sha256: str
    size_bytes: int


@dataclass(frozen=True, slots=True)
class Estimate:
    """How large a converted file will be by what its source holds, and how large it can be."""

    likely_bytes: int
    at_most_bytes: int


class Workshop(Protocol):
    """A private folder in which one image is converted. All methods raise ConversionFailed or BlobStoreFull."""

    @property
    def output(self) -> Path:
        """The converted file, once there is one."""
        ...

    async def estimate(self, target: Format) -> Estimate: ...

    async def convert(
        self, target: Format, *, compress: bool, limit_bytes: int, progress: Callable[[float], Awaitable[None]]
    ) -> Sequence[str]:
        """Write `output`; gives the converter's arguments. Raises ConversionOutgrew if it would pass `limit_bytes`."""
        ...


class Converter(Protocol):
    """Brings disks from one format into another with an outside program, which is not trusted."""

    def require(self) -> None:
        """Raise ConverterMissing, with what to install, if this machine has no converter."""

    async def version(self) -> str: ...

    def workshop(self, master: Master) -> AbstractAsyncContextManager[Workshop]:
        """Set up a folder with the image in it, and remove it afterwards.

        Raises ImageState unless the image is active: no other has passed verification.
        """
        ...


class Inspector(Protocol):
    """Looks at a file that passes by, in order; never at the whole of it."""

    def eat(self, chunk: Chunk) -> None: ...

    def finish(self) -> Observation:
        """Say what was seen; call once, after the last chunk."""
        ...


class ArrivingFile(Protocol):
    """An image file on its way in, with its description before or after it."""

    @property
    def filename(self) -> str:
        """Known as soon as the first chunk is there."""
        ...

    def chunks(self) -> AsyncGenerator[Chunk, None]:
        """The file's bytes in pieces of bounded size; raises MalformedUpload or UploadInterrupted."""
        ...

    def description(self) -> ImageDescription:
        """What was said of the image, once `chunks` has ended; raises Invalid."""
        ...
