import asyncio
import contextlib
import json
import ssl
import struct
import time
from collections.abc import Awaitable, Callable
from pathlib import Path

import pytest
from websockets.exceptions import ConnectionClosed, InvalidMessage, InvalidStatus

from libs.pvesim.app import RunningLab
from libs.pvesim.faults import Fault
from tests.contract.pvesim.conftest import SCALE, Client, lab_at
from tests.contract.pvesim.rfb_client import Refused, RfbClient, authorization, dial, socket_url, viewer

NewVm = Callable[..., Awaitable[int]]
CLONE = "nodes/sv2/qemu/9001/clone"


async def at_end(client: RfbClient) -> None:
    """Read until the server has closed the connection."""
    with contextlib.suppress(ConnectionClosed):
        async with asyncio.timeout(10):
            while True:
                await client.socket.recv()


async def refused(lab: RunningLab, url: str, headers: dict[str, str] | None = None) -> tuple[int, str, bytes]:
    """Status, reason and body of a refused upgrade."""
    with pytest.raises(InvalidStatus) as caught:
        await dial(lab, url, headers)
    answer = caught.value.response
    return answer.status_code, answer.reason_phrase, bytes(answer.body or b"")


async def test_29_the_answer_has_what_a_console_needs(lab: RunningLab, token: Client, running_vm: str) -> None:
    opened = await token("post", f"{running_vm}/vncproxy", websocket=1)
    assert opened["user"] == lab.token_id
    assert isinstance(opened["port"], str)
    assert 5900 <= int(opened["port"]) <= 5999
    assert opened["ticket"].startswith("PVEVNC:")
    assert "password" not in opened
    assert opened["cert"] == lab.ca_path.read_text()
    fields = opened["upid"].split(":")
    assert (fields[1], fields[5], fields[6]) == ("sv1", "vncproxy", running_vm.rsplit("/", 1)[1])


async def test_29_a_port_takes_one_client(lab: RunningLab, token: Client, running_vm: str) -> None:
    opened = await token("post", f"{running_vm}/vncproxy", websocket=1)
    url = socket_url(lab, running_vm, opened)
    async with await dial(lab, url) as socket:
        await RfbClient(socket, opened["ticket"]).shake_hands()
        with pytest.raises(InvalidMessage):
            await dial(lab, url)
        assert (await token("get", f"nodes/sv1/tasks/{opened['upid']}/status"))["status"] == "running"
    assert (await token.task(opened["upid"]))["exitstatus"] == "OK"


async def test_29_a_client_that_comes_too_late_finds_nobody(tmp_path: Path) -> None:
    async with lab_at(tmp_path, console_accept_s=0.05) as lab:
        token = Client(lab)
        opened = await token("post", "nodes/sv2/qemu/9001/vncproxy", websocket=1)
        assert (await token.task(opened["upid"]))["exitstatus"] == "connection timed out"
        with pytest.raises(InvalidMessage):
            await dial(lab, socket_url(lab, "nodes/sv2/qemu/9001", opened))


async def test_29_a_password_does_not_wait(tmp_path: Path) -> None:
    async with lab_at(tmp_path, console_password_s=1e-9) as lab:
        token = Client(lab)
        await token.done("post", CLONE, newid=200)
        await token.done("post", "nodes/sv2/qemu/200/status/start")
        opened = await token("post", "nodes/sv2/qemu/200/vncproxy", websocket=1)
        async with await dial(lab, socket_url(lab, "nodes/sv2/qemu/200", opened)) as socket:
            with pytest.raises(Refused):
                await RfbClient(socket, opened["ticket"]).shake_hands()


async def test_29_a_ticket_holds_for_its_identity_and_machine_and_a_while(
    lab: RunningLab, token: Client, root: Client, running_vm: str, new_vm: NewVm, monkeypatch: pytest.MonkeyPatch
) -> None:
    opened = await token("post", f"{running_vm}/vncproxy", websocket=1)
    url = socket_url(lab, running_vm, opened)
    bad = (401, "permission denied - invalid PVEVNC ticket")
    began = time.monotonic()
    status, reason, body = await refused(lab, url, await root.cookie())
    assert ((status, reason), json.loads(body)["data"]) == (bad, None)
    assert time.monotonic() - began >= 3 * SCALE
    other = f"nodes/sv2/qemu/{await new_vm()}"
    assert (await refused(lab, socket_url(lab, other, opened)))[:2] == bad
    assert (await refused(lab, url, {"X-Nothing": "1"}))[:2] == (401, "No ticket")
    now = time.time()
    monkeypatch.setattr(lab.lab.clock, "now", lambda: now + 45)
    assert (await refused(lab, url))[:2] == bad


