"""Reads the header fields of tus 1.0.0 (https://tus.io/protocols/resumable-upload), strictly."""

import base64
import hashlib
import re
from collections.abc import Mapping
from dataclasses import dataclass

from pydantic import ValidationError

from libs.common.errors import FieldError, Invalid
from services.images.domain import Format, declared_format
from services.images.errors import MalformedTusRequest, TusVersionUnsupported
from services.images.schemas import ImageDescription
from services.images.service.appending import Checksum

VERSION = "1.0.0"
EXTENSIONS = "creation,creation-with-upload,expiration,checksum,termination"
CHECKSUM_ALGORITHMS = ("sha1", "sha256", "md5")
BYTES_TYPE = "application/offset+octet-stream"

_NUMBER = re.compile(r"[0-9]{1,18}")
_KEY = re.compile(r"[!-+\--~]+")  # visible ASCII without the comma
_POINTER = "/header/upload-metadata"
_FILENAME = "filename"


@dataclass(frozen=True, slots=True)
class Metadata:
    """What Upload-Metadata says of an image."""

    filename: str
    format: Format
    said: ImageDescription


def require_version(given: str | None) -> None:
    """Raise TusVersionUnsupported unless the client speaks our version."""
    if given != VERSION:
        raise TusVersionUnsupported(f"Send Tus-Resumable: {VERSION}")


def upload_length(given: str | None, deferred: str | None) -> int:
    """The file's length; raises MalformedTusRequest if it is not told."""
    if deferred is not None:
        raise MalformedTusRequest("Upload-Defer-Length is not supported: space is reserved first, send Upload-Length")
    return _number(given, "Upload-Length")


def upload_offset(given: str | None) -> int:
    return _number(given, "Upload-Offset")


def checksum(given: str | None) -> Checksum | None:
    """Read Upload-Checksum; raises MalformedTusRequest for another algorithm and for what is no digest of it."""
    if given is None:
        return None
    algorithm, _, encoded = given.strip().partition(" ")
    if algorithm not in CHECKSUM_ALGORITHMS:
        raise MalformedTusRequest(f"Upload-Checksum must use one of {', '.join(CHECKSUM_ALGORITHMS)}")
    digest = _decoded(encoded)
    if digest is None or len(digest) != hashlib.new(algorithm, usedforsecurity=False).digest_size:
        raise MalformedTusRequest(f"Upload-Checksum must be '{algorithm}', a space and the digest in base64")
    return Checksum(algorithm, digest)


def metadata(given: str) -> Metadata:
    """Read Upload-Metadata; keys that say nothing of an image are left aside. Raises Invalid with each wrong one."""
    fields, wrong = _pairs(given)
    filename = fields.pop(_FILENAME, "")
    known = {name: value for name, value in fields.items() if name in ImageDescription.model_fields}
    found_format = said = None
    try:
        found_format = declared_format(filename)
    except Invalid as error:
        wrong += [FieldError(f"{_POINTER}/{_FILENAME}", field.detail) for field in error.errors]
    try:
        said = ImageDescription.model_validate({"name": filename, **known})
    except ValidationError as error:
        wrong += [FieldError(f"{_POINTER}/{_path(item['loc'])}", item["msg"]) for item in error.errors()]
    if wrong or found_format is None or said is None:
        raise Invalid("See errors for each wrong key of Upload-Metadata", errors=wrong)
    return Metadata(filename, found_format, said)


def _pairs(given: str) -> tuple[dict[str, str], list[FieldError]]:
    """The pairs of key and decoded value, and what is wrong with the others; a value may be left out."""
    fields: dict[str, str] = {}
    wrong: list[FieldError] = []
    for pair in given.split(",") if given.strip() else ():
        key, _, encoded = pair.strip(" \t").partition(" ")
        if not _KEY.fullmatch(key):
            wrong.append(FieldError(_POINTER, "must be keys with values in base64, as 'key value,key value'"))
        elif key in fields:
            wrong.append(FieldError(f"{_POINTER}/{_escaped(key)}", "stands there twice"))
        else:
            fields[key] = _text(encoded, key, wrong)
    return fields, wrong


def _text(encoded: str, key: str, wrong: list[FieldError]) -> str:
    decoded = _decoded(encoded)
    try:
        if decoded is not None:
            return decoded.decode()
    except UnicodeDecodeError:
        pass
    wrong.append(FieldError(f"{_POINTER}/{_escaped(key)}", "must be UTF-8 in base64"))
    return ""


def _decoded(encoded: str) -> bytes | None:
    """Undo base64 (RFC 4648, 4) if it is written as the RFC has it; Python also takes excess padding."""
    try:
        decoded = base64.b64decode(encoded, validate=True)
    except ValueError:  # binascii's error is one, and so is that of a text that is not ASCII
        return None
    return decoded if base64.b64encode(decoded).decode() == encoded else None


def _number(given: str | None, name: str) -> int:
    if given is None or not _NUMBER.fullmatch(given):
        raise MalformedTusRequest(f"{name} must be a number of bytes")
    return int(given)


def _path(location: Mapping[int, int | str] | tuple[int | str, ...]) -> str:
    return "/".join(_escaped(str(part)) for part in location)


def _escaped(part: str) -> str:
    """A JSON pointer's token (RFC 6901, 3)."""
    return part.replace("~", "~0").replace("/", "~1")
