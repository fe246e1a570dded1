"""A disk that refuses a commit and is well again: the turn fails, and the ledger and the history hold."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import orjson
import pytest

from actors import journal
from actors.runtime.base import SessionIdentity, TurnHost, TurnRequest
from store.database import StorageError
from tests.support.daemon import orphans
from tests.support.office import Office, call, open_office, say, settled

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
