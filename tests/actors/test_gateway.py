import json
import socket
import struct
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from functools import partial
from typing import Any

import pytest
import structlog
import trio
import trio.testing
from trio_websocket import WebSocketConnection, open_websocket_url

from actors.client import Client, DisconnectedError, UnreachableError, connect
from actors.connection import same_host
from actors.gateway import BindError, Gateway, GatewayLimits
from actors.kernel import System, open_system, run
from actors.websocket import SocketLimits
from protocol.errors import RequestError
from protocol.native import frames
from protocol.native.connection import Shutdown
from tests.support.fake_service import FakeService
from tests.support.raw_websocket import RawWebSocket

QUICK = SocketLimits(disconnect_timeout_s=0.5)


@asynccontextmanager
async def running(
    service: FakeService, limits: GatewayLimits | None = None, host: str = "127.0.0.1"
) -> AsyncIterator[Gateway]:
    gateway = Gateway(service, host=host, port=0, limits=limits or GatewayLimits(socket=QUICK))
    await gateway.open()
    with trio.fail_after(60):
        async with trio.open_nursery() as service.nursery, open_system(gateway.child_spec()):
            yield gateway
            await gateway.close()
            service.nursery.cancel_scope.cancel()


async def exchange(socket: WebSocketConnection, text: str | bytes) -> Any:
    await socket.send_message(text)
    return json.loads(await socket.get_message())


async def upgrade(gateway: Gateway, path: str = "/ws", *headers: tuple[str, str]) -> tuple[int, str]:
    """Ask for an upgrade by hand; return the HTTP status and the whole answer up to the end of its header or body."""
    lines = [
        f"GET {path} HTTP/1.1",
        f"Host: 127.0.0.1:{gateway.port}",
        "Connection: Upgrade",
        "Upgrade: websocket",
        "Sec-WebSocket-Version: 13",
        "Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==",
        *(f"{name}: {value}" for name, value in headers),
    ]
    async with await trio.open_tcp_stream("127.0.0.1", gateway.port) as stream:
        await stream.send_all("".join(f"{line}\r\n" for line in [*lines, ""]).encode("latin-1"))
        answer = b""
        while b"\r\n\r\n" not in answer:
            answer += await stream.receive_some()
    return int(answer.split()[1]), answer.decode().lower()


async def opened(client: Client, key: str = "calli:ws:1") -> str:
    result = await client.call("session.init", {"agent_id": "calli", "session_key": key})
    assert result["session_key"] == key
    return key


# -- the protocol over a real socket ------------------------------------------------------------------------------


async def test_turn_streams_its_events_in_order_and_ends_with_its_result() -> None:
    service = FakeService()
    async with running(service) as gateway, connect(gateway.url) as client:
        turn = client.turn({"session_key": await opened(client), "message": "say 3"})
        events = [event async for event in turn]
    assert [event["type"] for event in events] == ["turn_started", *["text_delta"] * 3, "done"]
    assert [event["seq"] for event in events] == [0, 1, 2, 3, 4]
    assert turn.result == {"status": "complete", "turn_id": "turn-1"}


async def test_failed_turn_is_an_error_event_and_an_error_reply() -> None:
    service = FakeService()
    async with running(service) as gateway, connect(gateway.url) as client:
        turn = client.turn({"session_key": await opened(client), "message": "fail"})
        assert [(await anext(turn))["type"] for _ in range(2)] == ["turn_started", "error"]
        with pytest.raises(RequestError, match="model server is down") as caught:
            await anext(turn)
    assert caught.value.code == "backend_error"


async def test_unexpected_exception_is_internal_with_an_id_that_is_in_the_log() -> None:
    service = FakeService()
    async with running(service) as gateway, connect(gateway.url) as client:
        key = await opened(client)
        with structlog.testing.capture_logs() as logs, pytest.raises(RequestError) as caught:
            await client.call("turn.run", {"session_key": key, "message": "bug"})
        assert await client.call("session.status", {"session_key": key}) == {"ok": True}
    assert caught.value.code == "internal"
    assert "bug" not in caught.value.message
    entry = next(entry for entry in logs if entry["event"] == "request_failed")
    assert entry["error_id"] in caught.value.message
    assert entry["exc_info"]


