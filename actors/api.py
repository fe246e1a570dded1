"""What the runner does for those who connect: each method of the native protocol, carried out."""

from __future__ import annotations

import hmac
import uuid
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any
from weakref import WeakValueDictionary

import apsw
import structlog
import trio

from actors.court import Reload, Reloaded
from actors.directory import Directory, new_future
from actors.kernel import ActorDeadError, Future, Ref
from actors.ledger_writer import commit
from actors.overview import Overview
from actors.replay import NotKeptError, Tail, replay
from actors.runtime.base import ToolDefinition
from actors.service import Caller, Emit
from actors.session_messages import (
    AnswerCall,
    Attached,
    Cancel,
    Close,
    Follower,
    FollowTurn,
    Init,
    RunTurn,
    Status,
)
from actors.session_services import SessionServices
from actors.standing import Unpark
from actors.tools.mail import RecipientError, check_recipient, check_text
from protocol.acting import OPERATOR
from protocol.canonical import blake3_hex
from protocol.errors import RequestError
from protocol.events import encode
from protocol.native import frames
from protocol.native.frames import Params
from protocol.roster import tier_of
from protocol.tiers import Tier
from store.board import TEXT_CHARACTERS_MAX, Post, PostBoard, fold
from store.mailbox import MarkRead, Reader, SendMail, compose, find_mail

_log = structlog.get_logger("api")


@dataclass(frozen=True, slots=True)
class Doors:
    """The parts of the daemon that requests go to."""

    directory: Directory
    court: Callable[[], Ref]
    services: Callable[[], SessionServices]
    database: Callable[[], apsw.Connection]
    overview: Overview


