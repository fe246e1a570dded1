"""What ends, reloads, freezes, retries and verifies, against a daemon of its own."""

from __future__ import annotations

import json
import os
import select
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from store.root import Lock, Root, RunnerFile
from tests.commands.conftest import (
    CHECKOUT,
    AgentRunner,
    Daemon,
    command_line,
    environment,
    start_daemon,
)

PATIENCE_S = 30


@pytest.fixture
def own(tmp_path: Path) -> Iterator[Daemon]:
    """A daemon that a test may end."""
    running = start_daemon(tmp_path / "root", tmp_path / "log", "--backend", "rehearsal", "--no-heartbeat")
    yield running
    running.process.kill()
    running.process.communicate()


def wait_for(happened: Callable[[], bool], what: str) -> None:
    deadline = time.monotonic() + PATIENCE_S
    while not happened():
        assert time.monotonic() < deadline, f"{what} never happened"
        select.select([], [], [], 0.05)


# --- stop


def test_stop_ends_the_daemon_and_waits_until_it_has_ended(agent_runner: AgentRunner, own: Daemon) -> None:
    told = agent_runner("stop", root=own.root)
    assert (told.code, told.err) == (0, "")
    assert f"(pid {own.process.pid})" in told.out
    assert own.process.wait(timeout=PATIENCE_S) == 0
    again = agent_runner("stop", root=own.root)
    assert (again.code, again.out) == (3, "")
    assert f"--root {own.root.path} run" in again.err


def test_stop_that_waited_long_enough_says_how_to_go_on_and_a_second_one_cuts_turns_off(
    agent_runner: AgentRunner, own: Daemon
) -> None:
    chat = subprocess.Popen(
        command_line(own.root.path, "chat", "lina", "-m", "slow 5000 50"),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env=environment(),
        cwd=CHECKOUT,
    )
    assert chat.stdout is not None
    chat.stdout.readline()
    first = agent_runner("stop", "--timeout", "0.2", root=own.root)
    assert first.code == 1
    assert "has not ended within 0.2 s" in first.err
    assert "stop" in first.err
    assert agent_runner("stop", "--timeout", "9", root=own.root).code == 0
    chat.communicate(timeout=PATIENCE_S)
    turns = agent_runner("sessions", "show", "lina", "--json", root=own.root).json["turns"]
    assert [turn["status"] for turn in turns] == ["interrupted"]


def test_stop_signals_nobody_whom_a_stale_file_names(agent_runner: AgentRunner, root: Root) -> None:
    # The pid of a living process, this one: a SIGTERM would end the tests.
    url = "ws://127.0.0.1:9/ws"
    root.runner_file.write_text(json.dumps({"pid": os.getpid(), "url": url, "started_at": "x"}))
    (root.state / "runner.lock").write_text(f"{os.getpid()}\n")
    assert agent_runner("stop", root=root).code == 3


def test_stop_refuses_a_keeper_that_is_not_the_process_that_it_says(
    agent_runner: AgentRunner, root: Root
) -> None:
    with Lock(root) as lock:
        lock.publish(RunnerFile(os.getpid(), "ws://127.0.0.1:9/ws", "x"))
        (root.state / "runner.lock").write_text("1\n")
        told = agent_runner("stop", root=root)
    assert told.code == 1
    assert "cannot be told from here" in told.err


# --- reload


def test_reload_says_what_it_came_to(agent_runner: AgentRunner, daemon: Daemon) -> None:
    rules, roster = daemon.root.platform / "constitution.yaml", daemon.root.platform / "roster.yaml"
    kept = {path: path.read_text() for path in (rules, roster)}
    assert "nothing has changed" in agent_runner("reload", root=daemon.root).out
    try:
        rules.write_text(kept[rules] + "\nextra: 1\n")
        roster.write_text(kept[roster].replace("kind: role", "kind: rule", 1))
        told = agent_runner("reload", root=daemon.root)
        assert (told.code, told.out) == (78, "")
        lines = told.err.splitlines()
        assert any(line.startswith(f"{rules}:") and "extra" in line for line in lines)
        assert any(line.startswith(f"{roster}:") for line in lines)
        assert "stays in force" in lines[-1]
        as_json = agent_runner("reload", "--json", root=daemon.root)
        assert (as_json.code, as_json.json["changed"], len(as_json.json["problems"])) == (78, False, 2)
    finally:
        for path, text in kept.items():
            path.write_text(text)
    assert agent_runner("reload", root=daemon.root).code == 0


