"""Second factors: time-based one-time passwords (RFC 6238) and recovery keys, kept with their user."""

import base64
import binascii
import hashlib
import hmac
import secrets
import struct
from typing import Any
from urllib.parse import parse_qs, urlsplit

from libs.pvesim.access.accounts import Accounts
from libs.pvesim.clock import LabClock
from libs.pvesim.errors import PveError

_STEP_S = 30
_DIGITS = 6
_WINDOW = 1
_RECOVERY_KEYS = 10
_TRIES = 8
Entry = dict[str, Any]


def totp_code(secret: str, step: int) -> str:
    """The six digits of a base32 secret at a time step."""
    key = base64.b32decode(secret.upper().replace(" ", "") + "=" * (-len(secret) % 8))
    digest = hmac.new(key, struct.pack(">Q", step), "sha1").digest()
    offset = digest[-1] & 0x0F
    number = int.from_bytes(digest[offset : offset + 4], "big") & 0x7FFFFFFF
    return f"{number % 10**_DIGITS:0{_DIGITS}d}"


def secret_of(uri: str) -> str:
    """The secret of an `otpauth://totp/…?secret=…` address; raises the error of one that cannot be used."""
    found = parse_qs(urlsplit(uri).query).get("secret", [""])[0]
    try:
        totp_code(found, 0)
    except (binascii.Error, ValueError) as wrong:
        raise PveError("invalid totp secret") from wrong
    if not uri.startswith("otpauth://totp/") or not found:
        raise PveError("invalid otpauth uri")
    return found


class SecondFactors:
    """Entries by user and id. A used code is used up; too many wrong ones lock the user's codes."""

    def __init__(self, accounts: Accounts, clock: LabClock) -> None:
        self._accounts = accounts
        self._clock = clock

    def entries(self, userid: str) -> dict[str, Entry]:
        found: dict[str, Entry] = self._accounts.users.get(userid, {}).get("tfa", {})
        return found

    def enabled(self, userid: str) -> list[str]:
        """The kinds of factors that a login of this user has to choose from."""
        return sorted({entry["type"] for entry in self.entries(userid).values() if entry.get("enable", 1)})

    def locked(self, userid: str) -> bool:
        return int(self._accounts.users.get(userid, {}).get("tfa_failures", 0)) >= _TRIES

    def unlock(self, userid: str) -> bool:
        """Forget wrong codes; returns whether the user was locked."""
        was = self.locked(userid)
        self._accounts.users[userid].pop("tfa_failures", None)
        self._accounts.save(userid)
        return was

    def add_totp(self, userid: str, uri: str, code: str, description: str) -> str:
        """Add a secret that the code proves to be in the user's hands; returns the entry's id."""
        secret = secret_of(uri)
        entry: Entry = {"type": "totp", "secret": secret, "description": description, "created": self._clock.epoch()}
        if not self._code_fits(entry, code):
            raise PveError("failed to verify TOTP challenge")
        entry_id = secrets.token_hex(8)
        self._put(userid, entry_id, entry)
        return entry_id

    def add_recovery(self, userid: str, description: str) -> list[str]:
        """Add ten recovery keys, shown this once."""
        if "recovery" in self.entries(userid):
            raise PveError("user already has recovery keys")
        keys = ["-".join(secrets.token_hex(2) for _ in range(4)) for _ in range(_RECOVERY_KEYS)]
        digests = [hashlib.sha256(key.encode()).hexdigest() for key in keys]
        entry = {"type": "recovery", "keys": digests, "description": description, "created": self._clock.epoch()}
        self._put(userid, "recovery", entry)
        return keys

    def _put(self, userid: str, entry_id: str, entry: Entry) -> None:
        self._accounts.users[userid].setdefault("tfa", {})[entry_id] = entry
        self._accounts.save(userid)

    def change(self, userid: str, entry_id: str, **fields: Any) -> None:
        self.entries(userid)[entry_id] |= fields
        self._accounts.save(userid)

    def remove(self, userid: str, entry_id: str) -> None:
        del self.entries(userid)[entry_id]
        self._accounts.save(userid)

    def proves(self, userid: str, answer: str) -> bool:
        """Whether `totp:123456` or `recovery:…` is right; a right one cannot be used again."""
        kind, _, value = answer.partition(":")
        if self.locked(userid) and kind == "totp":
            return False
        check = {"totp": self._code_fits, "recovery": self._key_fits}.get(kind)
        mine = [entry for entry in self.entries(userid).values() if entry["type"] == kind and entry.get("enable", 1)]
        opened = check is not None and any(check(entry, value) for entry in mine)
        user = self._accounts.users[userid]
        user["tfa_failures"] = 0 if opened else int(user.get("tfa_failures", 0)) + 1
        self._accounts.save(userid)
        return opened

    def _code_fits(self, entry: Entry, code: str) -> bool:
        now = self._clock.epoch() // _STEP_S
        for step in range(now - _WINDOW, now + _WINDOW + 1):
            if step > int(entry.get("last", 0)) and hmac.compare_digest(totp_code(entry["secret"], step), code):
                entry["last"] = step
                return True
        return False

    def _key_fits(self, entry: Entry, key: str) -> bool:
        digest = hashlib.sha256(key.encode()).hexdigest()
        if digest not in entry["keys"]:
            return False
        entry["keys"].remove(digest)
        return True
