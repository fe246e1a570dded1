"""What the gateway asks of the runner behind it: who a token belongs to, and to carry out a request."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Protocol

import msgspec

from protocol.events import Event
from protocol.native.frames import Params


class Emit(Protocol):
    """Sends the events of one request; does nothing when the client is gone."""

    def __call__(self, event: Event | msgspec.Raw) -> None:
        """Send an event, as it is or encoded; never waits."""

    async def room(self) -> None:
        """Wait until most of what was sent has left, for who has much to send at once."""


@dataclass(frozen=True, slots=True)
class Caller:
    """Who makes a request.

    `identity` is proved: `operator`, a user's id, or `guest` for a connection that offered nothing. `connection_id`
    is unique among all connections, also over restarts of the daemon; it is what tells guests apart. `session_token` is
    what the request carried to prove that it may use a session.
    """

    identity: str
    connection_id: str
    authenticated: bool
    session_token: str | None = None


class Service(Protocol):
    """Carries out what connections ask for."""

    def authenticate(self, token: str) -> str | None:
        """Return the identity that a token proves, or None for a wrong one; takes the same time for every wrong one."""

    async def call(self, caller: Caller, method: str, params: Params, emit: Emit) -> dict[str, Any]:
        """Carry out a request and return its result; raises RequestError for what the client is told.

        `params` is an instance of `protocol.native.frames.METHODS[method]`; the operator's own methods come only
        from the operator. `emit` sends the events of this request. `turn.run` returns when the turn has ended; a turn
        that failed has emitted its `error` event before RequestError is raised. Anything else that is raised is
        answered with `internal` and logged.

        The calls of one connection begin in the order in which it sent them: what a call does before it first waits
        is done in that order, and nothing that follows a `session.init` begins before that has returned.

        A call is cancelled some seconds after its client is gone, and when the daemon stops. That cancels the
        waiting, not the turn: a turn belongs to its session.
        """

    def connection_closed(self, connection_id: str) -> None:
        """Note that a connection and all its calls have ended; nobody will use its id again."""
