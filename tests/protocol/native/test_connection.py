import json
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from protocol.errors import CODES, RequestError
from protocol.events import Done, TextDelta, ToolCall
from protocol.native import frames
from protocol.native.connection import Connection, Request, Shutdown, State, notice_frame

STATUS = '{"id":1,"method":"runner.status"}'
LIST = '{"id":1,"method":"agents.list"}'
CANCEL = '{"id":2,"method":"session.cancel","params":{"session_key":"k"}}'


def taken(connection: Connection, text: str) -> Request:
    request = connection.receive(text)
    assert isinstance(request, Request)
    return request


def code_of(reply: Request | bytes | None) -> str:
    assert isinstance(reply, bytes)
    code = json.loads(reply)["error"]["code"]
    assert isinstance(code, str)
    return code


def test_request_is_in_flight_until_its_result() -> None:
    connection = Connection()
    request = taken(connection, STATUS)
    assert connection.in_flight == 1
    assert connection.result(request, {"ok": True}) == b'{"id":1,"result":{"ok":true}}'
    assert connection.in_flight == 0


def test_events_and_error_carry_the_id_as_it_was_sent() -> None:
    connection = Connection()
    request = taken(
        connection, '{"id": {"n": 1.10, "big": 123456789012345678901234567890} ,"method":"agents.list"}'
    )
    id_ = b'{"n": 1.10, "big": 123456789012345678901234567890}'
    assert connection.event(request, TextDelta(seq=3, text="hé")) == (
        b'{"id":' + id_ + b',"event":{"type":"text_delta","text":"h\xc3\xa9","seq":3}}'
    )
    assert connection.error(request, RequestError("turn_timeout", "too long")) == (
        b'{"id":' + id_ + b',"error":{"code":"turn_timeout","message":"too long"}}'
    )


def test_nothing_is_said_of_a_request_that_has_ended() -> None:
    connection = Connection()
    request = taken(connection, STATUS)
    connection.result(request, {})
    assert connection.event(request, Done(seq=1, stop_reason="end_turn")) is None
    assert connection.result(request, {}) is None
    assert connection.error(request, RequestError("internal", "x")) is None


def test_one_id_may_be_in_flight_twice() -> None:
    connection = Connection()
    first, second = taken(connection, STATUS), taken(connection, STATUS)
    assert connection.in_flight == 2
    assert connection.result(first, {"n": 1}) == b'{"id":1,"result":{"n":1}}'
    assert connection.event(second, TextDelta(seq=0, text="x")) is not None
    assert connection.result(second, {"n": 2}) == b'{"id":1,"result":{"n":2}}'


def test_request_beyond_the_limit_is_refused_and_a_reply_makes_room() -> None:
    connection = Connection(in_flight_max=2)
    first = taken(connection, LIST)
    taken(connection, LIST)
    assert code_of(connection.receive(LIST)) == "queue_full"
    connection.result(first, {})
    taken(connection, LIST)


def test_turn_can_be_cancelled_though_the_connection_is_full() -> None:
    connection = Connection(in_flight_max=2)
    for text in (LIST, LIST, CANCEL, CANCEL):
        taken(connection, text)
    assert code_of(connection.receive(CANCEL)) == "queue_full"


def test_binary_frame_is_answered_and_the_connection_lives_on() -> None:
    connection = Connection()
    assert json.loads(connection.receive_binary()) == {
        "id": None,
        "error": {"code": "invalid_request", "message": "frames are text, this one is binary"},
    }
    taken(connection, STATUS)


def test_bad_frame_is_answered_and_the_connection_lives_on() -> None:
    connection = Connection()
    assert code_of(connection.receive("{")) == "parse_error"
    assert connection.in_flight == 0
    taken(connection, STATUS)


