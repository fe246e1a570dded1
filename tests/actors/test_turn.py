"""One turn under the court: verdict, effect, outcome, in this order and all in the ledger, however it ends."""

from __future__ import annotations

from pathlib import Path
from typing import Any, ClassVar

import pytest
import structlog.testing
import trio
from trio.testing import MockClock

from actors.ledger_writer import commit
from actors.runtime.base import ToolDefinition, ToolUse, Usage
from actors.session_messages import Cancel
from actors.tools.base import Tool, ToolContext, ToolOutcome
from protocol.entry import Entry
from protocol.errors import BackendError
from protocol.events import Failed, LedgerAppend, PolicyGate, ToolResult, TurnStarted
from protocol.tiers import Tier
from store.board import Post, PostBoard
from store.database import StorageError, open_reader
from store.ledger import read_entries
from store.mailbox import ClaimMail
from store.unit_of_work import ConflictError
from tests.support.daemon import orphans
from tests.support.office import OPERATOR, Begun, Office, call, open_office, say, settled


def entries(office: Office, key: str = "reed:test:1", quality: str | None = None) -> list[Entry]:
    return [entry for _, entry in read_entries(office.database, entity_id=key, quality=quality)]


class Witness(Tool):
    """Looks while it runs at what the ledger file holds, over a connection of its own."""

    definition: ClassVar = ToolDefinition(
        "witness", "Looks.", {"type": "object", "properties": {"path": {"type": "string"}}}
    )
    path_arguments: ClassVar[dict[str, str]] = {"path": "read"}

    def __init__(self) -> None:
        self.seen: list[list[Entry]] = []
        self.office: Office | None = None

    async def run(self, arguments: dict[str, Any], context: ToolContext) -> ToolOutcome:
        assert self.office is not None
        database = open_reader(self.office.root.database)
        self.seen.append([entry for _, entry in read_entries(database, entity_id=context.session_key)])
        database.close()
        return ToolOutcome("seen")


async def test_verdict_and_call_are_durable_before_the_tool_runs(tmp_path: Path):
    witness = Witness()

    async def act(_session, _request, host):
        await call(host, ("witness", {"path": "platform"}), ("witness", {}))
        return "end_turn"

    async with open_office(tmp_path / "root", act, tools=[witness], threaded=True) as office:
        witness.office = office
        assert (await office.turn(await office.open())).status == "complete"
        # Every call of one model message is authorised before the first of them runs.
        for number, seen in enumerate(witness.seen):
            calls = [entry for entry in seen if entry.quality == "tool_call"]
            verdicts = {entry.cid: entry for entry in seen if entry.quality == "policy_verdict"}
            assert len(calls) == 2
            for made in calls:
                [parent] = made.parents
                assert (verdicts[parent].payload["verdict"], verdicts[parent].payload["phase"]) == (
                    "allowed",
                    "call",
                )
                assert verdicts[parent].payload["call_id"] == made.payload["call_id"]
                assert verdicts[parent].payload["input_hash"] == made.payload["input_hash"]
            assert len([entry for entry in seen if entry.quality == "tool_result"]) == number
        office.check_ledger()


async def test_a_denied_call_among_others_runs_nothing_and_the_rest_goes_on(tmp_path: Path):
    witness = Witness()
    results: list[tuple[bool, str]] = []

    async def act(_session, _request, host):
        results.extend(
            await call(
                host,
                ("witness", {"path": "platform"}),
                ("witness", {"path": "workspaces/.state"}),
                ToolUse("broken", "witness", {}, "The input is not JSON."),
                ("witness", {"path": "workspaces"}),
            )
        )
        return "end_turn"

    async with open_office(tmp_path / "root", act, tools=[witness]) as office:
        witness.office = office
        ended = await office.turn(await office.open())
        assert [failed for failed, _ in results] == [False, True, True, False]
        assert results[1][1].startswith("Denied: ")
        assert results[2][1] == "The input is not JSON."
        assert len(witness.seen) == 2
        made = {entry.payload["call_id"] for entry in entries(office, quality="tool_call")}
        verdicts = [
            entry for entry in entries(office, quality="policy_verdict") if entry.payload["phase"] == "call"
        ]
        assert [entry.payload["verdict"] for entry in verdicts] == ["allowed", "blocked", "allowed"]
        assert made == {
            entry.payload["call_id"] for entry in verdicts if entry.payload["verdict"] == "allowed"
        }
        [turn] = entries(office, quality="turn")
        outcomes = {entry.cid for entry in entries(office, quality="tool_result")}
        assert set(turn.parents[1:]) == outcomes | {verdicts[1].cid}
        # The client sees a verdict before what follows from it.
        order = [
            type(event).__name__
            for event in ended.events
            if isinstance(event, PolicyGate | LedgerAppend | ToolResult)
        ]
        offers = len(office.services.registry.definitions)
        assert order[offers : offers + 5] == [
            "PolicyGate",
            "LedgerAppend",
            "PolicyGate",
            "PolicyGate",
            "LedgerAppend",
        ]
        office.check_ledger()


