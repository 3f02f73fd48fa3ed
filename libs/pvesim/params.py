"""Parameter verification with Proxmox VE's rules and its exact words; all wrong parameters are reported together."""

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any, Literal

from libs.pvesim.errors import parameter_errors
from libs.pvesim.releases import Number, Release

Check = Callable[[str], str | None]
"""A format: returns what is wrong with a value, or None. Formats' texts end in a newline, as the original's do."""

_INTEGER = re.compile(r"[+-]?\d+")
_NUMBER = re.compile(r"[+-]?(\d+(\.\d*)?|\.\d+)([eE][+-]?\d+)?")
_UNDEFINED = "property is not defined in schema and the schema does not allow additional properties"


@dataclass(frozen=True, slots=True)
class Param:
    """One parameter of an endpoint. `many` marks `-list` formats, whose repeated keys are joined with commas.

    `since` is the first release that knows the parameter.
    """

    type: Literal["string", "integer", "number", "boolean", "array"] = "string"
    required: bool = False
    minimum: float | None = None
    maximum: float | None = None
    min_length: int | None = None
    max_length: int | None = None
    pattern: str | None = None
    enum: tuple[str, ...] = ()
    check: Check | None = None
    requires: str | None = None
    default: Any = None
    many: bool = False
    since: Number = ()

    def must(self) -> "Param":
        """The same parameter, required."""
        return replace(self, required=True)


Schema = Mapping[str, Param]


def text(max_length: int | None = None, **options: Any) -> Param:
    return Param(max_length=max_length, **options)


def integer(minimum: float | None = None, maximum: float | None = None, **options: Any) -> Param:
    return Param("integer", minimum=minimum, maximum=maximum, **options)


def number(minimum: float | None = None, maximum: float | None = None, **options: Any) -> Param:
    return Param("number", minimum=minimum, maximum=maximum, **options)


def boolean(default: int | None = None, **options: Any) -> Param:
    return Param("boolean", default=default, **options)


def one_of(*values: str, default: str | None = None, **options: Any) -> Param:
    return Param(enum=values, default=default, **options)


def _format(pattern: str, complaint: str) -> Check:
    compiled = re.compile(pattern, re.IGNORECASE)

    def check(value: str) -> str | None:
        return None if compiled.fullmatch(value) else complaint.format(value) + "\n"

    return check


def _each(check: Check) -> Check:
    def check_all(value: str) -> str | None:
        return next(filter(None, (check(item) for item in split_list(value))), None)

    return check_all


def split_list(value: str) -> list[str]:
    """Items of a list parameter: separated by commas, semicolons, blanks or NUL."""
    return [item for item in re.split(r"[,;\s\0]+", value) if item]


check_vmid = _format(r"[1-9]\d{2,8}", "value does not look like a valid VM ID")
check_dns_name = _format(
    r"(?=.{1,253}$)[a-z\d]([a-z\d-]*[a-z\d])?(\.[a-z\d]([a-z\d-]*[a-z\d])?)*",
    "value does not look like a valid DNS name",
)
check_node = _format(r"[a-z\d]([a-z\d-]*[a-z\d])?", "value does not look like a valid node name")
check_config_id = _format(r"[a-z][a-z0-9_-]+", "invalid configuration ID '{}'")
check_storage = _format(r"[a-z][a-z0-9\-_.]*[a-z0-9]", "storage ID '{}' contains illegal characters")
check_pool = _format(r"[a-z][\w.-]+(/[\w.-]+){0,2}", "value '{}' does not look like a valid pool name")
check_tag = _format(r"[a-z0-9_][a-z0-9_\-+.]*", "invalid characters in tag")
check_urlencoded = _format(r"[-%a-z0-9_.!~*'()]*", "invalid urlencoded string: {}")
check_user = _format(r"[^\s:/]+@[a-z][a-z0-9.\-_]+", "value '{}' does not look like a valid user name")
check_role = _format(r"[a-z0-9._-]+", "value '{}' does not look like a valid role name")

