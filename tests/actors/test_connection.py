"""What a client can do to its own connection, and that it can do nothing to anybody else's."""

import json
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress
from typing import Any

import pytest
import trio
import trio.testing
from hypothesis import given, settings
from hypothesis import strategies as st
from trio.testing import lockstep_stream_pair, memory_stream_pair
from wsproto import ConnectionType
from wsproto.connection import Connection as Wire
from wsproto.events import CloseConnection, Message, Ping, Pong, RejectConnection, Request, TextMessage

from actors.connection import Close, ConnectionActor, Drain, Notify
from actors.kernel import (
    ActorDeadError,
    ChildSpec,
    DynamicSupervisor,
    Ref,
    Restart,
    SupervisorRef,
    open_system,
)
from actors.websocket import SocketLimits, text_header
from protocol.native.frames import FRAME_BYTES_MAX
from tests.support.fake_service import FakeService
from tests.support.raw_websocket import RawWebSocket, binary

STATUS = '{"id":1,"method":"session.status","params":{"session_key":"k"}}'
INIT = '{"id":0,"method":"session.init","params":{"agent_id":"a","session_key":"k"}}'


def turn(message: str) -> str:
    return json.dumps({"id": 1, "method": "turn.run", "params": {"session_key": "k", "message": message}})


class OpenDoor:
    draining = False

    def entered(self, ref: Ref) -> None:
        self.last = ref

    def left(self, connection_id: str) -> None:
        pass


class Floor:
    """A supervisor of connections, and clients of theirs."""

    def __init__(self, supervisor: SupervisorRef, service: FakeService, limits: SocketLimits) -> None:
        self.supervisor = supervisor
        self.service = service
        self.limits = limits
        self.door = OpenDoor()
        self.clients: list[RawWebSocket] = []

    async def connect(
        self, pair: Callable[[], tuple[Any, Any]] = memory_stream_pair, *, shake: bool = True
    ) -> RawWebSocket:
        ours, theirs = pair()
        client = RawWebSocket(ours)
        self.clients.append(client)
        spec = ChildSpec(
            f"ws-{len(self.clients)}",
            lambda: ConnectionActor(theirs, self.service, self.door, self.limits),
            Restart.TEMPORARY,
        )
        self.ref = await self.supervisor.start_child(spec)
        if shake:
            await client.shake_hands()
        return client

    async def check(self, client: RawWebSocket) -> None:
        """Make sure that a client is still served."""
        await client.say(STATUS)
        while isinstance(event := await client.next_event(), Ping):
            pass
        assert isinstance(event, TextMessage)
        assert json.loads(event.data) == {"id": 1, "result": {"ok": True}}


@asynccontextmanager
async def floor(**limits: float) -> AsyncIterator[Floor]:
    """Run connections; at the end a client that was there from the beginning is still served."""
    service = FakeService()
    with trio.fail_after(10_000):
        async with (
            trio.open_nursery() as service.nursery,
            open_system(ChildSpec("connections", DynamicSupervisor)) as system,
        ):
            here = Floor(system.supervisor, service, SocketLimits(**limits))  # type: ignore[arg-type]
            bystander = await here.connect()
            yield here
            if "ping_interval_s" not in limits or limits["ping_interval_s"] > 100:
                await here.check(bystander)
            for client in here.clients:
                await client.stream.aclose()
            service.nursery.cancel_scope.cancel()


# -- coming in ----------------------------------------------------------------------------------------------------


async def test_client_that_never_shakes_hands_is_dropped_after_10_s(autojump_clock: trio.abc.Clock) -> None:
    async with floor(ping_interval_s=1000) as here:
        begun_at = trio.current_time()
        client = await here.connect(shake=False)
        assert await client.next_event() is None
        assert trio.current_time() - begun_at == pytest.approx(10)


