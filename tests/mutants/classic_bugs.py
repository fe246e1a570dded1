"""The fifteen seeded bugs of the kernel that a study of actor libraries found hard to see."""

from __future__ import annotations

from typing import Final

from tests.mutants.mutant import Mutant

CHILD: Final = "actors/kernel/child.py"
INCARNATION: Final = "actors/kernel/incarnation.py"
REF: Final = "actors/kernel/ref.py"
SUPERVISOR: Final = "actors/kernel/supervisor.py"
SYSTEM: Final = "actors/kernel/system.py"

FIFTEEN: Final = (
    Mutant(
        "stale generation ignored",
        SUPERVISOR,
        "            and child.generation == exited.generation\n",
        "",
    ),
    Mutant(
        "intensity off by one",
        CHILD,
        "return self.count(now) > self.intensity.max_restarts",
        "return self.count(now) >= self.intensity.max_restarts",
    ),
    Mutant(
        "window never slides",
        CHILD,
        "while self.times and now - self.times[0] > self.intensity.within_s:",
        "while self.times and now < self.times[0]:",
    ),
    Mutant(
        "rest_for_one restarts earlier siblings",
        SUPERVISOR,
        "children = children[children.index(child) :]",
        "children = children[max(0, children.index(child) - 1) :]",
    ),
    Mutant(
        "crashed message redelivered",
        INCARNATION,
        "        self._orphan_current()\n        if actor.drains:",
        "        if self.fault is not None and self.current is not None and self.current.reply_to is None:\n"
        "            self.ref.mailbox.lane.appendleft(self.current)\n"
        "        self._orphan_current()\n        if actor.drains:",
    ),
    Mutant(
        "mailbox cleared on restart",
        REF,
        '        """Open the address again before a new incarnation."""\n',
        '        """Open the address again before a new incarnation."""\n        self.mailbox.lane.clear()\n',
    ),
    Mutant(
        "abandoned ask executed",
        INCARNATION,
        "                if future is not None and future.done:\n                    continue",
        "                if future is not None and future.done and not future.abandoned:\n                    continue",
    ),
    Mutant(
        "start-order shutdown",
        SUPERVISOR,
        "        for child in reversed(list(self._children.values())):\n"
        "            try:\n                await self._terminate(child)",
        "        for child in list(self._children.values()):\n"
        "            try:\n                await self._terminate(child)",
    ),
    Mutant(
        "shutdown deadline ignored",
        SYSTEM,
        "with trio.CancelScope(deadline=self.now() + deadline_s):",
        "with trio.CancelScope():",
    ),
    Mutant(
        "transient restarted on a normal exit",
        SUPERVISOR,
        "child.spec.restart is Restart.TRANSIENT and not reason.is_normal",
        "child.spec.restart is Restart.TRANSIENT and reason.kind is not ExitKind.SHUTDOWN",
    ),
    Mutant(
        "LIFO mailbox",
        INCARNATION,
        "                envelope = lane.popleft()\n                if mailbox.waiting:",
        "                envelope = lane.pop()\n                if mailbox.waiting:",
    ),
    Mutant(
        "registry leak",
        SUPERVISOR,
        "if self.forgets_ended or child.spec.restart is Restart.TEMPORARY:",
        "if child.spec.restart is Restart.TEMPORARY:",
    ),
    Mutant(
        "killed asker unanswered",
        INCARNATION,
        "        if self.current is not None and self.current.reply_to is not None:\n"
        "            self.current.reply_to.orphan",
        "        if self.current is not None and self.current.reply_to is not None and not self.killed:\n"
        "            self.current.reply_to.orphan",
    ),
    Mutant(
        "back-off blocks the supervisor",
        SUPERVISOR,
        'self.start_task(self._wait_backoff, delay_s, tickets, name="back-off")',
        "await self._wait_backoff(delay_s, tickets)",
    ),
    Mutant(
        "incarnations overlap",
        INCARNATION,
        "                    await self._run_hook(actor.on_stop)",
        "                    self.ref.system.nursery.start_soon(self._run_hook, actor.on_stop)",
    ),
)
