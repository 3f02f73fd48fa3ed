"""The thirty behaviours of a faithful lab, by the number that tests of each carry in their names."""

import re
from pathlib import Path

import pytest

ROWS = {
    1: "HTTPS, the envelope, texts in the reason phrase, the JSON message by release",
    2: "the 401s: empty and late, a failed login with JSON",
    3: "tickets by cookie and header, over tokens, expiry, renewal",
    4: "the CSRF token on writes with tickets, not on uploads",
    5: "calls that take no tokens, root's tokens that are not root, second factors",
    6: "the order of checks, the privileges, lists that filter silently",
    7: "parameters: the original's names, limits and words, all complaints at once",
    8: "500 for missing machines in two texts, 501 for unknown calls",
    9: "numbers as text, and the loose mode",
    10: "keys and contents in no order",
    11: "bodies, queries and forms as they are read, keys encoded twice",
    12: "UPIDs and tasks that are known on their node only",
    13: "the life of a task, its log and its last line",
    14: "interrupting tasks, and what cleans up",
    15: "ids that nobody reserves, and the four collisions",
    16: "clones: checks in their order, the lock, the hop",
    17: "no other node while a drive is on local storage",
    18: "linked clones: from what, on what, and their names",
    19: "what a copy has of its own, and what it keeps",
    20: "file locks, the lock option, turns on storages",
    21: "the inventory's lag, and what it shows by release",
    22: "how states combine",
    23: "power calls and their idempotence",
    24: "pending changes, hot-plug, property strings",
    25: "changes at once and as tasks, the 596 behind which work goes on",
    26: "deletion",
    27: "high availability",
    28: "the guest agent",
    29: "consoles",
    30: "uploads, downloads, connections",
}
_NUMBERED = re.compile(r"^ *(?:async )?def test_(\d\d)_", re.MULTILINE)


def numbers() -> set[int]:
    texts = (file.read_text() for file in Path(__file__).parent.glob("test_*.py"))
    return {int(found) for text in texts for found in _NUMBERED.findall(text)}


@pytest.mark.parametrize("row", ROWS)
def test_a_behaviour_has_a_test(row: int) -> None:
    assert row in numbers(), ROWS[row]


def test_no_test_carries_a_number_that_means_nothing() -> None:
    assert numbers() <= set(ROWS)
