"""Import by URL: record the image at once, then download, unpack and settle its digest inside an operation."""

import asyncio
import contextlib
import hashlib
from collections.abc import AsyncGenerator
from dataclasses import dataclass
from typing import Any
from urllib.parse import unquote, urlsplit
from uuid import UUID

from libs.common.ids import uuid7
from libs.common.operations import Json, Operation, StepContext
from libs.common.uow import UnitOfWorkFactory
from services.images.domain import MIN_FILE_BYTES, Arrival, Compression, Status, human_size, published_as
from services.images.errors import DigestMismatch, SourceChanged, SourceInterrupted
from services.images.models import Image
from services.images.ports import BlobStore, DecompressorFor, ImageSource, SourceFile
from services.images.schemas import ImportRequest
from services.images.service import lifecycle
from services.images.service.filling import NOTE_EVERY_BYTES, Books, Filling, begin, books_of, enter, filling
from services.images.settings import ImagesSettings

IMPORT = "image.import"
"""The kind of the operation that imports an image; its input has the URL until it ends."""
_MAX_NAME = 255
_BLOCK_BYTES = 1 << 20
_BLOCK_S = 1.0
"""A slow file comes in smaller blocks, so that its progress is seen."""


class Imports:
    """Takes images from servers that users name. A URL's query may be a secret: only the operation's input has it."""

    def __init__(
        self,
        uow: UnitOfWorkFactory,
        blobs: BlobStore,
        source: ImageSource,
        decompressor_for: DecompressorFor,
        settings: ImagesSettings,
    ) -> None:
        self._uow = uow
        self._blobs = blobs
        self._source = source
        self._decompressor_for = decompressor_for
        self._settings = settings

    async def begin(self, owner_id: str, wish: ImportRequest) -> tuple[Image, Operation]:
        """Record the image and the operation that will import it.

        Raises Invalid if nothing tells the format, UrlRefused, AddressRefused, QuotaExceeded.
        """
        url = self._source.check(wish.url)
        filename = wish.filename or _last_segment(url)
        declared, packed = published_as(filename, wish.format)
        image_id = uuid7()
        provenance = {
            "kind": Arrival.IMPORT.value,
            "url": without_query(url),
            "filename": filename,
            "uploader_id": owner_id,
        }
        async with self._uow() as uow:
            image = lifecycle.new_image(
                uow, image_id, owner_id, wish, declared, status=Status.QUEUED, provenance=provenance
            )
            operation = await begin(
                uow,
                image,
                Arrival.IMPORT,
                IMPORT,
                reserved_bytes=MIN_FILE_BYTES,  # so that a quota without any room refuses at once
                given={"url": url, "packed": packed, "sha256": wish.sha256},
            )
            await uow.commit()
        return image, operation

    async def download(self, context: StepContext) -> Json:
        """Stage the file, unpacked; gives what is known of the published one. Goes on where it was if it can."""
        image_id = UUID(context.operation.resource_id)
        await enter(self._uow, image_id, Status.UPLOADING, after=Status.QUEUED)
        books = await books_of(self._uow, image_id, max_file_size=self._settings.max_file_size)
        download = _Download(self._source, self._blobs, books, image_id, context)
        packed = context.input.get("packed")
        if packed is None:
            found = await download.as_it_is()
        else:
            found = await download.unpacked(Compression(packed), self._decompressor_for)
        await enter(self._uow, image_id, Status.VERIFYING, after=Status.UPLOADING)
        return found

    async def settle(self, image_id: UUID, downloaded: Json, verified: Json, expected_sha256: str | None) -> None:
        """Record where the image came from, and raise DigestMismatch unless it is what was announced.

        `expected_sha256` may be that of the published file or of the image in it: publishers give either.
        """
        published_sha256 = downloaded.get("downloaded_sha256") or verified["sha256"]
        async with self._uow() as uow:
            image = await lifecycle.require_image(uow, image_id)
            image.provenance = {**image.provenance, **downloaded, "downloaded_sha256": published_sha256}
            await uow.commit()
        if expected_sha256 is not None and expected_sha256 not in (published_sha256, verified["sha256"]):
            unpacked = "" if published_sha256 == verified["sha256"] else f", the image in it {verified['sha256']}"
            raise DigestMismatch(
                f"The file at the source has the SHA-256 digest {published_sha256}{unpacked};"
                f" announced was {expected_sha256}. Compare it with what the publisher says"
            )


