"""`agent-runner board`: one line a post, read by everybody."""

from __future__ import annotations

import click

from actors.commands.calls import ask
from actors.commands.environment import open_store, say_never_ran, with_root
from actors.commands.options import checked_text, example, json_option, keep_root, root_parameter
from actors.commands.output import moment, one_line, paint, say, say_json
from store.board import last_posts
from store.root import Root


@click.group(
    "board", params=[root_parameter()], epilog=example("board show", "board post 'power cut at six'")
)
@click.pass_context
def command(ctx: click.Context, root: str | None) -> None:
    """Read the board, or post a line."""
    keep_root(ctx, root)


@command.command("show", epilog=example("board show --lines 50"))
@click.option("--lines", type=click.IntRange(min=1), default=20, show_default=True, help="The last so many.")
@json_option
@with_root
def show_command(root: Root, *, lines: int, as_json: bool) -> None:
    """Show the last lines, the newest at the bottom."""
    database = open_store(root)
    posts = [] if database is None else last_posts(database, lines)
    if as_json:
        say_json([{"agent": post.agent, "text": post.text, "posted_at": post.posted_at} for post in posts])
        return
    if database is None:
        say_never_ran(root, "so the board is empty")
    for post in posts:
        say(f"{paint(moment(post.posted_at), dim=True)}  {one_line(post.line)}")


@command.command("post", epilog=example("board post 'power cut at six'"))
@click.argument("text", callback=checked_text)
@with_root
def post_command(root: Root, *, text: str) -> None:
    """Post TEXT as the operator; line breaks are folded."""
    say(one_line(ask(root, "board.post", {"text": text})["line"]))
