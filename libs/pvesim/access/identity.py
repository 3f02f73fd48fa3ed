"""Tickets, CSRF tokens and the reading of credentials from a request."""

import base64
import hashlib
import hmac
import json
import re
from dataclasses import dataclass
from typing import TYPE_CHECKING
from urllib.parse import quote, unquote

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import padding, rsa
from starlette.requests import Request

from libs.pvesim.clock import LabClock
from libs.pvesim.errors import unauthorized

if TYPE_CHECKING:
    from libs.pvesim.access.accounts import Accounts

_CLOCK_SKEW_S = 300
_HEADER = re.compile(r"PVEAuthCookie=(.+)")
_TOKEN = re.compile(r"PVEAPIToken=([^!\s]+![^=\s]+)[= ](.+)")
_TICKET = re.compile(r"([^:]+):(.*):([0-9A-F]{8})::([A-Za-z0-9+/=]+)")
_HALF = "!tfa!"
_BAD = "Authentication failed!"


@dataclass(frozen=True, slots=True)
class Identity:
    """Who calls: `authid` is `user@realm`, or `user@realm!token`, and is empty for calls that need no login."""

    authid: str
    is_token: bool = False

    @property
    def user(self) -> str:
        return self.authid.split("!", 1)[0]


class TicketOffice:
    """Signs and checks tickets offline: nothing is stored, and a new login leaves older tickets valid."""

    def __init__(self, key: rsa.RSAPrivateKey, csrf_key: bytes, clock: LabClock, lifetime_s: int) -> None:
        self._key = key
        self._csrf_key = csrf_key
        self._clock = clock
        self._lifetime_s = lifetime_s

    def ticket(self, user: str, *, prefix: str = "PVE", path: str = "") -> str:
        """`<prefix>:<user>:<hex epoch>::<signature>`; `path` is signed but not shown (console tickets)."""
        shown = f"{prefix}:{user}:{self._clock.epoch():08X}" if not path else f"{prefix}:{self._clock.epoch():08X}"
        signed = f"{shown}:{user}:{path}" if path else shown
        signature = self._key.sign(signed.encode(), padding.PKCS1v15(), hashes.SHA256())
        return f"{shown}::{base64.b64encode(signature).decode()}"

    def user_of(self, ticket: str) -> str | None:
        """The user of a valid, unexpired login ticket, else None."""
        match = _TICKET.fullmatch(ticket)
        if match is None or match[1] != "PVE" or not match[2]:
            return None
        signed = f"PVE:{match[2]}:{match[3]}"
        if not self._verifies(signed, match[4]) or not self._fresh(match[3], self._lifetime_s, _CLOCK_SKEW_S):
            return None
        return match[2]

    def half_ticket(self, user: str, kinds: list[str]) -> str:
        """What a right password gets a user with second factors: the challenge, readable, signed with the user."""
        challenge = quote(json.dumps(dict.fromkeys(kinds, 1)), safe="")
        shown = f"PVE:{_HALF}{challenge}:{self._clock.epoch():08X}"
        signature = self._key.sign(f"{shown}:{user}".encode(), padding.PKCS1v15(), hashes.SHA256())
        return f"{shown}::{base64.b64encode(signature).decode()}"

    def half_opens(self, ticket: str, user: str) -> bool:
        match = _TICKET.fullmatch(ticket)
        if match is None or not match[2].startswith(_HALF):
            return False
        signed = f"PVE:{match[2]}:{match[3]}:{user}"
        return self._verifies(signed, match[4]) and self._fresh(match[3], self._lifetime_s, _CLOCK_SKEW_S)

    def proves(self, ticket: str, user: str, *, prefix: str, path: str, lifetime_s: int, skew_s: int) -> bool:
        """Whether a console ticket was made for this user and path and is young enough."""
        match = re.fullmatch(re.escape(prefix) + r":([0-9A-F]{8})::([A-Za-z0-9+/=]+)", ticket)
        if match is None or not self._fresh(match[1], lifetime_s, skew_s):
            return False
        return self._verifies(f"{prefix}:{match[1]}:{user}:{path}", match[2])

    def _verifies(self, signed: str, signature: str) -> bool:
        try:
            self._key.public_key().verify(
                base64.b64decode(signature), signed.encode(), padding.PKCS1v15(), hashes.SHA256()
            )
        except (InvalidSignature, ValueError):
            return False
        return True

    def _fresh(self, stamp: str, lifetime_s: int, skew_s: int) -> bool:
        age = self._clock.now() - int(stamp, 16)
        return -skew_s <= age <= lifetime_s

    def csrf_token(self, user: str) -> str:
        return self._csrf(user, f"{self._clock.epoch():08X}")

    def _csrf(self, user: str, stamp: str) -> str:
        digest = hmac.new(self._csrf_key, f"{stamp}:{user}".encode(), hashlib.sha256).digest()
        return f"{stamp}:{base64.b64encode(digest).decode().rstrip('=')}"

    def csrf_holds(self, token: str, user: str) -> bool:
        stamp = token.split(":", 1)[0]
        if not re.fullmatch(r"[0-9A-F]{8}", stamp) or not self._fresh(stamp, self._lifetime_s, _CLOCK_SKEW_S):
            return False
        return hmac.compare_digest(token.encode(), self._csrf(user, stamp).encode())


def authenticate(request: Request, office: TicketOffice, accounts: "Accounts", *, needs_csrf: bool) -> Identity:
    """Who sent the request. A ticket wins over a token; raises the bare 401 errors."""
    authorization = request.headers.get("authorization", "")
    ticket = request.cookies.get("PVEAuthCookie")
    header = _HEADER.fullmatch(authorization)
    if ticket is None and header is not None:
        ticket = header[1]
    if ticket is not None:
        return _by_ticket(request, unquote(ticket).strip('"'), office, accounts, needs_csrf=needs_csrf)
    token = _TOKEN.fullmatch(unquote(authorization))
    if token is None:
        raise unauthorized("No ticket")
    if not accounts.token_opens(token[1], token[2]):
        raise unauthorized(_BAD)
    return Identity(token[1], is_token=True)


def _by_ticket(
    request: Request, ticket: str, office: TicketOffice, accounts: "Accounts", *, needs_csrf: bool
) -> Identity:
    if ticket.startswith(f"PVE:{_HALF}"):
        raise unauthorized("No ticket")
    user = office.user_of(ticket)
    if user is None or not accounts.is_active(user):
        raise unauthorized(_BAD)
    if needs_csrf and not office.csrf_holds(request.headers.get("csrfpreventiontoken", ""), user):
        raise unauthorized("Permission denied - invalid csrf token")
    return Identity(user)
