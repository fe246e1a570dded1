"""The comparison finds nothing in a history that happened, and each forgery of it by its name."""

from __future__ import annotations

import copy
import random
import shutil
import signal
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
import trio

from actors.client import connect
from protocol.entry import compose_entry
from store.clock import StrictClock
from store.database import open_writer
from store.ledger import AppendEntry
from store.root import Root
from tests.chaos.campaign import is_at_rest
from tests.chaos.check import Checker
from tests.chaos.load import Load, Visitor
from tests.chaos.record import Asked, Life, Mailed, Posted, Stream, Told
from tests.chaos.streams import check_streams
from tests.chaos.victim import Victim


@dataclass
class History:
    """A root that a daemon left, and what its clients were told."""

    root: Root
    told: Told

    def rules(self) -> set[str]:
        """Return which promises the comparison finds broken."""
        checker = Checker(self.root, self.told, lives=[Life(1, "load", ready_s=1.0)])
        return {violation.rule for violation in checker.at_the_last()}

    def change(self, statement: str, *values: object) -> None:
        """Forge the store."""
        database = open_writer(self.root.database)
        database.execute("PRAGMA foreign_keys = OFF")
        database.execute(
            "DROP TRIGGER IF EXISTS ledger_is_never_updated; DROP TRIGGER IF EXISTS ledger_is_never_deleted"
        )
        database.execute(statement, values)
        assert database.changes() > 0, "the forgery changed nothing"
        database.close()


async def live_and_be_killed(house: Victim, told: Told) -> None:
    """Do one of everything, be killed in the middle of a turn, settle what is open, come to rest."""
    visitor = Visitor(0, Load(told), random.Random(1))
    key = visitor.kept.key

    def ask(token: str, asks: str, **fields: object) -> Asked:
        asked = Asked(key, token, f"[[{token}]]\n{asks}", token, **fields)
        told.asked.append(asked)
        visitor._open.append(asked)
        return asked

    async def run(client, asked: Asked) -> Exception | None:
        return await visitor._follow(client, asked, client.turn(visitor._request(asked)), 0, None)

    house.spawn("--backend", "rehearsal", "--no-heartbeat")
    assert await house.ready()
    async with connect(house.url, house.token) as client:
        await visitor._init(client)
        path, content = "workspaces/agents/kavi/ask-2.txt", "ask-2 was here"
        await run(client, ask("ask-1", "slow 3 1ms", words=3))
        await run(client, ask("ask-2", f"write {path}: {content}", path=path, content=content))
        await run(client, ask("ask-3", "mail lina about ask-3: note ask-3 and also post: ask-3 was here"))
        mail = Mailed("mail-1", "reed")
        told.mails.append(mail)
        mail.id = (
            await client.call("mail.send", {"to": "reed", "subject": "about mail-1", "body": "note mail-1"})
        )["id"]
        post = Posted("news post-1")
        told.posts.append(post)
        post.line = (await client.call("board.post", {"text": post.text}))["line"]
        cut = ask("ask-4", "slow 400 10ms", words=400)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(run, client, cut)
            with trio.fail_after(30):
                while len(cut.known) < 40:  # noqa: ASYNC110 - another process sets no event
                    await trio.sleep(0.01)
            house.strike(signal.SIGKILL)
    await house.ended()
    house.spawn("--backend", "rehearsal", "--no-heartbeat")
    assert await house.ready()
    async with connect(house.url, house.token) as client:
        await visitor._init(client)
        await visitor._settle(client, cut)
        await visitor._call(client, "session.close", session_key=key)
        visitor.kept.closed, visitor.kept.is_closed = 1, True
        with trio.fail_after(60):
            while not await is_at_rest(house):  # noqa: ASYNC110 - the same
                await trio.sleep(0.05)
    house.strike(signal.SIGTERM)
    assert await house.ended() == 0


@pytest.fixture(scope="module")
def lived(tmp_path_factory: pytest.TempPathFactory) -> Iterator[History]:
    told = Told()
    with Victim(tmp_path_factory.mktemp("chaos") / "root") as house:
        trio.run(live_and_be_killed, house, told)
        yield History(house.root, told)


@pytest.fixture
def history(lived: History, tmp_path: Path) -> History:
    shutil.copytree(lived.root.path, tmp_path / "root")
    return History(Root(tmp_path / "root"), copy.deepcopy(lived.told))


def test_a_history_that_happened_breaks_no_promise(history: History):
    cut = next(asked for asked in history.told.asked if asked.token == "ask-4")
    assert len(cut.streams) > 1
    assert history.rules() == set()


