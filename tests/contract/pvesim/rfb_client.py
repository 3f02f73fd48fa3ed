"""A small RFB client over WebSocket (RFC 6143), which shares no code with the lab's server."""

import asyncio
import ssl
import struct
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import quote

from cryptography.hazmat.decrepit.ciphers.algorithms import TripleDES
from cryptography.hazmat.primitives.ciphers import Cipher
from cryptography.hazmat.primitives.ciphers.modes import ECB
from PIL import Image
from websockets.asyncio.client import ClientConnection, connect

from libs.pvesim.app import RunningLab
from tests.contract.pvesim.conftest import Client

RAW, DESKTOP_SIZE, QEMU_KEYS = 0, -223, -258
MIRRORED = bytes(sum(1 << (7 - bit) for bit in range(8) if byte >> bit & 1) for byte in range(256))


class Refused(Exception):
    """The server refused the password."""


def authorization(lab: RunningLab) -> dict[str, str]:
    return {"Authorization": f"PVEAPIToken={lab.token_id}={lab.token_secret.get_secret_value()}"}


def socket_url(lab: RunningLab, path: str, opened: dict[str, Any], *, port: int | None = None) -> str:
    """The WebSocket address of an opened proxy; `port` is that of the API to go through."""
    query = f"port={opened['port']}&vncticket={quote(opened['ticket'], safe='')}"
    return f"wss://127.0.0.1:{port or lab.port}/api2/json/{path}/vncwebsocket?{query}"


async def dial(lab: RunningLab, url: str, headers: dict[str, str] | None = None, **options: Any) -> ClientConnection:
    context = ssl.create_default_context(cafile=str(lab.ca_path))
    given = {"subprotocols": ["binary"], "compression": None, "max_size": 131072, "proxy": None, **options}
    return await connect(url, ssl=context, additional_headers=headers or authorization(lab), **given)


@dataclass
class Rectangle:
    x: int
    y: int
    width: int
    height: int
    encoding: int


@dataclass
class RfbClient:
    """One session: `size`, `name` and the picture in RGB; the pixel format is four bytes of which three count."""

    socket: ClientConnection
    password: str
    pending: bytearray = field(default_factory=bytearray)
    size: tuple[int, int] = (0, 0)
    name: str = ""
    format: bytes = b""
    picture: Image.Image = field(default_factory=lambda: Image.new("RGB", (1, 1)))
    colour_map: bytes = b""

    async def read(self, count: int) -> bytes:
        while len(self.pending) < count:
            message = await self.socket.recv()
            assert isinstance(message, bytes)
            self.pending += message
        taken = bytes(self.pending[:count])
        del self.pending[:count]
        return taken

    async def fields(self, layout: str) -> tuple[Any, ...]:
        return struct.unpack(layout, await self.read(struct.calcsize(layout)))

    async def shake_hands(self, version: bytes = b"RFB 003.008\n") -> "RfbClient":
        assert await self.read(12) == b"RFB 003.008\n"
        await self.socket.send(version)
        if version == b"RFB 003.003\n":
            assert await self.fields(">I") == (2,)
        else:
            (count,) = await self.fields(">B")
            assert await self.read(count) == b"\x02"
            await self.socket.send(b"\x02")
        key = self.password.encode().ljust(8, b"\0")[:8].translate(MIRRORED)
        cipher = Cipher(TripleDES(key * 3), ECB()).encryptor()  # noqa: S305  (the protocol's own cipher)
        await self.socket.send(cipher.update(await self.read(16)))
        (result,) = await self.fields(">I")
        if result:
            (length,) = await self.fields(">I")
            raise Refused((await self.read(length)).decode())
        await self.socket.send(b"\x01")
        width, height, self.format, length = await self.fields(">HH16sI")
        self.name = (await self.read(length)).decode()
        self._resize(width, height)
        return self

    def _resize(self, width: int, height: int) -> None:
        self.size = (width, height)
        self.picture = Image.new("RGB", self.size)

    async def set_encodings(self, *encodings: int) -> None:
        await self.socket.send(struct.pack(f">BxH{len(encodings)}i", 2, len(encodings), *encodings))

    async def set_format(self, *fields: int) -> None:
        self.format = struct.pack(">BBBBHHHBBB3x", *fields)
        await self.socket.send(b"\0\0\0\0" + self.format)

    async def ask(self, *, incremental: bool = False, area: tuple[int, int, int, int] | None = None) -> None:
        await self.socket.send(struct.pack(">BBHHHH", 3, incremental, *(area or (0, 0, *self.size))))

    async def key(self, keysym: int) -> None:
        for down in (1, 0):
            await self.socket.send(struct.pack(">BBxxI", 4, down, keysym))

    async def pointer(self, x: int, y: int, buttons: int = 0) -> None:
        await self.socket.send(struct.pack(">BBHH", 5, buttons, x, y))

    async def update(self) -> list[Rectangle]:
        """The next update, drawn into the picture; its rectangles."""
        async with asyncio.timeout(10):
            (kind,) = await self.fields(">B")
            if kind == 1:
                _, count = await self.fields(">xHH")
                self.colour_map = await self.read(6 * count)
                return await self.update()
            assert kind == 0
            (count,) = await self.fields(">xH")
            return [await self._rectangle() for _ in range(count)]

    async def _rectangle(self) -> Rectangle:
        found = Rectangle(*await self.fields(">HHHHi"))
        if found.encoding == DESKTOP_SIZE:
            self._resize(found.width, found.height)
        elif found.encoding == RAW:
            pixels = await self.read(found.width * found.height * self.format[0] // 8)
            self.picture.paste(self._decoded(found, pixels), (found.x, found.y))
        return found

    def _decoded(self, found: Rectangle, pixels: bytes) -> Image.Image:
        bits, _, big, true, *rest = struct.unpack(">BBBBHHHBBB3x", self.format)
        scales = list(zip(rest[:3], rest[3:], strict=True))
        size = bits // 8

        def colour(pixel: bytes) -> bytes:
            value = int.from_bytes(pixel, "big" if big else "little")
            if not true:
                return self.colour_map[6 * value : 6 * value + 6 : 2]
            return bytes((value >> shift & most) * 255 // most for most, shift in scales)

        each = [pixels[i : i + size] for i in range(0, len(pixels), size)]
        colours = {pixel: colour(pixel) for pixel in set(each)}
        return Image.frombytes("RGB", (found.width, found.height), b"".join(colours[pixel] for pixel in each))


@asynccontextmanager
async def viewer(lab: RunningLab, token: Client, path: str, **options: Any) -> AsyncIterator[RfbClient]:
    """A client at a machine's display, hands shaken."""
    opened = await token("post", f"{path}/vncproxy", websocket=1, **{"generate-password": 1})
    async with await dial(lab, socket_url(lab, path, opened), **options) as socket:
        yield await RfbClient(socket, opened["password"]).shake_hands()
