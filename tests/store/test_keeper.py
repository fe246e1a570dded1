"""Who keeps a root: found by the lock, and looking takes the lock from nobody."""

from __future__ import annotations

import fcntl
import os
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from store.keeper import Keeper, find_keeper
from store.root import AlreadyRunningError, Lock, Root, RootError, lay_out

KEEP = """
import sys, time
from pathlib import Path
from store.root import Lock, Root
with Lock(Root(Path(sys.argv[1]))):
    print("kept", flush=True)
    time.sleep(60)
"""


@pytest.fixture
def root(tmp_path: Path) -> Root:
    found = Root(tmp_path / "root")
    lay_out(found)
    return found


def test_a_root_is_kept_by_the_process_that_holds_its_lock(root: Root) -> None:
    assert find_keeper(root) is None
    with Lock(root):
        assert find_keeper(root) == Keeper(os.getpid(), root.state / "runner.lock")
        with pytest.raises(AlreadyRunningError):
            Lock(root).__enter__()
    assert find_keeper(root) is None


def test_a_keeper_that_is_asked_to_end_has_ended_when_that_returns(root: Root) -> None:
    process = subprocess.Popen(
        [sys.executable, "-c", KEEP, str(root.path)],
        stdout=subprocess.PIPE,
        cwd=Path(__file__).parents[2],
    )
    assert process.stdout is not None
    process.stdout.readline()
    keeper = find_keeper(root)
    assert keeper is not None
    assert keeper.pid == process.pid
    assert keeper.end(30) is True
    assert find_keeper(root) is None
    process.communicate()
    assert keeper.end(30) is True


def test_a_number_that_is_somebody_elses_now_is_not_signalled(root: Root) -> None:
    (root.state / "runner.lock").write_text("")
    # It lives, and has not the lock open: a signal would end the tests.
    assert Keeper(os.getpid(), root.state / "runner.lock").end(0.1) is True


def test_a_lock_that_nobody_can_be_named_for_is_told(root: Root) -> None:
    with Lock(root):
        (root.state / "runner.lock").write_text("1\n")
        with pytest.raises(RootError, match="cannot be told from here"):
            find_keeper(root)


def test_whoever_only_looks_refuses_no_daemon(root: Root) -> None:
    descriptor = os.open(root.state / "runner.lock", os.O_RDWR | os.O_CREAT, 0o600)
    fcntl.flock(descriptor, fcntl.LOCK_SH)

    def let_go() -> None:
        time.sleep(0.01)
        os.close(descriptor)

    looker = threading.Thread(target=let_go)
    looker.start()
    with Lock(root):
        keeper = find_keeper(root)
        assert keeper is not None
        assert keeper.pid == os.getpid()
    looker.join()
