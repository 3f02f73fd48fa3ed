"""Leaves a node alone that does not answer: calls about it fail at once for a while, then one may try."""

import time
from collections.abc import Callable
from dataclasses import dataclass

from services.vms.errors import NodeDown


@dataclass(slots=True)
class _Node:
    failures: int = 0
    opened_at: float | None = None
    trying_since: float | None = None


class Breakers:
    """One breaker for each node of a cluster; opens after `failures` calls in a row without an answer."""

    def __init__(self, *, failures: int, open_s: float, now: Callable[[], float] = time.monotonic) -> None:
        self._failures = failures
        self._open_s = open_s
        self._now = now
        self._nodes: dict[str, _Node] = {}

    def check(self, node: str) -> None:
        """Raise NodeDown while the node is left alone; the first call afterwards is the one that tries."""
        known = self._nodes.get(node)
        if known is None or known.opened_at is None:
            return
        now = self._now()
        if now < known.opened_at + self._open_s:
            left_s = known.opened_at + self._open_s - now
            raise NodeDown(f"The node {node} is left alone for now", reason="breaker", node=node, retry_after_s=left_s)
        if known.trying_since is not None and now < known.trying_since + self._open_s:
            raise NodeDown(f"The node {node} is being tried", reason="breaker", node=node, retry_after_s=1)
        known.trying_since = now

    def failed(self, node: str) -> None:
        """Note a call that the node left unanswered."""
        known = self._nodes.setdefault(node, _Node())
        known.failures += 1
        known.trying_since = None
        if known.failures >= self._failures:
            known.opened_at = self._now()

    def answered(self, node: str) -> None:
        """Note a sign of life, whatever it said."""
        self._nodes.pop(node, None)

    def trouble(self, node: str) -> str | None:
        """Why the node is left alone just now, None if it is not."""
        known = self._nodes.get(node)
        if known is None or known.opened_at is None:
            return None
        left_s = known.opened_at + self._open_s - self._now()
        if left_s <= 0:
            return None
        return f"{known.failures} calls in a row got no answer; it is tried again in {left_s:.0f} s"
