"""The whole SSRF corpus through the real client: canaries on every local address stay untouched."""

import asyncio
import json
import socket
from collections.abc import AsyncIterator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from ipaddress import ip_address, ip_network
from pathlib import Path
from typing import Any

import pytest

from libs.common.http import AddressPolicy, AddressRefused, ExchangeFailed, GuardedClient, Limits, OutboundError, Reason
from libs.common.http.pool import Connection, Endpoint, Pool

CORPUS = Path(__file__).parents[2] / "corpora" / "ssrf"
CASES: list[dict[str, Any]] = [json.loads(line) for line in (CORPUS / "urls.jsonl").read_text().splitlines()]
NAMES: dict[str, list[str]] = json.loads((CORPUS / "names.json").read_text())
REDIRECTOR = "127.77.0.1"
LIMITS = Limits(connect_timeout_s=5, response_timeout_s=5, total_deadline_s=10)


@dataclass
class Canary:
    """Counts the connections it gets; with `location` it redirects there, else it answers 200."""

    port: int = 0
    hits: int = 0
    locations: dict[str, str] = field(default_factory=dict)

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.hits += 1
        try:
            path = (await reader.readuntil(b"\r\n\r\n")).split(b" ")[1].decode()
            location = self.locations.get(path)
            head = "200 OK" if location is None else "302 Found\r\nLocation: " + location
            writer.write(
                f"HTTP/1.1 {head}\r\nContent-Length: 0\r\nConnection: close\r\n\r\n".encode("utf-8", "surrogatepass")
            )
            await writer.drain()
        except (ConnectionError, asyncio.IncompleteReadError):
            pass
        finally:
            writer.close()

    @asynccontextmanager
    async def listen(self, *hosts: str) -> AsyncIterator["Canary"]:
        async with AsyncExitStack() as stack:
            for host in hosts:
                family = socket.AF_INET6 if ":" in host else socket.AF_INET
                server = await asyncio.start_server(self.serve, host, self.port, family=family)
                await stack.enter_async_context(server)
                self.port = server.sockets[0].getsockname()[1]
            yield self


async def lookup(host: str, port: int) -> Sequence[str]:
    del port
    if host not in NAMES:
        raise OSError(host)
    return NAMES[host]


@pytest.fixture
async def canary() -> AsyncIterator[Canary]:
    async with Canary().listen("0.0.0.0", "::") as listening:
        yield listening


async def outcome(client: GuardedClient, url: str) -> str | None:
    try:
        async with client.stream("GET", url) as response:
            await response.read()
    except OutboundError as error:
        return _reason(error)
    return None


def _reason(error: OutboundError) -> str:
    assert not any(secret in str(error) for secret in ("127.", "10.", "169.254", "::1", "evil.test"))
    return error.reason.value


async def test_no_url_of_the_corpus_reaches_a_canary(canary: Canary) -> None:
    async with GuardedClient(AddressPolicy(), lookup=lookup, limits=LIMITS) as client:
        for case in CASES:
            if case["verdict"] == "refused":
                url = case["url"].replace("{port}", str(canary.port))
                assert await outcome(client, url) == case["reason"], case
    assert canary.hits == 0


async def test_the_canaries_are_hit_once_an_operator_allows_loopback(canary: Canary) -> None:
    policy = AddressPolicy([ip_network("127.0.0.0/8"), ip_network("0.0.0.0/8"), ip_network("::1/128")])
    local = [case for case in CASES if case["reason"] == "address-loopback" and "[" not in case["url"]]
    local = [
        case
        for case in local
        if "{port}" in case["url"] and ".test" not in case["url"] and not case["url"].lower().startswith("https")
    ]
    async with GuardedClient(policy, lookup=lookup, limits=LIMITS) as client:
        for case in local:
            assert await outcome(client, case["url"].replace("{port}", str(canary.port))) is None, case
    assert canary.hits == len(local) >= 40


async def test_every_control_is_dialled_at_its_checked_address(monkeypatch: pytest.MonkeyPatch) -> None:
    dialled: list[Endpoint] = []

    async def dial(self: Pool, endpoints: list[Endpoint], *, until: float) -> Connection:
        del self, until
        dialled.extend(endpoints[:1])
        raise ExchangeFailed(Reason.CONNECT_FAILED, "The test does not go out.")

    monkeypatch.setattr(Pool, "dial", dial)
    controls = [case for case in CASES if case["verdict"] == "allowed"]
    async with GuardedClient(AddressPolicy(), lookup=lookup) as client:
        for case in controls:
            assert await outcome(client, case["url"].replace("{port}", "18999")) == "connect-failed", case
    assert len(dialled) == len(controls)
    assert all(end.address in map(ip_address, NAMES.get(end.host, [end.host])) for end in dialled)


async def test_no_redirect_chain_reaches_a_canary(canary: Canary) -> None:
    refused = [case for case in CASES if case["verdict"] == "refused"]
    refused = [case for case in refused if case["reason"] != "url-malformed"]  # some are good relative references
    refused = [case for case in refused if not set(case["url"]) & set("\r\n\0\ud800") and len(case["url"]) < 8000]
    policy = AddressPolicy([ip_network(REDIRECTOR)])
    async with (
        Canary().listen(REDIRECTOR) as redirector,
        GuardedClient(policy, lookup=lookup, limits=LIMITS) as client,
    ):
        for number, case in enumerate(refused):
            redirector.locations |= {
                f"/{number}": f"/{number}/b",
                f"/{number}/b": f"http://{REDIRECTOR}:{redirector.port}/{number}/c",
                f"/{number}/c": case["url"].replace("{port}", str(canary.port)),
            }
        for number, case in enumerate(refused):
            reached = await outcome(client, f"http://{REDIRECTOR}:{redirector.port}/{number}")
            assert reached == case["reason"] if case["reason"].startswith("address-") else reached, (reached, case)
    assert redirector.hits == 3 * len(refused) >= 900
    assert canary.hits == 0


@pytest.mark.parametrize("ttl_s", [0.0, 10.0])
async def test_a_rebinding_name_is_dialled_only_at_addresses_that_were_checked(ttl_s: float) -> None:
    asked = 0

    async def rebinding(host: str, port: int) -> Sequence[str]:
        nonlocal asked
        del host, port
        asked += 1
        return ["127.77.0.1"] if asked % 2 else ["127.0.0.1"]

    canary, allowed = Canary(), Canary()
    async with allowed.listen(REDIRECTOR):
        canary.port = allowed.port
        policy = AddressPolicy([ip_network(REDIRECTOR)])
        async with canary.listen("127.0.0.1"), GuardedClient(policy, lookup=rebinding, resolve_ttl_s=ttl_s) as client:
            outcomes = [await outcome(client, f"http://rebind.test:{allowed.port}/") for _ in range(20)]
    assert canary.hits == 0
    assert allowed.hits == (20 if ttl_s else 10)
    assert outcomes == ([None] * 20 if ttl_s else [None, "address-loopback"] * 10)


async def test_one_hostile_address_among_public_ones_refuses_the_name_before_any_dial(canary: Canary) -> None:
    async def mixed(host: str, port: int) -> Sequence[str]:
        del host, port
        return [REDIRECTOR, "127.0.0.1"]

    async with GuardedClient(AddressPolicy([ip_network(REDIRECTOR)]), lookup=mixed) as client:
        with pytest.raises(AddressRefused):
            await client.resolve(f"http://mixed.test:{canary.port}/")
        assert await outcome(client, f"http://mixed.test:{canary.port}/") == "address-loopback"
    assert canary.hits == 0
