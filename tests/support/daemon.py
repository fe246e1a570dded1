"""A real daemon for tests: its own process, its own root, a real socket; and what a test says to it and reads of it."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import threading
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Self

import apsw
import trio
from trio_websocket import WebSocketConnection, wrap_client_stream

from actors.client import Client, connect
from protocol.errors import RequestError
from store.database import open_reader
from store.ledger import Verification, read_entries, verify
from store.root import Root, lay_out

PROJECT = Path(__file__).parents[2]
COMMAND = [sys.executable, "-m", "actors.commands", "run"]
START_S = 20.0
"""How long a daemon may take to be ready on a machine that has other work; it usually takes less than one second."""


class Daemon:
    """A daemon process on a root of its own; start and end it as often as a test likes.

    Leaving its context kills what still runs. `environment` is added to that of the tests, less every setting of the
    runner and of model servers that is found there.
    """

    def __init__(self, folder: Path, environment: Mapping[str, str] | None = None) -> None:
        self.root = Root(folder)
        self.environment = dict(environment or {})
        self.ready_line = ""
        self.url = ""
        self._process: subprocess.Popen[bytes] | None = None
        self._log = folder.parent / f"{folder.name}.log"

    def __enter__(self) -> Self:
        lay_out(self.root)
        return self

    def __exit__(self, *exc_info: object) -> None:
        if self._process is not None:
            self._process.kill()
            self._reap()

    # --- the process

    @property
    def pid(self) -> int:
        """The running daemon's process."""
        assert self._process is not None
        return self._process.pid

    @property
    def log(self) -> str:
        """Everything that the daemon wrote to stderr, over all its lives."""
        return self._log.read_text(encoding="utf-8", errors="replace") if self._log.exists() else ""

    def start_now(self, *arguments: str) -> None:
        """Do what `start` does, for who is not in a loop."""
        self._process = self._spawn(("--port", "0", *arguments))
        assert self._process.stdout is not None
        overdue = threading.Timer(START_S, self._process.kill)
        overdue.start()
        self.ready_line = next(
            (line.decode().strip() for line in self._process.stdout if b"ws://" in line), ""
        )
        overdue.cancel()
        assert self.ready_line, f"the daemon ended before it was ready: {self.log}"
        found = self.root.read_runner()
        assert found is not None
        self.url = found.url

    async def start(self, *arguments: str) -> None:
        """Start it and wait for its ready line; arguments are those of `agent-runner run`, the port is picked."""
        await trio.to_thread.run_sync(lambda: self.start_now(*arguments))

    async def refused(self, *arguments: str) -> tuple[int, str]:
        """Start a daemon that is to fail; return its exit code and what it wrote to stderr."""
        before = len(self.log)
        process = self._spawn(arguments if "--port" in arguments else ("--port", "0", *arguments))
        try:
            code = await trio.to_thread.run_sync(process.wait, START_S)
        finally:
            process.kill()
            process.communicate()
        return code, self.log[before:]

    def _spawn(self, arguments: Sequence[str]) -> subprocess.Popen[bytes]:
        kept = {
            name: value
            for name, value in os.environ.items()
            if not name.startswith(("AGENT_RUNNER_", "ANTHROPIC_"))
        }
        with self._log.open("ab") as log:
            return subprocess.Popen(
                [*COMMAND, "--root", str(self.root.path), *arguments],
                cwd=PROJECT,
                env={**kept, **self.environment},
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=log,
            )

    def signal(self, number: signal.Signals) -> None:
        """Send it a signal."""
        os.kill(self.pid, number)

    async def ended(self) -> int:
        """Wait for its end; return the exit code, negative for a signal."""
        return await trio.to_thread.run_sync(self._reap)

    def _reap(self) -> int:
        process, self._process = self._process, None
        assert process is not None
        try:
            return process.wait(START_S)
        finally:
            process.kill()
            process.communicate()

    async def kill(self) -> None:
        """End it as a power cut does."""
        self.signal(signal.SIGKILL)
        await self.ended()

    async def terminate(self) -> int:
        """End it in good order; return the exit code."""
        self.signal(signal.SIGTERM)
        return await self.ended()

    # --- talking to it

    @property
    def token(self) -> str:
        """The operator's token."""
        return self.root.read_token()

    @asynccontextmanager
    async def operator(self) -> AsyncIterator[Client]:
        """Connect as the operator."""
        async with connect(self.url, self.token) as client:
            yield client

    @asynccontextmanager
    async def guest(self) -> AsyncIterator[Client]:
        """Connect and prove nothing."""
        async with connect(self.url) as client:
            yield client

    @asynccontextmanager
    async def raw(self, token: str | None = None) -> AsyncIterator[Raw]:
        """Connect for frames that no client would send."""
        headers = [] if token is None else [(b"authorization", f"Bearer {token}".encode())]
        # The stream is opened here, so that it is closed here, however the WebSocket ends.
        async with (
            await trio.open_tcp_stream("127.0.0.1", self.port) as stream,
            trio.open_nursery() as nursery,
        ):
            socket = await wrap_client_stream(
                nursery,
                stream,
                "127.0.0.1",
                "/ws",
                extra_headers=headers,
                max_message_size=2**26,
                message_queue_size=1000,
            )
            try:
                yield Raw(socket)
            finally:
                with trio.CancelScope(shield=True), trio.move_on_after(3):
                    await socket.aclose()
                nursery.cancel_scope.cancel()

    @property
    def port(self) -> int:
        """The port that it listens on."""
        return int(self.url.removesuffix("/ws").rpartition(":")[2])

    async def upgrade(self, path: str, *headers: str) -> tuple[int, str]:
        """Ask for an upgrade by hand; return the HTTP status and the answer as it came."""
        async with await trio.open_tcp_stream("127.0.0.1", self.port) as stream:
            await stream.send_all(upgrade_request(path, *headers))
            answer = (await stream.receive_some()).decode()
        return int(answer.split()[1]), answer

    # --- looking at what it keeps

    @asynccontextmanager
    async def database(self) -> AsyncIterator[apsw.Connection]:
        """Open the database for reading, also while the daemon runs."""
        connection = open_reader(self.root.database)
        try:
            yield connection
        finally:
            connection.close()

    async def rows(self, statement: str, *values: Any) -> list[tuple[Any, ...]]:
        """Return what a query finds."""
        async with self.database() as database:
            return list(database.execute(statement, values))

    async def entries(self, **filters: Any) -> list[Any]:
        """Return the ledger's entries that match, in order."""
        async with self.database() as database:
            return [entry for _, entry in read_entries(database, **filters)]

    async def verify(self) -> Verification:
        """Check the whole ledger."""
        async with self.database() as database:
            return verify(database)

    async def until(self, condition: Callable[[], Any], *, within_s: float = 15.0) -> Any:
        """Look again and again until `await condition()` is true, and return it; for what another process does."""
        with trio.move_on_after(within_s):
            while not (found := await condition()):  # noqa: ASYNC110 - another process sets no event of ours
                await trio.sleep(0.01)
            return found
        raise AssertionError(f"did not happen within {within_s} s; the daemon's log: {self.log[-2000:]}")


