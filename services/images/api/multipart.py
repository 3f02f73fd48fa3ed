"""Reads a multipart upload while it arrives (RFC 7578): one file, a few short fields, never the whole in memory."""

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator, Sequence
from typing import Any

from pydantic import ValidationError
from python_multipart.exceptions import FormParserError
from python_multipart.multipart import MultipartParser, parse_options_header
from starlette.requests import ClientDisconnect

from libs.common.errors import FieldError, Invalid
from services.images.errors import MalformedUpload, NotMultipart, UploadInterrupted
from services.images.ports import Chunk
from services.images.schemas import ImageDescription

CHUNK_BYTES = 1 << 21
MAX_FIELD_BYTES = 16_384
MAX_PARTS = 16
FILE_FIELD = "file"


class _Form:
    """The parser's callbacks: collects fields whole and the file's bytes into `arrived`."""

    def __init__(self) -> None:
        self.fields: dict[str, str] = {}
        self.filename: str | None = None
        self.arrived: list[bytes] = []
        self.arrived_bytes = 0
        self.ended = False
        self._parts = 0
        self._header_name = bytearray()
        self._header_value = bytearray()
        self._disposition = b""
        self._name = ""
        self._is_file = False
        self._value = bytearray()

    def on_part_begin(self) -> None:
        self._parts += 1
        if self._parts > MAX_PARTS:
            raise MalformedUpload(f"A form may have at most {MAX_PARTS} parts")
        self._disposition = b""

    def on_header_field(self, data: bytes, start: int, end: int) -> None:
        self._header_name += data[start:end]

    def on_header_value(self, data: bytes, start: int, end: int) -> None:
        self._header_value += data[start:end]

    def on_header_end(self) -> None:
        if self._header_name.lower() == b"content-disposition":
            self._disposition = bytes(self._header_value)
        self._header_name.clear()
        self._header_value.clear()

    def on_headers_finished(self) -> None:
        _, options = parse_options_header(self._disposition)
        self._name = _text(options.get(b"name", b""), "a part's name")
        self._is_file = self._name == FILE_FIELD
        self._value = bytearray()
        if self._is_file:
            if self.filename is not None:
                raise MalformedUpload("A form may have one file only")
            self.filename = _text(options.get(b"filename", b""), "the file's name")
        elif not self._name or b"filename" in options or self._name in self.fields:
            raise MalformedUpload(f"Each part but {FILE_FIELD!r} must be a plain field with a name of its own")

    def on_part_data(self, data: bytes, start: int, end: int) -> None:
        if self._is_file:
            self.arrived.append(data[start:end])
            self.arrived_bytes += end - start
        elif len(self._value) + end - start > MAX_FIELD_BYTES:
            raise MalformedUpload(f"The field {self._name!r} is longer than {MAX_FIELD_BYTES} bytes")
        else:
            self._value += data[start:end]

    def on_part_end(self) -> None:
        if not self._is_file:
            self.fields[self._name] = _text(bytes(self._value), f"the field {self._name!r}")

    def on_end(self) -> None:
        self.ended = True


class MultipartFile:
    """The file in a multipart request, and the fields before and after it.

    `pieces` is the request's body as it comes; a client that is silent for `idle_s` is given up.
    """

    def __init__(self, content_type: str | None, pieces: AsyncIterator[bytes], *, idle_s: float) -> None:
        self._form = _Form()
        self._pieces = pieces
        self._idle_s = idle_s
        callbacks: Any = {name: getattr(self._form, name) for name in dir(self._form) if name.startswith("on_")}
        media_type, options = parse_options_header(content_type)
        if media_type != b"multipart/form-data" or not options.get(b"boundary"):
            raise NotMultipart("Send multipart/form-data with a boundary")
        try:
            self._parser = MultipartParser(options[b"boundary"], callbacks)
        except FormParserError as error:
            raise MalformedUpload(f"The boundary is not one: {error}") from error

    @property
    def filename(self) -> str:
        return self._form.filename or ""

    async def chunks(self) -> AsyncGenerator[Chunk, None]:
        """The file in pieces of about CHUNK_BYTES; ends when the whole form has been read."""
        loop = asyncio.get_running_loop()
        try:
            async with asyncio.timeout(self._idle_s) as idle:
                async for piece in self._pieces:
                    self._parser.write(piece)
                    if self._form.arrived_bytes >= CHUNK_BYTES:
                        idle.reschedule(None)  # from here on it is we who keep the client waiting
                        yield self._cut()
                    idle.reschedule(loop.time() + self._idle_s)
        except FormParserError as error:
            raise MalformedUpload(f"The form cannot be read: {error}") from error
        except ClientDisconnect as error:
            raise UploadInterrupted("The connection ended; send the file again") from error
        except TimeoutError as error:
            raise UploadInterrupted(f"Nothing came for {self._idle_s:.0f} s; send the file again") from error
        if not self._form.ended:
            raise UploadInterrupted("The form has no closing boundary: its end did not arrive")
        if self._form.filename is None:
            raise Invalid("Send the image in the part 'file'", errors=[FieldError("/body/file", "Field required")])
        if self._form.arrived:
            yield self._cut()

    def description(self) -> ImageDescription:
        """The form's fields; raises Invalid with each wrong one."""
        try:
            return ImageDescription.model_validate(self._form.fields)
        except ValidationError as error:
            raise Invalid("See errors for each wrong field", errors=_field_errors(error)) from error

    def _cut(self) -> bytes:
        """The pieces that came, as one: a thread is worth its start for a large one only."""
        cut, self._form.arrived, self._form.arrived_bytes = b"".join(self._form.arrived), [], 0
        return cut


def _field_errors(error: ValidationError) -> Sequence[FieldError]:
    return [FieldError("/body/" + "/".join(str(part) for part in item["loc"]), item["msg"]) for item in error.errors()]


def _text(value: bytes, what: str) -> str:
    try:
        return value.decode()
    except UnicodeDecodeError as error:
        raise MalformedUpload(f"The bytes of {what} are not UTF-8") from error
