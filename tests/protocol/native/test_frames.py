import json
from typing import Any

import pytest

from protocol.native import frames
from protocol.native.frames import Frame, FrameError, read_frame


def request(method: str = "runner.status", params: Any = None, **more: Any) -> str:
    return json.dumps({"id": 1, "method": method, "params": {} if params is None else params, **more})


def turn(**params: Any) -> str:
    return request("turn.run", {"session_key": "calli:cli:local", **params})


def refused(text: str) -> FrameError:
    with pytest.raises(FrameError) as caught:
        read_frame(text)
    return caught.value


def test_request_is_read_with_typed_parameters() -> None:
    frame = read_frame(request("session.init", {"agent_id": "calli", "mode": "oneshot"}))
    assert frame == Frame(b"1", "session.init", frames.SessionInit(agent_id="calli", mode="oneshot"))


def test_params_may_be_left_out_where_nothing_is_required() -> None:
    assert read_frame('{"id":1,"method":"agents.list"}').params == frames.AgentsList()


@pytest.mark.parametrize(
    "id_",
    [
        "null",
        "0",
        "-0",
        "1.10",
        "1e2",
        "123456789012345678901234567890",
        "9" * 4000,
        '"a b"',
        r'"\u0041\/"',
        '"ä"',
        "[1, 2]",
        '{"b":1,  "a":[ 1.0 ]}',
        "true",
    ],
)
def test_id_is_kept_as_the_client_wrote_it(id_: str) -> None:
    assert read_frame(f'{{"method":"agents.list", "id" : {id_} }}').id == id_.encode()


TORN = '{"id":1,"method":"session.in'

BAD_FRAMES: list[tuple[str, str, bytes, str]] = [
    # text, code, id, a part of the message
    ("", "parse_error", b"null", "not JSON"),
    (TORN, "parse_error", b"null", "not JSON"),
    ("hello", "parse_error", b"null", "not JSON"),
    ('{"id":1}{"id":2}', "parse_error", b"null", "Extra data"),
    ('\ufeff{"id":1}', "parse_error", b"null", "not JSON"),
    ('{"id":1,"method":"agents.list","x":NaN}', "parse_error", b"null", "NaN"),
    ('{"id":1,"method":"agents.list","x":-Infinity}', "parse_error", b"null", "Infinity"),
    ('{"id":1,"method":"a\tb"}', "parse_error", b"null", "control character"),
    ('{"id":1,"id":2,"method":"agents.list"}', "parse_error", b"null", '"id" stands twice'),
    (
        '{"id":1,"method":"agents.list","params":{"a":{"b":1,"b":1}}}',
        "parse_error",
        b"null",
        '"b" stands twice',
    ),
    (r'{"id":1,"method":"agents.list","\u006dethod":"agents.list"}', "parse_error", b"null", "twice"),
    ("[]", "invalid_request", b"null", "object"),
    ("null", "invalid_request", b"null", "object"),
    ('"id"', "invalid_request", b"null", "object"),
    ("{}", "invalid_request", b"null", "id: is missing"),
    ('{"method":"agents.list"}', "invalid_request", b"null", "id: is missing"),
    ('{"id":1}', "invalid_request", b"1", "method: is missing"),
    ('{"id":1,"method":5}', "invalid_request", b"1", "method: expected a string"),
    ('{"id":1,"method":null}', "invalid_request", b"1", "method: expected a string"),
    ('{"id":1,"method":"agents.list","jsonrpc":"2.0"}', "invalid_request", b"1", '"jsonrpc"'),
    ('{"id":1,"method":"agents.list","x":1e999}', "invalid_request", b"1", "out of range"),
    (f'{{"id":1,"x":{"1" * 5000}}}', "invalid_request", b"1", "digits"),
    (f'{{"id":"{"a" * 5000}","method":"agents.list"}}', "invalid_request", b"null", "id: longer than 4096"),
    (r'{"id":7,"method":"\ud800"}', "invalid_request", b"7", "surrogate"),
    (
        r'{"id":7,"method":"board.post","params":{"text":"\udc00\ud800"}}',
        "invalid_request",
        b"7",
        "surrogate",
    ),
    (r'{"id":"\uDBFF","method":"agents.list"}', "invalid_request", b"null", "surrogate"),
    (r'["\ud800"]', "invalid_request", b"null", "surrogate"),
    ('{"id":1,"method":"nope"}', "unknown_method", b"1", '"nope"'),
    ('{"id":1,"method":""}', "unknown_method", b"1", ""),
    (
        '{"id":1,"method":"session.init","params":null}',
        "invalid_params",
        b"1",
        "params: expected object, got null",
    ),
    ('{"id":1,"method":"session.init","params":[]}', "invalid_params", b"1", "params: expected object"),
]


