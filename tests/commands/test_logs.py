"""The log of the daemon."""

import io
import json

import pytest
import structlog

from actors.commands.logs import log_to


class Full(io.StringIO):
    """A stream on a full disk."""

    is_full = True

    def flush(self) -> None:
        if self.is_full:
            raise OSError(28, "No space left on device")


@pytest.fixture(autouse=True)
def _configured_for_one_test():
    yield
    structlog.reset_defaults()


def test_a_log_that_cannot_be_written_stops_no_work_and_goes_on_when_it_can():
    stream = Full()
    log_to(stream)
    log = structlog.get_logger("test")
    log.error("lost or late", exc_info=ValueError("why"))
    stream.is_full = False
    log.warning("written", number=1)
    last = json.loads(stream.getvalue().splitlines()[-1])
    assert (last["event"], last["level"], last["number"]) == ("written", "warning", 1)
