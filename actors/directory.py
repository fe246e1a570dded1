"""The directory: from a session key to its actor, which is started when it is first needed."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, Final, cast

import structlog

from actors.journal import Journal
from actors.kernel import (
    ActorDeadError,
    ChildExistsError,
    ChildSpec,
    ChildStartError,
    DynamicSupervisor,
    Future,
    Intensity,
    MailboxFullError,
    Ref,
    Restart,
    SupervisorRef,
    TooManyChildrenError,
    UnknownChildError,
)
from actors.recovery import record_interruption
from actors.runtime.base import Ceiling
from actors.session_messages import RunTurn, SessionMemory
from actors.session_services import SessionServices
from actors.sessions import SessionActor
from protocol.acting import resolve_acting
from protocol.errors import AgentRunnerError, RequestError
from store.damage import damage_of
from store.sessions import continuable_turns, find_session, find_session_by_id, running_turns
from store.unit_of_work import ConflictError

SESSIONS_MAX: Final = 10_000
"""At most so many sessions have an actor, or have left memory and keep their place."""

CRASHES: Final = Intensity(max_restarts=5, within_s=60.0)
"""A session that crashes more often than this is parked until it is next asked for something."""

SHUTDOWN_S: Final = 10.0
"""How long a running turn may go on when the daemon is ending."""

_log = structlog.get_logger("sessions")


@dataclass(frozen=True, slots=True)
class CutOff:
    """A turn that a crash cut off and that can be gone on with; `ran` says which of its calls had run."""

    session_key: str
    turn_id: str
    ran: str


class SessionSupervisor(DynamicSupervisor):
    """Keeps the session actors; before the first one, it records what a crash cut off, and adds it to `cut_off`."""

    def __init__(self, services: Callable[[], SessionServices], cut_off: list[CutOff] | None = None) -> None:
        super().__init__(intensity=Intensity(max_restarts=50, within_s=10.0), max_children=SESSIONS_MAX)
        self._services = services
        self._cut_off = cut_off

    async def on_start(self) -> None:
        """Recover: every turn that is recorded as running was cut off."""
        services = self._services()
        continuable = continuable_turns(services.database)
        for turn in running_turns(services.database):
            session = find_session_by_id(services.database, turn.session_id)
            if session is None:
                continue
            acting = resolve_acting(
                services.enacted.content.roster,
                owner=session.owner,
                agent_id=session.agent_id,
                session_id=session.id,
            )
            journal = Journal(
                services.writer, services.clock, entity_id=session.session_key, actor=acting.actor
            )
            interruption = record_interruption(
                services.database,
                journal,
                session,
                turn,
                agent=acting.agent or acting.agent_id,
                tell=acting.mail_of,
            )
            try:
                await journal.commit()
            except ConflictError:
                continue  # a session that waited for the disk has recorded its end meanwhile
            if self._cut_off is not None and turn.id in continuable:
                self._cut_off.append(CutOff(session.session_key, turn.id, interruption.ran))
            _log.warning(
                "turn was interrupted",
                session=session.session_key,
                turn=turn.id,
                unknown=interruption.unknown,
            )


class SessionGoneError(RequestError):
    """The actor of a session ended before it answered; a fresh one may be asked."""

    def __init__(self) -> None:
        super().__init__("internal", "the session's actor failed; see the log, then try again")


class Directory:
    """Finds and starts session actors by key."""

    def __init__(
        self, supervisor: Callable[[], SupervisorRef], services: Callable[[], SessionServices]
    ) -> None:
        self._supervisor = supervisor
        self._services = services

    async def open(self, key: str, *, ceiling: Ceiling | None = None) -> Ref:
        """Return the actor of a key, started if need be; raises RequestError where it, or no more, can be started."""
        found = await self._living(key)
        if found is not None:
            return found
        memory = SessionMemory(key, ceiling=ceiling)
        services = self._services()
        spec = ChildSpec(
            id=key,
            factory=lambda: SessionActor(memory, services),
            restart=Restart.TRANSIENT,
            shutdown_s=SHUTDOWN_S,
            intensity=CRASHES,
            park=True,
        )
        try:
            return await self._supervisor().start_child(spec)
        except ChildExistsError as error:
            # Somebody else was quicker; messages wait in its mailbox until it has started.
            return cast("Ref", error.ref)
        except ChildStartError as error:
            why = error.__cause__
            if isinstance(why, AgentRunnerError):
                raise RequestError("internal", f"the session cannot be started: {why}") from error
            damage = damage_of(error)
            if damage is not None:
                raise RequestError("internal", f"the session cannot be read: {damage}") from error
            raise SessionGoneError from error
        except TooManyChildrenError as error:
            raise RequestError(
                "queue_full", f"{SESSIONS_MAX} sessions are open; close some, or wait"
            ) from error

    async def _living(self, key: str) -> Ref | None:
        """Return the actor of a key, if it has one; one that was parked after crashes gets another chance first."""
        found = self._supervisor().child(key)
        if found is None or not found.is_alive():
            return None
        if found.state == "parked":
            with suppress(UnknownChildError):
                await self._supervisor().retry(key)
        return found

    async def find(self, key: str) -> Ref | None:
        """Return the actor of a key that has a session, or None where there is no such session."""
        found = await self._living(key)
        if found is not None:
            return found
        if find_session(self._services().database, key) is None:
            return None
        return await self.open(key)

    async def ask(self, key: str, message: Any, *, create: bool = False) -> Any:
        """Ask the session of a key, once more where its actor was just leaving.

        Raises RequestError: `unknown_session` where there is none (unless it is to be created), or what it refused.
        """
        try:
            return await ask(await self._require(key, create=create), message)
        except SessionGoneError:
            return await ask(await self._require(key, create=create), message)

    async def _require(self, key: str, *, create: bool) -> Ref:
        ref = await (self.open(key) if create else self.find(key))
        if ref is None:
            raise RequestError("unknown_session", f"there is no session {key!r}; open one with session.init")
        return ref

    def live(self) -> list[Ref]:
        """Return the addresses of the sessions that have an actor now; not of those that have left memory."""
        return [ref for ref in self._all() if ref.state != "passive"]

    def count_passive(self) -> int:
        """Return how many sessions have left memory until somebody asks for them."""
        return sum(ref.state == "passive" for ref in self._all())

    def _all(self) -> list[Ref]:
        return [child.ref for child in (self._supervisor().children or {}).values()]


async def ask(ref: Ref, message: Any) -> Any:
    """Ask a session; a fault of the actor becomes an `internal` error."""
    try:
        return await ref.ask(message)
    except ActorDeadError as error:
        raise SessionGoneError from error
    except MailboxFullError as error:
        raise RequestError("queue_full", "too much waits before this session; try again later") from error


async def run_turn(ref: Ref, message: RunTurn) -> tuple[str, str]:
    """Have a session run a turn and wait for its end: `(status, turn_id)`; raises the RequestError it failed with.

    When this is cancelled the turn goes on: only nobody waits for it any more. The session first says that it took the
    turn: a message that is only told is lost where the actor leaves at that moment.
    """
    await ask(ref, message)
    answer: tuple[str, str] = await message.done.wait()
    return answer


def new_future() -> Future:
    """Return a future to put into a RunTurn."""
    return Future()
