"""Uploads: multipart parts in the order the original insists on, streamed to a file, then copied by a task."""

import secrets
from pathlib import Path
from typing import TYPE_CHECKING, Any

from python_multipart.multipart import MultipartParser, parse_options_header

from libs.pvesim.access.permissions import needs
from libs.pvesim.endpoints import Call, Routes
from libs.pvesim.errors import NOT_IMPLEMENTED, PveError
from libs.pvesim.params import STORAGE, Param, one_of, text, validate
from libs.pvesim.storage.files import ALGORITHMS, adopt, check_content, check_digest, normalised
from libs.pvesim.tasks import TaskRun

if TYPE_CHECKING:
    from python_multipart.multipart import MultipartCallbacks

routes = Routes()
_FIELDS = {
    "content": one_of("iso", "vztmpl", "import").must(),
    "checksum": text(requires="checksum-algorithm"),
    "checksum-algorithm": Param(enum=ALGORITHMS, requires="checksum"),
    "filename": text(255, required=True),
}
_WRITE_BYTES = 1024**2


class _Parts:
    """Collects the small fields in memory and writes the file part to `path`."""

    def __init__(self, path: Path) -> None:
        self.fields: dict[str, Any] = {}
        self.complaint: str | None = None
        self._path = path
        self._header = b""
        self._value = b""
        self._name: str | None = None
        self._first_header = True
        self._in_file = False
        self.pending = bytearray()

    def callbacks(self) -> "MultipartCallbacks":
        return {
            "on_part_begin": self._begin,
            "on_header_field": self._field,
            "on_header_value": self._text,
            "on_header_end": self._header_end,
            "on_part_data": self._data,
        }

    def _begin(self) -> None:
        self._name, self._first_header, self._header, self._value = None, True, b"", b""
        if self._in_file:
            self.complaint = self.complaint or "upload failed"

    def _field(self, data: bytes, start: int, end: int) -> None:
        self._header += data[start:end]

    def _text(self, data: bytes, start: int, end: int) -> None:
        self._value += data[start:end]

    def _header_end(self) -> None:
        name, value = self._header.decode("latin-1").lower(), self._value
        self._header = self._value = b""
        if self._first_header:
            self._first_header = False
            if name != "content-disposition":
                self.complaint = self.complaint or "wrong Content-Disposition in multipart request"
                return
            self._disposition(value)

    def _disposition(self, value: bytes) -> None:
        _, options = parse_options_header(value)
        self._name = options.get(b"name", b"").decode()
        if b"filename" in options:
            if self._name != "filename":
                wrong = f"wrong field name '{self._name}' for file upload, expected 'filename'"
                self.complaint = self.complaint or wrong
            self._in_file = True
            self.fields["filename"] = options[b"filename"].decode()

    def _data(self, data: bytes, start: int, end: int) -> None:
        if self._in_file:
            self.pending += data[start:end]
        elif self._name is not None:
            self.fields[self._name] = self.fields.get(self._name, "") + data[start:end].decode("latin-1")

    def write(self, rest: bytes) -> None:
        with self._path.open("ab") as file:
            file.write(rest)


async def _receive(call: Call, path: Path) -> dict[str, Any]:
    """Read the whole request; returns its fields, with the file's bytes in `path`."""
    headers = call.request.headers
    if "content-length" not in headers:
        raise PveError("upload failed: Content-Length required", status=NOT_IMPLEMENTED, bare=True)
    surprise = call.lab.settings.release.surprise_status
    kind, options = parse_options_header(headers.get("content-type", ""))
    if kind != b"multipart/form-data" or b"boundary" not in options:
        raise PveError("upload failed", status=surprise, bare=True)
    parts = _Parts(path)
    parser = MultipartParser(options[b"boundary"], parts.callbacks())
    async for chunk in call.request.stream():
        parser.write(chunk)
        if len(parts.pending) >= _WRITE_BYTES:
            full, parts.pending = bytes(parts.pending), bytearray()
            await call.lab.threads.run(parts.write, full)
    await call.lab.threads.run(parts.write, bytes(parts.pending))
    if parts.complaint is not None:
        raise PveError(parts.complaint, status=surprise, bare=True)
    return parts.fields


@routes.post(
    "/nodes/{node}/storage/{storage}/upload",
    {"storage": STORAGE.must()},
    needs("/storage/{storage}", "Datastore.AllocateTemplate"),
    upload=True,
    on_node=False,
)
async def upload(call: Call) -> str:
    """The bytes stay on the node whose API was called; its task copies them to where they belong."""
    lab = call.lab
    lab.nodes.known(call.node)
    folder = lab.settings.data_dir / "uploads"
    await lab.threads.run(folder.mkdir, parents=True, exist_ok=True)
    path = folder / f"pveupload-{secrets.token_hex(16)}"
    try:
        fields = validate(_FIELDS, await _receive(call, path))
        storage = lab.storages.usable(call.get("storage"), call.node)
        check_content(storage, fields["content"], lab.settings.release)
        name = normalised(fields["filename"], fields["content"])
    except BaseException:
        path.unlink(missing_ok=True)
        raise

    async def worker(run: TaskRun) -> None:
        try:
            run.log(f"starting file import from: /var/tmp/{path.name}")
            if not lab.nodes.known(call.node).up:
                raise PveError(f"import failed: ssh: connect to host {call.node} port 22: No route to host")
            await run.work(lab.settings.seconds_of("imgcopy"))
            await check_digest(lab, path, fields.get("checksum-algorithm"), fields.get("checksum"))
            await adopt(lab, storage, call.node, fields["content"], name, path)
            run.log("finished file import successfully")
        finally:
            path.unlink(missing_ok=True)

    return lab.tasks.start(call.api_node, "imgcopy", "", call.identity.authid, worker)
