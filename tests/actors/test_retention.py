"""What is thrown away when its time has come, and what is not."""

from __future__ import annotations

import datetime as dt
from pathlib import Path

from actors.directory import ask
from actors.retention import Retention
from actors.session_messages import Close
from store.ledger import count_entries
from tests.support.office import GUEST, Office, open_office

TTL_S = 1_800.0


def later(office: Office, **spans: float) -> None:
    """Let so much time pass on the clock of the machine."""
    moment = office.clock.moment() + dt.timedelta(**spans)
    office.clock._now = lambda: moment


async def sweep(office: Office) -> None:
    await Retention(lambda: office.services, office.root.workspaces, TTL_S).sweep()


async def closed_guest(office: Office, key: str) -> Path:
    """Let a guest take a turn, leave a file and close; return its folder."""
    ref = await office.open(key, GUEST)
    await office.turn(ref, caller=GUEST)
    [(identifier,)] = office.rows("SELECT id FROM sessions WHERE session_key = ?", key)
    folder = office.root.workspaces / "guests" / identifier[:16]
    folder.mkdir()
    (folder / "note.txt").write_text("mine")
    await ask(ref, Close(GUEST, None))
    return folder


async def test_a_guests_folder_goes_with_the_time_to_live_and_its_session_later(tmp_path: Path):
    async with open_office(tmp_path / "root", limits={"guest_session_days": 2}) as office:
        folder = await closed_guest(office, "calli:web:1")
        await sweep(office)
        assert folder.is_dir()
        later(office, seconds=TTL_S + 1)
        await sweep(office)
        assert not folder.exists()
        assert office.rows("SELECT count(*) FROM sessions") == [(1,)]
        entries = count_entries(office.database)
        later(office, days=2)
        await sweep(office)
        rows = "(SELECT id FROM sessions UNION ALL SELECT id FROM turns UNION ALL SELECT id FROM history)"
        assert office.rows("SELECT count(*) FROM " + rows) == [(0,)]
        assert count_entries(office.database) == entries
        office.check_ledger()


async def test_a_link_in_place_of_a_guests_folder_is_left_alone(tmp_path: Path):
    async with open_office(tmp_path / "root") as office:
        folder = await closed_guest(office, "calli:web:1")
        precious = tmp_path / "precious"
        folder.rename(precious)
        folder.symlink_to(precious)
        later(office, days=1)
        await sweep(office)
        assert (precious / "note.txt").is_file()


async def test_nothing_of_proved_identities_is_thrown_away_by_default(tmp_path: Path):
    async with open_office(tmp_path / "root") as office:
        await office.turn(await office.open())
        before = office.rows("SELECT count(*) FROM history")
        later(office, days=10_000)
        await sweep(office)
        assert office.rows("SELECT count(*) FROM history") == before
        assert before != [(0,)]


async def test_history_beyond_its_age_is_forgotten_and_the_turns_stay(tmp_path: Path):
    async with open_office(tmp_path / "root", limits={"history_days": 7}) as office:
        ref = await office.open()
        await office.turn(ref)
        later(office, days=8)
        await office.turn(ref)
        await sweep(office)
        assert office.rows("SELECT count(*) FROM turns") == [(2,)]
        assert office.rows("SELECT DISTINCT turn_id FROM history") == office.rows(
            "SELECT id FROM turns WHERE seq = 1"
        )
        office.check_ledger()
