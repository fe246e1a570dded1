"""Further seeded bugs of supervisors and of the end of a tree."""

from __future__ import annotations

from typing import Final

from tests.mutants.mutant import Mutant

CHILD: Final = "actors/kernel/child.py"
SUPERVISOR: Final = "actors/kernel/supervisor.py"
SYSTEM: Final = "actors/kernel/system.py"

SUPERVISION: Final = (
    Mutant(
        "edge of the window left out",
        CHILD,
        "while self.times and now - self.times[0] > self.intensity.within_s:",
        "while self.times and now - self.times[0] >= self.intensity.within_s:",
    ),
    Mutant(
        "own window shared with the siblings",
        SUPERVISOR,
        "        if spec.intensity is None and not spec.park:\n",
        "        if self._window.intensity is own or spec.park:\n",
    ),
    Mutant(
        "escalation swallowed",
        SUPERVISOR,
        "            raise RestartIntensityError(spec.id, own.max_restarts, own.within_s) from reason.exception",
        "            return",
    ),
    Mutant(
        "significant child's end ignored",
        SUPERVISOR,
        "        if not child.spec.significant or self.auto_shutdown is AutoShutdown.NEVER:",
        "        if not child.spec.significant or self.auto_shutdown is not AutoShutdown.ALL_SIGNIFICANT:",
    ),
    Mutant(
        "all significant taken for any",
        SUPERVISOR,
        "            other.state is ChildState.ENDED for other in others",
        "            other is not None for other in others",
    ),
    Mutant(
        "ended child comes back with its group",
        SUPERVISOR,
        "return [member for member in children if member.state in (ChildState.RUNNING, ChildState.WAITING)]",
        "return [setattr(member, 'state', ChildState.WAITING) or member for member in children]",
    ),
    Mutant(
        "temporary child restarted with its group",
        SUPERVISOR,
        "                if member.spec.restart is Restart.TEMPORARY:",
        "                if member.spec.restart is Restart.TEMPORARY and member.state is ChildState.ENDED:",
    ),
    Mutant(
        "old restart timer still counts",
        SUPERVISOR,
        "child.state is not ChildState.WAITING or child.ticket != ticket:",
        "child.state is not ChildState.WAITING:",
    ),
    Mutant(
        "first restart delayed",
        CHILD,
        "        if attempt <= 1:\n",
        "        if attempt < 1:\n",
    ),
    Mutant(
        "back-off never starts anew",
        SUPERVISOR,
        "child.attempts = 1 if now - child.started_at > own.within_s else child.attempts + 1",
        "child.attempts = child.attempts + 1",
    ),
    Mutant(
        "jitter ignored",
        CHILD,
        "return delay * (1 + self.jitter * (2 * rng.random() - 1))",
        "return delay",
    ),
    Mutant(
        "jitter not from the injected generator",
        SUPERVISOR,
        "self.rng or self.ref.system.rng",
        "random.Random()",
    ),
    Mutant(
        "retry keeps the full window",
        SUPERVISOR,
        "            child.window.clear()\n",
        "            pass\n",
    ),
    Mutant(
        "shutdown does not wait for a child",
        SYSTEM,
        "                await incarnation.wait_ended()\n        if ref.incarnation is incarnation:\n"
        "            incarnation.kill()",
        "                await trio.lowlevel.checkpoint()\n        if ref.incarnation is incarnation:\n"
        "            incarnation.kill()",
    ),
    Mutant(
        "outer cancellation reaches all at once",
        SYSTEM,
        "        with trio.CancelScope(shield=True):\n            async with trio.open_nursery() as self.nursery:",
        "        with trio.CancelScope():\n            async with trio.open_nursery() as self.nursery:",
    ),
    Mutant(
        "failed start leaves its siblings up",
        SUPERVISOR,
        "            if not await self._wait_started(child, started):\n                return\n\n    def _build",
        "            try:\n                await self._wait_started(child, started)\n"
        "            except ChildStartError:\n                return\n\n    def _build",
    ),
    Mutant(
        "children of a dynamic supervisor outlive it",
        "actors/kernel/dynamic.py",
        "            child.ref.bury()\n",
        "            pass\n",
    ),
)