# --- logs


def test_logs_are_readable_lines_and_raw_ones(agent_runner: AgentRunner, daemon: Daemon) -> None:
    told = agent_runner("logs", "-n", "1000", root=daemon.root)
    assert told.code == 0
    ready = next(line for line in told.out.splitlines() if "  ready  " in line)
    assert ready.split()[2:5] == ["info", "daemon", "ready"]
    assert f"pid={daemon.process.pid}" in ready
    assert "\x1b" not in told.out
    raw = [json.loads(line) for line in agent_runner("logs", "--json", root=daemon.root).out.splitlines()]
    assert any(one["event"] == "ready" and one["pid"] == daemon.process.pid for one in raw)
    assert agent_runner("logs", "-n", "1", root=daemon.root).out.count("\n") == 1


def test_logs_follow_over_a_restart(agent_runner: AgentRunner, own: Daemon, tmp_path: Path) -> None:
    following = subprocess.Popen(
        command_line(own.root.path, "logs", "-f", "--json", "-n", "1000"),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=environment(),
        cwd=CHECKOUT,
    )
    assert following.stdout is not None
    seen: list[dict[str, object]] = []

    def read_until(event: str) -> None:
        assert following.stdout is not None
        for line in following.stdout:
            seen.append(json.loads(line))
            if seen[-1]["event"] == event:
                return

    try:
        read_until("ready")
        assert agent_runner("stop", root=own.root).code == 0
        read_until("draining")
        again = start_daemon(own.root.path, tmp_path / "second", "--backend", "rehearsal")
        try:
            read_until("ready")
        finally:
            again.process.kill()
            again.process.communicate()
        assert [one["pid"] for one in seen if one["event"] == "ready"] == [
            own.process.pid,
            again.process.pid,
        ]
    finally:
        following.send_signal(signal.SIGINT)
        following.communicate(timeout=PATIENCE_S)


def test_logs_cannot_drive_the_terminal_and_show_tracebacks(agent_runner: AgentRunner, root: Root) -> None:
    root.log_file.parent.mkdir()
    record = {
        "event": "bad\x1b[2J", "level": "error", "logger": "court", "timestamp": "2026-01-01T00:00:00.5Z",
        "exception": "Traceback\n  ValueError: \x07why", "name": "two words", "count": 2,
    }  # fmt: skip
    root.log_file.write_text(json.dumps(record, ensure_ascii=False) + "\nno json \x1b\n")
    told = agent_runner("logs", root=root).out
    assert told.splitlines() == [
        '2026-01-01 00:00:00  error     court         bad\\x1b[2J  name="two words" count=2',
        "    Traceback",
        "      ValueError: \\x07why",
        "no json \\x1b",
    ]
    assert "\x1b" not in agent_runner("logs", "--json", root=root).out


def test_logs_of_a_root_without_a_log_say_who_writes_it(agent_runner: AgentRunner, root: Root) -> None:
    told = agent_runner("logs", root=root)
    assert (told.code, told.out) == (0, "")
    assert "run" in told.err


# --- freeze, thaw, retry, verify


def test_a_frozen_agent_takes_no_turns_until_it_is_thawed_and_the_file_keeps_every_other_byte(
    agent_runner: AgentRunner, daemon: Daemon
) -> None:
    roster = daemon.root.platform / "roster.yaml"
    before = roster.read_bytes()
    assert agent_runner("agents", "freeze", "scout", root=daemon.root).out == "scout is frozen.\n"
    changed = [
        (old, new)
        for old, new in zip(before.splitlines(), roster.read_bytes().splitlines(), strict=True)
        if old != new
    ]
    assert changed == [(b"    state: live", b"    state: frozen")]
    refused = agent_runner("chat", "scout", "-m", "hello", root=daemon.root)
    assert refused.code == 1
    assert "agent_frozen" in refused.err
    assert "already" in agent_runner("agents", "freeze", "scout", root=daemon.root).out
    assert agent_runner("agents", "thaw", "scout", root=daemon.root).out == "scout is live.\n"
    assert roster.read_bytes() == before
    assert agent_runner("chat", "scout", "-m", "say hello", root=daemon.root).code == 0


