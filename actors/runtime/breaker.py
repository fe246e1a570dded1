"""The circuit breaker of a backend: a model server that fails again and again is left alone for a while.

    closed      calls go through; FAILURES_MAX that failed in a row open it
    open        calls are refused at once, until `retry_at`
    half_open   one call goes through as a probe, the others are refused; a success closes, a failure opens for longer

Own code, since no library that is kept does this on trio: purgatory and aiobreaker are asyncio's, pybreaker's lock is
a thread's. Times are those of trio, so that a test states them exactly.
"""

from __future__ import annotations

import datetime as dt
import random
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any, Final, Literal

import structlog
import trio

from protocol.errors import BackendError
from store.clock import rfc3339, utc_now

FAILURES_MAX: Final = 5
OPEN_FIRST_S: Final = 10.0
OPEN_MAX_S: Final = 300.0
ASKED_MAX_S: Final = 3600.0
"""However much longer a server asks for, it is tried again after this."""

PROBE_LOOK_S: Final = 5.0
"""What is said to those that are refused while the probe is under way."""

State = Literal["closed", "open", "half_open"]

_log = structlog.get_logger(__name__)


class Breaker:
    """Lets calls to one server through, or refuses them; `rng` gives the jitter, `now` the times that are shown."""

    def __init__(
        self, name: str, *, rng: random.Random | None = None, now: Callable[[], dt.datetime] = utc_now
    ) -> None:
        self._name = name
        self._rng = rng or random.Random()
        self._now = now
        self._failures = 0
        self._openings = 0  # in a row, without a success between them
        self._is_open = False
        self._retry_at = 0.0  # trio's time
        self._probe: object | None = None
        self._since: str | None = None
        self._last: BackendError | None = None

    @property
    def state(self) -> State:
        """What becomes of a call now."""
        if not self._is_open:
            return "closed"
        return "half_open" if self._probe is not None or self._left_s() <= 0 else "open"

    @property
    def retry_in_s(self) -> float:
        """Seconds until a call makes sense; 0 where it does now."""
        if not self._is_open:
            return 0.0
        return self._left_s() if self._probe is None else max(PROBE_LOOK_S, self._left_s())

    def _left_s(self) -> float:
        return max(0.0, self._retry_at - trio.current_time())

    def check(self) -> None:
        """Raise BackendError, with `retry_after_s`, where a call would be refused now."""
        wait_s = self.retry_in_s
        if wait_s <= 0:
            return
        reason = "" if self._last is None else f" ({self._last.message.rstrip('.')})"
        when = rfc3339(self._now() + dt.timedelta(seconds=wait_s))[11:19]
        how = "it is being tried right now" if self._probe is not None else f"it is tried again at {when} UTC"
        raise BackendError(
            "backend_overloaded",
            f"the model server failed {self._failures} times in a row{reason}, so this was not sent; {how}. "
            f"Send it again in {wait_s:.0f} s.",
            wait_s,
        )

    @asynccontextmanager
    async def call(self) -> AsyncIterator[None]:
        """Run one call inside the block; raises BackendError at once where it is refused.

        What the block raises says how it went: a BackendError with `is_server_down` is a failure, any other is an
        answer of a server that is there. A call that is cancelled says nothing, and leaves the probe to the next.
        """
        self.check()
        token = object()
        if self._is_open:
            self._probe = token
        try:
            yield
        except BackendError as error:
            if error.is_server_down:
                self._note_failure(error, is_probe=self._probe is token)
            else:
                self._note_success()
            raise
        else:
            self._note_success()
        finally:
            if self._probe is token:
                self._probe = None

    def _note_success(self) -> None:
        was_open, self._is_open = self._is_open, False
        self._failures = self._openings = 0
        self._last = None
        if was_open:
            _log.info("model_server_answers_again", backend=self._name, since=self._since)
        self._since = None

    def _note_failure(self, error: BackendError, *, is_probe: bool) -> None:
        self._failures += 1
        self._last = error
        if self._is_open and not is_probe:
            # It had begun before the breaker opened: it tells nothing new, but a wish of the server is heard.
            self._retry_at = max(self._retry_at, trio.current_time() + self._asked_s(error))
            return
        if self._failures < FAILURES_MAX:
            return
        wait_s = min(OPEN_MAX_S, OPEN_FIRST_S * 2.0**self._openings) * self._rng.uniform(0.8, 1.2)
        wait_s = max(min(OPEN_MAX_S, wait_s), self._asked_s(error))
        self._openings = min(self._openings + 1, 32)
        self._retry_at = trio.current_time() + wait_s
        if self._is_open:
            return
        self._is_open = True
        self._since = rfc3339(self._now())
        _log.error(
            "model_server_given_up",
            backend=self._name,
            failures=self._failures,
            again_in_s=round(wait_s, 1),
            reason=error.message,
        )

    @staticmethod
    def _asked_s(error: BackendError) -> float:
        return min(ASKED_MAX_S, error.retry_after_s or 0.0)

    def status(self) -> dict[str, Any]:
        """Return state, failures in a row, since when it is open and when it is tried again (RFC 3339), and why."""
        state, wait_s = self.state, self.retry_in_s
        return {
            "state": state,
            "failures": self._failures,
            "since": self._since,
            "retry_at": rfc3339(self._now() + dt.timedelta(seconds=wait_s)) if state == "open" else None,
            "retry_in_s": round(wait_s, 1),
            "reason": None if self._last is None else self._last.message,
        }
