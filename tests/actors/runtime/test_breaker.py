"""The circuit breaker: a model server that fails again and again is left alone, probed, and trusted again."""

from __future__ import annotations

import datetime as dt
import random
from collections.abc import Callable

import httpx
import pytest
import structlog
import trio
from trio.testing import MockClock

from actors.runtime.anthropic import TRIES_MAX, AnthropicRuntime
from actors.runtime.anthropic_environment import Connection
from actors.runtime.breaker import ASKED_MAX_S, FAILURES_MAX, OPEN_FIRST_S, OPEN_MAX_S, PROBE_LOOK_S, Breaker
from protocol.errors import BackendError
from tests.support.model_server import (
    Cut,
    Pause,
    Response,
    Stall,
    message_start,
    says,
    serve,
    status,
    text_block,
)
from tests.support.turns import RememberingHost, request, session

NOON = dt.datetime(2026, 11, 22, 12, tzinfo=dt.UTC)
DOWN = BackendError("backend_error", "the model server answered 500. Try again later.")
HOUR_S = 3600


class NoJitter(random.Random):
    """Jitter that changes nothing."""

    def uniform(self, a: float, b: float) -> float:
        return 1.0


def a_breaker() -> Breaker:
    return Breaker("anthropic", rng=NoJitter(), now=lambda: NOON)


async def attempt(breaker: Breaker, error: BackendError | None = None) -> BackendError | None:
    """Make a call that ends so; return what it raised."""
    try:
        async with breaker.call():
            if error is not None:
                raise error
    except BackendError as raised:
        return raised
    return None


async def opened(breaker: Breaker) -> None:
    for _ in range(FAILURES_MAX):
        assert await attempt(breaker, DOWN) is DOWN


async def test_failures_in_a_row_open_it_and_calls_are_refused_at_once(mock_clock: MockClock):
    breaker = a_breaker()
    for _ in range(FAILURES_MAX - 1):
        await attempt(breaker, DOWN)
    assert await attempt(breaker) is None  # one that goes well in between begins the count anew
    for _ in range(FAILURES_MAX - 1):
        await attempt(breaker, DOWN)
    assert breaker.state == "closed"
    await attempt(breaker, DOWN)
    assert (breaker.state, breaker.retry_in_s) == ("open", OPEN_FIRST_S)
    refused = await attempt(breaker)
    assert refused is not None
    assert (refused.code, refused.retry_after_s) == ("backend_overloaded", OPEN_FIRST_S)
    assert refused.message == (
        "the model server failed 5 times in a row (the model server answered 500. Try again later), so this was "
        "not sent; it is tried again at 12:00:10 UTC. Send it again in 10 s."
    )
    assert breaker.status() == {
        "state": "open",
        "failures": 5,
        "since": "2026-11-22T12:00:00.000000Z",
        "retry_at": "2026-11-22T12:00:10.000000Z",
        "retry_in_s": 10.0,
        "reason": DOWN.message,
    }


async def test_it_waits_longer_after_each_probe_that_fails_up_to_a_limit(mock_clock: MockClock):
    breaker = a_breaker()
    await opened(breaker)
    waits = []
    for _ in range(8):
        waits.append(round(breaker.retry_in_s, 3))
        mock_clock.jump(breaker.retry_in_s - 0.001)
        assert breaker.state == "open"
        mock_clock.jump(0.002)
        assert (breaker.state, breaker.retry_in_s) == ("half_open", 0.0)
        assert await attempt(breaker, DOWN) is DOWN
    assert waits == [10, 20, 40, 80, 160, OPEN_MAX_S, OPEN_MAX_S, OPEN_MAX_S]
    mock_clock.jump(OPEN_MAX_S)
    assert await attempt(breaker) is None
    assert (breaker.state, breaker.status()["failures"], breaker.status()["reason"]) == ("closed", 0, None)
    await opened(breaker)
    assert breaker.retry_in_s == OPEN_FIRST_S


async def test_one_probe_goes_through_and_the_others_are_refused_meanwhile(mock_clock: MockClock):
    breaker, go_on = a_breaker(), trio.Event()
    await opened(breaker)
    mock_clock.jump(OPEN_FIRST_S)

    async def probe() -> None:
        async with breaker.call():
            await go_on.wait()

    async with trio.open_nursery() as nursery:
        nursery.start_soon(probe)
        await trio.testing.wait_all_tasks_blocked()
        refused = await attempt(breaker)
        assert refused is not None
        assert refused.retry_after_s == PROBE_LOOK_S
        assert "being tried right now" in refused.message
        assert breaker.state == "half_open"
        go_on.set()
    assert breaker.state == "closed"


