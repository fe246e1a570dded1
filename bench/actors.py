"""What an actor costs beside what it could be replaced with.

    python -m bench.actors [--quick]

Each contender is measured in a process of its own: a task behind two trio memory channels (the baseline: no
supervision, no restart, nothing more than a queue), the actors of `actors.kernel`, pykka's `ThreadingActor`, and a
task behind an `asyncio.Queue` that answers with futures. `tell` is messages a second, posted in bursts of 100 and
counted until the last was handled; the first row sends with `send_nowait`. `ask` is one question and its answer,
both sides reused, no timeout on either side. `idle` is resident memory at COUNT idle ones, `spawn` the mean of
starting those one after the other (for an actor: until `on_start` has returned), `stop` the time to end all of them
in order.

Where Erlang is installed (`erl` and `erlc`) a gen_server under a supervisor stands beside them.

Of the kernel alone: a crash until the next answer (first restart, which is not delayed), the ordered stop under a
plain supervisor (strictly one after the other, in reverse) beside a dynamic one, and resident memory over many
spawns and stops.
"""

from __future__ import annotations

import argparse
import asyncio
import gc
import logging
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Awaitable, Callable
from functools import partial
from pathlib import Path
from typing import Any, Final

import orjson
import pykka
import trio

from actors.kernel import Actor, ChildSpec, DynamicSupervisor, Intensity, Restart, Supervisor, open_system
from bench.measure import Goal, Report, Table, command, figure, median, quantile
from bench.processes import resident_kib, run_part

COUNT: Final = 10_000
THREADS: Final = 1_000
"""Threads do not go as far as tasks do."""
BURST: Final = 100
ROUNDS: Final = 3
GROWTH_KIB: Final = 512
"""What counts as flat memory: half a byte for each actor of a million that came and went."""

Figures = dict[str, Any]


def sizes(*, quick: bool) -> tuple[int, int, int]:
    """Return how many messages are told, how many questions asked, and how many actors are idle."""
    return (2_000, 500, 300) if quick else (50_000, 5_000, COUNT)


# --- trio memory channels


async def channels(*, quick: bool) -> Figures:
    """Measure a task behind memory channels."""
    told, asked, count = sizes(quick=quick)
    done = trio.Event()

    async def serve(
        questions: trio.MemoryReceiveChannel[int], answers: trio.MemorySendChannel[int], last: int
    ) -> None:
        async for number in questions:
            if last:
                if number == last:
                    done.set()
            else:
                await answers.send(number)

    async with trio.open_nursery() as nursery:
        questions, questions_in = trio.open_memory_channel[int](sys.maxsize)
        answers, answers_in = trio.open_memory_channel[int](1)
        nursery.start_soon(serve, questions_in, answers, told)
        began = time.perf_counter()
        for number in range(1, told + 1):
            questions.send_nowait(number)
            if number % BURST == 0:
                await trio.lowlevel.checkpoint()
        await done.wait()
        tell = told / (time.perf_counter() - began)
        questions, questions_in = trio.open_memory_channel[int](1)
        nursery.start_soon(serve, questions_in, answers, 0)
        times = []
        for number in range(asked):
            began = time.perf_counter()
            await questions.send(number)
            await answers_in.receive()
            times.append(time.perf_counter() - began)
        nursery.cancel_scope.cancel()
    async with trio.open_nursery() as nursery:
        kept = []
        before, began = _settled_kib(), time.perf_counter()
        for _ in range(count):
            ends = trio.open_memory_channel[int](1)
            nursery.start_soon(serve, ends[1], answers, 0)
            await trio.lowlevel.checkpoint()
            kept.append(ends[0])
        spawn, idle = time.perf_counter() - began, _settled_kib() - before
        began = time.perf_counter()
        nursery.cancel_scope.cancel()
    return _figures(tell, times, spawn, idle, time.perf_counter() - began, count)


# --- the kernel's actors


