"""`agent-runner ledger`: what was done, by whom, and whether the record is whole. Reads the database directly."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from typing import Any, Final

import apsw
import click
import msgspec

from actors.commands.environment import open_store, say_never_ran, typed, with_root
from actors.commands.exits import LEDGER_BROKEN
from actors.commands.options import (
    checked_moment,
    checked_text,
    example,
    json_option,
    keep_root,
    limit_option,
    root_parameter,
)
from actors.commands.output import moment, one_line, paint, say, say_json, say_table, shortened
from protocol.entry import QUALITIES, Entry
from protocol.errors import AgentRunnerError, LedgerError
from store.database import StorageError
from store.figures import LedgerFigures, database_bytes, ledger_figures
from store.ledger import Fault, Verification, count_entries, find_entry, read_entries, verify
from store.root import Root

HEADINGS: Final = ("SEQ", "TIME (UTC)", "QUALITY", "ACTOR", "CID", "WHAT")
LOOK_AGAIN_S: Final = 0.5


@click.group("ledger", params=[root_parameter()], epilog=example("ledger show --limit 50", "ledger verify"))
@click.pass_context
def command(ctx: click.Context, root: str | None) -> None:
    """Read and verify the ledger."""
    keep_root(ctx, root)


@command.command(
    "show",
    epilog=example(
        "ledger show --session calli:cli:local --quality tool_call",
        "ledger show --verdict blocked --since 2h --follow",
        "ledger show --stats",
        "ledger show 3f9a",
    ),
)
@click.argument("cid", required=False, callback=checked_text)
@click.option("--session", metavar="KEY", callback=checked_text, help="Only entries of this session.")
@click.option("--quality", type=click.Choice(sorted(QUALITIES)), help="Only entries of this kind.")
@click.option("--actor", metavar="ID", callback=checked_text, help="Only what this identity did.")
@click.option(
    "--tool", metavar="NAME", callback=checked_text, help="Only calls, results and verdicts of a tool."
)
@click.option("--verdict", type=click.Choice(["allowed", "blocked"]), help="Only verdicts that say this.")
@click.option(
    "--since", metavar="TIME", callback=checked_moment, help="From then on: 2026-01-31T06:00, 90m, 7d."
)
@click.option("--until", metavar="TIME", callback=checked_moment, help="Before then; a day counts whole.")
@limit_option(20)
@click.option("-f", "--follow", is_flag=True, help="Go on with what comes, until Ctrl-C.")
@click.option("--stats", is_flag=True, help="Count the whole ledger instead: by quality, actor and verdict.")
@json_option
@with_root
def show_command(
    root: Root,
    /,
    *,
    cid: str | None,
    limit: int,
    follow: bool,
    stats: bool,
    as_json: bool,
    **filters: Any,
) -> None:
    """Show entries, the newest at the bottom; with CID (or how it begins) that one entry, whole.

    With --follow, --json gives one entry a line.
    """
    database = open_store(root)
    if cid is not None:
        say_json(msgspec.to_builtins(_one(database, cid)))
    elif stats:
        _say_figures(root, database, as_json=as_json)
    elif follow:
        _follow(root, database, limit, filters, as_json=as_json)
    else:
        found = [] if database is None else _newest(database, limit, filters)
        if as_json:
            say_json([msgspec.to_builtins(entry) for _, entry in found])
            return
        if database is None:
            _say_empty(root)
        say_table(HEADINGS, [_row(seq, entry) for seq, entry in found])


def _newest(database: apsw.Connection, limit: int, filters: dict[str, Any]) -> list[tuple[int, Entry]]:
    with _readable():
        found = _read(database, filters, limit=limit, newest_first=True)
    found.reverse()
    return found


def _read(database: apsw.Connection, filters: dict[str, Any], **more: Any) -> list[tuple[int, Entry]]:
    renamed = {"entity_id" if name == "session" else name: value for name, value in filters.items()}
    return read_entries(database, **renamed, **more)


def _follow(
    root: Root,
    database: apsw.Connection | None,
    limit: int,
    filters: dict[str, Any],
    *,
    as_json: bool,
) -> None:
    """Write the newest entries and then each one that is added."""
    if database is None:
        raise AgentRunnerError(
            f"no daemon has run on {root.path} yet: there is nothing to follow; start one with `{typed(root, 'run')}`"
        )
    # Where the ledger ends is noted before it is read, so that nothing is passed over.
    after = count_entries(database)
    found = _newest(database, limit, filters)
    while True:
        for seq, entry in found:
            if as_json:
                say_json(msgspec.to_builtins(entry), indent=None)
            else:
                number, time_, quality, actor, short, what = _row(seq, entry)
                say(f"{number:>6}  {time_}  {quality:<17}  {one_line(actor):<12}  {short}  {what}")
            after = max(after, seq)
        time.sleep(LOOK_AGAIN_S)
        with _readable():
            found = _read(database, filters, after=after, limit=1000)


def _row(seq: int, entry: Entry) -> tuple[str, ...]:
    return str(seq), moment(entry.timestamp), entry.quality, entry.actor, entry.cid[:12], _what(entry)


def _say_figures(root: Root, database: apsw.Connection | None, *, as_json: bool) -> None:
    figures = LedgerFigures(0, None, None, {}, {}, {}) if database is None else ledger_figures(database)
    size = database_bytes(root.database)
    if as_json:
        say_json({**asdict(figures), "database_bytes": size})
        return
    if database is None:
        _say_empty(root)
    say(f"entries   {figures.entries:,}")
    say(f"first     {moment(figures.first)} UTC" if figures.first else "first     never")
    say(f"last      {moment(figures.last)} UTC" if figures.last else "last      never")
    say(f"database  {size:,} bytes")
    for heading, counts in (
        ("QUALITY", figures.by_quality),
        ("ACTOR", figures.by_actor),
        ("VERDICT", figures.by_verdict),
    ):
        if counts:
            say()
            say_table((heading, "ENTRIES"), [(name, f"{count:,}") for name, count in counts.items()])


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
    say_never_ran(root, "so the ledger is empty")
