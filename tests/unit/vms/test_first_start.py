import json
from typing import Any

import pytest

from services.vms.domain.cluster import Inventory, Node, Storage
from services.vms.domain.network import Rules, card, check_addresses, ipconfig
from services.vms.domain.seed import Seed
from services.vms.domain.storages import StorageChoice, place_seed, plan_copies
from services.vms.domain.templates import machine_options, os_word, require_fit
from services.vms.errors import ImageUnfit, NetworkRefused, NoStorageFits

CARD = "virtio=BC:24:11:AA:BB:CC,bridge=vmbr0,firewall=1,tag=5"


@pytest.mark.parametrize(
    ("now", "wanted", "then"),
    [
        (CARD, {"bridge": None, "vlan": 7}, "virtio=BC:24:11:AA:BB:CC,bridge=vmbr0,firewall=1,tag=7"),
        (CARD, {"bridge": "vmbr1", "vlan": None}, "virtio=BC:24:11:AA:BB:CC,bridge=vmbr1,firewall=1"),
        (CARD, {"bridge": None, "vlan": None}, CARD),
        (CARD, {"bridge": "vmbr0", "vlan": None}, CARD),
        (
            "model=e1000,macaddr=BC:24:11:AA:BB:CC,bridge=x",
            {"bridge": None, "vlan": 3},
            "e1000=BC:24:11:AA:BB:CC,bridge=x,tag=3",
        ),
        (None, {"bridge": "vmbr2", "vlan": None}, "virtio,bridge=vmbr2"),
    ],
)
def test_a_card_keeps_its_model_its_address_and_its_other_options(now: str | None, wanted: Any, then: str) -> None:
    assert card(now, **wanted) == then


def test_only_offered_bridges_and_vlans_are_given() -> None:
    rules = Rules(("vmbr0",), ((100, 199), (300, 300)))
    for vlan in (100, 199, 300):
        rules.require(bridge="vmbr0", vlan=vlan)
    for bridge, vlan in (("vmbr1", None), (None, 99), (None, 200)):
        with pytest.raises(NetworkRefused, match="there are"):
            rules.require(bridge=bridge, vlan=vlan)


@pytest.mark.parametrize(
    "wanted",
    [
        {"ip": "10.0.0.5"},
        {"ip": "10.0.0.255/24"},
        {"ip": "127.0.0.1/8"},
        {"ip": "nonsense/24"},
        {"ip6": "10.0.0.5/24"},
        {"ip": "dhcp", "gateway": "10.0.0.1"},
        {"ip": "10.0.0.5/24", "gateway": "10.0.0.5"},
        {"ip6": "fd00::5/64", "gateway6": "fd01::1"},
    ],
)
def test_addresses_that_do_not_belong_together_are_refused(wanted: dict[str, str]) -> None:
    with pytest.raises(ValueError, match=r"(?i)ip|gateway"):
        check_addresses(wanted)


def test_addresses_are_told_in_the_clusters_words() -> None:
    wanted = {"ip": "10.0.0.5/24", "gateway": "10.0.0.1", "ip6": "auto"}
    check_addresses(wanted)
    assert ipconfig(wanted) == "ip=10.0.0.5/24,gw=10.0.0.1,ip6=auto"
    assert ipconfig({}) == "ip=dhcp"


def test_a_seed_says_what_was_asked_for_and_what_the_user_gave_stays_as_it_is() -> None:
    network = {"ip": "10.0.0.5/24", "gateway": "10.0.0.1", "nameservers": ["10.0.0.2"], "search_domain": "example.org"}
    files = Seed("id-1", "web", "#!/bin/sh\n", "ada", "$2a$x", ("ssh-ed25519 AAAA",), network, CARD).files()
    assert files["user-data"] == b"#!/bin/sh\n"
    assert json.loads(files["meta-data"]) == {"instance-id": "id-1", "local-hostname": "web"}
    vendor = json.loads(files["vendor-data"].removeprefix(b"#cloud-config\n"))
    assert (vendor["user"], vendor["password"], vendor["chpasswd"]) == ("ada", "$2a$x", {"expire": False})
    told = json.loads(files["network-config"])["ethernets"]["primary"]
    assert told["match"] == {"macaddress": "bc:24:11:aa:bb:cc"}
    assert (told["dhcp4"], told["addresses"]) == (False, ["10.0.0.5/24"])
    assert told["routes"] == [{"to": "0.0.0.0/0", "via": "10.0.0.1"}]
    assert told["nameservers"] == {"addresses": ["10.0.0.2"], "search": ["example.org"]}