@dataclass(frozen=True, slots=True)
class _Download:
    """One attempt at an operation's download."""

    source: ImageSource
    blobs: BlobStore
    books: Books
    image_id: UUID
    context: StepContext

    async def as_it_is(self) -> Json:
        """The published file is the image. A break after which the source can go on is no failure if bytes came."""
        if self.books.noted_bytes and self.books.noted_bytes == self.context.checkpoint.get("length"):
            found: Json = self.context.checkpoint["found"]  # it was whole when the process ended
            return found
        while True:
            before_bytes = self.books.noted_bytes
            try:
                return await self._copy()
            except SourceInterrupted:
                came_further = self.books.noted_bytes - before_bytes >= NOTE_EVERY_BYTES
                if not (came_further and self.context.checkpoint.get("validator")):
                    raise
            except SourceChanged:
                await self.context.save(validator=None)
                raise

    async def _copy(self) -> Json:
        validator = self.context.checkpoint.get("validator")
        start = self.books.noted_bytes if validator else 0
        url = self.context.input["url"]
        async with self.source.open(url, packed=None, start=start, validator=validator) as file:
            found = _found(file)
            if file.length is not None:
                await self.books.reserve(file.length)
            if file.start != self.books.noted_bytes:
                await self.books.note(0)
            await self.context.save(validator=file.validator, length=file.length, found=found)
            async with (
                filling(self.books, self.blobs, self.image_id) as target,
                contextlib.aclosing(_blocks(file)) as blocks,
            ):
                async for block in blocks:
                    await target.write(block)
                    await self._tell(target.size_bytes, file.length)
        return found

    async def unpacked(self, packed: Compression, decompressor_for: DecompressorFor) -> Json:
        """The image is in the published file; after a break all begins anew, since its middle cannot be sought."""
        decompressor, sha256 = decompressor_for(packed), hashlib.sha256()
        async with self.source.open(self.context.input["url"], packed=packed) as file:
            read_bytes = 0
            async with filling(self.books, self.blobs, self.image_id, anew=True) as target:
                async with contextlib.aclosing(_blocks(file)) as blocks:
                    async for block in blocks:
                        await asyncio.to_thread(sha256.update, block)
                        pieces = decompressor.feed(bytes(block))
                        while (piece := await asyncio.to_thread(next, pieces, None)) is not None:
                            await target.write(piece)
                        read_bytes += len(block)
                        await self._tell(read_bytes, file.length, target)
                await asyncio.to_thread(decompressor.finish)
            return {**_found(file), "downloaded_sha256": sha256.hexdigest(), "downloaded_bytes": read_bytes}

    async def _tell(self, read_bytes: int, length: int | None, target: Filling | None = None) -> None:
        of_all = f" of {human_size(length)}" if length else " so far"
        unpacked = f", {human_size(target.size_bytes)} unpacked" if target is not None else ""
        await self.books.look()
        fraction = read_bytes / length if length else 0.0
        await self.context.progress(fraction, f"{human_size(read_bytes)}{of_all}{unpacked}")


async def _blocks(file: SourceFile) -> AsyncGenerator[bytearray, None]:
    """The file in blocks that are worth a call of their own; what came before a break is given before the error."""
    loop = asyncio.get_running_loop()
    block, given_at = bytearray(), loop.time()
    try:
        async with contextlib.aclosing(file.chunks()) as chunks:
            async for chunk in chunks:
                block += chunk
                if len(block) >= _BLOCK_BYTES or loop.time() - given_at >= _BLOCK_S:
                    yield block
                    block, given_at = bytearray(), loop.time()
    except SourceInterrupted:
        if block:
            yield block
        raise
    if block:
        yield block


def _found(file: SourceFile) -> dict[str, Any]:
    """What provenance tells of the published file."""
    return {"final_url": file.final_url, "etag": file.etag, "last_modified": file.last_modified}


def without_query(url: str) -> str:
    """A URL that may be shown: its query and user part may hold secrets."""
    parts = urlsplit(url)
    return parts._replace(netloc=parts.netloc.rpartition("@")[2], query="", fragment="").geturl()


def _last_segment(url: str) -> str:
    """A file's name as its URL tells it, in characters that can be shown."""
    name = unquote(urlsplit(url).path.rpartition("/")[2])
    return "".join(character if character.isprintable() else "_" for character in name)[-_MAX_NAME:]
