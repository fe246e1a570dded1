"""The session actor: one per session key, turns strictly one after another (section 3 of the specification)."""

from __future__ import annotations

import datetime as dt
import hmac
from contextlib import suppress
from typing import Any, Final

import structlog
import trio

from actors.conversation import Conversation
from actors.journal import Journal
from actors.kernel import Actor, Refusal
from actors.recovery import record_interruption
from actors.session_messages import (
    AnswerCall,
    Attached,
    Cancel,
    Close,
    EvictIfIdle,
    Follower,
    FollowTurn,
    Init,
    RunTurn,
    SessionMemory,
    Status,
    Subscribe,
)
from actors.session_services import SessionServices
from actors.tools.delegated import unknown_call
from actors.turn_run import TurnRun, check_leave
from protocol.acting import OPERATOR, RUNNER, guest_name
from protocol.canonical import blake3_hex
from protocol.errors import RequestError
from store.clock import StrictClock, rfc3339
from store.database import StorageError
from store.sessions import (
    CreateSession,
    SessionRow,
    TurnRow,
    UpdateSession,
    continuation_of,
    find_session,
    find_turn,
    find_turn_by_key,
    last_turn,
    session_id,
)
from store.unit_of_work import ConflictError

CRASHES_MAX: Final = 3
"""A session whose actor crashed so often in a row gives up the turns that wait."""

AGAIN_S: Final = 5.0
"""How long after the disk did not take what is missing of a session it is tried again."""

RESERVED_CHANNELS: Final = frozenset({"cli", "subagent"})
"""Nobody unproved opens a key of these channels first: standing agents and subagents live there."""

GUEST_SESSIONS_MAX: Final = 100
"""One connection that proves nothing opens at most so many sessions: it cannot take the room of everybody else."""

CLOSED: Final = "this session is closed; session.init opens it again"