async def test_29_newer_releases_give_a_password_and_bind_the_ticket_to_the_port(tmp_path: Path) -> None:
    async with lab_at(tmp_path, version="9.2.1") as lab:
        token = Client(lab)
        await token.done("post", CLONE, newid=200)
        await token.done("post", "nodes/sv2/qemu/200/status/start")
        path = "nodes/sv2/qemu/200"
        first, second = [await token("post", f"{path}/vncproxy", websocket=1) for _ in range(2)]
        assert first["ticket"].startswith(f"{first['password']}:PVEVNC:")
        mixed = socket_url(lab, path, {**first, "port": second["port"]})
        assert (await refused(lab, mixed))[0] == 401
        async with await dial(lab, socket_url(lab, path, first)) as socket:
            assert (
                await RfbClient(socket, first["password"]).shake_hands()
            ).name == "QEMU (Copy-of-VM-template-debian-13)"


async def test_29_a_machine_that_is_off_closes_the_socket(lab: RunningLab, token: Client, new_vm: NewVm) -> None:
    path = f"nodes/sv2/qemu/{await new_vm()}"
    opened = await token("post", f"{path}/vncproxy", websocket=1)
    async with await dial(lab, socket_url(lab, path, opened)) as socket:
        with pytest.raises(ConnectionClosed) as closed:
            await socket.recv()
        assert closed.value.rcvd is None
    assert (await token.task(opened["upid"]))["exitstatus"] == "Failed to run vncproxy."


async def test_29_without_websocket_the_bridge_finds_nothing_to_talk_to(
    lab: RunningLab, token: Client, running_vm: str
) -> None:
    opened = await token("post", f"{running_vm}/vncproxy")
    async with await dial(lab, socket_url(lab, running_vm, opened)) as socket:
        with pytest.raises(ConnectionClosed):
            await socket.recv()
    assert (await token.task(opened["upid"]))["exitstatus"] == "Failed to run vncproxy."


@pytest.mark.parametrize("end", ["stop", "suspend", "task"])
async def test_29_the_socket_ends_with_the_machine_and_with_the_task(
    lab: RunningLab, token: Client, running_vm: str, end: str
) -> None:
    opened = await token("post", f"{running_vm}/vncproxy", websocket=1)
    async with await dial(lab, socket_url(lab, running_vm, opened)) as socket:
        client = await RfbClient(socket, opened["ticket"]).shake_hands()
        if end == "task":
            await token("delete", f"nodes/sv1/tasks/{opened['upid']}")
        else:
            await token.done("post", f"{running_vm}/status/{end}", **({"todisk": 1} if end == "suspend" else {}))
        await at_end(client)
    expected = "received interrupt" if end == "task" else "OK"
    assert (await token.task(opened["upid"]))["exitstatus"] == expected


async def test_29_a_console_lives_at_the_node_whose_api_opened_it(tmp_path: Path) -> None:
    async with lab_at(tmp_path, node_ports={"sv1": 0, "sv3": 0}) as lab:
        token, path = Client(lab), "nodes/sv2/qemu/200"
        await token.done("post", CLONE, newid=200)
        await token.done("post", f"{path}/status/start")
        third = Client(lab, port=lab.node_ports["sv3"])
        opened = await third("post", f"{path}/vncproxy", websocket=1)
        assert opened["upid"].split(":")[1] == "sv3"
        with pytest.raises(InvalidMessage):
            await dial(lab, socket_url(lab, path, opened, port=lab.node_ports["sv1"]))
        async with await dial(lab, socket_url(lab, path, opened, port=lab.node_ports["sv3"])) as socket:
            client = await RfbClient(socket, opened["ticket"]).shake_hands()
            locals_ = {e["name"]: e["local"] for e in await third("get", "cluster/status") if e["type"] == "node"}
            assert [name for name, local in locals_.items() if local] == ["sv3"]
            down = Fault(kind="node_down", node="sv3")
            await lab.lab.inject(down)
            await at_end(client)
        with pytest.raises(ConnectionRefusedError):
            await dial(lab, socket_url(lab, path, opened, port=lab.node_ports["sv3"]))
        await lab.lab.withdraw(down.id)
        assert "release" in await third("get", "version")


async def test_29_ports_run_out(tmp_path: Path) -> None:
    async with lab_at(tmp_path) as lab:
        token = Client(lab)
        opened = await asyncio.gather(*(token("post", "nodes/sv2/qemu/9001/vncproxy", websocket=1) for _ in range(100)))
        assert len({answer["port"] for answer in opened}) == 100
        full = await token.fails("post", "nodes/sv2/qemu/9001/vncproxy", websocket=1)
        assert (full.status_code, full.content) == (500, "unable to find free port (5900-6000)")


async def upgrade(lab: RunningLab, url: str, *lines: str) -> tuple[str, asyncio.StreamReader, asyncio.StreamWriter]:
    """Upgrade by hand, to see and send what a library would tidy up."""
    context = ssl.create_default_context(cafile=str(lab.ca_path))
    reader, writer = await asyncio.open_connection("127.0.0.1", lab.port, ssl=context)
    target = url.split(str(lab.port), 1)[1]
    head = [f"GET {target} HTTP/1.1", "Host: x", "Upgrade: websocket", "Connection: Upgrade", *lines]
    head += [f"{name}: {value}" for name, value in authorization(lab).items()]
    writer.write("\r\n".join([*head, "", ""]).encode())
    return (await reader.readuntil(b"\r\n\r\n")).decode(), reader, writer


