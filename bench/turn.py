"""What a governed turn costs over the same HTTP exchange made directly.

    python -m bench.turn [--quick]

Three processes on loopback: a Messages server that answers at once, a real daemon on a root of its own, and the load
client. For one session the client makes a turn and the direct exchange in turn (httpx, streamed, the very body that
the daemon sends), so that both see the same machine; overhead is the difference of each pair. A turn with four calls
asks the model twice, so its baseline is two exchanges; its overhead holds four verdicts, four files read inside the
workspace, four outcomes, and the commits that make them durable one after the other.

A turn's time is from the request written to its result read: WebSocket, all events (frames), session, verdicts,
prompt, two durable commits, the model's answer. `CPU` is what the daemon (for the direct exchange: the client) had
of a processor; it says more than the clock where others use the machine.
"""

from __future__ import annotations

from typing import Any, Final

from bench.measure import Goal, Report, Table, command, median, quantile
from bench.model import FILES, FOUR_CALLS
from bench.processes import RunningDaemon, daemon, model_server, new_root, run_load

SESSIONS: Final = 20


def measure(*, quick: bool) -> Report:
    """Measure one session without and with calls, then many sessions without."""
    with model_server() as model_url, new_root() as root:
        for file in FILES:
            path = root.path / file
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text("A line of a file.\n" * 20)
        with daemon(root, model_url) as running:
            order = _order(running, model_url)
            turns = 20 if quick else 400
            plain = run_load({**order, "kind": "pairs", "turns": turns})
            calling = run_load(
                {
                    **order,
                    "kind": "pairs",
                    "turns": turns // 2,
                    "exchanges": 2,
                    "message": f"Read {FOUR_CALLS}",
                }
            )
            loop = run_load(
                {**order, "kind": "closed_loop", "sessions": SESSIONS, "seconds": 1.0 if quick else 10.0}
            )
    return _report(plain, calling, loop)


def _order(running: RunningDaemon, model_url: str) -> dict[str, Any]:
    return {"url": running.url, "token": running.token, "pid": running.pid, "model_url": model_url}


def _report(plain: dict[str, Any], calling: dict[str, Any], loop: dict[str, Any]) -> Report:
    rows: list[list[float | str]] = []
    for measured, direct, turn in (
        (plain, "direct exchange", "turn without calls"),
        (calling, "two direct exchanges", "turn with 4 calls in one message"),
    ):
        rows.append([direct, *_ms(measured["direct"]), "", "", "", median(measured["direct_cpu"]) * 1000])
        overhead = _ms(_overhead(measured))
        ratio = f"{overhead[0] / _ms(measured['direct'])[0]:.1f}x"
        rows.append([turn, *_ms(measured["turn"]), *overhead, ratio, median(measured["turn_cpu"]) * 1000])
    one = Table.of(
        "One session (ms)",
        ["", "p50", "p99", "overhead p50", "overhead p99", "overhead to direct", "CPU"],
        rows,
    )
    share = loop["turns_per_s"] / loop["direct_per_s"]
    many = Table.of(
        f"{SESSIONS} sessions in closed loop",
        ["", "per second", "to direct", "p50 ms", "p99 ms", "CPU ms each"],
        [
            ["direct exchange", loop["direct_per_s"], "", *_ms(loop["direct"]), ""],
            ["turn", loop["turns_per_s"], f"{share:.2f}x", *_ms(loop["turn"]), loop["turn_cpu"] * 1000],
        ],
    )
    overhead_p50, overhead_p99 = _ms(_overhead(plain))
    return Report(
        [one, many],
        [
            Goal("overhead of a turn without calls, p50", overhead_p50, 3, "ms"),
            Goal("the same, p99", overhead_p99, 15, "ms"),
            Goal(f"{SESSIONS} sessions in closed loop", loop["turns_per_s"], 100, "turns/s", at_least=True),
        ],
        [
            f"A turn without calls is {plain['frames']} frames and {plain['body_bytes']:,} bytes to the model.",
            f"A turn with calls is {calling['frames']} frames.",
        ],
    )


def _overhead(measured: dict[str, Any]) -> list[float]:
    return [turn - direct for turn, direct in zip(measured["turn"], measured["direct"], strict=True)]


def _ms(seconds: list[float]) -> tuple[float, float]:
    return median(seconds) * 1000, quantile(seconds, 0.99) * 1000


if __name__ == "__main__":
    command(measure, __doc__)
