import pytest
from hypothesis import given
from hypothesis import strategies as st

from libs.common.errors import Invalid
from services.images.domain import (
    Format,
    Status,
    declared_format,
    human_size,
    next_status,
    require_deletable,
)
from services.images.errors import ImageProtected, ImageState


@pytest.mark.parametrize(
    ("filename", "expected"),
    [("ubuntu.iso", "iso"), ("A.QCOW2", "qcow2"), ("x.tar.vmdk", "vmdk"), ("d.vhd", "vhd"), ("a.img", "raw")],
)
def test_the_extension_declares_the_format(filename: str, expected: str) -> None:
    assert declared_format(filename) is Format(expected)


@pytest.mark.parametrize("filename", ["", "iso", "image.exe", "image.iso.gz", "a.vhdx", "a.", ".", "a/b.ova"])
def test_any_other_extension_is_refused(filename: str) -> None:
    with pytest.raises(Invalid, match="must end in one of"):
        declared_format(filename)


def test_an_active_image_can_be_deactivated_and_come_back() -> None:
    assert next_status(Status.ACTIVE, Status.DEACTIVATED) is Status.DEACTIVATED
    assert next_status(Status.DEACTIVATED, Status.ACTIVE) is Status.ACTIVE


@pytest.mark.parametrize("status", list(Status))
def test_nothing_leaves_the_deleted_status_and_nothing_stays_where_it_is(status: Status) -> None:
    with pytest.raises(ImageState):
        next_status(Status.DELETED, status)
    with pytest.raises(ImageState):
        next_status(status, status)


def test_a_rejected_image_never_becomes_active() -> None:
    with pytest.raises(ImageState):
        next_status(Status.REJECTED, Status.ACTIVE)


def test_a_protected_image_stays() -> None:
    with pytest.raises(ImageProtected):
        require_deletable(Status.ACTIVE, protected=True)
    require_deletable(Status.ACTIVE, protected=False)


@pytest.mark.parametrize(
    ("size_bytes", "shown"),
    [(0, "0 B"), (999, "999 B"), (1000, "1.0 KB"), (2_400_000_000, "2.4 GB"), (999_960, "1.0 MB"), (1 << 63, "9.2 EB")],
)
def test_a_size_is_shown_as_people_read_it(size_bytes: int, shown: str) -> None:
    assert human_size(size_bytes) == shown


@given(st.integers(min_value=0, max_value=1 << 63))
def test_a_shown_size_is_always_short(size_bytes: int) -> None:
    assert len(human_size(size_bytes)) <= 8
