"""`agent-runner logs`: what the daemon wrote into its log file; also while it is down."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from contextlib import closing
from typing import Any, Final

import click

from actors.commands.environment import typed, with_root
from actors.commands.options import example
from actors.commands.output import clean, complain, moment, one_line, paint, say
from store.log_files import LogReader
from store.root import Root

LOOK_AGAIN_S: Final = 0.25
_OWN: Final = frozenset({"timestamp", "level", "logger", "event", "exception", "stack"})
_STYLES: Final[dict[str, dict[str, Any]]] = {
    "warning": {"fg": "yellow"},
    "error": {"fg": "red"},
    "critical": {"fg": "red", "bold": True},
}


@click.command("logs", epilog=example("logs -n 100", "logs -f", "logs --json | grep wake"))
@click.option(
    "-f", "--follow", is_flag=True, help="Go on with what comes, also over a restart, until Ctrl-C."
)
@click.option(
    "-n", "--lines", type=click.IntRange(min=0), default=50, show_default=True, help="The last so many lines."
)
@click.option("--json", "as_json", is_flag=True, help="Print the JSON lines as they were written.")
@with_root
def command(root: Root, *, follow: bool, lines: int, as_json: bool) -> None:
    """Show the daemon's log, the newest line at the bottom."""
    with closing(LogReader(root.log_file)) as reader:
        found = reader.last(lines)
        if not found and lines and not root.log_file.exists():
            complain(
                f"there is no log at {root.log_file} yet; the daemon writes it, start one with `{typed(root, 'run')}`"
            )
        for line in found:
            _say_line(line, as_json=as_json)
        while follow:
            time.sleep(LOOK_AGAIN_S)
            for line in reader.added(from_the_start=True):
                _say_line(line, as_json=as_json)


def _say_line(line: str, *, as_json: bool) -> None:
    if as_json:
        say(clean(line))
        return
    for shown in _readable(line):
        say(shown)


def _readable(line: str) -> Iterator[str]:
    """Yield a line for people: when, how grave, who, what, and the rest as name=value; a traceback behind it."""
    try:
        record = json.loads(line)
    except ValueError:
        record = None
    if not isinstance(record, dict):
        yield clean(line)
        return
    level = str(record.get("level", ""))
    grave = paint(f"{one_line(level):<8}", **_STYLES.get(level, {"dim": True}))
    rest = " ".join(f"{one_line(name)}={_value(value)}" for name, value in record.items() if name not in _OWN)
    when = paint(moment(str(record.get("timestamp", ""))), dim=True)
    who, what = one_line(str(record.get("logger", ""))), one_line(str(record.get("event", "")))
    yield f"{when}  {grave}  {who:<12}  {what}  {rest}".rstrip()
    for name in ("exception", "stack"):
        yield from (f"    {text}" for text in clean(str(record.get(name) or "")).splitlines())


def _value(value: Any) -> str:
    text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
    return one_line(text) if text and " " not in text else json.dumps(one_line(text), ensure_ascii=False)