async def test_turn_is_cancelled_from_another_connection() -> None:
    service = FakeService()
    async with running(service) as gateway, connect(gateway.url) as one, connect(gateway.url) as other:
        turn = one.turn({"session_key": await opened(one), "message": "hang"})
        assert (await anext(turn))["type"] == "turn_started"
        await other.call("session.cancel", {"session_key": "calli:ws:1"})
        assert [event["stop_reason"] async for event in turn] == ["cancelled"]
    assert turn.result["status"] == "cancelled"


async def test_bad_frames_are_answered_and_the_connection_lives_on() -> None:
    service = FakeService()
    async with running(service) as gateway, open_websocket_url(gateway.url) as socket:
        bad: list[tuple[str | bytes, str, int | None]] = [
            ("{", "parse_error", None),
            ('{"id":1,"id":1}', "parse_error", None),
            (b"\x00\x01", "invalid_request", None),
            ("[]", "invalid_request", None),
            ('{"id":1,"method":"x"}', "unknown_method", 1),
            ('{"id":2,"method":"session.init","params":{"agent_id":[]}}', "invalid_params", 2),
            (r'{"id":3,"method":"session.init","params":{"agent_id":"\ud800"}}', "invalid_request", 3),
            ('{"id":4,"method":"x","params":' + "[" * 70 + "]" * 70 + "}", "invalid_request", 4),
        ]
        for text, code, id_ in bad:
            reply = await exchange(socket, text)
            assert (reply["error"]["code"], reply["id"]) == (code, id_)
        reply = await exchange(
            socket, '{"id":{"n":1.10},"method":"session.init","params":{"agent_id":"calli"}}'
        )
        assert reply["id"] == {"n": 1.10}
        assert "result" in reply


async def test_id_is_echoed_byte_for_byte() -> None:
    async with running(FakeService()) as gateway, open_websocket_url(gateway.url) as socket:
        await socket.send_message('{"id": 123456789012345678901234567890.10 ,"method":"nope"}')
        message = await socket.get_message()
        assert isinstance(message, str)
        assert message.startswith('{"id":123456789012345678901234567890.10,"error"')


async def test_lone_surrogate_in_an_event_reaches_the_client_as_the_replacement_character() -> None:
    async with running(FakeService()) as gateway, connect(gateway.url) as client:
        turn = client.turn({"session_key": await opened(client), "message": "surrogate"})
        assert [event.get("text") async for event in turn] == [None, "half \ufffd of a pair", None]


async def test_requests_of_one_connection_begin_in_the_order_in_which_they_were_sent() -> None:
    service = FakeService()
    async with running(service) as gateway, open_websocket_url(gateway.url) as socket:
        for number in range(40):
            await socket.send_message(
                json.dumps(
                    {"id": number, "method": "session.status", "params": {"session_key": f"key {number}"}}
                )
            )
        for _ in range(40):
            await socket.get_message()
    keys = [params.session_key for _, _, params in service.calls if isinstance(params, frames.SessionStatus)]
    assert keys == [f"key {number}" for number in range(40)]


async def test_what_is_sent_right_behind_an_init_finds_the_session() -> None:
    service = FakeService()
    service.init_gate = trio.Event()
    async with running(service) as gateway, open_websocket_url(gateway.url) as socket:
        await socket.send_message(
            '{"id":1,"method":"session.init","params":{"agent_id":"a","session_key":"k"}}'
        )
        await socket.send_message(
            '{"id":2,"method":"turn.run","params":{"session_key":"k","message":"say 0"}}'
        )
        await service.until(lambda: service.calls)
        await trio.testing.wait_all_tasks_blocked()
        assert len(service.calls) == 1
        service.init_gate.set()
        replies = [json.loads(await socket.get_message()) for _ in range(4)]
    assert [reply["id"] for reply in replies] == [1, 2, 2, 2]
    assert "result" in replies[-1]


