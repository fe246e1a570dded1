"""The log of the daemon: one line an event on stderr, for people on a terminal and as JSON for a collector."""

from __future__ import annotations

import logging
from contextlib import suppress
from typing import TextIO, cast

import structlog

from actors.commands.output import is_coloured


def log_to(stream: TextIO) -> None:
    """Have structlog write to a stream: readable lines on a terminal, where only warnings show, else JSON lines."""
    on_terminal = stream.isatty()
    renderer: structlog.typing.Processor = (
        structlog.dev.ConsoleRenderer(colors=is_coloured(stream))
        if on_terminal
        else structlog.processors.JSONRenderer()
    )
    formatting: list[structlog.typing.Processor] = (
        [] if on_terminal else [structlog.processors.format_exc_info]
    )
    structlog.configure(
        processors=[
            structlog.contextvars.merge_contextvars,
            structlog.processors.add_log_level,
            structlog.processors.TimeStamper(fmt="iso", utc=True),
            *formatting,
            renderer,
        ],
        wrapper_class=structlog.make_filtering_bound_logger(logging.WARNING if on_terminal else logging.INFO),
        logger_factory=structlog.PrintLoggerFactory(cast("TextIO", _Unfailing(stream))),
        cache_logger_on_first_use=False,
    )


class _Unfailing:
    """A stream that drops what it cannot write: a log on a full disk, or that nobody reads any more, stops no work."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream

    def write(self, text: str) -> int:
        with suppress(OSError):
            return self._stream.write(text)
        return len(text)

    def flush(self) -> None:
        with suppress(OSError):
            self._stream.flush()
