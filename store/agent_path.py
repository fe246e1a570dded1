"""Reads a path as an agent wrote it: which names from the root down it stands for. Looks at no disk."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Final

from store.workspace_errors import WorkspaceDenied, shown

PATH_MAX: Final = 4096
"""Characters of a path."""

NAME_MAX: Final = 255
"""Bytes of one name."""

DEPTH_MAX: Final = 128
"""Names of one path."""


class PathReader:
    """Turns an agent's paths into names relative to `root`.

    An absolute path is taken where it begins with the root, as the root was given or with its links resolved. Dots
    are removed by name, before the disk is looked at, so that what was judged is what is opened.
    """

    def __init__(self, root: Path) -> None:
        given = os.path.abspath(root)  # noqa: PTH100 (links in the root's own path are kept)
        self._roots = {_names(given), _names(os.path.realpath(root))}

    def parts(self, path: str) -> tuple[str, ...]:
        """Return the names of a path from the root down, none for the root itself.

        Raises WorkspaceDenied for what is no path or leads above the root.
        """
        _refuse_malformed(path)
        names = _normalised(path)
        if path.startswith("/"):
            for root in self._roots:
                if names[: len(root)] == root:
                    names = names[len(root) :]
                    break
            else:
                raise WorkspaceDenied(
                    path,
                    f"{shown(path)} is outside the folders of this system; give a path relative to its root, like "
                    "platform/constitution.md.",
                )
        if len(names) > DEPTH_MAX:
            raise WorkspaceDenied(path, f"{shown(path)} goes down more than {DEPTH_MAX} folders; use fewer.")
        return names


def _refuse_malformed(path: str) -> None:
    if not path:
        raise WorkspaceDenied(
            path, "the path is empty; name a file or folder, like platform/constitution.md."
        )
    if len(path) > PATH_MAX:
        raise WorkspaceDenied(
            path,
            f"the path has {len(path)} characters and at most {PATH_MAX} are taken; use a shorter one.",
        )
    if "\0" in path:
        raise WorkspaceDenied(path, f"{shown(path)} holds a NUL byte, which no file name can; leave it out.")
    try:
        encoded = path.encode()
    except UnicodeEncodeError as error:
        raise WorkspaceDenied(
            path,
            f"{shown(path)} holds half of a surrogate pair, which is no character; write the name as plain text.",
        ) from error
    if max(map(len, encoded.split(b"/"))) > NAME_MAX or len(encoded) >= PATH_MAX:
        raise WorkspaceDenied(
            path,
            f"{shown(path)} is too long; a name has at most {NAME_MAX} bytes and a path {PATH_MAX - 1}.",
        )


def _normalised(path: str) -> tuple[str, ...]:
    absolute = path.startswith("/")
    names: list[str] = []
    for name in path.split("/"):
        if name in {"", "."}:
            continue
        if name != "..":
            names.append(name)
        elif names:
            names.pop()
        elif not absolute:  # above "/" there is only "/"
            raise WorkspaceDenied(
                path, f"{shown(path)} leads above the root; leave out the '..' that goes too far."
            )
    return tuple(names)


def _names(path: str) -> tuple[str, ...]:
    return tuple(name for name in path.split("/") if name)
