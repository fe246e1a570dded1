"""Invariants of lives: one at a time behind an address, restarts within their limits, an orderly end."""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass, field
from typing import Any

import trio

from actors.kernel import DynamicSupervisor, Ref, RestartIntensityError, Strategy, Supervisor
from actors.kernel.child import KILL_GRACE_S, Child, ChildState, Intensity, Restart
from actors.kernel.signals import ChildExited, ExitKind
from tests.simulation.observer import Observer
from tests.simulation.trace import Trace
from tests.simulation.watching import Life, Watcher

EPSILON_S = 1e-6

OVERLAP = "one incarnation of an address at a time"
REAPED = "an end is reported when nothing of it runs"
START_ORDER = "children start in order"
STOP_ORDER = "children stop in reverse"
GROUP = "only the rest of the group is restarted"
DEADLINE = "a stop ends by its deadline"
STAYS_DOWN = "who ended for good stays down"
INTENSITY = "no more restarts than allowed"
PARKED = "parked when over the limit, and not below"
ESCALATION = "a supervisor gives up when over the limit, and not below"
BACK_OFF = "a restart comes after its back-off, in time"
UNHINDERED = "back-off delays no sibling"
FORGOTTEN = "who has ended is not registered"


@dataclass(slots=True)
class Due:
    """What is to become of a child whose incarnation ended: `restart`, `park`, `escalate` or `down`."""

    what: str
    since: float
    earliest_s: float = 0.0
    latest_s: float = 0.0
    busy_s: float = 0.0


@dataclass(slots=True)
class Account:
    """The restarts of one child, counted anew from what is seen."""

    times: list[float] = field(default_factory=list)
    attempts: int = 0


