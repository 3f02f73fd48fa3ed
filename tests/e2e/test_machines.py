"""Consoles, snapshots and older clients' machines, through the gateway of the embedded suite."""

import asyncio
from collections.abc import Callable, Iterator
from typing import Any

import httpx
import pytest
from websockets.asyncio.client import ClientConnection, connect
from websockets.exceptions import ConnectionClosed, InvalidStatus

from tests.contract.pvesim.test_console import says, settled
from tests.contract.vms.test_consoles import Viewer, shown_by

from .conftest import Account, RunningSuite

Within = Callable[[Callable[[], Any], float], float]


def finished(http: httpx.Client, answer: httpx.Response, within: Within) -> dict[str, Any]:
    """The operation that an accepted call began, when it has succeeded."""
    assert answer.status_code == 202, answer.text
    path = answer.headers["location"]
    shown: dict[str, Any] = {}

    def ended() -> bool:
        shown.update(http.get(path).json())
        return shown["state"] not in ("pending", "running")

    within(ended, 60)
    assert shown["state"] == "succeeded", shown
    return shown


class Machine:
    """A machine that runs, and its owner."""

    def __init__(self, owner: Account, within: Within) -> None:
        self.owner = owner
        wish = {"name": "seen", "os_type": "debian", "cores": 1, "memory_mib": 512}
        answer = owner.http.post("/api/v1/vms", json=wish)
        finished(owner.http, answer, within)
        self.path = f"/api/v1/vms/{answer.json()['vm']['id']}"
        self.shown = owner.http.get(self.path).json()

    def ticket(self, **body: Any) -> str:
        answer = self.owner.http.post(f"{self.path}/console", json=body or {"type": "vnc"})
        assert answer.status_code == 200, answer.text
        return str(answer.json()["url"])


@pytest.fixture(scope="module")
def machine(suite: RunningSuite, admin: Account, within: Within) -> Iterator[Machine]:
    made = Machine(admin, within)
    assert suite.url
    yield made
    finished(admin.http, admin.http.delete(made.path), within)


def socket_at(suite: RunningSuite, path: str, **options: Any) -> connect:
    """What a browser opens: no credentials, but for its ticket."""
    given: dict[str, Any] = {"subprotocols": ["binary"], "compression": None, "max_size": 2**20, "proxy": None}
    return connect(suite.url.replace("http", "ws", 1) + path, **(given | options))


async def refusal(suite: RunningSuite, path: str, **options: Any) -> int:
    with pytest.raises(InvalidStatus) as refused:
        async with socket_at(suite, path, **options):
            pass
    return refused.value.response.status_code


async def closed(socket: ClientConnection) -> int | None:
    async with asyncio.timeout(20):
        try:
            while True:
                await socket.recv()
        except ConnectionClosed:
            return socket.close_code


async def test_a_snapshot_brings_a_machine_back_and_its_console_shows_a_picture(
    suite: RunningSuite, machine: Machine, within: Within
) -> None:
    http, path = machine.owner.http, machine.path
    finished(http, http.post(f"{path}/snapshots", json={"name": "before", "include_memory": True}), within)
    finished(http, http.patch(path, json={"name": "renamed"}), within)
    finished(http, http.post(f"{path}/snapshots/before/rollback"), within)
    shown = http.get(f"{path}/snapshots").json()
    assert [(one["name"], one["includes_memory"], one["current"]) for one in shown["items"]] == [("before", True, True)]
    assert http.get(path).json()["state"] == "running"
    assert len(http.get(f"{path}/metrics").json()["times"]) > 50
    origin = "http://localhost:3000"
    async with socket_at(suite, machine.ticket(), origin=origin) as socket:
        viewer = await Viewer(socket, "").shake_hands()
        vmid = machine.shown["vmid"]
        await shown_by(viewer, f"VMID {vmid} on node {http.get(path).json()['node']}")
        await viewer.key(ord("k"))
        await settled(viewer, lambda picture: says(picture, "keys: k"))


async def test_a_console_is_opened_once_from_a_known_origin_with_a_ticket_of_its_own(
    suite: RunningSuite, machine: Machine
) -> None:
    path = machine.ticket()
    assert await refusal(suite, path, origin="https://evil.example") == 403
    async with socket_at(suite, path):  # the foreign page did not even use it up
        pass
    assert await refusal(suite, path) == 403
    assert await refusal(suite, path.partition("?")[0]) == 403
    other = {"Authorization": "Bearer nonsense"}
    assert await refusal(suite, machine.ticket(), additional_headers=other) == 401
    async with httpx.AsyncClient(base_url=suite.url) as anonymous:
        assert (await anonymous.get(machine.ticket())).status_code == 401


async def test_logging_out_closes_the_consoles_of_the_session(
    suite: RunningSuite, make_client: Callable[[], Account], within: Within
) -> None:
    client = make_client()
    machine = await asyncio.to_thread(Machine, client, within)
    async with socket_at(suite, machine.ticket()) as socket:
        await Viewer(socket, "").shake_hands()
        unused = machine.ticket()
        assert client.http.post("/api/v1/logout").status_code in (200, 204)
        assert await closed(socket) == 1008
    assert await refusal(suite, unused) == 403


def test_the_older_vm_and_stack_clients_calls_work_with_a_key(
    suite: RunningSuite, admin: Account, within: Within
) -> None:
    key = admin.http.post("/api/v1/api-keys", json={"name": "older", "scopes": ["*"]}).json()
    me = admin.http.get("/api/v1/users/me").json()
    with httpx.Client(base_url=suite.url, headers={"x-api-key": key["key"]}, trust_env=False, timeout=30) as http:

        def form(path: str, **fields: str) -> httpx.Response:
            return http.post(path, files={name: (None, value) for name, value in fields.items()} or None)

        made = form("/vm", userid=me["username"], vm_name="old", os_type="Ubuntu", disksize="10", cores="1")
        finished(http, made, within)
        vm_id = made.json()["vm_id"]
        assert made.json()["status"] == "creating"
        shown = http.get(f"/vm/{vm_id}").json()
        assert (shown["status"], shown["disksize"], shown["vm_name"]) == ("enabled", 10, "old")
        finished(http, form(f"/control-vm/{vm_id}/pause"), within)
        assert http.get(f"/vm/{vm_id}").json()["status"] == "paused"
        connected = form(f"/vm/connect/{vm_id}").json()
        assert connected["ticket"] in connected["url"]
        finished(http, form(f"/control-vm/{vm_id}/delete"), within)
        assert http.get(f"/vm/{vm_id}").status_code == 404
    admin.http.delete(f"/api/v1/api-keys/{key['id']}")


def test_the_older_vm_clients_calls_work_with_a_token(admin: Account, within: Within) -> None:
    base, http = "/api/v1/virtual-machines/", admin.http
    made = http.post(base, json={"name": "older", "cores": 1, "ram": 1024, "disk": 10, "os": "debian", "status": "x"})
    finished(http, made, within)
    number = made.json()["id"]
    listed = {one["id"]: one for one in http.get(base).json()}
    assert (listed[number]["ram"], listed[number]["disk"], listed[number]["status"]) == (1024, 10, "enabled")
    finished(http, http.put(f"{base}{number}", json={"name": "newer", "status": "running", "disk": 12}), within)
    assert http.get(f"{base}{number}").json()["disk"] == 12
    finished(http, http.delete(f"{base}{number}"), within)
    assert http.get(f"{base}{number}").status_code == 404
