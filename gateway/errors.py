"""What the gateway itself refuses, by slug."""

from libs.common.errors import Forbidden, NotFound, Unauthenticated, Unavailable


class ServiceAbsent(Unavailable):
    slug = "service-absent"
    title = "This service is not installed"


class UnknownClient(Unauthenticated):
    slug = "unknown-service-client"
    title = "No such service client"


class OperationNotFound(NotFound):
    slug = "operation-not-found"
    title = "No such operation"


class DeadLetterNotFound(NotFound):
    slug = "dead-letter-not-found"
    title = "No such dead letter"


class ScopeMissing(Forbidden):
    slug = "scope-missing"
    title = "The key lacks a scope"
