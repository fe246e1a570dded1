"""When standing agents wake, how often, and what stands against it."""

from pathlib import Path

import pytest
import trio
from trio.testing import MockClock

from actors.runtime.breaker import Breaker
from actors.standing import BACK_OFF_FIRST_S, BACK_OFF_MAX_S, FAILURES_MAX, WINDOW_S, Unpark
from protocol.errors import BackendError
from protocol.tiers import Tier
from store.mailbox import unread
from store.sessions import last_wakes
from tests.support.office import Office, ScriptedRuntime, call, open_office, say, settled


async def count_and_answer(_session, _request, host):
    say(host, "Read.")
    return "end_turn"


async def fail(_session, _request, _host):
    raise BackendError("backend_error", "the model server is down")


def carried(request) -> list[str]:
    """Return the messages that a request carries."""
    own = request.messages[request.own_from]["content"]
    return [block["text"] for block in own] if isinstance(own, list) else []


async def test_mail_wakes_its_agent_at_once_and_nobody_else(tmp_path: Path, mock_clock: MockClock):
    async with open_office(tmp_path / "root", standing=["reed", "calli"]) as office:
        await settled()
        assert office.runtime.requests == []
        await office.mail("reed", "The disk is full.")
        await settled()
        [(session, request)] = office.runtime.requests
        assert (session.session_key, session.acting.tier) == ("reed:cli:local", Tier.STANDING)
        assert carried(request) == ["[mailbox from operator] a subject\nThe disk is full."]
        assert request.messages[-1]["content"].startswith("You have 1 unread mailbox message(s).")
        assert list(last_wakes(office.database)) == ["reed"]
        assert office.rows(
            "SELECT mode, owner, state FROM sessions WHERE session_key = 'reed:cli:local'"
        ) == [("persistent", "runner", "idle")]
        office.check_ledger()


async def test_mail_found_at_a_start_wakes_at_once(tmp_path: Path, mock_clock: MockClock):
    async with open_office(tmp_path / "root") as office:
        await office.mail("reed")
    async with open_office(tmp_path / "root", standing=["reed"]) as office:
        await settled()
        assert len(office.runtime.turns_of("reed")) == 1


@pytest.mark.parametrize("recipient", ["infrastructure-steward", "tag:on-call", "all"])
async def test_mail_to_a_role_a_tag_and_all_wakes_those_it_means(
    tmp_path: Path, mock_clock: MockClock, recipient: str
):
    async with open_office(tmp_path / "root", standing=["reed", "dwara", "calli"]) as office:
        await office.mail(recipient)
        await settled()
        woken = sorted(session.session_key.partition(":")[0] for session, _ in office.runtime.requests)
        meant = {
            "infrastructure-steward": ["reed"],
            "tag:on-call": ["dwara", "reed"],
            "all": ["calli", "dwara", "reed"],
        }
        assert woken == meant[recipient]


async def test_mail_that_arrives_during_a_turn_is_carried_by_one_more(tmp_path: Path, mock_clock: MockClock):
    go_on = trio.Event()

    async def wait(_session, _request, host):
        await go_on.wait()
        say(host, "Read.")
        return "end_turn"

    async with open_office(tmp_path / "root", wait, standing=["reed"]) as office:
        await office.mail("reed", "one")
        await settled()
        for body in ("two", "three", "four"):
            await office.mail("reed", body)
        await settled()
        assert len(office.runtime.requests) == 1
        go_on.set()
        await settled()
        first, second = office.runtime.turns_of("reed")
        assert len(carried(first)) == 1
        assert [text.partition("\n")[2] for text in carried(second)] == ["two", "three", "four"]


async def test_a_busy_session_is_left_alone_and_looked_at_when_it_is_idle(
    tmp_path: Path, mock_clock: MockClock
):
    go_on = trio.Event()

    async def wait(_session, _request, host):
        await go_on.wait()
        say(host, "Read.")
        return "end_turn"

    async with open_office(
        tmp_path / "root", wait, standing=["reed"], limits={"wakeups_per_10_min": 2}
    ) as office:
        ref = await office.open("reed:cli:local")
        await office.begin(ref, "a long talk")
        for number in range(5):
            await office.mail("reed", str(number))
            await settled()
        assert len(office.runtime.requests) == 1
        go_on.set()
        await settled()
        # What arrived meanwhile woke nobody, so it used up none of the two wake-ups.
        assert [len(carried(request)) for request in office.runtime.turns_of("reed")] == [0, 5]
        assert office.memories["reed"].held_back == 0
        assert len(office.memories["reed"].wakes) == 1


async def test_wake_ups_are_held_back_at_the_limit_and_delivered_when_the_window_allows(
    tmp_path: Path, mock_clock: MockClock
):
    async with open_office(tmp_path / "root", standing=["reed"], limits={"wakeups_per_10_min": 3}) as office:
        for number in range(5):
            await office.mail("reed", str(number))
            await settled()
            mock_clock.jump(10)
        assert len(office.runtime.turns_of("reed")) == 3
        assert office.memories["reed"].held_back == 2
        mock_clock.jump(WINDOW_S - 50 - 0.001)  # the first of the three was 50 s ago
        await settled()
        assert len(office.runtime.turns_of("reed")) == 3
        mock_clock.jump(0.002)
        await settled()
        assert [len(carried(request)) for request in office.runtime.turns_of("reed")] == [1, 1, 1, 2]
        assert office.memories["reed"].held_back == 0


