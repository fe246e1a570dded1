"""What a tree of actors has to do, said again without tasks, scopes or waiting: the oracle of the state machine.

The model works through each operation to its end before the next one, in virtual time. It says who is up, what each
address went through (starts, stops, failures, messages, in order), who was answered and how, and what was lost.
"""

from collections import Counter, deque
from contextlib import contextmanager
from dataclasses import dataclass, field, fields

from actors.kernel import AutoShutdown, Intensity, Overflow, Restart, Strategy

GRACE_S = 3.0  # the shutdown deadline of leaves that have one
PATIENCE_S = 7.25  # never a multiple of the other times, so that two timers of one instant do not race
NORMAL = ("normal", "shutdown", "passive")
UP, WAITING, PASSIVE, PARKED, ENDED = "up", "waiting", "passive", "parked", "ended"


@dataclass(frozen=True, repr=False)
class Shape:
    """What a child is made from; one with `children` or `dynamic` is a supervisor."""

    name: str
    restart: Restart = Restart.PERMANENT
    shutdown_s: float = GRACE_S
    significant: bool = False
    intensity: Intensity | None = None
    park: bool = False
    size_max: int | None = None
    overflow: Overflow = Overflow.WAIT
    patient: bool = False
    slow: bool = False  # its on_stop takes several turns of the loop
    dynamic: bool = False
    children: tuple["Shape", ...] = ()
    strategy: Strategy = Strategy.ONE_FOR_ONE
    tolerance: Intensity = Intensity()  # noqa: RUF009  # frozen
    backoff_s: float = 0.0  # the first delay; it doubles up to four times as much
    auto_shutdown: AutoShutdown = AutoShutdown.NEVER

    @property
    def supervises(self):
        return self.dynamic or bool(self.children)

    def __repr__(self):
        shown = (f"{one.name}={getattr(self, one.name)!r}" for one in fields(self)[1:])
        plain = {f"{one.name}={one.default!r}" for one in fields(self)}
        return f"Shape({', '.join([repr(self.name), *(text for text in shown if text not in plain)])})"


    def _repr_pretty_(self, printer, cycle):
        printer.text(repr(self))  # for Hypothesis


@dataclass
class Letter:
    """A message on its way; one of an asker or sender has a number in the answers."""

    kind: str
    number: int
    how: str = "tell"
    wanted: bool = True  # false once its asker has given up


@dataclass(eq=False)
class Node:
    """An address, with its row at its supervisor."""

    shape: Shape
    parent: "Node | None"
    key: int
    generation: int = 0
    alive: bool = False
    dead: bool = False
    parked: bool = False
    stop_asked: str | None = None
    clumsy: bool = False  # its on_stop raises
    queue: list = field(default_factory=list)
    waiting: list = field(default_factory=list)
    held: Letter | None = None  # the message in work
    stamp: int = 0  # of its patience
    dropped: int = 0
    monitored: bool = False
    watched: bool = False  # linked to the observer, which traps exits
    partner: "Node | None" = None
    row: str = ENDED
    ticket: int = 0
    window: list = field(default_factory=list)
    attempts: int = 0
    started_at: float = 0.0
    attended: bool = False
    table: dict = field(default_factory=dict)  # of a supervisor
    control: deque = field(default_factory=deque)
    busy: bool = False
    fresh: list = field(default_factory=list)  # children launched and not run yet
    own_window: list = field(default_factory=list)

    @property
    def name(self):
        return self.shape.name

    @property
    def leaf(self):
        return not self.shape.supervises


class GiveUp(Exception):  # noqa: N818  # a signal between two methods
    """A supervisor has more restarts than it may."""


