"""`agent-runner tree`: how a tree is drawn, and what a running daemon shows."""

from __future__ import annotations

import json
import select
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from actors.commands.output import age
from actors.commands.tree import rows_of, summary
from tests.commands.conftest import (
    CHECKOUT,
    AgentRunner,
    Daemon,
    command_line,
    environment,
    start_daemon,
)
from tests.commands.terminal import Terminal
from tests.support.bad_agent import AGENT

PATIENCE_S = 30
NODE_FIELDS = {
    "id", "path", "actor", "state", "generation", "queue_length", "oldest_age_s", "current", "current_age_s",
    "tasks", "dropped", "restarts", "restarts_in_window", "last_reason", "state_age_s", "stuck_at", "children",
    "folded",
}  # fmt: skip


def wait_for(happened: Callable[[], bool], what: str) -> None:
    deadline = time.monotonic() + PATIENCE_S
    while not happened():
        assert time.monotonic() < deadline, f"{what} never happened"
        select.select([], [], [], 0.05)


# --- how it is drawn


def node(path: str, *children: dict[str, Any], **fields: Any) -> dict[str, Any]:
    return {
        "id": path.rpartition("/")[2],
        "path": path,
        "actor": "Actor",
        "state": "idle",
        "generation": 1,
        "queue_length": 0,
        "oldest_age_s": None,
        "current": None,
        "current_age_s": None,
        "state_age_s": None,
        "stuck_at": None,
        "tasks": 0,
        "dropped": 0,
        "restarts": 0,
        "restarts_in_window": 0,
        "last_reason": None,
        "children": list(children),
        "folded": {},
        **fields,
    }


def picture(tree: dict[str, Any], **fields: Any) -> dict[str, Any]:
    return {
        "at": "2026-01-31T06:00:00.000000Z",
        "tree": tree,
        "dead_letters": {"undelivered": 2, "dropped": 1, "recent": []},
        "stuck": [],
        **fields,
    }


SESSIONS = node(
    "daemon/sessions",
    node("daemon/sessions/one", state="busy", current="RunTurn", state_age_s=0.25, queue_length=3,
         oldest_age_s=75.0, tasks=1, dropped=4),
    folded={"idle": 9_000, "passive": 950},
)  # fmt: skip
STANDING = node(
    "daemon/standing",
    node("daemon/standing/reed", state="parked", generation=6, restarts=6, restarts_in_window=5,
         last_reason="crashed: ValueError: a\nb\x1b"),
)  # fmt: skip


def test_each_actor_is_a_line_with_what_it_does_and_the_folded_are_one() -> None:
    rows = [row.cells for row in rows_of(node("daemon", SESSIONS, STANDING))]
    assert [cells[0] for cells in rows] == [
        "daemon",
        "├─ sessions",
        "│  ├─ one",
        "│  └─ … 9,950 more",
        "└─ standing",
        "   └─ reed",
    ]
    assert rows[2][1:] == ("busy", "3, 75 s", "RunTurn 0.2 s", "1", "", "1", "4", "")
    assert rows[3][-1] == "9,000 idle, 950 passive"
    assert rows[5][1:] == (
        "parked", "", "", "", "6 (5)", "6", "", "crashed: ValueError: a b\\x1b",
    )  # fmt: skip
    folded = node("daemon/sessions", folded={"idle": 9_950})
    assert [row.cells[0] for row in rows_of(folded)] == ["sessions", "└─ … 9,950 more idle"]


def test_one_that_is_long_in_one_thing_is_stuck_whatever_the_thing_is() -> None:
    for state, current, now in (
        ("busy", "RunTurn", "RunTurn 75 s"),
        ("starting", None, "on_start 75 s"),
        ("stopping", "RunTurn", "its end 75 s"),
    ):
        [row] = rows_of(node("daemon", state=state, current=current, state_age_s=75.0, stuck_at="a:1, b"))
        assert (row.cells[1], row.cells[3], row.style) == ("stuck", now, "bold red")


def test_what_needs_attention_stands_out_and_is_named_again() -> None:
    tree = node("daemon", SESSIONS, STANDING)
    styles = {row.cells[1]: row.style for row in rows_of(tree)}
    assert "red" in styles["parked"]
    assert styles["idle"] == ""
    stuck = [
        {"path": "daemon/slow", "what": "Commit", "age_s": 75.0, "at": "a:1, b"},
        {"path": "daemon/gone", "what": "its end", "age_s": None, "at": None},
    ]
    assert summary(picture(tree, stuck=stuck)) == [
        "2026-01-31 06:00:00 UTC: 9,955 actors, 3 dead letters (2 undelivered, 1 dropped)",
        "parked: daemon/standing/reed",
        "`agent-runner agents retry ID` lets a parked agent try again",
        "stuck: daemon/slow, for 75 s in Commit, at a:1, b",
        "stuck: daemon/gone in its end",
    ]


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0.04, "0.0 s"), (9.96, "10.0 s"), (119, "119 s"), (120, "2 min"), (7_200, "2 h"), (172_800, "2 d")],
)
def test_ages_are_short(seconds: float, text: str) -> None:
    assert age(seconds) == text


