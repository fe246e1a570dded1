"""What the kernel of this machine offers to keep agents inside their folders."""

from __future__ import annotations

import ctypes
import sys
from typing import Final

from store.confinement import openat2_beneath, strongest

_LANDLOCK_CREATE_RULESET: Final = 444  # the same number on every architecture, but alpha
_CREATE_RULESET_VERSION: Final = 1


def has_openat2() -> bool:
    """Return whether paths are confined by the kernel in one call (Linux 5.6), and not name by name."""
    return strongest() is openat2_beneath


def landlock_abi() -> int:
    """Return the version of Landlock that the kernel enforces (1 is Linux 5.13), 0 where it has none or it is off."""
    if not sys.platform.startswith("linux"):
        return 0
    call = ctypes.CDLL(None, use_errno=True).syscall
    call.restype = ctypes.c_long
    call.argtypes = (ctypes.c_long, ctypes.c_void_p, ctypes.c_size_t, ctypes.c_uint32)
    return max(0, int(call(_LANDLOCK_CREATE_RULESET, None, 0, _CREATE_RULESET_VERSION)))
