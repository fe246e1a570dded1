"""What reads without a daemon, and what the store and the files give it."""

from __future__ import annotations

import datetime as dt
import json
import os
import signal
import stat
import subprocess
from collections.abc import Iterator
from pathlib import Path

import apsw
import click
import pytest

from actors.commands.__main__ import cli
from protocol.entry import make_entry
from protocol.tiers import Tier
from store.board import Post, PostBoard
from store.clock import StrictClock, rfc3339
from store.database import open_writer
from store.ledger import AppendEntry
from store.mailbox import ClaimMail, MarkRead, SendMail, SettleMail, compose
from store.root import Root
from store.unit_of_work import UnitOfWork, Write, commit_units
from tests.commands.conftest import CHECKOUT, AgentRunner, command_line, environment

NOW = dt.datetime.now(dt.UTC)


def commit(root: Root, *writes: Write) -> None:
    database = open_writer(root.database)
    outcomes = commit_units(database, [UnitOfWork(writes)])
    database.close()
    assert not [outcome for outcome in outcomes if isinstance(outcome, Exception)]


def lifecycle(clock: StrictClock, event: str, key: str = "calli:cli:local") -> AppendEntry:
    return AppendEntry(
        make_entry(
            entity_id=key,
            target="0" * 64,
            quality="session_lifecycle",
            timestamp=clock.stamp(),
            source=key,
            actor="calli",
            parents=[],
            payload={"event": event, "reason": None},
        )
    )


def mail(
    recipient: str, subject: str, body: str, sender: str = "calli", minutes: int = 0, **more: bool
) -> SendMail:
    moment = NOW + dt.timedelta(minutes=minutes)
    return SendMail(
        compose(
            sender=sender,
            recipient=recipient,
            subject=subject,
            body=body,
            moment=moment,
            tier=Tier.STANDING,
            **more,
        )
    )


# --- the ledger


def test_ledger_verify_says_how_many_entries_it_checked(agent_runner: AgentRunner, stored: Root) -> None:
    clock = StrictClock()
    commit(stored, *(lifecycle(clock, event) for event in ("opened", "closed", "reopened")))
    assert agent_runner("ledger", "verify", root=stored).out == "ok: 3 entries checked\n"
    found = agent_runner("ledger", "verify", "--json", root=stored)
    assert (found.code, found.json) == (0, {"ok": True, "entries": 3, "first_bad": None})


def test_a_changed_entry_is_named_and_exits_5(agent_runner: AgentRunner, stored: Root) -> None:
    clock = StrictClock()
    commit(stored, *(lifecycle(clock, event) for event in ("opened", "closed", "reopened")))
    database = apsw.Connection(str(stored.database))
    database.execute("DROP TRIGGER ledger_is_never_updated")
    database.execute("UPDATE ledger SET actor = 'reed' WHERE seq = 2")
    cid = database.execute("SELECT cid FROM ledger WHERE seq = 2").get
    database.close()
    found = agent_runner("ledger", "verify", "--json", root=stored)
    assert found.code == 5
    assert (found.json["ok"], found.json["entries"]) == (False, 1)
    assert (found.json["first_bad"]["seq"], found.json["first_bad"]["cid"]) == (2, cid)
    told = agent_runner("ledger", "verify", root=stored)
    assert told.code == 5
    assert told.out.startswith(f"broken at entry 2 ({cid}): ")


def test_a_file_that_is_no_database_is_a_broken_ledger(agent_runner: AgentRunner, root: Root) -> None:
    root.database.write_bytes(b"this is not SQLite" * 400)
    found = agent_runner("ledger", "verify", "--json", root=root)
    assert (found.code, found.json["ok"], found.json["entries"]) == (5, False, 0)
    told = agent_runner("mail", "list", root=root)
    assert (told.code, told.out) == (1, "")
    assert "Traceback" not in told.err


