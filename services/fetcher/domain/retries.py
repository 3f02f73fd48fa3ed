"""Which failures are worth another attempt, and when."""

import random
from collections.abc import Callable
from enum import StrEnum

_TRANSIENT = frozenset(
    {"connect-timeout", "response-timeout", "deadline", "rate-too-low", "name-not-resolved", "connect-failed"}
    | {"tls-failed", "connection-lost", "protocol-error", "length-mismatch", "body-truncated"}
    | {"http-408", "http-425", "http-429", "http-500", "http-502", "http-503", "http-504"}
    | {"decoder-crashed", "storage-failed", "robots-unreachable", "range-refused"}
)
THROTTLED = frozenset({"http-429", "http-503"})
"""The server asks its visitors to slow down."""
UNREACHABLE = frozenset({"connect-timeout", "response-timeout", "name-not-resolved", "connect-failed", "tls-failed"})
"""Nothing answers there; after some of these in a row it is the domain that is at fault, not the picture."""


class ErrorClass(StrEnum):
    """Reasons in groups that are dealt with alike."""

    NETWORK = "network"
    """Nothing answered, or the answer broke off."""
    THROTTLED = "throttled"
    SERVER = "server"
    """5xx."""
    CLIENT = "client"
    """4xx and other statuses: the link is dead, or not for us."""
    REFUSED = "refused"
    """Not asked for: the URL, its address, a redirect or robots.txt forbids it."""
    CONTENT = "content"
    """What came is no picture that is accepted."""
    STORAGE = "storage"
    INTERNAL = "internal"


_CLASSES = {
    ErrorClass.NETWORK: UNREACHABLE
    | {"deadline", "rate-too-low", "connection-lost", "protocol-error", "length-mismatch", "body-truncated"}
    | {"domain-dead", "tls-certificate", "headers-too-large", "encoding-refused", "encoding-invalid"}
    | {"robots-unreachable", "range-refused"},
    ErrorClass.THROTTLED: THROTTLED,
    ErrorClass.CONTENT: {"not-a-picture", "picture-damaged", "pixels-too-many", "frames-too-many", "body-too-large"}
    | {"decoded-too-large", "decode-timeout", "decoder-crashed", "processing-too-large", "processing-failed"},
    ErrorClass.STORAGE: {"storage-full", "storage-failed"},
    ErrorClass.REFUSED: {"redirect-limit", "redirect-downgrade", "robots-refused"},
}
_BY_REASON = {reason: known for known, reasons in _CLASSES.items() for reason in reasons}
DEAD = frozenset({"http-404", "http-410", "name-not-resolved", "connect-failed", "domain-dead", "tls-certificate"})
"""The link leads nowhere."""


def class_of(reason: str) -> ErrorClass:
    """The group that a reason belongs to."""
    known = _BY_REASON.get(reason)
    if known is not None:
        return known
    if reason.startswith("http-"):
        return ErrorClass.SERVER if reason.startswith("http-5") else ErrorClass.CLIENT
    return ErrorClass.REFUSED if reason.startswith(("url-", "address-")) else ErrorClass.INTERNAL


def is_transient(reason: str) -> bool:
    """Whether the same download may succeed later; refusals, other statuses and bad pictures stay what they are."""
    return reason in _TRANSIENT


def delay_s(
    reason: str,
    attempt: int,
    *,
    base_s: float,
    cap_s: float,
    retry_after_s: float | None = None,
    draw: Callable[[], float] = random.random,
) -> float:
    """Seconds until the next try after the `attempt`-th (from 1): exponential with full jitter over its upper half.

    A server that asks for patience (429, 503) gets four times the base, and at least its Retry-After up to the cap.
    """
    base = base_s * 4 if reason in THROTTLED else base_s
    longest = min(cap_s, base * 2.0 ** (attempt - 1))
    wait_s = longest / 2 + longest / 2 * draw()
    return min(cap_s, max(wait_s, retry_after_s or 0.0))