def test_draining_refuses_new_work_and_lets_a_turn_come_to_its_end() -> None:
    connection = Connection()
    running = taken(connection, '{"id":1,"method":"turn.run","params":{"session_key":"k","message":"m"}}')
    connection.drain()
    assert code_of(connection.receive('{"id":5,"method":"agents.list"}')) == "shutting_down"
    assert code_of(connection.receive("{")) == "parse_error"
    cancel = taken(connection, CANCEL)
    assert connection.result(cancel, {"ok": True}) is not None
    assert connection.event(running, TextDelta(seq=0, text="x")) is not None
    assert connection.result(running, {"status": "cancelled"}) is not None


@pytest.mark.parametrize("steps", [("close",), ("drain", "close"), ("close", "drain"), ("close", "close")])
def test_closed_connection_hears_and_says_nothing(steps: tuple[str, ...]) -> None:
    connection = Connection()
    request = taken(connection, STATUS)
    for step in steps:
        getattr(connection, step)()
    assert connection.state is State.CLOSED
    assert connection.in_flight == 0
    assert connection.event(request, TextDelta(seq=0, text="x")) is None
    assert code_of(connection.receive(CANCEL)) == "shutting_down"


def test_result_that_is_not_json_leaves_the_request_in_flight() -> None:
    connection = Connection()
    request = taken(connection, STATUS)
    with pytest.raises(TypeError):
        connection.result(request, {"x": object()})
    assert connection.error(request, RequestError("internal", "x")) is not None


def test_lone_surrogates_are_sent_as_the_replacement_character() -> None:
    connection = Connection()
    request = taken(connection, STATUS)
    frame = connection.event(request, ToolCall(seq=0, id="c", name="t", input={"a\udc00": ["\ud800b", 1]}))
    assert frame is not None
    assert json.loads(frame)["event"]["input"] == {"a\ufffd": ["\ufffdb", 1]}


def test_notice_has_no_id() -> None:
    assert notice_frame(Shutdown(restart_expected_ms=None)) == (
        b'{"event":{"type":"shutdown","restart_expected_ms":null}}'
    )


scalars = st.none() | st.booleans() | st.integers() | st.floats() | st.text()
values = st.recursive(
    scalars,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=12), inner, max_size=4),
    max_leaves=12,
)
field_names = st.sampled_from(
    sorted({name for kind in frames.METHODS.values() for name in kind.__struct_fields__}),
)
requests = st.fixed_dictionaries(
    {
        "id": values,
        "method": st.sampled_from([*frames.METHODS, "nope"]) | st.text(max_size=8),
        "params": st.dictionaries(field_names | st.text(max_size=6), values, max_size=5) | values,
    },
).map(json.dumps)


@st.composite
def damaged(draw: st.DrawFn) -> str:
    text = draw(requests)
    at = draw(st.integers(0, len(text)))
    until = draw(st.integers(at, len(text)))
    return text[:at] + draw(st.text(max_size=4)) + text[until:]


@settings(max_examples=100)
@given(st.text() | requests | damaged() | values.map(json.dumps))
def test_whatever_arrives_is_a_request_or_an_error_reply_with_a_known_code(text: str) -> None:
    connection = Connection()
    received = connection.receive(text)
    if isinstance(received, Request):
        assert connection.in_flight == 1
        assert type(received.params) is frames.METHODS[received.method]
        assert json.loads(connection.result(received, {}) or b"") == {
            "id": json.loads(received.id),
            "result": {},
        }
    else:
        reply: dict[str, Any] = json.loads(received)
        assert reply.keys() == {"id", "error"}
        assert reply["error"]["code"] in CODES
        assert connection.in_flight == 0


@settings(max_examples=100)
@given(values.filter(lambda value: value == value), st.booleans())  # noqa: PLR0124 - NaN is not JSON
def test_any_id_comes_back_as_it_was_sent(value: Any, spaces: bool) -> None:
    try:
        id_ = json.dumps(value, allow_nan=False, indent=1 if spaces else None)
    except ValueError:
        return
    received = Connection().receive(f'{{"id":{id_},"method":"agents.list"}}')
    if isinstance(received, Request):
        assert received.id == id_.encode()
    else:
        assert "surrogate" in received.decode() or "id:" in received.decode()