KEYS = ("Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==", "Sec-WebSocket-Version: 13")


async def test_29_the_sub_protocol_is_echoed_and_pings_are_answered(
    lab: RunningLab, token: Client, running_vm: str
) -> None:
    opened = await token("post", f"{running_vm}/vncproxy", websocket=1)
    url = socket_url(lab, running_vm, opened)
    head, reader, writer = await upgrade(
        lab, url, *KEYS, "Sec-WebSocket-Protocol: binary, base64", "Sec-WebSocket-Extensions: permessage-deflate"
    )
    assert head.startswith("HTTP/1.1 101 Switching Protocols")
    assert "Sec-WebSocket-Protocol: binary, base64" in head
    assert "Sec-WebSocket-Accept: s3pPLMBiTxaQ9kYGzzhZRbK+xOo=" in head
    assert "Extensions" not in head
    assert await reader.readexactly(14) == b"\x82\x0cRFB 003.008\n"
    writer.write(b"\x89\x82\0\0\0\0hi")
    assert await reader.readexactly(4) == b"\x8a\x02hi"
    writer.write(b"\x88\x80\0\0\0\0")
    assert await reader.read() == b""
    writer.close()


@pytest.mark.parametrize(
    "frame",
    [
        b"\x82\x0cRFB 003.008\n",
        b"\x02\x84\0\0\0\0RFB ",
        b"\xc2\x84\0\0\0\0RFB ",
        b"\x80\x84\0\0\0\0RFB ",
        b"\x82\xff" + struct.pack(">Q", 131073) + bytes(4),
    ],
    ids=["unmasked", "fragmented", "extended", "continuation", "too large"],
)
async def test_29_frames_the_bridge_does_not_take_drop_the_connection(
    lab: RunningLab, token: Client, running_vm: str, frame: bytes
) -> None:
    opened = await token("post", f"{running_vm}/vncproxy", websocket=1)
    _, reader, writer = await upgrade(lab, socket_url(lab, running_vm, opened), *KEYS)
    await reader.readexactly(14)
    writer.write(frame)
    async with asyncio.timeout(20):
        assert await reader.read() == b""
    writer.close()


async def test_29_an_upgrade_that_cannot_be_is_a_500_and_without_one_the_port_is_told(
    lab: RunningLab, token: Client, running_vm: str
) -> None:
    opened = await token("post", f"{running_vm}/vncproxy", websocket=1)
    url = socket_url(lab, running_vm, opened)
    for lines in ((KEYS[0], "Sec-WebSocket-Version: 8"), KEYS[1:]):
        head, _, writer = await upgrade(lab, url, *lines)
        assert head.startswith("HTTP/1.1 500 ")
        writer.close()
    told = await token("get", f"{running_vm}/vncwebsocket", port=opened["port"], vncticket=opened["ticket"])
    assert told == {"port": opened["port"]}


async def test_29_several_consoles_of_one_machine_share_its_screen(
    lab: RunningLab, token: Client, running_vm: str
) -> None:
    async with viewer(lab, token, running_vm) as first, viewer(lab, token, running_vm) as second:
        for client in (first, second):
            await client.ask()
            await client.update()
        before = second.picture.tobytes()
        await first.key(ord("x"))
        await second.ask(incremental=True)
        await second.update()
        assert second.picture.tobytes() != before


async def test_29_a_dead_nodes_machine_gets_a_proxy_that_leads_nowhere(tmp_path: Path) -> None:
    async with lab_at(tmp_path) as lab:
        token, path = Client(lab), "nodes/sv2/qemu/200"
        await token.done("post", CLONE, newid=200)
        await token.done("post", f"{path}/status/start")
        await lab.lab.inject(Fault(kind="node_down", node="sv2"))
        opened = await token("post", f"{path}/vncproxy", websocket=1)
        async with await dial(lab, socket_url(lab, path, opened)) as socket:
            with pytest.raises(ConnectionClosed):
                await socket.recv()
        assert (await token.task(opened["upid"]))["exitstatus"] == "Failed to run vncproxy."


async def test_29_a_cut_upgrade_is_a_596(tmp_path: Path) -> None:
    async with lab_at(tmp_path) as lab:
        opened = await Client(lab)("post", "nodes/sv2/qemu/9001/vncproxy", websocket=1)
        await lab.lab.inject(Fault(kind="gateway_timeout", path="vncwebsocket$", applied=False))
        url = socket_url(lab, "nodes/sv2/qemu/9001", opened)
        assert await refused(lab, url) == (596, "Connection timed out", b"")