class Api:
    """Carries out requests; implements `actors.service.Service`."""

    def __init__(self, doors: Doors, operator_token: str) -> None:
        self._doors = doors
        self._token = operator_token.encode()
        # A replay has the events of a turn in memory, and a connection may ask for many: it gets one after the other.
        self._replaying: WeakValueDictionary[str, trio.Lock] = WeakValueDictionary()

    def authenticate(self, token: str) -> str | None:
        """Return `operator` for the operator's token, None for any other; compared in constant time."""
        return OPERATOR if hmac.compare_digest(token.encode("utf-8", "replace"), self._token) else None

    def connection_closed(self, connection_id: str) -> None:
        """Forget which sessions the connection opened; nobody will use its id again."""
        self._doors.services().openers.forget(connection_id)

    async def call(  # noqa: C901, PLR0911, PLR0912 - one line for each method
        self, caller: Caller, method: str, params: Params, emit: Emit
    ) -> dict[str, Any]:
        """Carry out one request; see `actors.service.Service.call`."""
        del method
        who = replace(caller, session_token=params.session_token)
        match params:
            case frames.TurnRun():
                return await self._run_turn(who, params, emit)
            case frames.TurnResume():
                return await self._resume(who, params, emit)
            case frames.SessionInit():
                return await self._init(who, params)
            case frames.SessionCancel():
                return await self._ask_session(params.session_key, Cancel(who))
            case frames.SessionClose():
                return await self._ask_session(params.session_key, Close(who, params.reason))
            case frames.SessionStatus():
                return await self._ask_session(params.session_key, Status(who))
            case frames.ToolAnswer():
                answer = AnswerCall(who, params.id, params.plain_content(), params.is_error)
                return await self._ask_session(params.session_key, answer)
            case frames.RunnerStatus():
                return self._doors.overview.status()
            case frames.RunnerTree():
                return self._doors.overview.tree(params.path, unfolded=params.unfolded, skip=params.skip)
            case frames.AgentsList():
                return {"agents": self._doors.overview.agents()}
            case frames.AgentsRetry():
                return await self._retry(params.agent_id)
            case frames.RunnerReload():
                reloaded: Reloaded = await self._doors.court().ask(Reload())
                return {
                    "changed": reloaded.changed,
                    "problem": reloaded.problem,
                    "problems": list(reloaded.problems),
                }
            case frames.MailSend():
                return await self._send_mail(params)
            case frames.MailRead():
                return await self._read_mail(params.ids)
            case frames.BoardPost():
                return await self._post(params)
        raise RequestError("unknown_method", f"{type(params).__name__} is not carried out here")

    # --- sessions

    async def _ask_session(self, key: str, message: Any) -> dict[str, Any]:
        answer: dict[str, Any] = await self._doors.directory.ask(key, message)
        return answer

    async def _init(self, who: Caller, params: frames.SessionInit) -> dict[str, Any]:
        key = params.session_key or f"{params.agent_id}:ws:{uuid.uuid4()}"
        message = Init(who, params.agent_id, params.model, params.mode)
        answer: dict[str, Any] = await self._doors.directory.ask(key, message, create=True)
        return answer

    async def _run_turn(self, who: Caller, params: frames.TurnRun, emit: Emit) -> dict[str, Any]:
        messages = (
            [{"role": "user", "content": params.message}]
            if params.messages is None
            else [message.plain() for message in params.messages]
        )
        tools = (
            None
            if params.tools is None
            else [ToolDefinition(tool.name, tool.description, tool.input_schema) for tool in params.tools]
        )
        tail, key = Tail(emit), params.idempotency_key
        message = RunTurn(
            who,
            messages,
            params.system,
            tools,
            emit if key is None else tail.take,
            new_future(),
            delegates=params.execute == "client",
            key=key,
            request_hash=None if key is None else _hash_of_turn(params),
        )
        attached: Attached | None = await self._doors.directory.ask(params.session_key, message)
        if attached is None:
            await tail.release(0)
            return _turn_result(await message.done.wait())
        try:
            return await self._catch_up(who, attached, 0, tail, message.done)
        except NotKeptError:
            # Who asks again after so long wants to know how it ended; the events are a courtesy.
            if isinstance(attached.answer, RequestError):
                raise attached.answer from None
            if attached.answer is None:
                raise
            return _turn_result(attached.answer)

    async def _resume(self, who: Caller, params: frames.TurnResume, emit: Emit) -> dict[str, Any]:
        tail = Tail(emit)
        follower = Follower(tail.take, new_future())
        message = FollowTurn(who, params.turn_id, follower)
        attached: Attached = await self._doors.directory.ask(params.session_key, message)
        return await self._catch_up(who, attached, params.from_seq, tail, follower.done)

    async def _catch_up(
        self, who: Caller, attached: Attached, from_seq: int, tail: Tail, done: Future
    ) -> dict[str, Any]:
        async with self._replaying.setdefault(who.connection_id, trio.Lock()):
            await replay(self._doors.services().events, self._doors.database(), attached, from_seq, tail.emit)
        if isinstance(attached.answer, tuple):
            return _turn_result(attached.answer)
        await tail.release(from_seq)
        return _turn_result(await done.wait())

    # --- the operator's own methods

    async def _send_mail(self, params: frames.MailSend) -> dict[str, Any]:
        services = self._doors.services()
        roster = services.enacted.content.roster
        problem = check_text(params.subject, params.body)
        if problem is not None:
            raise RequestError("invalid_params", f"`params.body`: {problem}")
        try:
            to_role = check_recipient(roster, params.to)
        except RecipientError as error:
            raise RequestError("invalid_params", f"`params.to`: {error}") from error
        sender = params.sender or OPERATOR
        identity = roster.get(sender)
        if sender != OPERATOR and identity is None:
            raise RequestError("invalid_params", f"`params.sender`: {sender!r} is not in the roster")
        above = None if params.thread is None else find_mail(self._doors.database(), params.thread)
        if params.thread is not None and above is None:
            raise RequestError("invalid_params", f"`params.thread`: there is no message {params.thread!r}")
        mail = compose(
            sender=sender,
            recipient=params.to,
            subject=params.subject,
            body=params.body,
            moment=services.clock.moment(),
            tier=Tier.STANDING if sender == OPERATOR else tier_of(identity),
            thread=None if above is None else above.thread,
            to_role=to_role,
        )
        await commit(services.writer, SendMail(mail))
        services.announce([mail])
        return {"id": mail.id}

    async def _read_mail(self, ids: list[str]) -> dict[str, Any]:
        services = self._doors.services()
        addresses = Reader(OPERATOR).addresses
        for mail_id in ids:
            mail = find_mail(self._doors.database(), mail_id)
            if mail is None or mail.recipient not in addresses:
                raise RequestError(
                    "invalid_params", f"`params.ids`: no message {mail_id!r} is the operator's"
                )
        await commit(services.writer, MarkRead(ids, OPERATOR, services.clock.stamp()))
        return {"read": len(ids)}

    async def _retry(self, agent: str) -> dict[str, Any]:
        """Un-park an agent wherever it is parked: its actor that crashed, or its wake-ups that failed.

        `actor` says how the actor was found: `parked`, `waiting` (for the end of its back-off), or None where it
        ran; `wake_ups` whether they had been given up.
        """
        overview = self._doors.overview
        standing = overview.standing()
        ref = standing.child(agent)
        if ref is None:
            raise RequestError("invalid_params", f"`params.agent_id`: there is no standing agent {agent!r}")
        before = ref.state
        try:
            has_crashed = await standing.retry(agent)
            were_parked = bool(await ref.ask(Unpark()))
        except ActorDeadError as error:
            raise RequestError("internal", f"{agent} was tried again and failed at once: {error}") from error
        actor = before if has_crashed else None
        _log.info("agent retried", agent=agent, actor=actor, wake_ups=were_parked)
        return {"retried": has_crashed or were_parked, "actor": actor, "wake_ups": were_parked}

    async def _post(self, params: frames.BoardPost) -> dict[str, Any]:
        services = self._doors.services()
        text = fold(params.text)
        if not text or len(text) > TEXT_CHARACTERS_MAX:
            raise RequestError(
                "invalid_params",
                f"`params.text`: a line has 1 to {TEXT_CHARACTERS_MAX} characters, this has {len(text)}",
            )
        agent = params.agent or OPERATOR
        if agent != OPERATOR and services.enacted.content.roster.get(agent) is None:
            raise RequestError("invalid_params", f"`params.agent`: {agent!r} is not in the roster")
        post = Post(agent, text, services.clock.stamp())
        await commit(services.writer, PostBoard(post))
        return {"line": post.line}


def _turn_result(answer: tuple[str, str]) -> dict[str, Any]:
    status, turn = answer
    return {"status": status, "turn_id": turn}


def _hash_of_turn(params: frames.TurnRun) -> str:
    """Return what tells whether two requests with one idempotency key ask for the same turn."""
    asked = [params.message, params.messages, params.system, params.tools, params.execute]
    return blake3_hex(encode(asked))
