"""The one writer: many units in one commit, nobody answered before the disk, nobody left without an answer."""

from __future__ import annotations

import threading
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import apsw
import pytest
import trio
import trio.testing

from actors import ledger_writer
from actors.kernel import ChildSpec, Ref, open_system
from actors.ledger_writer import BATCH_FAST, BATCH_SLOW, LedgerWriter, WriterFigures, commit
from store.board import Post, PostBoard, last_posts
from store.database import StorageError, open_reader, open_writer
from store.unit_of_work import ConflictError
from tests.support.storage import at


@dataclass
class Desk:
    """A writer, what it counts, and a reader's connection to what it wrote."""

    writer: Ref
    figures: WriterFigures
    database: apsw.Connection
    connections: list[apsw.Connection]

    @property
    def posts(self) -> list[str]:
        return [post.text for post in last_posts(self.database, 10_000)]


@asynccontextmanager
async def open_desk(path: Path) -> AsyncIterator[Desk]:
    figures = WriterFigures()
    connections: list[apsw.Connection] = []

    def open_database() -> apsw.Connection:
        connections.append(open_writer(path))
        return connections[-1]

    async with open_system(ChildSpec("writer", lambda: LedgerWriter(open_database, figures))) as system:
        reader = open_reader(path)
        with trio.fail_after(20):
            yield Desk(system.root, figures, reader, connections)
        reader.close()


def post(text: str) -> PostBoard:
    return PostBoard(Post("reed", text, at()))


@dataclass
class Stalled:
    """A write whose commit takes until it is let go."""

    reached: threading.Event = field(default_factory=threading.Event)
    release: threading.Event = field(default_factory=threading.Event)

    def apply(self, database: apsw.Connection) -> str:
        def hold() -> bool:
            database.set_commit_hook(None)
            self.reached.set()
            assert self.release.wait(20)
            return False

        database.set_commit_hook(hold)
        return "went on"


@dataclass(frozen=True)
class Refused:
    def apply(self, _database: apsw.Connection) -> None:
        raise ConflictError("somebody was quicker")


@dataclass(frozen=True)
class Failing:
    error: Exception

    def apply(self, _database: apsw.Connection) -> None:
        raise self.error


async def at_the_disk(stalled: Stalled) -> None:
    await trio.to_thread.run_sync(stalled.reached.wait)


async def test_units_that_arrive_during_a_commit_share_the_next_one(tmp_path: Path):
    async with open_desk(tmp_path / "a.db") as desk:
        async with trio.open_nursery() as nursery:
            stalled = Stalled()
            nursery.start_soon(commit, desk.writer, stalled)
            await at_the_disk(stalled)
            for number in range(20):
                nursery.start_soon(commit, desk.writer, post(str(number)))
            await trio.testing.wait_all_tasks_blocked()
            stalled.release.set()
        assert (desk.figures.units, desk.figures.commits, desk.figures.failing) == (21, 2, None)


@pytest.mark.parametrize(
    ("slow_s", "batch_max"), [(0.0, BATCH_SLOW), (1000.0, BATCH_FAST)], ids=["slow disk", "fast disk"]
)
async def test_no_more_than_a_batch_shares_a_commit(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, slow_s: float, batch_max: int
):
    monkeypatch.setattr(ledger_writer, "SLOW_S", slow_s)
    async with open_desk(tmp_path / "a.db") as desk:
        async with trio.open_nursery() as nursery:
            stalled = Stalled()
            nursery.start_soon(commit, desk.writer, stalled)
            await at_the_disk(stalled)
            for number in range(batch_max + 1):
                nursery.start_soon(commit, desk.writer, post(str(number)))
            await trio.testing.wait_all_tasks_blocked()
            stalled.release.set()
        assert desk.figures.commits == 3
        assert sorted(desk.posts, key=int) == [str(number) for number in range(batch_max + 1)]


async def test_a_batch_waits_in_the_thread_while_another_process_writes(tmp_path: Path):
    path = tmp_path / "a.db"
    async with open_desk(path) as desk:
        other = apsw.Connection(str(path))
        other.execute("BEGIN IMMEDIATE")
        async with trio.open_nursery() as nursery:
            nursery.start_soon(commit, desk.writer, post("patient"))
            for _ in range(10):
                await trio.sleep(0.01)  # the loop goes on
            assert desk.posts == []
            other.execute("ROLLBACK")
        assert desk.posts == ["patient"]
        assert desk.figures.failing is None
        other.close()


