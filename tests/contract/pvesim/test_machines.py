from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

from tests.contract.pvesim.conftest import Client, eventually, lab_at

NewVm = Callable[..., Awaitable[int]]
FreshId = Callable[[], int]


async def entry_of(token: Client, vmid: int) -> dict[str, Any]:
    found = await token("get", "cluster/resources", type="vm")
    return next((vm for vm in found if vm["vmid"] == vmid), {})


async def test_21_the_inventory_knows_a_new_machine_at_once_and_its_state_later(tmp_path: Path) -> None:
    async with lab_at(tmp_path, stats_period_s=300) as lab:
        token = Client(lab)
        await token.done("post", "nodes/sv2/qemu/9001/clone", newid=900, name="late")
        fresh = await entry_of(token, 900)
        assert (fresh["status"], fresh["node"]) == ("unknown", "sv2")
        assert "name" not in fresh
        known = await eventually(lambda: entry_of(token, 900), lambda vm: vm["status"] != "unknown")
        assert (known["name"], known["status"]) == ("late", "stopped")
        await token.done("post", "nodes/sv2/qemu/900/status/start")
        assert (await token("get", "nodes/sv2/qemu/900/status/current"))["status"] == "running"
        assert (await entry_of(token, 900))["status"] == "stopped"
        await eventually(lambda: entry_of(token, 900), lambda vm: vm["status"] == "running")


async def test_22_the_two_kinds_of_status_combine_as_documented(token: Client, new_vm: NewVm) -> None:
    path = f"nodes/sv2/qemu/{await new_vm()}"

    async def state() -> tuple[str, str, str | None]:
        status = await token("get", f"{path}/status/current")
        return status["status"], status["qmpstatus"], status.get("lock")

    assert await state() == ("stopped", "stopped", None)
    await token.done("post", f"{path}/status/start")
    assert await state() == ("running", "running", None)
    await token.done("post", f"{path}/status/suspend")
    assert await state() == ("running", "paused", None)
    assert (await token.fails("post", f"{path}/status/shutdown")).content == "VM is paused - cannot shutdown"
    await token.done("post", f"{path}/status/resume")
    assert await token.done("post", f"{path}/status/suspend", todisk=1) == "OK"
    assert await state() == ("stopped", "stopped", "suspended")
    assert await token.done("post", f"{path}/status/resume") == "OK"
    assert await state() == ("running", "running", None)


async def test_23_power_calls_are_idempotent_only_where_the_original_is(token: Client, new_vm: NewVm) -> None:
    vmid = await new_vm()
    path = f"nodes/sv2/qemu/{vmid}/status"
    for verb in ("stop", "shutdown"):
        assert await token.done("post", f"{path}/{verb}") == "OK"
    for verb in ("reboot", "reset", "suspend", "resume"):
        assert (await token.fails("post", f"{path}/{verb}")).content == f"VM {vmid} not running"
    assert await token.done("post", f"{path}/start") == "OK"
    assert await token.done("post", f"{path}/start") == f"VM {vmid} already running"
    assert await token.done("post", f"{path}/shutdown") == "OK"
    assert await token.done("post", "nodes/sv2/qemu/777/status/start") == (
        "Configuration file 'nodes/sv2/qemu-server/777.conf' does not exist"
    )
    assert await token.done("post", "nodes/sv2/qemu/777/status/stop") == (
        "unable to find configuration file for VM 777 on node 'sv2'"
    )
    assert await token.done("post", "nodes/sv2/qemu/9001/status/start") == "you can't start a vm if it's a template"


async def test_23_a_reboot_ends_when_the_machine_is_down_and_a_second_task_starts_it(
    token: Client, new_vm: NewVm
) -> None:
    vmid = await new_vm()
    path = f"nodes/sv2/qemu/{vmid}"
    await token.done("post", f"{path}/status/start")
    assert await token.done("post", f"{path}/status/reboot") == "OK"
    await eventually(lambda: token("get", f"{path}/status/current"), lambda status: status["status"] == "running")
    starts = await token("get", "nodes/sv2/tasks", vmid=vmid, typefilter="qmstart", source="all")
    assert "root@pam" in {task["user"] for task in starts}


