"""Lets a test see the system as somebody who is not root."""

import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

NOBODY = 65534


@contextmanager
def unprivileged_folder() -> Iterator[Path]:
    """Give a folder of its own and, while it is used, let this process act as `nobody`; skips where it is not root."""
    if os.geteuid() != 0:
        pytest.skip("this run is an unprivileged user's already")
    groups, group = os.getgroups(), os.getegid()
    os.setgroups([])
    os.setegid(NOBODY)
    os.seteuid(NOBODY)
    folder: Path | None = None
    try:
        try:
            folder = Path(tempfile.mkdtemp(prefix="unprivileged-"))
        except PermissionError:
            pytest.skip("an unprivileged user cannot write to the folder for temporary files")
        yield folder
    finally:
        os.seteuid(0)
        os.setegid(group)
        os.setgroups(groups)
        if folder is not None:
            shutil.rmtree(folder)
