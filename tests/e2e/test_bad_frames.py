"""What no client should send, over a real socket: each frame is answered, and the connection lives on."""

import json

import pytest
import trio
from trio_websocket import ConnectionClosed

from protocol.native.frames import FRAME_BYTES_MAX
from tests.support.daemon import Daemon, upgrade_request

DEEP = '{"id":1,"method":"session.init","params":' + "[" * 64 + "]" * 64 + "}"
KEYED = '{"id":1,"method":"session.status","params":{"session_key":%s}}'
TURN = '{"id":1,"method":"turn.run","params":{"session_key":"a:b:c",%s}}'

FRAMES = {
    "torn": ('{"id":1,"method":"session.in', None, "parse_error", "not JSON"),
    "empty": ("", None, "parse_error", "not JSON"),
    "not_json": ("hello?", None, "parse_error", "not JSON"),
    "two_values": ('{"id":1} {"id":2}', None, "parse_error", "not JSON"),
    "not_a_number": ('{"id":1,"method":"session.init","params":{"x":NaN}}', None, "parse_error", "NaN"),
    "duplicate_key": ('{"id":1,"id":2,"method":"runner.status"}', None, "parse_error", "twice"),
    "duplicate_key_deep_inside": (KEYED % '"a","token":{"x":1,"x":1}', None, "parse_error", "twice"),
    "array": ("[1,2]", None, "invalid_request", "object"),
    "number": ("42", None, "invalid_request", "object"),
    "null": ("null", None, "invalid_request", "object"),
    "too_deep": (DEEP, 1, "invalid_request", "64 levels"),
    "lone_surrogate": (KEYED % r'"\ud800"', 1, "invalid_request", "surrogate"),
    "number_out_of_range": ('{"id":1,"method":"x","params":{"n":1e999}}', 1, "invalid_request", "range"),
    "no_id": ('{"method":"session.init","params":{}}', None, "invalid_request", "id"),
    "no_method": ('{"id":"a"}', "a", "invalid_request", "method"),
    "method_is_a_number": ('{"id":"a","method":7}', "a", "invalid_request", "method"),
    "unknown_field": ('{"id":1,"method":"session.init","param":{}}', 1, "invalid_request", "param"),
    "unknown_method": (
        '{"id":{"deep":[1]},"method":"session.burn"}',
        {"deep": [1]},
        "unknown_method",
        "session.burn",
    ),
    "params_are_an_array": ('{"id":1,"method":"session.init","params":[]}', 1, "invalid_params", "params"),
    "missing_parameter": (
        '{"id":1,"method":"session.init","params":{}}',
        1,
        "invalid_params",
        "params.agent_id",
    ),
    "wrong_type": (KEYED % "5", 1, "invalid_params", "params.session_key"),
    "control_character": (KEYED % r'"a\nb"', 1, "invalid_params", "params.session_key"),
    "key_too_long": (KEYED % f'"{"k" * 513}"', 1, "invalid_params", "params.session_key"),
    "unknown_parameter": (KEYED % '"a","sesion":1', 1, "invalid_params", "params.sesion"),
    "no_message": (TURN % '"system":"s"', 1, "invalid_params", "message"),
    "two_kinds_of_message": (TURN % '"message":"a","messages":[]', 1, "invalid_params", "messages"),
    "wrong_type_deep_inside": (
        TURN % '"messages":[{"role":"user","content":[{"type":"text","text":7}]}]',
        1,
        "invalid_params",
        "params.messages[0].content",
    ),
    "assistant_speaks_last": (
        TURN % '"messages":[{"role":"assistant","content":"a"}]',
        1,
        "invalid_params",
        "params.messages[0].role",
    ),
}


