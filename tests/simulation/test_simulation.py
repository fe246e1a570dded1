"""A short campaign, and that the simulation repeats itself and can fail."""

from __future__ import annotations

import gc
import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import trio

from actors.kernel import ChildSpec, Future, Intensity, Ref, Supervisor, open_system
from actors.kernel.child import RestartWindow
from actors.kernel.incarnation import Incarnation
from actors.kernel.mailbox import Envelope
from protocol.entry import make_entry
from store.board import Post, PostBoard
from store.database import open_writer
from store.ledger import AppendEntry
from store.mailbox import ClaimMail, SettleMail
from store.sessions import BeginTurn, EndTurn
from store.unit_of_work import UnitOfWork
from tests.simulation import lifecycle, messages, peace, records
from tests.simulation.campaign import run_campaign
from tests.simulation.faults import Interferer
from tests.simulation.lifecycle import Lifecycle
from tests.simulation.messages import Messages
from tests.simulation.observer import Observer
from tests.simulation.probes import Clerk
from tests.simulation.records import Records
from tests.simulation.simulator import simulate, template
from tests.simulation.trace import Trace
from tests.simulation.world import ENDS
from tests.support.storage import a_mail, at


def failed(trace: Trace) -> set[str]:
    return {violation.invariant for violation in trace.violations}


# --- the whole


def test_every_invariant_holds_over_some_seeds():
    report = run_campaign(range(1, 11))
    assert not report.failed, "\n".join(report.lines())
    assert report.seeds == 10
    promised = {
        value
        for module in (lifecycle, messages, records, peace)
        for name, value in vars(module).items()
        if name.isupper() and isinstance(value, str)
    }
    assert promised <= report.checks.keys()
    assert {"kill", "disk full", "slow disk", "power cut", "shutdown"} <= report.faults.keys()


def test_a_seed_repeats_itself_to_the_last_event_whatever_the_hash_seed():
    with template() as root:
        here = simulate(7, root)
    output = subprocess.run(
        [sys.executable, "-m", "tests.simulation", "--seed", "7"],
        env={**os.environ, "PYTHONHASHSEED": "1"},
        capture_output=True,
        text=True,
        check=True,
    ).stdout
    assert output == f"seed 7: {here.length} events, hash {here.digest}\n"


