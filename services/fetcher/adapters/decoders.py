"""A pool of decoder processes, each fed a few pictures ahead, killed and replaced when one hangs or dies."""

import asyncio
import contextlib
import json
import socket
import struct
import sys
from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import structlog

from services.fetcher.adapters import decoder_process
from services.fetcher.domain.jobs import Check
from services.fetcher.ports import Body, Picture, PictureRefused, Result

_AHEAD = 4
_SOCKET_BYTES = 1_048_576

_log = structlog.get_logger()


@dataclass(frozen=True, slots=True, eq=False)
class _Task:
    body: Body
    check: Check
    steps: Sequence[Mapping[str, Any]]
    answer: asyncio.Future[Picture]


@dataclass(frozen=True, slots=True, eq=False)
class _Decoder:
    process: asyncio.subprocess.Process
    reader: asyncio.StreamReader
    writer: asyncio.StreamWriter


class DecoderPool:
    """Implements `ports.Decoder`; processes start when first needed.

    A process gets up to four pictures at once, so that it never waits for this process between two. When it
    hangs or dies, the picture whose answer was due is to blame; those behind it go to another process.
    """

    def __init__(self, *, processes: int, max_pixels: int, max_frames: int, timeout_s: float) -> None:
        self._command = [
            sys.executable,
            "-I",
            str(Path(decoder_process.__file__).resolve()),
            str(max_pixels),
            str(max_frames),
        ]
        self._processes = processes
        self._timeout_s = timeout_s
        self._waiting: deque[_Task] = deque()
        self._idle: list[_Decoder | None] = [None] * processes
        self._all: set[asyncio.subprocess.Process] = set()
        self._runs: set[asyncio.Task[None]] = set()

    async def inspect(self, body: Body, check: Check = Check.FULL, steps: Sequence[Mapping[str, Any]] = ()) -> Picture:
        task = _Task(body, check, steps, asyncio.get_running_loop().create_future())
        self._waiting.append(task)
        if self._idle:
            run = asyncio.create_task(self._run(self._idle.pop()))
            self._runs.add(run)
            run.add_done_callback(self._runs.discard)
        return await task.answer

    async def close(self) -> None:
        for run in list(self._runs):
            run.cancel()
        await asyncio.gather(*self._runs, return_exceptions=True)
        for decoder in self._idle:
            if decoder is not None:
                await self._kill(decoder)
        for process in list(self._all):  # its starter was cancelled in between
            with contextlib.suppress(ProcessLookupError):
                process.kill()
            await process.wait()

    async def _run(self, decoder: _Decoder | None) -> None:
        """Work until nothing waits."""
        try:
            while batch := self._take():
                if decoder is not None and decoder.process.returncode is not None:
                    await self._kill(decoder)
                    decoder = None
                try:
                    decoder = decoder or await self._start()
                    served = await self._serve(decoder, batch)
                except OSError as error:  # it could not be started
                    _refuse(batch[0], "decoder-crashed", f"The decoder could not be started ({type(error).__name__}).")
                    served = False
                if not served:
                    if decoder is not None:
                        await self._kill(decoder)
                    decoder = None
                    self._waiting.extendleft(task for task in reversed(batch) if not task.answer.done())
        except BaseException:  # cancelled: its answers would be taken for the next picture's
            if decoder is not None:
                await self._kill(decoder)
            raise
        finally:
            self._idle.append(decoder if decoder is not None and decoder.process in self._all else None)

    def _take(self) -> list[_Task]:
        """The next pictures, but no more than this process's fair share of what waits."""
        share = max(1, min(_AHEAD, -(-len(self._waiting) // self._processes)))
        batch: list[_Task] = []
        while self._waiting and len(batch) < share:
            task = self._waiting.popleft()
            if not task.answer.done():  # nobody waits for a cancelled one
                batch.append(task)
        return batch

    async def _serve(self, decoder: _Decoder, batch: list[_Task]) -> bool:
        """Send the batch and answer each; False when the process is of no more use."""
        for task in batch:
            decoder.writer.writelines(_request(task))
        for task in batch:
            try:
                async with asyncio.timeout(self._timeout_s):
                    (length,) = struct.unpack(">I", await decoder.reader.readexactly(4))
                    answer: dict[str, Any] = json.loads(await decoder.reader.readexactly(length))
                    results = [
                        Result(made["name"], await decoder.reader.readexactly(made["size_bytes"]), made["facts"])
                        for made in answer.pop("results", ())
                    ]
            except TimeoutError:
                _refuse(task, "decode-timeout", f"Decoding took longer than {self._timeout_s:g} s.")
                return False
            except (OSError, asyncio.IncompleteReadError):
                _log.warning("decoder_crashed", size_bytes=task.body.size_bytes, sha256=task.body.sha256)
                _refuse(task, "decoder-crashed", "The picture's decoder ended unexpectedly.")
                return False
            if "reason" in answer:
                _refuse(task, answer["reason"], answer["detail"])
            elif not task.answer.done():
                task.answer.set_result(Picture(**answer, results=tuple(results)))
        return True

    async def _start(self) -> _Decoder:
        ours, theirs = socket.socketpair()
        try:
            ours.setblocking(False)  # noqa: FBT003 - the socket's own signature
            ours.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, _SOCKET_BYTES)
            process = await asyncio.create_subprocess_exec(
                *self._command, stdin=theirs.fileno(), stdout=theirs.fileno(), env={}
            )
            self._all.add(process)
            reader, writer = await asyncio.open_connection(sock=ours)
        except BaseException:
            ours.close()
            raise
        finally:
            theirs.close()
        return _Decoder(process, reader, writer)

    async def _kill(self, decoder: _Decoder) -> None:
        self._all.discard(decoder.process)
        with contextlib.suppress(ProcessLookupError):
            decoder.process.kill()
        decoder.writer.transport.abort()
        await decoder.process.wait()


def _request(task: _Task) -> tuple[bytes, bytes, bytes]:
    file = str(task.body.file) if task.body.file else None
    header = json.dumps(
        {"size_bytes": task.body.size_bytes, "file": file, "check": task.check.value, "steps": list(task.steps)}
    ).encode()
    return struct.pack(">I", len(header)), header, task.body.data or b""


def _refuse(task: _Task, reason: str, detail: str) -> None:
    if not task.answer.done():
        task.answer.set_exception(PictureRefused(reason, detail))