FORGERIES: dict[str, tuple[str, str]] = {
    "an acknowledged message is gone": (
        "DELETE FROM mail WHERE sender = 'operator'",
        "acknowledged mail stands",
    ),
    "a message stands twice": (
        (
            "INSERT INTO mail SELECT number + 1000, 'other', sender, recipient, subject, body, thread, sent_at, "
            "expires_at, tier, hops FROM mail WHERE sender = 'operator'"
        ),
        "mail is stored once",
    ),
    "nobody read a message": ("DELETE FROM mail_receipts WHERE reader = 'reed'", "no mail is lost"),
    "somebody read what was not for them": (
        "INSERT INTO mail_receipts SELECT id, 'scout', sent_at FROM mail WHERE sender = 'operator'",
        "no mail is lost",
    ),
    "a message is held by a turn": (
        "INSERT INTO mail_claims SELECT id, 'reed', 'ab' FROM mail LIMIT 1",
        "everything comes to rest",
    ),
    "an entry is gone": (
        "DELETE FROM ledger WHERE quality = 'tool_call' AND payload LIKE '%write_file%'",
        "the ledger verifies",
    ),
    "an entry is changed": (
        "UPDATE ledger SET payload = replace(payload, 'allowed', 'blocked') WHERE quality = 'policy_verdict'",
        "an entry that was seen stands in the ledger",
    ),
    "a line is gone": (
        "DELETE FROM board WHERE agent = 'operator'",
        "an acknowledged line stands on the board",
    ),
    "a line stands twice": (
        "INSERT INTO board SELECT number + 1000, agent, text, posted_at FROM board WHERE agent = 'operator'",
        "an acknowledged line stands on the board",
    ),
    "an agent's line has no call": (
        "INSERT INTO board SELECT number + 1000, agent, text, posted_at FROM board WHERE agent = 'kavi'",
        "an effect has a verdict, a call and a result",
    ),
    "an agent's message has a call and is gone": (
        "DELETE FROM mail WHERE sender = 'kavi'",
        "an effect has a verdict, a call and a result",
    ),
    "a session is gone": (
        "DELETE FROM sessions WHERE session_key LIKE 'kavi:chaos:%'",
        "an acknowledged session stands",
    ),
    "a closed session is open": (
        "UPDATE sessions SET state = 'idle' WHERE session_key LIKE 'kavi:chaos:%'",
        "a session that was closed is closed",
    ),
    "a session runs for ever": (
        "UPDATE sessions SET state = 'running' WHERE session_key LIKE 'lina:%'",
        "everything comes to rest",
    ),
    "a turn has no end": (
        "UPDATE turns SET status = 'running', cid = NULL WHERE status = 'interrupted'",
        "everything comes to rest",
    ),
    "a turn ended otherwise": (
        "UPDATE turns SET status = 'failed' WHERE status = 'complete'",
        "a turn ended as its client was told",
    ),
    "a turn ended without an entry": ("UPDATE turns SET cid = 'ab'", "a turn that ended has one entry"),
    "a turn is gone": (
        "DELETE FROM turns WHERE idempotency_key = 'ask-1'",
        "a turn that was told of stands in the store",
    ),
    "a turn lost its key": (
        "UPDATE turns SET idempotency_key = NULL WHERE idempotency_key = 'ask-1'",
        "a turn has its key",
    ),
    "a turn ran twice": (
        (
            "INSERT INTO history SELECT id + 1000, session_id, turn_id, seq + 1000, role, content, created_at, mail "
            "FROM history WHERE content LIKE '%[[ask-1]]%'"
        ),
        "a turn that is asked for again runs once",
    ),
    "a history has a gap": (
        "UPDATE history SET seq = seq + 1000 WHERE role = 'assistant'",
        "a history has no gap",
    ),
    "a character is lost": (
        "UPDATE history SET content = replace(content, 'word2', 'wrd2') WHERE role = 'assistant'",
        "no character of streamed text is lost",
    ),
    "an agent was not told of an interruption": (
        "UPDATE mail SET body = 'nothing' WHERE sender = 'runner'",
        "the agent of an interrupted turn is told",
    ),
}


@pytest.mark.parametrize("name", FORGERIES)
def test_a_forged_store_is_found_out(history: History, name: str):
    statement, rule = FORGERIES[name]
    history.change(statement)
    assert rule in history.rules()


