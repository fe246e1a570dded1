"""How long a daemon takes to be ready again after a kill, with many sessions in its store.

    python -m bench.restart [--quick]

A real daemon is started on a store as a kill leaves it: the write-ahead log is not folded in, and in the last row some
sessions have a turn that runs, with a call whose outcome nobody knows. The sessions are made through the store's own
writes: each has two turns with their history and their ledger entries. Every start has a fresh copy. The time goes from
the start of the process to its ready line; most of it is Python's own start and the imports, which the first row shows.
"""

from __future__ import annotations

import os
import shutil
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Final

import apsw

from bench.measure import Goal, Report, Table, command, median, quantile
from bench.processes import daemon, new_root, processor_s
from protocol.canonical import hash_of
from protocol.entry import Entry, compose_entry
from store.clock import StrictClock
from store.database import open_reader, open_writer
from store.ledger import AppendEntry, verify
from store.root import Root
from store.sessions import (
    AppendHistory,
    BeginTurn,
    CreateSession,
    EndTurn,
    SessionRow,
    session_id,
    turn_id,
)
from store.unit_of_work import UnitOfWork, Write, commit_units

AGENT: Final = "calli"
TURNS: Final = 2
UNITS_A_COMMIT: Final = 200
_USAGE: Final = {"input_tokens": 900, "output_tokens": 60}
_ANSWER: Final = "The disk of the archive is full; I have written to reed about it. " * 4


class Author:
    """Makes the writes of sessions as a daemon makes them."""

    def __init__(self) -> None:
        self._clock = StrictClock()

    def session(self, number: int, *, is_running: bool) -> UnitOfWork:
        """Return everything that is stored of a session: what ended, and the turn that runs, if one does."""
        key, created_at = f"{AGENT}:bench:{number}", self._clock.stamp()
        identifier = session_id(AGENT, key, created_at)
        row = SessionRow(
            identifier,
            AGENT,
            key,
            "operator",
            "rehearsal",
            None,
            "domain",
            "idle",
            None,
            created_at,
            created_at,
        )
        opened = self._entry(key, identifier, "session_lifecycle", {"event": "opened"}, [])
        writes: list[Write] = [CreateSession(row), AppendEntry(opened)]
        parent = opened
        for seq in range(TURNS):
            ended, parent = self._turn(row, seq, parent)
            writes += ended
        if is_running:
            writes += self._cut_off(row, parent)
        return UnitOfWork(tuple(writes))

    def _turn(self, row: SessionRow, seq: int, parent: Entry) -> tuple[list[Write], Entry]:
        identifier, now = turn_id(row.id, seq), self._clock.stamp()
        said = [{"type": "text", "text": _ANSWER}]
        entry = self._entry(
            row.session_key,
            row.id,
            "turn",
            {"turn_id": identifier, "status": "complete", "outputs_hash": hash_of(said), "usage": _USAGE},
            [parent.cid],
        )
        previous = parent.cid if seq else None
        return [
            BeginTurn(identifier, row.id, seq, previous, hash_of(seq), now),
            AppendHistory(row.id, identifier, "user", "How is the archive, and who looks after it?", now),
            AppendHistory(row.id, identifier, "assistant", said, now),
            AppendEntry(entry),
            EndTurn(identifier, row.id, "complete", entry.cid, hash_of(said), "end_turn", _USAGE, now),
        ], entry

    def _cut_off(self, row: SessionRow, parent: Entry) -> list[Write]:
        identifier, now, call = turn_id(row.id, TURNS), self._clock.stamp(), "toolu_bench"
        use = {"type": "tool_use", "id": call, "name": "write_file", "input": {"path": "notes.txt"}}
        verdict = self._entry(
            row.session_key,
            call,
            "policy_verdict",
            {"tool": "write_file", "call_id": call, "phase": "call", "verdict": "allowed"},
            [parent.cid],
        )
        made = {
            "tool": "write_file",
            "call_id": call,
            "input_hash": hash_of(use["input"]),
            "executor": "runner",
        }
        return [
            BeginTurn(identifier, row.id, TURNS, parent.cid, hash_of(TURNS), now),
            AppendHistory(row.id, identifier, "user", "Write it down.", now),
            AppendHistory(row.id, identifier, "assistant", [use], now),
            AppendEntry(verdict),
            AppendEntry(self._entry(row.session_key, call, "tool_call", made, [verdict.cid])),
        ]

    def _entry(
        self, key: str, target: str, quality: str, payload: dict[str, object], parents: list[str]
    ) -> Entry:
        entry, _ = compose_entry(
            entity_id=key,
            target=target,
            quality=quality,
            timestamp=self._clock.stamp(),
            source=key,
            actor=AGENT,
            parents=parents,
            payload=payload,
        )
        return entry


