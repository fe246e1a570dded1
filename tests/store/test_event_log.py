"""The kept events: what was written is read, bounded in size and age, and a torn end is left out."""

import os
from pathlib import Path

import pytest

from store import event_log
from store.event_log import KEPT_S, EventLog


def test_events_are_read_from_where_the_reader_was(tmp_path: Path):
    log = EventLog(tmp_path / "events")
    kept = log.begin("ab12")
    for number in range(5):
        assert not kept.append(b'{"seq":%d}' % number)
    assert log.read("ab12", 3) == [b'{"seq":3}', b'{"seq":4}']
    assert log.read("ab12", 1, 3) == [b'{"seq":1}', b'{"seq":2}']
    assert log.read("ab12", 9) == []
    assert log.read("cd", 0) is None
    kept.close()
    assert (tmp_path / "events").stat().st_mode & 0o777 == 0o700
    assert (tmp_path / "events" / "ab12.jsonl").stat().st_mode & 0o777 == 0o600


def test_a_line_that_a_crash_cut_off_is_left_out(tmp_path: Path):
    log = EventLog(tmp_path)
    log.begin("ab").append(b"{}")
    with (tmp_path / "ab.jsonl").open("ab") as file:
        file.write(b'{"seq":')
    assert log.read("ab", 0) == [b"{}"]


def test_a_turn_that_says_too_much_is_not_kept_and_it_is_said_once(tmp_path: Path, monkeypatch):
    monkeypatch.setattr(event_log, "TURN_BYTES_MAX", 10)
    kept = EventLog(tmp_path).begin("ab")
    assert not kept.append(b"12345")
    assert kept.append(b"12345")
    assert not kept.append(b"1")
    assert "10 bytes" in str(kept.problem)
    # A beginning would look like all of it once the daemon has ended.
    assert EventLog(tmp_path).read("ab", 0) is None


def test_a_folder_that_cannot_be_written_is_a_problem_and_no_exception(tmp_path: Path):
    (tmp_path / "events").write_text("a file")
    kept = EventLog(tmp_path / "events").begin("ab")
    assert kept.problem is not None
    assert not kept.append(b"{}")
    kept.close()


def test_old_and_too_many_are_swept_the_oldest_first(tmp_path: Path, monkeypatch):
    log = EventLog(tmp_path)
    for number, name in enumerate(("a0", "a1", "a2", "a3")):
        log.begin(name).append(b"x" * 9)
        os.utime(tmp_path / f"{name}.jsonl", (1000 * number, 1000 * number))
    monkeypatch.setattr(event_log, "TOTAL_BYTES_MAX", 25)
    assert log.sweep(now_s=1000.0 + KEPT_S) == 2
    assert sorted(path.stem for path in tmp_path.iterdir()) == ["a2", "a3"]
    assert log.sweep(now_s=10_000.0 + KEPT_S) == 2


@pytest.mark.parametrize("name", ["", "../x", "AB", "a/b", "a" * 65])
def test_only_the_id_of_a_turn_becomes_a_file_name(tmp_path: Path, name: str):
    with pytest.raises(ValueError, match="not the id"):
        EventLog(tmp_path).read(name, 0)
