"""Which header fields cross the gateway, and how a request's head is written for the upstream."""

from collections.abc import Iterable
from functools import lru_cache
from typing import NamedTuple

from starlette.types import Scope

Fields = list[tuple[bytes, bytes]]

# RFC 9110, section 7.6.1, and what older software treats alike. The relay frames the body itself.
_HOP_BY_HOP = frozenset(
    {
        b"connection",
        b"content-length",
        b"expect",
        b"http2-settings",
        b"keep-alive",
        b"proxy-authenticate",
        b"proxy-authentication-info",
        b"proxy-authorization",
        b"proxy-connection",
        b"te",
        b"trailer",
        b"transfer-encoding",
        b"upgrade",
    }
)
# Whatever some service, framework or proxy has ever taken as proof of who calls, from where, or for which path.
_CLAIMS = frozenset(
    {
        b"authorization",
        b"baggage",
        b"cf-connecting-ip",
        b"client-ip",
        b"forwarded",
        b"host",
        b"remote-user",
        b"traceparent",
        b"true-client-ip",
        b"via",
        b"x-api-key",
        b"x-cluster-client-ip",
        b"x-real-ip",
        b"x-request-id",
    }
)
_CLAIM_PREFIXES = (
    b"remote-",
    b"ssl-",
    b"x-auth",
    b"x-client-",
    b"x-forwarded",
    b"x-http-method",
    b"x-method-override",
    b"x-original-",
    b"x-owner",
    b"x-remote-",
    b"x-rewrite-",
    b"x-role",
    b"x-ssl-",
    b"x-telar-",
    b"x-user",
    b"x-webauth",
)
_WITH_BODY = frozenset({"POST", "PUT", "PATCH"})
_FRAMING = frozenset({b"content-length", b"transfer-encoding", b"expect"})
_WEBSOCKET_HANDSHAKE = b"sec-websocket-"
_ORDINARY_CONNECTION = (b"keep-alive", b"Keep-Alive", b"close", b"Close")
# The server writes its own Date; a second one would be an error, and a service's Server tells nobody anything.
_NOT_ANSWERED = _HOP_BY_HOP - {b"content-length", b"expect"} | {b"date", b"server"}


class RequestHead(NamedTuple):
    """A request's head as the upstream reads it but for the Host line that ends it, and what follows the head.

    `length_bytes` is the length of the body, None for a chunked one.
    """

    data: bytes
    length_bytes: int | None
    expects_continue: bool


@lru_cache(maxsize=1024)
def _line_start(name: bytes) -> bytes:
    """What to write before the value of a field, or nothing if the field must not cross.

    A name with an underscore never crosses: CGI-like servers read it as its twin with a hyphen.
    """
    if name in _HOP_BY_HOP or name in _CLAIMS or b"_" in name or name.startswith(_CLAIM_PREFIXES):
        return b""
    return name + b": "


@lru_cache(maxsize=1024)
def _is_answered(name: bytes) -> bool:
    return name not in _NOT_ANSWERED


def request_head(
    scope: Scope, target: bytes, *, authorization: bytes, request_id: bytes, traceparent: bytes, forwarded: bytes
) -> RequestHead:
    """Write the head; an empty `authorization` or `traceparent` is left out, `forwarded` holds whole lines."""
    method: str = scope["method"]
    out = [method.encode("ascii"), b" ", target, b" HTTP/1.1\r\n", forwarded]
    out += (b"x-request-id: ", request_id, b"\r\n")
    if authorization:
        out += (b"authorization: ", authorization, b"\r\n")
    if traceparent:
        out += (b"traceparent: ", traceparent, b"\r\n")
    length, expects = _add_client_lines(out, scope["headers"])
    if length is None:
        out.append(b"transfer-encoding: chunked\r\n")
    elif length or method in _WITH_BODY:
        out.append(b"content-length: %d\r\n" % length)
    if expects:
        out.append(b"expect: 100-continue\r\n")
    return RequestHead(b"".join(out), length, expects)


def _add_client_lines(out: list[bytes], fields: Fields) -> tuple[int | None, bool]:
    """Add the lines of the client that cross; its body's length and whether it waits for 100 (Continue)."""
    length: int | None = 0
    expects = False
    ours = len(out)
    for name, value in fields:
        start = _line_start(name)
        if start:
            out += (start, value, b"\r\n")
        elif name == b"content-length":
            length = int(value)
        elif name == b"transfer-encoding":
            length = None
        elif name == b"expect":
            expects = value.lower() == b"100-continue"
        elif name == b"connection" and value not in _ORDINARY_CONNECTION:
            # Rare: start again without the fields that it makes hop-by-hop.
            del out[ours:]
            nominated = _nominated(fields)
            kept = [field for field in fields if field[0] not in nominated or field[0] in _FRAMING]
            return _add_client_lines(out, [field for field in kept if field[0] != b"connection"])
    return length, expects and length != 0


def _nominated(fields: Fields) -> frozenset[bytes]:
    return frozenset(token for name, value in fields if name == b"connection" for token in _tokens(value))


def handshake_fields(scope: Scope) -> list[tuple[str, str]]:
    """The client's fields that cross in a WebSocket handshake; the library writes the handshake's own."""
    nominated = _nominated(scope["headers"])
    return [
        (name.decode("ascii"), value.decode("latin-1"))
        for name, value in scope["headers"]
        if _line_start(name) and name not in nominated and not name.startswith(_WEBSOCKET_HANDSHAKE)
    ]


def answer_fields(fields: Fields, *, status: int) -> tuple[Fields, bool]:
    """The fields of an answer that reach the client, in order, and whether its head says where its body ends."""
    kept: Fields = []
    nominated: set[bytes] = set()
    framed = False
    for name, value in fields:
        if _is_answered(name):
            if name == b"content-length":
                framed = True
                # uvicorn takes the length of a body that never comes for a promise, and fails (204, 304).
                if status in (204, 304):
                    continue
            kept.append((name, value))
        elif name == b"transfer-encoding":
            framed = value.lower() == b"chunked"
        elif name == b"connection" and value not in _ORDINARY_CONNECTION:
            nominated.update(_tokens(value))
    if nominated:
        kept = [field for field in kept if field[0] not in nominated or field[0] == b"content-length"]
    return kept, framed


def _tokens(value: bytes) -> Iterable[bytes]:
    return (token.strip().lower() for token in value.split(b","))
