"""Going on with the turns that a crash cut off, where the operator wants that (`run --resume-turns`).

The cut-off turn stays recorded as interrupted; the one that goes on with it is a turn of its own in the same session,
whose history holds the assistant's messages and the tool results up to the last durable step. Turns that carried mail
are not gone on with: the mail is delivered again, and says so.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

import structlog

from actors.directory import CutOff, Directory, new_future, run_turn
from actors.kernel import Actor, KernelError
from actors.service import Caller
from actors.session_messages import RunTurn
from protocol.acting import RUNNER
from protocol.errors import AgentRunnerError

PROMPT: Final = (
    "[from the runner] The daemon ended in the middle of your last turn and has started again. {ran} "
    "Go on from where you were cut off."
)

_CALLER: Final = Caller(RUNNER, "continuation", authenticated=True)
_log = structlog.get_logger("sessions")


class Continuation(Actor):
    """Goes on with each cut-off turn, once, all at the same time; takes no messages."""

    def __init__(self, directory: Callable[[], Directory], cut_off: list[CutOff]) -> None:
        super().__init__()
        self._directory = directory
        self._cut_off = cut_off

    async def on_start(self) -> None:
        """Begin, without waiting for the turns to end."""
        while self._cut_off:
            turn = self._cut_off.pop(0)
            self.start_task(self._go_on, turn, name=f"go on with {turn.turn_id}")

    async def _go_on(self, turn: CutOff) -> None:
        prompt = PROMPT.format(ran=turn.ran)
        message = RunTurn(
            _CALLER,
            [{"role": "user", "content": prompt}],
            None,
            None,
            lambda _event: None,
            new_future(),
            continues=turn.turn_id,
        )
        try:
            ref = await self._directory().find(turn.session_key)
            if ref is None:
                return
            status, continued = await run_turn(ref, message)
        except (AgentRunnerError, KernelError) as error:
            _log.warning("not gone on with", session=turn.session_key, turn=turn.turn_id, problem=str(error))
        else:
            _log.info(
                "gone on with", session=turn.session_key, turn=turn.turn_id, by=continued, status=status
            )
