"""Bounded mailboxes, messages from threads, dead letters, and actors that leave memory."""

import threading

import pytest
import trio
from trio.testing import wait_all_tasks_blocked

from actors.kernel import (
    Actor,
    ActorDeadError,
    AskCycleError,
    ChildSpec,
    DynamicSupervisor,
    MailboxFullError,
    Overflow,
    Restart,
    Supervisor,
    open_system,
)
from tests.actors.kernel.recorder import Recorder, one


def bounded(policy, size_max=2):
    class Bounded(Recorder):
        mailbox_size_max = size_max
        mailbox_overflow = policy

    return Bounded


async def busy(ref):
    """Occupy the actor until the returned event is set."""
    gate = trio.Event()

    async def hold(_actor):
        await gate.wait()

    ref.tell(("run", hold))
    await wait_all_tasks_blocked()
    return gate


@pytest.mark.parametrize("policy", [Overflow.WAIT, Overflow.REFUSE])
async def test_tell_to_a_full_mailbox_is_refused(policy):
    log = []
    async with open_system(one(lambda: bounded(policy)(log))) as system:
        ref = system.supervisor.child("a")
        gate = await busy(ref)
        ref.tell(1)
        ref.tell(2)
        with pytest.raises(MailboxFullError):
            ref.tell(3)
        assert ref.mailbox_length == 2
        gate.set()
        await wait_all_tasks_blocked()
        assert log[1:] == [1, 2]


async def test_send_and_ask_wait_for_room_first_come_first_served():
    log = []
    async with open_system(one(lambda: bounded(Overflow.WAIT)(log))) as system:
        ref = system.supervisor.child("a")
        gate = await busy(ref)
        ref.tell(1)
        ref.tell(2)
        async with trio.open_nursery() as nursery:
            for number in range(3, 7):
                nursery.start_soon(ref.send if number % 2 else ref.ask, number)
                await wait_all_tasks_blocked()
            assert ref.mailbox_length == 2
            gate.set()
        assert log[1:] == [1, 2, 3, 4, 5, 6]


async def test_sender_who_gives_up_waiting_leaves_no_message():
    log = []
    async with open_system(one(lambda: bounded(Overflow.WAIT)(log))) as system:
        ref = system.supervisor.child("a")
        gate = await busy(ref)
        ref.tell(1)
        ref.tell(2)
        for call in (ref.send, ref.ask):
            with trio.move_on_after(0):
                await call("withdrawn")
        async with trio.open_nursery() as nursery:
            nursery.start_soon(ref.send, "withdrawn")
            nursery.start_soon(ref.ask, "withdrawn")
            await wait_all_tasks_blocked()
            nursery.cancel_scope.cancel()
        gate.set()
        assert await ref.ask(3) == 3
        assert log[1:] == [1, 2, 3]


async def test_refuse_and_drop_new_raise_at_an_asker():
    for policy in (Overflow.REFUSE, Overflow.DROP_NEW):
        async with open_system(one(lambda policy=policy: bounded(policy)([]))) as system:
            ref = system.supervisor.child("a")
            gate = await busy(ref)
            ref.tell(1)
            ref.tell(2)
            with pytest.raises(MailboxFullError):
                await ref.ask(3)
            gate.set()


async def test_drop_new_loses_the_new_message_and_counts_it():
    log = []
    async with open_system(one(lambda: bounded(Overflow.DROP_NEW)(log))) as system:
        ref = system.supervisor.child("a")
        gate = await busy(ref)
        for number in range(5):
            ref.tell(number)
        gate.set()
        await wait_all_tasks_blocked()
        assert log[1:] == [0, 1]
        assert system.dead_letters.dropped_count == 3
        assert system.tree().find("root/a").dropped == 3


async def test_drop_old_loses_the_oldest_message_and_answers_its_asker():
    log = []
    async with open_system(one(lambda: bounded(Overflow.DROP_OLD)(log))) as system:
        ref = system.supervisor.child("a")
        gate = await busy(ref)
        async with trio.open_nursery() as nursery:

            async def ask_and_lose():
                with pytest.raises(MailboxFullError):
                    await ref.ask("oldest")

            nursery.start_soon(ask_and_lose)
            await wait_all_tasks_blocked()
            for number in range(3):
                ref.tell(number)
        gate.set()
        await wait_all_tasks_blocked()
        assert log[1:] == [1, 2]
        assert system.dead_letters.dropped_count == 2


