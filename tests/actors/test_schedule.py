"""Heartbeats and the retention as timers in the database: due after a restart when they were due before it."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest
import trio
from trio.testing import MockClock

from actors.kernel import RootFailedError
from actors.ledger_writer import commit
from actors.schedule import AGAIN_S
from actors.standing import RosterEnacted
from store.clock import parse_rfc3339
from store.content import load_content
from store.database import StorageError
from store.mailbox import Mail
from store.timers import SaveTimers, TimerRow, next_heartbeats, stored_timers
from tests.support.office import Office, open_office, settled
from tests.support.storage import at

NOON = 1_800_000_000.0
HEARTBEAT_S = 300.0


class Wall:
    """A clock that can be set: it goes with trio's, `shift` seconds away from it."""

    shift = 0.0

    def __call__(self) -> float:
        return NOON + trio.current_time() + self.shift


async def after(seconds: float) -> None:
    await trio.sleep(seconds)
    await settled()


def due(office: Office) -> dict[str, float]:
    """Return what is stored: when each timer is due, on the clock of the test."""
    return {row.name: parse_rfc3339(row.due_at).timestamp() - NOON for row in stored_timers(office.database)}


async def missed_mail(office: Office, recipient: str) -> Mail:
    """Send mail that wakes nobody, as a crash between the commit and the call would."""
    announce, office.announce = office.announce, lambda _mails: None  # type: ignore[method-assign]
    try:
        return await office.mail(recipient)
    finally:
        office.announce = announce  # type: ignore[method-assign]


async def run_and_kill(folder: Path, during: Callable[[Office], Awaitable[Any]], **options: Any) -> None:
    """Run an office and end it as `kill -9` does: no hook runs, and nothing more is stored."""

    async def run() -> None:
        async with open_office(folder, wall=Wall(), **options) as office:
            await settled()
            await during(office)
            office.trunk.kill()
            await trio.sleep_forever()

    with pytest.raises(RootFailedError):
        await run()


async def test_each_standing_agent_has_a_timer_and_looks_for_mail_that_woke_nobody(
    tmp_path: Path, autojump_clock: MockClock
):
    async with open_office(tmp_path / "root", standing=["reed", "calli"], wall=Wall()) as office:
        await settled()
        agents = {identity.id for identity in office.enacted.content.roster.standing()}
        assert len(agents) == 26
        assert set(next_heartbeats(office.database)) == agents
        await missed_mail(office, "reed")
        await after(HEARTBEAT_S - 1)
        assert office.runtime.requests == []
        await after(2)
        assert [session.session_key for session, _ in office.runtime.requests] == ["reed:cli:local"]


async def test_beat_of_all_agents_is_one_unit_of_work_and_no_entry_of_the_ledger(
    tmp_path: Path, autojump_clock: MockClock
):
    async with open_office(tmp_path / "root", standing=None, wall=Wall()) as office:
        await after(100)
        entries = office.rows("SELECT count(*) FROM ledger")
        office.units.clear()
        await after(2 * HEARTBEAT_S)
        # At 300 the agents, at 600 the agents and the retention.
        assert [len(unit.writes[0].rows) for unit in office.units] == [26, 27]  # type: ignore[attr-defined]
        assert office.rows("SELECT count(*) FROM ledger") == entries
        assert set(due(office).values()) == {900.0, 1200.0}


@pytest.mark.parametrize("down_s", [0.0, 100.0])
async def test_heartbeat_after_a_kill_comes_when_it_was_due(
    tmp_path: Path, autojump_clock: MockClock, down_s: float
):
    async def live(office: Office) -> None:
        await after(450)  # beats at 300; the next is due at 600

    await run_and_kill(tmp_path / "root", live, standing=["reed"])
    await trio.sleep(down_s)
    async with open_office(tmp_path / "root", standing=["reed"], wall=Wall()) as office:
        await settled()
        assert due(office)["heartbeat/reed"] == 600
        await missed_mail(office, "reed")
        await after(599 - trio.current_time())
        assert office.runtime.requests == []
        await after(2)
        assert len(office.runtime.requests) == 1


async def test_beats_that_were_missed_while_the_daemon_was_down_are_one(
    tmp_path: Path, autojump_clock: MockClock
):
    async def live(office: Office) -> None:
        await after(10)

    await run_and_kill(tmp_path / "root", live, standing=["reed"])
    await trio.sleep(10 * HEARTBEAT_S + 1)
    async with open_office(tmp_path / "root", standing=["reed"], wall=Wall()) as office:
        await after(2)
        beats = [
            row.name
            for unit in office.units
            for write in unit.writes
            if isinstance(write, SaveTimers)
            for row in write.rows
        ]
        assert beats.count("heartbeat/reed") == 1
        assert due(office)["heartbeat/reed"] == 11 * HEARTBEAT_S  # the rhythm is kept


async def test_other_interval_counts_from_the_beat_that_was_due_and_a_shorter_one_from_now(
    tmp_path: Path, autojump_clock: MockClock
):
    async def live(office: Office) -> None:
        await after(100)

    await run_and_kill(tmp_path / "root", live, standing=["reed"])
    for heartbeat_s, expected in ((3600.0, 300), (60.0, 160)):
        async with open_office(
            tmp_path / "root", standing=["reed"], wall=Wall(), heartbeat_s=heartbeat_s
        ) as office:
            await settled()
        async with open_office(tmp_path / "root", wall=Wall(), heartbeat_s=heartbeat_s) as office:
            await settled()
            assert due(office)["heartbeat/reed"] == pytest.approx(expected)


