"""The MongoDB-wire server nx-27017, where what one command writes is one transaction of SQLite.

By itself it commits each document, so that an insert of 500 writes the same pages of the log 500 times, and a part of
it stays when it breaks off. Run alone, with nx-27017's own options: `python -I mongo_wire.py`.
"""

import sqlite3
from collections.abc import Callable
from typing import Any

from nx_27017 import daemon
from nx_27017.handler import NeoSQLiteHandler
from nx_27017.nx_27017 import main

Message = dict[str, Any]
Answer = tuple[int, dict[str, Any]]


class AtOnceHandler(NeoSQLiteHandler):  # type: ignore[misc]  # the library has no types
    """Only commands whose documents are in the message or told by their ids: others may touch any number of them."""

    def handle_insert(self, msg: Message) -> Answer:
        return self._at_once(msg, super().handle_insert)

    def handle_command(self, msg: Message) -> Answer:
        updates = _updates(msg)
        if updates and all("_id" in update.get("q", ()) for update in updates):
            return self._at_once(msg, super().handle_command)
        answer: Answer = super().handle_command(msg)
        return answer

    def _at_once(self, msg: Message, handle: Callable[[Message], Answer]) -> Answer:
        """Raises sqlite3.Error if nothing was written, which the server tells the client."""
        command = _command(msg)
        name = command.get("$db", "test")
        with self._lock_for(name):
            database = self.get_database(name)
            if database.db.in_transaction or "autocommit" in command:  # the client's own transaction
                return handle(msg)
            self._apply_write_concern(database, name, command.get("writeConcern"))  # not possible in a transaction
            database.db.execute("BEGIN IMMEDIATE")
            try:
                answer = handle(msg)
                _commit(database.db)
            except BaseException:
                database.db.rollback()
                raise
            return answer


def _commit(connection: sqlite3.Connection) -> None:
    """SQLite has rolled back by itself where it could not write, as on a full disk."""
    if not connection.in_transaction:
        raise sqlite3.OperationalError("the transaction was rolled back")
    connection.commit()


def _command(msg: Message) -> dict[str, Any]:
    return next((section for kind, section in msg["sections"] if kind == "body"), {})


def _updates(msg: Message) -> list[dict[str, Any]]:
    """What an update command is to change: in its body, or beside it as drivers send them."""
    if "update" not in _command(msg):
        return []
    return [
        update for _, section in msg["sections"] if isinstance(section, dict) for update in section.get("updates", ())
    ]


if __name__ == "__main__":
    daemon.NeoSQLiteHandler = AtOnceHandler
    main()
