"""One simulated world: a daemon on a machine that fails, started again and again, and at last left in peace.

A world has some epochs, each the life of one daemon process: clients call, faults
strike, and it ends by an orderly stop, by a power cut, or because the tree gave up. In the last one everything is
mended, and every agent and session has to work again within bounded time.
"""

from __future__ import annotations

import random
from contextlib import suppress
from pathlib import Path
from typing import Any

import trio
import trio.testing

from actors.api import Api, Doors
from actors.daemon import DRAIN_S, Settings, Wiring
from actors.kernel import (
    ActorDeadError,
    RestartIntensityError,
    RootFailedError,
    System,
    open_system,
)
from actors.kernel.errors import ChildStartError
from actors.kernel.signals import ChildExited, ExitKind
from actors.overview import Overview
from store.clock import StrictClock
from store.database import StorageError, open_reader
from store.ledger import last_timestamp
from store.root import Root
from tests.simulation.backend import SimulatedModel
from tests.simulation.faults import Chaos, Interferer, SimulatedError
from tests.simulation.lifecycle import Lifecycle
from tests.simulation.machine import Machine
from tests.simulation.messages import Messages
from tests.simulation.observer import Observer
from tests.simulation.peace import live_in_peace
from tests.simulation.probes import probe_spec
from tests.simulation.records import Records
from tests.simulation.trace import Trace
from tests.simulation.watching import Life, Watcher
from tests.simulation.workload import CALLS_END, TurnOrder, Workload, poke

ENDS = "a stop ends the whole tree in bounded time"
NOTHING_LEFT = "nothing is left when the tree has ended"
BLAMELESS = "nothing crashes but by a fault"

DOOM_S = 20_000.0
"""When a world that does not end is given up."""

SPOILT = "\n  - id: [\n"
"""What no roster ends in."""

STOP_S = 200.0
"""How long a tree may take to stop, every deadline and grace in it used up."""


class Blame(Watcher):
    """Holds every crash to have been caused by a fault that was put in."""

    def __init__(self, trace: Trace) -> None:
        self._trace = trace

    def ended(self, life: Life, exited: ChildExited) -> None:
        error = exited.reason.exception
        if exited.reason.kind is ExitKind.CRASHED:
            self._trace.check(BLAMELESS, _is_caused(error), lambda: f"{life.name} crashed: {error!r}")


def _is_caused(error: BaseException | None) -> bool:
    seen: set[int] = set()
    while error is not None and id(error) not in seen:
        if isinstance(error, SimulatedError | RestartIntensityError | ActorDeadError | StorageError):
            return True
        if isinstance(error, BaseExceptionGroup):
            return all(map(_is_caused, error.exceptions))
        seen.add(id(error))
        error = error.__cause__ or error.__context__
    return False


