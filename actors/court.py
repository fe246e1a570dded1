"""The policy court: the actor that holds the enacted constitution and publishes it.

Judging is a pure function (`protocol.policy`); this actor decides which constitution is in force. It enacts a new
one when asked to reload, or when the files have changed and been quiet for half a second; a bad one is refused,
whole, and the old one stays in force. Both are recorded in the ledger.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Final

import structlog
import trio
import watchfiles

from actors.journal import Journal
from actors.kernel import Actor, MailboxFullError
from protocol.errors import ConfigurationError
from store.content import Content, load_content
from store.database import StorageError

QUIET_MS: Final = 500
"""The files are read once they have not changed for so long."""

AGAIN_S: Final = 5.0
"""How long after the ledger could not take an entry about the constitution it is tried again."""

_log = structlog.get_logger("court")


@dataclass(frozen=True, slots=True)
class Reload:
    """Read constitution, roster and mandates again; the answer is a `Reloaded`."""


@dataclass(frozen=True, slots=True)
class Reloaded:
    """What a reload came to; `problem` is None when the files were enacted, else the first of `problems`."""

    changed: bool
    problem: str | None
    problems: tuple[str, ...] = ()


@dataclass(slots=True)
class Enacted:
    """The constitution in force; read by everyone, replaced by the court alone, whole, in one assignment."""

    content: Content
    problem: str | None = None
    listeners: list[Callable[[Content], None]] = field(default_factory=list)


class Court(Actor):
    """Keeps `enacted` true to the files of the platform folder."""

    def __init__(
        self,
        enacted: Enacted,
        platform: Path,
        journal: Callable[[], Journal],
        latest: Callable[[], list[str]],
    ) -> None:
        super().__init__()
        self._enacted = enacted
        self._platform = platform
        self._make_journal = journal
        self._latest: list[str] = []
        self._find_latest = latest
        self._recorded_problem: str | None = None
        self._is_put_off = False

    async def on_start(self) -> None:
        """Record what is in force and begin to watch."""
        self._journal = self._make_journal()
        self._latest = self._find_latest()
        await self._record("enacted", self._enacted.content, None)
        self.start_task(self._watch_files, name="watch the constitution")

    async def on_receive(self, message: Reload) -> Any:
        """Reload."""
        if isinstance(message, Reload):
            return await self._reload()
        raise TypeError(f"the court takes Reload, not {message!r}")

    async def _watch_files(self) -> None:
        # The thread that watches is not cancelled with its task: it looks at the event every QUIET_MS.
        stop = trio.Event()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(_set_when_cancelled, stop)
            async for _ in watchfiles.awatch(
                self._platform, step=QUIET_MS, debounce=10_000, stop_event=stop, raise_interrupt=False
            ):
                # With so many reloads waiting already, this one adds nothing.
                with suppress(MailboxFullError):
                    self.ref.tell(Reload())

    async def _reload(self) -> Reloaded:
        try:
            content = await trio.to_thread.run_sync(load_content, self._platform)
        except ConfigurationError as error:
            refused = await self._refuse(str(error))
            return replace(refused, problems=tuple(map(str, getattr(error, "errors", (error,)))))
        if _same(self._enacted.content, content):
            self._enacted.problem = self._recorded_problem = None
            return Reloaded(changed=False, problem=None)
        try:
            await self._record("enacted", content, None)
        except StorageError as error:
            self._put_off(error)
            self._enacted.problem = f"the change waits until the ledger can take it: {error.message}"
            return Reloaded(changed=False, problem=self._enacted.problem)
        self._enacted.problem = self._recorded_problem = None
        self._enacted.content = content
        _log.info(
            "constitution enacted", constitution=content.constitution_hash[:12], rules=content.rules_hash[:12]
        )
        for listener in self._enacted.listeners:
            listener(content)
        return Reloaded(changed=True, problem=None)

    async def _refuse(self, problem: str) -> Reloaded:
        if problem != self._enacted.problem:
            self._enacted.problem = problem
            _log.error("constitution refused, the old one stays in force", problem=problem)
        if problem != self._recorded_problem:
            try:
                await self._record("refused", self._enacted.content, problem)
                self._recorded_problem = problem
            except StorageError as error:
                self._put_off(error)
        return Reloaded(changed=False, problem=problem)

    def _put_off(self, error: StorageError) -> None:
        _log.error("nothing about the constitution can be recorded", error=str(error), again_in_s=AGAIN_S)
        if not self._is_put_off:
            self._is_put_off = True
            self.start_task(self._reload_later, name="reload later")

    async def _reload_later(self) -> None:
        await trio.sleep(AGAIN_S)
        self._is_put_off = False
        with suppress(MailboxFullError):
            self.ref.tell(Reload())

    async def _record(self, event: str, content: Content, problem: str | None) -> None:
        entry = self._journal.entry(
            "configuration",
            "constitution",
            {
                "event": event,
                "constitution_hash": content.constitution_hash,
                "rules_hash": content.rules_hash,
                "roster_hash": content.roster_hash,
                "mandates_hash": content.mandates_hash,
                "problem": None
                if problem is None
                else problem.replace(f"{self._platform}{os.sep}", "platform/"),
            },
            self._latest,
        )
        try:
            await self._journal.commit()
        except StorageError:
            # It is made anew when there is something to record again, of how things are then.
            self._journal.withdraw()
            raise
        self._latest = [entry.cid]


async def _set_when_cancelled(stop: trio.Event) -> None:
    try:
        await trio.sleep_forever()
    finally:
        stop.set()


def _same(one: Content, other: Content) -> bool:
    return (one.constitution_hash, one.rules_hash, one.roster_hash, one.mandates_hash) == (
        other.constitution_hash,
        other.rules_hash,
        other.roster_hash,
        other.mandates_hash,
    )
