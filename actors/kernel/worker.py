"""Where a thread actor's plain functions run: a thread of its own, or what a test puts in its place."""

import queue
import threading
from collections.abc import Callable
from typing import Any, Protocol

import outcome
import trio

__all__ = ["ThreadWorker", "Worker"]

Job = Callable[[], Any]
Done = Callable[["outcome.Outcome[Any]"], None]


class Worker(Protocol):
    """Runs jobs one after another, away from the loop that made it; `open_system(workers=…)` takes its maker."""

    def submit(self, job: Job, done: Done) -> None:
        """Have `job` run behind those before it; `done` is then called on the loop with what came of it."""

    def close(self) -> None:
        """End once the jobs that were submitted have run; nobody waits for that."""


class ThreadWorker:
    """A thread that waits at a queue.

    trio's own worker threads are not used: a job for those passes two more turns of the loop on its way there and
    back, and the loop cannot end before they do. This thread is a daemon thread: Python has no way to end one from
    outside, so that a job which never returns would otherwise keep the process alive.
    """

    def __init__(self, name: str) -> None:
        self._jobs: queue.SimpleQueue[tuple[Job, Done] | None] = queue.SimpleQueue()
        self._token = trio.lowlevel.current_trio_token()
        threading.Thread(target=self._run, name=name, daemon=True).start()

    def submit(self, job: Job, done: Done) -> None:
        """See Worker.submit."""
        self._jobs.put((job, done))

    def close(self) -> None:
        """See Worker.close."""
        self._jobs.put(None)

    def _run(self) -> None:
        while (item := self._jobs.get()) is not None:
            job, done = item
            result = outcome.capture(job)
            try:
                self._token.run_sync_soon(done, result)
            except trio.RunFinishedError:
                return  # nobody is there to be told
            del item, job, done, result  # an idle thread keeps nothing of its last job alive
