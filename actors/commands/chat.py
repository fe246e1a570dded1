"""`agent-runner chat`: talk with an agent as the operator, in its session `<AGENT>:cli:local`."""

from __future__ import annotations

import difflib
import signal
import sys
from contextlib import suppress
from dataclasses import dataclass
from typing import Final

import click
import trio

from actors.client import Client, DisconnectedError, UnreachableError
from actors.commands.calls import connect_to
from actors.commands.environment import with_root
from actors.commands.exits import NotRunningError, report
from actors.commands.options import checked_text, example
from actors.commands.output import complain, one_line, paint, say
from actors.commands.transcript import Transcript
from protocol.acting import session_key_of
from protocol.errors import AgentRunnerError, RequestError
from store.root import Root

DEFAULT_AGENT = "calli"

RECONNECT_S: Final = 10.0
"""How long to look for the daemon again when the connection is lost in the middle of a turn."""

RECONNECT_INTERVAL_S: Final = 0.5


class LeftError(AgentRunnerError):
    """The person left while a turn was running."""

    def __init__(self) -> None:
        super().__init__("left before the turn ended; it was asked to stop")


@click.command("chat", epilog=example("chat calli -m 'read platform/index.md'", "chat"))
@click.argument("agent", default=DEFAULT_AGENT, callback=checked_text)
@click.option(
    "-m", "--message", callback=checked_text, metavar="TEXT", help="Run one turn with this message and exit."
)
@with_root
def command(root: Root, *, agent: str, message: str | None) -> None:
    """Talk with AGENT (calli unless you name one): text, thinking, tool calls and verdicts as they happen.

    Without -m, each line that you type is a turn. Ctrl-C stops the running turn, a second one leaves; so does the end
    of the input (Ctrl-D). Exits 1 when a turn ends in an error, 3 when no daemon runs.
    """
    if message is not None and not message.strip():
        raise click.BadParameter("must not be blank", param_hint="'-m'")
    trio.run(_open, root, agent)
    if message is None:
        _converse(root, agent)
    else:
        trio.run(_one_turn, root, agent, message)


def _converse(root: Root, agent: str) -> None:
    """Run a turn for each line that is typed; the error of a turn is told, and the talk goes on.

    Each turn has a connection of its own, so that a person may think as long as they like, and the daemon may be
    restarted meanwhile.
    """
    is_typed = sys.stdin.isatty()
    if is_typed:
        with suppress(ImportError):
            import readline  # noqa: F401, PLC0415 - importing it gives `input` its history; not every Python has it
        say(f"This is {one_line(agent)}. Ctrl-C stops a turn; Ctrl-D, or Ctrl-C once more, leaves.")
    failed: AgentRunnerError | None = None
    while (line := _read_line(is_typed=is_typed)) is not None:
        if not line.strip():
            continue
        try:
            trio.run(_one_turn, root, agent, line)
        except (RequestError, DisconnectedError) as error:
            report(error)
            failed = error
    if failed is not None and not is_typed:
        raise failed


def _read_line(*, is_typed: bool) -> str | None:
    """Return the next line, or None at the end of the input or when the person leaves."""
    try:
        return input("> ") if is_typed else sys.stdin.readline() or None
    except (EOFError, KeyboardInterrupt):
        say()
        return None


async def _open(root: Root, agent: str) -> None:
    async with connect_to(root) as client:
        await _init(client, agent)
        await _warn_of_stranger(client, agent)


async def _init(client: Client, agent: str) -> str:
    opened = await client.call("session.init", {"agent_id": agent, "session_key": session_key_of(agent)})
    return str(opened["session_key"])


async def _warn_of_stranger(client: Client, agent: str) -> None:
    """Say so where the roster does not know the name: a misspelt agent would be talked with as a stranger."""
    agents = (await client.call("agents.list"))["agents"]
    known = [one["id"] for one in agents if one["state"] != "dead"]
    if agent not in known:
        near = difflib.get_close_matches(agent, known, n=1)
        hint = f" Did you mean {near[0]}?" if near else ""
        complain(f"note: {one_line(agent)!r} is not in the roster and is trusted with nothing.{hint}")


async def _one_turn(root: Root, agent: str, message: str) -> None:
    """Run one turn and write it as it happens; raises RequestError for a turn that failed, LeftError."""
    turn = _Turn(Transcript(lambda text: say(text, end="")))
    try:
        outcome = await _connected(root, agent, turn, message)
        until = trio.current_time() + RECONNECT_S
        if isinstance(outcome, DisconnectedError) and turn.id is not None:
            complain(f"the connection is lost; looking for the daemon again for {RECONNECT_S:g} s")
        while isinstance(outcome, DisconnectedError) and turn.id is not None and trio.current_time() < until:
            await trio.sleep(RECONNECT_INTERVAL_S)
            # The turn goes on without us, or a daemon that starts again knows how it ended.
            with suppress(NotRunningError, UnreachableError):
                outcome = await _connected(root, agent, turn, message)
    finally:
        turn.transcript.end()
    if outcome is not None:
        raise outcome


@dataclass
class _Turn:
    """How much of a turn was written."""

    transcript: Transcript
    id: str | None = None
    next_seq: int = 0


async def _connected(root: Root, agent: str, turn: _Turn, message: str) -> AgentRunnerError | None:
    """Begin a turn, or go on with the one that was begun; return why it failed, or None."""
    outcome: AgentRunnerError | None = LeftError()
    async with connect_to(root) as client:
        key = await _init(client, agent)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(_stop_on_interrupt, client, key, nursery)
            outcome = await _write_turn(client, key, turn, message)
            nursery.cancel_scope.cancel()
    return outcome


async def _write_turn(client: Client, key: str, turn: _Turn, message: str) -> AgentRunnerError | None:
    """Write the events of a turn that were not written yet; return why it failed, or None."""
    if turn.id is None:
        reply = client.turn({"session_key": key, "message": message})
    else:
        reply = client.resume({"session_key": key, "turn_id": turn.id, "from_seq": turn.next_seq})
    try:
        async for event in reply:
            turn.id = event.get("turn_id", turn.id)
            turn.next_seq = event["seq"] + 1
            turn.transcript.take(event)
    except (RequestError, DisconnectedError) as error:
        return error
    return None


async def _stop_on_interrupt(client: Client, key: str, nursery: trio.Nursery) -> None:
    """Stop the turn at the first Ctrl-C and leave at the second."""
    with trio.open_signal_receiver(signal.SIGINT) as signals:
        await anext(signals)
        say(paint("\nstopping; Ctrl-C once more leaves", dim=True))
        nursery.start_soon(_cancel, client, key)
        await anext(signals)
        nursery.cancel_scope.cancel()


async def _cancel(client: Client, key: str) -> None:
    # Where the turn has ended by itself there is nothing left to cancel, and its own outcome is what counts.
    with suppress(RequestError, DisconnectedError):
        await client.call("session.cancel", {"session_key": key})
