"""`agent-runner run`: the daemon, in the foreground."""

from __future__ import annotations

import sys

import click
import trio

from actors.commands.environment import typed, with_root
from actors.commands.init import say_laid_out
from actors.commands.options import checked_length, checked_pause, example
from actors.commands.output import clean, is_coloured, paint, say
from actors.daemon import Ready, Settings, run_daemon
from actors.log import log_to
from store.root import Root, lay_out


@click.command("run", epilog=example("run --port 0 --heartbeat-interval 60"))
@click.option(
    "--bind",
    metavar="ADDRESS",
    default="127.0.0.1",
    show_default=True,
    envvar="AGENT_RUNNER_BIND",
    show_envvar=True,
    help="The address to listen on.",
)
@click.option(
    "--port",
    type=click.IntRange(0, 65535),
    default=18789,
    show_default=True,
    envvar="AGENT_RUNNER_PORT",
    show_envvar=True,
    help="The port to listen on; 0 picks a free one.",
)
@click.option(
    "--backend",
    type=click.Choice(["auto", "anthropic", "rehearsal"]),
    default="auto",
    show_default=True,
    envvar="AGENT_RUNNER_BACKEND",
    show_envvar=True,
    help="Who answers; auto is anthropic where ANTHROPIC_API_KEY is set, else rehearsal.",
)
@click.option(
    "--ttl",
    "ttl_min",
    type=float,
    callback=checked_length,
    metavar="MINUTES",
    default=30.0,
    show_default=True,
    envvar="AGENT_RUNNER_TTL",
    show_envvar=True,
    help="Close a session that was idle for so long.",
)
@click.option(
    "--passivate-after",
    "passivate_after_min",
    type=float,
    callback=checked_pause,
    metavar="MINUTES",
    default=5.0,
    show_default=True,
    envvar="AGENT_RUNNER_PASSIVATE_AFTER",
    show_envvar=True,
    help="Take a session out of memory that was idle for so long, until its next message; 0 never.",
)
@click.option(
    "--heartbeat-interval",
    "heartbeat_interval_s",
    type=float,
    callback=checked_length,
    metavar="SECONDS",
    default=300.0,
    show_default=True,
    envvar="AGENT_RUNNER_HEARTBEAT_INTERVAL",
    show_envvar=True,
    help="How often to look for mail that woke nobody.",
)
@click.option(
    "--no-heartbeat",
    is_flag=True,
    envvar="AGENT_RUNNER_NO_HEARTBEAT",
    show_envvar=True,
    help="Do not look; mail still wakes its reader at once.",
)
@click.option(
    "--resume-turns",
    is_flag=True,
    envvar="AGENT_RUNNER_RESUME_TURNS",
    show_envvar=True,
    help="Go on with the turns that a crash cut off, each in a turn of its own.",
)
@with_root
def command(
    root: Root,
    *,
    bind: str,
    port: int,
    backend: str,
    ttl_min: float,
    passivate_after_min: float,
    heartbeat_interval_s: float,
    no_heartbeat: bool,
    resume_turns: bool,
) -> None:
    """Run the daemon in the foreground, laying out the root first where that was not done yet.

    SIGTERM and Ctrl-C let running turns end, a second one does not wait; SIGHUP reads the constitution, the roster
    and the mandates again. The log goes to stderr (of a terminal only warnings) and to a file, see
    `agent-runner logs`.
    """
    if not root.token_file.exists():
        say_laid_out(root, lay_out(root))
    settings = Settings(
        root=root,
        bind=bind,
        port=port,
        backend=backend,
        ttl_min=ttl_min,
        passivate_after_min=passivate_after_min,
        heartbeat_interval_s=heartbeat_interval_s,
        heartbeat=not no_heartbeat,
        resume_turns=resume_turns,
    )
    with log_to(
        sys.stderr, file=root.log_file, on_terminal=sys.stderr.isatty(), coloured=is_coloured(sys.stderr)
    ):
        trio.run(run_daemon, settings, lambda ready: _greet(root, ready))
    say("Stopped.")


def _greet(root: Root, ready: Ready) -> None:
    """Say that the daemon is ready, on one line, and then what to type next."""
    # The daemon goes on without whoever started it: `agent-runner run | head -1` must not end it.
    try:
        model = "" if ready.model in (None, ready.backend) else f", model {clean(str(ready.model))}"
        say(
            paint("Ready", fg="green", bold=True)
            + f": {ready.url} (backend {ready.backend}{model}; {ready.agents} agents; pid {ready.pid})"
        )
        say(_greeting(root, ready))
    except BrokenPipeError:
        return


def _greeting(root: Root, ready: Ready) -> str:
    if ready.backend == "rehearsal":
        about = (
            "No key is needed: the rehearsal backend follows simple words and asks no model. With ANTHROPIC_API_KEY\n"
            "in the environment the agents think for themselves."
        )
    else:
        about = (
            f"Turns are sent to {ready.backend}; tokens_per_agent_day in platform/constitution.yaml bounds "
            "what each agent may spend."
        )
    lines = [
        ("talk with an agent", "chat calli -m 'who are you?'"),
        ("wake one by mail", "mail send reed -s hello -m 'list platform'"),
        ("see who lives here", "agents list"),
        ("check every act", "ledger verify"),
    ]
    width = max(len(words) for words, _ in lines)
    rows = "\n".join(f"  {words:<{width}}   {typed(root, line)}" for words, line in lines)
    return f"\n{about}\n\nIn another terminal, type\n\n{rows}\n\nCtrl-C ends the daemon.\n"
