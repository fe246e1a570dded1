"""Telling a client what it missed of a turn, and then what comes, without a gap and without a repetition."""

from __future__ import annotations

from collections import deque
from typing import Any, Final

import msgspec
import trio

from actors.service import Emit
from actors.session_messages import Attached
from protocol.errors import CODES, RequestError
from protocol.events import Event, Failed, encode
from store.event_log import EventLog

PACE: Final = 64
"""Events that are sent before others get a turn."""

CUT_OFF: Final = "the daemon ended in the middle of this turn; it is recorded as interrupted"


class Tail:
    """Holds the events of a running turn back until those before them have been sent."""

    def __init__(self, emit: Emit) -> None:
        self._emit = emit
        self._held: deque[Event] | None = deque()

    def take(self, event: Event) -> None:
        """Take the next event."""
        if self._held is None:
            self._emit(event)
        else:
            self._held.append(event)

    async def release(self, from_seq: int) -> None:
        """Send what was held back, from number `from_seq` on, and hold nothing back any more."""
        while self._held:
            event = self._held.popleft()
            if event.seq >= from_seq:
                self._emit(event)
                if event.seq % PACE == 0:
                    await self._emit.room()
        self._held = None


class NotKeptError(RequestError):
    """The events that are asked for are not kept, or not any more."""

    def __init__(self) -> None:
        super().__init__(
            "invalid_params",
            "`params.turn_id`: the events of this turn are not kept any more; its text is in the history",
        )


async def replay(log: EventLog | None, attached: Attached, from_seq: int, emit: Emit) -> None:
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
            error, lines = _ending(last, lines, attached.answer)
        elif last.get("type") != "done":
            raise NotKeptError
    for number, line in enumerate(lines[from_seq:], 1):
        emit(msgspec.Raw(line))
        if number % PACE == 0:
            await emit.room()
    if error is not None:
        raise error


def _ending(
    last: dict[str, Any], lines: list[bytes], answer: RequestError
) -> tuple[RequestError, list[bytes]]:
    """Return the error that a turn ended with, and its events; what a crash cut off gets its last event here."""
    if last.get("type") == "error":
        return RequestError(last["code"] if last["code"] in CODES else "internal", last["message"]), lines
    error = RequestError("internal", f"{CUT_OFF}; {answer.message}")
    return error, [*lines, encode(Failed(error.code, error.message, seq=len(lines)))]
