import json
import subprocess
from pathlib import Path
from typing import Any

import pytest

from services.vms.adapters.iso9660 import build
from tests.contract.vms.harness import KEY, Service

PASSWORD = "correct horse battery staple"
NETWORK = {"bridge": "vmbr0", "ip": "192.0.2.10/24", "gateway": "192.0.2.1", "nameservers": ["192.0.2.53"]}
USER_DATA = "#cloud-config\npackages: [htop]\n"


def seeds(service: Service) -> list[str]:
    return [volume.volid for volume in service.lab.lab.storages if "telar-seed-" in volume.volid]


def content_of(service: Service, volid: str) -> bytes:
    lab = service.lab.lab
    volume = next(volume for volume in lab.storages if volume.volid == volid)
    return Path(lab.storages.file_of(volume)).read_bytes()


async def test_a_network_reaches_the_card_and_the_guest(service: Service) -> None:
    user = await service.new_user()
    vm = await service.vm(user, network=NETWORK | {"search_domain": "example.org"}, start=False)
    config = service.machine(vm).config
    assert set(config["ipconfig0"].split(",")) == {"ip=192.0.2.10/24", "gw=192.0.2.1"}
    assert (config["nameserver"], config["searchdomain"]) == ("192.0.2.53", "example.org")
    template = service.lab.lab.vms.by_id[9001].config["net0"]
    assert config["net0"].split(",")[0] != template.split(",")[0]  # the clone's own hardware address stays
    assert "bridge=vmbr0" in config["net0"]
    assert vm["network"]["ip"] == "192.0.2.10/24"
    await service.done("DELETE", f"/api/v1/vms/{vm['id']}", user)


async def test_user_data_comes_as_a_seed_in_the_place_of_the_clusters_own_drive_and_goes_with_the_machine(
    service: Service,
) -> None:
    user = await service.new_user()
    vm = await service.vm(user, user_data=USER_DATA, user="ada", password=PASSWORD, network=NETWORK, ssh_public_key=KEY)
    config = service.machine(vm).config
    [seed] = seeds(service)
    assert seed.startswith("shared:iso/")  # shared, so that it pins the machine to no node
    assert config["ide2"].startswith(f"{seed},media=cdrom")
    assert not any("cloudinit" in str(value) for value in config.values())
    content = content_of(service, seed)
    assert b"CIDATA" in content
    assert USER_DATA.encode() in content
    assert b'"user": "ada"' in content
    assert b"$2a$" in content
    assert KEY.encode() in content
    assert b"192.0.2.10/24" in content
    assert PASSWORD.encode() not in content
    kept = service.rows("SELECT sealed_user_data, sealed_password FROM vms WHERE id = %s", vm["id"])
    assert kept == [(None, None)]
    await service.done("DELETE", f"/api/v1/vms/{vm['id']}", user)
    assert (seeds(service), service.volumes()) == ([], [])


@pytest.mark.parametrize("applied", [True, False], ids=["applied", "lost"])
async def test_an_upload_without_an_answer_is_done_again(service: Service, applied: bool) -> None:
    user = await service.new_user()
    async with service.fault("gateway_timeout", method="POST", path="/upload$", applied=applied, count=1):
        vm = await service.vm(user, user_data=USER_DATA)
    assert len(seeds(service)) == 1
    await service.done("DELETE", f"/api/v1/vms/{vm['id']}", user)
    assert seeds(service) == []


@pytest.mark.long
async def test_a_machine_that_no_node_takes_leaves_no_seed(service: Service) -> None:
    user = await service.new_user()
    async with service.fault("task_failure", task_type="qmstart"):
        begun = await service.begin(user, user_data=USER_DATA)
        ended = await service.ended(begun["id"], user)
    assert ended["state"] == "failed"
    assert (seeds(service), service.machines(), service.volumes()) == ([], {}, [])
    await service.done("DELETE", f"/api/v1/vms/{begun['vm']['id']}", user)