# --- a running daemon


def test_tree_shows_every_actor_of_the_daemon_or_a_part(agent_runner: AgentRunner, daemon: Daemon) -> None:
    told = agent_runner("tree", root=daemon.root)
    assert (told.code, told.err) == (0, "")
    assert told.out.splitlines()[1].startswith("daemon ")
    assert "├─ ledger_writer " in told.out
    assert "│  ├─ reed " in told.out
    assert "\x1b" not in told.out
    found = agent_runner("tree", "standing", "--json", root=daemon.root).json
    assert set(found) == {"at", "tree", "dead_letters", "stuck"}
    assert set(found["tree"]) == NODE_FIELDS
    assert len(found["tree"]["children"]) == 26
    for path in ("reed", "standing/reed", "daemon/standing/reed"):
        one = agent_runner("tree", path, "--json", root=daemon.root).json["tree"]
        assert (one["path"], one["actor"], one["state"]) == ("daemon/standing/reed", "StandingAgent", "idle")


def test_a_path_that_nobody_has_is_told(agent_runner: AgentRunner, daemon: Daemon) -> None:
    told = agent_runner("tree", "standing/nobody", root=daemon.root)
    assert (told.code, told.out) == (1, "")
    assert "there is no actor 'standing/nobody'" in told.err


def test_tree_needs_a_daemon(agent_runner: AgentRunner, root: Any) -> None:
    for arguments in ((), ("--watch",), ("--watch", "--json")):
        told = agent_runner("tree", *arguments, root=root)
        assert (told.code, told.out) == (3, "")
        assert "start it with" in told.err


def test_many_idle_sessions_are_folded_unless_all_are_wanted(
    agent_runner: AgentRunner, daemon: Daemon
) -> None:
    for number in range(8):
        agent_runner("chat", f"anna-{number}", "-m", "say hi", root=daemon.root)
    shown = agent_runner("tree", "sessions", "--json", root=daemon.root).json["tree"]
    assert (shown["children"], shown["folded"]) == ([], {"idle": 34})
    assert "… 34 more idle" in agent_runner("tree", "sessions", root=daemon.root).out
    everybody = agent_runner("tree", "--all", "--json", "sessions", root=daemon.root).json["tree"]
    assert (len(everybody["children"]), everybody["folded"]) == (34, {})


def test_watch_repaints_a_terminal_until_ctrl_c(daemon: Daemon) -> None:
    terminal = Terminal("tree", "standing", "--watch", "--interval", "0.1", root=daemon.root)
    for _ in range(2):
        terminal.read_until("UTC: 27 actors")
    terminal.process.send_signal(signal.SIGINT)
    terminal.read_until("interrupted")
    assert terminal.read_to_end() == 1
    assert "Traceback" not in terminal.seen
    assert "\x1b[?1049l" in terminal.seen  # the screen is as it was


def test_colours_of_a_tree_are_for_terminals_and_not_with_no_color(daemon: Daemon) -> None:
    coloured = Terminal("tree", "standing", root=daemon.root)
    assert coloured.read_to_end() == 0
    assert "\x1b[" in coloured.seen
    plain = Terminal("tree", "standing", root=daemon.root, NO_COLOR="1")
    assert plain.read_to_end() == 0
    assert "\x1b" not in plain.seen
    assert "└─ " in plain.seen


@pytest.fixture
def bad(tmp_path: Path) -> Iterator[Daemon]:
    """A daemon in which an agent goes wrong when the test says so."""
    running = start_daemon(
        tmp_path / "root", tmp_path / "log", "--no-heartbeat", module="tests.support.bad_agent"
    )
    yield running
    running.process.kill()
    running.process.communicate()


def test_watch_without_a_terminal_prints_snapshots_and_says_that_the_daemon_has_gone(bad: Daemon) -> None:
    watching = subprocess.Popen(
        command_line(bad.root.path, "tree", "--watch", "--interval", "0.05", "--json"),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=environment(),
        cwd=CHECKOUT,
    )
    assert watching.stdout is not None
    moments = [json.loads(watching.stdout.readline())["at"] for _ in range(3)]
    assert moments == sorted(set(moments))
    bad.process.kill()
    _, told = watching.communicate(timeout=PATIENCE_S)
    assert watching.returncode == 3
    assert f"the daemon that kept {bad.root.path} has gone; start it with" in told
    assert "Traceback" not in told


