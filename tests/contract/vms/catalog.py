"""A catalog of images for tests of vms: real files, served over HTTP to the lab, behind the port `Images`."""

import asyncio
import contextlib
import hashlib
import socket
import struct
from collections.abc import AsyncIterator
from dataclasses import replace
from uuid import UUID

import uvicorn
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from libs.common.clock import SystemClock
from libs.common.events import Event
from libs.common.ids import uuid7
from services.vms.errors import ImagesAway, ImageUnfit, ImageUnknown
from services.vms.ports import CatalogImage

GIB = 1024**3


def qcow2(virtual_size_bytes: int) -> bytes:
    """The header of an empty qcow2 disk (version 2) of that size."""
    header = struct.pack(">4sIQIIQIIQQIIQ", b"QFI\xfb", 2, 0, 0, 16, virtual_size_bytes, 0, 0, 0, 0, 0, 0, 0)
    return header.ljust(65536, b"\0")


class FakeImages:
    """Implements `ports.Images` in memory. `readers` are the owners' tokens that may see a private image."""

    def __init__(self, url: str) -> None:
        self.url = url
        self.known: dict[UUID, CatalogImage] = {}
        self.files: dict[UUID, bytes] = {}
        self.hidden_from_users: set[UUID] = set()
        self.away = False
        self.links = 0

    def add(self, *, size_gib: int = 2, image_format: str = "qcow2", visibility: str = "public") -> CatalogImage:
        content = qcow2(size_gib * GIB)
        image = CatalogImage(
            id=uuid7(),
            owner_id="image-owner",
            name="Debian",
            os_type="alma",
            version="9.4",
            format=image_format,
            status="active",
            visibility=visibility,
            sha256=hashlib.sha256(content).hexdigest(),
            virtual_size_bytes=size_gib * GIB,
        )
        self.known[image.id], self.files[image.id] = image, content
        return image

    def change(self, image: CatalogImage, **values: str) -> CatalogImage:
        self.known[image.id] = replace(self.known[image.id], **values)  # type: ignore[arg-type] # texts only
        return self.known[image.id]

    async def get(self, image_id: UUID, *, bearer: str | None = None) -> CatalogImage:
        if self.away:
            raise ImagesAway
        if image_id not in self.known or (bearer is not None and image_id in self.hidden_from_users):
            raise ImageUnknown
        return self.known[image_id]

    async def link(self, image_id: UUID, *, expires_s: int) -> str:
        assert expires_s > 0
        if (await self.get(image_id)).status != "active":
            raise ImageUnfit
        self.links += 1
        return f"{self.url}/{image_id}"

    async def serve(self, request: Request) -> Response:
        content = self.files.get(UUID(request.path_params["image_id"]))
        return Response(content, 404 if content is None else 200, headers={"connection": "close"})


def image_event(image: CatalogImage, verb: str, sequence: int) -> Event:
    """What the images service says of an image."""
    return Event(
        type=f"images.image.{verb}.v1",
        subject=str(image.id),
        source="/telar/images",
        time=SystemClock().now(),
        data={
            "resource": {"type": "image", "id": str(image.id), "name": image.name},
            "name": image.name,
            "os_type": image.os_type,
            "version": image.version,
            "architecture": "x86_64",
            "format": image.format,
            "size_bytes": 65536,
            "virtual_size_bytes": image.virtual_size_bytes,
            "sha256": image.sha256,
            "status": image.status,
            "visibility": image.visibility,
        },
        owner=image.owner_id,
        sequence=sequence,
    )


@contextlib.asynccontextmanager
async def catalog() -> AsyncIterator[FakeImages]:
    """A catalog whose files the lab can download until the block ends."""
    bound = socket.socket()
    bound.bind(("127.0.0.1", 0))
    images = FakeImages(f"http://127.0.0.1:{bound.getsockname()[1]}")
    app = Starlette(routes=[Route("/{image_id}", images.serve)])
    server = uvicorn.Server(uvicorn.Config(app, log_config=None, lifespan="off"))
    task = asyncio.create_task(server.serve([bound]))
    try:
        yield images
    finally:
        server.should_exit = True
        await task
        bound.close()