BAD: list[tuple[dict[str, Any], int, str]] = [
    ({"network": {"bridge": "vmbr9"}}, 422, "network-refused"),
    ({"network": {"vlan": 7}}, 422, "network-refused"),
    ({"network": {"bridge": "vmbr0,tag=1"}}, 422, "invalid"),
    ({"network": {"ip": "10.0.0.5"}}, 422, "invalid"),
    ({"network": {"ip": "10.0.0.0/24"}}, 422, "invalid"),
    ({"network": {"ip": "10.0.0.5/255.255.255.0"}}, 422, "invalid"),
    ({"network": {"ip": "10.0.0.5/024"}}, 422, "invalid"),
    ({"network": {"ip6": "2001:db8::5%x,ip=dhcp/64"}}, 422, "invalid"),
    ({"network": {"ip6": "2001:db8::5/64", "gateway6": "2001:db8::1%x,ip=dhcp"}}, 422, "invalid"),
    ({"network": {"nameservers": ["fe80::1%a b"]}}, 422, "invalid"),
    ({"network": {"ip": "fd00::5/64"}}, 422, "invalid"),
    ({"network": {"ip": "10.0.0.5/24,gw=10.0.0.1"}}, 422, "invalid"),
    ({"network": {"gateway": "10.0.0.1"}}, 422, "invalid"),
    ({"network": {"ip": "10.0.0.5/24", "gateway": "10.0.1.1"}}, 422, "invalid"),
    ({"network": {"ip": "dhcp", "mac": "00:00:00:00:00:00"}}, 422, "invalid"),
    ({"user_data": "just text"}, 422, "invalid"),
    ({"user_data": "#cloud-config\n" + "x" * 70_000}, 422, "invalid"),
    ({"user_data": USER_DATA, "password": "é" * 50}, 422, "seed-refused"),
    ({"image_id": "01890000-0000-7000-8000-000000000000"}, 422, "invalid"),
    ({"os_type": "plan9"}, 422, "template-not-found"),
    ({"cores": 512, "memory_mib": 128}, 409, "no-node-fits"),
    ({"memory_mib": 16_000_000}, 409, "no-node-fits"),
    ({"disk_gib": 131_072}, 409, "no-node-fits"),
    ({"node": "sv9"}, 409, "no-node-fits"),
    ({"cluster": "elsewhere"}, 422, "template-not-found"),
]


@pytest.mark.parametrize(("wish", "status", "slug"), BAD, ids=[json.dumps(wish)[:60] for wish, _, _ in BAD])
async def test_what_cannot_be_is_refused_at_once_and_nothing_changes(
    service: Service, wish: dict[str, Any], status: int, slug: str
) -> None:
    user = await service.new_user()
    body = {"name": "web", "os_type": "debian", **wish}
    answer = await service.call("POST", "/api/v1/vms", user, json=body)
    assert (answer.status_code, answer.json()["type"].rpartition("/")[2]) == (status, slug), answer.text
    assert service.used(user) == {}
    assert service.rows("SELECT 1 FROM vms WHERE owner_id = %s", user) == []
    if slug == "no-node-fits":
        told = {one["node"]: one["reasons"] for one in answer.json()["nodes"]}
        assert set(told) == {"sv1", "sv2", "sv3", "sv4", "sv5"}
        assert all(told.values())


def test_a_seed_is_read_by_other_programs(tmp_path: Path) -> None:
    image = tmp_path / "seed.iso"
    image.write_bytes(build("CIDATA", {"user-data": USER_DATA.encode(), "vendor-data": b"x" * 5000}))
    assert image.read_bytes()[32768:32774] == b"\x01CD001"
    told = subprocess.run(["file", "-b", image], capture_output=True, text=True, check=False)  # noqa: S607 - on PATH
    if told.returncode == 0:
        assert "ISO 9660" in told.stdout
        assert "CIDATA" in told.stdout
