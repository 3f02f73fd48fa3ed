"""Downloads: open an image's file for who may read it, or for whoever holds a link; make such links; count."""

from dataclasses import dataclass
from datetime import datetime, timedelta
from uuid import UUID

from libs.common.auth import Principal
from libs.common.clock import Clock
from libs.common.uow import UnitOfWorkFactory
from services.images.adapters.links import LinkTokens, file_name
from services.images.domain import Status
from services.images.errors import ImageNotFound, ImageState
from services.images.models import Image
from services.images.ports import BlobReader, BlobStore
from services.images.repository import BlobRepository, ImageRepository
from services.images.service.catalog import Catalog


@dataclass(frozen=True, slots=True)
class Download:
    """An image and its open file; whoever gets it closes the file."""

    image: Image
    file: BlobReader


@dataclass(frozen=True, slots=True)
class Link:
    """How to get an image's file without a login: at `url` from the store itself, or if that is None with `token`."""

    image: Image
    url: str | None
    token: str
    expires_at: datetime


class Downloads:
    """What can be done with the files of active images. For who may not see one it raises ImageNotFound."""

    def __init__(
        self, uow: UnitOfWorkFactory, catalog: Catalog, blobs: BlobStore, tokens: LinkTokens, *, clock: Clock
    ) -> None:
        self._uow = uow
        self._catalog = catalog
        self._blobs = blobs
        self._tokens = tokens
        self._clock = clock

    async def open(self, principal: Principal, image_id: UUID) -> Download:
        """Open an image's file; raises ImageState unless it is active."""
        return await self._open(await self._catalog.get(principal, image_id))

    async def open_linked(self, token: str) -> Download:
        """Open the file that a link's token names; raises LinkInvalid, or what `open` does: the image may have gone."""
        image_id = self._tokens.read(token, self._clock.now().timestamp())
        async with self._uow() as uow:
            image = await ImageRepository(uow.session).get(image_id)
        if image is None:
            raise ImageNotFound
        return await self._open(image)

    async def link(self, principal: Principal, image_id: UUID, *, expires_s: int) -> Link:
        """Make a link, good for so long to begin a download; raises ImageState unless the image is active."""
        image = await self._catalog.get(principal, image_id)
        key = await self._key_of(image)
        name = file_name(image.name, image.format)
        expires_at = self._clock.now().replace(microsecond=0) + timedelta(seconds=expires_s)
        url = await self._blobs.link(key, filename=name, expires_s=expires_s)
        return Link(image, url, self._tokens.sign(image_id, int(expires_at.timestamp())), expires_at)

    async def count(self, image_id: UUID) -> None:
        """Count one more download; the image's version stays, so that nobody's If-Match fails of it."""
        async with self._uow() as uow:
            await ImageRepository(uow.session).count_download(image_id)
            await uow.commit()

    async def _open(self, image: Image) -> Download:
        return Download(image, await self._blobs.open(await self._key_of(image)))

    async def _key_of(self, image: Image) -> str:
        if image.status != Status.ACTIVE:
            raise ImageState(f"The image is {image.status}; only active images can be downloaded")
        async with self._uow() as uow:
            key = await BlobRepository(uow.session).key_of(image.sha256) if image.sha256 else None
        if key is None:  # deleted meanwhile
            raise ImageNotFound
        return key
