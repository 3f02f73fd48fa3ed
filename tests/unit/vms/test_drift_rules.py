from dataclasses import replace
from typing import Any
from uuid import UUID

import pytest

from services.vms.domain.cluster import Inventory, Machine, Node, marked_id, without_mark
from services.vms.domain.drift import Difference, Kind, Recorded, compare, is_doubtful

GIB = 1024**3
ID = UUID("01890000-0000-7000-8000-000000000000")
RECORD = Recorded(ID, 100, "sv1", "My web", 2, 1024, 10)
MACHINE = Machine(
    100, "sv1", "My-web", "running", tags=frozenset({"telar"}), cores=2, memory_mib=1024, disk_bytes=10 * GIB
)
NODES = {"sv1": Node("sv1", online=True), "sv2": Node("sv2", online=False)}


def inventory(*machines: Machine) -> Inventory:
    return Inventory(NODES, {machine.vmid: machine for machine in machines})


def kinds(known: Inventory, *records: Recorded, leased: tuple[int, ...] = ()) -> list[tuple[Kind, int]]:
    return [(one.kind, one.vmid) for one in compare(records, known, leased=leased, tag="telar")]


def test_a_machine_as_its_record_says_is_no_drift() -> None:
    assert kinds(inventory(MACHINE), RECORD) == []


@pytest.mark.parametrize(
    ("change", "difference"),
    [
        ({"name": "other"}, Difference("name", "My-web", "other")),
        ({"cores": 4}, Difference("cores", 2, 4)),
        ({"memory_mib": 2048}, Difference("memory_mib", 1024, 2048)),
        ({"disk_bytes": 10 * GIB + 1}, Difference("disk_gib", 10, 11)),
        ({"tags": frozenset()}, Difference("tag", "telar", "")),
    ],
)
def test_each_difference_is_named(change: dict[str, Any], difference: Difference) -> None:
    (found,) = compare([RECORD], inventory(replace(MACHINE, **change)), leased=(), tag="telar")
    assert (found.kind, found.differences) == (Kind.CHANGED, (difference,))


def test_sizes_that_wait_for_a_restart_and_machines_of_which_little_is_known_are_not_compared() -> None:
    waiting = replace(RECORD, restart_needed=True)
    assert kinds(inventory(replace(MACHINE, cores=1, memory_mib=1)), waiting) == []
    for unknown in ({"status": "unknown"}, {"name": ""}, {"node": "sv2"}):
        assert kinds(inventory(replace(MACHINE, cores=9, **unknown)), RECORD) == []  # type: ignore[arg-type]  # as named


def test_a_record_without_a_machine_is_vanished_unless_its_node_is_away() -> None:
    other = replace(MACHINE, vmid=101, tags=frozenset())
    assert kinds(inventory(other), RECORD) == [(Kind.VANISHED, 100)]
    assert kinds(inventory(other), replace(RECORD, node="sv2")) == []


def test_a_tagged_machine_without_a_record_is_unknown_unless_telar_works_on_its_vmid() -> None:
    assert kinds(inventory(MACHINE)) == [(Kind.UNKNOWN, 100)]
    assert kinds(inventory(MACHINE), leased=(100,)) == []
    assert kinds(inventory(replace(MACHINE, template=True))) == []
    assert kinds(inventory(replace(MACHINE, tags=frozenset({"telarx"})))) == []


@pytest.mark.parametrize(("recorded", "there", "doubtful"), [(1, 0, False), (2, 0, False), (3, 0, True)])
def test_a_list_that_lacks_many_recorded_machines_is_doubted(recorded: int, there: int, doubtful: bool) -> None:
    records = [replace(RECORD, vmid=200 + number) for number in range(recorded)]
    known = inventory(MACHINE, *(replace(MACHINE, vmid=200 + number) for number in range(there)))
    assert is_doubtful(records, known) is doubtful


def test_an_empty_list_is_always_doubted_and_a_few_of_many_may_be_gone() -> None:
    assert is_doubtful([], inventory())
    records = [replace(RECORD, vmid=200 + number) for number in range(20)]
    known = inventory(*(replace(MACHINE, vmid=200 + number) for number in range(15)))
    assert not is_doubtful(records, known)
    assert is_doubtful(records, inventory(*list(known.machines.values())[:14]))


def test_a_mark_is_found_and_taken_off_line_by_line() -> None:
    notes = f"kept\n telar-vm {ID} \ntelar-vm nonsense\nalso kept"
    assert marked_id(notes) == ID
    assert without_mark(notes) == "kept\nalso kept"
    assert marked_id("telar-vmx") is None
