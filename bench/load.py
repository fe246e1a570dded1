"""The load client: a process of its own, lean enough that it is not what is measured.

It speaks WebSocket by hand over a trio stream and looks at a frame no closer than whether it is the last of its
request, since a client's own JSON is not the runner's cost. It reads an order (JSON) from stdin and writes the
seconds that things took (JSON) to stdout:

- `pairs`: one session; in turn a turn and the same HTTP exchange (or exchanges) made directly with httpx, streamed,
  with the very bodies that the daemon sends halfway through a session;
- `closed_loop`: as many sessions as asked for, each with a connection of its own, that begin their next turn when
  the last one has ended; then as many tasks of one httpx client that do the same with the direct exchange.
"""

from __future__ import annotations

import itertools
import sys
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any, Final
from urllib.parse import urlsplit

import httpx
import orjson
import trio

from bench.processes import processor_s

AGENT: Final = "calli"
TURNS_PER_SESSION: Final = 50
WARM_UP: Final = 20

_HEADERS: Final = {
    "content-type": "application/json",
    "x-api-key": "bench",
    "anthropic-version": "2023-06-01",
}


class Wire:
    """A WebSocket connection to the runner; one request at a time."""

    def __init__(self, stream: trio.SocketStream) -> None:
        self._stream = stream
        self._buffer = b""
        self._ids = itertools.count(1)
        self.frames = 0

    async def request(self, method: str, params: dict[str, Any]) -> bytes:
        """Send a request and read to its result, which is returned as it came; RuntimeError for an error reply."""
        number = next(self._ids)
        await self._send(1, orjson.dumps({"id": number, "method": method, "params": params}))
        event, result = b'{"id":%d,"event"' % number, b'{"id":%d,"result"' % number
        while True:
            payload = await self._receive()
            if payload.startswith(event):
                continue
            if payload.startswith(result):
                return payload
            raise RuntimeError(f"{method} was answered with {payload[:300]!r}")

    async def _send(self, opcode: int, payload: bytes) -> None:
        # The mask that RFC 6455 asks of a client may be zero: the bytes are then sent as they are.
        size = len(payload)
        length = bytes((0x80 | size,)) if size < 126 else b"\xfe" + size.to_bytes(2, "big")
        await self._stream.send_all(bytes((0x80 | opcode,)) + length + bytes(4) + payload)

    async def _receive(self) -> bytes:
        """Return the next text frame."""
        while True:
            opcode = (await self._need(2))[0] & 0x0F
            size, start = self._buffer[1] & 0x7F, 2
            if size == 126:
                start, size = 4, int.from_bytes((await self._need(4))[2:4], "big")
            elif size == 127:
                start, size = 10, int.from_bytes((await self._need(10))[2:10], "big")
            payload = (await self._need(start + size))[start : start + size]
            self._buffer = self._buffer[start + size :]
            if opcode == 1:
                self.frames += 1
                return payload
            if opcode == 9:
                await self._send(10, payload)
            elif opcode == 8:
                raise RuntimeError(f"the runner closed the connection: {payload!r}")

    async def _need(self, size: int) -> bytes:
        while len(self._buffer) < size:
            data = await self._stream.receive_some(65_536)
            if not data:
                raise RuntimeError("the runner ended the connection")
            self._buffer += bytes(data)
        return self._buffer

    async def shake_hands(self, host: str, path: str, token: str) -> None:
        """Ask for the upgrade and read to the end of its answer."""
        lines = (
            f"GET {path} HTTP/1.1",
            f"Host: {host}",
            "Connection: Upgrade",
            "Upgrade: websocket",
            "Sec-WebSocket-Version: 13",
            "Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==",
            f"Authorization: Bearer {token}",
        )
        await self._stream.send_all("".join(f"{line}\r\n" for line in (*lines, "")).encode())
        while b"\r\n\r\n" not in self._buffer:
            await self._need(len(self._buffer) + 1)
        head, _, self._buffer = self._buffer.partition(b"\r\n\r\n")
        if b" 101 " not in head:
            raise RuntimeError(f"the upgrade was answered with {head!r}")


@asynccontextmanager
async def connect(url: str, token: str) -> AsyncIterator[Wire]:
    """Connect to a runner."""
    parts = urlsplit(url)
    async with await trio.open_tcp_stream(parts.hostname or "", parts.port or 80) as stream:
        wire = Wire(stream)
        await wire.shake_hands(parts.netloc, parts.path, token)
        yield wire


@dataclass(slots=True)
class Order:
    """What to do: `kind` pairs or closed_loop; `pid` is the daemon's, `message` what the user says in each turn."""

    kind: str
    url: str
    token: str
    pid: int
    model_url: str
    message: str = "hello there"
    exchanges: int = 1
    turns: int = 300
    sessions: int = 1
    seconds: float = 5.0
    bodies: list[bytes] = field(default_factory=list)


