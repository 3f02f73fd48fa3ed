"""The pure part of the guarded client: addresses and URLs, against the corpus and at random."""

import json
from ipaddress import IPv4Address, IPv6Address, ip_address, ip_network
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from libs.common.http import AddressPolicy, OutboundError, Reason, UrlRefused, parse
from libs.common.http.address import unmapped
from libs.common.http.url import follow

CORPUS = Path(__file__).parents[2] / "corpora" / "ssrf"
CASES: list[dict[str, Any]] = [json.loads(line) for line in (CORPUS / "urls.jsonl").read_text().splitlines()]
NAMES: dict[str, list[str]] = json.loads((CORPUS / "names.json").read_text())


def verdict(url: str, policy: AddressPolicy) -> str | None:
    """The reason code of a refusal; None if the URL may be called."""
    try:
        parsed = parse(url)
    except OutboundError as error:
        return error.reason.value
    addresses = [parsed.literal] if parsed.literal else [ip_address(text) for text in NAMES[parsed.host]]
    return next((reason.value for reason in map(policy.check, addresses) if reason), None)


def test_the_corpus_holds_over_300_hostile_urls_and_its_controls() -> None:
    verdicts = [case["verdict"] for case in CASES]
    assert verdicts.count("refused") >= 300
    assert verdicts.count("allowed") >= 50
    assert len({case["url"] for case in CASES}) == len(CASES)
    assert all((case["verdict"] == "refused") == bool(case["reason"]) for case in CASES)


@pytest.mark.parametrize("case", CASES, ids=lambda case: ascii(case["url"][:60]))
def test_every_url_of_the_corpus_gets_its_verdict_and_reason(case: dict[str, Any]) -> None:
    assert verdict(case["url"].replace("{port}", "18999"), AddressPolicy()) == case["reason"]


@pytest.mark.parametrize("reason", sorted(reason for reason in Reason if reason.startswith(("url-", "address-"))))
def test_the_corpus_reaches_every_reason_of_a_refusal(reason: Reason) -> None:
    assert any(case["reason"] == reason.value for case in CASES)


EMBEDDINGS = [
    lambda bits: 0xFFFF << 32 | bits,
    lambda bits: 0xFFFF << 48 | bits,
    lambda bits: 0x64FF9B << 96 | bits,
    lambda bits: 0x64FF9B0001 << 80 | bits,
    lambda bits: 0x2002 << 112 | bits << 80 | 1,
    lambda bits: 0x20010000 << 96 | bits << 64 | ~0x08080808 & 0xFFFFFFFF,
    lambda bits: 0x20010000 << 96 | 0x08080808 << 64 | ~bits & 0xFFFFFFFF,
]


@given(st.integers(0, 2**32 - 1), st.sampled_from(EMBEDDINGS))
def test_an_ipv4_address_gets_the_same_verdict_in_every_disguise(bits: int, embed: Any) -> None:
    policy = AddressPolicy()
    assert policy.check(IPv6Address(embed(bits))) == policy.check(IPv4Address(bits))


@given(st.ip_addresses(v=4))
def test_what_the_standard_library_calls_private_is_never_allowed(address: IPv4Address) -> None:
    if not address.is_global or address.is_multicast:
        assert AddressPolicy().check(address) is not None


@given(st.ip_addresses(v=6))
def test_only_global_unicast_ipv6_is_ever_allowed(address: IPv6Address) -> None:
    if AddressPolicy().check(address) is None:
        assert all(
            inner in ip_network("2000::/3") if inner.version == 6 else inner.is_global for inner in unmapped(address)
        )


@given(st.integers(0, 2**32 - 1), st.sampled_from(["{}", "0x{:x}", "0{:o}"]))
def test_one_number_is_the_address_it_spells(bits: int, spelling: str) -> None:
    assert parse(f"http://{spelling.format(bits)}/").literal == IPv4Address(bits)