def cluster(*storages: Storage) -> Inventory:
    names = {storage.node for storage in storages} | {"sv9"}
    nodes = {name: Node(name, online=name != "sv9", cores=8, memory_mib=1024) for name in names}
    return Inventory(nodes, {}, {(storage.node, storage.name): storage for storage in storages})


def on(node: str, name: str, *content: str, shared: bool = False, free_gib: float = 100) -> Storage:
    return Storage(name, node, shared, available=True, free_gib=free_gib, content=frozenset(content))


def test_a_template_is_planned_once_on_shared_storage_else_on_every_node() -> None:
    shared = [on(node, "nfs", "images", "import", "iso", shared=True) for node in ("sv1", "sv2")]
    local = [on(node, "local", "images", "import", "iso", free_gib=500) for node in ("sv1", "sv2")]
    choice = StorageChoice()
    assert [plan.storage for plan in plan_copies(cluster(*shared, *local), choice, need_gib=10, avoided={})] == ["nfs"]
    every = plan_copies(cluster(*local), choice, need_gib=10, avoided={})
    assert [(plan.node, plan.storage) for plan in every] == [("sv1", "local"), ("sv2", "local")]
    left = plan_copies(cluster(*shared), choice, need_gib=10, avoided={"sv1": "it broke"})
    assert [plan.node for plan in left] == ["sv2"]
    with pytest.raises(NoStorageFits, match=r"sv1: it broke; sv2: .*500 GiB free; sv9: offline"):
        plan_copies(cluster(*shared), choice, need_gib=500, avoided={"sv1": "it broke"})
    with pytest.raises(NoStorageFits, match="`import`"):
        plan_copies(cluster(on("sv1", "lvm", "images")), choice, need_gib=1, avoided={})
    assert place_seed(cluster(*shared, *local), choice, "sv1", ha=False).name == "nfs"
    assert place_seed(cluster(*shared, *local), StorageChoice(isos="local"), "sv1", ha=False).name == "local"
    with pytest.raises(NoStorageFits, match="iso"):
        place_seed(cluster(on("sv1", "lvm", "images")), choice, "sv1", ha=False)


@pytest.mark.parametrize(("system", "version", "word"), [
    ("Ubuntu", "24.04 LTS", "ubuntu-24.04-lts"), ("ubuntu", "ubuntu-22.04", "ubuntu-22.04"), ("!", "?", "other"),
])  # fmt: skip
def test_a_template_is_tagged_with_its_system(system: str, version: str, word: str) -> None:
    assert os_word(system, version) == word


def test_a_copy_is_made_of_the_image_with_cloud_init_and_agent() -> None:
    plan = plan_copies(cluster(on("sv1", "l", "images", "import")), StorageChoice(), need_gib=1, avoided={})[0]
    options = machine_options(
        plan, template_id="t-1", name="n", os_type="windows-2025", extension="qcow2", cores=2, memory_mib=4096
    )
    assert options["scsi0"] == "l:0,import-from=l:import/telar-t-1.qcow2"
    assert (options["ide2"], options["agent"], options["ostype"]) == ("l:cloudinit", "enabled=1", "win11")
    assert options["description"] == "telar-vm t-1"
    for status, image_format in (("active", "iso"), ("deactivated", "qcow2")):
        with pytest.raises(ImageUnfit):
            require_fit(status=status, image_format=image_format, sha256="0" * 64)
