"""A backup that was taken under load, restored elsewhere: it verifies, and a daemon runs on it."""

from __future__ import annotations

import sys
from pathlib import Path

import trio

from actors.client import Client
from store.restore import restore_backup
from store.root import Root
from tests.support.daemon import PROJECT, Daemon, open_session, run_turn

QUIET = ("--backend", "rehearsal", "--no-heartbeat")


async def back_up(daemon: Daemon, out: Path, *options: str) -> None:
    line = [
        sys.executable,
        "-m",
        "actors.commands",
        "--root",
        str(daemon.root.path),
        "backup",
        str(out),
        *options,
    ]
    done = await trio.run_process(line, cwd=PROJECT, capture_stdout=True, capture_stderr=True, check=False)
    assert done.returncode == 0, done.stderr.decode()
    assert done.stderr == b""


async def test_a_backup_under_load_restored_elsewhere_verifies_and_runs(house: Daemon, tmp_path: Path):
    await house.start(*QUIET)
    out, acknowledged = tmp_path / "out.tar", []
    enough = trio.Event()

    async def talk(client: Client, number: int) -> None:
        key = await open_session(client, "calli", session_key=f"calli:test:{number}")
        while True:
            await run_turn(client, key, f"write workspaces/agents/calli/{number}.md: text")
            acknowledged.append(number)
            if len(acknowledged) == 8:
                enough.set()

    async with house.operator() as client, trio.open_nursery() as nursery:
        for number in range(4):
            nursery.start_soon(talk, client, number)
        await enough.wait()
        before = len(acknowledged)
        await back_up(house, out)
        assert len(acknowledged) > before  # nobody waited for it
        nursery.cancel_scope.cancel()
    await house.kill()

    with Daemon(tmp_path / "other") as other:
        restored = await trio.to_thread.run_sync(restore_backup, other.root, out)
        assert restored.inspected.manifest.entries > 0
        # What was acknowledged before the backup began is in it.
        [(complete,)] = await other.rows("SELECT count(*) FROM turns WHERE status = 'complete'")
        assert complete >= before
        await other.start(*QUIET)
        async with other.operator() as client:
            key = await open_session(client, "calli", session_key="calli:test:0")
            seen = await run_turn(client, key, "read workspaces/agents/calli/0.md")
            assert seen.results == [(False, "text")]
        assert (await other.rows("SELECT count(*) FROM turns WHERE status = 'running'")) == [(0,)]
        assert (await other.verify()).ok
        assert await other.terminate() == 0
    assert (await house.verify()).ok


async def test_a_restore_that_was_killed_is_finished_by_the_next_start(house: Daemon, tmp_path: Path):
    await house.start(*QUIET)
    out = tmp_path / "out.tar"
    async with house.operator() as client:
        await run_turn(client, await open_session(client, "calli", session_key="calli:test:1"), "say hello")
    await back_up(house, out, "--secrets")
    assert await house.terminate() == 0

    # Killed by itself between two renames: what a kill -9 leaves, at a place that is sure to be in the middle.
    killed = (
        "import os, pathlib, sys; from store.restore import restore_backup; from store.root import Root;"
        "rename, done = os.rename, []\n"
        "def counted(old, new):\n"
        "    len(done) == 2 and os.kill(os.getpid(), 9); done.append(old); rename(old, new)\n"
        "os.rename = counted\n"
        "restore_backup(Root(pathlib.Path(sys.argv[1])), pathlib.Path(sys.argv[2]))"
    )
    with Daemon(tmp_path / "other") as other:
        await other.start(*QUIET)
        assert await other.terminate() == 0
        done = await trio.run_process(
            [sys.executable, "-c", killed, str(other.root.path), str(out)], cwd=PROJECT, check=False
        )
        assert done.returncode == -9
        assert other.root.restore_plan.exists()
        await other.start(*QUIET)
        assert not other.root.restore_plan.exists()
        assert other.token == house.token
        async with other.operator() as client:
            assert (await client.call("session.status", {"session_key": "calli:test:1"})) == {"state": "idle"}
        assert (await other.verify()).ok
        assert await other.terminate() == 0
    assert Root(tmp_path / "other").read_token() == house.token