def upgrade_request(path: str = "/ws", *headers: str) -> bytes:
    """Return the HTTP request that begins a WebSocket."""
    lines = [
        f"GET {path} HTTP/1.1",
        "Host: 127.0.0.1",
        "Connection: Upgrade",
        "Upgrade: websocket",
        "Sec-WebSocket-Version: 13",
        "Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==",
        *headers,
    ]
    return "".join(f"{line}\r\n" for line in [*lines, ""]).encode()


@dataclass
class Raw:
    """A WebSocket without a client's manners."""

    socket: WebSocketConnection

    async def send(self, text: str | bytes) -> None:
        """Send one message."""
        await self.socket.send_message(text)

    async def receive(self) -> dict[str, Any]:
        """Return the next frame."""
        with trio.fail_after(15):
            frame: dict[str, Any] = json.loads(await self.socket.get_message())
            return frame

    async def exchange(self, text: str | bytes | dict[str, Any]) -> dict[str, Any]:
        """Send one message and return the next frame."""
        await self.send(json.dumps(text) if isinstance(text, dict) else text)
        return await self.receive()


@dataclass
class Seen:
    """A turn as its client saw it: events in order, and the result or the error that ended it."""

    events: list[dict[str, Any]] = field(default_factory=list)
    result: dict[str, Any] | None = None
    error: RequestError | None = None

    def of(self, *types: str) -> list[dict[str, Any]]:
        """Return the events of these types."""
        return [event for event in self.events if event["type"] in types]

    @property
    def types(self) -> list[str]:
        """The types of all events."""
        return [event["type"] for event in self.events]

    @property
    def text(self) -> str:
        """What the model said."""
        return "".join(event["text"] for event in self.of("text_delta"))

    @property
    def results(self) -> list[tuple[bool, str]]:
        """Whether each tool result was an error, and its text."""
        return [(event["is_error"], event["content"]) for event in self.of("tool_result")]

    def gate(self, tool: str, phase: str = "offer") -> dict[str, Any]:
        """Return the payload of the verdict on a tool."""
        [found] = [
            event["entry"]["payload"]
            for event in self.of("policy_gate")
            if (event["entry"]["payload"]["tool"], event["entry"]["payload"]["phase"]) == (tool, phase)
        ]
        return dict(found)


