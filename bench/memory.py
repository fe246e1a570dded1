"""What a daemon weighs: to start, idle with its agents, and with each idle session more.

    python -m bench.memory [--quick]

A real daemon in a process of its own, with the roster that is shipped. `Resident` is VmRSS. A session is idle when
it is open and no turn runs: first as `session.init` leaves it, then after one turn. One that was idle for some minutes
is passive: it has left memory until its next message. For those a second daemon is asked that lets them leave after a
moment. They come some at a time, so that what the last ones used is there for the next; what a passive one keeps is by
how much the daemon has grown behind the first of them. Cold start is the time from the
start of the process to its ready line, with a root that was laid out before; the first start also creates the
database.
"""

from __future__ import annotations

from typing import Final

import orjson
import trio

from bench.load import AGENT, connect
from bench.measure import Goal, Report, Table, command, median, quantile
from bench.processes import RunningDaemon, daemon, model_server, new_root, resident_kib
from store.content import load_content

SETTLE_S: Final = 1.0
"""Standing agents open their sessions just after the ready line."""

AT_ONCE: Final = 50
PASSIVATE_AFTER_MIN: Final = "0.01"


async def count_in_memory(running: RunningDaemon) -> int:
    """Return how many sessions have not left memory."""
    async with connect(running.url, running.token) as wire:
        reply = orjson.loads(await wire.request("runner.status", {}))
        return int(reply["result"]["sessions"]["in_memory"])


async def fill_with_passive(running: RunningDaemon, first: int, count: int) -> None:
    """Open sessions, run a turn in each, and wait until they have all left memory; so many at a time as are alive."""
    for begin in range(first, first + count, AT_ONCE):
        here = min(AT_ONCE, first + count - begin)
        await open_sessions(running, begin, here, turns=1)
        while await count_in_memory(running):  # noqa: ASYNC110 - another process sets no event of ours
            await trio.sleep(0.1)


async def open_sessions(running: RunningDaemon, first: int, count: int, *, turns: int) -> None:
    """Open sessions with an agent, and run so many turns in each."""
    async with connect(running.url, running.token) as wire:
        for number in range(first, first + count):
            key = f"{AGENT}:bench:{number}"
            await wire.request("session.init", {"agent_id": AGENT, "session_key": key})
            for _ in range(turns):
                await wire.request("turn.run", {"session_key": key, "message": "hello there"})


def measure(*, quick: bool) -> Report:
    """Start a daemon some times, then fill one with sessions."""
    starts, sessions = (1, 40) if quick else (7, 500)
    ready = []
    with new_root() as root:
        for _ in range(starts):
            with daemon(root) as running:
                ready.append(running.ready_s)
        agents = len(load_content(root.platform).roster.standing())
    with model_server() as model_url, new_root() as root, daemon(root, model_url) as running:
        trio.run(trio.sleep, SETTLE_S)
        idle = resident_kib(running.pid)
        # What the first sessions and turns load once is not theirs.
        trio.run(lambda: open_sessions(running, 0, 20, turns=1))
        warm = resident_kib(running.pid)
        trio.run(lambda: open_sessions(running, 100, sessions, turns=0))
        opened = resident_kib(running.pid)
        trio.run(lambda: open_sessions(running, 100_000, sessions, turns=1))
        spoken = resident_kib(running.pid)
    with (
        model_server() as model_url,
        new_root() as root,
        daemon(root, model_url, "--passivate-after", PASSIVATE_AFTER_MIN) as running,
    ):
        trio.run(lambda: fill_with_passive(running, 0, 2 * AT_ONCE))
        left_first = resident_kib(running.pid)
        trio.run(lambda: fill_with_passive(running, 2 * AT_ONCE, sessions))
        left = resident_kib(running.pid)
    passive = (left - left_first) / sessions
    bare, used = (opened - warm) / sessions, (spoken - opened) / sessions
    weight = Table.of(
        "Resident memory of the daemon",
        ["", "MiB in all", "KiB a session"],
        [
            [f"idle, {agents} agents", idle / 1024, ""],
            ["after the first 20 turns", warm / 1024, ""],
            [f"{sessions} more sessions, opened", opened / 1024, bare],
            [f"{sessions} more sessions, one turn each", spoken / 1024, used],
            ["another daemon, behind the first that are passive", left_first / 1024, ""],
            [f"{sessions} more that are passive, after a turn", left / 1024, passive],
        ],
    )
    start = Table.of(
        "Cold start to ready (s)",
        ["", "first", "p50", "slowest"],
        [[f"{starts} starts", ready[0], median(ready), quantile(ready, 1.0)]],
    )
    return Report(
        [weight, start],
        [
            Goal(f"idle with {agents} agents", idle / 1024, 150, "MiB"),
            Goal("an idle session more, after a turn", used, 80, "KiB"),
            Goal("a passive session more, after a turn", passive, 12, "KiB"),
            Goal("cold start, p50", median(ready), 2, "s"),
        ],
    )


if __name__ == "__main__":
    command(measure, __doc__)
