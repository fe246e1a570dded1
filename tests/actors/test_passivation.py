"""Sessions that were idle leave memory, and the next message finds them as they were."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import orjson
import pytest
import trio
from trio.testing import MockClock

from actors.directory import ask
from actors.eviction import AT_ONCE_MAX, Evictor
from actors.kernel import Ref
from actors.runtime.base import Ceiling
from actors.runtime.constitutional import ConstitutionalRuntime
from actors.service import Caller
from actors.session_messages import AnswerCall, Cancel, Close, Init, Status, Subscribe
from actors.session_services import PASSIVATE_AFTER_S
from actors.sessions import token_of
from protocol.acting import RUNNER
from protocol.errors import RequestError
from protocol.tiers import Tier
from tests.support.office import GUEST, OPERATOR, Office, call, open_office, say, settled

STRANGER = Caller("guest", "another guest's connection", authenticated=False)
SESSIONS = 1_000


async def leave(clock: MockClock, *refs: Ref) -> None:
    """Let so much time go by that idle sessions leave memory."""
    await settled()
    clock.jump(PASSIVATE_AFTER_S + 1)
    await settled()
    assert {ref.state for ref in refs} == {"passive"}


def open_files() -> int:
    return len(list(Path("/proc/self/fd").iterdir()))


def events(office: Office) -> list[str]:
    rows = office.rows("SELECT payload FROM ledger WHERE quality = 'session_lifecycle' ORDER BY seq")
    return [orjson.loads(payload)["event"] for (payload,) in rows]


async def test_a_turn_after_it_continues_the_conversation(tmp_path: Path, mock_clock: MockClock) -> None:
    async with open_office(tmp_path) as office:
        ref = await office.open()
        assert (await office.turn(ref, "the first")).status == "complete"
        await leave(mock_clock, ref)
        assert (await office.turn(ref, "the second")).status == "complete"
        assert ref.generation == 2
        _, request = office.runtime.requests[1]
        assert [message["content"] for message in request.messages] == [
            "the first",
            [{"type": "text", "text": "Yes."}],
            "the second",
        ]
        [(first, _), (second, previous)] = office.rows("SELECT cid, prev_cid FROM turns ORDER BY seq")
        assert (previous, second is not None) == (first, True)
        assert events(office) == ["opened"]  # for the ledger, and for whoever uses it, nothing has happened
        office.check_ledger()


async def test_folders_and_verdicts_are_let_go_and_found_again(tmp_path: Path, mock_clock: MockClock) -> None:
    async def list_files(_session: Any, _request: Any, host: Any) -> str:
        [(failed, _)] = await call(host, ("list_files", {"path": "platform"}))
        assert not failed
        say(host, "Listed.")
        return "end_turn"

    async with open_office(tmp_path, list_files) as office:
        ref = await office.open()
        runtime = office.services.runtime
        assert isinstance(runtime, ConstitutionalRuntime)
        without = open_files()
        await office.turn(ref)
        verdicts = office.rows("SELECT count(*) FROM ledger WHERE quality = 'policy_verdict'")
        assert open_files() > without
        await leave(mock_clock, ref)
        assert open_files() == without
        assert (runtime._sessions, len(office.runtime.is_closed)) == ({}, 1)
        assert (await office.turn(ref)).status == "complete"
        # One verdict at the call; those on the offer are in force still.
        again = office.rows("SELECT count(*) FROM ledger WHERE quality = 'policy_verdict'")
        assert again[0][0] == verdicts[0][0] + 1


async def test_turns_that_come_while_it_leaves_all_run_in_their_order(
    tmp_path: Path, mock_clock: MockClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    going = trio.Event()

    async def wait(_session: str) -> None:
        await going.wait()

    async with open_office(tmp_path) as office, trio.open_nursery() as nursery:
        ref = await office.open()
        await office.turn(ref, "before")
        await settled()
        monkeypatch.setattr(office.runtime, "close", wait)
        mock_clock.jump(PASSIVATE_AFTER_S + 1)
        await settled()
        assert ref.state == "stopping"
        ended: list[str] = []

        async def turn(number: int) -> None:
            ended.append((await office.turn(ref, f"turn {number}")).status)

        for number in range(8):
            nursery.start_soon(turn, number)
            await settled()
        going.set()
        await settled()
        assert ended == ["complete"] * 8
        said = [request.messages[-1]["content"] for _, request in office.runtime.requests]
        assert said == ["before", *(f"turn {number}" for number in range(8))]
        assert ref.generation == 2


async def test_a_session_at_work_does_not_leave(tmp_path: Path, mock_clock: MockClock) -> None:
    goes_on = trio.Event()

    async def wait(_session: Any, _request: Any, host: Any) -> str:
        await goes_on.wait()
        say(host, "Done.")
        return "end_turn"

    async with open_office(tmp_path, wait, limits={"turn_timeout_s": 10_000}) as office:
        ref = await office.open()
        turn = await office.begin(ref)
        mock_clock.jump(PASSIVATE_AFTER_S * 3)
        await settled()
        assert (ref.state, ref.generation) == ("idle", 1)
        goes_on.set()
        assert (await turn.end()).status == "complete"


async def test_status_cancel_and_close_of_one_that_has_left(tmp_path: Path, mock_clock: MockClock) -> None:
    async with open_office(tmp_path) as office:
        ref = await office.open()
        key = ref.child_id
        await leave(mock_clock, ref)
        assert await office.directory.ask(key, Status(OPERATOR)) == {"state": "idle"}
        await leave(mock_clock, ref)
        assert await office.directory.ask(key, Cancel(OPERATOR)) == {"ok": True}
        await leave(mock_clock, ref)
        with pytest.raises(RequestError, match="no call 'x' waits"):
            await office.directory.ask(key, AnswerCall(OPERATOR, "x", "y", is_error=False))
        await leave(mock_clock, ref)
        assert await office.directory.ask(key, Close(OPERATOR, None)) == {"ok": True}
        assert events(office) == ["opened", "closed"]
        # What is closed does not wait in memory for anybody: it is forgotten, and known to the store alone.
        await settled()
        mock_clock.jump(PASSIVATE_AFTER_S + 1)
        await settled()
        assert not ref.is_alive()
        assert office.trunk.supervisor("sessions").child(key) is None
        assert await office.directory.ask(key, Status(OPERATOR)) == {"state": "closed"}


async def test_the_evictor_brings_back_only_those_that_are_due(tmp_path: Path, mock_clock: MockClock) -> None:
    async with open_office(tmp_path) as office:
        keys = [f"reed:test:{number}" for number in range(AT_ONCE_MAX + 5)]
        refs = [await office.open(key) for key in keys]
        kept = await office.open("reed:test:kept", mode="persistent")
        await leave(mock_clock, kept, *refs)
        patient, strict = (
            Evictor(lambda: office.directory, lambda: office.services, ttl_s) for ttl_s in (3600.0, 0.0)
        )
        await patient._evict()
        await settled()
        assert {ref.generation for ref in (kept, *refs)} == {1}
        await strict._evict()
        await settled()
        assert not any(ref.is_alive() for ref in refs)
        assert (kept.state, kept.generation) == ("passive", 1)
        assert events(office).count("evicted") == len(refs)
        assert office.directory.count_passive() == 1
        office.check_ledger()


async def test_it_is_still_its_owners_and_nobody_elses(tmp_path: Path, mock_clock: MockClock) -> None:
    async with open_office(tmp_path) as office:
        ref = await office.open("anna:test:1", GUEST)
        await leave(mock_clock, ref)
        with pytest.raises(RequestError, match="there is no session"):
            await ask(ref, Status(STRANGER))
        await leave(mock_clock, ref)
        assert (await office.turn(ref, caller=GUEST)).status == "complete"
        await leave(mock_clock, ref)
        [(identifier,)] = office.rows("SELECT id FROM sessions")
        bearer = replace(STRANGER, session_token=token_of(office.services.secret, identifier))
        assert await ask(ref, Status(bearer)) == {"state": "idle"}
        await leave(mock_clock, ref)
        office.services.openers.forget(GUEST.connection_id)
        with pytest.raises(RequestError, match="there is no session"):
            await ask(ref, Status(GUEST))


async def test_what_bounds_a_session_and_who_waits_for_it_outlive_it(
    tmp_path: Path, mock_clock: MockClock
) -> None:
    ceiling = Ceiling(Tier.REGISTERED, (), 1, 0, None)
    runner = Caller(RUNNER, "standing", authenticated=True)
    async with open_office(tmp_path) as office:
        ref = await office.directory.open("reed:subagent:1", ceiling=ceiling)
        await ask(ref, Init(runner, "reed"))
        idle: list[str] = []
        await ask(ref, Subscribe(lambda: idle.append("idle")))
        await leave(mock_clock, ref)
        await ask(ref, Status(OPERATOR))
        idle.clear()  # whoever waits may have been told that it is back
        assert (await office.turn(ref)).status == "complete"
        assert office.runtime.requests[0][0].ceiling == ceiling
        assert idle == ["idle"]


async def test_mail_brings_back_the_session_of_a_standing_agent(
    tmp_path: Path, mock_clock: MockClock
) -> None:
    async with open_office(tmp_path, standing=["reed"]) as office:
        await office.mail("reed", "the first")
        await settled()
        [ref] = office.directory.live()
        await leave(mock_clock, ref)
        assert office.directory.live() == []
        await office.mail("reed", "the second")
        await settled()
        first, second = office.runtime.turns_of("reed")
        assert len(second.messages) == len(first.messages) + 3  # what was said in the first is there
        assert office.rows("SELECT count(*) FROM mail_receipts") == [(2,)]
        office.services.hurry.set()


async def test_a_thousand_sessions_leave_and_answer_again(tmp_path: Path, mock_clock: MockClock) -> None:
    async with open_office(tmp_path, threaded=True) as office:  # so that the opening is committed together
        refs: list[Ref] = []

        async def begin(number: int) -> None:
            refs.append(await office.open(f"reed:test:{number}"))

        async with trio.open_nursery() as nursery:
            for number in range(SESSIONS):
                nursery.start_soon(begin, number)
        await leave(mock_clock, *refs)
        assert (office.directory.live(), office.directory.count_passive()) == ([], SESSIONS)
        answers: list[Any] = []

        async def look(ref: Ref) -> None:
            answers.append(await ask(ref, Status(OPERATOR)))

        async with trio.open_nursery() as nursery:
            for ref in refs:
                nursery.start_soon(look, ref)
        assert answers == [{"state": "idle"}] * SESSIONS
        assert {ref.generation for ref in refs} == {2}
        for ref in refs[::200]:
            assert (await office.turn(ref)).status == "complete"
        await leave(mock_clock, *refs)