class Lifecycle(Watcher):
    """Holds every start, restart and end to what the kernel promises."""

    def __init__(self, trace: Trace, observer: Observer) -> None:
        self._trace = trace
        self._observer = observer
        self._accounts: dict[tuple[Life, str], Account] = defaultdict(Account)  # a supervisor's children
        self._shared: dict[Life, list[float]] = defaultdict(list)  # the windows of supervisors themselves
        self._due: dict[Ref, Due] = {}
        self._terminated: set[tuple[Ref, int]] = set()
        self._handled: dict[Life, ChildExited] = {}

    def begin_epoch(self) -> None:
        """Forget the tree before."""
        for table in (self._accounts, self._shared, self._due, self._handled):
            table.clear()
        self._terminated.clear()

    # --- starts

    def launched(self, life: Life, before: Life | None) -> None:
        ref = life.ref
        if before is not None:
            self._trace.check(
                OVERLAP,
                before.is_ended and not before.running,
                lambda: f"{life.name} starts while {before.name} runs {before.running or 'its loop'}",
            )
        self._check_due(ref)
        # A new incarnation of a supervisor begins with all its children, and counts anew.
        self._due = {child: due for child, due in self._due.items() if child.parent is not ref}
        parent = self._parent(ref)
        if parent is not None and life.generation == 1:
            # A child that was deleted and comes again is a new one, with nothing against it.
            self._accounts.pop((parent, ref.child_id), None)
        if parent is not None and isinstance(parent.actor, Supervisor) and not _is_dynamic(parent):
            for sibling in _siblings_before(ref):
                incarnation = sibling.incarnation
                if parent.ref.state == "starting":
                    self._trace.check(
                        START_ORDER,
                        (incarnation is not None and incarnation.started_at is not None)
                        or self._fell(sibling),
                        lambda sibling=sibling: f"{life.name} starts before {sibling.path} is up",
                    )

    def _fell(self, ref: Ref) -> bool:
        """Whether an actor was up and has ended since."""
        life = self._observer.lives.get(ref)
        return life is not None and life.is_ended

    def _check_due(self, ref: Ref) -> None:
        due = self._due.pop(ref, None)
        if due is None:
            return
        now = trio.current_time()
        name = ref.path
        self._trace.check(
            STAYS_DOWN, due.what != "down", lambda: f"{name} is started after it ended for good"
        )
        self._trace.check(
            INTENSITY, due.what not in ("park", "escalate"), lambda: f"{name} is restarted over its limit"
        )
        parent = self._parent(ref)
        if due.what == "restart" and parent is not None and _strategy(parent) is Strategy.ONE_FOR_ONE:
            waited_s = now - due.since
            busy_s = parent.busy_until(now) - due.busy_s
            self._trace.check(
                BACK_OFF,
                due.earliest_s - EPSILON_S <= waited_s <= due.latest_s + busy_s + EPSILON_S,
                lambda: (
                    f"{name} is restarted after {waited_s:.6f} s, not {due.earliest_s:.6f} to "
                    f"{due.latest_s:.6f} s and {busy_s:.6f} s of the supervisor's work"
                ),
            )

    def entered(self, life: Life, hook: str) -> None:
        if hook == "on_start":
            others = [
                other.name
                for other in self._observer.history[life.path]
                if other is not life and other.running
            ]
            self._trace.check(OVERLAP, not others, lambda: f"{life.name} starts while {others} run")

    # --- ends

    def ended(self, life: Life, exited: ChildExited) -> None:
        now = trio.current_time()
        self._trace.check(
            REAPED, not life.running, lambda: f"{life.name} reports its end and runs {life.running}"
        )
        if life.stop_by is not None:
            overdue_s = now - life.stop_by
            self._trace.check(
                DEADLINE,
                overdue_s <= KILL_GRACE_S + EPSILON_S or _was_stuck(life),
                lambda: f"{life.name} ended {overdue_s:.3f} s after its deadline",
            )
        if isinstance(exited.reason.exception, RestartIntensityError):
            escalates = any(
                due.what == "escalate" and ref.parent is life.ref for ref, due in self._due.items()
            )
            self._trace.check(ESCALATION, escalates, lambda: f"{life.name} gives up below its limit")

    def stop_requested(self, ref: Ref, kind: ExitKind) -> None:
        life = self._observer.lives.get(ref)
        if kind is not ExitKind.SHUTDOWN or life is None or life.is_ended:
            return
        parent = self._parent(ref)
        row = _row(ref)
        if life.stop_by is None and row is not None:
            deadline_s = row.spec.shutdown_s
            life.stop_by = trio.current_time() + (
                life.actor.shutdown_default_s if deadline_s is None else deadline_s
            )
        if parent is None or _is_dynamic(parent):
            return
        if parent.ref.state == "stopping" or _strategy(parent) is not Strategy.ONE_FOR_ONE:
            for sibling in _siblings_after(ref):
                self._trace.check(
                    STOP_ORDER,
                    sibling.incarnation is None or sibling.path in ref.system.stuck,
                    lambda sibling=sibling: (
                        f"{ref.path} is stopped before {sibling.path}, which started later"
                    ),
                )
        handled = self._handled.get(parent)
        if handled is not None and _strategy(parent) is Strategy.REST_FOR_ONE:
            self._trace.check(
                GROUP,
                exited_before(handled.ref, ref),
                lambda: f"{ref.path} goes down with {handled.ref.path}, which started later",
            )

    # --- what supervisors make of it

    def exit_taken_up(self, supervisor: Life, exited: ChildExited) -> None:
        self._handled[supervisor] = exited
        ref = exited.ref
        row = _row(ref)
        life = self._observer.lives.get(ref)
        is_current = life is not None and life.generation == exited.generation
        if row is None or not is_current or (ref, exited.generation) in self._terminated:
            return
        reason = exited.reason
        if reason.kind is ExitKind.PASSIVE:
            return
        if row.attended and not exited.started:
            self._due[ref] = Due("down", trio.current_time())
            return
        restart = row.spec.restart
        if restart is Restart.PERMANENT or (restart is Restart.TRANSIENT and not reason.is_normal):
            self._due[ref] = self._expect(supervisor, row, life)
        else:
            self._due[ref] = Due("down", trio.current_time())

    def _expect(self, supervisor: Life, row: Child, life: Life | None) -> Due:
        now = trio.current_time()
        actor: Any = supervisor.actor
        spec = row.spec
        limit: Intensity = spec.intensity or actor.intensity
        account = self._accounts[supervisor, spec.id]
        account.times.append(now)
        own = sum(now - at <= limit.within_s for at in account.times)
        shared = self._shared[supervisor]
        if spec.intensity is None and not spec.park:
            shared.append(now)
            own = sum(now - at <= limit.within_s for at in shared)
        if own > limit.max_restarts:
            return Due("park" if spec.park else "escalate", now)
        launched_at = now if life is None else life.launched_at
        account.attempts = 1 if now - launched_at > limit.within_s else account.attempts + 1
        backoff = actor.backoff
        middle_s = 0.0
        if account.attempts > 1:
            middle_s = min(backoff.max_s, backoff.first_s * backoff.factor ** (account.attempts - 2))
        return Due(
            "restart",
            now,
            middle_s * (1 - backoff.jitter),
            middle_s * (1 + backoff.jitter),
            supervisor.busy_until(now),
        )

    def exit_settled(self, supervisor: Life, exited: ChildExited, *, took_s: float) -> None:
        self._handled.pop(supervisor, None)
        if _strategy(supervisor) is Strategy.ONE_FOR_ONE:
            self._trace.check(
                UNHINDERED,
                took_s <= EPSILON_S,
                lambda: f"{supervisor.name} took {took_s:.6f} s over the end of {exited.child_id}",
            )
        due = self._due.get(exited.ref)
        if due is not None and due.what == "park":
            self._trace.check(
                PARKED, exited.ref.condition == "parked", lambda: f"{exited.ref.path} is not parked"
            )

    def terminating(self, supervisor: Life, child: Child) -> None:
        del supervisor
        self._terminated.add((child.ref, child.generation))
        due = self._due.get(child.ref)
        if due is not None and due.what == "restart":
            # Whoever ends it decides whether it comes back: with its group, at a command, or not at all.
            del self._due[child.ref]

    def retried(self, supervisor: Life, child: Child) -> None:
        if child.state not in (ChildState.PARKED, ChildState.WAITING):
            return
        self._accounts.pop((supervisor, child.spec.id), None)
        self._due.pop(child.ref, None)

    def parked(self, ref: Ref) -> None:
        due = self._due.get(ref)
        self._trace.check(
            PARKED, due is not None and due.what == "park", lambda: f"{ref.path} is parked below its limit"
        )

    # --- at any quiet moment

    def audit(self) -> None:
        """Check what nobody reports: restarts that do not come, and children that are kept after their end."""
        now = trio.current_time()
        for ref, due in self._due.items():
            parent = self._parent(ref)
            if (
                due.what == "restart"
                and parent is not None
                and not parent.is_ended
                and ref.parent is not None
            ):
                if ref.parent.state == "stopping" or _strategy(parent) is not Strategy.ONE_FOR_ONE:
                    continue
                late_s = now - due.since - due.latest_s - (parent.busy_until(now) - due.busy_s)
                self._trace.check(
                    BACK_OFF, late_s <= EPSILON_S, lambda ref=ref: f"{ref.path} is not restarted in time"
                )
        for life in self._observer.living():
            if _is_dynamic(life) and life.ref.state in ("idle", "busy"):
                dead = [
                    name for name, row in (life.ref.children or {}).items() if row.ref.condition == "dead"
                ]
                self._trace.check(FORGOTTEN, not dead, lambda dead=dead: f"{dead[:3]} are still listed")

    def _parent(self, ref: Ref) -> Life | None:
        return None if ref.parent is None else self._observer.lives.get(ref.parent)