async def open_session(client: Client, agent: str, **params: Any) -> str:
    """Open a session and return its key."""
    opened = await client.call("session.init", {"agent_id": agent, **params})
    return str(opened["session_key"])


async def run_turn(client: Client, key: str, message: str = "hello", **params: Any) -> Seen:
    """Run a turn to its end and check what holds for every turn: numbering, one end, and in what order."""
    seen = Seen()
    turn = client.turn({"session_key": key, "message": message, **params})
    with trio.fail_after(30):
        try:
            async for event in turn:
                seen.events.append(event)
            seen.result = turn.result
        except RequestError as error:
            seen.error = error
    check_stream(seen)
    return seen


def check_stream(seen: Seen) -> None:
    """Hold a turn to what the protocol promises of every one."""
    assert [event["seq"] for event in seen.events] == list(range(len(seen.events)))
    ends = seen.of("done", "error")
    if not seen.events:
        assert seen.error is not None
        return
    assert seen.types[0] == "turn_started"
    assert len(ends) == 1
    assert seen.events[-1] is ends[0]
    if seen.error is None:
        assert seen.result is not None
        assert ends[0]["type"] == "done"
        assert seen.result["status"] == ("cancelled" if ends[0]["stop_reason"] == "cancelled" else "complete")
        assert seen.result["turn_id"] == seen.events[0]["turn_id"]
    else:
        assert ends[0]["type"] == "error"
        assert (ends[0]["code"], ends[0]["message"]) == (seen.error.code, seen.error.message)


def orphans(messages: Sequence[Mapping[str, Any]]) -> list[str]:
    """Return the ids of tool calls without a result right behind them, and of results without a call right before."""
    found: list[str] = []
    waiting: set[str] = set()
    for message in messages:
        blocks = message["content"] if isinstance(message["content"], list) else []
        answered = {block["tool_use_id"] for block in blocks if block["type"] == "tool_result"}
        found += sorted(answered ^ waiting)
        waiting = {block["id"] for block in blocks if block["type"] == "tool_use"}
    return found + sorted(waiting)


def edit(path: Path, pattern: str, replacement: str) -> None:
    """Replace what matches exactly once in a file, whole."""
    text = path.read_text(encoding="utf-8")
    changed, count = re.subn(pattern, replacement, text, count=1, flags=re.MULTILINE)
    assert count == 1, f"{pattern!r} is not in {path}"
    temporary = path.with_name(f".{path.name}.new")
    temporary.write_text(changed, encoding="utf-8")
    temporary.replace(path)
