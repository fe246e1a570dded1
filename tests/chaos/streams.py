"""Holding what clients saw of one turn, over all its streams, to what the protocol promises; no store is asked."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from tests.chaos.record import Asked, Violation

EXPECTED_REFUSALS = (
    ("shutting_down", ""),
    ("session_closed", ""),
    ("queue_full", ""),
    ("internal", "in the middle"),
    ("internal", "ended interrupted"),
    ("internal", "ended failed"),
    ("internal", "was cut off"),
    ("backend_error", ""),
    ("backend_overloaded", ""),
    ("backend_unavailable", ""),
    ("rate_limited", ""),
)
"""How a turn may end that did not end well under this load: code, and what its message holds."""


def check_streams(asked: Asked) -> Iterator[Violation]:
    """Yield what is wrong with the streams of a turn, each by itself and all of them together."""
    where = f"{asked.session} {asked.token} (turn {asked.turn_id})"
    if len(asked.turn_ids) > 1:
        yield Violation("one key, one turn", f"{where}: told of {sorted(asked.turn_ids)}")
    known = {}
    for number, stream in enumerate(asked.streams):
        numbers = [event["seq"] for event in stream.events]
        if numbers != list(range(stream.from_seq, stream.from_seq + len(numbers))):
            yield Violation(
                "events are numbered without a gap",
                f"{where}: stream {number} from {stream.from_seq}: {numbers}",
            )
        for event in stream.events:
            before = known.setdefault(event["seq"], event)
            if _comparable(before) != _comparable(event):
                yield Violation(
                    "what was seen is replayed as it was",
                    f"{where}: event {event['seq']} was {before}, in stream {number} it is {event}",
                )
        if stream.refusal is not None and not _is_expected(stream.refusal):
            yield Violation("no fault is told", f"{where}: {stream.refusal}")
    ended = [stream for stream in asked.streams if stream.has_ended]
    if ended:
        yield from _check_end(asked, where)
    elif not asked.is_open and known:
        yield Violation("every turn that began has an end", f"{where}: {len(known)} events and no end")


def _check_end(asked: Asked, where: str) -> Iterator[Violation]:
    # Where a turn did not end well, the words of the refusal depend on whether its events are there: one kind of end.
    kinds = {end if end[0] == "result" else ("refusal",) for end in asked.ends}
    if len(kinds) > 1:
        yield Violation("a turn ends once", f"{where}: {sorted(set(asked.ends))}")
    known = asked.known
    if not known:
        return
    first, last = known[min(known)], known[max(known)]
    if sorted(known) != list(range(len(known))):
        yield Violation("nothing of a turn is missing", f"{where}: {sorted(known)}")
    if first["type"] != "turn_started":
        yield Violation("a turn begins with its name", f"{where}: {first}")
    wanted = "done" if ("result",) in {kind[:1] for kind in kinds} else "error"
    ends = [event for event in known.values() if event["type"] in ("done", "error")]
    if last["type"] != wanted or len(ends) != 1:
        yield Violation("the last event is the end", f"{where}: {kinds}, ends {ends}, last {last}")


def _comparable(event: dict[str, Any]) -> dict[str, Any]:
    # What is said of a turn that was cut off changes when it is gone on with; that it was does not.
    return {**event, "message": ""} if event["type"] == "error" else event


def _is_expected(refusal: tuple[str, str]) -> bool:
    return any(refusal[0] == code and words in refusal[1] for code, words in EXPECTED_REFUSALS)


def streamed_text(asked: Asked) -> str:
    """Return the text that was streamed, in order."""
    known = asked.known
    return "".join(
        known[number].get("text", "") for number in sorted(known) if known[number]["type"] == "text_delta"
    )


def promised_words(asked: Asked) -> str:
    """Return what a slow answer says."""
    return "".join(f"word{number} " for number in range(1, asked.words + 1))
