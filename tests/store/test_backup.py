"""Backups: whole or not there at all, and what is restored is what was backed up or what was there before."""

from __future__ import annotations

import io
import json
import os
import shutil
import stat
import tarfile
import threading
from collections.abc import Callable
from pathlib import Path

import apsw
import pytest

from protocol.errors import AgentRunnerError, LedgerError
from store import restore as restoring
from store.archive import BackupError, is_inside
from store.backup import make_backup
from store.database import SCHEMA_VERSION, StorageError, open_reader, open_writer
from store.ledger import AppendEntry, count_entries, verify
from store.restore import finish_restore, inspect_backup, restore_backup
from store.root import AlreadyRunningError, Lock, Root, RootError, lay_out
from tests.support.storage import a_chain, an_entry, commit

ENTRIES = 7
HERE = Path(__file__).parent


@pytest.fixture
def root(tmp_path: Path) -> Root:
    """A root with a ledger, and with files of agents of every kind."""
    return a_root(tmp_path / "root", ENTRIES)


def a_root(folder: Path, entries: int) -> Root:
    root = Root(folder)
    lay_out(root)
    database = open_writer(root.database)
    a_chain(database, entries)
    database.close()
    notes = root.workspaces / "agents" / "reed"
    notes.mkdir()
    (notes / "notes.md").write_text(f"{entries} entries\n")
    (notes / "run.sh").write_text("#!/bin/sh\n")
    (notes / "run.sh").chmod(0o750)
    (notes / "latest").symlink_to("../reed/notes.md")
    (notes / os.fsdecode(b"not utf-8 \xff")).write_bytes(b"\0\xff")
    (root.workspaces / "users" / "ann").mkdir(mode=0o700)
    return root


def files(root: Root) -> dict[str, object]:
    """Return everything below a root that a restore is about: content, mode or target by path."""
    found: dict[str, object] = {}
    for folder in (root.platform, root.workspaces):
        for path in sorted(folder.rglob("*")):
            name = str(path.relative_to(root.path))
            if ".state" in path.parts:
                continue
            if path.is_symlink():
                found[name] = str(path.readlink())
            else:
                content = path.read_bytes() if path.is_file() else None
                found[name] = (stat.S_IMODE(path.lstat().st_mode), content)
    return found


def entries(root: Root) -> int:
    database = open_reader(root.database)
    try:
        assert verify(database).ok
        return count_entries(database)
    finally:
        database.close()


def members(path: Path) -> dict[str, tarfile.TarInfo]:
    with tarfile.open(path, "r:") as archive:
        return {member.name: member for member in archive.getmembers()}


def test_a_backup_holds_the_root_and_nobody_else_may_read_it(root: Root, tmp_path: Path):
    out = tmp_path / "out.tar"
    made = make_backup(root, out)
    assert stat.S_IMODE(out.stat().st_mode) == 0o600
    assert (made.bytes, made.manifest.entries) == (out.stat().st_size, ENTRIES)
    assert made.left_out == ()
    found = members(out)
    assert {"database.db", "platform/constitution.md", "workspaces/agents/reed/notes.md"} <= found.keys()
    assert list(found)[-1] == "manifest.json"
    assert not [name for name in found if "token" in name or ".state" in name or "sessions.key" in name]
    assert root.read_token().encode() not in out.read_bytes()
    assert set(tmp_path.iterdir()) == {root.path, out}


def test_restored_elsewhere_it_is_the_same_root_with_secrets_of_its_own(root: Root, tmp_path: Path):
    made = make_backup(root, tmp_path / "out.tar")
    other = Root(tmp_path / "far" / "other")
    restored = restore_backup(other, tmp_path / "out.tar", fingerprint=made.fingerprint)
    assert files(other) == files(root)
    assert entries(other) == ENTRIES
    assert other.read_token() != root.read_token()
    assert restored.aside is None
    assert stat.S_IMODE(other.state.stat().st_mode) == 0o700
    assert stat.S_IMODE(other.database.stat().st_mode) == 0o600
    assert sorted(path.name for path in other.state.iterdir()) == [
        "agent-runner.db",
        "keys",
        "operator.token",
        "runner.lock",
    ]


def test_secrets_go_along_only_where_they_are_asked_for(root: Root, tmp_path: Path):
    make_backup(root, tmp_path / "out.tar", secrets=True)
    other = Root(tmp_path / "other")
    restore_backup(other, tmp_path / "out.tar")
    assert other.read_token() == root.read_token()
    key = "sessions.key"
    assert (other.keys / key).read_bytes() == (root.keys / key).read_bytes()
    assert stat.S_IMODE(other.token_file.stat().st_mode) == 0o600