def test_a_database_damaged_in_the_middle_is_a_broken_ledger(agent_runner: AgentRunner, stored: Root) -> None:
    clock = StrictClock()
    commit(stored, *(lifecycle(clock, "opened") for _ in range(200)))
    data = bytearray(stored.database.read_bytes())
    data[8192:] = bytes(len(data) - 8192)
    stored.database.write_bytes(data)
    found = agent_runner("ledger", "verify", "--json", root=stored)
    assert (found.code, found.json["ok"]) == (5, False)


@pytest.mark.parametrize("payload", ["not json", "[1]", '{"event":[]}'])
def test_a_row_that_was_put_in_by_hand_is_found(
    agent_runner: AgentRunner, stored: Root, payload: str
) -> None:
    commit(stored, lifecycle(StrictClock(), "opened"))
    database = apsw.Connection(str(stored.database))
    database.execute(
        "INSERT INTO ledger SELECT 2, 'ffff', 'session_lifecycle', entity_id, target, timestamp, source, actor, "
        "parents, tags, ?, proof, envelope FROM ledger",
        (payload,),
    )
    database.close()
    for words in (("ledger", "show"), ("ledger", "show", "--json"), ("ledger", "show", "ff")):
        assert agent_runner(*words, root=stored).code == (5 if payload == "not json" else 0)
    assert agent_runner("ledger", "verify", root=stored).code == 5


def test_ledger_show_gives_whole_entries_in_order(agent_runner: AgentRunner, stored: Root) -> None:
    clock = StrictClock()
    writes = [lifecycle(clock, f"event{number}") for number in range(30)]
    commit(stored, *writes)
    shown = agent_runner("ledger", "show", "--limit", "4", "--json", root=stored).json
    assert [entry["payload"]["event"] for entry in shown] == ["event26", "event27", "event28", "event29"]
    assert set(shown[0]) == {
        "cid", "entity_id", "target", "quality", "timestamp", "source", "actor", "parents", "tags", "payload",
        "proof", "envelope",
    }  # fmt: skip
    lines = agent_runner("ledger", "show", "--limit", "4", root=stored).out.splitlines()
    assert [line.split()[0] for line in lines] == ["SEQ", "27", "28", "29", "30"]
    cid = writes[7].entry.cid
    assert agent_runner("ledger", "show", cid[:12], root=stored).json["cid"] == cid


def test_ledger_show_filters_by_session_and_quality(agent_runner: AgentRunner, stored: Root) -> None:
    clock = StrictClock()
    commit(stored, lifecycle(clock, "opened"), lifecycle(clock, "opened", "reed:cli:local"))
    shown = agent_runner("ledger", "show", "--session", "reed:cli:local", "--json", root=stored).json
    assert [entry["entity_id"] for entry in shown] == ["reed:cli:local"]
    assert agent_runner("ledger", "show", "--quality", "turn", "--json", root=stored).json == []
    assert agent_runner("ledger", "show", "--quality", "gossip", root=stored).code == 2
    assert agent_runner("ledger", "show", "abc", root=stored).code == 1


def verdict(
    clock: StrictClock, actor: str, tool: str, decided: str, key: str = "calli:cli:local"
) -> AppendEntry:
    return AppendEntry(
        make_entry(
            entity_id=key,
            target=tool,
            quality="policy_verdict",
            timestamp=clock.stamp(),
            source=key,
            actor=actor,
            parents=[],
            payload={"tool": tool, "verdict": decided, "phase": "call", "reason": "why"},
        )
    )