def test_a_bug_in_the_kernel_fails_a_campaign_and_names_the_seed(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(RestartWindow, "overflows", lambda _window, _now: False)
    report = run_campaign(range(1, 11), stop_at_first=True)
    assert report.failed
    [seed] = report.failed
    assert f"python -m tests.simulation --seed {seed} --trace" in "\n".join(report.lines())


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_a_world_in_which_somebody_waits_for_ever_ends(monkeypatch: pytest.MonkeyPatch):
    async def for_ever(_self: Incarnation) -> None:
        with trio.CancelScope(shield=True):
            await trio.sleep_forever()

    monkeypatch.setattr(Incarnation, "_reap_tasks", for_ever)
    with template() as root:
        result = simulate(1, root)
    gc.collect()  # the tasks of a run that was given up are not awaited
    assert ENDS in {violation.invariant for violation in result.violations}


# --- each checker, fed a bad history


async def watched_tree(trace: Trace, disturb: Any) -> None:
    """Run a small tree under the checkers of lives and messages, and let `disturb` do what it likes in it."""
    observer = Observer(trace, Interferer(trace))
    lives, mail = Lifecycle(trace, observer), Messages(trace)
    observer.watch_with(lives, mail)
    spec = ChildSpec("a", Clerk, intensity=Intensity(1, 60.0), park=True)
    with observer.watching():
        async with open_system(ChildSpec("root", lambda: Supervisor([spec]))) as system:
            a = system.supervisor.child("a")
            assert a is not None
            await disturb(observer, a)
        lives.audit()
        mail.end_epoch()


async def test_a_quiet_tree_violates_nothing(autojump_clock: Any):
    async def ask(_observer: Observer, a: Ref) -> None:
        assert await a.ask("hello") == "hello"
        a.kill()
        await trio.sleep(1)
        assert await a.ask("again") == "again"

    trace = Trace()
    await watched_tree(trace, ask)
    assert failed(trace) == set()
    assert trace.checks[lifecycle.INTENSITY] == trace.checks[lifecycle.BACK_OFF] == 1


async def test_messages_out_of_order_lost_or_handled_twice_are_found(autojump_clock: Any):
    async def disturb(_observer: Observer, a: Ref) -> None:
        for message in ("one", "two", "three", "four"):
            a.tell(message)
        a.mailbox.lane.reverse()
        await trio.sleep(0.1)
        a.mailbox.lane.popleft()
        a.mailbox.put(Envelope("from nowhere", None, 0.0))
        await trio.sleep(5)

    trace = Trace()
    await watched_tree(trace, disturb)
    assert {messages.ORDER, messages.ONCE} <= failed(trace)


async def test_a_message_that_vanishes_is_found(autojump_clock: Any):
    async def disturb(_observer: Observer, a: Ref) -> None:
        a.tell("one")
        await trio.sleep(0.1)
        a.tell("two")
        a.mailbox.lane.clear()

    trace = Trace()
    await watched_tree(trace, disturb)
    assert failed(trace) == {messages.KEPT}


async def test_two_incarnations_at_once_and_an_end_with_a_task_that_runs_are_found(autojump_clock: Any):
    async def disturb(observer: Observer, a: Ref) -> None:
        life = observer.lives[a]
        life.active["task ghost"] += 1
        a.kill()
        await trio.sleep(1)

    trace = Trace()
    await watched_tree(trace, disturb)
    assert {lifecycle.REAPED, lifecycle.OVERLAP} <= failed(trace)


async def test_a_child_that_is_parked_too_early_or_not_at_all_is_found(
    autojump_clock: Any, monkeypatch: pytest.MonkeyPatch
):
    async def kill_twice(_observer: Observer, a: Ref) -> None:
        for _ in range(2):
            a.kill()
            await trio.sleep(1)

    for overflows in (True, False):
        monkeypatch.setattr(RestartWindow, "overflows", lambda _window, _now, answer=overflows: answer)
        trace = Trace()
        await watched_tree(trace, kill_twice)
        assert lifecycle.PARKED in failed(trace)


async def test_a_question_that_nobody_answers_is_found(autojump_clock: Any, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(Future, "orphan", lambda _future, _error: None)

    async def disturb(_observer: Observer, a: Ref) -> None:
        nursery.start_soon(a.ask, "hello")
        await trio.sleep(0.1)
        a.kill()
        await trio.sleep(1)

    trace = Trace()
    async with trio.open_nursery() as nursery:
        await watched_tree(trace, disturb)
        nursery.cancel_scope.cancel()
    assert failed(trace) == {messages.ANSWERED}


# --- what is recorded


def unit(*writes: Any) -> UnitOfWork:
    return UnitOfWork(writes)


def turn(number: int, identifier: str | None = None) -> BeginTurn:
    return BeginTurn(identifier or f"turn {number}", "session", number, None, None, at(number))


def end(number: int, status: str = "complete") -> EndTurn:
    return EndTurn(f"turn {number}", "session", status, "cid", None, None, {}, at(number))


@pytest.mark.parametrize(
    ("units", "invariant"),
    [
        ([unit(turn(0)), unit(turn(1))], records.ONE_TURN),
        ([unit(turn(0)), unit(end(0)), unit(turn(5))], records.ONE_TURN),
        ([unit(turn(0)), unit(end(0)), unit(end(0, "failed"))], records.ONE_END),
        ([unit(end(3))], records.ONE_END),
        ([unit(ClaimMail(["m"], "reed", turn)) for turn in ("one", "two")], records.CLAIMED_ONCE),
        (
            [
                unit(ClaimMail(["m"], "reed", "one"), SettleMail("one", at())),
                unit(ClaimMail(["m"], "reed", "two"), SettleMail("two", at())),
            ],
            records.READ_ONCE,
        ),
        ([unit(PostBoard(Post("reed", "call c-abc-00", at())))], records.AUTHORISED),
    ],
)
def test_a_record_that_must_not_be_is_found(units: list[UnitOfWork], invariant: str):
    trace = Trace()
    watch = Records(trace)
    watch.take(units, [[] for _ in units])
    assert failed(trace) == {invariant}


def test_an_acknowledgement_before_the_disk_has_it_a_false_end_and_a_tool_without_leave_are_found():
    trace = Trace()
    watch = Records(trace)
    ref: Any = SimpleNamespace()
    watch.asked(1, ref, records.Commit(unit(turn(0))))
    watch.answered(1, well=True)
    watch.turn_told("turn 0", "complete")
    watch.tool_begins("c-abc-00", "post_board")
    assert failed(trace) == {records.DURABLE, records.TOLD_TRUTH, records.AUTHORISED}


def test_what_is_missing_from_the_store_is_found(tmp_path: Path):
    trace = Trace()
    watch = Records(trace)
    entry = make_entry(
        entity_id="reed",
        target="t",
        quality="session_lifecycle",
        timestamp=at(),
        source="reed",
        actor="reed",
        parents=[],
        payload={"event": "opened"},
    )
    watch.take([unit(AppendEntry(entry), turn(0)), unit(records.SendMail(a_mail()))], [[], []])
    database = open_writer(tmp_path / "empty.db")
    watch.audit(database, tmp_path, at_rest=True, verified=True)
    database.close()
    assert failed(trace) == {records.STANDS}
    assert len(trace.violations) == 3
