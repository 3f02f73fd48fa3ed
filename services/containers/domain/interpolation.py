"""Variables in an own compose file: only the stack's own are put in, never this process's environment; pure.

Source: the Compose specification, «Interpolation».
"""

import re
from collections.abc import Mapping
from typing import Any

from libs.common.errors import FieldError
from services.containers.errors import ComposeRefused

_REFERENCE = re.compile(
    r"\$(?:(?P<escaped>\$)|(?P<plain>[A-Za-z_][A-Za-z0-9_]*)"
    r"|\{(?P<name>[A-Za-z_][A-Za-z0-9_]*)(?:(?P<operator>:?[-?+])(?P<rest>[^{}$]*))?\}|(?P<wrong>))"
)


def interpolated(document: Mapping[str, Any], variables: Mapping[str, str]) -> dict[str, Any]:
    """Put the variables into every text of a document, whose dollar signs are then doubled: nothing is left to read.

    Raises ComposeRefused with the YAML path of each reference to something else.
    """
    errors: list[FieldError] = []
    filled: dict[str, Any] = _walk("", document, variables, errors)
    if errors:
        raise ComposeRefused(errors)
    return filled


def _walk(path: str, value: Any, variables: Mapping[str, str], errors: list[FieldError]) -> Any:
    if isinstance(value, Mapping):
        return {key: _walk(f"{path}.{key}" if path else str(key), v, variables, errors) for key, v in value.items()}
    if isinstance(value, list):
        return [_walk(f"{path}[{place}]", inner, variables, errors) for place, inner in enumerate(value)]
    if isinstance(value, str):
        return _filled(path, value, variables, errors)
    return value


def _filled(path: str, text: str, variables: Mapping[str, str], errors: list[FieldError]) -> str:
    def put(found: re.Match[str]) -> str:
        if found["escaped"]:
            return "$"
        name = found["plain"] or found["name"]
        if name is None:
            errors.append(FieldError(f"/compose/{path}", f"{path}: not a variable; write $$ for a dollar sign"))
            return ""
        value = _value(name, found["operator"] or "", found["rest"] or "", variables)
        if value is None:
            errors.append(FieldError(f"/compose/{path}", f"{path}: {name} is not among the stack's variables"))
        return value or ""

    return _REFERENCE.sub(put, text).replace("$", "$$")


def _value(name: str, operator: str, rest: str, variables: Mapping[str, str]) -> str | None:
    """`:-` and `-` give a default, `:+` and `+` an alternative; `:?` and `?` insist, as everything does here."""
    given = variables.get(name)
    counts = given is not None and (given != "" or not operator.startswith(":"))
    if operator.endswith("+"):
        return rest if counts else ""
    if counts:
        return given
    return rest if operator.endswith("-") else None