async def test_client_that_shakes_hands_a_byte_at_a_time_has_10_s_in_all(
    autojump_clock: trio.abc.Clock,
) -> None:
    async with floor(ping_interval_s=1000) as here:
        client = await here.connect(shake=False)
        begun_at = trio.current_time()
        with pytest.raises(trio.BrokenResourceError):  # noqa: PT012
            for letter in b"GET /ws HTTP/1.1\r\nHost: " + b"a" * 100:
                await client.stream.send_all(bytes([letter]))
                await trio.sleep(1)
        assert trio.current_time() - begun_at <= 12


@pytest.mark.parametrize(
    "request_",
    [
        b"hello\r\n\r\n",
        b"GET /ws HTTP/1.1\r\nHost: a\r\n\r\n",
        b"POST /ws HTTP/1.1\r\nHost: a\r\nContent-Length: 0\r\n\r\n",
        b"GET /ws HTTP/1.1\r\nHost: a\r\nConnection: upgrade\r\nUpgrade: websocket\r\n\r\n",
        b"GET /ws HTTP/1.1\r\n" + b"a: " + b"b" * 100_000 + b"\r\n",
    ],
)
async def test_what_is_no_upgrade_is_answered_with_http_400(request_: bytes) -> None:
    async with floor() as here:
        client = await here.connect(shake=False)
        await client.stream.send_all(request_)
        assert (await client.stream.receive_some()).startswith(b"HTTP/1.1 400 ")
        assert await client.stream.receive_some() == b""


@pytest.mark.parametrize(
    "header", [b"Host: xn--\xff", b"Host: a\r\nConnection: \xff", b"Host: a\r\nSec-WebSocket-Protocol: \xff"]
)
async def test_header_that_wsproto_cannot_decode_ends_this_connection_only(header: bytes) -> None:
    async with floor() as here:
        client = await here.connect(shake=False)
        await client.stream.send_all(b"GET /ws HTTP/1.1\r\n" + header + b"\r\nUpgrade: websocket\r\n\r\n")
        assert await client.next_event() is None
        await here.ref.wait_stopped()
        assert here.ref.last_reason == "normal"


async def test_crash_of_one_connection_closes_its_stream_and_no_other(
    caplog: pytest.LogCaptureFixture,
) -> None:
    async with floor() as here:
        client = await here.connect()
        assert here.ref.incarnation is not None
        here.ref.incarnation.fail(RuntimeError("seeded"))
        assert await client.next_event() is None
        await here.ref.wait_stopped()
        assert here.service.closed == [here.ref.child_id]
    assert "seeded" in caplog.text


async def test_client_that_has_not_shaken_hands_does_not_hold_up_a_close(
    autojump_clock: trio.abc.Clock,
) -> None:
    async with floor(ping_interval_s=1000) as here:
        client = await here.connect(shake=False)
        begun_at = trio.current_time()
        here.ref.tell(Close(1001, "bye"))
        assert await client.next_event() is None
        assert trio.current_time() == begun_at


async def test_client_that_comes_while_the_gateway_drains_is_http_503() -> None:
    async with floor() as here:
        here.door.draining = True
        client = await here.connect(shake=False)
        await client.send(Request(host="127.0.0.1", target="/ws"))
        answer = await client.next_event()
        assert isinstance(answer, RejectConnection)
        assert answer.status_code == 503


# -- messages -----------------------------------------------------------------------------------------------------


async def test_frames_that_arrive_a_byte_at_a_time_are_put_together() -> None:
    async with floor() as here:
        client = await here.connect()
        for byte in client.wire.send(TextMessage(data=STATUS)):
            await client.stream.send_all(bytes([byte]))
        assert json.loads(await client.next_text()) == {"id": 1, "result": {"ok": True}}


async def test_message_in_many_fragments_with_pings_between_is_one_message() -> None:
    async with floor() as here:
        client = await here.connect()
        nothing = TextMessage(data="", message_finished=False)
        for letter in STATUS:
            await client.send(TextMessage(data=letter, message_finished=False), nothing)
        await client.send(Ping(payload=b"between"), TextMessage(data="", message_finished=True))
        events = [await client.next_event(), await client.next_event()]
        assert sorted(type(event).__name__ for event in events) == ["Pong", "TextMessage"]


