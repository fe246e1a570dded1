"""What agents may spend: the daily token limits of the constitution, per account and for the whole daemon.

An account is an agent, the operator, a user, or `guest` for all guests together. Counts are kept in the store, so
that they survive a restart; a day is a UTC day.
"""

from __future__ import annotations

import datetime as dt
from typing import Any, Final

import structlog

from actors.session_services import SessionServices
from protocol.errors import RequestError
from protocol.tiers import Acting
from store.sessions import spending_of_day

WARNING_SHARE: Final = 0.8
"""The log warns when so much of a limit is spent."""

_log = structlog.get_logger("spending")


def tokens_left(services: SessionServices, acting: Acting) -> int | None:
    """Return how many tokens the daily limits leave to whoever acts, None where tokens cost nothing.

    Raises RequestError `rate_limited`, with the time of the reset, where nothing is left.
    """
    if not services.tokens_limited:
        return None
    today = services.clock.moment().date()
    spent = spending_of_day(services.database, today.isoformat())
    left: list[int] = []
    for who, used, limit, name in _limits(services, acting.account, spent):
        if used >= limit:
            raise RequestError(
                "rate_limited",
                f"{who} has spent {used} of {limit} tokens today; the count starts anew at {_reset(today)}, or raise "
                f"{name} in platform/constitution.yaml",
            )
        left.append(limit - used)
    return min(left)


def note_spending(services: SessionServices, acting: Acting, tokens: int) -> None:
    """Warn in the log where the tokens that were just recorded took an account, or the daemon, past WARNING_SHARE."""
    if not services.tokens_limited or tokens == 0:
        return
    today = services.clock.moment().date()
    spent = spending_of_day(services.database, today.isoformat())
    for who, used, limit, _ in _limits(services, acting.account, spent):
        if used - tokens < limit * WARNING_SHARE <= used:
            _log.warning(
                "daily token limit is near", account=who, spent=used, limit=limit, resets_at=_reset(today)
            )


def spending(services: SessionServices) -> dict[str, Any]:
    """Return what was spent today, for `runner.status`; a limit is None where tokens cost nothing."""
    today = services.clock.moment().date()
    spent = spending_of_day(services.database, today.isoformat())
    limits = services.limits
    limited = services.tokens_limited
    return {
        "day": today.isoformat(),
        "resets_at": _reset(today),
        "spent": sum(spent.values()),
        "limit": limits.tokens_per_day if limited else None,
        "limit_per_agent": limits.tokens_per_agent_day if limited else None,
        "accounts": dict(sorted(spent.items(), key=lambda item: -item[1])),
    }


def _limits(
    services: SessionServices, account: str, spent: dict[str, int]
) -> tuple[tuple[str, int, int, str], ...]:
    limits = services.limits
    return (
        (account, spent.get(account, 0), limits.tokens_per_agent_day, "tokens_per_agent_day"),
        ("the daemon", sum(spent.values()), limits.tokens_per_day, "tokens_per_day"),
    )


def _reset(today: dt.date) -> str:
    return f"{(today + dt.timedelta(days=1)).isoformat()}T00:00:00Z"
