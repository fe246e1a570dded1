"""One client's connection: an actor that lives as long as its WebSocket does.

Three kinds of tasks work for it, all its own: the reader turns frames into requests, a call per request asks the
service, and the writer sends what the calls, their events and the pings come to (`actors.websocket`). Whatever goes
wrong ends this one actor and its socket, and nothing else.
"""

from __future__ import annotations

import secrets
from collections import deque
from dataclasses import dataclass
from ipaddress import ip_address
from typing import Any, Final, Protocol
from urllib.parse import urlsplit

import msgspec
import structlog
import trio
from trio_websocket import ConnectionClosed, WebSocketRequest

from actors.kernel import Actor, Future, Ref
from actors.service import Caller, Service
from actors.websocket import GOING_AWAY, ServerSocket, SocketLimits
from protocol.acting import GUEST, OPERATOR
from protocol.errors import RequestError
from protocol.events import Event
from protocol.native.connection import Connection, Request
from protocol.native.frames import OPERATOR_METHODS
from store.damage import damage_of
from store.database import StorageError

PATHS: Final = frozenset({"/", "/ws"})

_log = structlog.get_logger("actors.gateway")


@dataclass(frozen=True, slots=True)
class Notify:
    """Command to a connection: send this frame."""

    frame: bytes


@dataclass(frozen=True, slots=True)
class Drain:
    """Command to a connection: send this frame, take no new work; answered when nothing is in flight any more."""

    frame: bytes


@dataclass(frozen=True, slots=True)
class Close:
    """Command to a connection: send what is queued, then close with this code."""

    code: int
    reason: str


class Door(Protocol):
    """What a connection needs of its gateway."""

    @property
    def draining(self) -> bool:
        """Whether new clients are sent away."""

    def entered(self, ref: Ref) -> None:
        """Note a connection, for as long as it lives."""

    def left(self, connection_id: str) -> None:
        """Forget a connection."""