async def test_mail_read_in_mid_turn_narrows_the_rest_of_the_turn_and_what_it_sends(tmp_path: Path):
    results: list[tuple[bool, str]] = []

    async def act(_session, _request, host):
        write = ("write_file", {"path": "platform/note.md", "content": "x"})
        results.extend(await call(host, write))
        await office.mail("reed", "do as I say", sender="guest:1", tier=Tier.UNKNOWN)
        send = ("send_message", {"to": "calli", "subject": "s", "body": "b"})
        # In one message: what stands behind the reading is judged when the reading is known.
        results.extend(await call(host, write, ("read_mailbox", {}), write, send))
        results.extend(await call(host, write))
        return "end_turn"

    async with open_office(tmp_path / "root", act) as office:
        ref = await office.open()
        assert (await office.turn(ref)).status == "complete"
        assert [failed for failed, _ in results] == [False, False, False, True, False, True]
        assert "do as I say" in results[2][1]
        trust = [
            entry.payload["trust"]
            for entry in entries(office, quality="policy_verdict")
            if entry.payload["phase"] == "call"
        ]
        assert trust == ["standing"] * 3 + ["registered"] * 3
        assert office.rows("SELECT tier, hops FROM mail WHERE recipient = 'calli'") == [("registered", 1)]
        assert office.rows("SELECT reader FROM mail_receipts") == [("reed",)]
        results.clear()

        async def write_again(_session, _request, host):
            results.extend(await call(host, ("write_file", {"path": "platform/note.md", "content": "y"})))
            return "end_turn"

        office.runtime.act = write_again
        await office.turn(ref)
        assert [failed for failed, _ in results] == [False]


async def test_what_a_tool_writes_is_there_exactly_when_its_outcome_is(tmp_path: Path):
    class Conflicted(Tool):
        definition: ClassVar = ToolDefinition("conflicted", "x", {"type": "object", "properties": {}})

        async def run(self, arguments: dict[str, Any], context: ToolContext) -> ToolOutcome:
            posted = PostBoard(Post("reed", "half", context.services.clock.stamp()))
            return ToolOutcome("done", writes=(posted, ClaimMail([mail.id], "reed", context.turn_id)))

    results: list[tuple[bool, str]] = []

    async def act(_session, _request, host):
        results.extend(await call(host, ("conflicted", {}), ("post_board", {"content": "whole"})))
        return "end_turn"

    async with open_office(tmp_path / "root", act, tools=[Conflicted()]) as office:
        ref = await office.open("reed:test:1")
        mail = await office.mail("calli")  # never unread for reed, so that the turn does not carry it itself
        await commit(office.writer, ClaimMail([mail.id], "reed", "another turn"))
        ended = await office.turn(ref)
        assert ended.status == "complete"
        assert results[0][0] is True
        assert "call conflicted again" in results[0][1]
        assert results[1][0] is False
        assert office.rows("SELECT text FROM board") == [("whole",)]
        outcomes = [entry.payload["outcome"] for entry in entries(office, quality="tool_result")]
        assert outcomes == ["error", "completed"]
        assert [row[0] for row in office.rows("SELECT role FROM history ORDER BY seq")] == [
            "user",
            "assistant",
            "user",
        ]
        office.check_ledger()


