"""What a blob store asks of a file system: locked files, moves that last, errors in the service's words."""

import contextlib
import errno
import fcntl
import os
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

from services.images.errors import BlobStoreFull, BlobStoreUnavailable, ImageNotFound, StagedBytesLost, UploadBusy

_FULL = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EFBIG})


@contextlib.contextmanager
def disk_errors() -> Iterator[None]:
    """Tell a full or failing disk in the service's words."""
    try:
        yield
    except OSError as error:
        if error.errno in _FULL:
            raise BlobStoreFull("The disk for images is full; nothing was kept", retry_after_s=60) from error
        raise BlobStoreUnavailable("The disk for images does not answer", retry_after_s=10) from error


@contextlib.contextmanager
def blob_errors() -> Iterator[None]:
    """The same for a published file, which may be gone."""
    with disk_errors():
        try:
            yield
        except FileNotFoundError as error:
            raise ImageNotFound from error


def resume_file(path: Path, offset_bytes: int) -> BinaryIO:
    """Open and lock a file, a new one for 0, and cut it off at that offset; raises StagedBytesLost or UploadBusy."""
    new = offset_bytes == 0
    try:
        file = path.open("w+b" if new and not path.exists() else "r+b", buffering=0)
    except FileNotFoundError as error:
        raise StagedBytesLost("The upload's file is gone") from error
    with contextlib.ExitStack() as undoing:
        undoing.callback(file.close)
        _wind_to(file, offset_bytes)
        if new:
            sync_folder(path.parent)
        undoing.pop_all()
    return file


def _wind_to(file: BinaryIO, offset_bytes: int) -> None:
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        raise UploadBusy("Another connection is writing to this upload", retry_after_s=1) from error
    size_bytes = os.fstat(file.fileno()).st_size
    if size_bytes < offset_bytes:
        raise StagedBytesLost(f"Only {size_bytes} of {offset_bytes} bytes are there")
    file.truncate(offset_bytes)
    file.seek(offset_bytes)


def publish_file(part: Path, target: Path, size_bytes: int) -> None:
    """Move a whole file into place, durably, unless that was done before; raises StagedBytesLost."""
    try:
        with part.open("rb", buffering=0) as file:
            found_bytes = os.fstat(file.fileno()).st_size
            if found_bytes != size_bytes:
                raise StagedBytesLost(f"{found_bytes} bytes are there instead of {size_bytes}")
            os.fsync(file.fileno())
        move(part, target)
    except FileNotFoundError as error:
        if not target.exists():
            raise StagedBytesLost("The upload's file is gone") from error
        for folder in (target.parent, target.parent.parent):
            sync_folder(folder)


def move(path: Path, target: Path) -> None:
    """Rename a file durably; the folder that it comes into is made if need be."""
    target.parent.mkdir(exist_ok=True, mode=0o750)
    path.rename(target)
    for folder in (target.parent, target.parent.parent):
        sync_folder(folder)


def sync_folder(folder: Path) -> None:
    """Make a rename durable (fsync(2): a file's entry in its folder needs a sync of its own)."""
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