@given(st.text(max_size=40))
def test_parsing_refuses_or_gives_a_url_that_parses_to_itself(text: str) -> None:
    try:
        parsed = parse(f"http://{text}")
    except UrlRefused:
        return
    assert parse(str(parsed)) == parsed
    assert str(parsed).isascii()
    assert not set(str(parsed)) & set("\r\n\t \\@") - set("@" if "@" in parsed.target else "")


def test_an_operator_may_allow_networks_and_they_match_after_unmapping() -> None:
    policy = AddressPolicy([ip_network("10.0.0.0/8"), ip_network("fd00:1::/32")])
    for allowed in ("10.1.2.3", "::ffff:10.1.2.3", "64:ff9b::10.1.2.3", "2002:a01:203::1", "fd00:1::5"):
        assert policy.check(ip_address(allowed)) is None, allowed
    for refused in ("192.168.1.1", "::ffff:192.168.1.1", "fd00:2::5", "127.0.0.1"):
        assert policy.check(ip_address(refused)) is not None, refused


def test_allowing_all_of_ipv6_allows_no_ipv4_address_inside_it() -> None:
    policy = AddressPolicy([ip_network("::/0")])
    assert policy.check(ip_address("::1")) is None
    assert policy.check(ip_address("::ffff:127.0.0.1")) is Reason.ADDRESS_LOOPBACK


def test_an_allowed_network_may_be_written_in_its_mapped_form() -> None:
    policy = AddressPolicy([ip_network("::ffff:10.0.0.0/104")])
    assert policy.check(ip_address("10.9.9.9")) is None
    assert policy.check(ip_address("11.9.9.9")) is None  # public anyway
    assert policy.check(ip_address("127.0.0.1")) is not None


def test_teredo_needs_both_its_addresses_allowed() -> None:
    server_private = ip_address("2001:0:a00:1::f7f7:f7f7")
    client_private = ip_address("2001:0:808:808::f5ff:fffe")
    assert AddressPolicy().check(server_private) is Reason.ADDRESS_PRIVATE
    assert AddressPolicy().check(client_private) is Reason.ADDRESS_PRIVATE


@pytest.mark.parametrize(
    ("url", "authority", "target"),
    [
        ("http://Good.Example", "good.example", "/"),
        ("http://good.example:80/a#b", "good.example", "/a"),
        ("https://good.example:443?x=1", "good.example", "/?x=1"),
        ("https://good.example:80/", "good.example:80", "/"),
        ("http://[2606:4700:0:0::1111]:8080/", "[2606:4700::1111]:8080", "/"),
        ("http://0x08080808/", "8.8.8.8", "/"),
        ("http://bücher.example/ü?ö=%C3%B6", "xn--bcher-kva.example", "/%C3%BC?%C3%B6=%C3%B6"),
        ('http://good.example/a"b<c>', "good.example", "/a%22b%3Cc%3E"),
    ],
)
def test_a_url_is_sent_normalised(url: str, authority: str, target: str) -> None:
    parsed = parse(url)
    assert (parsed.authority, parsed.target) == (authority, target)


@pytest.mark.parametrize(
    ("location", "expected"),
    [
        ("/b", "https://good.example/b"),
        ("c", "https://good.example/a/c"),
        ("../d?x", "https://good.example/d?x"),
        ("//other.example/e", "https://other.example/e"),
        ("http://other.example", "http://other.example/"),
        ("?q", "https://good.example/a/x?q"),
    ],
)
def test_a_relative_redirect_is_resolved_against_the_url_that_sent_it(location: str, expected: str) -> None:
    assert str(follow(parse("https://good.example/a/x"), location)) == expected


@pytest.mark.parametrize(
    "location",
    [
        "/\\evil",
        "//u@evil/",
        "\thttp://evil/",
        "file:///etc",
        "http://[::1",
        "http:x",
        "http:///x",
        "///x",
        "http://e vil/",
    ],
)
def test_a_redirect_is_read_as_strictly_as_a_users_url(location: str) -> None:
    with pytest.raises(UrlRefused):
        follow(parse("https://good.example/"), location)