class Model:
    """The expected world; each public method is an operation."""

    def __init__(self, root):
        self.now = 0.0
        self.serial = 0
        self.over = None  # how the root ended
        self.logs = {}
        self.observed = []  # what the observer heard
        self.answers = {}
        self.asked = {}  # pending, by number
        self.bad_starts = Counter()
        self.timers = []
        self.dropped = self.undelivered = 0
        self.murky = False  # what comes next depends on which task runs first, and nothing is promised
        self.root = self.make(root, None)
        self.root.row, self.root.alive, self.root.generation = UP, True, 1
        self.begin(self.root)

    def make(self, shape, parent):
        self.serial += 1
        return Node(shape, parent, self.serial)

    def note(self, node, what):
        if node.name != "observer":
            self.logs.setdefault(node.name, []).append(what)

    # -- starting --------------------------------------------------------------------------------------------------

    def launch(self, node, attended=False, waits=True):
        """Start an incarnation; whether its on_start returned, where the supervisor waits for that."""
        node.dead = node.parked = node.clumsy = False
        node.generation += 1
        node.ticket += 1
        node.row, node.attended, node.alive = UP, attended, True
        node.started_at = self.now
        node.parent.fresh.append(node)
        if not waits:
            return True
        up = self.boot(node)
        self.boot_all(node.parent)
        return up

    def boot(self, node, serves=True):
        """Run what was launched until it waits for something."""
        node.parent.fresh.remove(node)
        if not node.leaf:
            return self.begin(node)
        if self.bad_starts[node.name]:
            self.bad_starts[node.name] -= 1
            self.note(node, "failure")
            self.ended(node, "crashed", started=False)
            return False
        self.note(node, "start")
        if serves:
            self.serve(node)
        return True

    def boot_all(self, sup):
        nodes = list(sup.fresh)
        for node in nodes:
            self.boot(node)
        self.murky |= sum(not node.alive for node in nodes) > 1

    def begin(self, sup):
        sup.busy = True
        sup.control.clear()
        sup.own_window = []
        before, sup.table = sup.table, {}
        for shape in sup.shape.children:
            node = before.pop(shape.name, None) or self.make(shape, sup)
            node.row, node.ticket, node.window, node.attempts = ENDED, 0, [], 0
            sup.table[shape.name] = node
        for node in before.values():
            self.bury(node)
        sup.fresh = []
        for node in list(sup.table.values()):
            if not self.launch(node):
                self.end_supervisor(sup, "crashed", started=False)
                return False
        sup.busy = False
        self.drain(sup)
        return True

    # -- messages --------------------------------------------------------------------------------------------------

    def answer(self, letter, outcome):
        if letter.how != "tell" and self.asked.pop(letter.number, None) is not None:
            self.answers[letter.number] = outcome

    def post(self, node, letter):
        """Tell, ask or send; a tell's outcome is returned, the others' are answers."""
        outcome = self.deliver(node, letter)
        if letter.how == "tell":
            self.answers[letter.number] = outcome or "told"
            return
        self.asked[letter.number] = (node, letter)
        if outcome is not None:
            self.answer(letter, outcome)
        elif letter.how == "send" and letter not in node.waiting:
            self.answer(letter, "told")
        self.wake(node)

    def deliver(self, node, letter):
        shape = node.shape
        full = shape.size_max is not None and len(node.queue) >= shape.size_max
        if node.dead:
            self.undelivered += letter.how != "ask"
            return "dead"
        if node.parked and (letter.how == "ask" or (letter.how == "send" and full and shape.overflow is Overflow.WAIT)):
            return "parked"
        if not full:
            node.queue.append(letter)
        elif shape.overflow is Overflow.DROP_OLD:
            oldest = node.queue.pop(0)
            node.dropped += 1
            self.dropped += 1
            if oldest.how == "ask":
                self.answer(oldest, "full")
            node.queue.append(letter)
        elif shape.overflow is Overflow.WAIT and letter.how != "tell":
            node.waiting.append(letter)
        else:
            node.dropped += 1
            if shape.overflow is not Overflow.DROP_NEW or letter.how == "ask":
                return "full"
            self.dropped += 1
        if letter.how == "tell":
            self.wake(node)
        return None

    def wake(self, node):
        if node.alive and node.held is None:
            self.serve(node)
        elif node.row == PASSIVE and not node.alive and (node.queue or node.stop_asked):
            self.signal(node.parent, ("activated", node))

    def serve(self, node):
        """Handle what waits until the node is idle, held, or down."""
        while node.alive:
            if node.stop_asked:
                self.end_leaf(node, node.stop_asked)
                return
            if not node.queue:
                break
            letter = node.queue.pop(0)
            if node.waiting:
                node.queue.append(node.waiting.pop(0))
                if node.queue[-1].how == "send":
                    self.answer(node.queue[-1], "told")
            if letter.how == "ask" and not letter.wanted:
                continue
            self.note(node, (letter.kind, letter.number))
            if letter.kind == "hold":
                node.held = letter
                return
            if letter.kind == "crash":
                self.answer(letter, "dead")
                self.crash(node)
                return
            node.clumsy = node.clumsy or letter.kind == "clumsy"
            self.answer(letter, "refused" if letter.kind == "refuse" else "value")
            if letter.kind == "passivate":
                self.end_leaf(node, "passive")
                return
        if node.alive and node.shape.patient:
            node.stamp += 1
            self.timers.append((self.now + PATIENCE_S, "patience", node, node.generation, node.stamp))

    def release(self, node):
        letter, node.held = node.held, None
        self.answer(letter, "value")
        self.serve(node)

    def give_up(self, number):
        node, letter = self.asked.pop(number)
        self.answers[number] = "gone"
        letter.wanted = False
        if letter in node.waiting:
            node.waiting.remove(letter)

    # -- ends ------------------------------------------------------------------------------------------------------

    def end_leaf(self, node, kind):
        """End in order, with on_stop."""
        self.note(node, "stop")
        node.stop_asked = None
        self.ended(node, "crashed" if node.clumsy else kind)

    def crash(self, node):
        self.note(node, "failure")
        self.ended(node, "crashed")

    def ended(self, node, kind, started=True, origin=None):
        node.alive = False
        if node.held is not None:
            self.answer(node.held, "dead")
            node.held = None
        if kind in NORMAL or node.stop_asked == "shutdown":
            node.stop_asked = None
        if node.monitored:
            self.observed.append(("down", node.name, node.generation, kind))
        if node.watched:
            self.observed.append(("exit", node.name, node.generation, kind))
        if node.parent is None:
            self.over = kind
            self.bury(node)
            return
        node.parent.control.append(("exit", node, node.generation, kind, started))
        partner = node.partner
        if partner is not None and partner.alive and kind not in NORMAL and partner is not origin:
            if partner in partner.parent.fresh:
                self.boot(partner, serves=False)
            self.note(partner, "failure")
            self.ended(partner, "crashed", origin=node)
        self.drain(node.parent)

    def bury(self, node):
        if node.dead:
            return
        node.dead, node.parked, node.stop_asked = True, False, None
        for letter in node.queue + node.waiting:
            if letter in node.waiting or letter.how == "ask":
                self.answer(letter, "dead")
            else:
                self.undelivered += 1
        node.queue, node.waiting = [], []
        node.monitored = node.watched = False
        if node.partner is not None:
            node.partner.partner = node.partner = None
        for child in node.table.values():
            self.bury(child)
        node.table = {}

    def kill(self, node):
        for child in reversed(list(node.table.values())):
            if child.alive:
                node.busy = True
                self.kill(child)
        self.ended_supervisor(node, "killed") if not node.leaf else self.ended(node, "killed")

    def end_supervisor(self, sup, kind, started=True):
        """Stop the children in reverse, then the supervisor itself."""
        sup.busy = True
        children = list(reversed(sup.table.values()))
        if sup.shape.dynamic:
            # All are asked at once: those who obey are gone before anyone's deadline.
            children.sort(key=lambda node: 1 if not node.shape.shutdown_s else 2 * (node.held is not None))
            self.murky |= any(not node.shape.shutdown_s for node in sup.fresh)
            for node in sup.fresh:
                node.stop_asked = "shutdown"
        for node in children:
            self.terminate(node)
        self.ended_supervisor(sup, kind, started)

    def ended_supervisor(self, sup, kind, started=True):
        if sup.shape.dynamic:
            for node in sup.table.values():
                self.bury(node)
            sup.table = {}
        sup.busy = False
        self.ended(sup, kind, started)

    def terminate(self, node):
        if node.row != ENDED:
            node.row = WAITING
            node.ticket += 1
        if not node.alive:
            return
        is_fresh = node in node.parent.fresh
        if is_fresh and node.shape.shutdown_s:
            node.stop_asked = "shutdown"
        elif is_fresh:
            self.boot(node, serves=False)
        self.murky |= is_fresh and not node.leaf
        self.boot_all(node.parent)  # they run while the supervisor waits for this one
        if not node.alive:
            return
        if not node.leaf:
            self.end_supervisor(node, "shutdown")
        elif node.shape.shutdown_s and node.held is None:
            self.end_leaf(node, "shutdown")
        else:
            if node.shape.shutdown_s:
                node.stop_asked = "shutdown"
                self.advance(node.shape.shutdown_s)
            if node.alive:
                self.kill(node)

    # -- supervision -----------------------------------------------------------------------------------------------

    def signal(self, sup, signal):
        if sup.alive:
            sup.control.append(signal)
            self.drain(sup)

    def drain(self, sup):
        """Have a supervisor handle its signals, unless it is in the middle of something."""
        if sup.busy or not sup.alive:
            return
        sup.busy = True
        try:
            while sup.alive and (sup.control or sup.stop_asked or sup.fresh):
                if sup.stop_asked:
                    self.end_supervisor(sup, sup.stop_asked)
                elif not sup.control:
                    self.boot_all(sup)
                else:
                    kind, *content = sup.control.popleft()
                    getattr(self, f"handle_{kind}")(sup, *content)
        except GiveUp:
            self.end_supervisor(sup, "crashed")
        finally:
            sup.busy = False

    def handle_exit(self, sup, node, generation, kind, started):
        if sup.table.get(node.name) is not node or node.generation != generation or node.row != UP:
            return
        shape = node.shape
        if kind == "passive":
            node.row = PASSIVE
            self.wake(node)
        elif node.attended and not started:
            self.end_row(sup, node)
            if generation == 1:
                sup.table.pop(node.name, None)
        elif shape.restart is Restart.PERMANENT or (shape.restart is Restart.TRANSIENT and kind not in NORMAL):
            self.restart(sup, node)
        else:
            self.end_row(sup, node)
            others = [other for other in sup.table.values() if other.shape.significant and other is not node]
            if shape.significant and (
                sup.shape.auto_shutdown is AutoShutdown.ANY_SIGNIFICANT
                or all(other.row == ENDED for other in others)
            ):
                sup.stop_asked = "shutdown"

    def handle_due(self, sup, tickets):
        for node, ticket in tickets:
            if sup.table.get(node.name) is node and node.row == WAITING and node.ticket == ticket:
                if not self.launch(node, waits=sup.shape.strategy is not Strategy.ONE_FOR_ONE):
                    return

    def handle_activated(self, sup, node):
        if sup.table.get(node.name) is node and node.row == PASSIVE:
            self.launch(node, waits=False)

    def end_row(self, sup, node):
        node.row = ENDED
        node.ticket += 1
        self.bury(node)
        if sup.shape.dynamic or node.shape.restart is Restart.TEMPORARY:
            sup.table.pop(node.name, None)

    def count(self, window, limit):
        """Return how many restarts lie in the window that ends now."""
        window[:] = [at for at in window if self.now - at <= limit.within_s]
        return len(window)

    def restart(self, sup, node):
        shape = node.shape
        limit = shape.intensity or sup.shape.tolerance
        node.window.append(self.now)
        too_many = self.count(node.window, limit) > limit.max_restarts
        if shape.intensity is None and not shape.park:
            sup.own_window.append(self.now)
            too_many = self.count(sup.own_window, sup.shape.tolerance) > limit.max_restarts
        if too_many and shape.park:
            node.row, node.parked = PARKED, True
            node.ticket += 1
            for letter in [letter for letter in node.queue if letter.how == "ask"] + node.waiting:
                self.answer(letter, "parked")
            node.queue = [letter for letter in node.queue if letter.how != "ask"]
            node.waiting = []
            return
        if too_many:
            raise GiveUp
        node.attempts = 1 if self.now - node.started_at > limit.within_s else node.attempts + 1
        node.row = WAITING
        group = list(sup.table.values())
        if sup.shape.strategy is Strategy.ONE_FOR_ONE:
            group = [node]
        elif sup.shape.strategy is Strategy.REST_FOR_ONE:
            group = group[group.index(node) :]
        group = [member for member in group if member.row in (UP, WAITING)]
        for member in reversed(group):
            if member is not node:
                self.terminate(member)
                if member.shape.restart is Restart.TEMPORARY:
                    self.end_row(sup, member)
        tickets = []
        for member in group:
            if member.row == WAITING:
                member.ticket += 1
                tickets.append((member, member.ticket))
        first = sup.shape.backoff_s
        delay = 0 if node.attempts == 1 else min(4 * first, first * 2 ** (node.attempts - 2))
        if delay:
            self.timers.append((self.now + delay, "due", sup, sup.generation, tickets))
        else:
            self.handle_due(sup, tickets)

    def advance(self, seconds):
        """Let time pass, for whoever has nothing else to do."""
        until = self.now + seconds
        while True:
            due = [timer for timer in self.timers if timer[0] <= until]
            if not due:
                break
            timer = min(due, key=lambda timer: timer[0])
            self.timers.remove(timer)
            at, kind, node, generation, content = timer
            self.now = max(self.now, at)
            if not node.alive or node.generation != generation:
                continue
            if kind == "due":
                self.signal(node, ("due", content))
            elif node.held is None and node.stamp == content:
                self.end_leaf(node, "passive")
        self.now = max(self.now, until)

    # -- operations on supervisors and signals -----------------------------------------------------------------------

    @contextmanager
    def working(self, sup):
        """Keep a supervisor busy with a command; what happens meanwhile is handled after it."""
        sup.busy = True
        yield
        sup.busy = False
        self.drain(sup)

    def stop(self, node):
        if node.dead:
            return
        node.stop_asked = "normal"
        self.drain(node) if not node.leaf else self.wake(node)

    def start_child(self, sup, shape):
        if shape.name in sup.table:
            return "exists"
        with self.working(sup):
            node = sup.table[shape.name] = self.make(shape, sup)
            return "ok" if self.launch(node, attended=True) else "not started"

    def terminate_child(self, sup, name):
        node = sup.table.get(name)
        if node is None:
            return "unknown"
        with self.working(sup):
            self.terminate(node)
            self.end_row(sup, node)
            return "ok"

    def restart_child(self, sup, name):
        node = sup.table.get(name)
        if node is None:
            return "unknown"
        if node.row != ENDED:
            return "exists"
        with self.working(sup):
            return "ok" if self.launch(node, attended=True) else "not started"

    def delete_child(self, sup, name):
        node = sup.table.get(name)
        if node is None:
            return "unknown"
        if node.row != ENDED:
            return "exists"
        del sup.table[name]
        return "ok"

    def retry(self, sup, name):
        node = sup.table.get(name)
        if node is None:
            return "unknown"
        if node.row not in (PARKED, WAITING):
            return False
        with self.working(sup):
            node.window, node.attempts = [], 0
            self.launch(node)
            return True

    def monitor(self, node):
        if node.dead:
            self.observed.append(("down", node.name, node.generation, "not alive"))
        node.monitored = not node.dead

    def watch(self, node):
        if node.dead:
            self.observed.append(("exit", node.name, node.generation, "not alive"))
        node.watched = not node.dead

    def link(self, one, other):
        one.partner, other.partner = other, one

    def stop_all(self):
        self.end_supervisor(self.root, "shutdown")

    # -- what can be seen ------------------------------------------------------------------------------------------

    def nodes(self):
        """Return all below the root but the observer, by key, whose address somebody can look up."""
        found = []
        for node in self.root.table.values():
            if node.name != "observer":
                found += [node, *(node.table.values() if node.alive else ())]
        return found

    def snapshot(self, known):
        """Describe the world; `known` maps the keys of all nodes that were ever looked up to them."""
        return {
            "now": self.now,
            "over": self.over,
            "logs": {name: list(log) for name, log in self.logs.items()},
            "observed": Counter(self.observed),
            "answers": dict(self.answers),
            "lost": (self.dropped, self.undelivered),
            "tables": {
                sup.name: [(name, node.key) for name, node in sup.table.items() if name != "observer"]
                for sup in (self.root, *self.root.table.values())
                if sup.alive and not sup.leaf
            },
            "nodes": {key: self.describe(node) for key, node in known.items()},
        }

    def describe(self, node):
        row = None
        if node.parent.alive and node.parent.table.get(node.name) is node:
            limit = node.shape.intensity or node.parent.shape.tolerance
            row = (node.row, node.attempts, self.count(node.window, limit))
        return {
            "alive": node.alive,
            "dead": node.dead,
            "parked": node.parked,
            "generation": node.generation,
            "queue": len(node.queue),
            "dropped": node.dropped,
            "row": row,
        }