def test_what_is_replaced_is_kept_aside_and_what_is_not_in_the_backup_stays(root: Root, tmp_path: Path):
    make_backup(root, tmp_path / "out.tar", workspaces=False)
    other = a_root(tmp_path / "other", 2)
    before, token = files(other), other.read_token()
    (other.platform / "constitution.md").write_text("another law\n")
    restored = restore_backup(other, tmp_path / "out.tar")
    assert entries(other) == ENTRIES
    assert files(other) == before  # the platform is the shipped one again, the workspaces are untouched
    assert other.read_token() == token
    assert restored.aside is not None
    assert (restored.aside / "platform/constitution.md").read_text() == "another law\n"
    kept = apsw.Connection(str(restored.aside / "workspaces/.state/agent-runner.db"))
    assert count_entries(kept) == 2
    kept.close()


def test_files_that_were_not_in_the_backup_are_aside_and_not_among_the_restored(root: Root, tmp_path: Path):
    make_backup(root, tmp_path / "out.tar")
    (root.workspaces / "later").mkdir()
    (root.workspaces / "later" / "new.md").write_text("new")
    root.events.mkdir()
    (root.events / "of a turn").write_text("that may go otherwise")
    restored = restore_backup(root, tmp_path / "out.tar")
    assert not (root.workspaces / "later").exists()
    assert not root.events.exists()
    assert restored.aside is not None
    assert (restored.aside / "workspaces/later/new.md").read_text() == "new"


def test_a_name_that_is_taken_is_left_alone_unless_it_is_to_be_replaced(root: Root, tmp_path: Path):
    out = tmp_path / "out.tar"
    out.write_text("mine")
    with pytest.raises(BackupError, match="--force"):
        make_backup(root, out)
    assert out.read_text() == "mine"
    make_backup(root, out, force=True)
    assert inspect_backup(out).manifest.entries == ENTRIES


def test_a_backup_does_not_go_where_agents_read(root: Root):
    with pytest.raises(BackupError, match="where agents read"):
        make_backup(root, root.workspaces / "shared-backup.tar")


def test_a_broken_ledger_is_not_backed_up_and_nothing_is_left_behind(root: Root, tmp_path: Path):
    database = open_writer(root.database)
    database.execute("DROP TRIGGER ledger_is_never_updated")
    database.execute("UPDATE ledger SET actor = 'kavi' WHERE seq = 3")
    database.close()
    with pytest.raises(LedgerError, match="broken at entry 3"):
        make_backup(root, tmp_path / "out.tar")
    assert [path.name for path in tmp_path.iterdir()] == ["root"]


def test_a_damaged_page_is_not_backed_up(root: Root, tmp_path: Path):
    with root.database.open("r+b") as file:
        file.seek(4096 * 3)
        file.write(b"\xde\xad" * 2048)
    with pytest.raises(StorageError):
        make_backup(root, tmp_path / "out.tar")
    assert [path.name for path in tmp_path.iterdir()] == ["root"]


def test_a_copy_is_of_one_moment_while_others_write(root: Root, tmp_path: Path):
    written, over = threading.Event(), threading.Event()

    def write() -> None:
        database, number = open_writer(root.database), ENTRIES
        while not over.is_set():
            number += 1
            commit(database, AppendEntry(an_entry(number, payload={"event": "x" * 3000, "reason": None})))
            written.set()
        database.close()

    writer = threading.Thread(target=write)
    writer.start()
    try:
        assert written.wait(20)
        made = [make_backup(root, tmp_path / f"{number}.tar").manifest for number in range(3)]
    finally:
        over.set()
        writer.join()
    assert ENTRIES < made[0].entries < made[1].entries < made[2].entries < entries(root)
    for number in range(3):
        assert inspect_backup(tmp_path / f"{number}.tar").manifest.entries == made[number].entries


def test_links_that_lead_elsewhere_are_left_out_by_name(root: Root, tmp_path: Path):
    (root.workspaces / "shadow").symlink_to("/etc/shadow")
    (root.workspaces / "agents" / "up").symlink_to("../../platform")
    os.mkfifo(root.workspaces / "agents" / "pipe")
    made = make_backup(root, tmp_path / "out.tar")
    assert sorted(made.left_out) == ["workspaces/agents/pipe", "workspaces/agents/up", "workspaces/shadow"]


