"""BENCH row of events: outbox, RabbitMQ, inbox between two services, beside aio-pika's publish, confirm and consume.

`python -m tests.bench.events [events]`. Broker and PostgreSQL are containers of the row's own, every sender and every
receiver is a process; both forms use the same exchange and the same kind of queue. The rate is taken from the relay's
start over a full outbox to the last event whose transaction at the receiver is through; then, at 200 events a second,
how long after its time each event was through, the writing transaction included, but for the first second's.
"""

import json
import statistics
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import count as numbers
from typing import Any

import psycopg
from sqlalchemy.engine import make_url

from libs.common.testing.stack import PostgresContainer, RabbitMq, engine_available, run_postgresql, run_rabbitmq

EVENTS = 10_000
ROUNDS = 3
STEADY_PER_SECOND, STEADY_S = 200, 20
SHARE_WANTED, P99_ALLOWED_MS = 0.5, 50.0
_databases = numbers(1)


class Program:
    """A process of `events_apps`."""

    def __init__(self, *arguments: str) -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-m", "tests.bench.events_apps", *arguments],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        assert self.said() == "ready"

    def said(self) -> Any:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        assert line, "it ended"
        return json.loads(line)

    def go_on(self) -> None:
        assert self._process.stdin is not None
        self._process.stdin.write("\n")
        self._process.stdin.flush()

    def end(self) -> None:
        self._process.communicate("\n", timeout=30)


@contextmanager
def program(*arguments: str) -> Iterator[Program]:
    running = Program(*arguments)
    running.go_on()
    yield running
    running.end()


def database(server: PostgresContainer) -> str:
    """The URL of a database of a service's own."""
    name = f"bench_{next(_databases)}"
    with psycopg.connect(server.dsn, autocommit=True) as connection:
        connection.execute(f"CREATE DATABASE {name}".encode())
    return make_url(server.direct(server.dsn)).set(database=name).render_as_string(hide_password=False)


def bare(broker: RabbitMq, count: int) -> float:
    """Events a second of aio-pika alone."""
    wanted = (broker.direct(broker.amqp_url), str(count))
    with program("bare_receive", *wanted) as receiver, program("bare_send", *wanted) as sender:
        return count / (receiver.said()["ended_s"] - sender.said()["began_s"])


def telar(broker: RabbitMq, server: PostgresContainer, count: int, handler: str) -> float:
    """Events a second from a full outbox to the last one handled."""
    ours, theirs = database(server), database(server)
    wanted = (broker.direct(broker.amqp_url), str(count))
    with program("receive", theirs, *wanted, handler) as receiver, program("relay", ours, *wanted) as sender:
        rate = count / (receiver.said()["ended_s"] - sender.said()["began_s"])
    broker.ctl("delete_queue", "telar.receiver")  # what was not yet acknowledged would come to the next round
    with psycopg.connect(theirs) as connection:
        handled = connection.execute("SELECT count(*) FROM inbox").fetchone()
    assert handled == (count,), handled
    return rate


def latency(broker: RabbitMq, server: PostgresContainer) -> dict[str, float]:
    """Milliseconds from an event's time to its handling, at a steady rate."""
    wanted = (broker.direct(broker.amqp_url), str(STEADY_PER_SECOND * STEADY_S))
    with (
        program("receive", database(server), *wanted, "entry", str(STEADY_PER_SECOND)) as receiver,
        program("steady", database(server), *wanted, str(STEADY_PER_SECOND)),
    ):
        said = receiver.said()
    return {name: round(said[name], 1) for name in ("p50_ms", "p99_ms", "most_ms")}


def run(count: int = EVENTS, *, rounds: int = ROUNDS) -> dict[str, Any]:
    """The row: rates in turns, medians; then the latency."""
    missing = engine_available()
    if missing is not None:
        return {"missing": f"no Docker engine: {missing}"}
    by_hand, ours, writing = [], [], []
    with run_rabbitmq() as broker, run_postgresql() as server:
        for _ in range(rounds):
            by_hand.append(bare(broker, count))
            broker.ctl("delete_queue", "telar.bare")
            ours.append(telar(broker, server, count, "nothing"))
            writing.append(telar(broker, server, count, "entry"))
        late = latency(broker, server)
    share = statistics.median(ours) / statistics.median(by_hand)
    return {
        "events": count,
        "bare_per_s": round(statistics.median(by_hand)),
        "telar_per_s": round(statistics.median(ours)),
        "with_a_row_written_per_s": round(statistics.median(writing)),
        "share": round(share, 2),
        "share_wanted": SHARE_WANTED,
        f"at {STEADY_PER_SECOND}/s": late,
        "p99_allowed_ms": P99_ALLOWED_MS,
        "holds": share >= SHARE_WANTED and late["p99_ms"] <= P99_ALLOWED_MS,
    }


if __name__ == "__main__":
    print(json.dumps(run(int(sys.argv[1]) if len(sys.argv) > 1 else EVENTS), indent=2))
