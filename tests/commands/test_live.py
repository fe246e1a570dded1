"""The commands against a running daemon, on the rehearsal backend."""

from __future__ import annotations

import json
import select
import signal
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from store.root import Root
from tests.commands.conftest import CHECKOUT, AgentRunner, Daemon, command_line, environment
from tests.commands.terminal import Terminal

PATIENCE_S = 30
AGENT_FIELDS = {"id", "role", "kind", "state", "session_state", "unread", "last_wake", "restarts", "model"}


def wait_for(happened: Callable[[], bool], what: str) -> None:
    """Look again and again until it has happened; a limit, and not a measure, of time."""
    deadline = time.monotonic() + PATIENCE_S
    while not happened():
        assert time.monotonic() < deadline, f"{what} never happened"
        select.select([], [], [], 0.05)


# --- run


def test_run_lays_out_the_root_and_says_where_it_listens_and_what_to_type(daemon: Daemon) -> None:
    runner = json.loads(daemon.root.runner_file.read_text())
    assert set(runner) == {"pid", "url", "started_at"}
    assert runner["pid"] == daemon.process.pid
    assert (
        daemon.ready == f"Ready: {runner['url']} (backend rehearsal; 26 agents; pid {daemon.process.pid})\n"
    )
    assert runner["url"].endswith("/ws")
    assert daemon.greeting[0] == f"Laid out {daemon.root.path}:\n"
    greeting = "".join(daemon.greeting)
    assert f"--root {daemon.root.path} chat calli -m" in greeting
    assert "\x1b" not in greeting


def test_a_second_daemon_on_the_root_is_refused_naming_the_first(daemon: Daemon) -> None:
    second = subprocess.run(
        command_line(daemon.root.path, "run", "--port", "0"),
        capture_output=True,
        text=True,
        env=environment(),
        cwd=CHECKOUT,
        timeout=60,
        check=False,
    )
    assert (second.returncode, second.stdout) == (1, "")
    assert f"pid {daemon.process.pid}" in second.stderr
    assert "Traceback" not in second.stderr
    assert daemon.root.runner_file.exists()


def test_a_port_that_is_taken_is_told_with_a_way_out(daemon: Daemon, tmp_path: Path) -> None:
    port = json.loads(daemon.root.runner_file.read_text())["url"].split(":")[2].split("/")[0]
    refused = subprocess.run(
        command_line(tmp_path / "root", "run"),
        capture_output=True,
        text=True,
        env=environment(AGENT_RUNNER_PORT=port),
        cwd=CHECKOUT,
        timeout=60,
        check=False,
    )
    assert refused.returncode == 1
    assert f"port {port}" in refused.stderr
    assert "--port" in refused.stderr
    assert "Traceback" not in refused.stderr


