"""Strict reading of URLs that users and redirects supply: what is dialled is what was checked. Pure."""

import re
import unicodedata
from contextlib import suppress
from dataclasses import dataclass
from functools import lru_cache
from ipaddress import AddressValueError, IPv4Address, IPv6Address
from urllib.parse import quote, urljoin

import idna

from libs.common.http.address import Address
from libs.common.http.errors import Reason, UrlRefused

MAX_URL_CHARACTERS = 8_192
DEFAULT_PORTS = {"http": 80, "https": 443}

# Ports of other protocols, which a crafted HTTP request could address (the Fetch standard's list, "bad ports").
# fmt: off
BLOCKED_PORTS = frozenset({
    1, 7, 9, 11, 13, 15, 17, 19, 20, 21, 22, 23, 25, 37, 42, 43, 53, 69, 77, 79, 87, 95, 101, 102, 103, 104,
    109, 110, 111, 113, 115, 117, 119, 123, 135, 137, 139, 143, 161, 179, 389, 427, 465, 512, 513, 514, 515,
    526, 530, 531, 532, 540, 548, 554, 556, 563, 587, 601, 636, 989, 990, 993, 995, 1719, 1720, 1723, 2049,
    3659, 4045, 4190, 5060, 5061, 6000, 6379, 6566, 6665, 6666, 6667, 6668, 6669, 6679, 6697, 10080, 11211,
})
# fmt: on

_FORBIDDEN = re.compile(r"[\x00-\x20\x7f\\]")
_INVISIBLE = frozenset({"Cc", "Cf", "Cs", "Co", "Cn", "Zs", "Zl", "Zp"})
_PARTS = re.compile(r"(?P<scheme>[A-Za-z][A-Za-z0-9+.-]*)://(?P<authority>[^/?#]*)(?P<target>[^#]*)(?:#.*)?\Z")
_AUTHORITY = re.compile(r"(?P<host>\[[^\[\]@]*\]|[^:\[\]@]+)(?::(?P<port>[0-9]{1,5}))?\Z", re.ASCII)
_ABSOLUTE = re.compile(r"[A-Za-z][A-Za-z0-9+.-]*:")
_LABEL = re.compile(r"[a-z0-9_](?:[a-z0-9_-]{0,61}[a-z0-9_])?\Z")
_LOOKS_NUMERIC = re.compile(r"(?:[0-9]+|0x[0-9a-f]*)\Z")
_TARGET_SAFE = "!#$%&'()*+,/:;=?@[]~"
_TARGET_PLAIN = re.compile(r"[A-Za-z0-9._!#$%&'()*+,/:;=?@\[\]~-]*\Z")


@dataclass(frozen=True, slots=True)
class OutboundUrl:
    """A URL taken apart; `host` is normalised (lower case, A-labels, dotted quad), `literal` the address it may be."""

    scheme: str
    host: str
    port: int
    target: str
    literal: Address | None

    @property
    def origin(self) -> tuple[str, str, int]:
        return (self.scheme, self.host, self.port)

    @property
    def authority(self) -> str:
        """The value of the Host header (RFC 9110, 7.2)."""
        host = f"[{self.host}]" if isinstance(self.literal, IPv6Address) else self.host
        return host if self.port == DEFAULT_PORTS[self.scheme] else f"{host}:{self.port}"

    def __str__(self) -> str:
        return f"{self.scheme}://{self.authority}{self.target}"


def parse(text: str) -> OutboundUrl:
    """Take a URL apart, or raise UrlRefused with the rule it breaks.

    Numeric hosts are read as the C resolver reads them (inet_aton: `127.1`, `0x7f000001`, octal); whatever the
    reading, the connection goes to the address returned here, so two readers can never disagree about it.
    """
    if len(text) > MAX_URL_CHARACTERS:
        raise UrlRefused(Reason.URL_TOO_LONG, f"The URL is longer than {MAX_URL_CHARACTERS} characters.")
    if _FORBIDDEN.search(text) or not (text.isascii() or _is_visible(text)):
        raise UrlRefused(
            Reason.URL_CHARACTERS,
            "The URL holds a space, a backslash or an invisible character; write it percent-encoded.",
        )
    parts = _PARTS.match(text)
    if parts is None:
        raise UrlRefused(Reason.URL_MALFORMED, "The URL must have the form https://host/path.")
    scheme = parts["scheme"].lower()
    if scheme not in DEFAULT_PORTS:
        raise UrlRefused(Reason.URL_SCHEME, "Only http and https URLs are fetched.")
    if "@" in unicodedata.normalize("NFKC", parts["authority"]):
        raise UrlRefused(Reason.URL_CREDENTIALS, "A URL must not hold a user name or password.")
    authority = _AUTHORITY.match(parts["authority"])
    if authority is None:
        raise _bad_authority(parts["authority"])
    host, literal = _host(authority["host"])
    return OutboundUrl(scheme, host, _port(scheme, authority["port"]), _target(parts["target"]), literal)


