"""Conditions of the daemon: each appears with its cause and goes away with it, and says since when and what to do."""

from __future__ import annotations

import datetime as dt
import time
from collections.abc import Iterable
from pathlib import Path

import apsw
import pytest
import structlog

from actors.health import (
    CLOCK_SHOWN_S,
    COMMITS_WITHIN_S,
    FREE_BYTES_GOOD,
    FREE_BYTES_MIN,
    Found,
    Health,
)
from actors.ledger_writer import WriterFigures
from store.clock import StrictClock
from store.damage import Damage, damage_of
from store.database import StorageError, TouchDatabase, open_writer
from store.machine import Machine, Memory, cgroup_limit
from store.unit_of_work import UnitOfWork, commit_units
from tests.support.storage import NOON

MIB = 1024 * 1024


class Rehearsed(Machine):
    """A machine that is well until a test says otherwise."""

    def __init__(self) -> None:
        self.free = 100 * FREE_BYTES_GOOD
        self.files = (50, 1024)
        self.memory_now = Memory(100 * MIB, None, 8000 * MIB, 16000 * MIB)
        self.wall = self.steady = 1000.0

    def free_bytes(self, folder: Path) -> int:
        return self.free

    def open_files(self) -> tuple[int, int]:
        return self.files

    def memory(self) -> Memory:
        return self.memory_now

    def wall_s(self) -> float:
        return self.wall

    def steady_s(self) -> float:
        return self.steady


class Ward:
    """A health with everything that it looks at in the hands of a test."""

    def __init__(self) -> None:
        self.machine, self.writer, self.damage = Rehearsed(), WriterFigures(), Damage()
        self.now = NOON
        self.clock = StrictClock(now=lambda: self.now)
        self.more: list[Found] = []
        self.health = Health(
            Path("/"), self.writer, self.damage, lambda: self.clock, self._more, self.machine
        )

    def _more(self) -> Iterable[Found]:
        return self.more

    def look(self) -> dict[str, str]:
        """Return the conditions that there are, and how bad each is."""
        found = self.health.look()
        for one in found:
            assert one["what"]
            assert one["to_do"].endswith(".")
        return {one["name"]: one["severity"] for one in found}


@pytest.fixture
def ward() -> Ward:
    found = Ward()
    assert found.look() == {}
    return found


@pytest.mark.parametrize(
    ("cause", "name"),
    [
        (apsw.FullError, "disk_full"),
        (apsw.ReadOnlyError, "disk_read_only"),
        (apsw.IOError, "disk_io_error"),
        (apsw.CantOpenError, "disk_unusable"),
        (apsw.CorruptError, "database_damaged"),
        (apsw.BusyError, "database_held"),
    ],
)
def test_a_commit_that_failed_is_called_by_its_cause(ward: Ward, cause: type[apsw.Error], name: str):
    ward.writer.failing, ward.writer.cause = "the database did not take a commit", cause("…")
    assert ward.look() == {name: "failing"}
    ward.writer.failing = ward.writer.cause = None
    assert ward.look() == {}


@pytest.mark.parametrize(
    ("free", "expected"),
    [
        (FREE_BYTES_GOOD, {}),
        (FREE_BYTES_GOOD - 1, {"disk_low": "warning"}),
        (FREE_BYTES_MIN - 1, {"disk_low": "failing"}),
    ],
)
def test_room_that_runs_out_is_said_before_it_is_gone(ward: Ward, free: int, expected: dict[str, str]):
    ward.machine.free = free
    assert ward.look() == expected
    ward.machine.free = FREE_BYTES_GOOD
    assert ward.look() == {}


def test_slow_commits_are_shown_until_they_are_long_ago(ward: Ward):
    now = time.perf_counter()
    ward.writer.recent.extend((now, 0.002) for _ in range(99))
    ward.writer.recent.append((now, 1.5))
    assert ward.look() == {}  # one in a hundred
    ward.writer.recent.append((now, 1.2))
    assert ward.look() == {"disk_slow": "warning"}
    assert "takes 1.2 s or longer" in ward.health.look()[0]["what"]
    ward.writer.recent.clear()
    ward.writer.recent.append((now - COMMITS_WITHIN_S - 1, 60.0))
    assert ward.look() == {}


def test_a_commit_that_the_disk_does_not_end_is_seen_while_it_waits(ward: Ward):
    ward.writer.waiting_since = time.perf_counter() - 3
    assert ward.look() == {"disk_slow": "warning"}
    assert "has waited for the disk for 3." in ward.health.look()[0]["what"]
    ward.writer.waiting_since = None
    assert ward.look() == {}


@pytest.mark.parametrize(
    ("files", "expected"),
    [
        ((921, 1024), {}),
        ((922, 1024), {"files_low": "warning"}),
        ((1024, 1024), {"files_low": "failing"}),
        ((49, 64), {"files_low": "warning"}),
    ],
)
def test_files_that_run_out(ward: Ward, files: tuple[int, int], expected: dict[str, str]):
    ward.machine.files = files
    assert ward.look() == expected


@pytest.mark.parametrize(
    ("memory", "expected"),
    [
        (Memory(899 * MIB, 1000 * MIB, 8000 * MIB, 16000 * MIB), {}),
        (Memory(900 * MIB, 1000 * MIB, 8000 * MIB, 16000 * MIB), {"memory_low": "warning"}),
        (Memory(100 * MIB, None, 400 * MIB, 16000 * MIB), {"memory_low": "warning"}),
    ],
)
def test_memory_that_runs_out(ward: Ward, memory: Memory, expected: dict[str, str]):
    ward.machine.memory_now = memory
    assert ward.look() == expected


