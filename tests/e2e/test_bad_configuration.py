"""Files and places that are wrong: at a start the daemon refuses and says where; on a reload it keeps what it had."""

import shutil
import signal
import socket
from collections.abc import Callable
from pathlib import Path

import pytest

from actors.daemon import Settings, open_daemon
from protocol.errors import ConfigurationError
from store.root import Root, lay_out
from tests.support.daemon import Daemon, edit, open_session, run_turn

QUIET = ("--backend", "rehearsal", "--no-heartbeat")


def line_of(path: Path, words: str, *, last: bool = False) -> int:
    lines = [number for number, line in enumerate(path.read_text().splitlines(), 1) if words in line]
    return lines[-1] if last else lines[0]


def put(path: Path, pattern: str, replacement: str) -> Callable[[Path], None]:
    return lambda platform: edit(platform / path, pattern, replacement)


CONSTITUTION, ROSTER = Path("constitution.yaml"), Path("roster.yaml")
FAULTS: dict[str, tuple[Callable[[Path], None], Path, str | None]] = {
    "constitution missing": (
        lambda platform: (platform / "constitution.md").unlink(),
        Path("constitution.md"),
        None,
    ),
    "rules missing": (lambda platform: (platform / CONSTITUTION).unlink(), CONSTITUTION, None),
    "rules malformed": (put(CONSTITUTION, "^limits:", "limits: ["), CONSTITUTION, "["),
    "duplicate key": (
        put(CONSTITUTION, "^limits:", "default_mandate: twice\nlimits:"),
        CONSTITUTION,
        "default_mandate",
    ),
    "yaml surprise": (put(CONSTITUTION, "verdict: blocked", "verdict: no"), CONSTITUTION, "verdict: no"),
    "unknown tier": (
        put(CONSTITUTION, "agent_trust: unknown,", "agent_trust: guest,"),
        CONSTITUTION,
        "guest,",
    ),
    "unknown key": (put(CONSTITUTION, "queued_turns", "queued_turn"), CONSTITUTION, "queued_turn:"),
    "rule that never matches": (
        put(
            CONSTITUTION,
            "^tool_rules:",
            "tool_rules:\n  - {name: all, condition: {}, verdict: allowed, reason: all}",
        ),
        CONSTITUTION,
        None,
    ),
    "roster missing": (lambda platform: (platform / ROSTER).unlink(), ROSTER, None),
    "roster twice the same": (put(ROSTER, "- id: dwara", "- id: reed"), ROSTER, None),
    "mandate missing": (
        lambda platform: (platform / "mandates" / "reed.md").unlink(),
        ROSTER,
        "mandates/reed.md",
    ),
}


@pytest.mark.parametrize("name", FAULTS)
async def test_a_daemon_does_not_start_on_a_bad_file_and_says_where(tmp_path: Path, name: str):
    spoil, path, words = FAULTS[name]
    root = Root(tmp_path / "root")
    lay_out(root)
    spoil(root.platform)
    with pytest.raises(ConfigurationError) as refused:
        async with open_daemon(Settings(root, port=0, backend="rehearsal")):
            pass
    assert str(root.platform / path) in str(refused.value)
    if words is not None:
        assert refused.value.line is not None
        if words != "[":
            lines = (root.platform / path).read_text().splitlines()
            assert words in lines[refused.value.line - 1]
    assert refused.value.fix
    assert not root.database.exists()
    assert not root.runner_file.exists()


@pytest.mark.parametrize("name", ["duplicate key", "mandate missing"])
async def test_the_process_ends_with_78_and_names_file_and_line(house: Daemon, name: str):
    spoil, path, words = FAULTS[name]
    spoil(house.root.platform)
    code, said = await house.refused(*QUIET)
    assert code == 78
    assert f"{house.root.platform / path}:" in said
    assert "Traceback" not in said
    if words == "default_mandate":
        first, second = (line_of(house.root.platform / path, words, last=last) for last in (False, True))
        assert f"{path}:{first}" in said or f"{path}:{second}" in said


