"""robots.txt as RFC 9309 reads it."""

import pytest

from services.fetcher.domain import robots

FILE = b"""\xef\xbb\xbf
# all others
User-agent: *
Disallow: /private/
Allow: /private/logo.png
Disallow: /*.gif$
Disallow: /q?secret=

User-Agent: telar-fetcher/2.0
user-agent: Other
Disallow: /for-us/   # not this
Disallow:
Allow: /for-us/public
Disallow: /%7Euser/
Sitemap: http://x/sitemap.xml

User-agent: Telar-Fetcher
Disallow: /more/
"""


@pytest.mark.parametrize(
    ("product", "path", "allowed"),
    [
        ("Somebody", "/", True),
        ("Somebody", "/private/x.jpg", False),
        ("Somebody", "/private/logo.png", True),
        ("Somebody", "/a/b.gif", False),
        ("Somebody", "/a/b.gif?x=1", True),
        ("Somebody", "/q?secret=1", False),
        ("Somebody", "/q?other=1", True),
        ("Somebody", "/for-us/x", True),
        ("Telar-Fetcher", "/private/x.jpg", True),
        ("Telar-Fetcher", "/for-us/x", False),
        ("Telar-Fetcher", "/for-us/public/x", True),
        ("Telar-Fetcher", "/~user/x.jpg", False),
        ("Telar-Fetcher", "/%7euser/x.jpg", False),
        ("Telar-Fetcher", "/more/x.jpg", False),
        ("Other", "/more/x.jpg", True),
    ],
)
def test_the_longest_rule_of_the_groups_that_name_us_decides(product: str, path: str, allowed: bool) -> None:
    assert robots.parse(FILE, product).allows(f"http://example.org{path}") is allowed


def test_equal_rules_allow_and_odd_files_forbid_nothing() -> None:
    assert robots.parse(b"User-agent: *\nDisallow: /a\nAllow: /a", "x").allows("http://x/a")
    for data in (b"", b"<html>", b"Disallow: /", b"\x00\xff\xfe" * 100, b"User-agent: *\nDisallow:"):
        assert robots.parse(data, "x").allows("http://x/a")
    assert not robots.NOTHING.allows("http://x/")
    assert robots.ALL.allows("http://x/")


def test_a_rule_of_many_stars_is_matched_quickly() -> None:
    rules = robots.parse(b"User-agent: *\nDisallow: /" + b"a*" * 40 + b"b$", "x")
    assert rules.allows("http://x/" + "a" * 2_000)
