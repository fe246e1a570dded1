"""The model of a simulated daemon: what it says and calls in a turn follows from the seed and the turn's id."""

from __future__ import annotations

import random

import trio

from actors.runtime.base import SessionIdentity, ToolUse, TurnHost, TurnRequest
from protocol.errors import BackendError
from protocol.tiers import Tier
from tests.simulation.trace import Trace
from tests.support.office import ScriptedRuntime, say

PEOPLE = ("calli", "reed", "cora", "dwara", "auditor", "sill", "via")


class SimulatedModel(ScriptedRuntime):
    """Thinks for a while, calls tools (also some that are denied), and sometimes fails."""

    def __init__(self, seed: int, trace: Trace, agents: tuple[str, ...]) -> None:
        super().__init__(self._turn)
        self._seed = seed
        self._trace = trace
        self._agents = agents
        self.calm = False

    async def _turn(self, session: SessionIdentity, request: TurnRequest, host: TurnHost) -> str:
        # By the turn, not by the order of turns: a replay of one turn after a crash is not the same turn.
        rng = random.Random(f"{self._seed} {request.turn_id}")
        self._trace.note("model", f"{session.session_key} {request.turn_id}")
        await trio.sleep(self._thinking_s(rng))
        for round_ in range(rng.choice((0, 0, 1, 1, 2))):
            uses = [
                self._use(rng, f"c-{request.turn_id}-{round_}{number}", session)
                for number in range(rng.choice((1, 1, 2)))
            ]
            for use in uses:
                host.keep({"type": "tool_use", "id": use.id, "name": use.name, "input": use.input})
            self._trace.note("calls", " ".join(use.name for use in uses))
            results = await host.call_tools(uses)
            self._trace.note("results", " ".join(str(result["is_error"]) for result in results))
            await trio.sleep(self._thinking_s(rng) / 4)
        chance = 1.0 if self.calm else rng.random()
        if chance < 0.02:
            raise BackendError("backend_unavailable", "the model is gone")
        if chance < 0.03:
            raise ZeroDivisionError("a fault in the backend")
        say(host, "Done.")
        return "end_turn"

    def _thinking_s(self, rng: random.Random) -> float:
        if not self.calm and rng.random() < 0.04:
            return rng.uniform(10.0, 40.0)
        return rng.choice((0.0, 0.01, 0.5, 2.0))

    def _use(self, rng: random.Random, call: str, session: SessionIdentity) -> ToolUse:
        mark = f"call {call}"
        name = session.acting.name
        folder = {
            Tier.STANDING: f"workspaces/agents/{name}",
            Tier.REGISTERED: f"workspaces/users/{name}",
        }.get(session.acting.tier, f"workspaces/guests/{session.session_id[:16]}")
        to = rng.choice(("cora", *self._agents[:6], "operator", "triage"))
        mail = {"to": to, "subject": "simulated", "body": mark}
        calls: list[tuple[str, dict[str, object]]] = [
            *[("send_message", mail)] * 3,
            ("write_file", {"path": f"{folder}/{call}.md", "content": mark}),
            ("read_file", {"path": "platform/roster.yaml"}),
            ("list_files", {"path": "platform"}),
            ("post_board", {"content": mark}),
            ("read_board", {}),
            ("read_mailbox", {}),
            # Nobody may do these three.
            ("write_file", {"path": "workspaces/.state/x", "content": mark}),
            ("no_such_tool", {"content": mark}),
            ("send_message", {**mail, "to": "nobody at all"}),
        ]
        if session.ceiling is None:
            calls.append(("spawn_subagent", {"prompt": "Help."}))
        return ToolUse(call, *rng.choice(calls))
