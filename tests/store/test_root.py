"""A root: who may use it, and what is believed of what a daemon left behind."""

from __future__ import annotations

import os
import stat
from pathlib import Path

import msgspec
import pytest

from store.root import Lock, Root, RootError, RunnerFile, lay_out, session_secret

FOUND = RunnerFile(os.getpid(), "ws://127.0.0.1:18789/ws", "2026-01-01T00:00:00.000000Z")


@pytest.fixture
def root(tmp_path: Path) -> Root:
    found = Root(tmp_path / "root")
    lay_out(found)
    return found


def test_secrets_are_laid_out_whole_for_their_owner_alone_and_never_again(root: Root):
    secrets = (root.token_file, root.keys / "sessions.key")
    before = [path.read_bytes() for path in secrets]
    assert all(len(data) > 40 for data in before)
    assert [stat.S_IMODE(path.stat().st_mode) for path in secrets] == [0o600, 0o600]
    assert lay_out(root) == []
    assert [path.read_bytes() for path in secrets] == before
    assert sorted(path.name for path in root.keys.iterdir()) == ["sessions.key"]
    assert not [path.name for path in root.state.iterdir() if path.name.endswith(".new")]


@pytest.mark.parametrize("text", ["", "\n", "  \n"])
def test_a_token_or_key_that_is_empty_is_refused(root: Root, text: str):
    root.token_file.write_text(text)
    (root.keys / "sessions.key").write_text(text)
    with pytest.raises(RootError, match=r"operator\.token is empty"):
        root.read_token()
    with pytest.raises(RootError, match=r"sessions\.key is empty"):
        session_secret(root)


def test_a_secret_that_the_disk_has_no_room_for_is_not_left_half_written(
    root: Root, monkeypatch: pytest.MonkeyPatch
):
    def full(*_arguments: object) -> None:
        raise OSError(28, "No space left on device")

    root.token_file.unlink()
    with monkeypatch.context() as patched:
        patched.setattr(os, "link", full)
        with pytest.raises(RootError, match="No space left on device"):
            lay_out(root)
    assert not root.token_file.exists()
    assert lay_out(root) == [root.token_file]


def test_a_runner_is_found_while_it_holds_the_root_and_not_by_what_it_left_behind(root: Root):
    with Lock(root) as lock:
        assert root.read_runner() is None
        lock.publish(FOUND)
        assert root.read_runner() == FOUND
    # Killed, it leaves the file; that its pid is somebody's again (here: our own) proves nothing.
    assert root.runner_file.exists()
    assert root.read_runner() is None
    with Lock(root):
        # The next one has not yet said where it listens.
        root.runner_file.write_bytes(msgspec.json.encode(RunnerFile(1, FOUND.url, FOUND.started_at)))
        assert root.read_runner() is None


@pytest.mark.parametrize("data", [b"", b"{", b'{"pid": "x"}', b"[]", b"\xff"])
def test_a_runner_file_that_is_broken_is_none(root: Root, data: bytes):
    with Lock(root):
        root.runner_file.write_bytes(data)
        assert root.read_runner() is None
