"""A daemon ends, whatever one of its actors does."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

PROJECT = Path(__file__).parents[2]

STUBBORN = """
import trio
from actors.daemon import leave_without
from actors.kernel import Actor, ChildSpec, Supervisor, child, open_system, system

child.KILL_GRACE_S = system.KILL_GRACE_S = system.STUCK_GRACE_S = 0.05

class Stubborn(Actor):
    async def on_stop(self):
        with trio.CancelScope(shield=True):
            await trio.sleep_forever()

async def main():
    spec = ChildSpec("stubborn", Stubborn, shutdown_s=0.05)
    async with open_system(ChildSpec("root", lambda: Supervisor([spec])), on_stuck=leave_without):
        pass
    print("left in order")

trio.run(main)
"""


def test_a_task_that_ignores_its_cancellation_is_left_behind_with_the_process():
    done = subprocess.run(
        [sys.executable, "-c", STUBBORN], cwd=PROJECT, capture_output=True, text=True, timeout=30, check=False
    )
    assert done.returncode == os.EX_SOFTWARE
    assert "left in order" not in done.stdout
    assert "root/stubborn" in done.stdout + done.stderr