async def test_request_beyond_64_in_flight_is_refused() -> None:
    service = FakeService()
    async with running(service) as gateway, open_websocket_url(gateway.url) as socket:
        await exchange(socket, '{"id":0,"method":"session.init","params":{"agent_id":"a","session_key":"k"}}')
        for number in range(65):
            await socket.send_message(
                f'{{"id":{number},"method":"turn.run","params":{{"session_key":"k","message":"hang"}}}}'
            )
        replies = [json.loads(await socket.get_message()) for _ in range(65)]
        refused = [reply for reply in replies if "error" in reply]
        assert [(reply["id"], reply["error"]["code"]) for reply in refused] == [(64, "queue_full")]


# -- who it is ----------------------------------------------------------------------------------------------------


async def test_upgrade_header_proves_an_identity_and_nothing_offered_is_a_guest() -> None:
    service = FakeService()
    async with running(service) as gateway:
        for token in ("operator-token", "ann-token", None):
            async with connect(gateway.url, token) as client:
                await opened(client)
    callers = [caller for caller, _, _ in service.calls]
    assert [(caller.identity, caller.authenticated) for caller in callers] == [
        ("operator", True),
        ("ann", True),
        ("guest", False),
    ]
    assert len({caller.connection_id for caller in callers}) == 3
    assert service.closed == [caller.connection_id for caller in callers]


@pytest.mark.parametrize(
    "values",
    [
        ["Bearer wrong"],
        ["Bearer"],
        ["Basic b3BlcmF0b3I6dG9rZW4="],
        ["operator-token"],
        ["Token operator-token"],
        ["Bearer \xff\xfe"],
        ["Bearer operator-token", "Bearer wrong"],
    ],
)
async def test_wrong_token_at_the_upgrade_is_http_401(values: list[str]) -> None:
    async with running(FakeService()) as gateway:
        status, answer = await upgrade(gateway, "/ws", *(("Authorization", value) for value in values))
    assert status == 401
    assert "www-authenticate: bearer" in answer


async def test_scheme_of_the_upgrade_header_is_read_in_any_case() -> None:
    async with running(FakeService()) as gateway:
        assert (await upgrade(gateway, "/ws", ("authorization", "bearer operator-token")))[0] == 101


async def test_token_of_a_request_counts_for_this_request_and_a_wrong_one_is_unauthorized() -> None:
    service = FakeService()
    async with running(service) as gateway, connect(gateway.url) as client:
        status = await client.call("runner.status", {"token": "operator-token"})
        assert status["identity"] == "operator"
        for token in ("wrong", "\u00e4"):
            with pytest.raises(RequestError) as caught:
                await client.call("session.status", {"session_key": "k", "token": token})
            assert caught.value.code == "unauthorized"
        await client.call("session.status", {"session_key": "k"})
    assert [caller.identity for caller, _, _ in service.calls] == ["operator", "guest"]


@pytest.mark.parametrize("token", ["ann-token", None])
async def test_methods_of_the_operator_are_unauthorized_for_everybody_else(token: str | None) -> None:
    service = FakeService()
    params: dict[str, dict[str, Any]] = {
        "mail.send": {"to": "reed", "subject": "s", "body": "b"},
        "mail.read": {"ids": ["m"]},
        "board.post": {"text": "t"},
        "agents.retry": {"agent_id": "reed"},
    }
    async with running(service) as gateway, connect(gateway.url, token) as client:
        for method in sorted(frames.OPERATOR_METHODS):
            with pytest.raises(RequestError) as caught:
                await client.call(method, params.get(method))
            assert caught.value.code == "unauthorized"
    assert service.calls == []


# -- the port -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("path", ["", "/", "/ws", "/ws?x=1"])
async def test_both_paths_speak_the_protocol(path: str) -> None:
    async with running(FakeService()) as gateway, connect(gateway.url.removesuffix("/ws") + path) as client:
        await opened(client)


