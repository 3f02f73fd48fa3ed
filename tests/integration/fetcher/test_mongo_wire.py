"""What one command writes is one transaction of the embedded job store."""

import sqlite3
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from nx_27017.handler import NeoSQLiteHandler

from cli.mongo_wire import AtOnceHandler

DOCUMENTS = [{"_id": str(number), "text": "x" * 1_000} for number in range(200)]


@pytest.fixture
def handler(tmp_path: Path) -> Iterator[AtOnceHandler]:
    made = AtOnceHandler(data_dir=str(tmp_path))
    yield made
    made.close_all()


def statements(handler: AtOnceHandler) -> list[str]:
    """What SQLite runs from now on, by its first word."""
    seen: list[str] = []
    handler.get_database("shop").db.set_trace_callback(lambda statement: seen.append(statement.split()[0]))
    return seen


def insert(handler: AtOnceHandler, documents: list[dict[str, Any]], **options: Any) -> dict[str, Any]:
    body = {"insert": "products", "$db": "shop", "ordered": False, **options}
    answer: dict[str, Any] = handler.handle_insert(
        {"request_id": 1, "sections": [("body", body), ("payload", {"documents": documents})]}
    )[1]
    return answer


def update(handler: AtOnceHandler, query: dict[str, Any], *, beside: bool) -> dict[str, Any]:
    changes = [{"q": query, "u": {"$set": {"text": "y"}}, "multi": True}]
    body: dict[str, Any] = {"update": "products", "$db": "shop"}
    sections: list[tuple[str, dict[str, Any]]] = [("body", body)]
    if beside:
        sections.append(("payload", {"updates": changes}))
    else:
        body["updates"] = changes
    answer: dict[str, Any] = handler.handle_command({"request_id": 1, "sections": sections})[1]
    return answer


def count(handler: AtOnceHandler) -> int:
    body = {"count": "products", "$db": "shop", "query": {}}
    return int(handler.handle_command({"request_id": 1, "sections": [("body", body)]})[1]["n"])


def test_the_documents_of_an_insert_are_one_transaction(handler: AtOnceHandler) -> None:
    seen = statements(handler)
    assert insert(handler, DOCUMENTS)["n"] == 200
    assert (seen.count("BEGIN"), seen.count("INSERT"), seen.count("COMMIT")) == (1, 200, 1)


@pytest.mark.parametrize("beside", [False, True], ids=["in the body", "beside it"])
def test_an_update_of_documents_by_their_ids_is_one_transaction(handler: AtOnceHandler, *, beside: bool) -> None:
    insert(handler, DOCUMENTS)
    seen = statements(handler)
    ids = [document["_id"] for document in DOCUMENTS[:50]]
    assert update(handler, {"_id": {"$in": ids}}, beside=beside)["nModified"] == 50
    assert (seen.count("BEGIN"), seen.count("UPDATE"), seen.count("COMMIT")) == (1, 50, 1)


def test_an_update_of_any_number_of_documents_is_none(handler: AtOnceHandler) -> None:
    insert(handler, DOCUMENTS)
    seen = statements(handler)
    assert update(handler, {"text": DOCUMENTS[0]["text"]}, beside=True)["nModified"] == 200
    assert (seen.count("BEGIN"), seen.count("UPDATE")) == (0, 200)


def test_a_document_that_is_there_keeps_no_other_from_being_inserted(handler: AtOnceHandler) -> None:
    insert(handler, DOCUMENTS[:3])
    answer = insert(handler, DOCUMENTS[:5])
    assert (answer["n"], [error["code"] for error in answer["writeErrors"]]) == (2, [11000] * 3)
    assert count(handler) == 5


def test_a_command_that_fails_leaves_nothing_behind(handler: AtOnceHandler, monkeypatch: pytest.MonkeyPatch) -> None:
    insert(handler, DOCUMENTS[:1])
    real = NeoSQLiteHandler.handle_insert

    def breaks(self: AtOnceHandler, msg: dict[str, Any]) -> Any:
        real(self, msg)
        raise sqlite3.OperationalError("disk I/O error")

    with monkeypatch.context() as patch:
        patch.setattr(NeoSQLiteHandler, "handle_insert", breaks)
        with pytest.raises(sqlite3.OperationalError):
            insert(handler, DOCUMENTS[1:])
    assert count(handler) == 1


def test_what_sqlite_rolled_back_by_itself_is_not_said_to_be_written(
    handler: AtOnceHandler, monkeypatch: pytest.MonkeyPatch
) -> None:
    insert(handler, DOCUMENTS[:1])
    real = NeoSQLiteHandler.handle_insert

    def rolls_back(self: AtOnceHandler, msg: dict[str, Any]) -> Any:
        answer = real(self, msg)
        self.get_database("shop").db.rollback()  # as SQLite does when the disk is full
        return answer

    with monkeypatch.context() as patch:
        patch.setattr(NeoSQLiteHandler, "handle_insert", rolls_back)
        with pytest.raises(sqlite3.OperationalError, match="rolled back"):
            insert(handler, DOCUMENTS[1:])
    assert count(handler) == 1


def test_a_clients_own_transaction_stays_its_own(handler: AtOnceHandler) -> None:
    session = {"lsid": {"id": "a session"}, "txnNumber": 1, "autocommit": False}
    insert(handler, DOCUMENTS[:1])
    insert(handler, DOCUMENTS[1:3], **session, startTransaction=True)
    insert(handler, DOCUMENTS[3:5], **session)
    abort = {"abortTransaction": 1, "$db": "admin", **session}
    assert handler.handle_command({"request_id": 1, "sections": [("body", abort)]})[1]["ok"] == 1
    assert count(handler) == 1


def test_a_wish_for_durable_writes_is_heard(handler: AtOnceHandler) -> None:
    insert(handler, DOCUMENTS[:1], writeConcern={"j": True})
    assert handler.get_database("shop").db.execute("PRAGMA synchronous").fetchone() == (2,)