def test_ledger_show_filters_by_actor_tool_verdict_and_time(agent_runner: AgentRunner, stored: Root) -> None:
    days = iter(dt.datetime(2026, 1, day, 6, tzinfo=dt.UTC) for day in range(1, 9))
    clock = StrictClock(now=lambda: next(days))
    writes = [
        lifecycle(clock, "opened"),
        verdict(clock, "calli", "read_file", "allowed"),
        verdict(clock, "calli", "bash", "blocked"),
        verdict(clock, "reed", "bash", "blocked"),
        verdict(clock, "reed", "bash", "allowed"),
    ]
    commit(stored, *writes)
    database = apsw.Connection(str(stored.database))
    # A row that is no JSON hides none of the others.
    database.execute(
        "INSERT INTO ledger SELECT 99, 'ffff', quality, entity_id, target, timestamp, source, 'nobody', parents, "
        "tags, 'no json', proof, envelope FROM ledger WHERE seq = 2"
    )
    database.close()

    def shown(*words: str) -> list[int]:
        found = agent_runner("ledger", "show", *words, "--json", root=stored)
        assert found.code == 0, found.err
        cids = [write.entry.cid for write in writes]
        return [cids.index(entry["cid"]) + 1 for entry in found.json]

    assert shown("--actor", "reed") == [4, 5]
    assert shown("--tool", "bash") == [3, 4, 5]
    assert shown("--verdict", "blocked") == [3, 4]
    assert shown("--verdict", "blocked", "--actor", "calli") == [3]
    assert shown("--since", "2026-01-04", "--actor", "reed") == [4, 5]
    assert shown("--tool", "bash", "--until", "2026-01-04") == [3, 4]
    assert shown("--tool", "bash", "--until", "2026-01-04T06:00") == [3]
    assert shown("--tool", "bash", "--since", "2026-01-04T08:00+02:00") == [4, 5]
    assert shown("--tool", "bash", "--limit", "1") == [5]
    assert shown("--since", "1h") == []
    assert shown("--tool", "bash", "--since", "36500d") == [3, 4, 5]


def test_ledger_stats_count_by_quality_actor_and_verdict(agent_runner: AgentRunner, stored: Root) -> None:
    clock = StrictClock()
    writes = [
        lifecycle(clock, "opened"),
        verdict(clock, "reed", "bash", "blocked"),
        verdict(clock, "calli", "bash", "allowed"),
        verdict(clock, "calli", "read_file", "allowed"),
    ]
    commit(stored, *writes)
    found = agent_runner("ledger", "show", "--stats", "--json", root=stored).json
    size = found.pop("database_bytes")
    assert size >= stored.database.stat().st_size > 0
    assert found == {
        "entries": 4,
        "first": writes[0].entry.timestamp,
        "last": writes[-1].entry.timestamp,
        "by_quality": {"policy_verdict": 3, "session_lifecycle": 1},
        "by_actor": {"calli": 3, "reed": 1},
        "by_verdict": {"allowed": 2, "blocked": 1},
    }
    told = agent_runner("ledger", "show", "--stats", root=stored).out.splitlines()
    assert told[0].split() == ["entries", "4"]
    assert ["policy_verdict", "3"] in [line.split() for line in told]


def test_ledger_stats_of_a_root_whose_daemon_never_ran_are_nothing(
    agent_runner: AgentRunner, root: Root
) -> None:
    found = agent_runner("ledger", "show", "--stats", "--json", root=root).json
    assert (found["entries"], found["first"], found["by_actor"], found["database_bytes"]) == (0, None, {}, 0)
    assert agent_runner("ledger", "show", "--follow", root=root).code == 1


def test_ledger_follow_shows_what_is_added_and_nothing_twice(stored: Root) -> None:
    clock = StrictClock()
    commit(stored, *(lifecycle(clock, f"event{number}") for number in range(3)))
    process = subprocess.Popen(
        command_line(stored.path, "ledger", "show", "--follow", "--limit", "2", "--json"),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=environment(),
        cwd=CHECKOUT,
    )
    assert process.stdout is not None
    try:
        seen = [json.loads(process.stdout.readline()) for _ in range(2)]
        commit(stored, *(lifecycle(clock, f"event{number}") for number in range(3, 6)))
        seen += [json.loads(process.stdout.readline()) for _ in range(3)]
    finally:
        process.send_signal(signal.SIGINT)
        process.communicate(timeout=30)
    assert [entry["payload"]["event"] for entry in seen] == [f"event{number}" for number in range(1, 6)]


