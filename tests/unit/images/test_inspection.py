import json
import re
import subprocess
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from libs.common.errors import QuotaExceeded, TelarError
from services.images.adapters.inspection import StreamInspector
from services.images.domain import Observation, declared_format, require_safe
from services.images.errors import ImageRejected
from tests.corpora.images.hostile import HOSTILE, QUOTA, Hostile
from tests.corpora.images.programs import no_program_starts
from tests.corpora.images.valid import VALID, Valid, made_by_tools, run

MAX_VIRTUAL = 1 << 44
CHUNKS = [1 << 20, 4096, 1000]
WORDS_OF_PROGRAMS = re.compile(r"None|Error|Exception|Traceback|frozenset|Violation|0x|b'|\\|_|[<>{}\[\]]")


def observed(content: bytes, chunk_bytes: int) -> Observation:
    inspector = StreamInspector()
    for start in range(0, len(content), chunk_bytes):
        inspector.eat(bytearray(content[start : start + chunk_bytes]))
    return inspector.finish()


def judge(filename: str, content: bytes, chunk_bytes: int = 1 << 20) -> Observation:
    seen = observed(content, chunk_bytes)
    require_safe(declared_format(filename), seen, max_virtual_size_bytes=MAX_VIRTUAL)
    return seen


def test_the_corpora_are_as_large_as_they_have_to_be() -> None:
    assert len({hostile.what for hostile in HOSTILE}) == len(HOSTILE) >= 100
    assert len({(hostile.filename, hostile.content) for hostile in HOSTILE}) == len(HOSTILE)
    assert len({valid.what for valid in VALID}) == len(VALID) >= 20


@pytest.mark.parametrize("chunk_bytes", CHUNKS)
@pytest.mark.parametrize("hostile", HOSTILE, ids=lambda hostile: hostile.what)
def test_a_hostile_file_is_refused_with_its_reason(hostile: Hostile, chunk_bytes: int) -> None:
    with (
        no_program_starts(),
        pytest.raises(QuotaExceeded if hostile.slug == QUOTA else ImageRejected) as refused,
    ):
        judge(hostile.filename, hostile.content, chunk_bytes)
    assert hostile.reason in refused.value.detail
    assert not WORDS_OF_PROGRAMS.search(refused.value.detail), refused.value.detail


@pytest.mark.parametrize("chunk_bytes", CHUNKS)
@pytest.mark.parametrize("valid", VALID, ids=lambda valid: valid.what)
def test_a_valid_image_is_accepted_and_its_disk_measured(valid: Valid, chunk_bytes: int) -> None:
    assert judge(valid.filename, valid.content, chunk_bytes).virtual_size_bytes == valid.virtual_size
    assert declared_format(valid.filename) == valid.format


def test_what_other_tools_write_is_accepted_and_measured_as_qemu_does(tmp_path: Path) -> None:
    made = made_by_tools(tmp_path)
    assert len(made) >= 20
    for valid in made:
        try:
            seen = judge(valid.filename, valid.content)
        except TelarError as refused:
            pytest.fail(f"{valid.what}: {refused.detail}")
        driver = {"vhd": "vpc", "iso": "raw"}.get(valid.format, valid.format)
        told = json.loads(run("qemu-img", "info", "--output=json", "-f", driver, str(tmp_path / valid.filename)))
        assert seen.virtual_size_bytes == valid.virtual_size == told["virtual-size"], valid.what


def test_what_other_tools_write_is_refused_under_every_other_name(tmp_path: Path) -> None:
    for valid in made_by_tools(tmp_path):
        for extension in {"iso", "qcow2", "vmdk", "vhd", "raw"} - {valid.format}:
            with pytest.raises(ImageRejected) as refused:
                judge(f"a.{extension}", valid.content)
            assert f"declared as {extension}" in refused.value.detail


def test_the_guard_against_programs_sees_one_that_starts() -> None:
    with pytest.raises(AssertionError, match="programs were started"), no_program_starts():
        subprocess.run(["/bin/true"], check=True)


@given(
    file=st.sampled_from([*HOSTILE, *VALID]),
    length=st.integers(0, 70_000),
    changes=st.dictionaries(st.integers(0, 1200), st.integers(0, 255), max_size=6),
    end=st.sampled_from([b"", b"conectix" + bytes(504), b"koly" + bytes(508), b"\x55\xaa"]),
)
def test_no_damage_makes_the_inspection_stumble(
    file: Hostile | Valid, length: int, changes: dict[int, int], end: bytes
) -> None:
    content = bytearray(file.content[:length] + end)
    for at, value in changes.items():
        if at < len(content):
            content[at] = value
    reason = ""
    try:
        judge(file.filename, bytes(content))
    except TelarError as refused:
        reason = refused.detail
    assert not WORDS_OF_PROGRAMS.search(reason), reason


def test_inspecting_a_long_file_keeps_little_of_it() -> None:
    inspector = StreamInspector()
    for _ in range(32):
        inspector.eat(b"\0" * (1 << 20))
    kept = sum(sum(one.context_info.values()) for one in inspector._wrapper._inspectors)
    assert kept < 2 << 20
    assert len(inspector._head) + len(inspector._tail) <= 66_560
