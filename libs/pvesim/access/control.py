"""The access control list: which roles an identity holds on a path, and the privileges that follow from them."""

from collections.abc import Callable
from typing import Any

from libs.pvesim.access.accounts import ROOT, Accounts
from libs.pvesim.access.roles import all_privileges, built_in, spoken
from libs.pvesim.errors import denied
from libs.pvesim.params import NEWEST
from libs.pvesim.releases import Number, Release
from libs.pvesim.store import Store

_SEPARATOR = "\t"


class AccessControl:
    """Roles, entries `(path, authid, role) → propagate`, and the verdicts computed from them."""

    def __init__(
        self,
        store: Store,
        accounts: Accounts,
        loaded_roles: dict[str, dict[str, Any]],
        loaded_entries: dict[str, dict[str, Any]],
        release: Release = NEWEST,
    ) -> None:
        self.release = release
        self.all_privileges = all_privileges(release)
        self.built_in = built_in(release)
        self._store = store
        self._accounts = accounts
        self._cache: dict[tuple[str, str], frozenset[str]] = {}
        self.custom_roles = {name: frozenset(role["privs"]) for name, role in loaded_roles.items()}
        self.entries: dict[tuple[str, str, str], int] = {}
        for key, entry in loaded_entries.items():
            path, authid, role = key.split(_SEPARATOR)
            self.entries[path, authid, role] = entry["propagate"]
        self.pool_of: Callable[[int], str | None] = lambda _vmid: None
        self.stripped: Callable[[str], bool] = lambda _authid: False

    @property
    def roles(self) -> dict[str, frozenset[str]]:
        return self.built_in | self.custom_roles

    def has(self, since: Number) -> bool:
        return self.release.has(since)

    def set_role(self, name: str, privileges: frozenset[str]) -> None:
        self.custom_roles[name] = privileges
        self._store.put("role", name, {"privs": sorted(privileges)})
        self.forget()

    def remove_role(self, name: str) -> None:
        del self.custom_roles[name]
        self._store.delete("role", name)
        self.forget()

    def grant(self, path: str, authid: str, role: str, propagate: int = 1) -> None:
        self.entries[path, authid, role] = propagate
        self._store.put("acl", _SEPARATOR.join((path, authid, role)), {"propagate": propagate})
        self.forget()

    def revoke(self, path: str, authid: str | None = None, role: str | None = None) -> None:
        """Remove the entries of a path, or only those of an identity or role on it."""
        for key in [key for key in self.entries if key[0] == path]:
            if authid in {None, key[1]} and role in {None, key[2]}:
                del self.entries[key]
                self._store.delete("acl", _SEPARATOR.join(key))
        self.forget()

    def forget(self) -> None:
        """Drop computed privileges: something they depend on has changed."""
        self._cache.clear()

    def is_root(self, authid: str) -> bool:
        return authid == ROOT

    def privileges(self, authid: str, path: str) -> frozenset[str]:
        """Privileges of a user or token on a path; a separated token has at most what its owner has."""
        if self.is_root(authid):
            return self.all_privileges
        if self.stripped(authid):
            return frozenset()
        key = (authid, path)
        if key not in self._cache:
            self._cache[key] = self._compute(authid, path)
        return self._cache[key]

    def _compute(self, authid: str, path: str) -> frozenset[str]:
        userid, _, token_id = authid.partition("!")
        if not token_id:
            return self._granted(userid, path)
        token = self._accounts.token(authid)
        owner = self.all_privileges if self.is_root(userid) else self._granted(userid, path)
        if token is None or not token.get("privsep", 1):
            return owner if token is not None else frozenset()
        return owner & self._granted(authid, path)

    def _granted(self, authid: str, path: str) -> frozenset[str]:
        granted = self._inherited(authid, path)
        if path.startswith("/vms/") and path[5:].isdigit():
            pool = self.pool_of(int(path[5:]))
            if pool is not None:
                granted |= self._inherited(authid, f"/pool/{pool}")
        return granted

    def _inherited(self, authid: str, path: str) -> frozenset[str]:
        """Entries on a deeper path replace those inherited from above it."""
        current: set[str] = set()
        for step in _ancestors(path):
            here = {
                role: propagate
                for (entry_path, entry_authid, role), propagate in self.entries.items()
                if entry_path == step and entry_authid == authid and (propagate or step == path)
            }
            if here:
                current = set(here)
        if "NoAccess" in current:
            return frozenset()
        known = self.roles
        return frozenset().union(*(known.get(role, frozenset()) for role in current))

    def allows(self, authid: str, path: str, privileges: tuple[str, ...], *, any_of: bool = False) -> bool:
        held, privileges = self.privileges(authid, path), self._spoken(privileges)
        return any(p in held for p in privileges) if any_of else all(p in held for p in privileges)

    def require(self, authid: str, path: str, privileges: tuple[str, ...], *, any_of: bool = False) -> None:
        """Raise the 403 error whose text names the path and the missing privileges."""
        if not self.allows(authid, path, privileges, any_of=any_of):
            raise denied(f"{path}, {('|' if any_of else ', ').join(self._spoken(privileges))}")

    def _spoken(self, privileges: tuple[str, ...]) -> tuple[str, ...]:
        """Privileges in the release's own words, each once."""
        if self.release.splits_agent_privileges:
            return privileges
        return tuple(dict.fromkeys(next(iter(spoken(frozenset({name}), self.release))) for name in privileges))


def _ancestors(path: str) -> list[str]:
    parts = [part for part in path.split("/") if part]
    return ["/", *("/" + "/".join(parts[: i + 1]) for i in range(len(parts)))]
