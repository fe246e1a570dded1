"""Random trees under random operations do what the model says, operation by operation.

MACHINE_EXAMPLES=N makes a longer run, with other examples each time; MACHINE_RAW=1 shows a failure unshrunk.
"""

import logging
import os
from dataclasses import replace

import pytest
from hypothesis import HealthCheck, Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    precondition,
    rule,
    run_state_machine_as_test,
)

from actors.kernel import AutoShutdown, Intensity, Overflow, Restart, Strategy
from tests.actors.kernel.model import Model
from tests.actors.kernel.rig import Rig
from tests.actors.kernel.shape import EXTRA_NAMES, GRACE_S, Letter, Shape

EXAMPLES = int(os.environ.get("MACHINE_EXAMPLES", "0"))
SETTINGS = settings(
    max_examples=EXAMPLES or 100,
    stateful_step_count=40,
    deadline=None,
    derandomize=not EXAMPLES,
    database=None,
    report_multiple_bugs=False,
    phases=[Phase.generate] if os.environ.get("MACHINE_RAW") else [Phase.generate, Phase.shrink],
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.filter_too_much, HealthCheck.data_too_large],
)
NUMBER = st.integers(0, 20)
KINDS = st.sampled_from([*["note"] * 6, "crash", "passivate", "clumsy", "refuse"])
HOWS = st.sampled_from(["tell", "ask", "send"])
INTENSITIES = st.builds(Intensity, st.integers(0, 3), st.sampled_from([2.0, 5.0]))


@st.composite
def leaves(draw, name, strategy=Strategy.ONE_FOR_ONE, auto_shutdown=AutoShutdown.NEVER):
    restart = draw(
        st.sampled_from([Restart.PERMANENT, Restart.PERMANENT, Restart.TRANSIENT, Restart.TEMPORARY])
    )
    may_end = auto_shutdown is not AutoShutdown.NEVER and restart is not Restart.PERMANENT
    return Shape(
        name,
        restart=restart,
        shutdown_s=draw(st.sampled_from([GRACE_S, GRACE_S, 0.0])),
        significant=may_end and draw(st.booleans()),
        intensity=draw(st.none() | INTENSITIES),
        park=strategy is Strategy.ONE_FOR_ONE and draw(st.booleans()),
        size_max=draw(st.sampled_from([None, 2])),
        overflow=draw(st.sampled_from(Overflow)),
        patient=draw(st.sampled_from([False, False, True])),
        slow=draw(st.booleans()),
        plain=draw(st.sampled_from([False, False, True])),
    )


@st.composite
def roots(draw):
    strategy = draw(st.sampled_from(Strategy))
    auto_shutdown = draw(st.sampled_from(AutoShutdown))
    middle = Shape(
        "middle",
        restart=draw(st.sampled_from([Restart.PERMANENT, Restart.TRANSIENT])),
        children=tuple(
            draw(leaves(name, strategy, auto_shutdown)) for name in "abc"[: draw(st.integers(2, 3))]
        ),
        strategy=strategy,
        tolerance=draw(INTENSITIES),
        backoff_s=draw(st.sampled_from([0.0, 1.0])),
        auto_shutdown=auto_shutdown,
    )
    pool = Shape(
        "pool", dynamic=True, tolerance=draw(INTENSITIES), backoff_s=draw(st.sampled_from([0.0, 1.0]))
    )
    return Shape(
        "root",
        children=(Shape("observer"), middle, pool),
        tolerance=Intensity(draw(st.integers(1, 3)), 5.0),
        backoff_s=draw(st.sampled_from([0.0, 2.0])),
    )


