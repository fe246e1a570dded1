"""The processes that a measurement needs: a model server, a daemon, a client; and what one costs, from /proc.

Each is ended when its context is left, however that comes about.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import orjson

from store.root import Root, lay_out

PROJECT: Final = Path(__file__).parents[1]
END_S: Final = 30.0

# More wake-ups than an agent is given in ten minutes by default, so that they are measured and not held back.
_LIMITS: Final = {"wakeups_per_10_min": 10_000, "tokens_per_agent_day": 10**12, "tokens_per_day": 10**12}


@dataclass(frozen=True, slots=True)
class RunningDaemon:
    """A daemon that is ready."""

    root: Root
    url: str
    pid: int
    ready_s: float

    @property
    def token(self) -> str:
        """The operator's token."""
        return self.root.read_token()


@contextmanager
def _ended(process: subprocess.Popen[str]) -> Iterator[subprocess.Popen[str]]:
    with process:
        try:
            yield process
        finally:
            process.terminate()
            try:
                process.wait(END_S)
            except subprocess.TimeoutExpired:
                process.kill()


@contextmanager
def model_server() -> Iterator[str]:
    """Run the loopback Messages server; yields its URL."""
    command = [sys.executable, "-m", "bench.model"]
    with _ended(subprocess.Popen(command, cwd=PROJECT, stdout=subprocess.PIPE, text=True)) as process:
        assert process.stdout is not None
        yield process.stdout.readline().strip()


@contextmanager
def new_root() -> Iterator[Root]:
    """Lay out a root in a folder of its own, with limits that no measurement meets; it is deleted afterwards."""
    with tempfile.TemporaryDirectory(prefix="agent-runner-bench-") as folder:
        root = Root(Path(folder))
        lay_out(root)
        constitution = root.platform / "constitution.yaml"
        text = constitution.read_text(encoding="utf-8")
        for name, limit in _LIMITS.items():
            text, count = re.subn(rf"(?m)^  {name}: \d+", f"  {name}: {limit}", text)
            assert count == 1, name
        constitution.write_text(text, encoding="utf-8")
        yield root


@contextmanager
def daemon(root: Root, model_url: str | None = None, *options: str) -> Iterator[RunningDaemon]:
    """Run a real daemon on a root, with the model server at `model_url` or in rehearsal; yields it when it is ready."""
    kept = {
        name: value for name, value in os.environ.items() if not name.startswith(("AGENT_", "ANTHROPIC_"))
    }
    if model_url is not None:
        kept |= {"ANTHROPIC_API_KEY": "bench", "ANTHROPIC_BASE_URL": model_url}
    command = [sys.executable, "-m", "actors.commands", "run", "--root", str(root.path), "--port", "0"]
    command += options
    began = time.perf_counter()
    log_file = root.path / "bench.log"
    with log_file.open("w") as log:
        process = subprocess.Popen(
            command, cwd=PROJECT, stdout=subprocess.PIPE, stderr=log, text=True, env=kept
        )
    with _ended(process):
        assert process.stdout is not None
        line = next((line for line in process.stdout if "ws://" in line), None)
        ready_s = time.perf_counter() - began
        runner = root.read_runner()
        if line is None or runner is None:
            raise SystemExit(f"the daemon ended before it was ready: {log_file.read_text()}")
        yield RunningDaemon(root, runner.url, process.pid, ready_s)


def run_load(order: Mapping[str, Any]) -> Any:
    """Have the load client, a process of its own, carry out an order; return what it measured."""
    return _run([sys.executable, "-m", "bench.load"], orjson.dumps(order))


def run_part(module: str, part: str, *, quick: bool) -> Any:
    """Have a part of a module measured in a process of its own, where nothing else has used memory before it."""
    return _run([sys.executable, "-m", module, "--part", part, *(["--quick"] if quick else [])], b"")


def _run(command: list[str], given: bytes) -> Any:
    done = subprocess.run(command, cwd=PROJECT, input=given, stdout=subprocess.PIPE, check=True)
    return orjson.loads(done.stdout)


def resident_kib(pid: int | str = "self") -> int:
    """Return the resident memory of a process in KiB."""
    pages = int(Path(f"/proc/{pid}/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE") // 1024


def processor_s(pid: int | str = "self") -> float:
    """Return the seconds that all threads of a process have had a processor, to the nanosecond."""
    total = 0
    for schedule in Path(f"/proc/{pid}/task").glob("*/schedstat"):
        total += int(schedule.read_text().split()[0])
    return total / 1e9
