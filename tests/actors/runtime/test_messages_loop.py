from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import pytest
import trio

from actors.runtime.base import ToolUse, Usage
from actors.runtime.messages_loop import MessagesRuntime, ModelSettings, build_payload
from protocol.errors import BackendError
from protocol.events import TextDelta, ToolCall, UsageUpdate
from tests.support.model_server import (
    Response,
    calls,
    event,
    message_end,
    message_start,
    says,
    text_block,
    thinking_block,
    tool_block,
)
from tests.support.turns import RememberingHost, request, session


class ScriptedRuntime(MessagesRuntime):
    """Answers from a list; remembers the payloads and whether each stream was closed."""

    name = "scripted"

    def __init__(self, *answers: Response, settings: ModelSettings | None = None) -> None:
        super().__init__(settings or ModelSettings(model="scripted"))
        self.answers = list(answers)
        self.payloads: list[dict[str, Any]] = []
        self.open_streams = 0

    @asynccontextmanager
    async def open_stream(self, session, request, payload) -> AsyncIterator[AsyncGenerator[bytes, None]]:
        self.payloads.append(payload)
        answer = self.answers.pop(0) if len(self.answers) > 1 else self.answers[0]
        self.open_streams += 1
        try:
            yield self.chunks(answer)
        finally:
            self.open_streams -= 1

    async def chunks(self, answer: Response) -> AsyncGenerator[bytes, None]:
        for chunk in answer.chunks:
            await trio.lowlevel.checkpoint()
            if isinstance(chunk, bytes):
                yield chunk
            else:
                await trio.sleep_forever()

    def status(self) -> dict[str, Any]:
        return {}


class Silence:
    """A chunk after which nothing more comes."""


def answer(*parts: Any) -> Response:
    chunks: list[Any] = []
    for part in parts:
        chunks += part if isinstance(part, list) else [part]
    return Response(tuple(chunks))


async def test_answer_without_calls_ends_the_turn_with_its_stop_reason():
    host, runtime = RememberingHost(), ScriptedRuntime(says("Hel", "lo"))
    assert await runtime.run_turn(session(), request("hi"), host) == "end_turn"
    assert host.text == "Hello"
    assert host.kept == [{"type": "text", "text": "Hello"}]
    assert host.calls == []


@pytest.mark.parametrize("reason", ["max_tokens", "stop_sequence", "refusal"])
async def test_stop_reasons_of_the_model_are_those_of_the_turn(reason):
    runtime = ScriptedRuntime(says("a", stop_reason=reason))
    assert await runtime.run_turn(session(), request("hi"), RememberingHost()) == reason


async def test_result_of_a_call_goes_back_to_the_model():
    host, runtime = RememberingHost(), ScriptedRuntime(calls("read_file", {"path": "a"}), says("done"))
    assert await runtime.run_turn(session(), request("read it"), host) == "end_turn"
    assert host.called == [("read_file", {"path": "a"})]
    first, second = (payload["messages"] for payload in runtime.payloads)
    assert [message["role"] for message in first] == ["user"]
    assert [message["role"] for message in second] == ["user", "assistant", "user"]
    assert second[1]["content"][0]["input"] == {"path": "a"}
    assert second[2]["content"][0]["content"] == "result of read_file"


async def test_calls_of_one_message_are_handed_over_together_and_in_order():
    both = answer(
        message_start(),
        tool_block(0, "t1", "read_file", '{"path": "a"}'),
        tool_block(1, "t2", "list_files"),
        message_end("tool_use"),
    )
    host = RememberingHost()
    await ScriptedRuntime(both, says("done")).run_turn(session(), request("x"), host)
    assert host.calls == [[ToolUse("t1", "read_file", {"path": "a"}), ToolUse("t2", "list_files", {})]]
    assert [event.id for event in host.announced] == ["t1", "t2"]


