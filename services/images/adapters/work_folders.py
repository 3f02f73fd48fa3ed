"""Private folders to work in, one for each piece of work; those of processes that are gone are swept away.

Also the ways to bring a file in and out without a copy, which need one file system.
"""

import asyncio
import errno
import fcntl
import os
import secrets
import shutil
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path

import structlog

_log = structlog.get_logger()


class WorkFolders:
    """Folders under `root`, which nothing else uses; processes may share it. Each is locked (flock(2)) while in use."""

    def __init__(self, root: Path) -> None:
        self.root = root

    async def prepare(self) -> None:
        await asyncio.to_thread(self.root.mkdir, mode=0o700, parents=True, exist_ok=True)

    @asynccontextmanager
    async def new(self, name: str) -> AsyncIterator[Path]:
        """A folder for this process's eyes only, which is removed at the end with all that is in it."""
        folder, lock = await asyncio.to_thread(self._new, name)
        try:
            yield folder
        finally:
            await asyncio.to_thread(_remove, folder, lock)

    async def sweep(self) -> None:
        """Remove the folders whose process has ended: its locks have ended with it."""
        await asyncio.to_thread(self._sweep)

    def _new(self, name: str) -> tuple[Path, int]:
        while True:
            folder = self.root / f"{name}.{secrets.token_hex(4)}"
            folder.mkdir(mode=0o700)
            lock = _locked(folder)
            if lock is not None and folder.exists():
                return folder, lock
            if lock is not None:  # a sweep came between the two steps and took it away
                os.close(lock)

    def _sweep(self) -> None:
        for folder in self.root.iterdir():
            lock = _locked(folder)
            if lock is not None:
                _remove(folder, lock)
                _log.warning("work_folder_swept", folder=folder.name)


def _locked(folder: Path) -> int | None:
    """A descriptor that holds the folder's lock; None if another has it, or if this is no folder."""
    try:
        lock = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
    except OSError:
        return None
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(lock)
        return None
    return lock


def _remove(folder: Path, lock: int) -> None:
    shutil.rmtree(folder, ignore_errors=True)
    os.close(lock)


def linked(path: Path, target: Path) -> bool:
    """Let a file appear at `target`, too; False if that is on another file system, or if there are no hard links."""
    return _on_one_disk(lambda: target.hardlink_to(path))


def moved(path: Path, target: Path) -> bool:
    """Make a file durable and put it in the place of another; False if that is on another file system.

    The folder that it goes to is the caller's to sync.
    """
    with path.open("rb", buffering=0) as file:
        os.fsync(file.fileno())
    return _on_one_disk(lambda: path.replace(target))


def _on_one_disk(step: Callable[[], object]) -> bool:
    try:
        step()
    except OSError as error:
        if error.errno in (errno.EXDEV, errno.EPERM, errno.EMLINK, errno.ENOTSUP):
            return False
        raise
    return True
