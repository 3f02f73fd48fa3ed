"""An RFB 3.8 server as QEMU's: VNC authentication, raw pixels, keys and pointer (RFC 6143)."""

import asyncio
import hmac
import secrets
import struct
from collections.abc import Callable
from typing import Protocol

from cryptography.hazmat.decrepit.ciphers.algorithms import TripleDES
from cryptography.hazmat.primitives.ciphers import Cipher
from cryptography.hazmat.primitives.ciphers.modes import ECB
from PIL import Image, ImageChops

from libs.pvesim.console.display import Display, key_label
from libs.pvesim.console.picture import PALETTE
from libs.pvesim.console.pixels import COLOUR_MAP, FORMAT_BYTES, PixelFormat, colour_map_entries
from libs.pvesim.console.websocket import Dropped

_VERSIONS = {b"RFB 003.003\n": 3, b"RFB 003.007\n": 7, b"RFB 003.008\n": 8}
_VNC_AUTH = 2
_CHALLENGE_BYTES = 16
_PASSWORD_BYTES = 8
_RAW, _DESKTOP_SIZE, _EXTENDED_KEYS = 0, -223, -258
_CUT_TEXT_LIMIT = 1 << 20
_NOT_SENT = 255
Box = tuple[int, int, int, int]


class Stream(Protocol):
    """A byte stream; both calls raise `Dropped` when the other end is gone."""

    async def readexactly(self, count: int) -> bytes: ...

    async def write(self, data: bytes) -> None: ...


def vnc_response(challenge: bytes, password: str) -> bytes:
    """DES of the challenge; VNC uses the password's first 8 bytes with the bits of each byte mirrored."""
    padded = password.encode("latin-1")[:_PASSWORD_BYTES].ljust(_PASSWORD_BYTES, b"\0")
    key = bytes(int(f"{byte:08b}"[::-1], 2) for byte in padded)
    # Single DES is triple DES with one key thrice.
    encryptor = Cipher(TripleDES(key * 3), ECB()).encryptor()  # noqa: S305  (the protocol's own cipher)
    return encryptor.update(challenge) + encryptor.finalize()


