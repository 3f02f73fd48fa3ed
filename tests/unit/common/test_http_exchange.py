"""The response parser fed by hand, one cut at a time."""

from itertools import pairwise

from hypothesis import given
from hypothesis import strategies as st

from libs.common.http import Limits, Reason
from libs.common.http.exchange import Exchange

PLAIN = b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\nA: 1\r\nA: 2\r\n\r\nhello"
CHUNKED = (
    b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\nA: 1\r\nA: 2\r\n\r\n2\r\nhe\r\n3;x=y\r\nllo\r\n0\r\nT: x\r\n\r\n"
)


@given(st.sampled_from([PLAIN, CHUNKED]), st.lists(st.integers(1, 120), max_size=8))
def test_any_cut_of_an_answer_gives_the_same_head_and_body(answer: bytes, cuts: list[int]) -> None:
    exchange = Exchange(body_expected=True, limits=Limits())
    edges = sorted({0, *(cut for cut in cuts if cut < len(answer)), len(answer)})
    for start, end in pairwise(edges):
        exchange.feed(answer[start:end])
    assert exchange.error is None
    assert (exchange.complete, exchange.keep_alive, exchange.status) == (True, True, 200)
    assert exchange.headers["a"] == "1, 2"
    assert b"".join(exchange.buffer) == b"hello"


@given(st.binary(min_size=1, max_size=50), st.booleans())
def test_bytes_beyond_the_declared_length_spoil_the_answer_however_late(surplus: bytes, late: bool) -> None:
    exchange = Exchange(body_expected=True, limits=Limits())
    for piece in (PLAIN, surplus) if late else (PLAIN + b"X" + surplus,):
        exchange.feed(piece)
    assert exchange.error is not None
    assert getattr(exchange.error, "reason", None) is Reason.LENGTH_MISMATCH
    assert not exchange.keep_alive


def test_the_header_cap_is_exact() -> None:
    for cap, error in ((len(PLAIN) - 5, None), (len(PLAIN) - 6, Reason.HEADERS_TOO_LARGE)):
        exchange = Exchange(body_expected=True, limits=Limits(max_header_bytes=cap))
        exchange.feed(PLAIN)
        assert getattr(exchange.error, "reason", None) is error
