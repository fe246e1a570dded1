"""`agent-runner agents`: who is known here, and how each agent is; also while the daemon is down."""

from __future__ import annotations

import difflib
from typing import Any

import click

from actors.commands.calls import ask
from actors.commands.environment import open_store, with_root
from actors.commands.exits import NotRunningError
from actors.commands.options import example, json_option, keep_root, root_parameter
from actors.commands.output import clean, moment, one_line, paint, say, say_json, say_table
from actors.overview import list_agents
from protocol.acting import session_key_of
from protocol.errors import AgentRunnerError
from protocol.roster import Roster
from store.clock import StrictClock
from store.content import find_platform, load_content
from store.root import Root
from store.sessions import find_session, turns_of

FIELDS = ("id", "role", "kind", "state", "session_state", "unread", "last_wake", "restarts", "model")
"""What `agents list --json` has of each identity."""


@click.group("agents", params=[root_parameter()], epilog=example("agents list", "agents show reed"))
@click.pass_context
def command(ctx: click.Context, root: str | None) -> None:
    """List the agents, or show one."""
    keep_root(ctx, root)


@command.command("list", epilog=example("agents list --json"))
@json_option
@with_root
def list_command(root: Root, *, as_json: bool) -> None:
    """List every identity of the roster: its state, its session, its unread mail, when it last woke."""
    agents, _ = _agents(root)
    if as_json:
        say_json([{field: agent[field] for field in FIELDS} for agent in agents])
        return
    say_table(
        ("ID", "ROLE", "STATE", "SESSION", "UNREAD", "LAST WAKE (UTC)"),
        [
            (
                agent["id"],
                agent["role"] or "",
                "parked" if agent["parked"] else agent["state"],
                agent["session_state"] or "none",
                str(agent["unread"]),
                moment(agent["last_wake"])[:-3] if agent["last_wake"] else "never",
            )
            for agent in agents
        ],
    )


@command.command("show", epilog=example("agents show reed"))
@click.argument("agent_id", metavar="ID")
@json_option
@with_root
def show_command(root: Root, *, agent_id: str, as_json: bool) -> None:
    """Show one identity: its place in the roster, its session, its mandate."""
    agents, is_live = _agents(root)
    found = next((agent for agent in agents if agent["id"] == agent_id), None)
    if found is None:
        raise unknown_agent(agent_id, [agent["id"] for agent in agents])
    shown = {**found, **_from_store(root, agent_id), **_from_content(root, agent_id)}
    if as_json:
        say_json(shown)
        return
    mandate = shown.pop("mandate_text")
    for name, value in shown.items():
        text = ", ".join(value) if isinstance(value, list) else "none" if value is None else str(value)
        say(f"{name:<18}{one_line(text)}")
    if not is_live:
        say(paint("(as stored; the daemon is not running)", dim=True))
    if mandate is not None:
        say("\n" + clean(mandate.strip()))


def unknown_agent(name: str, known: list[str]) -> AgentRunnerError:
    """Return the error for an id that the roster does not have, naming those that are near."""
    near = difflib.get_close_matches(name, known, n=3)
    hint = f"did you mean {' or '.join(near)}?" if near else "`agent-runner agents list` names all."
    return AgentRunnerError(f"{one_line(name)!r} is not in the roster; {hint}")


def _agents(root: Root) -> tuple[list[dict[str, Any]], bool]:
    """Return the agents as the daemon sees them, else as files and store have them, and whether it was the daemon."""
    try:
        agents: list[dict[str, Any]] = ask(root, "agents.list")["agents"]
    except NotRunningError:
        return _stored_agents(root), False
    return agents, True


def _stored_agents(root: Root) -> list[dict[str, Any]]:
    database = open_store(root)
    agents = list_agents(database, load_roster(root), StrictClock())
    for agent in agents:
        # Nothing runs without a daemon: what was cut off becomes idle when the next one starts.
        if agent["session_state"] == "running":
            agent["session_state"] = "idle"
    return agents


def load_roster(root: Root) -> Roster:
    """Return the roster of the root's files; raises ContentError for what does not load."""
    return load_content(find_platform(root.path)).roster


def _from_content(root: Root, agent_id: str) -> dict[str, Any]:
    content = load_content(find_platform(root.path))
    identity = content.roster.get(agent_id)
    return {
        "tags": [] if identity is None else list(identity.tags),
        "mandate": None if identity is None else identity.mandate,
        "mandate_text": content.mandates.get(agent_id),
    }


def _from_store(root: Root, agent_id: str) -> dict[str, Any]:
    database = open_store(root)
    key = session_key_of(agent_id)
    session = None if database is None else find_session(database, key)
    turns = [] if database is None or session is None else turns_of(database, session.id)
    return {
        "session_key": key,
        "session_id": None if session is None else session.id,
        "turns": len(turns),
        "last_turn": turns[-1].started_at if turns else None,
        "last_turn_status": turns[-1].status if turns else None,
    }
