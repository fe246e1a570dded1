"""The campaign: a scratch copy, one seeded bug at a time, each suite in a process of its own."""

from __future__ import annotations

import compileall
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from queue import SimpleQueue
from typing import Final

from tests.mutants.mutant import Mutant

ROOT: Final = Path(__file__).parents[2]
COPIED: Final = ("actors", "store", "protocol", "platform", "tests", "pyproject.toml")
MACHINE: Final = "tests/actors/kernel/test_machine.py"
SUITES: Final = ("unit", "machine", "simulation")
BASELINE_LIMIT_S: Final = 900.0
FAILED: Final = 1  # what pytest and the simulation exit with when something does not hold


@dataclass(frozen=True, slots=True)
class Verdict:
    """What a suite said: `passed`, `failed`, `hung` (it had to be ended) or `broke` (it could not run at all)."""

    word: str
    seconds: float
    output: str = ""

    @property
    def kills(self) -> bool:
        """Whether the suite noticed."""
        return self.word in ("failed", "hung")

    def __str__(self) -> str:
        words = {"passed": "survived", "failed": f"killed {self.seconds:.0f} s", "hung": "killed (hang)"}
        return words.get(self.word, self.word)


@dataclass(slots=True)
class Row:
    """A bug, or None for the source as it is, and the verdicts of the suites that it was given to."""

    mutant: Mutant | None
    verdicts: dict[str, Verdict] = field(default_factory=dict)

    @property
    def killed(self) -> bool:
        """Whether any suite noticed."""
        return any(verdict.kills for verdict in self.verdicts.values())

    @property
    def broken(self) -> bool:
        """Whether a suite could not run."""
        return any(verdict.word == "broke" for verdict in self.verdicts.values())


