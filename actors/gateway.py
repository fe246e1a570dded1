"""The gateway: the port where clients come in, and a connection actor for each of them.

    gateway (one_for_one)
    ├─ connections (dynamic)   a temporary child per client
    └─ listener                permanent; accepts

An upgrade request gets, in this order:

    404   another path than /ws and /
    403   an Origin header, which browsers send, unless the page was served by this same address: no web page that
          somebody happens to look at can talk to the runner
    401   an Authorization header that is not `Bearer` and a token of the runner; without the header one is a guest
    503   the runner shuts down, or has as many clients as it may have
    101   welcome

What has to outlive a crash of these actors, the bound sockets above all, is held by the `Gateway` object.
"""

from __future__ import annotations

import contextlib
import errno
import secrets
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Final

import msgspec
import structlog
import trio

from actors.connection import Close, ConnectionActor, Drain, Notify
from actors.kernel import (
    Actor,
    ActorDeadError,
    ChildSpec,
    DynamicSupervisor,
    MailboxFullError,
    Ref,
    Restart,
    Supervisor,
    SupervisorRef,
    TooManyChildrenError,
)
from actors.service import Service
from actors.websocket import GOING_AWAY, SocketLimits
from protocol.errors import AgentRunnerError
from protocol.native.connection import Shutdown, notice_frame

_log = structlog.get_logger("actors.gateway")

_OUT_OF_MEANS: Final = frozenset({errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM})
_TURNED_AWAY_AT_ONCE_MAX: Final = 64
_TURN_AWAY_S: Final = 1.0
_NO_ROOM: Final = b"the runner has no room for another client\n"
_FULL: Final = (
    b"HTTP/1.1 503 Service Unavailable\r\nconnection: close\r\nretry-after: 5\r\n"
    b"content-type: text/plain; charset=utf-8\r\ncontent-length: %d\r\n\r\n%b" % (len(_NO_ROOM), _NO_ROOM)
)


class BindError(AgentRunnerError):
    """The gateway cannot listen on `host` and `port`."""

    def __init__(self, host: str, port: int, problem: str, fix: str) -> None:
        super().__init__(f"cannot listen on port {port} of {host}: {problem}. {fix}")
        self.host = host
        self.port = port


@dataclass(frozen=True, slots=True)
class GatewayLimits:
    """How many clients there may be, and what each may cost."""

    connections_max: int = 1000
    socket: SocketLimits = field(default_factory=SocketLimits)


class Gateway:
    """Where clients come in.

    Call `open`, put `child_spec()` under the daemon's supervisor, and at the end `drain`, stop the actors, `close`.
    """

    def __init__(
        self,
        service: Service,
        *,
        host: str = "127.0.0.1",
        port: int = 18789,
        limits: GatewayLimits | None = None,
    ) -> None:
        self.service = service
        self.host = host
        self.port = port
        self.limits = limits or GatewayLimits()
        self.draining = False
        self.listeners: list[trio.SocketListener] = []
        self._connections: dict[str, Ref] = {}

    @property
    def url(self) -> str:
        """The URL for clients on this machine; after `open` it has the port that was picked for port 0."""
        host = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(self.host, self.host)  # noqa: S104 - not bound, replaced
        return f"ws://[{host}]:{self.port}/ws" if ":" in host else f"ws://{host}:{self.port}/ws"

    @property
    def connection_count(self) -> int:
        """How many clients are connected."""
        return len(self._connections)

    async def open(self) -> None:
        """Bind the port, so that a port that is taken is known before anything else has begun; raises BindError."""
        try:
            listeners = await trio.open_tcp_listeners(self.port, host=self.host)
        except OSError as error:
            raise self._bind_error(error) from error
        if self.port == 0:  # one name with several addresses would get a port for each
            for listener in listeners[1:]:
                await listener.aclose()
            del listeners[1:]
            self.port = listeners[0].socket.getsockname()[1]
        self.listeners = listeners

    def _bind_error(self, error: OSError) -> BindError:
        if error.errno == errno.EADDRINUSE:
            fix = (
                "End the program that has it, choose another one with --port, or let --port 0 pick a free one"
            )
            return BindError(self.host, self.port, "the port is taken", fix)
        if error.errno in (errno.EACCES, errno.EPERM):
            fix = "Choose a port from 1024 on, or let --port 0 pick a free one"
            return BindError(self.host, self.port, "this user may not have it", fix)
        fix = "Bind an address of this machine with --bind, for instance 127.0.0.1"
        return BindError(self.host, self.port, str(error), fix)

    async def close(self) -> None:
        """Give the port back; connections that exist go on."""
        self.draining = True
        for listener in self.listeners:
            await listener.aclose()

    def child_spec(self) -> ChildSpec:
        """Return how a supervisor starts the gateway."""
        return ChildSpec("gateway", self._supervisor)

    def _supervisor(self) -> Supervisor:
        connections = partial(DynamicSupervisor, max_children=self.limits.connections_max)
        return Supervisor(
            [ChildSpec("connections", connections), ChildSpec("listener", partial(Listener, self))],
        )

    def connection_spec(self, stream: trio.SocketStream) -> ChildSpec:
        """Return how the actor of an accepted stream is started; its id is unique over restarts of the daemon."""
        actor = partial(ConnectionActor, stream, self.service, self, self.limits.socket)
        shutdown_s = self.limits.socket.disconnect_timeout_s * 2
        return ChildSpec(f"ws-{secrets.token_hex(8)}", actor, Restart.TEMPORARY, shutdown_s)

    def entered(self, ref: Ref) -> None:
        """Note a connection, for as long as it lives."""
        self._connections[ref.child_id] = ref

    def left(self, connection_id: str) -> None:
        """Forget a connection."""
        self._connections.pop(connection_id, None)

    def broadcast(self, notice: msgspec.Struct) -> None:
        """Send every client an event that belongs to no request."""
        frame = notice_frame(notice)
        for ref in list(self._connections.values()):
            _tell(ref, Notify(frame))

    async def drain(self, *, timeout_s: float, restart_expected_ms: int | None = None) -> None:
        """Take no new clients and no new work, wait for what is in flight, then close every connection with 1001.

        Every client is told with a `shutdown` event. `timeout_s` bounds the wait for what is in flight; closing takes
        `disconnect_timeout_s` more where a client does not answer.
        """
        await self.close()
        frame = notice_frame(Shutdown(restart_expected_ms))
        refs = list(self._connections.values())
        with trio.move_on_after(timeout_s):
            async with trio.open_nursery() as nursery:
                for ref in refs:
                    nursery.start_soon(_drain, ref, frame)
        refs = list(self._connections.values())
        for ref in refs:
            _tell(ref, Close(GOING_AWAY, "the runner is shutting down"))
        with trio.move_on_after(self.limits.socket.disconnect_timeout_s * 2):
            for ref in refs:
                await ref.wait_stopped()