@pytest.mark.parametrize("path", ["/wss", "/ws/", "/status", "/ws/../etc", "//ws", "http://127.0.0.1/ws"])
async def test_any_other_path_is_http_404(path: str) -> None:
    async with running(FakeService()) as gateway:
        assert (await upgrade(gateway, path))[0] == 404


@pytest.mark.parametrize(
    ("origin", "status"),
    [
        ("http://127.0.0.1:{port}", 101),
        ("https://127.0.0.1:{port}", 101),
        ("http://127.0.0.1", 403),
        ("http://localhost:{port}", 403),
        ("https://example.org", 403),
        ("null", 403),
        ("http://[", 403),
        ("\xff", 403),
    ],
)
async def test_page_of_another_host_is_http_403(origin: str, status: int) -> None:
    async with running(FakeService()) as gateway:
        assert (await upgrade(gateway, "/ws", ("Origin", origin.format(port=gateway.port))))[0] == status


@pytest.mark.parametrize(
    ("origin", "host", "same"),
    [
        (b"http://[::1]:18789", "[::1]:18789", True),
        (b"http://LOCALHOST:18789", "localhost:18789", True),
        # Names may be made to point here by whoever owns them.
        (b"http://rebound.example:18789", "rebound.example:18789", False),
        (b"", "", False),
    ],
)
def test_same_host_is_an_address_or_localhost(origin: bytes, host: str, same: bool) -> None:
    assert same_host(origin, host) is same


async def test_port_that_is_taken_is_named_with_the_way_out() -> None:
    async with running(FakeService()) as gateway:
        with pytest.raises(BindError, match=r"--port 0") as caught:
            await Gateway(FakeService(), port=gateway.port).open()
    assert str(gateway.port) in str(caught.value)
    assert caught.value.port == gateway.port


async def test_address_of_another_machine_cannot_be_bound() -> None:
    with pytest.raises(BindError, match="--bind"):
        await Gateway(FakeService(), host="192.0.2.1", port=0).open()


async def test_client_beyond_the_limit_is_http_503_and_a_leaving_one_makes_room() -> None:
    service = FakeService()
    async with running(service, GatewayLimits(connections_max=1, socket=QUICK)) as gateway:
        async with connect(gateway.url) as client:
            await opened(client)
            with pytest.raises(UnreachableError, match="503"):
                async with connect(gateway.url):
                    raise AssertionError("was let in")
        await service.until(lambda: gateway.connection_count == 0 and service.closed)
        await trio.testing.wait_all_tasks_blocked()
        async with connect(gateway.url) as client:
            await opened(client)


# -- clients that vanish, and a daemon that stops -----------------------------------------------------------------


async def test_turn_of_a_client_that_vanishes_goes_on_to_its_end() -> None:
    service = FakeService()
    async with running(service) as gateway:
        async with open_websocket_url(gateway.url) as socket:
            await exchange(
                socket, '{"id":0,"method":"session.init","params":{"agent_id":"a","session_key":"k"}}'
            )
            await exchange(
                socket, '{"id":1,"method":"turn.run","params":{"session_key":"k","message":"hang"}}'
            )
            await socket._stream.aclose()
        await service.until(lambda: service.closed)
        assert service.turns_ended == []
        service.cancels["k"].set()
        await service.until(lambda: service.turns_ended == ["k"])


async def test_request_of_a_client_that_goes_at_once_is_still_carried_out() -> None:
    service = FakeService()
    async with running(service) as gateway:
        async with open_websocket_url(gateway.url) as socket:
            await socket.send_message('{"id":0,"method":"session.close","params":{"session_key":"k"}}')
        await service.until(lambda: service.closed)
    assert service.sessions_closed == ["k"]


