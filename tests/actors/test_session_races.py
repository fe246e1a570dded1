"""What arrives at a session in the very moment in which it closes."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import orjson
import pytest
import trio
import trio.testing

from actors import journal
from actors.directory import ask
from actors.session_messages import Close
from store.sessions import UpdateSession
from tests.support.office import OPERATOR, Begun, Office, open_office


def while_it_closes(monkeypatch: pytest.MonkeyPatch, act: Callable[[], Awaitable[None]]) -> None:
    """Do something before the first commit that closes a session is written."""
    commit = journal.commit
    done = False

    async def slow(*given: Any) -> Any:
        nonlocal done
        closes = any(isinstance(write, UpdateSession) and write.state == "closed" for write in given)
        if closes and not done:
            done = True
            await act()
        return await commit(*given)

    monkeypatch.setattr(journal, "commit", slow)


def events(office: Office) -> list[str]:
    rows = office.rows("SELECT payload FROM ledger WHERE quality = 'session_lifecycle' ORDER BY seq")
    return [orjson.loads(payload)["event"] for (payload,) in rows]


async def test_a_turn_that_comes_while_a_oneshot_session_closes_does_not_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    late: list[Begun] = []
    async with open_office(tmp_path) as office:
        ref = await office.open(mode="oneshot")

        async def another() -> None:
            late.append(await office.begin(ref))

        while_it_closes(monkeypatch, another)
        assert (await office.turn(ref)).status == "complete"
        ended = await late[0].end()
        assert ended.error is not None
        assert (ended.error.code, ended.events) == ("session_closed", [])
        assert office.rows("SELECT state FROM sessions") == [("closed",)]
        assert office.rows("SELECT count(*) FROM turns") == [(1,)]


async def test_a_session_that_is_closed_while_it_closes_is_closed_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    async with open_office(tmp_path) as office, trio.open_nursery() as nursery:
        ref = await office.open(mode="oneshot")
        answers: list[Any] = []

        async def close() -> None:
            answers.append(await ask(ref, Close(OPERATOR, None)))

        async def begin_closing() -> None:
            nursery.start_soon(close)
            await trio.testing.wait_all_tasks_blocked()

        while_it_closes(monkeypatch, begin_closing)
        assert (await office.turn(ref)).status == "complete"
        await trio.testing.wait_all_tasks_blocked()
        assert answers == [{"ok": True}]
        assert events(office) == ["opened", "closed"]


async def test_turns_that_wait_are_answered_when_the_sessions_are_killed_from_above(tmp_path: Path):
    async def hang(_session: Any, _request: Any, _host: Any) -> str:
        await trio.sleep_forever()
        return "end_turn"

    async with open_office(tmp_path, hang) as office:
        ref = await office.open()
        begun = [await office.begin(ref) for _ in range(3)]
        sessions = office.trunk.child("sessions")
        assert sessions is not None
        sessions.kill()
        with trio.fail_after(10):
            ended = [await one.end() for one in begun]
        assert [one.error.code for one in ended if one.error is not None] == [
            "shutting_down",
            "internal",
            "internal",
        ]