async def test_unreadable_input_is_a_problem_of_the_call_and_the_turn_goes_on():
    bad = answer(message_start(), tool_block(0, "t1", "read_file", '{"path": '), message_end("tool_use"))
    host, runtime = RememberingHost(), ScriptedRuntime(bad, says("sorry"))
    assert await runtime.run_turn(session(), request("x"), host) == "end_turn"
    assert "not JSON" in (host.calls[0][0].problem or "")
    assert runtime.payloads[1]["messages"][1]["content"][0]["input"] == {}
    assert runtime.payloads[1]["messages"][2]["content"][0]["is_error"] is True


async def test_model_that_calls_for_ever_is_stopped_and_its_last_calls_have_results():
    host, runtime = RememberingHost(), ScriptedRuntime(calls("list_files", {}))
    stop_reason = await runtime.run_turn(session(), request("x", model_calls_max=3), host)
    assert stop_reason == "max_turn_requests"
    assert len(runtime.payloads) == len(host.calls) == 3


async def test_calls_are_run_even_if_the_server_names_another_stop_reason():
    odd = answer(message_start(), tool_block(0, "t1", "list_files"), message_end("end_turn"))
    host = RememberingHost()
    await ScriptedRuntime(odd, says("done")).run_turn(session(), request("x"), host)
    assert host.called == [("list_files", {})]


async def test_tool_use_without_a_call_ends_the_turn():
    runtime = ScriptedRuntime(says("a", stop_reason="tool_use"))
    assert await runtime.run_turn(session(), request("x"), RememberingHost()) == "end_turn"
    assert len(runtime.payloads) == 1


@pytest.mark.parametrize("reason", ["max_tokens", "refusal"])
async def test_calls_of_an_answer_that_was_cut_off_get_an_error_and_are_not_run(reason):
    cut = answer(message_start(), tool_block(0, "t1", "bash", '{"command": "x"}'), message_end(reason))
    host, runtime = RememberingHost(), ScriptedRuntime(cut)
    assert await runtime.run_turn(session(), request("x"), host) == reason
    assert [(call.id, call.problem is not None) for call in host.calls[0]] == [("t1", True)]
    assert len(runtime.payloads) == 1


async def test_paused_answer_goes_on_in_the_same_message():
    first = answer(message_start(), text_block(0, "searching"), message_end("pause_turn"))
    host, runtime = RememberingHost(), ScriptedRuntime(first, first, says("found"))
    assert await runtime.run_turn(session(), request("x"), host) == "end_turn"
    last = runtime.payloads[2]["messages"]
    assert [message["role"] for message in last] == ["user", "assistant"]
    assert [block["text"] for block in last[1]["content"]] == ["searching", "searching"]


async def test_paused_answers_count_as_model_calls():
    empty = answer(message_start(), message_end("pause_turn"))
    runtime = ScriptedRuntime(empty)
    stop_reason = await runtime.run_turn(session(), request("x", model_calls_max=4), RememberingHost())
    assert (stop_reason, len(runtime.payloads)) == ("max_turn_requests", 4)


async def test_usage_events_are_sums_over_the_turn_and_spending_is_by_call():
    host = RememberingHost()
    await ScriptedRuntime(calls("list_files", {}), says("done")).run_turn(session(), request("x"), host)
    assert host.usage == [(10, 1), (10, 5), (20, 6), (20, 10)]
    assert host.spent == [Usage(10, 5), Usage(10, 5)]


async def test_cached_tokens_are_spent_too():
    cached = answer(
        message_start(cache_read_input_tokens=90, cache_creation_input_tokens=7), message_end("end_turn")
    )
    host = RememberingHost()
    await ScriptedRuntime(cached).run_turn(session(), request("x"), host)
    assert host.spent[0].total == 10 + 5 + 90 + 7


