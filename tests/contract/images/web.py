"""A web server that publishes files as well, as badly or as wrongly as a test wants."""

import asyncio
import contextlib
import re
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from email.utils import formatdate

PIECE_BYTES = 65_536
_RANGE = re.compile(r"bytes=(\d+)-")


@dataclass
class Page:
    """A published file; `requests` are the headers of those who asked for it, lower-case names."""

    content: bytes = b""
    etag: str | None = '"one"'
    last_modified: str | None = None
    ranges: bool = True
    honours_if_range: bool = True
    tells_length: bool = True
    headers: dict[str, str] = field(default_factory=dict)
    statuses: list[int] = field(default_factory=list)
    """What the next requests are answered with instead of the file."""
    cuts: list[int] = field(default_factory=list)
    """After how many bytes of their bodies the next answers break off."""
    hold_at: int | None = None
    """From where on a body waits for `released`."""
    released: asyncio.Event = field(default_factory=asyncio.Event)
    requests: list[dict[str, str]] = field(default_factory=list)
    sent_bytes: int = 0
    under_way: int = 0
    most_under_way: int = 0


class Web:
    """Pages by path; an unknown one is a 404."""

    def __init__(self) -> None:
        self.pages: dict[str, Page] = {}
        self.port = 0

    def publish(self, path: str, content: bytes = b"", **options: object) -> Page:
        page = self.pages[path] = Page(content, **options)  # type: ignore[arg-type] # passed on as they are
        return page

    def url(self, path: str) -> str:
        return f"http://127.0.0.1:{self.port}{path}"

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(ConnectionError, asyncio.IncompleteReadError, TimeoutError):
            head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1").split("\r\n")
            headers = {
                name.lower(): value.strip() for name, _, value in (line.partition(":") for line in head[1:] if line)
            }
            page = self.pages.get(head[0].split(" ")[1].partition("?")[0])
            if page is None:
                writer.write(b"HTTP/1.1 404 Not Found\r\ncontent-length: 0\r\n\r\n")
            else:
                page.requests.append(headers)
                page.under_way += 1
                page.most_under_way = max(page.most_under_way, page.under_way)
                try:
                    await _answer(page, headers, writer)
                finally:
                    page.under_way -= 1
            await writer.drain()
        writer.close()
        with contextlib.suppress(ConnectionError):
            await writer.wait_closed()


async def _answer(page: Page, headers: dict[str, str], writer: asyncio.StreamWriter) -> None:
    if page.statuses:
        status = page.statuses.pop(0)
        extra = "".join(f"{name}: {value}\r\n" for name, value in page.headers.items())
        writer.write(f"HTTP/1.1 {status} Told\r\ncontent-length: 0\r\n{extra}\r\n".encode())
        return
    start = _start(page, headers)
    body = page.content[start:]
    told = {"date": formatdate(usegmt=True), "connection": "close", **page.headers}
    if page.etag is not None:
        told["etag"] = page.etag
    if page.last_modified is not None:
        told["last-modified"] = page.last_modified
    if page.ranges:
        told["accept-ranges"] = "bytes"
    if start:
        told["content-range"] = f"bytes {start}-{len(page.content) - 1}/{len(page.content)}"
    told["content-length" if page.tells_length else "transfer-encoding"] = (
        str(len(body)) if page.tells_length else "chunked"
    )
    lines = "".join(f"{name}: {value}\r\n" for name, value in told.items())
    writer.write(f"HTTP/1.1 {206 if start else 200} OK\r\n{lines}\r\n".encode())
    await _send(page, body, start, writer)


def _start(page: Page, headers: dict[str, str]) -> int:
    asked = _RANGE.fullmatch(headers.get("range", ""))
    if asked is None or not page.ranges:
        return 0
    if page.honours_if_range and headers.get("if-range") not in (None, page.etag, page.last_modified):
        return 0
    return int(asked[1])


async def _send(page: Page, body: bytes, start: int, writer: asyncio.StreamWriter) -> None:
    cut = page.cuts.pop(0) if page.cuts else None
    whole = body if cut is None else body[:cut]
    for at in range(0, len(whole), PIECE_BYTES):
        if page.hold_at is not None and start + at >= page.hold_at:
            await writer.drain()
            await page.released.wait()
        piece = whole[at : at + PIECE_BYTES]
        writer.write(piece if page.tells_length else b"%x\r\n%s\r\n" % (len(piece), piece))
        await writer.drain()
        page.sent_bytes += len(piece)
    if cut is None and not page.tells_length:
        writer.write(b"0\r\n\r\n")


@contextlib.asynccontextmanager
async def serving_web() -> AsyncIterator[Web]:
    """Serve on a port of the loopback interface."""
    web = Web()
    server = await asyncio.start_server(web.serve, "127.0.0.1", 0, limit=1 << 20)
    web.port = server.sockets[0].getsockname()[1]
    async with server:
        yield web
        for page in web.pages.values():
            page.released.set()