# --- mail and board


def test_mail_list_has_the_shape_of_the_specification(agent_runner: AgentRunner, stored: Root) -> None:
    first, second = mail("reed", "one", "body"), mail("cora", "two", "böðy", minutes=1)
    third, fourth = mail("triage", "three", "x", minutes=2, to_role=True), mail("all", "four", "y", minutes=3)
    commit(stored, first, second, third, fourth)
    commit(stored, ClaimMail([first.mail.id], "reed", "turn"))
    commit(stored, SettleMail("turn", rfc3339(NOW)))
    listed = agent_runner("mail", "list", "--json", root=stored).json
    assert listed[0] == {
        "id": first.mail.id,
        "sender": "calli",
        "recipient": "reed",
        "subject": "one",
        "body": "body",
        "sent_at": rfc3339(NOW),
        "read": True,
    }
    assert [one["read"] for one in listed] == [True, False, None, None]
    assert listed[1]["body"] == "böðy"


def test_mail_for_an_identity_is_what_reaches_it(agent_runner: AgentRunner, stored: Root) -> None:
    commit(
        stored,
        mail("reed", "direct", "x"),
        mail("cora", "other", "x", minutes=1),
        mail("infrastructure-steward", "role", "x", minutes=2, to_role=True),
        mail("tag:on-call", "tag", "x", minutes=3),
        mail("operator", "up", "x", minutes=4),
    )
    listed = agent_runner("mail", "list", "--for", "reed", "--json", root=stored).json
    assert [(one["subject"], one["read"]) for one in listed] == [
        ("direct", False),
        ("role", False),
        ("tag", False),
    ]
    for_me = agent_runner("mail", "list", "--for", "operator", "--json", root=stored).json
    assert [one["subject"] for one in for_me] == ["up"]
    unknown = agent_runner("mail", "list", "--for", "reeed", root=stored)
    assert unknown.code == 1
    assert "did you mean reed" in unknown.err


def test_unread_mail_is_what_is_still_delivered(agent_runner: AgentRunner, stored: Root) -> None:
    expired = mail("reed", "expired", "x", minutes=-60 * 25)
    first, second = mail("reed", "one", "x"), mail("cora", "two", "x", minutes=1)
    third, fourth = mail("triage", "three", "x", minutes=2, to_role=True), mail("all", "four", "x", minutes=3)
    commit(stored, expired, first, second, third, fourth, ClaimMail([first.mail.id], "reed", "turn"))
    commit(stored, SettleMail("turn", rfc3339(NOW)), MarkRead([fourth.mail.id], "cora", rfc3339(NOW)))

    def subjects(*words: str) -> list[str]:
        listed = agent_runner("mail", "list", "--unread", *words, "--json", root=stored).json
        return [one["subject"] for one in listed]

    assert subjects() == ["two", "three"]
    assert subjects("--limit", "1") == ["three"]
    assert subjects("--for", "reed") == ["four"]
    assert subjects("--for", "cora") == ["two", "three"]
    assert subjects("--for", "operator") == ["four"]


