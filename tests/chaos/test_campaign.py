"""A short campaign: some kills of a real daemon under load break no promise, and its report says what was done."""

from __future__ import annotations

import json
from pathlib import Path

import trio

from tests.chaos.__main__ import read_order
from tests.chaos.campaign import Campaign, Order
from tests.chaos.record import Life, Violation
from tests.chaos.report import Report


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


async def test_a_campaign_that_is_stopped_keeps_what_it_counted(tmp_path: Path):
    campaign = Campaign(Order(kills=100, seed=5, sessions=2, keep=tmp_path, warm=True))
    with trio.CancelScope() as scope:
        campaign.say = lambda _line: scope.cancel()
        await campaign.run()
    assert campaign.report.totals["roots"] == 1
    assert campaign.report.kills == 1
    assert campaign.report.checks["half-written files are bounded"] == 0
    campaign.report.finish()
    assert "1 kills" in campaign.report.text()


def test_the_command_line_is_read():
    order, file = read_order(["--kills", "9", "--seed", "3", "--sessions", "4", "--json", "out.json"])
    assert (order.kills, order.seed, order.sessions, file) == (9, 3, 4, Path("out.json"))