async def busy(_session, _request, host):
    """Do a bit of everything."""
    say(host, "I look.")
    await call(host, ("read_board", {}), ("post_board", {"content": "here"}))
    host.keep({"type": "thinking", "thinking": "hm", "signature": "s"})
    await call(host, ("read_mailbox", {}), ("write_file", {"path": "workspaces/.state/x", "content": ""}))
    say(host, "Done.")
    return "end_turn"


async def test_cancelled_after_any_event_a_turn_leaves_a_whole_record(tmp_path: Path):
    async with open_office(tmp_path / "root", busy) as office:
        complete = await office.turn(await office.open("reed:test:whole"))
        assert complete.status == "complete"
        for number in range(len(complete.events)):
            key = f"reed:test:{number}"
            ref = await office.open(key)
            begun = Begun()

            def cancel_at(event, number=number, ref=ref) -> None:
                if event.seq == number:
                    ref.tell(Cancel(OPERATOR))

            begun.on_event = cancel_at
            ended = await office.run(ref, begun)
            assert ended.status in ("cancelled", "complete")
            found = entries(office, key)
            calls = [entry.cid for entry in found if entry.quality == "tool_call"]
            answered = [entry.parents[0] for entry in found if entry.quality == "tool_result"]
            assert sorted(calls) == sorted(answered)
            [turn] = [entry for entry in found if entry.quality == "turn"]
            assert turn.payload["status"] == ended.status
            session = office.rows("SELECT id, state FROM sessions WHERE session_key = ?", key)
            assert session[0][1] == "idle"
            after = await office.turn(ref, "and now?")
            assert after.status == "complete"
            assert orphans(list(office.runtime.requests[-1][1].messages)) == []
        office.check_ledger()
        posts = office.rows("SELECT count(*) FROM board")
        completed = office.rows(
            "SELECT count(*) FROM ledger WHERE quality = 'tool_result' AND payload ->> 'tool' = 'post_board' "
            "AND payload ->> 'outcome' = 'completed'"
        )
        assert posts == completed


async def test_a_turn_that_fails_keeps_what_was_complete_and_tells_why(tmp_path: Path):
    async def act(_session, _request, host):
        say(host, "I begin.")
        raise BackendError("backend_overloaded", "come back later")

    async with open_office(tmp_path / "root", act) as office:
        ref = await office.open()
        ended = await office.turn(ref)
        assert ended.error is not None
        assert (ended.error.code, ended.error.message) == ("backend_overloaded", "come back later")
        assert isinstance(ended.events[-1], Failed)
        office.runtime.act = office.runtime.say_nothing
        await office.turn(ref, "again")
        assert [message["content"] for message in office.runtime.requests[-1][1].messages] == [
            "hello",
            [{"type": "text", "text": "I begin."}],
            "again",
        ]
        assert office.rows("SELECT status FROM turns ORDER BY seq") == [("failed",), ("complete",)]


async def test_a_fault_of_the_program_ends_one_turn_and_shows_nothing_of_itself(tmp_path: Path):
    async def act(_session, _request, _host):
        raise ZeroDivisionError("secret of the inside")

    async with open_office(tmp_path / "root", act) as office:
        ref = await office.open()
        with structlog.testing.capture_logs() as logs:
            ended = await office.turn(ref)
        assert ended.error is not None
        assert ended.error.code == "internal"
        assert "secret" not in ended.error.message
        [logged] = logs
        assert f"incident {logged['incident']} in the log" in ended.error.message
        assert isinstance(logged["exc_info"], ZeroDivisionError)
        office.runtime.act = office.runtime.say_nothing
        assert (await office.turn(ref)).status == "complete"


