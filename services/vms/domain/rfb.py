"""The handshakes of the Remote Framebuffer protocol (RFC 6143) as talks without I/O; pure.

A console's two sides log in apart: Telar answers the display's password challenge itself and asks the viewer for
nothing, because the ticket has spoken for it. So no password of the cluster ever reaches a browser.
"""

import struct
from collections.abc import Awaitable, Callable, Generator
from typing import TypeVar

from cryptography.hazmat.decrepit.ciphers.algorithms import TripleDES
from cryptography.hazmat.primitives.ciphers import Cipher
from cryptography.hazmat.primitives.ciphers.modes import ECB

from services.vms.errors import DisplayRefused, ViewerUnfit

T = TypeVar("T")
Talk = Generator[int | bytes, bytes, T]
"""One side of a conversation: yields bytes to send, or how many to wait for, which it is then given."""
VERSION = b"RFB 003.008\n"
_OLDER = {b"RFB 003.003\n": 3, b"RFB 003.007\n": 7, VERSION: 8}
_NO_AUTHENTICATION, _VNC_AUTHENTICATION = 1, 2
_PASSWORD_LENGTH = 8
_LONGEST_REASON = 1024
_MIRRORED = bytes(int(f"{byte:08b}"[::-1], 2) for byte in range(256))


def log_in(password: str) -> Talk[None]:
    """Log in to a display as its client, section 7.1 of the RFC; raises DisplayRefused."""
    version = yield len(VERSION)
    if version[:4] != b"RFB " or version < VERSION:
        raise DisplayRefused("The display speaks another protocol", reason=repr(version))
    yield VERSION
    (count,) = yield 1
    offered = (yield count) if count else b""
    if not offered:
        raise DisplayRefused("The display refuses every client", reason=(yield from _reason()))
    if _VNC_AUTHENTICATION in offered:
        yield bytes((_VNC_AUTHENTICATION,))
        challenge = yield 16
        yield response(challenge, password)
    elif _NO_AUTHENTICATION in offered:
        yield bytes((_NO_AUTHENTICATION,))
    else:
        raise DisplayRefused("The display wants a log-in that Telar does not know", reason=offered.hex())
    if (yield 4) != bytes(4):
        raise DisplayRefused("The display refused the password it had just given", reason=(yield from _reason()))


def welcome() -> Talk[None]:
    """Let a viewer in without a password, as a display does; raises ViewerUnfit.

    What follows is its ClientInit, which is the display's to answer.
    """
    yield VERSION
    minor = _OLDER.get((yield len(VERSION)))
    if minor is None:
        raise ViewerUnfit("The viewer does not speak RFB 3.3, 3.7 or 3.8")
    if minor == 3:  # noqa: PLR2004 - the oldest version, in which the server decides
        yield struct.pack(">I", _NO_AUTHENTICATION)
        return
    yield bytes((1, _NO_AUTHENTICATION))
    if (yield 1) != bytes((_NO_AUTHENTICATION,)):
        raise ViewerUnfit("The viewer chose a log-in that was not offered")
    if minor == 8:  # noqa: PLR2004 - 3.7 goes on without a result
        yield bytes(4)


def response(challenge: bytes, password: str) -> bytes:
    """Answer a challenge: DES with the password's first eight bytes as key, the bits of each mirrored."""
    key = password.encode("latin-1", "replace")[:_PASSWORD_LENGTH].ljust(_PASSWORD_LENGTH, b"\0").translate(_MIRRORED)
    encryptor = Cipher(TripleDES(key * 3), ECB()).encryptor()  # noqa: S305 - the protocol's own cipher
    return encryptor.update(challenge) + encryptor.finalize()


def _reason() -> Talk[str]:
    (length,) = struct.unpack(">I", (yield 4))
    text = yield min(length, _LONGEST_REASON)
    return text.decode("latin-1")


async def hold(talk: Talk[T], read: Callable[[], Awaitable[bytes]], write: Callable[[bytes], Awaitable[None]]) -> bytes:
    """Carry a talk out over a stream of pieces; gives what was read beyond its end. EOFError when the stream ends."""
    pending = bytearray()
    given = b""
    try:
        wanted = next(talk)
        while True:
            if isinstance(wanted, bytes):
                await write(wanted)
                given = b""
            else:
                while len(pending) < wanted:
                    piece = await read()
                    if not piece:
                        raise EOFError("closed in the middle of the handshake")
                    pending += piece
                given = bytes(pending[:wanted])
                del pending[:wanted]
            wanted = talk.send(given)
    except StopIteration:
        return bytes(pending)