async def test_nobody_is_answered_before_it_is_on_the_disk_and_the_loop_goes_on_meanwhile(tmp_path: Path):
    async with open_desk(tmp_path / "a.db") as desk:
        answered: list[Any] = []

        async def write(*writes: Any) -> None:
            answered.append(await commit(desk.writer, *writes))
            assert "kept" in desk.posts  # another connection sees it by the time of the answer

        async with trio.open_nursery() as nursery:
            stalled = Stalled()
            nursery.start_soon(write, post("kept"), stalled)
            await at_the_disk(stalled)
            await trio.testing.wait_all_tasks_blocked()
            assert answered == []
            assert desk.posts == []
            stalled.release.set()
        assert answered == [[None, "went on"]]


async def test_one_unit_that_is_refused_is_answered_so_and_the_others_stand(tmp_path: Path):
    async with open_desk(tmp_path / "a.db") as desk:
        async with trio.open_nursery() as nursery:
            stalled = Stalled()
            nursery.start_soon(commit, desk.writer, stalled)
            await at_the_disk(stalled)
            nursery.start_soon(commit, desk.writer, post("before"))

            async def refused() -> None:
                with pytest.raises(ConflictError, match="quicker"):
                    await commit(desk.writer, post("undone"), Refused())

            nursery.start_soon(refused)
            nursery.start_soon(commit, desk.writer, post("behind"))
            await trio.testing.wait_all_tasks_blocked()
            stalled.release.set()
        assert sorted(desk.posts) == ["before", "behind"]
        assert desk.figures.failing is None


async def test_a_full_disk_is_told_to_everyone_shows_in_the_figures_and_passes(tmp_path: Path):
    async with open_desk(tmp_path / "a.db") as desk:
        await commit(desk.writer, post("before"))
        [connection] = desk.connections
        pages = connection.pragma("page_count")
        connection.pragma("max_page_count", pages)
        answers: list[str] = []

        async def write(text: str) -> None:
            with pytest.raises(StorageError) as failed:
                await commit(desk.writer, post(text))
            answers.append(failed.value.message)

        async with trio.open_nursery() as nursery:
            for letter in "abc":
                nursery.start_soon(write, letter * 5_000)
        assert len(answers) == 3
        assert all("full" in answer and "disk" in answer for answer in answers)
        assert desk.figures.failing == answers[-1]
        assert desk.posts == ["before"]

        connection.pragma("max_page_count", 1_000_000)
        await commit(desk.writer, post("after"))
        assert desk.figures.failing is None
        assert desk.posts == ["before", "after"]
        assert len(desk.connections) == 1


async def test_a_write_with_a_fault_is_answered_and_the_writer_goes_on(tmp_path: Path):
    async with open_desk(tmp_path / "a.db") as desk:
        with pytest.raises(ZeroDivisionError):
            await commit(desk.writer, post("undone"), Failing(ZeroDivisionError("a bug")))
        await commit(desk.writer, post("after"))
        assert desk.posts == ["after"]
        assert desk.figures.failures == 0


async def test_what_waits_at_the_end_is_still_committed(tmp_path: Path):
    path = tmp_path / "a.db"
    answers: list[Any] = []
    figures = WriterFigures()
    async with (
        trio.open_nursery() as outer,
        open_system(
            ChildSpec("writer", lambda: LedgerWriter(lambda: open_writer(path), figures), shutdown_s=10)
        ) as system,
    ):

        async def write(*writes: Any) -> None:
            answers.append(await commit(system.root, *writes))

        stalled = Stalled()
        outer.start_soon(write, stalled)
        await at_the_disk(stalled)
        outer.start_soon(write, post("one"))
        outer.start_soon(write, post("two"))
        await trio.testing.wait_all_tasks_blocked()
        outer.start_soon(system.stop)
        await trio.testing.wait_all_tasks_blocked()
        stalled.release.set()
    assert len(answers) == 3
    reader = open_reader(path)
    assert sorted(post.text for post in last_posts(reader, 10)) == ["one", "two"]
    reader.close()
    assert not path.with_name("a.db-wal").exists() or path.with_name("a.db-wal").stat().st_size == 0
