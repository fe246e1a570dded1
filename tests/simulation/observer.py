"""Watching a running tree from outside: every message, hook, task and end of every actor, whatever its class.

Nothing in the shipped code knows of this. The few doors of the kernel that everything passes (`System.launch`, the
ways to post, `System.report_exit`) are wrapped for the length of a run, and each actor's hooks on the actor itself.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any
from unittest.mock import patch

import trio

from actors.kernel import Actor, Future, Ref, Supervisor, System
from actors.kernel.child import Child
from actors.kernel.incarnation import Incarnation
from actors.kernel.mailbox import Envelope
from actors.kernel.signals import ChildExited, ExitKind
from actors.kernel.system import DeadLetters
from tests.simulation.trace import Trace
from tests.simulation.watching import Hook, Interference, Life, Watcher


@dataclass(slots=True)
class _Post:
    """A message on its way into a mailbox."""

    ref: Ref
    envelope: Envelope | None = None


class Observer:
    """Tells the watchers what happens, and knows who lives."""

    def __init__(self, trace: Trace, interference: Interference) -> None:
        self.trace = trace
        self.interference = interference
        self._hearers: dict[str, list[Callable[..., None]]] = {}
        self.lives: dict[Ref, Life] = {}  # the last of each address
        self.paths: dict[str, Life] = {}
        self.history: dict[str, list[Life]] = defaultdict(list)  # all of each path
        self.is_blind = False  # what a power cut leaves behind is nobody's affair
        self._post: _Post | None = None
        self._asks = 0

    def watch_with(self, *watchers: Watcher) -> None:
        """Let those hear of what happens."""
        events = [name for name in vars(Watcher) if not name.startswith("_")]
        self._hearers = {
            name: [
                getattr(watcher, name)
                for watcher in watchers
                if getattr(type(watcher), name) is not getattr(Watcher, name)
            ]
            for name in events
        }

    def begin_epoch(self) -> None:
        """Forget the tree before: a new process begins."""
        self.lives.clear()
        self.paths.clear()
        self.history.clear()
        self.is_blind = False

    def living(self) -> list[Life]:
        """Return the incarnations that have not ended, by path."""
        return [life for _, life in sorted(self.paths.items()) if not life.is_ended]

    def _tell(self, event: str, *args: Any, **named: Any) -> None:
        if not self.is_blind:
            for hear in self._hearers[event]:
                hear(*args, **named)

    @contextmanager
    def watching(self) -> Iterator[None]:
        """Watch every actor system that runs inside the block."""
        with ExitStack() as stack:
            for owner, name, wrap in (
                (System, "launch", self._wrap_launch),
                (System, "report_exit", self._wrap_report_exit),
                (Ref, "tell", self._wrap_tell),
                (Ref, "ask", self._wrap_ask),
                (Ref, "request_stop", self._wrap_request_stop),
                (Ref, "park", self._wrap_park),
                (Envelope, "__init__", self._wrap_envelope),
                (Incarnation, "kill", self._wrap_kill),
                (Incarnation, "take_batch", self._wrap_take_batch),
                (DeadLetters, "undelivered", self._wrap_dead_letter),
                (DeadLetters, "dropped", self._wrap_dropped_letter),
            ):
                stack.enter_context(patch.object(owner, name, wrap(getattr(owner, name))))
            yield

    # --- actors

    def _wrap_launch(self, launch: Any) -> Any:
        def watched(system: System, ref: Ref, actor: Actor, started: Future | None) -> None:
            path = ref.path
            before = self.paths.get(path)
            launch(system, ref, actor, started)
            life = Life(ref, path, actor, ref.generation, trio.current_time())
            self.lives[ref] = self.paths[path] = life
            self.history[path].append(life)
            self._instrument(life, actor)
            if not self.is_blind:
                self.trace.note("launch", life.name)
            self._tell("launched", life, before)

        return watched

    def _instrument(self, life: Life, actor: Any) -> None:
        for name in ("on_start", "on_drain", "on_stop", "on_failure"):
            setattr(actor, name, self._hook(life, name, getattr(actor, name)))
        actor.on_receive = self._receiver(life, actor.on_receive)
        actor.start_task = self._task_starter(life, actor.start_task)
        if self.interference.cleans_up(life.ref):
            actor.cleans_up = True
        if isinstance(actor, Supervisor):
            actor._child_exited = self._exit_handler(life, actor._child_exited)
            actor._terminate = self._terminator(life, actor._terminate)
            actor._retry = self._retrier(life, actor._retry)

    def _hook(self, life: Life, name: str, function: Hook) -> Hook:
        async def watched(*args: Any) -> Any:
            life.active[name] += 1
            self._tell("entered", life, name)
            try:
                return await self.interference.wrap(life, name, function, args)
            finally:
                life.active[name] -= 1

        return watched

    def _receiver(self, life: Life, function: Hook) -> Hook:
        async def watched(message: Any) -> Any:
            envelope = life.actor._require_incarnation().current
            assert envelope is not None
            life.active["on_receive"] += 1
            life.busy_since = trio.current_time()
            if not self.is_blind:
                self.trace.note("receive", f"{life.name} {type(message).__name__}")
            self._tell("delivered", life, envelope, envelope.reply_to)
            try:
                return await self.interference.wrap(life, "on_receive", function, (message,))
            finally:
                life.busy_s += trio.current_time() - life.busy_since
                life.busy_since = None
                life.active["on_receive"] -= 1

        return watched

    def _task_starter(self, life: Life, start_task: Any) -> Any:
        def started(function: Hook, *args: Any, name: str | None = None) -> trio.CancelScope:
            title = f"task {name or getattr(function, '__name__', 'task')}"

            async def watched(*args: Any) -> Any:
                life.active[title] += 1
                try:
                    return await self.interference.wrap(life, title, function, args)
                finally:
                    life.active[title] -= 1

            scope: trio.CancelScope = start_task(watched, *args, name=name)
            return scope

        return started

    def _wrap_report_exit(self, report_exit: Any) -> Any:
        def watched(system: System, exited: ChildExited) -> None:
            life = self.lives.get(exited.ref)
            if life is not None and life.generation == exited.generation:
                life.is_ended = True
                if not self.is_blind:
                    self.trace.note("exit", f"{life.name} {exited.reason}")
                self._tell("ended", life, exited)
            report_exit(system, exited)

        return watched

    def _wrap_kill(self, kill: Any) -> Any:
        def watched(incarnation: Incarnation) -> None:
            life = self.lives.get(incarnation.ref)
            if life is not None:
                life.is_killed = True
            kill(incarnation)

        return watched

    def _wrap_take_batch(self, take_batch: Any) -> Any:
        def watched(incarnation: Incarnation, size_max: int) -> list[Any]:
            before = [(envelope, envelope.reply_to) for envelope in incarnation.ref.mailbox.lane]
            messages: list[Any] = take_batch(incarnation, size_max)
            life = self.lives.get(incarnation.ref)
            taken = {id(message) for message in messages}
            for envelope, future in before:
                if id(envelope.message) in taken and life is not None:
                    self._tell("delivered", life, envelope, future)
            return messages

        return watched

    # --- supervisors

    def _exit_handler(self, life: Life, child_exited: Hook) -> Hook:
        async def watched(exited: ChildExited) -> Any:
            begun = trio.current_time()
            self._tell("exit_taken_up", life, exited)
            try:
                return await child_exited(exited)
            finally:
                self._tell("exit_settled", life, exited, took_s=trio.current_time() - begun)

        return watched

    def _terminator(self, life: Life, terminate: Hook) -> Hook:
        async def watched(child: Child) -> Any:
            self._tell("terminating", life, child)
            return await terminate(child)

        return watched

    def _retrier(self, life: Life, retry: Any) -> Any:
        def watched(child: Child) -> bool:
            self._tell("retried", life, child)
            return bool(retry(child))

        return watched

    def _wrap_request_stop(self, request_stop: Any) -> Any:
        def watched(ref: Ref, kind: ExitKind) -> None:
            self._tell("stop_requested", ref, kind)
            request_stop(ref, kind)

        return watched

    def _wrap_park(self, park: Any) -> Any:
        def watched(ref: Ref) -> None:
            if not self.is_blind:
                self.trace.note("park", ref.path)
            park(ref)
            self._tell("parked", ref)

        return watched

    # --- messages

    def _wrap_envelope(self, init: Any) -> Any:
        def watched(envelope: Envelope, *args: Any, **named: Any) -> None:
            init(envelope, *args, **named)
            post, self._post = self._post, None
            if post is not None:
                post.envelope = envelope
                self._tell("posted", post.ref, envelope)

        return watched

    def _wrap_tell(self, tell: Any) -> Any:
        def watched(ref: Ref, message: Any) -> None:
            post = self._post = _Post(ref)
            try:
                tell(ref, message)
            except BaseException:
                self._withdraw(post)
                raise
            finally:
                self._post = None

        return watched

    def _wrap_ask(self, ask: Any) -> Any:
        async def watched(ref: Ref, message: Any, timeout_s: float | None = None) -> Any:
            if timeout_s is not None:
                return await ask(ref, message, timeout_s)
            self._asks += 1
            number = self._asks
            self._tell("asked", number, ref, message)
            # The envelope is made before the first wait, so that no other post comes between.
            post = self._post = _Post(ref)
            well = False
            try:
                answer = await ask(ref, message)
                well = True
            except BaseException:
                self._withdraw(post)
                raise
            else:
                return answer
            finally:
                if self._post is post:
                    self._post = None
                self._tell("answered", number, well=well)

        return watched

    def _withdraw(self, post: _Post) -> None:
        if post.envelope is not None:
            self._tell("withdrawn", post.envelope)

    def _wrap_dead_letter(self, note: Any, *, was_dropped: bool = False) -> Any:
        def watched(letters: DeadLetters, ref: Ref, why: str, message: Any = None) -> None:
            note(letters, ref, why, message)
            self._tell("undeliverable", ref, message, was_dropped=was_dropped)

        return watched

    def _wrap_dropped_letter(self, note: Any) -> Any:
        return self._wrap_dead_letter(note, was_dropped=True)
