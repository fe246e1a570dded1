"""The command line as the tests use it: in this process for what it prints, as a process for what it is."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from actors.commands.__main__ import main
from store.database import open_writer
from store.root import Root, lay_out

CHECKOUT = Path(__file__).resolve().parents[2]
READY_WITHIN_S = 60


@dataclass(frozen=True)
class Outcome:
    code: int
    out: str
    err: str

    @property
    def json(self) -> Any:
        return json.loads(self.out)


AgentRunner = Callable[..., Outcome]


def environment(**variables: str) -> dict[str, str]:
    """The environment of a process: nothing of the runner's is set but what is given."""
    plain = {
        name: value
        for name, value in os.environ.items()
        if not name.startswith(("AGENT_RUNNER_", "ANTHROPIC_"))
    }
    return {**plain, "PYTHONPATH": str(CHECKOUT), "PYTHONUNBUFFERED": "1", **variables}


def command_line(root: Path | None, *arguments: str, module: str = "actors.commands") -> list[str]:
    chosen = [] if root is None else ["--root", str(root)]
    return [sys.executable, "-m", module, *chosen, *arguments]


@pytest.fixture
def agent_runner(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> AgentRunner:
    for name in [name for name in os.environ if name.startswith(("AGENT_RUNNER_", "ANTHROPIC_"))]:
        monkeypatch.delenv(name)

    def run(*arguments: str, root: Root | None = None) -> Outcome:
        capsys.readouterr()
        code = main([*([] if root is None else ["--root", str(root.path)]), *arguments])
        captured = capsys.readouterr()
        return Outcome(code, captured.out, captured.err)

    return run


@pytest.fixture
def root(tmp_path: Path) -> Root:
    """A root that is laid out, and whose daemon never ran."""
    found = Root(tmp_path / "root")
    lay_out(found)
    return found


@pytest.fixture
def stored(root: Root) -> Root:
    """A root with an empty database, as a daemon leaves it behind."""
    open_writer(root.database).close()
    return root


@dataclass(frozen=True)
class Daemon:
    root: Root
    process: subprocess.Popen[str]
    ready: str
    greeting: list[str]


def start_daemon(
    root: Path, log: Path, *arguments: str, module: str = "actors.commands", **variables: str
) -> Daemon:
    """Start a daemon and return it once its ready line was read; the caller ends it."""
    with log.open("w") as errors:
        process = subprocess.Popen(
            command_line(root, "run", "--port", "0", *arguments, module=module),
            stdout=subprocess.PIPE,
            stderr=errors,
            text=True,
            cwd=CHECKOUT,
            env=environment(**variables),
        )
    assert process.stdout is not None
    lines: list[str] = []
    for line in process.stdout:
        lines.append(line)
        if "Ctrl-C ends" in line:
            break
    ready = [line for line in lines if line.startswith("Ready: ")]
    assert ready, f"it never was ready: {lines} {log.read_text()}"
    return Daemon(Root(root), process, ready[0], lines)


def stop_daemon(daemon: Daemon) -> int:
    daemon.process.terminate()
    daemon.process.communicate(timeout=READY_WITHIN_S)
    return daemon.process.returncode


@pytest.fixture(scope="module")
def daemon(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Daemon]:
    """A daemon that the tests of one module share, started on a root that was not laid out."""
    folder = tmp_path_factory.mktemp("daemon")
    running = start_daemon(folder / "root", folder / "log")
    yield running
    assert stop_daemon(running) == 0