class RfbSession:
    """One client at one display. `still_valid` says whether the password may be used at this moment."""

    def __init__(self, stream: Stream, display: Display, password: str, still_valid: Callable[[], bool]) -> None:
        self._stream = stream
        self._display = display
        self._password = password
        self._still_valid = still_valid
        self._format = PixelFormat()
        self._size = display.frame().size
        self._encodings: frozenset[int] = frozenset()
        self._asked: tuple[bool, Box] | None = None
        self._sent: Image.Image | None = None
        self._wake = asyncio.Event()
        self._writing = asyncio.Lock()

    async def run(self) -> None:
        """Serve until the client leaves or the display ends; raises `Dropped` on any breach."""
        await self._shake_hands()
        self._display.listeners.add(self._wake.set)
        jobs = {asyncio.ensure_future(job) for job in (self._listen(), self._update(), self._display.ended.wait())}
        try:
            done, _ = await asyncio.wait(jobs, return_when=asyncio.FIRST_COMPLETED)
            for job in done:
                job.result()
        finally:
            self._display.listeners.discard(self._wake.set)
            for job in jobs:
                job.cancel()
            await asyncio.gather(*jobs, return_exceptions=True)

    async def _shake_hands(self) -> None:
        await self._stream.write(b"RFB 003.008\n")
        minor = _VERSIONS.get(await self._stream.readexactly(12))
        if minor is None:
            raise Dropped("unknown protocol version")
        await self._authenticate(minor)
        await self._stream.readexactly(1)  # ClientInit: everybody shares
        name = self._display.name.encode()
        head = struct.pack(">HH", *self._size) + self._format.pack() + struct.pack(">I", len(name))
        await self._stream.write(head + name)

    async def _authenticate(self, minor: int) -> None:
        if minor == 3:  # noqa: PLR2004  (the version without a choice)
            await self._stream.write(struct.pack(">I", _VNC_AUTH))
        else:
            await self._stream.write(bytes((1, _VNC_AUTH)))
            if (await self._stream.readexactly(1))[0] != _VNC_AUTH:
                raise Dropped("unknown security type")
        challenge = secrets.token_bytes(_CHALLENGE_BYTES)
        await self._stream.write(challenge)
        response = await self._stream.readexactly(_CHALLENGE_BYTES)
        if hmac.compare_digest(response, vnc_response(challenge, self._password)) and self._still_valid():
            await self._stream.write(struct.pack(">I", 0))
            return
        reason = b"Authentication failed"
        said = struct.pack(">I", len(reason)) + reason if minor == 8 else b""  # noqa: PLR2004  (3.8 gives reasons)
        await self._stream.write(struct.pack(">I", 1) + said)
        raise Dropped("authentication failed")

    async def _listen(self) -> None:
        while True:
            kind = (await self._stream.readexactly(1))[0]
            handler = {0: self._set_format, 2: self._set_encodings, 3: self._ask, 4: self._key, 5: self._pointer,
                       6: self._cut_text, 255: self._qemu}.get(kind)  # fmt: skip
            if handler is None:
                raise Dropped(f"unknown message {kind}")
            await handler()

    async def _fields(self, layout: str) -> tuple[int, ...]:
        return struct.unpack(layout, await self._stream.readexactly(struct.calcsize(layout)))

    async def _set_format(self) -> None:
        data = await self._stream.readexactly(3 + FORMAT_BYTES)
        try:
            self._format = PixelFormat.unpack(data[3:])
        except ValueError as wrong:
            raise Dropped(str(wrong)) from wrong
        if self._format is COLOUR_MAP:
            await self._write(colour_map_entries())

    async def _set_encodings(self) -> None:
        (count,) = await self._fields(">xH")
        self._encodings = frozenset(await self._fields(f">{count}i"))
        if _EXTENDED_KEYS in self._encodings:
            await self._write(_update_of((0, 0, *self._size), _EXTENDED_KEYS))

    async def _ask(self) -> None:
        incremental, x, y, width, height = await self._fields(">BHHHH")
        area = (x, y, x + width, y + height)
        if self._asked is not None:
            before, old = self._asked
            incremental = incremental and before
            area = (min(old[0], area[0]), min(old[1], area[1]), max(old[2], area[2]), max(old[3], area[3]))
        self._asked = (bool(incremental), area)
        self._wake.set()

    async def _key(self) -> None:
        down, keysym = await self._fields(">BxxI")
        if down:
            self._display.press(key_label(keysym))

    async def _pointer(self) -> None:
        buttons, x, y = await self._fields(">BHH")
        self._display.point(x, y, buttons)

    async def _cut_text(self) -> None:
        (length,) = await self._fields(">xxxi")
        if abs(length) > _CUT_TEXT_LIMIT:
            raise Dropped("cut text too long")
        await self._stream.readexactly(abs(length))

    async def _qemu(self) -> None:
        """QEMU's extended key event: keysym and scancode together."""
        (kind,) = await self._fields(">B")
        if kind != 0:
            raise Dropped(f"unknown QEMU message {kind}")
        down, keysym, scancode = await self._fields(">HII")
        if down:
            self._display.press(key_label(keysym) if keysym else f"scancode 0x{scancode:x}")

    async def _write(self, data: bytes) -> None:
        async with self._writing:
            await self._stream.write(data)

    async def _update(self) -> None:
        """Answer requests: whole areas at once, incremental ones as soon as something differs."""
        while True:
            await self._wake.wait()
            self._wake.clear()
            if self._asked is None:
                continue
            frame = self._display.frame()
            if frame.size != self._size and _DESKTOP_SIZE in self._encodings:
                self._size, self._sent, self._asked = frame.size, None, None
                await self._write(_update_of((0, 0, *self._size), _DESKTOP_SIZE))
                continue
            frame = _fitted(frame, self._size)
            incremental, area = self._asked
            box = _meet(area, (0, 0, *self._size))
            if incremental and box is not None and self._sent is not None:
                differing = ImageChops.difference(frame, self._sent).getbbox()
                box = None if differing is None else _meet(box, differing)
            if box is None:
                continue
            self._asked = None
            self._remember(frame, box)
            pixels = self._format.encode(frame.crop(box).tobytes(), PALETTE)
            await self._write(_update_of((box[0], box[1], box[2] - box[0], box[3] - box[1]), _RAW) + pixels)

    def _remember(self, frame: Image.Image, box: Box) -> None:
        if self._sent is None:
            self._sent = Image.new("L", self._size, _NOT_SENT)
        self._sent.paste(frame.crop(box), box)


def _update_of(rectangle: Box, encoding: int) -> bytes:
    """The head of an update of one rectangle (x, y, width, height)."""
    return struct.pack(">BxHHHHHi", 0, 1, *rectangle, encoding)


def _meet(one: Box, other: Box) -> Box | None:
    box = (max(one[0], other[0]), max(one[1], other[1]), min(one[2], other[2]), min(one[3], other[3]))
    return box if box[0] < box[2] and box[1] < box[3] else None


def _fitted(frame: Image.Image, size: tuple[int, int]) -> Image.Image:
    """Cut or pad the picture for a client that cannot change its size."""
    return frame if frame.size == size else frame.crop((0, 0, *size))
