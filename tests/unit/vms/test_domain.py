import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from services.vms.domain.cluster import (
    Template,
    carries_mark,
    choose_templates,
    mark_of,
    os_type_of,
    safe_name,
    safe_slot,
    safe_upid,
    safe_vmid,
)
from services.vms.domain.states import State, hostname, older_status, require_growth, seen_as
from services.vms.errors import DiskShrinks, UnsafeId
from services.vms.settings import ClusterSettings
from tests.corpora.vms.hostile_ids import NAMES, SLOTS, UPIDS, VMIDS


@pytest.mark.parametrize("vmid", VMIDS, ids=repr)
def test_what_is_no_vmid_is_refused(vmid: object) -> None:
    with pytest.raises(UnsafeId):
        safe_vmid(vmid)


@pytest.mark.parametrize("name", NAMES, ids=repr)
def test_what_is_no_name_of_a_node_is_refused(name: object) -> None:
    with pytest.raises(UnsafeId):
        safe_name(name)


@pytest.mark.parametrize("slot", SLOTS, ids=repr)
def test_what_is_no_slot_is_refused(slot: object) -> None:
    with pytest.raises(UnsafeId):
        safe_slot(slot)


@pytest.mark.parametrize("upid", UPIDS, ids=repr)
def test_what_is_no_upid_is_refused(upid: object) -> None:
    with pytest.raises(UnsafeId):
        safe_upid(upid)


@given(st.text())
def test_no_text_that_passes_as_a_name_can_leave_its_place_in_a_path(text: str) -> None:
    try:
        name = safe_name(text)
    except UnsafeId:
        return
    assert name.isascii()
    assert not set(name) & set("/\\?#%:; \n\r\t\0")
    assert name not in (".", "..")


@given(st.text(max_size=120))
def test_every_name_becomes_a_hostname(name: str) -> None:
    made = hostname(name)
    assert 1 <= len(made) <= 63
    assert made.isascii()
    assert not made.startswith("-")
    assert not made.endswith("-")
    assert hostname(made) == made


def _template(vmid: int, name: str, os_type: str) -> Template:
    return Template(vmid, "sv1", name, os_type, 2, 2048, 3, frozenset({"shared"}), shared=True, cloud_init=True)


KNOWN = [
    _template(9000, "template-ubuntu-24.04", "ubuntu-24.04"),
    _template(9001, "template-debian-13", "debian-13"),
    _template(9002, "template-centos-stream-10", "centos-stream-10"),
    _template(9003, "template-windows-2025", "windows-2025"),
    _template(9004, "template-ubuntu-9.10", "ubuntu-9.10"),
    _template(9100, "template-ubuntu-24.04", "ubuntu-24.04"),
]


@pytest.mark.parametrize(
    ("wish", "vmids"),
    [
        ({"os_type": "ubuntu-24.04"}, [9000, 9100]),
        ({"os_type": "Ubuntu"}, [9000, 9100]),
        ({"os_type": "Ubuntu 9.10"}, [9004]),
        ({"os_type": "CentOS"}, [9002]),
        ({"os_type": "CentOS Stream"}, [9002]),
        ({"os_type": "Windows"}, [9003]),
        ({"os_type": "Ubuntu 22.04"}, []),
        ({"os_type": "u"}, []),
        ({"template": "9100"}, [9100]),
        ({"template": "template-debian-13"}, [9001]),
        ({"template": "debian-13"}, [9001]),
        ({"template": "910"}, []),
    ],
    ids=str,
)
def test_a_wish_names_the_copies_of_one_template(wish: dict[str, str], vmids: list[int]) -> None:
    found = choose_templates(KNOWN, template=wish.get("template"), os_type=wish.get("os_type"))
    assert [one.vmid for one in found] == vmids


def test_a_templates_system_is_its_tag_or_its_name() -> None:
    assert os_type_of("golden", {"os-debian-13", "template"}) == "debian-13"
    assert os_type_of("template-Ubuntu-24.04", set()) == "ubuntu-24.04"
    assert os_type_of("rocky-9-tmpl", set()) == "rocky-9"


def test_the_mark_is_a_line_of_its_own() -> None:
    assert carries_mark("notes of an operator\ntelar-vm 1234\n", "1234")
    assert carries_mark(mark_of("1234"), "1234")
    assert not carries_mark("telar-vm 12345", "1234")
    assert not carries_mark("", "1234")


def test_every_state_has_a_word_for_older_clients() -> None:
    words = {"creating", "enabled", "disabled", "paused", "error", "deleted"}
    assert {older_status(state) for state in State} <= words
    assert seen_as("unknown") is None


def test_a_disk_may_stay_or_grow() -> None:
    require_growth(10, 10)
    require_growth(10, 11)
    with pytest.raises(DiskShrinks):
        require_growth(10, 9)


CLUSTER = {"name": "lab", "url": "https://pve:8006", "token_id": "telar@pve!telar", "token_secret": "s"}


@pytest.mark.parametrize(
    "wrong",
    [
        {"url": "http://pve:8006"},
        {"url": "https://pve:8006/api2/json"},
        {"url": "https://user:secret@pve:8006"},
        {"token_id": "root@pam!telar"},
        {"token_id": "telar@pve"},
        {"fingerprint": "ab:cd"},
        {"fingerprint": "a" * 64, "ca": "/etc/ca.pem"},
        {"verify": "no"},
        {"name": "a/b"},
    ],
    ids=str,
)
def test_a_clusters_settings_are_checked(wrong: dict[str, str]) -> None:
    ClusterSettings.model_validate(CLUSTER)
    with pytest.raises(ValidationError):
        ClusterSettings.model_validate(CLUSTER | wrong)