_log = structlog.get_logger("sessions")


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
        self._conversation: Conversation | None = None
        self._running: TurnRun | None = None
        self._running_done = trio.Event()
        self._is_closing = False
        self.passivate_after_s = services.passivate_after_s

    # --- life

    async def on_start(self) -> None:
        """Read the session back from the store, if it is there, and go on with what waits."""
        self._row = find_session(self._services.database, self._memory.key)
        if self._row is not None:
            await self._resume(self._row)

    async def _resume(self, row: SessionRow) -> None:
        """Record what is missing of the last turn, then go on with what waits; later, while the disk takes nothing."""
        self._conversation = None
        try:
            await self._recover(row)
            if last_turn(self._services.database, row.id) is not None:
                await self._settle()
        except StorageError as error:
            _log.error("not recorded", session=self._memory.key, error=str(error), again_in_s=AGAIN_S)
            self.start_task(self._resume_later, row, name="resume later")
            return
        self._converse(self._row or row)
        self._run_next()
        if self._running is None and self._memory.on_idle is not None:
            self._memory.on_idle()  # mail that the turn carried may be unread again

    async def _resume_later(self, row: SessionRow) -> None:
        await trio.sleep(AGAIN_S)
        await self._resume(row)

    async def _recover(self, row: SessionRow) -> None:
        turn = last_turn(self._services.database, row.id)
        if turn is None or turn.status != "running":
            return
        acting = self._services.acting(row)
        journal = self._services.journal(row)
        record_interruption(
            self._services.database,
            journal,
            row,
            turn,
            agent=acting.agent or acting.agent_id,
            tell=acting.mail_of,
        )
        with suppress(
            ConflictError
        ):  # an incarnation that waited for the disk has recorded its end meanwhile
            await journal.commit()
        self._row = find_session(self._services.database, row.session_key)

    def _converse(self, row: SessionRow) -> None:
        self._conversation = Conversation(self._services, row, self._memory.ceiling)

    async def on_failure(self, *exc_info: Any) -> None:
        """Count crashes; a session that goes on crashing gives up what waits, so that nobody hangs."""
        del exc_info
        self._memory.crashes += 1
        if self._memory.crashes >= CRASHES_MAX:
            self._refuse_waiting("internal", "the session crashed repeatedly; see the log, then try again")

    async def on_drain(self) -> None:
        """Let the running turn finish, as long as the shutdown time allows; what waits is answered at once."""
        self._refuse_waiting("shutting_down", "the session is ending; send the turn again")
        if self._running is not None:
            async with trio.open_nursery() as nursery:
                for event in (self._running_done, self._services.hurry):
                    nursery.start_soon(_end_at, event, nursery.cancel_scope)

    def on_idle(self) -> None:
        """Leave memory until the next message; what is closed, or was never opened, has nothing to come back for."""
        if self._row is None or self._row.state == "closed":
            self.stop()
        else:
            self.passivate()

    async def on_stop(self) -> None:
        """Answer what waits, and let go of folders and of what the backend keeps; also before it leaves memory."""
        self._refuse_waiting("shutting_down", "the session is ending; send the turn again")
        if self._row is not None:
            await self._services.runtime.close(self._row.id)

    async def on_receive(self, message: Any) -> Any:  # noqa: C901, PLR0911, PLR0912 - one line for each message
        """Handle one message; a refusal is a reply, not a crash."""
        try:
            match message:
                case RunTurn():
                    attached = self._asked_before(message)
                    if attached is None:
                        self._enqueue(message)
                    return attached
                case FollowTurn():
                    return self._follow(message)
                case Init():
                    return await self._init(message)
                case Cancel():
                    return await self._cancel(message)
                case Close():
                    return await self._close(message)
                case Status():
                    return self._status(message)
                case AnswerCall():
                    return self._answer_call(message)
                case Subscribe():
                    self._memory.on_idle = message.on_idle
                    return None
                case EvictIfIdle():
                    return await self._evict(message)
        except RequestError as error:
            if self._row is None:
                # There is no session behind this key: nobody is to fill the memory with questions about it.
                self.stop()
            return Refusal(error)
        except StorageError as error:
            # Nothing of it was recorded and nothing is different here: it can be asked again.
            _log.error(
                "not recorded", session=self._memory.key, message=type(message).__name__, error=str(error)
            )
            return Refusal(RequestError("internal", error.message))
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
        if self._services.openers.has(caller.connection_id, row.id):
            return True
        token = caller.session_token
        return token is not None and hmac.compare_digest(
            token.encode(), token_of(self._services.secret, row.id).encode()
        )

    def _parents(self) -> list[str]:
        return [] if self._conversation is None else [self._conversation.root_cid]

    # --- open and close

    async def _init(self, message: Init) -> dict[str, Any]:
        caller = message.caller
        if message.mode == "persistent" and not caller.authenticated:
            raise RequestError(
                "invalid_params", "`params.mode`: persistent sessions are for proved identities"
            )
        if self._row is None:
            if not caller.authenticated and _is_reserved(self._memory.key):
                raise RequestError(
                    "unauthorized", "keys like this one are for proved identities; choose another key"
                )
            if (
                not caller.authenticated
                and self._services.openers.count(caller.connection_id) >= GUEST_SESSIONS_MAX
            ):
                raise RequestError(
                    "queue_full",
                    f"this connection has opened {GUEST_SESSIONS_MAX} sessions; use those, or prove who you are",
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
        self._note_opener(row, caller)
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
        journal = self._services.journal(row)
        journal.add(CreateSession(row))
        self._lifecycle(journal, row, "opened", None, [])
        try:
            await journal.commit()
        except ConflictError as error:
            raise RequestError("unauthorized", f"the session key {self._memory.key!r} is taken") from error
        self._row = row
        self._converse(row)
        self._note_opener(row, message.caller)

    def _note_opener(self, row: SessionRow, caller: Any) -> None:
        # The daemon itself, for standing agents and subagents, comes over no connection.
        is_own = self._memory.ceiling is not None or caller.identity == RUNNER
        # Who has a token in this one request has opened the session for the connection; who only visits has not.
        if not is_own and (not caller.authenticated or caller.identity == row.owner):
            self._services.openers.add(caller.connection_id, row.id)

    async def _take_over(self, row: SessionRow, message: Init) -> None:
        journal = self._services.journal(row)
        if row.state == "closed":
            self._lifecycle(journal, row, "reopened", None, self._parents())
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
            self._is_closing = True
            self._running.scope.cancel()
            await self._running_done.wait()
            row = self._row or row  # the turn's own end may have closed it
        if row.state != "closed":
            await self._shut(message.event, message.reason)
        return {"ok": True}

    async def _shut(self, event: str, reason: str | None) -> None:
        row = self._row
        assert row is not None  # noqa: S101 - only an existing session is shut
        last = last_turn(self._services.database, row.id)
        if last is not None and last.status == "running":
            raise RequestError(
                "internal", "the last turn of this session is not recorded yet; try again later"
            )
        journal = self._services.journal(row)
        self._lifecycle(journal, row, event, reason, self._parents())
        journal.add(UpdateSession(row.id, self._services.clock.stamp(), state="closed"))
        await journal.commit()
        self._row = find_session(self._services.database, row.session_key)
        await self._services.runtime.close(row.id)

    async def _evict(self, message: EvictIfIdle) -> None:
        # Read anew: a turn that is running has been active since the last one ended.
        row = self._row = find_session(self._services.database, self._memory.key)
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
        row = self._require(message.caller)
        if row.state == "closed":
            raise RequestError("session_closed", CLOSED)
        check_leave(self._services, self._services.acting(row))
        queued_max = self._services.limits.queued_turns
        if len(self._memory.waiting) >= queued_max:
            raise RequestError(
                "queue_full", f"{queued_max} turns wait in this session already; try again later"
            )
        self._memory.waiting.append(message)
        self._run_next()
        if self._memory.waiting and not self._memory.is_guarded:
            # Turns wait over every restart, but not beyond the address: a kill from above lets no hook answer them.
            self._memory.is_guarded = True
            self.ref.when_dead(self._memory.give_up)

    # --- a turn that is asked for again

    def _asked_before(self, message: RunTurn) -> Attached | None:
        """Have the turn of the same idempotency key followed, if there is one: waiting, running or ended."""
        if message.key is None:
            return None
        row = self._require(message.caller)
        follower = Follower(message.sink, message.done)
        running = [] if self._running is None else [self._running.message]
        for other in (*running, *self._memory.waiting):
            if other.key == message.key:
                _check_same(other.request_hash, message)
                other.followers.append(follower)
                run = self._running if other in running else None
                return Attached(run.turn_id or "", run.seen) if run is not None else Attached("", 0)
        found = find_turn_by_key(self._services.database, row.id, message.key)
        if found is None:
            return None
        turn, request_hash = found
        _check_same(request_hash, message)
        return Attached(turn.id, None, self._answer_of(turn), turn)

    def _follow(self, message: FollowTurn) -> Attached:
        row = self._require(message.caller)
        if self._running is not None and self._running.turn_id == message.turn_id:
            self._running.message.followers.append(message.follower)
            return Attached(message.turn_id, self._running.seen)
        turn = find_turn(self._services.database, row.id, message.turn_id)
        if turn is None:
            raise RequestError("invalid_params", "`params.turn_id`: this session has no such turn")
        return Attached(turn.id, None, self._answer_of(turn), turn)

    def _answer_of(self, turn: TurnRow) -> tuple[str, str] | RequestError:
        """Return how a turn ended, as far as the store knows."""
        if turn.status in ("complete", "cancelled"):
            return turn.status, turn.id
        continued = continuation_of(self._services.database, turn.id)
        if continued is not None:
            return RequestError(
                "internal", f"turn {turn.id} was cut off and gone on with in turn {continued}"
            )
        return RequestError(
            "internal", f"turn {turn.id} ended {turn.status}; send it again to have it run anew"
        )

    # --- turns in line

    def _run_next(self) -> None:
        row, conversation = self._row, self._conversation
        if self._running is not None or not self._memory.waiting or row is None or conversation is None:
            return
        message = self._memory.waiting.pop(0)
        lost = RequestError("internal", "the turn was lost; see the log, then try again")
        self._running = TurnRun(self._services, conversation, row, message, trio.CancelScope(), lost)
        self._running_done = trio.Event()
        self.start_task(self._run_turn, self._running, name="turn")

    async def _run_turn(self, run: TurnRun) -> None:
        is_recorded = False
        try:
            await run.run()
            is_recorded = run.is_recorded and await self._is_settled()
        finally:
            self._running = None
            self._is_closing = False
            self._running_done.set()
            run.message.answer(run.answer)
        self._memory.crashes = 0
        if not is_recorded:
            # Nothing else runs before it is: this turn as interrupted, or the end of the session behind it.
            await self._resume(run.row)
        elif self._memory.waiting:
            self._run_next()
        elif self._memory.on_idle is not None:
            self._memory.on_idle()

    async def _is_settled(self) -> bool:
        try:
            await self._settle()
        except StorageError:
            return False
        return True

    async def _settle(self) -> None:
        """Close the session behind its turn where its mode, or an eviction that was put off, says so."""
        row = self._row = find_session(self._services.database, self._memory.key)
        if row is None or self._is_closing or row.state == "closed":
            return
        if row.mode == "oneshot":
            await self._shut("closed", "oneshot")
            self._refuse_waiting("session_closed", "a oneshot session closes after its turn")
        elif self._memory.evict_after_turn and not self._memory.waiting:
            self._memory.evict_after_turn = False
            await self._shut("evicted", "idle")
            self._refuse_waiting("session_closed", CLOSED)  # what came while that was written

    # --- cancel and status

    async def _cancel(self, message: Cancel) -> dict[str, Any]:
        row = self._require(message.caller)
        if row.state == "closed":
            raise RequestError("session_closed", CLOSED)
        if self._running is not None:
            self._running.scope.cancel()
            await self._services.runtime.cancel(row.id)
        return {"ok": True}

    def _status(self, message: Status) -> dict[str, Any]:
        row = self._require(message.caller)
        if self._running is None:
            return {"state": "closed" if row.state == "closed" else "idle"}
        return {"state": "cancelled" if self._running.scope.cancel_called else "running"}

    def _answer_call(self, message: AnswerCall) -> dict[str, Any]:
        self._require(message.caller)
        if self._running is None:
            raise unknown_call(message.call_id)
        self._running.delegations.answer(message.call_id, message.content, is_error=message.is_error)
        return {"ok": True}

    def _refuse_waiting(self, code: str, why: str) -> None:
        self._memory.refuse_waiting(RequestError(code, why))


def _check_same(request_hash: str | None, message: RunTurn) -> None:
    if request_hash != message.request_hash:
        raise RequestError(
            "invalid_params",
            "`params.idempotency_key`: was used for another turn; choose a new one for this one",
        )


async def _end_at(event: trio.Event, scope: trio.CancelScope) -> None:
    await event.wait()
    scope.cancel()


def _is_reserved(key: str) -> bool:
    """Say whether a key `<agent_id>:<channel>:<peer…>` is of a reserved channel, or the name of the daemon itself."""
    parts = key.split(":")
    return key == RUNNER or (len(parts) > 1 and parts[1] in RESERVED_CHANNELS)


def idle_since(clock: StrictClock, ttl_s: float) -> str:
    """Return the moment before which a session must have been used last to be evicted now."""
    return rfc3339(clock.moment() - dt.timedelta(seconds=ttl_s))
