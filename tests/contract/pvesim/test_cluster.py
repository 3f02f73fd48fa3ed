import ssl
from collections.abc import Awaitable, Callable
from itertools import pairwise
from pathlib import Path
from urllib.parse import quote

import httpx
import pytest

from libs.pvesim.app import RunningLab
from libs.pvesim.faults import Fault
from tests.contract.pvesim.conftest import Client, eventually, lab_at
from tests.contract.pvesim.rfb_client import authorization

NewVm = Callable[..., Awaitable[int]]
FreshId = Callable[[], int]
KEY = "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIF+/abcdefghijklmnop== ann@desk"


def root_of(lab: RunningLab) -> Client:
    return Client(lab, user="root@pam", password=lab.root_password.get_secret_value())


async def test_15_the_datacenter_says_which_ids_are_handed_out(tmp_path: Path) -> None:
    async with lab_at(tmp_path) as lab:
        root = root_of(lab)
        assert await root("get", "cluster/nextid") == "100"
        await root("put", "cluster/options", **{"next-id": "lower=700,upper=702", "mac_prefix": "02:AB"})
        assert await root("get", "cluster/nextid") == "700"
        for vmid in (700, 701):
            assert await root.done("post", "nodes/sv1/qemu", vmid=vmid, net0="virtio,bridge=vmbr0") == "OK"
        full = await root.fails("get", "cluster/nextid")
        assert full.content == "unable to get any free VMID in range [700, 702]"
        assert (await root("get", "nodes/sv1/qemu/700/config"))["net0"].startswith("virtio=02:AB:")
        assert await root("get", "cluster/nextid", vmid=150) == "150"
    async with lab_at(tmp_path) as lab:
        assert (await root_of(lab)("get", "cluster/options"))["mac_prefix"] == "02:AB"


async def test_the_cluster_log_tells_tasks_newest_first_and_others_only_to_auditors(
    root: Client, token: Client, new_vm: NewVm
) -> None:
    vmid = await new_vm()
    upid = await root("post", f"nodes/sv2/qemu/{vmid}/status/start")
    await root.task(upid)
    entries = await root("get", "cluster/log", max=20)
    assert len(entries) <= 20
    assert [entry["uid"] for entry in entries] == sorted((entry["uid"] for entry in entries), reverse=True)
    mine = [entry["msg"] for entry in entries if upid in entry["msg"]]
    assert mine == [f"end task {upid} OK", f"starting task {upid}"]
    assert {entry["user"] for entry in await token("get", "cluster/log")} == {"telar@pve!telar"}


async def test_metrics_are_exported_inside_an_envelope_of_their_own(token: Client) -> None:
    metrics = (await token("get", "cluster/metrics/export"))["data"]
    assert {"id", "metric", "timestamp", "type", "value"} == set(metrics[0])
    assert {metric["id"] for metric in metrics} >= {"node/sv1", "node/sv5", "qemu/9000"}


@pytest.mark.parametrize(
    ("path", "frame", "points", "series"),
    [
        ("nodes/sv1", "decade", 520, "memavailable"),
        ("nodes/sv1", "hour", 60, "pressureiofull"),
        ("nodes/sv1/storage/shared", "week", 336, "total"),
        ("nodes/sv1/qemu/9000", "month", 1440, "maxmem"),
    ],
)
async def test_history_has_its_points(token: Client, path: str, frame: str, points: int, series: str) -> None:
    samples = await token("get", f"{path}/rrddata", timeframe=frame)
    assert len(samples) == points
    assert series in samples[-1]
    steps = {later["time"] - sooner["time"] for sooner, later in pairwise(samples)}
    assert len(steps) == 1