def test_an_agent_that_goes_on_crashing_is_parked_the_others_answer_and_retry_brings_it_back(
    agent_runner: AgentRunner, bad: Daemon
) -> None:
    def agent() -> dict[str, Any]:
        found: dict[str, Any] = agent_runner("tree", f"standing/{AGENT}", "--json", root=bad.root).json
        return found["tree"]

    def was_read(mail: str) -> bool:
        listed = agent_runner("mail", "thread", mail, "--json", root=bad.root).json
        return bool(listed[0]["read_by"])

    (bad.root.path / "crash").touch()
    mail = agent_runner("mail", "send", AGENT, "-s", "x", "-m", "say hi", root=bad.root).out.strip()
    wait_for(lambda: agent()["state"] == "parked", "parking")
    parked = agent()
    assert (parked["restarts"], parked["last_reason"]) == (5, "crashed: RuntimeError: told to crash")
    told = agent_runner("tree", root=bad.root).out
    assert f"\nparked: daemon/standing/{AGENT}\n" in told
    assert "agents retry" in told
    assert AGENT in agent_runner("status", root=bad.root).out

    states = agent_runner("tree", "standing", "--json", root=bad.root).json["tree"]["children"]
    assert [one["id"] for one in states if one["state"] != "idle"] == [AGENT]
    other = agent_runner("mail", "send", "all", "-s", "y", "-m", "say hi", root=bad.root).out.strip()

    def others_answered() -> bool:
        listed = agent_runner("mail", "thread", other, "--json", root=bad.root).json
        return len(listed[0]["read_by"]) == 25

    wait_for(others_answered, "the other agents reading their mail")

    again = agent_runner("agents", "retry", AGENT, root=bad.root)
    assert again.code == 1
    assert "failed at once" in again.err
    wait_for(lambda: agent()["state"] == "parked", "parking again")
    (bad.root.path / "crash").unlink()
    retried = agent_runner("agents", "retry", AGENT, root=bad.root)
    assert retried.code == 0
    assert "its actor had crashed too often. It has been started again" in retried.out
    wait_for(lambda: was_read(mail), "the mail being read")
    assert agent()["state"] == "idle"


def test_an_agent_that_is_stuck_is_shown_with_its_place_until_it_goes_on(
    agent_runner: AgentRunner, bad: Daemon
) -> None:
    def stuck() -> list[dict[str, Any]]:
        found: dict[str, Any] = agent_runner("status", "--json", root=bad.root).json
        return found["stuck"]

    (bad.root.path / "hang").touch()
    agent_runner("mail", "send", AGENT, "-s", "x", "-m", "say hi", root=bad.root)
    wait_for(lambda: bool(stuck()), "being stuck")
    [found] = stuck()
    assert (found["path"], found["what"]) == (f"daemon/standing/{AGENT}", "LookForMail")
    assert found["at"].endswith(", go_wrong")
    assert f"stuck         daemon/standing/{AGENT}, for " in agent_runner("status", root=bad.root).out
    told = agent_runner("tree", AGENT, root=bad.root).out
    assert told.splitlines()[1].split()[:3] == [AGENT, "stuck", "LookForMail"]
    (bad.root.path / "hang").unlink()
    wait_for(lambda: not stuck(), "going on")
    wait_for(lambda: "goes on after" in agent_runner("logs", root=bad.root).out, "the line in the log")


def test_an_agent_that_holds_the_whole_loop_is_named_in_the_log(
    agent_runner: AgentRunner, bad: Daemon
) -> None:
    (bad.root.path / "hold").touch()
    # The answer may come before the loop is held or behind that: it is not waited for here.
    sending = subprocess.Popen(
        command_line(bad.root.path, "mail", "send", AGENT, "-s", "x", "-m", "say hi"),
        stdout=subprocess.PIPE,
        env=environment(),
        cwd=CHECKOUT,
    )
    who = f"daemon/standing/{AGENT}, in LookForMail, holds it"
    wait_for(lambda: who in agent_runner("logs", root=bad.root).out, "being named")
    (bad.root.path / "hold").unlink()
    sending.communicate(timeout=PATIENCE_S)
    assert sending.returncode == 0
    wait_for(
        lambda: "the loop turns again" in agent_runner("logs", root=bad.root).out, "the end of the stall"
    )
    [held] = [
        line
        for line in map(json.loads, agent_runner("logs", "--json", root=bad.root).out.splitlines())
        if "has not turned" in line["event"]
    ]
    assert held["level"] == "error"
    assert "in go_wrong" in held["stack"]
