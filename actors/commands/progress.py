"""A progress bar on a terminal, and silence where none is."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from actors.commands.output import is_coloured


@contextmanager
def progress() -> Iterator[Callable[[str, int, int], None]]:
    """Give what is to be told of progress: a word for the step, how many bytes are done, and how many there are."""
    if not sys.stderr.isatty():
        yield lambda _what, _done, _all: None
        return
    from rich.console import Console  # noqa: PLC0415 - only where somebody watches, and not free
    from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn  # noqa: PLC0415

    console = Console(
        file=sys.stderr,
        color_system="auto" if is_coloured(sys.stderr) else None,
        highlight=False,
        emoji=False,
    )
    columns = TextColumn("{task.description:<9}"), BarColumn(), DownloadColumn(), TimeRemainingColumn()
    with Progress(*columns, console=console, transient=True) as bar:
        steps = {}

        def tell(what: str, done: int, total: int) -> None:
            if what not in steps:
                steps[what] = bar.add_task(what, total=total)
            bar.update(steps[what], completed=done, total=total)

        yield tell