async def test_19_a_clone_takes_the_firewall_along(token: Client, new_vm: NewVm, fresh_id: FreshId) -> None:
    path, copy = f"nodes/sv2/qemu/{await new_vm()}", fresh_id()
    await token("put", f"{path}/firewall/options", enable=1, policy_in="DROP")
    for port in ("22", "443"):
        await token("post", f"{path}/firewall/rules", type="in", action="ACCEPT", proto="tcp", dport=port, enable=1)
    assert [rule["dport"] for rule in await token("get", f"{path}/firewall/rules")] == ["443", "22"]
    await token("put", f"{path}/firewall/rules/0", moveto=1)
    await token("put", f"{path}/firewall/rules/1", comment="web", delete="enable")
    assert await token.done("post", f"{path}/clone", newid=copy) == "OK"
    assert await token.done("delete", path) == "OK"
    rules = await token("get", f"nodes/sv2/qemu/{copy}/firewall/rules")
    assert [(rule["dport"], rule.get("comment"), rule.get("enable")) for rule in rules] == [
        ("22", None, 1), ("443", "web", None),
    ]  # fmt: skip
    options = await token("get", f"nodes/sv2/qemu/{copy}/firewall/options")
    assert (options["enable"], options["policy_in"]) == (1, "DROP")
    await token("delete", f"nodes/sv2/qemu/{copy}/firewall/rules/0")
    missing = await token.fails("get", f"nodes/sv2/qemu/{copy}/firewall/rules/1")
    assert set(missing.errors) == {"pos"}


async def test_11_ssh_keys_are_encoded_twice_on_their_way_and_once_in_the_answer(
    lab: RunningLab, token: Client, new_vm: NewVm
) -> None:
    path = f"nodes/sv2/qemu/{await new_vm()}"
    once = quote(KEY, safe="")
    await token(
        "put", f"{path}/config", sshkeys=once, ciuser="ann", cipassword="secret", ipconfig0="ip=10.0.0.5/24,gw=10.0.0.1"
    )
    assert (await token("get", f"{path}/config"))["sshkeys"] == once
    user = await token("get", f"{path}/cloudinit/dump", type="user")
    assert f"  - {KEY}" in user.splitlines()
    assert "user: ann" in user.splitlines()
    assert "secret" not in user
    context = ssl.create_default_context(cafile=str(lab.ca_path))
    async with httpx.AsyncClient(verify=context, headers=authorization(lab)) as client:
        answer = await client.put(f"{lab.url}/api2/json/{path}/config", content=f"sshkeys={once}")
    assert (answer.status_code, answer.json()["errors"]["sshkeys"][:43]) == (
        400, "invalid format - invalid urlencoded string:",
    )  # fmt: skip
    bad = await token.fails("put", f"{path}/config", sshkeys=quote("not a key", safe=""))
    assert (bad.status_code, bad.content) == (500, "SSH public key validation error")


async def test_the_cloud_init_drive_knows_what_it_was_made_with(token: Client, new_vm: NewVm) -> None:
    path = f"nodes/sv2/qemu/{await new_vm(name='first')}"
    await token.done("post", f"{path}/status/start")
    first = await token("get", f"{path}/cloudinit/dump", type="meta")
    await token("put", f"{path}/config", ciuser="ann", delete="ipconfig0")
    shown = {entry["key"]: entry for entry in await token("get", f"{path}/cloudinit")}
    assert shown["ciuser"] == {"key": "ciuser", "pending": "ann"}
    assert shown["ipconfig0"] == {"key": "ipconfig0", "value": "ip=dhcp", "delete": 1}
    assert shown["name"] == {"key": "name", "value": "first"}
    await token("put", f"{path}/cloudinit")
    shown = {entry["key"]: entry for entry in await token("get", f"{path}/cloudinit")}
    assert shown["ciuser"] == {"key": "ciuser", "value": "ann"}
    assert "ipconfig0" not in shown
    assert await token("get", f"{path}/cloudinit/dump", type="meta") != first
    network = await token("get", f"{path}/cloudinit/dump", type="network")
    assert "version: 1" in network
    mac = (await token("get", f"{path}/config"))["net0"].split("=")[1].split(",")[0]
    assert mac.lower() in network


async def test_keys_and_monitor_commands_reach_a_running_machine_only(
    root: Client, running_vm: str, new_vm: NewVm
) -> None:
    off = await new_vm()
    assert (await root.fails("put", f"nodes/sv2/qemu/{off}/sendkey", key="ret")).content == f"VM {off} not running"
    assert await root("post", f"{running_vm}/monitor", command="info status") == "VM status: running\r\n"
    assert (
        await root("post", f"{running_vm}/monitor", command="self destruct") == "unknown command: 'self destruct'\r\n"
    )
    assert (await root.fails("put", f"{running_vm}/sendkey", key="a b")).content == "invalid parameter: a b"


