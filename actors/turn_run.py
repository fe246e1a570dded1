"""Running one turn to its recorded end, however it ends: well, cancelled, too late, refused, failed or cut off."""

from __future__ import annotations

import secrets
from dataclasses import dataclass, field

import apsw
import structlog
import trio

from actors.conversation import Conversation
from actors.runtime.base import TurnRequest
from actors.session_messages import RunTurn
from actors.session_services import SessionServices
from actors.spending import note_spending, tokens_left
from actors.tools.delegated import Delegations
from actors.turn import Turn
from protocol.acting import is_frozen
from protocol.errors import AgentRunnerError, BackendError, RequestError
from protocol.events import Done, Event, Failed, LedgerAppend, encode
from protocol.tiers import Acting
from store.damage import damage_of
from store.event_log import TurnLog
from store.sessions import SessionRow

_log = structlog.get_logger("sessions")


def check_leave(services: SessionServices, acting: Acting) -> int | None:
    """Return how many tokens the daily limits leave, None where tokens cost nothing.

    Raises RequestError where no turn may run now: `agent_frozen`, or `rate_limited` with the time of the reset.
    """
    if is_frozen(services.enacted.content.roster, acting):
        raise RequestError(
            "agent_frozen", f"{acting.agent_id} is frozen; thaw it in the roster to let it act"
        )
    return tokens_left(services, acting)


@dataclass(slots=True)
class TurnRun:
    """One turn under way: `scope` cancels it; `answer` is `(status, turn_id)` or the RequestError that it failed with.

    `is_recorded` turns false when the end could not be written: whoever goes on must first read the store again.
    `delegations` are those of its calls that the client executes; `seen` is how many events there were.
    """

    services: SessionServices
    conversation: Conversation
    row: SessionRow
    message: RunTurn
    scope: trio.CancelScope
    answer: tuple[str, str] | RequestError
    is_recorded: bool = True
    delegations: Delegations = field(default_factory=Delegations)
    turn_id: str | None = None
    seen: int = 0
    _kept: TurnLog | None = None

    async def run(self) -> None:
        """Run the turn; what goes wrong becomes the answer, only cancellation from outside is raised."""
        acting = self.services.acting(self.row)
        try:
            turn, request = self.conversation.begin(self.row, self.message, acting)
        except apsw.Error as error:
            damage = damage_of(error)
            if damage is None:
                raise
            _log.error("history not read", session=self.row.session_key, error=str(error))
            self.answer = RequestError("internal", damage)
            return
        self.delegations, self.turn_id = turn.delegations, turn.id
        turn.sink = lambda event: self._take(turn, event)
        try:
            await self._run(turn, request, acting)
        finally:
            if self._kept is not None:
                self._kept.close()

    def _take(self, turn: Turn, event: Event) -> None:
        """Keep an event of a recorded turn, then pass it on: nobody has seen what is not kept."""
        self.seen = event.seq + 1
        if turn.began and self.services.events is not None:
            if self._kept is None:
                self._kept = self.services.events.begin(turn.id)
            if self._kept.append(encode(event)):
                _log.warning("events are not kept", turn=turn.id, problem=self._kept.problem)
        self.message.take(event)

    async def _run(self, turn: Turn, request: TurnRequest, acting: Acting) -> None:
        timeout_s = self.services.limits.turn_timeout_s
        status, stop_reason, problem = "failed", None, None
        try:
            turn.tokens_left = check_leave(self.services, acting)
            with self.scope, trio.CancelScope(deadline=trio.current_time() + timeout_s) as timeout:
                await self.services.runtime.ensure_session(turn.identity)
                stop_reason = await self.services.runtime.run_turn(turn.identity, request, turn)
                status = "complete"
            if status != "complete" and timeout.cancelled_caught:
                problem = RequestError("turn_timeout", f"the turn took longer than {timeout_s} s")
            elif status != "complete":
                status, stop_reason = "cancelled", "cancelled"
        except RequestError as error:
            problem = error
        except BackendError as error:
            problem = RequestError(error.code, error.message)
        except Exception as error:  # noqa: BLE001 - a fault of a turn ends the turn; it is logged, with its id
            problem = self._internal(turn, error)
        except BaseException:
            # Cancelled from outside, perhaps in a group that the nursery of a library made of it. The daemon is ending
            # and the time to finish is over: the turn is recorded as interrupted, so that the mail that it carried is
            # delivered again.
            problem = RequestError(
                "shutting_down", "the daemon ended before the turn did; send it again when it is back"
            )
            await self._finish(turn, "interrupted", None, problem)
            raise
        await self._finish(turn, status, stop_reason, problem)

    def _internal(self, turn: Turn, error: Exception) -> RequestError:
        name = secrets.token_hex(4)
        if isinstance(error, AgentRunnerError):
            _log.error(
                "turn failed", incident=name, session=self.row.session_key, turn=turn.id, error=str(error)
            )
            return RequestError("internal", f"{error} (incident {name} in the log)")
        _log.error("turn failed", incident=name, session=self.row.session_key, turn=turn.id, exc_info=error)
        problem = damage_of(error) or "a fault inside the daemon ended the turn"
        return RequestError("internal", f"{problem} (incident {name} in the log)")

    async def _finish(
        self, turn: Turn, status: str, stop_reason: str | None, problem: RequestError | None
    ) -> None:
        acting = turn.identity.acting
        try:
            # However the turn was stopped, its end is recorded: a commit of the journal is not cut short.
            entry = await turn.end(status, stop_reason, agent=acting.agent or acting.agent_id)
        except Exception as error:  # noqa: BLE001 - whatever it is, the end is not in the store
            problem = self._internal(turn, error)
            self.is_recorded = False
        else:
            if entry is not None:
                note_spending(self.services, acting, turn.usage.total)
                turn.emit(LedgerAppend(entry))
                self.conversation.follow(turn, entry.cid, changed=status in ("failed", "interrupted"))
        if problem is None:
            turn.emit(Done(stop_reason or "cancelled"))
            self.answer = (status, turn.id)
            return
        if not turn.began:
            turn.announce_start()
        turn.emit(Failed(problem.code, problem.message))
        self.answer = problem
