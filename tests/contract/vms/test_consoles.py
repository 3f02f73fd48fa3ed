import asyncio
import contextlib
import hashlib
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

import pytest
import structlog
from websockets.asyncio.client import ClientConnection, connect
from websockets.exceptions import ConnectionClosed, InvalidStatus

from cli.process import Running, listen, service_config, url_of
from libs.common.clock import SystemClock
from libs.common.events import Event
from libs.pvesim.app import RunningLab
from tests.contract.pvesim.rfb_client import DESKTOP_SIZE, RAW, RfbClient
from tests.contract.pvesim.test_console import says, settled
from tests.contract.vms.harness import Service, running

Eventually = Callable[..., Awaitable[None]]
ABSENT = "01890000-0000-7000-8000-000000000000"


class Viewer(RfbClient):
    """A noVNC-like client: it is offered no authentication, and so it sends no password."""

    async def shake_hands(self, version: bytes = b"RFB 003.008\n") -> "Viewer":
        assert await self.read(12) == b"RFB 003.008\n"
        await self.socket.send(version)
        if version == b"RFB 003.003\n":
            assert await self.fields(">I") == (1,)
        else:
            assert await self.read(2) == b"\x01\x01"
            await self.socket.send(b"\x01")
            if version == b"RFB 003.008\n":
                assert await self.fields(">I") == (0,)
        await self.socket.send(b"\x01")
        width, height, self.format, length = await self.fields(">HH16sI")
        self.name = (await self.read(length)).decode()
        self._resize(width, height)
        return self


@contextlib.asynccontextmanager
async def listening(service: Service) -> AsyncIterator[str]:
    """The service behind a socket, as it is served in a deployment; gives the sockets' base URL."""
    bound = listen("127.0.0.1", 0)
    server = Running(service_config(service.app, lifespan="off"), bound)
    await server.start()
    try:
        yield url_of(bound).replace("http", "ws", 1)
    finally:
        await server.stop()


@pytest.fixture(scope="module")
async def base(service: Service) -> AsyncIterator[str]:
    async with listening(service) as base:
        yield base


@pytest.fixture(scope="module")
async def owner(service: Service) -> str:
    return await service.new_user()


@pytest.fixture(scope="module")
async def vm(service: Service, owner: str) -> dict[str, Any]:
    """A machine that runs and that no test changes."""
    return await service.vm(owner, name="shown")


async def ticket(service: Service, user: str, vm: dict[str, Any], **options: Any) -> dict[str, Any]:
    answer = await service.call("POST", f"/api/v1/vms/{vm['id']}/console", user, **options)
    assert answer.status_code == 200, answer.text
    assert answer.headers["cache-control"] == "no-store"
    drawn: dict[str, Any] = answer.json()
    return drawn


async def dial(url: str, **options: Any) -> ClientConnection:
    return await connect(url, proxy=None, subprotocols=["binary"], compression=None, max_size=2**20, **options)


@contextlib.asynccontextmanager
async def viewing(service: Service, base: str, user: str, vm: dict[str, Any], **options: Any) -> AsyncIterator[Viewer]:
    drawn = await ticket(service, user, vm, **options)
    async with await dial(base + drawn["url"]) as socket:
        yield await Viewer(socket, "").shake_hands()


async def shown_by(viewer: Viewer, words: str) -> None:
    """Wait until the whole picture has the words; while the guest boots it also changes its size."""
    await viewer.set_encodings(RAW, DESKTOP_SIZE)
    async with asyncio.timeout(10):
        while True:
            await viewer.ask()
            await viewer.update()
            if says(viewer.picture, words):
                return


async def refused(url: str, status: int = 403, **options: Any) -> str:
    """That the handshake is refused with a status; gives the problem's text."""
    with pytest.raises(InvalidStatus) as refusal:
        await dial(url, **options)
    assert refusal.value.response.status_code == status, refusal.value.response.body
    return bytes(refusal.value.response.body or b"").decode()


async def closed(socket: ClientConnection, within_s: float = 1.0) -> tuple[int, str]:
    """With which code and reason a console ends, within a time."""
    async with asyncio.timeout(within_s):
        with contextlib.suppress(ConnectionClosed):
            while True:
                await socket.recv()
    assert socket.close_code is not None
    return socket.close_code, socket.close_reason or ""


async def told(lines: list[Any], event: str) -> Any:
    """The line that an event is noted with."""
    async with asyncio.timeout(10):
        while True:
            for line in lines:
                if line["event"] == event:
                    return line
            await asyncio.sleep(0.02)


