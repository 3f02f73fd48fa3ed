"""The real files that the demonstration works on: a bootable ISO, a web site, pictures on a web server."""

import io
import shutil
import subprocess
import tempfile
import threading
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

from PIL import Image

from cli.demo.session import web_host

_ISO_PACKAGES = ("grub-rescue-pc", "memtest86+")


def bootable_iso(folder: Path) -> Path:
    """A bootable ISO out of a Debian package; where there is no apt, an ISO 9660 image made here."""
    if shutil.which("apt-get"):
        for package in _ISO_PACKAGES:
            subprocess.run(["apt-get", "download", "-q", package], cwd=folder, capture_output=True, check=False)  # noqa: S603, S607 - fixed words
            for deb in folder.glob(f"{package}_*.deb"):
                subprocess.run(["dpkg-deb", "-x", str(deb), str(folder)], check=False)  # noqa: S603, S607 - the same
            found = [iso for iso in folder.rglob("*.iso") if iso.stat().st_size > 0]
            if found:
                return found[0]
    return _small_iso(folder / "telar-demo.iso")


def _small_iso(path: Path) -> Path:
    """The least that is an ISO 9660 image: a primary volume descriptor and a terminator (ECMA-119, 8.4 and 8.3)."""
    sector = 2048
    primary = bytearray(sector)
    primary[0:7] = b"\x01CD001\x01"
    primary[8:40] = b"TELAR".ljust(32)
    primary[40:72] = b"TELAR_DEMO".ljust(32)
    primary[80:88] = (20).to_bytes(4, "little") + (20).to_bytes(4, "big")
    primary[128:132] = sector.to_bytes(2, "little") + sector.to_bytes(2, "big")
    primary[156:158] = b"\x22\x00"
    primary[881] = 1
    terminator = b"\xffCD001\x01".ljust(sector, b"\0")
    path.write_bytes(b"\0" * sector * 16 + bytes(primary) + terminator + b"\0" * sector * 2)
    return path


def site_zip(text: str) -> bytes:
    """A static site of one page, zipped."""
    packed = io.BytesIO()
    with zipfile.ZipFile(packed, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("index.html", f"<!doctype html><title>Telar</title><h1>{text}</h1>")
        archive.writestr("style.css", "h1 { font-family: sans-serif }")
    return packed.getvalue()


class _Quiet(SimpleHTTPRequestHandler):
    def log_message(self, *_words: Any) -> None:
        """Say nothing: the demonstration speaks for itself."""


@contextmanager
def picture_server(count: int) -> Iterator[list[str]]:
    """Serve pictures of every common format on `web_host()`; gives their URLs."""
    host = web_host()
    with tempfile.TemporaryDirectory(prefix="telar-demo-") as name:
        folder = Path(name)
        for number in range(count):
            form = ("jpg", "png", "gif", "webp")[number % 4]
            picture = Image.linear_gradient("L").resize((320, 200)).rotate(number * 30).convert("RGB")
            picture.save(folder / f"picture-{number}.{form}")
        server = ThreadingHTTPServer((host, 0), partial(_Quiet, directory=name))
        threading.Thread(target=server.serve_forever, daemon=True).start()
        try:
            yield [f"http://{host}:{server.server_port}/{file.name}" for file in sorted(folder.iterdir())]
        finally:
            server.shutdown()
            server.server_close()
