"""`doctor`: what it looks at, what it says of what is wrong, and that it changes nothing."""

from __future__ import annotations

import socket
from pathlib import Path
from typing import Any

import apsw
import pytest

from actors import diagnosis
from store.root import Root
from tests.commands.conftest import AgentRunner, Daemon

LINES = [
    "python", "sqlite", "openat2", "landlock", "bwrap", "names", "root", "constitution", "roster", "mandates",
    "modes", "database", "disk", "key", "port",
]  # fmt: skip


@pytest.fixture
def port() -> str:
    """A port that is free."""
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        return str(taken.getsockname()[1])


def look(agent_runner: AgentRunner, root: Root, port: str, code: int = 0) -> dict[str, list[dict[str, Any]]]:
    found = agent_runner("doctor", "--port", port, "--json", root=root)
    assert found.code == code, found.out
    assert found.json["ok"] is (code == 0)
    lines: dict[str, list[dict[str, Any]]] = {}
    for line in found.json["lines"]:
        assert set(line) == {"name", "state", "text", "fix"}
        assert (line["fix"] is None) == (line["state"] == "ok")
        lines.setdefault(line["name"], []).append(line)
    return lines


def test_a_root_that_was_laid_out_has_nothing_to_mend(
    agent_runner: AgentRunner, root: Root, port: str
) -> None:
    before = sorted(path for path in root.path.rglob("*"))
    lines = look(agent_runner, root, port)
    assert list(lines) == LINES
    assert not [line for found in lines.values() for line in found if line["state"] == "failed"]
    assert sorted(path for path in root.path.rglob("*")) == before
    told = agent_runner("doctor", "--port", port, root=root)
    assert told.code == 0
    assert "Nothing stands in the way" in told.out
    assert [line.split()[1] for line in told.out.splitlines()[: len(LINES)]] == LINES


def test_what_is_no_root_is_told_with_the_command_that_lays_it_out(
    agent_runner: AgentRunner, tmp_path: Path, port: str
) -> None:
    [line] = look(agent_runner, Root(tmp_path / "none"), port, code=1)["root"]
    assert line["state"] == "failed"
    assert f"--root {tmp_path / 'none'} init" in line["fix"]


def test_every_fault_of_the_content_is_a_line_that_fails_with_its_place_and_fix(
    agent_runner: AgentRunner, root: Root, port: str
) -> None:
    (root.platform / "constitution.yaml").write_text("tool_rules: []\nextra: 1\nextra: 2\n")
    (root.platform / "mandates/reed.md").unlink()
    lines = look(agent_runner, root, port, code=1)
    assert f"{root.platform}/constitution.yaml:2: " in lines["constitution"][0]["text"]
    assert len(lines["constitution"]) > 1
    assert "mandates/reed.md" in lines["mandates"][0]["text"]
    assert all(line["fix"] for line in lines["constitution"] + lines["mandates"])
    told = agent_runner("doctor", "--port", port, root=root).out
    assert all(f"{line['text']}. {line['fix']}" in told for line in lines["constitution"] + lines["mandates"])


def test_secrets_that_others_can_read_fail_with_the_chmod_that_mends_them(
    agent_runner: AgentRunner, root: Root, port: str
) -> None:
    root.token_file.chmod(0o640)
    root.keys.chmod(0o755)
    found = look(agent_runner, root, port, code=1)["modes"]
    assert [line["fix"] for line in found] == [f"chmod 700 {root.keys}", f"chmod 600 {root.token_file}"]
    root.token_file.chmod(0o600)
    root.keys.chmod(0o700)
    assert look(agent_runner, root, port)["modes"][0]["state"] == "ok"