async def test_a_node_that_is_the_address_hands_it_on(tmp_path: Path) -> None:
    async with lab_at(tmp_path, dead_node_delay_s=0, node_ports={"sv1": 0, "sv2": 0}) as lab:
        token = Client(lab)
        fault = Fault(kind="node_down", node="sv1")
        await lab.lab.inject(fault)
        heads = {entry["name"]: entry for entry in await token("get", "cluster/status") if entry["type"] == "node"}
        assert (heads["sv1"]["online"], heads["sv2"]["local"]) == (0, 1)
        assert (await token.fails("get", "nodes/sv1/qemu")).status_code == 595
        with pytest.raises(httpx.ConnectError):
            async with httpx.AsyncClient(verify=ssl.create_default_context(cafile=str(lab.ca_path))) as client:
                await client.get(f"{lab.url_of('sv1')}/api2/json/version")
        second = Client(lab, port=lab.node_ports["sv2"])
        assert await second("get", "nodes/localhost/qemu") == await second("get", "nodes/sv2/qemu")
        await lab.lab.withdraw(fault.id)
        assert (await Client(lab, port=lab.node_ports["sv1"])("get", "version"))["release"] == "9.1"


async def test_everything_survives_a_restart(tmp_path: Path) -> None:
    path = "nodes/sv2/qemu/200"
    async with lab_at(tmp_path) as lab:
        root = root_of(lab)
        await root.done("post", "nodes/sv2/qemu/9001/clone", newid=200)
        await root("post", "storage", storage="extra", type="dir", path="/srv/extra", content="images,iso")
        await root("put", "storage/local", disable=1)
        await root("post", f"{path}/firewall/rules", type="out", action="DROP")
        await root("post", "cluster/ha/resources", sid="vm:200", state="stopped", comment="kept")
        await root("post", "cluster/ha/rules", rule="kept", type="node-affinity", resources="vm:200", nodes="sv2")
        await root("post", "access/users", userid="ann@pve", password="long-enough")
        keys = (await root("post", "access/tfa/ann@pve", type="recovery"))["recovery"]
        assert len(keys) == 10
        log = await root("get", "cluster/log")
    async with lab_at(tmp_path) as lab:
        root = root_of(lab)
        stores = {storage["storage"]: storage for storage in await root("get", "storage")}
        assert (stores["extra"]["content"], stores["local"]["disable"]) == ("images,iso", 1)
        assert [rule["action"] for rule in await root("get", f"{path}/firewall/rules")] == ["DROP"]
        assert (await root("get", "cluster/ha/resources/vm:200"))["comment"] == "kept"
        assert (await root("get", "cluster/ha/rules/kept"))["nodes"] == "sv2"
        assert [entry["type"] for entry in await root("get", "access/tfa/ann@pve")] == ["recovery"]
        kept = {entry["uid"]: entry for entry in await root("get", "cluster/log")}
        assert all(kept[entry["uid"]] == entry for entry in log)


async def test_27_ha_can_be_disarmed(tmp_path: Path) -> None:
    async with lab_at(tmp_path, ha_round_s=2) as lab:
        root = root_of(lab)
        await root.done("post", "nodes/sv2/qemu/9001/clone", newid=200)
        await root("post", "cluster/ha/resources", sid="vm:200", state="stopped")
        await root("post", "cluster/ha/status/disarm-ha", **{"resource-mode": "ignore"})
        assert ":qmstart:" in await root("post", "nodes/sv2/qemu/200/status/start")
        shown = {entry["id"]: entry for entry in await root("get", "cluster/ha/status/current")}
        assert (shown["fencing"]["armed-state"], shown["fencing"]["resource_mode"]) == ("disarmed", "ignore")
        await eventually(lambda: root("get", "nodes/sv2/qemu/200/status/current"), lambda s: s["status"] == "running")
        await root("post", "cluster/ha/status/arm-ha")
        await eventually(lambda: root("get", "nodes/sv2/qemu/200/status/current"), lambda s: s["status"] == "stopped")
