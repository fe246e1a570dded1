"""How long it takes from mail to the turn of the agent that it wakes.

    python -m bench.wake [--quick]

A real daemon and a loopback Messages server; the client sends reed a message, waits until reed's session is idle
again, and sends the next. Each is followed through the clocks of three processes on one machine: when the client
sent it, when the client had the answer that it is durable, when the turn that carries it was begun (its row's
`started_at`), and when the model server had the request of that turn. The answer is on its way to the client while
the agent wakes, so what lies between them can be less than what the daemon needs: the rows from *sent* on hold
everything.
"""

from __future__ import annotations

import time
from typing import Any, Final

import httpx
import orjson
import trio

from bench.load import Wire, connect
from bench.measure import Goal, Report, Table, command, median, quantile
from bench.processes import RunningDaemon, daemon, model_server, new_root
from store.clock import parse_rfc3339
from store.database import open_reader

AGENT: Final = "reed"
KEY: Final = f"{AGENT}:cli:local"
WARM_UP: Final = 3


async def follow_mails(running: RunningDaemon, model_url: str, count: int) -> list[dict[str, float]]:
    """Send mail after mail; for each the moments (seconds since the epoch) sent, acknowledged, begun and asked."""
    moments = []
    database = open_reader(running.root.database)
    async with connect(running.url, running.token) as wire, httpx.AsyncClient() as http:
        await wire.request("session.init", {"agent_id": AGENT, "session_key": KEY, "mode": "persistent"})
        for number in range(count + WARM_UP):
            await http.get(f"{model_url}/_arrivals")
            mail = {"to": AGENT, "subject": f"Message {number}", "body": "The disk of the archive is full."}
            sent = time.time()
            await wire.request("mail.send", mail)
            acknowledged = time.time()
            with trio.fail_after(30):
                asked = await _arrival(http, model_url)
                await _idle(wire)
            [(started,)] = database.execute(
                "SELECT started_at FROM turns JOIN sessions ON sessions.id = session_id WHERE session_key = ? "
                "ORDER BY seq DESC LIMIT 1",
                (KEY,),
            ).fetchall()
            begun = parse_rfc3339(str(started)).timestamp()
            if number >= WARM_UP:
                moments.append({"sent": sent, "acknowledged": acknowledged, "begun": begun, "asked": asked})
    database.close()
    return moments


async def _arrival(http: httpx.AsyncClient, model_url: str) -> float:
    """Return when the model server had its next request."""
    while True:
        found: list[float] = (await http.get(f"{model_url}/_arrivals")).json()
        if found:
            return found[0]
        await trio.sleep(0.02)


async def _idle(wire: Wire) -> None:
    while True:
        reply = orjson.loads(await wire.request("session.status", {"session_key": KEY}))
        if reply["result"]["state"] == "idle":
            return
        await trio.sleep(0.01)


def measure(*, quick: bool) -> Report:
    """Follow messages one after the other."""
    with model_server() as model_url, new_root() as root, daemon(root, model_url) as running:
        moments = trio.run(follow_mails, running, model_url, 10 if quick else 200)

    def row(label: str, begin: str, end: str) -> list[Any]:
        times = [(moment[end] - moment[begin]) * 1000 for moment in moments]
        return [label, median(times), quantile(times, 0.99)]

    rows = [
        row("sent → durable and answered (no wake-up in it)", "sent", "acknowledged"),
        row("sent → turn begun", "sent", "begun"),
        row("sent → model asked", "sent", "asked"),
        row("answered → turn begun", "acknowledged", "begun"),
        row("answered → model asked", "acknowledged", "asked"),
    ]
    return Report(
        [Table.of("Mail to wake-up (ms)", ["", "p50", "p99"], rows)],
        [Goal("answered to turn begun, p50", rows[3][1], 10, "ms")],
    )


if __name__ == "__main__":
    command(measure, __doc__)
