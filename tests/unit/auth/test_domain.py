from datetime import UTC, datetime, timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st

from libs.common.auth import Role
from services.auth.domain import (
    address_allowed,
    chain_hash,
    is_mistyped_key,
    key_digest,
    lock_until,
    name_key,
    network_of,
    new_api_key,
    new_refresh_token,
    session_scopes,
    valid_scope,
)


def test_keys_are_random_and_carry_a_right_checksum() -> None:
    keys = [new_api_key() for _ in range(200)]
    assert len({key.text for key in keys}) == 200
    assert not [key for key in keys if is_mistyped_key(key.text)]
    assert all(key.digest == key_digest(key.text) and key.text.startswith(f"tlr_{key.prefix}_") for key in keys)


@given(at=st.integers(4, 61), to=st.sampled_from("0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz"))
def test_one_wrong_character_is_always_noticed(at: int, to: str) -> None:
    text = new_api_key().text
    if at == 12 or text[at] == to:
        return
    assert is_mistyped_key(text[:at] + to + text[at + 1 :])


@pytest.mark.parametrize("text", ["tlr_", "tlr__", "tlr_a_b", "tlr_x", "tlr"])
def test_fragments_of_a_key_are_mistyped_or_not_ours(text: str) -> None:
    assert is_mistyped_key(text)


def test_a_key_that_an_operator_gave_is_not_ours_to_check() -> None:
    assert not is_mistyped_key("an-older-clients-key-0123456789")


@given(st.text())
def test_no_text_breaks_the_rules_of_keys_and_addresses(text: str) -> None:
    is_mistyped_key(text.encode(errors="replace").decode())
    assert network_of(text)
    assert address_allowed(text, []) is True
    assert isinstance(valid_scope(text), bool)


def test_refresh_tokens_hold_256_bits() -> None:
    tokens = {new_refresh_token() for _ in range(200)}
    assert len(tokens) == 200
    assert all(len(token) == 43 for token in tokens)


@pytest.mark.parametrize(
    ("address", "network"),
    [
        ("203.0.113.77", "203.0.113.0/24"),
        ("::ffff:203.0.113.77", "203.0.113.0/24"),
        ("2001:db8:1:2:3::4", "2001:db8:1:2::/64"),
        ("-", "unknown"),
        ("", "unknown"),
        ("999.1.1.1", "unknown"),
    ],
)
def test_addresses_are_counted_by_their_network(address: str, network: str) -> None:
    assert network_of(address) == network


@pytest.mark.parametrize(
    ("failures", "wait_s"), [(0, None), (4, None), (5, 60), (6, 120), (7, 240), (8, 480), (9, 900), (10**6, 900)]
)
def test_the_wait_starts_late_doubles_and_ends(failures: int, wait_s: int | None) -> None:
    now = datetime(2027, 1, 1, tzinfo=UTC)
    until = lock_until(failures, allowed=5, now=now, first_s=60, longest_s=900)
    assert until == (None if wait_s is None else now + timedelta(seconds=wait_s))


@pytest.mark.parametrize(
    ("scope", "valid"),
    [
        *(("*", True), ("read", True), ("vms", True), ("vms:read", True), ("vms:write", False), ("read:read", False)),
        *(("*:read", False), ("", False), (":read", False), ("VMS", False), ("vms:read:read", False)),
    ],
)
def test_scopes_are_known_words(scope: str, valid: bool) -> None:
    assert valid_scope(scope) is valid


def test_only_an_administrator_may_everything() -> None:
    assert session_scopes(Role.ADMIN) == ("*",)
    assert not {"*", "admin", "read"} & set(session_scopes(Role.CLIENT))


@pytest.mark.parametrize(("left", "right"), [("ADA", "ada"), (" ada ", "ada"), ("STRASSE", "straße")])
def test_names_are_compared_without_case(left: str, right: str) -> None:
    assert name_key(left) == name_key(right)


def test_the_chain_depends_on_every_value_and_on_what_was_before() -> None:
    entry = {"a": 1, "b": "x", "c": None, "d": {"e": [1, 2]}}
    whole = chain_hash("0" * 64, entry)
    assert whole == chain_hash("0" * 64, dict(reversed(entry.items())))
    changed = [
        {**entry, "a": 2},
        {**entry, "b": "y"},
        {**entry, "c": ""},
        {**entry, "d": {"e": [2, 1]}},
        {**entry, "f": 0},
    ]
    assert len({whole, chain_hash("1" * 64, entry), *(chain_hash("0" * 64, one) for one in changed)}) == 7
