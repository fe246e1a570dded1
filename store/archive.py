"""The file of a backup: a tar archive whose last member, `manifest.json`, says what all the others are.

    database.db       the database, whole, as of one moment
    platform/…        the shared content
    workspaces/…      the files of agents, users and guests; never `.state`
    secrets/…         the operator's token and the key of the sessions, only where they were asked for
    manifest.json     size, mode and BLAKE3 of each, and what the ledger held

An archive that was cut has no manifest; one in which anything was changed does not fit to it. The BLAKE3 of the
manifest is the fingerprint of the whole backup: who wrote it down can tell a forged one.
"""

from __future__ import annotations

import json
import os
import tarfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path, PurePosixPath
from typing import IO, Any, Final, Literal

import msgspec
from blake3 import blake3

from protocol.errors import AgentRunnerError

FORMAT: Final = "agent-runner backup"
FORMAT_VERSION: Final = 1
MANIFEST: Final = "manifest.json"
DATABASE: Final = "database.db"
SECRETS: Final = {"secrets/operator.token": "operator.token", "secrets/sessions.key": "keys/sessions.key"}
"""Each secret, and where under `.state` it lies."""

MANIFEST_BYTES_MAX: Final = 1 << 30
PIECE_BYTES: Final = 1 << 20
ATTEMPTS: Final = 5
_BLOCK: Final = tarfile.BLOCKSIZE

Tell = Callable[[str, int, int], None]
"""Told of progress: what is done (`database`, `files`, …), how much of it, and how much there is, both in bytes."""


class BackupError(AgentRunnerError):
    """A backup that cannot be made, or a file that is none that could be restored; the message says the next step."""


class Member(msgspec.Struct, frozen=True, forbid_unknown_fields=True, omit_defaults=True):
    """One member of the archive: `mode` is that of the file; `size` in bytes and `blake3` are those of its content."""

    kind: Literal["file", "folder", "link"]
    mode: int = 0
    size: int = 0
    blake3: str = ""
    target: str = ""


class Manifest(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What a backup holds. `made_at` is RFC 3339; `last_cid` is that of the newest ledger entry, None for none."""

    format: str
    version: int
    program: str
    made_at: str
    schema_version: int
    entries: int
    last_cid: str | None
    members: dict[str, Member]

    @property
    def has_secrets(self) -> bool:
        """Whether the operator's token is in it."""
        return any(name in SECRETS for name in self.members)

    @property
    def has_workspaces(self) -> bool:
        """Whether the files of the workspaces are in it."""
        return any(name.startswith("workspaces") for name in self.members)

    def encode(self) -> bytes:
        """Return the bytes of the manifest; names that are not UTF-8 are kept as Python does, escaped."""
        return json.dumps(msgspec.to_builtins(self), sort_keys=True, indent=1).encode() + b"\n"


def fingerprint_of(manifest: bytes) -> str:
    """Return the fingerprint of a backup: BLAKE3 of its manifest, 64 hexadecimal characters."""
    return blake3(manifest).hexdigest()


# --- writing


class ArchiveWriter:
    """Writes the members of a backup to a file that is open for writing and can be sought in."""

    def __init__(self, file: IO[bytes]) -> None:
        self._file = file
        self.members: dict[str, Member] = {}

    def add_folder(self, name: str, mode: int) -> None:
        """Add a folder."""
        self._write_head(name, tarfile.DIRTYPE, mode)
        self.members[name] = Member("folder", mode)

    def add_link(self, name: str, target: str) -> None:
        """Add a symbolic link."""
        self._write_head(name, tarfile.SYMTYPE, 0o777, target=target)
        self.members[name] = Member("link", target=target)

    def add_file(self, name: str, path: Path, tell: Callable[[int], None] = lambda _bytes: None) -> bool:
        """Add a file as it is now; return False, with nothing added, where there is no such file any more.

        One that grows meanwhile is taken as long as it was; one that shrinks is read once more. Raises OSError.
        """
        start = self._file.tell()
        for _ in range(ATTEMPTS):
            try:
                descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK)
            except FileNotFoundError:
                return False
            with open(descriptor, "rb") as source:  # noqa: PTH123 - a descriptor, not a path
                status = os.fstat(descriptor)
                self._write_head(name, tarfile.REGTYPE, status.st_mode, status.st_size, status.st_mtime)
                hashed = self._copy(source, status.st_size, tell)
            if hashed is not None:
                self.members[name] = Member("file", status.st_mode & 0o777, status.st_size, hashed)
                return True
            self._file.seek(start)
            self._file.truncate()
        raise BackupError(f"{path} is changed faster than it can be read; try again when it is left alone")

    def finish(self, manifest: Manifest) -> str:
        """Write the manifest and the end of the archive; return the fingerprint."""
        data = manifest.encode()
        self._write_head(MANIFEST, tarfile.REGTYPE, 0o600, len(data))
        self._file.write(data + bytes(-len(data) % _BLOCK) + bytes(2 * _BLOCK))
        return fingerprint_of(data)

    def _write_head(
        self, name: str, kind: bytes, mode: int, size: int = 0, modified: float = 0.0, *, target: str = ""
    ) -> None:
        head = tarfile.TarInfo(name)
        head.type, head.mode, head.size, head.mtime, head.linkname = (
            kind,
            mode & 0o777,
            size,
            int(modified),
            target,
        )
        self._file.write(head.tobuf(tarfile.PAX_FORMAT, "utf-8", "surrogateescape"))

    def _copy(self, source: IO[bytes], size: int, tell: Callable[[int], None]) -> str | None:
        hashed, left = blake3(), size
        while left:
            piece = source.read(min(left, PIECE_BYTES))
            if not piece:
                return None
            hashed.update(piece)
            self._file.write(piece)
            left -= len(piece)
            tell(len(piece))
        self._file.write(bytes(-size % _BLOCK))
        return hashed.hexdigest()