def revocation(scope: str, subject: str) -> Event:
    now = SystemClock().now()
    return Event(
        type="auth.session.revoked.v1",
        subject=subject,
        source="/telar/auth",
        time=now,
        data={"revokes": [{"scope": scope, "id": subject, "revoked_at": now.timestamp() + 1}]},
    )


async def test_a_console_shows_the_machine_and_passes_keys_on(
    service: Service, base: str, owner: str, vm: dict[str, Any]
) -> None:
    async with viewing(service, base, owner, vm) as viewer:
        assert viewer.socket.subprotocol == "binary"
        assert viewer.name == "QEMU (shown)"
        await shown_by(viewer, f"VMID {vm['vmid']} on node {vm['node']}")
        await settled(viewer, lambda picture: says(picture, "state: running"))
        await viewer.key(ord("q"))
        await settled(viewer, lambda picture: says(picture, "keys: q"))


@pytest.mark.parametrize("version", [b"RFB 003.003\n", b"RFB 003.007\n"])
async def test_older_viewers_are_let_in_too(
    service: Service, base: str, owner: str, vm: dict[str, Any], version: bytes
) -> None:
    drawn = await ticket(service, owner, vm)
    async with await dial(base + drawn["url"]) as socket:
        viewer = await Viewer(socket, "").shake_hands(version)
        assert viewer.name == "QEMU (shown)"


async def test_the_browser_sees_no_credential_of_the_cluster_and_the_database_no_ticket(
    service: Service, owner: str, vm: dict[str, Any]
) -> None:
    drawn = await ticket(service, owner, vm)
    assert set(drawn) == {"type", "ticket", "url", "subprotocol", "expires_at"}
    assert "PVE" not in str(drawn)
    kept = service.rows("SELECT * FROM console_tickets WHERE vm_id = %s", vm["id"])
    assert [row for row in kept if drawn["ticket"] in str(row)] == []
    assert hashlib.sha256(drawn["ticket"].encode()).digest() in [bytes(row[0]) for row in kept]
    again = {"Idempotency-Key": "console-1"}
    first = await ticket(service, owner, vm, headers=again)
    replay = await service.call("POST", f"/api/v1/vms/{vm['id']}/console", owner, headers=again)
    assert replay.status_code == 409
    assert first["ticket"] not in replay.text


async def test_a_ticket_opens_one_console(service: Service, base: str, owner: str, vm: dict[str, Any]) -> None:
    drawn = await ticket(service, owner, vm)
    taken = await asyncio.gather(*(dial(base + drawn["url"]) for _ in range(8)), return_exceptions=True)
    opened = [one for one in taken if isinstance(one, ClientConnection)]
    assert len(opened) == 1
    assert {one.response.status_code for one in taken if isinstance(one, InvalidStatus)} == {403}
    await opened[0].close()
    await refused(base + drawn["url"])


async def test_a_ticket_is_good_for_half_a_minute(service: Service, base: str, owner: str, vm: dict[str, Any]) -> None:
    drawn = await ticket(service, owner, vm)
    digest = hashlib.sha256(drawn["ticket"].encode()).digest()
    ((left,),) = service.rows(
        "SELECT extract(epoch FROM expires_at - now()) FROM console_tickets WHERE digest = %s", digest
    )
    assert 25 < left <= 30
    await service.change("UPDATE console_tickets SET expires_at = now() - interval '1 ms' WHERE digest = %s", digest)
    assert "console-ticket-refused" in await refused(base + drawn["url"])


async def test_a_ticket_is_bound_to_its_user_and_machine(
    service: Service, base: str, owner: str, vm: dict[str, Any]
) -> None:
    other = await service.new_user()
    theirs = await service.vm(other, name="theirs")
    drawn = await ticket(service, owner, vm)
    swapped = drawn["url"].replace(vm["id"], theirs["id"])
    await refused(base + swapped)
    await refused(base + drawn["url"])  # it was used up by the attempt
    drawn = await ticket(service, owner, vm)
    await refused(base + drawn["url"], additional_headers=service.as_user(other))
    for user, machine in ((other, vm["id"]), (owner, theirs["id"]), (owner, ABSENT)):
        assert (await service.call("POST", f"/api/v1/vms/{machine}/console", user)).status_code == 404
    for wrong in ("", "?ticket=", "?ticket=guess", f"?ticket={'x' * 4000}", "?ticket=a&ticket=b"):
        await refused(f"{base}/api/v1/vms/{vm['id']}/console/ws{wrong}")
    async with viewing(service, base, other, vm, role="ADMIN") as viewer:
        assert viewer.name == "QEMU (shown)"


