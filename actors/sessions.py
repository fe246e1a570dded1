"""The session actor: one per session key, turns strictly one after another (section 3 of the specification)."""

from __future__ import annotations

import datetime as dt
import hmac
import secrets
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

import apsw
import structlog
import trio

from actors.context import Context
from actors.court import Enacted
from actors.journal import Journal
from actors.kernel import Actor, Ref, Refusal
from actors.recovery import record_interruption
from actors.runtime.base import AgentRuntime, Ceiling, SessionIdentity, TurnRequest
from actors.session_messages import (
    Cancel,
    Close,
    EvictIfIdle,
    Init,
    RunTurn,
    SessionMemory,
    Status,
    Subscribe,
)
from actors.tools.base import ToolOutcome
from actors.tools.registry import Registry
from actors.turn import Turn
from protocol.acting import OPERATOR, RUNNER, guest_name, is_frozen, resolve_acting
from protocol.canonical import blake3_hex
from protocol.errors import AgentRunnerError, BackendError, RequestError
from protocol.events import Done, Failed, LedgerAppend
from protocol.tiers import Acting
from store.clock import StrictClock, rfc3339
from store.ledger import read_entries
from store.mailbox import Mail
from store.sessions import (
    CreateSession,
    SessionRow,
    UpdateSession,
    find_session,
    history_of,
    last_ended_cid,
    last_turn,
    session_id,
    tokens_spent,
    turn_id,
)
from store.unit_of_work import ConflictError

CRASHES_MAX: Final = 3
"""A session whose actor crashed so often in a row gives up the turns that wait."""

RESERVED_CHANNELS: Final = frozenset({"cli", "subagent"})
"""Nobody unproved opens a key of these channels first: standing agents and subagents live there."""

CHARACTERS_LOADED_PER_TOKEN: Final = 4

_log = structlog.get_logger("sessions")


@dataclass(frozen=True, slots=True)
class SessionServices:
    """What every session works with; `tokens_limited` is true where tokens cost money.

    `hurry` is set when the daemon is ending and running turns are not waited for any longer.
    """

    writer: Ref
    clock: StrictClock
    enacted: Enacted
    runtime: AgentRuntime
    registry: Registry
    database: apsw.Connection
    secret: bytes
    tokens_limited: bool
    announce: Callable[[Sequence[Mail]], None]
    run_child: Callable[[SessionRow, Turn, Ceiling, str, str | None], Awaitable[ToolOutcome]]
    hurry: trio.Event = field(default_factory=trio.Event)


def token_of(secret: bytes, identifier: str) -> str:
    """Return the session token: derived from the session id, the same each time, also after a restart."""
    return blake3_hex(secret + b"session token" + identifier.encode())


