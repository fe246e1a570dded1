"""An actor that does what it is told and writes down what happens."""

import trio

from actors.kernel import Actor, ChildSpec, Refusal, Supervisor


class Recorder(Actor):
    """Does what it is told: tuples (command, …); writes what happens to a log that outlives it."""

    def __init__(self, log, name="actor"):
        self.log = log
        self.name = name

    async def on_start(self):
        self.log.append(f"{self.name} start")

    async def on_stop(self):
        self.log.append(f"{self.name} stop")

    async def on_failure(self, exception_type, exception_value, traceback):
        self.log.append(f"{self.name} failure {exception_type.__name__}")

    async def on_receive(self, message):
        match message:
            case "crash":
                raise ValueError("told to crash")
            case "refuse":
                return Refusal(KeyError("no such thing"))
            case ("sleep", seconds):
                await trio.sleep(seconds)
            case ("ask", ref, question):
                return await ref.ask(question)
            case ("task", function):
                self.start_task(function)
            case ("run", function):
                return await function(self)
            case _:
                self.log.append(message)
        return message


def one(factory, **fields):
    """A tree of one supervised actor, `a`."""
    return ChildSpec("root", lambda: Supervisor([ChildSpec("a", factory, **fields)]))
