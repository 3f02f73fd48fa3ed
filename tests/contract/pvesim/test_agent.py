import base64
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest
from proxmoxer.core import ResourceException

from tests.contract.pvesim.conftest import Client, eventually, lab_at

NewVm = Callable[..., Awaitable[int]]
FreshId = Callable[[], int]


@pytest.fixture
async def guest(root: Client, running_vm: str) -> str:
    """The agent's path of a machine whose guest has booted."""
    await agent_up(root, running_vm)
    return f"{running_vm}/agent"


async def agent_up(client: Client, path: str) -> None:
    async def ping() -> bool:
        try:
            return bool(await client("post", f"{path}/agent/ping") == {"result": {}})
        except ResourceException:
            return False

    await eventually(ping, bool)


async def execute(client: Client, guest: str, *command: str, **options: Any) -> dict[str, Any]:
    """Run a program in the guest to its end."""
    pid = (await client("post", f"{guest}/exec", command=list(command), **options))["pid"]
    ended: dict[str, Any] = await eventually(
        lambda: client("get", f"{guest}/exec-status", pid=pid), lambda status: bool(status["exited"])
    )
    return ended


async def test_28_the_agents_errors_come_in_the_originals_order(root: Client, new_vm: NewVm) -> None:
    vmid = await new_vm()
    path = f"nodes/sv2/qemu/{vmid}"

    async def said(where: str = path) -> str:
        return str((await root.fails("post", f"{where}/agent/exec", command="true")).content)

    assert await said("nodes/sv2/qemu/777") == "Configuration file 'nodes/sv2/qemu-server/777.conf' does not exist"
    assert await said() == f"VM {vmid} is not running"
    await root("put", f"{path}/config", agent="0")
    await root.done("post", f"{path}/status/start")
    assert await said() == "QEMU guest agent is not running"
    await root("put", f"{path}/config", delete="agent")
    await root.done("post", f"{path}/status/stop")
    await root.done("post", f"{path}/status/start")
    assert await said() == "No QEMU guest agent configured"


async def test_28_programs_run_and_their_result_is_told_once(root: Client, guest: str) -> None:
    assert await execute(root, guest, "echo", "hello", "world") == {
        "exited": 1, "exitcode": 0, "out-data": "hello world\n",
    }  # fmt: skip
    assert await execute(root, guest, "cat", **{"input-data": "typed"}) == {
        "exited": 1, "exitcode": 0, "out-data": "typed",
    }  # fmt: skip
    failed = await execute(root, guest, "sh", "-c", "echo out; cat /nope && exit 5")
    assert (failed["exitcode"], failed["out-data"]) == (1, "out\n")
    assert failed["err-data"] == "cat: /nope: No such file or directory\n"
    assert (await execute(root, guest, "sh", "-c", "exit 7"))["exitcode"] == 7
    killed = await execute(root, guest, "sh", "-c", "kill -9 $$")
    assert killed["signal"] == 9
    assert "exitcode" not in killed
    pid = (await root("post", f"{guest}/exec", command=["sleep", "20"]))["pid"]
    assert await root("get", f"{guest}/exec-status", pid=pid) == {"exited": 0}
    await eventually(lambda: root("get", f"{guest}/exec-status", pid=pid), lambda status: bool(status["exited"]))
    again = await root.fails("get", f"{guest}/exec-status", pid=pid)
    assert (again.status_code, again.content) == (500, "Agent error: Invalid parameter 'pid'")
    missing = await root.fails("post", f"{guest}/exec", command=["nonesuch"])
    assert missing.content.startswith("Agent error: Failed to execute child process")


async def test_28_files_are_read_and_written_and_outlive_the_machines_process(
    root: Client, guest: str, fresh_id: FreshId
) -> None:
    path = guest.removesuffix("/agent")
    assert (await root("get", f"{guest}/file-read", file="/etc/hostname"))["content"] == "console-test\n"
    assert await root("post", f"{guest}/file-write", file="/root/note", content="first line\n") is None
    packed = base64.b64encode(b"\xff\x00bytes").decode()
    await root("post", f"{guest}/file-write", file="/tmp/raw", content=packed, encode=0)  # noqa: S108  (the guest's)
    read = await root("get", f"{guest}/file-read", file="/tmp/raw", decode=0)  # noqa: S108  (the guest's)
    assert read == {"content": packed, "bytes-read": 7}
    part = await root("get", f"{guest}/file-read", file="/root/note", offset=6, count=4)
    assert part == {"content": "line", "bytes-read": 4, "truncated": 1}
    lost = await root.fails("get", f"{guest}/file-read", file="/nope")
    assert lost.content == "Agent error: failed to open file '/nope' (mode: 'r'): No such file or directory"
    nowhere = await root.fails("post", f"{guest}/file-write", file="/no/such/folder/x", content="x")
    assert nowhere.content.startswith("Agent error: failed to open file '/no/such/folder/x' (mode: 'w')")
    long = await root.fails("post", f"{guest}/file-write", file="/root/x", content="x" * 61441)
    assert long.errors == {"content": "value may only be 61440 characters long"}
    await root.done("post", f"{path}/status/stop")
    copy = fresh_id()
    assert await root.done("post", f"{path}/clone", newid=copy) == "OK"
    for place in (path, f"nodes/sv2/qemu/{copy}"):
        await root.done("post", f"{place}/status/start")
        await agent_up(root, place)
        assert (await root("get", f"{place}/agent/file-read", file="/root/note"))["content"] == "first line\n"


