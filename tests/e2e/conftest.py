"""Daemon processes: two that the tests share, since a start costs more than most tests do, and one of a test's own."""

import socket
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest

from tests.support.daemon import Daemon
from tests.support.model_server import ModelServer, serve


@pytest.fixture
def house(tmp_path: Path) -> Iterator[Daemon]:
    """A root with a daemon of the test's own, not started yet."""
    with Daemon(tmp_path / "root") as daemon:
        yield daemon


@pytest.fixture(scope="session")
def daemon(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Daemon]:
    """A running daemon on the rehearsal backend, without a sweep: what wakes is woken by mail."""
    with Daemon(tmp_path_factory.mktemp("rehearsal") / "root") as daemon:
        daemon.start_now("--backend", "rehearsal", "--no-heartbeat")
        yield daemon


@pytest.fixture(scope="session")
def model_port() -> int:
    """A port on which each test may serve a model of its own."""
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return int(found.getsockname()[1])


@pytest.fixture(scope="session")
def model_daemon(tmp_path_factory: pytest.TempPathFactory, model_port: int) -> Iterator[Daemon]:
    """A running daemon that asks a model server on that port."""
    environment = {"ANTHROPIC_API_KEY": "test-key", "ANTHROPIC_BASE_URL": f"http://127.0.0.1:{model_port}"}
    with Daemon(tmp_path_factory.mktemp("anthropic") / "root", environment) as daemon:
        daemon.start_now("--backend", "anthropic", "--no-heartbeat")
        yield daemon


@pytest.fixture
async def model(model_port: int) -> AsyncIterator[ModelServer]:
    """A model server that says what the test scripts."""
    async with serve(port=model_port) as server:
        yield server


@pytest.fixture
def governed(model_daemon: Daemon, model: ModelServer) -> Daemon:
    """The shared daemon whose model server the test plays itself."""
    return model_daemon