async def test_without_heartbeat_none_is_stored_and_none_comes_from_before(
    tmp_path: Path, autojump_clock: MockClock
):
    async def live(office: Office) -> None:
        assert len(next_heartbeats(office.database)) == 26

    await run_and_kill(tmp_path / "root", live, standing=["reed"])
    async with open_office(tmp_path / "root", standing=["reed"], wall=Wall(), heartbeat_s=None) as office:
        await settled()
        assert list(due(office)) == ["retention"]
        await missed_mail(office, "reed")
        await after(10 * HEARTBEAT_S)
        assert office.runtime.requests == []


async def test_roster_adds_and_removes_timers(tmp_path: Path, autojump_clock: MockClock):
    async with open_office(tmp_path / "root", standing=["reed", "calli"], wall=Wall()) as office:
        await after(100)
        path = office.root.platform / "roster.yaml"
        live = path.read_text()
        frozen = live.replace(
            "- id: reed\n    kind: role\n    state: live", "- id: reed\n    kind: role\n    state: frozen"
        )
        assert frozen != live
        for text, expected in ((frozen, None), (live, 100 + HEARTBEAT_S)):
            path.write_text(text)
            office.enacted.content = load_content(office.root.platform)
            schedule = office.trunk.child("schedule")
            assert schedule is not None
            schedule.tell(RosterEnacted(office.enacted.content.roster))
            await settled()
            assert due(office).get("heartbeat/reed") == expected
            assert due(office)["heartbeat/calli"] == HEARTBEAT_S


async def test_agent_that_is_parked_or_gone_keeps_no_other_from_its_heartbeat(
    tmp_path: Path, autojump_clock: MockClock
):
    async with open_office(tmp_path / "root", standing=["reed", "calli"], wall=Wall()) as office:
        await settled()
        ref = office.standing("reed")
        assert ref is not None
        while ref.state != "parked":
            ref.kill()
            await after(5)
        await missed_mail(office, "calli")
        await after(HEARTBEAT_S)
        assert [session.session_key for session, _ in office.runtime.requests] == ["calli:cli:local"]


async def test_clock_that_is_set_back_silences_no_heartbeat(tmp_path: Path, autojump_clock: MockClock):
    wall = Wall()
    async with open_office(tmp_path / "root", standing=["reed"], wall=wall) as office:
        await after(10)
        wall.shift = -86_400.0
        await missed_mail(office, "reed")
        await after(HEARTBEAT_S + 60)
        assert len(office.runtime.requests) == 1


async def test_disk_that_is_full_at_the_start_has_heartbeats_as_soon_as_there_is_room(
    tmp_path: Path, autojump_clock: MockClock
):
    async with open_office(tmp_path / "root", standing=["reed"], wall=Wall()) as office:
        office.failure = StorageError("the disk is full")
        await settled()
        assert due(office) == {}
        await after(100)
        office.failure = None
        await after(AGAIN_S)
        assert len(next_heartbeats(office.database)) == 26
        assert office.trunk.child("schedule").generation == 1  # type: ignore[union-attr]


async def test_retention_looks_at_the_first_start_and_then_when_it_is_due_however_often_the_daemon_starts(
    tmp_path: Path, autojump_clock: MockClock, monkeypatch: pytest.MonkeyPatch
):
    looks: list[float] = []

    async def sweep(_self: Any) -> None:
        looks.append(round(trio.current_time()))
        if len(looks) == 3:
            raise StorageError("the disk is full")

    monkeypatch.setattr("actors.retention.Retention.sweep", sweep)

    async def live(office: Office) -> None:
        await after(230)

    for _ in range(8):
        await run_and_kill(tmp_path / "root", live, heartbeat_s=None)
    # The third failed, and comes again about a minute later.
    assert looks[:3] == [0, 600, 1200]
    assert 1248 <= looks[3] <= 1272
    assert looks[4:] == [1800]


async def test_timer_that_nobody_wants_any_more_is_not_kept_by_the_schedule(
    tmp_path: Path, autojump_clock: MockClock
):
    async def live(office: Office) -> None:
        await settled()

    await run_and_kill(tmp_path / "root", live)
    async with open_office(tmp_path / "root") as office:
        gone = TimerRow("heartbeat/nobody", "standing/nobody", "", at(), 1.0)
        await commit(office.writer, SaveTimers([gone]))
    async with open_office(tmp_path / "root", wall=Wall()) as office:
        await settled()
        assert "heartbeat/nobody" not in due(office)


async def test_row_that_is_no_timer_keeps_nobody_from_starting_and_is_mended(
    tmp_path: Path, autojump_clock: MockClock
):
    async with open_office(tmp_path / "root") as office:
        bad = TimerRow("heartbeat/reed", "standing/reed", "", "tomorrow", 300.0)
        await commit(office.writer, SaveTimers([bad]))
    async with open_office(tmp_path / "root", wall=Wall()) as office:
        await settled()
        assert due(office)["heartbeat/reed"] == HEARTBEAT_S
