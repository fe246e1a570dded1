"""A short campaign: some kills of a real daemon under load break no promise, and its report says what was done."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from pathlib import Path

from tests.chaos.__main__ import read_order
from tests.chaos.campaign import Campaign, Order
from tests.chaos.record import Life, Violation
from tests.chaos.report import Report
from tests.support.daemon import PROJECT


async def test_a_short_campaign_breaks_no_promise(tmp_path: Path):
    campaign = Campaign(Order(kills=6, seed=11, minutes=2, sessions=12, keep=tmp_path, warm=True))
    await campaign.run()
    report = campaign.report
    report.finish()
    assert [f"{found.rule}: {found.evidence}" for found in report.violations] == []
    assert report.kills == 6
    assert report.totals["turns interrupted"] > 0
    assert report.totals["turns complete"] > 0
    assert report.checks["the ledger verifies"] >= 6
    written = json.loads(json.dumps(report.plain()))
    assert sum(written["kills_by_phase"].values()) == 6
    assert "violations: 0" in report.text()


def test_a_report_names_each_violation_with_its_seed_and_moment():
    report = Report(seed=17, kills=2, lives=[Life(1, "load", ready_s=1.0, end="killed", files_at_ready=20)])
    report.violations.append(Violation("no mail is lost", "ab12 to reed", 17, 1, "2026-01-01T00:00:00Z"))
    text = report.text()
    assert "no mail is lost\n    seed 17, life 1, 2026-01-01T00:00:00Z\n    ab12 to reed" in text
    assert "violations: 1" in text


def test_open_files_that_grow_and_half_written_files_without_a_kill_are_violations():
    lives = [Life(number, "load", files_at_ready=20 + 10 * number) for number in range(12)]
    report = Report(lives=lives)
    report.totals["half-written files left"] = 1
    report.finish()
    assert {found.rule for found in report.violations} == {
        "open files do not grow",
        "half-written files are bounded",
    }


def test_a_campaign_that_is_interrupted_reports_what_it_had(tmp_path: Path):
    words = ["--kills", "100", "--sessions", "2", "--seed", "5", "--json", str(tmp_path / "report.json")]
    with subprocess.Popen(
        [sys.executable, "-m", "tests.chaos", *words],
        cwd=PROJECT,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        try:
            assert "1 kills" in process.stderr.readline()
            process.send_signal(signal.SIGINT)
            printed, _ = process.communicate(timeout=60)
        finally:
            process.kill()
    assert process.returncode == 0
    assert "kills in" in printed
    assert "violations: 0" in printed
    assert json.loads((tmp_path / "report.json").read_text())["kills"] >= 1


def test_the_command_line_is_read():
    order, file = read_order(["--kills", "9", "--seed", "3", "--sessions", "4", "--json", "out.json"])
    assert (order.kills, order.seed, order.sessions, file) == (9, 3, 4, Path("out.json"))