async def test_23_a_guest_that_does_not_listen_times_out_and_can_be_forced(token: Client, fresh_id: FreshId) -> None:
    vmid = fresh_id()
    assert await token.done("post", "nodes/sv1/qemu", vmid=vmid, scsi0="local-lvm:1", memory=128, start=1) == "OK"
    path = f"nodes/sv1/qemu/{vmid}/status"
    await eventually(lambda: token("get", f"{path}/current"), lambda status: status["status"] == "running")
    timed_out = "VM quit/powerdown failed - got timeout"
    assert await token.done("post", f"{path}/shutdown", timeout=1) == timed_out
    assert await token.done("post", f"{path}/shutdown", timeout=1, forceStop=1) == "OK"
    assert (await token("get", f"{path}/current"))["status"] == "stopped"


async def test_24_a_running_machine_keeps_changes_pending_until_it_is_started_again(
    token: Client, new_vm: NewVm
) -> None:
    path = f"nodes/sv2/qemu/{await new_vm()}"
    await token.done("post", f"{path}/status/start")
    await token("put", f"{path}/config", cores=4, description="live", net1="virtio,bridge=vmbr1")
    pending = {item["key"]: item for item in await token("get", f"{path}/pending")}
    assert (pending["cores"]["value"], pending["cores"]["pending"]) == (2, 4)
    assert "pending" not in pending["description"]
    assert "pending" not in pending["net1"]
    assert (await token("get", f"{path}/config"))["cores"] == 4
    assert (await token("get", f"{path}/config", current=1))["cores"] == 2
    await token("put", f"{path}/config", revert="cores")
    assert (await token("get", f"{path}/config"))["cores"] == 2
    await token("put", f"{path}/config", cores=3)
    await token.done("post", f"{path}/status/stop")
    await token.done("post", f"{path}/status/start")
    assert (await token("get", f"{path}/config", current=1))["cores"] == 3


async def test_24_disks_leave_as_unused_and_property_strings_are_printed_again(token: Client, new_vm: NewVm) -> None:
    vmid = await new_vm()
    path = f"nodes/sv2/qemu/{vmid}/config"
    before = await token("get", path)
    await token("put", path, scsi1="shared:2,ssd=1,discard=on", net0="firewall=1,bridge=vmbr1,model=virtio")
    config = await token("get", path)
    assert config["scsi1"] == f"shared:{vmid}/vm-{vmid}-disk-1.raw,discard=on,size=2G,ssd=1"
    assert config["net0"].startswith("virtio=BC:24:11:")
    assert config["net0"].endswith(",bridge=vmbr1,firewall=1")
    assert config["net0"][:24] != before["net0"][:24]
    await token("put", path, delete="scsi1")
    assert (await token("get", path))["unused0"] == f"shared:{vmid}/vm-{vmid}-disk-1.raw"
    await token("put", path, delete="unused0")
    assert "unused0" not in await token("get", path)
    stale = await token.fails("put", path, name="x", digest=before["digest"])
    assert stale.content == "checksum mismatch (file change by other user?)"
    assert (await token.fails("put", path, delete="nope")).errors == {"delete": "unknown option 'nope'"}
    assert (await token.fails("put", path)).content == "no options specified"
    wrong = await token.fails("put", path, boot="order=scsi9")
    assert wrong.content == "invalid bootorder: device 'scsi9' does not exist'"


async def test_25_put_answers_null_and_post_answers_a_task(token: Client, new_vm: NewVm) -> None:
    path = f"nodes/sv2/qemu/{await new_vm()}/config"
    assert await token("put", path, name="sync") is None
    assert await token.done("post", path, name="async") == "OK"
    assert await token("post", path, name="waited", background_delay=10) is None
    assert (await token("get", path))["name"] == "waited"


