import base64

import pytest
from hypothesis import given
from hypothesis import strategies as st

from libs.common.errors import Invalid
from services.images.api import tus_headers
from services.images.domain import Format
from services.images.errors import MalformedTusRequest, TusVersionUnsupported

DESCRIBED = "filename ZGlzay5pbWc=,os_type RGViaWFu"


def b64(text: str) -> str:
    return base64.b64encode(text.encode()).decode()


@pytest.mark.parametrize("given_version", [None, "", "1.0", "1.0.0 ", "0.2.2", "1.0.0,0.2.2"])
def test_only_our_version_is_spoken(given_version: str | None) -> None:
    tus_headers.require_version("1.0.0")
    with pytest.raises(TusVersionUnsupported):
        tus_headers.require_version(given_version)


@pytest.mark.parametrize("number", [None, "", " 1", "1 ", "-1", "+1", "1.5", "1e3", "0x1", "1_000", "٣", "²", "9" * 19])
def test_what_is_no_plain_number_of_bytes_is_malformed(number: str | None) -> None:
    with pytest.raises(MalformedTusRequest, match="Upload-Offset"):
        tus_headers.upload_offset(number)
    with pytest.raises(MalformedTusRequest, match="Upload-Length"):
        tus_headers.upload_length(number, None)


def test_a_length_that_comes_later_is_refused_in_words_of_its_own() -> None:
    assert tus_headers.upload_length("007", None) == 7
    for length in (None, "100"):
        with pytest.raises(MalformedTusRequest, match="Upload-Defer-Length is not supported"):
            tus_headers.upload_length(length, "1")


def test_no_checksum_is_none() -> None:
    assert tus_headers.checksum(None) is None


@given(st.binary(min_size=20, max_size=20))
def test_a_digest_is_read_as_it_was_written(digest: bytes) -> None:
    read = tus_headers.checksum(f"sha1 {base64.b64encode(digest).decode()}")
    assert read is not None
    assert (read.algorithm, read.digest) == ("sha1", digest)


@given(st.text(max_size=60))
def test_any_other_text_is_no_checksum(text: str) -> None:
    with pytest.raises(MalformedTusRequest):
        tus_headers.checksum(text)


PRINTABLE = st.text(st.characters(categories=("L", "N")), min_size=1, max_size=64)


@given(PRINTABLE, PRINTABLE)
def test_metadata_are_read_as_they_were_written(name: str, os_type: str) -> None:
    pairs = {"filename": "a.b.ISO", "name": name, "os_type": os_type}
    read = tus_headers.metadata(" , ".join(f"{key} {b64(value)}" for key, value in pairs.items()))
    assert (read.filename, read.format) == ("a.b.ISO", Format.ISO)
    assert (read.said.name, read.said.os_type) == (name, os_type)


@given(st.text(max_size=200))
def test_any_other_text_is_invalid_and_the_field_is_named(text: str) -> None:
    with pytest.raises(Invalid) as caught:
        tus_headers.metadata(text)
    assert caught.value.errors
    assert all(field.pointer.startswith("/header/upload-metadata") for field in caught.value.errors)


def test_a_key_without_a_value_is_empty() -> None:
    assert tus_headers.metadata(DESCRIBED + ",description,is_confidential").said.description == ""


def test_the_name_is_the_files_unless_it_is_told() -> None:
    assert tus_headers.metadata(DESCRIBED).said.name == "disk.img"
    assert tus_headers.metadata(f"{DESCRIBED},name {b64('Disk')}").said.name == "Disk"


def test_all_that_is_wrong_is_told_at_once_with_escaped_keys() -> None:
    with pytest.raises(Invalid) as caught:
        tus_headers.metadata("filename eA==,a/b~c *,os_type RGViaWFu,os_type RGViaWFu,min_disk_gib eA==")
    assert sorted(field.pointer.removeprefix("/header/upload-metadata/") for field in caught.value.errors) == [
        *("a~1b~0c", "filename", "min_disk_gib", "os_type"),
    ]
