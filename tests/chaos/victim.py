"""A daemon that can be killed before it is ready, started cold or from a process that has the program loaded."""

from __future__ import annotations

import multiprocessing
import os
import signal
import sys
from collections.abc import Mapping, Sequence
from contextlib import suppress
from multiprocessing.connection import Connection
from multiprocessing.context import ForkServerProcess
from pathlib import Path
from typing import Any, Final

import trio

from tests.support.daemon import PROJECT, START_S, Daemon

_LOADED: Final = multiprocessing.get_context("forkserver")
_LOADED.set_forkserver_preload(["actors.commands.__main__", "actors.commands.run", "actors.daemon"])


class WarmProcess:
    """A daemon forked from a process that has imported the program, with what the tests use of a Popen.

    It saves the second that the imports take: more kills an hour, and those at a start hit what the start does.
    """

    def __init__(self, arguments: Sequence[str], environment: Mapping[str, str], log: Path) -> None:
        out, into = _LOADED.Pipe(duplex=False)
        self._process: ForkServerProcess = _LOADED.Process(
            target=_run, args=(list(arguments), dict(environment), str(log), into)
        )
        self._process.start()
        into.close()
        self.stdout: Any = os.fdopen(os.dup(out.fileno()), "rb")
        out.close()

    @property
    def pid(self) -> int:
        """The process."""
        assert self._process.pid is not None
        return self._process.pid

    def poll(self) -> int | None:
        """Return the exit code, or None while it runs."""
        return self._process.exitcode

    def wait(self, timeout: float | None = None) -> int:
        """Wait for the end; return the exit code, negative for a signal."""
        self._process.join(timeout)
        if self._process.exitcode is None:
            raise TimeoutError(f"the daemon {self.pid} does not end")
        return self._process.exitcode

    def kill(self) -> None:
        """End it, if it runs."""
        if self._process.is_alive():
            self._process.kill()

    def communicate(self) -> None:
        """Close what was open."""
        self._process.join()
        self.stdout.close()


def _run(arguments: list[str], environment: dict[str, str], log: str, out: Connection) -> None:
    """Be the daemon: the process's own streams, environment and signals, then what the command line does."""
    for name in list(os.environ):
        if name.startswith(("AGENT_RUNNER_", "ANTHROPIC_")):
            del os.environ[name]
    os.environ.update(environment)
    os.chdir(PROJECT)
    signal.signal(signal.SIGINT, signal.default_int_handler)
    nothing, errors = (
        os.open(os.devnull, os.O_RDONLY),
        os.open(log, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600),
    )
    for descriptor, place in ((nothing, 0), (out.fileno(), 1), (errors, 2)):
        os.dup2(descriptor, place)
        os.close(descriptor)
    # Python's own streams knew what those of the loading process could do; these are others.
    sys.stdin, sys.stdout, sys.stderr = (
        open(0, closefd=False),  # noqa: SIM115 - descriptors, open as long as the process lives
        open(1, "w", closefd=False),  # noqa: SIM115
        open(2, "w", closefd=False, errors="backslashreplace"),  # noqa: SIM115
    )
    from actors.commands.__main__ import main  # noqa: PLC0415 - loaded already; only the child needs it

    sys.argv = ["agent-runner", "run", *arguments]
    main()


class Victim(Daemon):
    """A daemon that can be ended before it is ready; `warm` starts it from a process that has the program loaded."""

    def __init__(self, folder: Path, *, warm: bool = False) -> None:
        super().__init__(folder)
        self._warm = warm

    def spawn(self, *arguments: str) -> None:
        """Start the process; `ready` waits for it."""
        if self._warm:
            words = ["--root", str(self.root.path), "--port", "0", *arguments]
            process: Any = WarmProcess(words, self.environment, self._log)
            self._process = process
        else:
            self._process = self._spawn(("--port", "0", *arguments))

    async def ready(self) -> bool:
        """Wait until it is ready; whether it became so."""
        with trio.move_on_after(START_S):
            if await trio.to_thread.run_sync(self._wait_ready, abandon_on_cancel=True):
                self.url = self.ready_line.split("Ready: ", 1)[1].split()[0]
                return True
        return False

    def _wait_ready(self) -> bool:
        assert self._process is not None
        assert self._process.stdout is not None
        self.ready_line = next((line.decode() for line in self._process.stdout if b"ws://" in line), "")
        return bool(self.ready_line)

    def strike(self, number: signal.Signals) -> None:
        """Send a signal to the process, if there is one still."""
        if self.is_alive:
            with suppress(ProcessLookupError):
                self.signal(number)

    @property
    def is_alive(self) -> bool:
        """Whether its process runs."""
        return self._process is not None and self._process.poll() is None

    def open_files(self) -> int | None:
        """Return how many files the process has open, None when it is gone."""
        with suppress(OSError):
            return len(os.listdir(f"/proc/{self.pid}/fd"))  # noqa: PTH208 - names of /proc
        return None
