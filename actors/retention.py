"""What is thrown away, and when: guests' folders and sessions, the events of old turns, history beyond its age.

The ledger is never trimmed. Nothing else is thrown away unless the constitution's limits say so.
"""

from __future__ import annotations

import datetime as dt
import shutil
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, Final

import structlog
import trio

from actors.kernel import Actor, Refusal, Tick
from actors.ledger_writer import commit
from actors.session_services import SessionServices
from protocol.errors import AgentRunnerError
from store.clock import rfc3339
from store.sessions import ForgetHistory, ForgetSession, closed_guest_sessions

INTERVAL_S: Final = 600.0
"""How often to look; the timer outlives the daemon, which also does so when it is started often."""

SESSIONS_PER_SWEEP_MAX: Final = 500
"""More than so many wait for the next sweep."""

_log = structlog.get_logger("retention")


class Retention(Actor):
    """Throws away what has outlived its time; `ttl_s` is that of a session."""

    def __init__(self, services: Callable[[], SessionServices], workspaces: Path, ttl_s: float) -> None:
        super().__init__()
        self._services = services
        self._guests = workspaces / "guests"
        self._ttl_s = ttl_s

    async def on_receive(self, message: Any) -> Any:
        """Look when the timer says so; the tick of a look that failed comes again."""
        if not isinstance(message, Tick):
            raise TypeError(f"the retention takes no {type(message).__name__}")
        try:
            await self.sweep()
        except (AgentRunnerError, OSError) as error:
            # A full disk is not made better by a daemon that gives up.
            _log.warning("sweep failed", problem=str(error))
            return Refusal(error)
        return None

    async def sweep(self) -> None:
        """Throw away what is due now."""
        services = self._services()
        now, limits = services.clock.moment(), services.limits
        idle = closed_guest_sessions(services.database, rfc3339(now - dt.timedelta(seconds=self._ttl_s)))
        removed = 0
        if idle:
            removed = await trio.to_thread.run_sync(self._remove_folders, [session.id for session in idle])
        due = rfc3339(now - dt.timedelta(days=limits.guest_session_days))
        forgotten = [session for session in idle if session.last_activity <= due][:SESSIONS_PER_SWEEP_MAX]
        for session in forgotten:
            await commit(services.writer, ForgetSession(session.id))
        if limits.history_days is not None:
            before = rfc3339(now - dt.timedelta(days=limits.history_days))
            await commit(services.writer, ForgetHistory(before))
        events = 0
        if services.events is not None:
            events = await trio.to_thread.run_sync(services.events.sweep, time.time())
        if removed or forgotten or events:
            _log.info("swept", folders=removed, sessions=len(forgotten), turns_of_events=events)

    def _remove_folders(self, session_ids: Iterable[str]) -> int:
        removed = 0
        for identifier in session_ids:
            # The name is made of an id that this daemon made, never of what a guest sent.
            folder = self._guests / identifier[:16]
            if folder.is_dir() and not folder.is_symlink():
                shutil.rmtree(folder, ignore_errors=True)
                removed += 1
        return removed
