"""Many seeds, on some processes, and a report of what they came to."""

from __future__ import annotations

import multiprocessing
import os
import signal
import sys
import time
import traceback
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from multiprocessing.connection import Connection, wait
from pathlib import Path

from tests.simulation.simulator import Result, simulate, template
from tests.simulation.trace import Violation

SEED_S = 120
"""A seed that takes longer, in real seconds, goes round in a circle."""

HANGS = "a run ends"


@dataclass(slots=True)
class Report:
    """What a campaign came to."""

    seeds: int = 0
    seconds: float = 0.0
    length: int = 0
    events: Counter[str] = field(default_factory=Counter)
    faults: Counter[str] = field(default_factory=Counter)
    checks: Counter[str] = field(default_factory=Counter)
    failed: dict[int, tuple[Violation, ...]] = field(default_factory=dict)

    def add(self, result: Result) -> None:
        """Count a seed."""
        self.seeds += 1
        self.length += result.length
        self.events += result.events
        self.faults += result.faults
        self.checks += result.checks
        if result.violations:
            self.failed[result.seed] = result.violations

    def lines(self) -> Iterator[str]:
        """Return the report as text."""
        yield f"{self.seeds} seeds in {self.seconds:.1f} s; {self.length:,} events"
        yield from _table("what happened", self.events)
        yield from _table("faults put in", self.faults)
        yield from _table("invariants checked", self.checks)
        for seed, violations in sorted(self.failed.items()):
            yield f"seed {seed} FAILED; see it with: python -m tests.simulation --seed {seed} --trace"
            yield from (f"  {violation}" for violation in violations[:5])
        yield f"{len(self.failed)} of {self.seeds} seeds failed" if self.failed else "all seeds hold"


def _table(title: str, counts: Counter[str]) -> Iterator[str]:
    yield f"{title}:"
    yield from (f"  {count:>10,}  {name}" for name, count in sorted(counts.items()))


def run_campaign(seeds: Sequence[int], *, jobs: int = 1, stop_at_first: bool = False) -> Report:
    """Run seeds and report; with more than one job, in processes of their own, which may hang without harm."""
    report = Report()
    begun = time.monotonic()
    with template() as root:
        results = (
            _results(seeds, jobs, root) if jobs > 1 else (_simulate_bounded(seed, root) for seed in seeds)
        )
        for result in results:
            report.add(result)
            if sys.stderr.isatty():
                sys.stderr.write(f"\r{report.seeds}/{len(seeds)}, {len(report.failed)} failed ")
            if stop_at_first and report.failed:
                break
    report.seconds = time.monotonic() - begun
    return report


def _simulate_bounded(seed: int, root: Path) -> Result:
    """Simulate a seed; end this process where it hangs, since what hangs could swallow any exception."""

    def give_up(*_: object) -> None:
        sys.stderr.write(f"seed {seed} does not end\n")
        sys.stderr.flush()
        os._exit(1)

    before = signal.signal(signal.SIGALRM, give_up)
    signal.alarm(SEED_S)
    try:
        return simulate(seed, root)
    except Exception as error:  # noqa: BLE001 - a run that fails is a result too
        trace = "".join(traceback.format_exception(error))
        return Result(seed, "", 0, (Violation(HANGS, 0.0, f"the run itself failed: {trace}"),))
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)


def _work(seeds: Sequence[int], pipe: Connection, root: Path) -> None:
    for seed in seeds:
        pipe.send(seed)
        pipe.send(_simulate_bounded(seed, root))
    pipe.close()


def _results(seeds: Sequence[int], jobs: int, root: Path) -> Iterable[Result]:
    context = multiprocessing.get_context("fork")
    running: dict[Connection, tuple[multiprocessing.process.BaseProcess, list[int]]] = {}

    def start(share: list[int]) -> None:
        ours, theirs = context.Pipe(duplex=False)
        process = context.Process(target=_work, args=(share, theirs, root))
        process.start()
        theirs.close()
        running[ours] = (process, share)

    for number in range(jobs):
        start(list(seeds[number::jobs]))
    try:
        while running:
            for pipe in wait(list(running)):
                assert isinstance(pipe, Connection)
                process, share = running[pipe]
                try:
                    found = pipe.recv()
                except EOFError:
                    process.join()
                    del running[pipe]
                    if share:
                        # It ended over this seed: the others go on without it.
                        yield Result(
                            share[0], "", 0, (Violation(HANGS, 0.0, "the process of this seed ended"),)
                        )
                        start(share[1:])
                    continue
                if isinstance(found, Result):
                    share.pop(0)
                    yield found
    finally:
        for process, _ in running.values():
            process.kill()
