"""What every test stands on."""

import signal
from collections.abc import Iterator

import pytest
import structlog

# In the background of a shell SIGINT is ignored, and so it would be in every process that the tests start.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture(autouse=True)
def _plain_logs() -> Iterator[None]:
    """Take back what a test had structlog do: the stream that it wrote to is closed by now."""
    yield
    structlog.reset_defaults()
