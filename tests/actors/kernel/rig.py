"""A real tree that goes through the operations of a script and is compared with the model after each."""

import random
from collections import Counter

import trio
from trio.testing import MockClock, wait_all_tasks_blocked

from actors.kernel import (
    Actor,
    ActorDeadError,
    ActorParkedError,
    Backoff,
    ChildExistsError,
    ChildSpec,
    ChildStartError,
    Down,
    DynamicSupervisor,
    Exit,
    MailboxFullError,
    Refusal,
    RootFailedError,
    Supervisor,
    UnknownChildError,
    run,
)
from actors.kernel.child import ChildState
from tests.actors.kernel.shape import ENDED, EXTRA_NAMES, PARKED, PASSIVE, PATIENCE_S, UP, WAITING

ROWS = {
    ChildState.RUNNING: UP,
    ChildState.WAITING: WAITING,
    ChildState.PASSIVE: PASSIVE,
    ChildState.PARKED: PARKED,
    ChildState.ENDED: ENDED,
}


class RefusedError(Exception):
    """What a leaf answers when it is told to refuse."""


OUTCOMES = {
    ActorParkedError: "parked",
    ActorDeadError: "dead",
    MailboxFullError: "full",
    ChildExistsError: "exists",
    UnknownChildError: "unknown",
    RefusedError: "refused",
    ChildStartError: "not started",
}


class Observer(Actor):
    """Hears of the ends of others; never ends itself."""

    mailbox_size_max = None
    trap_exit = True

    def __init__(self, rig):
        self.rig = rig

    async def on_receive(self, message):
        kind = {Down: "down", Exit: "exit"}[type(message)]
        self.rig.observed.append((kind, message.ref.child_id, message.generation, message.reason.kind.value))


class Plain(Actor):
    """Does what it is told and writes it down; there is nothing to prepare."""

    def __init__(self, rig, shape):
        self.rig = rig
        self.shape = shape
        self.clumsy = False

    def note(self, what):
        self.rig.logs.setdefault(self.shape.name, []).append(what)
        if what in ("start", "stop") and self.shape.name not in EXTRA_NAMES["pool"]:
            self.rig.order.append((self.shape.name, what))

    async def on_stop(self):
        if self.shape.slow:
            for _ in range(5):
                await trio.lowlevel.checkpoint()
        self.note("stop")
        if self.clumsy:
            raise OSError("told to stumble")

    async def on_failure(self, exception_type, exception_value, traceback):
        self.note("failure")

    async def on_receive(self, message):
        self.note(message)
        kind = message[0]
        if kind == "crash":
            raise ValueError("told to crash")
        if kind == "hold":
            self.rig.gate = trio.Event()
            await self.rig.gate.wait()
        elif kind == "passivate":
            self.passivate()
            self.passivate()
        elif kind == "clumsy":
            self.clumsy = True
        return Refusal(RefusedError("told to")) if kind == "refuse" else message


class Leaf(Plain):
    """The same, with a start that is seen and may fail."""

    async def on_start(self):
        if self.rig.bad_starts[self.shape.name]:
            self.rig.bad_starts[self.shape.name] -= 1
            raise OSError("told not to start")
        self.note("start")


