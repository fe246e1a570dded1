"""`agent-runner sessions`: the conversations that there are, and closing one; list and show also while it is down."""

from __future__ import annotations

from typing import Any, Final

import apsw
import click

from actors.commands.calls import ask
from actors.commands.environment import open_store, say_never_ran, with_root
from actors.commands.options import (
    checked_text,
    example,
    json_option,
    keep_root,
    limit_option,
    root_parameter,
)
from actors.commands.output import moment, one_line, paint, say, say_json, say_table, shortened
from protocol.acting import session_key_of
from protocol.errors import AgentRunnerError
from store.figures import SessionSummary, summarise_sessions
from store.keeper import find_keeper
from store.root import Root
from store.sessions import SessionRow, TurnRow, find_session, turns_of

INPUT: Final = ("input_tokens", "cache_creation_input_tokens", "cache_read_input_tokens")
"""What counts as input of a turn."""


@click.group(
    "sessions", params=[root_parameter()], epilog=example("sessions list", "sessions show calli:cli:local")
)
@click.pass_context
def command(ctx: click.Context, root: str | None) -> None:
    """List the sessions, show one with its turns, or close one."""
    keep_root(ctx, root)


@command.command("list", epilog=example("sessions list --state open"))
@click.option(
    "--state", type=click.Choice(["open", "idle", "running", "closed"]), help="Only sessions in this state."
)
@click.option("--agent", metavar="ID", callback=checked_text, help="Only sessions with this agent.")
@limit_option(100)
@json_option
@with_root
def list_command(root: Root, *, state: str | None, agent: str | None, limit: int, as_json: bool) -> None:
    """List sessions, the last active first."""
    database = open_store(root)
    is_down = find_keeper(root) is None
    if is_down and state == "idle":
        state = "open"
    found: list[SessionSummary] = []
    if database is not None and not (is_down and state == "running"):
        found = summarise_sessions(database, state=state, agent=agent, limit=limit)
    if as_json:
        say_json([_record(one, is_down=is_down) for one in found])
        return
    if database is None:
        say_never_ran(root, "so there are no sessions")
    say_table(
        ("KEY", "STATE", "MODE", "OWNER", "TURNS", "LAST ACTIVITY (UTC)"),
        [
            (
                one.row.session_key,
                _state(one.row, is_down=is_down),
                one.row.mode,
                one.row.owner,
                str(one.turns),
                moment(one.row.last_activity),
            )
            for one in found
        ],
    )


@command.command("show", epilog=example("sessions show calli:cli:local"))
@click.argument("key", metavar="KEY", callback=checked_text)
@limit_option(20)
@json_option
@with_root
def show_command(root: Root, *, key: str, limit: int, as_json: bool) -> None:
    """Show one session and its turns: how each ended, and what it spent. The words are in `history show`."""
    database, row = require_session(root, key)
    turns = turns_of(database, row.id)
    summary = SessionSummary(row, len(turns))
    is_down = find_keeper(root) is None
    shown = turns[-limit:]
    if as_json:
        say_json({**_record(summary, is_down=is_down), "turns": [_turn_record(turn) for turn in shown]})
        return
    for name, value in _record(summary, is_down=is_down).items():
        say(f"{name:<18}{'none' if value is None else one_line(str(value))}")
    say()
    say_table(
        ("TURN", "ID", "STATUS", "ENDED BY", "BEGAN (UTC)", "TOKENS IN", "OUT"),
        [
            (
                str(turn.seq),
                turn.id[:12],
                turn.status,
                turn.stop_reason or "",
                moment(turn.started_at),
                str(_tokens_in(turn)),
                str((turn.usage or {}).get("output_tokens", 0)),
            )
            for turn in shown
        ],
    )
    if len(turns) > limit:
        say(paint(f"the last {limit} of {len(turns)} turns; --limit shows more", dim=True))


@command.command("close", epilog=example("sessions close ann:ws:7d1e"))
@click.argument("key", metavar="KEY", callback=checked_text)
@click.option("--reason", callback=checked_text, help="What the ledger says of it.")
@with_root
def close_command(root: Root, *, key: str, reason: str | None) -> None:
    """Close a session: its running turn is cancelled, what waits is refused. Opening it again goes on with it."""
    params: dict[str, Any] = {"session_key": key}
    if reason is not None:
        params["reason"] = reason
    ask(root, "session.close", params)
    say(f"closed {one_line(key)}")


def require_session(root: Root, key: str) -> tuple[apsw.Connection, SessionRow]:
    """Return the store and the session of a key, or of the agent of that name; raises AgentRunnerError."""
    database = open_store(root)
    row = None
    if database is not None:
        row = find_session(database, key) or find_session(database, session_key_of(key))
    if database is None or row is None:
        raise AgentRunnerError(
            f"there is no session {shortened(key, 200)!r}; `agent-runner sessions list` names those that there are"
        )
    return database, row


def _state(row: SessionRow, *, is_down: bool) -> str:
    # Nothing runs without a daemon: what was cut off becomes idle when the next one starts.
    return "idle" if is_down and row.state == "running" else row.state


def _tokens_in(turn: TurnRow) -> int:
    return sum((turn.usage or {}).get(name, 0) for name in INPUT)


def _record(summary: SessionSummary, *, is_down: bool) -> dict[str, Any]:
    row = summary.row
    return {
        "session_key": row.session_key,
        "session_id": row.id,
        "agent_id": row.agent_id,
        "owner": row.owner,
        "state": _state(row, is_down=is_down),
        "mode": row.mode,
        "backend": row.backend,
        "model": row.model,
        "turns": summary.turns,
        "last_activity": row.last_activity,
        "created_at": row.created_at,
    }


def _turn_record(turn: TurnRow) -> dict[str, Any]:
    return {
        "id": turn.id,
        "seq": turn.seq,
        "status": turn.status,
        "stop_reason": turn.stop_reason,
        "started_at": turn.started_at,
        "completed_at": turn.completed_at,
        "usage": turn.usage,
        "cid": turn.cid,
    }