async def test_25_slow_calls_are_cut_off_with_596_while_the_work_goes_on(tmp_path: Path) -> None:
    async with lab_at(tmp_path, proxy_timeout_s=2, allocation_s=5) as lab:
        token = Client(lab)
        cut = await token.fails("put", "nodes/sv1/qemu/9000/config", scsi5="shared:1")
        assert (cut.status_code, cut.content, cut.errors) == (596, "Connection timed out", {"errors": b""})
        await eventually(lambda: token("get", "nodes/sv1/qemu/9000/config"), lambda config: "scsi5" in config)


async def test_26_deletion_refuses_what_the_original_refuses_and_takes_everything_along(
    token: Client, root: Client, new_vm: NewVm
) -> None:
    await token("post", "pools", poolid="doomed")
    vmid = await new_vm(pool="doomed")
    path = f"nodes/sv2/qemu/{vmid}"
    await root("put", "access/acl", path=f"/vms/{vmid}", users="telar@pve", roles="PVEAuditor")
    await token("put", f"{path}/config", protection=1)
    assert (await token.fails("delete", path)).content == f"can't remove VM {vmid} - protection mode enabled"
    await token("put", f"{path}/config", protection=0)
    await token.done("post", f"{path}/status/start")
    assert (await token.fails("delete", path)).content == f"VM {vmid} is running - destroy failed"
    await token.done("post", f"{path}/status/stop")
    await root("post", "cluster/ha/resources", sid=f"vm:{vmid}", state="ignored")
    refused = await token.fails("delete", path)
    assert refused.content == f"unable to remove VM {vmid} - used in HA resources and purge parameter not set."
    assert await token.done("delete", path, purge=1) == "OK"
    gone = await token.fails("delete", path)
    assert gone.content == f"Configuration file 'nodes/sv2/qemu-server/{vmid}.conf' does not exist"
    assert await token("get", "nodes/sv2/storage/shared/content", vmid=vmid) == []
    assert (await token("get", "pools/doomed"))["members"] == []
    assert f"/vms/{vmid}" not in {entry["path"] for entry in await root("get", "access/acl")}


async def test_27_ha_tasks_only_queue_a_wish(root: Client, new_vm: NewVm) -> None:
    vmid = await new_vm()
    path = f"nodes/sv2/qemu/{vmid}"
    await root("post", "cluster/ha/resources", sid=f"vm:{vmid}", state="stopped")
    upid = await root("post", f"{path}/status/start")
    assert ":hastart:" in upid
    assert (await root.task(upid))["exitstatus"] == "OK"
    await eventually(lambda: root("get", f"{path}/status/current"), lambda status: status["status"] == "running")
    assert (await root("get", f"{path}/status/current"))["ha"]["managed"] == 1
    upid = await root("post", f"{path}/status/stop")
    assert ":hastop:" in upid
    await eventually(lambda: root("get", f"{path}/status/current"), lambda status: status["status"] == "stopped")
    groups = await root.fails("get", "cluster/ha/groups")
    assert groups.content == "cannot index groups: ha groups have been migrated to rules"
    await root("post", "cluster/ha/rules", rule="near", type="node-affinity", resources=f"vm:{vmid}", nodes="sv1,sv2")
    assert (await root("get", "cluster/ha/rules/near"))["nodes"] == "sv1,sv2"
    assert await root.done("delete", path, purge=1) == "OK"
    assert (await root.fails("get", "cluster/ha/rules/near")).content == "no such ha rule 'near'"


async def test_27_ha_starts_a_guest_again_that_powers_itself_off(root: Client, new_vm: NewVm) -> None:
    path = f"nodes/sv2/qemu/{await new_vm()}"
    await root("post", "cluster/ha/resources", sid=path.rsplit("/", 1)[1])
    await eventually(lambda: root("get", f"{path}/status/current"), lambda status: status["status"] == "running")
    first = (await root("get", f"{path}/status/current"))["pid"]

    async def shut_down() -> bool:
        try:
            await root("post", f"{path}/agent/shutdown")
        except Exception:  # noqa: BLE001  (the agent is not up yet)
            return False
        return True

    await eventually(shut_down, bool)
    again = await eventually(
        lambda: root("get", f"{path}/status/current"), lambda status: status.get("pid") not in {None, first}
    )
    assert again["status"] == "running"


