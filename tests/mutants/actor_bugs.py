"""Further seeded bugs of single actors: messages, signals, tasks, threads, timers."""

from __future__ import annotations

from typing import Final

from tests.mutants.mutant import Mutant

ACTOR: Final = "actors/kernel/actor.py"
INCARNATION: Final = "actors/kernel/incarnation.py"
MAILBOX: Final = "actors/kernel/mailbox.py"
REF: Final = "actors/kernel/ref.py"
THREAD_ACTOR: Final = "actors/kernel/thread_actor.py"

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
        "        for envelope in self.mailbox.take_asks():\n            if envelope.reply_to is not None:\n"
        "                envelope.reply_to.orphan(self._parked_error())\n",
        "",
    ),
    Mutant(
        "member of a group that restarts keeps its askers waiting",
        REF,
        "        self.mailbox.room = -1\n        for envelope in self.mailbox.take_asks():\n"
        "            if envelope.reply_to is not None:\n"
        "                envelope.reply_to.orphan(dead_error(self.path))\n",
        "        return\n",
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

TIMERS_TESTS: Final = ("tests/actors/kernel/test_timers.py",)

TIMERS: Final = (
    Mutant(
        "ticks of one timer overlap",
        "actors/kernel/timers.py",
        "        if timer.name in self._address.running:\n            return math.inf  # its end wakes the task\n",
        "",
        TIMERS_TESTS,
        machine=False,
    ),
    Mutant(
        "missed ticks all made up for",
        "actors/kernel/timer.py",
        "self.due_at + self.interval_s * (self.missed(now) + 1)",
        "self.due_at + self.interval_s",
        TIMERS_TESTS,
        machine=False,
    ),
    Mutant(
        "timer advanced before its tick is done",
        "actors/kernel/timers.py",
        "        entry.failures += 1\n        delay_s",
        "        entry.failures += 1\n"
        "        if entry.timer.interval_s is not None:\n"
        "            entry.timer = entry.timer.advanced(self._now())\n        delay_s",
        TIMERS_TESTS,
        machine=False,
    ),
    Mutant(
        "timer done is never saved",
        "actors/kernel/timers.py",
        "                entry.timer = entry.timer.advanced(self._now())\n            self._save_soon()\n",
        "                entry.timer = entry.timer.advanced(self._now())\n",
        TIMERS_TESTS,
        machine=False,
    ),
    Mutant(
        "stuck actor not named",
        "actors/kernel/watchdog.py",
        "            if ref not in system.overdue:\n",
        "            if ref in system.overdue:\n",
        ("tests/actors/kernel/test_watchdog.py",),
        machine=False,
    ),
)
