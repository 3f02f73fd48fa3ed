"""The steps that a job runs on each picture: their names, which are also their files' names."""

from collections.abc import Mapping, Sequence
from typing import Any

from libs.common.errors import FieldError
from services.fetcher.errors import ProcessingRefused


def named(steps: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """The steps with their names; raises ProcessingRefused if two would write the same file."""
    found = [{**step, "name": _name(step)} for step in steps]
    seen: set[str] = set()
    for position, step in enumerate(found):
        if step["name"] in seen:
            rule = f"{step['name']} is asked for twice"
            raise ProcessingRefused(rule, errors=[FieldError(f"/options/process/{position}", rule)])
        seen.add(step["name"])
    return found


def _name(step: Mapping[str, Any]) -> str:
    kind = step["kind"]
    if kind == "thumbnail":
        return f"thumbnail-{step['size']}"
    if kind == "resize":
        return f"{step['fit']}-{step.get('width') or 'auto'}x{step.get('height') or 'auto'}"
    if kind == "convert":
        return f"as-{step['format'].lower()}"
    if kind == "strip_exif":
        return "stripped"
    return str(step["algorithm"])
