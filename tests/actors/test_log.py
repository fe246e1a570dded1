"""The log of the daemon: what is written, where, and what stops no work."""

from __future__ import annotations

import io
import json
import logging
import stat
import threading
from pathlib import Path
from typing import Any

import pytest
import structlog

from actors import log
from actors.log import log_to
from store.log_files import log_files


class Full(io.StringIO):
    """A stream on a full disk."""

    is_full = True

    def flush(self) -> None:
        if self.is_full:
            raise OSError(28, "No space left on device")


def lines(text: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in text.splitlines()]


def test_the_file_and_the_stream_have_the_same_json_lines_of_ours_and_of_the_kernel(tmp_path: Path) -> None:
    stream, file = io.StringIO(), tmp_path / "log/agent-runner.log"
    with log_to(stream, file=file, on_terminal=False):
        structlog.get_logger("daemon").info("ready", pid=7)
        logging.getLogger("actors.kernel").error("%s is parked", "daemon/standing/reed")
        logging.getLogger("some.library").info("chatter")
        logging.getLogger("some.library").warning("listen")
        try:
            int("why")
        except ValueError:
            structlog.get_logger("court").exception("it broke")
    written = lines(file.read_text())
    assert written == lines(stream.getvalue())
    assert [(one["logger"], one["level"], one["event"]) for one in written] == [
        ("daemon", "info", "ready"),
        ("actors.kernel", "error", "daemon/standing/reed is parked"),
        ("some.library", "warning", "listen"),
        ("court", "error", "it broke"),
    ]
    assert written[0]["pid"] == 7
    assert "ValueError: invalid literal" in written[3]["exception"]
    assert all(one["timestamp"].endswith("Z") for one in written)
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    assert stat.S_IMODE(file.parent.stat().st_mode) == 0o700


def test_a_terminal_has_readable_lines_from_warnings_on_and_the_file_has_all(tmp_path: Path) -> None:
    stream, file = io.StringIO(), tmp_path / "log"
    with log_to(stream, file=file, on_terminal=True):
        structlog.get_logger("daemon").info("ready")
        structlog.get_logger("court").warning("refused", problem="x")
    assert "ready" not in stream.getvalue()
    assert "refused" in stream.getvalue()
    assert "\x1b" not in stream.getvalue()
    assert [one["event"] for one in lines(file.read_text())] == ["ready", "refused"]


def test_the_file_is_put_aside_when_it_has_grown_and_only_so_many_are_kept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(log, "FILE_BYTES_MAX", 1000)
    file = tmp_path / "agent-runner.log"
    with log_to(io.StringIO(), file=file, on_terminal=False):
        for number in range(200):
            structlog.get_logger("daemon").info("line", number=number)
    files = log_files(file)
    assert [path.name for path in files] == [
        *(f"agent-runner.log.{number}" for number in range(log.FILES_KEPT, 0, -1)),
        "agent-runner.log",
    ]
    assert all(path.stat().st_size <= 1000 for path in files)
    assert all(stat.S_IMODE(path.stat().st_mode) == 0o600 for path in files)
    numbers = [one["number"] for path in files for one in lines(path.read_text())]
    assert numbers == list(range(numbers[0], 200))


def test_a_log_that_cannot_be_written_stops_no_work_and_goes_on_when_it_can(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    stream, blocked = Full(), tmp_path / "blocked"
    blocked.write_text("a file where the folder should be")
    with log_to(stream, file=blocked / "agent-runner.log", on_terminal=False):
        structlog.get_logger("test").error("lost or late")
        structlog.get_logger("test").error("lost or late too")
    stream.is_full = False
    with log_to(stream, file=None, on_terminal=False):
        structlog.get_logger("test").warning("written", number=1)
    last = json.loads(stream.getvalue().splitlines()[-1])
    assert (last["event"], last["level"], last["number"]) == ("written", "warning", 1)
    told = capsys.readouterr().err
    assert told.count("cannot write the log") == 1
    assert "Traceback" not in told


def test_what_does_not_fit_before_a_held_terminal_is_counted_and_nobody_waits(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    class Held(io.StringIO):
        let_go = threading.Event()

        def write(self, text: str) -> int:
            self.let_go.wait(30)
            return super().write(text)

    monkeypatch.setattr(log, "WAITING_MAX", 5)
    stream = Held()
    with log_to(stream, file=None, on_terminal=False):
        for number in range(50):
            structlog.get_logger("test").info("line", number=number)
        stream.let_go.set()
        while "line" not in stream.getvalue():
            stream.let_go.wait(0.01)
        for number in range(50, 52):
            structlog.get_logger("test").info("line", number=number)
    dropped = [one["event"] for one in lines(stream.getvalue()) if "dropped" in one["event"]]
    numbers = [one["number"] for one in lines(stream.getvalue()) if "number" in one]
    assert numbers[0] == 0
    assert len(numbers) < 50
    assert sum(int(words.split()[0]) for words in dropped) + len(numbers) == 52