@pytest.mark.parametrize(
    ("name", "target", "inside"),
    [
        ("platform/a", "b", True),
        ("platform/a/b", "../c/d", True),
        ("platform/a/b", "../../x", False),
        ("platform/a", "../x", False),
        ("platform/a", "b/../c", False),
        ("platform/a", "/etc", False),
        ("platform/a", "", False),
    ],
)
def test_a_link_is_inside_where_it_goes_up_and_down_and_not_out(name: str, target: str, inside: bool):
    assert is_inside(name, target) is inside


# --- files that are no backups


def repacked(path: Path, change: Callable[[str, bytes], bytes | None]) -> None:
    """Write an archive anew with each member's content changed, or left out."""
    out = io.BytesIO()
    with (
        tarfile.open(path, "r:") as old,
        tarfile.open(fileobj=out, mode="w:", format=tarfile.PAX_FORMAT) as new,
    ):
        for member in old.getmembers():
            source = old.extractfile(member) if member.isreg() else None
            content = change(member.name, b"" if source is None else source.read())
            if content is not None:
                member.size = len(content)
                new.addfile(member, io.BytesIO(content))
    path.write_bytes(out.getvalue())


def cut(path: Path, share: float) -> None:
    os.truncate(path, int(path.stat().st_size * share))


def flip(path: Path) -> None:
    data = bytearray(path.read_bytes())
    at = data.index(b"7 entries\n")
    data[at] ^= 1
    path.write_bytes(data)


def with_manifest(change: Callable[[dict], object]) -> Callable[[Path], None]:
    def forge(path: Path) -> None:
        def edit(name: str, content: bytes) -> bytes:
            if name != "manifest.json":
                return content
            manifest = json.loads(content)
            change(manifest)
            return json.dumps(manifest).encode()

        repacked(path, edit)

    return forge


BAD = {
    "cut at the start": (lambda path: cut(path, 0.0005), BackupError, "no backup|cut"),
    "cut in the middle": (lambda path: cut(path, 0.5), BackupError, "cut"),
    "cut at the end": (lambda path: cut(path, 0.97), BackupError, "cut"),
    "empty": (lambda path: path.write_bytes(b""), BackupError, "no backup"),
    "another kind of file": (lambda path: path.write_bytes(b"\x89PNG" * 5000), BackupError, "no backup"),
    "a bare database": (
        lambda path: shutil.copy(path.parent / "root/workspaces/.state/agent-runner.db", path),
        BackupError,
        "no backup",
    ),
    "one bit changed": (flip, BackupError, "is not what was backed up"),
    "a member left out": (
        lambda path: repacked(path, lambda name, data: None if name.endswith("notes.md") else data),
        BackupError,
        "members are not those",
    ),
    "another ledger": (
        with_manifest(lambda manifest: manifest.update(entries=6)),
        BackupError,
        "not the one that its manifest names",
    ),
    "a newer format": (
        with_manifest(lambda manifest: manifest.update(version=2)),
        BackupError,
        "format 2, this program reads 1",
    ),
    "a newer schema": (
        with_manifest(lambda manifest: manifest.update(schema_version=SCHEMA_VERSION + 1)),
        BackupError,
        "a newer one",
    ),
    "a manifest of another shape": (
        with_manifest(lambda manifest: manifest.pop("made_at")),
        BackupError,
        "cannot be read",
    ),
}


@pytest.mark.parametrize("name", BAD)
def test_a_file_that_is_no_whole_backup_is_refused_and_nothing_changes(root: Root, tmp_path: Path, name: str):
    spoil, error, words = BAD[name]
    out = tmp_path / "out.tar"
    make_backup(root, out)
    spoil(out)
    other = a_root(tmp_path / "other", 2)
    before, state = files(other), {path.name for path in other.state.iterdir()}
    with pytest.raises(error, match=words):
        restore_backup(other, out)
    assert files(other) == before
    assert {path.name for path in other.state.iterdir()} - {"runner.lock"} == state
    assert entries(other) == 2
    with pytest.raises(error, match=words):
        restore_backup(Root(tmp_path / "fresh"), out)
    assert not (tmp_path / "fresh").exists()