def _tell(ref: Ref, command: Any) -> None:
    try:
        ref.tell(command)
    except (ActorDeadError, MailboxFullError) as error:
        _log.info(
            "connection_missed_command",
            connection=ref.child_id,
            command=type(command).__name__,
            why=str(error),
        )


async def _drain(ref: Ref, frame: bytes) -> None:
    with contextlib.suppress(ActorDeadError):  # then it has nothing in flight either
        await ref.ask(Drain(frame))


class Listener(Actor):
    """Accepts clients and has a connection actor started for each."""

    def __init__(self, gateway: Gateway) -> None:
        super().__init__()
        self._gateway = gateway
        self._turned_away = 0
        self._is_out_of_means = False

    async def on_start(self) -> None:
        """Begin to accept."""
        for listener in self._gateway.listeners:
            self.start_task(self._accept, listener)

    async def _accept(self, listener: trio.SocketListener) -> None:
        parent = self.ref.parent
        assert isinstance(parent, SupervisorRef)  # noqa: S101 - the tree above
        connections = parent.supervisor("connections")
        while True:
            try:
                stream = await listener.accept()
            except trio.ClosedResourceError:
                if self._gateway.draining:
                    return
                raise
            except OSError as error:
                # Either the client was gone before it was accepted, or this process has no room for a socket now.
                is_out = error.errno in _OUT_OF_MEANS
                if not (is_out and self._is_out_of_means):
                    _log.warning("client_not_accepted", why=str(error))
                self._is_out_of_means = is_out
                await trio.sleep(0.1 if is_out else 0)
            else:
                self._is_out_of_means = False
                await self._welcome(connections, stream)

    async def _welcome(self, connections: SupervisorRef, stream: trio.SocketStream) -> None:
        try:
            await connections.start_child(self._gateway.connection_spec(stream))
        except TooManyChildrenError:
            self._turn_away(stream)
        except BaseException:
            await trio.aclose_forcefully(stream)
            raise

    def _turn_away(self, stream: trio.SocketStream) -> None:
        _log.warning("client_turned_away", connections=self._gateway.limits.connections_max)
        if self._turned_away < _TURNED_AWAY_AT_ONCE_MAX:
            self._turned_away += 1
            self.start_task(self._say_full, stream)
        else:
            stream.socket.close()

    async def _say_full(self, stream: trio.SocketStream) -> None:
        try:
            with trio.move_on_after(_TURN_AWAY_S):
                await stream.send_all(_FULL)
                await stream.send_eof()
                while await stream.receive_some():
                    pass
        except (trio.BrokenResourceError, trio.ClosedResourceError):
            pass  # it did not wait for the answer
        finally:
            self._turned_away -= 1
            await trio.aclose_forcefully(stream)
