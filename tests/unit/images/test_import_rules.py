from itertools import permutations

import pytest

from libs.common.errors import Invalid, TelarError
from services.images.domain import Compression, Format, published_as, require_convertible
from services.images.errors import NotConvertible
from services.images.service.imports import without_query

TIB = 1 << 40


@pytest.mark.parametrize(
    ("filename", "declared", "expected"),
    [
        ("debian.qcow2", None, (Format.QCOW2, None)),
        ("DEBIAN.QCOW2.XZ", None, (Format.QCOW2, Compression.XZ)),
        ("a.b.img.gz", None, (Format.RAW, Compression.GZIP)),
        ("disk.vmdk.zst", None, (Format.VMDK, Compression.ZSTD)),
        ("netinst.iso", Format.ISO, (Format.ISO, None)),
        ("latest", Format.RAW, (Format.RAW, None)),
        ("latest.gz", Format.RAW, (Format.RAW, Compression.GZIP)),
        ("", Format.VHD, (Format.VHD, None)),
    ],
)
def test_a_published_name_tells_the_format_and_how_it_is_packed(
    filename: str, declared: Format | None, expected: tuple[Format, Compression | None]
) -> None:
    assert published_as(filename, declared) == expected


@pytest.mark.parametrize(
    "filename", ["", "latest", "a.ova", "a.iso.bz2", "a.gz", ".gz", "a.gz.qcow2x", "qcow2", "a.7z"]
)
def test_a_name_that_tells_no_format_is_refused_with_what_to_do(filename: str) -> None:
    with pytest.raises(Invalid, match="give `format`") as refused:
        published_as(filename, None)
    assert refused.value.errors[0].pointer == "/body/format"


@pytest.mark.parametrize(
    ("source", "target", "compress", "size", "words"),
    [
        (Format.ISO, Format.RAW, False, 1, "a disc and not a disk"),
        (Format.RAW, Format.ISO, False, 1, "cannot become an ISO"),
        (Format.QCOW2, Format.QCOW2, True, 1, "qcow2 already"),
        (Format.RAW, Format.VMDK, True, 1, "only qcow2 can be compressed"),
        (Format.RAW, Format.VHD, False, 3 * TIB, "at most 2.2 TB"),
    ],
)
def test_what_cannot_be_converted_is_refused_with_words(
    source: Format, target: Format, compress: bool, size: int, words: str
) -> None:
    with pytest.raises(TelarError) as refused:
        require_convertible(source, target, size, compress=compress)
    assert words in refused.value.detail
    assert isinstance(refused.value, NotConvertible if source is Format.ISO else Invalid)


def test_disks_become_one_another() -> None:
    refused = []
    for source, target in permutations((Format.QCOW2, Format.RAW, Format.VMDK, Format.VHD), 2):
        try:
            require_convertible(source, target, TIB, compress=target is Format.QCOW2)
        except TelarError as error:
            refused.append((source, target, error.detail))
    assert refused == []


@pytest.mark.parametrize(
    ("url", "shown"),
    [
        ("https://example.org/a.iso?X-Amz-Signature=secret", "https://example.org/a.iso"),
        ("https://user:secret@example.org:8443/a.iso#secret", "https://example.org:8443/a.iso"),
        ("http://[2001:db8::1]/a.iso", "http://[2001:db8::1]/a.iso"),
    ],
)
def test_a_shown_url_keeps_its_secrets(url: str, shown: str) -> None:
    assert without_query(url) == shown