def archive_of(path: Path, *extra: tuple[str, bytes, str]) -> None:
    """Forge an archive whose manifest and members agree, with members that no backup has: name, type, target."""
    with tarfile.open(path, "r:") as old:
        held = [(member, old.extractfile(member)) for member in old.getmembers()]
        contents = [(member, b"" if source is None else source.read()) for member, source in held]
    manifest = json.loads(contents.pop()[1])
    for name, kind, target in extra:
        member = tarfile.TarInfo(name)
        member.type, member.linkname, member.mode = kind, target, 0o644
        contents.append((member, b""))
        word = {tarfile.SYMTYPE: "link", tarfile.DIRTYPE: "folder"}.get(kind, "file")
        empty = "af1349b9f5f9a1a6a0404dea36dcc9499bcb25c9adc112b7cc9a93cae41f3262"
        fields = {"link": {"target": target}, "folder": {"mode": 0o755}, "file": {"blake3": empty}}[word]
        manifest["members"][name] = {"kind": word, **fields}
    data = json.dumps(manifest).encode()
    last = tarfile.TarInfo("manifest.json")
    last.size = len(data)
    with tarfile.open(path, "w:", format=tarfile.PAX_FORMAT) as new:
        for member, content in [*contents, (last, data)]:
            new.addfile(member, io.BytesIO(content))


@pytest.mark.parametrize(
    ("name", "kind", "target"),
    [
        ("../escaped", tarfile.REGTYPE, ""),
        ("/tmp/escaped", tarfile.REGTYPE, ""),  # noqa: S108
        ("platform/../../escaped", tarfile.REGTYPE, ""),
        ("workspaces/.state/operator.token", tarfile.REGTYPE, ""),
        ("secrets/else", tarfile.REGTYPE, ""),
        ("elsewhere", tarfile.DIRTYPE, ""),
        ("platform/link", tarfile.SYMTYPE, "/etc"),
        ("platform/link", tarfile.SYMTYPE, "../../.."),
        ("platform/device", tarfile.CHRTYPE, ""),
        ("platform/hard", tarfile.LNKTYPE, "database.db"),
        ("platform/no-such-folder/file", tarfile.REGTYPE, ""),
        ("platform/index.md/below", tarfile.REGTYPE, ""),
        ("workspaces/agents/reed/latest/below", tarfile.REGTYPE, ""),
    ],
)
def test_a_forged_archive_writes_nowhere_else(
    root: Root, tmp_path: Path, name: str, kind: bytes, target: str
):
    out = tmp_path / "out.tar"
    make_backup(root, out)
    archive_of(out)
    assert inspect_backup(out).manifest.entries == ENTRIES  # the forger's hand alone is not what is refused
    archive_of(out, (name, kind, target))
    with pytest.raises(BackupError):
        restore_backup(Root(tmp_path / "other"), out)
    assert {path.name for path in tmp_path.iterdir()} == {"root", "out.tar"}


def test_a_forged_ledger_is_refused_and_a_forged_backup_by_its_fingerprint(root: Root, tmp_path: Path):
    made = make_backup(root, tmp_path / "out.tar")
    database = open_writer(root.database)
    database.execute("DROP TRIGGER ledger_is_never_deleted")
    database.close()
    make_backup(root, tmp_path / "forged.tar")
    other = Root(tmp_path / "other")
    with pytest.raises(StorageError, match="not made as this program makes it"):
        restore_backup(other, tmp_path / "forged.tar")
    with pytest.raises(BackupError, match="another backup"):
        restore_backup(other, tmp_path / "out.tar", fingerprint="0" * 64)
    assert not other.path.exists()
    assert (
        restore_backup(other, tmp_path / "out.tar", fingerprint=made.fingerprint.upper()).inspected.warnings
        == ()
    )


def test_a_root_that_a_daemon_keeps_is_not_restored(root: Root, tmp_path: Path):
    make_backup(root, tmp_path / "out.tar")
    before = files(root)
    with Lock(root), pytest.raises(AlreadyRunningError, match="stop it first"):
        restore_backup(root, tmp_path / "out.tar")
    assert files(root) == before


def test_content_that_no_daemon_would_start_with_is_restored_with_a_warning(root: Root, tmp_path: Path):
    (root.platform / "constitution.yaml").write_text("tool_rules: 7\n")
    make_backup(root, tmp_path / "out.tar")
    [warning, *_] = restore_backup(Root(tmp_path / "other"), tmp_path / "out.tar").inspected.warnings
    assert warning.startswith("platform/constitution.yaml:1")


