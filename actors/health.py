"""What is wrong with the machine under the daemon, and with parts of it: each condition, since when, and what to do.

Every condition appears by itself and goes away by itself, without a restart, when its cause is gone. `Health` looks
when it is asked; the actor `HealthWatch` has it look every few seconds, so that each change is in the log, and tries
the disk while commits fail, so that nobody has to write something for the daemon to find that it is well again.
"""

from __future__ import annotations

import datetime as dt
import math
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final, Literal, NamedTuple

import apsw
import structlog
import trio

from actors.kernel import Actor, KernelError, Ref
from actors.ledger_writer import WriterFigures, commit
from protocol.errors import AgentRunnerError
from store.clock import StrictClock, rfc3339
from store.damage import STEP, Damage
from store.database import TouchDatabase
from store.machine import Machine

LOOK_EVERY_S: Final = 10.0
CHECK_DATABASE_EVERY_S: Final = 600.0
"""How often a database that was found damaged is checked whole again."""

FREE_BYTES_MIN: Final = 64 * 1024 * 1024
FREE_BYTES_GOOD: Final = 1024 * 1024 * 1024
SLOW_COMMIT_S: Final = 1.0
COMMITS_WITHIN_S: Final = 300.0
FILES_SHARE: Final = 0.9
FILES_SPARE: Final = 16
MEMORY_SHARE: Final = 0.9
AVAILABLE_SHARE: Final = 0.03
CLOCK_AHEAD_S: Final = 1.0
CLOCK_JUMP_S: Final = 5.0
CLOCK_SHOWN_S: Final = 600.0
"""How long a jump of the clock is shown behind it."""

_log = structlog.get_logger("health")


class Found(NamedTuple):
    """A condition as a look finds it; `failing` means that something that was asked for is refused now."""

    name: str
    severity: Literal["failing", "warning"]
    what: str
    to_do: str


COMMITS: Final[dict[type[apsw.Error], tuple[str, str]]] = {
    apsw.FullError: ("disk_full", "Free some space on the disk of the root."),
    apsw.ReadOnlyError: (
        "disk_read_only",
        "Mount the disk of the root for writing; see the kernel's log (dmesg).",
    ),
    apsw.CantOpenError: ("disk_unusable", "Look at owner, mode and disk of workspaces/.state."),
    apsw.CorruptError: ("database_damaged", f"{STEP[0].upper()}{STEP[1:]}."),
    apsw.NotADBError: ("database_damaged", f"{STEP[0].upper()}{STEP[1:]}."),
    apsw.BusyError: ("database_held", "End the other program that writes workspaces/.state/agent-runner.db."),
    apsw.LockedError: (
        "database_held",
        "End the other program that writes workspaces/.state/agent-runner.db.",
    ),
}
"""What a commit that failed is called, and what to do."""

IO_ERROR: Final = ("disk_io_error", "Free some space, look at the disk and at the kernel's log (dmesg).")


