import struct

import pytest

from services.vms.domain import rfb
from services.vms.errors import DisplayRefused, ViewerUnfit


class Script:
    """The other side of a talk: says these pieces one after the other, and keeps what it hears."""

    def __init__(self, *says: bytes) -> None:
        self._says = list(says)
        self.heard: list[bytes] = []

    async def read(self) -> bytes:
        return self._says.pop(0) if self._says else b""

    async def write(self, data: bytes) -> None:
        self.heard.append(data)

    async def hold(self, talk: rfb.Talk[None]) -> bytes:
        return await rfb.hold(talk, self.read, self.write)


def reason(text: bytes) -> bytes:
    return struct.pack(">I", len(text)) + text


async def test_a_display_gets_the_answer_to_its_challenge_whatever_pieces_it_comes_in() -> None:
    challenge = bytes(range(16))
    spoken = rfb.VERSION + b"\x02\x01\x02" + challenge + bytes(4) + b"more"
    for size in (1, 5, 100):
        display = Script(*(spoken[i : i + size] for i in range(0, len(spoken), size)))
        ahead = await display.hold(rfb.log_in("secret12"))
        assert b"more".startswith(ahead)
        assert display.heard == [rfb.VERSION, b"\x02", rfb.response(challenge, "secret12")]


def test_a_password_counts_with_its_first_eight_bytes_mirrored_as_the_key() -> None:
    challenge = bytes(16)
    assert rfb.response(challenge, "abcdefgh") == rfb.response(challenge, "abcdefgh and more")
    assert rfb.response(challenge, "abc") != rfb.response(challenge, "abd")
    # DES of zeros under the all-zero key, a published test vector (NBS Special Publication 500-20).
    assert rfb.response(bytes(8), "") == bytes.fromhex("8CA64DE9C1B123A7")


async def test_a_display_without_a_password_is_taken_as_it_is() -> None:
    display = Script(rfb.VERSION + b"\x01\x01" + bytes(4))
    assert await display.hold(rfb.log_in("x")) == b""
    assert display.heard == [rfb.VERSION, b"\x01"]


@pytest.mark.parametrize(
    ("spoken", "told"),
    [
        (b"HTTP/1.1 200 OK\r\n", "protocol"),
        (b"RFB 003.003\n", "protocol"),
        (rfb.VERSION + b"\0" + reason(b"too many"), "every client"),
        (rfb.VERSION + b"\x01\x13", "log-in"),
        (rfb.VERSION + b"\x01\x02" + bytes(16) + b"\0\0\0\x01" + reason(b"no"), "password"),
    ],
)
async def test_a_display_that_refuses_is_told_of(spoken: bytes, told: str) -> None:
    with pytest.raises(DisplayRefused, match=told):
        await Script(spoken).hold(rfb.log_in("x"))


async def test_a_stream_that_ends_in_the_middle_is_an_end_of_file() -> None:
    for spoken in (b"", b"RFB 003", rfb.VERSION + b"\x01"):
        with pytest.raises(EOFError):
            await Script(spoken).hold(rfb.log_in("x"))


@pytest.mark.parametrize(
    ("version", "says", "hears"),
    [
        (b"RFB 003.003\n", b"", [b"\0\0\0\x01"]),
        (b"RFB 003.007\n", b"\x01", [b"\x01\x01"]),
        (b"RFB 003.008\n", b"\x01", [b"\x01\x01", bytes(4)]),
    ],
)
async def test_a_viewer_is_asked_for_nothing_and_its_next_words_are_kept(
    version: bytes, says: bytes, hears: list[bytes]
) -> None:
    viewer = Script(version + says + b"\x01")
    assert await viewer.hold(rfb.welcome()) == b"\x01"
    assert viewer.heard == [rfb.VERSION, *hears]


@pytest.mark.parametrize("spoken", [b"RFB 004.000\n", b"GET / HTTP/1", rfb.VERSION + b"\x02"])
async def test_who_is_no_viewer_is_not_let_in(spoken: bytes) -> None:
    with pytest.raises(ViewerUnfit):
        await Script(spoken).hold(rfb.welcome())
