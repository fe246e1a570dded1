"""What the daemon can see of the machine that it runs on: room on the disk, open files, memory, the clocks."""

from __future__ import annotations

import os
import resource
import time
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Final

_CGROUPS: Final = Path("/sys/fs/cgroup")
_PROC: Final = Path("/proc")
_UNLIMITED: Final = 1 << 60
"""What version 1 of cgroups writes where there is no limit is larger than this."""


@dataclass(frozen=True, slots=True)
class Memory:
    """Bytes: what this process holds, what it may hold (None where only the machine bounds it), and what is left."""

    resident: int
    limit: int | None
    available: int
    total: int


class Machine:
    """The machine as it is now; every reading is new."""

    def free_bytes(self, folder: Path) -> int:
        """Return the bytes that this user may still write where a folder lies; raises OSError."""
        found = os.statvfs(folder)
        return found.f_bavail * found.f_frsize

    def open_files(self) -> tuple[int, int]:
        """Return how many files and sockets this process has open, and how many it may."""
        allowed = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
        try:
            # The list itself is read through one, which is not counted.
            return len(os.listdir(_PROC / "self" / "fd")) - 1, allowed  # noqa: PTH208 - only counted
        except OSError:
            return allowed, allowed  # there is not one left to read the list with

    def memory(self) -> Memory:
        """Return the memory of this process and of the machine; raises OSError where /proc cannot be read."""
        fields = {}
        for line in (_PROC / "meminfo").read_text(encoding="ascii").splitlines():
            name, _, value = line.partition(":")
            fields[name] = int(value.split()[0]) * 1024
        pages = int((_PROC / "self" / "statm").read_text(encoding="ascii").split()[1])
        return Memory(
            pages * resource.getpagesize(), cgroup_limit(), fields["MemAvailable"], fields["MemTotal"]
        )

    def wall_s(self) -> float:
        """Return the time of day, in seconds since 1970; whoever sets the clock changes it."""
        return time.time()

    def steady_s(self) -> float:
        """Return the seconds since the machine started, also those in which it slept."""
        return time.clock_gettime(time.CLOCK_BOOTTIME)


def cgroup_limit(own: Path = _PROC / "self" / "cgroup", mounted: Path = _CGROUPS) -> int | None:
    """Return the least memory limit, in bytes, of the control groups that this process is in; None for no limit."""
    limits: list[int] = []
    try:
        lines = own.read_text(encoding="utf-8").splitlines()
    except OSError:
        return None
    for line in lines:
        _, controllers, path = line.split(":", 2)
        if not controllers:
            folder, name = mounted, "memory.max"
        elif "memory" in controllers.split(","):
            folder, name = mounted / "memory", "memory.limit_in_bytes"
        else:
            continue
        here = folder / path.strip("/")
        for group in (here, *here.parents):
            if not group.is_relative_to(folder):
                break
            with suppress(OSError, ValueError):  # "max" is no number
                limits.append(int((group / name).read_text(encoding="ascii")))
    return min((limit for limit in limits if limit < _UNLIMITED), default=None)
