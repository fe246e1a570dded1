"""Changing the state of an identity in roster.yaml: one word of the file, and nothing else of it."""

from __future__ import annotations

import os
import re
import stat
from contextlib import suppress
from pathlib import Path
from tempfile import NamedTemporaryFile
from typing import Final, Literal

from ruamel.yaml import YAML

from protocol.errors import AgentRunnerError
from store.content import ROSTER, load_content

State = Literal["live", "frozen"]

_WRITTEN: Final = re.compile(r"""(?P<quote>["']?)(?:live|frozen|dead)(?P=quote)""")


class RosterEditError(AgentRunnerError):
    """The roster was not changed: the message says why and what to do."""


def set_state(platform: Path, identity_id: str, state: State) -> bool:
    """Set the state of an identity in the roster of a platform folder; return whether that was a change.

    The file is read and checked whole with the change in it before it is replaced, by a rename: readers see the old
    file or the new one. Comments, order and layout stay, byte for byte. Raises ContentError where the content does
    not load, with or without the change, RosterEditError for an identity that is not there or dead, and where the
    file cannot be written.
    """
    path = platform / ROSTER
    before = load_content(platform).roster
    identity = before.get(identity_id)
    if identity is None:
        raise RosterEditError(f"{identity_id!r} is not in {path}; `agent-runner agents list` names who is")
    if identity.state == "dead":
        raise RosterEditError(
            f"{identity_id} is dead: its entry is kept as a record; edit {path} by hand to bring it back"
        )
    if identity.state == state:
        return False
    try:
        data = path.read_bytes()
        changed = _with_state(data, identity_id, state)
        after = {one.id: one.state for one in load_content(platform, roster=changed).roster.identities}
        if after != {one.id: one.state for one in before.identities} | {identity_id: state}:
            raise RosterEditError(f"{path} is laid out in a way that cannot be edited here; edit it by hand")
        _replace(path, data, changed)
    except OSError as error:
        raise RosterEditError(
            f"cannot write {path}: {error.strerror}; run this as the user that owns the file"
        ) from error
    return True


def _with_state(data: bytes, identity_id: str, state: State) -> bytes:
    """Return the file with one state written anew where it stands."""
    text = data.decode("utf-8-sig")
    document = YAML(typ="rt").load(text)
    place = next(number for number, entry in enumerate(document["identities"]) if entry["id"] == identity_id)
    line, column = document["identities"][place].lc.value("state")
    lines = text.splitlines(keepends=True)
    written = lines[line]
    found = _WRITTEN.match(written, column)
    if found is None:
        raise RosterEditError(f"line {line + 1} of the roster cannot be edited here; edit it by hand")
    quote = found["quote"]
    lines[line] = f"{written[:column]}{quote}{state}{quote}{written[found.end() :]}"
    mark = data[: len(data) - len(text.encode())]  # of byte order, where there is one
    return mark + "".join(lines).encode()


def _replace(path: Path, read: bytes, data: bytes) -> None:
    """Put new content in the place of a file, if it still is what was read; owner and mode stay."""
    target = path.resolve()  # a link stays a link
    status = target.stat()
    with NamedTemporaryFile(dir=target.parent, prefix=".roster-", suffix=".new", delete=False) as file:
        temporary = Path(file.name)
        try:
            file.write(data)
            file.flush()
            os.fchmod(file.fileno(), stat.S_IMODE(status.st_mode))
            with suppress(PermissionError):  # only root gives files away; else the file becomes our own
                os.fchown(file.fileno(), status.st_uid, status.st_gid)
            os.fsync(file.fileno())
            _refuse_changed(target, read)
            temporary.replace(target)
        except BaseException:
            temporary.unlink(missing_ok=True)
            raise
    folder = os.open(target.parent, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)


def _refuse_changed(path: Path, read: bytes) -> None:
    if path.read_bytes() != read:
        raise RosterEditError(f"{path} was changed by somebody else at this moment; try again")
