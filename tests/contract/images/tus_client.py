"""A tus client for contract tests: says what it is told to, right or wrong, and can hold a connection half open."""

import asyncio
import base64
import hashlib
from pathlib import Path
from typing import Any

import httpx
from starlette.types import Message

from tests.contract.images.harness import Service
from tests.corpora.images import disks

BYTES = "application/offset+octet-stream"
MIB = 1 << 20


def encoded(**fields: str) -> str:
    """Upload-Metadata of these fields."""
    return ",".join(f"{key} {base64.b64encode(value.encode()).decode()}" for key, value in fields.items())


def checksum(algorithm: str, content: bytes) -> str:
    """Upload-Checksum of these bytes."""
    return f"{algorithm} {base64.b64encode(hashlib.new(algorithm, content).digest()).decode()}"


def part_of(service: Service, path: str) -> Path:
    """The staged file of an upload."""
    folder: Path = service.settings.blob_folder
    return folder / "staging" / f"{path.rpartition('/')[2]}.part"


DESCRIBED = encoded(filename="disk.img", os_type="Debian")


class Tus:
    """Calls of one user; `headers` are added to what tus needs, or replace it; None leaves a header out."""

    def __init__(self, service: Service, user_id: str, **options: Any) -> None:
        self.service = service
        self.user_id = user_id
        self.headers = {**service.as_user(user_id, **options), "tus-resumable": "1.0.0"}

    async def create(
        self, length: int | None, metadata: str | None = DESCRIBED, content: bytes = b"", **headers: str | None
    ) -> httpx.Response:
        told = {"upload-length": None if length is None else str(length), "upload-metadata": metadata}
        if content:
            told["content-type"] = BYTES
        return await self.service.http.post("/api/v1/uploads", headers=self._with(told, headers), content=content)

    async def begin(self, length: int, metadata: str = DESCRIBED) -> str:
        """Create an upload; gives its path."""
        answer = await self.create(length, metadata)
        assert answer.status_code == 201, answer.text
        return answer.headers["location"]

    async def patch(self, path: str, offset: int, content: Any, **headers: str | None) -> httpx.Response:
        told = {"upload-offset": str(offset), "content-type": BYTES}
        return await self.service.http.patch(path, headers=self._with(told, headers), content=content)

    async def head(self, path: str, **headers: str | None) -> httpx.Response:
        return await self.service.http.head(path, headers=self._with({}, headers))

    async def delete(self, path: str, **headers: str | None) -> httpx.Response:
        return await self.service.http.delete(path, headers=self._with({}, headers))

    async def offset(self, path: str) -> int:
        answer = await self.head(path)
        assert answer.status_code == 200, answer
        return int(answer.headers["upload-offset"])

    async def image(self, path: str) -> dict[str, Any]:
        answer = await self.service.http.get(path.replace("/uploads/", "/images/"), headers=self.headers)
        assert answer.status_code == 200, answer.text
        found: dict[str, Any] = answer.json()
        return found

    async def is_now(self, path: str, status: str) -> bool:
        return bool((await self.image(path))["status"] == status)

    async def upload(self, content: bytes | None = None, metadata: str = DESCRIBED) -> str:
        """Bring a whole file in one request."""
        content = disks.raw_disk() if content is None else content
        path = await self.begin(len(content), metadata)
        answer = await self.patch(path, 0, content)
        assert answer.status_code == 204, answer.text
        return path

    def open(self, path: str, offset: int, **headers: str | None) -> "Connection":
        """A PATCH whose body comes as the test has it."""
        told = {"upload-offset": str(offset), "content-type": BYTES}
        return Connection(self.service, path, self._with(told, headers))

    def _with(self, told: dict[str, str | None], headers: dict[str, str | None]) -> dict[str, str]:
        given = {name.replace("_", "-"): value for name, value in headers.items()}
        return {name: value for name, value in {**self.headers, **told, **given}.items() if value is not None}


class Connection:
    """A PATCH spoken to the app as a server would: pieces arrive when `send` is called, `leave` is the client's end."""

    def __init__(self, service: Service, path: str, headers: dict[str, str]) -> None:
        self._incoming: asyncio.Queue[Message] = asyncio.Queue()
        self._outgoing: list[Message] = []
        scope = {
            "type": "http",
            "asgi": {"version": "3.0"},
            "http_version": "1.1",
            "method": "PATCH",
            "scheme": "http",
            "path": path,
            "raw_path": path.encode(),
            "query_string": b"",
            "root_path": "",
            "headers": [(name.lower().encode(), value.encode()) for name, value in headers.items()],
            "client": ("127.0.0.1", 1),
            "server": ("images", 80),
        }
        self.task = asyncio.create_task(service.app(scope, self._incoming.get, self._hear))

    def send(self, piece: bytes, *, more: bool = True) -> None:
        self._incoming.put_nowait({"type": "http.request", "body": piece, "more_body": more})

    def leave(self) -> None:
        self._incoming.put_nowait({"type": "http.disconnect"})

    async def status(self) -> int:
        """Wait for the answer."""
        await asyncio.wait_for(asyncio.shield(self.task), 10)
        return int(self._outgoing[0]["status"])

    @property
    def body(self) -> bytes:
        return b"".join(message.get("body", b"") for message in self._outgoing)

    async def _hear(self, message: Message) -> None:
        self._outgoing.append(message)
