"""The table of API calls: path, parameters, who may, where it runs, and the function that answers."""

from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any
from urllib.parse import unquote

from starlette.requests import Request

from libs.pvesim.access.permissions import ANYONE, Permission
from libs.pvesim.params import NODE, VMID, Schema
from libs.pvesim.releases import Number, Release

if TYPE_CHECKING:
    from libs.pvesim.access.identity import Identity
    from libs.pvesim.lab import Lab


@dataclass(slots=True)
class Call:
    """One API call: who, where, and the verified parameters (path, query and body together).

    `api_node` is the node whose API was called, which forwards most calls to the node they name.
    """

    lab: "Lab"
    identity: "Identity"
    params: dict[str, Any]
    request: Request
    api_node: str

    @property
    def node(self) -> str:
        return str(self.params["node"])

    @property
    def vmid(self) -> int:
        return int(self.params["vmid"])

    def get(self, name: str, default: Any = None) -> Any:
        return self.params.get(name, default)

    def flag(self, name: str) -> bool:
        return bool(self.params.get(name))

    def allows(self, path: str, *privileges: str, any_of: bool = False) -> bool:
        return self.lab.access.allows(self.identity.authid, path, privileges, any_of=any_of)

    def require(self, path: str, *privileges: str, any_of: bool = False) -> None:
        """Raise the 403 error unless the caller has the privileges on `path`."""
        self.lab.access.require(self.identity.authid, path, privileges, any_of=any_of)


@dataclass(frozen=True, slots=True)
class Answer:
    """Data with the top-level attributes some calls add beside it (`total`)."""

    data: Any
    attributes: Mapping[str, Any] = field(default_factory=dict)


Handler = Callable[[Call], Awaitable[Any]]


@dataclass(frozen=True, slots=True)
class Endpoint:
    """`on_node` calls are forwarded to the node in their path; `open_ended` ones accept unknown parameters.

    `since` is the first release that has the call.
    """

    method: str
    path: str
    handler: Handler
    params: Schema
    permission: Permission
    on_node: bool = True
    allow_token: bool = True
    open_ended: bool = False
    upload: bool = False
    since: Number = ()


class Routes:
    """Collects the endpoints of one room: `@routes.get("/nodes/{node}/qemu", …)`."""

    def __init__(self) -> None:
        self.endpoints: list[Endpoint] = []

    def _add(
        self, method: str, path: str, params: Schema | None, permission: Permission, **options: Any
    ) -> Callable[[Handler], Handler]:
        schema = dict(params or {})
        if "{node}" in path:
            schema["node"] = NODE
        if "{vmid}" in path:
            schema["vmid"] = VMID

        def register(handler: Handler) -> Handler:
            self.endpoints.append(Endpoint(method, path, handler, schema, permission, **options))
            return handler

        return register

    def get(
        self, path: str, params: Schema | None = None, permission: Permission = ANYONE, **options: Any
    ) -> Callable[[Handler], Handler]:
        return self._add("GET", path, params, permission, **options)

    def post(
        self, path: str, params: Schema | None = None, permission: Permission = ANYONE, **options: Any
    ) -> Callable[[Handler], Handler]:
        return self._add("POST", path, params, permission, **options)

    def put(
        self, path: str, params: Schema | None = None, permission: Permission = ANYONE, **options: Any
    ) -> Callable[[Handler], Handler]:
        return self._add("PUT", path, params, permission, **options)

    def delete(
        self, path: str, params: Schema | None = None, permission: Permission = ANYONE, **options: Any
    ) -> Callable[[Handler], Handler]:
        return self._add("DELETE", path, params, permission, **options)


class _Branch:
    __slots__ = ("endpoints", "literal", "tail", "variable")

    def __init__(self) -> None:
        self.literal: dict[str, _Branch] = {}
        self.variable: tuple[str, _Branch] | None = None
        self.tail: str | None = None
        self.endpoints: dict[str, Endpoint] = {}


class Router:
    """Finds the endpoint of a path. `{volume}` takes the rest of the path, slashes included, as the original does."""

    _TAIL = "{volume}"

    def __init__(self, *rooms: Routes) -> None:
        self._root = _Branch()
        for room in rooms:
            for endpoint in room.endpoints:
                self._insert(endpoint)

    def _insert(self, endpoint: Endpoint) -> None:
        branch = self._root
        for part in endpoint.path.strip("/").split("/"):
            if part == self._TAIL:
                branch.tail = part[1:-1]
                branch.variable = branch.variable or (branch.tail, _Branch())
                branch = branch.variable[1]
            elif part.startswith("{"):
                branch.variable = branch.variable or (part[1:-1], _Branch())
                branch = branch.variable[1]
            else:
                branch = branch.literal.setdefault(part, _Branch())
        branch.endpoints[endpoint.method] = endpoint

    def find(self, method: str, raw_path: str, release: Release) -> tuple[Endpoint, dict[str, str]] | None:
        """The endpoint and its path parameters, percent-decoded; None if the release has no such call."""
        branch = self._root
        found: dict[str, str] = {}
        parts = [unquote(part) for part in raw_path.split("/") if part]
        for position, part in enumerate(parts):
            if branch.tail is not None and branch.variable is not None:
                found[branch.tail] = "/".join(parts[position:])
                branch = branch.variable[1]
                break
            if part in branch.literal:
                branch = branch.literal[part]
            elif branch.variable is not None:
                name, branch = branch.variable
                found[name] = part
            else:
                return None
        endpoint = branch.endpoints.get(method)
        return None if endpoint is None or not release.has(endpoint.since) else (endpoint, found)
