"""What clients were told, and what was done to the daemon: the history that the store is held against."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any


@dataclass(slots=True)
class Stream:
    """What one request for a turn brought: events from number `from_seq` on, and its end.

    Without `result` and `refusal` (code and message) the connection was lost before the end.
    """

    from_seq: int
    events: list[dict[str, Any]] = field(default_factory=list)
    result: dict[str, Any] | None = None
    refusal: tuple[str, str] | None = None

    @property
    def has_ended(self) -> bool:
        """Whether the daemon said how the turn ended."""
        return self.result is not None or self.refusal is not None


@dataclass(slots=True)
class Asked:
    """A turn that a client asked for, as often as it asked.

    `token` stands in its message and nowhere else. `key`: its idempotency key, if it has one. `words`: how many words a
    slow answer has; `path` and `content`: the file that it writes. `is_open`: there is more to ask about it.
    """

    session: str
    token: str
    message: str
    key: str | None = None
    words: int = 0
    path: str | None = None
    content: str | None = None
    streams: list[Stream] = field(default_factory=list)
    is_open: bool = True

    @property
    def turn_ids(self) -> set[str]:
        """Every id under which it was told of."""
        told = {event["turn_id"] for event in self.events if event["type"] == "turn_started"}
        return told | {stream.result["turn_id"] for stream in self.streams if stream.result}

    @property
    def turn_id(self) -> str | None:
        """Its id, as far as a client was told."""
        return next(iter(self.turn_ids), None)

    @property
    def events(self) -> Iterator[dict[str, Any]]:
        """Every event of every stream."""
        return (event for stream in self.streams for event in stream.events)

    @property
    def known(self) -> dict[int, dict[str, Any]]:
        """The events by their number."""
        return {event["seq"]: event for event in self.events}

    @property
    def ends(self) -> list[tuple[str, ...]]:
        """Every end that was told, in words that can be compared."""
        return [
            ("result", stream.result["status"]) if stream.result else ("refusal", *(stream.refusal or ()))
            for stream in self.streams
            if stream.has_ended
        ]


@dataclass(slots=True)
class Mailed:
    """Mail that the operator sent; `id` is None as long as nobody said that it was taken."""

    token: str
    to: str
    id: str | None = None


@dataclass(slots=True)
class Posted:
    """A line that the operator put on the board."""

    text: str
    line: str | None = None


@dataclass(slots=True)
class Kept:
    """A session as its client knows it: every answer to `session.init`, and how often closing was acknowledged.

    `is_closed`: the last thing that was acknowledged is that it is closed, and nothing was asked for since.
    """

    key: str
    agent: str
    is_guest: bool = False
    opened: list[dict[str, Any]] = field(default_factory=list)
    closed: int = 0
    is_closed: bool = False


@dataclass(slots=True)
class Life:
    """One life of the daemon: how it was to end, and what was measured. Times in seconds; `began_at` is RFC 3339."""

    number: int
    plan: str
    began_at: str = ""
    ready_s: float | None = None
    lived_s: float = 0.0
    end: str = ""
    was_hurried: bool = False
    files_at_ready: int | None = None
    files_at_end: int | None = None


@dataclass(frozen=True, slots=True)
class Violation:
    """A promise that was broken: which, where in the campaign, and what shows it."""

    rule: str
    evidence: str
    seed: int = 0
    life: int = 0
    moment: str = ""


@dataclass(slots=True)
class Told:
    """Everything that clients of one root were told."""

    asked: list[Asked] = field(default_factory=list)
    mails: list[Mailed] = field(default_factory=list)
    posts: list[Posted] = field(default_factory=list)
    sessions: dict[str, Kept] = field(default_factory=dict)
    faults: list[Violation] = field(default_factory=list)

    def fault(self, rule: str, evidence: str) -> None:
        """Note what a client saw that it must never see."""
        self.faults.append(Violation(rule, evidence))