@pytest.mark.parametrize(("text", "code", "id_", "part"), BAD_FRAMES)
def test_bad_frame_is_refused_with_its_code(text: str, code: str, id_: bytes, part: str) -> None:
    error = refused(text)
    assert (error.code, error.id) == (code, id_)
    assert part in error.message


def test_whole_surrogate_pairs_and_escaped_backslashes_are_text() -> None:
    text = r'{"id":1,"method":"board.post","params":{"text":"\ud83d\ude00 \\ud800 \\\\udc00"}}'
    params = read_frame(text).params
    assert isinstance(params, frames.BoardPost)
    assert params.text == "\U0001f600 \\ud800 \\\\udc00"


BAD_PARAMS: list[tuple[str, dict[str, Any], str]] = [
    ("session.init", {}, "params.agent_id: is missing"),
    ("session.init", {"agent_id": 5}, "params.agent_id: expected str, got int"),
    ("session.init", {"agent_id": ""}, "params.agent_id: expected str of length >= 1"),
    ("session.init", {"agent_id": "a", "mode": "forever"}, "params.mode: invalid enum value 'forever'"),
    ("session.init", {"agent_id": "a", "sesion_key": "k"}, "params.sesion_key: is not a field of it"),
    (
        "session.init",
        {"agent_id": "a", "session_key": "k" * 513},
        "params.session_key: expected str of length <= 512",
    ),
    ("session.init", {"agent_id": "a", "session_key": ""}, "params.session_key: expected str of length >= 1"),
    (
        "session.init",
        {"agent_id": "a", "session_key": "k\n"},
        "params.session_key: must not hold control characters",
    ),
    (
        "session.init",
        {"agent_id": "a", "session_key": "\x7fk"},
        "params.session_key: must not hold control characters",
    ),
    (
        "session.init",
        {"agent_id": "a", "session_key": "k\x85"},
        "params.session_key: must not hold control characters",
    ),
    ("session.init", {"agent_id": "a", "token": 1}, "params.token: expected str | null, got int"),
    ("session.cancel", {}, "params.session_key: is missing"),
    ("session.close", {"session_key": "k", "reason": 5}, "params.reason: expected str | null, got int"),
    ("session.status", {"session_key": None}, "params.session_key: expected str, got null"),
    ("turn.run", {"session_key": "k"}, "params: give either message or messages"),
    (
        "turn.run",
        {"session_key": "k", "message": "a", "messages": []},
        "params.messages: expected array of length >= 1",
    ),
    ("turn.run", {"session_key": "k", "message": " \n"}, "params.message: must not be blank"),
    ("turn.run", {"session_key": "k", "message": {}}, "params.message: expected str | null, got object"),
    (
        "turn.run",
        {"session_key": "k", "messages": [{"role": "system", "content": "x"}]},
        "params.messages[0].role:",
    ),
    (
        "turn.run",
        {"session_key": "k", "messages": [{"role": "user", "content": [{"type": "video"}]}]},
        "params.messages[0].content[0].type: invalid value 'video'",
    ),
    (
        "turn.run",
        {
            "session_key": "k",
            "messages": [{"role": "user", "content": "x"}, {"role": "assistant", "content": "y"}],
        },
        "params.messages[1].role: the last message is the user's",
    ),
    (
        "turn.run",
        {
            "session_key": "k",
            "message": "x",
            "tools": [{"name": "a", "input_schema": {}}, {"name": "a", "input_schema": {}}],
        },
        "params.tools[1].name: a stands twice",
    ),
    (
        "turn.run",
        {"session_key": "k", "message": "x", "tools": [{"name": "a b", "input_schema": {}}]},
        "params.tools[0].name:",
    ),
    (
        "turn.run",
        {"session_key": "k", "message": "x", "tools": [{"name": "a"}]},
        "params.tools[0].input_schema: is missing",
    ),
    (
        "turn.run",
        {"session_key": "k", "message": "x", "tools": [{"name": "a", "input_schema": {"maximum": [2**53]}}]},
        "params.tools[0].input_schema.maximum[0]: integers",
    ),
    (
        "turn.run",
        {"session_key": "k", "message": "x", "execute": "server"},
        "params.execute: invalid enum value",
    ),
    ("tool.result", {"session_key": "k", "id": "c"}, "params.content: is missing"),
    (
        "mail.send",
        {"to": "reed", "subject": "a\nb", "body": ""},
        "params.subject: must not hold control characters",
    ),
    ("board.post", {"text": ""}, "params.text: expected str of length >= 1"),
    ("runner.reload", {"force": True}, "params.force: is not a field of it"),
]