async def test_drain_tells_everybody_waits_for_what_runs_and_closes_with_1001() -> None:
    service = FakeService()
    async with running(service) as gateway, connect(gateway.url) as client, connect(gateway.url) as idle:
        turn = client.turn({"session_key": await opened(client), "message": "hang"})
        await anext(turn)
        await opened(idle)
        async with trio.open_nursery() as nursery:

            async def drain() -> None:
                await gateway.drain(timeout_s=600, restart_expected_ms=1500)

            nursery.start_soon(drain)
            await service.until(lambda: client.notices and idle.notices)
            with pytest.raises(RequestError) as refused:
                await client.call("session.init", {"agent_id": "calli"})
            await client.call("session.cancel", {"session_key": "calli:ws:1"})
            assert [event["type"] async for event in turn] == ["done"]
        with pytest.raises(DisconnectedError) as caught:
            await idle.call("session.status", {"session_key": "k"})
        with pytest.raises(UnreachableError):
            async with connect(gateway.url):
                raise AssertionError("was let in")
        assert gateway.connection_count == 0
    assert refused.value.code == "shutting_down"
    assert list(client.notices) == [{"type": "shutdown", "restart_expected_ms": 1500}]
    assert caught.value.code == 1001
    assert turn.result["status"] == "cancelled"


async def test_drain_ends_by_its_deadline_though_a_turn_hangs() -> None:
    service = FakeService()
    async with running(service) as gateway, connect(gateway.url) as client:
        turn = client.turn({"session_key": await opened(client), "message": "hang"})
        await anext(turn)
        with trio.fail_after(5):
            await gateway.drain(timeout_s=0.05)
        with pytest.raises(DisconnectedError) as caught:
            await anext(turn)
        assert caught.value.code == 1001
        assert service.turns_ended == []


async def test_stopping_the_tree_closes_connections_with_1001() -> None:
    service = FakeService()
    gateway = Gateway(service, port=0, limits=GatewayLimits(socket=QUICK))
    await gateway.open()
    async with trio.open_nursery() as nursery:
        system: System = await nursery.start(run, gateway.child_spec())
        async with connect(gateway.url) as client:
            await opened(client)
            await system.stop()
            with pytest.raises(DisconnectedError) as caught:
                await client.call("session.status", {"session_key": "k"})
    await gateway.close()
    assert caught.value.code == 1001
    assert len(service.closed) == 1


async def test_notice_reaches_every_client() -> None:
    service = FakeService()
    async with running(service) as gateway, connect(gateway.url) as one, connect(gateway.url) as other:
        await opened(one)
        await opened(other)
        gateway.broadcast(Shutdown(restart_expected_ms=None))
        await service.until(lambda: one.notices and other.notices)
        assert one.notices[0]["type"] == "shutdown"


async def test_listener_that_crashes_comes_back_on_the_same_port() -> None:
    service = FakeService()
    gateway = Gateway(service, port=0, limits=GatewayLimits(socket=QUICK))
    await gateway.open()
    with trio.fail_after(10):
        async with open_system(gateway.child_spec()) as system, connect(gateway.url) as before:
            listener = system.supervisor.child("listener")
            assert listener is not None
            assert listener.incarnation is not None
            listener.incarnation.fail(RuntimeError("seeded"))
            async with connect(gateway.url) as after:
                await opened(after)
            await opened(before)
    await gateway.close()


# -- real sockets, with buffers of their own ----------------------------------------------------------------------


async def raw(gateway: Gateway) -> RawWebSocket:
    client = RawWebSocket(await trio.open_tcp_stream("127.0.0.1", gateway.port))
    await client.shake_hands()
    return client


async def test_client_that_sends_too_much_still_reads_why_it_is_closed() -> None:
    async with running(FakeService()) as gateway:
        client = await raw(gateway)
        await client.say("x" * (6 * 1024 * 1024))
        assert await client.close_code() == 1009
        await client.stream.aclose()


async def test_client_that_never_reads_is_closed_with_1013_its_turn_goes_on_and_others_are_served() -> None:
    service = FakeService()
    async with running(service) as gateway, connect(gateway.url) as other:
        client = await raw(gateway)
        await client.say('{"id":0,"method":"session.init","params":{"agent_id":"a","session_key":"k"}}')
        await client.say('{"id":1,"method":"turn.run","params":{"session_key":"k","message":"pour 400"}}')
        await service.until(lambda: service.turns_ended == ["k"])
        turn = other.turn({"session_key": await opened(other), "message": "say 3"})
        assert len([event async for event in turn]) == 5
        assert await client.close_code() == 1013
        await client.stream.aclose()