async def test_a_turn_that_takes_too_long_fails_and_its_call_is_closed(tmp_path: Path, mock_clock: MockClock):
    class Slow(Tool):
        definition: ClassVar = ToolDefinition("slow", "x", {"type": "object", "properties": {}})

        async def run(self, arguments: dict[str, Any], context: ToolContext) -> ToolOutcome:
            await trio.sleep_forever()
            raise AssertionError

    async def act(_session, _request, host):
        await call(host, ("slow", {}))
        return "end_turn"

    async with open_office(tmp_path / "root", act, tools=[Slow()], limits={"turn_timeout_s": 30}) as office:
        ref = await office.open()
        begun = await office.begin(ref)
        await settled()
        mock_clock.jump(29.9)
        await settled()
        assert not begun.done.done
        mock_clock.jump(0.2)
        ended = await begun.end()
        assert ended.error is not None
        assert (ended.error.code, "30 s" in ended.error.message) == ("turn_timeout", True)
        [result] = entries(office, quality="tool_result")
        assert result.payload["outcome"] in ("timeout", "error")
        assert office.rows("SELECT status, stop_reason FROM turns") == [("failed", None)]
        office.runtime.act = office.runtime.say_nothing
        assert (await office.turn(ref)).status == "complete"
        assert orphans(list(office.runtime.requests[-1][1].messages)) == []
        office.check_ledger()


async def test_the_daily_token_limit_is_held_before_a_turn_and_inside_one(tmp_path: Path):
    async def spend(_session, _request, host):
        for _ in range(10):
            say(host, "More.")
            host.spend(Usage(400, 85))
            await call(host, ("read_board", {}))
        return "end_turn"

    limits = {"tokens_per_agent_day": 1_000}
    async with open_office(tmp_path / "root", spend, limits=limits, tokens_limited=True) as office:
        ref = await office.open()
        ended = await office.turn(ref)
        assert ended.error is not None
        assert ended.error.code == "rate_limited"
        assert 1_000 <= office.rows("SELECT sum(input_tokens + output_tokens) FROM usage")[0][0] < 2_000
        other = await office.open("reed:test:2")
        again = await office.turn(other)
        assert again.error is not None
        assert (again.error.code, again.events) == ("rate_limited", [])
        assert "T00:00:00Z" in again.error.message
        assert (
            await office.turn(await office.open("calli:test:1"))
        ).error is not None  # it spends as much by itself
        assert office.rows("SELECT agent FROM usage ORDER BY agent") == [("calli",), ("reed",)]


async def test_a_turn_whose_end_cannot_be_written_is_recorded_as_interrupted_by_the_next_one(tmp_path: Path):
    async def act(_session, _request, host):
        say(host, "I was there.")
        office.failure = StorageError("the disk is away")
        return "end_turn"

    async with open_office(tmp_path / "root", act) as office:
        ref = await office.open()
        mail = await office.mail("reed")
        ended = await office.turn(ref)
        assert ended.error is not None
        assert ended.error.code == "internal"
        office.failure = None
        office.runtime.act = office.runtime.say_nothing
        await settled()
        again = await office.turn(await office.open())
        assert again.status == "complete"
        assert office.rows("SELECT status FROM turns ORDER BY seq") == [("interrupted",), ("complete",)]
        assert office.rows("SELECT mail_id FROM mail_receipts WHERE mail_id = ?", mail.id) == [(mail.id,)]
        office.check_ledger()


async def test_a_turn_that_is_cut_off_inside_a_nursery_is_recorded_and_its_client_is_told(tmp_path: Path):
    async def act(_session, _request, _host):
        # As an HTTP client does while it connects: the cancellation comes out of it as a group.
        async with trio.open_nursery() as nursery:
            nursery.start_soon(trio.sleep_forever)
            await trio.sleep_forever()

    async with open_office(tmp_path / "root", act) as office:
        ref = await office.open()
        begun = await office.begin(ref)
        await settled()
        office.services.hurry.set()
        ref.stop()
        ended = await begun.end()
        assert ended.error is not None
        assert ended.error.code == "shutting_down"
        assert isinstance(ended.events[-1], Failed)
        await settled()
        assert office.rows("SELECT status FROM turns") == [("interrupted",)]
        office.check_ledger()


@pytest.mark.parametrize("failure", [StorageError("the disk is away"), ConflictError("somebody was quicker")])
async def test_a_turn_that_cannot_be_recorded_asks_no_model_and_ends_for_its_client(
    tmp_path: Path, failure: Exception
):
    async with open_office(tmp_path / "root") as office:
        ref = await office.open()
        office.failure = failure
        begun = await office.begin(ref)
        ended = await begun.end()
        assert [type(event) for event in ended.events] == [TurnStarted, Failed]
        assert office.runtime.requests == []
        office.failure = None
        assert (await office.turn(ref)).status == "complete"
        office.check_ledger()
