"""Makes a backup of a root: of a running daemon's or of a stopped one's, without stopping anything."""

from __future__ import annotations

import os
import shutil
import stat
import tempfile
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import apsw

from protocol.errors import LedgerError
from store.archive import (
    DATABASE,
    FORMAT,
    FORMAT_VERSION,
    SECRETS,
    ArchiveWriter,
    BackupError,
    Manifest,
    Tell,
    is_inside,
    open_archive,
)
from store.clock import rfc3339, utc_now
from store.database import StorageError, open_of_any_version
from store.ledger import count_entries, verify
from store.root import Root, RootError
from store.version import program_version

PAGES_AT_ONCE: Final = 1_000


@dataclass(frozen=True, slots=True)
class Backup:
    """A backup that was made and verified.

    `left_out` names what has no place in one: links that lead out of their folder, sockets, devices.
    """

    path: Path
    bytes: int
    manifest: Manifest
    fingerprint: str
    left_out: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Checked:
    """What a database was found to hold when it was checked whole; `last_cid` is None where the ledger is empty."""

    schema_version: int
    entries: int
    last_cid: str | None


def make_backup(
    root: Root,
    out: Path,
    *,
    force: bool = False,
    secrets: bool = False,
    workspaces: bool = True,
    tell: Tell = lambda _what, _done, _all: None,
) -> Backup:
    """Write a backup of a root to the file `out` (0600), whole or not at all, and return what is in it.

    The database is copied as of one moment while others go on writing it; the files are read after it, each as it is
    then. The copy is verified before `out` gets its name. Raises BackupError, StorageError, RootError, and LedgerError
    for a ledger that is broken; nothing is left behind then.
    """
    out = out.absolute()
    _check_place(root, out, force=force)
    try:
        # Beside it, since only there is a rename one step; closed to others, since everything that was said is in it.
        with tempfile.TemporaryDirectory(prefix=f".{out.name}.", suffix=".partial", dir=out.parent) as folder:
            return _make(
                root, out, Path(folder), force=force, secrets=secrets, workspaces=workspaces, tell=tell
            )
    except OSError as error:
        raise BackupError(
            f"the backup could not be made: {error.strerror or error} ({error.filename or out.parent})"
        ) from error


