"""Stacks' folders on a file system that the engine shares: archives, working copies of code, compose file."""

import asyncio
import contextlib
import errno
import hashlib
import os
import re
import shutil
import threading
import time
import zipfile
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from collections.abc import Set as AbstractSet
from pathlib import Path
from uuid import UUID

from services.containers.adapters.tree import remove_folder
from services.containers.adapters.unpacking import unpack_zip
from services.containers.domain.archives import Caps
from services.containers.domain.compose import COMPOSE_FILE
from services.containers.errors import CodeStoreFull

_ARCHIVES = "sources"
_COPY = re.compile(r"code-([0-9]+)")
_PARTIAL = "code.partial"
_MAX_LOOKED_BYTES = 262_144
_EPOCH = (1980, 1, 1, 0, 0, 0)
_DISK_FULL = (errno.ENOSPC, errno.EDQUOT)


class _Stopped(Exception):
    pass


class FolderCodeStore:
    """One folder per stack, named by its id. `root` is the same absolute path on the engine's host."""

    def __init__(self, root: Path) -> None:
        self._root = root.absolute()

    async def prepare(self) -> None:
        # Containers run as users of their own, which must be able to reach the code.
        await asyncio.to_thread(self._root.mkdir, parents=True, exist_ok=True, mode=0o755)

    async def check(self) -> None:
        def probe() -> None:
            if not os.access(self._root, os.W_OK | os.X_OK):
                raise PermissionError(f"{self._root} cannot be written")

        await asyncio.to_thread(probe)

    def folder(self, stack_id: UUID) -> Path:
        return self._root / stack_id.hex

    def code_folder(self, stack_id: UUID, copy_number: int) -> Path:
        return self.folder(stack_id) / (f"code-{copy_number}" if copy_number else "code")

    def archive(self, stack_id: UUID, name: str) -> Path:
        return self.folder(stack_id) / _ARCHIVES / name

    @property
    def owner(self) -> str:
        return f"{os.geteuid()}:{os.getegid()}"

    def new_archive(self, stack_id: UUID, name: str) -> Path:
        path = self.archive(stack_id, name)
        with _disk_errors():
            path.parent.mkdir(mode=0o755, parents=True, exist_ok=True)
        return path

    async def remove_archive(self, stack_id: UUID, name: str) -> None:
        await asyncio.to_thread(self.archive(stack_id, name).unlink, missing_ok=True)

    async def archive_files(self, stack_id: UUID, name: str, files: Sequence[tuple[str, str]]) -> None:
        await asyncio.to_thread(self._archive_files, self.new_archive(stack_id, name), files)

    async def unpack(self, stack_id: UUID, name: str, copy_number: int, caps: Caps) -> str:
        archive, code = self.archive(stack_id, name), self.code_folder(stack_id, copy_number)

        def fill(partial: Path, check_stop: Callable[[], None]) -> int:
            return unpack_zip(archive, partial, caps, check_stop=check_stop)

        async with _stoppable() as check_stop:
            await asyncio.to_thread(self._fill_once, code, lambda partial: fill(partial, check_stop))
        return await asyncio.to_thread(_digest, archive)

    async def remove_copy(self, stack_id: UUID, copy_number: int) -> None:
        with contextlib.suppress(FileNotFoundError):
            await asyncio.to_thread(_remove, self.code_folder(stack_id, copy_number))

    async def look(self, stack_id: UUID, copy_number: int, read: Sequence[str]) -> tuple[list[str], dict[str, str]]:
        return await asyncio.to_thread(_look, self.code_folder(stack_id, copy_number), read)

    async def prune(
        self, stack_id: UUID, *, copies: AbstractSet[int], archives: AbstractSet[str], least_age_s: float
    ) -> int:
        return await asyncio.to_thread(self._prune, self.folder(stack_id), copies, archives, least_age_s)

    async def write_compose(self, stack_id: UUID, text: str) -> None:
        await asyncio.to_thread(self._write_compose, self.folder(stack_id) / COMPOSE_FILE, text)

    async def remove(self, stack_id: UUID) -> None:
        with contextlib.suppress(FileNotFoundError):
            await asyncio.to_thread(_remove, self.folder(stack_id))

    async def stored(self) -> Sequence[tuple[UUID, float]]:
        return await asyncio.to_thread(lambda: list(self._stored()))

    def _fill_once(self, code: Path, fill: Callable[[Path], int]) -> None:
        """Fill a partial folder and rename it into place, so that a code folder is always whole."""
        partial = code.parent / _PARTIAL
        if code.exists():
            return
        with _disk_errors():
            shutil.rmtree(partial, ignore_errors=True)
            partial.mkdir(mode=0o755, parents=True)
            fill(partial)
            partial.rename(code)

    def _archive_files(self, path: Path, files: Sequence[tuple[str, str]]) -> None:
        """The same files make the same archive, byte for byte."""
        partial = path.with_suffix(".partial")
        with _disk_errors():
            with zipfile.ZipFile(partial, "w", zipfile.ZIP_DEFLATED) as zipped:
                for name, content in files:
                    zipped.writestr(zipfile.ZipInfo(name, _EPOCH), content)
            partial.replace(path)

    def _prune(self, folder: Path, copies: AbstractSet[int], archives: AbstractSet[str], least_age_s: float) -> int:
        removed = 0
        for path in [*folder.glob("code*"), *folder.glob(f"{_ARCHIVES}/*")]:
            found = _COPY.fullmatch(path.name)
            is_kept = path.name in archives if path.parent.name == _ARCHIVES else _copy_number(path, found) in copies
            with contextlib.suppress(FileNotFoundError):
                if is_kept or time.time() - path.stat().st_ctime < least_age_s:
                    continue
                if path.is_dir():
                    _remove(path)
                else:
                    path.unlink()
                removed += 1
        return removed

    def _write_compose(self, path: Path, text: str) -> None:
        with _disk_errors():
            path.parent.mkdir(mode=0o755, parents=True, exist_ok=True)
            partial = path.with_suffix(".partial")
            partial.write_text(text)
            partial.replace(path)

    def _stored(self) -> Iterator[tuple[UUID, float]]:
        for path in self._root.iterdir():
            with contextlib.suppress(ValueError, FileNotFoundError):  # not ours, or gone by now: never touched
                yield UUID(path.name), time.time() - path.stat().st_mtime


