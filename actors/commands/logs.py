"""The log of the daemon: one line an event on stderr, for people on a terminal and as JSON for a collector."""

from __future__ import annotations

import logging
from typing import TextIO

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
        logger_factory=structlog.PrintLoggerFactory(stream),
        cache_logger_on_first_use=False,
    )