NODE = Param(required=True, check=check_node)
VMID = Param("integer", required=True, minimum=100, maximum=999999999, check=check_vmid)
STORAGE = Param(check=check_storage)
NODE_OPTIONAL = Param(check=check_node)
SNAPNAME = Param(check=check_config_id, max_length=40)
POOL = Param(check=check_pool)
TAGS = Param(check=_each(check_tag), many=True)
OPTION_LIST = Param(check=_each(check_config_id), many=True)
VMID_LIST = Param(check=_each(check_vmid), many=True)
STORAGE_LIST = Param(check=_each(check_storage), many=True)
USERID = Param(required=True, max_length=64, check=check_user)
DIGEST = text(40)
VMID_OPTIONAL = Param("integer", minimum=100, maximum=999999999, check=check_vmid)


NEWEST = Release((99,))


def validate(
    schema: Schema, given: Mapping[str, Any], *, open_ended: bool = False, release: Release = NEWEST
) -> dict[str, Any]:
    """Check and convert parameters: integers and booleans become ints, numbers floats, the rest stays text.

    Raises the 400 error that names every wrong parameter, those that the release does not know yet included.
    """
    errors: dict[str, str] = {}
    values: dict[str, Any] = {}
    known = {name: param for name, param in schema.items() if release.has(param.since)}
    for name, raw in given.items():
        param = known.get(name)
        if param is None:
            if open_ended:
                values[name] = raw
            else:
                errors[name] = _UNDEFINED
            continue
        try:
            values[name] = _convert(name, param, raw)
        except ValueError as wrong:
            errors[name] = str(wrong)
            continue
        if param.requires is not None and param.requires not in given:
            errors[param.requires] = f"missing property required by '{name}'"
    for name, param in known.items():
        if param.required and name not in given:
            errors[name] = "property is missing and it is not optional"
        elif param.default is not None and name not in given:
            values[name] = param.default
    if errors:
        raise parameter_errors(errors)
    return values


def _convert(name: str, param: Param, raw: Any) -> Any:
    if param.type == "array":
        return [str(item) for item in raw] if isinstance(raw, list) else [str(raw)]
    if isinstance(raw, list):
        if not param.many:
            raise ValueError(f"type check ('{param.type}') failed - got ARRAY")
        raw = ",".join(str(item) for item in raw)
    value = _typed(param, raw)
    as_text = str(raw)
    if param.check is not None and (complaint := param.check(as_text)) is not None:
        raise ValueError(f"invalid format - {complaint}".replace("format error\n", f"format error\n{name}.", 1))
    _check_text(param, as_text)
    if param.minimum is not None and value < param.minimum:
        raise ValueError(f"value must have a minimum value of {param.minimum:g}")
    if param.maximum is not None and value > param.maximum:
        raise ValueError(f"value must have a maximum value of {param.maximum:.12g}")
    return value


def _typed(param: Param, raw: Any) -> Any:
    if param.type == "boolean":
        if raw is True or raw is False:
            return int(raw)
        if str(raw) not in {"0", "1"}:
            raise ValueError(f"type check ('boolean') failed - got '{raw}'")
        return int(raw)
    if param.type == "integer":
        if isinstance(raw, bool) or not _INTEGER.fullmatch(str(raw)):
            raise ValueError(f"type check ('integer') failed - got '{raw}'")
        return int(raw)
    if param.type == "number":
        if isinstance(raw, bool) or not _NUMBER.fullmatch(str(raw)):
            raise ValueError(f"type check ('number') failed - got '{raw}'")
        return float(raw)
    if isinstance(raw, dict):
        raise ValueError("type check ('string') failed - got HASH")  # noqa: TRY004  (a 400 answer, not a defect)
    return "" if raw is None else str(raw)


def _check_text(param: Param, value: str) -> None:
    if param.max_length is not None and len(value) > param.max_length:
        raise ValueError(f"value may only be {param.max_length} characters long")
    if param.min_length is not None and len(value) < param.min_length:
        raise ValueError(f"value must be at least {param.min_length} characters long")
    if param.pattern is not None and not re.fullmatch(param.pattern, value):
        raise ValueError("value does not match the regex pattern")
    if param.enum and value not in param.enum:
        raise ValueError(f"value '{value}' does not have a value in the enumeration '{', '.join(param.enum)}'")