async def test_stop_and_down_bypass_a_full_mailbox():
    log = []
    small = bounded(Overflow.REFUSE)
    specs = [
        ChildSpec("watcher", lambda: small(log, "watcher")),
        ChildSpec("watched", lambda: Recorder([]), restart=Restart.TEMPORARY),
    ]
    async with open_system(ChildSpec("root", lambda: Supervisor(specs))) as system:
        watcher, watched = system.supervisor.child("watcher"), system.supervisor.child("watched")
        watched.monitor(watcher)
        gate = await busy(watcher)
        watcher.tell(1)
        watcher.tell(2)
        watched.kill()
        await wait_all_tasks_blocked()
        assert watcher.mailbox_length == 3
        watcher.stop()
        gate.set()
        await wait_all_tasks_blocked()
        assert log[1] == "watcher stop"
        assert watcher.generation == 2


async def test_full_mailbox_is_kept_over_a_crash_and_those_who_wait_get_in():
    log = []
    async with open_system(one(lambda: bounded(Overflow.WAIT)(log))) as system:
        ref = system.supervisor.child("a")
        gate = await busy(ref)
        ref.tell("crash")
        ref.tell("kept")
        async with trio.open_nursery() as nursery:
            nursery.start_soon(ref.send, "waited")
            await wait_all_tasks_blocked()
            gate.set()
        await ref.ask("last")
        assert ref.generation == 2
        assert [entry for entry in log if not entry.startswith("actor ")] == ["kept", "waited", "last"]


async def test_those_who_wait_for_room_hear_of_the_actors_death():
    async with open_system(one(lambda: bounded(Overflow.WAIT)([]))) as system:
        ref = system.supervisor.child("a")
        await busy(ref)
        ref.tell(1)
        ref.tell(2)
        async with trio.open_nursery() as nursery:
            for call in (ref.send, ref.ask):

                async def wait_in_vain(call=call):
                    with pytest.raises(ActorDeadError):
                        await call(3)

                nursery.start_soon(wait_in_vain)
            await wait_all_tasks_blocked()
            nursery.start_soon(system.supervisor.terminate_child, "a")
            ref.kill()


async def test_two_actors_that_wait_for_room_in_each_others_mailboxes_are_told(autojump_clock):
    small = bounded(Overflow.WAIT, 1)
    specs = [ChildSpec(name, lambda: small([])) for name in "ab"]
    async with open_system(ChildSpec("root", lambda: Supervisor(specs))) as system:
        a, b = system.supervisor.child("a"), system.supervisor.child("b")
        caught = []
        gate = trio.Event()

        async def fill_and_send(actor):
            other = b if actor.ref is a else a
            await gate.wait()
            other.tell("fills it")
            await trio.sleep(1)
            try:
                await other.send("needs room")
            except AskCycleError:
                caught.append(actor.ref)

        a.tell(("run", fill_and_send))
        b.tell(("run", fill_and_send))
        await wait_all_tasks_blocked()
        gate.set()
        await trio.sleep(2)
        assert len(caught) == 1


async def test_thread_tells_arrive_in_order_and_wake_the_actor():
    log = []
    async with open_system(one(lambda: bounded(Overflow.WAIT, None)(log))) as system:
        ref = system.supervisor.child("a")

        def tell_many():
            for number in range(500):
                ref.tell(number)

        await trio.to_thread.run_sync(tell_many)
        await ref.ask("last")
        assert log[1:] == [*range(500), "last"]


async def test_thread_stop_and_kill_reach_the_actor():
    log = []
    async with open_system(one(lambda: Recorder(log))) as system:
        ref = system.supervisor.child("a")
        await trio.to_thread.run_sync(ref.stop)
        while ref.generation == 1:
            await trio.lowlevel.checkpoint()
        assert log[1] == "actor stop"
        ref.tell(("sleep", 1000))
        await trio.to_thread.run_sync(ref.kill)
        while ref.generation == 2:
            await trio.lowlevel.checkpoint()


