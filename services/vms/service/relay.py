"""Carries a console's bytes between a viewer and a display until one of them, or a third party, ends it."""

import asyncio
from collections.abc import Awaitable
from dataclasses import dataclass
from typing import Protocol

from libs.common.tasks import cancel
from services.vms.domain import rfb
from services.vms.errors import ViewerUnfit
from services.vms.ports import Display

VIEWER_LEFT, DISPLAY_ENDED = "the viewer left", "the display ended"
_GREETING_S = 15.0


class Viewer(Protocol):
    """The side of the person: a stream of bytes both ways."""

    async def read(self) -> bytes:
        """What the viewer sent next; empty when it has left."""
        ...

    async def write(self, data: bytes) -> None:
        """Pass bytes on; waits while the viewer takes none. Raises EOFError when it has left."""
        ...


@dataclass(slots=True)
class Traffic:
    """Bytes that crossed. Nothing else of a console is kept: each piece waits until the one before has been taken."""

    to_viewer: int = 0
    to_display: int = 0


async def converse(viewer: Viewer, display: Display, ended: Awaitable[str], traffic: Traffic) -> str:
    """Log the viewer in and carry bytes until the end; gives why it ended. Raises ViewerUnfit."""
    talk = asyncio.create_task(_talk(viewer, display, traffic))
    end = asyncio.ensure_future(ended)
    try:
        await asyncio.wait({talk, end}, return_when=asyncio.FIRST_COMPLETED)
        return end.result() if end.done() else talk.result()
    finally:
        await cancel(talk, end)


async def _talk(viewer: Viewer, display: Display, traffic: Traffic) -> str:
    try:
        async with asyncio.timeout(_GREETING_S):
            ahead = await rfb.hold(rfb.welcome(), viewer.read, viewer.write)
    except TimeoutError as error:
        raise ViewerUnfit("The viewer said nothing") from error
    except EOFError:
        return VIEWER_LEFT
    pumps = {
        asyncio.create_task(_to_display(viewer, display, traffic, ahead)),
        asyncio.create_task(_to_viewer(viewer, display, traffic)),
    }
    try:
        done, _ = await asyncio.wait(pumps, return_when=asyncio.FIRST_COMPLETED)
        return done.pop().result()
    finally:
        await cancel(*pumps)


async def _to_display(viewer: Viewer, display: Display, traffic: Traffic, ahead: bytes) -> str:
    piece = ahead or await viewer.read()
    while piece:
        try:
            await display.write(piece)
        except EOFError:
            return DISPLAY_ENDED
        traffic.to_display += len(piece)
        piece = await viewer.read()
    return VIEWER_LEFT


async def _to_viewer(viewer: Viewer, display: Display, traffic: Traffic) -> str:
    while piece := await display.read():
        try:
            await viewer.write(piece)
        except EOFError:
            return VIEWER_LEFT
        traffic.to_viewer += len(piece)
    return DISPLAY_ENDED
