import asyncio
import json
import re
import ssl
import time
from pathlib import Path
from typing import Any

import httpx
import pytest
from proxmoxer import ProxmoxAPI
from proxmoxer.core import AuthenticationError

from libs.pvesim.app import RunningLab
from tests.contract.pvesim.conftest import SCALE, Client, lab_at


async def raw(
    lab: RunningLab, method: str, path: str, headers: dict[str, str] | None = None, body: bytes = b""
) -> tuple[str, bytes]:
    """Send bytes over TLS; returns the whole head and the body, which httpx would tidy up."""
    context = ssl.create_default_context(cafile=str(lab.ca_path))
    reader, writer = await asyncio.open_connection("127.0.0.1", lab.port, ssl=context)
    lines = [f"{method} {path} HTTP/1.1", "Host: localhost", *(f"{k}: {v}" for k, v in (headers or {}).items())]
    if body:
        lines.append(f"Content-Length: {len(body)}")
    writer.write("\r\n".join([*lines, "", ""]).encode() + body)
    head = await reader.readuntil(b"\r\n\r\n")
    length = re.search(rb"content-length: (\d+)", head, re.IGNORECASE)
    content = await reader.readexactly(int(length[1])) if length else b""
    writer.close()
    return head.decode("latin-1"), content


def token_header(lab: RunningLab) -> dict[str, str]:
    return {"Authorization": f"PVEAPIToken={lab.token_id}={lab.token_secret.get_secret_value()}"}


async def test_01_errors_carry_their_text_in_the_reason_phrase(lab: RunningLab, token: Client) -> None:
    assert set(await token("get", "version")) >= {"version", "release", "repoid"}
    head, body = await raw(lab, "GET", "/api2/json/nodes/sv1/qemu/777/config", token_header(lab))
    text = "Configuration file 'nodes/sv1/qemu-server/777.conf' does not exist"
    assert head.splitlines()[0] == f"HTTP/1.1 500 {text}"
    assert json.loads(body) == {"data": None, "message": f"{text}\n"}


async def test_01_the_json_message_can_be_switched_off(tmp_path: Path) -> None:
    async with lab_at(tmp_path, json_error_message=False) as old:
        _, body = await raw(old, "GET", "/api2/json/nodes/sv1/qemu/777/config", token_header(old))
        assert json.loads(body) == {"data": None}


@pytest.mark.parametrize(
    ("headers", "reason"),
    [
        ({}, "No ticket"),
        ({"Authorization": "PVEAPIToken=telar@pve!telar=wrong"}, "Authentication failed!"),
        ({"Cookie": "PVEAuthCookie=PVE:root@pam:00000000::AAAA"}, "Authentication failed!"),
    ],
)
async def test_02_a_401_has_no_body_and_comes_late(lab: RunningLab, headers: dict[str, str], reason: str) -> None:
    began = time.monotonic()
    head, body = await raw(lab, "GET", "/api2/json/no/such/path", headers)
    assert head.splitlines()[0] == f"HTTP/1.1 401 {reason}"
    assert body == b""
    assert "content-type" not in head.lower()
    assert time.monotonic() - began >= 3 * SCALE


async def test_02_a_failed_login_answers_json(lab: RunningLab) -> None:
    head, body = await raw(lab, "POST", "/api2/json/access/ticket", {}, b"username=root%40pam&password=wrong")
    assert head.startswith("HTTP/1.1 401 authentication failure")
    assert json.loads(body)["data"] is None
    with pytest.raises(AuthenticationError):
        await asyncio.to_thread(
            ProxmoxAPI, "127.0.0.1", port=lab.port, verify_ssl=str(lab.ca_path), user="root@pam", password="wrong"
        )


async def login(lab: RunningLab) -> dict[str, Any]:
    password = lab.root_password.get_secret_value()
    async with httpx.AsyncClient(verify=ssl.create_default_context(cafile=str(lab.ca_path))) as client:
        answer = await client.post(
            f"{lab.url}/api2/json/access/ticket", data={"username": "root@pam", "password": password}
        )
    found: dict[str, Any] = answer.json()["data"]
    return found


