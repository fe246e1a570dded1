"""`agent-runner reload`: have the daemon read constitution, roster and mandates again."""

from __future__ import annotations

import click

from actors.commands.calls import ask
from actors.commands.environment import with_root
from actors.commands.exits import BAD_CONFIGURATION
from actors.commands.options import example, json_option
from actors.commands.output import complain, paint, say, say_json
from store.root import Root


@click.command("reload", epilog=example("reload"))
@json_option
@with_root
def command(root: Root, *, as_json: bool) -> None:
    """Have the daemon read the constitution, the roster and the mandates again. Exits 78 where they are refused.

    It does so by itself once the files have been quiet for half a second; this waits for the outcome and shows it.
    """
    outcome = ask(root, "runner.reload")
    problems = outcome["problems"] or ([] if outcome["problem"] is None else [outcome["problem"]])
    if as_json:
        say_json(outcome)
    elif problems:
        for problem in problems:
            complain(problem)
        complain("refused; what was in force before stays in force")
    elif outcome["changed"]:
        say(paint("enacted", fg="green") + ": the files as they are now are in force")
    else:
        say("nothing has changed: the files as they are now were in force already")
    if problems:
        click.get_current_context().exit(BAD_CONFIGURATION)