class Rig:
    """Runs the script: pairs of an operation (a function of the rig) and the snapshot that must hold after it."""

    def __init__(self, root, seed):
        self.shape = root
        self.seed = seed
        self.logs = {}
        self.order = []
        self.observed = []
        self.answers = {}
        self.bad_starts = Counter()
        self.gate = None
        self.scopes = {}
        self.refs = {}
        self.failed = False

    def spec(self, shape):
        if not shape.supervises:
            leaf = type("OneLeaf",
                (Plain if shape.plain else Leaf,), {
                "mailbox_size_max": shape.size_max,
                "mailbox_overflow": shape.overflow,
                "passivate_after_s": PATIENCE_S if shape.patient else None,
            })  # fmt: skip
            factory = (lambda: Observer(self)) if shape.name == "observer" else (lambda: leaf(self, shape))
            shutdown_s = shape.shutdown_s
        else:
            options = {
                "intensity": shape.tolerance,
                "backoff": Backoff(shape.backoff_s, 2, 4 * shape.backoff_s, 0),
            }
            specs = [self.spec(child) for child in shape.children]
            shutdown_s = None

            def factory():
                if shape.dynamic:
                    return DynamicSupervisor(**options)
                return Supervisor(
                    specs, strategy=shape.strategy, auto_shutdown=shape.auto_shutdown, **options
                )

        return ChildSpec(
            shape.name, factory, restart=shape.restart, shutdown_s=shutdown_s, significant=shape.significant,
            intensity=shape.intensity, park=shape.park,
        )  # fmt: skip

    # -- operations ------------------------------------------------------------------------------------------------

    def tell(self, key, kind, number):
        try:
            self.refs[key].tell((kind, number))
            self.answers[number] = "told"
        except tuple(OUTCOMES) as error:
            self.answers[number] = OUTCOMES[type(error)]

    def call(self, number, function, *args):
        """Await something in the background and note its outcome."""
        self.nursery.start_soon(self._call, number, function, args)

    async def _call(self, number, function, args):
        with trio.CancelScope() as self.scopes[number]:
            try:
                value = await function(*args)
            except tuple(OUTCOMES) as error:
                value = OUTCOMES[type(error)]
            self.answers[number] = value
        if self.scopes.pop(number).cancelled_caught:
            self.answers[number] = "gone"

    def ask(self, key, kind, number):
        async def ask():
            assert await self.refs[key].ask((kind, number)) == (kind, number)
            return "value"

        self.call(number, ask)

    def send(self, key, kind, number):
        async def send():
            await self.refs[key].send((kind, number))
            return "told"

        self.call(number, send)

    def command(self, key, method, argument, number):
        async def command():
            answer = await getattr(self.refs[key], method)(argument)
            return answer if isinstance(answer, bool) else "ok"

        self.call(number, command)

    def observe(self, key, how):
        observer = self.system.supervisor.child("observer")
        if how == "monitor":
            self.refs[key].monitor(observer)
        else:
            observer.link(self.refs[key])

    # -- the run ---------------------------------------------------------------------------------------------------

    def play(self, script):
        try:
            trio.run(self.main, script, clock=MockClock(autojump_threshold=0))
        except BaseExceptionGroup as group:
            found = group.subgroup(AssertionError)
            while isinstance(found, BaseExceptionGroup):
                found = found.exceptions[0]
            if found is None:
                raise
            raise found from None

    async def hold(self, task_status):
        try:
            await run(self.spec(self.shape), rng=random.Random(self.seed), task_status=task_status)
        except RootFailedError:
            self.failed = True

    async def main(self, script):
        async with trio.open_nursery() as self.nursery:
            self.system = await self.nursery.start(self.hold)
            self.refs[1] = self.system.root
            for step, (operation, expected) in enumerate(script):
                operation(self)
                await wait_all_tasks_blocked()
                await trio.sleep_until(expected["now"])
                await wait_all_tasks_blocked()
                self.compare(step, expected)
            self.system.begin_stop()  # where the script ended early
            await self.system.wait_stopped()
            await wait_all_tasks_blocked()
            assert not self.scopes, f"never answered: {sorted(self.scopes)}"
            self.nursery.cancel_scope.cancel()

    def compare(self, step, expected):
        """Check all that can be seen against what the model says."""
        found = {
            "now": trio.current_time(),
            "logs": self.logs,
            "answers": self.answers,
            "lost": (self.system.dead_letters.dropped_count, self.system.dead_letters.undelivered_count),
        }
        for name, value in found.items():
            differ(step, name, value, expected[name])
        if expected["order"] is not None:
            differ(step, "order of siblings", self.order, expected["order"])
        self.order.clear()
        over = expected["over"]
        assert (self.system._ended.is_set(), self.failed) == (over is not None, over in ("crashed", "killed"))
        if over is None:
            differ(step, "observed", Counter(self.observed), expected["observed"])
        self.compare_tables(step, expected)
        for key, node in expected["nodes"].items():
            differ(
                step, f"node {key} {self.refs[key].path}", self.describe(self.refs[key], node["row"]), node
            )

    def compare_tables(self, step, expected):
        """Check who is registered where, and learn the addresses of those who are new."""
        root = self.system.root
        for name, rows in expected["tables"].items():
            sup = root if name == "root" else root.child(name)
            ids = [child_id for child_id in sup.children or {} if child_id != "observer"]
            differ(step, f"children of {name}", ids, [child_id for child_id, _ in rows])
            for child_id, key in rows:
                assert self.refs.setdefault(key, sup.child(child_id)) is sup.child(child_id), (
                    f"{child_id} has moved"
                )

    def describe(self, ref, row):
        child = (ref.parent.children or {}).get(ref.child_id) if row is not None else None
        window = 0 if child is None or child.window is None else child.window.count(trio.current_time())
        return {
            "alive": ref.incarnation is not None,
            "dead": not ref.is_alive(),
            "parked": ref.state == "parked",
            "generation": ref.generation,
            "queue": ref.mailbox_length,
            "dropped": ref.mailbox.dropped,
            "row": None if child is None else (ROWS[child.state], child.attempts, window),
        }


def differ(step, what, found, expected):
    """Raise if the tree is not as the model says; pytest shows where two dictionaries part."""
    assert found == expected, f"after operation {step}: {what} is {found}, by the model {expected}"