# --- reading


class ArchiveReader:
    """A backup that was opened: its manifest is read and its members are those that the manifest names.

    What is in the members is looked at by `contents` alone.
    """

    def __init__(self, path: Path, archive: tarfile.TarFile) -> None:
        self._path = path
        self._archive = archive
        self._heads = {head.name: head for head in archive.getmembers()}
        if len(self._heads) != len(archive.getmembers()):
            raise self._broken("a name stands in it twice")
        data = self._manifest_bytes()
        self.fingerprint = fingerprint_of(data)
        self.manifest = self._decode(data)
        if self._heads.keys() != self.manifest.members.keys() | {MANIFEST}:
            raise self._broken("its members are not those that its manifest names")
        for name, member in self.manifest.members.items():
            self._check(name, member)
        if DATABASE not in self.manifest.members or "platform" not in self.manifest.members:
            raise self._broken("there is no database or no platform folder in it")

    def contents(self, name: str) -> Iterator[bytes]:
        """Yield the content of a file in pieces; raises BackupError at its end where it is not what it was."""
        member = self.manifest.members[name]
        source, hashed = self._archive.extractfile(self._heads[name]), blake3()
        while source is not None and (piece := source.read(PIECE_BYTES)):
            hashed.update(piece)
            yield piece
        if hashed.hexdigest() != member.blake3:
            raise self._broken(f"{name!r} in it is not what was backed up")

    def _broken(self, problem: str) -> BackupError:
        return BackupError(
            f"{self._path} was cut or changed: {problem}; nothing was restored, use another copy"
        )

    def _manifest_bytes(self) -> bytes:
        names = list(self._heads)
        if not names or names[-1] != MANIFEST:
            if DATABASE in self._heads:
                raise self._broken("it has no manifest at its end")
            raise BackupError(f"{self._path} is no backup of agent-runner; `agent-runner backup` makes one")
        head = self._heads[MANIFEST]
        source = self._archive.extractfile(head) if head.size <= MANIFEST_BYTES_MAX else None
        if source is None:
            raise self._broken("its manifest is no file")
        return source.read()

    def _decode(self, data: bytes) -> Manifest:
        try:
            raw: Any = json.loads(data)
            if not isinstance(raw, dict) or raw.get("format") != FORMAT:
                raise BackupError(
                    f"{self._path} is no backup of agent-runner; `agent-runner backup` makes one"
                )
            if raw.get("version") != FORMAT_VERSION:
                raise BackupError(
                    f"{self._path} has format {raw.get('version')!r}, this program reads {FORMAT_VERSION}; "
                    f"restore it with the program that made it ({str(raw.get('program'))[:40]!r}) or a newer one"
                )
            return msgspec.convert(raw, Manifest)
        except (ValueError, RecursionError) as error:
            raise self._broken(f"its manifest cannot be read ({error})") from error

    def _check(self, name: str, member: Member) -> None:
        head = self._heads[name]
        kinds = {"file": head.isreg() and not head.issparse(), "folder": head.isdir(), "link": head.issym()}
        if not (is_safe(name) and kinds[member.kind] and head.size == member.size):
            raise self._broken(f"{name!r} in it may not be there, or is not what the manifest says")
        if member.kind == "link" and (head.linkname != member.target or not is_inside(name, member.target)):
            raise self._broken(f"the link {name!r} in it leads elsewhere")
        if name.startswith("secrets/") or name == DATABASE:
            if member.kind != "file":
                raise self._broken(f"{name!r} in it is no file")
            return
        above = [str(parent) for parent in PurePosixPath(name).parents][:-1]
        if any(self.manifest.members.get(parent, member).kind != "folder" for parent in above):
            raise self._broken(f"{name!r} in it lies in no folder")
        if not above and member.kind != "folder":
            raise self._broken(f"{name!r} in it is no folder")


def is_safe(name: str) -> bool:
    """Return whether a member of this name belongs into a backup, and lands where it should when it is restored."""
    parts = name.split("/")
    if name == DATABASE or name in SECRETS:
        return True
    if any(part in ("", ".", "..") or "\0" in part for part in parts):
        return False
    return parts[0] == "platform" or (parts[0] == "workspaces" and parts[1:2] != [".state"])


def is_inside(name: str, target: str) -> bool:
    """Return whether a link leads to somewhere under the same first folder.

    It may go up and then down. In that form, and with links made last, no chain of links leads out either.
    """
    parts = target.split("/")
    ups = 0
    while ups < len(parts) and parts[ups] == "..":
        ups += 1
    return ups < len(name.split("/")) - 1 and not any(part in ("", ".", "..") for part in parts[ups:])


@contextmanager
def open_archive(path: Path) -> Iterator[ArchiveReader]:
    """Open a backup for reading; raises BackupError where it is none, was cut, or is of a newer program."""
    try:
        with tarfile.open(path, "r:", encoding="utf-8", errors="surrogateescape") as archive:
            yield ArchiveReader(path, archive)
    except tarfile.ReadError as error:
        raise BackupError(
            f"{path} is no backup of agent-runner, or was cut ({error}); nothing was restored, use another copy"
        ) from error
    except (tarfile.TarError, EOFError, ValueError) as error:
        raise BackupError(f"{path} cannot be read as a backup ({error}); use another copy") from error
    except OSError as error:
        if error.filename is not None and Path(error.filename) != path:
            raise
        raise BackupError(f"cannot read {path}: {error.strerror or error}") from error
