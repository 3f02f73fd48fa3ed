"""Reads a request's form and the one file in it, bounded in size and time; never the whole of it in memory."""

import asyncio
import contextlib
import json
import shutil
from collections.abc import AsyncGenerator, AsyncIterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, BinaryIO

from fastapi import Request
from starlette.datastructures import UploadFile
from starlette.formparsers import MultiPartException, MultiPartParser
from starlette.requests import ClientDisconnect

from services.containers.errors import NotAForm, UnreadableForm, ZipTooLarge

_FILE_FIELD = "zip_file"
_MAX_FIELDS = 100
_MAX_JSON_BYTES = 1_048_576
_MAX_FIELD_BYTES = 65_536
_ARRAYS = ("service_types",)
_DOCUMENTS = ("variables", "limits")
_EMPTY = ("", "0")


@dataclass(slots=True)
class Form:
    """What was sent: `fields` as JSON values, and the ZIP if there was one (an empty file input is none)."""

    fields: dict[str, Any] = field(default_factory=dict)
    zip_file: BinaryIO | None = None

    async def save_zip(self, path: Path) -> None:
        """Copy the ZIP to a new file."""
        await asyncio.to_thread(self._save, path)

    def _save(self, path: Path) -> None:
        assert self.zip_file is not None  # noqa: S101 - the caller looked
        self.zip_file.seek(0)
        with path.open("xb") as file:
            shutil.copyfileobj(self.zip_file, file, 1 << 20)


@contextlib.asynccontextmanager
async def read_form(
    request: Request,
    *,
    max_bytes: int,
    idle_s: float,
    may_be_empty: bool = False,
) -> AsyncIterator[Form]:
    """Read multipart/form-data or a JSON object; the ZIP is there until the block ends.

    Raises UnreadableForm, ZipTooLarge or NotAForm.
    """
    media_type = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if media_type == "application/json":
        yield Form(fields=await _read_json(bounded_body(request, _MAX_JSON_BYTES, idle_s)))
        return
    if may_be_empty and not media_type and request.headers.get("content-length", "") in _EMPTY:
        yield Form()
        return
    if media_type != "multipart/form-data":
        raise NotAForm
    parser = MultiPartParser(
        request.headers,
        bounded_body(request, max_bytes + _MAX_FIELDS * _MAX_FIELD_BYTES, idle_s),
        max_files=1,
        max_fields=_MAX_FIELDS,
        max_part_size=_MAX_FIELD_BYTES,
    )
    try:
        data = await parser.parse()
    except (MultiPartException, KeyError) as error:
        raise UnreadableForm(getattr(error, "message", "The form has no boundary")) from error
    try:
        yield _form(data.multi_items(), max_bytes)
    finally:
        await data.close()


@contextlib.asynccontextmanager
async def file_in_form(request: Request, *, max_bytes: int, idle_s: float) -> AsyncIterator[tuple[str, BinaryIO]]:
    """The one file (field `file`) of a form, with its name; raises UnreadableForm, ZipTooLarge or NotAForm."""
    if request.headers.get("content-type", "").partition(";")[0].strip().lower() != "multipart/form-data":
        raise NotAForm
    parser = MultiPartParser(
        request.headers, bounded_body(request, max_bytes + _MAX_FIELD_BYTES, idle_s), max_files=1, max_fields=1
    )
    try:
        data = await parser.parse()
    except (MultiPartException, KeyError) as error:
        raise UnreadableForm(getattr(error, "message", "The form has no boundary")) from error
    try:
        file = data.get("file")
        if not isinstance(file, UploadFile) or not file.filename:
            raise UnreadableForm("The file belongs into the field 'file', with its name")
        yield file.filename, file.file
    finally:
        await data.close()


async def bounded_body(request: Request, max_bytes: int, idle_s: float) -> AsyncGenerator[bytes, None]:
    """The body in pieces; gives up a client that sends too much, or nothing for too long."""
    declared = request.headers.get("content-length", "")
    if declared.isdecimal() and int(declared) > max_bytes:
        raise ZipTooLarge(f"The request may have at most {max_bytes} bytes")
    received, stream = 0, aiter(request.stream())
    try:
        while True:
            async with asyncio.timeout(idle_s):
                piece = await anext(stream, b"")
            if not piece:
                return
            received += len(piece)
            if received > max_bytes:
                raise ZipTooLarge(f"The request may have at most {max_bytes} bytes")
            yield piece
    except TimeoutError as error:
        raise UnreadableForm(f"Nothing came for {idle_s:.0f} s; send it again") from error
    except ClientDisconnect as error:
        raise UnreadableForm("The connection ended; send it again") from error


async def _read_json(pieces: AsyncGenerator[bytes, None]) -> dict[str, Any]:
    body = b"".join([piece async for piece in pieces])
    return _json_object(body, "The body")


def _json_object(text: bytes | str, what: str) -> dict[str, Any]:
    try:
        document = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise UnreadableForm(f"{what} is not valid JSON: {error}") from error
    if not isinstance(document, dict):
        raise UnreadableForm(f"{what} is not a JSON object")
    return document


def _form(items: list[tuple[str, str | UploadFile]], max_bytes: int) -> Form:
    """Arrays may be repeated fields (`service_types` or `service_types[]`) or one with commas, as clients differ."""
    form = Form()
    for raw_name, value in items:
        name = raw_name.removesuffix("[]")
        if isinstance(value, UploadFile):
            _take_file(form, name, value, max_bytes)
        elif name in _ARRAYS:
            form.fields.setdefault(name, []).extend(word.strip() for word in value.split(",") if word.strip())
        elif name in form.fields:
            raise UnreadableForm(f"The field {name!r} is there twice")
        elif name in _DOCUMENTS and value:
            form.fields[name] = _json_object(value, f"The field {name!r}")
        elif value:  # browsers send an empty text for a field that was left out
            form.fields[name] = value
    return form


def _take_file(form: Form, name: str, value: UploadFile, max_bytes: int) -> None:
    if name != _FILE_FIELD:
        raise UnreadableForm(f"The file belongs into the field {_FILE_FIELD!r}")
    if (value.size or 0) > max_bytes:
        raise ZipTooLarge(f"The ZIP may have at most {max_bytes} bytes")
    if value.size:
        form.zip_file = value.file