@pytest.mark.parametrize(
    ("seconds", "word"), [(3600.0, "set on by 3,600 s"), (-7200.0, "set back by 7,200 s")]
)
def test_a_clock_that_jumps_is_shown_for_a_while(ward: Ward, seconds: float, word: str):
    ward.machine.wall += 60
    ward.machine.steady += 60
    assert ward.look() == {}  # time that passes is no jump
    ward.machine.wall += seconds
    assert ward.look() == {"clock_jumped": "warning"}
    assert word in ward.health.look()[0]["what"]
    ward.machine.wall += CLOCK_SHOWN_S
    ward.machine.steady += CLOCK_SHOWN_S
    assert ward.look() == {}


def test_a_clock_behind_the_ledger_is_shown_until_it_has_caught_up(ward: Ward):
    ward.clock.stamp()
    ward.now -= dt.timedelta(hours=2)
    assert ward.look() == {"clock_behind": "warning"}
    assert "7,200 s behind the newest ledger entry" in ward.health.look()[0]["what"]
    ward.now += dt.timedelta(hours=2, seconds=1)
    assert ward.look() == {}


def test_what_was_found_damaged_stays_until_a_check_finds_nothing(ward: Ward, tmp_path: Path):
    path = tmp_path / "a.db"
    open_writer(path).close()
    ward.damage.note(apsw.SQLITE_FULL, "not about pages")
    assert ward.look() == {}
    ward.damage.note(apsw.SQLITE_CORRUPT | 3 << 8, "database corruption at line 1")
    assert ward.look() == {"database_damaged": "failing"}
    with path.open("r+b") as file:
        whole = file.read()
        file.seek(4096)
        file.write(b"\xde\xad" * 2048)
    ward.damage.look_again(path)
    assert ward.look() == {"database_damaged": "failing"}
    path.write_bytes(whole)
    ward.damage.look_again(path)
    assert ward.look() == {}


def test_a_reason_is_found_behind_what_was_raised():
    raised = StorageError("something else")
    raised.__cause__ = apsw.CorruptError("database disk image is malformed")
    found = damage_of(raised)
    assert found is not None
    assert found.startswith("the database is damaged (database disk image is malformed); stop the daemon")
    assert damage_of(ValueError("x")) is None


def test_since_when_stays_and_each_change_is_logged_once(ward: Ward):
    with structlog.testing.capture_logs() as log:
        ward.machine.free = 0
        [first] = ward.health.look()
        ward.machine.wall += 3600
        ward.machine.steady += 3600
        [second] = ward.health.look()
        ward.machine.free = 100 * FREE_BYTES_GOOD
        assert ward.look() == ward.look() == {}
        ward.machine.free = 0
        [third] = ward.health.look()
    assert first["since"] == second["since"] < third["since"]
    events = [(line["event"], line["condition"]) for line in log]
    assert events == [
        ("condition_began", "disk_low"),
        ("condition_ended", "disk_low"),
        ("condition_began", "disk_low"),
    ]


def test_the_worst_is_first_and_what_cannot_be_looked_at_hides_nothing(ward: Ward):
    def fail(*_given: object) -> int:
        raise OSError("no such thing")

    ward.machine.free_bytes = ward.machine.memory = fail  # type: ignore[method-assign, assignment]
    ward.machine.files = (1024, 1024)
    ward.more = [Found("backend_down", "failing", "a", "b."), Found("agents_parked", "warning", "a", "b.")]
    assert list(ward.look().values()) == ["failing", "failing", "warning"]


def test_the_write_that_tries_the_disk_goes_to_the_disk_and_changes_nothing(tmp_path: Path):
    path = tmp_path / "a.db"
    database = open_writer(path)
    before, log = database.pragma("user_version"), path.with_name("a.db-wal").stat().st_size
    [outcome] = commit_units(database, [UnitOfWork((TouchDatabase(),))])
    assert outcome == [None]
    assert path.with_name("a.db-wal").stat().st_size > log
    assert database.pragma("user_version") == before
    database.close()


def test_the_machine_is_read_as_it_is(tmp_path: Path):
    machine = Machine()
    before = machine.open_files()
    with (tmp_path / "a").open("w"):
        assert machine.open_files() == (before[0] + 1, before[1])
    memory = machine.memory()
    assert 0 < memory.resident < memory.total
    assert 0 < memory.available <= memory.total
    assert machine.free_bytes(tmp_path) > 0
    assert abs(machine.wall_s() - time.time()) < 60
    assert machine.steady_s() > 0


def test_the_least_limit_of_the_groups_above_counts(tmp_path: Path):
    own = tmp_path / "cgroup"
    own.write_text("12:memory,cpu:/old\n0::/a/b\n")
    (tmp_path / "fs" / "a" / "b").mkdir(parents=True)
    assert cgroup_limit(own, tmp_path / "fs") is None
    (tmp_path / "fs" / "a" / "b" / "memory.max").write_text("max\n")
    (tmp_path / "fs" / "a" / "memory.max").write_text("1000\n")
    assert cgroup_limit(own, tmp_path / "fs") == 1000
    (tmp_path / "fs" / "memory" / "old").mkdir(parents=True)
    (tmp_path / "fs" / "memory" / "old" / "memory.limit_in_bytes").write_text("900\n")
    (tmp_path / "fs" / "memory" / "memory.limit_in_bytes").write_text(f"{2**63 - 4096}\n")
    assert cgroup_limit(own, tmp_path / "fs") == 900
    assert cgroup_limit(tmp_path / "none") is None
