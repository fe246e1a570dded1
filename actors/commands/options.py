"""What the commands have in common on the command line: --root, --json, and values that are checked."""

from __future__ import annotations

import datetime as dt
import math
import re
from collections.abc import Callable
from typing import Any, Final, TypeVar

import click

from store.clock import rfc3339, utc_now

PROGRAM: Final = "agent-runner"

COMPLETION_VARIABLE: Final = "_AGENT_RUNNER_COMPLETE"
"""What a shell's script sets when it asks this program what could stand here."""

_ROOT: Final = "actors.commands.root"

Decorated = TypeVar("Decorated", bound=Callable[..., Any])


def checked_text(_ctx: click.Context, _parameter: click.Parameter, value: str | None) -> str | None:
    """Return the text of a parameter; a usage error where the shell gave bytes that are not UTF-8."""
    try:
        (value or "").encode()
    except UnicodeEncodeError as error:
        raise click.BadParameter("this is not UTF-8 text") from error
    return value


def checked_texts(ctx: click.Context, parameter: click.Parameter, values: tuple[str, ...]) -> tuple[str, ...]:
    """Return the texts of a parameter that is given any number of times; like `checked_text`."""
    for value in values:
        checked_text(ctx, parameter, value)
    return values


def checked_length(_ctx: click.Context, _parameter: click.Parameter, value: float) -> float:
    """Return a length of time; a usage error where it is not above zero or has no end."""
    if not (value > 0 and math.isfinite(value)):
        raise click.BadParameter(f"{value} is not a number above zero")
    return value


def checked_pause(_ctx: click.Context, _parameter: click.Parameter, value: float) -> float:
    """Return a length of time that may be nothing; a usage error where it is below zero or has no end."""
    if not (value >= 0 and math.isfinite(value)):
        raise click.BadParameter(f"{value} is not a number, zero or above")
    return value


_AGO: Final = re.compile(r"(\d{1,6})([smhd])")
_UNITS: Final = {"s": "seconds", "m": "minutes", "h": "hours", "d": "days"}


def checked_moment(_ctx: click.Context, parameter: click.Parameter, value: str | None) -> str | None:
    """Return a moment as the store writes it: from RFC 3339, from a day, or from how long ago (`90m`, `2h`, `7d`).

    What has no zone is UTC. A day is its beginning, but for `until` its end.
    """
    if value is None:
        return None
    try:
        ago = _AGO.fullmatch(value.strip())
        if ago is not None:
            return rfc3339(utc_now() - dt.timedelta(**{_UNITS[ago[2]]: int(ago[1])}))
        moment = dt.datetime.fromisoformat(value.strip())
        if len(value.strip()) == len("2026-01-31") and parameter.name == "until":
            moment += dt.timedelta(days=1)
        moment = moment.replace(tzinfo=dt.UTC) if moment.tzinfo is None else moment.astimezone(dt.UTC)
    except (ValueError, OverflowError) as error:
        raise click.BadParameter(
            f"{value!r} is no time; write 2026-01-31, 2026-01-31T06:00, or how long ago: 30s, 90m, 2h, 7d"
        ) from error
    return rfc3339(moment)


def example(*lines: str) -> str:
    """Return the epilog that shows how a command is typed, its lines marked as not to be filled."""
    return "\n".join(
        ["\b", "Example:" if len(lines) == 1 else "Examples:", *(f"  agent-runner {line}" for line in lines)]
    )


def root_parameter() -> click.Option:
    """Return the --root option as it is accepted before and after the name of a command."""
    return click.Option(
        ["--root"],
        type=click.Path(file_okay=False),
        metavar="DIR",
        help="The root to use; else AGENT_RUNNER_ROOT, else this checkout, else the user's data folder.",
    )


def root_option(function: Decorated) -> Decorated:
    """Give a command --root; its function takes it as `root`."""
    return click.option(
        "--root",
        type=click.Path(file_okay=False),
        metavar="DIR",
        help="The root to use (see agent-runner --help).",
    )(function)


def limit_option(default: int) -> Callable[[Decorated], Decorated]:
    """Return the --limit of a list."""
    return click.option(
        "--limit", type=click.IntRange(min=1), default=default, show_default=True, help="The newest so many."
    )


json_option: Final = click.option("--json", "as_json", is_flag=True, help="Print JSON.")


def keep_root(ctx: click.Context, root: str | None) -> None:
    """Note a --root; the one that stands last on the command line counts."""
    if root is not None:
        ctx.meta[_ROOT] = root


def kept_root(ctx: click.Context) -> str | None:
    """Return the --root that was given, or None."""
    found: str | None = ctx.meta.get(_ROOT)
    return found
