"""Logging in through auth: auth says who somebody is, the gateway signs the token; API keys go the same way."""

import hashlib
import time
from collections import OrderedDict
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any

import httpx
import structlog

from gateway.tokens import AccessToken, TokenIssuer
from libs.common.auth import Principal, Role, TokenVerifier
from libs.common.errors import Kind, TelarError, Unauthenticated, Unavailable
from libs.common.problems import KIND_OF_STATUS

_CACHE_SIZE = 10_000
_RENEW_BEFORE_S = 60.0

_log = structlog.get_logger()


class AuthClient:
    """Calls the auth service's internal routes with the gateway's own service token."""

    def __init__(self, urls: tuple[str, ...], issuer: TokenIssuer, http: httpx.AsyncClient) -> None:
        self._urls = urls
        self._issuer = issuer
        self._http = http
        self._turn = 0
        self._token = AccessToken("", 0)
        self._renew_at = 0.0

    async def call(self, method: str, path: str, body: Mapping[str, Any] | None = None) -> Any:
        """Ask auth; its problems are raised as they came, its absence as Unavailable."""
        error: httpx.HTTPError | None = None
        for _ in self._urls:
            self._turn = (self._turn + 1) % len(self._urls)
            try:
                answer = await self._http.request(
                    method, self._urls[self._turn].rstrip("/") + path, json=body, headers=self._headers()
                )
            except httpx.ConnectError as failed:
                error = failed
                continue
            except httpx.HTTPError as failed:
                error = failed
                break
            if answer.is_success:
                return answer.json() if answer.content else None
            raise as_told(answer)
        _log.warning("auth_unreachable", error=type(error).__name__)
        raise Unavailable("The auth service does not answer; try again in a moment", retry_after_s=2) from error

    async def revocations(self) -> Iterable[Mapping[str, Any]]:
        document = await self.call("GET", "/internal/revocations")
        entries: list[dict[str, Any]] = document["items"]
        return entries

    def _headers(self) -> dict[str, str]:
        if time.monotonic() >= self._renew_at:
            self._token = self._issuer.for_service("gateway")
            self._renew_at = time.monotonic() + self._token.expires_in_s - _RENEW_BEFORE_S
        return {"authorization": f"Bearer {self._token.text}"}


def as_told(answer: httpx.Response) -> TelarError:
    """The problem that a service answered, to be told on unchanged."""
    try:
        document = answer.json()
        slug = str(document["type"]).removeprefix("/problems/")
        title, detail = str(document["title"]), str(document["detail"])
    except (ValueError, KeyError, TypeError):
        return Unavailable("A service gave no usable answer", retry_after_s=2)
    kind = KIND_OF_STATUS.get(answer.status_code, Kind.INTERNAL)
    named: Callable[..., TelarError] = type("Refusal", (TelarError,), {"kind": kind, "slug": slug, "title": title})
    retry_after = answer.headers.get("retry-after", "")
    return named(detail, retry_after_s=float(retry_after) if retry_after.isdigit() else None)


@dataclass(frozen=True, slots=True)
class _Exchanged:
    principal: Principal
    token: str
    believed_until: float


class Sessions:
    """Turns passwords, refresh tokens and API keys into access tokens."""

    def __init__(self, auth: AuthClient, issuer: TokenIssuer, verifier: TokenVerifier, *, key_cache_s: float) -> None:
        self._auth = auth
        self._issuer = issuer
        self._verifier = verifier
        self._key_cache_s = key_cache_s
        self._exchanged: OrderedDict[tuple[bytes, str], _Exchanged] = OrderedDict()

    async def login(self, username: str, password: str, *, address: str, user_agent: str) -> dict[str, Any]:
        body = {"username": username, "password": password, "address": address, "user_agent": user_agent}
        return self._answer(await self._auth.call("POST", "/internal/login", body))

    async def refresh(self, refresh_token: str, *, address: str) -> dict[str, Any]:
        body = {"refresh_token": refresh_token, "address": address}
        return self._answer(await self._auth.call("POST", "/internal/refresh", body))

    async def logout(self, principal: Principal) -> None:
        body = {"session_id": principal.session_id, "user_id": principal.user_id}
        await self._auth.call("POST", "/internal/logout", body)

    def known_key(self, key: bytes, address: str) -> tuple[Principal, str] | None:
        """The principal and token of a key exchanged a moment ago; None if it must be asked for."""
        known = self._exchanged.get((hashlib.sha256(key).digest(), address))
        if known is None or known.believed_until < time.monotonic():
            return None
        if self._verifier.revocations.refuses(known.principal):
            return None
        return known.principal, known.token

    async def exchange_key(self, key: bytes, address: str) -> tuple[Principal, str]:
        """Have auth say whom a key speaks for; raises Unauthenticated."""
        known = self.known_key(key, address)
        if known is not None:
            return known
        try:
            text = key.decode("ascii")
        except UnicodeDecodeError as error:
            raise Unauthenticated("The API key is not valid") from error
        body = {"key": text, "address": address}
        grant = await self._auth.call("POST", "/internal/api-keys/exchange", body)
        token = self._issue(grant)
        principal = await self._verifier.verify(token.text)
        until = time.monotonic() + min(self._key_cache_s, token.expires_in_s)
        self._exchanged[(hashlib.sha256(key).digest(), address)] = _Exchanged(principal, token.text, until)
        if len(self._exchanged) > _CACHE_SIZE:
            self._exchanged.popitem(last=False)
        return principal, token.text

    def _issue(self, grant: Mapping[str, Any]) -> AccessToken:
        user = grant["user"]
        return self._issuer.issue(
            user_id=user["id"],
            username=user["username"],
            role=Role(user["role"]),
            session_id=grant["session_id"],
            scopes=grant["scopes"],
            not_after=_unix(grant.get("expires_at")),
        )

    def _answer(self, grant: Mapping[str, Any]) -> dict[str, Any]:
        token = self._issue(grant)
        return {
            "access_token": token.text,
            "token_type": "bearer",
            "expires_in": token.expires_in_s,
            "refresh_token": grant["refresh_token"],
            "user": grant["user"],
        }


def _unix(moment: str | None) -> float | None:
    return datetime.fromisoformat(moment).timestamp() if moment else None
