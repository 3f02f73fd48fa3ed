"""Domain events as CloudEvents 1.0 in JSON: one envelope, typed payloads inside it.

`type` is also the AMQP routing key: `<service>.<noun>.<past verb>.v<N>`. `subject` is the resource's id.
Extension attributes: `owner` (the user the resource belongs to), `traceparent` (W3C Trace Context) and
`sequence` (per-subject version: a consumer that has seen a higher one drops the event).
Source: CloudEvents 1.0 JSON format, https://github.com/cloudevents/spec.
"""

import json
import re
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any, ClassVar, Self

from pydantic import BaseModel, ConfigDict

from libs.common.clock import rfc3339
from libs.common.errors import Malformed
from libs.common.ids import uuid7

CONTENT_TYPE = "application/cloudevents+json"
_TYPE = re.compile(r"[a-z_]+(\.[a-z_]+){2}\.v[0-9]+")


class MalformedEvent(Malformed):
    slug = "malformed-event"
    title = "Not a CloudEvent that Telar understands"


class Payload(BaseModel):
    """Base of every event payload; `event_type` is the CloudEvents `type`. Unknown fields are ignored by consumers."""

    model_config = ConfigDict(frozen=True, extra="ignore")
    event_type: ClassVar[str]


@dataclass(frozen=True, slots=True)
class Event:
    """One thing that happened. `data` is JSON; `sequence` orders the events of one subject."""

    type: str
    subject: str
    source: str
    time: datetime
    data: dict[str, Any]
    owner: str | None = None
    traceparent: str | None = None
    sequence: int = 0
    id: str = field(default_factory=lambda: str(uuid7()))

    def __post_init__(self) -> None:
        if not _TYPE.fullmatch(self.type):
            raise MalformedEvent(f"{self.type!r} is not <service>.<noun>.<past verb>.v<N>")

    def to_json(self) -> bytes:
        document: dict[str, Any] = {
            "specversion": "1.0",
            "id": self.id,
            "source": self.source,
            "type": self.type,
            "subject": self.subject,
            "time": rfc3339(self.time),
            "datacontenttype": "application/json",
            "data": self.data,
            "sequence": str(self.sequence),
        }
        if self.owner is not None:
            document["owner"] = self.owner
        if self.traceparent is not None:
            document["traceparent"] = self.traceparent
        return json.dumps(document, separators=(",", ":")).encode()

    @classmethod
    def from_json(cls, body: bytes) -> Self:
        """Read the envelope; raises MalformedEvent with what is wrong."""
        try:
            document = json.loads(body)
            if document["specversion"] != "1.0":
                raise MalformedEvent("specversion is not 1.0")
            if not isinstance(document["data"], dict):
                raise MalformedEvent("data is not an object")
            return cls(
                type=str(document["type"]),
                subject=str(document["subject"]),
                source=str(document["source"]),
                time=datetime.fromisoformat(document["time"]),
                data=document["data"],
                owner=document.get("owner"),
                traceparent=document.get("traceparent"),
                sequence=int(document.get("sequence", 0)),
                id=str(document["id"]),
            )
        except (ValueError, KeyError, TypeError) as error:
            raise MalformedEvent(f"{type(error).__name__}: {error}") from error