async def test_the_limit_of_one_agent_is_not_that_of_another(tmp_path: Path, mock_clock: MockClock):
    async with open_office(
        tmp_path / "root", standing=["reed", "calli"], limits={"wakeups_per_10_min": 1}
    ) as office:
        for name in ("reed", "reed", "calli"):
            await office.mail(name)
            await settled()
        assert [len(office.runtime.turns_of(name)) for name in ("reed", "calli")] == [1, 1]
        assert [office.memories[name].held_back for name in ("reed", "calli")] == [1, 0]


async def test_mail_from_before_the_start_is_delivered_past_the_limit(tmp_path: Path, mock_clock: MockClock):
    async with open_office(tmp_path / "root") as office:
        await office.mail("reed", "old")
    async with open_office(tmp_path / "root", standing=["reed"], limits={"wakeups_per_10_min": 1}) as office:
        await settled()
        assert len(office.runtime.turns_of("reed")) == 1
        await office.mail("reed", "new")
        await settled()
        assert len(office.runtime.turns_of("reed")) == 2  # the re-delivery did not count
        await office.mail("reed", "newer")
        await settled()
        assert len(office.runtime.turns_of("reed")) == 2


async def test_a_wake_up_that_fails_is_tried_again_later_and_later_and_then_parked(
    tmp_path: Path, mock_clock: MockClock
):
    async with open_office(tmp_path / "root", fail, standing=["reed", "calli"]) as office:
        mail = await office.mail("reed")
        await settled()
        memory = office.memories["reed"]
        waits = [min(BACK_OFF_MAX_S, BACK_OFF_FIRST_S * 2**number) for number in range(FAILURES_MAX - 1)]
        for number, wait in enumerate(waits, 1):
            assert (memory.failures, len(office.runtime.turns_of("reed"))) == (number, number)
            mock_clock.jump(wait - 0.001)
            await settled()
            assert len(office.runtime.turns_of("reed")) == number
            mock_clock.jump(0.002)
            await settled()
        assert (memory.failures, memory.parked) == (FAILURES_MAX, True)
        assert memory.last_problem == "the model server is down"
        mock_clock.jump(100_000)
        await office.mail("reed")
        await settled()
        assert len(office.runtime.turns_of("reed")) == FAILURES_MAX
        # The others are not concerned, and the mail is unread still.
        await office.mail("calli")
        await settled()
        assert len(office.runtime.turns_of("calli")) == 1
        identity = office.enacted.content.roster.get("reed")
        assert identity is not None
        assert office.rows("SELECT count(*) FROM mail_receipts") == [(0,)]
        assert office.rows("SELECT status FROM turns WHERE status != 'failed'") == []

        office.runtime.act = count_and_answer
        ref = office.standing("reed")
        assert ref is not None
        assert await ref.ask(Unpark()) is True
        await settled()
        again, new = (text.partition("\n")[2] for text in carried(office.runtime.turns_of("reed")[-1]))
        assert again.startswith("A message.\n\n[delivered again:")
        assert new == "A message."
        assert (memory.parked, memory.failures, memory.last_problem) == (False, 0, None)
        assert (mail.id,) in office.rows("SELECT mail_id FROM mail_receipts")
        office.check_ledger()


async def test_mail_of_a_turn_that_failed_is_in_the_next_one_and_once_in_the_history(
    tmp_path: Path, mock_clock: MockClock
):
    async with open_office(tmp_path / "root", fail, standing=["reed"]) as office:
        await office.mail("reed", "the one message")
        await settled()
        office.runtime.act = count_and_answer
        mock_clock.jump(BACK_OFF_FIRST_S + 0.001)
        await settled()
        first, second = office.runtime.turns_of("reed")
        [before], [again] = carried(first), carried(second)
        assert again.startswith(before)
        assert "None of its calls had run." in again.removeprefix(before)
        assert str(second.messages).count("the one message") == 1
        assert office.rows("SELECT count(*) FROM history WHERE content LIKE '%the one message%'") == [(1,)]
        assert office.rows("SELECT status FROM turns ORDER BY seq") == [("failed",), ("complete",)]
        mock_clock.jump(10_000)
        await settled()
        assert len(office.runtime.turns_of("reed")) == 2


async def test_a_frozen_agent_is_not_woken_and_keeps_its_mail(tmp_path: Path, mock_clock: MockClock):
    async with open_office(tmp_path / "root", standing=["reed"]) as office:
        path = office.root.platform / "roster.yaml"
        path.write_text(
            path.read_text().replace(
                "- id: reed\n    kind: role\n    state: live", "- id: reed\n    kind: role\n    state: frozen"
            )
        )
    async with open_office(tmp_path / "root", standing=["reed"]) as office:
        await office.mail("reed")
        await settled()
        assert office.runtime.requests == []
        assert office.standing("reed") is None
        assert office.rows("SELECT count(*) FROM mail_receipts") == [(0,)]


