"""The command line, in a process in which one standing agent goes wrong for as long as a file says so.

`crash` in the root has the agent reed crash whenever it looks for mail, `hang` has it wait for ever, and `hold` has it
hold the loop, until the file is gone. The watchdog has less patience here than it has by default.
"""

from __future__ import annotations

import sys
import time
from functools import partial
from pathlib import Path
from typing import Any

import trio

from actors import daemon
from actors.commands.__main__ import main
from actors.kernel import Watchdog
from actors.standing import StandingAgent

AGENT = "reed"

receive = StandingAgent.on_receive


async def go_wrong(agent: StandingAgent, message: Any) -> Any:
    """Receive a message as ever, unless one of the files is there."""
    folder = Path(sys.argv[sys.argv.index("--root") + 1])
    if agent.ref.child_id == AGENT:
        if (folder / "crash").exists():
            raise RuntimeError("told to crash")
        while (folder / "hang").exists():  # noqa: ASYNC110 - a file sets no event
            await trio.sleep(0.05)
        while (folder / "hold").exists():
            time.sleep(0.05)  # noqa: ASYNC251 - that is what it is for
    return await receive(agent, message)


if __name__ == "__main__":
    StandingAgent.on_receive = go_wrong  # type: ignore[method-assign]
    impatient = {"interval_s": 0.2, "stuck_after_s": 0.5, "stall_after_s": 0.5, "loop_interval_s": 0.1}
    daemon.Watchdog = partial(Watchdog, **impatient)  # type: ignore[misc, assignment]
    sys.exit(main())
