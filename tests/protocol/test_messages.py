import json
import pathlib
from itertools import pairwise
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from protocol.canonical import canonical_json
from protocol.errors import BackendError
from protocol.events import ReasoningDelta, TextDelta, ToolCall, ToolCallUpdate, UsageUpdate
from protocol.messages import BlockEnded, MessageStream, excerpt, read_input
from protocol.sse import EventStreamParser

FIXTURES = pathlib.Path(__file__).parents[2].parent / "shared" / "fixtures" / "anthropic"

START = {"type": "message_start", "message": {"usage": {"input_tokens": 11, "output_tokens": 1}}}
STOP = {"type": "message_stop"}


def begin(block: dict[str, Any], index: int = 0) -> dict[str, Any]:
    return {"type": "content_block_start", "index": index, "content_block": block}


def delta(fields: dict[str, Any], index: int = 0) -> dict[str, Any]:
    return {"type": "content_block_delta", "index": index, "delta": fields}


def end(index: int = 0) -> dict[str, Any]:
    return {"type": "content_block_stop", "index": index}


def stop_with(reason: Any, **usage: int) -> dict[str, Any]:
    return {"type": "message_delta", "delta": {"stop_reason": reason}, "usage": {"output_tokens": 6, **usage}}


def wire(*events: dict[str, Any] | bytes) -> bytes:
    parts = (event if isinstance(event, bytes) else json.dumps(event).encode() for event in events)
    return b"".join(b"event: x\ndata: " + part + b"\n\n" for part in parts)


class Read:
    """What a stream gives: everything in order, and the stream itself."""

    def __init__(self, data: bytes, *, is_whole: bool = True) -> None:
        self.stream = MessageStream()
        self.items: list[Any] = []
        parser = EventStreamParser()
        for event in parser.feed(data) + parser.finish():
            self.items += self.stream.receive(event)
        if is_whole:
            self.stream.finish()

    def of(self, kind: type) -> list[Any]:
        return [item for item in self.items if isinstance(item, kind)]

    @property
    def text(self) -> str:
        return "".join(item.text for item in self.of(TextDelta))

    @property
    def blocks(self) -> list[dict[str, Any]]:
        return [item.block for item in self.of(BlockEnded)]

    @property
    def calls(self) -> list[Any]:
        return [item.call for item in self.of(BlockEnded) if item.call is not None]


def read(*events: dict[str, Any] | bytes, is_whole: bool = True) -> Read:
    return Read(wire(*events), is_whole=is_whole)


def call_of(*pieces: str, block: dict[str, Any] | None = None) -> Read:
    opened = block or {"type": "tool_use", "id": "toolu_1", "name": "read_file", "input": {}}
    deltas = [delta({"type": "input_json_delta", "partial_json": piece}) for piece in pieces]
    return read(START, begin(opened), *deltas, end(), stop_with("tool_use"), STOP)


def test_text_comes_in_pieces_and_is_kept_whole():
    pieces = [delta({"type": "text_delta", "text": piece}) for piece in ("Hel", "lo", "")]
    got = read(START, begin({"type": "text", "text": ""}), *pieces, end(), stop_with("end_turn"), STOP)
    assert [item.text for item in got.of(TextDelta)] == ["Hel", "lo"]
    assert got.blocks == [{"type": "text", "text": "Hello"}]
    assert got.stream.stop_reason == "end_turn"


def test_text_that_stands_in_the_start_of_its_block_is_not_lost():
    more = delta({"type": "text_delta", "text": " there"})
    got = read(START, begin({"type": "text", "text": "Hello"}), more, end(), STOP)
    assert got.text == "Hello there"
    assert got.blocks == [{"type": "text", "text": "Hello there"}]


def test_thinking_is_reasoning_and_keeps_its_signature():
    got = read(
        START,
        begin({"type": "thinking", "thinking": "", "signature": ""}),
        delta({"type": "thinking_delta", "thinking": "Let me "}),
        delta({"type": "thinking_delta", "thinking": "see."}),
        delta({"type": "signature_delta", "signature": "EqQB"}),
        end(),
        STOP,
    )
    assert [item.text for item in got.of(ReasoningDelta)] == ["Let me ", "see."]
    assert got.blocks == [{"type": "thinking", "thinking": "Let me see.", "signature": "EqQB"}]


