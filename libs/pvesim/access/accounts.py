"""Users and API tokens, kept as documents; passwords and token secrets are stored as digests only."""

import hashlib
import hmac
import secrets
from typing import Any

from libs.pvesim.clock import LabClock
from libs.pvesim.errors import PveError
from libs.pvesim.store import Store

ROOT = "root@pam"
REALMS = {"pam": "Linux PAM standard authentication", "pve": "Proxmox VE authentication server"}
_ROUNDS = 20_000


class Accounts:
    """`users` maps `user@realm` to a document with `enable`, `expire`, `password`, and `tokens` by token id."""

    def __init__(self, store: Store, clock: LabClock, loaded: dict[str, dict[str, Any]]) -> None:
        self._store = store
        self._clock = clock
        self.users = loaded

    def require(self, userid: str) -> dict[str, Any]:
        """The user's document; raises the error of an unknown one."""
        if userid not in self.users:
            raise PveError(f"no such user ('{userid}')")
        return self.users[userid]

    def save(self, userid: str) -> None:
        self._store.put("user", userid, self.users[userid])

    def add(self, userid: str, password: str | None = None, **fields: Any) -> None:
        self.users[userid] = {"enable": 1, "expire": 0, **fields, "tokens": {}}
        if password is not None:
            self.users[userid]["password"] = password_digest(password)
        self.save(userid)

    def remove(self, userid: str) -> None:
        del self.users[userid]
        self._store.delete("user", userid)

    def set_password(self, userid: str, digest: str) -> None:
        self.users[userid]["password"] = digest
        self.save(userid)

    def password_opens(self, userid: str, password: str) -> bool:
        """Check a password; takes milliseconds of processor time, so call it in a thread."""
        stored = self.users.get(userid, {}).get("password")
        if stored is None or not self.is_active(userid):
            return False
        return hmac.compare_digest(stored, password_digest(password, stored.split("$", 1)[0]))

    def is_active(self, userid: str) -> bool:
        user = self.users.get(userid)
        return user is not None and bool(user.get("enable", 1)) and not self._expired(user)

    def token(self, authid: str) -> dict[str, Any] | None:
        userid, _, token_id = authid.partition("!")
        found: dict[str, Any] | None = self.users.get(userid, {}).get("tokens", {}).get(token_id)
        return found

    def add_token(self, userid: str, token_id: str, secret: str, **fields: Any) -> None:
        digest = hashlib.sha256(secret.encode()).hexdigest()
        self.users[userid]["tokens"][token_id] = {"privsep": 1, **fields, "secret": digest}
        self.save(userid)

    def token_opens(self, authid: str, secret: str) -> bool:
        token = self.token(authid)
        if token is None or self._expired(token) or not self.is_active(authid.partition("!")[0]):
            return False
        return hmac.compare_digest(token["secret"], hashlib.sha256(secret.encode()).hexdigest())

    def _expired(self, entry: dict[str, Any]) -> bool:
        return bool(entry.get("expire")) and entry["expire"] <= self._clock.now()


def password_digest(password: str, salt: str | None = None) -> str:
    """Salted PBKDF2 digest; takes milliseconds of processor time, so call it in a thread."""
    salt = salt or secrets.token_hex(8)
    return f"{salt}${hashlib.pbkdf2_hmac('sha256', password.encode(), salt.encode(), _ROUNDS).hex()}"