async def test_03_tickets_open_calls_by_cookie_and_by_header_and_renew_themselves(lab: RunningLab) -> None:
    first = await login(lab)
    assert re.fullmatch(r"PVE:root@pam:[0-9A-F]{8}::[A-Za-z0-9+/=]{344}", first["ticket"])
    for headers in (
        {"Cookie": f"PVEAuthCookie={first['ticket']}"},
        {"Authorization": f"PVEAuthCookie={first['ticket']}"},
    ):
        head, _ = await raw(lab, "GET", "/api2/json/version", headers)
        assert head.startswith("HTTP/1.1 200")
    async with httpx.AsyncClient(verify=ssl.create_default_context(cafile=str(lab.ca_path))) as client:
        renewed = await client.post(
            f"{lab.url}/api2/json/access/ticket", data={"username": "root@pam", "password": first["ticket"]}
        )
    assert renewed.status_code == 200


async def test_03_a_ticket_wins_over_a_token(lab: RunningLab) -> None:
    headers = token_header(lab) | {"Cookie": "PVEAuthCookie=PVE:root@pam:00000000::AAAA"}
    head, _ = await raw(lab, "GET", "/api2/json/version", headers)
    assert head.startswith("HTTP/1.1 401 Authentication failed!")


async def test_03_a_ticket_expires(tmp_path: Path) -> None:
    async with lab_at(tmp_path, ticket_lifetime_s=1) as short:
        ticket = (await login(short))["ticket"]
        short.lab.clock.now = lambda: time.time() + 5  # type: ignore[method-assign]  # the clock is the only way to age it
        head, _ = await raw(short, "GET", "/api2/json/version", {"Cookie": f"PVEAuthCookie={ticket}"})
    assert head.startswith("HTTP/1.1 401 Authentication failed!")


async def test_04_writes_with_a_ticket_need_the_csrf_token_and_uploads_do_not(lab: RunningLab) -> None:
    opened = await login(lab)
    cookie = {"Cookie": f"PVEAuthCookie={opened['ticket']}"}
    head, body = await raw(lab, "POST", "/api2/json/pools", cookie, b"poolid=csrf")
    assert head.startswith("HTTP/1.1 401 Permission denied - invalid csrf token")
    assert body == b""
    good = cookie | {"CSRFPreventionToken": opened["CSRFPreventionToken"]}
    head, _ = await raw(lab, "POST", "/api2/json/pools", good, b"poolid=csrf")
    assert head.startswith("HTTP/1.1 200")
    head, _ = await raw(lab, "POST", "/api2/json/nodes/sv1/storage/local/upload", cookie, b"x")
    assert head.startswith("HTTP/1.1 500 upload failed")


async def test_05_calls_that_need_a_ticket_refuse_tokens_and_a_root_token_is_not_root(
    lab: RunningLab, root: Client
) -> None:
    head, _ = await raw(
        lab, "PUT", "/api2/json/access/password", token_header(lab), b"userid=telar%40pve&password=longenough"
    )
    expected = "Permission check failed (URI '/access/password' not available with API token, need proper ticket."
    assert head.splitlines()[0] == f"HTTP/1.1 403 {expected}"
    made = await root("post", "access/users/root@pam/token/ci-runner", privsep=0)
    client = Client(lab, user="root@pam", token_name="ci-runner", token_value=made["value"])
    refused = await client.fails("put", "nodes/sv1/qemu/9000/config", args="-foo")
    assert refused.content == "only root can set 'args' config"
    refused = await client.fails("post", "nodes/sv1/qemu/9000/status/start", skiplock=1)
    assert refused.errors == {"skiplock": "Only root may use this option."}


