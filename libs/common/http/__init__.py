"""Guarded outbound HTTP: the only way Telar calls a URL that a user, or a server they named, has chosen."""

from libs.common.http.address import AddressPolicy
from libs.common.http.client import GuardedClient
from libs.common.http.errors import (
    AddressRefused,
    BodyTooLarge,
    ExchangeFailed,
    OutboundError,
    Reason,
    RedirectRefused,
    UpstreamTooSlow,
    UrlRefused,
)
from libs.common.http.limits import Limits
from libs.common.http.resolver import Lookup
from libs.common.http.response import Response
from libs.common.http.url import OutboundUrl, parse

__all__ = [
    "AddressPolicy",
    "AddressRefused",
    "BodyTooLarge",
    "ExchangeFailed",
    "GuardedClient",
    "Limits",
    "Lookup",
    "OutboundError",
    "OutboundUrl",
    "Reason",
    "RedirectRefused",
    "Response",
    "UpstreamTooSlow",
    "UrlRefused",
    "parse",
]
