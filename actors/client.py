"""A client of the native protocol, for the command line and for whoever drives a runner from Python.

async with connect("ws://127.0.0.1:18789/ws", token) as client:
    opened = await client.call("session.init", {"agent_id": "calli"})
    turn = client.turn({"session_key": opened["session_key"], "message": "hello"})
    async for event in turn:
        print(event)
    print(turn.result)
"""

from __future__ import annotations

import itertools
import json
import re
import weakref
from collections import deque
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager
from typing import Any, Final, cast
from urllib.parse import urlsplit

import h11
import trio
from trio_websocket import ConnectionClosed, ConnectionRejected, WebSocketConnection, wrap_client_stream
from wsproto.utilities import ProtocolError

from protocol.errors import CODES, AgentRunnerError, RequestError

MESSAGE_BYTES_MAX: Final = 64 * 1024 * 1024
"""The longest frame that a client takes; results may be longer than the frames that a client may send."""


_CLOSE_S: Final = 3.0
_SURROGATE: Final = re.compile("[\ud800-\udfff]")


class UnreachableError(AgentRunnerError):
    """Nothing that speaks WebSocket answers at `url`."""

    def __init__(self, url: str, problem: str) -> None:
        super().__init__(f"no runner answers at {url}: {problem}")
        self.url = url


class DisconnectedError(AgentRunnerError):
    """The connection ended while an answer was awaited; `code` is the close code, 1006 where there was none."""

    def __init__(self, code: int, reason: str | None) -> None:
        super().__init__(f"the runner closed the connection ({code}{f', {reason}' if reason else ''})")
        self.code = code
        self.reason = reason


class Reply:
    """What comes back for one request: events, then a result or an error. Iterate over it for the events."""

    def __init__(self, client: Client, method: str, params: dict[str, Any]) -> None:
        self._client = client
        self._method = method
        self._params = params
        self._sent = False
        self._events: deque[dict[str, Any]] = deque()
        self._changed = trio.lowlevel.ParkingLot()
        self._outcome: dict[str, Any] | AgentRunnerError | None = None

    @property
    def result(self) -> dict[str, Any]:
        """The result, once the events are at their end; for a turn `{"status", "turn_id"}`."""
        if self._outcome is None or isinstance(self._outcome, AgentRunnerError):
            raise RuntimeError("there is no result yet; iterate over the events to their end first")
        return self._outcome

    def __aiter__(self) -> Reply:
        return self

    async def __anext__(self) -> dict[str, Any]:
        """Return the next event; raises RequestError for an error reply and DisconnectedError."""
        if not self._sent:
            self._sent = True
            await self._client.send(self, self._method, self._params)
        while not self._events:
            if self._outcome is None:
                await self._changed.park()
            elif isinstance(self._outcome, AgentRunnerError):
                raise self._outcome
            else:
                raise StopAsyncIteration
        return self._events.popleft()

    def take(self, event: dict[str, Any]) -> None:
        """Add an event."""
        self._events.append(event)
        self._changed.unpark_all()

    def end(self, outcome: dict[str, Any] | AgentRunnerError) -> None:
        """Set the result or the error."""
        if self._outcome is None:
            self._outcome = outcome
            self._changed.unpark_all()


class Client:
    """One connection to a runner; any number of tasks may call at once. Get one from `connect`.

    `notices` holds the events that belong to no request (`shutdown`), the last 16.
    """

    def __init__(self, socket: WebSocketConnection) -> None:
        self._socket = socket
        self._ids = itertools.count(1)
        # Weak: the events of a turn that nobody iterates over any more are dropped.
        self._replies: weakref.WeakValueDictionary[int, Reply] = weakref.WeakValueDictionary()
        self._lost: DisconnectedError | None = None
        self.notices: deque[dict[str, Any]] = deque(maxlen=16)

    async def call(self, method: str, params: dict[str, Any] | None = None) -> dict[str, Any]:
        """Return the result of a request; events on the way are dropped.

        Raises RequestError with the runner's code, DisconnectedError.
        """
        reply = Reply(self, method, params or {})
        async for _ in reply:
            pass
        return reply.result

    def turn(self, params: dict[str, Any]) -> Reply:
        """Return a turn, which is begun by iterating over its events; `result` has its end."""
        return Reply(self, "turn.run", params)

    def resume(self, params: dict[str, Any]) -> Reply:
        """Return what comes of a turn from event `from_seq` on, for one whose connection was lost."""
        return Reply(self, "turn.resume", params)

    async def send(self, reply: Reply, method: str, params: dict[str, Any]) -> None:
        """Send a request and have `reply` take what comes back."""
        if self._lost is not None:
            raise self._lost
        id_ = next(self._ids)
        request = {"id": id_, "method": method, "params": params}
        text = json.dumps(request, ensure_ascii=False)
        if _SURROGATE.search(text):
            text = json.dumps(request)  # escaped, so that it is the runner that refuses it
        self._replies[id_] = reply
        try:
            await self._socket.send_message(text)
        except ConnectionClosed as closed:
            raise _disconnected(closed) from None

    async def read(self) -> None:
        """Sort what arrives to those who wait for it, until the connection ends."""
        try:
            while True:
                self._sort(json.loads(await self._socket.get_message()))
        except ConnectionClosed as closed:
            self._lost = _disconnected(closed)
            for reply in list(self._replies.values()):
                reply.end(self._lost)

    def _sort(self, frame: dict[str, Any]) -> None:
        reply = self._replies.get(frame.get("id", 0) or 0)
        if reply is None:
            if "event" in frame and "id" not in frame:
                self.notices.append(frame["event"])
        elif "event" in frame:
            reply.take(frame["event"])
        elif "error" in frame:
            reply.end(_refusal(frame["error"]))
        else:
            reply.end(frame["result"])


