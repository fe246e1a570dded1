"""The daily token limits: held, warned of, lifted at midnight UTC, and not forgotten by a restart."""

from __future__ import annotations

import datetime as dt
from pathlib import Path

from structlog.testing import capture_logs

from actors.runtime.base import Usage
from actors.spending import spending
from tests.support.office import Office, open_office, say

NOON = dt.datetime(2026, 11, 22, 12, 0, tzinfo=dt.UTC)


def at(office: Office, moment: dt.datetime) -> None:
    """Set the clock of the machine; the ledger's goes on by microseconds from there."""
    office.clock._now = lambda: moment
    office.clock._last = moment


async def spend_450(_session, _request, host):
    say(host, "Well.")
    host.spend(Usage(400, 35))
    return "end_turn"


async def test_a_limit_is_reached_and_lifted_at_midnight(tmp_path: Path):
    async with open_office(
        tmp_path / "root", spend_450, limits={"tokens_per_agent_day": 900}, tokens_limited=True
    ) as office:
        at(office, NOON)
        ref = await office.open()
        assert [(await office.turn(ref)).status for _ in range(2)] == ["complete", "complete"]
        refused = await office.turn(ref)
        assert refused.error is not None
        assert refused.error.code == "rate_limited"
        assert "reed has spent 900 of 900 tokens today" in refused.error.message
        assert "2026-11-23T00:00:00Z" in refused.error.message
        at(office, NOON.replace(day=23, hour=0))
        assert (await office.turn(ref)).status == "complete"


async def test_a_restart_does_not_forget_what_was_spent(tmp_path: Path):
    limits = {"tokens_per_agent_day": 450}
    async with open_office(tmp_path / "root", spend_450, limits=limits, tokens_limited=True) as office:
        at(office, NOON)
        assert (await office.turn(await office.open())).status == "complete"
    async with open_office(tmp_path / "root", spend_450, limits=limits, tokens_limited=True) as office:
        at(office, NOON + dt.timedelta(hours=1))
        refused = await office.turn(await office.open())
        assert refused.error is not None
        assert refused.error.code == "rate_limited"


async def test_the_daemon_has_a_limit_over_all_agents(tmp_path: Path):
    async with open_office(
        tmp_path / "root", spend_450, limits={"tokens_per_day": 900}, tokens_limited=True
    ) as office:
        at(office, NOON)
        assert (await office.turn(await office.open("reed:test:1"))).status == "complete"
        assert (await office.turn(await office.open("calli:test:1"))).status == "complete"
        refused = await office.turn(await office.open("veda:test:1"))
        assert refused.error is not None
        assert "the daemon has spent 900 of 900" in refused.error.message
        assert "tokens_per_day" in refused.error.message


async def test_the_log_warns_once_at_four_fifths(tmp_path: Path):
    async with open_office(
        tmp_path / "root", spend_450, limits={"tokens_per_agent_day": 1_000}, tokens_limited=True
    ) as office:
        at(office, NOON)
        ref = await office.open()
        with capture_logs() as logs:
            for _ in range(3):
                await office.turn(ref)
        near = [log for log in logs if log["event"] == "daily token limit is near"]
        assert [(log["account"], log["spent"], log["limit"]) for log in near] == [("reed", 900, 1_000)]


async def test_status_shows_what_was_spent_and_no_limit_where_tokens_cost_nothing(tmp_path: Path):
    async with open_office(tmp_path / "root", spend_450) as office:
        at(office, NOON)
        await office.turn(await office.open())
        shown = spending(office.services)
        assert (shown["day"], shown["spent"], shown["accounts"]) == ("2026-11-22", 450, {"reed": 450})
        assert (shown["limit"], shown["limit_per_agent"]) == (None, None)
