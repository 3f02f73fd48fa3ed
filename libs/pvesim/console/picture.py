"""What a console shows: a picture that names its machine, its state and what was typed, in a few colours."""

from dataclasses import dataclass, field

from PIL import Image, ImageDraw, ImageFont

BLACK, GREY, WHITE, GREEN, ORANGE, BLUE = range(6)
PALETTE = ((16, 16, 24), (150, 150, 160), (240, 240, 240), (90, 200, 110), (240, 150, 50), (40, 60, 120))
_MARGIN = 16
_TITLE_SCALE = 4
_LINE_SCALE = 2
_LINE_PX = 28
_CROSS_PX = 6


@dataclass(frozen=True, slots=True)
class Screen:
    """The text of a picture: `size` in pixels, a title, lines below it, one of them in the state's colour."""

    size: tuple[int, int]
    title: str
    lines: tuple[str, ...]
    state: str
    healthy: bool


@dataclass(frozen=True, slots=True)
class Input:
    """What a client did last: key labels, the pointer's place and its button mask."""

    keys: tuple[str, ...] = ()
    pointer: tuple[int, int] | None = None
    buttons: int = 0


@dataclass(slots=True)
class Painter:
    """Paints screens. Pixels of the pictures are indices into `PALETTE`."""

    _font: ImageFont.ImageFont = field(default_factory=ImageFont.load_default_imagefont)

    def text(self, words: str, scale: int, colour: int) -> Image.Image:
        """One line of text on a black ground."""
        shown = words.encode("latin-1", "replace").decode("latin-1")
        left, top, right, bottom = self._font.getbbox(shown or " ")
        line = Image.new("L", (int(right - left), int(bottom - top)), BLACK)
        ImageDraw.Draw(line).text((0, 0), shown, fill=colour, font=self._font)
        return line.resize((line.width * scale, line.height * scale), Image.Resampling.NEAREST)

    def paint(self, screen: Screen, seen: Input) -> Image.Image:
        width, height = screen.size
        picture = Image.new("L", screen.size, BLACK)
        pen = ImageDraw.Draw(picture)
        pen.fontmode = "1"
        pen.rectangle((0, 0, width - 1, height - 1), outline=BLUE, width=4)
        picture.paste(self.text(screen.title, _TITLE_SCALE, WHITE), (_MARGIN, _MARGIN))
        top = _MARGIN + 2 * _LINE_PX
        picture.paste(self.text(screen.state, _LINE_SCALE, GREEN if screen.healthy else ORANGE), (_MARGIN, top))
        typed = f"keys: {' '.join(seen.keys)}"
        where = (
            "pointer: none" if seen.pointer is None else "pointer: {},{} buttons {}".format(*seen.pointer, seen.buttons)
        )
        for line in (*screen.lines, typed, where):
            top += _LINE_PX
            picture.paste(self.text(line, _LINE_SCALE, GREY), (_MARGIN, top))
        if seen.pointer is not None:
            x, y = seen.pointer
            colour = ORANGE if seen.buttons else WHITE
            pen.line((x - _CROSS_PX, y, x + _CROSS_PX, y), fill=colour)
            pen.line((x, y - _CROSS_PX, x, y + _CROSS_PX), fill=colour)
        return picture