def _refusal(error: dict[str, Any]) -> RequestError:
    code, message = str(error.get("code")), str(error.get("message"))
    if code in CODES:
        return RequestError(code, message)
    return RequestError(
        "internal", f"the runner answered with {code}, which this client does not know: {message}"
    )


def _disconnected(closed: ConnectionClosed) -> DisconnectedError:
    if closed.reason is None:
        return DisconnectedError(1006, None)
    return DisconnectedError(closed.reason.code, closed.reason.reason)


@asynccontextmanager
async def connect(url: str, token: str | None = None, *, timeout_s: float = 10.0) -> AsyncIterator[Client]:
    """Connect to a runner, for the length of an `async with`; `token` proves who this is.

    Raises UnreachableError when nobody answers, RequestError `unauthorized` for a wrong token, ValueError for what
    is no `ws://` or `wss://` URL.
    """
    body_error: BaseException | None = None
    async with await _open_stream(url, timeout_s) as stream:
        try:
            async with trio.open_nursery() as nursery:
                socket = await _shake_hands(nursery, stream, url, token, timeout_s)
                client = Client(socket)
                nursery.start_soon(client.read)
                try:
                    yield client
                except (Exception, KeyboardInterrupt, SystemExit) as error:  # noqa: BLE001 - raised again below
                    body_error = error
                with trio.move_on_after(_CLOSE_S):
                    await socket.aclose()
                nursery.cancel_scope.cancel()
        except BaseExceptionGroup as group:
            problem = _problem(group, url, timeout_s)
            if problem is None:
                raise
            body_error = body_error or problem
    if body_error is not None:
        raise body_error


async def _open_stream(url: str, timeout_s: float) -> trio.SocketStream | trio.SSLStream[trio.SocketStream]:
    parts = urlsplit(url)
    if parts.scheme not in ("ws", "wss") or not parts.hostname:
        raise ValueError(f"{url!r} is no WebSocket URL; it looks like ws://127.0.0.1:18789/ws")
    try:
        with trio.fail_after(timeout_s):
            if parts.scheme == "wss":
                return await trio.open_ssl_over_tcp_stream(parts.hostname, parts.port or 443)
            return await trio.open_tcp_stream(parts.hostname, parts.port or 80)
    except trio.TooSlowError:
        raise _too_slow(url, timeout_s) from None
    except OSError as error:
        raise UnreachableError(url, str(error.__cause__ or error)) from error


async def _shake_hands(
    nursery: trio.Nursery,
    stream: trio.SocketStream | trio.SSLStream[trio.SocketStream],
    url: str,
    token: str | None,
    timeout_s: float,
) -> WebSocketConnection:
    parts = urlsplit(url)
    path = (parts.path or "/") + (f"?{parts.query}" if parts.query else "")
    with trio.fail_after(timeout_s), trio.CancelScope() as handshake:
        return await wrap_client_stream(
            cast("trio.Nursery", _Reading(nursery, handshake)),
            stream,
            parts.netloc.rpartition("@")[2],
            path,
            extra_headers=[] if token is None else [(b"Authorization", f"Bearer {token}".encode())],
            message_queue_size=1024,
            max_message_size=MESSAGE_BYTES_MAX,
        )
    raise UnreachableError(url, "the connection ended before the handshake was done")


class _Reading:
    """Starts the reader of a WebSocket; one that ends has no handshake to wait for any more.

    The library waits for the handshake without end where the peer leaves instead of answering.
    """

    def __init__(self, nursery: trio.Nursery, handshake: trio.CancelScope) -> None:
        self._nursery = nursery
        self._handshake = handshake

    def start_soon(self, reader: Callable[[], Awaitable[None]]) -> None:
        self._nursery.start_soon(self._read, reader)

    async def _read(self, reader: Callable[[], Awaitable[None]]) -> None:
        await reader()
        self._handshake.cancel()


def _problem(group: BaseExceptionGroup[BaseException], url: str, timeout_s: float) -> AgentRunnerError | None:
    """Return what went wrong with the WebSocket itself; None where it was something else, a cancellation say."""
    for error in _leaves(group):
        if isinstance(error, ConnectionRejected):
            body = (error.body or b"").decode("utf-8", "replace").strip()
            if error.status_code == 401:
                return RequestError("unauthorized", body or "the runner does not know this token")
            return UnreachableError(url, f"HTTP {error.status_code} {body}".strip())
        if isinstance(error, trio.TooSlowError | UnreachableError):
            return error if isinstance(error, UnreachableError) else _too_slow(url, timeout_s)
        if isinstance(error, h11.LocalProtocolError):
            return UnreachableError(url, f"the token cannot be sent in a header: {error}")
        if isinstance(error, ProtocolError):
            return DisconnectedError(1006, str(error))
    return None


def _too_slow(url: str, timeout_s: float) -> UnreachableError:
    return UnreachableError(url, f"no answer within {timeout_s} s")


def _leaves(group: BaseExceptionGroup[BaseException]) -> Iterator[BaseException]:
    for error in group.exceptions:
        if isinstance(error, BaseExceptionGroup):
            yield from _leaves(error)
        else:
            yield error
