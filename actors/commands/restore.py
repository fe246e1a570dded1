"""`agent-runner restore`: let a root hold what a backup holds."""

from __future__ import annotations

from pathlib import Path

import click

from actors.commands.backup import contents, manifest_record
from actors.commands.environment import typed, with_root
from actors.commands.options import example, json_option
from actors.commands.output import complain, paint, say, say_json
from actors.commands.progress import progress
from store.restore import Inspected, inspect_backup, restore_backup
from store.root import Root


@click.command(
    "restore",
    epilog=example(
        "stop && agent-runner restore runner.tar",
        "--root ~/other restore runner.tar",
        "restore --check runner.tar",
    ),
)
@click.argument("file", type=click.Path(path_type=Path))
@click.option("--check", is_flag=True, help="Verify FILE and say what is in it; change nothing.")
@click.option(
    "--fingerprint",
    metavar="HEX",
    help="Restore only the backup that has this fingerprint, as `backup` said it.",
)
@json_option
@with_root
def command(root: Root, /, *, file: Path, check: bool, fingerprint: str | None, as_json: bool) -> None:
    """Let the root hold what the backup FILE holds; the daemon must be stopped.

    All of FILE is verified before anything is replaced, and what is replaced is kept aside. An older database is
    migrated, a newer one refused. After a crash in the middle, `run` or `restore` finishes what was begun.
    """
    if check:
        with progress() as tell:
            inspected = inspect_backup(file, fingerprint=fingerprint, tell=tell)
        if as_json:
            say_json({"ok": True, **manifest_record(inspected.manifest, inspected.fingerprint)})
            return
        say(paint("ok", fg="green") + f": {file} is a whole backup")
        _say_contents(inspected)
        return
    with progress() as tell:
        restored = restore_backup(root, file, fingerprint=fingerprint, tell=tell)
    inspected = restored.inspected
    if as_json:
        record = manifest_record(inspected.manifest, inspected.fingerprint)
        aside = None if restored.aside is None else str(restored.aside)
        say_json({"root": str(root.path), **record, "aside": aside, "warnings": list(inspected.warnings)})
        return
    say(paint("ok", fg="green") + f": {root.path} holds what was in {file}")
    _say_contents(inspected)
    if restored.aside is not None:
        say(f"What was there before is in {restored.aside}; remove it when you no longer need it.")
    if root.token_file in restored.made:
        say(f"A new operator's token is in {root.token_file}: the old one was not in the backup.")
    say(f"Start the daemon with `{typed(root, 'run')}`.")


def _say_contents(inspected: Inspected) -> None:
    for name, value in contents(inspected.manifest, inspected.fingerprint):
        say(f"  {name:<13}{value}")
    for warning in inspected.warnings:
        complain(f"the daemon will not start with this: {warning}")
