"""Subagents: a child session in process, of the same or lower trust and scope, bounded in depth, number and time."""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

import trio

from actors.directory import Directory, ask, new_future, run_turn
from actors.kernel import Ref
from actors.runtime.base import Ceiling
from actors.service import Caller
from actors.session_messages import Cancel, Init, RunTurn
from actors.tools.base import ToolOutcome
from actors.tools.subagent import TIMEOUT_S
from actors.turn import Turn
from protocol.errors import RequestError
from protocol.events import Event, TextDelta, ToolCall
from protocol.mounts import Mount, mount_of
from store.sessions import SessionRow

DEPTH_MAX: Final = 3
"""A child of a child of a child has no children."""

CHILDREN_PER_TURN_MAX: Final = 8


class Subagents:
    """Runs a prompt in a child session and returns its last words."""

    def __init__(self, directory: Callable[[], Directory]) -> None:
        self._directory = directory

    async def run(
        self, parent: SessionRow, turn: Turn, ceiling: Ceiling, prompt: str, working_dir: str | None
    ) -> ToolOutcome:
        """Run a child to its end; every failure is an outcome with `is_error`."""
        if ceiling.depth > DEPTH_MAX:
            return ToolOutcome(
                f"Subagents may be {DEPTH_MAX} deep, and this is one already: do the work here.",
                is_error=True,
            )
        if turn.children >= CHILDREN_PER_TURN_MAX:
            return ToolOutcome(
                f"This turn has started {CHILDREN_PER_TURN_MAX} subagents, which is the most: do the rest here.",
                is_error=True,
            )
        narrowed = _narrow(ceiling, working_dir)
        if isinstance(narrowed, str):
            return ToolOutcome(narrowed, is_error=True)
        turn.children += 1
        key = f"{parent.agent_id}:subagent:{turn.id}:{turn.children}"
        caller = Caller(parent.owner, f"subagent of {turn.id}", authenticated=True)
        words = _LastWords()
        try:
            ref = await self._directory().open(key, ceiling=narrowed)
            await ask(ref, Init(caller, parent.agent_id, model=parent.model, mode="oneshot"))
            return await self._run(ref, caller, prompt, words)
        except RequestError as error:
            return ToolOutcome(f"The subagent failed: {error.message}{words.quoted()}", is_error=True)

    async def _run(self, ref: Ref, caller: Caller, prompt: str, words: _LastWords) -> ToolOutcome:
        message = RunTurn(caller, [{"role": "user", "content": prompt}], None, None, words.take, new_future())
        try:
            with trio.move_on_after(TIMEOUT_S) as timeout:
                await run_turn(ref, message)
        except trio.Cancelled:
            # The parent was cancelled: so is the child.
            ref.tell(Cancel(caller))
            raise
        if timeout.cancelled_caught:
            await ask(ref, Cancel(caller))
            return ToolOutcome(
                f"The subagent was not done after {TIMEOUT_S} s and was cancelled.{words.quoted()}",
                is_error=True,
                timed_out=True,
            )
        return ToolOutcome(words.text or "The subagent ended without a word.")


class _LastWords:
    """The text of the last model message of a turn."""

    def __init__(self) -> None:
        self._pieces: list[str] = []

    def take(self, event: Event) -> None:
        if isinstance(event, TextDelta):
            self._pieces.append(event.text)
        elif isinstance(event, ToolCall):
            self._pieces.clear()

    @property
    def text(self) -> str:
        return "".join(self._pieces).strip()

    def quoted(self) -> str:
        return f" It had said: {self.text[:2000]}" if self.text else ""


def _narrow(ceiling: Ceiling, working_dir: str | None) -> Ceiling | str:
    """Return the child's ceiling: with a working folder, it writes nowhere else; a string says what is wrong."""
    if working_dir is None:
        return ceiling
    parts = [part for part in working_dir.strip("/").split("/") if part not in ("", ".")]
    found = mount_of(ceiling.mounts, parts)
    if found is None or ".." in parts:
        reach = ", ".join(mount.path for mount in ceiling.mounts)
        return f"working_dir {working_dir!r} is not a folder within your reach ({reach}); give one that is."
    if not found.write:
        return f"working_dir {working_dir!r} can only be read; give a folder that you may write to, or none."
    readable = [Mount(mount.path, write=False) for mount in ceiling.mounts if mount.path != "/".join(parts)]
    mounts = (*readable, Mount("/".join(parts), write=True))
    return Ceiling(ceiling.tier, mounts, ceiling.depth, ceiling.hops, ceiling.thread)
