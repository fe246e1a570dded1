"""`backup` and `restore` as they are typed: what they say, and with which code they end."""

from __future__ import annotations

import json
import os
import pty
import subprocess
from pathlib import Path

from store.root import Lock, Root
from tests.commands.conftest import CHECKOUT, AgentRunner, command_line, environment


def test_a_backup_says_what_is_in_it_and_a_restore_what_it_did(
    agent_runner: AgentRunner, stored: Root, tmp_path: Path
) -> None:
    out = str(tmp_path / "out.tar")
    made = agent_runner("backup", out, root=stored)
    assert (made.code, made.err) == (0, "")
    assert made.out.startswith(f"ok: {stored.path} is in {out} (")
    assert "  ledger       0 entries\n" in made.out
    assert "  secrets      none\n" in made.out
    assert f"restore {out}` into another root" not in made.out
    fingerprint = made.out.partition("fingerprint  ")[2][:64]

    checked = agent_runner("restore", "--check", "--json", out)
    assert checked.json == {
        "ok": True,
        "fingerprint": fingerprint,
        "made_at": checked.json["made_at"],
        "program": checked.json["program"],
        "schema_version": checked.json["schema_version"],
        "entries": 0,
        "last_cid": None,
        "files": checked.json["files"],
        "workspaces": True,
        "secrets": False,
    }
    other = Root(tmp_path / "other")
    assert agent_runner("restore", "--check", out, root=other).code == 0
    assert not other.path.exists()
    restored = agent_runner("restore", out, "--fingerprint", fingerprint, root=other)
    assert (restored.code, restored.err) == (0, "")
    assert f"ok: {other.path} holds what was in {out}" in restored.out
    assert f"A new operator's token is in {other.token_file}" in restored.out
    assert agent_runner("ledger", "verify", root=other).code == 0
    again = agent_runner("restore", out, "--json", root=other)
    assert Path(again.json["aside"]).is_dir()
    assert again.json["warnings"] == []


def test_a_backup_as_json(agent_runner: AgentRunner, stored: Root, tmp_path: Path) -> None:
    out = tmp_path / "out.tar"
    found = agent_runner("backup", str(out), "--json", "--secrets", "--no-workspaces", root=stored).json
    assert found["path"] == str(out)
    assert found["bytes"] == out.stat().st_size
    assert (found["entries"], found["last_cid"], found["left_out"]) == (0, None, [])
    assert (found["workspaces"], found["secrets"]) == (False, True)
    assert len(found["fingerprint"]) == 64


def test_refusals_say_why_and_exit_1(agent_runner: AgentRunner, stored: Root, tmp_path: Path) -> None:
    out = tmp_path / "out.tar"
    assert agent_runner("backup", str(out), root=stored).code == 0
    taken = agent_runner("backup", str(out), root=stored)
    assert (taken.code, taken.err) == (
        1,
        f"error: {out} exists; name another file, or replace it with --force\n",
    )
    assert agent_runner("backup", str(out), "--force", root=stored).code == 0
    with Lock(stored):
        kept = agent_runner("restore", str(out), root=stored)
    assert kept.code == 1
    assert f"is kept by the daemon with pid {os.getpid()}; stop it first" in kept.err
    os.truncate(out, out.stat().st_size // 2)
    cut = agent_runner("restore", str(out), root=stored)
    assert (cut.code, "cut" in cut.err) == (1, True)
    never = agent_runner("backup", str(tmp_path / "b.tar"), root=Root(tmp_path / "never"))
    assert (never.code, "no daemon has run there" in never.err) == (1, True)


def test_a_restore_that_was_cut_off_is_said_by_what_reads(agent_runner: AgentRunner, stored: Root) -> None:
    plan = {"staged": "restore-x", "aside": "replaced-x", "moves": []}
    stored.restore_plan.write_text(json.dumps(plan))
    said = agent_runner("ledger", "verify", root=stored)
    assert (said.code, "was cut off" in said.err) == (1, True)


def see(line: list[str]) -> str:
    """Run a command on a terminal of its own; return what appeared there."""
    master, slave = pty.openpty()
    process = subprocess.Popen(
        line, stdin=slave, stdout=slave, stderr=slave, env=environment(TERM="xterm-256color"), cwd=CHECKOUT
    )
    os.close(slave)
    seen = b""
    try:
        while piece := os.read(master, 65536):
            seen += piece
    except OSError:
        pass  # how Linux says that nobody holds the other end any more
    os.close(master)
    assert process.wait(timeout=60) == 0, seen
    return seen.decode()


def test_a_bar_is_drawn_on_a_terminal_and_nowhere_else(stored: Root, tmp_path: Path) -> None:
    line = command_line(stored.path, "backup", str(tmp_path / "a.tar"))
    plain = subprocess.run(
        line, capture_output=True, text=True, env=environment(), cwd=CHECKOUT, check=True, timeout=60
    )
    assert plain.stderr == ""
    seen = see(command_line(stored.path, "backup", str(tmp_path / "b.tar")))
    assert "database" in seen
    assert "read back" in seen
