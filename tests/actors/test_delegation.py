"""Calls that a client executes: judged, ordered, awaited, answered and recorded like any other."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, ClassVar

import pytest
import trio
from structlog.testing import capture_logs
from trio.testing import MockClock

from actors.directory import ask
from actors.kernel import Ref
from actors.ledger_writer import commit
from actors.runtime.base import ToolDefinition, ToolUse
from actors.service import Caller
from actors.session_messages import AnswerCall, Cancel, Close, RunTurn, Status
from actors.sessions import token_of
from actors.tools.base import Tool, ToolContext, ToolOutcome
from actors.tools.delegated import RESULT_BLOCKS_MAX, RESULT_CHARACTERS_MAX
from protocol.entry import Entry
from protocol.errors import RequestError
from protocol.events import Event, LedgerAppend, PolicyGate, ToolExecute, ToolResult
from store.database import StorageError, open_reader
from store.ledger import read_entries
from store.mailbox import ClaimMail
from store.root import Root, lay_out
from tests.support.daemon import edit, orphans
from tests.support.office import GUEST, OPERATOR, Begun, Ended, Office, call, open_office, settled

SHELL = ToolDefinition("exec", "Runs a command over there.", {"type": "object", "properties": {}})
LIGHTS = ToolDefinition("mcp__lights__set", "Sets the lights.", {"type": "object", "properties": {}})
BRED = "exec", {"command": "bread"}
IMAGE = {"type": "image", "source": {"type": "base64", "media_type": "image/png", "data": "aGk="}}


async def begin(
    office: Office,
    ref: Ref,
    tools: Sequence[ToolDefinition] | None = (SHELL, LIGHTS),
    *,
    delegates: bool = True,
    caller: Caller = OPERATOR,
    begun: Begun | None = None,
) -> Begun:
    """Have a turn run whose client executes tools of its own, until every task waits."""
    begun = begun or Begun()
    brought = None if tools is None else list(tools)
    messages = [{"role": "user", "content": "hello"}]
    await ask(ref, RunTurn(caller, messages, None, brought, begun.take, begun.done, delegates))
    await settled()
    return begun


def orders(events: Sequence[Event]) -> list[ToolExecute]:
    return [event for event in events if isinstance(event, ToolExecute)]


async def answer(
    ref: Ref, call_id: str, content: Any = "done", *, is_error: bool = False, caller: Caller = OPERATOR
) -> str:
    """Answer a call; return `ok`, or the code of the refusal."""
    try:
        assert await ask(ref, AnswerCall(caller, call_id, content, is_error)) == {"ok": True}
    except RequestError as error:
        return error.code
    await settled()
    return "ok"


def entries(office: Office, quality: str, key: str = "reed:test:1") -> list[Entry]:
    return [entry for _, entry in read_entries(office.database, entity_id=key, quality=quality)]


def outcomes(office: Office, key: str = "reed:test:1") -> list[str]:
    return [entry.payload["outcome"] for entry in entries(office, "tool_result", key)]


def calling(*calls: tuple[str, dict[str, Any]] | ToolUse) -> tuple[Any, list[tuple[bool, Any]]]:
    """Return what a model does that calls these tools in one message, and where their results will be."""
    results: list[tuple[bool, Any]] = []

    async def act(_session, _request, host):
        results.extend(await call(host, *calls))
        return "end_turn"

    return act, results


def use(number: int, name: str = "exec") -> ToolUse:
    return ToolUse(f"c{number}", name, {"number": number})


async def test_the_order_goes_out_when_verdict_and_call_are_durable(tmp_path: Path):
    act, results = calling(BRED)
    seen: list[Entry] = []

    def look(event: Event) -> None:
        if isinstance(event, ToolExecute):
            database = open_reader(office.root.database)
            seen.extend(entry for _, entry in read_entries(database, entity_id="reed:test:1"))
            database.close()

    async with open_office(tmp_path / "root", act) as office:
        ref = await office.open()
        begun = await begin(office, ref, begun=Begun(on_event=look))
        [order] = orders(begun.events)
        assert (order.name, order.input) == BRED
        [made] = [entry for entry in seen if entry.quality == "tool_call"]
        [verdict] = [entry for entry in seen if entry.cid == made.parents[0]]
        assert len(made.parents) == 1
        assert (made.target, made.payload["executor"], made.payload["tool"]) == (order.id, "client", "exec")
        assert (verdict.payload["phase"], verdict.payload["verdict"]) == ("call", "allowed")
        assert verdict.payload["call_id"] == order.id

        assert results == []
        assert await ask(ref, Status(OPERATOR)) == {"state": "running"}
        assert await answer(ref, order.id, "crumbs") == "ok"
        assert results == [(False, "crumbs")]
        assert (await begun.end()).status == "complete"
        [result] = entries(office, "tool_result")
        assert (result.parents, result.payload["outcome"]) == ([made.cid], "completed")
        [turn] = entries(office, "turn")
        assert result.cid in turn.parents
        kinds = [
            type(event)
            for event in begun.events
            if isinstance(event, PolicyGate | LedgerAppend | ToolExecute | ToolResult)
        ]
        assert kinds[2:] == [PolicyGate, LedgerAppend, ToolExecute, ToolResult, LedgerAppend, LedgerAppend]
        office.check_ledger()


@pytest.mark.parametrize("sequence", list(itertools.permutations((1, 2, 3))))
async def test_calls_of_one_message_go_out_together_and_come_back_in_any_order(
    tmp_path: Path, sequence: tuple[int, ...]
):
    act, results = calling(use(1), use(2), use(3))
    async with open_office(tmp_path / "root", act) as office:
        ref = await office.open()
        begun = await begin(office, ref)
        assert [order.id for order in orders(begun.events)] == ["c1", "c2", "c3"]
        for number in sequence:
            assert results == []
            assert await answer(ref, f"c{number}", f"result {number}") == "ok"
        assert results == [(False, "result 1"), (False, "result 2"), (False, "result 3")]
        # Each is recorded when it is there; the history has them in the order of the calls.
        assert [entry.target for entry in entries(office, "tool_result")] == [
            f"c{number}" for number in sequence
        ]
        await begun.end()
        await office.turn(ref, "and now?")
        [kept] = [
            message["content"]
            for message in office.runtime.requests[-1][1].messages
            if message["role"] == "user" and isinstance(message["content"], list)
        ]
        assert [(block["tool_use_id"], block["content"]) for block in kept] == [
            (f"c{number}", f"result {number}") for number in (1, 2, 3)
        ]
        office.check_ledger()


async def test_the_runner_executes_its_own_in_order_while_the_client_works(tmp_path: Path):
    act, results = calling(
        use(1), ("post_board", {"content": "one"}), use(2), ("post_board", {"content": "two"})
    )
    async with open_office(tmp_path / "root", act) as office:
        ref = await office.open()
        own = office.services.registry.definitions
        lie = ToolDefinition(
            "post_board", "Does something else.", {"type": "object", "properties": {"x": {}}}
        )
        begun = await begin(office, ref, [SHELL, lie])
        assert office.rows("SELECT text FROM board ORDER BY number") == [("one",), ("two",)]
        offered = office.runtime.requests[0][1].tools
        assert list(offered) == [SHELL, *(tool for tool in own if tool.name == "post_board")]
        assert [order.id for order in orders(begun.events)] == ["c1", "c2"]
        assert results == []
        await answer(ref, "c2", "b")
        await answer(ref, "c1", "a")
        assert (results[0], results[2]) == ((False, "a"), (False, "b"))
        assert [failed for failed, _ in results] == [False] * 4
        executors = [entry.payload["executor"] for entry in entries(office, "tool_call")]
        assert executors == ["client", "runner", "client", "runner"]
        await begun.end()
        office.check_ledger()


async def test_what_may_have_been_read_is_known_before_a_later_call_goes_out(tmp_path: Path):
    act, _ = calling(use(1), ("read_mailbox", {}), use(2))
    async with open_office(tmp_path / "root", act) as office:
        ref = await office.open()
        own = office.services.registry.definitions
        begun = await begin(office, ref, [SHELL, *own])
        assert [order.id for order in orders(begun.events)] == ["c1"]
        await answer(ref, "c1")
        assert [order.id for order in orders(begun.events)] == ["c1", "c2"]
        await answer(ref, "c2")
        assert (await begun.end()).status == "complete"


async def test_without_an_answer_in_time_the_call_is_an_error_and_the_turn_goes_on(
    tmp_path: Path, mock_clock: MockClock
):
    act, results = calling(use(1), use(2))
    limits = {"delegated_tool_timeout_s": 20}
    async with open_office(tmp_path / "root", act, limits=limits) as office:
        ref = await office.open()
        begun = await begin(office, ref)
        mock_clock.jump(19)
        await settled()
        assert await answer(ref, "c2", "just in time") == "ok"
        mock_clock.jump(1)
        await settled()
        assert results[1] == (False, "just in time")
        assert results[0][0] is True
        assert "no result within 20 s" in results[0][1]
        ended = await begun.end()
        assert ended.status == "complete"
        assert sorted(outcomes(office)) == ["completed", "timeout"]
        assert await answer(ref, "c1", "too late") == "unknown_tool_call"
        office.check_ledger()


async def test_a_late_answer_is_refused_while_the_same_turn_still_runs(tmp_path: Path, mock_clock: MockClock):
    async def act(_session, _request, host):
        await call(host, use(1))
        await call(host, use(2))
        return "end_turn"

    async with open_office(tmp_path / "root", act, limits={"delegated_tool_timeout_s": 20}) as office:
        ref = await office.open()
        begun = await begin(office, ref)
        assert await answer(ref, "c2") == "unknown_tool_call"  # not ordered yet
        mock_clock.jump(20)
        await settled()
        assert await answer(ref, "c1") == "unknown_tool_call"
        assert await answer(ref, "c2") == "ok"
        assert (await begun.end()).status == "complete"
        assert outcomes(office) == ["timeout", "completed"]


async def test_a_turn_that_is_out_of_time_closes_its_call(tmp_path: Path, mock_clock: MockClock):
    act, _ = calling(use(1))
    limits = {"delegated_tool_timeout_s": 120, "turn_timeout_s": 30}
    async with open_office(tmp_path / "root", act, limits=limits) as office:
        ref = await office.open()
        begun = await begin(office, ref)
        mock_clock.jump(30)
        ended = await begun.end()
        assert ended.error is not None
        assert ended.error.code == "turn_timeout"
        assert await answer(ref, "c1") == "unknown_tool_call"
        [result] = entries(office, "tool_result")
        assert result.target == "c1"
        office.check_ledger()


async def test_cancelled_while_the_client_works(tmp_path: Path):
    act, results = calling(use(1), use(2))
    async with open_office(tmp_path / "root", act) as office:
        ref = await office.open()
        begun = await begin(office, ref)
        await answer(ref, "c2", "b")
        await ask(ref, Cancel(OPERATOR))
        ended = await begun.end()
        assert (ended.status, results) == ("cancelled", [])
        assert {entry.target: entry.payload["outcome"] for entry in entries(office, "tool_result")} == {
            "c1": "cancelled",
            "c2": "completed",
        }
        assert await answer(ref, "c1") == "unknown_tool_call"
        office.runtime.act = office.runtime.say_nothing
        assert (await office.turn(ref, "and now?")).status == "complete"
        messages = list(office.runtime.requests[-1][1].messages)
        assert orphans(messages) == []
        [kept] = [
            message["content"] for message in messages if message["role"] == "user" and "c2" in str(message)
        ]
        assert [block["tool_use_id"] for block in kept] == ["c1", "c2"]
        office.check_ledger()


async def test_cancelled_after_any_event_a_delegating_turn_leaves_a_whole_record(tmp_path: Path):
    act, _ = calling(use(1), ("read_board", {}), use(2), ("post_board", {"content": "x"}))

    async with open_office(tmp_path / "root", act) as office:
        brought = [SHELL, *office.services.registry.definitions]

        async def run(key: str, stop_at: int | None) -> Ended:
            ref = await office.open(key)

            def take(event: Event) -> None:
                if event.seq == stop_at:
                    ref.tell(Cancel(OPERATOR))
                if isinstance(event, ToolExecute):
                    ref.tell(AnswerCall(OPERATOR, event.id, "done", is_error=False))

            return await (await begin(office, ref, brought, begun=Begun(on_event=take))).end()

        whole = await run("reed:test:whole", None)
        assert whole.status == "complete"
        for number in range(len(whole.events)):
            key = f"reed:test:{number}"
            ended = await run(key, number)
            assert ended.status in ("cancelled", "complete")
            made = [entry.cid for entry in entries(office, "tool_call", key)]
            answered = [entry.parents[0] for entry in entries(office, "tool_result", key)]
            assert sorted(made) == sorted(answered)
            office.runtime.act = office.runtime.say_nothing
            assert (await office.turn(await office.open(key), "and now?")).status == "complete"
            assert orphans(list(office.runtime.requests[-1][1].messages)) == []
            office.runtime.act = act
        office.check_ledger()


async def test_closing_the_session_ends_the_wait(tmp_path: Path):
    act, _ = calling(use(1))
    async with open_office(tmp_path / "root", act) as office:
        ref = await office.open()
        begun = await begin(office, ref)
        assert await ask(ref, Close(OPERATOR, "enough")) == {"ok": True}
        assert (await begun.end()).status == "cancelled"
        assert outcomes(office) == ["cancelled"]
        assert await answer(ref, "c1") == "unknown_tool_call"


async def test_an_answer_is_taken_once_and_only_for_a_call_that_waits(tmp_path: Path):
    act, results = calling(use(1), use(2))
    async with open_office(tmp_path / "root", act) as office:
        ref = await office.open()
        assert await answer(ref, "c1") == "unknown_tool_call"
        begun = await begin(office, ref)
        assert await answer(ref, "c3") == "unknown_tool_call"
        assert await answer(ref, "c1", "first") == "ok"
        assert await answer(ref, "c1", "second") == "unknown_tool_call"
        assert await answer(ref, "c2") == "ok"
        assert results[0] == (False, "first")
        assert (await begun.end()).status == "complete"
        assert await answer(ref, "c2") == "unknown_tool_call"
        assert outcomes(office) == ["completed", "completed"]


async def test_two_answers_that_arrive_at_once_are_one_answer_and_one_refusal(tmp_path: Path):
    act, results = calling(use(1))
    async with open_office(tmp_path / "root", act) as office:
        ref = await office.open()
        begun = await begin(office, ref)
        codes: list[str] = []

        async def send(text: str) -> None:
            codes.append(await answer(ref, "c1", text))

        async with trio.open_nursery() as nursery:
            nursery.start_soon(send, "a")
            nursery.start_soon(send, "b")
        assert sorted(codes) == ["ok", "unknown_tool_call"]
        await begun.end()
        assert len(results) == 1


async def test_who_may_not_use_the_session_cannot_answer_and_does_not_learn_of_it(tmp_path: Path):
    act, results = calling(use(1))
    async with open_office(tmp_path / "root", act) as office:
        ref = await office.open()
        begun = await begin(office, ref)
        assert await answer(ref, "c1", "forged", caller=GUEST) == "unknown_session"
        wrong = Caller("guest", "another connection", authenticated=False, session_token="0" * 64)
        assert await answer(ref, "c1", "forged", caller=wrong) == "unknown_session"
        [(identifier,)] = office.rows("SELECT id FROM sessions WHERE session_key = 'reed:test:1'")
        token = token_of(b"secret", identifier)
        knowing = Caller("guest", "another connection", authenticated=False, session_token=token)
        assert await answer(ref, "c1", "true", caller=knowing) == "ok"
        assert results == [(False, "true")]
        await begun.end()


WRONG: list[tuple[str, Any, bool, str]] = [
    ("text", "x" * (RESULT_CHARACTERS_MAX + 1), False, f"at most {RESULT_CHARACTERS_MAX} characters"),
    (
        "text in blocks",
        [{"type": "text", "text": "x" * RESULT_CHARACTERS_MAX}, {"type": "text", "text": "x"}],
        False,
        f"at most {RESULT_CHARACTERS_MAX} characters",
    ),
    ("many blocks", [IMAGE] * (RESULT_BLOCKS_MAX + 1), False, f"at most {RESULT_BLOCKS_MAX} blocks"),
    ("an image as an error", [{"type": "text", "text": "x"}, IMAGE], True, "is_error holds text only"),
]


@pytest.mark.parametrize(("_name", "content", "is_error", "why"), WRONG, ids=[row[0] for row in WRONG])
async def test_what_cannot_be_taken_is_refused_and_another_result_may_follow(
    tmp_path: Path, _name: str, content: Any, is_error: bool, why: str
):
    act, results = calling(use(1))
    async with open_office(tmp_path / "root", act) as office:
        ref = await office.open()
        begun = await begin(office, ref)
        with pytest.raises(RequestError) as refused:
            await ask(ref, AnswerCall(OPERATOR, "c1", content, is_error))
        assert refused.value.code == "invalid_params"
        assert why in refused.value.message
        assert "still waits" in refused.value.message
        assert (results, outcomes(office)) == ([], [])
        assert await answer(ref, "c1", "x" * RESULT_CHARACTERS_MAX) == "ok"
        assert results == [(False, "x" * RESULT_CHARACTERS_MAX)]
        assert (await begun.end()).status == "complete"


TAKEN: list[tuple[Any, bool, Any, str]] = [
    ("", False, "", "completed"),
    ([], False, "", "completed"),
    ("it burned", True, "it burned", "error"),
    ([{"type": "text", "text": "it burned"}], True, [{"type": "text", "text": "it burned"}], "error"),
    ([{"type": "text", "text": " \n"}], False, "", "completed"),
    ([{"type": "text", "text": " "}, IMAGE], False, [IMAGE], "completed"),
    (
        [{"type": "text", "text": "a 🦊"}, IMAGE],
        False,
        [{"type": "text", "text": "a 🦊"}, IMAGE],
        "completed",
    ),
]


@pytest.mark.parametrize(("content", "is_error", "given", "word"), TAKEN)
async def test_the_model_is_given_what_the_client_said(
    tmp_path: Path, content: Any, is_error: bool, given: Any, word: str
):
    act, results = calling(use(1))
    async with open_office(tmp_path / "root", act) as office:
        ref = await office.open()
        begun = await begin(office, ref)
        assert await answer(ref, "c1", content, is_error=is_error) == "ok"
        assert results == [(is_error, given)]
        assert outcomes(office) == [word]
        [result] = [event for event in begun.events if isinstance(event, ToolResult)]
        assert (result.content, result.is_error) == (given, is_error)
        await begun.end()
        # It is kept as it was given, and hashed as it is kept.
        office.runtime.act = office.runtime.say_nothing
        await office.turn(ref, "again")
        assert str(given) in str(office.runtime.requests[-1][1].messages)
        office.check_ledger()


async def test_without_execute_nothing_is_sent_to_a_client(tmp_path: Path):
    act, results = calling(use(1))
    async with open_office(tmp_path / "root", act) as office:
        begun = await begin(office, await office.open(), delegates=False)
        assert (await begun.end()).status == "complete"
        assert orders(begun.events) == []
        assert results[0][0] is True
        assert "not executed by the runner" in results[0][1]
        assert [entry.payload["executor"] for entry in entries(office, "tool_call")] == ["runner"]


async def test_a_tool_that_the_client_did_not_bring_is_not_sent_to_it(tmp_path: Path):
    act, results = calling(use(1, "invented"))
    async with open_office(tmp_path / "root", act) as office:
        begun = await begin(office, await office.open())
        assert (await begun.end()).status == "complete"
        assert orders(begun.events) == []
        assert results[0][0] is True


async def test_an_input_that_could_not_be_read_is_an_error_and_no_order(tmp_path: Path):
    act, results = calling(ToolUse("c1", "exec", {}, "The input is not JSON."), use(2))
    async with open_office(tmp_path / "root", act) as office:
        ref = await office.open()
        begun = await begin(office, ref)
        assert [order.id for order in orders(begun.events)] == ["c2"]
        await answer(ref, "c2")
        assert results == [(True, "The input is not JSON."), (False, "done")]
        await begun.end()


def with_rules(folder: Path, rules: str) -> Path:
    """Lay out a root whose constitution has these rules before all others."""
    root = Root(folder)
    lay_out(root)
    edit(root.platform / "constitution.yaml", r"^tool_rules:\n", f"tool_rules:\n{rules}")
    return folder


NO_RED_LIGHTS = """\
  - name: no-red-lights
    condition: {tool_name_matches: ["mcp__lights__*"], argument_matches: {colour: red}}
    verdict: blocked
    reason: Red is for alarms.