def test_a_thread_is_shown_whole_with_who_read_what(agent_runner: AgentRunner, stored: Root) -> None:
    first = mail("reed", "how full", "is it?")
    answer = SendMail(
        compose(
            sender="reed",
            recipient="calli",
            subject="re: how full",
            body="half",
            moment=NOW + dt.timedelta(minutes=1),
            tier=Tier.STANDING,
            thread=first.mail.thread,
            hops=1,
        )
    )
    other = mail("reed", "another thread", "x", minutes=2)
    commit(stored, first, answer, other, MarkRead([first.mail.id], "reed", rfc3339(NOW)))
    for words in (first.mail.id, answer.mail.id, answer.mail.id[:10]):
        shown = agent_runner("mail", "thread", words, "--json", root=stored).json
        assert [(one["subject"], one["hops"], one["read"]) for one in shown] == [
            ("how full", 0, True),
            ("re: how full", 1, False),
        ]
    assert shown[0]["read_by"] == {"reed": rfc3339(NOW)}
    told = agent_runner("mail", "thread", first.mail.id[:8], root=stored).out
    assert "read by reed" in told
    assert "    half" in told
    unknown = agent_runner("mail", "thread", "zz", root=stored)
    assert unknown.code == 1
    assert "mail list" in unknown.err


def test_mail_cannot_drive_the_terminal(agent_runner: AgentRunner, stored: Root) -> None:
    commit(
        stored,
        mail("reed", "sub\x1b]0;title\x07ject", "line one\nline\x1b[2Jtwo\u202eevil\x9b31m\r\n漢字 🦊"),
    )
    shown = agent_runner("mail", "list", root=stored).out
    assert "    line one\n    line\\x1b[2Jtwo\\u202eevil\\x9b31m\n    漢字 🦊\n" in shown
    as_json = agent_runner("mail", "list", "--json", root=stored)
    for output in (shown, as_json.out):
        assert not set(output) & set("\x1b\x07\x9b\u202e\r")
    assert as_json.json[0]["body"].startswith("line one\nline\x1b[2Jtwo\u202eevil\x9b31m")


def test_board_show_gives_the_last_lines_oldest_first(agent_runner: AgentRunner, stored: Root) -> None:
    commit(stored, *(PostBoard(Post("veda", f"line {number}", rfc3339(NOW))) for number in range(30)))
    lines = agent_runner("board", "show", root=stored).out.splitlines()
    assert [line.split("  ")[1] for line in lines] == [f"[veda] line {number}" for number in range(10, 30)]
    shown = agent_runner("board", "show", "--lines", "1", "--json", root=stored).json
    assert shown == [{"agent": "veda", "text": "line 29", "posted_at": rfc3339(NOW)}]


# --- agents


def test_agents_list_works_while_the_daemon_is_down(agent_runner: AgentRunner, root: Root) -> None:
    agents = agent_runner("agents", "list", "--json", root=root).json
    assert len(agents) == 26
    assert agents[0] == {
        "id": "reed",
        "role": "infrastructure-steward",
        "kind": "role",
        "state": "live",
        "session_state": None,
        "unread": 0,
        "last_wake": None,
        "restarts": 0,
        "model": None,
    }
    open_writer(root.database).close()
    commit(root, mail("reed", "one", "x"), mail("all", "two", "x", minutes=1))
    unread = {one["id"]: one["unread"] for one in agent_runner("agents", "list", "--json", root=root).json}
    assert (unread["reed"], unread["cora"], unread["calli"]) == (2, 1, 0)


def test_agents_show_has_the_mandate(agent_runner: AgentRunner, root: Root) -> None:
    shown = agent_runner("agents", "show", "reed", "--json", root=root).json
    mandate = (root.platform / "mandates/reed.md").read_text()
    assert (shown["mandate"], shown["mandate_text"]) == ("mandates/reed.md", mandate)
    assert shown["session_key"] == "reed:cli:local"
    assert mandate.splitlines()[0] in agent_runner("agents", "show", "reed", root=root).out
    unknown = agent_runner("agents", "show", "callie", root=root)
    assert unknown.code == 1
    assert "did you mean calli" in unknown.err


# --- nothing there yet


