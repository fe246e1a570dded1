"""The entry point: the table of commands, and what becomes of an error.

The modules of the commands are imported when their command is run, so that `agent-runner --help` is quick.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from importlib import import_module
from typing import Final

import click

from actors.commands.exits import FAILED, OK, exit_code_of, holds, report
from actors.commands.options import COMPLETION_VARIABLE, PROGRAM, example, keep_root, root_parameter
from actors.commands.output import complain, discard_output, make_output_lenient

COMMANDS: Final = {
    "init": "Lay out a root: platform/, workspaces/, the operator's token.",
    "run": "Run the daemon in the foreground.",
    "stop": "End the daemon.",
    "reload": "Have the daemon read its constitution, roster and mandates again.",
    "status": "Show the running daemon.",
    "tree": "Show what every actor of the running daemon does.",
    "chat": "Talk with an agent, or run one turn with -m.",
    "agents": "List the agents; show, freeze, thaw, retry or verify them.",
    "sessions": "List the sessions, show or close one.",
    "history": "Read what was said in a session.",
    "mail": "Send, list and read mail.",
    "board": "Read the board, or post a line.",
    "ledger": "Read, count and verify the ledger.",
    "usage": "Show the tokens that were spent.",
    "logs": "Show the daemon's log.",
    "backup": "Write everything that a root holds to one file.",
    "restore": "Let a root hold what a backup holds.",
    "doctor": "See whether the daemon can run here, and what to mend.",
    "completion": "Print the completion script of a shell.",
}
"""Each command and what `--help` says of it; the module of the same name beside this one holds it as `command`."""


class CommandTable(click.Group):
    """A group that knows its commands by name and imports the one that is run."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        """Return the names in the order in which a newcomer needs them."""
        del ctx
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """Import and return a command."""
        del ctx
        if cmd_name not in COMMANDS:
            return None
        found: click.Command = import_module(f"actors.commands.{cmd_name}").command
        return found

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Write the table, without importing anything for it."""
        del ctx
        with formatter.section("Commands"):
            formatter.write_dl(list(COMMANDS.items()))


def _show_version(ctx: click.Context, _parameter: click.Parameter, wanted: bool) -> None:
    if wanted and not ctx.resilient_parsing:
        from store.version import program_version  # noqa: PLC0415 - only here, and not free

        click.echo(f"agent-runner {program_version()}")
        ctx.exit()


@click.command(
    cls=CommandTable,
    context_settings={"help_option_names": ["-h", "--help"]},
    params=[root_parameter()],
    epilog=example("run", "chat calli -m 'who are you?'"),
)
@click.option(
    "--version",
    is_flag=True,
    is_eager=True,
    expose_value=False,
    callback=_show_version,
    help="Show the version and exit.",
)
@click.pass_context
def cli(ctx: click.Context, root: str | None) -> None:
    """Run AI agents under a constitution, and look at what they do.

    A command that reads takes --json. Exit codes: 0 ok, 1 failed, 2 usage, 3 not running, 5 ledger broken,
    78 bad configuration.
    """
    keep_root(ctx, root)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; return its exit code. `arguments` None means those of the process."""
    make_output_lenient()
    try:
        return _run(sys.argv[1:] if arguments is None else list(arguments))
    except BaseException as error:
        code = _exit_code(error)
        if code is None:
            raise
        return code


def _run(arguments: list[str]) -> int:
    asked = os.environ.get(COMPLETION_VARIABLE)
    if asked:
        # A shell asks what could stand here: see `completion`.
        from click.shell_completion import shell_complete  # noqa: PLC0415 - only here, and not free

        return shell_complete(cli, {}, PROGRAM, COMPLETION_VARIABLE, asked)
    try:
        with cli.make_context(PROGRAM, arguments) as ctx:
            cli.invoke(ctx)
        sys.stdout.flush()
    except click.exceptions.Exit as end:
        sys.stdout.flush()
        return end.exit_code
    return OK


def _exit_code(error: BaseException) -> int | None:
    """Tell a person what went wrong and return the exit code; None for a fault of this program."""
    if isinstance(error, click.ClickException):
        error.show()
        return error.exit_code
    if holds(error, BrokenPipeError):
        # Whoever read has read enough, as in `agent-runner ledger show | head -1`.
        discard_output()
        return OK
    if holds(error, KeyboardInterrupt) or isinstance(error, click.Abort):
        complain("interrupted")
        return FAILED
    code = exit_code_of(error)
    if code is not None:
        report(error)
    return code


if __name__ == "__main__":
    sys.exit(main())
