"""One guest cannot take the room of everybody else."""

from __future__ import annotations

from pathlib import Path

import pytest
import trio.testing

from actors.sessions import GUEST_SESSIONS_MAX
from protocol.errors import RequestError
from tests.support.office import GUEST, OPERATOR, open_office


async def test_a_connection_that_proves_nothing_opens_only_so_many_sessions(tmp_path: Path):
    async with open_office(tmp_path) as office:
        for number in range(GUEST_SESSIONS_MAX):
            await office.open(f"calli:web:{number}", GUEST)
        with pytest.raises(RequestError) as refused:
            await office.open("calli:web:more", GUEST)
        assert refused.value.code == "queue_full"
        await office.open("calli:web:0", GUEST)
        await office.open("calli:web:more", OPERATOR)


async def test_a_refused_opening_leaves_nothing_in_memory(tmp_path: Path):
    async with open_office(tmp_path) as office:
        with pytest.raises(RequestError):
            await office.open("reed:cli:local", GUEST)
        await trio.testing.wait_all_tasks_blocked()
        assert office.directory.live() == []
