from collections import Counter
from typing import Any

import pytest

from libs.pvesim.ha.placement import Company, Wish, choose, node_priorities, partners, wish_of

ALL = ["sv1", "sv2", "sv3"]
NOBODY = Company()
IDLE: Counter[str] = Counter()
RULES: dict[str, dict[str, Any]] = {
    "near": {"type": "node-affinity", "resources": "vm:1,vm:2", "nodes": "sv2:1,sv3", "strict": 1},
    "off": {"type": "node-affinity", "resources": "vm:3", "nodes": "sv1", "disable": 1},
    "pair": {"type": "resource-affinity", "resources": "vm:1,vm:3", "affinity": "positive"},
    "apart": {"type": "resource-affinity", "resources": "vm:1,vm:4", "affinity": "negative"},
}


def test_without_wishes_a_machine_stays_and_a_homeless_one_goes_where_least_is() -> None:
    assert choose("sv3", ALL, Wish(), NOBODY, IDLE) == "sv3"
    assert choose(None, ALL, Wish(), NOBODY, Counter(sv1=2, sv2=1, sv3=1)) == "sv2"


def test_the_highest_priority_that_lives_wins() -> None:
    wish = Wish({"sv2": 2, "sv3": 1})
    assert choose("sv1", ALL, wish, NOBODY, IDLE) == "sv2"
    assert choose("sv1", ["sv1", "sv3"], wish, NOBODY, IDLE) == "sv3"


@pytest.mark.parametrize(("strict", "node"), [(True, None), (False, "sv1")])
def test_a_strict_wish_has_no_second_choice(strict: bool, node: str | None) -> None:
    assert choose("sv2", ["sv1"], Wish({"sv2": 0}, strict), NOBODY, IDLE) == node


def test_company_draws_and_rivals_repel() -> None:
    assert choose("sv1", ALL, Wish(), Company(together=frozenset({"sv3"})), IDLE) == "sv3"
    assert choose("sv1", ALL, Wish(), Company(apart=frozenset({"sv1", "sv2"})), IDLE) == "sv3"
    assert choose("sv1", ALL, Wish(), Company(apart=frozenset(ALL)), IDLE) is None


def test_rules_and_groups_become_wishes() -> None:
    assert node_priorities("sv1:3,sv2") == {"sv1": 3, "sv2": 0}
    assert wish_of("vm:1", {}, RULES, {}) == Wish({"sv2": 1, "sv3": 0}, strict=True)
    assert wish_of("vm:3", {}, RULES, {}) == Wish()
    groups = {"old": {"nodes": "sv1", "restricted": 1}}
    assert wish_of("vm:3", {"group": "old"}, RULES, groups) == Wish({"sv1": 0}, strict=True)
    assert partners("vm:1", RULES, "positive") == {"vm:3"}
    assert partners("vm:1", RULES, "negative") == {"vm:4"}
