from datetime import UTC, datetime

import pytest
from hypothesis import given
from hypothesis import strategies as st

from services.vms.domain.snapshots import (
    Snapshot,
    SnapshotState,
    SnapshotTree,
    in_order,
    marked,
    require_takeable,
    safe_snapshot,
    unmarked,
)
from services.vms.errors import SnapshotLimit, SnapshotNotFound, SnapshotTaken, UnsafeId


def snapshot(name: str, parent: str | None, second: int) -> Snapshot:
    return Snapshot(name, parent=parent, taken_at=datetime.fromtimestamp(second, UTC))


def test_parents_come_before_their_children_and_siblings_by_age() -> None:
    given_ = [snapshot("c", "a", 3), snapshot("b", "a", 2), snapshot("d", "b", 4), snapshot("a", None, 1)]
    assert [one.name for one in in_order(given_)] == ["a", "b", "d", "c"]


@given(
    st.lists(st.tuples(st.sampled_from("abcdef"), st.sampled_from([None, *"abcdefg"])), unique_by=lambda one: one[0])
)
def test_no_snapshot_is_lost_or_doubled_whatever_its_parent(pairs: list[tuple[str, str | None]]) -> None:
    given_ = [snapshot(name, parent, 1) for name, parent in pairs]
    assert sorted(one.name for one in in_order(given_)) == sorted(name for name, _ in pairs)


def test_what_is_being_done_shows_and_one_that_is_being_taken_hangs_on_the_current_one() -> None:
    tree = SnapshotTree([snapshot("a", None, 1)], "a")
    shown = tree.with_state("new", SnapshotState.CREATING)
    assert [(one.name, one.parent, one.state) for one in shown.snapshots][1] == ("new", "a", SnapshotState.CREATING)
    assert tree.with_state("gone", SnapshotState.DELETING) == tree
    assert tree.with_state("a", SnapshotState.DELETING).require("a").state is SnapshotState.DELETING
    with pytest.raises(SnapshotNotFound):
        tree.require("b")


def test_a_name_is_taken_once_and_so_many_are_kept() -> None:
    tree = SnapshotTree([snapshot("a", None, 1)], "a")
    require_takeable(tree, "b", limit=2)
    with pytest.raises(SnapshotTaken):
        require_takeable(tree, "a", limit=2)
    with pytest.raises(SnapshotLimit):
        require_takeable(tree, "b", limit=1)


@pytest.mark.parametrize(
    "name", ["", "a", "1a", "current", "Pending", "a/b", "a..b", "a b", "a\n", "a" * 41, "é1", 7, None]
)
def test_what_is_no_snapshots_name_is_refused(name: object) -> None:
    with pytest.raises(UnsafeId):
        safe_snapshot(name)


@given(st.text(max_size=50))
def test_a_mark_comes_off_again(description: str) -> None:
    plain = "\n".join(description.strip().splitlines()).strip()
    told, operation = unmarked(marked(plain, "op_vms_1"))
    assert operation == "op_vms_1"
    assert told == plain
    assert unmarked("kept") == ("kept", None)
