"""Rules of identity: quotas, scopes, key format, throttling of failures, the audit chain. Pure."""

import base64
import hashlib
import json
import secrets
import zlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network, ip_address, ip_network
from typing import Any

from pydantic import BaseModel, ConfigDict, Field

from libs.common.auth import Role
from libs.common.clock import rfc3339
from services.auth.errors import WeakPassword, WiderKey

AREAS = ("account", "images", "vms", "stacks", "fetch")
SCOPES = (*AREAS, "admin", "read", "*")
"""What an API key may be allowed; each area also as `<area>:read`, `read` reads all areas, `*` is all the user may."""

MIN_PASSWORD_LENGTH = 8
MAX_PASSWORD_BYTES = 1024
_BASE62 = "0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz"
_KEY_MARK = "tlr"

Network = IPv4Network | IPv6Network


class Quota(BaseModel):
    """A user's limits; -1 is unlimited."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    vms: int = Field(ge=-1)
    cores: int = Field(ge=-1)
    memory_mib: int = Field(ge=-1)
    disk_gib: int = Field(ge=-1)
    stacks: int = Field(ge=-1)
    image_bytes: int = Field(ge=-1)
    fetch_jobs: int = Field(ge=-1)


def name_key(name: str) -> str:
    """The form under which names and e-mails are compared: case does not tell users apart."""
    return name.strip().casefold()


def check_new_password(password: str) -> None:
    """Raise WeakPassword for one that is too short or too long to hash safely."""
    if len(password) < MIN_PASSWORD_LENGTH:
        raise WeakPassword(f"Use at least {MIN_PASSWORD_LENGTH} characters")
    if len(password.encode()) > MAX_PASSWORD_BYTES:
        raise WeakPassword(f"Use at most {MAX_PASSWORD_BYTES} bytes")
    if not password.strip():
        raise WeakPassword("Use more than blanks")


def session_scopes(role: Role) -> tuple[str, ...]:
    """What a person who logged in may do: all that the role may."""
    return ("*",) if role is Role.ADMIN else AREAS


def valid_scope(scope: str) -> bool:
    area, _, verb = scope.partition(":")
    return scope in SCOPES or (area in SCOPES[:6] and verb == "read")


# --- API keys --------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class NewKey:
    """A key as its owner sees it once, and what is stored of it."""

    text: str
    prefix: str
    digest: str


def new_api_key() -> NewKey:
    """Make `tlr_<prefix>_<secret><checksum>`: 8 characters to recognise it, 256 random bits, 6 of CRC-32."""
    prefix = "".join(secrets.choice(_BASE62) for _ in range(8))
    secret = _base62(secrets.randbits(256), 43)
    text = f"{_KEY_MARK}_{prefix}_{secret}{_checksum(prefix + secret)}"
    return NewKey(text=text, prefix=prefix, digest=key_digest(text))


def is_mistyped_key(text: str) -> bool:
    """Whether a text has our mark but not the right checksum; keys that an operator gave have neither."""
    mark, _, rest = text.partition("_")
    prefix, _, body = rest.partition("_")
    return mark == _KEY_MARK and _checksum(prefix + body[:-6]) != body[-6:]


def key_digest(text: str) -> str:
    """What is stored of a key or refresh token: both are random, so that a plain digest cannot be turned back."""
    return hashlib.sha256(text.encode()).hexdigest()


def new_refresh_token() -> str:
    return base64.urlsafe_b64encode(secrets.token_bytes(32)).decode().rstrip("=")


def _base62(number: int, width: int) -> str:
    digits = []
    for _ in range(width):
        number, digit = divmod(number, 62)
        digits.append(_BASE62[digit])
    return "".join(digits)


def _checksum(text: str) -> str:
    return _base62(zlib.crc32(text.encode()), 6)


def check_not_wider(
    *,
    scopes: Iterable[str],
    held: frozenset[str],
    expires_at: datetime | None,
    parent_expires_at: datetime | None,
    cidrs: Sequence[Network],
    parent_cidrs: Sequence[Network],
) -> None:
    """Raise WiderKey if a new key would allow more, longer or from more places than what makes it."""
    for scope in scopes:
        if not _covers(held, scope):
            raise WiderKey(f"You do not hold the scope {scope!r} yourself")
    if parent_expires_at is not None and (expires_at is None or expires_at > parent_expires_at):
        raise WiderKey(f"The key you use ends at {rfc3339(parent_expires_at)}; the new one must end by then")
    if parent_cidrs and not (cidrs and all(_within(cidr, parent_cidrs) for cidr in cidrs)):
        raise WiderKey("The key you use is bound to networks; bind the new one to the same or smaller ones")


def _covers(held: frozenset[str], scope: str) -> bool:
    area, _, verb = scope.partition(":")
    if scope == "read":
        return not held.isdisjoint({"*", "read"}) or held.issuperset(AREAS)
    return "*" in held or scope in held or (scope != "*" and area in held) or (verb == "read" and "read" in held)


def _within(network: Network, parents: Sequence[Network]) -> bool:
    return any(network.version == parent.version and network.subnet_of(parent) for parent in parents)  # type: ignore[arg-type]  # the versions are equal


def address_allowed(address: str, cidrs: Sequence[str]) -> bool:
    """Whether a key bound to `cidrs` may be used from the address; bound to none it may from anywhere."""
    if not cidrs:
        return True
    peer = _peer(address)
    return peer is not None and any(peer in ip_network(cidr) for cidr in cidrs)


def _peer(address: str) -> IPv4Address | IPv6Address | None:
    """The address itself: a dual-stack socket writes IPv4 peers as ::ffff:a.b.c.d. None if it is no address."""
    try:
        peer = ip_address(address)
    except ValueError:
        return None
    return (peer.ipv4_mapped or peer) if isinstance(peer, IPv6Address) else peer


# --- throttling of failed logins -------------------------------------------------------------------------------------


def network_of(address: str) -> str:
    """The network an address is counted under: /24 of IPv4, /64 of IPv6."""
    peer = _peer(address)
    if peer is None:
        return "unknown"
    bits = 24 if isinstance(peer, IPv4Address) else 64
    return str(ip_network((peer, bits), strict=False))


def lock_until(failures: int, *, allowed: int, now: datetime, first_s: int, longest_s: int) -> datetime | None:
    """When the next try may be made: free until `allowed` failures, then a wait that doubles with each."""
    if failures < allowed:
        return None
    wait_s = min(longest_s, first_s * 2 ** min(failures - allowed, 20))
    return now + timedelta(seconds=wait_s)


# --- the audit chain -------------------------------------------------------------------------------------------------

GENESIS = "0" * 64


def chain_hash(previous: str, entry: dict[str, Any]) -> str:
    """The hash of an audit entry: SHA-256 over the previous one's hash and the entry in canonical JSON."""
    canonical = json.dumps(entry, sort_keys=True, separators=(",", ":"), ensure_ascii=True)
    return hashlib.sha256(f"{previous}\n{canonical}".encode()).hexdigest()