def test_thinking_whose_text_is_withheld_keeps_its_signature():
    opened = begin({"type": "thinking", "thinking": "", "signature": ""})
    got = read(START, opened, delta({"type": "signature_delta", "signature": "EqQB"}), end(), STOP)
    assert got.of(ReasoningDelta) == []
    assert got.blocks == [{"type": "thinking", "thinking": "", "signature": "EqQB"}]


def test_redacted_thinking_is_kept_as_it_came():
    block = {"type": "redacted_thinking", "data": "Eo0B"}
    assert read(START, begin(block), end(), STOP).blocks == [block]


def test_tool_call_is_given_once_and_complete_after_its_pieces():
    got = call_of("", '{"pa', 'th": "a"}')
    assert [(item.id, item.input_delta) for item in got.of(ToolCallUpdate)] == [
        ("toolu_1", '{"pa'),
        ("toolu_1", 'th": "a"}'),
    ]
    (event,) = got.of(ToolCall)
    assert (event.id, event.name, event.input) == ("toolu_1", "read_file", {"path": "a"})
    assert got.calls[0].problem is None
    assert got.blocks == [{"type": "tool_use", "id": "toolu_1", "name": "read_file", "input": {"path": "a"}}]


def test_block_is_kept_before_its_call_is_announced():
    kinds = [type(item) for item in call_of("{}").items if isinstance(item, BlockEnded | ToolCall)]
    assert kinds == [BlockEnded, ToolCall]


def test_call_without_input_has_an_empty_one():
    assert call_of().calls[0][2:] == ({}, None)
    assert call_of("").calls[0][2:] == ({}, None)


def test_whole_input_at_the_start_of_the_block_is_taken():
    block = {"type": "tool_use", "id": "toolu_1", "name": "read_file", "input": {"path": "a"}}
    assert call_of(block=block).calls[0][2:] == ({"path": "a"}, None)


@pytest.mark.parametrize(
    ("written", "said"),
    [
        ('{"path": ', "not JSON"),
        ("{'path': 1}", "not JSON"),
        ('{"a": NaN}', "not JSON"),
        ("[1]", "JSON array, not an object"),
        ('"a"', "JSON string, not an object"),
        ("12", "JSON number, not an object"),
        ("true", "JSON boolean, not an object"),
        ("null", "JSON null, not an object"),
        (r'{"path": "\ud800"}', "lone surrogates"),
        (r'{"\udc00": 1}', "cannot be kept"),
        ('{"n": 9007199254740993}', "cannot be kept"),
        ('{"a":' * 200 + "1" + "}" * 200, "cannot be kept"),
        ('{"a":' * 125 + "1" + "}" * 125, "cannot be kept"),
        ("[" * 100_000, "not JSON"),
    ],
)
def test_input_that_cannot_be_used_is_a_problem_of_the_call_and_not_of_the_turn(written, said):
    got = call_of(written)
    (call,) = got.calls
    assert call.input == {}
    assert said in call.problem
    assert got.of(ToolCall)[0].input == {}
    assert got.blocks[0]["input"] == {}, "what is kept must be sendable again"


def test_lone_surrogate_in_the_event_itself_reaches_neither_the_wire_nor_the_call():
    fields = b'{"type":"input_json_delta","partial_json":"{\\"a\\":\\"\\ud800\\"}"}'
    piece = b'{"type":"content_block_delta","index":0,"delta":' + fields + b"}"
    opened = begin({"type": "tool_use", "id": "toolu_1", "name": "read_file", "input": {}})
    got = read(START, opened, piece, end(), STOP)
    got.of(ToolCallUpdate)[0].input_delta.encode()
    assert "lone surrogates" in got.calls[0].problem


def test_lone_surrogate_in_text_becomes_the_replacement_character():
    piece = b'{"type":"content_block_delta","index":0,"delta":{"type":"text_delta","text":"a\\ud800b"}}'
    got = read(START, begin({"type": "text", "text": ""}), piece, end(), STOP)
    assert got.text == "a\ufffdb"
    assert got.blocks == [{"type": "text", "text": "a\ufffdb"}]


def test_bytes_that_are_not_utf_8_spoil_a_character_and_not_the_answer():
    piece = b'{"type":"content_block_delta","index":0,"delta":{"type":"text_delta","text":"a\xff"}}'
    assert read(START, begin({"type": "text", "text": ""}), piece, end(), STOP).text == "a\ufffd"


