"""The policy court: the actor that holds the enacted constitution and publishes it.

Judging is a pure function (`protocol.policy`); this actor decides which constitution is in force. It enacts a new
one when asked to reload, or when the files have changed and been quiet for half a second; a bad one is refused,
whole, and the old one stays in force. Both are recorded in the ledger.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import structlog
import trio
import watchfiles

from actors.journal import Journal
from actors.kernel import Actor
from protocol.errors import ConfigurationError
from store.content import Content, load_content

QUIET_MS: Final = 500
"""The files are read once they have not changed for so long."""

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
                self.ref.tell(Reload())

    async def _reload(self) -> Reloaded:
        try:
            content = await trio.to_thread.run_sync(load_content, self._platform)
        except ConfigurationError as error:
            problem = str(error)
            if problem != self._enacted.problem:
                self._enacted.problem = problem
                _log.error("constitution refused, the old one stays in force", problem=problem)
                await self._record("refused", self._enacted.content, problem)
            return Reloaded(
                changed=False, problem=problem, problems=tuple(map(str, getattr(error, "errors", (error,))))
            )
        before = self._enacted.content
        self._enacted.problem = None
        if _same(before, content):
            return Reloaded(changed=False, problem=None)
        await self._record("enacted", content, None)
        self._enacted.content = content
        _log.info(
            "constitution enacted", constitution=content.constitution_hash[:12], rules=content.rules_hash[:12]
        )
        for listener in self._enacted.listeners:
            listener(content)
        return Reloaded(changed=True, problem=None)

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
        self._latest = [entry.cid]
        await self._journal.commit()


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