async def test_a_revoked_session_closes_its_consoles_at_once_and_spoils_its_tickets(
    service: Service, base: str
) -> None:
    for scope in ("session", "user"):
        user = await service.new_user()
        machine = await service.vm(user, name="short")
        spoilt = await ticket(service, user, machine)
        async with viewing(service, base, user, machine) as viewer:
            await service.bus.publish(revocation(scope, user if scope == "user" else f"session-of-{user}"))
            assert await closed(viewer.socket) == (1008, "the session has ended")
        assert "console-ticket-refused" in await refused(base + spoilt["url"])


async def test_deleting_a_machine_or_giving_it_away_closes_its_consoles_at_once(service: Service, base: str) -> None:
    user, other = await service.new_user(), await service.new_user()
    vm = await service.vm(user, name="passed-on")
    async with viewing(service, base, user, vm) as viewer:
        await service.change("UPDATE vms SET owner_id = %s WHERE id = %s", other, vm["id"])
        assert await closed(viewer.socket) == (1008, "the machine is another's")
    async with viewing(service, base, other, vm) as viewer:
        await service.call("DELETE", f"/api/v1/vms/{vm['id']}", other)
        code, reason = await closed(viewer.socket)
        assert (code, reason) in ((1008, "the machine is gone"), (1000, "the display ended"))


async def test_a_console_ends_with_its_machines_process_and_a_stopped_machine_has_none(
    service: Service, base: str, owner: str
) -> None:
    vm = await service.vm(owner, name="halting")
    drawn = await ticket(service, owner, vm)
    async with viewing(service, base, owner, vm) as viewer:
        await service.done("POST", f"/api/v1/vms/{vm['id']}/stop", owner)
        assert await closed(viewer.socket) == (1000, "the display ended")
    assert "vm-state" in await refused(base + drawn["url"], 409)
    answer = await service.call("POST", f"/api/v1/vms/{vm['id']}/console", owner)
    assert (answer.status_code, answer.json()["type"]) == (409, "/problems/vm-state")


async def test_a_machine_that_moved_is_found_and_a_stranger_under_its_vmid_is_never_shown(
    service: Service, base: str, owner: str
) -> None:
    vm = await service.vm(owner, name="wandering")
    await service.change("UPDATE vms SET node = 'sv5' WHERE id = %s AND node <> 'sv5'", vm["id"])
    async with viewing(service, base, owner, vm) as viewer:
        assert viewer.name == "QEMU (wandering)"
    service.machine(vm).config["description"] = "somebody else's"
    drawn = await ticket(service, owner, vm)
    assert "machine-not-ours" in await refused(base + drawn["url"], 409)


async def test_it_is_noted_who_looked_at_what_for_how_long(
    service: Service, base: str, owner: str, vm: dict[str, Any]
) -> None:
    with structlog.testing.capture_logs() as lines:
        async with viewing(service, base, owner, vm) as viewer:
            await viewer.ask()
            await viewer.update()
        opened, ended = await told(lines, "console_opened"), await told(lines, "console_closed")
    for line in (opened, ended):
        assert line["audit"] is True
        assert (line["user_id"], line["vm_id"], line["vmid"]) == (owner, vm["id"], vm["vmid"])
    assert ended["duration_s"] >= 0
    assert ended["bytes_shown"] > 100_000
    assert ended["reason"] == "the viewer left"


async def test_a_viewer_that_speaks_no_rfb_or_text_is_closed(
    service: Service, base: str, owner: str, vm: dict[str, Any]
) -> None:
    for sent in (b"GET / HTTP/1", b"RFB 009.009\n", "text", b"RFB 003.008\n\x02"):
        drawn = await ticket(service, owner, vm)
        async with await dial(base + drawn["url"]) as socket:
            await socket.send(sent)
            assert (await closed(socket, 5.0))[0] == 1003, sent


async def test_a_viewer_that_does_not_read_holds_the_display_back(
    service: Service, base: str, owner: str, vm: dict[str, Any]
) -> None:
    with structlog.testing.capture_logs() as lines:
        async with viewing(service, base, owner, vm) as viewer:
            viewer.socket.transport.pause_reading()
            asked = 200
            for _ in range(asked):
                await viewer.ask()
            viewer.socket.transport.abort()
        ended = await told(lines, "console_closed")
    assert ended["bytes_shown"] < asked * 800 * 600 * 4 / 4


