"""Carries every log line of the process to the gateway's live stream, over the bus."""

from contextlib import AsyncExitStack

from libs.common.bus import Bus
from libs.common.logging import LOG_CHANNEL, LogPipeline


def share_logs(stack: AsyncExitStack, pipeline: LogPipeline, bus: Bus) -> None:
    """Broadcast log lines until the stack is left; lines are dropped while the bus is away."""

    def sink(line: bytes) -> None:
        bus.broadcast(LOG_CHANNEL, line)

    pipeline.add_sink(sink)
    stack.callback(pipeline.remove_sink, sink)
