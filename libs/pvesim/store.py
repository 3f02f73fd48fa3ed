"""The lab's memory on disk: JSON documents in SQLite, written behind in one thread and one transaction per batch."""

import asyncio
import json
import sqlite3
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from libs.pvesim.threads import Threads

_SCHEMA = "CREATE TABLE IF NOT EXISTS documents (kind TEXT, key TEXT, body TEXT, PRIMARY KEY (kind, key)) WITHOUT ROWID"
_UPSERT = "INSERT INTO documents VALUES (?, ?, ?) ON CONFLICT (kind, key) DO UPDATE SET body = excluded.body"
_DELETE = "DELETE FROM documents WHERE kind = ? AND key = ?"


class Store:
    """Documents by kind and key.

    Memory is the authority; a batch holds everything changed in the same loop turn, so that a restart never sees half
    of a change.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._connection: sqlite3.Connection | None = None
        self._dirty: dict[tuple[str, str], Mapping[str, Any] | None] = {}
        self._flusher: asyncio.Task[None] | None = None
        self._threads = Threads(1, "pvesim-store")

    async def open(self) -> dict[str, dict[str, Any]]:
        """Open or create the file; returns all documents as kind → key → document."""
        return await self._threads.run(self._open)

    def _open(self) -> dict[str, dict[str, Any]]:
        connection = sqlite3.connect(self._path, check_same_thread=False)
        connection.execute("PRAGMA journal_mode = WAL")
        connection.execute("PRAGMA synchronous = NORMAL")
        connection.execute(_SCHEMA)
        connection.commit()
        self._connection = connection
        found: dict[str, dict[str, Any]] = {}
        for kind, key, body in connection.execute("SELECT kind, key, body FROM documents ORDER BY kind, key"):
            found.setdefault(kind, {})[key] = json.loads(body)
        return found

    def put(self, kind: str, key: str, document: Mapping[str, Any]) -> None:
        self._dirty[kind, key] = document
        self._schedule()

    def delete(self, kind: str, key: str) -> None:
        self._dirty[kind, key] = None
        self._schedule()

    async def durable(self) -> None:
        """Wait until every change made so far is in the file."""
        while self._flusher is not None:
            await asyncio.shield(self._flusher)

    async def aclose(self) -> None:
        await self.durable()
        if self._connection is not None:
            await self._threads.run(self._connection.close)
            self._connection = None
        self._threads.close()

    def _schedule(self) -> None:
        if self._flusher is None:
            self._flusher = asyncio.create_task(self._flush())

    async def _flush(self) -> None:
        try:
            while self._dirty:
                batch = [
                    (kind, key, None if document is None else json.dumps(document))
                    for (kind, key), document in self._dirty.items()
                ]
                self._dirty = {}
                await self._threads.run(self._write, batch)
        finally:
            self._flusher = None

    def _write(self, batch: list[tuple[str, str, str | None]]) -> None:
        if self._connection is None:
            raise sqlite3.ProgrammingError("the lab's store is closed")
        with self._connection:
            self._connection.executemany(_UPSERT, [row for row in batch if row[2] is not None])
            self._connection.executemany(_DELETE, [row[:2] for row in batch if row[2] is None])
