"""What every figure here is made with: quantiles, tables, goals, and the command line of a module.

A module of this package measures one question. It has a docstring, whose first line is the question, and
`measure(quick=…)`, which returns a `Report`; `python -m bench.NAME` prints that, `--quick` takes a few seconds and is
for seeing that it works, `--json` is for `python -m bench`.
"""

from __future__ import annotations

import argparse
import os
import platform
import sys
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass, field
from importlib.metadata import version
from pathlib import Path
from typing import Any, Final

import apsw
import orjson

LIBRARIES: Final = ("trio", "apsw", "msgspec", "orjson", "blake3", "httpx", "trio-websocket", "pykka")


def quantile(values: Sequence[float], share: float) -> float:
    """Return the value below which `share` (0 to 1) of the values lie: one of them, never between two."""
    return sorted(values)[min(len(values) - 1, int(len(values) * share))]


def median(values: Sequence[float]) -> float:
    """Return the middle one."""
    return quantile(values, 0.5)


def figure(value: float) -> str:
    """Write a number with the three digits that a measurement like these can bear."""
    if value == 0:
        return "0"
    digits = 0 if abs(value) >= 100 else 1 if abs(value) >= 10 else 2
    return f"{value:,.{digits}f}"


@dataclass(frozen=True, slots=True)
class Table:
    """Rows under columns; the first column names the row, the first row is what the others are compared with."""

    title: str
    columns: list[str]
    rows: list[list[str]]

    @classmethod
    def of(cls, title: str, columns: Iterable[str], rows: Iterable[Iterable[float | str]]) -> Table:
        """Make a table of numbers and texts."""
        cells = [[cell if isinstance(cell, str) else figure(cell) for cell in row] for row in rows]
        return cls(title, list(columns), cells)

    def text(self) -> str:
        """Return the table for a terminal."""
        rows = [self.columns, *self.rows]
        widths = [max(len(row[index]) for row in rows) for index in range(len(self.columns))]
        lines = [
            "  ".join(
                cell.rjust(width) if number else cell.ljust(width)
                for number, (cell, width) in enumerate(zip(row, widths, strict=True))
            )
            for row in rows
        ]
        return "\n".join([self.title, *(f"  {line}" for line in lines)])

    def markdown(self) -> str:
        """Return the table for a page."""
        lines = [self.columns, ["---", *("---:" for _ in self.columns[1:])], *self.rows]
        return "\n".join([f"**{self.title}**", "", *(f"| {' | '.join(row)} |" for row in lines)])


@dataclass(frozen=True, slots=True)
class Goal:
    """What a figure is to come to: at most `bound`, or at least that."""

    what: str
    value: float
    bound: float
    unit: str
    at_least: bool = False

    def text(self) -> str:
        """Return the goal, and whether this run came to it."""
        reached = self.value >= self.bound if self.at_least else self.value <= self.bound
        sign = "≥" if self.at_least else "≤"
        verdict = "reached" if reached else "**missed**"
        return f"{self.what} {sign} {self.bound:g} {self.unit}: {figure(self.value)}, {verdict}".replace(
            "  ", " "
        )


@dataclass(frozen=True, slots=True)
class Report:
    """What a module found: tables, how they compare with what is to be reached, and what is to be known of them."""

    tables: list[Table]
    goals: list[Goal] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    def text(self) -> str:
        """Return the report for a terminal."""
        lines = [f"{table.text()}\n" for table in self.tables]
        lines += [f"to reach: {goal.text()}".replace("**", "") for goal in self.goals]
        return "\n".join([*lines, *self.notes])

    def markdown(self) -> str:
        """Return the report for a page."""
        parts = [table.markdown() for table in self.tables]
        if self.goals:
            parts.append("\n".join(f"- To reach: {goal.text()}" for goal in self.goals))
        return "\n\n".join([*parts, *self.notes])

    @classmethod
    def from_json(cls, text: str) -> Report:
        """Return the report that another process wrote."""
        found = orjson.loads(text)
        return cls(
            [Table(**table) for table in found["tables"]],
            [Goal(**goal) for goal in found["goals"]],
            found["notes"],
        )


def command(measure: Callable[..., Report], document: str | None) -> None:
    """Be the command line of a module: measure, and print the report."""
    parser = argparse.ArgumentParser(description=(document or "").partition("\n")[0])
    parser.add_argument(
        "--quick", action="store_true", help="few rounds: whether it works, not what it costs"
    )
    parser.add_argument("--json", action="store_true", help="print the report as JSON")
    options = parser.parse_args()
    report = measure(quick=options.quick)
    if options.json:
        sys.stdout.write(orjson.dumps(asdict(report)).decode())
        return
    for name, value in machine().items():
        print(f"{name}: {value}")
    print(f"\n{report.text()}")


def machine() -> dict[str, str]:
    """Return what a figure depends on, in words: machine, system, versions, and how busy the machine was."""
    facts: dict[str, Any] = {
        "machine": f"{os.cpu_count()} cores, {_first('/proc/cpuinfo', 'model name')}, {_memory_gb():.1f} GB of memory",
        "system": f"{platform.system()} {platform.release()}",
        "python": f"{platform.python_implementation()} {platform.python_version()}",
        "libraries": ", ".join(f"{name} {version(name)}" for name in LIBRARIES)
        + f", SQLite {apsw.sqlite_lib_version()}",
        "load when it began": f"{os.getloadavg()[0]:.1f} (1 minute)",
    }
    return {name: str(value) for name, value in facts.items()}


def _first(path: str, name: str) -> str:
    for line in Path(path).read_text(encoding="utf-8").splitlines():
        if line.startswith(name):
            return line.partition(":")[2].strip()
    return "unknown"


def _memory_gb() -> float:
    return int(_first("/proc/meminfo", "MemTotal").split()[0]) / 1024 / 1024