class World:
    """Everything of one seed."""

    def __init__(self, seed: int, folder: Path, trace: Trace) -> None:
        self.seed = seed
        self.rng = random.Random(f"world {seed}")
        self.trace = trace
        self.root = Root(folder)
        self.machine = Machine(seed, trace)
        self.interferer = Interferer(trace)
        self.observer = Observer(trace, self.interferer)
        self.lifecycle = Lifecycle(trace, self.observer)
        self.messages = Messages(trace)
        self.records = Records(trace)
        self.order = TurnOrder(trace)
        self.observer.watch_with(self.lifecycle, self.messages, self.records, self.order, Blame(trace))
        self.machine.on_durable = self.records.take
        self.roster_text = (self.root.platform / "roster.yaml").read_text(encoding="utf-8")
        content = self.machine.load(self.root.platform)
        self.agents = tuple(sorted(identity.id for identity in content.roster.standing()))
        self.model = SimulatedModel(seed, trace, self.agents)
        self.workload = Workload(random.Random(f"workload {seed}"), trace, self.records, self.agents)
        self.chaos = Chaos(random.Random(f"chaos {seed}"), self.observer, self.interferer, trace)
        self.is_spoiled = False
        self.has_failed = False
        self.stopped_at = 0.0
        self.wiring: Wiring
        self.system: System

    # --- epochs

    async def run(self) -> None:
        """Live through all epochs."""
        async with trio.open_nursery() as nursery:
            nursery.start_soon(trio.sleep, DOOM_S + 1.0)  # so that something is due when nothing else is
            await self._run_epochs()
            nursery.cancel_scope.cancel()

    async def _run_epochs(self) -> None:
        epochs = self.rng.choice((1, 1, 2, 2, 3))
        for number in range(epochs):
            is_last = number == epochs - 1
            await self.epoch(
                chaos_s=self.rng.uniform(12.0, 45.0), ending="peace" if is_last else self._ending()
            )
            if self.trace.violations:
                return
        if self.has_failed:
            # The tree gave up in the last epoch: whoever keeps the daemon mends the disk and starts it again.
            self.machine.full_until = 0.0
            self.interferer.clear()
            await self.epoch(chaos_s=0.0, ending="peace")

    def _ending(self) -> str:
        return self.rng.choice(("stop", "stop", "power cut", "power cut"))

    async def epoch(self, *, chaos_s: float, ending: str) -> None:
        """Run one daemon from its start to its end."""
        self.has_failed = False
        self.trace.note("epoch", f"{chaos_s:.3f} {ending}")
        for watcher in (self.lifecycle, self.messages, self.order, self.observer):
            watcher.begin_epoch()
        if self.is_spoiled:
            # No daemon starts on a roster that does not load: whoever starts it mends it first.
            self.write_roster(self.roster_text)
        self._wire()
        async with trio.open_nursery() as nursery:
            self.workload.nursery = self.machine.nursery = nursery
            try:
                async with open_system(
                    self.wiring.tree(probe_spec()),
                    rng=random.Random(f"jitter {self.seed}"),
                    workers=self.machine.worker,
                ) as self.system:
                    await self._live(chaos_s)
                    if ending == "peace":
                        await live_in_peace(self)
                    await self._end(ending)
            except (RootFailedError, ChildStartError) as error:
                self.has_failed = True
                self.trace.note("daemon failed", str(error))
            await trio.sleep(1.0)  # for those who were told that it ended
            if not self.observer.is_blind:
                pending = sorted(self.workload.pending.values())
                self.trace.check(CALLS_END, not pending, lambda: f"unanswered after the end: {pending[:3]}")
            nursery.cancel_scope.cancel()
        self._check_end(ending)

    def _wire(self) -> None:
        self.wiring = wiring = Wiring(
            Settings(self.root, ttl_min=1.5, heartbeat_interval_s=300.0, resume_turns=self.seed % 2 == 0),
            self.machine.load(self.root.platform),
            self.model,
            watch_health=False,
        )
        wiring.clock = StrictClock(last_timestamp(wiring.database), self.machine.utc)
        overview = Overview(
            system=lambda: wiring.system,
            services=lambda: wiring.services,
            directory=wiring.directory,
            standing=lambda: wiring.standing,
            memories=wiring.memories,
            writer=wiring.figures,
            url=lambda: "ws://simulated",
            began_at=lambda: wiring.began_at,
            connections=lambda: 0,
            health=wiring.health,
        )
        doors = Doors(
            wiring.directory, lambda: wiring.court, lambda: wiring.services, lambda: wiring.database, overview
        )
        self.workload.api = Api(doors, "token")
        self.workload.trunk = lambda: wiring.trunk

    async def _live(self, chaos_s: float) -> None:
        """Let clients call and faults strike for some time."""
        self.model.calm = False
        until = trio.current_time() + chaos_s
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self.workload.go_on, until)
            nursery.start_soon(self._strike, until)
            await trio.sleep_until(until)
            nursery.cancel_scope.cancel()
        self.lifecycle.audit()

    async def _strike(self, until: float) -> None:
        rng = self.rng
        async with trio.open_nursery() as nursery:
            while trio.current_time() < until:
                await trio.sleep(rng.expovariate(1 / 2.5))
                kind = rng.randrange(12)
                now = trio.current_time()
                if kind == 0:
                    self.machine.full_until = now + rng.choice((0.5, 5.0, 40.0))
                    self.trace.inject("disk full", f"{self.machine.full_until - now:.1f} s")
                elif kind == 1:
                    self.machine.slow_until = now + rng.choice((2.0, 15.0))
                    self.trace.inject("slow disk", f"{self.machine.slow_until - now:.1f} s")
                elif kind == 2:
                    self.machine.conflicts += 1
                    self.trace.inject("conflict")
                elif kind == 3:
                    self._change_roster()
                else:
                    nursery.start_soon(self.chaos.strike, poke)

    def _change_roster(self) -> None:
        """Freeze an agent, thaw all, or leave a file that does not load."""
        rng = self.rng
        text = self.roster_text
        kind = rng.choice(("freeze", "freeze", "thaw", "spoil"))
        if kind == "freeze":
            agent = rng.choice(self.agents)
            head, _, tail = text.partition(f"  - id: {agent}\n")
            text = f"{head}  - id: {agent}\n{tail.replace('state: live', 'state: frozen', 1)}"
        elif kind == "spoil":
            text = text + SPOILT
        self.trace.inject(f"roster: {kind}")
        self.write_roster(text)

    def write_roster(self, text: str) -> None:
        """Put another roster in the place of the one that is there."""
        self.is_spoiled = text.endswith(SPOILT)
        (self.root.platform / "roster.yaml").write_text(text, encoding="utf-8")
        self.machine.touch_content()

    # --- ends

    async def _end(self, ending: str) -> None:
        if ending == "power cut":
            self.trace.inject("power cut")
            self.machine.cut_power()
            self.observer.is_blind = True
            self.system.nursery.cancel_scope.cancel()
            return
        self.trace.inject("shutdown")
        self.stopped_at = trio.current_time()
        with trio.move_on_after(STOP_S) as limit:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(self._hurry)
                await self.system.stop()
                nursery.cancel_scope.cancel()
        self.trace.check(ENDS, not limit.cancelled_caught, lambda: f"{self.system.tree()}")

    async def _hurry(self) -> None:
        await trio.sleep(DRAIN_S)
        self.wiring.end_turns()

    def _check_end(self, ending: str) -> None:
        is_orderly = not self.observer.is_blind
        if is_orderly:
            self.messages.end_epoch()
            stuck = set(self.system.stuck)
            for ref, life in self.observer.lives.items():
                mailbox = ref.mailbox
                left = [
                    name
                    for name, thing in (
                        ("lives", not life.is_ended or ref.incarnation),
                        ("address", ref.is_alive()),
                        ("messages", mailbox.lane or mailbox.waiting or mailbox.reader),
                        ("children", ref.children),
                        ("watchers", ref.monitors or ref.links),
                        ("questions", ref.asking),
                    )
                    if thing
                ]
                self.trace.check(
                    NOTHING_LEFT,
                    not left or ref.path in stuck,
                    lambda life=life, left=left: f"{life.name}: {left}",
                )
        with suppress(Exception):
            self.wiring.database.close()
        if "services" in vars(self.wiring):
            runtime: Any = self.wiring.services.runtime
            for governed in runtime._sessions.values():
                for workspace in governed.workspaces.values():
                    workspace.close()
        reader = open_reader(self.root.database)
        # What a full disk did not take is recorded when there is room again, or by the next daemon.
        at_rest = is_orderly and not self.has_failed and self.machine.full_until + 10.0 < self.stopped_at
        self.records.audit(reader, self.root.workspaces, at_rest=at_rest, verified=ending == "peace")
        reader.close()
