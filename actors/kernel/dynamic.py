"""The supervisor of many like children that come and go."""

import logging
import random
from typing import ClassVar

import trio

from actors.kernel.child import Backoff, ChildState, Intensity
from actors.kernel.errors import ChildStuckError
from actors.kernel.signals import ExitKind
from actors.kernel.supervisor import Supervisor

__all__ = ["DynamicSupervisor"]

logger = logging.getLogger("actors.kernel")


class DynamicSupervisor(Supervisor):
    """Many like children, by id, in no order: they restart one for one and are forgotten once they have ended.

    On shutdown all are asked to stop at once, the last started first, and each has its own deadline.
    """

    forgets_ended: ClassVar[bool] = True

    def __init__(
        self,
        *,
        intensity: Intensity | None = None,
        backoff: Backoff | None = None,
        max_children: int | None = None,
        rng: random.Random | None = None,
    ) -> None:
        super().__init__(intensity=intensity, backoff=backoff, max_children=max_children, rng=rng)

    async def _stop_children(self) -> None:
        begun_at = trio.current_time()
        children = list(self._children.values())
        for child in reversed(children):
            child.state = ChildState.WAITING
            if child.ref.incarnation is not None and child.spec.shutdown_s != 0:
                child.ref.request_stop(ExitKind.SHUTDOWN)
        # By deadline, and cancelled without waiting, so that no child overruns its own because of another.
        children.sort(key=lambda child: child.ref.system.shutdown_s(child.ref, child.spec.shutdown_s))
        for child in children:
            incarnation = child.ref.incarnation
            if incarnation is None or incarnation.stuck:
                continue
            left_s = child.ref.system.shutdown_s(child.ref, child.spec.shutdown_s)
            with trio.CancelScope(deadline=begun_at + left_s):
                await incarnation.wait_ended()
            if child.ref.incarnation is incarnation:
                incarnation.kill()
        for child in children:
            try:
                await child.ref.system.shut_down(child.ref, 0)
            except ChildStuckError:
                logger.exception("%s does not end", child.ref.path)

    async def _kill_children(self) -> None:
        for child in self._children.values():
            if child.ref.incarnation is not None:
                child.ref.incarnation.kill()
        await super()._kill_children()

    def _let_go(self) -> None:
        """Bury the children: their specs are not known to the next incarnation."""
        for child in list(self._children.values()):
            child.ref.bury()
        self._children.clear()