async def open_session(wire: Wire, key: str) -> str:
    """Open a session and return its key."""
    await wire.request("session.init", {"agent_id": AGENT, "session_key": key})
    return key


async def exchange(http: httpx.AsyncClient, order: Order) -> None:
    """Make the exchanges that a turn makes, directly."""
    for body in order.bodies:
        request = http.stream("POST", f"{order.model_url}/v1/messages", content=body, headers=_HEADERS)
        async with request as response:
            async for _ in response.aiter_bytes():
                pass


async def note_bodies(http: httpx.AsyncClient, order: Order) -> None:
    """Take over the bodies that the daemon sent in the last turn."""
    recorded = (await http.get(f"{order.model_url}/_bodies")).json()
    order.bodies = [orjson.dumps(body) for body in recorded[-order.exchanges :]]


async def halfway(order: Order, http: httpx.AsyncClient) -> None:
    """Run half a session and take over what the daemon then sends."""
    async with connect(order.url, order.token) as wire:
        key = await open_session(wire, f"{AGENT}:bench:halfway-{time.time_ns()}")
        for _ in range(TURNS_PER_SESSION // 2):
            await wire.request("turn.run", {"session_key": key, "message": order.message})
    await note_bodies(http, order)


async def pairs(order: Order) -> dict[str, Any]:
    """Measure turns and direct exchanges in turn."""
    turns, direct, turn_cpu, direct_cpu = [], [], [], []
    async with connect(order.url, order.token) as wire, httpx.AsyncClient(timeout=60) as http:
        await halfway(order, http)
        key = ""
        for number in range(order.turns + WARM_UP):
            if number % TURNS_PER_SESSION == 0:
                key = await open_session(wire, f"{AGENT}:bench:{time.time_ns()}")
            cpu, frames = processor_s(order.pid), wire.frames
            began = time.perf_counter()
            await wire.request("turn.run", {"session_key": key, "message": order.message})
            turn_s, turn_cpu_s = time.perf_counter() - began, processor_s(order.pid) - cpu
            frames = wire.frames - frames
            cpu = time.thread_time()
            began = time.perf_counter()
            await exchange(http, order)
            direct_s, direct_cpu_s = time.perf_counter() - began, time.thread_time() - cpu
            if number >= WARM_UP:
                turns.append(turn_s)
                direct.append(direct_s)
                turn_cpu.append(turn_cpu_s)
                direct_cpu.append(direct_cpu_s)
    return {
        "turn": turns,
        "direct": direct,
        "turn_cpu": turn_cpu,
        "direct_cpu": direct_cpu,
        "frames": frames,
        "body_bytes": sum(map(len, order.bodies)),
    }


async def closed_loop(order: Order) -> dict[str, Any]:
    """Measure sessions side by side, then direct exchanges side by side."""
    async with httpx.AsyncClient(timeout=60, limits=httpx.Limits(max_connections=None)) as http:
        await halfway(order, http)
        cpu = processor_s(order.pid)

        async def session(
            number: int, loop: Callable[[Callable[[], Awaitable[Any]]], Awaitable[None]]
        ) -> None:
            async with connect(order.url, order.token) as wire:
                turns = itertools.count()
                key = ""

                async def turn() -> None:
                    nonlocal key
                    if next(turns) % TURNS_PER_SESSION == 0:
                        key = await open_session(wire, f"{AGENT}:bench:{number}-{time.time_ns()}")
                    await wire.request("turn.run", {"session_key": key, "message": order.message})

                await loop(turn)

        async def exchanges(_: int, loop: Callable[[Callable[[], Awaitable[Any]]], Awaitable[None]]) -> None:
            await loop(lambda: exchange(http, order))

        turns, turns_s = await _side_by_side(order, session)
        cpu = processor_s(order.pid) - cpu
        direct, direct_s = await _side_by_side(order, exchanges)
    return {
        "turn": turns,
        "turns_per_s": len(turns) / turns_s,
        "turn_cpu": cpu / len(turns),
        "direct": direct,
        "direct_per_s": len(direct) / direct_s,
    }


async def _side_by_side(order: Order, work: Callable[..., Awaitable[None]]) -> tuple[list[float], float]:
    """Have `work` done in as many tasks as there are sessions; the seconds of each step, and of all together."""
    times: list[float] = []
    began = time.perf_counter()

    async def loop(step: Callable[[], Awaitable[Any]]) -> None:
        while time.perf_counter() - began < order.seconds:
            start = time.perf_counter()
            await step()
            times.append(time.perf_counter() - start)

    async with trio.open_nursery() as nursery:
        for number in range(order.sessions):
            nursery.start_soon(work, number, loop)
    return times, time.perf_counter() - began


def main() -> None:
    """Carry out the order on stdin."""
    order = Order(**orjson.loads(sys.stdin.buffer.read()))
    measured = trio.run({"pairs": pairs, "closed_loop": closed_loop}[order.kind], order)
    sys.stdout.write(orjson.dumps(measured).decode())


if __name__ == "__main__":
    main()
