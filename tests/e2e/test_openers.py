"""A session is there for the connection that opened it, for as long as that lives, and for no other."""

from tests.e2e.test_session_life import refusal
from tests.support.daemon import Daemon, open_session, run_turn

QUIET = ("--backend", "rehearsal", "--no-heartbeat")


async def test_an_evicted_session_is_still_there_for_the_guest_who_opened_it(house: Daemon):
    await house.start(*QUIET, "--ttl", "0.02")
    key = "anna:test:evicted"
    async with house.guest() as opener, house.guest() as other:
        opened = await opener.call("session.init", {"agent_id": "anna", "session_key": key})
        await run_turn(opener, key, "say one")

        async def evicted() -> bool:
            return bool(
                await house.rows("SELECT 1 FROM sessions WHERE session_key = ? AND state = 'closed'", key)
            )

        await house.until(evicted)
        assert await opener.call("session.status", {"session_key": key}) == {"state": "closed"}
        assert await refusal(opener, "turn.run", session_key=key, message="say no") == "session_closed"
        assert await refusal(other, "session.init", agent_id="anna", session_key=key) == "unauthorized"
        again = await opener.call("session.init", {"agent_id": "anna", "session_key": key})
        assert again == opened
        assert (await run_turn(opener, key, "say two")).text == "two"
        assert await refusal(other, "session.status", session_key=key) == "unknown_session"
    async with house.guest() as later:
        assert await refusal(later, "session.status", session_key=key) == "unknown_session"


async def test_who_proves_an_identity_in_one_request_has_opened_the_session_for_the_connection(
    daemon: Daemon,
):
    key = "calli:test:proved-once"
    async with daemon.guest() as client, daemon.guest() as other:
        await client.call("session.init", {"agent_id": "calli", "session_key": key, "token": daemon.token})
        assert await client.call("session.status", {"session_key": key}) == {"state": "idle"}
        seen = await run_turn(client, key, "say with calli's own trust")
        assert seen.gate("post_board")["trust"] == "standing"
        assert await refusal(other, "session.status", session_key=key) == "unknown_session"


async def test_the_operator_visiting_a_guests_session_does_not_open_it_for_the_connection(daemon: Daemon):
    key = "anna:test:visited"
    async with daemon.guest() as owner, daemon.guest() as visitor:
        await open_session(owner, "anna", session_key=key)
        await open_session(visitor, "anna", session_key=key, token=daemon.token)
        assert await refusal(visitor, "session.status", session_key=key) == "unknown_session"


async def test_a_guest_cannot_have_entries_under_the_name_of_the_daemon(daemon: Daemon):
    async with daemon.guest() as client:
        assert await refusal(client, "session.init", agent_id="anna", session_key="runner") == "unauthorized"
