"""The end of every world: all is mended, and after a while every agent and every session has to work."""

from __future__ import annotations

from typing import TYPE_CHECKING

import trio

from protocol.native import frames
from store.mailbox import count_unread, reader_of
from tests.simulation.workload import CALLS_END, Visitor, visitors
from tests.support.office import OPERATOR

if TYPE_CHECKING:
    from tests.simulation.world import World

LIVENESS = "a healthy agent with mail takes a turn in bounded time"
PROGRESS = "a session with a queued turn makes progress"

PEACE_S = 700.0
"""How long the world is left in peace before it has to be well: back-offs (300 s), the window of wake-ups (600 s)."""

BOUND_S = 120.0
"""How long a healthy agent or session may take for one turn."""


async def live_in_peace(world: World) -> None:
    """Mend everything, wait, and see whether every agent and session works."""
    world.trace.note("peace")
    world.model.calm = True
    world.interferer.clear()
    world.machine.full_until = world.machine.slow_until = 0.0
    world.machine.conflicts = 0
    world.write_roster(world.roster_text)
    await trio.sleep(30.0)
    await _mend(world)
    await trio.sleep(PEACE_S)
    world.lifecycle.audit()
    now = trio.current_time()
    stale = sorted(what for what, since in world.workload.pending.values() if now - since > PEACE_S)
    world.trace.check(CALLS_END, not stale, lambda: f"{len(stale)} wait since before the peace: {stale[:3]}")
    world.messages.audit(patience_s=PEACE_S)
    await _check_liveness(world)


async def _mend(world: World) -> None:
    """Do what an operator does who comes back: retry whatever is parked."""
    for agent in world.agents:
        with trio.move_on_after(60.0):
            await world.workload.call(OPERATOR, frames.AgentsRetry(agent_id=agent))
    with trio.move_on_after(60.0):
        await world.workload.call(OPERATOR, frames.RunnerReload())


async def _check_liveness(world: World) -> None:
    services = world.wiring.services
    chosen = world.rng.sample(visitors(world.agents), 25)
    answered: dict[Visitor, bool] = dict.fromkeys(chosen, False)

    async def use(visitor: Visitor) -> None:
        init = frames.SessionInit(agent_id=visitor.agent, session_key=visitor.key)
        await world.workload.call(visitor.caller, init)
        answered[visitor] = await world.workload.turn(visitor)

    for agent in world.agents:
        mail = frames.MailSend(to=agent, subject="are you well", body="from outside")
        world.workload.nursery.start_soon(world.workload.call, OPERATOR, mail)
    for visitor in chosen:
        world.workload.nursery.start_soon(use, visitor)
    await trio.sleep(BOUND_S)
    roster = services.enacted.content.roster
    now = services.clock.stamp()
    for agent in world.agents:
        identity = roster.get(agent)
        assert identity is not None
        unread = count_unread(services.database, reader_of(identity), now)
        memory = world.wiring.memories.get(agent)
        world.trace.check(
            LIVENESS,
            unread == 0,
            lambda agent=agent, memory=memory, unread=unread: f"{agent}: {unread} unread, {memory}",
        )
    silent = [visitor.key for visitor, well in answered.items() if not well and visitor.caller.authenticated]
    world.trace.check(PROGRESS, not silent, lambda: f"no turn in {silent}")
