"""Rules for single values of a compose model; each yields what is wrong, with the value's YAML path."""

import re
from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

_IMAGE = re.compile(
    r"(?=.{1,255}$)([a-z0-9.-]+(:[0-9]{1,5})?/)?[a-z0-9]+([._/-]+[a-z0-9]+)*(:[\w][\w.-]{0,127})?(@sha256:[0-9a-f]{64})?"
)
_SIZE = re.compile(r"([0-9]{1,18})([bkmg]?)b?", re.IGNORECASE)
_UNITS = {"": 1, "b": 1, "k": 1024, "m": 1024**2, "g": 1024**3}
_INTERPOLATION = re.compile(r"(?<!\$)(\$\$)*\$(?!\$)")
_TMPFS = re.compile(r"/[^:,]*:(?=.*\bsize=)(?:(?:size=[0-9]+[kmg]?|mode=[0-7]{3,4}|noexec|nosuid|nodev)(?:,|$))+")
_SECONDS = re.compile(r"(?=.)(?:([0-9]{1,4})m)?(?:([0-9]{1,4})s)?")
_MAX_GRACE_S = 120
_MAX_LOG_BYTES = 100 * 1024**2
_MAX_LOG_FILES = 10


@dataclass(frozen=True, slots=True)
class Violation:
    """One refused place of a file: `path` such as `services.web.volumes[0].source`."""

    path: str
    reason: str


Findings = Iterator[Violation]


def refuse(path: str, reason: str) -> Violation:
    return Violation(path, reason)


def only(path: str, value: Any, allowed: Collection[str]) -> Findings:
    """Refuse each key that is not allowed."""
    if not isinstance(value, Mapping):
        yield refuse(path, "must be a mapping")
        return
    for key in value:
        if key not in allowed:
            yield refuse(f"{path}.{key}" if path else str(key), "this key is not allowed")


def items(path: str, value: Any) -> Iterable[tuple[str, Any]]:
    """A list's items with their paths; something else stands as one item that no rule accepts."""
    if not isinstance(value, list):
        return [(path, None)]
    return [(f"{path}[{place}]", item) for place, item in enumerate(value)]


def image(path: str, value: Any) -> Findings:
    if not isinstance(value, str) or not _IMAGE.fullmatch(value):
        yield refuse(path, "must name an image")


def text(path: str, value: Any) -> Findings:
    if not isinstance(value, str):
        yield refuse(path, "must be a text")


def boolean(path: str, value: Any) -> Findings:
    if not isinstance(value, bool):
        yield refuse(path, "must be true or false")


def words(path: str, value: Any) -> Findings:
    if not isinstance(value, list) or not all(isinstance(word, str) for word in value):
        yield refuse(path, "must be a list of texts")


def one_of(path: str, value: Any, allowed: Collection[str]) -> Findings:
    if value not in allowed:
        yield refuse(path, f"must be one of {', '.join(allowed)}")


def exactly(path: str, value: Any, allowed: list[str]) -> Findings:
    for where, item in items(path, value):
        if item not in allowed:
            yield refuse(where, f"only {', '.join(allowed)} is allowed")


def whole(path: str, value: Any, most: int) -> Findings:
    if isinstance(value, bool) or not isinstance(value, int) or not 0 < value <= most:
        yield refuse(path, f"must be a whole number from 1 to {most}")


def byte_size(value: Any) -> int | None:
    """A size such as 268435456, "256m" or "1g" in bytes; None if it is not one."""
    found = _SIZE.fullmatch(str(value)) if isinstance(value, int | str) and not isinstance(value, bool) else None
    return int(found[1]) * _UNITS[found[2].lower()] if found else None


def environment(path: str, value: Any) -> Findings:
    """A value that is left out would be taken from the environment of whoever runs compose."""
    if not isinstance(value, Mapping):
        yield refuse(path, "must be in the long form")
        return
    for name, inner in value.items():
        if not isinstance(inner, str | int | float):
            yield refuse(f"{path}.{name}", "must have a value in the file")


def grace_period(path: str, value: Any) -> Findings:
    """It is waited for whenever the container is replaced or stopped."""
    found = _SECONDS.fullmatch(value) if isinstance(value, str) else None
    if found is None or 60 * int(found[1] or 0) + int(found[2] or 0) > _MAX_GRACE_S:
        yield refuse(path, "must be whole seconds and at most 2m")


def depends_on(path: str, value: Any) -> Findings:
    if not isinstance(value, Mapping):
        yield refuse(path, "must be in the long form")
        return
    for name, options in value.items():
        yield from only(f"{path}.{name}", options, {"condition", "required", "restart"})


_HEALTHCHECK_KEYS = frozenset({"test", "interval", "timeout", "retries", "start_period", "start_interval", "disable"})


def healthcheck(path: str, value: Any) -> Findings:
    yield from only(path, value, _HEALTHCHECK_KEYS)
    if isinstance(value, Mapping) and value.get("test") is not None:
        yield from words(f"{path}.test", value["test"])


def tmpfs(path: str, value: Any) -> Findings:
    """Memory file systems need a size: they count as the container's memory only once they are written."""
    for where, item in items(path, value):
        if not isinstance(item, str) or not _TMPFS.fullmatch(item):
            yield refuse(where, "must be /a/path:size=64m")


def logging(path: str, value: Any) -> Findings:
    yield from only(path, value, {"driver", "options"})
    if not isinstance(value, Mapping):
        return
    options = value.get("options") or {}
    yield from only(f"{path}.options", options, {"max-size", "max-file"})
    if value.get("driver") != "json-file":
        yield refuse(f"{path}.driver", "must be json-file")
    if not isinstance(options, Mapping):
        return
    if not 0 < (byte_size(options.get("max-size")) or 0) <= _MAX_LOG_BYTES:
        yield refuse(f"{path}.options.max-size", "logs need a largest size of at most 100m")
    if str(options.get("max-file")) not in {str(number) for number in range(1, _MAX_LOG_FILES + 1)}:
        yield refuse(f"{path}.options.max-file", f"must be 1 to {_MAX_LOG_FILES}")


def interpolations(path: str, value: Any) -> Findings:
    """Find texts into which compose would read variables; `$$` is a plain dollar sign."""
    if isinstance(value, Mapping):
        for key, inner in value.items():
            yield from interpolations(f"{path}.{key}" if path else str(key), inner)
    elif isinstance(value, list):
        for place, inner in enumerate(value):
            yield from interpolations(f"{path}[{place}]", inner)
    elif isinstance(value, str) and _INTERPOLATION.search(value):
        yield refuse(path, "variables are not allowed here; write $$ for a dollar sign")
