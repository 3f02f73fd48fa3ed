import json
import re
import ssl
from collections.abc import Awaitable, Callable
from pathlib import Path

import httpx
import pytest
from websockets.exceptions import ConnectionClosed

from libs.pvesim.app import RunningLab
from tests.contract.pvesim.conftest import Client, lab_at
from tests.contract.pvesim.rfb_client import RfbClient, authorization, dial, socket_url

NewVm = Callable[..., Awaitable[int]]


def https(lab: RunningLab) -> httpx.AsyncClient:
    return httpx.AsyncClient(verify=ssl.create_default_context(cafile=str(lab.ca_path)))


async def test_29_a_terminal_knows_its_user_and_echoes(lab: RunningLab, token: Client, running_vm: str) -> None:
    opened = await token("post", f"{running_vm}/termproxy")
    assert set(opened) == {"user", "ticket", "port", "upid"}
    async with await dial(lab, socket_url(lab, running_vm, opened)) as socket:
        client = RfbClient(socket, "")
        await socket.send(f"{opened['user']}:{opened['ticket']}\n".encode())
        assert await client.read(2) == b"OK"
        assert b"console-test login: " in await client.read(len("\r\nconsole-test login: "))
        await socket.send(b"1:80:24:")
        await socket.send(b"2")
        await socket.send(b"0:3:ann")
        assert await client.read(3) == b"ann"
        await socket.send(b"0:1:\r")
        assert await client.read(2) == b"\r\n"
    assert (await token.task(opened["upid"]))["exitstatus"] == "OK"


async def test_29_a_terminal_refuses_a_wrong_first_line(lab: RunningLab, token: Client, running_vm: str) -> None:
    opened = await token("post", f"{running_vm}/termproxy")
    async with await dial(lab, socket_url(lab, running_vm, opened)) as socket:
        await socket.send(b"root@pam:nonsense\n")
        with pytest.raises(ConnectionClosed):
            await socket.recv()
    assert "failed: exit code 1" in (await token.task(opened["upid"]))["exitstatus"]


async def test_29_a_terminal_needs_a_serial_port(token: Client, new_vm: NewVm) -> None:
    path = f"nodes/sv2/qemu/{await new_vm()}"
    await token("put", f"{path}/config", delete="serial0")
    assert (await token.fails("post", f"{path}/termproxy")).content == "unable to find a serial interface"


async def test_29_older_releases_open_no_terminals_to_tokens(tmp_path: Path) -> None:
    async with lab_at(tmp_path, version="9.0.3") as lab:
        token, path = Client(lab), "nodes/sv2/qemu/200"
        await token.done("post", "nodes/sv2/qemu/9001/clone", newid=200)
        await token.done("post", f"{path}/status/start")
        opened = await token("post", f"{path}/termproxy")
        async with await dial(lab, socket_url(lab, path, opened)) as socket:
            await socket.send(f"{opened['user']}:{opened['ticket']}\n".encode())
            with pytest.raises(ConnectionClosed):
                await socket.recv()
        assert (await token.fails("post", "access/vncticket", authid="x")).status_code == 501


async def test_29_node_shells_are_for_users_not_for_tokens(lab: RunningLab, token: Client, root: Client) -> None:
    refused = await token.fails("post", "nodes/sv2/vncshell", websocket=1)
    assert refused.content == "value 'telar@pve!telar' does not look like a valid user name"
    made = await root("post", "access/users/root@pam/token/shell", privsep=0)
    runner = Client(lab, user="root@pam", token_name="shell", token_value=made["value"])
    for call in ("vncshell", "spiceshell"):
        refused = await runner.fails("post", f"nodes/sv2/{call}")
        assert refused.content == "value 'root@pam!shell' does not look like a valid user name"
    login = await root.cookie()
    opened = await root("post", "nodes/sv2/vncshell", websocket=1)
    assert opened["upid"].split(":")[5:7] == ["vncshell", ""]
    async with await dial(lab, socket_url(lab, "nodes/sv2", opened), login) as socket:
        assert (await RfbClient(socket, opened["password"]).shake_hands()).name == "sv2 - shell"
    opened = await root("post", "nodes/sv2/termproxy")
    async with await dial(lab, socket_url(lab, "nodes/sv2", opened), login) as socket:
        await socket.send(f"root@pam:{opened['ticket']}\n".encode())
        assert b"root@sv2:~# " in await RfbClient(socket, "").read(2 + 2 + len("root@sv2:~# "))


async def test_29_a_console_ticket_can_be_verified_without_a_login(
    lab: RunningLab, token: Client, running_vm: str
) -> None:
    opened = await token("post", f"{running_vm}/vncproxy", websocket=1)
    path = f"/vms/{running_vm.rsplit('/', 1)[1]}"
    good = {"authid": opened["user"], "path": path, "privs": "VM.Console", "vncticket": opened["ticket"]}
    async with https(lab) as client:
        url = f"{lab.url}/api2/json/access/vncticket"
        assert (await client.post(url, data=good)).json() == {"data": None}
        for wrong in ({"authid": "ann@pve"}, {"path": "/vms/100"}, {"privs": "Sys.Modify"}, {"vncticket": "PVEVNC:x"}):
            answer = await client.post(url, data=good | wrong)
            assert (answer.status_code, answer.reason_phrase) == (401, "permission denied - invalid PVEVNC ticket")


async def test_29_spice_gives_the_fields_of_a_viewer_file(lab: RunningLab, token: Client, new_vm: NewVm) -> None:
    vmid = await new_vm(name="spiced")
    path = f"nodes/sv2/qemu/{vmid}"
    assert (await token.fails("post", f"{path}/spiceproxy")).content == f"VM {vmid} not running"
    await token.done("post", f"{path}/status/start")
    assert (await token.fails("post", f"{path}/spiceproxy")).content == "no spice port"
    await token.done("post", f"{path}/status/stop")
    await token("put", f"{path}/config", vga="qxl")
    await token.done("post", f"{path}/status/start")
    fields = await token("post", f"{path}/spiceproxy", proxy="pve.example")
    assert re.fullmatch(rf"pvespiceproxy:[0-9a-f]{{8}}:{vmid}:sv2:\d+::[0-9a-f]{{40}}", fields["host"])
    assert (fields["type"], fields["title"], fields["proxy"]) == (
        "spice", f"VM {vmid} - spiced", "http://pve.example:3128",
    )  # fmt: skip
    assert fields["ca"].replace("\\n", "\n") == lab.ca_path.read_text()
    assert set(fields) >= {"tls-port", "host-subject", "password", "secure-attention", "toggle-fullscreen",
                           "release-cursor", "delete-this-file"}  # fmt: skip
    async with httpx.AsyncClient(
        verify=ssl.create_default_context(cafile=str(lab.ca_path)), headers=authorization(lab)
    ) as client:
        file = await client.post(f"{lab.url}/api2/spiceconfig/{path}/spiceproxy", headers=authorization(lab))
        assert file.headers["content-type"].startswith("application/x-virt-viewer")
        assert file.text.startswith("[virt-viewer]\n")
        assert "type=spice\n" in file.text
        refused = await client.post(
            f"{lab.url}/api2/extjs/{path}/status/stop", data={"nonsense": 1}, headers=authorization(lab)
        )
        told = json.loads(refused.text)
        assert (refused.status_code, told["success"], told["status"]) == (200, 0, 400)
        assert set(told["errors"]) == {"nonsense"}
