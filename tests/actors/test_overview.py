"""What `runner.tree` shows of a system with very many actors."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from actors.kernel import Actor, ChildSpec, DynamicSupervisor, Supervisor, System, open_system
from actors.overview import FOLD_ABOVE, PAGE_MAX, Overview
from protocol.errors import RequestError
from protocol.native.connection import Connection, Request
from protocol.native.frames import FRAME_BYTES_MAX
from store.clock import StrictClock

LONGEST_KEY = (
    "\U0001f600" * 506
)  # what needs most bytes in a key of 512 characters, with its number before it
LONGEST_REASON = "\x01" * 300  # what needs most bytes when it is escaped


class Idle(Actor):
    """Does nothing."""


def tree_of() -> ChildSpec:
    children = [ChildSpec("sessions", DynamicSupervisor), ChildSpec("standing", DynamicSupervisor)]
    return ChildSpec("daemon", lambda: Supervisor(children))


async def fill(system: System, name: str, ids: list[str]) -> None:
    for child_id in ids:
        await system.supervisor.supervisor(name).start_child(ChildSpec(child_id, Idle))


def overview_of(system: System) -> Overview:
    """An overview of which only the system is real; nothing else is looked at for a tree."""
    other: Any = None
    return Overview(
        system=lambda: system,
        services=lambda: SimpleNamespace(clock=StrictClock()),  # type: ignore[arg-type, return-value]
        directory=other,
        standing=other,
        memories={},
        writer=other,
        url=other,
        began_at=other,
        connections=other,
        health=other,
    )


def frame_bytes(result: dict[str, Any]) -> int:
    connection = Connection()
    request = connection.receive('{"id":1,"method":"runner.tree"}')
    assert isinstance(request, Request)
    frame = connection.result(request, result)
    assert frame is not None
    return len(frame)


async def test_ten_thousand_quiet_sessions_are_one_number() -> None:
    async with open_system(tree_of()) as system:
        await fill(system, "sessions", [f"reed:test:{number}" for number in range(10_000)])
        found = overview_of(system).tree(None, unfolded=False, skip=0)
        sessions = found["tree"]["children"][0]
        assert (sessions["id"], sessions["children"], sessions["folded"]) == (
            "sessions",
            (),
            {"idle": 10_000},
        )
        assert frame_bytes(found) < 4096


async def test_a_page_of_the_longest_nodes_that_there_can_be_fits_into_a_frame() -> None:
    async with open_system(tree_of()) as system:
        await fill(system, "sessions", [f"{number:06d}{LONGEST_KEY}" for number in range(PAGE_MAX + 100)])
        await fill(system, "standing", [f"agent-{number}" for number in range(FOLD_ABOVE)])
        sessions = system.supervisor.supervisor("sessions")
        for child in (sessions.children or {}).values():
            child.ref.last_reason = LONGEST_REASON
        overview = overview_of(system)
        seen: list[str] = []
        while len(seen) < PAGE_MAX + 100:
            path = "sessions" if seen else None
            found = overview.tree(path, unfolded=True, skip=len(seen))
            node = found["tree"] if seen else found["tree"]["children"][0]
            assert frame_bytes(found) < FRAME_BYTES_MAX
            assert node["children"]
            seen += [child["id"] for child in node["children"]]
        assert node["folded"] == {}
        assert seen == list(sessions.children or {})


async def test_an_id_that_several_have_is_refused_with_their_paths() -> None:
    async with open_system(tree_of()) as system:
        await fill(system, "sessions", ["reed", "calli"])
        await fill(system, "standing", ["reed"])
        overview = overview_of(system)
        assert overview.tree("calli", unfolded=False, skip=0)["tree"]["path"] == "daemon/sessions/calli"
        assert overview.tree("standing/reed", unfolded=False, skip=0)["tree"]["path"] == (
            "daemon/standing/reed"
        )
        with pytest.raises(RequestError, match="daemon/sessions/reed, daemon/standing/reed"):
            overview.tree("reed", unfolded=False, skip=0)
        with pytest.raises(RequestError, match="there is no actor 'nobody'"):
            overview.tree("nobody", unfolded=False, skip=0)
