"""The eviction of idle sessions.

It looks at what is stored, as often as it runs, so that a look that was missed costs nothing: it needs no timer that
outlives the daemon.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final

import structlog
import trio

from actors.directory import Directory
from actors.kernel import Actor, ActorDeadError, AskTimeoutError, KernelError, MailboxFullError
from actors.session_messages import EvictIfIdle
from actors.session_services import SessionServices
from actors.sessions import idle_since
from protocol.errors import AgentRunnerError
from store.sessions import idle_session_keys

EVICTION_INTERVAL_S: Final = 60.0

AT_ONCE_MAX: Final = 32
"""So many sessions are closed at a time: those that have left memory come back for it, and each commits."""

PATIENCE_S: Final = 30.0
"""A session that has not answered by then is asked again at the next look."""

_log = structlog.get_logger("sessions")


class Evictor(Actor):
    """Closes sessions that nobody used for `ttl_s` seconds; a running one is marked and closed after its turn."""

    def __init__(
        self, directory: Callable[[], Directory], services: Callable[[], SessionServices], ttl_s: float
    ) -> None:
        super().__init__()
        self._directory = directory
        self._services = services
        self._ttl_s = ttl_s

    async def on_start(self) -> None:
        """Begin to look, every minute, or as often as a shorter time to live asks."""
        self.start_task(self._evict_for_ever, name="evict")

    async def _evict_for_ever(self) -> None:
        while True:
            await trio.sleep(min(EVICTION_INTERVAL_S, max(self._ttl_s, 1.0)))
            await self._evict()

    async def _evict(self) -> None:
        services, directory = self._services(), self._directory()
        since = idle_since(services.clock, self._ttl_s)
        # Only those that are due: who has left memory and is not, is left where it is.
        keys = idle_session_keys(services.database, since)
        for first in range(0, len(keys), AT_ONCE_MAX):
            async with trio.open_nursery() as nursery:
                for key in keys[first : first + AT_ONCE_MAX]:
                    nursery.start_soon(_close, directory, key, since)
        for ref in directory.live():
            if ref.state == "idle":
                _tell(ref, EvictIfIdle(since))


async def _close(directory: Directory, key: str, since: str) -> None:
    """Have the session of a key close itself, if nobody has come back to it meanwhile."""
    try:
        ref = await directory.find(key)
        if ref is not None:
            await ref.ask(EvictIfIdle(since), timeout_s=PATIENCE_S)
    except (AgentRunnerError, KernelError, ActorDeadError, AskTimeoutError) as error:
        # One session that does not start must not keep the others, or the gateway, from living on.
        _log.warning("not evicted", session=key, error=str(error))


def _tell(ref: Any, message: object) -> None:
    try:
        ref.tell(message)
    except (ActorDeadError, MailboxFullError):
        # It ended meanwhile, or has work enough: the next beat comes.
        return