async def test_06_checks_come_in_the_documented_order(lab: RunningLab, token: Client, root: Client) -> None:
    head, _ = await raw(lab, "GET", "/api2/json/no/such")
    assert head.startswith("HTTP/1.1 401")
    assert (await token.fails("get", "no/such")).content == "Method 'GET /no/such' not implemented"
    made = await root("post", "access/users/telar@pve/token/nothing", privsep=1)
    bare = Client(lab, user="telar@pve", token_name="nothing", token_value=made["value"])
    refused = await bare.fails("post", "nodes/nowhere/qemu/9000/clone", newid="x", bad=1)
    assert (refused.status_code, refused.content) == (403, "Permission check failed (/vms/9000, VM.Clone)")
    lost = await token.fails("post", "nodes/nowhere/qemu/9000/clone", newid="x", bad=1)
    assert lost.content.startswith("hostname lookup 'nowhere' failed - failed to get address info for: nowhere:")
    wrong = await token.fails("post", "nodes/sv1/qemu/777/clone", newid="x", bad=1)
    assert wrong.status_code == 400
    missing = await token.fails("post", "nodes/sv1/qemu/777/clone", newid=555)
    assert (missing.status_code, missing.content) == (500, "unable to find configuration file for VM 777 on node 'sv1'")


async def test_06_lists_leave_out_silently_what_the_caller_may_not_see(lab: RunningLab, root: Client) -> None:
    made = await root("post", "access/users/telar@pve/token/narrow", privsep=1)
    await root("put", "access/acl", path="/vms/9001", tokens="telar@pve!narrow", roles="PVEAuditor")
    narrow = Client(lab, user="telar@pve", token_name="narrow", token_value=made["value"])
    assert [entry["vmid"] for entry in await narrow("get", "cluster/resources", type="vm")] == [9001]
    assert await narrow("get", "nodes/sv1/qemu") == []
    assert await narrow("get", "storage") == []


async def test_07_all_wrong_parameters_are_named_with_the_original_texts(token: Client) -> None:
    refused = await token.fails(
        "post",
        "nodes/sv1/qemu",
        vmid=99,
        name="bad_name!",
        cores="abc",
        onboot="True",
        bios="uefi",
        nonsense=1,
        balloon=-1,
        tags="a:b",
        sshkeys="ssh-rsa AAA+",
        scsi0="shared:8,foo=1",
    )
    assert refused.content == "Parameter verification failed."
    assert refused.errors == {
        "vmid": "invalid format - value does not look like a valid VM ID\n",
        "name": "invalid format - value does not look like a valid DNS name\n",
        "cores": "type check ('integer') failed - got 'abc'",
        "onboot": "type check ('boolean') failed - got 'True'",
        "bios": "value 'uefi' does not have a value in the enumeration 'seabios, ovmf'",
        "nonsense": "property is not defined in schema and the schema does not allow additional properties",
        "balloon": "value must have a minimum value of 0",
        "tags": "invalid format - invalid characters in tag\n",
        "sshkeys": "invalid format - invalid urlencoded string: ssh-rsa AAA+\n",
        "scsi0": (
            "invalid format - format error\nscsi0.foo: property is not defined in schema "
            "and the schema does not allow additional properties\n"
        ),
    }
    missing = await token.fails("post", "nodes/sv1/qemu/9000/clone")
    assert missing.errors == {"newid": "property is missing and it is not optional"}


async def test_08_missing_machines_are_500_with_two_texts_and_unknown_paths_501(token: Client) -> None:
    read = await token.fails("get", "nodes/sv1/qemu/777/status/current")
    assert (read.status_code, read.content) == (
        500,
        "Configuration file 'nodes/sv1/qemu-server/777.conf' does not exist",
    )
    reset = await token.fails("post", "nodes/sv1/qemu/777/status/reset")
    assert (reset.status_code, reset.content) == (500, "unable to find configuration file for VM 777 on node 'sv1'")
    assert (await token.fails("get", "nodes/sv1/qemu/777/nothing")).status_code == 501


async def test_09_numbers_come_as_text_where_the_original_does_so(token: Client) -> None:
    assert isinstance(await token("get", "cluster/nextid"), str)
    assert (await token("get", "nodes/sv1/qemu/9000/config"))["memory"] == "2048"


async def test_09_the_loose_mode_mixes_numbers_and_text(tmp_path: Path) -> None:
    async with lab_at(tmp_path, loose_types=True) as loose:
        client = Client(loose)
        kinds = {type((await client("get", "nodes/sv1/qemu/9000/config"))["cores"]) for _ in range(40)}
    assert kinds == {int, str}


