"""Filters that callers write: extended JSON in, a MongoDB query of allow-listed operators out."""

import re
from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from typing import Any

from bson import ObjectId
from bson.decimal128 import Decimal128
from bson.errors import InvalidId
from bson.int64 import Int64

from libs.common.errors import FieldError
from services.fetcher.errors import FilterRefused

MAX_DEPTH = 8
MAX_NODES = 500
MAX_TEXT = 4_096
MAX_PATTERN = 200

_LOGICAL = frozenset({"$and", "$or", "$nor"})
_COMPARISONS = frozenset({"$eq", "$ne", "$gt", "$gte", "$lt", "$lte"})
_LISTS = frozenset({"$in", "$nin", "$all"})
_PLAIN: Mapping[str, Callable[[Any], bool]] = {
    "$exists": lambda operand: isinstance(operand, bool),
    "$size": lambda operand: isinstance(operand, int) and not isinstance(operand, bool) and 0 <= operand < 2**31,
    "$type": lambda operand: isinstance(operand, str) and operand.isalnum(),
    "$regex": lambda operand: isinstance(operand, str) and len(operand) <= MAX_PATTERN and "\x00" not in operand,
    "$options": lambda operand: isinstance(operand, str) and re.fullmatch("[imsx]*", operand) is not None,
}
_FIELD = re.compile(r"[^$\x00.][^$\x00.]*(\.[^$\x00.][^$\x00.]*){0,15}")
_INT64 = range(-(2**63), 2**63)


def parse(filter_: Mapping[str, Any]) -> dict[str, Any]:
    """Check a filter and turn its `{"$oid": …}`, `{"$date": …}`, `{"$numberLong": …}` into BSON's types.

    Raises FilterRefused with the JSON pointer of what is not allowed. `$where`, `$function`, `$expr`, `$jsonSchema` and
    every other operator that runs code or reads other collections is unknown here, at any depth.
    Source: MongoDB Extended JSON v2, https://www.mongodb.com/docs/manual/reference/mongodb-extended-json/.
    """
    return _Parser().query(filter_, "/filter", 1)


class _Parser:
    def __init__(self) -> None:
        self._nodes = 0

    def query(self, filter_: Any, path: str, depth: int) -> dict[str, Any]:
        """A whole query: fields and logical operators."""
        self._count(path, depth)
        if not isinstance(filter_, Mapping):
            raise _refused(path, "a query must be an object")
        parsed: dict[str, Any] = {}
        for name, value in filter_.items():
            inner = f"{path}/{_escaped(name)}"
            if name in _LOGICAL:
                parsed[name] = self._queries(value, inner, depth)
            elif _FIELD.fullmatch(name):
                parsed[name] = self._condition(value, inner, depth + 1)
            else:
                raise _refused(inner, f"{name[:60]!r} is neither a field nor one of {_named(_LOGICAL)}")
        return parsed

    def _queries(self, value: Any, path: str, depth: int) -> list[dict[str, Any]]:
        if not isinstance(value, list) or not value:
            raise _refused(path, "needs a list of queries")
        return [self.query(item, f"{path}/{position}", depth + 1) for position, item in enumerate(value)]

    def _condition(self, value: Any, path: str, depth: int) -> Any:
        """What a field must be: a value, or an object of operators."""
        if not isinstance(value, Mapping) or _is_literal(value) or not any(key.startswith("$") for key in value):
            return self._value(value, path, depth)
        self._count(path, depth)
        return {
            name: self._operand(name, operand, f"{path}/{_escaped(name)}", depth, siblings=value)
            for name, operand in value.items()
        }

    def _operand(self, name: str, operand: Any, path: str, depth: int, *, siblings: Mapping[str, Any]) -> Any:
        if name in _COMPARISONS:
            return self._value(operand, path, depth + 1)
        if name in _LISTS and isinstance(operand, list):
            return [self._value(item, f"{path}/{position}", depth + 1) for position, item in enumerate(operand)]
        if name == "$not" and isinstance(operand, Mapping) and any(key.startswith("$") for key in operand):
            return self._condition(operand, path, depth + 1)
        if name == "$elemMatch":
            return self._element(operand, path, depth + 1)
        if name in _PLAIN and _PLAIN[name](operand) and (name != "$options" or "$regex" in siblings):
            return operand
        raise _refused(path, f"operator {name[:60]!r} is not allowed here, or not with this value")

    def _element(self, operand: Any, path: str, depth: int) -> Any:
        if (
            isinstance(operand, Mapping)
            and operand
            and all(key.startswith("$") and key not in _LOGICAL for key in operand)
        ):
            return self._condition(operand, path, depth)
        return self.query(operand, path, depth)

    def _value(self, value: Any, path: str, depth: int) -> Any:
        self._count(path, depth)
        if isinstance(value, Mapping):
            return self._object(value, path, depth)
        if isinstance(value, list):
            return [self._value(item, f"{path}/{position}", depth + 1) for position, item in enumerate(value)]
        if isinstance(value, str) and len(value) > MAX_TEXT:
            raise _refused(path, f"a text may have at most {MAX_TEXT} characters")
        if isinstance(value, int) and value not in _INT64:
            raise _refused(path, "a number must fit 64 bits")
        return value

    def _object(self, value: Mapping[str, Any], path: str, depth: int) -> Any:
        if _is_literal(value):
            return _literal(value, path)
        parsed = {}
        for name, item in value.items():
            if not _FIELD.fullmatch(name):
                raise _refused(f"{path}/{_escaped(name)}", "an operator cannot stand inside a value")
            parsed[name] = self._value(item, f"{path}/{_escaped(name)}", depth + 1)
        return parsed

    def _count(self, path: str, depth: int) -> None:
        self._nodes += 1
        if depth > MAX_DEPTH:
            raise _refused(path, f"a filter may be at most {MAX_DEPTH} levels deep")
        if self._nodes > MAX_NODES:
            raise _refused(path, f"a filter may have at most {MAX_NODES} parts")


_LITERALS = frozenset({"$oid", "$date", "$numberLong", "$numberDecimal"})


def _is_literal(value: Mapping[str, Any]) -> bool:
    return len(value) == 1 and next(iter(value)) in _LITERALS


def _literal(value: Mapping[str, Any], path: str) -> Any:
    ((kind, text),) = value.items()
    try:
        if kind == "$oid":
            return ObjectId(_text(text))
        if kind == "$numberLong":
            return _int64(int(_text(text)))
        if kind == "$numberDecimal":
            return Decimal128(_text(text))
        return _date(text)
    except (ValueError, TypeError, ArithmeticError, OSError, InvalidId) as error:  # OSError: a date the system lacks
        raise _refused(path, f"not a valid {kind}") from error


def _int64(number: int) -> Int64:
    if number not in _INT64:
        raise ValueError("more than 64 bits")
    return Int64(number)


def _date(value: Any) -> datetime:
    if isinstance(value, Mapping) and set(value) == {"$numberLong"}:
        return datetime.fromtimestamp(int(_text(value["$numberLong"])) / 1000, UTC)
    at = datetime.fromisoformat(_text(value))
    return at.astimezone(UTC) if at.tzinfo else at.replace(tzinfo=UTC)


def _text(value: Any) -> str:
    if not isinstance(value, str):
        raise TypeError("not a text")
    return value


def _escaped(name: str) -> str:
    return name[:80].replace("~", "~0").replace("/", "~1")


def _named(names: frozenset[str]) -> str:
    return ", ".join(sorted(names))


def _refused(path: str, detail: str) -> FilterRefused:
    return FilterRefused(f"At {path}: {detail}", errors=[FieldError(path, detail)])