async def test_thread_tell_at_the_moment_of_burial_is_a_dead_letter_and_never_lost_silently():
    for _ in range(20):
        async with open_system(one(lambda: bounded(Overflow.WAIT, None)([]))) as system:
            ref = system.supervisor.child("a")
            handled = []
            accepted = []
            begun = trio.Event()

            class Counting(Actor):
                mailbox_size_max = None

                async def on_receive(self, message, handled=handled):
                    handled.append(message)

            ref = await system.supervisor.start_child(ChildSpec("c", Counting))

            def tell_until_dead(ref=ref, accepted=accepted, begun=begun):
                while True:
                    try:
                        ref.tell(1)
                    except ActorDeadError:
                        return
                    accepted.append(1)
                    if len(accepted) == 1:
                        trio.from_thread.run_sync(begun.set)

            async with trio.open_nursery() as nursery:
                nursery.start_soon(trio.to_thread.run_sync, tell_until_dead)
                await begun.wait()
                await system.supervisor.terminate_child("c")
            # What the thread posted last is looked at by the loop once more.
            for _ in range(5):
                await trio.sleep(0.001)
            assert ref.mailbox_length == 0
            # One of the undelivered is the tell that was refused.
            assert len(handled) + system.dead_letters.undelivered_count - 1 == len(accepted)


async def test_thread_that_passed_the_check_before_a_burial_posts_a_dead_letter(monkeypatch):
    async with open_system(one(lambda: Recorder([]))) as system:
        ref = system.supervisor.child("a")
        clock = system.now
        checked, buried = threading.Event(), threading.Event()

        def now():
            # Called between a thread's look at the address and its append.
            if threading.get_ident() != system.thread_id:
                checked.set()
                assert buried.wait(10)
            return clock()

        monkeypatch.setattr(system, "now", now)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(trio.to_thread.run_sync, ref.tell, "too late")
            await trio.to_thread.run_sync(checked.wait, 10)
            await system.supervisor.terminate_child("a")
            buried.set()
        assert ref.mailbox_length == 0
        assert system.dead_letters.undelivered_count == 1


async def test_thread_may_answer_a_deferred_question():
    async with open_system(one(lambda: Recorder([]))) as system:
        ref = system.supervisor.child("a")

        async def defer(actor):
            future = actor.reply_later()
            actor.start_task(trio.to_thread.run_sync, future.set, "from a thread")

        assert await ref.ask(("run", defer)) == "from a thread"


async def test_drop_old_from_a_thread_keeps_the_bound():
    log = []
    async with open_system(one(lambda: bounded(Overflow.DROP_OLD)(log))) as system:
        ref = system.supervisor.child("a")
        gate = await busy(ref)

        def tell_many():
            for number in range(50):
                ref.tell(number)

        await trio.to_thread.run_sync(tell_many)
        await wait_all_tasks_blocked()
        assert ref.mailbox_length <= 2
        gate.set()
        await wait_all_tasks_blocked()
        assert log[-1] == 49


async def test_future_used_the_blocking_way_is_refused():
    async with open_system(one(lambda: Recorder([]))) as system:
        ref = system.supervisor.child("a")

        async def misuse(actor):
            future = actor.reply_later()
            with pytest.raises(RuntimeError, match="await"):
                future.get()
            with pytest.raises(NotImplementedError):
                future.map(str)
            future.set("fine")

        assert await ref.ask(("run", misuse)) == "fine"
        with pytest.raises(NotImplementedError):
            ref.proxy()


async def test_idle_actor_leaves_memory_and_the_next_message_brings_it_back(autojump_clock):
    log = []

    class Sleepy(Recorder):
        passivate_after_s = 60

    async with open_system(one(lambda: Sleepy(log))) as system:
        ref = system.supervisor.child("a")
        ref.tell("first")
        await trio.sleep(59)
        assert ref.state == "idle"
        await trio.sleep(2)
        assert ref.state == "passive"
        assert ref.is_alive()
        assert ref.incarnation is None
        assert await ref.ask("wake") == "wake"
        assert log == ["actor start", "first", "actor stop", "actor start", "wake"]
        node = system.tree().find("root/a")
        assert (node.generation, node.restarts) == (2, 0)


async def test_actor_with_a_running_task_does_not_leave_memory(autojump_clock):
    class Sleepy(Recorder):
        passivate_after_s = 10

    async with open_system(one(lambda: Sleepy([]))) as system:
        ref = system.supervisor.child("a")

        async def work():
            await trio.sleep(100)

        await ref.ask(("task", work))
        await trio.sleep(50)
        assert ref.state == "idle"
        await trio.sleep(70)
        assert ref.state == "passive"


