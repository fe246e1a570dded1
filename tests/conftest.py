"""What every test stands on."""

from collections.abc import Iterator

import pytest
import structlog


@pytest.fixture(autouse=True)
def _plain_logs() -> Iterator[None]:
    """Take back what a test had structlog do: the stream that it wrote to is closed by now."""
    yield
    structlog.reset_defaults()
