"""What the commands have in common on the command line: --root, --json, and values that are checked."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, Final, TypeVar

import click

_ROOT: Final = "actors.commands.root"

Decorated = TypeVar("Decorated", bound=Callable[..., Any])


def checked_text(_ctx: click.Context, _parameter: click.Parameter, value: str | None) -> str | None:
    """Return the text of a parameter; a usage error where the shell gave bytes that are not UTF-8."""
    try:
        (value or "").encode()
    except UnicodeEncodeError as error:
        raise click.BadParameter("this is not UTF-8 text") from error
    return value


def checked_length(_ctx: click.Context, _parameter: click.Parameter, value: float) -> float:
    """Return a length of time; a usage error where it is not above zero or has no end."""
    if not (value > 0 and math.isfinite(value)):
        raise click.BadParameter(f"{value} is not a number above zero")
    return value


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


json_option: Final = click.option("--json", "as_json", is_flag=True, help="Print JSON.")


def keep_root(ctx: click.Context, root: str | None) -> None:
    """Note a --root; the one that stands last on the command line counts."""
    if root is not None:
        ctx.meta[_ROOT] = root


def kept_root(ctx: click.Context) -> str | None:
    """Return the --root that was given, or None."""
    found: str | None = ctx.meta.get(_ROOT)
    return found
