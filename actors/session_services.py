"""What every session works with; made once for a daemon."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field
from typing import Final

import apsw
import msgspec
import trio

from actors.court import Enacted
from actors.journal import Journal
from actors.kernel import Ref
from actors.runtime.base import AgentRuntime, Ceiling
from actors.tools.base import ToolOutcome
from actors.tools.registry import Registry
from actors.turn import Turn
from protocol.acting import VERIFY, channel_of, resolve_acting
from protocol.constitution import Limits
from protocol.tiers import Acting
from store.clock import StrictClock
from store.event_log import EventLog
from store.mailbox import Mail
from store.sessions import SessionRow


class Openers:
    """Which connection opened which sessions, for as long as the connection lives.

    Kept here and not by the session: one that was evicted and comes back is still its connection's.
    """

    def __init__(self) -> None:
        self._sessions: dict[str, set[str]] = {}

    def add(self, connection_id: str, session_id: str) -> None:
        """Note that a connection opened a session."""
        self._sessions.setdefault(connection_id, set()).add(session_id)

    def count(self, connection_id: str) -> int:
        """Return how many sessions a connection has opened."""
        return len(self._sessions.get(connection_id, ()))

    def has(self, connection_id: str, session_id: str) -> bool:
        """Say whether a connection opened a session."""
        return session_id in self._sessions.get(connection_id, ())

    def forget(self, connection_id: str) -> None:
        """Note that a connection has ended."""
        self._sessions.pop(connection_id, None)


PASSIVATE_AFTER_S: Final = 300.0
"""A session that was idle for so long leaves memory; the next message brings it back."""


@dataclass(frozen=True, slots=True)
class SessionServices:
    """What every session works with; `tokens_limited` is true where tokens cost money.

    `events` keeps the events of the last turns, None keeps none. `passivate_after_s` is how long an idle session stays
    in memory, None for ever. `hurry` is set when the daemon is ending and running turns are not waited for any longer.
    """

    writer: Ref
    clock: StrictClock
    enacted: Enacted
    runtime: AgentRuntime
    registry: Registry
    database: apsw.Connection
    secret: bytes
    tokens_limited: bool
    announce: Callable[[Sequence[Mail]], None]
    run_child: Callable[[SessionRow, Turn, Ceiling, str, str | None], Awaitable[ToolOutcome]]
    events: EventLog | None = None
    passivate_after_s: float | None = PASSIVATE_AFTER_S
    hurry: trio.Event = field(default_factory=trio.Event)
    openers: Openers = field(default_factory=Openers)

    @property
    def limits(self) -> Limits:
        """The limits of the constitution in force."""
        return self.enacted.content.constitution.limits

    def acting(self, row: SessionRow) -> Acting:
        """Return who acts in a session by the roster in force.

        A session of the channel `verify` only looks whether an agent works: it takes none of the agent's mail.
        """
        acting = resolve_acting(
            self.enacted.content.roster, owner=row.owner, agent_id=row.agent_id, session_id=row.id
        )
        if channel_of(row.session_key) == VERIFY:
            return msgspec.structs.replace(acting, mail_of=None)
        return acting

    def journal(self, row: SessionRow) -> Journal:
        """Return a journal for what a session does now."""
        return Journal(self.writer, self.clock, entity_id=row.session_key, actor=self.acting(row).actor)
