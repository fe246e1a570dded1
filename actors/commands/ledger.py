"""`agent-runner ledger`: what was done, by whom, and whether the record is whole. Reads the database directly."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import apsw
import click
import msgspec

from actors.commands.environment import open_store, typed, with_root
from actors.commands.exits import LEDGER_BROKEN
from actors.commands.options import checked_text, example, json_option, keep_root, root_parameter
from actors.commands.output import complain, moment, one_line, paint, say, say_json, say_table, shortened
from protocol.entry import QUALITIES, Entry
from protocol.errors import AgentRunnerError, LedgerError
from store.database import StorageError
from store.ledger import Fault, Verification, find_entry, read_entries, verify
from store.root import Root


@click.group("ledger", params=[root_parameter()], epilog=example("ledger show --limit 50", "ledger verify"))
@click.pass_context
def command(ctx: click.Context, root: str | None) -> None:
    """Read and verify the ledger."""
    keep_root(ctx, root)


@command.command(
    "show", epilog=example("ledger show --session calli:cli:local --quality tool_call", "ledger show 3f9a")
)
@click.argument("cid", required=False, callback=checked_text)
@click.option("--session", metavar="KEY", callback=checked_text, help="Only entries of this session.")
@click.option("--quality", type=click.Choice(sorted(QUALITIES)), help="Only entries of this kind.")
@click.option(
    "--limit", type=click.IntRange(min=1), default=20, show_default=True, help="The newest so many."
)
@json_option
@with_root
def show_command(
    root: Root, *, cid: str | None, session: str | None, quality: str | None, limit: int, as_json: bool
) -> None:
    """Show entries, the newest at the bottom; with CID (or how it begins) that one entry, whole."""
    database = open_store(root)
    if cid is not None:
        say_json(msgspec.to_builtins(_one(database, cid)))
        return
    found: list[tuple[int, Entry]] = []
    if database is not None:
        with _readable():
            found = read_entries(database, entity_id=session, quality=quality, limit=limit, newest_first=True)
    found.reverse()
    if as_json:
        say_json([msgspec.to_builtins(entry) for _, entry in found])
        return
    if database is None:
        _say_empty(root)
    say_table(
        ("SEQ", "TIME (UTC)", "QUALITY", "ACTOR", "CID", "WHAT"),
        [
            (str(seq), moment(entry.timestamp), entry.quality, entry.actor, entry.cid[:12], _what(entry))
            for seq, entry in found
        ],
    )


@contextmanager
def _readable() -> Iterator[None]:
    """Turn a row whose JSON cannot be read into a LedgerError."""
    try:
        yield
    except (ValueError, TypeError) as error:
        raise LedgerError(
            f"an entry cannot be read ({error}); `agent-runner ledger verify` names the first one that is wrong"
        ) from error


def _one(database: apsw.Connection | None, cid: str) -> Entry:
    with _readable():
        found = None if database is None else find_entry(database, cid.lower())
    if found is None:
        raise AgentRunnerError(f"no entry, or more than one, has a CID that begins with {one_line(cid)!r}")
    return found[1]


def _what(entry: Entry) -> str:
    """Return what a reader wants of an entry's payload, on one line."""
    # What is shown was not verified: a payload may be anything that is JSON.
    payload = entry.payload if isinstance(entry.payload, dict) else {}
    match entry.quality:
        case "policy_verdict":
            words = [payload.get("verdict"), payload.get("tool"), f"at the {payload.get('phase')}"]
            words += [] if payload.get("verdict") == "allowed" else [f"({payload.get('reason')})"]
        case "tool_call":
            words = [payload.get("tool"), f"by the {payload.get('executor')}"]
        case "tool_result":
            words = [payload.get("tool"), payload.get("outcome")]
        case "mailbox_inject":
            words = ["mail from", payload.get("sender")]
        case "session_lifecycle" | "configuration":
            words = [payload.get("event"), payload.get("reason") or payload.get("problem") or ""]
        case "turn":
            words = [payload.get("status"), payload.get("stop_reason") or ""]
        case _:
            words = []
    return shortened(f"{' '.join(map(str, words)).strip()} [{entry.entity_id}]", 160)


@command.command("verify", epilog=example("ledger verify --json"))
@json_option
@with_root
def verify_command(root: Root, *, as_json: bool) -> None:
    """Check every entry: its content against its CID, its parents, no gap. Exits 5 at the first that is wrong."""
    database, found = _verified(root)
    if as_json:
        say_json(_record(found))
    elif database is None and found.ok:
        _say_empty(root)
        say("ok: 0 entries checked")
    elif found.first_bad is None:
        say(paint("ok", fg="green") + f": {found.entries} entries checked")
    else:
        bad = found.first_bad
        say(
            paint("broken", fg="red", bold=True)
            + f" at entry {bad.seq} ({one_line(bad.cid) or 'no CID'}): {one_line(bad.problem)}; "
            f"{found.entries} entries before it are as they were written. Restore a backup."
        )
    if not found.ok:
        click.get_current_context().exit(LEDGER_BROKEN)


def _verified(root: Root) -> tuple[apsw.Connection | None, Verification]:
    """Return the database and what was found; a file that SQLite cannot read is a broken ledger."""
    try:
        database = open_store(root)
        return database, Verification(0, None) if database is None else verify(database)
    except apsw.Error as error:
        return None, Verification(0, Fault(0, "", f"the database cannot be read: {error}"))
    except StorageError as error:
        if not isinstance(error.__cause__, apsw.NotADBError | apsw.CorruptError):
            raise
        return None, Verification(0, Fault(0, "", str(error)))


def _record(found: Verification) -> dict[str, Any]:
    bad = found.first_bad
    return {
        "ok": found.ok,
        "entries": found.entries,
        "first_bad": None if bad is None else {"seq": bad.seq, "cid": bad.cid, "problem": bad.problem},
    }


def _say_empty(root: Root) -> None:
    complain(
        f"no daemon has run on {root.path} yet: the ledger is empty; start one with `{typed(root, 'run')}`"
    )