async def test_broken_call_is_spent_and_keeps_what_was_complete():
    broken = answer(
        message_start(),
        text_block(0, "whole"),
        text_block(1, "x" * 400)[:2],
        event("error", error={"type": "overloaded_error", "message": "Overloaded"}),
    )
    host = RememberingHost()
    with pytest.raises(BackendError) as caught:
        await ScriptedRuntime(broken).run_turn(session(), request("x"), host)
    assert caught.value.code == "backend_overloaded"
    assert host.kept == [{"type": "text", "text": "whole"}]
    assert host.spent == [Usage(10, 101)]


async def test_stream_that_ends_early_is_an_error():
    with pytest.raises(BackendError, match="no message_stop"):
        await ScriptedRuntime(answer(message_start(), text_block(0, "a"))).run_turn(
            session(), request("x"), RememberingHost()
        )


async def test_last_event_without_its_empty_line_completes_the_answer():
    whole = says("a")
    last = whole.chunks[-1]
    assert isinstance(last, bytes)
    bare = Response((*whole.chunks[:-1], last.rstrip()))
    assert await ScriptedRuntime(bare).run_turn(session(), request("x"), RememberingHost()) == "end_turn"


async def test_server_that_does_not_end_the_body_does_not_hold_the_turn(autojump_clock):
    runtime = ScriptedRuntime(answer(*says("a").chunks, Silence()))
    before = trio.current_time()
    assert await runtime.run_turn(session(), request("x"), RememberingHost()) == "end_turn"
    assert trio.current_time() - before < 1
    assert runtime.open_streams == 0


async def test_cancelled_turn_closes_its_stream_keeps_complete_blocks_and_spends():
    stalled = answer(message_start(), text_block(0, "whole"), text_block(1, "torn")[:2], Silence())
    host, runtime = RememberingHost(), ScriptedRuntime(stalled)
    with trio.CancelScope() as scope:
        host.on_event = lambda event: scope.cancel() if getattr(event, "text", "") == "torn" else None
        await runtime.run_turn(session(), request("x"), host)
    assert scope.cancelled_caught
    assert host.kept == [{"type": "text", "text": "whole"}]
    assert len(host.spent) == 1
    assert runtime.open_streams == 0


async def test_fault_in_the_host_closes_the_stream():
    def fail(_event: object) -> None:
        raise RuntimeError("host")

    host, runtime = RememberingHost(), ScriptedRuntime(says("a", "b"))
    host.on_event = fail
    with pytest.raises(RuntimeError, match="host"):
        await runtime.run_turn(session(), request("x"), host)
    assert runtime.open_streams == 0


async def test_call_is_announced_when_complete_and_before_it_is_handed_over():
    host = RememberingHost(lambda call: f"{len(host.announced)} announced")
    runtime = ScriptedRuntime(calls("list_files", {}), says("done"))
    await runtime.run_turn(session(), request("x"), host)
    assert runtime.payloads[1]["messages"][2]["content"][0]["content"] == "1 announced"
    kinds = [type(event) for event in host.events if not isinstance(event, UsageUpdate)]
    assert kinds.index(ToolCall) < kinds.index(TextDelta)


async def test_thinking_of_this_turn_goes_back_with_its_signature():
    thinks = answer(
        message_start(),
        thinking_block(0, "hm", "sig"),
        tool_block(1, "t1", "list_files"),
        message_end("tool_use"),
    )
    host, runtime = RememberingHost(), ScriptedRuntime(thinks, says("done"))
    await runtime.run_turn(session(), request("x"), host)
    assert host.reasoning == "hm"
    sent = runtime.payloads[1]["messages"][1]["content"][0]
    assert sent == {"type": "thinking", "thinking": "hm", "signature": "sig"}


THOUGHT = {"type": "thinking", "thinking": "hm", "signature": "of another model"}


def test_thinking_of_earlier_turns_is_not_sent():
    earlier = {"role": "assistant", "content": [THOUGHT, {"type": "text", "text": "a"}]}
    only = {"role": "assistant", "content": [THOUGHT, {"type": "redacted_thinking", "data": "x"}]}
    asked = request("one", earlier, "two", only, "three")
    sent = build_payload(session(), asked, asked.messages, ModelSettings("m"))["messages"]
    assert [message["role"] for message in sent] == ["user", "assistant", "user", "user"]
    assert "thinking" not in str(sent)
    assert asked.messages[1]["content"][0] == THOUGHT, "the history itself is not touched"


