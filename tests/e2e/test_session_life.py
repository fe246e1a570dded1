"""How sessions live, end and come back, and whose they are."""

from contextlib import asynccontextmanager

import pytest
import trio

from actors.client import Client
from protocol.errors import RequestError
from tests.support.daemon import Daemon, open_session, run_turn

QUIET = ("--backend", "rehearsal", "--no-heartbeat")


async def refusal(client: Client, method: str, **params: object) -> str:
    """Return the code with which a request is refused, or `ok`."""
    try:
        await client.call(method, params)
    except RequestError as error:
        return error.code
    return "ok"


async def test_idle_sessions_are_evicted_running_ones_behind_their_turn_and_persistent_ones_never(
    house: Daemon,
):
    await house.start(*QUIET, "--ttl", "0.02")  # 1.2 seconds
    async with house.operator() as client:
        idle = await client.call("session.init", {"agent_id": "calli", "session_key": "calli:test:idle"})
        await run_turn(client, "calli:test:idle", "say remembered")
        await open_session(client, "calli", session_key="calli:test:kept", mode="persistent")
        await open_session(client, "calli", session_key="calli:test:busy")
        busy = await run_turn(
            client, "calli:test:busy", "slow 50 60"
        )  # longer than two times the time to live
        assert busy.result == {"status": "complete", "turn_id": busy.events[0]["turn_id"]}
        assert busy.text.endswith("word50 ")

        async def evicted() -> bool:
            rows = await house.rows(
                "SELECT session_key FROM sessions WHERE state = 'closed' AND session_key LIKE '%:test:%'"
            )
            return {key for (key,) in rows} == {"calli:test:idle", "calli:test:busy"}

        await house.until(evicted)
        assert await client.call("session.status", {"session_key": "calli:test:idle"}) == {"state": "closed"}
        assert (
            await refusal(client, "turn.run", session_key="calli:test:idle", message="say no")
            == "session_closed"
        )
        assert (await run_turn(client, "calli:test:kept", "say here")).text == "here"
        again = await client.call("session.init", {"agent_id": "calli", "session_key": "calli:test:idle"})
        assert again == idle
        assert (await run_turn(client, "calli:test:idle", "say back")).text == "back"
    events = await house.entries(entity_id="calli:test:idle", quality="session_lifecycle")
    assert [(entry.payload["event"], entry.payload["reason"]) for entry in events][:3] == [
        ("opened", None),
        ("evicted", "idle"),
        ("reopened", None),
    ]
    history = await house.rows(
        "SELECT content FROM history WHERE session_id = ? AND role = 'user' ORDER BY seq", idle["session_id"]
    )
    assert history == [('"say remembered"',), ('"say back"',)]
    assert (await house.verify()).ok


async def test_a_oneshot_session_closes_behind_each_turn(daemon: Daemon):
    key = "calli:test:oneshot"
    async with daemon.operator() as client:
        await open_session(client, "calli", session_key=key, mode="oneshot")
        for word in ("one", "two"):
            assert (await run_turn(client, key, f"say {word}")).text == word
            assert await client.call("session.status", {"session_key": key}) == {"state": "closed"}
            assert await refusal(client, "turn.run", session_key=key, message="say no") == "session_closed"
            await open_session(client, "calli", session_key=key)
    events = [
        entry.payload["event"] for entry in await daemon.entries(entity_id=key, quality="session_lifecycle")
    ]
    assert events == ["opened", "closed", "reopened", "closed", "reopened"]