@dataclass
class Health:
    """Looks at everything, and remembers since when each thing is wrong; `more` are looks of other parts."""

    state: Path
    writer: WriterFigures
    damage: Damage
    clock: Callable[[], StrictClock]
    more: Callable[[], Iterable[Found]]
    machine: Machine = field(default_factory=Machine)
    _since: dict[str, str] = field(default_factory=dict)
    _offset_s: float | None = None
    _jumped: tuple[float, float] | None = None

    def look(self) -> list[dict[str, Any]]:
        """Return each condition there is now: name, severity, what, since (RFC 3339), to_do; the worst first."""
        found = {one.name: one for one in self._conditions()}
        for name in [name for name in self._since if name not in found]:
            _log.info("condition_ended", condition=name, since=self._since.pop(name))
        for name, one in found.items():
            if name not in self._since:
                self._since[name] = rfc3339(dt.datetime.fromtimestamp(self.machine.wall_s(), dt.UTC))
                _log.warning("condition_began", condition=name, what=one.what, to_do=one.to_do)
        worst_first = sorted(found.values(), key=lambda one: one.severity)
        return [{**one._asdict(), "since": self._since[one.name]} for one in worst_first]

    def _conditions(self) -> Iterator[Found]:
        for look in (
            self._commits,
            self._database,
            self._disk,
            self._files,
            self._memory,
            self._clock,
            self.more,
        ):
            try:
                yield from look()
            except (OSError, apsw.Error, KeyError, ValueError) as error:
                # What cannot be read is not known; that must not hide the rest.
                _log.debug("not_looked_at", why=str(error))

    def _commits(self) -> Iterator[Found]:
        figures = self.writer
        if figures.failing is not None:
            causes = [named for kind, named in COMMITS.items() if isinstance(figures.cause, kind)]
            name, to_do = causes[0] if causes else IO_ERROR
            yield Found(name, "failing", figures.failing, to_do)
            return
        now = time.perf_counter()
        waiting = now - figures.waiting_since if figures.waiting_since is not None else 0.0
        recent = sorted(took for at, took in list(figures.recent) if at > now - COMMITS_WITHIN_S)
        slowest = recent[math.ceil(len(recent) * 0.99) - 1] if recent else 0.0
        if max(waiting, slowest) >= SLOW_COMMIT_S:
            what = f"one commit in a hundred takes {slowest:.1f} s or longer"
            if waiting >= SLOW_COMMIT_S:
                what = f"a commit has waited for the disk for {waiting:.1f} s"
            yield Found(
                "disk_slow",
                "warning",
                what,
                "See what else writes to that disk, or move the root to a faster one.",
            )

    def _database(self) -> Iterator[Found]:
        if self.damage.problem is not None:
            name, to_do = COMMITS[apsw.CorruptError]
            yield Found(name, "failing", f"a page of the database is damaged: {self.damage.problem}", to_do)

    def _disk(self) -> Iterator[Found]:
        free = self.machine.free_bytes(self.state)
        if free < FREE_BYTES_GOOD:
            words = f"{free / 1024**2:,.0f} MiB are free where the database lies"
            severity: Literal["failing", "warning"] = "failing" if free < FREE_BYTES_MIN else "warning"
            yield Found("disk_low", severity, words, "Free some space before commits fail.")

    def _files(self) -> Iterator[Found]:
        used, allowed = self.machine.open_files()
        if used >= min(allowed * FILES_SHARE, allowed - FILES_SPARE):
            is_out = used >= allowed - 1
            yield Found(
                "files_low",
                "failing" if is_out else "warning",
                f"{used:,} of {allowed:,} files and sockets are open"
                + (": nobody can connect and no file can be opened" if is_out else ""),
                "Close clients or sessions, or start the daemon with a higher limit (ulimit -n, LimitNOFILE=).",
            )

    def _memory(self) -> Iterator[Found]:
        memory = self.machine.memory()
        if memory.limit is not None and memory.resident >= memory.limit * MEMORY_SHARE:
            what = f"the daemon holds {_mib(memory.resident)} of the {_mib(memory.limit)} that its control group allows"
            yield Found(
                "memory_low", "warning", what, "Raise the limit (MemoryMax=, --memory), or close sessions."
            )
        elif memory.available < memory.total * AVAILABLE_SHARE:
            what = f"{_mib(memory.available)} of the machine's {_mib(memory.total)} memory are left"
            yield Found(
                "memory_low",
                "warning",
                what,
                "See what uses it; the kernel may end the daemon when none is left.",
            )

    def _clock(self) -> Iterator[Found]:
        wall, steady = self.machine.wall_s(), self.machine.steady_s()
        offset, before = wall - steady, self._offset_s
        self._offset_s = offset
        if before is not None and abs(offset - before) >= CLOCK_JUMP_S:
            self._jumped = (offset - before, steady)
        ahead = self.clock().ahead_s()
        if ahead >= CLOCK_AHEAD_S:
            what = f"the machine's clock is {ahead:,.0f} s behind the newest ledger entry, whose times stand still"
            yield Found(
                "clock_behind",
                "warning",
                what,
                "See whether the clock is right (timedatectl); it mends itself.",
            )
        elif self._jumped is not None and steady - self._jumped[1] < CLOCK_SHOWN_S:
            way = "on" if self._jumped[0] > 0 else "back"
            what = f"the machine's clock was set {way} by {abs(self._jumped[0]):,.0f} s"
            yield Found("clock_jumped", "warning", what, "See whether the clock is right now (timedatectl).")


def _mib(size: int) -> str:
    return f"{size / 1024**2:,.0f} MiB"


class HealthWatch(Actor):
    """Looks every few seconds, and tries what failed."""

    def __init__(self, health: Health, writer: Callable[[], Ref], database: Path) -> None:
        super().__init__()
        self._health = health
        self._writer = writer
        self._path = database
        self._checked_at = -math.inf

    async def on_start(self) -> None:
        """Begin to look."""
        self.start_task(self._watch, name="watch")

    async def _watch(self) -> None:
        while True:
            self._health.look()
            await trio.sleep(LOOK_EVERY_S)
            if self._health.writer.failing is not None:
                with suppress(AgentRunnerError, KernelError):  # which `failing` says
                    await commit(self._writer(), TouchDatabase())
            now = trio.current_time()
            if self._health.damage.problem is not None and now >= self._checked_at + CHECK_DATABASE_EVERY_S:
                self._checked_at = now
                with suppress(apsw.Error):
                    await trio.to_thread.run_sync(self._health.damage.look_again, self._path)
