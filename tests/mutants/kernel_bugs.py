"""Seeded bugs of the actor kernel; the first fifteen are those that a study of actor libraries found hard to see."""

from __future__ import annotations

from typing import Final

from tests.mutants.mutant import Mutant

ACTOR: Final = "actors/kernel/actor.py"
CHILD: Final = "actors/kernel/child.py"
INCARNATION: Final = "actors/kernel/incarnation.py"
MAILBOX: Final = "actors/kernel/mailbox.py"
REF: Final = "actors/kernel/ref.py"
SUPERVISOR: Final = "actors/kernel/supervisor.py"
SYSTEM: Final = "actors/kernel/system.py"
THREAD_ACTOR: Final = "actors/kernel/thread_actor.py"

FIFTEEN: Final = (
    Mutant(
        "stale generation ignored",
        SUPERVISOR,
        "            or child.generation != exited.generation\n",
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
        "children of a dynamic supervisor outlive it in the index",
        "actors/kernel/dynamic.py",
        "        self._children.clear()\n",
        "        pass\n",
    ),
)

ACTORS: Final = (
    Mutant(
        "ask cycle unseen",
        REF,
        "        if asker is self or self.asking:\n",
        "        if asker is self:\n",
    ),
    Mutant(
        "link cycle never settles",
        REF,
        "        if self.last_origin == signal.origin:\n            return\n",
        "",
    ),
    Mutant(
        "normal exit goes over a link",
        REF,
        "elif incarnation is not None and not signal.reason.is_normal and",
        "elif incarnation is not None and",
    ),
    Mutant(
        "monitor fires twice",
        REF,
        "                watcher.post_signal(down)\n",
        "                watcher.post_signal(down)\n                watcher.post_signal(down)\n",
    ),
    Mutant(
        "monitor of the dead waits for ever",
        REF,
        "            watcher.post_signal(Down(self, self.generation, ExitReason(ExitKind.NOT_ALIVE)))\n",
        "",
    ),
    Mutant(
        "burial leaves links behind",
        REF,
        "                partner.links.discard(self)\n",
        "                pass\n",
    ),
    Mutant(
        "dead letters not counted",
        REF,
        "            elif not envelope.is_signal:\n",
        "            elif envelope.is_signal:\n",
    ),
    Mutant(
        "DROP_OLD drops the newest",
        MAILBOX,
        "for index, envelope in enumerate(self.lane):",
        "for index, envelope in reversed(list(enumerate(self.lane))):",
    ),
    Mutant(
        "asker of a dropped question unanswered",
        REF,
        "                oldest.reply_to.orphan(MailboxFullError(self.path, mailbox.size_max))",
        "                pass",
    ),
    Mutant(
        "control lane bounded",
        MAILBOX,
        '        """Post what bypasses the bound and overtakes the messages."""\n',
        '        """Post what bypasses the bound and overtakes the messages."""\n'
        "        if self.is_full:\n            return\n",
    ),
    Mutant(
        "signal bounded",
        REF,
        '        """Put a signal in line with the messages, beyond the bound; one for a dead actor is nobody\'s."""\n',
        '        """Put a signal in line with the messages, beyond the bound; one for a dead actor is nobody\'s."""\n'
        "        if self.mailbox.is_full:\n            return\n",
    ),
    Mutant(
        "waiting senders served last come first",
        MAILBOX,
        "            task, envelope = self.waiting.popitem(last=False)\n            self.lane.append(envelope)",
        "            task, envelope = self.waiting.popitem(last=True)\n            self.lane.append(envelope)",
    ),
    Mutant(
        "passivated actor loses its queue",
        REF,
        '        self.condition = "passive"\n        self.mailbox.room = -1\n',
        '        self.condition = "passive"\n        self.mailbox.room = -1\n        self.mailbox.lane.clear()\n',
    ),
    Mutant(
        "busy task does not keep its actor in memory",
        INCARNATION,
        "elif patience_s is not None and not self.tasks and not self.pending:",
        "elif patience_s is not None and not self.pending:",
    ),
    Mutant(
        "parked actor keeps its askers waiting",
        REF,
        "        for envelope in self.mailbox.take_asks():\n",
        "        for envelope in ():\n",
    ),
    Mutant(
        "reply of an old incarnation accepted",
        INCARNATION,
        "        for future in list(self.pending or ()):\n",
        "        for future in ():\n",
    ),
    Mutant(
        "kill runs on_stop",
        INCARNATION,
        "        if actor.cleans_up and not self.killed:\n            with trio.CancelScope() as self.scope:",
        "        if actor.cleans_up:\n            with trio.CancelScope() as self.scope:",
    ),
    Mutant(
        "child tasks outlive their incarnation",
        INCARNATION,
        "        if self.tasks:\n            await self._reap_tasks()\n",
        "",
    ),
    Mutant(
        "crash of a child task unseen",
        INCARNATION,
        "        except BaseException as exception:  # noqa: BLE001  # as in run()\n            self.fail(exception)\n"
        "        finally:",
        "        except BaseException as exception:  # noqa: BLE001  # as in run()\n            _ = exception\n"
        "        finally:",
    ),
    Mutant(
        "stop that was obeyed is remembered",
        INCARNATION,
        "        if self.leaving or ref.stop_kind is ExitKind.SHUTDOWN:\n",
        "        if ref.stop_kind is ExitKind.SHUTDOWN:\n",
    ),
    Mutant(
        "checkpoint every N messages removed",
        INCARNATION,
        "                if batch >= BATCH_SIZE:\n",
        "                if batch < 0:\n",
    ),
    Mutant(
        "thread's tell lost at the burial",
        REF,
        '        if self.condition == "dead":\n            self._return_letters(None)\n        elif',
        '        if self.condition == "dead":\n            pass\n        elif',
    ),
    Mutant(
        "thread actor's crash unseen",
        THREAD_ACTOR,
        "            self._task = None\n            reschedule(task, result)\n\n        def abort",
        "            self._task = None\n            reschedule(task, outcome.Value(None))\n\n        def abort",
    ),
    Mutant(
        "batch of a crashed thread actor unanswered",
        INCARNATION,
        "        for future in self.batch or ():\n",
        "        for future in ():\n",
    ),
)

KERNEL: Final = (*FIFTEEN, *SUPERVISION, *ACTORS)
