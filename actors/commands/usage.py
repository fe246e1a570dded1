"""`agent-runner usage`: the tokens that were spent, by agent, day or session; also while the daemon is down."""

from __future__ import annotations

import datetime as dt

import click

from actors.commands.environment import open_store, say_never_ran, with_root
from actors.commands.options import example, json_option
from actors.commands.output import say, say_json, say_table
from store.clock import utc_now
from store.figures import SPENT_BY
from store.root import Root


@click.command("usage", epilog=example("usage", "usage --by day --days 30", "usage --by session --json"))
@click.option(
    "--by", type=click.Choice(list(SPENT_BY)), default="agent", show_default=True, help="What to add up by."
)
@click.option(
    "--days",
    type=click.IntRange(1, 36_500),
    default=7,
    show_default=True,
    help="So many days (UTC), today included; 1 is what counts towards today's limits.",
)
@json_option
@with_root
def command(root: Root, *, by: str, days: int, as_json: bool) -> None:
    """Show the tokens that were spent, input and output; what a cache gave counts as input.

    By agent and by day it is what the daily limits count: accounts, all guests together as one.
    """
    since = (utc_now().date() - dt.timedelta(days=days - 1)).isoformat()
    database = open_store(root)
    found = [] if database is None else SPENT_BY[by](database, since)
    if as_json:
        say_json(
            [
                {
                    by: one.name,
                    "input_tokens": one.input_tokens,
                    "output_tokens": one.output_tokens,
                    "total_tokens": one.total,
                }
                for one in found
            ]
        )
        return
    if database is None:
        say_never_ran(root, "so nothing was spent")
    elif not found:
        say(f"Nothing was spent since {since} (UTC).")
        return
    rows = [(one.name, *map(_thousands, (one.input_tokens, one.output_tokens, one.total))) for one in found]
    sums = (sum(one.input_tokens for one in found), sum(one.output_tokens for one in found))
    rows.append((f"since {since}", *map(_thousands, (*sums, sum(sums)))))
    say_table((by.upper(), "INPUT", "OUTPUT", "TOTAL"), rows)


def _thousands(number: int) -> str:
    return f"{number:,}"
