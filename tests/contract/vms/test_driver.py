"""The driver against the lab over real HTTPS; what `services.vms.ports.Cluster` promises."""

import asyncio
import logging
from collections.abc import AsyncIterator

import pytest
from pydantic import SecretStr

from libs.pvesim.app import RunningLab
from libs.pvesim.faults import Fault
from services.vms.adapters.proxmox import ProxmoxCluster
from services.vms.domain.cluster import Template
from services.vms.errors import (
    MachineMissing,
    NodeDown,
    OutcomeUnknown,
    PermissionMissing,
    ProxmoxBusy,
    ProxmoxUnavailable,
    TaskFailed,
    UnsafeId,
    VmidTaken,
    VmLocked,
    WrongPowerState,
)
from services.vms.settings import ClusterSettings
from tests.contract.vms.harness import cluster_of, lab_at
from tests.corpora.vms.hostile_ids import NAMES, SLOTS, UPIDS, VMIDS

NODE = "sv2"
FIRST = 20_000


@pytest.fixture(scope="module", params=["new", "old"])
async def lab(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[RunningLab]:
    """A lab of today, and one whose texts are in the reason phrase alone and whose numbers are often text."""
    old = {"json_error_message": False, "loose_types": True} if request.param == "old" else {}
    async with lab_at(tmp_path_factory.mktemp("driver"), **old) as lab:
        yield lab


def driver(lab: RunningLab, **changes: object) -> ProxmoxCluster:
    chosen = ClusterSettings.model_validate(cluster_of(lab, **changes))
    return ProxmoxCluster(chosen, timeout_s=10, connections=8, task_poll_s=0.05)


@pytest.fixture(scope="module")
async def cluster(lab: RunningLab) -> AsyncIterator[ProxmoxCluster]:
    made = driver(lab)
    yield made
    await made.close()


@pytest.fixture(scope="module")
async def debian(cluster: ProxmoxCluster) -> Template:
    return next(one for one in await cluster.templates(max_age_s=0) if one.os_type == "debian-13")


@pytest.fixture
async def faults(lab: RunningLab) -> AsyncIterator[RunningLab]:
    yield lab
    for fault in lab.lab.faults.list():
        await lab.lab.withdraw(fault.id)


_numbers = iter(range(FIRST, 30_000))


@pytest.fixture
async def vmid(cluster: ProxmoxCluster, debian: Template) -> int:
    """A stopped machine on the template's node."""
    number = next(_numbers)
    await cluster.wait(await cluster.clone(debian, number, name="web", notes="telar-vm 1", target=NODE))
    return number


def calls(lab: RunningLab) -> int:
    return sum(lab.lab.calls.values())


async def test_a_certificate_is_trusted_by_its_fingerprint_or_its_authority_and_no_other(lab: RunningLab) -> None:
    wrong = "0" * 64
    for changes in ({}, {"fingerprint": None, "ca": str(lab.ca_path)}):
        good = driver(lab, **changes)
        await good.check()
        await good.close()
    before = calls(lab)
    for changes in ({"fingerprint": wrong}, {"fingerprint": None}):
        bad = driver(lab, **changes)
        with pytest.raises(ProxmoxUnavailable, match="certificate"):
            await bad.check()
        await bad.close()
    assert calls(lab) == before


async def test_the_lab_is_seen_whole(cluster: ProxmoxCluster) -> None:
    known = await cluster.inventory(max_age_s=0)
    assert sorted(known.nodes) == ["sv1", "sv2", "sv3", "sv4", "sv5"]
    assert known.nodes["sv1"].memory_mib == 128 * 1024
    assert known.storages["sv1", "shared"].shared
    templates = {one.os_type: one for one in await cluster.templates(max_age_s=60)}
    assert sorted(templates) == ["centos-stream-10", "debian-13", "ubuntu-24.04", "windows-2025"]
    ubuntu = templates["ubuntu-24.04"]
    assert (ubuntu.vmid, ubuntu.node, ubuntu.disk_gib, ubuntu.shared, ubuntu.cloud_init) == (9000, "sv1", 4, True, True)


async def test_a_machine_lives_through_clone_change_growth_power_and_removal(
    cluster: ProxmoxCluster, debian: Template
) -> None:
    vmid = next(_numbers)
    await cluster.wait(await cluster.clone(debian, vmid, name="web", notes="telar-vm 1", target="sv4"))
    read = await cluster.config("sv4", vmid)
    assert (read.name, read.notes.strip(), read.lock) == ("web", "telar-vm 1", None)
    keys = "ssh-ed25519 AAAA+b/c= me@home"
    await cluster.configure("sv4", vmid, {"cores": 3, "memory": 1024, "sshkeys": keys}, digest=read.digest)
    upid = await cluster.resize("sv4", vmid, read.boot_disk or "", 9)
    assert upid is not None
    await cluster.wait(upid)
    read = await cluster.config("sv4", vmid)
    assert (read.cores, read.memory_mib, read.disks[read.boot_disk or ""]) == (3, 1024, 9 * 1024**3)
    for verb, status in (("start", "running"), ("suspend", "paused"), ("resume", "running"), ("stop", "stopped")):
        await cluster.wait(await cluster.act("sv4", vmid, verb, {}))
        assert (await cluster.power("sv4", vmid)).status == status
    await cluster.wait(await cluster.destroy("sv4", vmid))
    with pytest.raises(MachineMissing):
        await cluster.config("sv4", vmid)


async def test_a_stale_digest_keeps_a_change_from_being_made(cluster: ProxmoxCluster, vmid: int) -> None:
    digest = (await cluster.config(NODE, vmid)).digest
    await cluster.configure(NODE, vmid, {"cores": 3}, digest=digest)
    with pytest.raises(ProxmoxBusy):
        await cluster.configure(NODE, vmid, {"cores": 4}, digest=digest)
    assert (await cluster.config(NODE, vmid)).cores == 3


async def test_a_taken_vmid_is_told_at_once_or_by_the_task(
    cluster: ProxmoxCluster, debian: Template, vmid: int
) -> None:
    with pytest.raises(VmidTaken):
        await cluster.clone(debian, vmid, name="again", notes="", target=NODE)
    elsewhere = next(_numbers)
    await cluster.wait(await cluster.clone(debian, elsewhere, name="far", notes="", target="sv3"))
    upid = await cluster.clone(debian, elsewhere, name="again", notes="", target=NODE)
    with pytest.raises(VmidTaken):
        await cluster.wait(upid)


async def test_power_that_is_not_possible_is_told_as_such(cluster: ProxmoxCluster, vmid: int) -> None:
    with pytest.raises(WrongPowerState):
        await cluster.act(NODE, vmid, "reboot", {})
    await cluster.wait(await cluster.act(NODE, vmid, "start", {}))
    upid = await cluster.act(NODE, vmid, "start", {})
    with pytest.raises(WrongPowerState, match="state"):
        await cluster.wait(upid)
    with pytest.raises(WrongPowerState):
        await cluster.destroy(NODE, vmid)


async def test_failures_are_known_by_what_they_mean(cluster: ProxmoxCluster, vmid: int, faults: RunningLab) -> None:
    lab = faults.lab
    await lab.inject(Fault(kind="lock_timeout", method="PUT", count=1))
    with pytest.raises(ProxmoxBusy):
        await cluster.configure(NODE, vmid, {"cores": 2}, digest="")
    await lab.inject(Fault(kind="error", message="VM is locked (backup)", method="PUT", count=1))
    with pytest.raises(VmLocked):
        await cluster.configure(NODE, vmid, {"cores": 2}, digest="")
    await lab.inject(Fault(kind="gateway_timeout", method="PUT", count=1))
    with pytest.raises(OutcomeUnknown):
        await cluster.configure(NODE, vmid, {"cores": 2}, digest="")
    await lab.inject(Fault(kind="gateway_timeout", method="GET", path="/config", count=1))
    with pytest.raises(ProxmoxUnavailable):
        await cluster.config(NODE, vmid)
    await lab.inject(Fault(kind="no_quorum", id="quorum"))
    with pytest.raises(ProxmoxUnavailable, match="quorum"):
        await cluster.act(NODE, vmid, "start", {})
    await lab.withdraw("quorum")
    await lab.inject(Fault(kind="task_failure", task_type="qmstart", count=1))
    upid = await cluster.act(NODE, vmid, "start", {})
    with pytest.raises(TaskFailed):
        await cluster.wait(upid)
    await lab.inject(Fault(kind="task_warnings", task_type="qmstart", count=1))
    await cluster.wait(await cluster.act(NODE, vmid, "start", {}))


async def test_a_web_page_is_no_answer(cluster: ProxmoxCluster, vmid: int, faults: RunningLab) -> None:
    await faults.lab.inject(Fault(kind="html", count=5))
    with pytest.raises(ProxmoxUnavailable):
        await cluster.config(NODE, vmid)
    with pytest.raises(OutcomeUnknown):
        await cluster.configure(NODE, vmid, {"cores": 2}, digest="")
    with pytest.raises(OutcomeUnknown):
        await cluster.act(NODE, vmid, "start", {})
    with pytest.raises(OutcomeUnknown):
        await cluster.files.upload(NODE, "local", name="telar-seed-1.iso", content=b"seed")
    with pytest.raises(OutcomeUnknown):
        await cluster.files.remove(NODE, "local:iso/telar-seed-1.iso")


async def test_a_dead_node_is_named(cluster: ProxmoxCluster, faults: RunningLab) -> None:
    await faults.lab.inject(Fault(kind="node_down", node="sv5"))
    with pytest.raises(NodeDown) as caught:
        await cluster.config("sv5", 9000)
    assert caught.value.node == "sv5"
    assert not (await cluster.inventory(max_age_s=0)).online("sv5")


async def test_a_wrong_token_and_a_missing_privilege_are_the_tokens_fault(lab: RunningLab, faults: RunningLab) -> None:
    stranger = driver(lab, token_secret=SecretStr("00000000-0000-0000-0000-000000000000").get_secret_value())
    with pytest.raises(PermissionMissing, match="token"):
        await stranger.check()
    await stranger.close()
    poor = driver(lab)
    await faults.lab.inject(Fault(kind="token_without_privileges"))
    with pytest.raises(PermissionMissing, match="privilege"):
        await poor.config("sv1", 9000)
    assert (await poor.inventory(max_age_s=0)).machines == {}
    await poor.close()


async def test_a_cluster_that_is_away_is_told_before_anything_is_sent(lab: RunningLab) -> None:
    nowhere = driver(lab, url="https://127.0.0.1:9")
    with pytest.raises(ProxmoxUnavailable, match="reached"):
        await nowhere.act("sv1", 9000, "start", {})
    await nowhere.close()


async def test_no_hostile_id_leaves_the_process(cluster: ProxmoxCluster, debian: Template, lab: RunningLab) -> None:
    before = calls(lab)
    for vmid in VMIDS:
        for attempt in (
            cluster.config(NODE, vmid),  # type: ignore[arg-type] # that is the point
            cluster.power(NODE, vmid),  # type: ignore[arg-type] # "
            cluster.addresses(NODE, vmid),  # type: ignore[arg-type] # "
            cluster.destroy(NODE, vmid),  # type: ignore[arg-type] # "
            cluster.act(NODE, vmid, "start", {}),  # type: ignore[arg-type] # "
            cluster.configure(NODE, vmid, {"cores": 1}, digest=""),  # type: ignore[arg-type] # "
            cluster.clone(debian, vmid, name="x", notes="", target=NODE),  # type: ignore[arg-type] # "
            cluster.tasks(NODE, vmid, "qmstart", since=0),  # type: ignore[arg-type] # "
        ):
            with pytest.raises(UnsafeId):
                await attempt
    for name in NAMES:
        for attempt in (
            cluster.config(name, 100),  # type: ignore[arg-type] # "
            cluster.destroy(name, 100),  # type: ignore[arg-type] # "
            cluster.resize(name, 100, "scsi0", 1),  # type: ignore[arg-type] # "
            cluster.clone(debian, 100, name="x", notes="", target=name),  # type: ignore[arg-type] # "
        ):
            with pytest.raises(UnsafeId):
                await attempt
    for slot in SLOTS:
        with pytest.raises(UnsafeId):
            await cluster.resize(NODE, 100, slot, 1)  # type: ignore[arg-type] # "
    for upid in UPIDS:
        with pytest.raises(UnsafeId):
            await cluster.wait(upid)  # type: ignore[arg-type] # "
        with pytest.raises(UnsafeId):
            await cluster.interrupt(upid)  # type: ignore[arg-type] # "
    for verb in ("current", "../config", "start/..", "reset", ""):
        with pytest.raises(UnsafeId):
            await cluster.act(NODE, 100, verb, {})
    assert calls(lab) == before


async def test_many_waiters_cost_no_more_than_one(cluster: ProxmoxCluster, debian: Template, lab: RunningLab) -> None:
    await lab.lab.inject(Fault(kind="slow_task", id="slow", task_type="qmclone", factor=10))
    vmids = [next(_numbers) for _ in range(20)]
    upids = await asyncio.gather(*(cluster.clone(debian, vmid, name="w", notes="", target=NODE) for vmid in vmids))
    lab.lab.calls.clear()
    loop = asyncio.get_running_loop()
    begun = loop.time()
    await asyncio.gather(*(cluster.wait(upid) for upid in upids for _ in range(3)))
    rounds = (loop.time() - begun) / 0.05 + 2
    await lab.lab.withdraw("slow")
    assert lab.lab.calls["GET /cluster/tasks"] <= rounds
    assert set(lab.lab.calls) <= {"GET /cluster/tasks", "GET /cluster/resources"}


async def test_many_who_look_at_once_share_a_look(cluster: ProxmoxCluster, lab: RunningLab) -> None:
    lab.lab.calls.clear()
    await asyncio.gather(*(cluster.inventory(max_age_s=0) for _ in range(50)))
    assert lab.lab.calls["GET /cluster/resources"] <= 2


async def test_a_task_that_the_list_does_not_show_is_asked_for_itself(
    cluster: ProxmoxCluster, vmid: int, lab: RunningLab, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(lab.lab.tasks, "broadcast", lambda _node: [])
    await cluster.wait(await cluster.act(NODE, vmid, "start", {}))
    await lab.lab.inject(Fault(kind="task_failure", task_type="qmstop", count=1))
    upid = await cluster.act(NODE, vmid, "stop", {})
    with pytest.raises(TaskFailed):
        await cluster.wait(upid)


async def test_no_secret_is_logged(
    cluster: ProxmoxCluster,
    vmid: int,
    lab: RunningLab,
    caplog: pytest.LogCaptureFixture,
    capsys: pytest.CaptureFixture[str],
) -> None:
    caplog.set_level(logging.DEBUG)
    await cluster.configure(NODE, vmid, {"cipassword": "canary-password"}, digest="")
    with pytest.raises(ProxmoxBusy):
        await cluster.configure(NODE, vmid, {"cipassword": "canary-password"}, digest="0" * 40)
    told = caplog.text + "".join(capsys.readouterr())
    assert "canary-password" not in told
    assert lab.token_secret.get_secret_value() not in told
