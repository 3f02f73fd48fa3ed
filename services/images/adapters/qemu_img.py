"""Conversion with qemu-img: explicit formats, hard limits, a private folder, and an end for whatever goes wrong.

The limits are set by small programs that replace themselves by the next one (setpriv, prlimit and nice: util-linux and
coreutils, which every Debian has), so that no Python code runs between fork and exec, where a lock of another thread
may be held for ever, and no limit comes late. qemu-img dies with the process that called it (setpriv --pdeathsig).
"""

import asyncio
import contextlib
import hashlib
import json
import os
import re
import shutil
import signal
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

import structlog

from services.images.adapters.work_folders import WorkFolders
from services.images.domain import Format, Status, human_size
from services.images.errors import (
    BlobStoreFull,
    BlobStoreUnavailable,
    ConversionFailed,
    ConversionOutgrew,
    ConverterMissing,
    ImageState,
)
from services.images.ports import BlobStore, Estimate, LocalFiles, Master

Progress = Callable[[float], Awaitable[None]]

SOURCE, OUTPUT = "source", "output"
"""The names of the files in a workshop, which is qemu-img's working folder: no path of the server is in its words."""
DRIVERS: Mapping[Format, str] = {Format.QCOW2: "qcow2", Format.RAW: "raw", Format.VMDK: "vmdk", Format.VHD: "vpc"}
_OPTIONS: Mapping[Format, Sequence[str]] = {
    Format.VMDK: ("-o", "subformat=streamOptimized"),
    Format.VHD: ("-o", "subformat=dynamic,force_size=on"),  # else its size is rounded up to whole cylinders
}
_LAUNCHERS = ("setpriv", "prlimit", "nice")
_LAUNCHERS_REMEDY = "installs it (Debian: apt install util-linux coreutils)"
_REMEDY = "installs it (Debian: apt install qemu-utils) or says where it is (TELAR_IMAGES_QEMU_IMG)"
_OPEN_FILES = 64
_NICENESS = 15
_CPU_GRACE_S = 5
_SLACK_BYTES = 4 << 20
_STDERR_BYTES = 4096
_PROGRESS = re.compile(rb"\((\d{1,3}(?:\.\d+)?)/100%\)")
_NO_MEMORY = re.compile(r"cannot allocate memory|failed to allocate|out of memory|resource temporarily", re.IGNORECASE)
_MEMORY_SIGNALS = frozenset({-signal.SIGABRT, -signal.SIGSEGV, -signal.SIGTRAP, -signal.SIGBUS})

_log = structlog.get_logger()


@dataclass(frozen=True, slots=True)
class Limits:
    """What one call of the converter may take; the file size is limited by what is reserved."""

    memory_bytes: int
    cpu_s: int
    wall_s: float


