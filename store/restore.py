"""Puts a backup in the place of what a root holds: verified before anything is replaced, and finished after a crash.

Everything is first laid ready under `.state`, checked there and synced. Then a plan of renames is written, and that is
the moment from which the root is the restored one: whoever finds the plan, because this process was killed meanwhile,
carries out what is left of it (`finish_restore`). Before that moment nothing of the root has changed. What was
replaced lies in a dated folder under `.state`, as it was.
"""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

import msgspec

from protocol.errors import ConfigurationError
from store.archive import (
    DATABASE,
    SECRETS,
    ArchiveReader,
    BackupError,
    Manifest,
    Tell,
    open_archive,
)
from store.backup import check_database
from store.clock import rfc3339, utc_now
from store.content import load_content
from store.database import SCHEMA_VERSION, StorageError, open_writer, schema_of
from store.root import Lock, Root, RootError, lay_out


class Plan(msgspec.Struct, frozen=True):
    """What is to be renamed: `staged` and `aside` are folders under `.state`.

    `moves` are pairs of a name under `staged` (None where nothing comes) and its place, relative to the root.
    """

    staged: str
    aside: str
    moves: list[tuple[str | None, str]]


@dataclass(frozen=True, slots=True)
class Inspected:
    """A backup whose every byte was verified; `warnings` are what a daemon would refuse to start with."""

    manifest: Manifest
    fingerprint: str
    warnings: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Restored:
    """A restore that is done; `aside` is the folder with what was replaced, None where there was nothing."""

    inspected: Inspected
    aside: Path | None
    made: tuple[Path, ...]


def _tell_nobody(_what: str, _done: int, _all: int) -> None:
    return


def inspect_backup(file: Path, *, fingerprint: str | None = None, tell: Tell = _tell_nobody) -> Inspected:
    """Verify a backup as `restore_backup` would, and change nothing. Raises the same."""
    with tempfile.TemporaryDirectory(prefix="agent-runner-check-") as folder:
        return _lay_ready(file, Path(folder) / "staged", fingerprint, tell)


def restore_backup(
    root: Root, file: Path, *, fingerprint: str | None = None, tell: Tell = _tell_nobody
) -> Restored:
    """Let a root hold what a backup holds; with `fingerprint`, only if that is the backup's.

    Secrets that are not in the backup stay, or are made where there are none. Raises AlreadyRunningError while a
    daemon keeps the root, BackupError for a file that was cut, changed, is none or is newer, LedgerError and
    StorageError for what its database is found to be: nothing has changed then.
    """
    with open_archive(file) as reader:
        _check_fingerprint(reader, fingerprint)
    finish_restore(root)
    stamp = rfc3339(utc_now())[:19].replace(":", "-")
    with _folders(root), Lock(root):
        staged, aside = root.state / f"restore-{stamp}", root.state / f"replaced-{stamp}"
        try:
            inspected = _lay_ready(file, staged, fingerprint, tell)
            plan = Plan(staged.name, aside.name, list(_moves(root, staged, inspected.manifest)))
            _check_places(root, plan)
            os.sync()
        except BaseException:
            shutil.rmtree(staged, ignore_errors=True)
            raise
        _write_plan(root, plan)
        _carry_out(root, plan)
    made = tuple(lay_out(root))
    return Restored(inspected, aside if aside.is_dir() else None, made)


def finish_restore(root: Root) -> bool:
    """Carry out what is left of a restore that was cut off; return whether there was one.

    Raises AlreadyRunningError where somebody is at it, RootError where it cannot be done.
    """
    if not root.restore_plan.exists():
        return False
    with Lock(root):
        try:
            plan = msgspec.json.decode(root.restore_plan.read_bytes(), type=Plan)
        except FileNotFoundError:
            return False  # somebody else has just finished it
        except (OSError, msgspec.MsgspecError) as error:
            raise RootError(
                f"cannot read {root.restore_plan}: {error}; restore the backup once more"
            ) from error
        _carry_out(root, plan)
    return True


# --- laying ready


@contextmanager
def _folders(root: Root) -> Iterator[None]:
    """Make the folders that a lock needs; where the restore fails, those that were made are taken away again."""
    made = []
    try:
        for folder in (*reversed(root.path.parents), root.path, root.workspaces, root.state):
            if not folder.is_dir():
                folder.mkdir(mode=0o700 if folder == root.state else 0o755)
                made.append(folder)
    except OSError as error:
        raise RootError(f"cannot make {error.filename}: {error.strerror}; choose another --root") from error
    try:
        yield
    except BaseException:
        if root.state in made:
            (root.state / "runner.lock").unlink(missing_ok=True)
        with suppress(OSError):
            for folder in reversed(made):
                folder.rmdir()
        raise


def _check_fingerprint(reader: ArchiveReader, expected: str | None) -> None:
    if expected is not None and reader.fingerprint != expected.lower():
        raise BackupError(
            f"this is another backup: its fingerprint is {reader.fingerprint}; nothing was restored"
        )


def _lay_ready(file: Path, staged: Path, fingerprint: str | None, tell: Tell) -> Inspected:
    """Unpack a backup into a new folder and verify all of it there; the database is migrated to this program's."""
    with open_archive(file) as reader:
        _check_fingerprint(reader, fingerprint)
        if reader.manifest.schema_version > SCHEMA_VERSION:
            raise BackupError(
                f"{file} has schema version {reader.manifest.schema_version}, this program knows {SCHEMA_VERSION}; "
                f"restore it with agent-runner {reader.manifest.program} or a newer one"
            )
        staged.mkdir(mode=0o700)
        try:
            _unpack(reader, staged, tell)
        except OSError as error:
            raise BackupError(f"cannot unpack {file} in {staged.parent}: {error.strerror}") from error
        manifest, found = reader.manifest, reader.fingerprint
    database = staged / DATABASE
    checked = check_database(database, tell)
    if (checked.entries, checked.last_cid) != (manifest.entries, manifest.last_cid):
        raise BackupError(f"the ledger in {file} is not the one that its manifest names; use another copy")
    _migrate(file, database)
    return Inspected(manifest, found, tuple(_warnings(staged / "platform", staged)))


