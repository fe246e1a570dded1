"""Time as the ledger writes it: RFC 3339 UTC with microseconds, never the same twice."""

from __future__ import annotations

import datetime as dt
from collections.abc import Callable

_MICROSECOND = dt.timedelta(microseconds=1)


def utc_now() -> dt.datetime:
    """Return the time of the machine, in UTC."""
    return dt.datetime.now(dt.UTC)


def unix_now() -> float:
    """Return the time of the machine in Unix seconds; like every clock of a machine, it may be set back."""
    return utc_now().timestamp()


def rfc3339(moment: dt.datetime) -> str:
    """Return a UTC moment as RFC 3339 with six digits of fraction and `Z`."""
    # The first 26 characters are the moment, what follows is the offset; strftime takes twice as long.
    return f"{moment.isoformat(timespec='microseconds')[:26]}Z"


def parse_rfc3339(text: str) -> dt.datetime:
    """Return the moment that `rfc3339` wrote; raises ValueError for anything else."""
    return dt.datetime.fromisoformat(text)


class StrictClock:
    """A clock whose readings grow by at least a microsecond, also when the machine's clock is set back.

    `after` is the last reading of an earlier run (RFC 3339) or None: readings continue behind it, so that two equal
    acts never share a content identifier.
    """

    def __init__(self, after: str | None = None, now: Callable[[], dt.datetime] = utc_now) -> None:
        self._now = now
        self._last = parse_rfc3339(after) if after else dt.datetime.min.replace(tzinfo=dt.UTC)

    def moment(self) -> dt.datetime:
        """Return the present moment, later than every one returned before."""
        moment = self._now()
        if moment <= self._last:
            moment = self._last + _MICROSECOND
        self._last = moment
        return moment

    def ahead_s(self) -> float:
        """Return by how many seconds the last reading is ahead of the machine's clock; 0 or less as it should be."""
        return (self._last - self._now()).total_seconds()

    def stamp(self) -> str:
        """Return `moment()` as RFC 3339."""
        return rfc3339(self.moment())