def test_mail_that_two_completed_turns_carried_is_found_out(history: History):
    database = open_writer(history.root.database)
    [mail] = [mail.id for mail in history.told.mails]
    clock = StrictClock()
    for quality, payload in (
        ("mailbox_inject", {"message_id": mail, "sender": "operator", "content_hash": "ab"}),
        ("turn", {"turn_id": "cd" * 16, "agent": "reed", "status": "complete"}),
    ):
        entry, _ = compose_entry(
            entity_id="reed:cli:local",
            target="ab",
            quality=quality,
            timestamp=clock.stamp(),
            source="reed:cli:local",
            actor="reed",
            parents=[],
            payload=payload,
        )
        AppendEntry(entry).apply(database)
    database.close()
    assert history.rules() == {"mail is carried by one completed turn"}


def test_an_interruption_that_nobody_recorded_is_found_out(history: History):
    history.change(
        "UPDATE ledger SET payload = replace(payload, '\"interrupted\"', '\"opened\"') "
        "WHERE quality = 'session_lifecycle'"
    )
    assert "an interruption is on record" in history.rules()


def test_files_that_nobody_may_have_left_are_found_out(history: History):
    (history.root.workspaces / "agents" / "kavi" / "more.txt").write_text("nobody was asked")
    (history.root.state / "core.17").write_text("left")
    (history.root.workspaces / "agents" / "kavi" / "ask-2.txt").write_text("somebody else was here")
    assert history.rules() == {
        "a file was written by a call that was let through",
        "a file whose writing was told of is there",
        "nothing is left over",
    }


def test_a_turn_of_an_earlier_life_that_still_runs_is_found_out(history: History):
    history.change("UPDATE turns SET status = 'running', started_at = '2020' WHERE idempotency_key = 'ask-1'")
    history.change("UPDATE sessions SET state = 'running' WHERE session_key LIKE 'lina:%'")
    found = Checker(history.root, history.told).after_a_start("2021")
    assert [violation.rule for violation in found] == ["no session is stuck after recovery"] * 2


def test_a_root_without_a_database_is_nothing_as_long_as_nobody_was_told_anything(tmp_path: Path):
    assert Checker(Root(tmp_path), Told(), lives=[Life(1, "start")]).after_an_end() == []


# --- streams, without a store

STARTED = {"type": "turn_started", "turn_id": "ab", "seq": 0}
WORD = {"type": "text_delta", "text": "one", "seq": 1}
DONE = {"type": "done", "stop_reason": "end_turn", "seq": 2}
COMPLETE = {"status": "complete", "turn_id": "ab"}
FAILED = {"type": "error", "code": "internal", "message": "ended in the middle", "seq": 2}
CUT = ("internal", "ended in the middle of it")


def other_word(event: dict) -> dict:
    return {**event, "text": "two"}


@pytest.mark.parametrize(
    ("streams", "rules"),
    [
        ([Stream(0, [STARTED, WORD]), Stream(2, [DONE], COMPLETE)], set()),
        ([Stream(0, [STARTED, WORD]), Stream(0, [STARTED, WORD, FAILED], None, CUT)], set()),
        (
            [Stream(0, [STARTED, DONE], COMPLETE)],
            {"events are numbered without a gap", "nothing of a turn is missing"},
        ),
        (
            [Stream(0, [STARTED, WORD]), Stream(0, [STARTED, other_word(WORD), DONE], COMPLETE)],
            {"what was seen is replayed as it was"},
        ),
        (
            [Stream(0, [STARTED, WORD]), Stream(2, [DONE], {**COMPLETE, "turn_id": "cd"})],
            {"one key, one turn"},
        ),
        (
            [Stream(0, [STARTED, WORD], None, ("internal", "incident 17"))],
            {"no fault is told", "the last event is the end"},
        ),
        ([Stream(0, [STARTED, WORD])], {"every turn that began has an end"}),
        (
            [Stream(0, [STARTED, WORD, DONE], COMPLETE), Stream(0, [], None, CUT)],
            {"a turn ends once"},
        ),
        ([Stream(0, [{**WORD, "seq": 0}, {**DONE, "seq": 1}], COMPLETE)], {"a turn begins with its name"}),
    ],
)
def test_streams_of_a_turn_that_do_not_fit_are_found_out(streams: list[Stream], rules: set[str]):
    asked = Asked("calli:chaos:1", "ask-1", "", "ask-1", streams=streams, is_open=False)
    assert {violation.rule for violation in check_streams(asked)} == rules