class Counting(Actor):
    """Answers what it is sent; sets `done` at the last message that it is told; crashes when asked to."""

    mailbox_size_max = None
    done = trio.Event()
    last = 0

    async def on_receive(self, message: int) -> int:
        """Handle a message."""
        if message == self.last:
            self.done.set()
        if message < 0:
            raise RuntimeError("asked to crash")
        return message


class Idle(Actor):
    """Does nothing."""


class Root(Supervisor):
    """Two supervisors, to be filled: one for like children, and a plain one."""

    def __init__(self) -> None:
        super().__init__([ChildSpec("many", DynamicSupervisor), ChildSpec("ordered", Supervisor)])


async def kernel(*, quick: bool) -> Figures:
    """Measure an actor under a dynamic supervisor."""
    told, asked, count = sizes(quick=quick)
    async with open_system(ChildSpec("root", Root)) as system:
        many = system.supervisor.supervisor("many")
        ref = await many.start_child(ChildSpec("one", Counting))
        Counting.last, Counting.done = told, trio.Event()
        began = time.perf_counter()
        for number in range(1, told + 1):
            ref.tell(number)
            if number % BURST == 0:
                await trio.lowlevel.checkpoint()
        await Counting.done.wait()
        tell = told / (time.perf_counter() - began)
        Counting.last = 0
        times = []
        for _ in range(asked):
            began = time.perf_counter()
            await ref.ask(1)
            times.append(time.perf_counter() - began)
        found = {}
        for name in ("many", "ordered"):
            supervisor = system.supervisor.supervisor(name)
            before, began = _settled_kib(), time.perf_counter()
            for number in range(count):
                await supervisor.start_child(ChildSpec(f"idle-{number}", Idle))
            spawn, idle = time.perf_counter() - began, _settled_kib() - before
            began = time.perf_counter()
            await system.supervisor.terminate_child(name)
            found[name] = _figures(tell, times, spawn, idle, time.perf_counter() - began, count)
    return {**found["many"], "ordered_stop_s": found["ordered"]["stop_s"]}


async def crashes(*, quick: bool) -> Figures:
    """Measure the time from a crash to the next answer, each with an actor of its own."""
    logging.getLogger("actors.kernel").setLevel(logging.CRITICAL + 1)
    times = []
    supervisor = Supervisor(intensity=Intensity(1_000_000, 1.0))
    async with open_system(ChildSpec("root", lambda: supervisor)) as system:
        Counting.last = 0
        for number in range(50 if quick else 2_000):
            ref = await system.supervisor.start_child(ChildSpec(f"crashing-{number}", Counting))
            await ref.ask(1)
            began = time.perf_counter()
            ref.tell(-1)
            await ref.ask(1)
            times.append(time.perf_counter() - began)
            assert ref.generation == 2
    return {"p50_ms": median(times) * 1000, "p99_ms": quantile(times, 0.99) * 1000}


async def churn(*, quick: bool) -> Figures:
    """Spawn and stop many actors and look at memory on the way."""
    rounds, each = (4, 200) if quick else (10, 100_000)
    residents = []
    async with open_system(ChildSpec("root", Root)) as system:
        many = system.supervisor.supervisor("many")
        for _ in range(rounds):
            for number in range(each):
                ref = await many.start_child(ChildSpec(f"brief-{number}", Idle, Restart.TEMPORARY))
                ref.stop()
                await ref.wait_stopped()
            residents.append(_settled_kib())
    return {"spawned": rounds * each, "growth": residents[-1] - residents[0]}


# --- others

QueueItem = tuple[int, asyncio.Future[int] | None]


class Threaded(pykka.ThreadingActor):
    """A pykka actor that answers what it is sent."""

    def on_receive(self, message: int) -> int:
        """Answer."""
        return message