def fill(database: apsw.Connection, sessions: int, running: int) -> None:
    """Put so many sessions into the store; so many of them run, the newest."""
    author = Author()
    units = [author.session(number, is_running=number >= sessions - running) for number in range(sessions)]
    for start in range(0, len(units), UNITS_A_COMMIT):
        for outcome in commit_units(database, units[start : start + UNITS_A_COMMIT]):
            if isinstance(outcome, Exception):
                raise outcome


@contextmanager
def stored(folder: Path, sessions: int, running: int) -> Iterator[list[Path]]:
    """Make a store and yield its files as a kill leaves them, with what is not folded in yet."""
    folder.mkdir()
    file = folder / "agent-runner.db"
    database = open_writer(file)
    fill(database, sessions, running)
    assert verify(database).ok
    copies = folder / "as-killed"
    copies.mkdir()
    for path in (file, file.with_name(f"{file.name}-wal")):
        shutil.copy(path, copies)
    database.close()
    yield sorted(copies.iterdir())


def start(root: Root, files: list[Path], running: int) -> tuple[float, float]:
    """Start a daemon on a copy of a store, and make sure of what it recovered.

    Returns the seconds until it was ready, and how many of them it had a processor.
    """
    for path in root.state.glob(f"{root.database.name}*"):
        path.unlink()
    for path in files:
        shutil.copy(path, root.state)
    with daemon(root) as ready:
        worked_s = processor_s(ready.pid)
        database = open_reader(root.database)
        ended = database.execute("SELECT count(*) FROM turns WHERE status = 'interrupted'").get
        assert ended == running
        database.close()
        os.kill(ready.pid, signal.SIGKILL)
        return ready.ready_s, worked_s


def measure(*, quick: bool) -> Report:
    """Start on each store in turn, in rounds: a machine has its moods."""
    sessions, running, rounds = (200, 5, 1) if quick else (10_000, 20, 7)
    cases = {
        "nothing in the store": (0, 0),
        f"{sessions:,} sessions": (sessions, 0),
        f"{sessions:,} sessions, {running} of them running": (sessions, running),
    }
    times: dict[str, list[tuple[float, float]]] = {label: [] for label in cases}
    with TemporaryDirectory(prefix="agent-runner-bench-") as scratch, new_root() as root:
        files = {}
        for number, (label, (count, cut_off)) in enumerate(cases.items()):
            with stored(Path(scratch) / str(number), count, cut_off) as found:
                files[label] = found
        for _ in range(rounds):
            for label, (_, cut_off) in cases.items():
                times[label].append(start(root, files[label], cut_off))
    ready = {label: [seconds for seconds, _ in found] for label, found in times.items()}
    worked = {label: median([seconds for _, seconds in found]) for label, found in times.items()}
    usual = {label: median(found) for label, found in ready.items()}
    [empty, _, hardest] = usual.values()
    table = Table.of(
        f"Start to ready after a kill (s), {rounds} rounds",
        ["", "p50", "fastest", "slowest", "p50 to nothing", "on a processor, p50"],
        [
            [
                label,
                usual[label],
                min(found),
                quantile(found, 1.0),
                f"{usual[label] - empty:+.2f}",
                worked[label],
            ]
            for label, found in ready.items()
        ],
    )
    more = max(hardest - empty, 0.001)
    return Report([table], [Goal(f"{list(cases)[-1]}: more than an empty store takes, p50", more, 1, "s")])


if __name__ == "__main__":
    command(measure, __doc__)