class SessionActor(Actor):
    """A session: its queue, its running turn, its place in the ledger."""

    def __init__(self, memory: SessionMemory, services: SessionServices) -> None:
        super().__init__()
        self._memory = memory
        self._services = services
        self._row: SessionRow | None = None
        self._context = Context()
        self._next_turn = 0
        self._prev_cid: str | None = None
        self._root_cid = ""
        self._running: RunTurn | None = None
        self._scope: trio.CancelScope | None = None
        self._ending: str | None = None
        self._known = False
        self._running_done = trio.Event()
        self._answer: Any = None

    # --- life

    async def on_start(self) -> None:
        """Read the session back from the store, if it is there, and go on with what waits."""
        self._row = find_session(self._services.database, self._memory.key)
        if self._row is not None:
            await self._recover(self._row)
            self._load(self._row)
            self._run_next()

    async def _recover(self, row: SessionRow) -> None:
        turn = last_turn(self._services.database, row.id)
        if turn is None or turn.status != "running":
            return
        acting = self._acting(row)
        journal = self._journal(acting)
        record_interruption(
            self._services.database,
            journal,
            row,
            turn,
            agent=acting.agent or acting.agent_id,
            tell=acting.mail_of,
        )
        await journal.commit()
        self._row = find_session(self._services.database, row.session_key)

    def _load(self, row: SessionRow) -> None:
        database = self._services.database
        tokens_max = self._services.enacted.content.constitution.limits.history_tokens_max
        characters_max = tokens_max * CHARACTERS_LOADED_PER_TOKEN
        rows = history_of(database, row.id, characters_max=characters_max)
        self._context = Context(rows, shortened=bool(rows) and rows[0].seq > 0)
        newest = last_turn(database, row.id)
        self._next_turn = 0 if newest is None else newest.seq + 1
        self._prev_cid = last_ended_cid(database, row.id)
        self._root_cid = self._prev_cid or self._opening(row)

    def _opening(self, row: SessionRow) -> str:
        found = read_entries(
            self._services.database, entity_id=row.session_key, quality="session_lifecycle", limit=1
        )
        return found[0][1].cid

    async def on_failure(self, *exc_info: Any) -> None:
        """Count crashes; a session that goes on crashing gives up what waits, so that nobody hangs."""
        del exc_info
        self._memory.crashes += 1
        if self._memory.crashes >= CRASHES_MAX:
            self._refuse_waiting("internal", "the session crashed repeatedly; see the log, then try again")

    async def on_drain(self) -> None:
        """Let the running turn finish, as long as the shutdown time allows; what waits is answered at once."""
        self._refuse_waiting("shutting_down", "the daemon is ending; send the turn again when it is back")
        if self._running is not None:
            async with trio.open_nursery() as nursery:
                for event in (self._running_done, self._services.hurry):
                    nursery.start_soon(_end_at, event, nursery.cancel_scope)

    async def on_stop(self) -> None:
        """Answer what waits; the running turn was cancelled and has recorded itself."""
        self._refuse_waiting("shutting_down", "the daemon is ending; send the turn again when it is back")
        if self._row is not None:
            await self._services.runtime.close(self._row.id)

    async def on_receive(self, message: Any) -> Any:  # noqa: PLR0911 - one line for each message
        """Handle one message; a refusal is a reply, not a crash."""
        try:
            match message:
                case RunTurn():
                    return self._enqueue(message)
                case Init():
                    return await self._init(message)
                case Cancel():
                    return await self._cancel(message)
                case Close():
                    return await self._close(message)
                case Status():
                    return self._status(message)
                case Subscribe():
                    self._memory.on_idle = message.on_idle
                    return None
                case EvictIfIdle():
                    return await self._evict(message)
        except RequestError as error:
            return Refusal(error)
        raise TypeError(f"a session takes no {type(message).__name__}")

    # --- whose session

    def _require(self, caller: Any) -> SessionRow:
        row = self._row
        if row is None or not self._may(row, caller):
            raise RequestError(
                "unknown_session", f"there is no session {self._memory.key!r}; open one with session.init"
            )
        return row

    def _may(self, row: SessionRow, caller: Any) -> bool:
        if caller.identity in (OPERATOR, RUNNER) or (caller.authenticated and caller.identity == row.owner):
            return True
        if caller.connection_id in self._memory.openers:
            return True
        token = caller.session_token
        return token is not None and hmac.compare_digest(
            token.encode(), token_of(self._services.secret, row.id).encode()
        )

    def _acting(self, row: SessionRow) -> Acting:
        return resolve_acting(
            self._services.enacted.content.roster, owner=row.owner, agent_id=row.agent_id, session_id=row.id
        )

    def _journal(self, acting: Acting) -> Journal:
        return Journal(
            self._services.writer, self._services.clock, entity_id=self._memory.key, actor=acting.actor
        )

    # --- open and close

    async def _init(self, message: Init) -> dict[str, Any]:
        caller = message.caller
        if message.mode == "persistent" and not caller.authenticated:
            raise RequestError(
                "invalid_params", "`params.mode`: persistent sessions are for proved identities"
            )
        if self._row is None:
            if not caller.authenticated and _channel(self._memory.key) in RESERVED_CHANNELS:
                raise RequestError(
                    "unauthorized", "keys of this channel are for proved identities; choose another key"
                )
            await self._create(message)
        row = self._row
        assert row is not None  # noqa: S101 - _create sets it or raises
        if not self._may(row, caller):
            raise RequestError(
                "unauthorized", "this session key belongs to somebody else; choose another key"
            )
        if row.agent_id != message.agent_id:
            raise RequestError(
                "invalid_params",
                f"`params.agent_id`: this session is one with {row.agent_id!r}; choose another key",
            )
        await self._take_over(row, message)
        if not caller.authenticated:
            self._memory.openers.add(caller.connection_id)
        return {
            "session_key": row.session_key,
            "session_id": row.id,
            "session_token": token_of(self._services.secret, row.id),
            "protocol": 1,
        }

    async def _create(self, message: Init) -> None:
        created_at = self._services.clock.stamp()
        identifier = session_id(message.agent_id, self._memory.key, created_at)
        owner = message.caller.identity if message.caller.authenticated else guest_name(identifier)
        row = SessionRow(
            id=identifier,
            agent_id=message.agent_id,
            session_key=self._memory.key,
            owner=owner,
            backend=self._services.runtime.name,
            model=message.model,
            mode=message.mode or "domain",
            state="idle",
            pubkey=None,
            last_activity=created_at,
            created_at=created_at,
        )
        journal = self._journal(self._acting(row))
        journal.add(CreateSession(row))
        entry = self._lifecycle(journal, row, "opened", None, [])
        try:
            await journal.commit()
        except ConflictError as error:
            raise RequestError("unauthorized", f"the session key {self._memory.key!r} is taken") from error
        self._row, self._root_cid = row, entry.cid
        if not message.caller.authenticated:
            self._memory.openers.add(message.caller.connection_id)

    async def _take_over(self, row: SessionRow, message: Init) -> None:
        journal = self._journal(self._acting(row))
        if row.state == "closed":
            self._lifecycle(journal, row, "reopened", None, [self._root_cid])
        elif message.model in (None, row.model) and message.mode in (None, row.mode):
            return
        journal.add(
            UpdateSession(
                row.id,
                self._services.clock.stamp(),
                state="idle" if row.state == "closed" else None,
                model=message.model,
                mode=message.mode,
                backend=self._services.runtime.name,
            )
        )
        await journal.commit()
        self._row = find_session(self._services.database, row.session_key)

    def _lifecycle(
        self, journal: Journal, row: SessionRow, event: str, reason: str | None, parents: list[str]
    ) -> Any:
        claimed = row.agent_id if row.agent_id != journal.actor else None
        return journal.entry(
            "session_lifecycle",
            row.id,
            {"event": event, "reason": reason, "claimed_agent_id": claimed},
            parents,
        )

    async def _close(self, message: Close) -> dict[str, Any]:
        row = self._require(message.caller)
        self._refuse_waiting("session_closed", "the session was closed before this turn began")
        if self._running is not None:
            self._ending = message.event
            self._stop_turn()
            await self._running_done.wait()
        if row.state != "closed":
            await self._shut(message.event, message.reason)
        return {"ok": True}

    async def _shut(self, event: str, reason: str | None) -> None:
        row = self._row
        assert row is not None  # noqa: S101 - only an existing session is shut
        journal = self._journal(self._acting(row))
        self._lifecycle(journal, row, event, reason, [self._root_cid])
        journal.add(UpdateSession(row.id, self._services.clock.stamp(), state="closed"))
        await journal.commit()
        self._row = find_session(self._services.database, row.session_key)
        await self._services.runtime.close(row.id)
        self._known = False

    async def _evict(self, message: EvictIfIdle) -> None:
        row = self._row
        if row is None:
            self.stop()
        elif row.last_activity > message.idle_since or self._memory.waiting:
            return
        elif self._running is not None:
            self._memory.evict_after_turn = row.mode == "domain"
        elif row.state == "closed":
            self.stop()
        elif row.mode == "domain":
            await self._shut("evicted", "idle")
            self.stop()

    # --- turns

    def _enqueue(self, message: RunTurn) -> None:
        self._admit(message)
        self._memory.waiting.append(message)
        self._run_next()

    def _admit(self, message: RunTurn) -> None:
        """Raise RequestError where the turn may not even wait."""
        row = self._require(message.caller)
        content = self._services.enacted.content
        if row.state == "closed":
            raise RequestError("session_closed", "this session is closed; session.init opens it again")
        acting = self._acting(row)
        if is_frozen(content.roster, acting):
            raise RequestError(
                "agent_frozen", f"{acting.agent_id} is frozen; thaw it in the roster to let it act"
            )
        self._tokens_left(acting)
        queued_max = content.constitution.limits.queued_turns
        if len(self._memory.waiting) >= queued_max:
            raise RequestError(
                "queue_full", f"{queued_max} turns wait in this session already; try again later"
            )

    def _tokens_left(self, acting: Acting) -> int | None:
        """Return what the daily limit leaves, None where tokens cost nothing; raises `rate_limited` at the limit."""
        if not self._services.tokens_limited:
            return None
        limit = self._services.enacted.content.constitution.limits.tokens_per_agent_day
        today = self._services.clock.moment().date()
        spent = tokens_spent(self._services.database, acting.account, today.isoformat())
        if spent >= limit:
            tomorrow = (today + dt.timedelta(days=1)).isoformat()
            raise RequestError(
                "rate_limited",
                f"{acting.account} has spent {spent} of {limit} tokens today; the count starts anew at "
                f"{tomorrow}T00:00:00Z, or raise tokens_per_agent_day in platform/constitution.yaml",
            )
        return limit - spent

    def _run_next(self) -> None:
        if self._running is not None or not self._memory.waiting or self._row is None:
            return
        self._running = self._memory.waiting.popleft()
        self._running_done = trio.Event()
        self.start_task(self._run_turn, self._running, self._row, name="turn")

    async def _run_turn(self, message: RunTurn, row: SessionRow) -> None:
        self._answer = RequestError("internal", "the turn was lost; see the log, then try again")
        try:
            await self._run_governed(message, row)
            await self._settle()
        finally:
            self._running = None
            self._scope = None
            self._ending = None
            self._running_done.set()
            if isinstance(self._answer, Exception):
                message.done.set_exception(self._answer)
            else:
                message.done.set(self._answer)
        self._memory.crashes = 0
        if self._memory.waiting:
            self._run_next()
        elif self._memory.on_idle is not None:
            self._memory.on_idle()

    async def _settle(self) -> None:
        """Close the session behind its turn where its mode, or an eviction that was put off, says so."""
        row = self._row = find_session(self._services.database, self._memory.key)
        if row is None or self._ending is not None or row.state == "closed":
            return
        if row.mode == "oneshot":
            self._refuse_waiting("session_closed", "a oneshot session closes after its turn")
            await self._shut("closed", "oneshot")
        elif self._memory.evict_after_turn and not self._memory.waiting:
            self._memory.evict_after_turn = False
            await self._shut("evicted", "idle")

    async def _run_governed(self, message: RunTurn, row: SessionRow) -> None:
        """Run one turn to its recorded end; its answer is `(status, turn_id)`, or the RequestError it failed with."""
        limits = self._services.enacted.content.constitution.limits
        acting = self._acting(row)
        turn = self._make_turn(message, row, acting)
        status, stop_reason, problem = "failed", None, None
        self._scope = trio.CancelScope()
        try:
            turn.tokens_left = self._tokens_left(acting)
            request = self._make_request(
                message, turn, limits.history_tokens_max, limits.model_calls_per_turn
            )
            with (
                self._scope,
                trio.CancelScope(deadline=trio.current_time() + limits.turn_timeout_s) as timeout,
            ):
                await self._ensure(turn.identity)
                stop_reason = await self._services.runtime.run_turn(turn.identity, request, turn)
                status = "complete"
            if status != "complete" and timeout.cancelled_caught:
                problem = RequestError("turn_timeout", f"the turn took longer than {limits.turn_timeout_s} s")
            elif status != "complete":
                status, stop_reason = "cancelled", "cancelled"
        except trio.Cancelled:
            # The daemon is ending and the time to finish is over: the turn is recorded as interrupted, so that the mail
            # that it carried is delivered again.
            problem = RequestError(
                "shutting_down", "the daemon ended before the turn did; send it again when it is back"
            )
            await self._finish(turn, acting, "interrupted", None, problem)
            raise
        except RequestError as error:
            problem = error
        except BackendError as error:
            problem = RequestError(error.code, error.message)
        except Exception as error:  # noqa: BLE001 - a fault of a turn ends the turn; it is logged, with its id
            problem = self._internal(turn, error)
        await self._finish(turn, acting, status, stop_reason, problem)

    def _internal(self, turn: Turn, error: Exception) -> RequestError:
        name = secrets.token_hex(4)
        if isinstance(error, AgentRunnerError):
            _log.error("turn failed", incident=name, session=self._memory.key, turn=turn.id, error=str(error))
            return RequestError("internal", f"{error} (incident {name} in the log)")
        _log.exception("turn failed", incident=name, session=self._memory.key, turn=turn.id)
        return RequestError(
            "internal", f"a fault inside the daemon ended the turn (incident {name} in the log)"
        )

    async def _finish(
        self, turn: Turn, acting: Acting, status: str, stop_reason: str | None, problem: RequestError | None
    ) -> None:
        entry = None
        try:
            # Shielded: however the turn was stopped, its end is recorded.
            with trio.CancelScope(shield=True):
                entry = await turn.end(status, stop_reason, agent=acting.agent or acting.agent_id)
        except AgentRunnerError as error:
            problem = self._internal(turn, error)
        if entry is not None:
            turn.emit(LedgerAppend(entry))
            self._follow(turn, entry.cid, reload=status in ("failed", "interrupted"))
        elif turn.began:
            # The end could not be recorded. A fresh incarnation records this turn as interrupted before it goes on.
            self.stop()
        if problem is None:
            turn.emit(Done(stop_reason or "cancelled"))
            self._answer = (status, turn.id)
            return
        if not turn.began:
            turn.announce_start()
        turn.emit(Failed(problem.code, problem.message))
        self._answer = problem

    def _follow(self, turn: Turn, cid: str, *, reload: bool) -> None:
        self._prev_cid = self._root_cid = cid
        self._next_turn += 1
        if reload and self._row is not None:
            # What was kept of it differs from what it had: mail that it carried is not in the history any more.
            self._load(self._row)
        else:
            self._context.append(turn.messages)

    async def _ensure(self, identity: SessionIdentity) -> None:
        if not self._known:
            await self._services.runtime.ensure_session(identity)
            self._known = True

    def _make_turn(self, message: RunTurn, row: SessionRow, acting: Acting) -> Turn:
        identity = SessionIdentity(
            row.id, row.session_key, acting, self._model(row, acting), self._memory.ceiling
        )
        return Turn(
            id=turn_id(row.id, self._next_turn),
            number=self._next_turn,
            identity=identity,
            journal=self._journal(acting),
            prev_cid=self._prev_cid,
            root_cid=self._root_cid,
            sink=message.sink,
            own=message.messages,
            announce=self._services.announce,
            run_child=lambda turn, ceiling, prompt, folder: self._services.run_child(
                row, turn, ceiling, prompt, folder
            ),
        )

    def _model(self, row: SessionRow, acting: Acting) -> str | None:
        if row.model is not None or acting.agent is None:
            return row.model
        identity = self._services.enacted.content.roster.get(acting.agent)
        return None if identity is None else identity.model

    def _make_request(
        self, message: RunTurn, turn: Turn, tokens_max: int, model_calls_max: int
    ) -> TurnRequest:
        stored = self._context.messages(tokens_max)
        tools = self._services.registry.definitions if message.tools is None else message.tools
        return TurnRequest(
            turn_id=turn.id,
            system=(message.system,) if message.system else (),
            system_stable=0,
            messages=[*stored, *message.messages],
            tools=tools,
            model_calls_max=model_calls_max,
            own_from=len(stored),
        )

    # --- cancel and status

    def _stop_turn(self) -> None:
        if self._scope is not None:
            self._scope.cancel()

    async def _cancel(self, message: Cancel) -> dict[str, Any]:
        row = self._require(message.caller)
        if row.state == "closed":
            raise RequestError("session_closed", "this session is closed; session.init opens it again")
        if self._running is not None:
            self._stop_turn()
            await self._services.runtime.cancel(row.id)
        return {"ok": True}

    def _status(self, message: Status) -> dict[str, Any]:
        row = self._require(message.caller)
        if self._running is None:
            return {"state": "closed" if row.state == "closed" else "idle"}
        stopping = self._scope is not None and self._scope.cancel_called
        return {"state": "cancelled" if stopping else "running"}

    def _refuse_waiting(self, code: str, why: str) -> None:
        while self._memory.waiting:
            self._memory.waiting.popleft().done.set_exception(RequestError(code, why))


async def _end_at(event: trio.Event, scope: trio.CancelScope) -> None:
    await event.wait()
    scope.cancel()


def _channel(key: str) -> str:
    """Return the channel of a key of the form `<agent_id>:<channel>:<peer…>`, else the empty string."""
    parts = key.split(":")
    return parts[1] if len(parts) > 1 else ""


def idle_since(clock: StrictClock, ttl_s: float) -> str:
    """Return the moment before which a session must have been used last to be evicted now."""
    return rfc3339(clock.moment() - dt.timedelta(seconds=ttl_s))