async def test_10_keys_and_contents_come_in_no_fixed_order(token: Client) -> None:
    orders = {tuple(await token("get", "nodes/sv1/qemu/9000/config")) for _ in range(30)}
    assert len(orders) > 1
    contents = {
        e["content"] for _ in range(10) for e in await token("get", "nodes/sv1/storage") if e["storage"] == "shared"
    }
    assert len(contents) > 1


async def test_11_delete_takes_no_body_and_the_query_overrides_the_body(lab: RunningLab) -> None:
    head, _ = await raw(lab, "DELETE", "/api2/json/nodes/sv1/qemu/777", token_header(lab), b"purge=1")
    assert head.startswith("HTTP/1.1 501 Unexpected content for method 'DELETE'")
    path = "/api2/json/pools?poolid=from-query"
    head, _ = await raw(lab, "POST", path, token_header(lab), b"poolid=from-body")
    assert head.startswith("HTTP/1.1 200")
    _, body = await raw(lab, "GET", "/api2/json/pools", token_header(lab))
    assert "from-query" in {pool["poolid"] for pool in json.loads(body)["data"]}


async def test_11_forms_end_at_semicolons_and_lose_what_follows_a_second_equals_sign(lab: RunningLab) -> None:
    head, _ = await raw(lab, "POST", "/api2/json/pools", token_header(lab), b"poolid=cut;comment=kept=lost")
    assert head.startswith("HTTP/1.1 200")
    _, body = await raw(lab, "GET", "/api2/json/pools/cut", token_header(lab))
    assert json.loads(body)["data"]["comment"] == "kept"


async def test_30_errors_close_the_connection(lab: RunningLab) -> None:
    head, _ = await raw(lab, "GET", "/api2/json/no/such", token_header(lab))
    assert "connection: close" in head.lower()


async def test_30_an_idle_connection_is_closed(tmp_path: Path) -> None:
    async with lab_at(tmp_path, idle_timeout_s=1) as lab:
        context = ssl.create_default_context(cafile=str(lab.ca_path))
        reader, writer = await asyncio.open_connection("127.0.0.1", lab.port, ssl=context)
        auth = "\r\n".join(f"{k}: {v}" for k, v in token_header(lab).items())
        writer.write(f"GET /api2/json/version HTTP/1.1\r\nHost: x\r\n{auth}\r\n\r\n".encode())
        await reader.readuntil(b"\r\n\r\n")
        async with asyncio.timeout(20):
            await reader.read(-1)
        assert reader.at_eof()
        writer.close()


async def test_users_get_passwords_roles_and_exactly_the_rights_of_their_roles(lab: RunningLab, root: Client) -> None:
    await root("post", "access/users", userid="ann@pve", password="first-password")
    await root("put", "access/password", userid="ann@pve", password="second-password")
    await root("post", "access/roles", roleid="Starter", privs="VM.Audit,VM.PowerMgmt")
    await root("put", "access/acl", path="/vms/9000", users="ann@pve", roles="Starter")
    ann = Client(lab, user="ann@pve", password="second-password")
    assert (await ann("get", "access/permissions", path="/vms/9000")) == {
        "/vms/9000": {"VM.Audit": 1, "VM.PowerMgmt": 1}
    }
    refused = await ann.fails("post", "nodes/sv1/qemu/9000/clone", newid=19998)
    assert refused.content == "Permission check failed (/vms/9000, VM.Clone)"
    with pytest.raises(AuthenticationError):
        await Client(lab, user="ann@pve", password="first-password")("get", "version")


async def test_json_bodies_are_read_like_forms(lab: RunningLab, token: Client) -> None:
    headers = token_header(lab) | {"Content-Type": "application/json"}
    head, _ = await raw(lab, "POST", "/api2/json/pools", headers, json.dumps({"poolid": "from-json"}).encode())
    assert head.startswith("HTTP/1.1 200")
    assert "from-json" in {pool["poolid"] for pool in await token("get", "pools")}
    headers["Content-Type"] = "text/plain"
    head, _ = await raw(lab, "POST", "/api2/json/pools", headers, b"poolid=x")
    assert head.startswith("HTTP/1.1 506")