def _unpack(reader: ArchiveReader, staged: Path, tell: Tell) -> None:
    members = reader.manifest.members
    total, done = sum(member.size for member in members.values()), 0
    for name, member in sorted(members.items()):
        if member.kind == "folder":
            (staged / name).mkdir(mode=0o700)
    (staged / "secrets").mkdir(mode=0o700)
    for name, member in members.items():
        if member.kind != "file":
            continue
        private = name == DATABASE or name in SECRETS
        flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW
        with open(os.open(staged / name, flags, 0o600), "wb") as file:  # noqa: PTH123 - a descriptor, not a path
            for piece in reader.contents(name):
                file.write(piece)
                done += len(piece)
                tell("unpack", done, total)
            os.fchmod(file.fileno(), 0o600 if private else member.mode & 0o777)
    # Links come last, so that nothing was written through one; then the modes, which may close a folder.
    for name, member in members.items():
        if member.kind == "link":
            (staged / name).symlink_to(member.target)
    for name, member in sorted(members.items(), reverse=True):
        if member.kind == "folder":
            (staged / name).chmod(member.mode & 0o777)


def _migrate(file: Path, path: Path) -> None:
    """Bring the database to this program's schema, and refuse one that is made of anything else."""
    with tempfile.TemporaryDirectory(prefix="agent-runner-schema-") as folder:
        fresh = open_writer(Path(folder) / "fresh.db")
        expected = schema_of(fresh)
        fresh.close()
    database = open_writer(path)
    try:
        if schema_of(database) != expected:
            raise StorageError(
                f"the database in {file} is not made as this program makes it; use another backup"
            )
        database.pragma("journal_mode", "DELETE")  # one file, without a log beside it
    finally:
        database.close()


def _warnings(platform: Path, staged: Path) -> Iterator[str]:
    try:
        load_content(platform)
    except ConfigurationError as error:
        for one in getattr(error, "errors", (error,)):
            yield str(one).replace(f"{staged}{os.sep}", "")


# --- the renames


def _moves(root: Root, staged: Path, manifest: Manifest) -> Iterator[tuple[str | None, str]]:
    """Yield the renames; the log of the old database leaves first, since it would be taken for the new one's.

    So would the events of its turns: the same turn may have gone otherwise.
    """
    state = root.state.relative_to(root.path)
    for suffix in ("-wal", "-shm"):
        yield None, str(state / (root.database.name + suffix))
    yield None, str(root.events.relative_to(root.path))
    yield DATABASE, str(state / root.database.name)
    yield "platform", "platform"
    if manifest.has_workspaces:
        names = {
            entry.name for folder in (staged / "workspaces", root.workspaces) for entry in folder.iterdir()
        }
        for name in sorted(names - {".state"}):
            coming = f"workspaces/{name}"
            yield coming if os.path.lexists(staged / coming) else None, coming
    for name, place in SECRETS.items():
        if name in manifest.members:
            yield name, str(state / place)


def _check_places(root: Root, plan: Plan) -> None:
    """Raise RootError where a rename could not be done; known before the first one."""
    device = root.state.stat().st_dev
    for _, name in plan.moves:
        place = root.path / name
        if not os.path.lexists(place):
            continue
        if place.is_mount() or place.lstat().st_dev != device or place.parent.stat().st_dev != device:
            raise RootError(
                f"{place} is on another file system than {root.state}, so that it cannot be replaced in one step; "
                "restore into a folder on one file system with --root, and copy from there"
            )
        if not os.access(place.parent, os.W_OK):
            raise RootError(f"{place} cannot be replaced by this user; restore as the user that owns it")


def _write_plan(root: Root, plan: Plan) -> None:
    temporary = root.restore_plan.with_suffix(".new")
    with temporary.open("wb") as file:
        file.write(msgspec.json.encode(plan))
        file.flush()
        os.fsync(file.fileno())
    temporary.replace(root.restore_plan)
    _sync(root.state)


def _carry_out(root: Root, plan: Plan) -> None:
    """Do the renames that are not done yet; may be cut off and called again as often as one likes."""
    staged, aside = root.state / plan.staged, root.state / plan.aside
    try:
        for coming, name in plan.moves:
            place = root.path / name
            if coming is not None and not os.path.lexists(staged / coming):
                continue
            if os.path.lexists(place) and (coming is not None or not os.path.lexists(aside / name)):
                old = _free_name(aside / name)
                _make_folders(old.parent)
                os.rename(place, old)  # noqa: PTH104 - a link is renamed and not followed
            if coming is not None:
                _make_folders(place.parent)
                os.rename(staged / coming, place)  # noqa: PTH104
        os.sync()
        root.restore_plan.unlink()
        _sync(root.state)
    except OSError as error:
        raise RootError(
            f"the restore stopped at {error.filename}: {error.strerror}; mend that, then `run` or `restore` goes on "
            f"with it (what was replaced is in {aside})"
        ) from error
    shutil.rmtree(staged, ignore_errors=True)


def _make_folders(folder: Path) -> None:
    missing = [one for one in (folder, *folder.parents) if not one.is_dir()]
    for one in reversed(missing):
        one.mkdir(mode=0o700)


def _free_name(path: Path) -> Path:
    number, free = 0, path
    while os.path.lexists(free):
        number += 1
        free = path.with_name(f"{path.name}.{number}")
    return free


def _sync(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