class QemuImg:
    """Converts images in private folders; `program` is a name or an absolute path."""

    def __init__(self, program: str, folders: WorkFolders, blobs: BlobStore, limits: Limits) -> None:
        self._program = program
        self._folders = folders
        self._blobs = blobs
        self._limits = limits

    def require(self) -> None:
        self._command(limit_bytes=0)

    async def version(self) -> str:
        said = (await self.call(["--version"], self._folders.root)).decode(errors="replace")
        return said.partition("\n")[0].removeprefix("qemu-img version ").strip()

    @asynccontextmanager
    async def workshop(self, master: Master) -> AsyncIterator["QemuWorkshop"]:
        if master.status is not Status.ACTIVE:
            raise ImageState(f"The image is {master.status}; only active images can be converted")
        async with self._folders.new(str(master.image_id)) as folder:
            await self._fetch(master, folder / SOURCE)
            yield QemuWorkshop(self, folder, master.format)

    async def call(
        self, arguments: Sequence[str], folder: Path, *, limit_bytes: int = 0, progress: Progress | None = None
    ) -> bytes:
        """Run qemu-img to its end; gives what it wrote to its output (its progress is read on the way, not kept).

        Raises ConversionFailed, ConversionOutgrew, BlobStoreFull. Cancelled, it is killed.
        """
        command = self._command(limit_bytes=limit_bytes)
        process = await asyncio.create_subprocess_exec(
            *command,
            *arguments,
            stdin=asyncio.subprocess.DEVNULL,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE,
            cwd=folder,
            env={},
            start_new_session=True,
        )
        complaints = asyncio.create_task(_last_bytes(process.stderr))
        said = bytearray()
        try:
            async with asyncio.timeout(self._limits.wall_s):
                async with contextlib.aclosing(_pieces(process.stdout)) as pieces:
                    async for piece in pieces:
                        if progress is None:
                            said += piece
                        elif found := _PROGRESS.findall(piece):
                            await progress(float(found[-1]) / 100)
                code = await process.wait()
        except TimeoutError as error:
            raise ConversionFailed(
                f"The conversion took longer than {self._limits.wall_s:g} s; ask an operator to allow more"
            ) from error
        finally:
            _kill(process)
            await process.wait()
            words = (await complaints).decode(errors="replace")
        if code != 0:
            raise self._failure(code, words, limit_bytes)
        return bytes(said)

    def _command(self, *, limit_bytes: int) -> list[str]:
        """What stands before the arguments; raises ConverterMissing."""
        setpriv, prlimit, nice = (_found(name, _LAUNCHERS_REMEDY) for name in _LAUNCHERS)
        cpu_s = self._limits.cpu_s
        return [
            *(setpriv, "--pdeathsig", "KILL", "--no-new-privs", "--"),
            *(prlimit, f"--as={self._limits.memory_bytes}", f"--cpu={cpu_s}:{cpu_s + _CPU_GRACE_S}"),
            *(f"--fsize={limit_bytes}", f"--nofile={_OPEN_FILES}", "--core=0", "--"),
            *(nice, "-n", str(_NICENESS), "--"),
            _found(self._program, _REMEDY),
        ]

    def _failure(self, code: int, words: str, limit_bytes: int) -> Exception:
        if code == -signal.SIGXFSZ or "File too large" in words:
            return ConversionOutgrew(f"The converted image would be larger than {human_size(limit_bytes)}")
        if code == -signal.SIGXCPU:
            return ConversionFailed(
                f"The conversion took more than {self._limits.cpu_s} s of CPU time; ask an operator to allow more"
            )
        if "No space left" in words or "Disk quota exceeded" in words:
            return BlobStoreFull("The disk for conversions is full; nothing was kept", retry_after_s=60)
        if code in _MEMORY_SIGNALS or _NO_MEMORY.search(words):
            allowed = human_size(self._limits.memory_bytes)
            return ConversionFailed(f"The conversion needed more memory than the allowed {allowed}, or crashed")
        reason = words.strip().rpartition("\n")[2].removeprefix("qemu-img: ") or f"it ended with status {code}"
        _log.warning("qemu_img_failed", status=code)
        return ConversionFailed(f"qemu-img could not convert the image: {reason}")

    async def _fetch(self, master: Master, target: Path) -> None:
        """Have the image's file in the workshop, without a copy if it lies on the same disk."""
        if isinstance(self._blobs, LocalFiles) and await self._blobs.lend(master.key, target):
            return
        digest = hashlib.sha256()
        reader = await self._blobs.open(master.key)
        try:
            async with contextlib.aclosing(reader.read(0, master.size_bytes)) as pieces:
                async for piece in pieces:
                    await asyncio.to_thread(digest.update, piece)
                    await asyncio.to_thread(_append, target, piece)
        finally:
            await reader.close()
        if digest.hexdigest() != master.sha256:
            raise BlobStoreUnavailable("The image's file is not what it was; tell an operator")


class QemuWorkshop:
    """One image's private folder."""

    def __init__(self, tool: QemuImg, folder: Path, source: Format) -> None:
        self._tool = tool
        self._folder = folder
        self._source = source

    @property
    def output(self) -> Path:
        return self._folder / OUTPUT

    async def estimate(self, target: Format) -> Estimate:
        driver = "raw" if target is Format.RAW else "qcow2"  # QEMU measures no others, which need a little more
        arguments = ["measure", "--output=json", "-f", DRIVERS[self._source], "-O", driver, SOURCE]
        sizes = json.loads(await self._tool.call(arguments, self._folder))
        likely, at_most = int(sizes["required"]), int(sizes["fully-allocated"])
        if target is Format.RAW:
            return Estimate(likely, at_most)
        return Estimate(likely + likely // 32 + _SLACK_BYTES, at_most + at_most // 32 + _SLACK_BYTES)

    async def convert(self, target: Format, *, compress: bool, limit_bytes: int, progress: Progress) -> Sequence[str]:
        formats = ["-f", DRIVERS[self._source], "-O", DRIVERS[target]]
        options = [*_OPTIONS.get(target, ()), *(["-c"] if compress else [])]
        arguments = ["convert", "-p", *formats, *options, SOURCE, OUTPUT]
        await asyncio.to_thread(self.output.unlink, missing_ok=True)
        await self._tool.call(arguments, self._folder, limit_bytes=limit_bytes, progress=progress)
        return arguments


def _found(program: str, remedy: str) -> str:
    path = shutil.which(program)
    if path is None:
        raise ConverterMissing(f"This server has no {program}, which conversion needs; an operator {remedy}")
    return str(Path(path).absolute())


def _kill(process: asyncio.subprocess.Process) -> None:
    """End it and whatever it started."""
    if process.returncode is None:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)


async def _pieces(stream: asyncio.StreamReader | None) -> AsyncGenerator[bytes, None]:
    while stream is not None and (piece := await stream.read(4096)):
        yield piece


async def _last_bytes(stream: asyncio.StreamReader | None) -> bytes:
    last = b""
    async for piece in _pieces(stream):
        last = (last + piece)[-_STDERR_BYTES:]
    return last


def _append(target: Path, piece: bytes) -> None:
    """Opened anew each time, so that a call that was cancelled never has its file closed under it."""
    try:
        with target.open("ab") as file:
            file.write(piece)
    except OSError as error:
        raise BlobStoreFull("The disk for conversions is full; nothing was kept", retry_after_s=60) from error
