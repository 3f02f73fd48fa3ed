"""What can go wrong between Telar and a URL that somebody else chose, each with a reason code for reports."""

from enum import StrEnum
from typing import ClassVar

from libs.common.errors import Kind, TelarError, UpstreamFailed


class Reason(StrEnum):
    """One word per cause; the fetcher stores it with a picture and metrics count by it."""

    URL_MALFORMED = "url-malformed"
    URL_SCHEME = "url-scheme"
    URL_CREDENTIALS = "url-credentials"
    URL_CHARACTERS = "url-characters"
    URL_HOST = "url-host"
    URL_PORT = "url-port"
    URL_TOO_LONG = "url-too-long"

    ADDRESS_UNSPECIFIED = "address-unspecified"
    ADDRESS_LOOPBACK = "address-loopback"
    ADDRESS_PRIVATE = "address-private"
    ADDRESS_SHARED = "address-shared"
    ADDRESS_LINK_LOCAL = "address-link-local"
    ADDRESS_SITE_LOCAL = "address-site-local"
    ADDRESS_METADATA = "address-metadata"
    ADDRESS_MULTICAST = "address-multicast"
    ADDRESS_BROADCAST = "address-broadcast"
    ADDRESS_BENCHMARKING = "address-benchmarking"
    ADDRESS_DOCUMENTATION = "address-documentation"
    ADDRESS_RESERVED = "address-reserved"

    REDIRECT_LIMIT = "redirect-limit"
    REDIRECT_DOWNGRADE = "redirect-downgrade"

    CONNECT_TIMEOUT = "connect-timeout"
    RESPONSE_TIMEOUT = "response-timeout"
    DEADLINE = "deadline"
    RATE_TOO_LOW = "rate-too-low"

    BODY_TOO_LARGE = "body-too-large"
    DECODED_TOO_LARGE = "decoded-too-large"

    NAME_NOT_RESOLVED = "name-not-resolved"
    CONNECT_FAILED = "connect-failed"
    TLS_FAILED = "tls-failed"
    TLS_CERTIFICATE = "tls-certificate"
    CONNECTION_LOST = "connection-lost"
    PROTOCOL_ERROR = "protocol-error"
    HEADERS_TOO_LARGE = "headers-too-large"
    LENGTH_MISMATCH = "length-mismatch"
    BODY_TRUNCATED = "body-truncated"
    ENCODING_REFUSED = "encoding-refused"
    ENCODING_INVALID = "encoding-invalid"


class OutboundError(TelarError):
    """A guarded call that was refused or failed; `detail` names neither addresses nor redirect targets."""

    def __init__(self, reason: Reason, detail: str) -> None:
        super().__init__(detail)
        self.reason = reason


class UrlRefused(OutboundError):
    kind: ClassVar[Kind] = Kind.INVALID
    slug: ClassVar[str] = "url-refused"
    title: ClassVar[str] = "This URL cannot be used"


class AddressRefused(OutboundError):
    kind: ClassVar[Kind] = Kind.INVALID
    slug: ClassVar[str] = "address-refused"
    title: ClassVar[str] = "This URL leads to an address that is not on the public internet"


class RedirectRefused(OutboundError):
    kind: ClassVar[Kind] = Kind.UPSTREAM_FAILED
    slug: ClassVar[str] = "redirect-refused"
    title: ClassVar[str] = "The server redirected in a way that is not followed"


class UpstreamTooSlow(OutboundError):
    kind: ClassVar[Kind] = Kind.UPSTREAM_TIMEOUT
    slug: ClassVar[str] = "upstream-too-slow"
    title: ClassVar[str] = "The server was too slow"


class BodyTooLarge(OutboundError):
    kind: ClassVar[Kind] = Kind.TOO_LARGE
    slug: ClassVar[str] = "body-too-large"
    title: ClassVar[str] = "The server's answer is larger than allowed"


class ExchangeFailed(OutboundError, UpstreamFailed):
    """The server could not be reached or did not speak HTTP properly."""