async def test_a_bad_reload_is_refused_and_the_old_rules_stay_in_force(house: Daemon):
    rules = house.root.platform / "constitution.yaml"
    good = rules.read_text()
    await house.start(*QUIET)
    async with house.operator() as client, house.guest() as guest:
        key = await open_session(guest, "agent")
        assert (await run_turn(guest, key)).gate("post_board")["verdict"] == "blocked"
        before = (await client.call("runner.status"))["constitution"]

        async def problem() -> str | None:
            found: str | None = (await client.call("runner.status"))["constitution"]["problem"]
            return found

        # A change is taken over by itself, once the files have been quiet.
        edit(
            rules,
            "agent_trust: unknown, tool_name_matches: .post_board.",
            "agent_trust: nobody, tool_name_matches: [x]",
        )
        said = await house.until(problem)
        assert f"{rules}:{line_of(rules, 'nobody')}" in said
        status = (await client.call("runner.status"))["constitution"]
        assert {**status, "problem": None} == before
        assert (await run_turn(guest, key)).gate("post_board")["verdict"] == "blocked"

        # On SIGHUP as well.
        rules.write_text("tool_rules: 7\n")
        house.signal(signal.SIGHUP)

        async def another_problem() -> bool:
            return await problem() not in (None, said)

        await house.until(another_problem)

        rules.write_text(good.replace("wakeups_per_10_min: 12", "wakeups_per_10_min: 13"))
        reloaded = await client.call("runner.reload")
        assert reloaded["problem"] is None
        assert await problem() is None
        after = (await client.call("runner.status"))["constitution"]
        assert after["rules_hash"] != before["rules_hash"]
        assert (await run_turn(guest, key)).gate("post_board")["rules_hash"] == after["rules_hash"]
    events = [entry.payload for entry in await house.entries(quality="configuration")]
    assert [one["event"] for one in events] == ["enacted", "refused", "refused", "enacted"]
    assert [one["rules_hash"] for one in events] == [before["rules_hash"]] * 3 + [after["rules_hash"]]
    assert "platform/constitution.yaml:" in events[1]["problem"]
    assert str(house.root.path) not in events[1]["problem"]
    # A verdict that did not change is recorded again only when the rules did.
    offers = [
        entry.payload["rules_hash"]
        for entry in await house.entries(entity_id=key, quality="policy_verdict")
        if entry.payload["tool"] == "post_board"
    ]
    assert offers == [before["rules_hash"], after["rules_hash"]]
    assert (await house.verify()).ok


async def test_a_mandate_that_changes_is_in_the_next_turn_and_an_agent_that_is_new_comes_to_life(
    house: Daemon,
):
    platform = house.root.platform
    await house.start(*QUIET)
    async with house.operator() as client:
        key = await open_session(client, "reed")
        edit(platform / "mandates" / "reed.md", r"\A# .*", "# A changed mandate")
        (platform / "mandates" / "nova.md").write_text("# Nova, a newcomer\n")
        entry = (
            "  - {id: nova, kind: role, state: live, role: newcomer, model: null, "
            "mandate: mandates/nova.md, pubkey: null, tags: []}"
        )
        edit(platform / "roster.yaml", "^identities:", f"identities:\n{entry}")
        reloaded = await client.call("runner.reload")
        assert (reloaded["changed"], reloaded["problem"]) == (True, None)
        assert "A changed mandate" in (await run_turn(client, key, "who are you")).text
        await client.call("mail.send", {"to": "nova", "subject": "welcome", "body": "say thank you"})
        await house.until(lambda: house.rows("SELECT 1 FROM mail_receipts WHERE reader = 'nova'"))
        # Frozen, it keeps its mail and takes no turns.
        edit(
            platform / "roster.yaml",
            "id: nova, kind: role, state: live",
            "id: nova, kind: role, state: frozen",
        )
        await client.call("runner.reload")
        frozen = await run_turn(client, await open_session(client, "nova"))
        assert frozen.error is not None
        assert frozen.error.code == "agent_frozen"
        await client.call("mail.send", {"to": "nova", "subject": "still there?", "body": "say yes"})
        [nova] = [one for one in (await client.call("agents.list"))["agents"] if one["id"] == "nova"]
        assert (nova["state"], nova["unread"]) == ("frozen", 1)
        edit(
            platform / "roster.yaml",
            "id: nova, kind: role, state: frozen",
            "id: nova, kind: role, state: live",
        )
        await client.call("runner.reload")
        await house.until(
            lambda: house.rows(
                "SELECT 1 FROM mail_receipts r JOIN mail m ON m.id = r.mail_id WHERE subject = 'still there?'"
            )
        )


async def test_a_second_daemon_on_the_root_is_refused_and_names_the_first(daemon: Daemon):
    code, said = await daemon.refused(*QUIET)
    assert code == 1
    assert f"pid {daemon.pid}" in said
    assert daemon.root.read_runner().pid == daemon.pid  # type: ignore[union-attr]
    async with daemon.operator() as client:
        assert (await client.call("runner.status"))["pid"] == daemon.pid


async def test_a_port_that_is_taken_is_named(house: Daemon):
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        code, said = await house.refused("--port", str(port), *QUIET)
    assert code == 1
    assert str(port) in said
    assert "--port" in said
    assert "Traceback" not in said


def file_for_the_workspaces(root: Root) -> None:
    shutil.rmtree(root.workspaces)
    root.workspaces.write_text("not a folder")


def file_for_the_state(root: Root) -> None:
    shutil.rmtree(root.state)
    root.state.write_text("not a folder")


def folder_for_the_database(root: Root) -> None:
    root.database.mkdir()


def letter_for_the_database(root: Root) -> None:
    root.database.write_text("Dear database, this is not a page of yours. " * 100)


def folder_for_the_lock(root: Root) -> None:
    (root.state / "runner.lock").mkdir()


@pytest.mark.parametrize(
    "spoil",
    [
        file_for_the_workspaces,
        file_for_the_state,
        folder_for_the_database,
        letter_for_the_database,
        folder_for_the_lock,
    ],
)
async def test_a_root_that_cannot_be_written_is_named_and_nothing_starts(
    house: Daemon, spoil: Callable[[Root], None]
):
    spoil(house.root)
    code, said = await house.refused(*QUIET)
    assert code == 1
    assert str(house.root.path) in said
    assert "Traceback" not in said
    assert house.root.read_runner() is None
