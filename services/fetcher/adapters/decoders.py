"""A pool of decoder processes, each fed a few pictures ahead, killed and replaced when one hangs or dies."""

import asyncio
import contextlib
import json
import socket
import struct
import sys
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import structlog

from libs.common.tasks import cancel
from services.fetcher.adapters import decoder_process
from services.fetcher.domain.jobs import Check
from services.fetcher.ports import Body, Picture, PictureRefused, Result

_AHEAD = 4
_SOCKET_BYTES = 1_048_576
_LENGTH = struct.Struct(">I")

_log = structlog.get_logger()


@dataclass(frozen=True, slots=True, eq=False)
class _Task:
    body: Body
    check: Check
    steps: Sequence[Mapping[str, Any]]
    answer: asyncio.Future[Picture]


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
        self._decoders: list[_Decoder] = []
        self._starts: set[asyncio.Task[None]] = set()
        self._ends: set[asyncio.Task[int]] = set()
        self._all: set[asyncio.subprocess.Process] = set()

    async def inspect(self, body: Body, check: Check = Check.FULL, steps: Sequence[Mapping[str, Any]] = ()) -> Picture:
        task = _Task(body, check, steps, asyncio.get_running_loop().create_future())
        self._waiting.append(task)
        self._hand_out()
        return await task.answer

    async def close(self) -> None:
        self._waiting.clear()
        await cancel(*self._starts)
        for decoder in list(self._decoders):
            decoder.abort()
        for process in list(self._all):  # its starter was cancelled in between
            self._end(process)
        await asyncio.gather(*self._ends)

    def _hand_out(self) -> None:
        """Give what waits to those that have least to do; start a process where all have something."""
        while self._waiting:
            decoder = min(self._decoders, key=len, default=None)
            busy = decoder is None or len(decoder) > 0
            if busy and len(self._decoders) + len(self._starts) < self._processes:
                self._start()
            if decoder is None or len(decoder) >= _AHEAD:
                return
            task = self._waiting.popleft()
            if not task.answer.done():  # nobody waits for a cancelled one
                decoder.send(task)

    def _start(self) -> None:
        start = asyncio.create_task(self._start_one())
        self._starts.add(start)

        def done(ended: asyncio.Task[None]) -> None:
            self._starts.discard(ended)
            if not ended.cancelled():
                self._hand_out()

        start.add_done_callback(done)

    async def _start_one(self) -> None:
        try:
            self._decoders.append(await self._spawn())
        except OSError as error:
            if self._waiting:
                reason = f"The decoder could not be started ({type(error).__name__})."
                _refuse(self._waiting.popleft(), "decoder-crashed", reason)

    async def _spawn(self) -> "_Decoder":
        ours, theirs = socket.socketpair()
        try:
            ours.setblocking(False)  # noqa: FBT003 - the socket's own signature
            ours.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, _SOCKET_BYTES)
            process = await asyncio.create_subprocess_exec(
                *self._command, stdin=theirs.fileno(), stdout=theirs.fileno(), env={}
            )
            self._all.add(process)
            _, decoder = await asyncio.get_running_loop().create_connection(
                lambda: _Decoder(process, self._timeout_s, self._hand_out, self._lost), sock=ours
            )
        except BaseException:
            ours.close()
            raise
        finally:
            theirs.close()
        return decoder

    def _lost(self, decoder: "_Decoder", unanswered: Sequence[_Task]) -> None:
        """A decoder is of no more use; what it was sent ahead goes to others."""
        if decoder in self._decoders:
            self._decoders.remove(decoder)
        self._waiting.extendleft(reversed(unanswered))
        self._end(decoder.process)
        self._hand_out()

    def _end(self, process: asyncio.subprocess.Process) -> None:
        if process not in self._all:
            return
        self._all.discard(process)
        with contextlib.suppress(ProcessLookupError):
            process.kill()
        end = asyncio.create_task(process.wait())
        self._ends.add(end)
        end.add_done_callback(self._ends.discard)


