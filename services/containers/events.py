"""What the containers service tells the others; it consumes only auth's user events (`libs.common.quotas`)."""

from typing import ClassVar

from libs.common.quotas import OwnedPayload


class StackEvent(OwnedPayload):
    """All that another service needs of a stack; `number` is the integer that older clients know it by."""

    name: str
    number: int
    state: str
    health: str
    service_types: list[str]
    urls: list[str]


class StackCreated(StackEvent):
    """The stack is recorded and being deployed."""

    event_type: ClassVar[str] = "containers.stack.created.v1"


class StackStateChanged(StackEvent):
    event_type: ClassVar[str] = "containers.stack.state_changed.v1"


class StackFailed(StackEvent):
    """Its deployment failed and was undone; `reason` is for its owner."""

    event_type: ClassVar[str] = "containers.stack.failed.v1"
    reason: str


class StackDeleted(StackEvent):
    event_type: ClassVar[str] = "containers.stack.deleted.v1"
