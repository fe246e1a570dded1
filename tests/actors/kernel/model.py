"""What a tree of actors has to do, said again without tasks, scopes or waiting: the oracle of the state machine.

The model works through each operation to its end before the next one, in virtual time. It says who is up, what each
address went through (starts, stops, failures, messages, in order), who was answered and how, and what was lost.
"""

from collections import Counter
from contextlib import contextmanager

from actors.kernel import AutoShutdown, Restart, Strategy
from tests.actors.kernel.addresses import Addresses
from tests.actors.kernel.shape import ENDED, NORMAL, PARKED, PASSIVE, UP, WAITING, GiveUp, Node


class Model(Addresses):
    """The expected world; each public method is an operation."""

    def __init__(self, root):
        super().__init__()
        self.serial = 0
        self.root = self.make(root, None)
        self.root.row, self.root.alive, self.root.generation = UP, True, 1
        self.begin(self.root)

    def make(self, shape, parent):
        self.serial += 1
        return Node(shape, parent, self.serial)

    # -- starting --------------------------------------------------------------------------------------------------

    def launch(self, node, attended=False, waits=True):
        """Start an incarnation; whether its on_start returned, where the supervisor waits for that."""
        node.dead = node.parked = node.refuses = node.clumsy = False
        node.generation += 1
        node.ticket += 1
        node.row, node.attended, node.alive = UP, attended, True
        node.started_at = self.now
        node.parent.fresh.append(node)
        if not waits:
            return True
        # Nobody waits for one that prepares nothing, nor knows how far it gets meanwhile.
        self.murky |= node.shape.plain and bool(node.queue or node.stop_asked)
        up = self.boot(node)
        self.boot_all(node.parent)
        return up

    def boot(self, node, serves=True):
        """Run what was launched until it waits for something."""
        node.parent.fresh.remove(node)
        if not node.leaf:
            return self.begin(node)
        if self.bad_starts[node.name] and not node.shape.plain:
            self.bad_starts[node.name] -= 1
            self.note(node, "failure")
            self.ended(node, "crashed", started=False)
            return False
        if not node.shape.plain:
            self.note(node, "start")
        if serves:
            self.serve(node)
        return True

    def boot_all(self, sup):
        nodes = list(sup.fresh)
        for node in nodes:
            self.boot(node)
        self.loose |= len(nodes) > 1
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
        self.loose |= is_fresh
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
        elif shape.restart is Restart.PERMANENT or (
            shape.restart is Restart.TRANSIENT and kind not in NORMAL
        ):
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
                up = self.launch(node, waits=sup.shape.strategy is not Strategy.ONE_FOR_ONE)
                if not up:
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
            self.park(node)
            return
        if too_many:
            raise GiveUp
        node.attempts = 1 if self.now - node.started_at > limit.within_s else node.attempts + 1
        node.row = WAITING
        group = self.group(sup, node)
        if len(group) > 1:
            self.turn_away(node)
        for member in reversed(group):
            if member is not node:
                self.terminate(member)
                self.turn_away(member)
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

    def group(self, sup, node):
        """Return who goes down and comes back with a node, in start order."""
        group = list(sup.table.values())
        if sup.shape.strategy is Strategy.ONE_FOR_ONE:
            return [node]
        if sup.shape.strategy is Strategy.REST_FOR_ONE:
            group = group[group.index(node) :]
        return [member for member in group if member.row in (UP, WAITING)]

    def turn_away(self, node):
        self.refuse(node, "dead")
        node.refuses = True

    def park(self, node):
        node.row, node.parked = PARKED, True
        node.ticket += 1
        self.refuse(node, "parked")
        for letter in node.waiting:
            self.answer(letter, "parked")
        node.waiting = []

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
            self.loose |= any(other[0] == at for other in due if other is not timer)
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
        order, self.order = self.order, []
        loose, self.loose = self.loose, False
        return {
            "now": self.now,
            "order": None if loose else order,
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
