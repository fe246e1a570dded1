"""`agent-runner history`: what was said in a session, with tool calls and their results; also while it is down."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any, Final

import apsw
import click

from actors.commands.environment import with_root
from actors.commands.options import checked_text, example, json_option, keep_root, root_parameter
from actors.commands.output import clean, moment, one_line, paint, say, say_json, shortened
from actors.commands.sessions import require_session
from protocol.errors import AgentRunnerError
from store.root import Root
from store.sessions import HistoryRow, SessionRow, TurnRow, history_of_turn, turns_of

INPUT_CHARACTERS_MAX: Final = 300
RESULT_LINES_MAX: Final = 12


@click.group("history", params=[root_parameter()], epilog=example("history show calli:cli:local"))
@click.pass_context
def command(ctx: click.Context, root: str | None) -> None:
    """Read what was said in a session."""
    keep_root(ctx, root)


@command.command("show", epilog=example("history show calli --limit 3", "history show calli --turn 4 --full"))
@click.argument("session", metavar="SESSION", callback=checked_text)
@click.option(
    "--turn", metavar="ID", callback=checked_text, help="Only this turn: its number, or how its id begins."
)
@click.option(
    "--limit", type=click.IntRange(min=1), default=10, show_default=True, help="The newest so many turns."
)
@click.option("--full", is_flag=True, help="Shorten neither tool calls nor their results.")
@json_option
@with_root
def show_command(
    root: Root, *, session: str, turn: str | None, limit: int, full: bool, as_json: bool
) -> None:
    """Show the turns of SESSION (its key, or an agent's id for the agent's own), the newest at the bottom."""
    database, row = require_session(root, session)
    turns = turns_of(database, row.id)
    shown = turns[-limit:] if turn is None else [_one(turns, turn, row)]
    if as_json:
        say_json([_record(database, one) for one in shown])
        return
    if len(turns) > len(shown) and turn is None:
        say(paint(f"the last {len(shown)} of {len(turns)} turns; --limit shows more", dim=True))
    for one in shown:
        _say_turn(one, history_of_turn(database, one.id), row, full=full)


def _one(turns: list[TurnRow], wanted: str, session: SessionRow) -> TurnRow:
    found = [one for one in turns if str(one.seq) == wanted]
    found = found or [one for one in turns if one.id.startswith(wanted.lower())]
    if len(found) != 1:
        raise AgentRunnerError(
            f"no turn, or more than one, of {one_line(session.session_key)} is {shortened(wanted, 80)!r}; "
            f"`agent-runner sessions show {one_line(session.session_key)}` names them"
        )
    return found[0]


def _record(database: apsw.Connection, turn: TurnRow) -> dict[str, Any]:
    return {
        "turn_id": turn.id,
        "seq": turn.seq,
        "status": turn.status,
        "stop_reason": turn.stop_reason,
        "started_at": turn.started_at,
        "messages": [
            {"seq": row.seq, "role": row.role, "content": row.content, "created_at": row.created_at}
            for row in history_of_turn(database, turn.id)
        ],
    }


def _say_turn(turn: TurnRow, rows: list[HistoryRow], session: SessionRow, *, full: bool) -> None:
    ended = turn.status if turn.stop_reason in (None, "end_turn") else f"{turn.status}, {turn.stop_reason}"
    say(
        paint(f"turn {turn.seq}  {moment(turn.started_at)} UTC  {one_line(ended)}  {turn.id[:12]}", bold=True)
    )
    for row in rows:
        speaker = one_line(session.agent_id) if row.role == "assistant" else "user"
        for line in _lines(row.content, speaker, full=full):
            say(f"  {line}".rstrip())
    say()


def _lines(content: Any, speaker: str, *, full: bool) -> Iterator[str]:
    """Yield a message as a person reads it: who speaks before the text, calls and results as in `chat`."""
    blocks = [{"type": "text", "text": content}] if isinstance(content, str) else content
    for block in blocks:
        match block.get("type"):
            case "text":
                first, *others = clean(block["text"]).strip("\n").splitlines() or [""]
                yield f"{paint(speaker, fg='green')}: {first}"
                yield from others
            case "thinking":
                yield from (paint(f"~ {line}", dim=True) for line in clean(block["thinking"]).splitlines())
            case "tool_use":
                written = json.dumps(block["input"], ensure_ascii=False)
                shown = one_line(written) if full else shortened(written, INPUT_CHARACTERS_MAX)
                yield f"{paint('tool', fg='cyan')} {paint(one_line(block['name']), bold=True)} {shown}"
            case "tool_result":
                yield from _result_lines(block, full=full)
            case kind:
                yield paint(f"[{one_line(str(kind))}]", dim=True)


def _result_lines(block: dict[str, Any], *, full: bool) -> Iterator[str]:
    style: dict[str, Any] = {"fg": "red"} if block.get("is_error") else {"dim": True}
    content = block.get("content", "")
    text = content if isinstance(content, str) else "\n".join(_text_of(one) for one in content)
    lines = clean(text).splitlines()
    shown = lines if full else lines[:RESULT_LINES_MAX]
    yield from (paint(f"| {line}", **style) for line in shown)
    if len(lines) > len(shown):
        yield paint(f"| … ({len(lines)} lines; --full shows all)", **style)


def _text_of(block: dict[str, Any]) -> str:
    return str(block["text"]) if block.get("type") == "text" else f"[{block.get('type')}]"