def test_a_roster_is_edited_while_the_daemon_is_down(agent_runner: AgentRunner, root: Root) -> None:
    told = agent_runner("agents", "freeze", "reed", root=root)
    assert told.code == 0
    assert "next start" in told.out
    assert agent_runner("agents", "list", "--json", root=root).json[0]["state"] == "frozen"
    unknown = agent_runner("agents", "thaw", "reeed", root=root)
    assert unknown.code == 1
    assert "did you mean reed" in unknown.err


def test_a_roster_that_does_not_load_is_not_edited(agent_runner: AgentRunner, root: Root) -> None:
    roster = root.platform / "roster.yaml"
    roster.write_text(roster.read_text() + "extra: 1\n")
    before = roster.read_bytes()
    told = agent_runner("agents", "freeze", "reed", root=root)
    assert told.code == 78
    assert f"{roster}:" in told.err
    assert roster.read_bytes() == before


def test_retry_of_an_agent_that_is_not_parked_says_so(agent_runner: AgentRunner, daemon: Daemon) -> None:
    told = agent_runner("agents", "retry", "reed", root=daemon.root)
    assert (told.code, told.err) == (0, "")
    assert "was not parked" in told.out
    unknown = agent_runner("agents", "retry", "reeed", root=daemon.root)
    assert unknown.code == 1
    assert "did you mean reed" in unknown.err


def test_verify_runs_a_turn_with_each_agent_and_takes_nobodys_mail(
    agent_runner: AgentRunner, daemon: Daemon
) -> None:
    found = agent_runner("agents", "verify", "--batch", "3", "--json", root=daemon.root)
    assert found.code == 0
    assert len(found.json) == 26
    assert all(one["problem"] is None and one["answer"] for one in found.json)
    assert all(one["session_key"].startswith(f"{one['agent']}:verify:") for one in found.json)
    shown = agent_runner("sessions", "show", found.json[0]["session_key"], "--json", root=daemon.root).json
    assert (shown["state"], shown["mode"], len(shown["turns"])) == ("closed", "oneshot", 1)
    told = agent_runner("agents", "verify", "reed", "veda", root=daemon.root).out
    assert [line.split()[:3] for line in told.splitlines()[1:3]] == [
        ["reed", "mandates/reed.md", "ok"],
        ["veda", "mandates/veda.md", "ok"],
    ]


def test_verify_leaves_the_mail_of_an_agent_unread(agent_runner: AgentRunner, own: Daemon) -> None:
    # A frozen agent keeps its mail; thawed in the file alone, it is verified before it wakes.
    assert agent_runner("agents", "freeze", "scout", root=own.root).code == 0
    sent = agent_runner("mail", "send", "scout", "-s", "x", "-m", "say hello", root=own.root).out.strip()
    frozen = agent_runner("agents", "verify", "scout", "--json", root=own.root)
    assert frozen.code == 1
    assert "agent_frozen" in frozen.json[0]["problem"]
    assert "scout" in frozen.err
    assert agent_runner("agents", "thaw", "scout", root=own.root).code == 0
    verified = agent_runner("agents", "verify", "scout", "--json", root=own.root)
    assert verified.code == 0

    def was_read() -> bool:
        listed = agent_runner("mail", "thread", sent, "--json", root=own.root).json
        return bool(listed[0]["read_by"])

    wait_for(was_read, "scout reading its mail")
    injected = agent_runner("ledger", "show", "--quality", "mailbox_inject", "--json", root=own.root).json
    assert {entry["entity_id"] for entry in injected} == {"scout:cli:local"}