def follow(base: OutboundUrl, location: str) -> OutboundUrl:
    """The URL a Location header points to, read as strictly as a user's (RFC 9110, 10.2.2)."""
    if _FORBIDDEN.search(location):  # before urljoin, which drops tabs and newlines in silence
        raise UrlRefused(
            Reason.URL_CHARACTERS, "The redirect's target holds a space, a backslash or a control character."
        )
    if _ABSOLUTE.match(location):  # urljoin takes http:///x and http:x for relative references
        return parse(location)
    if location.startswith("//"):
        return parse(f"{base.scheme}:{location}")
    return parse(urljoin(str(base), location))


def _is_visible(text: str) -> bool:
    return not any(unicodedata.category(character) in _INVISIBLE for character in text)


def _bad_authority(authority: str) -> UrlRefused:
    if re.match(r"(?:\[[^\[\]]*\]|[^:\[\]]+):[^\[\]]*\Z", authority):
        return UrlRefused(Reason.URL_PORT, "The port must be a number from 1 to 65535.")
    return UrlRefused(Reason.URL_HOST, "The URL has no valid host.")


def _port(scheme: str, digits: str | None) -> int:
    if digits is None:
        return DEFAULT_PORTS[scheme]
    port = int(digits)
    if not 0 < port < 65536:  # noqa: PLR2004 - the largest port is 65535
        raise UrlRefused(Reason.URL_PORT, "The port must be a number from 1 to 65535.")
    if port in BLOCKED_PORTS:
        raise UrlRefused(Reason.URL_PORT, "This port belongs to another protocol than HTTP.")
    return port


def _target(text: str) -> str:
    """Path and query in ASCII; characters that a request line cannot carry are percent-encoded as UTF-8."""
    target = text if text.startswith("/") else f"/{text}"
    return target if _TARGET_PLAIN.match(target) else quote(target, safe=_TARGET_SAFE)


@lru_cache(maxsize=1024)
def _host(text: str) -> tuple[str, Address | None]:
    if text.startswith("["):
        try:
            address = IPv6Address(text[1:-1])
        except AddressValueError:
            address = None
        if address is None or address.scope_id is not None:
            raise UrlRefused(Reason.URL_HOST, "The IPv6 address in the URL is not valid (zone ids are not allowed).")
        return str(address), address
    host = _ascii_host(text)
    labels = host.split(".")
    if _LOOKS_NUMERIC.match(labels[-1]):
        quad = _inet_aton(labels)
        return str(quad), quad
    if len(host) > 253 or not all(_LABEL.match(label) for label in labels):  # noqa: PLR2004 - RFC 1035's limit
        raise UrlRefused(Reason.URL_HOST, "The host is not a valid DNS name.")
    return host, None


def _ascii_host(text: str) -> str:
    """Lower-case A-labels without the root dot; full-width digits and dots become ASCII (UTS 46)."""
    if text.isascii():
        host = text.lower()
    else:
        try:
            host = idna.encode(text, uts46=True, std3_rules=False).decode("ascii")
        except (idna.IDNAError, UnicodeError):
            raise UrlRefused(Reason.URL_HOST, "The host is not a valid internationalised name.") from None
    return host.removesuffix(".")


def _inet_aton(labels: list[str]) -> IPv4Address:
    """1 to 4 numbers in decimal, octal (0…) or hex (0x…), the last filling the remaining bytes (POSIX inet_addr)."""
    if len(labels) <= 4 and all(_LOOKS_NUMERIC.match(label) for label in labels):  # noqa: PLR2004 - an address has 4 bytes
        with suppress(ValueError):  # 08 and 09 are not octal
            *heads, tail = [_number(label) for label in labels]
            if max(heads, default=0) < 256 and tail < 256 ** (4 - len(heads)):  # noqa: PLR2004 - values of a byte
                return IPv4Address(sum(head << 8 * (3 - index) for index, head in enumerate(heads)) + tail)
    raise UrlRefused(Reason.URL_HOST, "The host looks like an IPv4 address but is not a valid one.")


def _number(label: str) -> int:
    if label.startswith("0x"):
        return int(label[2:] or "0", 16)
    if len(label) > 1 and label.startswith("0"):
        return int(label, 8)
    return int(label)
