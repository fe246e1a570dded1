"""What many sessions cost, and that a daemon is made ready for it."""

import resource
from typing import Any

from tests.support.daemon import Daemon


async def test_a_daemon_raises_its_own_limit_of_open_files(house: Daemon):
    allowed, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (min(1024, allowed), most))
    try:
        await house.start("--backend", "rehearsal", "--no-heartbeat")
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (allowed, most))
    wanted = 65_536 if most == resource.RLIM_INFINITY else min(65_536, most)
    assert resource.prlimit(house.pid, resource.RLIMIT_NOFILE) == (wanted, most)


async def test_an_idle_session_leaves_memory_and_goes_on_with_its_next_message(house: Daemon):
    await house.start("--backend", "rehearsal", "--no-heartbeat", "--passivate-after", "0.01")
    async with house.operator() as client:
        opened = await client.call("session.init", {"agent_id": "reed", "session_key": "reed:test:1"})

        async def run(message: str) -> list[Any]:
            turn = client.turn({"session_key": opened["session_key"], "message": message})
            events = [event async for event in turn]
            assert turn.result["status"] == "complete"
            return events

        async def all_left() -> bool:
            sessions = (await client.call("runner.status"))["sessions"]
            return bool(sessions["in_memory"] == 0 and sessions["passive"] == sessions["open"] > 1)

        await run("say one")
        await house.until(all_left)
        node = (await client.call("runner.tree", {"path": "reed:test:1"}))["tree"]
        assert (node["state"], node["last_reason"]) == ("passive", "passive")
        assert any(event.get("text", "").startswith("two") for event in await run("say two"))
        await house.until(all_left)
        assert await client.call("session.close", {"session_key": opened["session_key"]}) == {"ok": True}
