"""A small service behind the gateway: real behaviour, chosen by the request's own words."""

from __future__ import annotations

import hmac
from collections.abc import Callable
from typing import Any

import trio
import trio.testing

from actors.service import Caller, Emit
from protocol.errors import RequestError
from protocol.events import Done, Failed, TextDelta, TurnStarted
from protocol.native import frames

TOKENS = {"operator-token": "operator", "ann-token": "ann"}


class FakeService:
    """Keeps what it was asked. A turn's message says what the turn does:

    `say N` emits N deltas · `pour N` emits N deltas of 64 KiB, letting others run in between · `hang` waits to be
    cancelled by `session.cancel` · `fail` ends in an error · `bug` raises what no service should · `surrogate`.
    """

    def __init__(self) -> None:
        self.calls: list[tuple[Caller, str, frames.Params]] = []
        self.closed: list[str] = []
        self.turns_ended: list[str] = []
        self.sessions: set[str] = set()
        self.sessions_closed: list[str] = []
        self.cancels: dict[str, trio.Event] = {}
        self.init_gate: trio.Event | None = None
        self.nursery: trio.Nursery | None = None

    def authenticate(self, token: str) -> str | None:
        found = None
        for known, identity in TOKENS.items():
            if hmac.compare_digest(known.encode(), token.encode()):
                found = identity
        return found

    def connection_closed(self, connection_id: str) -> None:
        self.closed.append(connection_id)

    async def until(self, condition: Callable[[], object]) -> None:
        """Let others run until something holds; at most 30 s."""
        with trio.fail_after(30):
            while not condition():
                await trio.testing.wait_all_tasks_blocked()

    async def call(self, caller: Caller, method: str, params: frames.Params, emit: Emit) -> dict[str, Any]:
        self.calls.append((caller, method, params))
        match params:
            case frames.SessionInit():
                if self.init_gate is not None:
                    await self.init_gate.wait()
                key = params.session_key or f"{params.agent_id}:ws:1"
                self.sessions.add(key)
                return {"session_key": key, "session_id": "0" * 64, "session_token": "t", "protocol": 1}
            case frames.TurnRun():
                if params.session_key not in self.sessions:
                    raise RequestError("unknown_session", f"there is no session {params.session_key}")
                return await self._run_turn(params, emit)
            case frames.SessionCancel():
                self.cancels.setdefault(params.session_key, trio.Event()).set()
                return {"ok": True}
            case frames.SessionClose():
                for _ in range(20):
                    await trio.lowlevel.checkpoint()
                self.sessions_closed.append(params.session_key)
                return {"ok": True}
            case frames.RunnerStatus():
                return {"identity": caller.identity, "connections": 1}
            case _:
                return {"ok": True}

    async def _run_turn(self, params: frames.TurnRun, emit: Emit) -> dict[str, Any]:
        """Run the turn in a task of its own, so that it outlives the call; wait for its end."""
        ended = trio.Event()
        outcome: list[Any] = []
        assert self.nursery is not None
        self.nursery.start_soon(self._turn, params, emit, outcome, ended)
        await ended.wait()
        if isinstance(outcome[0], BaseException):
            raise outcome[0]
        assert isinstance(outcome[0], dict)
        return outcome[0]

    async def _turn(self, params: frames.TurnRun, emit: Emit, outcome: list[Any], ended: trio.Event) -> None:
        word, _, rest = (params.message or "").partition(" ")
        emit(TurnStarted(seq=0, turn_id="turn-1"))
        result: Any = {"status": "complete", "turn_id": "turn-1"}
        match word:
            case "say":
                for number in range(int(rest)):
                    emit(TextDelta(seq=number + 1, text=f"word {number}"))
                emit(Done(seq=int(rest) + 1, stop_reason="end_turn"))
            case "pour":
                for number in range(int(rest)):
                    emit(TextDelta(seq=number + 1, text="x" * 65_536))
                    await trio.lowlevel.checkpoint()
                emit(Done(seq=int(rest) + 1, stop_reason="end_turn"))
            case "hang":
                await self.cancels.setdefault(params.session_key, trio.Event()).wait()
                emit(Done(seq=1, stop_reason="cancelled"))
                result = {"status": "cancelled", "turn_id": "turn-1"}
            case "fail":
                emit(Failed(seq=1, code="backend_error", message="the model server is down"))
                result = RequestError("backend_error", "the model server is down")
            case "bug":
                result = ZeroDivisionError("a bug")
            case "surrogate":
                emit(TextDelta(seq=1, text="half \ud83d of a pair"))
                emit(Done(seq=2, stop_reason="end_turn"))
        outcome.append(result)
        self.turns_ended.append(params.session_key)
        ended.set()
