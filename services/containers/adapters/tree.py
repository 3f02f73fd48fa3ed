"""A stack's code as a tree of files: every step of a path is opened without following links, from the root on."""

import asyncio
import contextlib
import errno
import os
import secrets
import stat
import time
from collections.abc import AsyncIterator, Iterator, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import BinaryIO

from services.containers.domain.archives import Caps
from services.containers.domain.tree import Entry, EntryKind, checked_path, tag_of
from services.containers.errors import CodeStoreFull, FileNotThere, FilePathRefused, FileTooLarge, FolderNotEmpty

_FOLDER = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
_READ = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
_CREATE = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
_MAX_LISTED = 10_000
_MAX_DEPTH = 200
_PARTIAL = ".telar-partial-"
_PARTIAL_MOST_S = 86_400.0
"""No upload takes so long: what is older was left by a crash."""
_ABSENT = (errno.ENOENT, errno.ENOTDIR, errno.ELOOP)


class CodeTree:
    """All calls block. `root` is a working copy; others (the file manager) may change it at the same time."""

    def __init__(self, root: Path, caps: Caps) -> None:
        self._root = root
        self._caps = caps

    def entry(self, path: str) -> Entry:
        """What is at a path; raises FileNotThere or FilePathRefused."""
        parts = checked_path(path)
        if not parts:
            return Entry("", EntryKind.FOLDER, 0, None, "")
        with self._folder(parts[:-1]) as folder:
            return _entry(folder, parts[-1])

    def listed(self, path: str) -> list[Entry]:
        """The entries of a folder, by name; links, special files and names that are no text are not among them."""
        with self._folder(checked_path(path)) as folder:
            names = sorted(os.listdir(folder))[:_MAX_LISTED]  # noqa: PTH208 - pathlib knows no descriptors
            return list(_entries(folder, [name for name in names if _is_text(name) and not name.startswith(_PARTIAL)]))

    def opened(self, path: str) -> tuple[BinaryIO, Entry]:
        """A file to read; the caller closes it."""
        parts = checked_path(path)
        if not parts:
            raise FileNotThere
        with self._folder(parts[:-1]) as folder, _told():
            descriptor = os.open(parts[-1], _READ, dir_fd=folder)
        file = os.fdopen(descriptor, "rb")
        found = os.fstat(descriptor)
        if not stat.S_ISREG(found.st_mode):
            file.close()
            raise FileNotThere
        return file, _described(parts[-1], found)

    async def write(self, path: str, pieces: AsyncIterator[bytes], if_match: str | None, *, is_new: bool) -> Entry:
        """Write a file whole or not at all, making its folders; raises FileTooLarge or PreconditionFailed.

        `if_match` are the tags that what is there must have; with `is_new` nothing may be there.
        """
        parts = checked_path(path)
        if not parts:
            raise FilePathRefused("Name the file to write")
        with self._folder(parts[:-1], make=True) as folder:
            self._check(folder, parts[-1], if_match, is_new=is_new)
            partial = f"{_PARTIAL}{secrets.token_hex(8)}"
            try:
                await self._fill(folder, partial, parts[-1], pieces)
                self._check(folder, parts[-1], if_match, is_new=is_new)  # it may have changed while the body came
                with _told():
                    os.replace(partial, parts[-1], src_dir_fd=folder, dst_dir_fd=folder)
            finally:
                with contextlib.suppress(FileNotFoundError):
                    os.unlink(partial, dir_fd=folder)
            return _entry(folder, parts[-1])

    def remove(self, path: str, if_match: str | None, *, recursive: bool) -> None:
        """Remove a file, or a folder if it is empty or all of it is to go; raises FolderNotEmpty."""
        parts = checked_path(path)
        if not parts:
            raise FilePathRefused("The code's own folder stays; name what is in it")
        with self._folder(parts[:-1]) as folder:
            self._check(folder, parts[-1], if_match, is_new=False)
            found = _entry(folder, parts[-1])
            with _told():
                if found.kind is EntryKind.FILE:
                    os.unlink(parts[-1], dir_fd=folder)
                elif recursive:
                    remove_folder(folder, parts[-1])
                else:
                    _remove_empty(folder, parts[-1])

    def _check(self, folder: int, name: str, if_match: str | None, *, is_new: bool) -> None:
        try:
            found: Entry | None = _entry(folder, name)
        except FileNotThere:
            found = None
        tag_of(found, if_match, is_new=is_new)

    async def _fill(self, folder: int, partial: str, name: str, pieces: AsyncIterator[bytes]) -> None:
        left = await asyncio.to_thread(self._left, (folder, name), 1)
        with _told():
            descriptor = os.open(partial, _CREATE, 0o644, dir_fd=folder)
            with os.fdopen(descriptor, "wb") as file:
                async for piece in pieces:
                    left -= len(piece)
                    self._require_left(left)
                    await asyncio.to_thread(file.write, piece)
        await asyncio.to_thread(self._left, (folder, name))  # others may have written meanwhile

    def _left(self, without: tuple[int, str], more_files: int = 0) -> int:
        """How many bytes may be added to the tree, but for the file that is about to be replaced; uploads count.

        Raises FileTooLarge if it has more than it may, or would have with so many files more.
        """
        used_bytes, files = self._used(without)
        if files + more_files > self._caps.max_files:
            raise FileTooLarge(f"A stack's code has at most {self._caps.max_files} files")
        left = self._caps.max_bytes - used_bytes
        self._require_left(left)
        return left

    def _require_left(self, left_bytes: int) -> None:
        if left_bytes < 0:
            raise FileTooLarge(f"A stack's code has at most {self._caps.max_bytes} bytes in all")

    def _used(self, without: tuple[int, str]) -> tuple[int, int]:
        """The bytes and files of the tree, but for the file that is about to be replaced; removes old partial files."""
        total, files = 0, 0
        oldest = time.time() - _PARTIAL_MOST_S
        top = len(self._root.parts)
        for path, _, names, folder in os.fwalk(self._root, follow_symlinks=False):
            if len(Path(path).parts) - top > _MAX_DEPTH:  # each level costs a descriptor and a frame
                raise FileTooLarge(f"The code has folders deeper than {_MAX_DEPTH} levels: remove them first")
            for name in names:
                with contextlib.suppress(FileNotFoundError):
                    found = os.stat(name, dir_fd=folder, follow_symlinks=False)
                    if name.startswith(_PARTIAL) and found.st_mtime < oldest:
                        os.unlink(name, dir_fd=folder)
                        continue
                    total += found.st_size
                    files += 1
        with contextlib.suppress(FileNotFoundError):
            total -= os.stat(without[1], dir_fd=without[0], follow_symlinks=False).st_size
            files -= 1
        return total, files

    @contextlib.contextmanager
    def _folder(self, parts: Sequence[str], *, make: bool = False) -> Iterator[int]:
        """Open a folder step by step: a link anywhere on the way is as if nothing were there."""
        with _told():
            descriptor = os.open(self._root, _FOLDER)
        try:
            for part in parts:
                with _told():
                    if make:
                        with contextlib.suppress(FileExistsError):
                            os.mkdir(part, 0o755, dir_fd=descriptor)
                    deeper = os.open(part, _FOLDER, dir_fd=descriptor)
                os.close(descriptor)
                descriptor = deeper
            yield descriptor
        finally:
            os.close(descriptor)


