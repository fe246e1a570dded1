"""How a daemon ends, and what stays readable afterwards."""

from __future__ import annotations

from pathlib import Path

from tests.commands.conftest import AgentRunner, start_daemon, stop_daemon


def test_after_the_end_the_store_is_read_and_the_rest_exits_3(
    agent_runner: AgentRunner, tmp_path: Path
) -> None:
    daemon = start_daemon(tmp_path / "root", tmp_path / "log", "--no-heartbeat", "--backend", "rehearsal")
    root = daemon.root
    assert agent_runner("chat", "-m", "post: written by calli", root=root).code == 0
    agent_runner("mail", "send", "operator", "-s", "note", "-m", "kept", root=root)
    assert stop_daemon(daemon) == 0

    assert not root.runner_file.exists()
    assert agent_runner("status", root=root).code == 3
    assert agent_runner("ledger", "verify", "--json", root=root).json["entries"] > 10
    assert agent_runner("board", "show", "--json", root=root).json[0]["text"] == "written by calli"
    assert agent_runner("mail", "list", "--for", "operator", "--json", root=root).json[0]["body"] == "kept"
    calli = next(
        one for one in agent_runner("agents", "list", "--json", root=root).json if one["id"] == "calli"
    )
    assert calli["session_state"] == "idle"
    assert agent_runner("agents", "show", "calli", "--json", root=root).json["turns"] == 1