def exited_before(one: Ref, other: Ref) -> bool:
    """Whether `one` comes before `other` in the start order of their supervisor, or is the same."""
    names = list((one.parent.children if one.parent is not None else None) or {})
    return (
        one.child_id in names
        and other.child_id in names
        and names.index(one.child_id) <= names.index(other.child_id)
    )


def _row(ref: Ref) -> Child | None:
    row = ((ref.parent.children if ref.parent is not None else None) or {}).get(ref.child_id)
    return row if row is not None and row.ref is ref else None


def _siblings(ref: Ref) -> tuple[list[Ref], int]:
    rows = list(((ref.parent.children if ref.parent is not None else None) or {}).values())
    refs = [row.ref for row in rows]
    return refs, refs.index(ref) if ref in refs else 0


def _siblings_before(ref: Ref) -> list[Ref]:
    refs, index = _siblings(ref)
    return refs[:index]


def _siblings_after(ref: Ref) -> list[Ref]:
    refs, index = _siblings(ref)
    return refs[index + 1 :]


def _is_dynamic(life: Life) -> bool:
    return isinstance(life.actor, DynamicSupervisor)


def _strategy(life: Life) -> Strategy | None:
    return life.actor.strategy if isinstance(life.actor, Supervisor) else None


def _was_stuck(life: Life) -> bool:
    """Whether the incarnation was reported as one that does not end; it may have ended since, when the disk let it."""
    return any(one.ref is life.ref and one.generation == life.generation for one in life.ref.system._stuck)