async def test_long_messages_reach_the_display_in_frames_that_it_takes(
    service: Service, base: str, owner: str, vm: dict[str, Any]
) -> None:
    async with viewing(service, base, owner, vm) as viewer:
        pasted = b"\x06\0\0\0" + (300_000).to_bytes(4, "big") + b"x" * 300_000
        await viewer.socket.send(pasted)
        await viewer.ask()
        assert await viewer.update(), "the display takes no more"


async def test_a_spice_console_is_a_viewers_file(service: Service, owner: str, vm: dict[str, Any]) -> None:
    path = f"/api/v1/vms/{vm['id']}/console"
    without = await service.call("POST", path, owner, json={"type": "spice"})
    assert (without.status_code, without.json()["type"]) == (409, "/problems/no-spice-display")
    service.machine(vm).config["vga"] = "qxl"
    try:
        answer = await service.call("POST", path, owner, json={"type": "spice"})
    finally:
        del service.machine(vm).config["vga"]
    assert answer.status_code == 200
    assert answer.headers["content-type"].startswith("application/x-virt-viewer")
    assert answer.headers["cache-control"] == "no-store"
    assert answer.headers["content-disposition"].endswith('.vv"')
    first, *lines = answer.text.splitlines()
    assert first == "[virt-viewer]"
    file = dict(line.split("=", 1) for line in lines)
    assert file["type"] == "spice"
    assert {"host", "proxy", "tls-port", "ca", "password", "delete-this-file"} <= set(file)
    assert (await service.call("POST", path, owner, json={"type": "telnet"})).status_code == 422


async def test_a_cluster_that_does_not_answer_is_told_before_the_handshake(
    service: Service, base: str, owner: str, vm: dict[str, Any]
) -> None:
    drawn = await ticket(service, owner, vm)
    async with service.fault("html", path="vncproxy"):
        await refused(base + drawn["url"], 503)
    drawn = await ticket(service, owner, vm)
    async with service.fault("error", path="vncwebsocket", status=500):
        assert "display-refused" in await refused(base + drawn["url"], 502)


async def test_a_display_that_does_not_open_in_time_is_told_and_its_place_is_free_again(
    service: Service, owner: str, vm: dict[str, Any], database_url: str, lab: RunningLab, eventually: Eventually
) -> None:
    limits = {"console_open_s": 1.0, "consoles_at_once": 1}
    async with running(database_url, lab, **limits) as replica, listening(replica) as base:
        drawn = await ticket(service, owner, vm)
        async with service.fault("slow_call", path="vncproxy", seconds=200):  # four seconds here
            assert "proxmox-unavailable" in await refused(base + drawn["url"], 503)
        assert "console-ticket-refused" in await refused(base + drawn["url"])

        async def opens() -> bool:
            url = base + (await ticket(service, owner, vm))["url"]
            try:
                async with await dial(url) as socket:
                    return (await Viewer(socket, "").shake_hands()).name == "QEMU (shown)"
            except InvalidStatus:  # a slow machine may take longer than a second
                return False

        await eventually(opens, 30)


async def test_a_console_ends_when_it_was_open_for_as_long_as_one_may_be(
    service: Service, owner: str, vm: dict[str, Any], database_url: str, lab: RunningLab
) -> None:
    with structlog.testing.capture_logs() as lines:
        async with running(database_url, lab, console_max_s=3.0) as replica, listening(replica) as base:
            async with viewing(service, base, owner, vm) as viewer:
                ended = await closed(viewer.socket, within_s=30)
            assert ended == (1008, "it was open for as long as a console may be")
        assert (await told(lines, "console_closed"))["reason"] == "it was open for as long as a console may be"


async def test_any_replica_takes_a_ticket_and_each_keeps_so_many_consoles_open(
    service: Service, base: str, owner: str, vm: dict[str, Any], database_url: str, lab: RunningLab
) -> None:
    async with running(database_url, lab, consoles_at_once=1) as replica, listening(replica) as other:
        assert other != base
        first, second = await ticket(service, owner, vm), await ticket(service, owner, vm)
        async with await dial(other + first["url"]) as socket:
            assert (await Viewer(socket, "").shake_hands()).name == "QEMU (shown)"
            assert "consoles-taken" in await refused(other + second["url"], 503)
            async with await dial(base + second["url"]) as unspoilt:
                await Viewer(unspoilt, "").shake_hands()
        await refused(base + first["url"])
