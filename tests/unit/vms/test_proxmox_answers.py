import pytest

from services.vms.adapters.proxmox import parsing
from services.vms.adapters.proxmox.failures import call_failure, task_failure
from services.vms.errors import (
    MachineMissing,
    NodeDown,
    OutcomeUnknown,
    PermissionMissing,
    ProxmoxBusy,
    ProxmoxFailure,
    ProxmoxRefused,
    ProxmoxUnavailable,
    TaskFailed,
    TaskInterrupted,
    VmidTaken,
    VmLocked,
    WrongPowerState,
)

TEXTS: list[tuple[str, type[ProxmoxFailure]]] = [
    ("VM is locked (clone)", VmLocked),
    ("can't lock file '/var/lock/qemu-server/lock-100.conf' - got timeout", ProxmoxBusy),
    ("clone failed: can't lock file '/var/lock/pve-manager/pve-storage-shared' - got timeout", ProxmoxBusy),
    ("cfs-lock 'storage-shared' error: got lock request timeout", ProxmoxBusy),
    ("'storage-shared'-locked command timed out - aborting", ProxmoxBusy),
    ("checksum mismatch (file change by other user?)", ProxmoxBusy),
    ("checksum missmatch (file change by other user?)", ProxmoxBusy),
    ("unable to create VM 10000: config file already exists", VmidTaken),
    ("unable to create VM 10000 - VM 10000 already exists on node 'sv2'", VmidTaken),
    ("close (rename) atomic file '/etc/pve/nodes/sv1/qemu-server/10000.conf' failed: File exists", VmidTaken),
    ("Configuration file 'nodes/sv1/qemu-server/10000.conf' does not exist", MachineMissing),
    ("unable to find configuration file for VM 10000 on node 'sv1'", MachineMissing),
    ("cluster not ready - no quorum?", ProxmoxUnavailable),
    ("VM 10000 already running", WrongPowerState),
    ("VM 10000 not running", WrongPowerState),
    ("VM is paused - cannot shutdown", WrongPowerState),
    ("VM 10000 is running - destroy failed", WrongPowerState),
    ("no such cluster node 'sv9'", NodeDown),
    ("hostname lookup 'sv9' failed - failed to get address info for: sv9: Name or service not known", NodeDown),
]


@pytest.mark.parametrize(("text", "kind"), TEXTS, ids=[text for text, _ in TEXTS])
def test_a_text_means_the_same_from_a_call_and_from_a_task(text: str, kind: type[ProxmoxFailure]) -> None:
    from_call = call_failure(500, text + "\n", node="sv1", changes=True)
    from_task = task_failure(text, node="sv1")
    assert type(from_call) is type(from_task) is kind
    assert from_call.reason == text
    assert text not in from_call.detail


@pytest.mark.parametrize(
    ("status", "text", "changes", "kind"),
    [
        (595, "No route to host", True, NodeDown),
        (596, "Connection timed out", True, OutcomeUnknown),
        (596, "Connection timed out", False, ProxmoxUnavailable),
        (599, "Too many redirections", True, OutcomeUnknown),
        (401, "Authentication failed!", False, PermissionMissing),
        (403, "Permission check failed (/vms/100, VM.Audit)", False, PermissionMissing),
        (500, "QEMU guest agent is not running", False, ProxmoxRefused),
        (501, "Method 'GET /nodes' not implemented", False, ProxmoxRefused),
        (500, "something nobody ever saw", True, ProxmoxRefused),
    ],
)
def test_a_status_counts_where_pveproxy_itself_speaks(
    status: int, text: str, changes: bool, kind: type[ProxmoxFailure]
) -> None:
    assert type(call_failure(status, text, node="sv1", changes=changes)) is kind


def test_ok_and_warnings_are_success_and_nothing_else_is() -> None:
    assert task_failure("OK", node="sv1") is None
    assert task_failure("WARNINGS: 3", node="sv1") is None
    for text, kind in (
        ("unexpected status", TaskInterrupted),
        ("clone failed: interrupted by signal", TaskInterrupted),
        ("received interrupt", TaskInterrupted),
        ("OKAY", TaskFailed),
        ("", TaskFailed),
        ("start failed: QEMU exited with code 1", TaskFailed),
        ("VM quit/powerdown failed - got timeout", TaskFailed),
    ):
        assert type(task_failure(text, node="sv1")) is kind


def test_numbers_may_be_text_and_what_is_absent_is_unset() -> None:
    known = parsing.inventory(
        [
            {
                "type": "node",
                "node": "sv1",
                "status": "online",
                "maxcpu": "16",
                "maxmem": str(8 * 1024**3),
                "cpu": "0.5",
            },
            {"type": "node", "node": "sv2", "status": "offline"},
            {"type": "qemu", "vmid": "10000", "node": "sv1", "status": "unknown", "lock": "clone"},
            {"type": "qemu", "vmid": 9000, "node": "sv1", "template": "1", "tags": "os-debian-13;template"},
            {
                "type": "storage",
                "storage": "shared",
                "node": "sv1",
                "shared": "1",
                "status": "available",
                "maxdisk": 10,
            },
            {"type": "pool", "pool": "p"},
        ]
    )
    assert (known.nodes["sv1"].cores, known.nodes["sv1"].memory_mib, known.nodes["sv2"].online) == (16, 8192, False)
    assert (known.machines[10000].lock, known.machines[10000].name) == ("clone", "")
    assert known.machines[9000].template
    assert known.storages["sv1", "shared"].shared


@pytest.mark.parametrize("answer", [None, {"errors": b"<html>"}, "text", [1], {"type": "node"}, 7], ids=repr)
def test_what_is_no_list_of_objects_is_refused(answer: object) -> None:
    with pytest.raises(parsing.BadShape):
        parsing.inventory(answer)


def test_a_configuration_is_read_whatever_form_its_numbers_have() -> None:
    read = parsing.config(
        {
            "name": "web",
            "cores": "2",
            "sockets": 2,
            "memory": "current=2048",
            "scsi0": "shared:9000/base.qcow2/100/vm-100-disk-0.qcow2,iothread=1,size=3584M",
            "scsi1": "local-lvm:vm-100-disk-1,size=32G",
            "ide2": "shared:100/vm-100-cloudinit.qcow2,media=cdrom,size=4M",
            "ide0": "none,media=cdrom",
            "boot": "order=scsi1;net0",
            "tags": "b, a;telar",
            "digest": "d",
            "description": "telar-vm 1\n",
        }
    )
    assert (read.cores, read.memory_mib, read.boot_disk) == (4, 2048, "scsi1")
    assert read.disks == {"scsi0": 3584 * 1024**2, "scsi1": 32 * 1024**3}
    assert read.storages == {"shared", "local-lvm"}
    assert read.tags == {"a", "b", "telar"}
    assert read.cloud_init
    assert not read.addressed


def test_an_agents_failure_within_a_success_gives_no_addresses() -> None:
    assert parsing.addresses({"result": {"error": {"class": "GenericError"}}}) == []
    interfaces = [
        {"name": "lo", "ip-addresses": [{"ip-address": "127.0.0.1"}, {"ip-address": "::1"}]},
        {"name": "eth0", "ip-addresses": [{"ip-address": "10.0.0.5"}, {"ip-address": "fe80::1%eth0"}]},
        {"name": "eth1"},
        {"name": "eth2", "ip-addresses": [{"ip-address": "nonsense"}, {"ip-address": "2001:db8::5"}]},
    ]
    assert parsing.addresses({"result": interfaces}) == ["10.0.0.5", "2001:db8::5"]