@pytest.mark.parametrize(
    "words",
    [
        ("ledger", "show"),
        ("mail", "list"),
        ("board", "show"),
        ("mail", "list", "--for", "reed"),
        ("mail", "list", "--unread"),
        ("sessions", "list"),
        ("usage",),
    ],
)
def test_a_root_whose_daemon_never_ran_is_empty(
    agent_runner: AgentRunner, root: Root, words: tuple[str, ...]
) -> None:
    assert agent_runner(*words, "--json", root=root).json == []
    told = agent_runner(*words, root=root)
    assert told.code == 0
    assert "no daemon has run" in told.err
    assert not root.database.exists()


def test_the_ledger_of_a_root_whose_daemon_never_ran_is_empty_and_whole(
    agent_runner: AgentRunner, root: Root
) -> None:
    assert agent_runner("ledger", "verify", "--json", root=root).json == {
        "ok": True,
        "entries": 0,
        "first_bad": None,
    }


@pytest.mark.parametrize(
    "words", [("ledger", "verify"), ("mail", "list"), ("board", "show"), ("agents", "list")]
)
def test_a_folder_that_is_no_root_is_not_taken_for_an_empty_one(
    agent_runner: AgentRunner, tmp_path: Path, words: tuple[str, ...]
) -> None:
    told = agent_runner(*words, root=Root(tmp_path / "mistyped"))
    assert (told.code, told.out) == (1, "")
    assert "init" in told.err


@pytest.mark.parametrize(
    "words",
    [
        ("status",),
        ("status", "--json"),
        ("chat",),
        ("chat", "calli", "-m", "hello"),
        ("mail", "send", "reed", "-s", "x", "-m", "y"),
        ("board", "post", "x"),
        ("stop",),
        ("reload",),
        ("agents", "retry", "reed"),
        ("agents", "verify"),
        ("mail", "read"),
        ("sessions", "close", "calli:cli:local"),
    ],
)
def test_what_needs_the_daemon_exits_3_and_says_how_to_start_it(
    agent_runner: AgentRunner, root: Root, words: tuple[str, ...]
) -> None:
    told = agent_runner(*words, root=root)
    assert (told.code, told.out) == (3, "")
    assert f"--root {root.path} run" in told.err


def test_the_file_of_a_daemon_that_is_gone_is_no_daemon(agent_runner: AgentRunner, root: Root) -> None:
    # The pid is that of a living process, this one, as it would be after the number was used again.
    runner = {"pid": os.getpid(), "url": "ws://127.0.0.1:9/ws", "started_at": "2026-01-01T00:00:00.000000Z"}
    root.runner_file.write_text(json.dumps(runner))
    assert agent_runner("status", root=root).code == 3
    assert agent_runner("agents", "list", "--json", root=root).code == 0


# --- bad configuration


def test_every_fault_of_the_content_is_told_with_file_line_and_fix(
    agent_runner: AgentRunner, root: Root
) -> None:
    (root.platform / "constitution.yaml").write_text("tool_rules: []\nextra: 1\nextra: 2\n")
    (root.platform / "mandates/reed.md").unlink()
    for words in (("agents", "list"), ("init",), ("run", "--port", "0")):
        told = agent_runner(*words, root=root)
        assert told.code == 78
        lines = told.err.splitlines()
        assert any(line.startswith(f"{root.platform}/constitution.yaml:") for line in lines)
        assert any(line.startswith(f"{root.platform}/roster.yaml:") and "reed" in line for line in lines)
        assert "Traceback" not in told.err


# --- init


def test_init_lays_out_a_root_and_says_what_to_type(agent_runner: AgentRunner, tmp_path: Path) -> None:
    told = agent_runner("init", str(tmp_path / "new/root"))
    root = Root(tmp_path / "new/root")
    assert told.code == 0
    assert f"--root {root.path} run" in told.out
    assert stat.S_IMODE(root.token_file.stat().st_mode) == 0o600
    assert stat.S_IMODE(root.state.stat().st_mode) == 0o700
    assert (root.platform / "constitution.md").read_bytes() == (
        CHECKOUT / "platform/constitution.md"
    ).read_bytes()