async def test_a_probe_that_is_cancelled_leaves_the_next_one_to_find_out(mock_clock: MockClock):
    breaker = a_breaker()
    await opened(breaker)
    mock_clock.jump(OPEN_FIRST_S)
    with trio.CancelScope() as scope:
        async with breaker.call():
            scope.cancel()
            await trio.lowlevel.checkpoint()
    assert (breaker.state, breaker.retry_in_s) == ("half_open", 0.0)
    assert await attempt(breaker) is None


@pytest.mark.parametrize(("asked", "waits"), [(90.0, 90.0), (1.0, OPEN_FIRST_S), (1e9, ASKED_MAX_S)])
async def test_what_the_server_asks_for_is_waited_for(mock_clock: MockClock, asked: float, waits: float):
    breaker = a_breaker()
    for _ in range(FAILURES_MAX):
        await attempt(breaker, BackendError("backend_overloaded", "busy", asked))
    assert breaker.retry_in_s == waits


@pytest.mark.parametrize(
    "error",
    [
        BackendError("backend_error", "no such model", is_request_at_fault=True),
        BackendError("rate_limited", "slower, please"),
    ],
)
async def test_a_server_that_answers_no_is_a_server_that_answers(mock_clock: MockClock, error: BackendError):
    breaker = a_breaker()
    for _ in range(FAILURES_MAX * 2):
        await attempt(breaker, error)
    assert breaker.state == "closed"
    await opened(breaker)
    mock_clock.jump(OPEN_FIRST_S)
    assert await attempt(breaker, error) is error
    assert breaker.state == "closed"


async def test_calls_that_had_begun_before_do_not_prolong_it(mock_clock: MockClock):
    breaker, fail = a_breaker(), trio.Event()

    async def late() -> None:
        try:
            async with breaker.call():
                await fail.wait()
                raise DOWN
        except BackendError:
            return

    async with trio.open_nursery() as nursery:
        for _ in range(20):
            nursery.start_soon(late)
        await trio.testing.wait_all_tasks_blocked()
        fail.set()
    assert breaker.retry_in_s == OPEN_FIRST_S


async def test_each_change_is_logged_once(mock_clock: MockClock):
    breaker = a_breaker()
    with structlog.testing.capture_logs() as log:
        await opened(breaker)
        for _ in range(3):
            await attempt(breaker)
            mock_clock.jump(breaker.retry_in_s)
            await attempt(breaker, DOWN)
        mock_clock.jump(breaker.retry_in_s)
        await attempt(breaker)
        await attempt(breaker)
    assert [line["event"] for line in log] == ["model_server_given_up", "model_server_answers_again"]


async def test_jitter_spreads_the_waits_and_keeps_the_limit(mock_clock: MockClock):
    waits = set()
    for seed in range(20):
        breaker = Breaker("anthropic", rng=random.Random(seed))
        await opened(breaker)
        waits.add(breaker.retry_in_s)
        assert OPEN_FIRST_S * 0.8 <= breaker.retry_in_s <= OPEN_FIRST_S * 1.2
    assert len(waits) == 20


# --- with the backend around it


class Network(httpx.AsyncBaseTransport):
    """A network on which the model server answers as `answer` says; counts what reaches it."""

    def __init__(self, answer: Callable[[], httpx.Response]) -> None:
        self.answer = answer
        self.times: list[float] = []

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        self.times.append(trio.current_time())
        return self.answer()


def answers(response: Response) -> Callable[[], httpx.Response]:
    body = b"".join(chunk for chunk in response.chunks if isinstance(chunk, bytes))
    return lambda: httpx.Response(response.status, headers=response.headers, content=body)


def unreachable() -> httpx.Response:
    raise httpx.ConnectError("connection refused")


@pytest.mark.parametrize("answer", [answers(status(500)), answers(status(529)), unreachable])
async def test_a_server_that_is_down_for_an_hour_is_asked_seldom_and_heals_by_itself(
    autojump_clock: MockClock, answer: Callable[[], httpx.Response]
):
    network = Network(answer)
    runtime = AnthropicRuntime(Connection("sk-test", "http://model.test"), transport=network)
    refused = failed = 0
    while trio.current_time() < HOUR_S:
        try:
            await runtime.ensure_session(session())
            await runtime.run_turn(session(), request("hi"), RememberingHost())
        except BackendError as error:
            is_refused = "was not sent" in error.message
            refused, failed = refused + is_refused, failed + (not is_refused)
        await trio.sleep(1)
    # Five calls with their retries, then a probe each time: 10, 20, 40, … and from then on every five minutes.
    assert len(network.times) <= FAILURES_MAX * TRIES_MAX + 6 + HOUR_S / (OPEN_MAX_S * 0.8)
    assert refused > 3000
    assert runtime.status()["breaker"]["state"] in ("open", "half_open")
    network.answer = answers(says("Here I am."))
    healed_within = trio.current_time() + OPEN_MAX_S
    host = RememberingHost()
    while not host.text:
        assert trio.current_time() <= healed_within
        await trio.sleep(runtime.retry_in_s())
        await runtime.run_turn(session(), request("hi"), host)
    assert host.text == "Here I am."
    assert (runtime.status()["breaker"]["state"], runtime.status()["health"]) == ("closed", "ok")
    await runtime.aclose()


