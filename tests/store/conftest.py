"""A database of its own for each test."""

from collections.abc import Iterator
from pathlib import Path

import apsw
import pytest

from store.database import open_writer


@pytest.fixture
def database(tmp_path: Path) -> Iterator[apsw.Connection]:
    """The writer's connection to a fresh database."""
    connection = open_writer(tmp_path / "agent-runner.db")
    yield connection
    connection.close()
