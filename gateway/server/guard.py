"""Which request heads are taken: those that RFC 9112 allows and that no two servers read differently."""

import json
import re
from functools import lru_cache
from http import HTTPStatus

from uvicorn.protocols.http.httptools_impl import STATUS_LINE

MAX_HEAD_BYTES = 32 * 1024
MAX_FIELDS = 128
MAX_NAME_BYTES = 128
_MAX_TARGET_BYTES = 8 * 1024
_METHODS = frozenset({"GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"})
_HOST = re.compile(rb"(?:[A-Za-z0-9._-]{1,255}|\[[0-9A-Fa-f:.]{2,45}\])(?::[0-9]{1,5})?")
_ABSOLUTE = re.compile(rb"(?i:https?)://([^/?#]*)(/.*)")

# The fields that decide where a request ends and for whom it is.
NOTED = frozenset({b"content-length", b"expect", b"host", b"transfer-encoding"})


class RefusedRequestError(Exception):
    """The request is not taken; `status` and `detail` are the answer, and the connection closes."""

    def __init__(self, detail: str, status: HTTPStatus = HTTPStatus.BAD_REQUEST) -> None:
        super().__init__(detail)
        self.status = status
        self.detail = detail

    def answer(self) -> bytes:
        """A whole HTTP/1.1 answer with a problem document (RFC 9457)."""
        body = json.dumps(
            {
                "type": "/problems/malformed-request",
                "title": "The request cannot be read",
                "status": self.status.value,
                "detail": self.detail,
            }
        ).encode()
        head = b"content-type: application/problem+json\r\ncache-control: no-store\r\nconnection: close\r\n"
        return STATUS_LINE[self.status.value] + head + b"content-length: %d\r\n\r\n%b" % (len(body), body)


def check_line(method: str, version: str) -> None:
    """Only HTTP/1.1 and 1.0, and only methods that some route may have."""
    if version not in ("1.1", "1.0"):
        raise RefusedRequestError("Only HTTP/1.1 and HTTP/1.0 are spoken here.", HTTPStatus.HTTP_VERSION_NOT_SUPPORTED)
    if method not in _METHODS:
        raise RefusedRequestError("This method is not served.", HTTPStatus.NOT_IMPLEMENTED)


def check_size(url: bytes, fields: list[tuple[bytes, bytes]]) -> None:
    size = len(url) + sum(len(name) + len(value) + 4 for name, value in fields)
    if size > MAX_HEAD_BYTES or len(fields) > MAX_FIELDS:
        raise RefusedRequestError("The request's head is too long.", HTTPStatus.REQUEST_HEADER_FIELDS_TOO_LARGE)


def check_noted(noted: list[tuple[bytes, bytes]], version: str) -> tuple[bytes, bool]:
    """The Host value and whether a body follows, from the fields named in NOTED; each may come once only."""
    if len(noted) == 1 and noted[0][0] == b"host":
        host, has_body = noted[0][1], False
    else:
        values: dict[bytes, bytes] = {}
        for name, value in noted:
            if name in values:
                raise RefusedRequestError(f"There is more than one {name.decode('ascii')} field.")
            values[name] = value
        coding = values.get(b"transfer-encoding")
        if coding is not None and (coding.lower() != b"chunked" or version != "1.1" or b"content-length" in values):
            raise RefusedRequestError("The body's framing is ambiguous.")
        if values.get(b"expect", b"100-continue").lower() != b"100-continue":
            raise RefusedRequestError("This expectation cannot be met.", HTTPStatus.EXPECTATION_FAILED)
        host = values.get(b"host", b"")
        has_body = coding is not None or values.get(b"content-length", b"0").strip(b"0") != b""
    if not _is_host(host) and (host or version == "1.1"):
        raise RefusedRequestError("The Host field is missing or malformed.")
    return host, has_body


@lru_cache(maxsize=1024)
def _is_host(value: bytes) -> bool:
    return _HOST.fullmatch(value) is not None


def origin_form(url: bytes, host: bytes) -> bytes:
    """The request target as path and query; an absolute one must name the same host as the Host field does."""
    if len(url) > _MAX_TARGET_BYTES:
        raise RefusedRequestError("The request target is too long.", HTTPStatus.REQUEST_URI_TOO_LONG)
    if b"#" not in url:
        if url[:1] == b"/":
            return url
        absolute = _ABSOLUTE.fullmatch(url)
        if absolute is not None and absolute[1].lower() == host.lower():
            return absolute[2]
    raise RefusedRequestError("The request target is malformed or does not match the Host field.")