async def test_a_session_comes_back_after_a_restart_with_history_and_the_same_token(house: Daemon):
    await house.start(*QUIET)
    async with house.guest() as client:
        opened = await client.call("session.init", {"agent_id": "anna", "session_key": "anna:phone:1"})
        await run_turn(client, "anna:phone:1", "say one")
        await client.call("session.close", {"session_key": "anna:phone:1"})
    assert await house.terminate() == 0
    await house.start(*QUIET)
    async with house.guest() as client:
        known = {"session_key": "anna:phone:1", "session_token": opened["session_token"]}
        assert await refusal(client, "session.status", session_key="anna:phone:1") == "unknown_session"
        assert (
            await refusal(client, "session.init", agent_id="anna", session_key="anna:phone:1")
            == "unauthorized"
        )
        assert await client.call("session.init", {"agent_id": "anna", **known}) == opened
        # Opened with its token, it is this connection's as well.
        seen = await run_turn(client, "anna:phone:1", "say two")
        assert seen.text == "two"
        assert await client.call("session.status", {"session_key": "anna:phone:1"}) == {"state": "idle"}
    rows = await house.rows(
        "SELECT seq, prev_cid IS NULL FROM turns WHERE session_id = ? ORDER BY seq", opened["session_id"]
    )
    assert rows == [(0, 1), (1, 0)]
    assert (await house.verify()).ok


async def test_what_is_given_again_is_taken_over_and_nothing_else(governed: Daemon, model):
    key = "calli:test:model"
    async with governed.operator() as client:
        first = await client.call(
            "session.init", {"agent_id": "calli", "session_key": key, "model": "model-one"}
        )
        await run_turn(client, key)
        assert (
            await client.call("session.init", {"agent_id": "calli", "session_key": key, "model": "model-two"})
            == first
        )
        await run_turn(client, key)
        await client.call("session.init", {"agent_id": "calli", "session_key": key, "mode": "persistent"})
        await run_turn(client, key)
        assert await refusal(client, "session.init", agent_id="reed", session_key=key) == "invalid_params"
    assert [request.body["model"] for request in model.requests] == ["model-one", "model-two", "model-two"]
    assert await governed.rows("SELECT model, mode FROM sessions WHERE session_key = ?", key) == [
        ("model-two", "persistent")
    ]


# Who comes, with what, and whether the session is there for them.
CALLERS = {
    "the connection that opened it": ("opener", {}),
    "another connection of nobody": ("guest", {}),
    "nobody with the session's token": ("guest", {"session_token": "right"}),
    "nobody with a wrong token of a session": ("guest", {"session_token": "wrong"}),
    "nobody with another session's token": ("guest", {"session_token": "another"}),
    "the operator by header": ("operator", {}),
    "the operator by parameter": ("guest", {"token": "operator"}),
}
ALLOWED = {
    "guest": {
        "the connection that opened it",
        "nobody with the session's token",
        "the operator by header",
        "the operator by parameter",
    },
    "operator": {
        "the connection that opened it",
        "nobody with the session's token",
        "the operator by header",
        "the operator by parameter",
    },
}


@asynccontextmanager
async def connection(daemon: Daemon, kind: str, opener: Client):
    if kind == "opener":
        yield opener
    else:
        async with daemon.operator() if kind == "operator" else daemon.guest() as client:
            yield client


@pytest.mark.parametrize("owner", ["guest", "operator"])
async def test_a_session_is_there_for_those_it_belongs_to_and_for_nobody_else(daemon: Daemon, owner: str):
    key = f"calli:test:whose-{owner}"
    async with daemon.guest() if owner == "guest" else daemon.operator() as opener:
        opened = await opener.call("session.init", {"agent_id": "calli", "session_key": key})
        other = await opener.call("session.init", {"agent_id": "calli", "session_key": f"{key}-another"})
        tokens = {"right": opened["session_token"], "wrong": "0" * 64, "another": other["session_token"]}
        for name, (kind, proof) in CALLERS.items():
            proofs = {
                field: daemon.token if field == "token" else tokens[value] for field, value in proof.items()
            }
            expected = "ok" if name in ALLOWED[owner] else "unknown_session"
            async with connection(daemon, kind, opener) as client:
                found = {
                    method: await refusal(client, method, session_key=key, **extra, **proofs)
                    for method, extra in {
                        "session.status": {},
                        "turn.run": {"message": "say hello"},
                        "session.cancel": {},
                    }.items()
                }
                assert found == dict.fromkeys(found, expected), name
                answered = await refusal(
                    client, "tool.result", session_key=key, id="x", content="y", **proofs
                )
                assert answered == ("unknown_tool_call" if expected == "ok" else "unknown_session"), name
                if expected != "ok":
                    again = await refusal(client, "session.init", agent_id="calli", session_key=key, **proofs)
                    assert again == "unauthorized", name
                    assert (
                        await refusal(client, "session.close", session_key=key, **proofs) == "unknown_session"
                    )
    turns = await daemon.rows("SELECT count(*) FROM turns WHERE session_id = ?", opened["session_id"])
    assert turns == [(len(ALLOWED[owner]),)]
    # Whoever had it run, every turn ran with the session's own identity.
    actors = {entry.actor for entry in await daemon.entries(entity_id=key)}
    assert actors == ({f"guest:{opened['session_id'][:16]}"} if owner == "guest" else {"calli"})
    tiers = {
        entry.payload["trust"] for entry in await daemon.entries(entity_id=key, quality="policy_verdict")
    }
    assert tiers == ({"unknown"} if owner == "guest" else {"standing"})


