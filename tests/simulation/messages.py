"""Invariants of messages: each is handled in its turn, at most once, and none is lost; every question is answered."""

from __future__ import annotations

from collections import Counter, defaultdict, deque
from dataclasses import dataclass
from typing import Any

import trio

from actors.kernel import Future, Overflow, Ref
from actors.kernel.mailbox import Envelope
from actors.kernel.signals import ChildExited
from tests.simulation.trace import Trace
from tests.simulation.watching import Life, Watcher

ORDER = "messages are handled in the order of their arrival"
ONCE = "a message is handled at most once"
KEPT = "no message is lost"
WANTED = "nobody works for a caller who gave up"
BOUND = "a mailbox holds no more than its bound"
ANSWERED = "every question is answered, or its caller gave up"


@dataclass(slots=True)
class Question:
    """Somebody waits for an answer."""

    address: str
    message: str
    since: float


class Messages(Watcher):
    """Follows every message from its post to its handler."""

    def __init__(self, trace: Trace) -> None:
        self._trace = trace
        self._waiting: dict[Ref, deque[Envelope]] = defaultdict(deque)
        self._gone: set[int] = set()  # ids of envelopes in `_waiting` that need not be delivered
        self._letters: dict[Ref, Counter[int]] = defaultdict(Counter)
        self._held: list[Any] = []  # what is known by its id must not be collected meanwhile
        self.questions: dict[int, Question] = {}
        self._taken: dict[Life, list[Future]] = defaultdict(list)  # questions that an incarnation began on

    def begin_epoch(self) -> None:
        """Forget the tree before."""
        for table in (self._waiting, self._gone, self._letters, self._held, self.questions, self._taken):
            table.clear()

    def posted(self, ref: Ref, envelope: Envelope) -> None:
        self._waiting[ref].append(envelope)
        lane = ref.mailbox.lane
        told = sum(not other.is_signal for other in lane) if len(lane) > ref.mailbox.size_max else 0
        self._trace.check(
            BOUND, told <= ref.mailbox.size_max, lambda: f"{ref.path} holds {told} of {ref.mailbox.size_max}"
        )

    def withdrawn(self, envelope: Envelope) -> None:
        self._gone.add(id(envelope))
        self._held.append(envelope)

    def undeliverable(self, ref: Ref, message: Any, *, was_dropped: bool) -> None:
        overflow = ref.mailbox.overflow
        self._trace.check(
            KEPT,
            overflow in (Overflow.DROP_NEW, Overflow.DROP_OLD) if was_dropped else not ref.is_alive(),
            lambda: f"{ref.path} lives and lost a {type(message).__name__}",
        )
        self._letters[ref][id(message)] += 1
        self._held.append(message)

    def delivered(self, life: Life, envelope: Envelope, future: Future | None) -> None:
        if envelope.is_signal:
            return
        kind = type(envelope.message).__name__
        if future is not None:
            taken = self._taken[life]
            if len(taken) > 64:
                taken[:] = [other for other in taken if not other.done]
            taken.append(future)
        self._trace.check(
            WANTED,
            future is None or not future.abandoned,
            lambda: f"{life.name} works on an abandoned {kind}",
        )
        waiting = self._waiting[life.ref]
        known = any(other is envelope for other in waiting)
        self._trace.check(ONCE, known, lambda: f"{life.name} is given a {kind} again")
        while known and waiting:
            other = waiting.popleft()
            if other is envelope:
                break
            self._trace.check(
                ORDER,
                self._is_settled(life.ref, other),
                lambda other=other: (
                    f"{life.name} is given a {kind} before a {type(other.message).__name__} that came first"
                ),
            )

    def _is_settled(self, ref: Ref, envelope: Envelope) -> bool:
        """Whether a message that was never handled need not be."""
        if id(envelope) in self._gone or (envelope.reply_to is not None and envelope.reply_to.done):
            return True
        letters = self._letters[ref]
        if letters[id(envelope.message)]:
            letters[id(envelope.message)] -= 1
            return True
        return False

    def ended(self, life: Life, exited: ChildExited) -> None:
        del exited
        left = sum(not future.done for future in self._taken.pop(life, ()))
        self._trace.check(ANSWERED, not left, lambda: f"{life.name} ended and left {left} askers unanswered")

    def asked(self, number: int, ref: Ref, message: Any) -> None:
        self.questions[number] = Question(ref.path, type(message).__name__, trio.current_time())

    def answered(self, number: int, *, well: bool) -> None:
        del well
        self.questions.pop(number, None)

    def audit(self, *, patience_s: float) -> None:
        """Check that nobody has waited too long for an answer."""
        now = trio.current_time()
        overdue = [question for question in self.questions.values() if now - question.since > patience_s]
        self._trace.check(ANSWERED, not overdue, lambda: f"{len(overdue)} wait too long, first {overdue[0]}")

    def end_epoch(self) -> None:
        """Check, once the tree has ended, that nothing stays behind."""
        for ref, waiting in self._waiting.items():
            lost = [envelope for envelope in waiting if not self._is_settled(ref, envelope)]
            self._trace.check(
                KEPT,
                not lost,
                lambda ref=ref, lost=lost: (
                    f"{ref.path} never saw {len(lost)} messages, first a {type(lost[0].message).__name__}"
                ),
            )
        self.audit(patience_s=-1.0)