@pytest.mark.parametrize(
    ("filler", "size", "code"),
    [
        ("x", FRAME_BYTES_MAX, None),
        ("x", FRAME_BYTES_MAX + 1, 1009),
        ("\u00e4", FRAME_BYTES_MAX // 2, None),
        ("\u00e4", FRAME_BYTES_MAX // 2 + 1, 1009),
    ],
)
async def test_4_mib_in_bytes_are_taken_and_more_closes_with_1009(
    filler: str, size: int, code: int | None
) -> None:
    async with floor() as here:
        client = await here.connect()
        await client.say(filler * size)
        if code is None:
            assert json.loads(await client.next_text())["error"]["code"] == "parse_error"
            await client.say(STATUS)
            assert "result" in await client.next_text()
        else:
            assert await client.close_code() == code


async def test_huge_message_is_refused_before_it_is_complete_and_in_fragments_too() -> None:
    async with floor(frame_bytes_max=1000) as here:
        client = await here.connect()
        for _ in range(11):
            await client.send(TextMessage(data="x" * 100, message_finished=False))
        assert await client.close_code() == 1009


async def test_nothing_behind_a_message_that_is_too_long_is_carried_out() -> None:
    async with floor(frame_bytes_max=1000) as here:
        client = await here.connect()
        await client.send(TextMessage(data="x" * 1001), TextMessage(data=STATUS))
        assert await client.close_code() == 1009
        assert here.service.calls == []


async def test_frame_header_that_promises_an_exabyte_reserves_nothing() -> None:
    async with floor() as here:
        client = await here.connect()
        await client.stream.send_all(b"\x81\xff" + (2**60).to_bytes(8, "big") + b"mask" + b"x" * 100)
        await client.stream.send_eof()  # type: ignore[attr-defined]
        assert await client.close_code() is None


@pytest.mark.parametrize(
    ("data", "code"),
    [
        (b"\x81\x02{}", 1002),  # not masked
        (b"\x83\x80mask", 1002),  # opcode 3 is reserved
        (b"\xc1\x80mask", 1002),  # a reserved bit
        (b"\x80\x80mask", 1002),  # continues nothing
        (b"\x89\xfe\x00\xffmask", 1002),  # a ping of 255 bytes
        (b"\x81\x82\x00\x00\x00\x00\xff\xff", 1007),  # not UTF-8
        (b"\x88\x81\x00\x00\x00\x00\x00", 1002),  # a close frame of one byte
    ],
)
async def test_what_websocket_forbids_closes_with_its_code(data: bytes, code: int) -> None:
    async with floor() as here:
        client = await here.connect()
        await client.stream.send_all(data)
        assert await client.close_code() == code


async def test_binary_frame_is_answered_and_the_connection_lives_on() -> None:
    async with floor() as here:
        client = await here.connect()
        await client.send(binary(b"\xff" * 10))
        assert json.loads(await client.next_text())["error"]["code"] == "invalid_request"
        await client.say(STATUS)
        assert "result" in await client.next_text()


@pytest.mark.parametrize("size", [0, 1, 125, 126, 127, 65_535, 65_536, 100_000])
def test_our_frame_header_is_that_of_wsproto(size: int) -> None:
    expected = Wire(ConnectionType.SERVER).send(TextMessage(data="x" * size))
    assert text_header(size) + b"x" * size == expected


# -- closing ------------------------------------------------------------------------------------------------------


async def test_close_frame_is_answered_with_its_code_and_the_end_of_the_stream() -> None:
    async with floor() as here:
        client = await here.connect()
        await client.send(CloseConnection(code=4321, reason="done"))
        assert await client.close_code() == 4321
        await client.stream.aclose()
        await here.ref.wait_stopped()
        assert here.service.closed == [here.ref.child_id]


async def test_close_frame_is_answered_though_the_stream_ends_right_behind_it() -> None:
    async with floor() as here:
        for _ in range(20):  # two tasks of the server race here
            client = await here.connect()
            await client.stream.send_all(client.wire.send(CloseConnection(code=1000)))
            await client.stream.send_eof()  # type: ignore[attr-defined]
            assert await client.close_code() == 1000


async def test_ping_behind_the_close_frame_of_the_server_harms_nobody() -> None:
    async with floor(frame_bytes_max=1000) as here:
        client = await here.connect()
        pings = b"".join(client.wire.send(Ping(payload=bytes([number]))) for number in range(50))
        await client.say("x" * 1001)
        await client.stream.send_all(pings)
        while not isinstance(event := await client.next_event(), CloseConnection):
            assert isinstance(event, Pong)
        await client.stream.send_all(pings)
        await client.stream.aclose()
        await here.ref.wait_stopped()
        assert here.ref.last_reason == "normal"


async def test_peer_that_never_answers_a_close_is_dropped_after_3_s(autojump_clock: trio.abc.Clock) -> None:
    async with floor(ping_interval_s=1000) as here:
        client = await here.connect()
        here.ref.tell(Close(1001, "bye"))
        begun_at = trio.current_time()
        await here.ref.wait_stopped()
        assert trio.current_time() - begun_at == pytest.approx(3)
        assert await client.close_code() == 1001


async def test_what_is_queued_is_sent_before_an_orderly_close() -> None:
    async with floor() as here:
        client = await here.connect()
        for number in range(100):
            here.ref.tell(Notify(b"%d" % number))
        here.ref.tell(Close(1001, "bye"))
        here.ref.tell(Notify(b"too late"))
        assert [await client.next_text() for _ in range(100)] == [str(number) for number in range(100)]
        assert isinstance(await client.next_event(), CloseConnection)


async def test_killed_connection_closes_its_stream() -> None:
    async with floor() as here:
        client = await here.connect()
        assert here.ref.incarnation is not None
        here.ref.incarnation.kill()
        assert await client.next_event() is None
        await here.ref.wait_stopped()
        assert here.service.closed == [here.ref.child_id]


async def test_drain_is_answered_when_nothing_is_in_flight_or_the_client_is_gone(
    autojump_clock: trio.abc.Clock,
) -> None:
    async with floor(ping_interval_s=1000) as here:
        client = await here.connect()
        await client.say(INIT)
        await client.next_text()
        await client.say(turn("hang"))
        await client.next_text()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(here.ref.ask, Drain(b"going"))
            assert await client.next_text() == "going"
            await client.stream.aclose()
        with pytest.raises(ActorDeadError):  # noqa: PT012
            await here.ref.wait_stopped()
            await here.ref.ask(Drain(b"gone"))


# -- a peer that does not read, or is not there -------------------------------------------------------------------


async def test_client_that_answers_pings_stays_and_one_that_does_not_is_dropped(
    autojump_clock: trio.abc.Clock,
) -> None:
    async with floor(ping_interval_s=20) as here, trio.open_nursery() as nursery:
        begun_at = trio.current_time()
        good, silent = await here.connect(), await here.connect()
        pings: list[float] = []
        nursery.start_soon(good.answer_pings, pings)
        events = [await silent.next_event(), await silent.next_event()]
        assert [type(event) for event in events] == [Ping, type(None)]
        assert trio.current_time() - begun_at == pytest.approx(40)
        await trio.sleep(195)
        assert [round(at - begun_at) for at in pings] == list(range(20, 221, 20))
        nursery.cancel_scope.cancel()


async def test_client_that_reads_nothing_for_10_s_is_dropped_and_its_turn_goes_on(
    autojump_clock: trio.abc.Clock,
) -> None:
    async with floor(ping_interval_s=1000) as here:
        client = await here.connect(lockstep_stream_pair)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(client.say, INIT)
            await client.next_text()
        await client.say(turn("pour 3"))
        begun_at = trio.current_time()
        await here.ref.wait_stopped()
        assert 10 <= trio.current_time() - begun_at <= 13.1
        assert here.service.turns_ended == ["k"]


async def test_client_that_lets_too_much_pile_up_is_closed_with_1013_and_its_turn_goes_on(
    autojump_clock: trio.abc.Clock,
) -> None:
    async with floor(ping_interval_s=1000) as here:
        client = await here.connect(lockstep_stream_pair)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(client.say, INIT)
            await client.next_text()
        await client.say(turn("pour 200"))
        await here.service.until(lambda: here.service.turns_ended == ["k"])
        await trio.sleep(5)
        received = 0
        while not isinstance(event := await client.next_event(), CloseConnection):
            assert isinstance(event, TextMessage)
            received += event.message_finished
        assert event.code == 1013
        assert received <= 3  # what was under way; the rest was thrown away


async def test_outbox_bounds_what_waits_and_not_what_was_ever_sent() -> None:
    async with floor(outbox_bytes_max=200_000) as here:
        client = await here.connect()
        await client.say(INIT)
        await client.next_text()
        for _ in range(10):
            await client.say(turn("pour 2"))
            assert "result" in [await client.next_text() for _ in range(5)][-1]


async def test_slow_client_that_keeps_reading_gets_everything(autojump_clock: trio.abc.Clock) -> None:
    async with floor(ping_interval_s=1000) as here:
        client = await here.connect(lockstep_stream_pair)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(client.say, INIT)
            await client.next_text()
        await client.say(turn("pour 20"))
        frames = []
        for _ in range(23):
            await trio.sleep(5)
            frames.append(json.loads(await client.next_text()))
        assert [frame["event"]["seq"] for frame in frames[:-1]] == list(range(22))
        assert frames[-1]["result"]["status"] == "complete"


async def test_flood_of_pings_from_a_client_that_does_not_read_is_one_pong() -> None:
    async with floor() as here:
        client = await here.connect(lockstep_stream_pair)
        for number in range(500):
            await client.send(Ping(payload=b"%d" % number))
        await client.say(STATUS)
        pongs = 0
        while not isinstance(event := await client.next_event(), Message):
            pongs += isinstance(event, Pong)
        assert pongs <= 3


async def test_flood_of_requests_from_a_client_that_does_not_read_ends_with_1013(
    autojump_clock: trio.abc.Clock,
) -> None:
    async with floor(ping_interval_s=1000, outbox_frames_max=100) as here:
        client = await here.connect(lockstep_stream_pair)
        for _ in range(300):
            await client.say("{")
        assert await client.close_code() == 1013


# -- anything at all ----------------------------------------------------------------------------------------------

frames_of_bytes = st.builds(
    lambda first, length_byte, payload: (
        bytes((first, 0x80 | (len(payload) if length_byte is None else length_byte))) + b"\0\0\0\0" + payload
    ),
    st.sampled_from([0x81, 0x01, 0x80, 0x00, 0x82, 0x88, 0x89, 0x8A, 0xFF]) | st.integers(0, 255),
    st.none() | st.integers(0, 127),
    st.binary(max_size=100) | st.sampled_from([STATUS.encode(), INIT.encode(), b"\x03\xe8", b"{"]),
)


@settings(max_examples=60, deadline=None)
@given(st.lists(frames_of_bytes, max_size=12), st.booleans(), st.integers(1, 64))
async def test_whatever_bytes_arrive_end_at_most_this_connection_and_in_order(
    sent: list[bytes], ends: bool, piece: int
) -> None:
    async with floor() as here:
        client = await here.connect()
        data = b"".join(sent)
        for start in range(0, len(data), piece):
            with suppress(trio.BrokenResourceError):
                await client.stream.send_all(data[start : start + piece])
        if ends:
            await client.stream.aclose()
            await here.ref.wait_stopped()
        await trio.testing.wait_all_tasks_blocked()
        assert here.ref.last_reason in (None, "normal")