async def test_a_session_that_is_not_there_is_unknown_to_everybody(daemon: Daemon):
    async with daemon.guest() as guest, daemon.operator() as operator:
        for client in (guest, operator):
            for method, extra in {
                "session.status": {},
                "turn.run": {"message": "say no"},
                "session.cancel": {},
                "session.close": {},
            }.items():
                assert (
                    await refusal(client, method, session_key="calli:test:nowhere", **extra)
                    == "unknown_session"
                )
    assert await daemon.rows("SELECT 1 FROM sessions WHERE session_key = 'calli:test:nowhere'") == []


async def test_a_guest_cannot_take_the_place_of_an_agent(daemon: Daemon):
    async with daemon.guest() as guest:
        for key in ("reed:cli:local", "nobody:cli:local", "reed:subagent:x:1"):
            assert (
                await refusal(guest, "session.init", agent_id=key.partition(":")[0], session_key=key)
                == "unauthorized"
            )
        persistent = await refusal(guest, "session.init", agent_id="reed", mode="persistent")
        assert persistent == "invalid_params"
        for method, params in {
            "runner.status": {},
            "runner.reload": {},
            "agents.list": {},
            "mail.send": {"to": "reed", "subject": "s", "body": "b"},
            "board.post": {"text": "t"},
        }.items():
            assert await refusal(guest, method, **params) == "unauthorized"


async def test_two_clients_that_open_one_key_at_once_do_not_both_get_it(daemon: Daemon):
    answers: list[str] = []

    async def open_it(client: Client, number: int) -> None:
        answers.append(
            await refusal(client, "session.init", agent_id="anna", session_key=f"anna:race:{number}")
        )

    async with daemon.guest() as one, daemon.guest() as two:
        for number in range(10):
            answers.clear()
            async with trio.open_nursery() as nursery:
                nursery.start_soon(open_it, one, number)
                nursery.start_soon(open_it, two, number)
            assert sorted(answers) == ["ok", "unauthorized"]


async def test_different_sessions_run_at_the_same_time_and_one_session_one_turn_after_another(daemon: Daemon):
    order: list[str] = []

    async def run(client: Client, key: str, name: str) -> None:
        async for event in client.turn({"session_key": key, "message": "slow 5 10"}):
            order.extend(f"{name} {event['type']}" for _ in range(event["type"] in ("turn_started", "done")))

    async with daemon.operator() as client:
        keys = [await open_session(client, "calli") for _ in range(2)]
        async with trio.open_nursery() as nursery:
            for number, key in enumerate(keys):
                nursery.start_soon(run, client, key, f"session {number}")
    assert {order[0], order[1]} == {"session 0 turn_started", "session 1 turn_started"}
    order.clear()
    async with daemon.operator() as client, trio.open_nursery() as nursery:
        for number in range(3):
            nursery.start_soon(run, client, keys[0], f"turn {number}")
    assert [line.partition(" ")[2].partition(" ")[2] for line in order] == ["turn_started", "done"] * 3
