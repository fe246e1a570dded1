"""Which version of the program this is."""

from __future__ import annotations

import tomllib
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path


def checkout() -> Path | None:
    """Return the folder of the checkout that this code lies in, or None where it is installed."""
    folder = Path(__file__).resolve().parents[1]
    return folder if (folder / "pyproject.toml").is_file() and (folder / "platform").is_dir() else None


@cache
def program_version() -> str:
    """Return the version: that of the checkout, else that of the installed package, else `0`."""
    folder = checkout()
    if folder is not None:
        project = tomllib.loads((folder / "pyproject.toml").read_text(encoding="utf-8"))["project"]
        return str(project["version"])
    try:
        return version("agent-runner")
    except PackageNotFoundError:
        return "0"
