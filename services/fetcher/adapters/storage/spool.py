"""A process's own folder for bodies on their way, locked while it lives; the locks and syncs of the folder store."""

import contextlib
import ctypes
import errno
import fcntl
import itertools
import os
import shutil
from collections.abc import Iterator
from pathlib import Path

from libs.common.ids import uuid7

_libc_syncfs = getattr(ctypes.CDLL(None, use_errno=True), "syncfs", None)


class Spool:
    """`<root>/<made-up name>`: what a killed process left in its own goes at the next start of any.

    `<root>/partials` stays.
    """

    def __init__(self, root: Path) -> None:
        self.path = root / uuid7().hex
        self.partials = root / "partials"
        self._lock: int | None = None
        self._prefix = f"{self.path}/"
        self._numbers = itertools.count(1)

    def start(self) -> None:
        """Make the folder and remove dead processes'; raises OSError if the root cannot be written."""
        with locked(str(self.path.parent)):  # no other start takes this folder for a dead one's before it is locked
            self.path.mkdir()
            self.partials.mkdir(exist_ok=True)
            self._lock = os.open(self.path, os.O_RDONLY | os.O_DIRECTORY)
            fcntl.flock(self._lock, fcntl.LOCK_EX)
            for other in self.path.parent.iterdir():
                if other not in (self.path, self.partials):
                    _remove_unlocked(other)

    def close(self) -> None:
        if self._lock is not None:
            shutil.rmtree(self.path, ignore_errors=True)
            os.close(self._lock)
            self._lock = None

    def temporary(self) -> str:
        return f"{self._prefix}{next(self._numbers)}"


def write_new(path: str, data: bytes) -> None:
    """Write a file that is not there yet, in three calls of the system; what is left of a failed one is removed."""
    handle = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o666)
    try:
        written = 0
        while written < len(data):
            written += os.write(handle, memoryview(data)[written:])
    except OSError:
        remove(path)
        raise
    finally:
        os.close(handle)


def remove(path: str) -> None:
    """Remove a file, if it is there."""
    with contextlib.suppress(FileNotFoundError):
        os.unlink(path)


def sync(folder: Path) -> None:
    """Wait until the file system has all that was written: one call for a whole batch (Linux's syncfs(2))."""
    if _libc_syncfs is None:
        os.sync()
        return
    handle = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        if _libc_syncfs(handle) != 0:
            number = ctypes.get_errno() or errno.EIO
            raise OSError(number, os.strerror(number))
    finally:
        os.close(handle)


def let_go(path: str) -> None:
    """Take a file that was synced out of the page cache (posix_fadvise(2)): nobody reads a new picture soon.

    Its pages are at once there for the next; a page that the kernel must find costs several times as much.
    """
    with contextlib.suppress(OSError):
        handle = os.open(path, os.O_RDONLY)
        try:
            os.posix_fadvise(handle, 0, 0, os.POSIX_FADV_DONTNEED)
        finally:
            os.close(handle)


@contextlib.contextmanager
def locked(folder: str, *, make: bool = True) -> Iterator[None]:
    """The folder, made if need be, under a lock that keeps two processes from losing each other's metadata."""
    while True:
        if make:  # before it is looked for: mostly it is new
            make_folder(folder)
        try:
            handle = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
        except FileNotFoundError:
            if not make:
                raise
            continue  # removed by who had it before
        try:
            fcntl.flock(handle, fcntl.LOCK_EX)
            if not _is_still(folder, handle):
                continue  # removed by who had it before
            yield
        finally:
            os.close(handle)
        return


def make_folder(path: str) -> None:
    """Make a folder and those above it, unless it is there."""
    try:
        os.mkdir(path)
    except FileExistsError:
        return
    except FileNotFoundError:
        os.makedirs(path, exist_ok=True)


def _is_still(folder: str, handle: int) -> bool:
    try:
        return os.stat(folder).st_ino == os.fstat(handle).st_ino
    except FileNotFoundError:
        return False


def _remove_unlocked(folder: Path) -> None:
    try:
        handle = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    except OSError:
        return
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        shutil.rmtree(folder, ignore_errors=True)
    except BlockingIOError:
        pass  # its process lives
    finally:
        os.close(handle)
