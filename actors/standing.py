"""Standing agents: each sleeps until mail arrives and wakes by itself (section 8 of the specification)."""

from __future__ import annotations

import random
from collections import deque
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any, Final

import structlog
import trio

from actors.directory import Directory, ask, new_future, run_turn
from actors.kernel import (
    Actor,
    ActorDeadError,
    ChildSpec,
    Intensity,
    Ref,
    Restart,
    Strategy,
    Supervisor,
    Tick,
)
from actors.ledger_writer import commit
from actors.service import Caller
from actors.session_messages import Init, RunTurn, Status, Subscribe
from actors.session_services import SessionServices
from protocol.acting import RUNNER, session_key_of
from protocol.errors import AgentRunnerError, RequestError
from protocol.roster import Identity, Roster
from store.clock import rfc3339
from store.database import StorageError
from store.mailbox import count_unread, reader_of, unread
from store.sessions import RecordWake, find_session

WINDOW_S: Final = 600.0
"""The span in which wake-ups are counted."""

BACK_OFF_FIRST_S: Final = 5.0
BACK_OFF_MAX_S: Final = 300.0
SPREAD_S: Final = 5.0
"""Over how long the agents come back that waited for the model server."""

FAILURES_MAX: Final = 6
"""An agent whose wake-ups failed so often in a row is parked until someone looks."""

NOT_RECORDED_S: Final = 30.0
"""How long a wake-up waits that the disk did not let begin."""

NOT_ITS_FAULT: Final = frozenset(
    {"shutting_down", "rate_limited", "agent_frozen", "queue_full", "backend_overloaded"}
)
"""Answers that put a wake-up off and say nothing against the agent."""

_CALLER: Final = Caller(RUNNER, "standing", authenticated=True)
_log = structlog.get_logger("standing")


@dataclass(frozen=True, slots=True)
class LookForMail:
    """Something may have arrived: mail, or a free moment of the session. The tick of a heartbeat says the same."""


@dataclass(frozen=True, slots=True)
class Unpark:
    """Let a parked agent try again; the answer is whether it was parked."""


@dataclass(slots=True)
class StandingMemory:
    """What outlives an incarnation: wake-ups in the window, failures in a row, what is held back."""

    id: str
    wakes: deque[float] = field(default_factory=deque)
    failures: int = 0
    not_before: float = 0.0
    parked: bool = False
    held_back: int = 0
    last_problem: str | None = None


