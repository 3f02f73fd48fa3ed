"""Which request targets may cross the gateway: those that every parser reads as the same path."""

import re
from urllib.parse import unquote_to_bytes

from starlette.types import Scope

from libs.common.errors import Malformed

# A path of these bytes only, in which no segment is empty or starts with a dot, needs no second look.
_PLAIN = b"/ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789._~!$&'()*+,=:@-"
_ALLOWED = re.compile(rb"/(?:[A-Za-z0-9._~!$&'()*+,;=:@/-]|%[0-9A-Fa-f]{2})*")
_QUERY = re.compile(rb"[!-~]*")
_ESCAPE = re.compile(rb"%[0-9A-Fa-f]{2}")
_FORBIDDEN = re.compile(rb"[/\\\x00-\x1f\x7f]")


class AmbiguousPath(Malformed):
    slug = "ambiguous-path"
    title = "The path can be read in more than one way"


def checked_target(scope: Scope) -> bytes:
    """The request target (path and query) to send upstream, byte for byte as it was authorised.

    Raises AmbiguousPath for empty, `.` and `..` segments, escaped slashes, backslashes and control characters, double
    escapes, escapes that are not UTF-8, and for anything that is not an origin-form target (RFC 9112, section 3.2.1).
    """
    path: bytes = scope["raw_path"]
    if path.translate(None, _PLAIN) or path[:1] != b"/" or b"//" in path or b"/." in path:
        _check_closely(path)
    query: bytes = scope["query_string"]
    if not query:
        return path
    if _QUERY.fullmatch(query) is None:
        raise AmbiguousPath("The query string holds characters that must be percent-encoded.")
    return path + b"?" + query


def _check_closely(path: bytes) -> None:
    if _ALLOWED.fullmatch(path) is None:
        raise AmbiguousPath("The path must start with a slash, and other characters must be percent-encoded as UTF-8.")
    if path == b"/":
        return
    segments = path[1:].split(b"/")
    for position, segment in enumerate(segments):
        name = unquote_to_bytes(segment)
        if not name and position < len(segments) - 1:
            raise AmbiguousPath("The path holds an empty segment (`//`).")
        if name.split(b";", 1)[0] in (b".", b".."):
            raise AmbiguousPath("The path holds a `.` or `..` segment.")
        if _FORBIDDEN.search(name):
            raise AmbiguousPath("The path holds an escaped slash, backslash or control character.")
        if _ESCAPE.search(name):
            raise AmbiguousPath("The path is percent-encoded twice.")
        try:
            name.decode()
        except UnicodeDecodeError:
            raise AmbiguousPath("The path's escapes are not UTF-8.") from None
