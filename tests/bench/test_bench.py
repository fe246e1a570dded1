"""Every measurement can be run, and finds what it says it finds; how fast anything is, is not tested."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from bench.__main__ import NAMES, page
from bench.measure import Goal, Report, Table, figure, median, quantile

PROJECT = Path(__file__).parents[2]

ROWS = {
    "gate": ["(a call that slices a text)", "no path", "absolute path", "path outside, blocked"],
    "turn": [
        "direct exchange",
        "turn without calls",
        "two direct exchanges",
        "turn with 4 calls in one message",
        "direct exchange",
        "turn",
    ],
    "ledger": [
        "one commit an entry",
        "ledger writer, 1 producer",
        "ledger writer, 16 producers",
        "ledger writer, 64 producers",
    ],
    "wake": ["sent → turn begun", "answered → turn begun", "answered → model asked"],
    "actors": [
        "trio memory channel",
        "our actor",
        "pykka ThreadingActor",
        "asyncio.Queue actor",
        "crash to next answer (ms)",
    ],
    "memory": [
        "idle, 26 agents",
        "40 more sessions, opened",
        "40 more sessions, one turn each",
        "40 more that are passive, after a turn",
        "1 starts",
    ],
    "restart": ["nothing in the store", "200 sessions", "200 sessions, 5 of them running"],
}


def measured(name: str) -> Report:
    command = [sys.executable, "-m", f"bench.{name}", "--quick", "--json"]
    done = subprocess.run(command, cwd=PROJECT, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    return Report.from_json(done.stdout)


@pytest.mark.parametrize("name", NAMES)
def test_measurement_runs_by_itself_and_has_its_rows(name):
    report = measured(name)

    rows = [row for table in report.tables for row in table.rows]
    labels = [row[0] for row in rows]
    assert [label for label in labels if label in ROWS[name]] == ROWS[name]
    assert all(len(row) == len(table.columns) for table in report.tables for row in table.rows)
    assert all(any(cell[:1].isdigit() for cell in row[1:] if cell) for row in rows)
    assert all(goal.value > 0 for goal in report.goals)
    assert report.goals


def test_every_module_of_the_package_is_run_or_is_a_part_of_one_that_is():
    modules = {path.stem for path in (PROJECT / "bench").glob("*.py")}

    assert modules == {*NAMES, "__init__", "__main__", "measure", "processes", "model", "load"}


def test_page_holds_the_machine_first_and_every_table_with_its_goals():
    table = Table.of("Speed", ["", "ms"], [["baseline", 1.0], ["ours", 1234.5]])
    report = Report(
        [table], [Goal("ours", 12.0, 10, "ms"), Goal("rate", 12.0, 10, "/s", at_least=True)], ["So."]
    )

    lines = page({"date": "today"}, {"gate": report}).splitlines()

    found = [
        lines.index(line) for line in ("- date: today", "## gate", "| baseline | 1.00 |", "| ours | 1,234 |")
    ]
    assert found == sorted(found)
    assert "- To reach: ours ≤ 10 ms: 12.0, **missed**" in lines
    assert "- To reach: rate ≥ 10 /s: 12.0, reached" in lines
    assert lines[-1] == "So."


def test_quantiles_are_values_that_were_measured():
    values = [5.0, 1.0, 4.0, 2.0, 3.0]

    assert [quantile(values, share) for share in (0.0, 0.5, 0.99, 1.0)] == [1.0, 3.0, 5.0, 5.0]
    assert median([1.0, 2.0]) == 2.0


def test_figures_have_three_digits():
    assert [figure(value) for value in (0.0, 0.123, 1.234, 12.34, 1234.5)] == [
        "0",
        "0.12",
        "1.23",
        "12.3",
        "1,234",
    ]