def threads(*, quick: bool) -> Figures:
    """Measure pykka's ThreadingActor, from the thread that it is made for: one that may block."""
    told, asked, count = sizes(quick=quick)
    told, count = told // 4, min(count, THREADS)
    ref = Threaded.start()
    began = time.perf_counter()
    for number in range(told):
        ref.tell(number)
    ref.ask(0)
    tell = told / (time.perf_counter() - began)
    times = []
    for _ in range(asked // 4):
        began = time.perf_counter()
        ref.ask(1)
        times.append(time.perf_counter() - began)
    before, began = _settled_kib(), time.perf_counter()
    for _ in range(count):
        Threaded.start()
    spawn, idle = time.perf_counter() - began, _settled_kib() - before
    began = time.perf_counter()
    pykka.ActorRegistry.stop_all()
    return _figures(tell, times, spawn, idle, time.perf_counter() - began, count)


async def queues(*, quick: bool) -> Figures:
    """Measure a task behind an asyncio.Queue."""
    told, asked, count = sizes(quick=quick)

    async def serve(queue: asyncio.Queue[QueueItem], done: asyncio.Event | None = None) -> None:
        while True:
            number, future = await queue.get()
            if future is not None:
                future.set_result(number)
            elif done is not None and number == told:
                done.set()

    queue: asyncio.Queue[QueueItem] = asyncio.Queue()
    done, loop = asyncio.Event(), asyncio.get_running_loop()
    task = asyncio.create_task(serve(queue, done))
    began = time.perf_counter()
    for number in range(1, told + 1):
        queue.put_nowait((number, None))
        if number % BURST == 0:
            await asyncio.sleep(0)
    await done.wait()
    tell = told / (time.perf_counter() - began)
    times = []
    for _ in range(asked):
        began = time.perf_counter()
        future = loop.create_future()
        queue.put_nowait((1, future))
        await future
        times.append(time.perf_counter() - began)
    task.cancel()
    before, began = _settled_kib(), time.perf_counter()
    tasks = []
    for _ in range(count):
        tasks.append(asyncio.create_task(serve(asyncio.Queue())))
        await asyncio.sleep(0)
    spawn, idle = time.perf_counter() - began, _settled_kib() - before
    began = time.perf_counter()
    for one in tasks:
        one.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
    return _figures(tell, times, spawn, idle, time.perf_counter() - began, count)


def erlang(*, quick: bool) -> Figures:
    """Measure a gen_server under a supervisor, where Erlang is installed: its memory is what Erlang itself says."""
    with tempfile.TemporaryDirectory(prefix="agent-runner-bench-") as folder:
        subprocess.run(["erlc", "-o", folder, str(ERLANG)], check=True, capture_output=True)  # noqa: S607
        numbers = [str(number) for number in sizes(quick=quick)]
        done = subprocess.run(
            ["erl", "-noshell", "-pa", folder, "-run", "contender", "main", *numbers],  # noqa: S607
            check=True,
            capture_output=True,
            timeout=300,
        )
    figures: Figures = orjson.loads(done.stdout)
    return figures


def _settled_kib() -> int:
    gc.collect()
    return resident_kib()


def _figures(  # noqa: PLR0917 - in the order of the table
    tell: float, times: list[float], spawn_s: float, idle_kib: float, stop_s: float, count: int
) -> Figures:
    return {
        "tell": tell,
        "ask_p50": median(times) * 1e6,
        "ask_p99": quantile(times, 0.99) * 1e6,
        "spawn": spawn_s / count * 1e6,
        "idle": idle_kib / count,
        "stop_s": stop_s,
        "count": count,
    }


def _in_trio(part: Callable[..., Awaitable[Figures]]) -> Callable[[bool], Figures]:
    return lambda quick: trio.run(partial(part, quick=quick))


PARTS: Final[dict[str, Callable[[bool], Figures]]] = {
    "channels": _in_trio(channels),
    "kernel": _in_trio(kernel),
    "threads": lambda quick: threads(quick=quick),
    "queues": lambda quick: asyncio.run(queues(quick=quick)),
    "erlang": lambda quick: erlang(quick=quick),
    "crashes": _in_trio(crashes),
    "churn": _in_trio(churn),
}
LABELS: Final = {
    "channels": "trio memory channel",
    "kernel": "our actor",
    "threads": "pykka ThreadingActor",
    "queues": "asyncio.Queue actor",
}
ERLANG: Final = Path(__file__).with_name("contender.erl")
ERLANG_LABEL: Final = "(Erlang gen_server)"


def measure(*, quick: bool) -> Report:
    """Measure every contender, in rounds since a machine has its moods, then what only a supervised actor does."""
    labels = dict(LABELS)
    if shutil.which("erl") and shutil.which("erlc"):
        labels["erlang"] = ERLANG_LABEL
    rounds = [
        {part: run_part("bench.actors", part, quick=quick) for part in labels}
        for _ in range(1 if quick else ROUNDS)
    ]
    found: dict[str, Figures] = {
        part: {name: median([one[part][name] for one in rounds]) for name in rounds[0][part]}
        for part in labels
    }
    base, ours = found["channels"], found["kernel"]
    rows = [
        [
            label,
            one["tell"],
            f"{one['tell'] / base['tell']:.1f}x",
            one["ask_p50"],
            one["ask_p99"],
            f"{one['ask_p50'] / base['ask_p50']:.1f}x",
            one["spawn"],
            f"{one['spawn'] / base['spawn']:.1f}x",
            one["idle"],
            f"{figure(one['stop_s'])} ({one['count']:,})",
        ]
        for label, one in ((label, found[part]) for part, label in labels.items())
    ]
    columns = [
        "",
        "tell/s",
        "to baseline",
        "ask p50 µs",
        "p99 µs",
        "to baseline",
        "spawn µs",
        "to baseline",
        "KiB idle",
        "stop s",
    ]
    crash = run_part("bench.actors", "crashes", quick=quick)
    churned = run_part("bench.actors", "churn", quick=quick)
    more = Table.of(
        "Supervision",
        ["", "p50", "p99"],
        [
            ["crash to next answer (ms)", crash["p50_ms"], crash["p99_ms"]],
            [f"ordered stop of {ours['count']:,}, dynamic supervisor (s)", ours["stop_s"], ""],
            [f"ordered stop of {ours['count']:,}, one after the other (s)", ours["ordered_stop_s"], ""],
            [f"growth over {churned['spawned']:,} spawns and stops (KiB)", churned["growth"], ""],
        ],
    )
    return Report(
        [Table.of("Messages and lives", columns, rows), more],
        [
            Goal("tell to a memory channel", ours["tell"] / base["tell"], 2, "x", at_least=True),
            Goal("ask p50 to a memory channel's round trip", ours["ask_p50"] / base["ask_p50"], 1.0, "x"),
            Goal("an idle actor", ours["idle"], 6, "KiB"),
            Goal("spawn", ours["spawn"], 60, "µs"),
            Goal("crash to next answer, p50", crash["p50_ms"], 0.2, "ms"),
            Goal(f"ordered stop of {ours['count']:,}", ours["stop_s"], 0.8, "s"),
            Goal(
                f"growth over {churned['spawned']:,} spawns and stops", churned["growth"], GROWTH_KIB, "KiB"
            ),
        ],
    )


def main() -> None:
    """Measure everything, or one part for `measure`, which reads JSON."""
    parser = argparse.ArgumentParser(add_help=False)
    parser.add_argument("--part", choices=PARTS)
    parser.add_argument("--quick", action="store_true")
    options, _ = parser.parse_known_args()
    if options.part is None:
        command(measure, __doc__)
    else:
        sys.stdout.write(orjson.dumps(PARTS[options.part](options.quick)).decode())


if __name__ == "__main__":
    main()
