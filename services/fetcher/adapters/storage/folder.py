"""The documented layout in a folder: pictures and metadata.json, each written aside and renamed into its place."""

import asyncio
import contextlib
import errno
import os
import shutil
from collections.abc import AsyncIterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from libs.common.errors import StorageFull
from services.fetcher.adapters.storage import metadata as meta
from services.fetcher.adapters.storage.contents import Contents
from services.fetcher.adapters.storage.spool import Spool, let_go, locked, make_folder, remove, sync, write_new
from services.fetcher.models import Item
from services.fetcher.ports import Body, StoredFile, Writing

_READ_BYTES = 262_144


@dataclass(slots=True)
class _Batch:
    """What one write has made so far: files to be renamed, and what goes afterwards."""

    moves: list[tuple[str, str]]
    outdated: list[str]
    contents: dict[str, str]
    replaced: list[str]
    aside: dict[str, str]
    """New bodies of this batch by digest, so that equal ones are written once."""
    linked: set[str]
    """Those of the files that are links to others."""


class FolderStore:
    """Implements `ports.PictureStore`; several processes may share the folder (local or NFS 4, which know flock)."""

    def __init__(self, root: Path, *, min_free_bytes: int = 0) -> None:
        self._root = root
        self._prefix = f"{root}/"
        self._min_free_bytes = min_free_bytes
        self._spool = Spool(root / ".spool")
        self._contents = Contents(root / ".content")

    @property
    def spool(self) -> Path:
        """Where bodies wait for their place: on the same file system, out of the layout's way."""
        return self._spool.path

    @property
    def partials(self) -> Path:
        return self._spool.partials

    async def start(self) -> None:
        await asyncio.to_thread(self._spool.start)

    async def close(self) -> None:
        await asyncio.to_thread(self._spool.close)

    async def check_room(self) -> None:
        if await asyncio.to_thread(self._is_full):
            raise StorageFull("The disk of the picture store is full; nothing was changed", retry_after_s=60)

    async def write(self, batch: Sequence[Writing]) -> list[OSError | None]:
        """Write the batch in a thread: one sync for all that was written, one for all that was renamed."""
        return await asyncio.to_thread(self._write, batch)

    async def file(self, path: str) -> StoredFile | None:
        return await asyncio.to_thread(self._file, path)

    async def holds(self, database: str, collection: str) -> bool:
        return await asyncio.to_thread((self._root / database / collection).is_dir)

    async def known(self, item: Item) -> Mapping[str, Any] | None:
        return await asyncio.to_thread(self._known, item)

    async def remove(self, folder: str, job_id: str) -> None:
        await asyncio.to_thread(self._remove, folder, job_id)

    def _file(self, path: str) -> StoredFile | None:
        found = (self._root / path).resolve()
        if not found.is_relative_to(self._root.resolve()) or not found.is_file():
            return None
        return StoredFile(found.stat().st_size, found, lambda: _chunks(found))

    def _known(self, item: Item) -> Mapping[str, Any] | None:
        folder = f"{self._prefix}{item.folder}"
        entry = meta.entry_of(_read(f"{folder}/{meta.NAME}"), item)
        if entry is None:
            return None
        try:
            there = os.stat(f"{folder}/{entry['file']}").st_size == entry.get("bytes")
        except OSError:
            return None
        return entry if there else None

    def _is_full(self) -> bool:
        return shutil.disk_usage(self._root).free < self._min_free_bytes

    def _write(self, batch: Sequence[Writing]) -> list[OSError | None]:
        errors: dict[int, OSError] = {}
        folders: dict[str, list[int]] = {}
        for at, writing in enumerate(batch):
            folders.setdefault(writing.item.folder, []).append(at)
        with contextlib.ExitStack() as locks:
            work = _Batch([], [], {}, [], {}, set())
            if self._is_full():
                errors = dict.fromkeys(range(len(batch)), OSError(errno.ENOSPC, os.strerror(errno.ENOSPC)))
                folders = {}
            for folder in sorted(folders):  # in one order everywhere, so that two processes never wait in a circle
                try:
                    locks.enter_context(locked(f"{self._prefix}{folder}"))
                    work.moves += self._write_folder(folder, [batch[at] for at in folders[folder]], work)
                except OSError as error:
                    errors |= dict.fromkeys(folders[folder], error)
            try:
                self._settle(work)
            except OSError as error:
                errors = dict.fromkeys(range(len(batch)), error)
        if errors:
            for temporary, _ in work.moves:
                remove(temporary)
        for writing in batch:
            if writing.body is not None:
                writing.body.discard()
        return [errors.get(at) for at in range(len(batch))]

    def _write_folder(self, name: str, batch: Sequence[Writing], work: _Batch) -> list[tuple[str, str]]:
        """Write a folder's new pictures and metadata aside; gives what is to be renamed, pictures first."""
        folder = f"{self._prefix}{name}"
        metadata, originals = f"{folder}/{meta.NAME}", f"{folder}/original"
        merged = meta.merge(_read(metadata), batch)
        moves: list[tuple[str, str]] = []
        contents: dict[str, str] = {}
        try:
            for writing in batch:
                if writing.body is not None and writing.name is not None:
                    target = f"{originals}/{writing.name}"
                    moves.append((self._write_body(writing.body, work), target))
                    contents.setdefault(writing.body.sha256, target)
                for path, data in writing.files():
                    moves.append((self._write_aside(data), f"{self._prefix}{path}"))
            moves.append((self._write_aside(merged.data), metadata))
        except BaseException:
            for temporary, _ in moves:
                remove(temporary)
            raise
        if contents:
            make_folder(originals)
            make_folder(f"{folder}/processed")
        work.contents |= contents
        work.outdated += [f"{folder}/{file}" for file in merged.outdated]
        work.replaced += merged.replaced_sha256
        return moves

    def _write_aside(self, data: bytes) -> str:
        temporary = self._spool.temporary()
        write_new(temporary, data)
        return temporary

    def _write_body(self, body: Body, work: _Batch) -> str:
        """A file with the body's bytes: a link to one that is there already, else a new one."""
        temporary = self._spool.temporary()
        if self._contents.take(body.sha256, body.size_bytes, temporary):
            work.linked.add(temporary)
            return temporary
        twin = work.aside.setdefault(body.sha256, temporary) if body.sha256 else temporary
        if twin != temporary:
            with contextlib.suppress(OSError):
                os.link(twin, temporary)
                work.linked.add(temporary)
                return temporary
        if body.file is not None:
            os.replace(body.file, temporary)
        elif body.data is not None:
            write_new(temporary, body.data)
        return temporary

    def _settle(self, work: _Batch) -> None:
        """Nothing takes its name before its bytes are on the disk, and the names are there when this returns."""
        if not work.moves:
            return
        sync(self.spool)
        for temporary in work.aside.values():
            let_go(temporary)
        for temporary, path in work.moves:
            os.replace(temporary, path)
            if temporary in work.linked:  # rename(2) does nothing between two links of one file
                remove(temporary)
        for path in work.outdated:
            remove(path)
        for sha256, path in work.contents.items():
            self._contents.keep(sha256, path)
        for sha256 in work.replaced:
            self._contents.release(sha256)
        sync(self.spool)

    def _remove(self, name: str, job_id: str) -> None:
        """Each step may be the last before a crash: files first, then the metadata that names them."""
        folder = f"{self._prefix}{name}"
        with contextlib.suppress(FileNotFoundError), locked(folder, make=False):
            removed = meta.remove(_read(f"{folder}/{meta.NAME}"), job_id)
            for file in removed.files:
                remove(f"{folder}/{file}")
            for sha256 in removed.sha256:
                self._contents.release(sha256)
            if removed.data is None:
                shutil.rmtree(folder)
                return
            os.replace(self._write_aside(removed.data), f"{folder}/{meta.NAME}")


async def _chunks(path: Path) -> AsyncIterator[bytes]:
    source = await asyncio.to_thread(path.open, "rb")
    try:
        while piece := await asyncio.to_thread(source.read, _READ_BYTES):
            yield piece
    finally:
        source.close()


def _read(path: str) -> dict[str, Any]:
    try:
        with open(path, "rb") as source:
            return meta.parse(source.read())
    except FileNotFoundError:
        return {}
