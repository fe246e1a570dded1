"""The half of the model that speaks of single addresses: their messages and their ends."""

from collections import Counter

from actors.kernel import Overflow
from tests.actors.kernel.shape import EXTRA_NAMES, NORMAL, PASSIVE, PATIENCE_S


class Addresses:
    """What is told and asked, who answers, and what an end means for everyone who is concerned."""

    def __init__(self):
        self.now = 0.0
        self.over = None  # how the root ended
        self.logs = {}  # what each name went through, in order
        self.order = []  # starts and stops of the siblings of one supervisor, in order, since the last operation
        self.loose = False  # the order of the siblings depends on which task ran first
        self.murky = False  # so does what comes next, and nothing is promised
        self.observed = []  # what the observer heard
        self.answers = {}
        self.asked = {}  # pending, by number
        self.bad_starts = Counter()
        self.timers = []
        self.dropped = self.undelivered = 0

    def note(self, node, what):
        if node.name == "observer":
            return
        self.logs.setdefault(node.name, []).append(what)
        if what in ("start", "stop") and node.name not in EXTRA_NAMES["pool"]:
            self.order.append((node.name, what))

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
        if node.parked and (
            letter.how == "ask" or (letter.how == "send" and full and shape.overflow is Overflow.WAIT)
        ):
            return "parked"
        if node.refuses and letter.how == "ask":
            return "dead"
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
            self.loose = True
            self.note(partner, "failure")
            self.ended(partner, "crashed", origin=node)
        self.drain(node.parent)

    def refuse(self, node, outcome):
        """Answer all who ask; what was told is kept."""
        for letter in node.queue:
            if letter.how == "ask":
                self.answer(letter, outcome)
        node.queue = [letter for letter in node.queue if letter.how != "ask"]

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