async def test_tries_of_others_end_when_it_opens_and_a_probe_is_one_try(autojump_clock: MockClock):
    network = Network(answers(status(500)))
    runtime = AnthropicRuntime(Connection("sk-test", "http://model.test"), transport=network)

    async def fail() -> None:
        with pytest.raises(BackendError):
            await runtime.run_turn(session(), request("hi"), RememberingHost())

    async with trio.open_nursery() as nursery:
        for _ in range(FAILURES_MAX):
            nursery.start_soon(fail)
    before = len(network.times)
    await trio.sleep(runtime.retry_in_s())
    await fail()
    assert len(network.times) == before + 1
    with pytest.raises(BackendError, match="was not sent"):
        await runtime.ensure_session(session())
    await runtime.aclose()


class DribblingBody(httpx.AsyncByteStream):
    """A byte a second until it is closed: each read is in time."""

    is_closed = False

    async def aclose(self) -> None:
        self.is_closed = True

    async def __aiter__(self):
        while not self.is_closed:
            await trio.sleep(1)
            yield b"x"


async def test_a_byte_a_second_is_silence_in_the_end(autojump_clock: MockClock):
    network = Network(
        lambda: httpx.Response(200, headers={"content-type": "text/event-stream"}, stream=DribblingBody())
    )
    runtime = AnthropicRuntime(
        Connection("sk-test", "http://model.test", read_timeout_s=120), transport=network
    )
    with pytest.raises(BackendError, match="silent for 120 s"):
        await runtime.run_turn(session(), request("hi"), RememberingHost())
    assert trio.current_time() == pytest.approx(122, abs=1.5)
    assert runtime.status()["breaker"]["failures"] == 1
    await runtime.aclose()


async def test_a_head_that_comes_in_dribbles_is_waited_for_as_long_as_a_head_may_take(
    autojump_clock: MockClock,
):
    class Dribbling(httpx.AsyncBaseTransport):
        async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
            await trio.sleep_forever()
            raise AssertionError

    connection = Connection("sk-test", "http://model.test", read_timeout_s=5)
    runtime = AnthropicRuntime(connection, transport=Dribbling())
    with pytest.raises(BackendError, match="silent for 5 s"):
        await runtime.run_turn(session(), request("hi"), RememberingHost())
    assert trio.current_time() == connection.head_timeout_s
    assert runtime.status()["breaker"]["failures"] == 1
    await runtime.aclose()


FAULTS = {
    "stall": (Response((message_start(), *text_block(0, "I begin"), Stall())), "silent"),
    "stall before the head": (Response(says("late").chunks, head_delay_s=60), "silent"),
    "cut in mid-event": (Response((message_start()[:20], Cut())), "middle of an answer"),
    "a dribble": (Response(tuple(part for _ in range(99) for part in (Pause(0.1), b"x"))), "silent"),
}


@pytest.mark.parametrize("name", FAULTS)
async def test_a_real_server_with_a_fault_opens_it_and_is_trusted_again_when_it_answers(name: str):
    response, words = FAULTS[name]
    async with serve() as server:
        server.script(*[response] * FAILURES_MAX)
        runtime = AnthropicRuntime(
            Connection("sk-test", server.url, connect_timeout_s=0.3, read_timeout_s=0.3), rng=NoJitter()
        )
        for _ in range(FAILURES_MAX):
            with pytest.raises(BackendError, match=words):
                await runtime.run_turn(session(), request("hi"), RememberingHost())
        with pytest.raises(BackendError, match="was not sent"):
            await runtime.run_turn(session(), request("hi"), RememberingHost())
        assert len(server.requests) == FAILURES_MAX
        runtime.breaker._retry_at = trio.current_time()  # as if it had been waited for
        host = RememberingHost()
        await runtime.run_turn(session(), request("hi"), host)
        assert host.text == "Hello from the model server."
        assert runtime.status()["breaker"]["state"] == "closed"
        await runtime.aclose()
