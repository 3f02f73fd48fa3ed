"""One display: the screen of a machine or a node's shell, shared by everybody who looks at it."""

import asyncio
from collections import deque
from collections.abc import Callable

from PIL import Image

from libs.pvesim.console.picture import Input, Painter, Screen

_KEPT_KEYS = 12
_LATIN = range(0x20, 0x100)
_NAMED_KEYS = {
    0xFF08: "BackSpace", 0xFF09: "Tab", 0xFF0D: "Enter", 0xFF1B: "Esc", 0xFF50: "Home", 0xFF51: "Left", 0xFF52: "Up",
    0xFF53: "Right", 0xFF54: "Down", 0xFF55: "PgUp", 0xFF56: "PgDn", 0xFF57: "End", 0xFF63: "Ins", 0xFFE1: "Shift",
    0xFFE3: "Ctrl", 0xFFE9: "Alt", 0xFFEB: "Super", 0xFFFF: "Del", 0x20: "Space",
}  # fmt: skip


def key_label(keysym: int) -> str:
    """How a pressed key is shown; keysyms are X11's."""
    if keysym in _NAMED_KEYS:
        return _NAMED_KEYS[keysym]
    return chr(keysym) if keysym in _LATIN else f"0x{keysym:x}"


class Display:
    """`name` is what RFB calls the desktop. `ended` is set when the process behind the display is gone."""

    def __init__(self, name: str, describe: Callable[[], Screen], painter: Painter) -> None:
        self.name = name
        self.ended = asyncio.Event()
        self.listeners: set[Callable[[], None]] = set()
        self._describe = describe
        self._painter = painter
        self._keys: deque[str] = deque(maxlen=_KEPT_KEYS)
        self._input = Input()
        self._painted: tuple[Screen, Input, Image.Image] | None = None

    def frame(self) -> Image.Image:
        """The picture of this moment; pixels are indices into the palette."""
        screen = self._describe()
        if self._painted is None or self._painted[:2] != (screen, self._input):
            self._painted = (screen, self._input, self._painter.paint(screen, self._input))
        return self._painted[2]

    def press(self, label: str) -> None:
        self._keys.append(label)
        self._input = Input(tuple(self._keys), self._input.pointer, self._input.buttons)
        self.touch()

    def point(self, x: int, y: int, buttons: int) -> None:
        self._input = Input(self._input.keys, (x, y), buttons)
        self.touch()

    def touch(self) -> None:
        """Something has changed: everybody who looks is told."""
        for listener in list(self.listeners):
            listener()

    def end(self) -> None:
        self.ended.set()