def test_usage_is_the_latest_that_the_server_said():
    got = read(
        {"type": "message_start", "message": {"usage": {"input_tokens": 25, "cache_read_input_tokens": 5}}},
        stop_with("end_turn", input_tokens=40, cache_creation_input_tokens=12),
        STOP,
    )
    last = got.of(UsageUpdate)[-1]
    assert (last.input_tokens, last.output_tokens) == (40, 6)
    tokens = got.stream.tokens_spent()
    assert (tokens.cache_creation_input_tokens, tokens.cache_read_input_tokens) == (12, 5)


def test_usage_that_is_absent_or_nonsense_is_passed_over():
    nonsense = {"input_tokens": -3, "output_tokens": "many", "cache_read_input_tokens": True}
    got = read(
        {"type": "message_start", "message": {}},
        {"type": "message_delta", "delta": {"stop_reason": "end_turn"}, "usage": nonsense},
        {"type": "message_delta", "delta": {}, "usage": None},
        STOP,
    )
    tokens = got.stream.tokens_spent()
    assert (tokens.input_tokens, tokens.output_tokens, tokens.cache_read_input_tokens) == (0, 0, 0)


def test_answer_that_broke_off_is_counted_by_what_was_received():
    got = read(
        START,
        begin({"type": "text", "text": ""}),
        delta({"type": "text_delta", "text": "x" * 400}),
        is_whole=False,
    )
    tokens = got.stream.tokens_spent()
    assert (tokens.input_tokens, tokens.output_tokens) == (11, 100)


@pytest.mark.parametrize(
    ("said", "means"),
    [
        ("end_turn", "end_turn"),
        ("max_tokens", "max_tokens"),
        ("stop_sequence", "stop_sequence"),
        ("refusal", "refusal"),
        ("tool_use", "tool_use"),
        ("pause_turn", "pause_turn"),
        ("model_context_window_exceeded", "max_tokens"),
        ("something_new", "end_turn"),
        (None, "end_turn"),
        ({"a": 1}, "end_turn"),
    ],
)
def test_stop_reasons_are_understood(said, means):
    assert read(START, stop_with(said), STOP).stream.stop_reason == means


def test_pings_and_unknown_events_are_passed_over():
    got = read(
        START,
        {"type": "ping"},
        {"type": "weather", "is": "fine"},
        {"no": "type"},
        stop_with("end_turn"),
        STOP,
    )
    assert got.of(TextDelta) == got.blocks == []


def test_unknown_delta_leaves_the_text_around_it():
    got = read(
        START,
        begin({"type": "text", "text": ""}),
        delta({"type": "text_delta", "text": "a"}),
        delta({"type": "sparkle_delta", "sparkle": 1}),
        delta({"type": "text_delta", "text": "b"}),
        end(),
        STOP,
    )
    assert got.blocks == [{"type": "text", "text": "ab"}]


def test_citations_stay_with_their_text():
    citation = {"type": "char_location", "cited_text": "x"}
    got = read(
        START,
        begin({"type": "text", "text": "", "citations": []}),
        delta({"type": "text_delta", "text": "a"}),
        delta({"type": "citations_delta", "citation": citation}),
        end(),
        STOP,
    )
    assert got.blocks == [{"type": "text", "text": "a", "citations": [citation]}]


def test_block_of_an_unknown_type_is_kept_as_it_came():
    block = {"type": "web_search_tool_result", "tool_use_id": "srvtoolu_1", "content": [{"title": "a"}]}
    assert read(START, begin(block), end(), STOP).blocks == [block]


def test_tool_of_the_server_keeps_its_input_and_is_no_call_of_ours():
    got = read(
        START,
        begin({"type": "server_tool_use", "id": "srvtoolu_1", "name": "web_search", "input": {}}),
        delta({"type": "input_json_delta", "partial_json": '{"query": "x"}'}),
        end(),
        STOP,
    )
    assert got.blocks[0]["input"] == {"query": "x"}
    assert got.calls == got.of(ToolCall) == got.of(ToolCallUpdate) == []


def test_unknown_block_with_pieces_that_were_not_understood_is_not_kept_by_half():
    got = read(START, begin({"type": "hologram"}), delta({"type": "hologram_delta", "x": 1}), end(), STOP)
    assert got.blocks == []


