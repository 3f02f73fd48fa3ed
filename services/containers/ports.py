"""What the containers service needs from outside: a Docker engine, templates, and a place for code."""

from collections.abc import AsyncIterator, Callable, Sequence
from collections.abc import Set as AbstractSet
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any, BinaryIO, Protocol
from uuid import UUID

from services.containers.domain.archives import Caps
from services.containers.domain.revisions import ImageRecord
from services.containers.domain.stacks import Observed, ServiceUsage
from services.containers.domain.templates import Template, TemplateImage
from services.containers.domain.tree import Entry


class Compose(Protocol):
    """Runs a stack's compose file. Every call can be repeated; one at a time runs per folder, over process crashes too.

    All raise EngineUnavailable, EngineBusy, PortTaken or EngineFailed with words for the stack's owner.
    `folder` holds the compose file, `project` names what it makes on the engine.
    """

    async def up(self, project: str, folder: Path) -> None:
        """Create what is missing and start it; pulls images that are missing; does not wait for health."""

    async def down(self, project: str, folder: Path, *, keep_volumes: bool = False) -> None:
        """Remove containers, networks and volumes; nothing happens if the folder or they are gone already."""

    async def start(self, project: str, folder: Path) -> None: ...
    async def stop(self, project: str, folder: Path) -> None: ...
    async def restart(self, project: str, folder: Path) -> None: ...

    async def resolve(self, project: str, text: str, base: Path) -> dict[str, Any]:
        """Bring a file into its long form, relative paths resolved against `base`; needs no engine.

        Nothing of this process's environment is put in. Raises ComposeRefused with compose's own words.
        """
        ...


@dataclass(frozen=True, slots=True)
class LogLine:
    """One line that a service wrote; `at` is the engine's time."""

    service: str
    at: datetime
    text: str


class Engine(Protocol):
    """Looks at the engine. All raise EngineUnavailable if none answers."""

    async def ping(self) -> None: ...

    async def has_image(self, name: str) -> bool: ...

    async def image_id(self, name: str) -> str | None: ...

    async def images_of(self, project: str) -> dict[str, ImageRecord]:
        """Which image each service of a project runs."""
        ...

    async def observe(self, project: str | None = None) -> Sequence[Observed]:
        """The containers of one project, or of all stacks; stopped ones too."""
        ...

    async def check_health(self, container_id: str) -> bool | None:
        """Run a container's own health check now, without waiting for its turn; None if it has none.

        A check that takes longer than it may (by its own timeout, 30 s at most) has failed.
        """
        ...

    async def remove_project(self, project: str, *, keep_volumes: bool = False) -> None:
        """Remove whatever bears the project's label: containers, networks, volumes."""

    async def require_logs(self, project: str, service: str | None = None) -> None:
        """Raise TooManyLogStreams unless these logs could be read now."""

    def logs(self, project: str, *, tail: int, follow: bool, service: str | None = None) -> AsyncIterator[LogLine]:
        """The last `tail` lines of each container, then, if `follow`, each new one until the caller closes.

        With `service` of that one's alone. Raises TooManyLogStreams.
        """
        ...

    async def usage(self, project: str) -> Sequence[ServiceUsage]:
        """What each running container uses now; takes about a second, in which the engine measures."""
        ...

    def changes(self) -> AsyncIterator[str]:
        """The projects of stacks whose containers have just started, ended, changed their health or gone, without end.

        Raises EngineUnavailable when the engine goes away.
        """
        ...


class CodeStore(Protocol):
    """Each stack's folder: archives of its code, working copies of them, its compose file.

    Raises CodeStoreFull when the disk is.
    """

    async def check(self) -> None: ...

    def folder(self, stack_id: UUID) -> Path: ...

    def code_folder(self, stack_id: UUID, copy_number: int) -> Path:
        """Where a working copy lies; 0 is that of stacks from before there were revisions."""
        ...

    def archive(self, stack_id: UUID, name: str) -> Path: ...

    @property
    def owner(self) -> str:
        """Whom the code's files belong to, as "uid:gid"."""
        ...

    def new_archive(self, stack_id: UUID, name: str) -> Path:
        """Make the stack's folder and name the file that a ZIP is to be written to; blocks."""
        ...

    async def remove_archive(self, stack_id: UUID, name: str) -> None: ...

    async def archive_files(self, stack_id: UUID, name: str, files: Sequence[tuple[str, str]]) -> None:
        """Make an archive of files (path and content)."""

    async def unpack(self, stack_id: UUID, name: str, copy_number: int, caps: Caps) -> str:
        """Unpack an archive into a working copy, once; gives the archive's digest. Raises ArchiveRefused."""
        ...

    async def look(self, stack_id: UUID, copy_number: int, read: Sequence[str]) -> tuple[list[str], dict[str, str]]:
        """The names at the root of a working copy, and the beginnings of those files that are to be read."""
        ...

    async def remove_copy(self, stack_id: UUID, copy_number: int) -> None: ...

    async def prune(
        self, stack_id: UUID, *, copies: AbstractSet[int], archives: AbstractSet[str], least_age_s: float
    ) -> int:
        """Remove all other working copies and archives that have not changed for so long; gives their number."""
        ...

    async def write_compose(self, stack_id: UUID, text: str) -> None: ...

    async def remove(self, stack_id: UUID) -> None:
        """Remove the stack's folder; nothing happens if it is gone already."""

    async def stored(self) -> Sequence[tuple[UUID, float]]:
        """Every stack's folder with its age in seconds."""
        ...


class Catalog(Protocol):
    """The templates there are."""

    @property
    def templates(self) -> Sequence[Template]: ...

    def complete(self, template: Template, given: dict[str, object]) -> dict[str, object]:
        """Check the variables given for a template and fill in its defaults; raises InvalidStack."""
        ...


class Images(Protocol):
    """Decides which image a template runs on this engine."""

    async def choose(self, template: str, image: TemplateImage) -> str: ...


@dataclass(frozen=True, slots=True)
class GitAccess:
    """What a private repository asks for: a user name and a deploy token."""

    username: str
    token: str


class Repositories(Protocol):
    """Git repositories reached over https."""

    async def check(self, url: str) -> None:
        """Raise GitRefused unless the URL may be cloned at all; calls nobody."""

    async def archive(self, url: str, ref: str, access: GitAccess | None, path: Path) -> str:
        """Write the tree at `ref` to a new ZIP at `path`; gives the commit. Raises GitRefused or GitFailed."""
        ...


class Tree(Protocol):
    """A stack's code as files; links are as if they were not there. All but `write` block.

    Raises FilePathRefused and FileNotThere.
    """

    def entry(self, path: str) -> Entry: ...
    def listed(self, path: str) -> list[Entry]: ...
    def opened(self, path: str) -> tuple[BinaryIO, Entry]: ...

    async def write(self, path: str, pieces: AsyncIterator[bytes], if_match: str | None, *, is_new: bool) -> Entry:
        """Write a file whole or not at all; raises FileTooLarge, CodeStoreFull or PreconditionFailed."""
        ...

    def remove(self, path: str, if_match: str | None, *, recursive: bool) -> None: ...


Trees = Callable[[Path, Caps], Tree]
