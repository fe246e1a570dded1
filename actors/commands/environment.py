"""Where a command works: which root, which program, which version."""

from __future__ import annotations

import functools
import os
import shlex
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, Concatenate, ParamSpec, TypeVar

import apsw
import click
from platformdirs import user_data_path

from actors.commands.exits import NotRunningError
from actors.commands.options import keep_root, kept_root, root_option
from actors.commands.output import complain
from store.database import open_reader
from store.root import Root, RootError
from store.version import checkout

ROOT_VARIABLE = "AGENT_RUNNER_ROOT"

Given = ParamSpec("Given")
Result = TypeVar("Result")


def find_root(given: str | None = None) -> Root:
    """Return the root: `given`, else AGENT_RUNNER_ROOT, else the checkout, else the user's data folder."""
    named = given or os.environ.get(ROOT_VARIABLE)
    if named:
        return Root(Path(named).expanduser().absolute())
    return Root(checkout() or user_data_path("agent-runner", appauthor=False))


def with_root(function: Callable[Concatenate[Root, Given], Result]) -> Callable[..., Result]:
    """Give a command --root and call it with the root that is meant."""

    @root_option
    @click.pass_context
    @functools.wraps(function)
    def run(ctx: click.Context, /, *arguments: Any, root: str | None, **options: Any) -> Result:
        keep_root(ctx, root)
        return function(find_root(kept_root(ctx)), *arguments, **options)

    return run


def program() -> str:
    """Return how this program is called from here: what was typed, unless its plain name finds it."""
    called = Path(sys.argv[0])
    if called.name != "agent-runner":
        return f"{_short(Path(sys.executable))} -m actors.commands"
    found = shutil.which("agent-runner")
    if found is not None and called.exists() and Path(found).samefile(called):
        return "agent-runner"
    return _short(called)


def _short(path: Path) -> str:
    absolute, here = path.absolute(), Path.cwd()
    return shlex.quote(str(absolute.relative_to(here) if absolute.is_relative_to(here) else absolute))


def typed(root: Root, command: str) -> str:
    """Return the line to type for a command on this root, with --root where the root would not be found without."""
    chosen = "" if find_root() == root else f" --root {shlex.quote(str(root.path))}"
    return f"{program()}{chosen} {command}"


def not_running(root: Root) -> NotRunningError:
    """Return the error that says that no daemon keeps the root, and what to type."""
    return NotRunningError(f"no daemon keeps {root.path}; start it with `{typed(root, 'run')}`")


def say_never_ran(root: Root, what: str) -> None:
    """Say on stderr that no daemon has run on the root yet, and what that means: `so there is no mail`."""
    complain(f"no daemon has run on {root.path} yet, {what}; start one with `{typed(root, 'run')}`")


def open_store(root: Root) -> apsw.Connection | None:
    """Return the database for reading, or None where no daemon has made it yet.

    Raises RootError where there is no root at all, StorageError where the database cannot be read.
    """
    if root.restore_plan.exists():
        raise RootError(
            f"a restore of {root.path} was cut off; `{typed(root, 'run')}` finishes it, or `restore` once more"
        )
    if root.database.is_file():
        return open_reader(root.database)
    if not (root.platform.is_dir() or root.workspaces.is_dir()):
        raise RootError(
            f"{root.path} is not a root; lay it out with `{typed(root, 'init')}`, or name another with --root"
        )
    return None