@pytest.mark.parametrize(("method", "params", "message"), BAD_PARAMS)
def test_wrong_parameter_is_refused_naming_its_path(
    method: str, params: dict[str, Any], message: str
) -> None:
    error = refused(request(method, params))
    assert (error.code, error.id) == ("invalid_params", b"1")
    assert error.message.startswith(message)


def test_complaint_does_not_repeat_a_long_value() -> None:
    error = refused(request("session.init", {"agent_id": "a", "mode": "x" * 100_000}))
    assert len(error.message) <= 500


def nested(levels: int) -> str:
    schema_levels = levels - 4  # the frame, its params, the list of tools and the tool stand around it
    schema = '{"a":' * (schema_levels - 1) + "{}" + "}" * (schema_levels - 1)
    tool = f'{{"name":"t","input_schema":{schema}}}'
    return f'{{"id":8,"method":"turn.run","params":{{"session_key":"k","message":"m","tools":[{tool}]}}}}'


def test_64_levels_are_read_and_65_are_refused() -> None:
    assert read_frame(nested(64)).method == "turn.run"
    error = refused(nested(65))
    assert (error.code, error.id) == ("invalid_request", b"8")
    assert "64 levels" in error.message


@pytest.mark.parametrize("text", ["[" * 1_000_000, '{"a":' * 200_000, "[" * 70 + '"' + '\\"' * 300_000])
def test_frame_of_brackets_is_refused_without_recursion(text: str) -> None:
    assert refused(text).code == "invalid_request"


def test_brackets_in_strings_do_not_count() -> None:
    text = "[{" * 50_000
    params = read_frame(turn(message=text + '"\\')).params
    assert isinstance(params, frames.TurnRun)
    assert params.message == text + '"\\'


def test_frame_of_too_many_containers_is_refused() -> None:
    error = refused('{"id":1,"x":[' + "[]," * 70_000 + "[]]}")
    assert (error.code, error.id) == ("invalid_request", b"1")


def test_every_kind_of_block_is_read_and_written_back_as_it_came() -> None:
    content: list[dict[str, Any]] = [
        {"type": "text", "text": "look"},
        {"type": "image", "source": {"type": "base64", "media_type": "image/png", "data": "aGk="}},
        {"type": "image", "source": {"type": "url", "url": "https://example.org/a.png"}},
        {
            "type": "tool_result",
            "tool_use_id": "t1",
            "content": [{"type": "text", "text": "x"}],
            "is_error": True,
        },
    ]
    answer: list[dict[str, Any]] = [
        {"type": "thinking", "thinking": "hm", "signature": "s"},
        {"type": "redacted_thinking", "data": "d"},
        {"type": "tool_use", "id": "t1", "name": "read_file", "input": {"path": "a", "n": 1.5}},
    ]
    messages = [
        {"role": "user", "content": "hello"},
        {"role": "assistant", "content": answer},
        {"role": "user", "content": content},
    ]
    params = read_frame(turn(messages=messages)).params
    assert isinstance(params, frames.TurnRun)
    assert params.messages is not None
    assert [message.plain() for message in params.messages] == messages


def test_secrets_are_not_in_the_text_of_parameters() -> None:
    params = read_frame(turn(message="m", token="hush-1", session_token="hush-2")).params
    assert params.token == "hush-1"
    assert "hush" not in repr(params)
    assert "session_key='calli:cli:local'" in repr(params)


def test_every_method_of_the_operator_is_a_method() -> None:
    assert frames.METHODS.keys() > frames.OPERATOR_METHODS
