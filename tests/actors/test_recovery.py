"""What a crash cut off is recorded when the runner is back, in every place that speaks of it."""

from __future__ import annotations

import shutil
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, ClassVar

import pytest
import trio

from actors.runtime.base import ToolDefinition
from actors.tools.base import Tool, ToolContext, ToolOutcome
from actors.turn import CUT_OFF
from protocol.entry import Entry
from store.ledger import read_entries
from store.sessions import MAIL_TAKEN_BACK
from tests.support.daemon import orphans
from tests.support.office import GUEST, Act, Office, call, open_office, say, settled

KEY = "reed:test:1"


class Hang(Tool):
    """Never comes back."""

    definition: ClassVar = ToolDefinition("hang", "x", {"type": "object", "properties": {}})

    async def run(self, arguments: dict[str, Any], context: ToolContext) -> ToolOutcome:
        await trio.sleep_forever()
        raise AssertionError


@asynccontextmanager
async def crashed(folder: Path, act: Act, **options: Any) -> AsyncIterator[Office]:
    """Give an office, run a turn in it until all is still, take the disk as it is then, and go on from that."""
    async with open_office(folder / "before", act, tools=[Hang()]) as office:
        ref = await office.open(KEY)
        if options.pop("mail", False):
            await office.mail("reed", "the message")
        if options.pop("earlier", False):
            act, office.runtime.act = office.runtime.act, office.runtime.say_nothing
            await office.turn(ref, "earlier")
            await office.mail("reed", "the message")
            office.runtime.act = act
        await office.begin(ref, "now")
        await settled()
        shutil.copytree(office.root.path, folder / "after")
    async with open_office(folder / "after", tools=[Hang()], **options) as office:
        yield office


def entries(office: Office, quality: str | None = None) -> list[Entry]:
    return [entry for _, entry in read_entries(office.database, entity_id=KEY, quality=quality)]


async def hang_at_once(_session, _request, _host):
    await trio.sleep_forever()
    raise AssertionError


async def hang_in_a_tool(_session, _request, host):
    say(host, "I look first.")
    await call(
        host,
        ("read_mailbox", {}),
        ("post_board", {"content": "begun"}),
        ("read_file", {"path": "/etc/passwd"}),
    )
    await call(host, ("hang", {}), ("post_board", {"content": "never"}))
    raise AssertionError


async def hang_behind_a_tool(_session, _request, host):
    await call(host, ("post_board", {"content": "done"}))
    say(host, "not complete")
    await trio.sleep_forever()
    raise AssertionError


@pytest.mark.parametrize("act", [hang_at_once, hang_in_a_tool, hang_behind_a_tool])
async def test_a_turn_that_was_cut_off_is_recorded_as_interrupted_everywhere(tmp_path: Path, act: Act):
    async with crashed(tmp_path, act, earlier=True) as office:
        rows = office.rows("SELECT status, cid, prev_cid, stop_reason, completed_at FROM turns ORDER BY seq")
        assert [row[0] for row in rows] == ["complete", "interrupted"]
        assert rows[1][2] == rows[0][1]
        assert rows[1][3] is None
        assert rows[1][4] is not None
        first, second = entries(office, "turn")
        assert (second.cid, second.payload["status"]) == (rows[1][1], "interrupted")
        assert second.parents[0] == first.cid
        interrupted = [
            entry for entry in entries(office, "session_lifecycle") if entry.payload["event"] == "interrupted"
        ]
        assert [entry.parents for entry in interrupted] == [[second.cid]]
        assert office.rows("SELECT state FROM sessions WHERE session_key = ?", KEY) == [("idle",)]
        office.check_ledger()

        ended = await office.turn(await office.open(KEY), "and now?")
        assert ended.status == "complete"
        [third] = office.rows("SELECT prev_cid FROM turns WHERE seq = 2")
        assert third == (second.cid,)
        messages = list(office.runtime.requests[-1][1].messages)
        assert orphans(messages) == []
        office.check_ledger()


async def test_calls_that_had_begun_are_unknown_and_answered_for_the_model(tmp_path: Path):
    async with crashed(tmp_path, hang_in_a_tool) as office:
        outcomes = {entry.payload["tool"]: entry for entry in entries(office, "tool_result")}
        assert [entry.payload["outcome"] for entry in entries(office, "tool_result")] == [
            "completed",
            "completed",
            "unknown",
            "unknown",
        ]
        [turn] = entries(office, "turn")
        denied = [
            entry for entry in entries(office, "policy_verdict") if entry.payload["verdict"] == "blocked"
        ]
        told = [entry for entry in entries(office) if entry in denied or entry.quality == "tool_result"]
        assert len(denied) == 1
        assert turn.parents[0] == entries(office)[0].cid
        assert sorted(turn.parents[1:]) == sorted(entry.cid for entry in told)
        calls = {entry.cid: entry for entry in entries(office, "tool_call")}
        assert calls[outcomes["hang"].parents[0]].payload["call_id"] == outcomes["hang"].payload["call_id"]
        assert [text for (text,) in office.rows("SELECT text FROM board")] == ["begun"]
        await office.turn(await office.open(KEY))
        sent = str(list(office.runtime.requests[-1][1].messages))
        assert sent.count(CUT_OFF) == 2
        assert "I look first." in sent