def test_a_backup_of_an_older_schema_is_migrated_where_it_is_restored(tmp_path: Path):
    old = Root(tmp_path / "old")
    lay_out(old)
    database = apsw.Connection(str(old.database))
    database.execute("PRAGMA journal_mode = WAL")
    database.execute((HERE / "schema_version_1.sql").read_text(encoding="utf-8"))
    database.execute("PRAGMA user_version = 1")
    a_chain(database, ENTRIES)
    database.close()
    assert make_backup(old, tmp_path / "out.tar").manifest.schema_version == 1
    other = Root(tmp_path / "other")
    assert restore_backup(other, tmp_path / "out.tar").inspected.manifest.schema_version == 1
    assert entries(other) == ENTRIES  # which only a database of this version can be asked
    # What was backed up is as it was.
    assert apsw.Connection(str(old.database)).pragma("user_version") == 1


# --- cut off in the middle


class PowerCutError(BaseException):
    """What no code catches."""


def cut_at(number: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Let the restore end before its rename of this number, from 0."""
    done, rename = iter(range(number)), os.rename

    def renamed(old: Path, new: Path) -> None:
        if next(done, None) is None:
            raise PowerCutError
        rename(old, new)

    monkeypatch.setattr(restoring.os, "rename", renamed)


@pytest.mark.parametrize("number", [0, 1, 2, 3, 4, 7, 10, 14, 15, 16])
def test_a_restore_that_is_cut_off_is_finished_later(
    root: Root, tmp_path: Path, number: int, monkeypatch: pytest.MonkeyPatch
):
    make_backup(root, tmp_path / "out.tar", secrets=True)
    other = a_root(tmp_path / "other", 2)
    log = open_writer(other.database)  # a log beside the database that a killed daemon left behind
    commit(log, AppendEntry(an_entry(99)))
    for suffix in ("-wal", "-shm"):
        shutil.copy(f"{other.database}{suffix}", tmp_path / f"log{suffix}")
    log.close()
    for suffix in ("-wal", "-shm"):
        shutil.copy(tmp_path / f"log{suffix}", f"{other.database}{suffix}")
    cut_at(number, monkeypatch)
    try:
        restore_backup(other, tmp_path / "out.tar")
        is_cut = False
    except PowerCutError:
        is_cut = True
    monkeypatch.undo()
    assert is_cut == other.restore_plan.exists() == (number < 16)
    assert finish_restore(other) is is_cut
    assert finish_restore(other) is False
    assert (files(other), entries(other)) == (files(root), ENTRIES)
    assert other.read_token() == root.read_token()
    [aside] = other.state.glob("replaced-*")
    assert (aside / "workspaces/agents/reed/notes.md").read_text() == "2 entries\n"
    assert not list(other.state.glob("restore*"))
    kept = apsw.Connection(str(aside / "workspaces/.state/agent-runner.db"))
    assert count_entries(kept) == 3  # its log went with it
    kept.close()


@pytest.mark.parametrize("step", ["_unpack", "check_database", "_migrate", "_write_plan"])
def test_a_restore_that_is_cut_off_before_its_plan_stands_changes_nothing(
    root: Root, tmp_path: Path, step: str, monkeypatch: pytest.MonkeyPatch
):
    make_backup(root, tmp_path / "out.tar")
    other = a_root(tmp_path / "other", 2)
    before = files(other)

    def end(*_given: object) -> None:
        raise PowerCutError

    monkeypatch.setattr(restoring, step, end)
    with pytest.raises(PowerCutError):
        restore_backup(other, tmp_path / "out.tar")
    assert finish_restore(other) is False
    assert (files(other), entries(other)) == (before, 2)


def test_what_is_on_another_file_system_is_said_before_anything_is_replaced(
    root: Root, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    make_backup(root, tmp_path / "out.tar")
    before = files(root)
    monkeypatch.setattr(Path, "is_mount", lambda path: path.name == "agents")
    with pytest.raises(RootError, match="another file system"):
        restore_backup(root, tmp_path / "out.tar")
    monkeypatch.undo()
    assert files(root) == before
    assert not list(root.state.glob("re[ps]*"))


def test_every_error_says_what_to_do(root: Root, tmp_path: Path):
    for make in (
        lambda: make_backup(Root(tmp_path / "nothing"), tmp_path / "out.tar"),
        lambda: make_backup(root, tmp_path / "no" / "out.tar"),
        lambda: make_backup(root, tmp_path),
        lambda: restore_backup(root, tmp_path / "no.tar"),
        lambda: restore_backup(root, tmp_path),
    ):
        with pytest.raises(AgentRunnerError):
            make()
