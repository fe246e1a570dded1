"""The operator's own methods, carried out."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import trio
from trio.testing import MockClock, wait_all_tasks_blocked

from actors.api import Api, Doors
from actors.health import Health
from actors.overview import Overview
from actors.session_messages import Attached, FollowTurn
from actors.standing import BACK_OFF_MAX_S, FAILURES_MAX, LookForMail, StandingAgent
from protocol.errors import BackendError, RequestError
from protocol.native import frames
from store.clock import rfc3339
from store.damage import Damage
from store.mailbox import Reader, count_unread
from tests.support.office import OPERATOR, Office, open_office, say, settled


def api_of(office: Office) -> Api:
    overview = Overview(
        system=lambda: office.trunk.system,
        services=lambda: office.services,
        directory=office.directory,
        standing=lambda: office.trunk.supervisor("standing"),
        memories=office.memories,
        writer=office.figures,
        url=lambda: "ws://127.0.0.1:1/ws",
        began_at=lambda: office.began_at,
        connections=lambda: 0,
        health=Health(office.root.state, office.figures, Damage(), lambda: office.clock, tuple),
    )
    doors = Doors(
        office.directory,
        lambda: office.trunk,
        lambda: office.services,
        lambda: office.database,
        overview,
    )
    return Api(doors, "token of the operator")


async def call(api: Api, method: str, **params: Any) -> dict[str, Any]:
    return await api.call(OPERATOR, method, frames.METHODS[method](**params), lambda _event: None)


def parked(overview: dict[str, Any]) -> list[str]:
    return [agent["id"] for agent in overview["agents"] if agent["parked"]]


async def answer(_session: Any, _request: Any, host: Any) -> str:
    say(host, "Read.")
    return "end_turn"


async def fail(_session: Any, _request: Any, _host: Any) -> str:
    raise BackendError("backend_error", "the model server is down")


async def test_an_agent_whose_wake_ups_failed_is_retried(tmp_path: Path, mock_clock: MockClock) -> None:
    async with open_office(tmp_path / "root", fail, standing=["reed", "calli"]) as office:
        api = api_of(office)
        await office.mail("reed")
        for _ in range(FAILURES_MAX):
            await settled()
            mock_clock.jump(BACK_OFF_MAX_S + 1)
        await settled()
        assert parked(await call(api, "runner.status")) == ["reed"]
        assert await call(api, "agents.retry", agent_id="calli") == {
            "retried": False,
            "actor": None,
            "wake_ups": False,
        }
        office.runtime.act = answer
        assert await call(api, "agents.retry", agent_id="reed") == {
            "retried": True,
            "actor": None,
            "wake_ups": True,
        }
        await settled()
        assert parked(await call(api, "runner.status")) == []
        assert office.rows("SELECT count(*) FROM mail_receipts") == [(1,)]


async def test_an_agent_whose_actor_crashed_is_retried(
    tmp_path: Path, mock_clock: MockClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with open_office(tmp_path / "root", answer, standing=["reed", "calli"]) as office:
        api = api_of(office)
        await settled()
        with monkeypatch.context() as patched:

            def crash(_agent: StandingAgent) -> None:
                raise ZeroDivisionError

            patched.setattr(StandingAgent, "_consider", crash)
            ref = office.standing("reed")
            assert ref is not None
            for _ in range(20):
                if ref.state != "parked":
                    ref.tell(LookForMail())
                await settled()
                mock_clock.jump(5)
                await settled()
            assert ref.state == "parked"
            assert parked(await call(api, "runner.status")) == ["reed"]
        assert await call(api, "agents.retry", agent_id="reed") == {
            "retried": True,
            "actor": "parked",
            "wake_ups": False,
        }
        await office.mail("reed")
        await settled()
        assert parked(await call(api, "runner.status")) == []
        assert office.rows("SELECT count(*) FROM mail_receipts") == [(1,)]


async def test_only_standing_agents_are_retried(tmp_path: Path, mock_clock: MockClock) -> None:
    async with open_office(tmp_path / "root", standing=["reed"]) as office:
        with pytest.raises(RequestError, match=r"`params\.agent_id`: there is no standing agent 'nobody'"):
            await call(api_of(office), "agents.retry", agent_id="nobody")


async def test_the_operator_reads_mail_that_reaches_the_operator_and_no_other(
    tmp_path: Path, mock_clock: MockClock
) -> None:
    async with open_office(tmp_path / "root", standing=["reed"]) as office:
        api = api_of(office)
        mine, everybodys, another = [
            await office.mail(name, sender="calli") for name in ("operator", "all", "cora")
        ]

        def unread() -> int:
            return count_unread(office.database, Reader("operator"), rfc3339(office.clock.moment()))

        assert unread() == 2
        with pytest.raises(RequestError, match=another.id):
            await call(api, "mail.read", ids=[mine.id, another.id])
        assert unread() == 2
        assert await call(api, "mail.read", ids=[mine.id, everybodys.id]) == {"read": 2}
        assert unread() == 0
        before = office.rows("SELECT * FROM mail_receipts WHERE reader = 'operator'")
        assert await call(api, "mail.read", ids=[mine.id]) == {"read": 1}
        assert office.rows("SELECT * FROM mail_receipts WHERE reader = 'operator'") == before


async def test_a_connection_is_told_of_one_turn_after_the_other_and_waits_for_no_other_connection(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The events of a turn are in memory while they are sent: asking for many at once must not cost many."""
    reading: Counter[str] = Counter()
    most: dict[str, int] = {}

    async def slow_replay(_log: Any, _database: Any, attached: Attached, *_rest: Any) -> None:
        connection = attached.turn_id
        reading[connection] += 1
        most[connection] = max(most.get(connection, 0), reading[connection])
        most["both"] = max(most.get("both", 0), reading.total())
        await wait_all_tasks_blocked()
        reading[connection] -= 1

    monkeypatch.setattr("actors.api.replay", slow_replay)
    async with open_office(tmp_path / "root", answer) as office:
        api = api_of(office)

        async def asked(_key: str, message: FollowTurn, **_: Any) -> Attached:
            return Attached(message.turn_id, None, ("complete", message.turn_id))

        monkeypatch.setattr(office.directory, "ask", asked)
        async with trio.open_nursery() as nursery:
            for connection in ("aa", "bb"):
                who = replace(OPERATOR, connection_id=connection)
                params = frames.TurnResume(session_key="k", turn_id=connection)
                for _ in range(5):
                    nursery.start_soon(api.call, who, "turn.resume", params, lambda _event: None)
    assert most == {"aa": 1, "bb": 1, "both": 2}
