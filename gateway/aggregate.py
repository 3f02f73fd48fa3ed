"""What only the gateway can answer: health, operations and dead letters of all services together."""

import asyncio
import heapq
import json
from base64 import urlsafe_b64decode, urlsafe_b64encode
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any
from urllib.parse import quote

import httpx

from gateway.errors import DeadLetterNotFound
from gateway.proxy.errors import failures_of
from gateway.sessions import as_told
from libs.common.errors import TelarError, Unavailable
from libs.common.pagination import encode_cursor, foreign_cursor

_NOT_FOUND = 404
PATIENCE_S = 5.0
"""How long what is told of all services together waits for one of them."""
_NOTHING_HERE = frozenset({403, _NOT_FOUND})
"""A list that the caller's key has no scope for, or that the service does not have."""


@dataclass(frozen=True, slots=True)
class MergedPage:
    """A page of a list that several services have; `unavailable` names those that did not tell theirs."""

    items: list[dict[str, Any]]
    next_cursor: str | None
    unavailable: list[str]


class Services:
    """Asks every installed service the same question, with the caller's own token."""

    def __init__(self, urls: Mapping[str, tuple[str, ...]], http: httpx.AsyncClient) -> None:
        self.urls = {service: bases for service, bases in urls.items() if bases}
        self._http = http

    async def health(self) -> tuple[bool, dict[str, Any]]:
        """Each service's readiness with its named checks; whether all are ready."""
        names = list(self.urls)
        reports = await asyncio.gather(*(self._ready(name) for name in names))
        services = dict(zip(names, reports, strict=True))
        return all(report["status"] == "ok" for report in reports), services

    async def _ready(self, service: str) -> dict[str, Any]:
        try:
            answer = await self._http.get(self._url(service, "/readyz"), timeout=3)
            report: dict[str, Any] = answer.json()
        except (httpx.HTTPError, ValueError):
            return {"status": "unreachable"}
        return report

    async def list_merged(
        self, path: str, query: Mapping[str, str], token: str, *, limit: int, cursor: str | None
    ) -> MergedPage:
        """Newest-first pages of a list that several services have, merged by id.

        The cursor holds the last id shown; ids sort by time, so every service goes on after it by itself. One that does
        not answer is left out of this page only.
        """
        positions = _read_cursor(cursor) if cursor else {}
        names = [name for name in self.urls if positions.get(name, "") is not None]
        pages = await asyncio.gather(
            *(self._page(name, path, query, token, limit, positions.get(name)) for name in names)
        )
        told = {name: page for name, page in zip(names, pages, strict=True) if page is not None}
        merged = [(_time_of(item), name, item) for name, (items, _) in told.items() for item in items]
        shown = heapq.nlargest(limit, merged, key=lambda entry: entry[0])
        after: dict[str, str | None] = dict.fromkeys(self.urls)
        after |= {name: positions.get(name, "") for name in names if name not in told}
        more = False
        for name, (items, next_cursor) in told.items():
            count = sum(1 for entry in shown if entry[1] == name)
            if count < len(items):
                after[name] = encode_cursor((items[count - 1]["id"],)) if count else positions.get(name, "")
                more = True
            elif next_cursor is not None:
                after[name] = next_cursor
                more = True
        unavailable = [name for name in names if name not in told]
        return MergedPage([entry[2] for entry in shown], _write_cursor(after) if more else None, unavailable)

    async def _page(
        self, service: str, path: str, query: Mapping[str, str], token: str, limit: int, cursor: str | None
    ) -> tuple[list[dict[str, Any]], str | None] | None:
        """A service's own page; None if it does not tell now."""
        asked = {**query, "limit": str(limit)}
        if cursor:
            asked["cursor"] = cursor
        try:
            answer = await self._http.get(
                self._url(service, path), params=asked, headers=_bearer(token), timeout=PATIENCE_S
            )
        except httpx.HTTPError:
            return None
        if answer.is_server_error:
            return None
        if answer.status_code in _NOTHING_HERE:
            return [], None
        if answer.is_error:
            raise as_told(answer)
        document = answer.json()
        return document["items"], document["next_cursor"]

    async def older_user(self, userid: str, token: str) -> dict[str, Any]:
        """A user as the older VM and stack API shows it: with its machines, its stacks and their URLs."""
        url = self._url("auth", f"/users/{quote(userid, safe='')}")
        try:
            answer = await self._http.get(url, headers=_bearer(token))
        except httpx.HTTPError as error:
            raise failures_of("auth").unavailable("The auth service does not answer.", retry_after_s=2) from error
        if answer.is_error:
            raise as_told(answer)
        user: dict[str, Any] = answer.json()
        vms = await asyncio.gather(*(self._detail("vms", f"/api/v1/vms/{one['id']}", token) for one in user["vms"]))
        stacks = await asyncio.gather(
            *(self._detail("containers", f"/api/v1/stacks/{one['id']}", token) for one in user["services"])
        )
        user["vms"] = [
            {**one, "vm_id": vm.get("vmid"), "status": vm.get("status"), "addresses": vm.get("addresses", [])}
            for one, vm in zip(user["vms"], vms, strict=True)
        ]
        user["services"] = [
            {**one, "service_id": stack.get("number"), "status": stack.get("state"), "urls": stack.get("urls", [])}
            for one, stack in zip(user["services"], stacks, strict=True)
        ]
        user["access_urls"] = [f"{one['name']}: {url}" for one in user["services"] for url in one["urls"]]
        return user

    async def _detail(self, service: str, path: str, token: str) -> dict[str, Any]:
        """A resource as its service tells it; nothing if the service is away or has just deleted it."""
        if service not in self.urls:
            return {}
        try:
            answer = await self._http.get(self._url(service, path), headers=_bearer(token))
            document: dict[str, Any] = answer.json() if answer.is_success else {}
        except (httpx.HTTPError, ValueError):
            return {}
        return document

    async def on_dead_letter(self, method: str, letter_id: str, verb: str, token: str) -> None:
        """Replay or discard a dead letter in whichever service has it.

        Raises DeadLetterNotFound if none has, else what kept the service from it, or from saying whether it has it.
        """
        unknown: TelarError | None = None
        for service in self.urls:
            url = self._url(service, f"/api/v1/dead-letters/{letter_id}{verb}")
            try:
                answer = await self._http.request(method, url, headers=_bearer(token))
            except httpx.HTTPError:
                unknown = Unavailable(f"The {service} service, which may have it, does not answer", retry_after_s=5)
                continue
            if answer.is_success:
                return
            if answer.is_server_error:
                unknown = as_told(answer)
            elif answer.status_code != _NOT_FOUND:
                raise as_told(answer)
        raise unknown or DeadLetterNotFound(f"No service has a dead letter {letter_id}")

    def _url(self, service: str, path: str) -> str:
        return self.urls[service][0].rstrip("/") + path


def _bearer(token: str) -> dict[str, str]:
    return {"authorization": f"Bearer {token}"}


def _time_of(item: Mapping[str, Any]) -> str:
    """The time-ordered part of an id (`op_vms_<uuid7>` or a plain UUIDv7)."""
    return str(item["id"]).rpartition("_")[2].replace("-", "")


def _write_cursor(positions: Mapping[str, str | None]) -> str:
    return urlsafe_b64encode(json.dumps(positions, separators=(",", ":")).encode()).decode().rstrip("=")


def _read_cursor(cursor: str) -> dict[str, str | None]:
    try:
        positions = json.loads(urlsafe_b64decode(cursor + "=" * (-len(cursor) % 4)))
        return {str(name): None if value is None else str(value) for name, value in positions.items()}
    except (ValueError, AttributeError, RecursionError) as error:
        raise foreign_cursor() from error
