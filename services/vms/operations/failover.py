"""What a cluster's failure means for a machine that is being made: wait, begin anew, or go to another node."""

from libs.common.operations import RetryFrom, RetryLater, StepContext
from services.vms.errors import (
    MachineMissing,
    NodeDown,
    ProxmoxFailure,
    ProxmoxRefused,
    TaskInterrupted,
    WrongPowerState,
)

_INTERRUPTIONS = 3
_SILENCES = 3
_ROUNDS = 1


def elsewhere(context: StepContext, error: ProxmoxFailure, *, node: str) -> Exception:
    """What to raise for a failure on `node`, where the machine is or was going to be.

    Locks, an API that is away and answers that got lost are waited out; what a node did not manage is undone, and the
    memo keeps it from being tried there again.
    """
    memo = context.memo
    avoided: dict[str, str] = memo.setdefault("avoided", {})
    if isinstance(error, NodeDown):
        down = error.node or node
        if error.silent and context.attempt < _SILENCES:
            return error  # a connection that failed is no death yet; it is tried again after a moment
        avoided[down] = "it went down"
        memo["avoided_sources"] = sorted({*memo.get("avoided_sources", ()), down})
        return RetryFrom("place", reason=f"{down} went down; trying another node")
    if isinstance(error, TaskInterrupted):
        memo["interruptions"] = int(memo.get("interruptions", 0)) + 1
        if memo["interruptions"] > _INTERRUPTIONS:
            avoided[node] = "tasks were interrupted there"
        return RetryFrom("place", reason="A task was interrupted; beginning anew")
    if isinstance(error, ProxmoxRefused | WrongPowerState | MachineMissing):
        avoided[node] = error.detail
        return RetryFrom("place", reason=f"{node} failed: {error.detail}")
    return error


def second_chance(context: StepContext) -> Exception | None:
    """What to raise when every node that could take the machine has failed: all may be tried once more, then no more.

    None if no node was avoided, or their chances are used up.
    """
    memo = context.memo
    rounds = int(memo.get("rounds", 0))
    if rounds >= _ROUNDS or not (memo.get("avoided") or memo.get("avoided_sources")):
        return None
    memo["rounds"] = rounds + 1
    for name in ("avoided", "avoided_sources", "interruptions"):
        memo.pop(name, None)
    return RetryLater(1.0, "Every node that could take it has failed once; trying them again")