"""

NO_LIGHTS = """\
  - name: no-lights
    condition: {tool_name_matches: ["mcp__lights__*"]}
    verdict: blocked
    reason: The lights are not yours.
"""

GUESTS_MAY = """\
  - name: guests-may-light
    condition: {agent_trust: unknown, tool_name_matches: ["mcp__lights__*"]}
    verdict: allowed
    reason: Guests may see.
"""


async def test_a_rule_on_arguments_holds_at_the_call(tmp_path: Path):
    act, results = calling(
        (LIGHTS.name, {"colour": "red"}), (LIGHTS.name, {"colour": "green"}), (LIGHTS.name, {})
    )
    async with open_office(with_rules(tmp_path / "root", NO_RED_LIGHTS), act) as office:
        ref = await office.open()
        begun = await begin(office, ref)
        assert LIGHTS in office.runtime.requests[0][1].tools
        assert [order.input for order in orders(begun.events)] == [{"colour": "green"}, {}]
        for order in orders(begun.events):
            await answer(ref, order.id)
        assert results == [(True, "Denied: Red is for alarms."), (False, "done"), (False, "done")]
        await begun.end()
        assert len(entries(office, "tool_call")) == 2
        [turn] = entries(office, "turn")
        [denied] = [
            entry for entry in entries(office, "policy_verdict") if entry.payload["verdict"] == "blocked"
        ]
        assert denied.cid in turn.parents
        office.check_ledger()


async def test_a_blocked_tool_of_a_client_is_absent_and_never_sent(tmp_path: Path):
    act, results = calling((LIGHTS.name, {}), use(1))
    async with open_office(with_rules(tmp_path / "root", NO_LIGHTS), act) as office:
        ref = await office.open()
        begun = await begin(office, ref)
        assert list(office.runtime.requests[0][1].tools) == [SHELL]
        assert [order.name for order in orders(begun.events)] == ["exec"]
        await answer(ref, "c1")
        assert results == [(True, "Denied: The lights are not yours."), (False, "done")]
        await begun.end()
        office.check_ledger()


async def test_guests_bring_no_tools_unless_the_constitution_says_so(tmp_path: Path):
    act, results = calling((LIGHTS.name, {}))
    async with open_office(tmp_path / "shipped", act) as office:
        ref = await office.open("x:test:1", GUEST)
        begun = await begin(office, ref, caller=GUEST)
        assert list(office.runtime.requests[0][1].tools) == []
        assert orders(begun.events) == []
        assert results[0][0] is True
        assert results[0][1].startswith("Denied: ")
    results.clear()
    async with open_office(with_rules(tmp_path / "edited", GUESTS_MAY), act) as office:
        ref = await office.open("x:test:1", GUEST)
        begun = await begin(office, ref, caller=GUEST)
        assert list(office.runtime.requests[0][1].tools) == [LIGHTS]
        [order] = orders(begun.events)
        assert await answer(ref, order.id, caller=GUEST) == "ok"
        assert results == [(False, "done")]
        await begun.end()


class Gated(Tool):
    """Waits until it is let go on; then does what `result` says."""

    definition: ClassVar = ToolDefinition("gated", "x", {"type": "object", "properties": {}})

    def __init__(self, result: Callable[[ToolContext], ToolOutcome]) -> None:
        self.gate = trio.Event()
        self._result = result

    async def run(self, arguments: dict[str, Any], context: ToolContext) -> ToolOutcome:
        await self.gate.wait()
        return self._result(context)


async def test_an_outcome_that_conflicts_behind_the_answers_is_the_only_one_taken_back(tmp_path: Path):
    gated = Gated(lambda context: ToolOutcome("done", writes=[ClaimMail([mail.id], "reed", context.turn_id)]))
    act, results = calling(("gated", {}), use(1))
    async with open_office(tmp_path / "root", act, tools=[gated]) as office:
        ref = await office.open()
        mail = await office.mail("calli")
        await commit(office.writer, ClaimMail([mail.id], "reed", "another turn"))
        begun = await begin(office, ref, [SHELL, Gated.definition])
        assert await answer(ref, "c1", "a") == "ok"
        gated.gate.set()
        assert (await begun.end()).status == "complete"
        assert results[0][0] is True
        assert "call gated again" in results[0][1]
        assert results[1] == (False, "a")
        assert outcomes(office) == ["completed", "error"]
        rows = office.rows("SELECT content FROM history WHERE role = 'user' AND content LIKE '%tool_result%'")
        assert len(rows) == 1
        office.check_ledger()


async def test_an_answer_that_arrives_while_a_conflict_is_found_does_not_keep_what_was_not_done(
    tmp_path: Path,
):
    def conflict(context: ToolContext) -> ToolOutcome:
        ref.tell(AnswerCall(OPERATOR, "c1", "a", is_error=False))
        return ToolOutcome("done", writes=[ClaimMail([mail.id], "reed", context.turn_id)])

    gated = Gated(conflict)
    act, results = calling(("gated", {}), use(1))
    async with open_office(tmp_path / "root", act, tools=[gated], threaded=True) as office:
        ref = await office.open()
        mail = await office.mail("calli")
        await commit(office.writer, ClaimMail([mail.id], "reed", "another turn"))
        begun = await begin(office, ref, [SHELL, Gated.definition])
        gated.gate.set()
        assert (await begun.end()).status == "complete"
        assert [failed for failed, _ in results] == [True, False]
        [(kept,)] = office.rows(
            "SELECT content FROM history WHERE role = 'user' AND content LIKE '%tool_result%'"
        )
        assert "call gated again" in kept
        assert "done" not in kept
        office.check_ledger()


async def test_a_fault_of_the_disk_in_mid_call_is_told_as_what_it_is(tmp_path: Path):
    act, results = calling(use(1), use(2))
    async with open_office(tmp_path / "root", act) as office:
        ref = await office.open()
        begun = await begin(office, ref)
        office.failure = StorageError("the disk is full")
        with capture_logs() as logs:
            assert await answer(ref, "c1") == "ok"
            ended = await begun.end()
        assert {str(log.get("error")) for log in logs if log["event"] == "turn failed"} == {
            str(office.failure)
        }
        assert ended.error is not None
        assert ended.error.code == "internal"
        assert "the disk is full" in ended.error.message
        assert results == []
        office.failure = None
        await settled()
        office.runtime.act = office.runtime.say_nothing
        assert (await office.turn(await office.open())).status == "complete"
        assert orphans(list(office.runtime.requests[-1][1].messages)) == []
        assert outcomes(office) == ["unknown", "unknown"]
        office.check_ledger()


async def test_the_next_turn_does_not_take_the_answers_of_the_last(tmp_path: Path):
    act, results = calling(use(1))
    async with open_office(tmp_path / "root", act) as office:
        ref = await office.open()
        first = await begin(office, ref)
        second = await begin(office, ref)  # waits in line
        assert (len(orders(first.events)), second.events) == (1, [])
        await answer(ref, "c1", "a")
        assert (await first.end()).status == "complete"
        await settled()
        assert len(orders(second.events)) == 1
        assert results == [(False, "a")]
        await answer(ref, "c1", "b")
        assert (await second.end()).status == "complete"
        assert results == [(False, "a"), (False, "b")]