def test_a_root_where_nobody_may_write_is_told(agent_runner: AgentRunner, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    told = agent_runner("run", "--port", "0", root=Root(tmp_path / "file/root"))
    assert told.code == 1
    assert "cannot lay out" in told.err


# --- status and agents


def test_status_shows_the_running_daemon(agent_runner: AgentRunner, daemon: Daemon) -> None:
    status = agent_runner("status", "--json", root=daemon.root).json
    assert status["pid"] == daemon.process.pid
    assert status["backend"]["name"] == "rehearsal"
    assert len(status["agents"]) == 26
    told = agent_runner("status", root=daemon.root).out
    assert f"(pid {daemon.process.pid}, " in told
    assert "26 standing" in told
    assert "\nheartbeat     next at 20" in told or "\nheartbeat     none\n" in told


def test_agents_list_has_the_shape_of_the_specification(agent_runner: AgentRunner, daemon: Daemon) -> None:
    agents = agent_runner("agents", "list", "--json", root=daemon.root).json
    assert len(agents) == 26
    assert all(set(agent) == AGENT_FIELDS for agent in agents)
    lines = agent_runner("agents", "list", root=daemon.root).out.splitlines()
    assert len(lines) == 27
    assert lines[1].split()[:3] == ["reed", "infrastructure-steward", "live"]
    assert agent_runner("agents", "show", "reed", "--json", root=daemon.root).json["parked"] is False


# --- chat


def test_chat_streams_text_thinking_tool_calls_and_verdicts(
    agent_runner: AgentRunner, daemon: Daemon
) -> None:
    told = agent_runner(
        "chat",
        "calli",
        "-m",
        "think about rain then read platform/index.md then say that is all",
        root=daemon.root,
    )
    assert told.code == 0
    places = [
        told.out.index(words)
        for words in (
            "the court offers",
            'tool read_file {"path": "platform/index.md"}',
            "allowed read_file (",
            "  | # Index of the shared content",
            "that is all",
            "tokens in",
        )
    ]
    assert places == sorted(places)
    assert "rain" in told.out
    assert "\x1b" not in told.out


def test_chat_shows_what_the_court_blocks(agent_runner: AgentRunner, daemon: Daemon) -> None:
    told = agent_runner("chat", "stranger", "-m", "mail reed: let me in", root=daemon.root)
    assert told.code == 0
    assert "withheld spawn_subagent: " in told.out
    assert "blocked send_message: Mail from a guest goes to cora" in told.out
    assert "'stranger' is not in the roster" in told.err


def test_chat_speaks_in_the_session_of_the_agent(agent_runner: AgentRunner, daemon: Daemon) -> None:
    assert agent_runner("chat", "veda", "-m", "say hello", root=daemon.root).code == 0
    turns = agent_runner(
        "ledger", "show", "--session", "veda:cli:local", "--quality", "turn", "--json", root=daemon.root
    ).json
    assert [(turn["actor"], turn["payload"]["status"]) for turn in turns] == [("veda", "complete")]


def test_chat_talks_with_calli_unless_told_otherwise(agent_runner: AgentRunner, daemon: Daemon) -> None:
    assert "Calli" in agent_runner("chat", "-m", "who are you?", root=daemon.root).out


def test_a_turn_that_fails_exits_1_with_its_code(agent_runner: AgentRunner, daemon: Daemon) -> None:
    told = agent_runner("chat", "calli", "-m", "fail", root=daemon.root)
    assert told.code == 1
    assert "I begin" in told.out
    assert "backend_error" in told.err


def test_chat_takes_lines_from_a_pipe_and_fails_if_one_failed(daemon: Daemon) -> None:
    done = subprocess.run(
        command_line(daemon.root.path, "chat", "calli"),
        input="say one\n\nfail\nsay two\n",
        capture_output=True,
        text=True,
        env=environment(),
        cwd=CHECKOUT,
        timeout=60,
        check=False,
    )
    assert done.returncode == 1
    answers = [line for line in done.stdout.splitlines() if line in ("one", "two")]
    assert answers == ["one", "two"]
    assert "backend_error" in done.stderr


def test_ctrl_c_stops_the_turn_and_the_talk_goes_on(agent_runner: AgentRunner, daemon: Daemon) -> None:
    terminal = Terminal("chat", "lina", root=daemon.root)
    terminal.read_until("> ")
    terminal.type("slow 2000 50\n")
    terminal.read_until("word3")
    terminal.process.send_signal(signal.SIGINT)
    terminal.read_until("ended: cancelled")
    terminal.read_until("> ")
    terminal.type("say still here\n")
    terminal.read_until("\r\nstill here")
    terminal.read_until("> ")
    terminal.type("\x04")
    assert terminal.read_to_end() == 0
    turns = agent_runner(
        "ledger", "show", "--session", "lina:cli:local", "--quality", "turn", "--json", root=daemon.root
    ).json
    assert [turn["payload"]["status"] for turn in turns] == ["cancelled", "complete"]


def test_a_cancelled_message_of_one_turn_says_so(daemon: Daemon) -> None:
    terminal = Terminal("chat", "naga", "-m", "slow 2000 50", root=daemon.root)
    terminal.read_until("word3")
    terminal.process.send_signal(signal.SIGINT)
    terminal.read_until("ended: cancelled")
    terminal.read_to_end()
    assert "Traceback" not in terminal.seen


def test_colours_are_for_terminals_and_not_with_no_color(daemon: Daemon) -> None:
    coloured = Terminal("chat", "calli", "-m", "list platform", root=daemon.root)
    assert coloured.read_to_end() == 0
    assert "\x1b[" in coloured.seen
    plain = Terminal("chat", "calli", "-m", "list platform", root=daemon.root, NO_COLOR="1")
    assert plain.read_to_end() == 0
    assert "\x1b" not in plain.seen
    table = Terminal("agents", "list", root=daemon.root, NO_COLOR="1")
    assert table.read_to_end() == 0
    assert "\x1b" not in table.seen
    assert "infrastructure-steward" in table.seen


# --- mail and board


def test_mail_wakes_its_reader_and_is_then_read(agent_runner: AgentRunner, daemon: Daemon) -> None:
    sent = agent_runner("mail", "send", "reed", "-s", "hello", "-m", "say I am awake", root=daemon.root)
    assert sent.code == 0

    def was_read() -> bool:
        listed = agent_runner("mail", "list", "--for", "reed", "--json", root=daemon.root).json
        return any(one["id"] == sent.out.strip() and one["read"] is True for one in listed)

    wait_for(was_read, "reed reading its mail")
    agents = agent_runner("agents", "list", "--json", root=daemon.root).json
    assert agents[0]["last_wake"] is not None
    assert agents[0]["unread"] == 0


def test_mail_is_sent_as_the_operator_or_as_somebody(agent_runner: AgentRunner, daemon: Daemon) -> None:
    agent_runner("mail", "send", "scout", "-s", "a", "-m", "x", root=daemon.root)
    agent_runner("mail", "send", "scout", "-s", "b", "-m", "x", "--from", "veda", root=daemon.root)
    listed = agent_runner("mail", "list", "--for", "scout", "--json", root=daemon.root).json
    assert [(one["sender"], one["subject"]) for one in listed] == [("operator", "a"), ("veda", "b")]


def test_mail_to_nobody_is_refused_with_a_hint(agent_runner: AgentRunner, daemon: Daemon) -> None:
    told = agent_runner("mail", "send", "reeed", "-s", "x", "-m", "y", root=daemon.root)
    assert (told.code, told.out) == (1, "")
    assert "did you mean reed" in told.err


def test_a_post_is_on_the_board_on_one_line(agent_runner: AgentRunner, daemon: Daemon) -> None:
    posted = agent_runner("board", "post", "power cut\nat \x1b[31msix", root=daemon.root)
    assert (posted.code, posted.out) == (0, "[operator] power cut at [31msix\n")
    assert (
        agent_runner("board", "show", "--json", root=daemon.root).json[-1]["text"] == "power cut at [31msix"
    )
    assert agent_runner("board", "post", " \n ", root=daemon.root).code == 1


# --- what is wrong while it runs


def test_content_that_does_not_load_is_shown_by_status(agent_runner: AgentRunner, daemon: Daemon) -> None:
    rules = daemon.root.platform / "constitution.yaml"
    kept = rules.read_text()
    rules.write_text(kept + "extra: 1\n")
    try:
        daemon.process.send_signal(signal.SIGHUP)

        def refused() -> bool:
            return "constitution.yaml:" in agent_runner("status", root=daemon.root).out

        wait_for(refused, "the refusal")
        problem = agent_runner("status", "--json", root=daemon.root).json["constitution"]["problem"]
        assert "extra" in problem
        assert len(agent_runner("agents", "list", "--json", root=daemon.root).json) == 26
    finally:
        rules.write_text(kept)


def test_a_wrong_token_fails(agent_runner: AgentRunner, daemon: Daemon) -> None:
    kept = daemon.root.token_file.read_text()
    daemon.root.token_file.write_text("wrong" * 8 + "\n")
    try:
        told = agent_runner("status", root=daemon.root)
        assert told.code == 1
        assert "unauthorized" in told.err
    finally:
        daemon.root.token_file.write_text(kept)


def test_the_ledger_verifies_while_the_daemon_writes_it(agent_runner: AgentRunner, daemon: Daemon) -> None:
    found = agent_runner("ledger", "verify", "--json", root=daemon.root)
    assert (found.code, found.json["ok"]) == (0, True)
    assert found.json["entries"] > 0


@pytest.mark.parametrize(
    "words", [("ledger", "show"), ("mail", "list"), ("board", "show"), ("agents", "list")]
)
def test_reads_are_plain_where_nobody_watches(
    agent_runner: AgentRunner, daemon: Daemon, words: tuple[str, ...]
) -> None:
    told = agent_runner(*words, root=daemon.root)
    assert told.code == 0
    assert "\x1b" not in told.out
