"""What is printed: text that cannot play tricks on a terminal, colours only where somebody sees them, tables, JSON."""

from __future__ import annotations

import io
import json
import os
import re
import sys
from collections.abc import Sequence
from typing import Any, Final, TextIO

import click

# C0 but for tab and line feed, DEL, C1, line and paragraph separators, and what turns the direction of writing.
_UNSAFE: Final = re.compile(
    "[\x00-\x08\x0b-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028\u2029\u202a-\u202e\u2066-\u2069]"
)
_BREAKS: Final = re.compile(r"[\n\t]+")


def clean(text: str) -> str:
    """Return the text with every control character written out in hexadecimal; line feeds and tabs are kept."""
    return _UNSAFE.sub(_written, text.replace("\r\n", "\n"))


def one_line(text: str) -> str:
    """Return the text cleaned and on one line."""
    return clean(_BREAKS.sub(" ", text.replace("\r\n", "\n").strip()))


def shortened(text: str, characters_max: int) -> str:
    """Return the text on one line, cut off behind `characters_max` characters."""
    line = one_line(text[: characters_max * 4])
    return line if len(line) <= characters_max else line[: characters_max - 1] + "…"


def _written(match: re.Match[str]) -> str:
    code = ord(match[0])
    return f"\\x{code:02x}" if code < 0x100 else f"\\u{code:04x}"


def is_coloured(stream: TextIO) -> bool:
    """Return whether colours are wanted: a terminal reads, NO_COLOR is not set, and the terminal is not dumb."""
    return stream.isatty() and not os.environ.get("NO_COLOR") and os.environ.get("TERM") != "dumb"


def paint(text: str, **style: Any) -> str:
    """Return the text in a style of `click.style`, plain where stdout shows no colours."""
    return click.style(text, **style) if is_coloured(sys.stdout) else text


def say(text: str = "", *, end: str = "\n") -> None:
    """Write to stdout at once."""
    sys.stdout.write(text + end)
    sys.stdout.flush()


def complain(text: str) -> None:
    """Write a line to stderr, cleaned; nobody may be there to read it."""
    try:
        sys.stderr.write(clean(text) + "\n")
        sys.stderr.flush()
    except BrokenPipeError:
        pass


def say_json(value: Any, *, indent: int | None = 2) -> None:
    """Write JSON, on one line where `indent` is None; what a terminal would act upon is escaped."""
    is_plain = (sys.stdout.encoding or "").lower().replace("-", "") != "utf8"
    text = json.dumps(value, indent=indent, ensure_ascii=is_plain)
    say(_UNSAFE.sub(lambda match: f"\\u{ord(match[0]):04x}", text))


def say_table(headings: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """Write a table: fitted to a terminal, and in full, aligned with blanks, where none is."""
    cells = [[one_line(cell) for cell in row] for row in rows]
    if sys.stdout.isatty():
        _say_fitted(headings, cells)
        return
    from rich.cells import cell_len  # noqa: PLC0415 - 30 ms that only a table is worth

    table = [list(headings), *cells]
    widths = [max(cell_len(row[column]) for row in table) for column in range(len(headings))]
    for row in table:
        padded = (cell + " " * (width - cell_len(cell)) for cell, width in zip(row, widths, strict=True))
        say("  ".join(padded).rstrip())


def _say_fitted(headings: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    from rich.console import Console  # noqa: PLC0415 - the same
    from rich.table import Table  # noqa: PLC0415
    from rich.text import Text  # noqa: PLC0415

    table = Table(box=None, pad_edge=False, header_style="bold", padding=(0, 2, 0, 0))
    for heading in headings[:-1]:
        table.add_column(heading, no_wrap=True, overflow="ellipsis")
    table.add_column(headings[-1], overflow="fold")
    for row in rows:
        table.add_row(*(Text(cell) for cell in row))
    console = Console(
        file=sys.stdout,
        color_system="auto" if is_coloured(sys.stdout) else None,
        highlight=False,
        emoji=False,
    )
    console.print(table)


def moment(stamp: str | None) -> str:
    """Return an RFC 3339 time for people: seconds, UTC; `never` for None."""
    return "never" if stamp is None else stamp[:19].replace("T", " ")


def age(seconds: float) -> str:
    """Write a length of time for people: `0.3 s`, `12 s`, `5 min`, `3 h`, `2 d`."""
    for unit, length, until in (("s", 1.0, 120.0), ("min", 60.0, 7_200.0), ("h", 3_600.0, 172_800.0)):
        if seconds < until:
            return f"{seconds:.1f} s" if seconds < 10 else f"{int(seconds / length)} {unit}"
    return f"{int(seconds / 86_400)} d"


def stuck_in_words(stuck: dict[str, Any]) -> str:
    """Write one of the `stuck` of `runner.status` and `runner.tree`: who, since when, in what and where."""
    since = "" if stuck["age_s"] is None else f", for {age(stuck['age_s'])}"
    place = "" if stuck["at"] is None else f", at {one_line(stuck['at'])}"
    return f"{shortened(stuck['path'], 80)}{since} in {one_line(stuck['what'])}{place}"


def make_output_lenient() -> None:
    """Have characters that the locale cannot write come out escaped instead of ending the program."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")


def discard_output() -> None:
    """Point stdout at nothing, so that the interpreter's last flush does not fail on the closed pipe."""
    if isinstance(sys.stdout, io.TextIOWrapper):
        with open(os.devnull, "wb") as nothing:  # noqa: PTH123 - a device, not a path of ours
            os.dup2(nothing.fileno(), sys.stdout.fileno())