async def test_mail_that_it_carried_is_unread_and_out_of_the_history_also_what_it_read_itself(tmp_path: Path):
    async with crashed(tmp_path, hang_in_a_tool, mail=True) as office:
        assert office.rows("SELECT count(*) FROM mail_claims") == [(0,)]
        assert office.rows("SELECT count(*) FROM mail_receipts") == [(0,)]
        assert office.rows("SELECT count(*) FROM history WHERE content LIKE '%the message%'") == [(0,)]
        await office.turn(await office.open(KEY))
        [request] = [request for _, request in office.runtime.requests]
        assert str(list(request.messages)).count("the message") == 1
        assert [row[0] for row in office.rows("SELECT seq FROM history ORDER BY seq")] == list(
            range(office.rows("SELECT count(*) FROM history")[0][0])
        )


async def test_what_read_mailbox_gave_is_taken_back_in_the_history(tmp_path: Path):
    async def read_late(_session, _request, host):
        await office_of[0].mail("reed", "the message")
        [(_, text)] = await call(host, ("read_mailbox", {}))
        assert "the message" in text
        await call(host, ("hang", {}))
        raise AssertionError

    office_of: list[Office] = []
    async with open_office(tmp_path / "before", read_late, tools=[Hang()]) as office:
        office_of.append(office)
        await office.begin(await office.open(KEY))
        await settled()
        shutil.copytree(office.root.path, tmp_path / "after")
    async with open_office(tmp_path / "after") as office:
        assert office.rows("SELECT count(*) FROM history WHERE content LIKE '%the message%'") == [(0,)]
        assert office.rows("SELECT count(*) FROM history WHERE content LIKE ?", f"%{MAIL_TAKEN_BACK}%") == [
            (1,)
        ]
        await office.turn(await office.open(KEY))
        assert str(list(office.runtime.requests[-1][1].messages)).count("the message") == 1


async def test_its_agent_is_told_once_and_wakes_for_it(tmp_path: Path):
    async with crashed(tmp_path, hang_in_a_tool, standing=["reed"]) as office:
        await settled()
        [(sender, recipient, body)] = office.rows("SELECT sender, recipient, body FROM mail")
        assert (sender, recipient) == ("runner", "reed")
        assert KEY in body
        assert "hang, post_board" in body
        [request] = office.runtime.turns_of("reed")
        assert "a turn of yours was interrupted" in str(list(request.messages))
        assert len(office.memories["reed"].wakes) == 0
    async with open_office(tmp_path / "after", standing=["reed"]) as office:
        await settled()
        assert office.runtime.requests == []
        assert office.rows("SELECT count(*) FROM mail") == [(1,)]


async def test_nothing_is_told_for_the_session_of_a_guest(tmp_path: Path):
    async with open_office(tmp_path / "before", hang_at_once) as office:
        ref = await office.open("reed:telegram:1", GUEST)
        await office.begin(ref, "hello", GUEST)
        await settled()
        shutil.copytree(office.root.path, tmp_path / "after")
    async with open_office(tmp_path / "after") as office:
        assert office.rows("SELECT status FROM turns") == [("interrupted",)]
        assert office.rows("SELECT count(*) FROM mail") == [(0,)]
        [event] = office.rows(
            "SELECT payload ->> 'claimed_agent_id' FROM ledger WHERE payload ->> 'event' = 'interrupted'"
        )
        assert event == ("reed",)
        office.check_ledger()


async def test_a_crash_during_recovery_changes_nothing_in_what_is_recovered(tmp_path: Path):
    async with crashed(tmp_path, hang_in_a_tool) as office:
        # As if the power went again before anything else: the same turns are found as they were left.
        shutil.copytree(office.root.path, tmp_path / "again")
        first = [entry.cid for entry in entries(office)]
    async with open_office(tmp_path / "again") as office:
        assert [entry.cid for entry in entries(office)] == first
        assert office.rows("SELECT count(*) FROM turns WHERE status = 'interrupted'") == [(1,)]
        assert office.rows("SELECT count(*) FROM mail") == [(1,)]


async def test_a_session_actor_that_is_killed_records_its_turn_and_goes_on(tmp_path: Path):
    async with open_office(tmp_path / "root", hang_in_a_tool, tools=[Hang()]) as office:
        ref = await office.open(KEY)
        begun = await office.begin(ref)
        await settled()
        ref.kill()
        ended = await begun.end()
        assert ended.error is not None
        office.runtime.act = office.runtime.say_nothing
        await settled()
        assert (await office.turn(await office.open(KEY))).status == "complete"
        assert office.rows("SELECT status FROM turns ORDER BY seq") == [("interrupted",), ("complete",)]
        assert orphans(list(office.runtime.requests[-1][1].messages)) == []
        calls = [entry.cid for entry in entries(office, "tool_call")]
        assert sorted(entry.parents[0] for entry in entries(office, "tool_result")) == sorted(calls)
        office.check_ledger()
