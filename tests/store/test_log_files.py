"""Reading a log back, over rotation, restarts and lines that are written in pieces."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from store.log_files import LogReader, log_files


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "agent-runner.log"


@pytest.fixture
def read(path: Path) -> Iterator[Callable[[], LogReader]]:
    """Gives readers of the log, and closes them at the end."""
    readers: list[LogReader] = []

    def make() -> LogReader:
        readers.append(LogReader(path))
        return readers[-1]

    yield make
    for reader in readers:
        reader.close()


def append(path: Path, text: str) -> None:
    with path.open("a") as file:
        file.write(text)


def put_aside(path: Path, kept: int = 3) -> None:
    path.with_name(f"{path.name}.{kept}").unlink(missing_ok=True)
    for number in range(kept, 1, -1):
        older = path.with_name(f"{path.name}.{number - 1}")
        if older.exists():
            older.rename(path.with_name(f"{path.name}.{number}"))
    path.rename(path.with_name(f"{path.name}.1"))


def added(reader: LogReader) -> list[str]:
    return list(reader.added(from_the_start=True))


def test_the_last_lines_reach_into_what_was_put_aside(path: Path, read: Callable[[], LogReader]) -> None:
    for number in range(12):
        append(path, f"line {number}\n")
        if number in (2, 5, 8):
            put_aside(path)
    path.with_name(path.name + ".old").write_text("not of the log\n")
    assert [found.name for found in log_files(path)] == [
        "agent-runner.log.3", "agent-runner.log.2", "agent-runner.log.1", "agent-runner.log",
    ]  # fmt: skip
    assert read().last(5) == [f"line {number}" for number in range(7, 12)]
    assert read().last(100) == [f"line {number}" for number in range(12)]
    assert read().last(0) == []


def test_what_is_added_is_read_once_over_several_rotations(path: Path, read: Callable[[], LogReader]) -> None:
    append(path, "a\n")
    reader = read()
    assert reader.last(10) == ["a"]
    append(path, "b\n")
    put_aside(path)
    append(path, "c\n")
    put_aside(path)
    append(path, "d\n")
    assert added(reader) == ["b", "c", "d"]
    assert added(reader) == []
    append(path, "e\n")
    assert added(reader) == ["e"]


def test_a_log_that_was_put_aside_and_not_begun_again_is_waited_for(
    path: Path, read: Callable[[], LogReader]
) -> None:
    append(path, "a\n")
    reader = read()
    assert reader.last(1) == ["a"]
    put_aside(path)
    assert added(reader) == []
    append(path, "b\n")
    assert added(reader) == ["b"]


def test_a_line_is_given_when_it_has_ended(path: Path, read: Callable[[], LogReader]) -> None:
    append(path, "one\ntw")
    reader = read()
    assert reader.last(10) == ["one"]
    append(path, "o\nthree")
    assert added(reader) == ["two"]


def test_a_log_that_is_not_there_yet_is_followed_from_its_first_line(
    path: Path, read: Callable[[], LogReader]
) -> None:
    reader = read()
    assert reader.last(10) == []
    append(path, "first\n")
    assert added(reader) == ["first"]


def test_a_log_that_was_cut_off_is_read_from_its_beginning(path: Path, read: Callable[[], LogReader]) -> None:
    append(path, "a long line that was there\n")
    reader = read()
    reader.last(1)
    path.write_text("new\n")
    added(reader)
    append(path, "newer\n")
    assert added(reader)[-1] == "newer"