def test_thinking_of_a_tool_loop_that_the_client_continues_is_sent():
    use = {"type": "tool_use", "id": "t", "name": "n", "input": {}}
    result = {"type": "tool_result", "tool_use_id": "t", "content": "r"}
    asked = request("one", {"role": "assistant", "content": [THOUGHT, use]}, [result])
    sent = build_payload(session(), asked, asked.messages, ModelSettings("m"))["messages"]
    assert sent[1]["content"][0] == THOUGHT


def breakpoints(value: Any, path: str = "") -> list[str]:
    if isinstance(value, dict):
        found = [path] if "cache_control" in value else []
        return found + [
            place for name, item in value.items() for place in breakpoints(item, f"{path}.{name}")
        ]
    if isinstance(value, list):
        return [place for number, item in enumerate(value) for place in breakpoints(item, f"{path}.{number}")]
    return []


def test_cache_breakpoints_end_tools_stable_system_and_the_last_messages():
    asked = request(
        "one",
        {"role": "assistant", "content": "a"},
        "two",
        system=("stable", "  ", "stable too", "board"),
        system_stable=3,
        offered=("x", "y"),
    )
    payload = build_payload(session(), asked, asked.messages, ModelSettings("m"))
    assert breakpoints(payload) == [
        ".messages.0.content.0",
        ".messages.2.content.0",
        ".system.1",
        ".tools.1",
    ]
    assert [block["text"] for block in payload["system"]] == ["stable", "stable too", "board"]


def test_breakpoints_of_a_client_are_replaced_so_that_there_are_at_most_four():
    marked = [
        {"type": "text", "text": str(number), "cache_control": {"type": "ephemeral"}} for number in range(6)
    ]
    asked = request(marked)
    payload = build_payload(session(), asked, asked.messages, ModelSettings("m"))
    assert breakpoints(payload["messages"]) == [".0.content.5"]
    assert len(breakpoints(payload)) <= 4
    assert len(breakpoints(asked.messages)) == 6, "the history itself is not touched"


def test_breakpoint_of_one_call_is_still_there_in_the_next():
    first = request("one")
    result = [{"type": "tool_result", "tool_use_id": "t", "content": "r"}]
    second = request("one", {"role": "assistant", "content": [{"type": "text", "text": "a"}]}, result)
    places = [
        breakpoints(build_payload(session(), asked, asked.messages, ModelSettings("m"))["messages"])
        for asked in (first, second)
    ]
    assert set(places[0]) <= set(places[1])


def test_nothing_is_said_of_what_is_absent():
    asked = request("x", system=(), system_stable=0, offered=())
    payload = build_payload(session(), asked, asked.messages, ModelSettings("m", 100))
    assert set(payload) == {"model", "max_tokens", "stream", "messages"}
    assert (payload["model"], payload["max_tokens"], payload["stream"]) == ("m", 100, True)


def test_model_of_the_session_wins():
    asked = request("x")
    assert build_payload(session("other"), asked, asked.messages, ModelSettings("m"))["model"] == "other"


@pytest.mark.parametrize(
    ("thinking", "said", "tokens_max"),
    [
        (2048, {"type": "enabled", "budget_tokens": 2048}, 3048),
        ("adaptive", {"type": "adaptive", "display": "summarized"}, 1000),
        ("between_tools", {"type": "between_tools"}, 1000),
        ("disabled", {"type": "disabled"}, 1000),
    ],
)
def test_thinking_is_asked_for_as_set(thinking, said, tokens_max):
    asked = request("x")
    payload = build_payload(session(), asked, asked.messages, ModelSettings("m", 1000, thinking))
    assert (payload["thinking"], payload["max_tokens"]) == (said, tokens_max)