def _copy_number(path: Path, found: re.Match[str] | None) -> int | None:
    if found is not None:
        return int(found[1])
    return 0 if path.name == "code" else None


def _remove(path: Path) -> None:
    """Remove a folder: its stack's file manager may have made it deeper than `shutil.rmtree` can follow."""
    parent = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY)
    try:
        remove_folder(parent, path.name)
    finally:
        os.close(parent)


def _digest(path: Path) -> str:
    with path.open("rb") as file:
        return f"sha256:{hashlib.file_digest(file, 'sha256').hexdigest()}"


def _look(folder: Path, read: Sequence[str]) -> tuple[list[str], dict[str, str]]:
    names = sorted(path.name for path in folder.iterdir())
    texts: dict[str, str] = {}
    for name in set(read) & set(names):
        path = folder / name
        if path.is_file() and not path.is_symlink():
            with path.open("rb") as file:
                texts[name] = file.read(_MAX_LOOKED_BYTES).decode(errors="replace")
    return names, texts


@contextlib.asynccontextmanager
async def _stoppable() -> AsyncIterator[Callable[[], None]]:
    """A check for work in a thread that raises once the awaiting task has been cancelled: threads do not end by it."""
    stopped = threading.Event()

    def check() -> None:
        if stopped.is_set():
            raise _Stopped

    try:
        yield check
    finally:
        stopped.set()


@contextlib.contextmanager
def _disk_errors() -> Iterator[None]:
    try:
        yield
    except OSError as error:
        if error.errno in _DISK_FULL:
            raise CodeStoreFull("Nothing was changed; tell an operator", retry_after_s=60) from error
        raise
