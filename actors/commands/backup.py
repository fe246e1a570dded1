"""`agent-runner backup`: everything that a root holds, in one file."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from actors.commands.environment import typed, with_root
from actors.commands.options import example, json_option
from actors.commands.output import complain, one_line, paint, say, say_json
from actors.commands.progress import progress
from store.archive import Manifest
from store.backup import Backup, make_backup
from store.root import Root

LEFT_OUT_SHOWN = 5


@click.command(
    "backup", epilog=example("backup /mnt/backup/runner.tar", "backup --force --no-workspaces runner.tar")
)
@click.argument("out", type=click.Path(path_type=Path))
@click.option("--force", is_flag=True, help="Replace OUT where it exists.")
@click.option("--secrets", is_flag=True, help="Take the operator's token and the sessions' key with it.")
@click.option(
    "--workspaces/--no-workspaces",
    default=True,
    help="Take the files of agents and users with it (the default).",
)
@json_option
@with_root
def command(root: Root, /, *, out: Path, force: bool, secrets: bool, workspaces: bool, as_json: bool) -> None:
    """Write the root's database and files to the file OUT, while the daemon runs or not.

    The database is as of one moment. The copy is verified before OUT is there. What is in it is everything that was
    said: keep it as you keep the root. Never in it: the log, and without --secrets the operator's token.
    """
    with progress() as tell:
        made = make_backup(root, out, force=force, secrets=secrets, workspaces=workspaces, tell=tell)
    if as_json:
        say_json(_record(made))
        return
    say(
        paint("ok", fg="green")
        + f": {root.path} is in {made.path} ({made.bytes:,} bytes), read back and verified"
    )
    for name, value in contents(made.manifest, made.fingerprint):
        say(f"  {name:<13}{value}")
    if made.left_out:
        shown = ", ".join(map(one_line, made.left_out[:LEFT_OUT_SHOWN]))
        more = (
            f" and {len(made.left_out) - LEFT_OUT_SHOWN} more" if len(made.left_out) > LEFT_OUT_SHOWN else ""
        )
        complain(f"left out, because they are no plain files or lead elsewhere: {shown}{more}")
    say(f"Restore it with `{typed(root, f'restore {made.path}')}`, into another root with --root.")


def contents(manifest: Manifest, fingerprint: str) -> list[tuple[str, str]]:
    """Return what a person wants to know of a backup, line by line."""
    files = sum(member.kind == "file" for member in manifest.members.values()) - 1
    what = "platform/ and workspaces/" if manifest.has_workspaces else "platform/; no workspaces"
    last = "" if manifest.last_cid is None else f", the last {manifest.last_cid}"
    return [
        ("made", f"{manifest.made_at[:19].replace('T', ' ')} UTC, by version {one_line(manifest.program)}"),
        ("ledger", f"{manifest.entries:,} entries{last}"),
        ("schema", f"version {manifest.schema_version}"),
        ("files", f"{files:,} of {what}"),
        ("secrets", "the operator's token and the sessions' key" if manifest.has_secrets else "none"),
        ("fingerprint", fingerprint),
    ]


def manifest_record(manifest: Manifest, fingerprint: str) -> dict[str, Any]:
    """Return what `--json` says of a backup."""
    return {
        "fingerprint": fingerprint,
        "made_at": manifest.made_at,
        "program": manifest.program,
        "schema_version": manifest.schema_version,
        "entries": manifest.entries,
        "last_cid": manifest.last_cid,
        "files": sum(member.kind == "file" for member in manifest.members.values()) - 1,
        "workspaces": manifest.has_workspaces,
        "secrets": manifest.has_secrets,
    }


def _record(made: Backup) -> dict[str, Any]:
    return {
        "path": str(made.path),
        "bytes": made.bytes,
        **manifest_record(made.manifest, made.fingerprint),
        "left_out": list(made.left_out),
    }