class Machine(RuleBasedStateMachine):
    """Each rule runs in the model at once and goes into a script, which a real tree follows at the end."""

    def __init__(self):
        super().__init__()
        self.model = None
        self.script = []
        self.known = {}
        self.number = 0

    @initialize(root=roots(), random=st.random_module())
    def grow(self, root, random):
        self.rig = Rig(root, 0)
        self.model = Model(root)
        self.record(lambda rig: None)

    def teardown(self):
        if self.model is not None:
            if self.running():
                self.model.stop_all()
                self.record(lambda rig: rig.system.begin_stop())
            self.rig.play(self.script)

    # -- helpers ---------------------------------------------------------------------------------------------------

    def record(self, operation):
        """Note an operation that the model has just done, and what is to be seen after it."""
        if self.model.murky:
            return
        expected = self.model.snapshot(self.known | {node.key: node for node in self.model.nodes()})
        self.known.update({node.key: node for node in self.model.nodes()})
        self.script.append((operation, expected))

    def pick(self, index, *, leaf=True):
        """Return a node that is or was, the living more often."""
        nodes = [node for node in self.model.nodes() if node.leaf is leaf]
        nodes += [node for node in nodes if node.alive] * 2
        nodes += [node for node in self.known.values() if node.leaf is leaf and node not in nodes]
        return nodes[index % len(nodes)] if nodes else None

    def next_number(self):
        self.number += 1
        return self.number

    def held(self):
        """Return the node whose message is in work, None if there is none."""
        return next((node for node in self.known.values() if node.held is not None), None)

    def may_receive(self, node, kind):
        """Whether what follows has one outcome only, whatever the order in which tasks of one instant run."""
        idle = node.alive and node.held is None and not node.queue
        if kind == "crash":
            return node.partner is None or idle
        if kind == "passivate":
            return not node.shape.slow or idle
        if kind == "clumsy":
            return node.partner is None and not node.shape.patient
        return True

    def post(self, node, kind, how):
        if node is None or not self.may_receive(node, kind):
            return
        number = self.next_number()
        self.model.post(node, Letter(kind, number, how))
        key = node.key
        self.record(lambda rig: getattr(rig, how)(key, kind, number))

    def running(self):
        return self.model.over is None and not self.model.murky

    # -- rules -----------------------------------------------------------------------------------------------------

    @precondition(running)
    @rule(index=NUMBER, kind=KINDS, how=HOWS, times=st.integers(1, 3))
    def message(self, index, kind, how, times):
        node = self.pick(index)
        for _ in range(times):
            self.post(node, kind, how)

    @precondition(running)
    @rule(index=NUMBER, times=st.integers(1, 4))
    def crash(self, index, times):
        node = self.pick(index)
        for _ in range(times):
            if self.running():
                self.post(node, "crash", "tell")

    @precondition(running)
    @rule(
        index=NUMBER,
        how=st.sampled_from(["tell", "ask"]),
        letters=st.lists(st.tuples(KINDS, HOWS, st.booleans()), max_size=6),
        end=st.sampled_from(["none", "release", "sibling"]),
    )
    def hold(self, index, how, letters, end):
        """Keep one busy, at most one in the tree, and queue letters behind; some askers give up."""
        nodes = [node for node in self.model.nodes() if node.leaf and node.alive and not node.queue]
        if nodes and self.held() is None:
            self.post(nodes[index % len(nodes)], "hold", how)
        for kind, way, withdrawn in letters if self.held() is not None else ():
            self.post(self.held(), kind, way)
            if withdrawn and self.number in self.model.asked:
                self.withdraw(self.number)
        node = self.held()
        if node is not None and end == "release":
            self.release()
        elif node is not None and end == "sibling":
            siblings = [other for other in node.parent.table.values() if other is not node]
            self.post(siblings[index % len(siblings)] if siblings else None, "crash", "tell")

    @precondition(lambda self: self.running() and self.held() is not None)
    @rule()
    def release_held(self):
        self.release()

    def release(self):
        self.model.release(self.held())
        self.record(lambda rig: rig.gate.set())

    @precondition(lambda self: self.running() and self.model.asked)
    @rule(index=NUMBER)
    def give_up(self, index):
        self.withdraw(sorted(self.model.asked)[index % len(self.model.asked)])

    def withdraw(self, number):
        self.model.give_up(number)
        self.record(lambda rig: rig.scopes[number].cancel())

    @precondition(running)
    @rule(index=NUMBER)
    def stop(self, index):
        node = self.pick(index)
        if node is None or (node.shape.slow and (not node.alive or node.held is not None)):
            return
        self.model.stop(node)
        self.record(lambda rig: rig.refs[node.key].stop())

    @precondition(running)
    @rule(index=NUMBER)
    def kill(self, index):
        node = self.pick(index)
        if node is None:
            return
        if node.alive:
            self.model.kill(node)
        self.record(lambda rig: rig.refs[node.key].kill())

    @precondition(running)
    @rule(index=NUMBER, brutally=st.booleans())
    def end_supervisor(self, index, brutally):
        node = self.pick(index, leaf=False)
        if (
            node is None
            or not node.alive
            or (brutally and any(child.partner for child in node.table.values()))
        ):
            return
        if brutally:
            self.model.kill(node)
            self.record(lambda rig: rig.refs[node.key].kill())
        else:
            self.model.stop(node)
            self.record(lambda rig: rig.refs[node.key].stop())

    @precondition(running)
    @rule(index=NUMBER, times=st.integers(1, 3))
    def fail_next_starts(self, index, times):
        node = self.pick(index)
        if node is None or any(other.name == node.name and other.partner for other in self.known.values()):
            return
        self.model.bad_starts[node.name] = times
        self.record(lambda rig: rig.bad_starts.update({node.name: times - rig.bad_starts[node.name]}))

    @precondition(running)
    @rule(index=NUMBER, how=st.sampled_from(["monitor", "watch"]))
    def observe(self, index, how):
        node = self.pick(index)
        if node is not None:
            getattr(self.model, how)(node)
            self.record(lambda rig: rig.observe(node.key, how))

    @precondition(running)
    @rule(index=NUMBER, other=NUMBER)
    def link(self, index, other):
        pair = [self.pick(index), self.pick(other)]
        if pair[0] is pair[1] or any(
            node is None
            or not node.alive
            or node.partner is not None
            or node.queue
            or node.clumsy
            or not node.shape.shutdown_s
            or self.model.bad_starts[node.name]
            for node in pair
        ):
            return
        self.model.link(*pair)
        self.record(lambda rig: rig.refs[pair[0].key].link(rig.refs[pair[1].key]))

    @precondition(running)
    @rule(
        index=NUMBER,
        method=st.sampled_from(
            ["terminate_child", "restart_child", "restart_child", "delete_child", "retry", "retry"]
        ),
        leaf=st.sampled_from([True, True, True, False]),
    )
    def command(self, index, method, leaf):
        node = self.pick(index, leaf=leaf)
        if node is None or not node.parent.alive:
            return
        number = self.next_number()
        parent, name = node.parent.key, node.name
        self.model.answers[number] = getattr(self.model, method)(node.parent, name)
        self.record(lambda rig: rig.command(parent, method, name, number))

    @precondition(running)
    @rule(
        place=st.sampled_from([(sup, name) for sup, names in EXTRA_NAMES.items() for name in names]),
        shape=leaves("extra"),
        bad=st.sampled_from([0, 0, 0, 1]),
    )
    def start_child(self, place, shape, bad):
        sup, shape = self.model.root.table.get(place[0]), replace(shape, name=place[1])
        if sup is None or not sup.alive or (shape.park and sup.shape.strategy is not Strategy.ONE_FOR_ONE):
            return
        number = self.next_number()
        if bad and shape.name not in sup.table:
            self.model.bad_starts[shape.name] = bad
        self.model.answers[number] = self.model.start_child(sup, shape)

        def start(rig):
            if bad and shape.name not in (rig.refs[sup.key].children or {}):
                rig.bad_starts[shape.name] = bad
            rig.command(sup.key, "start_child", rig.spec(shape), number)

        self.record(start)

    @rule(seconds=st.sampled_from([0.5, 1.0, 2.0, 5.0, 5.5, 30.0]))
    def advance(self, seconds):
        self.model.advance(seconds)
        self.record(lambda rig: None)


@pytest.fixture
def _silence():
    """Keep thousands of crashes that are meant out of the log."""
    logging.disable(logging.CRITICAL)
    yield
    logging.disable(logging.NOTSET)


@pytest.mark.usefixtures("_silence")
def test_random_trees_do_what_the_model_says():
    run_state_machine_as_test(Machine, settings=SETTINGS)
