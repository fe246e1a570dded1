"""Actors of the simulation's own, in the gateway's place: what the kernel promises and the daemon seldom uses."""

from __future__ import annotations

from typing import Any

import trio

from actors.kernel import (
    Actor,
    Backoff,
    ChildSpec,
    Future,
    Intensity,
    Overflow,
    Restart,
    Strategy,
    Supervisor,
)


class Clerk(Actor):
    """Takes its time over each message, and returns it."""

    mailbox_size_max = 4
    took_s = 0.3

    async def on_receive(self, message: Any) -> Any:
        await trio.sleep(self.took_s)
        return message


class RefusingClerk(Clerk):
    """Refuses what finds no room."""

    mailbox_overflow = Overflow.REFUSE


class ForgettingClerk(Clerk):
    """Drops what is new."""

    mailbox_overflow = Overflow.DROP_NEW


class HastyClerk(Clerk):
    """Drops what is old."""

    mailbox_overflow = Overflow.DROP_OLD


class Lingerer(Actor):
    """Would take for ever to stop."""

    async def on_receive(self, message: Any) -> Any:
        if message == "leave":
            self.stop()
        return message

    async def on_stop(self) -> None:
        await trio.sleep(3_600)


class Leaver(Actor):
    """Ends normally when it is told to."""

    async def on_receive(self, message: Any) -> Any:
        if message == "leave":
            self.stop()
        return message


class Deferrer(Actor):
    """Answers later, from a task of its own."""

    async def on_receive(self, message: Any) -> None:
        self.start_task(self._answer, self.reply_later(), message, name="answer")

    async def _answer(self, future: Future, message: Any) -> None:
        await trio.sleep(0.7)
        future.set(message)


def _clerks(*names: str) -> list[ChildSpec]:
    return [ChildSpec(name, Clerk, shutdown_s=1.0) for name in names]


def probes() -> Supervisor:
    """Return the supervisor of all probes."""
    lenient = Intensity(20, 60.0)
    return Supervisor(
        [
            *_clerks("waiting"),
            ChildSpec("refusing", RefusingClerk, shutdown_s=1.0),
            ChildSpec("forgetting", ForgettingClerk, shutdown_s=1.0),
            ChildSpec("hasty", HastyClerk, shutdown_s=1.0),
            ChildSpec("deferring", Deferrer, shutdown_s=1.0),
            ChildSpec("lingering", Lingerer, shutdown_s=2.0),
            ChildSpec("leaving", Leaver, restart=Restart.TRANSIENT),
            ChildSpec("parking", _parking),
            ChildSpec(
                "rest",
                lambda: Supervisor(
                    _clerks("first", "second", "third"),
                    strategy=Strategy.REST_FOR_ONE,
                    intensity=Intensity(3, 4.0),
                ),
            ),
            ChildSpec(
                "all",
                lambda: Supervisor(_clerks("one", "two"), strategy=Strategy.ONE_FOR_ALL, intensity=lenient),
            ),
        ],
        intensity=lenient,
        backoff=Backoff(first_s=0.5, max_s=5.0),
    )


def _parking() -> Supervisor:
    """Return a supervisor whose children are soon parked: the edges of their windows are met often."""
    return Supervisor(
        [
            ChildSpec(name, Clerk, shutdown_s=1.0, intensity=Intensity(2, 3.0), park=True)
            for name in ("left", "right")
        ],
        backoff=Backoff(first_s=0.01, max_s=0.1),
    )


def probe_spec() -> ChildSpec:
    """Return the spec that stands in the gateway's place."""
    return ChildSpec("gateway", probes)
