"""A root: the folder that a daemon keeps, with `platform/` and `workspaces/` in it."""

from __future__ import annotations

import fcntl
import os
import secrets
import shutil
import time
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Self

import msgspec

from protocol.errors import AgentRunnerError, ConfigurationError
from store.content import shipped_platform

TOKEN_BYTES: Final = 32
ATTEMPTS: Final = 5
BETWEEN_ATTEMPTS_S: Final = 0.02


class RootError(AgentRunnerError):
    """The root cannot be used as it is: the message names the path, what is wrong and what to do."""


class AlreadyRunningError(RootError):
    """Another daemon keeps this root; `pid` is its process, or None where it cannot be told."""

    def __init__(self, root: Path, pid: int | None) -> None:
        who = "another daemon" if pid is None else f"the daemon with pid {pid}"
        super().__init__(f"{root} is kept by {who}; stop it first, or choose another --root")
        self.pid = pid


class RunnerFile(msgspec.Struct, frozen=True):
    """`runner.json`: where the running daemon of a root is found. `url` ends in `/ws`, `started_at` is RFC 3339."""

    pid: int
    url: str
    started_at: str


@dataclass(frozen=True, slots=True)
class Root:
    """The paths of a root; nothing is read or made by naming them."""

    path: Path

    @property
    def platform(self) -> Path:
        """Constitution, roster, mandates: shared content."""
        return self.path / "platform"

    @property
    def workspaces(self) -> Path:
        """Private state, one folder per user."""
        return self.path / "workspaces"

    @property
    def state(self) -> Path:
        """What no agent reaches: database, token, keys, log."""
        return self.workspaces / ".state"

    @property
    def database(self) -> Path:
        """The one database file."""
        return self.state / "agent-runner.db"

    @property
    def token_file(self) -> Path:
        """The operator's token (0600)."""
        return self.state / "operator.token"

    @property
    def runner_file(self) -> Path:
        """`runner.json` of the running daemon."""
        return self.state / "runner.json"

    @property
    def log_file(self) -> Path:
        """The log of the daemon, JSON lines; older ones stand beside it with a number (0600, folder 0700)."""
        return self.state / "log" / "agent-runner.log"

    @property
    def events(self) -> Path:
        """The events of the last turns (0700)."""
        return self.state / "events"

    @property
    def restore_plan(self) -> Path:
        """What is left to do of a restore; there only while one is under way, or where one was cut off."""
        return self.state / "restore.json"

    @property
    def keys(self) -> Path:
        """Secret keys (0700)."""
        return self.state / "keys"

    def read_runner(self) -> RunnerFile | None:
        """Return where the daemon of this root is found, or None when none runs.

        A file that a killed daemon left behind is none, whoever has its pid or its port now: what is found here is sent
        the operator's token, so it has to be the process that holds the lock.
        Raises PermissionError where this user may not look: whether a daemon runs cannot be told then.
        """
        try:
            found = msgspec.json.decode(self.runner_file.read_bytes(), type=RunnerFile)
            with (self.state / "runner.lock").open("rb") as lock:
                fcntl.flock(lock, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except BlockingIOError:
            with suppress(OSError, ValueError):
                if int((self.state / "runner.lock").read_bytes()) == found.pid:
                    return found
        except PermissionError:
            raise
        except (OSError, msgspec.MsgspecError):
            pass
        return None

    def read_token(self) -> str:
        """Return the operator's token; raises RootError where it is missing, unreadable or empty."""
        try:
            token = self.token_file.read_text(encoding="ascii").strip()
        except (OSError, ValueError) as error:
            raise RootError(
                f"cannot read the operator's token {self.token_file}; lay the root out with `agent-runner init`, "
                "or run as the user that owns it"
            ) from error
        _check_secret(self.token_file, token)
        return token


def lay_out(root: Root) -> list[Path]:
    """Make what a root needs and does not have yet; return what was made. Nothing is ever overwritten.

    Raises RootError where a folder or file cannot be written.
    """
    made: list[Path] = []
    try:
        if not root.platform.exists():
            shutil.copytree(shipped_platform(), root.platform)
            made.append(root.platform)
        for folder in (
            root.workspaces,
            root.workspaces / "agents",
            root.workspaces / "users",
            root.workspaces / "guests",
        ):
            if not folder.is_dir():
                folder.mkdir(parents=True)
                made.append(folder)
        for folder in (root.state, root.keys):
            if not folder.is_dir():
                folder.mkdir(mode=0o700)
                made.append(folder)
        for secret in (root.token_file, root.keys / "sessions.key"):
            if not secret.exists():
                _write_secret(secret, secrets.token_urlsafe(TOKEN_BYTES))
                made.append(secret)
    except OSError as error:
        raise RootError(
            f"cannot lay out {root.path}: {error.strerror} ({error.filename}); "
            "give the user that runs this the right to write there, or choose another --root"
        ) from error
    return made


def _write_secret(path: Path, text: str) -> None:
    """Write a secret whole or not at all: half of one, left by a full disk, would be taken for a secret."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}.new")
    descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    try:
        with os.fdopen(descriptor, "w", encoding="ascii") as file:
            file.write(text + "\n")
        with suppress(FileExistsError):  # somebody else was quicker, and theirs stands
            os.link(temporary, path)
    finally:
        temporary.unlink()


def _check_secret(path: Path, secret: str | bytes) -> None:
    if not secret.strip():
        raise RootError(
            f"{path} is empty, which would let everybody in; remove it and run `agent-runner init`"
        )


def session_secret(root: Root) -> bytes:
    """Return the secret from which session tokens are derived; raises RootError where it is missing or empty."""
    path = root.keys / "sessions.key"
    try:
        secret = path.read_bytes()
    except OSError as error:
        raise RootError(f"cannot read {path}: {error.strerror}; run `agent-runner init`") from error
    _check_secret(path, secret)
    return secret


def _lock(descriptor: int) -> None:
    """Take the lock of an open file; raises OSError where a daemon holds it.

    Whoever only looks (`store.keeper`) holds it for some microseconds; that must not refuse a daemon.
    """
    for _ in range(ATTEMPTS - 1):
        with suppress(BlockingIOError):
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return
        time.sleep(BETWEEN_ATTEMPTS_S)
    fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)


class Lock:
    """The right to keep a root: held by one process at a time, given back by the kernel when it ends."""

    def __init__(self, root: Root) -> None:
        self._root = root
        self._descriptor: int | None = None

    def __enter__(self) -> Self:
        """Take the lock; raises AlreadyRunningError naming the process that holds it."""
        path = self._root.state / "runner.lock"
        try:
            descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o600)
        except OSError as error:
            raise RootError(
                f"cannot write {path}: {error.strerror}; check the folder's owner and mode"
            ) from error
        try:
            _lock(descriptor)
        except OSError as error:
            text = os.pread(descriptor, 32, 0).decode("ascii", "replace").strip()
            os.close(descriptor)
            raise AlreadyRunningError(self._root.path, int(text) if text.isdigit() else None) from error
        os.ftruncate(descriptor, 0)
        os.pwrite(descriptor, f"{os.getpid()}\n".encode(), 0)
        self._descriptor = descriptor
        return self

    def __exit__(self, *exc_info: object) -> None:
        if self._descriptor is not None:
            os.close(self._descriptor)

    def publish(self, runner: RunnerFile) -> None:
        """Write `runner.json` whole."""
        temporary = self._root.runner_file.with_suffix(".new")
        temporary.write_bytes(msgspec.json.encode(runner) + b"\n")
        temporary.replace(self._root.runner_file)

    def withdraw(self) -> None:
        """Take `runner.json` away again."""
        with suppress(OSError):
            self._root.runner_file.unlink()


def checked_platform(root: Root) -> Path:
    """Return the platform folder of a root; raises ConfigurationError where there is none."""
    if not root.platform.is_dir():
        raise ConfigurationError(
            str(root.platform),
            None,
            "there is no platform folder",
            "Lay the root out with `agent-runner init`.",
        )
    return root.platform
