"""Conversion: a new image of its maker's, made of one that the maker may read, inside an operation."""

import asyncio
from pathlib import Path
from typing import BinaryIO
from uuid import UUID

from libs.common.auth import Principal
from libs.common.ids import uuid7
from libs.common.operations import Json, Operation, StepContext
from libs.common.uow import UnitOfWorkFactory
from services.images.domain import MIN_FILE_BYTES, Arrival, Format, Status, human_size, require_convertible
from services.images.errors import ConversionOutgrew, FileTooLarge, ImageNotFound, ImageState
from services.images.models import Image
from services.images.ports import BlobStore, Converter, LocalFiles, Master, Workshop
from services.images.repository import BlobRepository, ImageRepository
from services.images.schemas import ConvertRequest, ImageDescription
from services.images.service import lifecycle
from services.images.service.catalog import Catalog
from services.images.service.filling import Books, begin, books_of, enter, filling
from services.images.settings import ImagesSettings

CONVERT = "image.convert"
"""The kind of the operation that converts an image; its resource is the new one."""
_READ_BYTES = 1 << 20


class Conversions:
    """What comes out of the converter is trusted no more than an upload: it is verified in the same way."""

    def __init__(
        self,
        uow: UnitOfWorkFactory,
        blobs: BlobStore,
        converter: Converter,
        catalog: Catalog,
        settings: ImagesSettings,
    ) -> None:
        self._uow = uow
        self._blobs = blobs
        self._converter = converter
        self._catalog = catalog
        self._settings = settings

    async def begin(self, maker: Principal, image_id: UUID, wish: ConvertRequest) -> tuple[Image, Operation]:
        """Record the new image and the operation that will make it.

        Raises ImageNotFound, ImageState, NotConvertible, Invalid, FileTooLarge, QuotaExceeded, ConverterMissing.
        """
        source = await self._catalog.get(maker, image_id)
        if source.status != Status.ACTIVE:
            raise ImageState(f"The image is {source.status}; only active images can be converted")
        disk_bytes = source.virtual_size_bytes
        require_convertible(Format(source.format), wish.format, disk_bytes, compress=wish.compress)
        self._converter.require()
        if wish.format is Format.RAW and disk_bytes > self._settings.max_file_size:
            raise FileTooLarge(
                f"A raw image is as large as its disk ({human_size(disk_bytes)});"
                f" an image file may have at most {human_size(self._settings.max_file_size)}"
            )
        new_id = uuid7()
        provenance = {
            "kind": Arrival.CONVERSION.value,
            "source_image_id": str(source.id),
            "source_sha256": source.sha256,
            "source_format": source.format,
            "uploader_id": maker.user_id,
        }
        async with self._uow() as uow:
            image = lifecycle.new_image(
                uow,
                new_id,
                maker.user_id,
                _description(source, wish),
                wish.format,
                status=Status.QUEUED,
                provenance=provenance,
                derived_from=source.id,
            )
            operation = await begin(
                uow,
                image,
                Arrival.CONVERSION,
                CONVERT,
                reserved_bytes=disk_bytes if wish.format is Format.RAW else MIN_FILE_BYTES,
                given={"source": str(source.id), "format": wish.format.value, "compress": wish.compress},
            )
            await uow.commit()
        return image, operation

    async def convert(self, context: StepContext) -> Json:
        """Stage the converted file; gives what provenance tells of it. Begins anew after a crash."""
        image_id, wanted = UUID(context.operation.resource_id), context.input
        master = await self._master(UUID(wanted["source"]))
        books = await books_of(self._uow, image_id, max_file_size=self._settings.max_file_size)
        await enter(self._uow, image_id, Status.UPLOADING, after=Status.QUEUED)
        made: Json = {"qemu_img": await self._converter.version()}
        async with self._converter.workshop(master) as workshop:
            made["arguments"] = await self._make(context, workshop, books)
            await self._deliver(workshop.output, books, image_id)
        async with self._uow() as uow:
            image = await lifecycle.require_image(uow, image_id)
            image.provenance = {**image.provenance, **made}
            image.status = Status.VERIFYING.value
            await uow.commit()
        return made

    async def _make(self, context: StepContext, workshop: Workshop, books: Books) -> list[str]:
        """Convert within what is reserved: what the source's content makes likely, else all that is possible."""
        target, compress = Format(context.input["format"]), context.input["compress"]
        estimate, ceiling = await workshop.estimate(target), self._settings.max_file_size

        async def progress(fraction: float) -> None:
            await books.look()
            await context.progress(fraction, f"{fraction:.0%} converted")

        outgrew: ConversionOutgrew | None = None
        for limit_bytes in sorted({min(estimate.likely_bytes, ceiling), min(estimate.at_most_bytes, ceiling)}):
            await books.reserve(limit_bytes)
            try:
                made = await workshop.convert(target, compress=compress, limit_bytes=limit_bytes, progress=progress)
            except ConversionOutgrew as error:
                outgrew = error
            else:
                return list(made)
        raise outgrew or AssertionError

    async def _deliver(self, output: Path, books: Books, image_id: UUID) -> None:
        """Make the converted file the staged one: moved if the store can, else copied."""
        if isinstance(self._blobs, LocalFiles):
            size_bytes = (await asyncio.to_thread(output.stat)).st_size
            await books.note(0)
            if await self._blobs.adopt(image_id, output):
                await books.note(size_bytes)
                return
        async with filling(books, self._blobs, image_id, anew=True) as staged:
            file = await asyncio.to_thread(output.open, "rb", buffering=0)
            try:
                while piece := await asyncio.to_thread(_read, file):
                    await staged.write(piece)
            finally:
                await asyncio.to_thread(file.close)

    async def _master(self, image_id: UUID) -> Master:
        """The source as it is now; raises ImageNotFound."""
        async with self._uow() as uow:
            source = await ImageRepository(uow.session).get(image_id)
            key = None
            if source is not None and source.sha256 is not None:
                key = await BlobRepository(uow.session).key_of(source.sha256)
        if source is None or source.sha256 is None or key is None:
            raise ImageNotFound
        return Master(source.id, Status(source.status), Format(source.format), key, source.sha256, source.size_bytes)


def _read(file: BinaryIO) -> bytes:
    return file.read(_READ_BYTES)


def _description(source: Image, wish: ConvertRequest) -> ImageDescription:
    return ImageDescription(
        name=wish.name or source.name,
        os_type=source.os_type,
        version=source.os_version,
        architecture=source.architecture,
        description=source.description,
        tags=source.tags,
        min_disk_gib=source.min_disk_gib,
        min_memory_mib=source.min_memory_mib,
    )
