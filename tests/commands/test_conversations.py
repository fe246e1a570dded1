"""Sessions, history, usage and the operator's mail: what they show of a daemon that has worked, and closing."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from store.clock import utc_now
from store.root import Root
from tests.commands.conftest import (
    CHECKOUT,
    AgentRunner,
    Daemon,
    command_line,
    environment,
    start_daemon,
    stop_daemon,
)


@pytest.fixture(scope="module")
def worked(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Daemon]:
    """A daemon in which calli took three turns and lina one; the tests of this module only look, or close."""
    folder = tmp_path_factory.mktemp("worked")
    running = start_daemon(folder / "root", folder / "log", "--backend", "rehearsal")
    yield running
    assert stop_daemon(running) == 0


@pytest.fixture(scope="module", autouse=True)
def turns(worked: Daemon) -> None:
    lines = "read platform/index.md then say done\nthink about rain then say wet\nread platform/nothing.md\n"
    for agent, typed in (("calli", lines), ("lina", "mail operator about \x1b[31mred: look at me\n")):
        subprocess.run(
            command_line(worked.root.path, "chat", agent),
            input=typed,
            text=True,
            env=environment(),
            cwd=CHECKOUT,
            capture_output=True,
            check=True,
        )


# --- sessions


def test_sessions_are_listed_the_last_active_first(agent_runner: AgentRunner, worked: Daemon) -> None:
    listed = agent_runner("sessions", "list", "--json", root=worked.root).json
    assert [(one["session_key"], one["turns"]) for one in listed[:2]] == [
        ("lina:cli:local", 1),
        ("calli:cli:local", 3),
    ]
    assert {one["state"] for one in listed} == {"idle"}
    assert len(agent_runner("sessions", "list", "--limit", "3", "--json", root=worked.root).json) == 3
    only = agent_runner("sessions", "list", "--agent", "calli", root=worked.root).out.splitlines()
    assert only[0].split()[:4] == ["KEY", "STATE", "MODE", "OWNER"]
    assert [line.split()[:3] for line in only[1:]] == [["calli:cli:local", "idle", "persistent"]]


def test_a_session_is_shown_with_its_turns(agent_runner: AgentRunner, worked: Daemon) -> None:
    shown = agent_runner("sessions", "show", "calli:cli:local", "--json", root=worked.root).json
    assert [(turn["seq"], turn["status"]) for turn in shown["turns"]] == [
        (0, "complete"), (1, "complete"), (2, "complete"),
    ]  # fmt: skip
    assert all(turn["usage"]["output_tokens"] > 0 for turn in shown["turns"])
    told = agent_runner("sessions", "show", "calli", "--limit", "2", root=worked.root).out
    assert "the last 2 of 3 turns" in told
    assert shown["turns"][2]["id"][:12] in told
    assert shown["turns"][0]["id"][:12] not in told


def test_a_session_that_is_not_there_is_told_with_the_next_step(
    agent_runner: AgentRunner, worked: Daemon
) -> None:
    for words in (("sessions", "show"), ("history", "show"), ("sessions", "close")):
        told = agent_runner(*words, "nobody:ws:1", root=worked.root)
        assert (told.code, told.out) == (1, "")
        assert "sessions list" in told.err


def test_a_session_is_closed_and_the_reason_is_in_the_ledger(
    agent_runner: AgentRunner, worked: Daemon
) -> None:
    assert agent_runner("chat", "stranger", "-m", "say hello", root=worked.root).code == 0
    key = "stranger:cli:local"
    assert agent_runner("sessions", "close", key, "--reason", "enough", root=worked.root).code == 0
    closed = agent_runner("sessions", "list", "--state", "closed", "--json", root=worked.root).json
    assert [one["session_key"] for one in closed] == [key]
    assert key not in agent_runner("sessions", "list", "--state", "open", root=worked.root).out
    [entry] = agent_runner(
        "ledger", "show", "--session", key, "--quality", "session_lifecycle", "--limit", "1", "--json",
        root=worked.root,
    ).json  # fmt: skip
    assert entry["payload"]["event"] == "closed"
    assert entry["payload"]["reason"] == "enough"


# --- history


def test_history_shows_words_thoughts_calls_and_results(agent_runner: AgentRunner, worked: Daemon) -> None:
    told = agent_runner("history", "show", "calli", root=worked.root).out
    places = [
        told.index(words)
        for words in (
            "turn 0  ",
            "  user: read platform/index.md then say done",
            '  tool read_file {"path": "platform/index.md"}',
            "  | # Index of the shared content",
            "--full shows all)",
            "turn 1  ",
            "  ~ ",
            "  calli: wet",
            "turn 2  ",
        )
    ]
    assert places == sorted(places)
    assert "\x1b" not in told
    full = agent_runner("history", "show", "calli", "--turn", "0", "--full", root=worked.root).out
    assert "--full" not in full
    assert "turn 1" not in full
    last_line = (worked.root.platform / "index.md").read_text().splitlines()[-1]
    assert last_line in full


def test_history_is_limited_to_the_newest_turns_or_one(agent_runner: AgentRunner, worked: Daemon) -> None:
    newest = agent_runner(
        "history", "show", "calli:cli:local", "--limit", "1", "--json", root=worked.root
    ).json
    assert [turn["seq"] for turn in newest] == [2]
    roles = [message["role"] for message in newest[0]["messages"]]
    assert roles[0] == "user"
    results = [
        block
        for message in newest[0]["messages"]
        if isinstance(message["content"], list)
        for block in message["content"]
        if block["type"] == "tool_result"
    ]
    assert [block["is_error"] for block in results] == [True]
    by_id = agent_runner(
        "history", "show", "calli", "--turn", newest[0]["turn_id"][:10], "--json", root=worked.root
    ).json
    assert by_id == newest
    none = agent_runner("history", "show", "calli", "--turn", "77", root=worked.root)
    assert none.code == 1
    assert "sessions show" in none.err


# --- usage


def test_usage_adds_up_the_same_by_agent_day_and_session(agent_runner: AgentRunner, worked: Daemon) -> None:
    by = {
        name: agent_runner("usage", "--by", name, "--json", root=worked.root).json
        for name in ("agent", "day", "session")
    }
    assert [one["day"] for one in by["day"]] == [utc_now().date().isoformat()]
    assert {"calli", "lina"} <= {one["agent"] for one in by["agent"]}
    assert {"calli:cli:local", "lina:cli:local"} <= {one["session"] for one in by["session"]}
    sums = {name: sum(one["total_tokens"] for one in found) for name, found in by.items()}
    assert sums["agent"] == sums["day"] == sums["session"] > 0
    assert all(
        one["total_tokens"] == one["input_tokens"] + one["output_tokens"]
        for found in by.values()
        for one in found
    )
    lines = agent_runner("usage", root=worked.root).out.splitlines()
    assert lines[0].split() == ["AGENT", "INPUT", "OUTPUT", "TOTAL"]
    assert lines[-1].split()[-1] == f"{sums['agent']:,}"


def test_usage_of_nothing_says_so(agent_runner: AgentRunner, stored: Root) -> None:
    assert agent_runner("usage", "--json", root=stored).json == []
    assert "Nothing was spent" in agent_runner("usage", root=stored).out


# --- status and mail


def test_status_has_the_size_of_the_database(agent_runner: AgentRunner, worked: Daemon) -> None:
    found = agent_runner("status", "--json", root=worked.root).json
    assert found["database"]["bytes"] >= worked.root.database.stat().st_size > 0
    assert " bytes" in agent_runner("status", root=worked.root).out


def test_the_operators_mail_is_read_once(agent_runner: AgentRunner, worked: Daemon) -> None:
    waiting = agent_runner("mail", "list", "--for", "operator", "--unread", "--json", root=worked.root).json
    assert [(one["sender"], one["read"]) for one in waiting] == [("lina", False)]
    told = agent_runner("mail", "read", root=worked.root)
    assert told.code == 0
    assert "    look at me" in told.out
    assert "\x1b" not in told.out
    assert agent_runner("mail", "read", root=worked.root).out == "No unread mail.\n"
    again = agent_runner("mail", "read", waiting[0]["id"][:8], "--json", root=worked.root).json
    assert [one["id"] for one in again] == [waiting[0]["id"]]
    listed = agent_runner("mail", "list", "--for", "operator", "--json", root=worked.root).json
    assert [one["read"] for one in listed] == [True]


def test_an_answer_goes_on_with_its_thread(agent_runner: AgentRunner, worked: Daemon) -> None:
    [first] = agent_runner("mail", "list", "--for", "operator", "--json", root=worked.root).json
    sent = agent_runner(
        "mail", "send", "lina", "-s", "re", "-m", "say seen", "--thread", first["id"][:9], root=worked.root
    )
    assert sent.code == 0
    thread = agent_runner("mail", "thread", sent.out.strip(), "--json", root=worked.root).json
    assert [one["id"] for one in thread][:2] == [first["id"], sent.out.strip()]


# --- and when it is down


def test_all_of_it_is_readable_afterwards(agent_runner: AgentRunner, tmp_path: Path) -> None:
    daemon = start_daemon(tmp_path / "root", tmp_path / "log", "--backend", "rehearsal", "--no-heartbeat")
    assert agent_runner("chat", "calli", "-m", "say kept", root=daemon.root).code == 0
    daemon.process.kill()
    daemon.process.communicate()
    root = daemon.root
    assert "kept" in agent_runner("history", "show", "calli", root=root).out
    assert agent_runner("usage", "--json", root=root).json[0]["agent"] == "calli"
    assert agent_runner("sessions", "list", "--state", "running", "--json", root=root).json == []
    assert len(agent_runner("sessions", "list", "--state", "idle", "--json", root=root).json) == 26
    assert agent_runner("logs", "-n", "5", root=root).out != ""
