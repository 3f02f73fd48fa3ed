"""Where a stack's code comes from, as asked for; and the sealed credentials of its repository."""

import json
from typing import Any

from libs.common.http import parse
from libs.common.sealing import Sealer
from services.containers.domain.revisions import Source, SourceKind
from services.containers.domain.sources import is_git_ref
from services.containers.errors import GitRefused, InvalidStack
from services.containers.ports import GitAccess, Repositories
from services.containers.schemas import GitWanted

_DEFAULT_USERNAME = "git"
"""Hosts that take a token alone read it from the password, whatever the name."""


class Sources:
    """Checks what can be checked before anybody is called."""

    def __init__(self, repositories: Repositories, sealer: Sealer) -> None:
        self._repositories = repositories
        self._sealer = sealer

    async def wanted(self, asked: GitWanted, *, with_zip: bool) -> Source:
        """Raises InvalidStack or GitRefused."""
        if asked.git_repo_url is None:
            for name in ("git_ref", "git_token", "git_username"):
                if getattr(asked, name) is not None:
                    raise InvalidStack(f"/body/{name}", "There is no git_repo_url that it could belong to")
            return Source(SourceKind.ZIP if with_zip else SourceKind.STARTER)
        if with_zip:
            raise InvalidStack("/body/git_repo_url", "Send either a ZIP or a Git URL, not both")
        await self._repositories.check(asked.git_repo_url)
        if asked.git_ref is not None and not is_git_ref(asked.git_ref):
            raise InvalidStack(
                "/body/git_ref", "A branch, a tag or a commit is named by letters, digits, and . _ / + @ -"
            )
        return Source(SourceKind.GIT, asked.git_repo_url, asked.git_ref)

    def sealed(self, asked: GitWanted) -> str | None:
        """The token sealed, with the origin that alone may ever see it."""
        if asked.git_token is None or asked.git_repo_url is None:
            return None
        kept = {
            "origin": list(parse(asked.git_repo_url).origin),
            "username": asked.git_username or _DEFAULT_USERNAME,
            "token": asked.git_token.get_secret_value(),
        }
        return self._sealer.seal(json.dumps(kept))

    def access(self, sealed: str | None) -> GitAccess | None:
        """What a revision's sealed credentials let in with; raises GitRefused if they cannot be opened."""
        if sealed is None:
            return None
        kept = self._opened(sealed)
        return GitAccess(kept["username"], kept["token"])

    def sealed_again(self, before: str | None, asked: GitWanted, url: str | None) -> str | None:
        """What is kept for a later revision: the new token, or the old one if it is for the same origin."""
        fresh = self.sealed(asked)
        if fresh is not None or before is None or url is None:
            return fresh
        kept = self._opened(before)
        return before if kept["origin"] == list(parse(url).origin) else None

    def _opened(self, sealed: str) -> dict[str, Any]:
        try:
            kept: dict[str, Any] = json.loads(self._sealer.open(sealed))
        except ValueError as error:
            raise GitRefused("The deploy token cannot be read any more; send git_token again") from error
        return kept
