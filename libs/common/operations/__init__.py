"""Slow work as a resource: durable operations made of steps, run by any replica, undone when they fail."""

from libs.common.operations.context import StepContext
from libs.common.operations.errors import (
    LeaseLost,
    OperationNotCancellable,
    OperationNotFound,
    OperationNotResumable,
    StepGaveUp,
    StepTimedOut,
)
from libs.common.operations.failures import Backoff
from libs.common.operations.model import Direction, Json, Operation, State, StepRecord, StepState
from libs.common.operations.runner import OperationRunner
from libs.common.operations.saga import Needed, OnEnd, RetryFrom, RetryLater, Saga, Step, StepFunction, UndoFunction
from libs.common.operations.service import Operations, Wanted, enqueue, enqueue_all
from libs.common.operations.table import CHANNEL, operations_table

__all__ = [
    "CHANNEL",
    "Backoff",
    "Direction",
    "Json",
    "LeaseLost",
    "Needed",
    "OnEnd",
    "Operation",
    "OperationNotCancellable",
    "OperationNotFound",
    "OperationNotResumable",
    "OperationRunner",
    "Operations",
    "RetryFrom",
    "RetryLater",
    "Saga",
    "State",
    "Step",
    "StepContext",
    "StepFunction",
    "StepGaveUp",
    "StepRecord",
    "StepState",
    "StepTimedOut",
    "UndoFunction",
    "Wanted",
    "enqueue",
    "enqueue_all",
    "operations_table",
]