async def test_message_at_the_moment_of_leaving_memory_is_served(autojump_clock):
    log = []
    async with open_system(one(lambda: Recorder(log))) as system:
        ref = system.supervisor.child("a")

        async def leave(actor):
            actor.passivate()
            ref.tell("already waiting")

        ref.tell(("run", leave))
        await wait_all_tasks_blocked()
        assert log == ["actor start", "actor stop", "actor start", "already waiting"]
        ref.tell(("run", leave))
        await ref.ask("and an asker")
        assert ref.generation == 3


async def test_queue_that_fills_while_the_actor_leaves_is_served_in_order_by_the_next_life(autojump_clock):
    log = []
    going = trio.Event()

    class Leaving(Recorder):
        mailbox_size_max = 3
        passivate_after_s = 10

        async def on_stop(self):
            await super().on_stop()
            await going.wait()

    async with open_system(one(lambda: Leaving(log))) as system:
        ref = system.supervisor.child("a")
        await trio.sleep(11)
        assert (ref.state, ref.generation) == ("stopping", 1)
        answers = []

        async def ask(number):
            answers.append(await ref.ask(number))

        async with trio.open_nursery() as nursery:
            ref.tell("told")
            # Two find room, the third waits for it until the next life has taken some.
            for number in (1, 2, 3):
                nursery.start_soon(ask, number)
                await wait_all_tasks_blocked()
            await to_thread(ref)
            assert log == ["actor start", "actor stop"]
            going.set()
        assert sorted(answers) == [1, 2, 3]
        assert ref.generation == 2
        assert log == ["actor start", "actor stop", "actor start", "told", 1, 2, 3]
        assert system.dead_letters.total == 0


async def to_thread(ref):
    """Have a thread find the mailbox full: what it is told is refused, and not half taken."""

    def tell():
        with pytest.raises(MailboxFullError):
            ref.tell("from a thread")

    await trio.to_thread.run_sync(tell)


async def test_an_idle_actor_may_end_for_good_or_stay_instead_of_leaving_memory(autojump_clock):
    log = []

    class Ends(Recorder):
        passivate_after_s = 10

        def on_idle(self):
            self.stop()

    class Stays(Recorder):
        passivate_after_s = 10
        asked = 0

        def on_idle(self):
            self.asked += 1

    children = [
        ChildSpec("a", lambda: Ends(log), restart=Restart.TRANSIENT),
        ChildSpec("b", lambda: Stays([])),
    ]
    async with open_system(ChildSpec("root", lambda: Supervisor(children))) as system:
        await trio.sleep(35)
        assert log == ["actor start", "actor stop"]
        assert not system.supervisor.child("a").is_alive()

        async def asked(actor):
            return actor.asked

        stays = system.supervisor.child("b")
        assert (await stays.ask(("run", asked)), stays.generation) == (3, 1)


async def test_thousands_that_come_back_at_once_do_not_starve_the_loop():
    class Passive(Actor):
        async def on_start(self):
            self.passivate()

    async with open_system(ChildSpec("root", DynamicSupervisor)) as system:
        root = system.supervisor
        refs = [await root.start_child(ChildSpec(str(number), Passive)) for number in range(1000)]
        await wait_all_tasks_blocked()
        assert {ref.state for ref in refs} == {"passive"}
        for ref in refs:
            ref.tell("come back")
        turns = 0
        while refs[-1].generation == 1:
            await trio.lowlevel.checkpoint()
            turns += 1
        assert turns >= 1000 // 64


async def test_passive_actor_stops_with_the_tree_and_can_be_terminated():
    log = []
    async with open_system(one(lambda: Recorder(log))) as system:
        ref = system.supervisor.child("a")

        async def leave(actor):
            actor.passivate()

        ref.tell(("run", leave))
        await wait_all_tasks_blocked()
        assert ref.state == "passive"
        await system.supervisor.terminate_child("a")
        assert not ref.is_alive()
    assert log == ["actor start", "actor stop"]


async def test_tree_shows_the_current_message_and_the_age_of_the_oldest(autojump_clock):
    async with open_system(one(lambda: Recorder([]))) as system:
        ref = system.supervisor.child("a")
        ref.tell(("sleep", 100))
        await trio.sleep(10)
        ref.tell("waits")
        await trio.sleep(5)
        node = system.tree().find("root/a")
        assert (node.state, node.current, node.current_age_s) == ("busy", "tuple", 15)
        assert (node.queue_length, node.oldest_age_s) == (1, 5)
        assert [child.id for child in system.tree().children] == ["a"]
        assert system.tree().find("root/nobody") is None
