"""Running the world of one seed: on a machine of its own, from a root that is laid out once for each process."""

from __future__ import annotations

import shutil
import tempfile
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from unittest.mock import patch

import trio
import trio.testing

from actors.runtime.base import SessionIdentity, ToolUse, TurnHost, TurnRequest
from actors.tools.base import ToolContext
from actors.tools.registry import Registry
from store.database import open_writer
from store.root import Root, lay_out
from tests.simulation.backend import SimulatedModel
from tests.simulation.machine import running_on, silence
from tests.simulation.trace import Trace, Violation
from tests.simulation.world import DOOM_S, ENDS, World


@dataclass(frozen=True, slots=True)
class Result:
    """What one seed came to."""

    seed: int
    digest: str
    length: int
    violations: tuple[Violation, ...]
    events: Counter[str] = field(default_factory=Counter)
    faults: Counter[str] = field(default_factory=Counter)
    checks: Counter[str] = field(default_factory=Counter)
    lines: tuple[str, ...] = ()


MEMORY = Path("/dev/shm")  # noqa: S108 - a RAM disk, where there is one; names in it are made by mkdtemp


@contextmanager
def template() -> Iterator[Path]:
    """Make a root, laid out once for many seeds, for the length of the block; its secrets are the same for all."""
    folder = Path(tempfile.mkdtemp(prefix="simulation-", dir=MEMORY if MEMORY.is_dir() else None))
    try:
        root = Root(folder / "template")
        lay_out(root)
        (root.keys / "sessions.key").write_text("simulated\n", encoding="ascii")
        open_writer(root.database).close()
        yield root.path
    finally:
        shutil.rmtree(folder, ignore_errors=True)


@contextmanager
def _watched_tools(world: World) -> Iterator[None]:
    run = Registry.run
    run_turn = SimulatedModel.run_turn

    async def watched(self: Registry, use: ToolUse, context: ToolContext) -> Any:
        world.records.tool_begins(use.id, use.name)
        return await run(self, use, context)

    async def begun(
        self: SimulatedModel, session: SessionIdentity, request: TurnRequest, host: TurnHost
    ) -> str:
        text = str(request.messages[-1]["content"])
        world.order.begins(session.session_key, text)
        return await run_turn(self, session, request, host)

    with patch.object(Registry, "run", watched), patch.object(SimulatedModel, "run_turn", begun):
        yield


def _clock() -> trio.testing.MockClock:
    """Return a clock that jumps to what is due next, and at the end of time ends the run, whatever is shielded."""
    clock = trio.testing.MockClock(autojump_threshold=0)
    read = clock.current_time

    def current_time() -> float:
        now = read()
        if now > DOOM_S:
            raise TimeoutError("the end of time")
        return now

    clock.current_time = current_time  # type: ignore[method-assign]
    return clock


def simulate(seed: int, root: Path, *, kept: bool = False) -> Result:
    """Run the world of a seed on a copy of a `template` and return what it came to.

    With `kept` the result has the lines of the trace.
    """
    trace = Trace(kept=kept)
    folder = Path(tempfile.mkdtemp(prefix=f"{seed}-", dir=root.parent))
    try:
        shutil.copytree(root, folder / "root", copy_function=shutil.copyfile)
        world = World(seed, folder / "root", trace)
        with silence(), running_on(world.machine, seed), world.observer.watching(), _watched_tools(world):
            try:
                trio.run(world.run, clock=_clock())
            except trio.TrioInternalError:
                trace.check(ENDS, False, "something waits for ever")
        trace.events["mails"] += world.records.mails
        trace.events["turns"] += world.records.turns
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    return Result(
        seed,
        trace.digest,
        trace.length,
        tuple(trace.violations),
        trace.events,
        trace.faults,
        trace.checks,
        tuple(trace.lines),
    )