@pytest.mark.parametrize("name", FRAMES)
async def test_a_bad_frame_is_answered_and_the_connection_lives_on(daemon: Daemon, name: str):
    text, id_, code, words = FRAMES[name]
    async with daemon.raw() as socket:
        answer = await socket.exchange(text)
        assert (answer["id"], answer["error"]["code"]) == (id_, code)
        assert words in answer["error"]["message"]
        good = {"id": "after", "method": "session.init", "params": {"agent_id": "calli"}}
        assert (await socket.exchange(good))["result"]["protocol"] == 1


async def test_a_binary_frame_is_answered_and_the_connection_lives_on(daemon: Daemon):
    async with daemon.raw() as socket:
        answer = await socket.exchange(b"\x00\xff")
        assert (answer["id"], answer["error"]["code"]) == (None, "invalid_request")
        assert (await socket.exchange("[]"))["error"]["code"] == "invalid_request"


async def test_an_id_comes_back_byte_for_byte(daemon: Daemon):
    async with daemon.raw() as socket:
        for id_ in ("123456789012345678901234567890", "1.10", '"\\u00e9"', "[1, 2 ]"):
            await socket.send(f'{{"id":{id_},"method":"x"}}')
            assert (await socket.socket.get_message()).startswith(f'{{"id":{id_},')


async def test_a_frame_of_the_full_size_is_read_and_a_longer_one_closes_that_connection_alone(daemon: Daemon):
    head, tail = '{"id":1,"method":"session.status","params":{"session_key":"', '"}}'
    full = head + "k" * (FRAME_BYTES_MAX - len(head) - len(tail)) + tail
    async with daemon.raw() as other:
        async with daemon.raw() as socket:
            assert (await socket.exchange(full))["error"]["code"] == "invalid_params"
            await socket.send(full + " ")
            with pytest.raises(ConnectionClosed) as closed, trio.fail_after(10):
                await socket.socket.get_message()
            assert closed.value.reason.code == 1009
        assert (await other.exchange("[]"))["error"]["code"] == "invalid_request"


async def test_a_frame_torn_off_by_the_end_of_the_connection_hurts_nobody(daemon: Daemon):
    for torn in (b"\x81", b"\x81\xfe\x01", b"\x81\x85abcd" + b"he", b"\xff\xff\xff\xff"):
        async with await trio.open_tcp_stream("127.0.0.1", daemon.port) as stream:
            await stream.send_all(upgrade_request())
            assert (await stream.receive_some()).startswith(b"HTTP/1.1 101")
            await stream.send_all(torn)
    async with daemon.raw() as socket:
        assert (await socket.exchange("[]"))["error"]["code"] == "invalid_request"


async def test_a_wrong_token_is_refused_at_the_upgrade_and_in_a_frame_and_is_never_a_guest(daemon: Daemon):
    wrong = daemon.token[:-1] + ("a" if daemon.token[-1] != "a" else "b")
    for token in (wrong, daemon.token[:-1], "nonsense"):
        status, answer = await daemon.upgrade("/ws", f"Authorization: Bearer {token}")
        assert status == 401
        assert token not in answer
    async with daemon.raw() as socket:
        params = {"agent_id": "calli", "session_key": "calli:test:wrong-token", "token": wrong}
        answer = await socket.exchange({"id": 1, "method": "session.init", "params": params})
        assert answer["error"]["code"] == "unauthorized"
        assert wrong not in json.dumps(answer)
        right = await socket.exchange({"id": 2, "method": "runner.status", "params": {"token": daemon.token}})
        assert right["result"]["pid"] == daemon.pid
        assert (await socket.exchange({"id": 3, "method": "runner.status"}))["error"][
            "code"
        ] == "unauthorized"
    assert await daemon.rows("SELECT 1 FROM sessions WHERE session_key = 'calli:test:wrong-token'") == []


async def test_only_the_two_paths_speak_websocket(daemon: Daemon):
    assert [(await daemon.upgrade(path))[0] for path in ("/ws", "/", "/ws?x=1")] == [101, 101, 101]
    assert [(await daemon.upgrade(path))[0] for path in ("/other", "/ws/", "/WS")] == [404, 404, 404]
