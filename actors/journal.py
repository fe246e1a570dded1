"""A journal: what a session, or the daemon itself, is about to commit together."""

from __future__ import annotations

from typing import Any

import trio

from actors.kernel import Ref
from actors.ledger_writer import commit
from protocol.entry import Entry, compose_entry
from store.clock import StrictClock
from store.ledger import AppendEntry
from store.unit_of_work import ConflictError, Write


class Journal:
    """Collects writes and ledger entries of one producer until they are committed as one unit.

    `entity_id` and `source` are session keys (`runner` for the daemon), `actor` the governed identity.
    """

    __slots__ = ("_pending", "_writer", "actor", "clock", "entity_id")

    def __init__(self, writer: Ref, clock: StrictClock, *, entity_id: str, actor: str) -> None:
        self._writer = writer
        self._pending: list[Write] = []
        self.clock = clock
        self.entity_id = entity_id
        self.actor = actor

    def entry(self, quality: str, target: str, payload: dict[str, Any], parents: list[str]) -> Entry:
        """Make an entry and let it join the next commit."""
        entry, text = compose_entry(
            entity_id=self.entity_id,
            target=target,
            quality=quality,
            timestamp=self.clock.stamp(),
            source=self.entity_id,
            actor=self.actor,
            parents=parents,
            payload=payload,
        )
        self._pending.append(AppendEntry(entry, text))
        return entry

    def add(self, *writes: Write) -> None:
        """Let writes join the next commit."""
        self._pending.extend(writes)

    def withdraw(self) -> list[Write]:
        """Take back what was to be committed, and return it."""
        pending, self._pending = self._pending, []
        return pending

    async def commit(self) -> None:
        """Commit what was collected; returns when it is durable. Raises like `actors.ledger_writer.commit`.

        Not cut short by cancellation: a turn that did not know whether its step was recorded could not go on from it.
        After a ConflictError it is forgotten, to be made anew. After any other failure it stays for the next commit:
        what is recorded later may rest on these entries, and the ledger holds no entry before its parents.
        """
        pending = self.withdraw()
        if not pending:
            return
        try:
            with trio.CancelScope(shield=True):
                await commit(self._writer, *pending)
        except ConflictError:
            raise
        except BaseException:
            self._pending = [*pending, *self._pending]
            raise