async def test_client_that_never_reads_at_all_is_dropped_after_the_deadline_of_a_send() -> None:
    service = FakeService()
    limits = SocketLimits(disconnect_timeout_s=0.1, send_timeout_s=0.1, outbox_bytes_max=2**30)
    async with running(service, GatewayLimits(socket=limits)) as gateway:
        client = await raw(gateway)
        await client.say('{"id":0,"method":"session.init","params":{"agent_id":"a","session_key":"k"}}')
        await client.say('{"id":1,"method":"turn.run","params":{"session_key":"k","message":"pour 400"}}')
        await service.until(lambda: service.closed)
        assert service.turns_ended == ["k"]
        await client.stream.aclose()


async def test_client_that_resets_its_socket_leaves_nothing_behind() -> None:
    service = FakeService()
    async with running(service) as gateway:
        for _ in range(20):
            client = await raw(gateway)
            await client.say('{"id":1,"method":"session.status","params":{"session_key":"k"}}')
            assert isinstance(client.stream, trio.SocketStream)
            client.stream.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            await client.stream.aclose()
        await service.until(lambda: len(service.closed) == 20)
        assert gateway.connection_count == 0


# -- the client ---------------------------------------------------------------------------------------------------


async def test_client_says_when_nobody_answers() -> None:
    gateway = Gateway(FakeService(), port=0)
    await gateway.open()
    await gateway.close()
    with pytest.raises(UnreachableError, match=str(gateway.port)):
        async with connect(gateway.url):
            raise AssertionError("was let in")


async def test_client_whose_peer_leaves_in_the_handshake_is_told_at_once() -> None:
    async def leave(stream: trio.SocketStream) -> None:
        await stream.receive_some(1)
        await stream.aclose()

    async with trio.open_nursery() as nursery:
        listeners = await nursery.start(partial(trio.serve_tcp, leave, 0, host="127.0.0.1"))
        port = listeners[0].socket.getsockname()[1]
        with trio.fail_after(30), pytest.raises(UnreachableError, match="handshake"):
            async with connect(f"ws://127.0.0.1:{port}/ws", timeout_s=1000.0):
                raise AssertionError("was let in")
        nursery.cancel_scope.cancel()


async def test_client_with_a_wrong_token_is_unauthorized() -> None:
    async with running(FakeService()) as gateway:
        with pytest.raises(RequestError) as caught:
            async with connect(gateway.url, "wrong"):
                raise AssertionError("was let in")
    assert caught.value.code == "unauthorized"


async def test_exception_of_the_body_leaves_the_client_as_it_is() -> None:
    async with running(FakeService()) as gateway:
        with pytest.raises(ZeroDivisionError):
            async with connect(gateway.url):
                raise ZeroDivisionError


async def test_turn_that_nobody_listens_to_any_more_does_not_disturb_the_next_call() -> None:
    async with running(FakeService()) as gateway, connect(gateway.url) as client:
        key = await opened(client)
        async for event in client.turn({"session_key": key, "message": "say 500"}):
            assert event["type"] == "turn_started"
            break
        assert await client.call("session.status", {"session_key": key}) == {"ok": True}


async def test_client_learns_of_a_connection_that_breaks() -> None:
    service = FakeService()
    async with running(service) as gateway, connect(gateway.url) as client:
        turn = client.turn({"session_key": await opened(client), "message": "hang"})
        await anext(turn)
        ref = next(iter(gateway._connections.values()))
        assert ref.incarnation is not None
        ref.incarnation.kill()
        with pytest.raises(DisconnectedError) as caught:
            await anext(turn)
        assert caught.value.code == 1006
        with pytest.raises(DisconnectedError):
            await client.call("session.status", {"session_key": "k"})
