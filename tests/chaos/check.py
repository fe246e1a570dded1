"""The comparison: what clients were told with what the store holds, after each end of the daemon and at the last."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path

import apsw

from protocol.canonical import hash_of
from protocol.entry import Entry
from protocol.roster import Roster
from store.content import load_content
from store.database import StorageError, open_reader
from store.ledger import verify
from store.root import Root
from tests.chaos.mail import check_mail, check_notices
from tests.chaos.record import Asked, Life, Told, Violation
from tests.chaos.streams import check_streams, promised_words, streamed_text
from tests.chaos.view import SETTLED, LedgerView, texts_of_turn

KNOWN_STATE = re.compile(
    r"agent-runner\.db(-wal|-shm)?|runner\.(json|lock|new)|operator\.token|keys/sessions\.key|"
    r"log/agent-runner\.log(\.\d+)?|events/[0-9a-f]{32}\.jsonl"
)
TEMPORARY = re.compile(r"\.write-[0-9a-f]{16}\.tmp")
MARK = re.compile(r"\[\[(ask-\d+)\]\]")


@dataclass(slots=True)
class Checker:
    """Compares; `checks` counts what was looked at, by rule, and `left_behind` the temporary files that were found."""

    root: Root
    told: Told
    view: LedgerView = field(default_factory=LedgerView)
    checks: Counter[str] = field(default_factory=Counter)
    lives: list[Life] = field(default_factory=list)
    left_behind: int = 0
    streams_again: int = 0
    _proved: set[str] = field(default_factory=set)
    _ended: dict[str, str] = field(default_factory=dict)
    _written: dict[str, str] = field(default_factory=dict)
    _files: set[str] = field(default_factory=set)

    @property
    def _roster(self) -> Roster:
        return load_content(self.root.platform).roster

    def after_an_end(self) -> list[Violation]:
        """Compare while no daemon runs: all that was acknowledged stands, nothing took effect without its verdict."""
        if not any(life.ready_s is not None for life in self.lives) and not self._has_database():
            return []  # killed before there was one: nobody can have been told anything
        with closing(open_reader(self.root.database)) as database:
            return [
                *self.check_ledger(database),
                *self.check_turns(database),
                *self.check_mail_stands(database),
                *self.check_board(database),
                *self.check_effects(database),
                *self.check_sessions(database),
                *self.check_leftovers(),
            ]

    def after_a_start(self, began_at: str) -> list[Violation]:
        """Compare right after a start that began its clock at `began_at`: nothing of an earlier life still runs."""
        with closing(open_reader(self.root.database)) as database:
            self.checks["no session is stuck after recovery"] += 1
            found = database.execute(
                "SELECT id, session_id, started_at FROM turns WHERE status = 'running' AND started_at < ?",
                (began_at,),
            ).fetchall()
            found += database.execute(
                "SELECT id, session_key, last_activity FROM sessions s WHERE state = 'running' AND NOT EXISTS "
                "(SELECT 1 FROM turns t WHERE t.session_id = s.id AND t.status = 'running')"
            ).fetchall()
            return [Violation("no session is stuck after recovery", str(row)) for row in found]

    def at_the_last(self) -> list[Violation]:
        """Compare when everything has come to rest and the last daemon has ended."""
        with closing(open_reader(self.root.database)) as database:
            return [
                *self.after_an_end(),
                *self.check_rest(database),
                *check_mail(database, self.view, self._roster, self.checks),
                *check_notices(database, self.view, self._roster, self.lives, self.checks),
            ]

    def _has_database(self) -> bool:
        try:
            open_reader(self.root.database).close()
        except StorageError:
            return False
        return True

    # --- the ledger

    def check_ledger(self, database: apsw.Connection) -> Iterator[Violation]:
        """The ledger verifies, and holds every entry that a client saw."""
        self.checks["the ledger verifies"] += 1
        verification = verify(database)
        if not verification.ok:
            yield Violation("the ledger verifies", str(verification.first_bad))
        self.view.read(database)
        for asked in self.told.asked:
            if asked.token not in self._proved:
                yield from self._check_entries(asked)

    def _check_entries(self, asked: Asked) -> Iterator[Violation]:
        for event in asked.known.values():
            if "entry" in event:
                self.checks["an entry that was seen stands in the ledger"] += 1
                entry = self.view.entries.get(event["entry"]["cid"])
                if entry is None or entry.payload != event["entry"]["payload"]:
                    yield Violation(
                        "an entry that was seen stands in the ledger", f"{asked.token}: {event} is {entry}"
                    )
            elif event["type"] == "tool_result" and not event["is_error"]:
                self.checks["a tool result that was seen stands in the ledger"] += 1
                if (asked.session, event["id"]) not in self.view.answered:
                    yield Violation(
                        "a tool result that was seen stands in the ledger", f"{asked.token}: {event}"
                    )
            elif event["type"] == "tool_execute":
                self.checks["a call is ordered after its entry"] += 1
                if (asked.session, event["id"]) not in self.view.called:
                    yield Violation("a call is ordered after its entry", f"{asked.token}: {event}")

    # --- turns

    def check_turns(self, database: apsw.Connection) -> Iterator[Violation]:
        """Each turn ended once, as its client was told, with the text that its client saw."""
        for asked in self.told.asked:
            if asked.token in self._proved:
                continue
            self.checks["a turn is what its client saw"] += 1
            yield from check_streams(asked)
            yield from self._check_stored(database, asked)
            if _has_written(asked):
                self._written[asked.path] = str(asked.content)
            if not asked.is_open:
                self._prove(asked)
        rows = database.execute("SELECT id, status, cid FROM turns WHERE status != 'running'").fetchall()
        for turn, status, cid in rows:
            self.checks["a turn that ended has one entry"] += 1
            ends = self.view.ends.get(turn, [])
            if [(end.cid, end.payload["status"]) for end in ends] != [(cid, status)]:
                yield Violation("a turn that ended has one entry", f"turn {turn} is {status} {cid}: {ends}")
        asked_for = Counter(
            token
            for (content,) in database.execute(
                "SELECT content FROM history WHERE role = 'user' AND mail = 0 AND content LIKE '%[[ask-%'"
            )
            for token in MARK.findall(content)
        )
        for token, times in asked_for.items():
            self.checks["a turn that is asked for again runs once"] += 1
            if times > 1:
                yield Violation("a turn that is asked for again runs once", f"{token} ran {times} times")

    def _prove(self, asked: Asked) -> None:
        """Keep of a turn that was held against the store what the end of the campaign asks for, and no events."""
        self._proved.add(asked.token)
        self.streams_again += max(0, len(asked.streams) - 1)
        if asked.turn_id is not None and any(stream.result for stream in asked.streams):
            self._ended[asked.turn_id] = next(
                stream.result["status"] for stream in asked.streams if stream.result
            )
        asked.streams.clear()

    def _check_stored(self, database: apsw.Connection, asked: Asked) -> Iterator[Violation]:
        turn = asked.turn_id
        if turn is None:
            return
        row = database.execute(
            "SELECT t.status, idempotency_key FROM turns t JOIN sessions s ON s.id = session_id "
            "WHERE t.id = ? AND session_key = ?",
            (turn, asked.session),
        ).fetchone()
        where = f"{asked.session} {asked.token} (turn {turn})"
        if row is None:
            # A turn that could not even begin is named too; then nothing but its end follows.
            if len(asked.known) > 1 and not (
                {event["type"] for event in asked.events} <= {"turn_started", "error"}
            ):
                yield Violation("a turn that was told of stands in the store", where)
            return
        status, key = row
        if key != asked.key:
            yield Violation("a turn has its key", f"{where}: {key!r}, asked with {asked.key!r}")
        results = {stream.result["status"] for stream in asked.streams if stream.result}
        if results - {status}:
            yield Violation(
                "a turn ended as its client was told", f"{where}: {results}, the store says {status}"
            )
        if asked.ends and not results and status in SETTLED:
            yield Violation(
                "a turn ended as its client was told", f"{where}: {asked.ends}, the store says {status}"
            )
        yield from self._check_text(database, asked, str(status), where)

    def _check_text(
        self, database: apsw.Connection, asked: Asked, status: str, where: str
    ) -> Iterator[Violation]:
        known = asked.known
        if not asked.ends or not known or sorted(known) != list(range(len(known))):
            return  # not all of it was seen, or not yet
        self.checks["no character of streamed text is lost"] += 1
        streamed, kept = streamed_text(asked), texts_of_turn(database, asked.turn_id or "")
        if status == "complete" and streamed != kept:
            yield Violation(
                "no character of streamed text is lost", f"{where}: {streamed!r}, kept is {kept!r}"
            )
        if status != "complete" and not streamed.startswith(kept):
            yield Violation(
                "no character of streamed text is lost", f"{where}: {streamed!r}, kept is {kept!r}"
            )
        if status == "complete" and promised_words(asked) not in streamed:
            yield Violation(
                "no character of streamed text is lost", f"{where}: {asked.words} words in {streamed!r}"
            )

    # --- what was acknowledged

    def check_mail_stands(self, database: apsw.Connection) -> Iterator[Violation]:
        """Mail that was taken is in the store, as it was sent, once."""
        stored = {
            mail_id: (recipient, body)
            for mail_id, recipient, body in database.execute(
                "SELECT id, recipient, body FROM mail WHERE sender = 'operator'"
            )
        }
        times_stored = Counter(
            token for _, body in stored.values() for token in set(re.findall(r"mail-\d+", body))
        )
        for mail in self.told.mails:
            self.checks["acknowledged mail stands"] += 1
            if mail.id is not None and stored.get(mail.id, ("", ""))[0] != mail.to:
                yield Violation("acknowledged mail stands", f"{mail} is {stored.get(mail.id)}")
            if times_stored[mail.token] > 1:
                yield Violation("mail is stored once", f"{mail} stands {times_stored[mail.token]} times")

    def check_board(self, database: apsw.Connection) -> Iterator[Violation]:
        """A line that was acknowledged stands once, any other at most once."""
        lines = Counter(
            str(text) for (text,) in database.execute("SELECT text FROM board WHERE agent = 'operator'")
        )
        for post in self.told.posts:
            self.checks["an acknowledged line stands on the board"] += 1
            least = 0 if post.line is None else 1
            if not least <= lines[post.text] <= 1:
                yield Violation(
                    "an acknowledged line stands on the board", f"{post}: {lines[post.text]} times"
                )

    def check_sessions(self, database: apsw.Connection) -> Iterator[Violation]:
        """A session that was opened is there, the same each time; one that was closed is closed."""
        rows = {
            key: (found, state)
            for key, found, state in database.execute("SELECT session_key, id, state FROM sessions")
        }
        for kept in self.told.sessions.values():
            if not kept.opened:
                continue
            self.checks["an acknowledged session stands"] += 1
            found, state = rows.get(kept.key, (None, None))
            told = {(answer["session_id"], answer["session_token"]) for answer in kept.opened}
            if len(told) != 1 or found != kept.opened[0]["session_id"]:
                yield Violation("an acknowledged session stands", f"{kept.key}: {told}, stored is {found}")
            if (
                self.view.lifecycle[kept.key, "opened"] != 1
                or self.view.lifecycle[kept.key, "closed"] < kept.closed
            ):
                yield Violation(
                    "an acknowledged session stands",
                    f"{kept.key}: closed {kept.closed} times, {self.view.lifecycle}",
                )
            if kept.is_closed and state != "closed":
                yield Violation("a session that was closed is closed", f"{kept.key} is {state}")

    # --- effects

    def check_effects(self, database: apsw.Connection) -> Iterator[Violation]:
        """Each file, message and line of an agent has its call, let through by a verdict; each result its effect."""
        yield from self._check_files()
        for path, content in self._written.items():
            self.checks["a file whose writing was told of is there"] += 1
            file = self.root.path / path
            if not file.is_file() or file.read_text(encoding="utf-8") != content:
                yield Violation("a file whose writing was told of is there", path)
        mails = Counter(
            hash_of({"to": to, "subject": subject, "body": body})
            for to, subject, body in database.execute(
                "SELECT recipient, subject, body FROM mail WHERE sender NOT IN ('operator', 'runner')"
            )
        )
        calls = {
            hash_ for hash_, found in self.view.calls.items() if found[0].payload["tool"] == "send_message"
        }
        for hash_ in calls | set(mails):
            self.checks["an effect has a verdict, a call and a result"] += 1
            completed = self.view.completed(hash_)
            if mails[hash_] != completed or not self._is_allowed(hash_, completed):
                yield Violation(
                    "an effect has a verdict, a call and a result",
                    f"{mails[hash_]} messages, {completed} completed: {self.view.calls.get(hash_)}",
                )
        yield from self._check_lines(database)

    def _check_lines(self, database: apsw.Connection) -> Iterator[Violation]:
        # The board folds what is posted into one line, so that it is not what the call's hash is of.
        lines = Counter(
            str(agent) for (agent,) in database.execute("SELECT agent FROM board WHERE agent != 'operator'")
        )
        posted = Counter(
            call.actor
            for calls in self.view.calls.values()
            for call in calls
            for result in self.view.results.get(call.cid, ())
            if (call.payload["tool"], result.payload["outcome"]) == ("post_board", "completed")
            and self._lets_through(call)
        )
        self.checks["an effect has a verdict, a call and a result"] += sum(lines.values())
        if lines != posted:
            yield Violation(
                "an effect has a verdict, a call and a result",
                f"lines by agent {lines}, calls that were let through and completed {posted}",
            )

    def _check_files(self) -> Iterator[Violation]:
        for file in self.root.workspaces.rglob("*.txt"):
            name = str(file.relative_to(self.root.path))
            if name in self._files or self.root.state in file.parents:
                continue
            self.checks["a file was written by a call that was let through"] += 1
            input_hash = hash_of({"path": name, "content": file.read_text(encoding="utf-8")})
            if not self._is_allowed(input_hash, 1):
                yield Violation("a file was written by a call that was let through", f"{name}: {input_hash}")
            self._files.add(name)

    def _is_allowed(self, input_hash: str, times: int) -> bool:
        return sum(self._lets_through(call) for call in self.view.calls.get(input_hash, ())) >= times

    def _lets_through(self, call: Entry) -> bool:
        verdict = self.view.entries.get(call.parents[0])
        return verdict is not None and (
            verdict.quality,
            verdict.payload["verdict"],
            verdict.payload["phase"],
        ) == ("policy_verdict", "allowed", "call")

    def check_leftovers(self) -> Iterator[Violation]:
        """Only known files lie in the state folder; of half-written files at most one for each end of the daemon."""
        self.checks["nothing is left over"] += 1
        found = [
            str(file.relative_to(self.root.state)) for file in self.root.state.rglob("*") if file.is_file()
        ]
        unknown = [name for name in found if not KNOWN_STATE.fullmatch(name)]
        temporary = [file for file in self._workspace_files() if TEMPORARY.fullmatch(file.name)]
        strange = [
            str(file)
            for file in self._workspace_files()
            if file.suffix not in (".txt", ".md") and file not in temporary
        ]
        self.left_behind = len(temporary)
        if unknown or strange:
            yield Violation("nothing is left over", f"{[*unknown, *strange]}")

    def _workspace_files(self) -> list[Path]:
        return [
            file
            for file in self.root.workspaces.rglob("*")
            if self.root.state not in file.parents and file.is_file()
        ]

    # --- when all has come to rest

    def check_rest(self, database: apsw.Connection) -> Iterator[Violation]:
        """Nothing runs any more, and no mail is held by a turn."""
        self.checks["everything comes to rest"] += 1
        for statement in (
            "SELECT id, session_id FROM turns WHERE status = 'running' OR cid IS NULL",
            "SELECT id, session_key FROM sessions WHERE state = 'running'",
            "SELECT mail_id, turn_id FROM mail_claims",
        ):
            for row in database.execute(statement):
                yield Violation("everything comes to rest", f"{statement}: {row}")
        stored = dict(database.execute("SELECT id, status FROM turns").fetchall())
        for turn, status in self._ended.items():
            if stored.get(turn) != status:
                yield Violation(
                    "a turn ended as its client was told", f"{turn}: {status}, stored {stored.get(turn)}"
                )
        for row in database.execute("SELECT session_id, count(*), max(seq) FROM history GROUP BY session_id"):
            if row[1] != row[2] + 1:
                yield Violation("a history has no gap", str(row))


def _has_written(asked: Asked) -> bool:
    """Say whether the client was told that the file it asked for was written."""
    calls = {
        event["id"]
        for event in asked.events
        if event["type"] == "tool_call" and event["input"].get("path") == asked.path
    }
    return asked.path is not None and any(
        event["type"] == "tool_result" and event["id"] in calls and not event["is_error"]
        for event in asked.events
    )
