import base64
import string
from uuid import UUID

import pytest

from libs.common.redaction import REDACTED, redact
from services.images.adapters.links import LinkTokens, content_disposition, file_name
from services.images.errors import LinkInvalid

IMAGE_ID = UUID("01890000-0000-7000-8000-0000000000ff")
TOKENS = LinkTokens("a secret that all processes share")
NOW = 1_700_000_000


def test_a_token_names_its_image_until_its_time_is_over() -> None:
    token = TOKENS.sign(IMAGE_ID, NOW + 300)
    assert TOKENS.read(token, NOW) == IMAGE_ID
    assert TOKENS.read(token, NOW + 299.9) == IMAGE_ID
    with pytest.raises(LinkInvalid):
        TOKENS.read(token, NOW + 300)


def test_a_token_in_which_any_one_character_was_changed_is_refused() -> None:
    token = TOKENS.sign(IMAGE_ID, NOW + 300)
    for at in range(len(token)):
        for other in set(string.ascii_letters + string.digits + "-_+/=") - {token[at]}:
            with pytest.raises(LinkInvalid):
                TOKENS.read(token[:at] + other + token[at + 1 :], NOW)


@pytest.mark.parametrize("token", ["", "A", "A" * 72, "A" * 71, "é" * 72, "A" * 100_000, "=" * 72, "A" * 70 + "=="])
def test_nonsense_is_no_token(token: str) -> None:
    with pytest.raises(LinkInvalid):
        TOKENS.read(token, NOW)


def test_a_token_of_another_secret_is_refused() -> None:
    with pytest.raises(LinkInvalid):
        LinkTokens("another secret").read(TOKENS.sign(IMAGE_ID, NOW + 300), NOW)


def test_tokens_stand_in_a_path_as_they_are() -> None:
    for number in range(200):
        token = TOKENS.sign(UUID(int=number << 90 | number), NOW)
        assert len(base64.urlsafe_b64decode(token)) == 54
        assert set(token) <= set(string.ascii_letters + string.digits + "-_")


def test_links_are_blotted_out_of_logs_wherever_they_stand() -> None:
    token = TOKENS.sign(IMAGE_ID, NOW)
    path = f"/api/v1/image-files/{token}/a.img"
    for text in (path, f"GET {path} failed", f"https://telar.example.org{path}?x=1"):
        shown = redact(text, "path")
        assert token not in shown
        assert f"/image-files/{REDACTED}/a.img" in shown
    assert "abc" not in redact("https://s3/bucket/key?X-Amz-Expires=60&X-Amz-Signature=abc123")
    assert "abc" not in redact("http://files/blobs/ab/cd?expires=1&name=a.img&signature=abc-_123")


@pytest.mark.parametrize(
    ("name", "format_name", "expected"),
    [
        ("Debian 13", "qcow2", "Debian 13.qcow2"),
        ("disk.img", "raw", "disk.img"),
        ("../../etc/passwd", "raw", "_.._etc_passwd.img"),
        (" . ", "iso", "image.iso"),
        ('a"b;c%d\r\n', "vhd", "a_b_c_d_.vhd"),
        ("x" * 500, "vmdk", "x" * 150 + ".vmdk"),
    ],
)
def test_a_file_name_is_made_of_the_image_s_name(name: str, format_name: str, expected: str) -> None:
    assert file_name(name, format_name) == expected


def test_a_file_name_that_is_not_ascii_is_given_in_both_forms() -> None:
    assert content_disposition("Zürich.img") == "attachment; filename=\"Zurich.img\"; filename*=UTF-8''Z%C3%BCrich.img"