@dataclass(slots=True)
class Campaign:
    """Which suites to run and how; `limits_s` are the seconds after which a suite with these tests counts as hung."""

    suites: Sequence[str]
    seeds: int
    limits_s: dict[tuple[str, tuple[str, ...]], float] = field(default_factory=dict)
    _live: set[subprocess.Popen[bytes]] = field(default_factory=set)

    def command(self, suite: str, tests: tuple[str, ...]) -> list[str]:
        """Return the command of a suite, to be run in a copy."""
        pytest = [sys.executable, "-m", "pytest", "-q", "-x", "-p", "no:cacheprovider"]
        if suite == "unit":
            return [*pytest, f"--ignore={MACHINE}", *tests]
        if suite == "machine":
            return [*pytest, MACHINE]
        return [sys.executable, "-m", "tests.simulation", "--seeds", str(self.seeds), "--stop-at-first"]

    def run_suite(self, copy: Path, suite: str, tests: tuple[str, ...] = ()) -> Verdict:
        """Run a suite in a copy; end it, and all that it started, when it takes too long."""
        environment = {
            **os.environ,
            "PYTHONPATH": str(copy),
            "PYTHONDONTWRITEBYTECODE": "1",  # a cache of an earlier bug must not pass for the present one
            "MACHINE_RAW": "1",
        }
        environment.pop("MACHINE_EXAMPLES", None)
        began = time.monotonic()
        with tempfile.TemporaryFile() as output:
            process = subprocess.Popen(
                self.command(suite, tests),
                cwd=copy,
                env=environment,
                stdout=output,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
            self._live.add(process)
            try:
                code = process.wait(self.limits_s.get((suite, tests), BASELINE_LIMIT_S))
                word = {0: "passed", FAILED: "failed"}.get(code, "broke" if code > 0 else "failed")
            except subprocess.TimeoutExpired:
                word = "hung"
            finally:
                self._live.discard(process)
                _end_group(process)
            output.seek(0)
            text = output.read()[-4_000:].decode(errors="replace")
        return Verdict(word, time.monotonic() - began, text)

    def run_baseline(self, copy: Path, mutants: Sequence[Mutant]) -> Row:
        """Run every suite on the source as it is, and set the limits by how long that took."""
        _check_copy(copy)
        row = Row(None)
        for suite in self.suites:
            sets = {mutant.tests for mutant in mutants} if suite == "unit" else {()}
            verdicts = []
            for tests in sorted(sets):
                verdict = self.run_suite(copy, suite, tests)
                self.limits_s[suite, tests] = 20 + 4 * verdict.seconds
                verdicts.append(verdict)
            worst = next((verdict for verdict in verdicts if verdict.word != "passed"), verdicts[0])
            row.verdicts[suite] = replace(worst, seconds=sum(verdict.seconds for verdict in verdicts))
        return row

    def end(self) -> None:
        """End the suites that run."""
        for process in list(self._live):
            _end_group(process)

    def run_mutant(self, copy: Path, mutant: Mutant) -> Row:
        """Run the suites that concern a bug, with the bug in the copy."""
        row = Row(mutant)
        source = mutant.apply(copy)
        path = copy / mutant.file
        for cached in path.parent.glob(f"__pycache__/{path.stem}.*.pyc"):
            cached.unlink()
        try:
            for suite in self.suites:
                if suite != "machine" or mutant.machine:
                    tests = mutant.tests if suite == "unit" else ()
                    row.verdicts[suite] = self.run_suite(copy, suite, tests)
        finally:
            path.write_text(source, encoding="utf-8")
        return row


def run_campaign(
    campaign: Campaign, mutants: Sequence[Mutant], *, jobs: int, report: Callable[[Row], None]
) -> list[Row]:
    """Run the baseline and then every mutant; `report` gets each row as it is there. Returns all rows.

    Raises StaleMutantError, before anything runs, where a mutant does not fit the source. When the baseline fails
    no mutant is run.
    """
    for mutant in mutants:
        mutant.mutate((ROOT / mutant.file).read_text(encoding="utf-8"))
    with _copies(jobs) as copies:
        baseline = campaign.run_baseline(copies[0], mutants)
        report(baseline)
        rows = [baseline]
        if any(verdict.word != "passed" for verdict in baseline.verdicts.values()):
            return rows
        free: SimpleQueue[Path] = SimpleQueue()
        for copy in copies:
            free.put(copy)

        def run(mutant: Mutant) -> Row:
            copy = free.get()
            try:
                return campaign.run_mutant(copy, mutant)
            finally:
                free.put(copy)

        with ThreadPoolExecutor(jobs) as pool:
            try:
                for row in pool.map(run, mutants):
                    report(row)
                    rows.append(row)
            except BaseException:
                pool.shutdown(wait=False, cancel_futures=True)
                campaign.end()
                raise
    return rows


@contextmanager
def _copies(count: int) -> Iterator[list[Path]]:
    """Yield scratch copies of the project, compiled."""
    with tempfile.TemporaryDirectory(prefix="mutants-") as folder:
        found = []
        for number in range(count):
            copy = Path(folder) / str(number)
            copy.mkdir()
            for name in COPIED:
                source = ROOT / name
                if source.is_dir():
                    shutil.copytree(source, copy / name, ignore=shutil.ignore_patterns("__pycache__"))
                else:
                    shutil.copy(source, copy / name)
            compileall.compile_dir(copy, quiet=2)
            found.append(copy)
        yield found


def _check_copy(copy: Path) -> None:
    """Make sure that a suite imports the copy and nothing else."""
    code = "import actors, store, protocol; print(actors.__file__, store.__file__, protocol.__file__)"
    found = subprocess.run(
        [sys.executable, "-c", code],
        cwd=copy,
        env={**os.environ, "PYTHONPATH": str(copy)},
        check=True,
        capture_output=True,
        text=True,
    ).stdout.split()
    if not all(Path(path).is_relative_to(copy) for path in found):
        raise RuntimeError(f"the suites would not import the copy but {found}; unset what shadows it")


def _end_group(process: subprocess.Popen[bytes]) -> None:
    """End a suite with all that it started; nothing of it runs afterwards."""
    with suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()
