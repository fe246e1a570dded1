"""A conversation: where a session stands in its own history and in the ledger, and the turns that follow from it."""

from __future__ import annotations

from actors.context import CHARACTERS_PER_TOKEN, Context
from actors.runtime.base import Ceiling, SessionIdentity, TurnRequest
from actors.session_messages import RunTurn
from actors.session_services import SessionServices
from actors.tools.delegated import Delegations
from actors.turn import Turn
from protocol.acting import VERIFY, channel_of
from protocol.tiers import Acting
from store.ledger import read_entries
from store.sessions import SessionRow, history_of, last_ended_cid, last_turn, turn_id


class Conversation:
    """What the next turn of a session builds on; read from the store, then followed from turn to turn.

    What was said is read when the first turn begins: a session that is only asked for its state, or closed, or brought
    back into memory for that, needs none of it. `root_cid` is the session's latest turn entry, or its opening.
    """

    def __init__(self, services: SessionServices, row: SessionRow, ceiling: Ceiling | None) -> None:
        self._services = services
        self._row = row
        self._ceiling = ceiling
        self._context: Context | None = None
        newest = last_turn(services.database, row.id)
        self._next_turn = 0 if newest is None else newest.seq + 1
        self._prev_cid = last_ended_cid(services.database, row.id)
        self.root_cid = self._prev_cid or self._opening()

    def _read_context(self) -> Context:
        rows = history_of(
            self._services.database,
            self._row.id,
            characters_max=self._services.limits.history_tokens_max * CHARACTERS_PER_TOKEN,
        )
        return Context(rows, shortened=bool(rows) and rows[0].seq > 0)

    def _opening(self) -> str:
        found = read_entries(
            self._services.database, entity_id=self._row.session_key, quality="session_lifecycle", limit=1
        )
        return found[0][1].cid

    def follow(self, turn: Turn, cid: str, *, changed: bool) -> None:
        """Go on behind a turn whose entry is `cid`; `changed` says that the store kept less of it than the turn had."""
        self._prev_cid = self.root_cid = cid
        self._next_turn += 1
        if changed:
            self._context = None  # to be read anew
        elif self._context is not None:
            self._context.append(turn.messages)

    def begin(self, row: SessionRow, message: RunTurn, acting: Acting) -> tuple[Turn, TurnRequest]:
        """Return the next turn, and what the runtime is asked for it; `row` is the session as it is now."""
        limits, registry = self._services.limits, self._services.registry
        tools = registry.definitions if message.tools is None else message.tools
        delegated: list[str] = []
        if message.delegates:
            tools = registry.with_own(tools)
            delegated = [tool.name for tool in tools if tool.name not in registry]
        turn = Turn(
            id=turn_id(row.id, self._next_turn),
            number=self._next_turn,
            identity=SessionIdentity(
                row.id, row.session_key, acting, self._model(row, acting), self._ceiling
            ),
            journal=self._services.journal(row),
            prev_cid=self._prev_cid,
            root_cid=self.root_cid,
            sink=message.sink,
            own=message.messages,
            announce=self._services.announce,
            run_child=lambda turn, ceiling, prompt, folder: self._services.run_child(
                row, turn, ceiling, prompt, folder
            ),
            delegations=Delegations(delegated, timeout_s=limits.delegated_tool_timeout_s),
            key=message.key,
            request_hash=message.request_hash,
            continuable=self._can_be_continued(row, message),
            continues=message.continues,
        )
        if self._context is None:
            self._context = self._read_context()
        stored = self._context.messages(limits.history_tokens_max)
        request = TurnRequest(
            turn_id=turn.id,
            system=(message.system,) if message.system else (),
            system_stable=0,
            messages=[*stored, *message.messages],
            tools=tools,
            model_calls_max=limits.model_calls_per_turn,
            own_from=len(stored),
        )
        return turn, request

    def _can_be_continued(self, row: SessionRow, message: RunTurn) -> bool:
        """Say whether the daemon itself can go on with a turn: not where its client brought tools or a prompt.

        A turn that goes on with another one is not gone on with again, so that one that ends the daemon does so once.
        """
        is_plain = message.tools is None and message.system is None and not message.delegates
        is_own = self._ceiling is None and channel_of(row.session_key) != VERIFY
        return is_plain and is_own and message.continues is None

    def _model(self, row: SessionRow, acting: Acting) -> str | None:
        if row.model is not None or acting.agent is None:
            return row.model
        identity = self._services.enacted.content.roster.get(acting.agent)
        return None if identity is None else identity.model
