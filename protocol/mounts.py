"""Mounts: the folders under the root that somebody reaches, and which of them a path falls under.

Everything here looks at names only. Names are compared as they are: `Notes.md` and `notes.md` are two files, as they
are on Linux. What a name leads to on the disk is held by `store.workspace`.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Mount:
    """A folder that an agent reaches: `path` is relative to the root (`platform`, `workspaces/users/ann`).

    Raises ValueError for a path that is not relative, plain and normalised.
    """

    path: str
    write: bool

    def __post_init__(self) -> None:
        parts = self.path.split("/")
        if "\0" in self.path or any(part in {"", ".", ".."} for part in parts):
            raise ValueError(
                f"{self.path!r} is no mount; give a folder relative to the root without '.', '..', '//' or a "
                "slash at either end, like workspaces/users/ann",
            )

    @property
    def parts(self) -> tuple[str, ...]:
        """The names of the path, outermost first; at least one."""
        return tuple(self.path.split("/"))


def mount_of(mounts: Iterable[Mount], parts: Sequence[str]) -> Mount | None:
    """Return the mount that a path relative to the root falls under, or None.

    Of mounts that overlap the longest holds; of two with the same path the one that does not let write.
    """
    found: Mount | None = None
    for mount in mounts:
        own = mount.parts
        if tuple(parts[: len(own)]) != own:
            continue
        if found is None or (len(own), not mount.write) > (len(found.parts), not found.write):
            found = mount
    return found


def mounts_beneath(mounts: Iterable[Mount], parts: Sequence[str]) -> tuple[Mount, ...]:
    """Return the mounts that lie strictly beneath a path relative to the root, in the order of their paths."""
    above = tuple(parts)
    beneath = (
        mount for mount in mounts if len(mount.parts) > len(above) and mount.parts[: len(above)] == above
    )
    return tuple(sorted(beneath, key=lambda mount: mount.path))
