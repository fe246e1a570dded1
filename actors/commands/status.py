"""`agent-runner status`: the running daemon."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import click

from actors.commands.calls import ask
from actors.commands.environment import with_root
from actors.commands.options import example, json_option
from actors.commands.output import moment, one_line, paint, say, say_json, stuck_in_words
from store.root import Root


@click.command("status", epilog=example("status --json"))
@json_option
@with_root
def command(root: Root, *, as_json: bool) -> None:
    """Show the running daemon: where it listens, what is in force, what is held back. Exits 3 where none runs."""
    status = ask(root, "runner.status")
    if as_json:
        say_json(status)
        return
    for name, value in _lines(root, status):
        say(f"{name:<14}{value}")


def _lines(root: Root, status: dict[str, Any]) -> Iterator[tuple[str, str]]:
    """Yield what a person wants to know first; what is wrong is in red."""
    backend, law, ledger = status["backend"], status["constitution"], status["ledger"]
    yield "daemon", f"{status['url']} (pid {status['pid']}, version {status['version']})"
    yield "root", one_line(str(root.path))
    yield "since", f"{moment(status['started_at'])} UTC"
    yield from _health(status["health"])
    model = backend.get("model")
    yield (
        "backend",
        f"{backend['name']}{'' if model in (None, backend['name']) else f', model {one_line(str(model))}'}",
    )
    yield "constitution", f"{law['constitution_hash'][:16]}, rules {law['rules_hash'][:16]}"
    if law["problem"] is not None:
        yield "refused", paint(f"{one_line(law['problem'])} (the content before it is in force)", fg="red")
    yield (
        "sessions",
        f"{_known(status['sessions']['open'])} open, {_known(status['sessions']['running'])} running",
    )
    agents = status["agents"]
    unread = sum(agent["unread"] for agent in agents)
    yield "agents", f"{sum(_is_standing(agent) for agent in agents)} standing, {unread} unread messages"
    parked = [agent["id"] for agent in agents if agent["parked"]]
    if parked:
        yield (
            "parked",
            paint(", ".join(parked), fg="red") + "; `agent-runner agents retry ID` lets one try again",
        )
    for one in status.get("stuck", ()):
        yield "stuck", paint(stuck_in_words(one), fg="red") + "; `agent-runner tree` shows the others"
    for name, count in status["held_back"].items():
        yield "held back", f"{name}: {count} unread messages wait for the limit of wake-ups"
    for name, problem in status.get("problems", {}).items():
        yield "problem", paint(f"{name}: {one_line(str(problem))}", fg="red")
    beats = sorted(agent["next_heartbeat"] for agent in agents if agent["next_heartbeat"])
    yield "heartbeat", f"next at {moment(beats[0])} UTC" if beats else "none"
    failing = paint(", commits fail", fg="red") if ledger["failing"] else ""
    yield "ledger", f"{_known(ledger['entries'])} entries{failing}"
    yield "database", f"{status['database']['bytes']:,} bytes"
    if status["dead_letters"]:
        yield "dead letters", str(status["dead_letters"])


def _known(count: int | None) -> str:
    """Return a count, which a damaged database may not tell."""
    return "?" if count is None else str(count)


def _health(health: dict[str, Any]) -> Iterator[tuple[str, str]]:
    """Yield what is wrong, since when, and what to do."""
    if not health["conditions"]:
        yield "health", "ok"
    for one in health["conditions"]:
        colour = "red" if one["severity"] == "failing" else "yellow"
        what = paint(f"{one['name']}: {one_line(one['what'])}", fg=colour)
        yield "health", f"{what} (since {moment(one['since'])} UTC). {one_line(one['to_do'])}"


def _is_standing(agent: dict[str, Any]) -> bool:
    return bool(agent["kind"] == "role" and agent["state"] == "live")
