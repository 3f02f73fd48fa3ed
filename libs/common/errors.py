"""Expected failures: each has a kind, a stable slug and words for the person who meets it.

An error never knows an HTTP status; `libs.common.problems` maps kinds to status codes in one table (RFC 9457).
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Any, ClassVar


class Kind(StrEnum):
    """What sort of failure it is; the one table in `problems` gives each its status code."""

    MALFORMED = "malformed"
    UNAUTHENTICATED = "unauthenticated"
    FORBIDDEN = "forbidden"
    NOT_FOUND = "not_found"
    METHOD_NOT_ALLOWED = "method_not_allowed"
    CONFLICT = "conflict"
    GONE = "gone"
    PRECONDITION_FAILED = "precondition_failed"
    TOO_LARGE = "too_large"
    UNSUPPORTED_MEDIA = "unsupported_media"
    RANGE_NOT_SATISFIABLE = "range_not_satisfiable"
    INVALID = "invalid"
    LOCKED = "locked"
    THROTTLED = "throttled"
    CHECKSUM_MISMATCH = "checksum_mismatch"
    INTERNAL = "internal"
    UPSTREAM_FAILED = "upstream_failed"
    UNAVAILABLE = "unavailable"
    UPSTREAM_TIMEOUT = "upstream_timeout"
    STORAGE_FULL = "storage_full"


@dataclass(frozen=True, slots=True)
class FieldError:
    """One wrong field of a payload: `pointer` is a JSON pointer (RFC 6901) into it."""

    pointer: str
    detail: str


class TelarError(Exception):
    """An expected failure. Subclasses set `kind`, `slug` and `title`; `detail` tells this one case and what to do next.

    `retry_after_s` becomes a `Retry-After` header. `errors` names the wrong fields of a payload. `extensions` are more
    members of the problem document, as JSON (RFC 9457, 3.2).
    """

    kind: ClassVar[Kind] = Kind.INTERNAL
    slug: ClassVar[str] = "internal"
    title: ClassVar[str] = "Something went wrong on our side"

    def __init__(
        self,
        detail: str = "",
        *,
        retry_after_s: float | None = None,
        errors: Sequence[FieldError] = (),
        extensions: Mapping[str, Any] | None = None,
    ) -> None:
        super().__init__(detail or self.title)
        self.detail = detail or self.title
        self.retry_after_s = retry_after_s
        self.errors = tuple(errors)
        self.extensions = dict(extensions or {})


class Malformed(TelarError):
    kind = Kind.MALFORMED
    slug = "malformed-request"
    title = "The request cannot be read"


class Unauthenticated(TelarError):
    kind = Kind.UNAUTHENTICATED
    slug = "unauthenticated"
    title = "No valid credentials"


class Forbidden(TelarError):
    kind = Kind.FORBIDDEN
    slug = "forbidden"
    title = "Not allowed"


class NotFound(TelarError):
    kind = Kind.NOT_FOUND
    slug = "not-found"
    title = "No such resource"


class Conflict(TelarError):
    kind = Kind.CONFLICT
    slug = "conflict"
    title = "The request conflicts with the current state"


class PreconditionFailed(TelarError):
    kind = Kind.PRECONDITION_FAILED
    slug = "precondition-failed"
    title = "The resource has changed"


class TooLarge(TelarError):
    kind = Kind.TOO_LARGE
    slug = "too-large"
    title = "The content is too large"


class UnsupportedMedia(TelarError):
    kind = Kind.UNSUPPORTED_MEDIA
    slug = "unsupported-media-type"
    title = "This media type is not supported"


class Invalid(TelarError):
    kind = Kind.INVALID
    slug = "invalid"
    title = "The request's content is not valid"


class Throttled(TelarError):
    kind = Kind.THROTTLED
    slug = "too-many-requests"
    title = "Too many requests"


class UpstreamFailed(TelarError):
    kind = Kind.UPSTREAM_FAILED
    slug = "upstream-failed"
    title = "A system behind Telar failed"


class Unavailable(TelarError):
    kind = Kind.UNAVAILABLE
    slug = "unavailable"
    title = "Temporarily unavailable"


class UpstreamTimeout(TelarError):
    kind = Kind.UPSTREAM_TIMEOUT
    slug = "upstream-timeout"
    title = "A system behind Telar did not answer in time"


class StorageFull(TelarError):
    kind = Kind.STORAGE_FULL
    slug = "storage-full"
    title = "No storage space is left"


class QuotaExceeded(Conflict):
    slug = "quota-exceeded"
    title = "A quota would be exceeded"
