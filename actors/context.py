"""What of a session's history the model is sent: bounded, cut only between turns (section 3 of the specification)."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from itertools import groupby
from typing import Any, Final

from actors.runtime.base import Block, Message
from protocol.canonical import canonical_json
from store.sessions import HistoryRow

CHARACTERS_PER_TOKEN: Final = 4
"""English text and JSON come to about four characters a token; the bound is a guard, not an invoice."""

LEFT_OUT: Final = (
    "[Earlier turns of this session are left out here, because the conversation has grown long. They are kept by the "
    "runner. Ask, or look into your files, for what you need of them.]"
)


class StoredMessage(dict[str, Any]):
    """A message of the history that remembers its canonical JSON: it is hashed anew with every turn that follows."""

    __slots__ = ("canonical",)

    def __init__(self, message: Message) -> None:
        super().__init__(message)
        self.canonical = canonical_json(message)


_StoredTurn = tuple[int, list[Message]]


def canonical_messages(messages: Sequence[Message]) -> bytes:
    """Return the canonical JSON of a list of messages, written out once for those of the history."""
    pieces = (
        message.canonical if isinstance(message, StoredMessage) else canonical_json(message)
        for message in messages
    )
    return b"[" + b",".join(pieces) + b"]"


class Context:
    """The newest turns of a session, as many as the bound allows."""

    __slots__ = ("_shortened", "_turns")

    def __init__(self, rows: Iterable[HistoryRow] = (), *, shortened: bool = False) -> None:
        self._shortened = shortened
        self._turns: list[_StoredTurn] = []
        for _, group in groupby(rows, key=lambda row: row.turn_id):
            self.append([{"role": row.role, "content": row.content} for row in group])
        if shortened and self._turns:
            # The oldest turn that was read may have lost its beginning.
            del self._turns[0]

    def append(self, messages: Sequence[Message]) -> None:
        """Add the messages of a turn that has ended."""
        kept: list[Message] = [StoredMessage(message) for message in messages if not _only_thinks(message)]
        if kept:
            self._turns.append((len(canonical_messages(kept)) // CHARACTERS_PER_TOKEN + 1, kept))

    def messages(self, tokens_max: int) -> list[Message]:
        """Return the messages of the newest turns that fit, oldest first; a marker stands for what is left out."""
        room = tokens_max
        first = len(self._turns)
        while first > 0 and self._turns[first - 1][0] <= room:
            first -= 1
            room -= self._turns[first][0]
        if first > 0:
            del self._turns[:first]
            self._shortened = True
        found = [message for _, messages in self._turns for message in messages]
        marker: Message = {"role": "user", "content": LEFT_OUT}
        return [marker, *found] if self._shortened else found


def _only_thinks(message: Message) -> bool:
    """Tell whether a message is thinking alone, as a cut-off turn leaves it: no model server takes that back."""
    content: str | list[Block] = message["content"]
    return (
        message["role"] == "assistant"
        and isinstance(content, list)
        and all(block.get("type") in ("thinking", "redacted_thinking") for block in content)
    )
