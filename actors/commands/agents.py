"""`agent-runner agents`: who is known here, and how each agent is; also while the daemon is down."""

from __future__ import annotations

import difflib
from dataclasses import asdict
from typing import Any

import click
import trio

from actors.commands.calls import ask, connect_to
from actors.commands.environment import open_store, with_root
from actors.commands.exits import NotRunningError
from actors.commands.options import (
    checked_text,
    checked_texts,
    example,
    json_option,
    keep_root,
    root_parameter,
)
from actors.commands.output import clean, moment, one_line, paint, say, say_json, say_table, shortened
from actors.overview import list_agents
from actors.verification import Verified, verify_agents
from protocol.acting import session_key_of
from protocol.errors import AgentRunnerError
from protocol.roster import Roster
from store.clock import StrictClock
from store.content import ROSTER, Content, find_platform, load_content
from store.root import Root, checked_platform
from store.roster_file import State, set_state
from store.sessions import find_session, turns_of

FIELDS = ("id", "role", "kind", "state", "session_state", "unread", "last_wake", "restarts", "model")
"""What `agents list --json` has of each identity."""


@click.group(
    "agents", params=[root_parameter()], epilog=example("agents list", "agents show reed", "agents verify")
)
@click.pass_context
def command(ctx: click.Context, root: str | None) -> None:
    """List the agents, show, freeze, thaw, retry or verify them."""
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


@command.command("freeze", epilog=example("agents freeze scout"))
@click.argument("agent_id", metavar="ID")
@with_root
def freeze_command(root: Root, *, agent_id: str) -> None:
    """Freeze an identity: it keeps its mail and takes no turns until `agents thaw`."""
    _set_state(root, agent_id, "frozen")


@command.command("thaw", epilog=example("agents thaw scout"))
@click.argument("agent_id", metavar="ID")
@with_root
def thaw_command(root: Root, *, agent_id: str) -> None:
    """Let a frozen identity live again."""
    _set_state(root, agent_id, "live")


def _set_state(root: Root, agent_id: str, state: State) -> None:
    """Write the state into the roster, and have a daemon that runs take it over at once."""
    platform = checked_platform(root)
    roster = load_roster(root)
    if roster.get(agent_id) is None:
        raise unknown_agent(agent_id, [identity.id for identity in roster.identities])
    if not set_state(platform, agent_id, state):
        say(f"{one_line(agent_id)} is {state} already; nothing was changed.")
        return
    try:
        outcome = ask(root, "runner.reload")
    except NotRunningError:
        say(
            f"{agent_id} is {state} in {platform / ROSTER}; no daemon runs, it counts from the next start on."
        )
        return
    if outcome["problem"] is not None:
        raise AgentRunnerError(
            f"{agent_id} is {state} in {platform / ROSTER}, but the daemon refuses the content: {outcome['problem']}"
        )
    say(f"{agent_id} is {state}.")


@command.command("retry", epilog=example("agents retry reed"))
@click.argument("agent_id", metavar="ID", callback=checked_text)
@with_root
def retry_command(root: Root, *, agent_id: str) -> None:
    """Let a parked agent try again: one that crashed, or whose wake-ups failed, so often that it was set aside."""
    known = [agent["id"] for agent in ask(root, "agents.list")["agents"]]
    if agent_id not in known:
        raise unknown_agent(agent_id, known)
    retried = ask(root, "agents.retry", {"agent_id": agent_id})
    name = one_line(agent_id)
    if retried["actor"] == "parked":
        say(f"{name} was parked: its actor had crashed too often. It has been started again.")
    elif retried["actor"] is not None:
        say(f"{name} had crashed and waited for its next start. It has been started at once.")
    if retried["wake_ups"]:
        say(f"{name} was parked: its wake-ups had failed too often. It looks at its mail again.")
    if not retried["retried"]:
        say(f"{name} was not parked; it looks at its mail now.")


@command.command(
    "verify", epilog=example("agents verify", "agents verify reed veda", "agents verify --batch 2")
)
@click.argument("agent_ids", metavar="[ID]...", nargs=-1, callback=checked_texts)
@click.option(
    "--batch",
    type=click.IntRange(1, 100),
    default=5,
    show_default=True,
    help="So many agents take their turn at once.",
)
@json_option
@with_root
def verify_command(root: Root, *, agent_ids: tuple[str, ...], batch: int, as_json: bool) -> None:
    """See whether agents work: their mandates load, and each takes one turn. Exits 1 where one does not.

    Without ID it is every standing agent. The turn runs in a session of its own, with no tools and no mail, and its
    tokens count as the agent's.
    """
    content = load_content(checked_platform(root))
    names = list(agent_ids) or [identity.id for identity in content.roster.standing()]
    for name in names:
        if content.roster.get(name) is None:
            raise unknown_agent(name, [identity.id for identity in content.roster.identities])
    outcomes = trio.run(_verify, root, names, batch)
    if as_json:
        say_json([{**asdict(one), "mandate": _mandate_of(content, one.agent)} for one in outcomes])
    else:
        say_table(
            ("ID", "MANDATE", "TURN", "SECONDS", "TOKENS IN", "OUT", "ANSWER"),
            [
                (
                    one.agent,
                    _mandate_of(content, one.agent),
                    "ok" if one.problem is None else "failed",
                    f"{one.seconds:.1f}",
                    str(one.input_tokens),
                    str(one.output_tokens),
                    shortened(one.answer if one.problem is None else one.problem, 120),
                )
                for one in outcomes
            ],
        )
    failed = [one.agent for one in outcomes if one.problem is not None]
    if failed:
        raise AgentRunnerError(
            f"{len(failed)} of {len(outcomes)} agents did not answer: {', '.join(failed)}; "
            "`agent-runner logs` has what went wrong"
        )
    if not as_json:
        say(paint("ok", fg="green") + f": {len(outcomes)} agents answered")


async def _verify(root: Root, names: list[str], batch: int) -> list[Verified]:
    async with connect_to(root) as client:
        return await verify_agents(client, names, at_once=batch)


def _mandate_of(content: Content, agent: str) -> str:
    identity = content.roster.get(agent)
    return "default" if identity is None or identity.mandate is None else identity.mandate


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
