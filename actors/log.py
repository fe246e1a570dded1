"""Where the daemon's log goes: stderr, and a file of JSON lines that is rotated by its size.

structlog is the front; the kernel's own logger (`actors.kernel`, standard library) comes out the same way. Both
outputs are written by a thread of their own: a terminal that is held, or a disk that stalls, does not stop the loop.
"""

from __future__ import annotations

import datetime as dt
import logging
import os
import queue
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from io import TextIOWrapper
from logging.handlers import QueueHandler, QueueListener, RotatingFileHandler
from pathlib import Path
from typing import Any, Final, TextIO

import structlog

from store.clock import rfc3339

FILE_BYTES_MAX: Final = 10 * 1024 * 1024
"""How long the log file grows before it is put aside."""

FILES_KEPT: Final = 5
"""How many older ones stay beside it, `agent-runner.log.1` the youngest."""

WAITING_MAX: Final = 10_000
"""So many lines wait for a slow output; the next ones are dropped and counted."""

OURS: Final = ("actors.kernel",)
"""Loggers of the standard library whose informations count too; of all others, libraries', only warnings do."""


class _Front(QueueHandler):
    """Hands records over as they are; what does not fit is dropped, and how much that was is said later."""

    def __init__(self, waiting: queue.Queue[logging.LogRecord]) -> None:
        super().__init__(waiting)
        self._waiting = waiting
        self._dropped = 0

    def prepare(self, record: logging.LogRecord) -> logging.LogRecord:
        """Return the record unchanged: it stays in this process, and the formatters want its fields."""
        return record

    def enqueue(self, record: logging.LogRecord) -> None:
        """Put the record, and before it what was dropped, without ever waiting."""
        try:
            if self._dropped:
                self._waiting.put_nowait(self._note())
                self._dropped = 0
            self._waiting.put_nowait(record)
        except queue.Full:
            self._dropped += 1

    def finish(self) -> None:
        """Say what was dropped last, behind all that waits."""
        if self._dropped:
            self._waiting.put(self._note())
            self._dropped = 0

    def _note(self) -> logging.LogRecord:
        words = f"{self._dropped} lines of the log were dropped: an output is too slow"
        return logging.LogRecord("log", logging.WARNING, __file__, 0, words, None, None)


class _Listener(QueueListener):
    """The thread that writes."""

    def __init__(self, waiting: queue.Queue[Any], *outputs: logging.Handler) -> None:
        super().__init__(waiting, *outputs, respect_handler_level=True)
        self._waiting = waiting

    def enqueue_sentinel(self) -> None:
        """Put what ends the thread (None, as QueueListener has it) behind all that waits, however much that is."""
        self._waiting.put(None)


class _Stream(logging.StreamHandler[TextIO]):
    """A stream that drops what it cannot write: a log that nobody reads any more, or on a full disk, stops no work."""

    def handleError(self, record: logging.LogRecord) -> None:  # noqa: N802 - the name that logging calls
        """Do nothing: there is no place left to tell it."""


class _LogFile(RotatingFileHandler):
    """The file, made when there is something to write; a disk that refuses is told of once, on stderr."""

    def __init__(self, path: Path) -> None:
        super().__init__(path, maxBytes=FILE_BYTES_MAX, backupCount=FILES_KEPT, encoding="utf-8", delay=True)
        self._has_failed = False
        self._is_told = False

    def _open(self) -> TextIOWrapper:
        path = Path(self.baseFilename)
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        handle = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o600)
        return TextIOWrapper(os.fdopen(handle, "ab"), encoding="utf-8", errors="backslashreplace")

    def emit(self, record: logging.LogRecord) -> None:
        """Write the record; after one that was written, the next failure is told again."""
        self._has_failed = False
        super().emit(record)
        self._is_told = self._is_told and self._has_failed

    def handleError(self, record: logging.LogRecord) -> None:  # noqa: N802 - the name that logging calls
        """Tell of the first failure in a row."""
        del record
        self._has_failed = True
        if not self._is_told:
            self._is_told = True
            with suppress(OSError):
                sys.stderr.write(
                    f"cannot write the log {self.baseFilename}: {sys.exc_info()[1]}; check free space and the "
                    "folder's owner and mode. The daemon goes on\n"
                )
                sys.stderr.flush()


def _stamp(_logger: Any, _method: str, event: structlog.typing.EventDict) -> structlog.typing.EventDict:
    """Add when a record of the standard library was made; give a stack that it carries structlog's name."""
    event["timestamp"] = rfc3339(dt.datetime.fromtimestamp(event["_record"].created, dt.UTC))
    if "stack_info" in event:
        event["stack"] = event.pop("stack_info")
    return event


def _logger(*names: str) -> logging.Logger:
    """Return the logger that a `structlog.get_logger(name)` writes to."""
    logger = logging.getLogger(names[0] if names else "agent-runner")
    logger.setLevel(logging.INFO)
    return logger


@contextmanager
def log_to(stream: TextIO, *, file: Path | None, on_terminal: bool, coloured: bool = False) -> Iterator[None]:
    """Log inside the block, to a stream and to a file.

    The file has JSON lines, the stream too, but on a terminal readable ones and only from warnings on. Leaving the
    block writes what still waits and takes the outputs away again.
    """
    own: list[structlog.typing.Processor] = [
        structlog.contextvars.merge_contextvars,
        structlog.stdlib.add_logger_name,
        structlog.stdlib.add_log_level,
    ]
    structlog.configure(
        processors=[
            structlog.stdlib.filter_by_level,
            *own,
            structlog.processors.TimeStamper(fmt="iso", utc=True),
            # Here and not in the thread that writes, which handles no exception.
            structlog.processors.format_exc_info,
            structlog.stdlib.ProcessorFormatter.wrap_for_formatter,
        ],
        wrapper_class=structlog.stdlib.BoundLogger,
        logger_factory=_logger,
        cache_logger_on_first_use=False,
    )
    outputs = _outputs(stream, file, [*own, _stamp], on_terminal=on_terminal, coloured=coloured)
    for name in OURS:
        _logger(name)
    waiting: queue.Queue[logging.LogRecord] = queue.Queue(WAITING_MAX)
    listener = _Listener(waiting, *outputs)
    front = _Front(waiting)
    top = logging.getLogger()
    top.addHandler(front)
    listener.start()
    try:
        yield
    finally:
        top.removeHandler(front)
        front.finish()
        listener.stop()
        for output in outputs:
            output.close()


def _outputs(
    stream: TextIO,
    file: Path | None,
    foreign: list[structlog.typing.Processor],
    *,
    on_terminal: bool,
    coloured: bool,
) -> list[logging.Handler]:
    """Return who writes the lines, each with its form."""

    def formatter(*last: structlog.typing.Processor) -> logging.Formatter:
        return structlog.stdlib.ProcessorFormatter(
            foreign_pre_chain=foreign,
            processors=[structlog.stdlib.ProcessorFormatter.remove_processors_meta, *last],
        )

    json_lines = (structlog.processors.format_exc_info, structlog.processors.JSONRenderer())
    plain = structlog.dev.ConsoleRenderer(colors=coloured, exception_formatter=structlog.dev.plain_traceback)
    seen = _Stream(stream)
    if on_terminal:
        seen.setLevel(logging.WARNING)
        seen.setFormatter(formatter(structlog.processors.format_exc_info, plain))
    else:
        seen.setFormatter(formatter(*json_lines))
    outputs: list[logging.Handler] = [seen]
    if file is not None:
        kept = _LogFile(file)
        kept.setFormatter(formatter(*json_lines))
        outputs.append(kept)
    return outputs
