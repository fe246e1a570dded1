"""What goes wrong, and when: a plan that follows from the seed, carried out from outside of the shipped code."""

from __future__ import annotations

import random
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Any

import trio

from actors.kernel import Actor, Intensity, Ref, Supervisor
from tests.simulation.observer import Observer
from tests.simulation.trace import Trace
from tests.simulation.watching import Hook, Life


class SimulatedError(Exception):
    """A bug in an actor, put in on purpose."""


@dataclass(frozen=True, slots=True)
class Order:
    """What happens to the next call of a hook of one address."""

    kind: str  # before, midway, after, slow
    seconds: float = 0.0


class Interferer:
    """Carries orders out in the hooks and tasks of actors."""

    def __init__(self, trace: Trace) -> None:
        self._trace = trace
        self.orders: dict[tuple[str, str], list[Order]] = {}  # by path and hook

    def clear(self) -> None:
        """Let nothing go wrong any more."""
        self.orders.clear()

    def order(self, path: str, hook: str, order: Order) -> None:
        """Let something happen at the next call of a hook."""
        self.orders.setdefault((path, hook), []).append(order)

    def cleans_up(self, ref: Ref) -> bool:
        """Have the last hooks of an actor run where something is to happen in them."""
        return any((ref.path, hook) in self.orders for hook in ("on_stop", "on_failure"))

    async def wrap(self, life: Life, hook: str, function: Hook, args: tuple[Any, ...]) -> Any:
        """Run a hook or task; what was ordered happens to it."""
        if hook.startswith("task "):
            return await self._poisonable(life, function, args)
        waiting = self.orders.get((life.path, hook))
        if not waiting:
            return await function(*args)
        order = waiting.pop(0)
        if not waiting:
            del self.orders[life.path, hook]
        self._trace.inject(f"{order.kind} {hook}", life.name)
        if order.kind == "slow":
            await trio.sleep(order.seconds)
            return await function(*args)
        if order.kind == "before":
            raise SimulatedError(f"{hook} of {life.name}")
        if order.kind == "midway":
            with trio.move_on_after(order.seconds):
                await function(*args)
            raise SimulatedError(f"midway through {hook} of {life.name}")
        await function(*args)
        raise SimulatedError(f"after {hook} of {life.name}")

    async def _poisonable(self, life: Life, function: Hook, args: tuple[Any, ...]) -> Any:
        with trio.CancelScope() as scope:
            key = id(scope)
            life.poisons[key] = scope
            try:
                return await function(*args)
            finally:
                del life.poisons[key]
        if scope.cancelled_caught:
            raise SimulatedError(f"a task of {life.name}")
        return None


Wake = Callable[[Life], None]


class Chaos:
    """Draws faults from a seed and puts them into a running tree."""

    def __init__(self, rng: random.Random, observer: Observer, interferer: Interferer, trace: Trace) -> None:
        self._rng = rng
        self._observer = observer
        self._interferer = interferer
        self._trace = trace

    async def strike(self, poke: Callable[[Life], Awaitable[None]]) -> None:
        """Let one thing go wrong; `poke` has an actor handle a message."""
        rng = self._rng
        kind = rng.choice(
            (
                "kill",
                "handler",
                "handler",
                "start",
                "stop",
                "failure",
                "task",
                "task",
                "slow",
                "storm",
                "storm",
            )
        )
        life = self.victim()
        if life is None:
            return
        if kind == "kill":
            self.kill(life)
        elif kind == "handler":
            when = rng.choice(("before", "midway", "after"))
            self._interferer.order(life.path, "on_receive", Order(when, rng.choice((0.0, 0.001, 0.5))))
            await poke(life)
        elif kind == "start":
            for _ in range(rng.choice((1, 1, 2, 3))):
                self._interferer.order(life.path, "on_start", Order(rng.choice(("before", "after"))))
            self.kill(life)
        elif kind in ("stop", "failure"):
            self._interferer.order(life.path, f"on_{kind}", Order(rng.choice(("before", "after"))))
        elif kind == "task":
            self.poison(life)
        elif kind == "slow":
            hook = rng.choice(("on_receive", "on_start", "on_stop"))
            self._interferer.order(life.path, hook, Order("slow", rng.choice((0.5, 3.0, 9.0, 40.0))))
            if hook == "on_receive":
                await poke(life)
        else:
            await self.storm(self.stormy() or life, poke)

    async def storm(self, life: Life, poke: Callable[[Life], Awaitable[None]]) -> None:
        """Crash an actor again and again, at a distance around the one that its supervisor just allows."""
        rng = self._rng
        limit = _limit(life)
        gap_s = limit.within_s / limit.max_restarts * rng.choice((0.0, 0.1, 0.5, 1.0, 1.0, 1.05, 1.2))
        self._trace.note("storm", f"{life.path} every {gap_s:.3f} s")
        for _ in range(limit.max_restarts + rng.randint(1, 4)):
            found = self._observer.paths.get(life.path)
            if found is not None and not found.is_ended:
                if rng.random() < 0.7:
                    self.kill(found)
                else:
                    self._interferer.order(found.path, "on_receive", Order("before"))
                    await poke(found)
            await trio.sleep(gap_s)

    def stormy(self) -> Life | None:
        """Draw whom a storm strikes: every other time one whose window is short."""
        short = [
            life
            for life in self._observer.living()
            if any(name in life.path for name in ("/parking/", "/rest/", "/deferring"))
        ]
        return self._rng.choice(short) if short and self._rng.random() < 0.5 else self.victim()

    def victim(self) -> Life | None:
        """Draw a living actor, seldom one of the few that all others rest on."""
        living = [life for life in self._observer.living() if life.ref.parent is not None]
        weights = [1 if _is_vital(life.actor) else 6 if _is_busy(life) else 3 for life in living]
        return self._rng.choices(living, weights)[0] if living else None

    def kill(self, life: Life) -> None:
        """Kill an actor."""
        self._trace.inject("kill", life.name)
        life.ref.kill()

    def poison(self, life: Life) -> None:
        """Let one of the actor's tasks raise, wherever it waits."""
        if life.poisons:
            self._trace.inject("task crashes", life.name)
            self._rng.choice(list(life.poisons.values())).cancel()


def _limit(life: Life) -> Intensity:
    """Return how often an actor may be restarted."""
    parent = life.ref.parent
    row = None if parent is None else (parent.children or {}).get(life.ref.child_id)
    supervisor = None if parent is None or parent.incarnation is None else parent.incarnation.actor
    own = None if row is None else row.spec.intensity
    return own or (supervisor.intensity if isinstance(supervisor, Supervisor) else Intensity())


def _is_vital(actor: Actor) -> bool:
    return isinstance(actor, Supervisor) or type(actor).__name__ in (
        "LedgerWriter",
        "Court",
        "Heartbeat",
        "Evictor",
        "Retention",
    )


def _is_busy(life: Life) -> bool:
    return bool(life.poisons) or life.ref.mailbox_length > 0