def _make(
    root: Root, out: Path, folder: Path, *, force: bool, secrets: bool, workspaces: bool, tell: Tell
) -> Backup:
    copy, archive = folder / DATABASE, folder / "archive"
    copy_database(root.database, copy, tell)
    checked = check_database(copy, tell)
    made_at = rfc3339(utc_now())
    with open(os.open(archive, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb") as file:  # noqa: PTH123
        writer = ArchiveWriter(file)
        left_out = _write_members(root, writer, copy, secrets=secrets, workspaces=workspaces, tell=tell)
        manifest = Manifest(
            format=FORMAT,
            version=FORMAT_VERSION,
            program=program_version(),
            made_at=made_at,
            schema_version=checked.schema_version,
            entries=checked.entries,
            last_cid=checked.last_cid,
            members=writer.members,
        )
        fingerprint = writer.finish(manifest)
        file.flush()
        os.fsync(file.fileno())
    copy.unlink()
    _read_back(archive, fingerprint, tell)
    size = archive.stat().st_size
    _publish(archive, out, force=force)
    return Backup(out, size, manifest, fingerprint, left_out)


def _check_place(root: Root, out: Path, *, force: bool) -> None:
    if not root.database.is_file():
        raise RootError(
            f"there is no database in {root.path}: no daemon has run there, nothing is to be backed up"
        )
    if not out.parent.is_dir():
        raise BackupError(f"there is no folder {out.parent}; make it first")
    if out.is_dir():
        raise BackupError(f"{out} is a folder; name a file in it")
    if os.path.lexists(out) and not force:
        raise BackupError(f"{out} exists; name another file, or replace it with --force")
    for folder in (root.platform, root.workspaces):
        if out.parent.resolve().is_relative_to(folder.resolve()):
            raise BackupError(
                f"{out} lies in {folder}, which is itself backed up and where agents read; name a file elsewhere"
            )


def copy_database(source: Path, target: Path, tell: Tell) -> None:
    """Copy a database that others may be writing, as of one moment, to a new file without a log beside it."""
    reader = open_of_any_version(source)
    try:
        writer = apsw.Connection(str(target))
        try:
            writer.pragma("journal_mode", "OFF")
            writer.pragma("synchronous", "OFF")
            # What is read stays as it is now: else each commit of the daemon would begin the copy anew.
            reader.execute("BEGIN")
            reader.execute("SELECT count(*) FROM sqlite_schema").fetchall()
            with writer.backup("main", reader, "main") as copy:
                page_bytes = reader.pragma("page_size")
                while not copy.done:
                    copy.step(PAGES_AT_ONCE)
                    tell(
                        "database",
                        (copy.page_count - copy.remaining) * page_bytes,
                        copy.page_count * page_bytes,
                    )
            writer.pragma("journal_mode", "DELETE")
        finally:
            writer.close()
    except apsw.FullError as error:
        raise BackupError(
            f"there is no room for the copy in {target.parent.parent}; free some space there"
        ) from error
    except apsw.Error as error:
        raise StorageError(
            f"{source} cannot be copied: {error}; `agent-runner ledger verify` says more"
        ) from error
    finally:
        reader.close()


def check_database(path: Path, tell: Tell) -> Checked:
    """Check every page and every entry of a database that nobody else uses, and return what it holds.

    Raises StorageError where SQLite finds a page wrong, LedgerError where the ledger does.
    """
    size = path.stat().st_size
    tell("verify", 0, size)
    database = open_of_any_version(path)
    try:
        problems = [str(row[0]) for row in database.execute("PRAGMA integrity_check(3)")]
        if problems != ["ok"]:
            raise StorageError(
                f"the database is damaged ({'; '.join(problems)[:300]}); restore a backup of before"
            )
        tell("verify", size // 2, size)
        version = int(database.pragma("user_version"))
        found = verify(database)
        if found.first_bad is not None:
            raise LedgerError(
                f"the ledger is broken at entry {found.first_bad.seq}: {found.first_bad.problem}; "
                f"{found.entries} entries before it are whole"
            )
        last = database.execute("SELECT cid FROM ledger ORDER BY seq DESC LIMIT 1").get
        tell("verify", size, size)
        return Checked(version, count_entries(database), None if last is None else str(last))
    except apsw.Error as error:
        raise StorageError(f"the database is damaged ({error}); restore a backup of before") from error
    finally:
        database.close()


def _write_members(
    root: Root, writer: ArchiveWriter, copy: Path, *, secrets: bool, workspaces: bool, tell: Tell
) -> tuple[str, ...]:
    found = list(_walk(root.platform, "platform"))
    if workspaces:
        found += [
            (name, path, status)
            for name, path, status in _walk(root.workspaces, "workspaces")
            if name.split("/")[1:2] != [".state"]
        ]
    total = copy.stat().st_size + sum(
        status.st_size for _, _, status in found if stat.S_ISREG(status.st_mode)
    )
    done, left_out = 0, []

    def count(size: int) -> None:
        nonlocal done
        done = min(total, done + size)
        tell("files", done, total)

    writer.add_file(DATABASE, copy, count)
    for name, path, status in found:
        if stat.S_ISDIR(status.st_mode):
            writer.add_folder(name, status.st_mode & 0o777)
        elif stat.S_ISREG(status.st_mode):
            writer.add_file(name, path, count)
        elif stat.S_ISLNK(status.st_mode) and is_inside(name, target := str(path.readlink())):
            writer.add_link(name, target)
        else:
            left_out.append(name)
    if secrets:
        for name, place in SECRETS.items():
            writer.add_file(name, root.state / place)
    return tuple(left_out)


def _walk(folder: Path, name: str) -> Iterator[tuple[str, Path, os.stat_result]]:
    """Yield a folder and all below it, a folder before what is in it; what vanishes meanwhile is not there."""
    yield name, folder, folder.stat()
    waiting = [(name, folder)]
    while waiting:
        name, folder = waiting.pop()
        if name == "workspaces/.state":
            continue
        try:
            with os.scandir(folder) as scanned:
                entries = sorted(scanned, key=lambda entry: entry.name)
        except FileNotFoundError:
            continue
        for entry in entries:
            with suppress(FileNotFoundError):
                status = entry.stat(follow_symlinks=False)
                yield f"{name}/{entry.name}", Path(entry.path), status
                if stat.S_ISDIR(status.st_mode):
                    waiting.append((f"{name}/{entry.name}", Path(entry.path)))


def _read_back(archive: Path, fingerprint: str, tell: Tell) -> None:
    """Read the archive as a restore would: what cannot be read again is no backup."""
    with open_archive(archive) as reader:
        if reader.fingerprint != fingerprint:
            raise BackupError("the backup is not what was written: the disk or the memory is at fault")
        total, done = archive.stat().st_size, 0
        for name, member in reader.manifest.members.items():
            if member.kind == "file":
                for piece in reader.contents(name):
                    done += len(piece)
                    tell("read back", done, total)


def _publish(archive: Path, out: Path, *, force: bool) -> None:
    """Give the archive its name; without `force` no file that came meanwhile is replaced."""
    if force:
        archive.replace(out)
    else:
        try:
            os.link(archive, out)
        except FileExistsError as error:
            raise BackupError(f"{out} exists; name another file, or replace it with --force") from error
        except OSError:
            # A file system without hard links, as on a USB stick.
            if os.path.lexists(out):
                raise BackupError(f"{out} exists; name another file, or replace it with --force") from None
            shutil.move(archive, out)
    folder = os.open(out.parent, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)
