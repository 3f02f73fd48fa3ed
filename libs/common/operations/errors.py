"""How operations are refused or fail, beyond what their own steps report."""

from libs.common.errors import Conflict, NotFound, UpstreamTimeout


class OperationNotFound(NotFound):
    slug = "operation-not-found"
    title = "No such operation"


class OperationNotCancellable(Conflict):
    slug = "operation-not-cancellable"
    title = "This operation cannot be cancelled"


class OperationNotResumable(Conflict):
    slug = "operation-not-resumable"
    title = "This operation does not wait for an operator"


class StepTimedOut(UpstreamTimeout):
    slug = "step-timed-out"
    title = "A step did not end in time"


class StepGaveUp(UpstreamTimeout):
    slug = "step-gave-up"
    title = "A step was tried as often as it may be"


class LeaseLost(BaseException):
    """Another runner may hold the operation now. A BaseException: a step's `except Exception` must not swallow it."""
