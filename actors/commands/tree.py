"""`agent-runner tree`: what every actor of the running daemon is doing."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

import click
import trio

from actors.client import Client, DisconnectedError
from actors.commands.calls import connect_to
from actors.commands.environment import typed, with_root
from actors.commands.exits import NotRunningError
from actors.commands.options import checked_length, checked_text, example, json_option
from actors.commands.output import age, is_coloured, moment, say, say_json, shortened, stuck_in_words
from actors.kernel.tree import ATTENTION
from protocol.errors import AgentRunnerError, RequestError
from store.root import Root

if TYPE_CHECKING:
    from rich.console import Console, Group

ANSWER_S: Final = 10.0
"""A daemon that has not answered for so long does not turn its loop."""

NAME_CHARACTERS_MAX: Final = 80

HEADINGS: Final = ("ACTOR", "STATE", "QUEUE", "NOW", "TASKS", "RESTARTS", "LIFE", "DROPPED", "LAST END")

_STYLES: Final = {
    "parked": "bold red",
    "stuck": "bold red",
    "dead": "red",
    "waiting": "yellow",
    "busy": "cyan",
    "starting": "cyan",
    "stopping": "cyan",
    "passive": "dim",
}

_PHASES: Final = {"starting": "on_start", "stopping": "its end"}

Picture = dict[str, Any]
Node = dict[str, Any]


@click.command(
    "tree", epilog=example("tree", "tree standing", "tree reed --json", "tree --watch --interval 0.5")
)
@click.argument("path", metavar="[PATH]", required=False, callback=checked_text)
@click.option(
    "-w", "--watch", is_flag=True, help="Show it again and again, until Ctrl-C; with --json a line each."
)
@click.option(
    "--interval",
    "interval_s",
    type=float,
    callback=checked_length,
    metavar="SECONDS",
    default=1.0,
    show_default=True,
    help="How often --watch looks.",
)
@click.option("--all", "everybody", is_flag=True, help="Show the quiet ones too, where there are many.")
@json_option
@with_root
def command(
    root: Root, *, path: str | None, watch: bool, interval_s: float, everybody: bool, as_json: bool
) -> None:
    """Show the actors of the running daemon and what each does now; with PATH one of them and those below it.

    PATH is a path as it is drawn (`standing/reed`), or an id alone. Of an actor it shows how many messages wait and
    for how long the oldest, the message in work, its running tasks, its restarts (in brackets those that still
    count), which life of the actor this is, what a full mailbox dropped, and how the life before ended.
    """
    if not watch:
        show(trio.run(_look_once, root, path, everybody), as_json=as_json)
        return
    trio.run(_watch, root, path, everybody, interval_s, as_json)


# --- asking


async def _look_once(root: Root, path: str | None, everybody: bool) -> Picture:
    async with connect_to(root) as client:
        return await look(client, path, everybody=everybody)


async def _watch(root: Root, path: str | None, everybody: bool, interval_s: float, as_json: bool) -> None:
    try:
        async with connect_to(root) as client:
            if not as_json and sys.stdout.isatty() and os.environ.get("TERM") != "dumb":
                await _repaint(client, path, everybody, interval_s)
            while True:
                show(await look(client, path, everybody=everybody), as_json=as_json, more_follows=True)
                await trio.sleep(interval_s)
    except DisconnectedError as error:
        raise NotRunningError(
            f"the daemon that kept {root.path} has gone; start it with `{typed(root, 'run')}`"
        ) from error


async def _repaint(client: Client, path: str | None, everybody: bool, interval_s: float) -> None:
    from rich.live import Live  # noqa: PLC0415 - only here, and not free

    console = _console()
    with Live(
        console=console,
        screen=True,
        auto_refresh=False,
        redirect_stdout=False,
        redirect_stderr=False,
        vertical_overflow="crop",
    ) as live:
        while True:
            picture = await look(client, path, everybody=everybody)
            live.update(_painted(picture, summary_first=True), refresh=True)
            await trio.sleep(interval_s)


async def look(client: Client, path: str | None = None, *, everybody: bool = False) -> Picture:
    """Return what `runner.tree` says; with `everybody` page after page, until nobody is left out.

    Raises AgentRunnerError where PATH names nobody, or where no answer comes.
    """
    asked: dict[str, Any] = {"unfolded": everybody}
    if path is not None:
        asked["path"] = path
    try:
        picture = await _call(client, asked)
        if everybody:
            await _complete(client, picture["tree"])
    except RequestError as error:
        if error.code != "invalid_params":
            raise
        why = error.message.removeprefix("`params.path`: ")
        raise AgentRunnerError(f"{why}; `agent-runner tree` shows who there is") from error
    return picture


async def _call(client: Client, asked: dict[str, Any]) -> Picture:
    try:
        with trio.fail_after(ANSWER_S):
            return await client.call("runner.tree", asked)
    except trio.TooSlowError:
        raise AgentRunnerError(
            f"the daemon has not answered for {ANSWER_S:g} s: something holds its loop; "
            "`agent-runner logs` has where"
        ) from None


async def _complete(client: Client, node: Node) -> None:
    """Fetch the children that a page left out, of this node and of all below it."""
    while node["folded"]:
        asked = {"path": node["path"], "unfolded": True, "skip": len(node["children"])}
        more = (await _call(client, asked))["tree"]
        node["children"] += more["children"]
        node["folded"] = more["folded"] if more["children"] else {}
    for child in node["children"]:
        if child["children"]:
            await _complete(client, child)


# --- showing


@dataclass(frozen=True, slots=True)
class Row:
    """One line: its cells under HEADINGS, and the style of its state."""

    cells: tuple[str, ...]
    style: str = ""


def show(picture: Picture, *, as_json: bool, more_follows: bool = False) -> None:
    """Print a picture once; JSON on one line where more follows, and text with an empty line behind it."""
    if as_json:
        say_json(picture, indent=None if more_follows else 2)
    elif sys.stdout.isatty():
        _console().print(_painted(picture, summary_first=False))
    else:
        say(
            "\n".join([*_aligned(list(rows_of(picture["tree"]))), *summary(picture)]),
            end="\n\n" if more_follows else "\n",
        )


def rows_of(node: Node, before: str = "", below: str = "") -> Iterator[Row]:
    """Yield a node and all below it, each on a line with its branches before it."""
    folded = sum(node["folded"].values())
    yield Row(
        (before + shortened(node["id"], NAME_CHARACTERS_MAX), *_figures(node)), _STYLES.get(_state(node), "")
    )
    for number, child in enumerate(node["children"], 1):
        is_last = number == len(node["children"]) and not folded
        yield from rows_of(
            child, below + ("└─ " if is_last else "├─ "), below + ("   " if is_last else "│  ")
        )
    if folded:
        counted = sorted(node["folded"].items(), key=lambda one: -one[1])
        what = counted[0][0] if len(counted) == 1 else ""
        listed = "" if what else ", ".join(f"{count:,} {state}" for state, count in counted)
        name = f"{below}└─ … {folded:,} more {what}".rstrip()
        yield Row((name, *([""] * (len(HEADINGS) - 2)), listed), "dim")


def _state(node: Node) -> str:
    return node["state"] if node["stuck_at"] is None else "stuck"


def _figures(node: Node) -> tuple[str, ...]:
    queue = str(node["queue_length"] or "")
    if node["oldest_age_s"] is not None:
        queue += f", {age(node['oldest_age_s'])}"
    now = ""
    if node["state_age_s"] is not None:
        now = f"{_PHASES.get(node['state']) or node['current']} {age(node['state_age_s'])}"
    restarts = str(node["restarts"] or "")
    if node["restarts_in_window"]:
        restarts = f"{node['restarts']} ({node['restarts_in_window']})"
    return (
        _state(node),
        queue,
        now,
        str(node["tasks"] or ""),
        restarts,
        str(node["generation"]),
        str(node["dropped"] or ""),
        shortened(node["last_reason"] or "", 120),
    )


def summary(picture: Picture) -> list[str]:
    """Return what is to be known of the whole: how many there are, who needs attention, what was lost."""
    letters = picture["dead_letters"]
    lost = letters["undelivered"] + letters["dropped"]
    count = _count(picture["tree"])
    undelivered, dropped = letters["undelivered"], letters["dropped"]
    who = f"{count:,} actor{'' if count == 1 else 's'}"
    what = f"{lost:,} dead letters ({undelivered:,} undelivered, {dropped:,} dropped)"
    lines = [f"{moment(picture['at'])} UTC: {who}, {what}"]
    wanting: dict[str, list[str]] = {}
    for node in _nodes(picture["tree"]):
        if node["state"] in ATTENTION and node["state"] != "stuck":
            wanting.setdefault(node["state"], []).append(shortened(node["path"], NAME_CHARACTERS_MAX))
    lines += [f"{state}: {', '.join(paths)}" for state, paths in sorted(wanting.items())]
    if "parked" in wanting:
        lines.append("`agent-runner agents retry ID` lets a parked agent try again")
    return lines + [f"stuck: {stuck_in_words(one)}" for one in picture["stuck"]]


def _nodes(node: Node) -> Iterator[Node]:
    yield node
    for child in node["children"]:
        yield from _nodes(child)


def _count(node: Node) -> int:
    return sum(1 + sum(one["folded"].values()) for one in _nodes(node))


def _aligned(rows: list[Row]) -> list[str]:
    from rich.cells import cell_len  # noqa: PLC0415 - not free

    table = [HEADINGS, *(row.cells for row in rows)]
    widths = [max(cell_len(cells[column]) for cells in table) for column in range(len(HEADINGS))]
    return [
        "  ".join(
            cell + " " * (width - cell_len(cell)) for cell, width in zip(cells, widths, strict=True)
        ).rstrip()
        for cells in table
    ]


def _console() -> Console:
    from rich.console import Console  # noqa: PLC0415 - not free

    return Console(
        file=sys.stdout,
        color_system="auto" if is_coloured(sys.stdout) else None,
        highlight=False,
        emoji=False,
    )


def _painted(picture: Picture, *, summary_first: bool) -> Group:
    """Return the picture for a terminal: one line an actor, cut off where the terminal ends."""
    from rich.console import Group  # noqa: PLC0415 - the same
    from rich.table import Table  # noqa: PLC0415
    from rich.text import Text  # noqa: PLC0415

    table = Table(box=None, pad_edge=False, header_style="bold", padding=(0, 2, 0, 0))
    for heading in HEADINGS:
        table.add_column(heading, no_wrap=True, overflow="ellipsis")
    for row in rows_of(picture["tree"]):
        is_folded = row.style == "dim" and not row.cells[1]
        cells = [
            Text(cell, style=row.style if is_folded or column < 2 else "")
            for column, cell in enumerate(row.cells)
        ]
        table.add_row(*cells)
    first, *rest = summary(picture)
    notes = [Text(first), *(Text(line, style="red") for line in rest)]
    return Group(*([*notes, Text()] if summary_first else []), table, *([] if summary_first else notes))