class StandingAgent(Actor):
    """One standing agent: wakes its session when there is mail, as often as the limits allow."""

    mailbox_size_max = None  # a wake-up holds nothing, and none may be lost

    def __init__(
        self,
        memory: StandingMemory,
        services: Callable[[], SessionServices],
        directory: Callable[[], Directory],
        began_at: str,
    ) -> None:
        super().__init__()
        self._memory = memory
        self._services = services()
        self._directory = directory()
        self._began_at = began_at
        self._waking = False
        self._timer: trio.CancelScope | None = None

    async def on_start(self) -> None:
        """Open the persistent session, if there is none yet, and look for what arrived while nobody was there."""
        self.start_task(self._settle_in, name="settle in")

    async def _settle_in(self) -> None:
        if find_session(self._services.database, session_key_of(self._memory.id)) is None:
            try:
                await self._open_session()
            except AgentRunnerError as error:
                self._note_failure(error)
        self.ref.tell(LookForMail())

    async def _open_session(self) -> Ref:
        ref = await self._directory.open(session_key_of(self._memory.id))
        await ask(ref, Init(_CALLER, self._memory.id, mode="persistent"))
        return ref

    async def on_receive(self, message: Any) -> Any:
        """Wake the session if there is mail and nothing stands against it."""
        if isinstance(message, Unpark):
            was_parked = self._memory.parked
            self._memory.parked, self._memory.failures, self._memory.not_before = False, 0, 0.0
            self._consider()
            return was_parked
        if isinstance(message, (LookForMail, Tick)):
            self._consider()
            return None
        raise TypeError(f"a standing agent takes no {type(message).__name__}")

    def _identity(self) -> Identity | None:
        return self._services.enacted.content.roster.get(self._memory.id)

    def _consider(self) -> None:
        identity = self._identity()
        if self._waking or self._memory.parked or identity is None or identity.state != "live":
            return
        now = self._services.clock.stamp()
        waiting = count_unread(self._services.database, reader_of(identity), now)
        if waiting == 0:
            self._memory.held_back = 0
            return
        found = unread(self._services.database, reader_of(identity), now)
        # Mail from before this start is a re-delivery, or waited while the daemon was down: it is not counted.
        is_counted = any(mail.sent_at >= self._began_at for mail in found)
        delay = self._delay_s(waiting, is_counted=is_counted)
        if delay > 0:
            self._look_again_in(delay)
            return
        self._waking = True
        self.start_task(self._wake, waiting, is_counted, name="wake")

    def _delay_s(self, messages: int, *, is_counted: bool) -> float:
        """Return the seconds until the next wake-up is allowed."""
        memory, moment = self._memory, trio.current_time()
        left_alone_s = self._services.runtime.retry_in_s()
        if left_alone_s > 0:
            # Not all at once: the first one finds out for the others whether the model server is back.
            return left_alone_s + random.uniform(0.0, SPREAD_S)
        if memory.not_before > moment:
            return memory.not_before - moment
        while memory.wakes and memory.wakes[0] <= moment - WINDOW_S:
            memory.wakes.popleft()
        limit = self._services.enacted.content.constitution.limits.wakeups_per_10_min
        if is_counted and len(memory.wakes) >= limit:
            if memory.held_back == 0:
                _log.warning("wake-ups held back", agent=memory.id, messages=messages, limit=limit)
            memory.held_back = messages
            return memory.wakes[-limit] + WINDOW_S - moment
        memory.held_back = 0
        return 0.0

    def _look_again_in(self, delay_s: float) -> None:
        if self._timer is not None:
            self._timer.cancel()
        self._timer = self.start_task(self._sleep, delay_s, name="look again")

    async def _sleep(self, delay_s: float) -> None:
        await trio.sleep(delay_s)
        self.ref.tell(LookForMail())

    async def _wake(self, waiting: int, is_counted: bool) -> None:  # noqa: FBT001 - a task takes no keywords
        again = True
        try:
            again = await self._run_wake_turn(waiting, is_counted=is_counted)
            self._memory.failures = 0
            self._memory.last_problem = None
        except AgentRunnerError as error:
            self._note_failure(error)
        finally:
            self._waking = False
        if again:
            self.ref.tell(LookForMail())

    async def _run_wake_turn(self, waiting: int, *, is_counted: bool) -> bool:
        """Run a turn in the idle session; return whether to look again at once (not while it is busy)."""
        ref = await self._open_session()
        await ask(ref, Subscribe(self._session_is_idle))
        state = await ask(ref, Status(_CALLER))
        if state["state"] in ("running", "cancelled"):
            return False
        if is_counted:
            self._memory.wakes.append(trio.current_time())
        moment = rfc3339(self._services.clock.moment())
        await commit(self._services.writer, RecordWake(self._memory.id, moment))
        prompt = f"You have {waiting} unread mailbox message(s). Check your mailbox and act on any pending messages."
        message = RunTurn(
            _CALLER,
            [{"role": "user", "content": prompt}],
            None,
            None,
            lambda _event: None,
            new_future(),
        )
        await run_turn(ref, message)
        return True

    def _session_is_idle(self) -> None:
        # The session keeps this call longer than an agent that was frozen lives, and its fault is not the session's.
        with suppress(ActorDeadError):
            self.ref.tell(LookForMail())

    def _note_failure(self, error: AgentRunnerError) -> None:
        memory = self._memory
        memory.last_problem = error.message if isinstance(error, RequestError) else str(error)
        left_alone_s = self._services.runtime.retry_in_s()
        if left_alone_s > 0:
            # The model server is down for everybody; the wait for it is asked for anew at the next look.
            memory.not_before = 0.0
            return
        if isinstance(error, RequestError) and error.code in NOT_ITS_FAULT:
            memory.not_before = trio.current_time() + BACK_OFF_MAX_S
            return
        if isinstance(error, StorageError):
            # A full disk would park every agent that has mail, and they would stay so when there is room again.
            memory.not_before = trio.current_time() + NOT_RECORDED_S
            return
        memory.failures += 1
        delay = min(BACK_OFF_MAX_S, BACK_OFF_FIRST_S * 2 ** (memory.failures - 1))
        memory.not_before = trio.current_time() + delay
        memory.parked = memory.failures >= FAILURES_MAX
        _log.error(
            "wake-up failed",
            agent=memory.id,
            problem=memory.last_problem,
            failures=memory.failures,
            parked=memory.parked,
        )


@dataclass(frozen=True, slots=True)
class RosterEnacted:
    """The roster that is in force now."""

    roster: Roster


class StandingSupervisor(Supervisor):
    """A permanent child for each standing agent; one bad agent cannot take the others with it."""

    def __init__(self, roster: Roster, make: Callable[[str], Actor]) -> None:
        self._make = make
        super().__init__(
            [self._spec(identity.id) for identity in roster.standing()],
            strategy=Strategy.ONE_FOR_ONE,
        )

    def _spec(self, agent: str) -> ChildSpec:
        return ChildSpec(
            id=agent,
            factory=lambda: self._make(agent),
            restart=Restart.PERMANENT,
            shutdown_s=5.0,
            intensity=Intensity(max_restarts=5, within_s=60.0),
            park=True,
        )

    async def on_receive(self, message: Any) -> Any:
        """Follow the roster: new agents come to life, those that are gone or frozen end."""
        if not isinstance(message, RosterEnacted):
            return await super().on_receive(message)
        wanted = {identity.id for identity in message.roster.standing()}
        present = set(self.ref.children or {})
        for agent in present - wanted:
            await self.terminate_child(agent)
            self._delete(self._find(agent))
        for agent in sorted(wanted - present):
            await self.start_child(self._spec(agent))
        return None