@pytest.mark.parametrize("text", ["", " \n"])
def test_empty_text_is_not_kept_since_it_could_not_be_sent_again(text):
    got = read(
        START, begin({"type": "text", "text": ""}), delta({"type": "text_delta", "text": text}), end(), STOP
    )
    assert got.blocks == []


def test_blocks_may_be_written_in_turns():
    got = read(
        START,
        begin({"type": "text", "text": ""}, 0),
        begin({"type": "tool_use", "id": "t", "name": "n", "input": {}}, 1),
        delta({"type": "text_delta", "text": "a"}, 0),
        delta({"type": "input_json_delta", "partial_json": "{}"}, 1),
        end(1),
        end(0),
        STOP,
    )
    assert [block["type"] for block in got.blocks] == ["tool_use", "text"]


def test_block_without_its_end_is_not_kept():
    got = read(START, begin({"type": "text", "text": "a"}), stop_with("max_tokens"), STOP)
    assert got.blocks == []


@pytest.mark.parametrize(
    ("kind", "code"),
    [
        ("overloaded_error", "backend_overloaded"),
        ("rate_limit_error", "rate_limited"),
        ("api_error", "backend_error"),
        ("something_new", "backend_error"),
    ],
)
def test_error_in_mid_stream_has_its_code(kind, code):
    with pytest.raises(BackendError, match=f"{kind}: Over\\\\?") as caught:
        read(START, {"type": "error", "error": {"type": kind, "message": "Over\u0007"}})
    assert caught.value.code == code
    assert caught.value.message.isprintable()


@pytest.mark.parametrize("error", [None, "text", {}, {"type": 3, "message": []}])
def test_error_without_a_shape_is_still_an_error(error):
    with pytest.raises(BackendError, match="it gave no reason"):
        read({"type": "error", "error": error})


def test_stream_that_ends_early_is_an_error():
    with pytest.raises(BackendError, match="no message_stop"):
        read(START, begin({"type": "text", "text": "a"}), end(), stop_with("end_turn"))


def test_what_follows_the_end_of_an_answer_is_passed_over():
    assert read(START, stop_with("end_turn"), STOP, b"[DONE]").stream.stop_reason == "end_turn"


@pytest.mark.parametrize(
    ("garbage", "said"),
    [
        (b"<html>busy</html>", "not JSON: '<html>busy</html>'"),
        (b'{"type": "content_blo', "not JSON"),
        (b"[1]", "not a JSON object"),
        (b'{"type": "message_start"}', "without the object 'message'"),
        (json.dumps(delta({"type": "text_delta", "text": "a"})).encode(), "had not begun"),
        (json.dumps(end()).encode(), "had not begun"),
        (
            json.dumps({"type": "content_block_start", "index": "0", "content_block": {}}).encode(),
            "without a usable",
        ),
        (json.dumps(begin({"type": "tool_use", "name": "n"})).encode(), "without the text 'id'"),
        (json.dumps(begin({"type": "tool_use", "id": "", "name": "n"})).encode(), "without an id or a name"),
        (json.dumps(begin({"type": "tool_use", "id": "i" * 257, "name": "n"})).encode(), "an unusable id"),
        (json.dumps(begin({"type": "tool_use", "id": "i\x00", "name": "n"})).encode(), "an unusable id"),
        (json.dumps(begin({"type": "tool_use", "id": "i", "name": "n" * 257})).encode(), "an unusable name"),
        (json.dumps(begin({"type": "tool_use", "id": "i", "name": "\x1b[2J"})).encode(), "an unusable name"),
        (json.dumps(begin({"type": "text", "text": 7})).encode(), "without the text 'text'"),
    ],
)
def test_garbage_is_an_error_that_names_it(garbage, said):
    with pytest.raises(BackendError) as caught:
        read(START, garbage)
    assert said in caught.value.message
    assert caught.value.code == "backend_error"


@pytest.mark.parametrize("index", [[], {}, None, "0", 1.5])
def test_index_of_the_wrong_type_is_an_error_of_the_server(index):
    with pytest.raises(BackendError):
        read(
            START,
            {"type": "content_block_delta", "index": index, "delta": {"type": "text_delta", "text": "a"}},
        )
    with pytest.raises(BackendError):
        read(START, {"type": "content_block_stop", "index": index})


