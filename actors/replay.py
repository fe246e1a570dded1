"""Telling a client what it missed of a turn, and then what comes, without a gap and without a repetition."""

from __future__ import annotations

from collections import deque
from typing import Any, Final

import apsw
import msgspec
import trio

from actors.service import Emit
from actors.session_messages import Attached
from protocol.errors import CODES, RequestError
from protocol.events import Done, Event, Failed, LedgerAppend, TurnStarted, encode
from store.event_log import EventLog
from store.ledger import find_entry
from store.sessions import TurnRow, history_of_turn

PACE: Final = 64
"""Events that are sent before others get a turn."""

CUT_OFF: Final = "the daemon ended in the middle of this turn; it is recorded as interrupted"


class Tail:
    """Holds the events of a running turn back until those before them have been sent."""

    def __init__(self, emit: Emit) -> None:
        self.emit = emit
        self._held: deque[Event] | None = deque()

    def take(self, event: Event) -> None:
        """Take the next event."""
        if self._held is None:
            self.emit(event)
        else:
            self._held.append(event)

    async def release(self, from_seq: int) -> None:
        """Send what was held back, from number `from_seq` on, and hold nothing back any more."""
        while self._held:
            event = self._held.popleft()
            if event.seq >= from_seq:
                self.emit(event)
                if event.seq % PACE == 0:
                    await self.emit.room()
        self._held = None


class NotKeptError(RequestError):
    """The events that are asked for are not kept, or not any more."""

    def __init__(self) -> None:
        super().__init__(
            "invalid_params",
            "`params.turn_id`: the events of this turn are not kept any more; its text is in the history",
        )


async def replay(
    log: EventLog | None, database: apsw.Connection, attached: Attached, from_seq: int, emit: Emit
) -> None:
    """Send the events from number `from_seq` on and before `attached.seen`; all of them where the turn has ended.

    Raises NotKeptError, with nothing sent; for a turn that ended in an error, that error, with its last event sent.
    """
    seen = attached.seen
    if seen is not None and from_seq >= seen:
        return
    lines = None if log is None else await trio.to_thread.run_sync(log.read, attached.turn_id, 0, seen)
    if lines is None or (seen is not None and len(lines) < seen):
        raise NotKeptError
    error = None
    if seen is None:
        last: dict[str, Any] = msgspec.json.decode(lines[-1]) if lines else {}
        if isinstance(attached.answer, RequestError):
            error, lines = _failure(last, lines, attached, attached.answer)
        elif last.get("type") != "done":
            lines = _with_its_end(database, attached.turn, last, lines)
    for number, line in enumerate(lines[from_seq:], 1):
        emit(msgspec.Raw(line))
        if number % PACE == 0:
            await emit.room()
    if error is not None:
        raise error


def _failure(
    last: dict[str, Any], lines: list[bytes], attached: Attached, answer: RequestError
) -> tuple[RequestError, list[bytes]]:
    """Return the error that a turn ended with, and its events; what a crash cut off gets its last event here."""
    if last.get("type") == "error":
        return RequestError(last["code"] if last["code"] in CODES else "internal", last["message"]), lines
    error = answer
    if attached.turn is None or attached.turn.status == "interrupted":
        error = RequestError("internal", f"{CUT_OFF}; {answer.message}")
    # It may have been killed before the first event was kept.
    begun = lines or [encode(TurnStarted(attached.turn_id, seq=0))]
    return error, [*begun, encode(Failed(error.code, error.message, seq=len(begun)))]


def _with_its_end(
    database: apsw.Connection, turn: TurnRow | None, last: dict[str, Any], lines: list[bytes]
) -> list[bytes]:
    """Return the events of a turn whose end was recorded, and not its last events: the daemon was killed between.

    Raises NotKeptError where more is missing than the end.
    """
    if turn is None or turn.cid is None:
        raise NotKeptError
    said, kept = _said(lines), _kept(database, turn.id)
    # Of a block that a cancellation cut off, the history has nothing.
    if not (said == kept or (turn.status == "cancelled" and said.startswith(kept))):
        raise NotKeptError
    whole = [*lines]
    if last.get("entry", {}).get("cid") != turn.cid:
        found = find_entry(database, turn.cid)
        if found is None:
            raise NotKeptError
        whole.append(encode(LedgerAppend(found[1], seq=len(whole))))
    whole.append(encode(Done(turn.stop_reason or "cancelled", seq=len(whole))))
    return whole


def _said(lines: list[bytes]) -> str:
    events = (msgspec.json.decode(line) for line in lines)
    return "".join(event["text"] for event in events if event["type"] == "text_delta")


def _kept(database: apsw.Connection, turn_id: str) -> str:
    rows = [row for row in history_of_turn(database, turn_id) if row.role == "assistant"]
    blocks = (block for row in rows for block in row.content)
    return "".join(block["text"] for block in blocks if block["type"] == "text")
