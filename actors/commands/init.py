"""`agent-runner init`: lay out a root."""

from __future__ import annotations

from pathlib import Path

import click

from actors.commands.environment import find_root, typed
from actors.commands.options import example, keep_root, kept_root, root_option
from actors.commands.output import say
from store.content import load_content
from store.root import Root, lay_out


@click.command("init", epilog=example("init ~/my-runner"))
@click.argument("folder", metavar="[DIR]", required=False, type=click.Path(file_okay=False))
@root_option
@click.pass_context
def command(ctx: click.Context, folder: str | None, root: str | None) -> None:
    """Lay out a root in DIR (else --root, else where `run` would look) and check its content.

    Makes platform/ with the constitution, the roster and the mandates, workspaces/, and the operator's token (0600).
    What is there already is never overwritten.
    """
    keep_root(ctx, root)
    if folder is not None and kept_root(ctx) is not None:
        raise click.UsageError("give either DIR or --root, not both.", ctx)
    chosen = find_root(folder or kept_root(ctx))
    say_laid_out(chosen, lay_out(chosen))
    content = load_content(chosen.platform)
    say(
        f"{len(content.roster.identities)} identities, {len(content.constitution.tool_rules)} rules: all of it loads."
    )
    say(f"\nStart the daemon with\n\n    {typed(chosen, 'run')}\n")


def say_laid_out(root: Root, made: list[Path]) -> None:
    """Tell what was made in a root."""
    if not made:
        say(f"{root.path} is laid out already; nothing was changed.")
        return
    say(f"Laid out {root.path}:")
    for path in made:
        say(f"  {path.relative_to(root.path)}{'/' if path.is_dir() else ''}")
