"""The actor that looks after the others: who is stuck, and whether the loop turns."""

import logging
import math
from typing import ClassVar

import trio

from actors.kernel.actor import Actor
from actors.kernel.loop_watch import LoopWatch
from actors.kernel.overdue import Overdue, activity, overdue_actors, place_of

__all__ = ["Watchdog"]

logger = logging.getLogger("actors.kernel")


class Watchdog(Actor):
    """Looks at the tree every `interval_s` seconds and says who is stuck: once, and again when that is over.

    Stuck is who has been in one message, in its start or in its end for `stuck_after_s` seconds, or for what
    `Actor.stuck_after_s` of its class says. What it found stands in `System.overdue` and in the tree. `stall_after_s`
    is how long the loop itself may not turn (see LoopWatch, which looks every `loop_interval_s` seconds); None leaves
    the loop unwatched, as a test on a virtual clock may want it.

    OTP has no such process; `sys:get_status` and the observer show the same when somebody looks.
    """

    stuck_after_s: ClassVar[float | None] = math.inf  # it handles no messages

    def __init__(
        self,
        *,
        interval_s: float = 5.0,
        stuck_after_s: float = 30.0,
        stall_after_s: float | None = 5.0,
        loop_interval_s: float = 1.0,
    ) -> None:
        super().__init__()
        self._interval_s = interval_s
        self._default_s = stuck_after_s
        self._stall_after_s = stall_after_s
        self._loop_interval_s = loop_interval_s

    async def on_start(self) -> None:
        """Begin to look."""
        self.start_task(self._look_for_ever, name="look")
        if self._stall_after_s is not None:
            watch = LoopWatch(
                self.ref.system, stall_after_s=self._stall_after_s, interval_s=self._loop_interval_s
            )
            self.start_task(self._keep, watch, name="watch the loop")

    async def _keep(self, watch: LoopWatch) -> None:
        """Have the thread live exactly as long as this incarnation, also where that is killed."""
        watch.start()
        try:
            await trio.sleep_forever()
        finally:
            watch.end()

    async def _look_for_ever(self) -> None:
        while True:
            due = trio.current_time() + self._interval_s
            await trio.sleep_until(due)
            # Who looks very late was held up like everybody else: that was the loop, and no single actor.
            if trio.current_time() - due < self._interval_s:
                self.look()

    def look(self) -> None:
        """Compare who is stuck now with who was, and log what changed."""
        system = self.ref.system
        now = system.now()
        for ref, known in list(system.overdue.items()):
            if not known.still_holds(ref.incarnation):
                del system.overdue[ref]
                ended = ref.incarnation is None or ref.incarnation.generation != known.generation
                logger.warning(
                    "%s %s after about %.0f s in %s",
                    known.path,
                    "has ended" if ended else "goes on",
                    now - known.since,
                    known.what,
                )
        for ref, incarnation in overdue_actors(system.root, now, self._default_s):
            if ref not in system.overdue:
                what, place = activity(incarnation), place_of(incarnation)
                system.overdue[ref] = Overdue(
                    ref.path, what, incarnation.generation, incarnation.begun_at, place
                )
                logger.warning(
                    "%s is stuck: for %.0f s in %s, at %s", ref.path, now - incarnation.begun_at, what, place
                )
