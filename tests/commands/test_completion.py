"""Completion: the scripts, and what they are answered."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from actors.commands.__main__ import COMMANDS
from tests.commands.conftest import CHECKOUT, AgentRunner, environment


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_the_script_of_each_shell_asks_this_program(agent_runner: AgentRunner, shell: str) -> None:
    told = agent_runner("completion", shell)
    assert told.code == 0
    assert f"_AGENT_RUNNER_COMPLETE={shell}_complete" in told.out
    assert "agent-runner" in told.out


@pytest.mark.parametrize(
    ("words", "place", "expected"),
    [
        ("agent-runner ", "1", set(COMMANDS)),
        ("agent-runner sessions ", "2", {"list", "show", "close"}),
        ("agent-runner usage --by ", "3", {"agent", "day", "session"}),
    ],
)
def test_what_could_stand_there_is_answered(
    agent_runner: AgentRunner,
    monkeypatch: pytest.MonkeyPatch,
    words: str,
    place: str,
    expected: set[str],
) -> None:
    monkeypatch.setenv("_AGENT_RUNNER_COMPLETE", "bash_complete")
    monkeypatch.setenv("COMP_WORDS", words)
    monkeypatch.setenv("COMP_CWORD", place)
    told = agent_runner()
    assert told.code == 0
    assert {line.split(",")[1] for line in told.out.splitlines()} == expected


@pytest.mark.skipif(shutil.which("bash") is None, reason="there is no bash")
def test_bash_completes_with_the_script(agent_runner: AgentRunner, tmp_path: Path) -> None:
    program = tmp_path / "agent-runner"
    program.write_text(f'#!/bin/sh\nexec {sys.executable} -m actors.commands "$@"\n')
    program.chmod(0o755)
    script = tmp_path / "script"
    script.write_text(agent_runner("completion", "bash").out)
    typed = f"""
        PATH={tmp_path}:$PATH; . {script}
        COMP_WORDS=(agent-runner ledger ver); COMP_CWORD=2
        _agent_runner_completion agent-runner; echo "${{COMPREPLY[@]}}"
    """
    done = subprocess.run(
        ["bash", "--norc", "-c", typed],
        capture_output=True,
        text=True,
        env=environment(),
        cwd=CHECKOUT,
        check=True,
    )
    assert done.stdout.split() == ["verify"]
