"""`agent-runner completion`: the script that lets a shell complete what is typed."""

from __future__ import annotations

import click
from click.shell_completion import get_completion_class

from actors.commands.options import COMPLETION_VARIABLE, PROGRAM, example
from actors.commands.output import say
from protocol.errors import AgentRunnerError


@click.command(
    "completion",
    epilog=example(
        "completion bash >> ~/.bashrc",
        'completion zsh > "${fpath[1]}/_agent-runner"',
        "completion fish > ~/.config/fish/completions/agent-runner.fish",
    ),
)
@click.argument("shell", type=click.Choice(["bash", "zsh", "fish"]))
@click.pass_context
def command(ctx: click.Context, shell: str) -> None:
    """Print the script that completes commands and options in SHELL."""
    found = get_completion_class(shell)
    if found is None:
        raise AgentRunnerError(f"no completion for {shell} is known; bash, zsh and fish are")
    root = ctx.find_root().command
    say(found(root, {}, PROGRAM, COMPLETION_VARIABLE).source())
