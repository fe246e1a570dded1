"""What a governed turn costs over the same HTTP exchange made directly.

    python -m bench.turn [--turns 300]

Three processes on loopback: a Messages server that answers at once, a real daemon on a root of its own, and the load
client. The client runs one direct exchange (httpx, streaming, the very body that the daemon sends) and one turn in
turn, so that both see the same machine; overhead is the difference of the two distributions.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx
import trio

from actors.client import connect
from store.root import Root

TURNS_PER_SESSION = 50
WARM_UP = 20


def quantile(values: list[float], share: float) -> float:
    """Return the value below which `share` (0 to 1) of the values lie."""
    return sorted(values)[min(len(values) - 1, int(len(values) * share))]


@contextmanager
def model_server() -> Iterator[str]:
    """Run the loopback Messages server; yields its URL."""
    process = subprocess.Popen(
        [sys.executable, "-m", "tests.support.model_server", "--port", "0"], stdout=subprocess.PIPE, text=True
    )
    try:
        assert process.stdout is not None
        yield process.stdout.readline().split()[-1]
    finally:
        process.terminate()
        process.wait()


@contextmanager
def daemon(folder: Path, environment: dict[str, str]) -> Iterator[tuple[Root, str, float, int]]:
    """Run a real daemon; yields its root, URL, seconds from start to ready, and pid."""
    began = time.perf_counter()
    command = [sys.executable, "-m", "actors.commands", "run", "--root", str(folder), "--port", "0"]
    with (folder / "daemon.log").open("w") as log:
        process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=log, text=True, env=environment)
    try:
        root = Root(folder)
        assert process.stdout is not None
        process.stdout.readline()
        while (runner := root.read_runner()) is None:
            if process.poll() is not None:
                raise SystemExit(f"the daemon ended: {(folder / 'daemon.log').read_text()}")
            time.sleep(0.005)
        yield root, runner.url, time.perf_counter() - began, process.pid
    finally:
        process.send_signal(signal.SIGTERM)
        process.wait(30)


def resident_mb(pid: int) -> float:
    """Return the resident memory of a process in MB."""
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith("VmRSS"):
            return int(line.split()[1]) / 1024
    return 0.0


async def measure(url: str, token: str, model_url: str, turns: int) -> dict[str, list[float]]:
    """Return the seconds of each direct exchange and of each turn."""
    times: dict[str, list[float]] = {"direct": [], "turn": []}
    body = b""
    headers = {"content-type": "application/json", "x-api-key": "k", "anthropic-version": "2023-06-01"}
    async with connect(url, token=token) as client, httpx.AsyncClient() as http:
        for number in range(turns + WARM_UP):
            if number % TURNS_PER_SESSION == 0:
                key = f"calli:bench:{number}"
                await client.call("session.init", {"agent_id": "calli", "session_key": key})
            began = time.perf_counter()
            reply = client.turn({"session_key": key, "message": "hello there"})
            async for _ in reply:
                pass
            turn_s = time.perf_counter() - began
            if not body:
                recorded = (await http.get(f"{model_url}/_requests")).json()
                body = json.dumps(recorded[-1]["body"]).encode()
            began = time.perf_counter()
            async with http.stream(
                "POST", f"{model_url}/v1/messages", content=body, headers=headers
            ) as response:
                async for _ in response.aiter_bytes():
                    pass
            if number >= WARM_UP:
                times["turn"].append(turn_s)
                times["direct"].append(time.perf_counter() - began)
    return times


def main() -> None:
    """Start the servers, run the client in a process of its own, print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--turns", type=int, default=300)
    parser.add_argument("--client", nargs=3, metavar=("URL", "TOKEN", "MODEL"), help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.client:
        print(json.dumps(trio.run(measure, *arguments.client, arguments.turns)))
        return
    with tempfile.TemporaryDirectory() as folder, model_server() as model_url:
        environment = {**os.environ, "ANTHROPIC_API_KEY": "bench", "ANTHROPIC_BASE_URL": model_url}
        with daemon(Path(folder), environment) as (root, url, ready_s, pid):
            idle_mb = resident_mb(pid)
            command = [sys.executable, "-m", "bench.turn", "--turns", str(arguments.turns)]
            command += ["--client", url, root.read_token(), model_url]
            times = json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
            loaded_mb = resident_mb(pid)
    print(f"Python {platform.python_version()}, {os.cpu_count()} cores, {arguments.turns} turns")
    print(f"{'':22}{'p50 ms':>10}{'p99 ms':>10}")
    for name, label in (("direct", "direct httpx exchange"), ("turn", "governed turn")):
        values = [value * 1000 for value in times[name]]
        print(f"{label:22}{statistics.median(values):10.2f}{quantile(values, 0.99):10.2f}")
    extra = [(turn - direct) * 1000 for turn, direct in zip(times["turn"], times["direct"], strict=True)]
    print(f"{'overhead (pairs)':22}{statistics.median(extra):10.2f}{quantile(extra, 0.99):10.2f}")
    print(
        f"cold start to ready {ready_s:.2f} s, resident {idle_mb:.0f} MB idle, {loaded_mb:.0f} MB after the load"
    )


if __name__ == "__main__":
    main()
