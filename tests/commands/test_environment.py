from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import nullcontext
from importlib import import_module
from pathlib import Path

import pytest

from actors.commands.__main__ import COMMANDS
from actors.commands.environment import find_root, typed
from store.root import Root, lay_out
from tests.commands.conftest import CHECKOUT, AgentRunner
from tests.support.accounts import unprivileged_folder


@pytest.fixture(autouse=True)
def no_variables(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("AGENT_RUNNER_ROOT", raising=False)


def test_a_checkout_is_its_own_root() -> None:
    assert find_root() == Root(CHECKOUT)


def test_an_installed_program_uses_the_data_folder_of_the_user(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr("actors.commands.environment.checkout", lambda: None)
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path))
    assert find_root() == Root(tmp_path / "agent-runner")


def test_the_variable_goes_before_the_checkout_and_the_flag_before_the_variable(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("AGENT_RUNNER_ROOT", str(tmp_path / "variable"))
    assert find_root() == Root(tmp_path / "variable")
    assert find_root(str(tmp_path / "flag")) == Root(tmp_path / "flag")
    monkeypatch.setenv("AGENT_RUNNER_ROOT", "")
    assert find_root() == Root(CHECKOUT)


def test_a_relative_root_is_seen_from_here(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)
    assert find_root("here") == Root(tmp_path / "here")


def test_root_is_taken_before_and_after_the_command_and_the_last_one_counts(
    agent_runner: AgentRunner, tmp_path: Path
) -> None:
    one, other = Root(tmp_path / "one"), Root(tmp_path / "other")
    lay_out(one)
    lay_out(other)
    roster = other.platform / "roster.yaml"
    roster.write_text(roster.read_text().replace("id: reed\n", "id: rood\n"))
    here, there = ("--root", str(one.path)), ("--root", str(other.path))
    first = {
        words: agent_runner(*words, "--json").json[0]["id"]
        for words in [
            (*there, "agents", "list"),
            ("agents", *there, "list"),
            ("agents", "list", *there),
            (*here, "agents", "list", *there),
            (*there, "agents", *here, "list"),
        ]
    }
    assert list(first.values()) == ["rood", "rood", "rood", "rood", "reed"]


def test_what_is_to_be_typed_names_the_root_only_where_it_would_not_be_found(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    assert typed(Root(CHECKOUT), "run").endswith("run")
    assert "--root" not in typed(Root(CHECKOUT), "run")
    assert typed(Root(tmp_path / "my root"), "run").endswith(f"--root '{tmp_path}/my root' run")
    monkeypatch.setenv("AGENT_RUNNER_ROOT", str(tmp_path))
    assert "--root" not in typed(Root(tmp_path), "run")


def test_the_program_is_named_as_it_was_called(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    program = tmp_path / ".venv/bin/agent-runner"
    program.parent.mkdir(parents=True)
    program.write_text("#!/bin/sh\n")
    program.chmod(0o755)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("sys.argv", [str(program)])
    assert typed(Root(CHECKOUT), "run") == ".venv/bin/agent-runner run"
    monkeypatch.setenv("PATH", str(program.parent))
    assert typed(Root(CHECKOUT), "run") == "agent-runner run"


@pytest.fixture
def closed_root(tmp_path: Path) -> Iterator[Root]:
    """A root that another user keeps to themselves, and this process is not root for as long as it is used."""
    for name in COMMANDS:  # what is imported later, as somebody else, might not be readable
        import_module(f"actors.commands.{name}")
    with nullcontext(tmp_path) if os.geteuid() != 0 else unprivileged_folder() as folder:
        found = Root(folder / "root")
        lay_out(found)
        found.state.chmod(0)
        yield found
        found.state.chmod(0o700)


@pytest.mark.parametrize(
    "words",
    ["run", "stop", "status", "agents list", "sessions list", "mail list", "ledger show", "ledger verify"],
)
def test_a_root_of_somebody_else_is_said_to_be_that(
    agent_runner: AgentRunner, closed_root: Root, words: str
) -> None:
    outcome = agent_runner(*words.split(), root=closed_root)
    assert (outcome.code, outcome.out) == (1, "")
    assert outcome.err.startswith("error: ")
    assert str(closed_root.state) in outcome.err
    assert "run as the user that owns it" in outcome.err


def test_a_key_that_is_gone_ends_the_start_with_one_line_and_no_traceback(
    agent_runner: AgentRunner, tmp_path: Path
) -> None:
    root = Root(tmp_path / "root")
    lay_out(root)
    (root.keys / "sessions.key").unlink()
    outcome = agent_runner("run", "--port", "0", root=root)
    assert (outcome.code, outcome.out) == (1, "")
    assert outcome.err == (
        f"error: cannot read {root.keys / 'sessions.key'}: No such file or directory; run `agent-runner init`\n"
    )