def test_a_port_of_another_program_fails_and_that_of_the_own_daemon_does_not(
    agent_runner: AgentRunner, root: Root, daemon: Daemon
) -> None:
    listening = agent_runner("status", "--json", root=daemon.root).json["url"].split(":")[2].split("/")[0]
    [taken] = look(agent_runner, root, listening, code=1)["port"]
    assert "taken" in taken["text"]
    assert "--port" in taken["fix"]
    [own] = look(agent_runner, daemon.root, listening)["port"]
    assert f"pid {daemon.process.pid}" in own["text"]


def test_a_key_that_cannot_be_used_fails_and_none_is_rehearsal(
    agent_runner: AgentRunner, root: Root, port: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert "rehearsal" in look(agent_runner, root, port)["key"][0]["text"]
    monkeypatch.setenv("ANTHROPIC_API_KEY", "not a key")
    assert look(agent_runner, root, port, code=1)["key"][0]["fix"]
    monkeypatch.setenv("ANTHROPIC_API_KEY", "key-of-a-test")
    [line] = look(agent_runner, root, port)["key"]
    assert line["state"] == "ok"
    assert "key-of-a-test" not in line["text"]
    monkeypatch.delenv("ANTHROPIC_API_KEY")
    monkeypatch.setenv("AGENT_RUNNER_BACKEND", "anthropic")
    assert look(agent_runner, root, port, code=1)["key"][0]["state"] == "failed"


def test_another_package_of_a_name_of_ours_fails(
    agent_runner: AgentRunner, root: Root, port: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    packages = tmp_path / "site-packages"
    (packages / "store").mkdir(parents=True)
    (packages / "store/__init__.py").write_text("")
    monkeypatch.syspath_prepend(packages)
    [line] = look(agent_runner, root, port, code=1)["names"]
    assert str(packages / "store") in line["text"]
    assert "venv" in line["fix"]
    record = packages / "shop-1.0.dist-info"
    record.mkdir()
    (record / "METADATA").write_text("Metadata-Version: 2.1\nName: shop\nVersion: 1.0\n")
    (record / "RECORD").write_text("store/__init__.py,,\n")
    [line] = look(agent_runner, root, port, code=1)["names"]
    assert line["text"] == "store is also brought by shop"


def test_what_the_kernel_and_the_machine_lack_are_warnings(
    agent_runner: AgentRunner, root: Root, port: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(diagnosis, "has_openat2", lambda: False)
    monkeypatch.setattr(diagnosis, "landlock_abi", lambda: 0)
    monkeypatch.setenv("PATH", str(tmp_path))
    lines = look(agent_runner, root, port)
    assert [lines[name][0]["state"] for name in ("openat2", "landlock", "bwrap")] == ["warning"] * 3
    assert "no shell tool" in lines["bwrap"][0]["text"]
    assert "(3 warnings)" in agent_runner("doctor", "--port", port, root=root).out


def test_what_is_too_old_or_too_full_fails(
    agent_runner: AgentRunner, root: Root, port: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(diagnosis, "PYTHON_MIN", (9, 9))
    monkeypatch.setattr(diagnosis, "SQLITE_MIN", (9, 9, 9))
    monkeypatch.setattr(diagnosis, "FREE_BYTES_MIN", 2**80)
    lines = look(agent_runner, root, port, code=1)
    assert [lines[name][0]["state"] for name in ("python", "sqlite", "disk")] == ["failed"] * 3


def test_a_database_of_an_earlier_version_is_for_the_next_start_to_mend(
    agent_runner: AgentRunner, stored: Root, port: str
) -> None:
    database = apsw.Connection(str(stored.database))
    database.execute("PRAGMA user_version = 1")
    database.close()
    [line] = look(agent_runner, stored, port)["database"]
    assert line["state"] == "warning"
    assert "schema version 1" in line["text"]


def test_a_file_that_is_no_database_fails(agent_runner: AgentRunner, root: Root, port: str) -> None:
    root.database.write_bytes(b"this is not SQLite" * 400)
    root.database.chmod(0o600)
    [line] = look(agent_runner, root, port, code=1)["database"]
    assert "ledger verify" in line["fix"]
