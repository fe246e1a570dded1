from __future__ import annotations

from typing import Any

from actors.commands.transcript import Transcript


def written(*events: dict[str, Any]) -> str:
    pieces: list[str] = []
    transcript = Transcript(pieces.append)
    for event in events:
        transcript.take(event)
    transcript.end()
    return "".join(pieces)


def gate(tool: str, verdict: str, phase: str, reason: str = "because") -> dict[str, Any]:
    payload = {"tool": tool, "verdict": verdict, "phase": phase, "reason": reason, "rule": "a-rule"}
    return {"type": "policy_gate", "entry": {"payload": payload}}


def test_text_is_written_as_it_comes() -> None:
    assert (
        written({"type": "text_delta", "text": "one "}, {"type": "text_delta", "text": "two"}) == "one two\n"
    )


def test_thinking_and_text_stand_on_lines_of_their_own() -> None:
    events = [{"type": "reasoning_delta", "text": "hm"}, {"type": "text_delta", "text": "yes"}]
    assert written(*events) == "hm\nyes\n"


def test_what_is_allowed_at_the_offer_is_counted_and_what_is_blocked_is_told() -> None:
    told = written(
        gate("read_file", "allowed", "offer"),
        gate("bash", "blocked", "offer", "No shell\nhere."),
        gate("search", "allowed", "offer"),
        {"type": "text_delta", "text": "hello"},
    )
    assert told == "withheld bash: No shell here.\nthe court offers 2 tools\nhello\n"


def test_a_call_is_told_with_its_verdict_and_its_outcome() -> None:
    told = written(
        {"type": "text_delta", "text": "I look"},
        {"type": "tool_call_update", "id": "1", "input_delta": "{"},
        {"type": "tool_call", "id": "1", "name": "read_file", "input": {"path": "ü"}},
        gate("read_file", "allowed", "call"),
        {"type": "ledger_append", "entry": {}},
        {"type": "tool_result", "id": "1", "content": "a\nb", "is_error": False},
        gate("bash", "blocked", "call", "not here"),
        {"type": "done", "stop_reason": "end_turn"},
    )
    assert told == (
        'I look\ntool read_file {"path": "ü"}\nallowed read_file (a-rule)\n  | a\n  | b\nblocked bash: not here\n'
    )


def test_a_long_result_is_cut_and_says_so() -> None:
    told = written({"type": "tool_result", "id": "1", "content": "x\n" * 5000, "is_error": False})
    assert told == "  | x\n" * 8 + "  | … (10000 characters)\n"


def test_blocks_that_a_client_answered_are_told_by_their_text_and_kind() -> None:
    content = [
        {"type": "text", "text": "a picture"},
        {"type": "image", "source": {"type": "url", "url": "x"}},
    ]
    told = written({"type": "tool_result", "id": "c", "content": content, "is_error": False})
    assert told == "  | a picture\n  | [image]\n"


def test_mail_in_the_turn_names_its_sender() -> None:
    event = {"type": "mailbox_injected", "entry": {"payload": {"sender": "guest:1\x1b"}}}
    assert written(event) == "mail from guest:1\\x1b is in this turn\n"


def test_how_it_ended_and_what_it_took_is_told() -> None:
    usage = {"type": "usage_update", "input_tokens": 3, "output_tokens": 4}
    assert (
        written(usage, {"type": "done", "stop_reason": "refusal"}) == "ended: refusal, 3 tokens in, 4 out\n"
    )
    assert written({"type": "done", "stop_reason": "end_turn"}) == ""


def test_events_of_unknown_types_are_passed_over() -> None:
    assert (
        written(
            {"type": "something_new", "field": 1}, {"no": "type"}, {"type": "turn_started", "turn_id": "1"}
        )
        == ""
    )


def test_a_model_cannot_drive_the_terminal() -> None:
    assert written({"type": "text_delta", "text": "\x1b[2J\x9b"}) == "\\x1b[2J\\x9b\n"