async def test_28_the_agent_is_silent_until_the_guest_has_booted(
    token: Client, new_vm: NewVm, fresh_id: FreshId
) -> None:
    path = f"nodes/sv2/qemu/{await new_vm()}"
    off = await token.fails("post", f"{path}/agent/ping")
    assert off.content == f"VM {path.rsplit('/', 1)[1]} is not running"
    await token.done("post", f"{path}/status/start")
    booting = await token.fails("post", f"{path}/agent/ping")
    assert booting.content == "QEMU guest agent is not running"

    async def ping() -> Any:
        try:
            return await token("post", f"{path}/agent/ping")
        except Exception:  # noqa: BLE001  (still booting)
            return None

    assert await eventually(ping, lambda answer: answer is not None) == {"result": {}}
    interfaces = (await token("get", f"{path}/agent/network-get-interfaces"))["result"]
    assert [interface["name"] for interface in interfaces] == ["lo", "eth0"]
    config = await token("get", f"{path}/config")
    assert interfaces[1]["hardware-address"].upper() in config["net0"]
    kinds = {address["ip-address-type"] for address in interfaces[1]["ip-addresses"]}
    assert kinds == {"ipv4", "ipv6"}
    assert (await token("get", f"{path}/agent/get-osinfo"))["result"]["id"] == "debian"
    assert "error" in (await token("get", f"{path}/agent/get-vcpus"))["result"]
    bare = fresh_id()
    await token.done("post", "nodes/sv1/qemu", vmid=bare, scsi0="local-lvm:1")
    assert (await token.fails("post", f"nodes/sv1/qemu/{bare}/agent/ping")).content == "No QEMU guest agent configured"


async def test_disks_only_grow(token: Client, new_vm: NewVm) -> None:
    path = f"nodes/sv2/qemu/{await new_vm()}"
    assert await token.done("put", f"{path}/resize", disk="scsi0", size="20G") == "OK"
    assert (await token("get", f"{path}/config"))["scsi0"].endswith("size=20G")
    assert await token.done("put", f"{path}/resize", disk="scsi0", size="+1G") == "OK"
    assert await token.done("put", f"{path}/resize", disk="scsi0", size="1G") == "shrinking disks is not supported"
    assert await token.done("put", f"{path}/resize", disk="scsi7", size="1G") == "disk 'scsi7' does not exist"
    assert (await token.fails("put", f"{path}/resize", disk="scsi0", size="20GB")).errors == {
        "size": "value does not match the regex pattern"
    }


async def test_snapshots_restore_the_configuration(token: Client, new_vm: NewVm) -> None:
    path = f"nodes/sv2/qemu/{await new_vm()}"
    assert await token.done("post", f"{path}/snapshot", snapname="before", description="clean") == "OK"
    assert await token.done("post", f"{path}/snapshot", snapname="before") == "snapshot name 'before' already used"
    reserved = await token.fails("post", f"{path}/snapshot", snapname="current")
    assert reserved.content == "unable to use snapshot name 'current' (reserved name)"
    await token("put", f"{path}/config", cores=8)
    names = [snapshot["name"] for snapshot in await token("get", f"{path}/snapshot")]
    assert names == ["before", "current"]
    assert await token.done("post", f"{path}/snapshot/before/rollback") == "OK"
    assert (await token("get", f"{path}/config"))["cores"] == 2
    assert await token.done("delete", f"{path}/snapshot/before") == "OK"
    assert [snapshot["name"] for snapshot in await token("get", f"{path}/snapshot")] == ["current"]


async def test_history_omits_what_was_not_measured(token: Client, new_vm: NewVm) -> None:
    path = f"nodes/sv2/qemu/{await new_vm()}"
    samples = await token("get", f"{path}/rrddata", timeframe="hour")
    assert len(samples) == 60
    assert "cpu" not in samples[0]
    await token.done("post", f"{path}/status/start")
    assert "cpu" in (await token("get", f"{path}/rrddata", timeframe="hour"))[-1]
