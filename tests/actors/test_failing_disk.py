"""A disk that refuses a commit and is well again: the turn fails, and the ledger and the history hold."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import orjson
import pytest
from trio.testing import MockClock

from actors import journal
from actors.ledger_writer import commit
from actors.runtime.base import SessionIdentity, TurnHost, TurnRequest
from actors.session_messages import Close, Init
from protocol.errors import RequestError
from protocol.tiers import Tier
from store.database import StorageError
from store.mailbox import SendMail, compose
from tests.support.daemon import orphans
from tests.support.office import OPERATOR, Office, call, open_office, say, settled

FULL = StorageError(
    "the database did not take a commit: database or disk is full; check free space and the disk"
)
POST = ("post_board", {"content": "reed was here"})


class Disk:
    """Refuses the commits from one number on, counted from 1 within the turn, and is well again when the turn ends."""

    def __init__(self, office: Office, refused: int, monkeypatch: pytest.MonkeyPatch) -> None:
        self.number = 0
        commit = journal.commit

        async def counted(*given: Any) -> Any:
            self.number += 1
            office.failure = FULL if self.number == refused else None
            return await commit(*given)

        monkeypatch.setattr(journal, "commit", counted)


def history(office: Office) -> list[dict[str, Any]]:
    rows = office.rows("SELECT role, content FROM history ORDER BY session_id, seq")
    return [{"role": role, "content": orjson.loads(content)} for role, content in rows]


@pytest.mark.parametrize("refused", range(1, 9))
async def test_a_commit_that_is_refused_leaves_a_whole_ledger_and_a_history_without_orphans(
    tmp_path: Path, refused: int, monkeypatch: pytest.MonkeyPatch
):
    async def act(_session: SessionIdentity, _request: TurnRequest, host: TurnHost) -> str:
        await call(host, POST, ("no_such_tool", {}), ("read_mailbox", {}), POST)
        say(host, "Done.")
        return "end_turn"

    async with open_office(tmp_path, act) as office:
        ref = await office.open()
        await office.mail("reed", "one")
        disk = Disk(office, refused, monkeypatch)
        first = await office.turn(ref)
        assert disk.number >= refused
        assert first.error is not None
        assert first.error.code == "internal"
        monkeypatch.undo()
        office.failure = None
        await settled()  # an actor that could not record its end makes room for a fresh one
        second = await office.turn(await office.open())
        assert second.status == "complete"
        office.check_ledger()
        assert orphans(history(office)) == []
        # What stands on the board is what the ledger says was done.
        completed = "SELECT count(*) FROM ledger WHERE quality = 'tool_result' AND payload LIKE ?"
        [(posts,)] = office.rows("SELECT count(*) FROM board")
        assert office.rows(completed, '%"outcome":"completed"%"tool":"post_board"%') == [(posts,)]
        calls = {cid for (cid,) in office.rows("SELECT cid FROM ledger WHERE quality = 'tool_call'")}
        results = office.rows("SELECT parents FROM ledger WHERE quality = 'tool_result'")
        answered = [orjson.loads(parents)[0] for (parents,) in results]
        assert sorted(answered) == sorted(calls)
        assert office.rows("SELECT count(*) FROM turns WHERE status = 'running'") == [(0,)]


async def test_a_session_that_could_not_record_a_request_takes_the_next_one(tmp_path: Path):
    async with open_office(tmp_path) as office:
        key = "reed:test:1"

        async def ask(message: Any) -> str:
            try:
                await office.directory.ask(key, message, create=True)
            except RequestError as error:
                return f"{error.code}: {error.message}"
            return "ok"

        opening = Init(OPERATOR, "reed")
        asked = [opening, Close(OPERATOR, None), Init(OPERATOR, "reed", model="another")]
        for message in asked:
            office.failure = FULL
            # Often enough that an actor which crashed each time would not be started again.
            assert {await ask(message) for _ in range(8)} == {f"internal: {FULL.message}"}
            office.failure = None
            await ask(opening)
        assert (await office.turn(await office.open())).status == "complete"
        assert [await ask(message) for message in asked] == ["ok", "ok", "ok"]
        events = office.rows("SELECT payload FROM ledger WHERE quality = 'session_lifecycle' ORDER BY seq")
        assert [orjson.loads(payload)["event"] for (payload,) in events] == ["opened", "closed", "reopened"]
        office.check_ledger()


async def test_an_agent_that_the_disk_kept_asleep_wakes_by_itself_when_it_is_well(
    tmp_path: Path, mock_clock: MockClock
):
    async with open_office(tmp_path, standing=["reed"]) as office:
        await settled()
        mail = compose(
            sender="operator",
            recipient="reed",
            subject="s",
            body="b",
            moment=office.clock.moment(),
            tier=Tier.STANDING,
        )
        await commit(office.writer, SendMail(mail))
        office.failure = FULL
        office.announce([mail])
        for _ in range(60):
            await settled()
            mock_clock.jump(60)
        assert not office.memories["reed"].parked
        assert office.memories["reed"].last_problem == FULL.message
        office.failure = None
        for _ in range(3):
            await settled()
            mock_clock.jump(60)
        assert office.rows("SELECT reader FROM mail_receipts") == [("reed",)]
        assert office.memories["reed"].last_problem is None


async def test_a_turn_whose_end_the_disk_refused_is_recorded_when_there_is_room_though_nobody_asks(
    tmp_path: Path, mock_clock: MockClock
):
    """Its mail would else be carried by nobody, and unread for nobody, until somebody happened to use the session."""

    async def act(_session: SessionIdentity, request: TurnRequest, host: TurnHost) -> str:
        office.failure = FULL if len(office.runtime.requests) == 1 else None
        say(host, "Done.")
        return "end_turn"

    async with open_office(tmp_path, act, standing=["reed"]) as office:
        await settled()
        await office.mail("reed", "one")
        for _ in range(60):
            await settled()
            mock_clock.jump(1)
        assert office.rows("SELECT status FROM turns") == [("running",)]
        assert office.rows("SELECT count(*) FROM mail_receipts") == [(0,)]
        office.failure = None
        for _ in range(400):
            await settled()
            mock_clock.jump(1)
        assert office.rows("SELECT status FROM turns ORDER BY seq")[:2] == [("interrupted",), ("complete",)]
        assert ("reed",) in office.rows("SELECT reader FROM mail_receipts")
        assert office.rows("SELECT count(*) FROM mail_claims") == [(0,)]
        ref = office.trunk.supervisor("sessions").child("reed:cli:local")
        assert ref is not None
        assert ref.generation == 1  # nothing crashed for it
        office.check_ledger()


async def test_a_session_cannot_be_closed_over_a_turn_that_is_not_recorded(
    tmp_path: Path, mock_clock: MockClock
):
    async def act(_session: SessionIdentity, _request: TurnRequest, host: TurnHost) -> str:
        office.failure = FULL
        say(host, "Done.")
        return "end_turn"

    async with open_office(tmp_path, act) as office:
        ref = await office.open()
        assert (await office.turn(ref)).error is not None
        with pytest.raises(RequestError, match="not recorded yet"):
            await ref.ask(Close(OPERATOR, None))
        office.failure = None
        for _ in range(6):
            await settled()
            mock_clock.jump(1)
        assert await ref.ask(Close(OPERATOR, None)) == {"ok": True}
        assert office.rows("SELECT status FROM turns") == [("interrupted",)]
        office.check_ledger()