class _Decoder(asyncio.Protocol):
    """One process and what it was sent; `answered` is told when it has room for more, `lost` when it has ended."""

    def __init__(
        self,
        process: asyncio.subprocess.Process,
        timeout_s: float,
        answered: Callable[[], None],
        lost: Callable[["_Decoder", Sequence[_Task]], None],
    ) -> None:
        self.process = process
        self._timeout_s = timeout_s
        self._answered = answered
        self._lost = lost
        self._loop = asyncio.get_running_loop()
        self._transport: asyncio.Transport | None = None
        self._sent: deque[_Task] = deque()
        self._received = bytearray()
        self._due = 0.0
        self._timer: asyncio.TimerHandle | None = None

    def __len__(self) -> int:
        return len(self._sent)

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast("asyncio.Transport", transport)

    def send(self, task: _Task) -> None:
        if not self._sent:
            self._due = self._loop.time() + self._timeout_s
            if self._timer is None:
                self._timer = self._loop.call_at(self._due, self._check_due)
        self._sent.append(task)
        if self._transport is not None:
            self._transport.writelines(_request(task))

    def data_received(self, data: bytes) -> None:
        self._received += data
        while self._sent and (found := _answer_in(self._received)) is not None:
            answer, end = found
            _settle(self._sent.popleft(), answer, self._received)
            del self._received[:end]
            self._due = self._loop.time() + self._timeout_s
        self._answered()

    def connection_lost(self, exc: Exception | None) -> None:  # noqa: ARG002 - the protocol's signature
        self._transport = None
        if self._sent:
            body = self._sent[0].body
            _log.warning("decoder_crashed", size_bytes=body.size_bytes, sha256=body.sha256)
        self._give_up("decoder-crashed", "The picture's decoder ended unexpectedly.")

    def abort(self) -> None:
        """End without blaming any picture."""
        self._sent.clear()
        self._give_up("", "")

    def _check_due(self) -> None:
        """One timer for all answers: it moves on while they come in time."""
        self._timer = None
        if not self._sent:
            return
        if self._loop.time() < self._due:
            self._timer = self._loop.call_at(self._due, self._check_due)
            return
        self._give_up("decode-timeout", f"Decoding took longer than {self._timeout_s:g} s.")

    def _give_up(self, reason: str, detail: str) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        if self._transport is not None:
            self._transport.abort()
            self._transport = None
        if self._sent:
            _refuse(self._sent.popleft(), reason, detail)
        unanswered, self._sent = list(self._sent), deque()
        self._lost(self, unanswered)


def _request(task: _Task) -> tuple[bytes, bytes, bytes]:
    file = str(task.body.file) if task.body.file else None
    header = json.dumps(
        {"size_bytes": task.body.size_bytes, "file": file, "check": task.check.value, "steps": list(task.steps)}
    ).encode()
    return _LENGTH.pack(len(header)), header, task.body.data or b""


def _answer_in(received: bytearray) -> tuple[dict[str, Any], int] | None:
    """The first answer and where it ends, files and all; None while a part of it is missing."""
    start = _LENGTH.size
    if len(received) < start:
        return None
    end = start + _LENGTH.unpack_from(received)[0]
    if len(received) < end:
        return None
    answer: dict[str, Any] = json.loads(received[start:end])
    made = answer.get("results", ())
    if len(received) < end + sum(result["size_bytes"] for result in made):
        return None
    for result in made:
        result["start"], end = end, end + result["size_bytes"]
    return answer, end


def _settle(task: _Task, answer: dict[str, Any], received: bytearray) -> None:
    if task.answer.done():
        return
    if "reason" in answer:
        _refuse(task, answer["reason"], answer["detail"])
        return
    results = tuple(
        Result(made["name"], bytes(received[made["start"] : made["start"] + made["size_bytes"]]), made["facts"])
        for made in answer.pop("results", ())
    )
    task.answer.set_result(Picture(**answer, results=results))


def _refuse(task: _Task, reason: str, detail: str) -> None:
    if not task.answer.done():
        task.answer.set_exception(PictureRefused(reason, detail))
