"""Editing one word of the roster, whatever the file looks like, and nothing else of it."""

from __future__ import annotations

import os
import shutil
import stat
from pathlib import Path

import pytest

from store import roster_file
from store.content import ContentError, load_content, shipped_platform
from store.roster_file import RosterEditError, set_state


@pytest.fixture
def platform(tmp_path: Path) -> Path:
    folder = tmp_path / "platform"
    shutil.copytree(shipped_platform(), folder)
    return folder


def state_of(platform: Path, name: str) -> str:
    identity = load_content(platform).roster.get(name)
    assert identity is not None
    return identity.state


ENTRIES = {
    "block": "identities:\n  # who\n  - id: ann   # a person\n    kind: user\n    state: live  # since May\n",
    "flow": "identities: [{id: bob, kind: user, state: live}, {id: ann, kind: user, state: live}] # all\n",
    "quoted": "identities:\n- state: 'live' # first\n  id: \"ann\"\n  kind: user\n",
    "double": 'identities:\n- {"state": "live", "id": ann, "kind": user}\n',
    "next line": "identities:\n  - id: ann\n    kind: user\n    state:\n      live\n",
    "a name like it": "identities:\n  - {id: live, kind: user, state: live}\n  - {id: ann, kind: user, state: live}\n",
    "wide": "identities:\n  - {id: ann, model: 'état à 漢字 🦊', kind: user, state: live} # 🦊\n",
}


@pytest.mark.parametrize("newline", ["\n", "\r\n"], ids=["lf", "crlf"])
@pytest.mark.parametrize("mark", [b"", b"\xef\xbb\xbf"], ids=["plain", "bom"])
@pytest.mark.parametrize("written", ENTRIES.values(), ids=list(ENTRIES))
def test_one_word_is_changed_and_changed_back(
    platform: Path, written: str, mark: bytes, newline: str
) -> None:
    path = platform / "roster.yaml"
    before = mark + written.replace("\n", newline).encode()
    path.write_bytes(before)
    assert set_state(platform, "ann", "frozen") is True
    after = path.read_bytes()
    assert len(after) == len(before) + len("frozen") - len("live")
    assert after.replace(b"frozen", b"live") == before
    assert state_of(platform, "ann") == "frozen"
    assert set_state(platform, "ann", "frozen") is False
    assert set_state(platform, "ann", "live") is True
    assert path.read_bytes() == before


def test_every_identity_of_the_shipped_roster_can_be_frozen_and_thawed(platform: Path) -> None:
    before = (platform / "roster.yaml").read_bytes()
    names = [one.id for one in load_content(platform).roster.identities]
    for name in names:
        assert set_state(platform, name, "frozen")
    assert load_content(platform).roster.standing() == []
    for name in reversed(names):
        assert set_state(platform, name, "live")
    assert (platform / "roster.yaml").read_bytes() == before


def test_the_mode_stays_and_a_link_stays_a_link(platform: Path, tmp_path: Path) -> None:
    path, elsewhere = platform / "roster.yaml", tmp_path / "elsewhere.yaml"
    path.rename(elsewhere)
    path.symlink_to(elsewhere)
    elsewhere.chmod(0o640)
    assert set_state(platform, "reed", "frozen")
    assert path.is_symlink()
    assert stat.S_IMODE(elsewhere.stat().st_mode) == 0o640
    assert state_of(platform, "reed") == "frozen"


def test_who_is_dead_or_unknown_is_told_and_nothing_is_written(platform: Path) -> None:
    path = platform / "roster.yaml"
    path.write_text(path.read_text().replace("state: live\n    role: infra", "state: dead\n    role: infra"))
    before = path.read_bytes()
    with pytest.raises(RosterEditError, match="reed is dead"):
        set_state(platform, "reed", "live")
    with pytest.raises(RosterEditError, match="agents list"):
        set_state(platform, "nobody", "live")
    assert path.read_bytes() == before


def test_content_that_does_not_load_stops_the_edit(platform: Path) -> None:
    (platform / "constitution.md").unlink()
    before = (platform / "roster.yaml").read_bytes()
    with pytest.raises(ContentError):
        set_state(platform, "reed", "frozen")
    assert (platform / "roster.yaml").read_bytes() == before


def test_an_edit_of_somebody_else_at_the_same_moment_is_not_lost(
    platform: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = platform / "roster.yaml"
    fsync = os.fsync

    def slow_disk(handle: int) -> None:
        path.write_text(path.read_text() + "# mine\n")
        fsync(handle)

    monkeypatch.setattr(roster_file.os, "fsync", slow_disk)
    with pytest.raises(RosterEditError, match="changed by somebody else"):
        set_state(platform, "reed", "frozen")
    monkeypatch.undo()
    assert path.read_text().endswith("# mine\n")
    assert state_of(platform, "reed") == "live"
    assert [found.name for found in platform.iterdir() if found.name.startswith(".")] == []
