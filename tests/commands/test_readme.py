"""What the README promises."""

from __future__ import annotations

import os
import re

from tests.commands.conftest import CHECKOUT

README = (CHECKOUT / "README.md").read_text(encoding="utf-8")


def test_every_file_that_the_map_names_is_there() -> None:
    section = README.split("## Which file answers which question")[1].split("\n## ")[0]
    named = [path for path in re.findall(r"`([^` ]+)`", section) if "/" in path]
    assert len(named) > 20
    assert [path for path in named if not (CHECKOUT / path).exists()] == []


def test_there_are_two_commands_from_a_bare_clone() -> None:
    commands = re.findall(r"^python3 -m venv .*$", README, re.MULTILINE)
    assert len(commands) == 2
    assert commands[0].endswith("agent-runner run")
    assert commands[1].endswith("pytest")


def test_what_the_ci_runs_can_be_run() -> None:
    assert os.access(CHECKOUT / ".ci/run", os.X_OK)
