"""What happened in one run: a hash over every event, counts of what was checked, and what did not hold."""

from __future__ import annotations

import hashlib
import re
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass

import trio

ADDRESS = re.compile(r"0x[0-9a-f]{6,}")
"""Where an object lies in memory, which no seed decides."""


@dataclass(frozen=True, slots=True)
class Violation:
    """An invariant that did not hold: its name, when in virtual seconds, and what was found."""

    invariant: str
    at: float
    detail: str

    def __str__(self) -> str:
        return f"[{self.at:.6f}] {self.invariant}: {self.detail}"


class Trace:
    """The events of a run, in order; `lines` holds their text where it is to be `kept`."""

    def __init__(self, *, kept: bool = False) -> None:
        self._hash = hashlib.blake2b(digest_size=16)
        self._kept = kept
        self.lines: list[str] = []
        self.length = 0
        self.events: Counter[str] = Counter()
        self.faults: Counter[str] = Counter()
        self.checks: Counter[str] = Counter()
        self.violations: list[Violation] = []

    @property
    def digest(self) -> str:
        """Hex digest over every event so far, with its time."""
        return self._hash.hexdigest()

    def note(self, kind: str, what: str = "") -> None:
        """Add an event."""
        line = ADDRESS.sub("0x…", f"{_now():.6f} {kind} {what}")
        self._hash.update(line.encode("utf-8", "backslashreplace") + b"\n")
        self.length += 1
        self.events[kind] += 1
        if self._kept:
            self.lines.append(line)

    def inject(self, kind: str, what: str = "") -> None:
        """Add a fault that is put in on purpose."""
        self.faults[kind] += 1
        self.note("fault", f"{kind} {what}")

    def check(self, invariant: str, holds: object, detail: str | Callable[[], str]) -> None:
        """Count a check; note what does not hold. It is not raised: what is under test could swallow it."""
        self.checks[invariant] += 1
        if not holds:
            text = detail if isinstance(detail, str) else detail()
            self.violations.append(Violation(invariant, _now(), text))
            self.note("violation", f"{invariant}: {text}")


def _now() -> float:
    try:
        return trio.current_time()
    except RuntimeError:
        return 0.0
