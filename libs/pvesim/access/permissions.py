"""Permission expressions of API calls, evaluated over parameters that are not verified yet, as the original does."""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Protocol

from libs.pvesim.errors import PveError, denied
from libs.pvesim.releases import Number

_PLACEHOLDER = re.compile(r"\{([\w-]+)\}")


class Judge(Protocol):
    """What an expression asks: `require` raises the 403 error with the path and the privileges in its text."""

    def require(self, authid: str, path: str, privileges: tuple[str, ...], *, any_of: bool = False) -> None: ...

    def is_root(self, authid: str) -> bool: ...

    def has(self, since: Number) -> bool:
        """Whether the cluster's release is at least this one."""
        ...


class Permission:
    """Base of all expressions. `world` calls need no login at all."""

    world = False

    def check(self, judge: Judge, authid: str, params: Mapping[str, Any]) -> None:
        """Raise the 403 error unless `authid` may."""


class World(Permission):
    world = True


@dataclass(frozen=True)
class Needs(Permission):
    """Privileges on a path such as `/vms/{vmid}`; with `given`, only satisfiable when that parameter is sent."""

    path: str
    privileges: tuple[str, ...]
    any_of: bool = False
    given: str | None = None

    def check(self, judge: Judge, authid: str, params: Mapping[str, Any]) -> None:
        if self.given is not None and self.given not in params:
            raise denied()
        path = _PLACEHOLDER.sub(lambda match: str(params.get(match[1], "")), self.path)
        judge.require(authid, path, self.privileges, any_of=self.any_of)


@dataclass(frozen=True)
class Self(Permission):
    """The user named by `userid` is the caller."""

    def check(self, judge: Judge, authid: str, params: Mapping[str, Any]) -> None:
        if not judge.is_root(authid) and authid != params.get("userid"):
            raise denied()


@dataclass(frozen=True)
class Since(Permission):
    """One expression from a release on, another one before."""

    release: Number
    then: Permission
    before: Permission

    def check(self, judge: Judge, authid: str, params: Mapping[str, Any]) -> None:
        (self.then if judge.has(self.release) else self.before).check(judge, authid, params)


@dataclass(frozen=True)
class AllOf(Permission):
    parts: tuple[Permission, ...]

    def check(self, judge: Judge, authid: str, params: Mapping[str, Any]) -> None:
        for part in self.parts:
            part.check(judge, authid, params)


@dataclass(frozen=True)
class AnyOf(Permission):
    parts: tuple[Permission, ...]

    def check(self, judge: Judge, authid: str, params: Mapping[str, Any]) -> None:
        for part in self.parts:
            try:
                part.check(judge, authid, params)
            except PveError:
                continue
            return
        raise denied()


WORLD = World()
ANYONE = Permission()


def needs(path: str, *privileges: str, any_of: bool = False) -> Needs:
    return Needs(path, privileges, any_of)
