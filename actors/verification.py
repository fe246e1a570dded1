"""Whether agents work: each takes one turn, in a session of its own that takes no mail and offers no tools."""

from __future__ import annotations

import uuid
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Final

import trio

from actors.client import Client
from protocol.acting import VERIFY
from protocol.errors import AgentRunnerError, RequestError

QUESTION: Final = "who are you?"


@dataclass(frozen=True, slots=True)
class Verified:
    """How one agent's turn went; `problem` is None where it answered. `answer` is what it said."""

    agent: str
    session_key: str
    seconds: float
    input_tokens: int
    output_tokens: int
    answer: str
    problem: str | None


async def verify_agents(client: Client, agents: Sequence[str], *, at_once: int) -> list[Verified]:
    """Run a turn with each agent, at most `at_once` of them together; return the outcomes in the order given."""
    outcomes: dict[int, Verified] = {}
    limit = trio.CapacityLimiter(at_once)

    async def verify(place: int, agent: str) -> None:
        async with limit:
            outcomes[place] = await _verify(client, agent)

    async with trio.open_nursery() as nursery:
        for place, agent in enumerate(agents):
            nursery.start_soon(verify, place, agent)
    return [outcomes[place] for place in range(len(agents))]


async def _verify(client: Client, agent: str) -> Verified:
    key = f"{agent}:{VERIFY}:{uuid.uuid4()}"
    began = trio.current_time()
    answer, tokens, problem = "", (0, 0), "the turn did not end"
    try:
        await client.call("session.init", {"agent_id": agent, "session_key": key, "mode": "oneshot"})
        turn = client.turn({"session_key": key, "message": QUESTION, "tools": []})
        async for event in turn:
            match event.get("type"):
                case "text_delta":
                    answer += event["text"]
                case "usage_update":
                    tokens = (event["input_tokens"], event["output_tokens"])
                case "done":
                    problem = "" if event["stop_reason"] == "end_turn" else f"ended: {event['stop_reason']}"
    except RequestError as error:
        problem = str(error)
        # A session whose turn was refused before it began is still open.
        with suppress(AgentRunnerError):
            await client.call("session.close", {"session_key": key, "reason": "verified"})
    except AgentRunnerError as error:
        problem = str(error)
    if not problem and not answer.strip():
        problem = "the turn ended without a word"
    return Verified(agent, key, trio.current_time() - began, *tokens, answer.strip(), problem or None)
