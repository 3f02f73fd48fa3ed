"""Which path belongs to which service, and what a call costs: the whole public surface in one table (docs/api.md)."""

import re
from dataclasses import dataclass

from libs.common.auth import Principal


@dataclass(frozen=True, slots=True)
class Route:
    """A service's path prefix (whole segments), or with `exact` that path alone.

    `area` is the scope a key needs; `anonymous` methods need no login, and `WEBSOCKET` is one.
    """

    service: str
    area: str
    cost: float = 1.0
    write_cost: float = 2.0
    anonymous: frozenset[str] = frozenset()
    exact: bool = False


_AUTH = Route("auth", "account")
_IMAGES = Route("images", "images", write_cost=5.0)
_VMS = Route("vms", "vms", write_cost=5.0)
_CONSOLE = Route("vms", "vms", anonymous=frozenset({"WEBSOCKET"}))
"""A browser cannot send credentials with a WebSocket: the ticket in its address, checked by vms, speaks for it."""
_STACKS = Route("containers", "stacks", write_cost=5.0)
_FETCH = Route("fetcher", "fetch", write_cost=5.0)

ROUTES: dict[str, Route] = {
    "/api/v1/users": Route("auth", "account", write_cost=10.0, anonymous=frozenset({"POST"})),
    "/api/v1/users/me": _AUTH,
    "/api/v1/api-keys": _AUTH,
    "/api/v1/sessions": _AUTH,
    "/api/v1/audit": _AUTH,
    "/users": Route("auth", "account", write_cost=10.0, exact=True),
    "/api/v1/images": _IMAGES,
    "/api/v1/uploads": Route("images", "images", anonymous=frozenset({"OPTIONS"})),
    "/api/v1/image-files": Route("images", "images", anonymous=frozenset({"GET", "HEAD"})),
    "/api/v1/stats": _IMAGES,
    "/api/v1/vms": _VMS,
    "/api/v1/virtual-machines": _VMS,
    "/api/v1/templates": _VMS,
    "/api/v1/nodes": _VMS,
    "/api/v1/placements": _VMS,
    "/api/v1/drift": _VMS,
    "/vm": _VMS,
    "/control-vm": _VMS,
    "/api/v1/stack-templates": _STACKS,
    "/api/v1/stacks": _STACKS,
    "/service-types": _STACKS,
    "/service": _STACKS,
    "/control-service": _STACKS,
    "/api/v1/download": _FETCH,
    "/api/v1/jobs": _FETCH,
    "/api/v1/metrics": _FETCH,
}
"""Longest prefix wins."""

AREAS = {route.service: route.area for route in ROUTES.values()}
"""The scope of each service."""
SERVICES = ("auth", "images", "vms", "containers", "fetcher")
_CONSOLE_SOCKET = re.compile(r"/api/v1/vms/[^/]+/console/ws")
_OPERATION = re.compile(r"/api/v1/operations/op_([a-z]+)_[0-9a-f]{32}(/.*)?")
_SAFE = frozenset({"GET", "HEAD", "OPTIONS"})


def route_of(path: str) -> Route | None:
    """The route of a path; None if the gateway serves it itself (or nobody does)."""
    if path.endswith("/console/ws") and _CONSOLE_SOCKET.fullmatch(path) is not None:
        return _CONSOLE
    prefix = path
    while prefix:
        route = ROUTES.get(prefix)
        if route is not None and (prefix == path or not route.exact):
            return route
        prefix = prefix[: prefix.rfind("/")] if "/" in prefix else ""
    if path.startswith("/api/v1/operations/"):
        found = _OPERATION.fullmatch(path)
        if found is not None and found[1] in SERVICES:
            return Route(found[1], AREAS[found[1]])
    return None


def cost_of(route: Route, method: str) -> float:
    return route.cost if method in _SAFE else route.write_cost


def missing_scope(route: Route, method: str, principal: Principal) -> str | None:
    """The scope that the caller's key lacks for the call; None if it may be made."""
    scope = f"{route.area}:read" if method in _SAFE else route.area
    return None if principal.has_scope(scope) else scope
