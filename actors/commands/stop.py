"""`agent-runner stop`: end the daemon of a root."""

from __future__ import annotations

import click

from actors.commands.environment import not_running, typed, with_root
from actors.commands.options import checked_length, example
from actors.commands.output import say
from protocol.errors import AgentRunnerError
from store.keeper import find_keeper
from store.root import Root


@click.command("stop", epilog=example("stop", "stop --timeout 60"))
@click.option(
    "--timeout",
    "timeout_s",
    type=float,
    callback=checked_length,
    default=30.0,
    show_default=True,
    metavar="SECONDS",
    help="How long to wait for its end.",
)
@with_root
def command(root: Root, *, timeout_s: float) -> None:
    """End the daemon that keeps the root, and wait until it has ended. Exits 3 where none runs.

    Running turns may go on for ten seconds; a second `stop` meanwhile cuts them off. What is cut off is recorded.
    """
    keeper = find_keeper(root)
    if keeper is None:
        raise not_running(root)
    if not keeper.end(timeout_s):
        raise AgentRunnerError(
            f"the daemon with pid {keeper.pid} has not ended within {timeout_s:g} s; `{typed(root, 'stop')}` once "
            f"more cuts its turns off, `{typed(root, 'logs')}` shows what it does"
        )
    say(f"Stopped the daemon of {root.path} (pid {keeper.pid}).")
