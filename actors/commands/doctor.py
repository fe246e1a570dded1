"""`agent-runner doctor`: whether the daemon can run here, and what to do where it cannot; also while it is down."""

from __future__ import annotations

import os
from dataclasses import asdict
from typing import Any, Final

import click

from actors.commands.environment import with_root
from actors.commands.exits import FAILED
from actors.commands.options import example, json_option
from actors.commands.output import one_line, paint, say, say_json
from actors.diagnosis import Examined, diagnose
from store.root import Root

_STYLES: Final[dict[str, dict[str, Any]]] = {
    "ok": {"fg": "green"},
    "warning": {"fg": "yellow"},
    "failed": {"fg": "red", "bold": True},
}


@click.command("doctor", epilog=example("doctor", "doctor --port 8080", "doctor --json"))
@click.option(
    "--bind", metavar="ADDRESS", default="127.0.0.1", envvar="AGENT_RUNNER_BIND", help="As for `run`."
)
@click.option(
    "--port", type=click.IntRange(0, 65535), default=18789, envvar="AGENT_RUNNER_PORT", help="As for `run`."
)
@json_option
@with_root
def command(root: Root, *, bind: str, port: int, as_json: bool) -> None:
    """See whether the daemon can run here: machine, kernel, root, content, key, port. Exits 1 where a line fails.

    Each line that fails ends with what to do. A warning does not fail: the daemon runs, with something less.
    """
    findings = list(diagnose(Examined(root, bind, port, os.environ)))
    failed = [finding for finding in findings if finding.state == "failed"]
    if as_json:
        say_json({"ok": not failed, "lines": [asdict(finding) for finding in findings]})
    else:
        for finding in findings:
            state = paint(f"{finding.state:<8}", **_STYLES[finding.state])
            fix = "" if finding.fix is None else f". {one_line(finding.fix)}"
            say(f"{state}  {finding.name:<13} {one_line(finding.text)}{fix}")
        warnings = sum(finding.state == "warning" for finding in findings)
        say()
        if failed:
            say(paint(f"{len(failed)} to mend", fg="red", bold=True) + f", {warnings} warnings")
        else:
            say(paint("Nothing stands in the way", fg="green") + f" ({warnings} warnings).")
    if failed:
        click.get_current_context().exit(FAILED)
