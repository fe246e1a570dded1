"""How many entries the ledger takes in a second, and how long a producer waits for each.

    python -m bench.ledger [--quick]

Producers append one entry after another to a real file (WAL, synchronous=FULL) through the shipped `LedgerWriter`, each
waiting until its entry is durable before it makes the next; making the entry (canonical form, hash) is included. The
baseline commits every entry by itself, in the same process, without an actor or a thread between. Where the disk makes
a commit cheap the ratio is small, and the other way round: the row of bare commits says what this disk takes.
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Final

import trio

from actors.kernel import ChildSpec, Ref, open_system
from actors.ledger_writer import LedgerWriter, WriterFigures, commit
from bench.measure import Goal, Report, Table, command, median, quantile
from protocol.canonical import blake3_hex
from protocol.entry import compose_entry
from store.clock import StrictClock
from store.database import open_writer
from store.ledger import AppendEntry, count_entries, verify
from store.unit_of_work import UnitOfWork, commit_units

PRODUCERS: Final = (1, 16, 64)

Measured = tuple[float, list[float], float]
"""Entries a second, the seconds that each took to be acknowledged, and entries to a commit."""


def new_entry(clock: StrictClock, producer: int) -> AppendEntry:
    """Make an entry like those of a call, a verdict of some 700 bytes, as a journal does."""
    key = f"calli:bench:{producer}"
    payload = {
        "tool": "read_file",
        "call_id": "toolu_bench",
        "phase": "call",
        "verdict": "allowed",
        "rule": "standard-tools-inside-the-workspace",
        "reason": "The standard tools are open to everyone; the workspace bounds what they reach.",
        "trust": "standing",
        "constitution_hash": _HASH,
        "rules_hash": _HASH,
        "input_hash": _HASH,
    }
    entry, text = compose_entry(
        entity_id=key,
        target="toolu_bench",
        quality="policy_verdict",
        timestamp=clock.stamp(),
        source=key,
        actor="calli",
        parents=[],
        payload=payload,
    )
    return AppendEntry(entry, text)


_HASH: Final = blake3_hex(b"bench")


def one_by_one(file: Path, seconds: float) -> Measured:
    """Commit entries one by one."""
    database, clock, times = open_writer(file), StrictClock(), []
    began = time.perf_counter()
    while time.perf_counter() - began < seconds:
        start = time.perf_counter()
        commit_units(database, [UnitOfWork((new_entry(clock, 0),))])
        times.append(time.perf_counter() - start)
    rate = len(times) / (time.perf_counter() - began)
    database.close()
    return rate, times, 1.0


def bare_commits(file: Path, seconds: float) -> Measured:
    """Commit one small row at a time, which is what the disk takes."""
    database, times = open_writer(file), []
    database.execute("CREATE TABLE bare (number INTEGER PRIMARY KEY)")
    began = time.perf_counter()
    while time.perf_counter() - began < seconds:
        start = time.perf_counter()
        database.execute("INSERT INTO bare VALUES (NULL)")
        times.append(time.perf_counter() - start)
    rate = len(times) / (time.perf_counter() - began)
    database.close()
    return rate, times, 1.0


async def through_writer(file: Path, producers: int, seconds: float) -> Measured:
    """Have producers append side by side."""
    clock, times, figures = StrictClock(), [], WriterFigures()
    began = 0.0

    async def produce(writer: Ref, number: int) -> None:
        while time.perf_counter() - began < seconds:
            start = time.perf_counter()
            await commit(writer, new_entry(clock, number))
            times.append(time.perf_counter() - start)

    spec = ChildSpec("ledger_writer", lambda: LedgerWriter(lambda: open_writer(file), figures))
    async with open_system(spec) as system:
        began = time.perf_counter()
        async with trio.open_nursery() as nursery:
            for number in range(producers):
                nursery.start_soon(produce, system.root, number)
        rate = len(times) / (time.perf_counter() - began)
    return rate, times, figures.units / figures.commits


def check(file: Path, entries: int) -> None:
    """Make sure that every entry that was acknowledged stands in the ledger, whole."""
    database = open_writer(file)
    assert count_entries(database) == entries
    assert verify(database).ok
    database.close()


def measure(*, quick: bool) -> Report:
    """Append one by one and through the writer with ever more producers, in rounds: a disk has its moods."""
    seconds, rounds = (0.2, 2) if quick else (1.0, 5)
    found: dict[str, list[tuple[float, list[float], float]]] = {}
    with tempfile.TemporaryDirectory(prefix="agent-runner-bench-") as folder:
        for number in range(rounds):
            for label, append in CONTENDERS.items():
                file = Path(folder) / f"{number}-{label}.db"
                found.setdefault(label, []).append(append(file, seconds))
    base = median([rate for rate, _, _ in found[BASELINE]])
    rows: list[list[float | str]] = []
    ratios = {}
    for label, measured in found.items():
        rate = median([rate for rate, _, _ in measured])
        times = [time for _, times, _ in measured for time in times]
        size = median([size for _, _, size in measured])
        ratios[label] = rate / base
        rows.append([label, rate, f"{rate / base:.1f}x", *_ms(times), size])
    table = Table.of(
        f"Durable appends, {rounds} rounds of {seconds:g} s",
        ["", "entries/s", "to baseline", "acknowledged p50 ms", "p99 ms", "entries a commit"],
        rows,
    )
    return Report(
        [table], [Goal("64 producers to one commit an entry", ratios[_name(64)], 8, "x", at_least=True)]
    )


def _through(producers: int) -> Callable[[Path, float], Measured]:
    def append(file: Path, seconds: float) -> Measured:
        measured: Measured = trio.run(through_writer, file, producers, seconds)
        check(file, len(measured[1]))
        return measured

    return append


def _name(producers: int) -> str:
    return f"ledger writer, {producers} producer{'s' if producers > 1 else ''}"


BASELINE: Final = "one commit an entry"
CONTENDERS: Final[dict[str, Callable[[Path, float], Measured]]] = {
    BASELINE: one_by_one,
    "(bare commits of one number)": bare_commits,
    **{_name(producers): _through(producers) for producers in PRODUCERS},
}


def _ms(seconds: list[float]) -> tuple[float, float]:
    return median(seconds) * 1000, quantile(seconds, 0.99) * 1000


if __name__ == "__main__":
    command(measure, __doc__)
