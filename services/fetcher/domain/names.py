"""Names of databases, collections and fields that callers give, and the folder names made of them."""

import hashlib
import re
from collections.abc import Collection
from urllib.parse import quote

from libs.common.errors import FieldError
from services.fetcher.errors import NameRefused, WriteBackRefused

_DATABASE = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_-]{0,62}")
_COLLECTION = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,119}")
_FIELD = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_ -]{0,63}(\.[A-Za-z0-9_][A-Za-z0-9_ -]{0,63}){0,7}")
_WRITE_BACK = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_-]{0,63}")
_SYSTEM_DATABASES = frozenset({"admin", "local", "config"})
_MAX_FOLDER_ID = 150


def check_source(database: str, collection: str, *, own_database: str, readable: Collection[str] | None = None) -> None:
    """Raise NameRefused unless the names are plain, no system's internals and readable.

    `own_database` is the fetcher's; `readable` are the databases that the operator lists, None for any.
    """
    if not _DATABASE.fullmatch(database):
        raise _refused("database", "it must be 1 to 63 letters, digits, _ and -")
    if database.lower() in _SYSTEM_DATABASES or database.lower() == own_database.lower():
        raise _refused("database", "it is a database of the system itself")
    if readable is not None and database not in readable:
        raise _refused("database", "it is not among those that may be read (TELAR_FETCHER_SOURCE_DATABASES)")
    if not _COLLECTION.fullmatch(collection):
        raise _refused("collection", "it must be 1 to 120 letters, digits, _, - and .")
    if collection.startswith("system."):
        raise _refused("collection", "it is a collection of the system itself")


def check_field(field: str) -> None:
    """Raise NameRefused unless it is a dotted path of plain names, at most eight deep."""
    if not _FIELD.fullmatch(field):
        raise _refused("search_field", "it must be a field name, or a dotted path of at most 8 of them")


def check_write_back(field: str, *, allowed: bool) -> None:
    """Raise WriteBackRefused unless it is one plain top-level field, and the operator lets results be written back."""
    rule = None
    if not allowed:
        rule = "the operator has switched it off (TELAR_FETCHER_WRITE_BACK)"
    elif not _WRITE_BACK.fullmatch(field) or field == "_id":
        rule = "it must be the name of one top-level field: 1 to 64 letters, digits, _ and -"
    if rule is not None:
        raise WriteBackRefused(f"Nothing can be written back: {rule}", errors=[FieldError("/options/write_back", rule)])


def folder_name(document_id: str, search_field: str) -> str:
    """`<document_id>-<search_field>`, with whatever a path cannot hold percent-encoded (also - in the field's name).

    An id too long for a file name is cut and told apart by its digest, so that two ids never share a folder.
    """
    plain = quote(document_id, safe="")
    if plain.startswith("."):
        plain = "%2E" + plain[1:]
    if len(plain) > _MAX_FOLDER_ID:
        plain = f"{plain[: _MAX_FOLDER_ID - 33]}%{hashlib.sha256(document_id.encode()).hexdigest()[:32]}"
    return f"{plain}-{_field_folder(search_field)}"


def items_prefix(job_id: str, folder: str) -> str:
    """What the ids of a job's items in one folder begin with."""
    return f"{job_id}:{hashlib.sha256(folder.encode()).hexdigest()[:20]}"


def item_id(job_id: str, folder: str, type_name: str, position: int) -> str:
    """Always the same for one picture of one job; the number 1 and the text «1» share a folder but no id."""
    return f"{items_prefix(job_id, folder)}{hashlib.sha256(type_name.encode()).hexdigest()[:4]}:{position:03d}"


def _field_folder(search_field: str) -> str:
    name = quote(search_field, safe="").replace("-", "%2D")
    if len(name) > _MAX_FOLDER_ID // 2:
        return f"{name[:40]}%{hashlib.sha256(search_field.encode()).hexdigest()[:32]}"
    return name


def _refused(name: str, rule: str) -> NameRefused:
    return NameRefused(f"The {name} cannot be used: {rule}", errors=[FieldError(f"/{name}", rule)])