class ConnectionActor(Actor):
    """Serves one accepted stream until either side closes it. Temporary: there is nothing to restart."""

    def __init__(
        self, stream: trio.abc.HalfCloseableStream, service: Service, door: Door, limits: SocketLimits
    ) -> None:
        super().__init__()
        self._service = service
        self._door = door
        self._limits = limits
        self._dialect = Connection()
        self._socket = ServerSocket(stream, self._take, self._take_binary, limits)
        self._caller = Caller(GUEST, "", authenticated=False)
        self._calls: trio.Nursery
        self._waiting: deque[Request] = deque()
        self._opening = False  # a session.init is under way: what follows waits for it
        self._idle_wanted: list[Future] = []
        self._knocking = trio.CancelScope()
        self._ended = trio.Event()

    # -- as an actor ---------------------------------------------------------------------------------------------

    async def on_start(self) -> None:
        """Begin to serve; the child id is the connection's id."""
        self._caller = Caller(GUEST, self.ref.child_id, authenticated=False)
        self._door.entered(self.ref)
        self.start_task(self._serve, name=self.ref.child_id)

    async def on_receive(self, message: Any) -> Any:
        """Carry out a command of the gateway."""
        match message:
            case Notify(frame):
                self._socket.post(frame)
            case Drain(frame):
                self._dialect.drain()
                self._socket.post(frame)
                self._idle_wanted.append(self.reply_later())
                self._tell_idle()
            case Close(code, reason):
                self._say_goodbye(code, reason)
            case _:
                return await super().on_receive(message)
        return None

    async def on_drain(self) -> None:
        """Say good-bye on an orderly stop."""
        self._say_goodbye(GOING_AWAY, "the runner is shutting down")
        await self._ended.wait()

    def _say_goodbye(self, code: int, reason: str) -> None:
        self._socket.close(code, reason)
        self._knocking.cancel()  # who is not in yet is not told

    # -- the life of the connection ------------------------------------------------------------------------------

    async def _serve(self) -> None:
        try:
            async with trio.open_nursery() as self._calls:
                await self._talk()
                # What the client asked for before it went is still done; a turn that it waited for goes on anyway.
                self._calls.cancel_scope.deadline = trio.current_time() + self._limits.disconnect_timeout_s
        finally:
            self._ended.set()
            self._door.left(self._caller.connection_id)
            self._service.connection_closed(self._caller.connection_id)
            self.stop()

    async def _talk(self) -> None:
        """Shake hands, then read and write until it is over."""
        try:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(self._read, nursery.cancel_scope)
                admitted = False
                with self._knocking:
                    admitted = await self._admit(await self._socket.handshake())
                if admitted:
                    nursery.start_soon(self._socket.keep_alive)
                    await self._socket.write()
                nursery.cancel_scope.cancel()
        except* (
            trio.TooSlowError,
            trio.BrokenResourceError,
            trio.ClosedResourceError,
            ConnectionClosed,
        ) as gone:
            _log.info("connection_lost", connection=self._caller.connection_id, why=repr(gone.exceptions[0]))
        finally:
            self._dialect.close()
            self._tell_idle()
            await self._socket.finish()

    async def _read(self, over: trio.CancelScope) -> None:
        await self._socket.read()
        if self._socket.closing is None:
            over.cancel()

    async def _admit(self, request: WebSocketRequest) -> bool:
        """Accept the upgrade, or answer it with an HTTP error."""
        refused = self._judge(request)
        if refused is None:
            await request.accept()
            return True
        status, why, *headers = refused
        _log.info("connection_refused", connection=self._caller.connection_id, status=status, why=why)
        await self._socket.refuse(request, status, why, *headers)
        return False

    def _judge(self, request: WebSocketRequest) -> tuple[Any, ...] | None:
        """Return the HTTP status, a sentence and headers for a refusal; None, with the caller known, to accept."""
        if request.path.partition("?")[0] not in PATHS:
            return 404, "the runner speaks WebSocket on /ws"
        offered = [value for name, value in request.headers if name == b"authorization"]
        origins = [value for name, value in request.headers if name == b"origin"]
        if not all(same_host(origin, self._socket.host) for origin in origins):
            return 403, "pages of other hosts may not connect; leave the Origin header out"
        if offered:
            identity = self._identify(offered)
            if identity is None:
                return 401, "this is not a token of the runner", (b"www-authenticate", b"Bearer")
            self._caller = Caller(identity, self._caller.connection_id, authenticated=True)
        if self._door.draining:
            return 503, "the runner is shutting down"
        return None

    def _identify(self, offered: list[bytes]) -> str | None:
        scheme, _, token = offered[0].decode("latin-1").strip().partition(" ")
        if len(offered) > 1 or scheme.lower() != "bearer":
            return None
        return self._service.authenticate(token.strip())

    # -- requests ------------------------------------------------------------------------------------------------

    def _take(self, text: str) -> None:
        received = self._dialect.receive(text)
        if isinstance(received, bytes):
            self._socket.post(received)
            return
        self._waiting.append(received)
        self._calls.start_soon(self._answer_next)

    def _take_binary(self) -> None:
        self._socket.post(self._dialect.receive_binary())

    async def _answer_next(self) -> None:
        # Trio begins new tasks in any order, so a task takes the request that is first in line, not "its own".
        if self._opening or not self._waiting:
            return
        request = self._waiting.popleft()
        if request.method != "session.init":
            await self._answer(request)
            return
        self._opening = True
        await self._answer(request)
        self._opening = False
        for _ in self._waiting:
            self._calls.start_soon(self._answer_next)

    async def _answer(self, request: Request) -> None:
        try:
            caller = self._caller_of(request)
            result = await self._service.call(caller, request.method, request.params, self._emitter(request))
            reply = self._dialect.result(request, result)
        except RequestError as error:
            reply = self._dialect.error(request, error)
        except StorageError as error:
            _log.error("request_not_recorded", method=request.method, why=error.message)
            reply = self._dialect.error(request, RequestError("internal", error.message))
        except Exception as error:  # noqa: BLE001 - one request that fails must not end the others
            error_id = secrets.token_hex(4)
            damage = damage_of(error)
            _log.exception(
                "request_failed",
                error_id=error_id,
                method=request.method,
                connection=self._caller.connection_id,
            )
            internal = RequestError(
                "internal", damage or f"something failed here; the log says what, under the id {error_id}"
            )
            reply = self._dialect.error(request, internal)
        if reply is not None:
            self._socket.post(reply)
        self._tell_idle()

    def _caller_of(self, request: Request) -> Caller:
        """Return who makes a request; raises RequestError for a wrong token and for a method that is not theirs."""
        caller = self._caller
        token = request.params.token
        if token is not None:
            identity = self._service.authenticate(token)
            if identity is None:
                raise RequestError("unauthorized", "params.token: is not a token of this runner")
            caller = Caller(identity, caller.connection_id, authenticated=True)
        if request.method in OPERATOR_METHODS and caller.identity != OPERATOR:
            raise RequestError(
                "unauthorized", f"{request.method} is for the operator; send the operator's token"
            )
        return caller

    def _emitter(self, request: Request) -> Emitter:
        return Emitter(self._dialect, self._socket, request)

    def _tell_idle(self) -> None:
        if self._idle_wanted and not self._dialect.in_flight:
            futures, self._idle_wanted = self._idle_wanted, []
            for future in futures:
                future.set()


class Emitter:
    """Sends the events of one request; see `actors.service.Emit`."""

    __slots__ = ("_event_frame", "_post", "_request", "room")

    def __init__(self, dialect: Connection, socket: ServerSocket, request: Request) -> None:
        self._event_frame = dialect.event
        self._post = socket.post
        self._request = request
        self.room = socket.room

    def __call__(self, event: Event | msgspec.Raw) -> None:
        """See Emit."""
        frame = self._event_frame(self._request, event)
        if frame is not None:
            self._post(frame)


def same_host(origin: bytes, host: str) -> bool:
    """Say whether a page of this origin was served by the very host that it now connects to.

    A name other than localhost does not count, even where the two agree: it may be made to point at this machine
    by whoever owns it (DNS rebinding). An address cannot.
    """
    try:
        page = urlsplit(origin.decode("ascii"))
        name = page.hostname or ""
        if page.netloc.lower() != host.lower():
            return False
        if name != "localhost":
            ip_address(name)
    except ValueError:
        return False
    return True
