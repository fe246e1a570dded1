"""A command on a terminal of its own."""

from __future__ import annotations

import os
import pty
import select
import subprocess
import time

from store.root import Root
from tests.commands.conftest import CHECKOUT, command_line, environment

PATIENCE_S = 30


class Terminal:
    """A process on a terminal of its own, as a person has it before them."""

    def __init__(self, *arguments: str, root: Root, **variables: str) -> None:
        master, slave = pty.openpty()
        self._master = master
        self.process = subprocess.Popen(
            command_line(root.path, *arguments),
            stdin=slave,
            stdout=slave,
            stderr=slave,
            env=environment(TERM="xterm-256color", **variables),
            cwd=CHECKOUT,
            start_new_session=True,
        )
        os.close(slave)
        self.seen = ""
        self._at = 0

    def type(self, text: str) -> None:
        os.write(self._master, text.encode())

    def read_until(self, words: str) -> None:
        """Read until the words were seen, behind what was asked for before."""
        deadline = time.monotonic() + PATIENCE_S
        while words not in self.seen[self._at :]:
            assert self._read(deadline), f"{words!r} never came: {self.seen!r}"
        self._at = self.seen.index(words, self._at) + len(words)

    def read_to_end(self) -> int:
        deadline = time.monotonic() + PATIENCE_S
        while self._read(deadline):
            pass
        os.close(self._master)
        return self.process.wait(timeout=PATIENCE_S)

    def _read(self, deadline: float) -> bool:
        """Read a piece; false at the end."""
        ready, _, _ = select.select([self._master], [], [], max(0.0, deadline - time.monotonic()))
        if not ready:
            self.process.kill()
            self.process.wait()
            raise AssertionError(f"nothing more came: {self.seen!r}")
        try:
            piece = os.read(self._master, 65536)
        except OSError:  # how Linux says that nobody holds the other end any more
            return False
        self.seen += piece.decode("utf-8", "replace")
        return bool(piece)
