"""Access tokens (RFC 9068): signing with the newest key of a JWK set that gateway replicas share, and rotation."""

import contextlib
import json
import os
import time
from base64 import urlsafe_b64encode
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jwt
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat, PublicFormat

from libs.common.auth import Role
from libs.common.auth.tokens import ALGORITHM, TOKEN_TYPE
from libs.common.ids import uuid7

ACTIVE_AFTER_S = 60.0
"""A new key is published before it signs, so that no service meets a key it cannot fetch yet."""
KEEP = 2
_RELOAD_EVERY_S = 1.0


@dataclass(frozen=True, slots=True)
class SigningKey:
    kid: str
    private: Ed25519PrivateKey
    created_at: float

    def jwk(self, *, private: bool = False) -> dict[str, Any]:
        raw = self.private.public_key().public_bytes(Encoding.Raw, PublicFormat.Raw)
        document: dict[str, Any] = {
            "kty": "OKP",
            "crv": "Ed25519",
            "use": "sig",
            "alg": ALGORITHM,
            "kid": self.kid,
            "x": _b64(raw),
        }
        if private:
            secret = self.private.private_bytes(Encoding.Raw, PrivateFormat.Raw, NoEncryption())
            document |= {"d": _b64(secret), "created_at": self.created_at}
        return document


def _b64(raw: bytes) -> str:
    return urlsafe_b64encode(raw).decode().rstrip("=")


class KeyRing:
    """The signing keys of a file (mode 0600, replaced atomically); the file is read again when it changes."""

    def __init__(self, path: Path, now: Callable[[], float] = time.time) -> None:
        self._path = path
        self._now = now
        self._keys: list[SigningKey] = []
        self._stamp: tuple[int, int] | None = None
        self._looked_at = 0.0

    def ensure(self) -> None:
        """Make a first key if there is no file yet; of replicas that start together one's becomes everybody's."""
        if not self._path.exists():
            partial = self._written([self._new()])
            with contextlib.suppress(FileExistsError):
                self._path.hardlink_to(partial)
            partial.unlink()
        self._reload(at_once=True)

    def rotate(self) -> str:
        """Add a key and retire the oldest beyond `KEEP`; gives the new kid. Replicas follow within a second."""
        self.ensure()
        fresh = self._new()
        self._written([*self._keys, fresh][-KEEP:]).replace(self._path)
        self._reload(at_once=True)
        return fresh.kid

    def signing_key(self) -> SigningKey:
        """The newest key that has been published for a while, or the oldest if none has."""
        self._reload()
        ripe = [key for key in self._keys if self._now() - key.created_at >= ACTIVE_AFTER_S]
        return ripe[-1] if ripe else self._keys[0]

    def jwks(self) -> dict[str, Any]:
        self._reload()
        return {"keys": [key.jwk() for key in self._keys]}

    async def key(self, kid: str) -> Ed25519PublicKey | None:
        self._reload()
        return next((key.private.public_key() for key in self._keys if key.kid == kid), None)

    def _new(self) -> SigningKey:
        return SigningKey(kid=uuid7().hex, private=Ed25519PrivateKey.generate(), created_at=self._now())

    def _written(self, keys: Iterable[SigningKey]) -> Path:
        """A complete file beside the real one, under a name of its own: replicas in containers have the same pids."""
        self._path.parent.mkdir(parents=True, exist_ok=True)
        partial = self._path.with_suffix(f".{uuid7().hex}.new")
        descriptor = os.open(partial, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
        with os.fdopen(descriptor, "w") as file:
            json.dump({"keys": [key.jwk(private=True) for key in keys]}, file)
            file.flush()
            os.fsync(file.fileno())
        return partial

    def _reload(self, *, at_once: bool = False) -> None:
        if not at_once and time.monotonic() - self._looked_at < _RELOAD_EVERY_S:
            return
        self._looked_at = time.monotonic()
        status = self._path.stat()
        stamp = (status.st_mtime_ns, status.st_ino)
        if stamp != self._stamp:
            document = json.loads(self._path.read_text())
            self._keys = [_read(jwk) for jwk in document["keys"]]
            self._stamp = stamp


def _read(jwk: dict[str, Any]) -> SigningKey:
    private = jwt.PyJWK({name: value for name, value in jwk.items() if name != "created_at"}, ALGORITHM).key
    if not isinstance(private, Ed25519PrivateKey):
        raise TypeError(f"key {jwk.get('kid')} in the key file is not a private Ed25519 key")
    return SigningKey(kid=jwk["kid"], private=private, created_at=float(jwk["created_at"]))


@dataclass(frozen=True, slots=True)
class AccessToken:
    text: str
    expires_in_s: int


class TokenIssuer:
    """Signs access tokens; auth has said who the holder is."""

    def __init__(
        self, keys: KeyRing, *, issuer: str, audience: str, lifetime_s: int, now: Callable[[], float] = time.time
    ) -> None:
        self._keys = keys
        self._issuer = issuer
        self._audience = audience
        self._lifetime_s = lifetime_s
        self._now = now

    def issue(
        self,
        *,
        user_id: str,
        username: str,
        role: Role,
        session_id: str,
        scopes: Iterable[str],
        not_after: float | None = None,
    ) -> AccessToken:
        """Sign a token for `lifetime_s`, but never beyond `not_after` (Unix seconds)."""
        now = self._now()
        expires_at = now + self._lifetime_s
        if not_after is not None:
            expires_at = min(expires_at, not_after)
        key = self._keys.signing_key()
        claims = {
            "iss": self._issuer,
            "aud": self._audience,
            "sub": user_id,
            "username": username,
            "role": role.value,
            "sid": session_id,
            "scopes": sorted(scopes),
            "jti": uuid7().hex,
            "iat": now,
            "exp": expires_at,
        }
        text = jwt.encode(claims, key.private, algorithm=ALGORITHM, headers={"kid": key.kid, "typ": TOKEN_TYPE})
        return AccessToken(text, max(0, int(expires_at - now)))

    def for_service(self, name: str) -> AccessToken:
        """A service's own token (`sub: service:<name>`)."""
        return self.issue(
            user_id=f"service:{name}",
            username=f"service:{name}",
            role=Role.SERVICE,
            session_id=f"service:{name}",
            scopes=("*",),
        )
