"""How the releases differ, row by row of what `libs/pvesim/releases.py` and the `since` of parameters say."""

import json
from collections.abc import AsyncIterator
from typing import Any

import pytest

from libs.pvesim.app import RunningLab
from libs.pvesim.releases import Release
from tests.contract.pvesim.conftest import Client, lab_at
from tests.contract.pvesim.test_http import raw, token_header

CLONE = "nodes/sv2/qemu/9001/clone"
VM = "nodes/sv2/qemu/200"


@pytest.fixture(scope="module", params=["7.4.3", "8.0.4", "8.4.1", "9.1.4"])
async def old(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[RunningLab]:
    async with lab_at(tmp_path_factory.mktemp("release"), version=request.param) as lab:
        token = Client(lab)
        assert await token.done("post", CLONE, newid=200) == "OK"
        yield lab


@pytest.fixture
def release(old: RunningLab) -> Release:
    return old.lab.settings.release


@pytest.fixture
def client(old: RunningLab) -> Client:
    return Client(old)


async def test_the_version_tells_the_release(client: Client, release: Release) -> None:
    told = await client("get", "version")
    assert Release.parse(told["version"]) == release
    assert told["release"] == ".".join(told["version"].split(".")[:2])


async def test_01_the_json_message_came_with_8_4(old: RunningLab, release: Release) -> None:
    head, body = await raw(old, "GET", "/api2/json/nodes/sv1/qemu/777/config", token_header(old))
    assert head.startswith("HTTP/1.1 500 Configuration file")
    assert ("message" in json.loads(body)) == release.has((8, 4))
    head, body = await raw(old, "PATCH", "/api2/json/version", token_header(old))
    assert head.startswith("HTTP/1.1 501 method 'PATCH' not available")
    assert bool(body) == release.has((8, 4))


async def test_bodies_were_smaller_before_8_4(old: RunningLab, release: Release) -> None:
    body = b"poolid=big&comment=" + b"x" * 70_000
    head, _ = await raw(old, "POST", "/api2/json/pools", token_header(old), body)
    expected = "HTTP/1.1 200" if release.has((8, 4)) else "HTTP/1.1 501 for data too large"
    assert head.startswith(expected)


async def test_repeated_keys_became_lists_with_8(old: RunningLab, client: Client, release: Release) -> None:
    await client("put", f"{VM}/config", onboot=1, description="x")
    head, body = await raw(
        old, "PUT", f"/api2/json/{VM}/config", token_header(old), b"delete=onboot&delete=description"
    )
    assert head.startswith("HTTP/1.1 200"), body
    config = await client("get", f"{VM}/config")
    assert not {"onboot", "description"} & set(config)
    head, body = await raw(old, "PUT", f"/api2/json/{VM}/config", token_header(old), b"name=a&name=b")
    told = json.loads(body)["errors"]["name"]
    assert told == (
        "type check ('string') failed - got ARRAY"
        if release.has((8,))
        else "invalid format - value does not look like a valid DNS name\n"
    )


async def test_memory_and_mac_addresses_changed_with_8_1(client: Client, release: Release) -> None:
    config = await client("get", f"{VM}/config")
    assert config["memory"] == ("2048" if release.has((8, 1)) else 2048)
    mac = config["net0"].split("=")[1].split(",")[0]
    assert mac.startswith("BC:24:11:") == release.has((8, 1))
    assert int(mac[:2], 16) & 1 == 0


async def test_resize_became_a_task_with_8(client: Client, release: Release) -> None:
    answer = await client("put", f"{VM}/resize", disk="scsi0", size="+1G")
    assert (answer is not None) == release.has((8,))
    if answer is not None:
        assert (await client.task(answer))["exitstatus"] == "OK"
    stale = {"disk": "scsi0", "size": "+1G", "digest": "0" * 40}
    if release.has((8,)):
        assert "checksum mismatch" in await client.done("put", f"{VM}/resize", **stale)
    else:
        assert "checksum missmatch" in (await client.fails("put", f"{VM}/resize", **stale)).content


async def test_refused_linked_clones_name_the_volume_since_8(client: Client, release: Release) -> None:
    refused = (await client.fails("post", f"{VM}/clone", newid=201, full=0)).content
    expected = "for 'shared:9001/base" if release.has((8,)) else "for drive 'scsi0'"
    assert expected in refused


async def test_bridges_need_a_privilege_since_8(old: RunningLab, release: Release) -> None:
    root = Client(old, user="root@pam", password=old.root_password.get_secret_value())
    made = await root("post", "access/users/root@pam/token/bare", privsep=1)
    await root("put", "access/acl", path="/vms/200", tokens="root@pam!bare", roles="PVEVMAdmin")
    bare = Client(old, user="root@pam", token_name="bare", token_value=made["value"])
    change: dict[str, Any] = {"net1": "virtio,bridge=vmbr1,tag=7"}
    if release.has((8,)):
        refused = await bare.fails("put", f"{VM}/config", **change)
        assert refused.content == "Permission check failed (/sdn/zones/localnetwork/vmbr1/7, SDN.Use)"
    else:
        assert await bare("put", f"{VM}/config", **change) is None
    await root("delete", "access/users/root@pam/token/bare")


NEWER = [
    ("put", f"{VM}/config", {"ciupgrade": 1}, (8,)),
    ("put", f"{VM}/config", {"allow-ksm": 1}, (9,)),
    ("post", f"{VM}/status/stop", {"overrule-shutdown": 1}, (8, 1, 2)),
    ("post", f"{VM}/migrate", {"target": "sv2", "with-conntrack-state": 1}, (9,)),
    ("put", "pools/none", {"allow-move": 1}, (8, 1)),
    ("get", "pools", {"poolid": "none"}, (8, 2)),
    ("post", "nodes/sv1/qemu", {"vmid": 9001, "ha-managed": 1}, (9, 1)),
]


@pytest.mark.parametrize(("method", "path", "given", "since"), NEWER)
async def test_07_parameters_are_unknown_before_their_release(
    client: Client, release: Release, method: str, path: str, given: dict[str, Any], since: tuple[int, ...]
) -> None:
    name = list(given)[-1]
    try:
        await client(method, path, **given)
        unknown = False
    except Exception as refused:  # noqa: BLE001  (whatever else may be wrong with it)
        unknown = name in (getattr(refused, "errors", None) or {})
    assert unknown == (not release.has(since))


CALLS = [
    ("get", "cluster/ha/rules", (9,)),
    ("get", "cluster/metrics/export", (8, 3)),
    ("delete", "pools", (8, 2)),
    ("post", "access/vncticket", (9, 1)),
    ("post", "cluster/ha/status/arm-ha", (9, 1)),
]


@pytest.mark.parametrize(("method", "path", "since"), CALLS)
async def test_08_calls_are_501_before_their_release(
    old: RunningLab, release: Release, method: str, path: str, since: tuple[int, ...]
) -> None:
    head, _ = await raw(old, method.upper(), f"/api2/json/{path}", token_header(old))
    assert head.startswith("HTTP/1.1 501") == (not release.has(since))


async def test_nested_pools_came_with_8_1(client: Client, release: Release) -> None:
    await client("post", "pools", poolid="outer")
    if release.has((8, 1)):
        assert await client("post", "pools", poolid="outer/inner") is None
    else:
        assert set((await client.fails("post", "pools", poolid="outer/inner")).errors) == {"poolid"}


async def test_21_the_inventory_grew(client: Client, release: Release) -> None:
    entries = await client("get", "cluster/resources")
    template = next(entry for entry in entries if entry.get("vmid") == 9000)
    assert ("memhost" in template) == release.has((9,))
    assert ("network" in {entry["type"] for entry in entries}) == release.has((9,))
    status = await client("get", "nodes/sv1/qemu/9000/status/current")
    assert ("pressurecpusome" in status) == release.has((9,))
    assert ("available" in (await client("get", "nodes/sv1/status"))["memory"]) == release.has((9,))


async def test_history_has_more_points_since_9(client: Client, release: Release) -> None:
    expected = {"hour": 60, "day": 1440} if release.has((9,)) else {"hour": 70, "day": 70}
    for frame, points in expected.items():
        assert len(await client("get", "nodes/sv1/rrddata", timeframe=frame)) == points
    if not release.has((9,)):
        refused = await client.fails("get", "nodes/sv1/rrddata", timeframe="decade")
        assert set(refused.errors) == {"timeframe"}


async def test_28_the_agent_took_its_command_as_one_text_before_8(
    old: RunningLab, client: Client, release: Release
) -> None:
    root = Client(old, user="root@pam", password=old.root_password.get_secret_value())
    await client.done("post", f"{VM}/status/start")
    vm = old.lab.vms.by_id[200]
    vm.guest_up = 0.0
    pid = (await root("post", f"{VM}/agent/exec", command=["echo", "two", "words"]))["pid"]
    assert (await root("get", f"{VM}/agent/exec-status", pid=pid))["out-data"] == "two words\n"
    unknown = await root.fails("get", f"{VM}/agent/file-read", file="/nope", count=5)
    assert ("count" in (unknown.errors or {})) == (not release.has((9, 1)))
    await client.done("post", f"{VM}/status/stop")


def test_releases_compare_by_number() -> None:
    assert Release.parse("8.10.1").has((8, 2))
    assert not Release.parse("8.1.1").has((8, 1, 2))
    assert Release.parse("9.1.4").shown == "9.1"
