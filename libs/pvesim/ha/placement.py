"""Where a managed machine belongs: node wishes, company it seeks and company it avoids. Pure."""

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from libs.pvesim.params import split_list

_NOT_LISTED = -1


@dataclass(frozen=True, slots=True)
class Wish:
    """Priorities by node (none at all means any node); a strict wish allows no others."""

    priorities: Mapping[str, int] = field(default_factory=dict)
    strict: bool = False

    def priority(self, node: str) -> int:
        return self.priorities.get(node, _NOT_LISTED) if self.priorities else 0


@dataclass(frozen=True, slots=True)
class Company:
    """Nodes of machines to be with, and of machines to stay away from."""

    together: frozenset[str] = frozenset()
    apart: frozenset[str] = frozenset()


def node_priorities(text: str) -> dict[str, int]:
    """`sv1:2,sv2` as a mapping; a node without a number has priority 0."""
    parts = (item.partition(":") for item in split_list(text))
    return {name: int(number or 0) for name, _, number in parts}


def active(rules: Mapping[str, dict[str, Any]], kind: str, sid: str) -> list[dict[str, Any]]:
    """The rules of a kind that are in force for a resource."""
    return [
        rule
        for rule in rules.values()
        if rule["type"] == kind and not rule.get("disable") and sid in split_list(rule["resources"])
    ]


def wish_of(sid: str, resource: Mapping[str, Any], rules: Mapping[str, Any], groups: Mapping[str, Any]) -> Wish:
    """What the resource's group or its node rule asks for."""
    group = groups.get(str(resource.get("group")))
    if group is not None:
        return Wish(node_priorities(group["nodes"]), bool(group.get("restricted")))
    for rule in active(rules, "node-affinity", sid):
        return Wish(node_priorities(rule["nodes"]), bool(rule.get("strict")))
    return Wish()


def partners(sid: str, rules: Mapping[str, Any], affinity: str) -> set[str]:
    """The resources that a rule of this affinity binds to `sid`."""
    bound = {
        other
        for rule in active(rules, "resource-affinity", sid)
        if rule.get("affinity") == affinity
        for other in split_list(rule["resources"])
    }
    return bound - {sid}


def choose(current: str | None, alive: list[str], wish: Wish, company: Company, load: Counter[str]) -> str | None:
    """The node to be on: the current one if none is better, else the best with the fewest resources; None if none."""
    listed = [node for node in alive if node in wish.priorities]
    candidates = listed if wish.priorities and (listed or wish.strict) else alive
    candidates = [node for node in candidates if node not in company.apart]
    near = [node for node in candidates if node in company.together]
    candidates = near or candidates
    if not candidates:
        return None
    highest = max(wish.priority(node) for node in candidates)
    best = [node for node in candidates if wish.priority(node) == highest]
    return current if current in best else min(best, key=lambda node: (load[node], node))