def _is_text(name: str) -> bool:
    """Whether a file's name is UTF-8, as no answer can have another: the file manager lets any bytes be one."""
    return name.encode(errors="ignore").decode() == name


def _entries(folder: int, names: Sequence[str]) -> Iterator[Entry]:
    for name in names:
        with contextlib.suppress(FileNotThere):
            yield _entry(folder, name)


def _entry(folder: int, name: str) -> Entry:
    with _told():
        found = os.stat(name, dir_fd=folder, follow_symlinks=False)
    if not (stat.S_ISREG(found.st_mode) or stat.S_ISDIR(found.st_mode)):
        raise FileNotThere
    return _described(name, found)


def _described(name: str, found: os.stat_result) -> Entry:
    is_file = stat.S_ISREG(found.st_mode)
    return Entry(
        name=name,
        kind=EntryKind.FILE if is_file else EntryKind.FOLDER,
        size_bytes=found.st_size if is_file else 0,
        modified_at=datetime.fromtimestamp(found.st_mtime, UTC),
        etag=f'"{found.st_ino:x}-{found.st_mtime_ns:x}-{found.st_size:x}"' if is_file else "",
    )


def _remove_empty(folder: int, name: str) -> None:
    try:
        os.rmdir(name, dir_fd=folder)
    except OSError as error:
        if error.errno == errno.ENOTEMPTY:
            raise FolderNotEmpty("Remove what is in it, or send ?recursive=true") from error
        raise


def remove_folder(parent: int, name: str) -> None:
    """Remove a folder with all that is in it, however deep that lies: what lies deeper is brought to its top first."""
    top = os.open(name, _FOLDER, dir_fd=parent)
    try:
        while names := os.listdir(top):  # noqa: PTH208 - pathlib knows no descriptors
            for inner in names:
                if _is_folder(top, inner):
                    _remove_lifting(top, inner)
                else:
                    os.unlink(inner, dir_fd=top)
    finally:
        os.close(top)
    os.rmdir(name, dir_fd=parent)


def _remove_lifting(top: int, name: str) -> None:
    """Remove a folder and its files; the folders in it go to `top`."""
    folder = os.open(name, _FOLDER, dir_fd=top)
    try:
        for inner in os.listdir(folder):  # noqa: PTH208 - pathlib knows no descriptors
            if _is_folder(folder, inner):
                os.rename(inner, secrets.token_hex(16), src_dir_fd=folder, dst_dir_fd=top)
            else:
                os.unlink(inner, dir_fd=folder)
    finally:
        os.close(folder)
    os.rmdir(name, dir_fd=top)


def _is_folder(parent: int, name: str) -> bool:
    return stat.S_ISDIR(os.stat(name, dir_fd=parent, follow_symlinks=False).st_mode)


@contextlib.contextmanager
def _told() -> Iterator[None]:
    try:
        yield
    except OSError as error:
        if error.errno in _ABSENT:
            raise FileNotThere from error
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise CodeStoreFull("Nothing was changed; tell an operator", retry_after_s=60) from error
        if error.errno in (errno.EISDIR, errno.EEXIST):
            raise FilePathRefused("There is a folder of this name") from error
        raise