async def test_28_passwords_are_set_for_users_that_exist(root: Client, guest: str) -> None:
    assert await root("post", f"{guest}/set-user-password", username="root", password="secret") == {"result": {}}
    unknown = await root.fails("post", f"{guest}/set-user-password", username="ann", password="secret")
    assert unknown.content == "Agent error: child process has failed to set user password"
    short = await root.fails("post", f"{guest}/set-user-password", username="root", password="1234")
    assert short.errors == {"password": "value must be at least 5 characters long"}


async def test_28_frozen_file_systems_stop_other_commands(root: Client, guest: str) -> None:
    assert await root("post", f"{guest}/fsfreeze-freeze") == {"result": 2}
    assert await root("post", f"{guest}/fsfreeze-status") == {"result": "frozen"}
    assert (await root("get", f"{guest}/get-osinfo"))["result"]["error"]["class"] == "CommandNotFound"
    assert "has been disabled" in (await root.fails("post", f"{guest}/exec", command="true")).content
    assert await root("post", f"{guest}/fsfreeze-thaw") == {"result": 2}
    assert await root("post", f"{guest}/fsfreeze-status") == {"result": "thawed"}
    assert (await root("post", guest, command="get-timezone"))["result"]["zone"] == "UTC"
    systems = (await root("get", f"{guest}/get-fsinfo"))["result"]
    assert [system["mountpoint"] for system in systems] == ["/", "/boot/efi"]
    assert "paths" in (await root("post", f"{guest}/fstrim"))["result"]
    assert {"name": "exec-status"} in await root("get", guest)


async def test_28_an_interface_that_is_down_has_no_addresses(root: Client, guest: str) -> None:
    path = guest.removesuffix("/agent")
    await root("put", f"{path}/config", net1="virtio,bridge=vmbr1,link_down=1")
    eth0, eth1 = (await root("get", f"{guest}/network-get-interfaces"))["result"][1:]
    assert "ip-addresses" in eth0
    assert "ip-addresses" not in eth1


async def test_22_a_guest_in_standby_is_suspended_and_wakes_up(root: Client, guest: str) -> None:
    path = guest.removesuffix("/agent")
    await root("post", f"{guest}/suspend-ram")
    status = await root("get", f"{path}/status/current")
    assert (status["status"], status["qmpstatus"]) == ("running", "suspended")
    assert await root.done("post", f"{path}/status/resume") == "OK"
    assert (await root("get", f"{path}/status/current"))["qmpstatus"] == "running"
    await root("post", f"{guest}/suspend-disk")
    assert (await root("get", f"{path}/status/current"))["status"] == "stopped"


async def test_28_privileges_follow_the_release(token: Client, running_vm: str, tmp_path: Path) -> None:
    refused = await token.fails("post", f"{running_vm}/agent/exec", command="true")
    assert (
        refused.content == f"Permission check failed (/vms/{running_vm.rsplit('/', 1)[1]}, VM.GuestAgent.Unrestricted)"
    )
    async with lab_at(tmp_path, version="8.3.2") as lab:
        token, root = Client(lab), Client(lab, user="root@pam", password=lab.root_password.get_secret_value())
        await token.done("post", "nodes/sv2/qemu/9001/clone", newid=200)
        await token.done("post", "nodes/sv2/qemu/200/status/start")
        await agent_up(token, "nodes/sv2/qemu/200")
        assert (await execute(token, "nodes/sv2/qemu/200/agent", "true"))["exitcode"] == 0
        await root("post", "access/users", userid="ann@pve", password="long-enough")
        await root("put", "access/acl", path="/vms", users="ann@pve", roles="PVEVMUser")
        ann = Client(lab, user="ann@pve", password="long-enough")
        refused = await ann.fails("post", "nodes/sv2/qemu/200/agent/ping")
        assert refused.content == "Permission check failed (/vms/200, VM.Monitor)"
        wrong = await root.fails("post", "access/roles", roleid="Reader", privs="VM.GuestAgent.Audit")
        assert set(wrong.errors) == {"privs"}
        old = await root.fails("get", "nodes/sv2/qemu/200/agent/file-read", file="/etc/hostname", count=3)
        assert set(old.errors) == {"count"}
