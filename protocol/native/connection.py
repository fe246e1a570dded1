"""One native connection without a socket: frames in, requests out; results, errors and events in, frames out.

The states of a connection, and what a request meets in each::

    state      drain()    close()    a request is
    OPEN       DRAINING   CLOSED     taken
    DRAINING   DRAINING   CLOSED     refused with shutting_down, unless it is one of URGENT
    CLOSED     CLOSED     CLOSED     refused with shutting_down

A request is *in flight* from `receive` until `result` or `error`. At most `in_flight_max` are, the next is refused
with `queue_full` (URGENT ones have as many places again). The client may use one id twice at once: ids are its own
affair, each request is told apart by its `Request` object, and the replies to both carry the id as it was sent. What
is said about a request that is no longer in flight (an event after the end of its turn, or after the connection
closed) gives None: there is nobody to hear it.

A second dialect is a class with these same methods in a package beside `protocol.native`.
"""

from __future__ import annotations

import enum
from dataclasses import dataclass
from typing import Any, Final

import msgspec

from protocol.errors import RequestError
from protocol.events import Event, encode
from protocol.native.frames import NULL_ID, FrameError, Params, read_frame

IN_FLIGHT_MAX: Final = 64
"""How many requests of one connection may wait for their replies."""

URGENT: Final = frozenset(
    {"session.cancel", "session.status", "tool.result", "runner.status", "runner.tree"},
)
"""What running turns need to come to their end, and who looks why it does not come: taken also while the runner shuts
down or much is in flight."""


class State(enum.Enum):
    """Where a connection stands."""

    OPEN = "open"
    DRAINING = "draining"
    CLOSED = "closed"


_AFTER_DRAIN: Final = {
    State.OPEN: State.DRAINING,
    State.DRAINING: State.DRAINING,
    State.CLOSED: State.CLOSED,
}


class Shutdown(msgspec.Struct, frozen=True, tag_field="type", tag="shutdown"):
    """The runner goes away and expects to be back after `restart_expected_ms` milliseconds (None: it does not)."""

    restart_expected_ms: int | None


@dataclass(frozen=True, slots=True, eq=False)
class Request:
    """A request in flight; told apart by identity. `id` is the client's own bytes."""

    id: bytes
    method: str
    params: Params


def error_frame(id_: bytes, error: RequestError) -> bytes:
    """Return the error reply to the request with that id."""
    return b'{"id":%b,"error":%b}' % (id_, encode({"code": error.code, "message": error.message}))


def notice_frame(notice: msgspec.Struct) -> bytes:
    """Return the frame of an event that belongs to no request; it is the same for every connection."""
    return b'{"event":%b}' % encode(notice)


class Connection:
    """What one client has said and may be told; frames are UTF-8 bytes of one text message each."""

    def __init__(self, in_flight_max: int = IN_FLIGHT_MAX) -> None:
        self.state = State.OPEN
        self._in_flight_max = in_flight_max
        self._in_flight: set[Request] = set()

    @property
    def in_flight(self) -> int:
        """How many requests wait for their replies."""
        return len(self._in_flight)

    def receive(self, text: str) -> Request | bytes:
        """Take a text frame; return the request, now in flight, or the error reply to send. Never raises."""
        try:
            frame = read_frame(text)
        except FrameError as error:
            return error_frame(error.id, error)
        if refusal := self._refusal(frame.method):
            return error_frame(frame.id, refusal)
        request = Request(frame.id, frame.method, frame.params)
        self._in_flight.add(request)
        return request

    def _refusal(self, method: str) -> RequestError | None:
        urgent = method in URGENT
        if self.state is not State.OPEN and not (urgent and self.state is State.DRAINING):
            return RequestError("shutting_down", "the runner is shutting down; connect again later")
        if len(self._in_flight) >= self._in_flight_max * (2 if urgent else 1):
            return RequestError(
                "queue_full",
                f"{len(self._in_flight)} requests of this connection wait for their replies; wait for one of them",
            )
        return None

    def receive_binary(self) -> bytes:
        """Take a binary frame, whatever it holds; return the error reply to send."""
        return error_frame(NULL_ID, RequestError("invalid_request", "frames are text, this one is binary"))

    def result(self, request: Request, result: dict[str, Any]) -> bytes | None:
        """Return the reply that ends a request well, or None when it is not in flight.

        Raises TypeError, and leaves the request in flight, when the result is not JSON data.
        """
        if request not in self._in_flight:
            return None
        frame = b'{"id":%b,"result":%b}' % (request.id, encode(result))
        self._in_flight.remove(request)
        return frame

    def error(self, request: Request, error: RequestError) -> bytes | None:
        """Return the reply that ends a request in an error, or None when it is not in flight."""
        if request not in self._in_flight:
            return None
        self._in_flight.remove(request)
        return error_frame(request.id, error)

    def event(self, request: Request, event: Event | msgspec.Raw) -> bytes | None:
        """Return the frame of an event of a request (as it is, or encoded), or None when it is not in flight."""
        if request not in self._in_flight:
            return None
        return b'{"id":%b,"event":%b}' % (request.id, encode(event))

    def drain(self) -> None:
        """Refuse new work; what is in flight goes on."""
        self.state = _AFTER_DRAIN[self.state]

    def close(self) -> None:
        """Forget what is in flight: there is nobody to hear of it."""
        self.state = State.CLOSED
        self._in_flight.clear()
