import asyncio
import struct
from collections.abc import Awaitable, Callable

import pytest
from PIL import Image, ImageDraw, ImageFont
from websockets.exceptions import ConnectionClosed

from libs.pvesim.app import RunningLab
from tests.contract.pvesim.conftest import Client
from tests.contract.pvesim.rfb_client import DESKTOP_SIZE, QEMU_KEYS, RAW, Refused, RfbClient, dial, socket_url, viewer

NewVm = Callable[..., Awaitable[int]]


def lettering(words: str, scale: int) -> Image.Image:
    font = ImageFont.load_default_imagefont()
    width, height = (int(edge) for edge in font.getbbox(words)[2:])
    line = Image.new("L", (width, height))
    ImageDraw.Draw(line).text((0, 0), words, fill=255, font=font)
    return line.resize((width * scale, height * scale), Image.Resampling.NEAREST)


def says(picture: Image.Image, words: str, scale: int = 2) -> bool:
    """Whether the words stand somewhere in the picture, light on dark."""
    wanted = lettering(words, scale).point(lambda value: 255 if value else 0)
    bright = picture.convert("L").point(lambda value: 255 if value > 80 else 0)
    pattern = [wanted.crop((0, y, wanted.width, y + 1)).tobytes() for y in range(wanted.height)]
    rows = [bright.crop((0, y, bright.width, y + 1)).tobytes() for y in range(bright.height)]
    for top in range(bright.height - wanted.height):
        left = rows[top + 4].find(pattern[4])
        while left >= 0:
            if all(rows[top + i][left : left + wanted.width] == pattern[i] for i in range(wanted.height)):
                return True
            left = rows[top + 4].find(pattern[4], left + 1)
    return False


async def settled(client: RfbClient, holds: Callable[[Image.Image], bool]) -> None:
    """Follow the display with incremental requests until the picture holds."""
    async with asyncio.timeout(10):
        while not holds(client.picture):
            await client.ask(incremental=True)
            await client.update()


async def test_29_a_console_shows_which_machine_it_is(lab: RunningLab, token: Client, running_vm: str) -> None:
    vmid = running_vm.rsplit("/", 1)[1]
    async with viewer(lab, token, running_vm) as client:
        assert client.name == "QEMU (console-test)"
        await client.set_encodings(RAW, DESKTOP_SIZE)
        await client.ask()
        await client.update()
        assert says(client.picture, "console-test", scale=4)
        assert says(client.picture, f"VMID {vmid} on node sv2")
        assert not says(client.picture, f"VMID {int(vmid) + 1} on node sv2")
        await settled(client, lambda picture: says(picture, "state: running"))
        assert client.size == (800, 600)
        await token.done("post", f"{running_vm}/status/suspend")
        await settled(client, lambda picture: says(picture, "state: paused"))


async def test_29_keys_and_pointer_are_seen_and_only_what_changed_is_sent(
    lab: RunningLab, token: Client, running_vm: str
) -> None:
    async with viewer(lab, token, running_vm) as client:
        await client.set_encodings(RAW, DESKTOP_SIZE)
        await client.ask()
        await client.update()
        await settled(client, lambda picture: says(picture, "state: running"))
        for character in b"hi":
            await client.key(character)
        await client.key(0xFF0D)
        await settled(client, lambda picture: says(picture, "keys: h i Enter"))
        await client.pointer(400, 300, 1)
        await client.ask(incremental=True)
        (changed,) = await client.update()
        assert says(client.picture, "pointer: 400,300 buttons 1")
        assert changed.width * changed.height < 800 * 600 / 2
        await token("put", f"{running_vm}/sendkey", key="ctrl-alt-delete")
        await settled(client, lambda picture: says(picture, "keys: h i Enter ctrl-alt-delete"))


@pytest.mark.parametrize(
    "layout",
    [
        (32, 24, 0, 1, 255, 255, 255, 16, 8, 0),
        (32, 24, 1, 1, 255, 255, 255, 0, 8, 16),
        (16, 16, 0, 1, 31, 63, 31, 11, 5, 0),
        (8, 8, 0, 1, 7, 7, 3, 0, 3, 6),
        (8, 8, 0, 0, 0, 0, 0, 0, 0, 0),
    ],
)
async def test_29_a_client_chooses_its_pixels(
    lab: RunningLab, token: Client, running_vm: str, layout: tuple[int, ...]
) -> None:
    async with viewer(lab, token, running_vm) as client:
        await client.set_format(*layout)
        await client.ask()
        await client.update()
        assert says(client.picture, "console-test", scale=4)


@pytest.mark.parametrize("version", [b"RFB 003.003\n", b"RFB 003.007\n"])
async def test_29_older_clients_are_served_too(lab: RunningLab, token: Client, running_vm: str, version: bytes) -> None:
    opened = await token("post", f"{running_vm}/vncproxy", websocket=1)
    async with await dial(lab, socket_url(lab, running_vm, opened)) as socket:
        client = await RfbClient(socket, opened["ticket"]).shake_hands(version)
        await client.ask(area=(10, 10, 100, 50))
        assert [(r.x, r.y, r.width, r.height) for r in await client.update()] == [(10, 10, 100, 50)]


async def test_29_a_client_that_cannot_resize_keeps_its_size(lab: RunningLab, token: Client, new_vm: NewVm) -> None:
    vmid = await new_vm()
    path = f"nodes/sv2/qemu/{vmid}"
    await token.done("post", f"{path}/status/start")
    async with viewer(lab, token, path) as client:
        size = client.size
        await client.ask()
        await client.update()
        await settled(client, lambda picture: says(picture, "state: running"))
        assert client.size == size


async def test_29_a_wrong_password_is_refused(lab: RunningLab, token: Client, running_vm: str) -> None:
    opened = await token("post", f"{running_vm}/vncproxy", websocket=1, **{"generate-password": 1})
    async with await dial(lab, socket_url(lab, running_vm, opened)) as socket:
        with pytest.raises(Refused, match="Authentication failed"):
            await RfbClient(socket, "wrong").shake_hands()
        with pytest.raises(ConnectionClosed):
            await socket.recv()


async def test_29_scancodes_come_with_the_keys_once_the_client_can_send_them(
    lab: RunningLab, token: Client, running_vm: str
) -> None:
    async with viewer(lab, token, running_vm) as client:
        await client.set_encodings(RAW, DESKTOP_SIZE, QEMU_KEYS)
        (offered,) = await client.update()
        assert offered.encoding == QEMU_KEYS
        await client.ask()
        await client.update()
        for down in (1, 0):
            await client.socket.send(struct.pack(">BBHII", 255, 0, down, ord("q"), 0x10))
        await settled(client, lambda picture: says(picture, "keys: q"))


async def test_29_pasted_text_is_taken_and_unknown_messages_end_the_session(
    lab: RunningLab, token: Client, running_vm: str
) -> None:
    async with viewer(lab, token, running_vm) as client:
        await client.socket.send(struct.pack(">Bxxxi", 6, 5) + b"paste")
        await client.ask()
        await client.update()
        await client.socket.send(b"\x63")
        with pytest.raises(ConnectionClosed):
            await client.socket.recv()