def test_same_id_for_two_calls_is_an_error():
    block = {"type": "tool_use", "id": "t", "name": "n", "input": {}}
    with pytest.raises(BackendError, match="same id"):
        read(START, begin(block, 0), end(0), begin(block, 1))


def test_endless_answer_is_refused(monkeypatch):
    monkeypatch.setattr("protocol.messages.ANSWER_SIZE_MAX", 1000)
    piece = delta({"type": "text_delta", "text": "x" * 100})
    with pytest.raises(BackendError, match="more than 1000 bytes"):
        read(START, begin({"type": "text", "text": ""}), *[piece] * 20)


def test_excerpt_is_one_bounded_printable_line():
    assert excerpt("a\n\tb\x00c\ud800", 50) == "a b c\ufffd"
    assert excerpt("x" * 1000, 10) == "x" * 10 + "\u2026"


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=10,
)


@settings(max_examples=100)
@given(st.one_of(JSON.map(json.dumps), st.text()))
def test_input_is_read_or_refused_but_never_raises(written):
    value, problem = read_input(written)
    canonical_json(value)
    if problem is not None:
        assert value == {}
        problem.encode()


@settings(max_examples=60)
@given(st.text(min_size=1), st.lists(st.integers(1, 60), max_size=5))
def test_text_survives_however_it_is_cut(text, cuts):
    places = sorted({0, len(text), *(cut % (len(text) + 1) for cut in cuts)})
    pieces = [text[a:b] for a, b in pairwise(places)]
    deltas = [delta({"type": "text_delta", "text": piece}) for piece in pieces]
    assert read(START, begin({"type": "text", "text": ""}), *deltas, end(), STOP).text == text


needs_fixtures = pytest.mark.skipif(
    not FIXTURES.is_dir(), reason="the recorded streams lie beside the project only"
)


@needs_fixtures
def test_recorded_text_stream():
    got = Read((FIXTURES / "basic.sse").read_bytes())
    assert [item.text for item in got.of(TextDelta)] == ["Hello", " there", "!"]
    assert [(item.input_tokens, item.output_tokens) for item in got.of(UsageUpdate)] == [(11, 1), (11, 6)]
    assert got.stream.stop_reason == "end_turn"


@needs_fixtures
def test_recorded_tool_call():
    got = Read((FIXTURES / "tool_use.sse").read_bytes())
    assert got.text == "I'll check the current weather in Paris for you."
    (call,) = got.of(ToolCall)
    assert (call.name, call.input) == ("get_weather", {"location": "Paris"})
    assert "".join(item.input_delta for item in got.of(ToolCallUpdate)) == '{"location": "Paris"}'
    assert got.stream.stop_reason == "tool_use"


@needs_fixtures
def test_recorded_tool_call_with_invalid_json():
    got = Read((FIXTURES / "tool_use_invalid_json.sse").read_bytes())
    (call,) = got.calls
    assert (call.name, call.input) == ("get_weather", {})
    assert "not JSON" in call.problem
    assert got.stream.stop_reason == "tool_use"


@needs_fixtures
def test_recorded_answer_cut_off_in_a_tool_call():
    got = Read((FIXTURES / "incomplete_partial_json.sse").read_bytes())
    assert got.of(ToolCall) == got.calls == []
    assert len(got.of(ToolCallUpdate)) == 3
    assert [block["type"] for block in got.blocks] == ["text"]
    assert got.stream.stop_reason == "max_tokens"


@needs_fixtures
def test_recorded_usage_that_is_corrected_at_the_end():
    got = Read((FIXTURES / "message_delta_fields.sse").read_bytes())
    tokens = got.stream.tokens_spent()
    assert (tokens.input_tokens, tokens.output_tokens) == (40, 8)
    assert (tokens.cache_creation_input_tokens, tokens.cache_read_input_tokens) == (12, 7)


@needs_fixtures
@pytest.mark.parametrize("name", ["basic", "tool_use", "incomplete_partial_json"])
def test_recorded_stream_cut_anywhere_is_an_error_and_never_another_answer(name):
    data = (FIXTURES / f"{name}.sse").read_bytes().rstrip()
    for size in range(0, len(data), 41):
        with pytest.raises(BackendError):
            Read(data[:size])
