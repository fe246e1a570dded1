"""What happens by the clock: every agent's heartbeat and the retention, as timers that outlive the daemon."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final

import structlog
import trio

from actors.court import Enacted
from actors.kernel import Actor, ActorDeadError, Timer, TimersRef
from actors.kernel.timer import INTERVAL_MAX_S, INTERVAL_MIN_S
from actors.retention import INTERVAL_S as RETENTION_INTERVAL_S
from actors.standing import RosterEnacted
from protocol.errors import AgentRunnerError
from store.timers import HEARTBEAT, RETENTION

AGAIN_S: Final = 30.0
"""How long after the timers could not be stored it is tried again."""

_log = structlog.get_logger("schedule")


class Schedule(Actor):
    """Keeps the timers of the runner: one for the retention, and one for each standing agent of the roster in force.

    The tick of an agent has it look for mail that woke nobody, every `heartbeat_s` seconds; None is never. What was
    stored by an earlier run is due when it was; a new agent's first tick is an interval away, and the first retention
    comes at once. `now` is the wall clock in Unix seconds.
    """

    def __init__(
        self,
        timers: Callable[[], TimersRef],
        enacted: Enacted,
        heartbeat_s: float | None,
        now: Callable[[], float],
    ) -> None:
        super().__init__()
        self._timers = timers
        self._enacted = enacted
        self._heartbeat_s = (
            None if heartbeat_s is None else min(max(heartbeat_s, INTERVAL_MIN_S), INTERVAL_MAX_S)
        )
        self._now = now
        self._changed = trio.Event()

    async def on_start(self) -> None:
        """Begin to keep them, in a task: a disk that is full must not keep the daemon from starting."""
        self.start_task(self._keep_for_ever, name="keep timers")

    async def on_receive(self, message: Any) -> Any:
        """Follow the roster."""
        if not isinstance(message, RosterEnacted):
            raise TypeError(f"the schedule takes no {type(message).__name__}")
        self._changed.set()

    async def _keep_for_ever(self) -> None:
        while True:
            self._changed = trio.Event()
            try:
                await self._timers().keep_timers(HEARTBEAT, self._heartbeats())
                await self._timers().keep_timers(
                    RETENTION, [Timer(RETENTION, RETENTION, self._now(), RETENTION_INTERVAL_S)]
                )
            except (AgentRunnerError, ActorDeadError) as error:
                _log.warning("timers not stored", problem=str(error), again_in_s=AGAIN_S)
                with trio.move_on_after(AGAIN_S):
                    await self._changed.wait()
            else:
                await self._changed.wait()

    def _heartbeats(self) -> list[Timer]:
        interval_s = self._heartbeat_s
        if interval_s is None:
            return []
        due_at = self._now() + interval_s
        return [
            Timer(f"{HEARTBEAT}{identity.id}", f"standing/{identity.id}", due_at, interval_s)
            for identity in self._enacted.content.roster.standing()
        ]
