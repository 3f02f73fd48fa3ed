"""WebSocket as pveproxy's bridge speaks it: strict frames in, unfragmented binary frames out, no close handshake."""

import base64
import hashlib

from starlette.requests import Request

from libs.pvesim.errors import PveError
from libs.pvesim.tunnel import Tunnel

MAX_PAYLOAD = 131072
_GUID = "258EAFA5-E914-47DA-95CA-C5AB0DC85B11"
_VERSION = "13"
_FINAL, _RESERVED, _OPCODE, _MASKED = 0x80, 0x70, 0x0F, 0x80
_TEXT, _BINARY, _CLOSE, _PING, _PONG = 0x1, 0x2, 0x8, 0x9, 0xA
_LENGTH_16, _LENGTH_64 = 126, 127


class Dropped(Exception):
    """The client left, or sent what the bridge does not take."""


def wants_upgrade(request: Request) -> bool:
    return request.headers.get("upgrade", "").lower() == "websocket"


def check_handshake(request: Request) -> None:
    """Raise the 500 errors of an upgrade that cannot be (RFC 6455, 4.2.1)."""
    version = request.headers.get("sec-websocket-version", "")
    if version != _VERSION:
        raise PveError(f"unsupported websocket-version '{version}'")
    if "sec-websocket-key" not in request.headers:
        raise PveError("missing websocket-key")


def accept(request: Request, tunnel: Tunnel) -> "FrameStream":
    """Answer 101 and echo the sub-protocol header as it came; the connection then carries frames."""
    key = request.headers["sec-websocket-key"]
    digest = hashlib.sha1((key + _GUID).encode(), usedforsecurity=False).digest()
    headers = [
        (b"Upgrade", b"WebSocket"),
        (b"Connection", b"Upgrade"),
        (b"Sec-WebSocket-Accept", base64.b64encode(digest)),
    ]
    protocol = request.headers.get("sec-websocket-protocol")
    if protocol is not None:
        headers.append((b"Sec-WebSocket-Protocol", protocol.encode("latin-1")))
    tunnel.head(101, headers)
    return FrameStream(tunnel)


class FrameStream:
    """A byte stream inside frames. Reading raises `Dropped` once the client is gone; text counts as binary."""

    def __init__(self, tunnel: Tunnel) -> None:
        self._reader = tunnel.reader
        self._writer = tunnel.writer
        self._pending = bytearray()

    async def readexactly(self, count: int) -> bytes:
        while len(self._pending) < count:
            self._pending += await self._payload()
        taken = bytes(self._pending[:count])
        del self._pending[:count]
        return taken

    async def readline(self, limit: int) -> bytes:
        """Up to and including a line feed, at most `limit` bytes."""
        while b"\n" not in self._pending:
            if len(self._pending) > limit:
                raise Dropped("line too long")
            self._pending += await self._payload()
        return await self.readexactly(self._pending.index(b"\n") + 1)

    async def write(self, data: bytes) -> None:
        try:
            for start in range(0, len(data), MAX_PAYLOAD):
                self._writer.write(_frame(_BINARY, data[start : start + MAX_PAYLOAD]))
                await self._writer.drain()
        except ConnectionError as gone:
            raise Dropped("connection lost") from gone

    async def _payload(self) -> bytes:
        """The bytes of the next data frame; control frames are dealt with on the way."""
        while True:
            opcode, payload = await self._next_frame()
            if opcode in {_TEXT, _BINARY}:
                return payload
            if opcode == _PING:
                self._writer.write(_frame(_PONG, payload))
            elif opcode != _PONG:
                raise Dropped("closed" if opcode == _CLOSE else "fragmented or unknown frame")

    async def _next_frame(self) -> tuple[int, bytes]:
        try:
            first, second = await self._reader.readexactly(2)
            if not first & _FINAL or first & _RESERVED or not second & _MASKED:
                raise Dropped("fragmented, extended or unmasked frame")
            length = second & ~_MASKED
            if length >= _LENGTH_16:
                length = int.from_bytes(await self._reader.readexactly(2 if length == _LENGTH_16 else 8), "big")
            if length > MAX_PAYLOAD:
                raise Dropped("frame too large")
            mask = await self._reader.readexactly(4)
            return first & _OPCODE, _unmasked(await self._reader.readexactly(length), mask)
        except (EOFError, ConnectionError) as gone:
            raise Dropped("connection lost") from gone


def _unmasked(payload: bytes, mask: bytes) -> bytes:
    """XOR with the repeated mask, as one large number: byte by byte would hold the event loop up."""
    size = len(payload)
    stretched = (mask * (size // 4 + 1))[:size]
    return (int.from_bytes(payload, "big") ^ int.from_bytes(stretched, "big")).to_bytes(size, "big")


def _frame(opcode: int, payload: bytes) -> bytes:
    size = len(payload)
    if size < _LENGTH_16:
        head = bytes((_FINAL | opcode, size))
    elif size < 1 << 16:
        head = bytes((_FINAL | opcode, _LENGTH_16)) + size.to_bytes(2, "big")
    else:
        head = bytes((_FINAL | opcode, _LENGTH_64)) + size.to_bytes(8, "big")
    return head + payload