def test_init_never_overwrites(agent_runner: AgentRunner, root: Root) -> None:
    roster = root.platform / "roster.yaml"
    roster.write_text(roster.read_text() + "# mine\n")
    kept, token = roster.read_bytes(), root.read_token()
    told = agent_runner("init", root=root)
    assert told.code == 0
    assert "nothing was changed" in told.out
    assert (roster.read_bytes(), root.read_token()) == (kept, token)


def test_init_where_nobody_may_write_fails_with_the_path(agent_runner: AgentRunner, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    told = agent_runner("init", str(tmp_path / "file/root"))
    assert told.code == 1
    assert str(tmp_path / "file/root") in told.err


# --- the command line itself


@pytest.mark.parametrize(
    "words",
    [
        ("nonsense",),
        ("--nonsense",),
        ("mail", "send", "reed"),
        ("ledger", "show", "--limit", "0"),
        ("run", "--port", "70000"),
        ("run", "--ttl", "0"),
        ("run", "--ttl", "nan"),
        ("run", "--heartbeat-interval", "-1"),
        ("run", "--backend", "oracle"),
        ("chat", "calli", "-m", "  "),
        ("board", "post", "\udc80"),
        ("ledger", "show", "--since", "yesterday"),
        ("ledger", "show", "--until", "99999999d"),
        ("usage", "--days", "0"),
        ("usage", "--by", "mood"),
        ("sessions", "list", "--state", "asleep"),
        ("stop", "--timeout", "0"),
        ("mail", "thread", "\udc80"),
        ("completion", "tcsh"),
        (),
    ],
)
def test_what_is_not_understood_exits_2(
    agent_runner: AgentRunner, root: Root, words: tuple[str, ...]
) -> None:
    told = agent_runner(*words, root=root if words else None)
    assert told.code == 2
    assert "Usage: agent-runner" in told.err + told.out


def every_command(group: click.Group, words: tuple[str, ...] = ()) -> Iterator[tuple[str, ...]]:
    yield words
    ctx = click.Context(group)
    for name in group.list_commands(ctx):
        found = group.get_command(ctx, name)
        if isinstance(found, click.Group):
            yield from every_command(found, (*words, name))
        else:
            yield (*words, name)


@pytest.mark.parametrize("words", list(every_command(cli)), ids=" ".join)
def test_every_command_has_help_with_an_example(agent_runner: AgentRunner, words: tuple[str, ...]) -> None:
    short, long = agent_runner(*words, "-h"), agent_runner(*words, "--help")
    assert short == long
    assert short.code == 0
    assert f"\n    agent-runner {' '.join(words)}" in short.out


def test_version_is_that_of_the_project(agent_runner: AgentRunner) -> None:
    assert agent_runner("--version").out.split() == ["agent-runner", "0.1.0"]


def test_a_reader_that_has_read_enough_is_no_error(stored: Root) -> None:
    clock = StrictClock()
    commit(stored, *(lifecycle(clock, "opened") for _ in range(3000)))
    process = subprocess.Popen(
        command_line(stored.path, "ledger", "show", "--limit", "3000", "--json"),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env=environment(),
        cwd=CHECKOUT,
    )
    assert process.stdout is not None
    assert process.stderr is not None
    process.stdout.readline()
    process.stdout.close()
    complaint = process.stderr.read()
    process.stderr.close()
    assert (process.wait(), complaint) == (0, b"")


def test_a_locale_without_the_characters_still_prints(stored: Root) -> None:
    commit(stored, mail("reed", "漢字", "naïve 🦊"))
    for words in (("mail", "list"), ("mail", "list", "--json")):
        done = subprocess.run(
            command_line(stored.path, *words),
            capture_output=True,
            env=environment(PYTHONIOENCODING="latin-1"),
            cwd=CHECKOUT,
            check=True,
        )
        assert b"\\u6f22\\u5b57" in done.stdout
