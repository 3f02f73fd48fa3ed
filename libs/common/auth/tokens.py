"""Access tokens (RFC 9068) checked against the gateway's keys (RFC 7517, RFC 8037)."""

import asyncio
import re
import time
from collections import OrderedDict
from collections.abc import Callable, Mapping
from typing import Any, Protocol

import httpx
import jwt
import structlog
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

from libs.common.auth.principal import Principal, Role
from libs.common.auth.revocations import LEEWAY_S, MAX_LIFETIME_S, Revocations
from libs.common.errors import Unauthenticated, Unavailable

ALGORITHM = "EdDSA"
TOKEN_TYPE = "at+jwt"  # noqa: S105 - RFC 9068's name of the type
CACHE_SIZE = 10_000
UNKNOWN_KID_INTERVAL_S = 60.0
RETRY_S = 1.0
"""How soon an issuer that has never answered is asked again, whatever the number of requests."""
_REQUIRED = ("exp", "iat", "iss", "aud", "sub", "sid", "jti", "role", "scopes", "username")
_KID = re.compile(r"[A-Za-z0-9_-]{1,64}")

_log = structlog.get_logger()


class KeySource(Protocol):
    """Where public keys come from; None for a kid that is not (or no longer) valid."""

    async def key(self, kid: str) -> Ed25519PublicKey | None: ...


class JwksClient:
    """Fetches the issuer's JWK set (RFC 7517). Unknown kids cause at most one fetch a minute."""

    def __init__(self, url: str, http: httpx.AsyncClient, now: Callable[[], float] = time.monotonic) -> None:
        self._url = url
        self._http = http
        self._now = now
        self._keys: dict[str, Ed25519PublicKey] = {}
        self._fetch_from = float("-inf")
        self._lock = asyncio.Lock()

    async def key(self, kid: str) -> Ed25519PublicKey | None:
        """Give the key; raises Unavailable if the issuer has never been reached."""
        if kid not in self._keys:
            async with self._lock:
                if kid not in self._keys and self._now() >= self._fetch_from:
                    await self._fetch()
        if not self._keys:
            raise Unavailable("The gateway's signing keys cannot be fetched", retry_after_s=RETRY_S)
        return self._keys.get(kid)

    async def _fetch(self) -> None:
        """Replace the keys, or keep those there are; either way a while passes before the next fetch."""
        try:
            answer = await self._http.get(self._url, timeout=5)
            answer.raise_for_status()
            self._keys = read_jwks(answer.json())
        except (httpx.HTTPError, ValueError) as error:
            _log.warning("signing_keys_not_fetched", error=type(error).__name__)
        self._fetch_from = self._now() + (UNKNOWN_KID_INTERVAL_S if self._keys else RETRY_S)


def read_jwks(document: Any) -> dict[str, Ed25519PublicKey]:
    """Read the Ed25519 signature keys of a JWK set (RFC 8037), passing over others; raises ValueError for no set."""
    keys: dict[str, Ed25519PublicKey] = {}
    try:
        for jwk in document["keys"]:
            if jwk.get("kty") != "OKP" or jwk.get("crv") != "Ed25519" or jwk.get("use", "sig") != "sig":
                continue
            if _KID.fullmatch(str(jwk.get("kid", ""))):
                public = {name: value for name, value in jwk.items() if name != "d"}
                key = jwt.PyJWK(public, algorithm=ALGORITHM).key
                if isinstance(key, Ed25519PublicKey):
                    keys[jwk["kid"]] = key
    except (jwt.PyJWTError, AttributeError, KeyError, TypeError) as error:
        raise ValueError("not a JWK set") from error
    return keys


class TokenVerifier:
    """Checks access tokens (RFC 9068) and remembers good ones until they run out; revocation is asked every time."""

    def __init__(
        self,
        keys: KeySource,
        revocations: Revocations,
        *,
        issuer: str,
        audience: str,
        now: Callable[[], float] = time.time,
    ) -> None:
        self.revocations = revocations
        self._keys = keys
        self._issuer = issuer
        self._audience = audience
        self._now = now
        self._verified: OrderedDict[str, Principal] = OrderedDict()

    def is_good(self, principal: Principal) -> bool:
        """Whether a principal that was verified before is so still: neither run out nor revoked."""
        return principal.expires_at > self._now() and not self.revocations.refuses(principal)

    async def verify(self, token: str) -> Principal:
        """Give the principal; raises Unauthenticated with a detail that tells the holder what to do."""
        principal = self._verified.get(token)
        if principal is None:
            principal = await self._check(token)
            self._verified[token] = principal
            if len(self._verified) > CACHE_SIZE:
                self._verified.popitem(last=False)
        if principal.expires_at <= self._now():
            self._verified.pop(token, None)
            raise Unauthenticated("The access token has expired; refresh it or log in again")
        if self.revocations.refuses(principal):
            raise Unauthenticated("The session or key has been revoked; log in again")
        return principal

    async def _check(self, token: str) -> Principal:
        try:
            header = jwt.get_unverified_header(token)
            kid = header.get("kid")
            if header.get("alg") != ALGORITHM or header.get("typ") != TOKEN_TYPE or "crit" in header:
                raise Unauthenticated("The access token is of the wrong type")
            if not isinstance(kid, str) or not _KID.fullmatch(kid):
                raise Unauthenticated("The access token names no known key")
            key = await self._keys.key(kid)
            if key is None:
                raise Unauthenticated("The access token is signed by an unknown key; log in again")
            claims = jwt.decode(
                token,
                key,
                algorithms=[ALGORITHM],
                issuer=self._issuer,
                audience=self._audience,
                leeway=LEEWAY_S,
                options={"require": list(_REQUIRED), "strict_aud": True},
            )
            return self._principal(claims)
        except jwt.ExpiredSignatureError as error:
            raise Unauthenticated("The access token has expired; refresh it or log in again") from error
        except (jwt.PyJWTError, ValueError, KeyError, TypeError, OverflowError, RecursionError) as error:
            raise Unauthenticated("The access token is not valid") from error

    def _principal(self, claims: Mapping[str, Any]) -> Principal:
        issued_at, expires_at = claims["iat"], claims["exp"]
        for moment in (issued_at, expires_at):
            if isinstance(moment, bool) or not isinstance(moment, int | float):
                raise TypeError("a moment is not a number")
        if not 0 < expires_at - issued_at <= MAX_LIFETIME_S:
            raise ValueError("lifetime out of bounds")
        if not all(isinstance(claims[name], str) and claims[name] for name in ("sub", "sid", "jti", "username")):
            raise ValueError("an identity claim is not a text")
        if not isinstance(claims["scopes"], list) or not all(isinstance(scope, str) for scope in claims["scopes"]):
            raise ValueError("scopes is not a list of texts")
        return Principal(
            user_id=claims["sub"],
            username=claims["username"],
            role=Role(claims["role"]),
            session_id=claims["sid"],
            scopes=frozenset(claims["scopes"]),
            issued_at=float(issued_at),
            expires_at=float(expires_at),
        )
