"""What the bus's contract suite is made with: names of its own, an inbox, buses that are closed again."""

import asyncio
import secrets
import string
from collections.abc import Callable
from dataclasses import dataclass, field

from libs.common.bus import Bus, DeadLetter, RetryPolicy
from libs.common.clock import SystemClock
from libs.common.events import Event

RETRY = RetryPolicy(delivery_limit=3, first_delay_s=0.01, longest_delay_s=0.05)
TRACEPARENT = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01"

MakeBus = Callable[[], Bus]


async def until(condition: Callable[[], bool], within_s: float = 15.0) -> None:
    """Wait for a condition; fails the test where it does not come true in time."""
    async with asyncio.timeout(within_s):
        while not condition():  # noqa: ASYNC110  # what it waits for happens in other processes too
            await asyncio.sleep(0.005)


@dataclass(slots=True)
class Names:
    """Names that no other test uses, because a broker's queues outlive a test."""

    token: str = field(default_factory=lambda: "".join(secrets.choice(string.ascii_lowercase) for _ in range(10)))

    def queue(self, name: str = "main") -> str:
        return f"test-{self.token}-{name}"

    def type(self, verb: str = "created", version: int = 1) -> str:
        return f"{self.token}.thing.{verb}.v{version}"

    @property
    def all(self) -> str:
        return f"{self.token}.#"

    def event(self, subject: str = "s", sequence: int = 0, verb: str = "created") -> Event:
        return Event(
            type=self.type(verb),
            subject=subject,
            source="test",
            time=SystemClock().now(),
            data={"n": sequence, "words": ["ä", None, 1.5]},
            owner="somebody",
            traceparent=TRACEPARENT,
            sequence=sequence,
        )


@dataclass(slots=True)
class Inbox:
    """Keeps what it is given; fails first as often as `failures` says for the subject."""

    events: list[Event] = field(default_factory=list)
    letters: list[DeadLetter] = field(default_factory=list)
    attempts: int = 0
    failures: dict[str, list[Exception]] = field(default_factory=dict)

    async def handle(self, event: Event) -> None:
        self.attempts += 1
        await asyncio.sleep(0)
        if self.failures.get(event.subject):
            raise self.failures[event.subject].pop()
        self.events.append(event)

    async def bury(self, letter: DeadLetter) -> None:
        self.letters.append(letter)

    def numbers(self, subject: str) -> list[int]:
        return [event.sequence for event in self.events if event.subject == subject]


class Buses:
    """Makes started buses and closes them after the test."""

    def __init__(self, make_bus: MakeBus) -> None:
        self._make_bus = make_bus
        self._made: list[Bus] = []

    def make(self) -> Bus:
        bus = self._make_bus()
        self._made.append(bus)
        return bus

    async def start(self) -> Bus:
        bus = self.make()
        await bus.start()
        return bus

    async def close(self) -> None:
        for bus in self._made:
            await bus.close()