async def test_two_turns_of_one_agent_never_both_carry_a_message(tmp_path: Path, mock_clock: MockClock):
    go_on = trio.Event()

    async def wait(_session, _request, host):
        await go_on.wait()
        say(host, "Read.")
        return "end_turn"

    async with open_office(tmp_path / "root", wait, standing=["reed"]) as office:
        await office.mail("reed")
        others = [await office.open(f"reed:test:{number}") for number in range(3)]
        begun = [await office.begin(ref, "hello") for ref in others]
        await settled()
        assert sum(len(carried(request)) for _, request in office.runtime.requests) == 1
        go_on.set()
        assert {(await one.end()).status for one in begun} == {"complete"}
        await settled()
        assert office.rows("SELECT count(*) FROM mail_receipts") == [(1,)]
        assert office.rows("SELECT count(*) FROM ledger WHERE quality = 'mailbox_inject'") == [(1,)]


async def answer_for_ever(session, request, host):
    """Answer every message that the turn carries, as two machines would that are polite to each other."""
    for text in carried(request):
        sender = text.removeprefix("[mailbox from ").partition("]")[0]
        await call(host, ("send_message", {"to": sender, "subject": "Re:", "body": "And you?"}))
    return "end_turn"


async def test_a_thread_ends_at_the_last_hop(tmp_path: Path, mock_clock: MockClock):
    limits = {"mail_hops": 5, "wakeups_per_10_min": 100}
    async with open_office(
        tmp_path / "root", answer_for_ever, standing=["reed", "calli"], limits=limits
    ) as office:
        first = await office.mail("reed", sender="calli")
        await settled()
        assert office.rows("SELECT hops, thread FROM mail ORDER BY number") == [
            (hops, first.id) for hops in range(6)
        ]
        outcomes = office.rows(
            "SELECT payload ->> 'outcome' FROM ledger WHERE quality = 'tool_result' ORDER BY seq"
        )
        assert [outcome for (outcome,) in outcomes] == ["completed"] * 5 + ["error"]
        assert office.rows("SELECT count(*) FROM mail_receipts") == [(6,)]


async def test_the_sweep_finds_what_was_missed(tmp_path: Path, mock_clock: MockClock):
    # Mail that is written past the announcement, as after a crash between the commit and the call.
    office: Office
    async with open_office(tmp_path / "root", standing=["reed"]) as office:
        await settled()
        announce, office.announce = office.announce, lambda _mails: None  # type: ignore[method-assign]
        mail = await office.mail("reed")
        await settled()
        assert isinstance(office.runtime, ScriptedRuntime)
        assert office.runtime.requests == []
        announce([mail])
        await settled()
        assert len(office.runtime.requests) == 1
        reader = office.services.runtime.reader(office.runtime.requests[0][0])  # type: ignore[attr-defined]
        assert unread(office.database, reader, office.clock.stamp()) == []


async def test_the_session_of_an_agent_that_is_gone_runs_turns_without_a_crash(
    tmp_path: Path, mock_clock: MockClock
):
    async with open_office(tmp_path / "root", count_and_answer, standing=["reed"]) as office:
        await office.mail("reed")
        await settled()
        await office.trunk.supervisor("standing").terminate_child("reed")
        ref = await office.open("reed:cli:local")
        assert (await office.turn(ref)).status == "complete"
        await settled()
        assert ref.generation == 1


async def test_agents_wait_for_a_model_server_that_is_down_and_none_is_parked(
    tmp_path: Path, mock_clock: MockClock
):
    breaker, down = Breaker("scripted"), BackendError("backend_error", "the model server is down")
    is_down = True

    async def ask(_session, _request, host):
        async with breaker.call():
            if is_down:
                raise down
            say(host, "Read.")
            return "end_turn"

    agents = ["reed", "dwara", "calli"]
    async with open_office(tmp_path / "root", ask, standing=agents) as office:
        office.runtime.retry_in_s = lambda: breaker.retry_in_s  # type: ignore[method-assign]
        await office.mail("all")
        await settled()
        for _ in range(200):  # fifty minutes
            mock_clock.jump(15)
            await settled()
        assert not any(office.memories[agent].parked for agent in agents)
        # Each tried twice until it opened, and then with it: after 10, 20, 40, … seconds, every five minutes at most.
        assert len(office.runtime.requests) < 3 * 20
        assert all(down.message in (office.memories[agent].last_problem or down.message) for agent in agents)
        is_down = False
        for _ in range(30):
            mock_clock.jump(15)
            await settled()
        assert sorted(office.rows("SELECT reader FROM mail_receipts")) == [("calli",), ("dwara",), ("reed",)]
        assert {office.memories[agent].last_problem for agent in agents} == {None}
        office.check_ledger()
