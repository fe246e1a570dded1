"""A model server for tests: real HTTP/1.1 on loopback, speaking the Messages API from a script.

In a test::

    async with serve() as server:
        server.script(says("hello"), status(429, {"retry-after": "1"}), calls("read_file", {"path": "a"}))
        ...  # point a client at server.url
        server.requests[0].body["tools"]

As a process, for tests that start a real daemon: `python -m tests.support.model_server --port 0` prints its URL on the
first line. `GET /_requests` returns what it received, `POST /_script` appends responses (a list of the JSON forms that
`response_from_json` reads), `POST /_reset` forgets both.

Scripted responses are used in order; when none is left, the fallback answers (`says("Hello from the model server.")`).
"""

from __future__ import annotations

import argparse
import json
import pathlib
import socket
import struct
import sys
from collections import deque
from collections.abc import AsyncIterator, Callable, Iterable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import h11
import trio

EVENT_STREAM = {"content-type": "text/event-stream; charset=utf-8"}


@dataclass(frozen=True)
class Pause:
    """Wait so many seconds before the next chunk."""

    seconds: float


class Stall:
    """Say nothing more and keep the connection open until the client leaves."""


class Cut:
    """Reset the connection here, in the middle of the body."""


Chunk = bytes | Pause | Stall | Cut


@dataclass(frozen=True)
class Response:
    """What one request gets: status, headers, and the body chunk by chunk."""

    chunks: tuple[Chunk, ...] = ()
    status: int = 200
    headers: dict[str, str] = field(default_factory=lambda: dict(EVENT_STREAM))
    head_delay_s: float = 0.0


@dataclass(frozen=True)
class Recorded:
    """A request as it arrived; header names are in lower case."""

    method: str
    path: str
    headers: dict[str, str]
    body: Any
    connection: int


Responder = Callable[[Recorded], Response]


def event(kind: str, **fields: Any) -> bytes:
    """Return one event of the stream."""
    return f"event: {kind}\ndata: {json.dumps({'type': kind, **fields})}\n\n".encode()


def message_start(**usage: int) -> bytes:
    """Return the event that begins an answer."""
    message: dict[str, Any] = {
        "id": "msg_scripted",
        "type": "message",
        "role": "assistant",
        "model": "scripted",
        "content": [],
        "stop_reason": None,
        "stop_sequence": None,
        "usage": {"input_tokens": 10, "output_tokens": 1, **usage},
    }
    return event("message_start", message=message)


def text_block(index: int, *pieces: str) -> list[bytes]:
    """Return the events of one block of text."""
    return [
        event("content_block_start", index=index, content_block={"type": "text", "text": ""}),
        *(
            event("content_block_delta", index=index, delta={"type": "text_delta", "text": piece})
            for piece in pieces
        ),
        event("content_block_stop", index=index),
    ]


def thinking_block(index: int, thinking: str, signature: str) -> list[bytes]:
    """Return the events of one block of thinking."""
    block = {"type": "thinking", "thinking": "", "signature": ""}
    deltas = [
        {"type": "thinking_delta", "thinking": thinking},
        {"type": "signature_delta", "signature": signature},
    ]
    return [
        event("content_block_start", index=index, content_block=block),
        *(event("content_block_delta", index=index, delta=delta) for delta in deltas),
        event("content_block_stop", index=index),
    ]


def tool_block(index: int, call_id: str, name: str, *pieces: str) -> list[bytes]:
    """Return the events of one tool call, whose input is written in these pieces."""
    block = {"type": "tool_use", "id": call_id, "name": name, "input": {}}
    return [
        event("content_block_start", index=index, content_block=block),
        *(
            event(
                "content_block_delta", index=index, delta={"type": "input_json_delta", "partial_json": piece}
            )
            for piece in pieces
        ),
        event("content_block_stop", index=index),
    ]


def message_end(stop_reason: str, output_tokens: int = 5) -> list[bytes]:
    """Return the events that end an answer."""
    return [
        event(
            "message_delta",
            delta={"stop_reason": stop_reason, "stop_sequence": None},
            usage={"output_tokens": output_tokens},
        ),
        event("message_stop"),
    ]


def says(*pieces: str, stop_reason: str = "end_turn") -> Response:
    """Answer with text."""
    return Response((message_start(), *text_block(0, *pieces), *message_end(stop_reason)))


def calls(name: str, arguments: dict[str, Any], call_id: str = "toolu_scripted_1") -> Response:
    """Answer with one tool call."""
    block = tool_block(0, call_id, name, json.dumps(arguments))
    return Response((message_start(), *block, *message_end("tool_use")))


def status(code: int, headers: dict[str, str] | None = None, error_type: str = "error") -> Response:
    """Refuse with a status and an error body as the real server writes it."""
    body = {"type": "error", "error": {"type": error_type, "message": f"scripted {code}"}}
    return Response(
        (json.dumps(body).encode(),), code, {"content-type": "application/json", **(headers or {})}
    )


def raw(body: bytes, chunk_size: int | None = None) -> Response:
    """Answer with these bytes as an event stream, in chunks of `chunk_size` bytes."""
    size = chunk_size or max(1, len(body))
    return Response(tuple(body[start : start + size] for start in range(0, len(body), size)))


def response_from_json(value: dict[str, Any]) -> Response:
    """Return the response that a JSON object describes.

    One of `text`; `tool` with `input` (and `id`); `sse` (the raw stream); `status` with `body`. Besides them `headers`,
    `chunk_size` (of `sse`), `head_delay_s`, `chunk_delay_s`, and `after_chunks` with `then` `cut` or `stall`.
    """
    if "text" in value:
        response = says(*_pieces(value["text"]), stop_reason=value.get("stop_reason", "end_turn"))
    elif "tool" in value:
        response = calls(value["tool"], value.get("input", {}), value.get("id", "toolu_scripted_1"))
    elif "sse" in value:
        response = raw(value["sse"].encode(), value.get("chunk_size"))
    elif "body" in value:
        response = Response((value["body"].encode(),), value.get("status", 200), value.get("headers", {}))
    else:
        response = status(value["status"])
    chunks: list[Chunk] = list(response.chunks)
    if "after_chunks" in value:
        chunks[value["after_chunks"] :] = [Stall() if value.get("then") == "stall" else Cut()]
    if value.get("chunk_delay_s"):
        chunks = [part for chunk in chunks for part in (Pause(value["chunk_delay_s"]), chunk)]
    headers = {**response.headers, **value.get("headers", {})}
    return Response(tuple(chunks), response.status, headers, value.get("head_delay_s", 0.0))


def _pieces(text: str | list[str]) -> list[str]:
    return [text] if isinstance(text, str) else text


class ModelServer:
    """The server: its address, what it received, and what it is to answer."""

    def __init__(self, fallback: Responder | None = None) -> None:
        self.url = ""
        self.requests: list[Recorded] = []
        self.open_streams = 0
        self._scripted: deque[Response] = deque()
        self._fallback = fallback or (lambda _: says("Hello ", "from the model server."))
        self._connections = 0
        self._changed = trio.Event()

    def script(self, *responses: Response) -> None:
        """Answer the next requests with these, in order."""
        self._scripted.extend(responses)

    async def wait_for(self, condition: Callable[[ModelServer], bool]) -> None:
        """Wait until `condition` holds; it is looked at after each request, each chunk and each end of a stream."""
        while not condition(self):
            await self._changed.wait()

    def _notify(self) -> None:
        self._changed.set()
        self._changed = trio.Event()

    async def handle(self, stream: trio.SocketStream) -> None:
        """Serve one connection until the client leaves."""
        self._connections += 1
        number = self._connections
        connection = h11.Connection(h11.SERVER)
        try:
            while True:
                recorded = await _receive(connection, stream, number)
                if recorded is None:
                    return
                response = self._control(recorded)
                if response is None:
                    self.requests.append(recorded)
                    response = self._scripted.popleft() if self._scripted else self._fallback(recorded)
                self.open_streams += 1
                self._notify()
                try:
                    await self._send(connection, stream, response)
                finally:
                    self.open_streams -= 1
                    self._notify()
                if connection.our_state is h11.MUST_CLOSE:
                    return
                connection.start_next_cycle()
        except (trio.BrokenResourceError, trio.ClosedResourceError, h11.ProtocolError):
            return  # the client left: its right
        finally:
            with trio.CancelScope(shield=True):
                await trio.aclose_forcefully(stream)

    def _control(self, recorded: Recorded) -> Response | None:
        """Answer what is said to the server itself and not to the model; None for anything else."""
        if recorded.path == "/_requests":
            value: Any = [
                {"method": one.method, "path": one.path, "headers": one.headers, "body": one.body}
                for one in self.requests
            ]
        elif recorded.path == "/_script":
            self.script(*(response_from_json(one) for one in recorded.body))
            value = {"ok": True}
        elif recorded.path == "/_reset":
            self.requests.clear()
            self._scripted.clear()
            value = {"ok": True}
        elif recorded.method == "POST" and recorded.path.partition("?")[0].endswith("/v1/messages"):
            return None
        else:
            return status(404, error_type="not_found_error")
        return Response((json.dumps(value).encode(),), 200, {"content-type": "application/json"})

    async def _send(self, connection: h11.Connection, stream: trio.SocketStream, response: Response) -> None:
        if response.head_delay_s and await _left(stream, response.head_delay_s):
            raise trio.BrokenResourceError
        head = h11.Response(
            status_code=response.status,
            headers=[*response.headers.items(), ("request-id", f"req_{len(self.requests)}")],
        )
        await stream.send_all(connection.send(head) or b"")
        for chunk in response.chunks:
            if isinstance(chunk, bytes):
                await stream.send_all(connection.send(h11.Data(data=chunk)) or b"")
            elif isinstance(chunk, Pause):
                if await _left(stream, chunk.seconds):
                    raise trio.BrokenResourceError
            elif isinstance(chunk, Stall):
                await _left(stream, float("inf"))
                raise trio.BrokenResourceError
            else:
                # No time to linger: the client sees a reset and not an orderly end.
                stream.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
                raise trio.BrokenResourceError
            self._notify()
        await stream.send_all(connection.send(h11.EndOfMessage()) or b"")


async def _left(stream: trio.SocketStream, seconds: float) -> bool:
    """Wait, and say whether the client left in the meantime."""
    with trio.move_on_after(seconds):
        # A client that waits for its answer sends nothing: what arrives is the end.
        return not await stream.receive_some(1)
    return False


async def _receive(connection: h11.Connection, stream: trio.SocketStream, number: int) -> Recorded | None:
    head: h11.Request | None = None
    body = b""
    while True:
        received = connection.next_event()
        if received is h11.NEED_DATA:
            if connection.they_are_waiting_for_100_continue:
                go_ahead = h11.InformationalResponse(status_code=100, headers=[])
                await stream.send_all(connection.send(go_ahead) or b"")
            connection.receive_data(await stream.receive_some(65_536))
        elif isinstance(received, h11.Request):
            head = received
        elif isinstance(received, h11.Data):
            body += bytes(received.data)
        elif isinstance(received, h11.EndOfMessage):
            break
        else:
            return None
    assert head is not None
    headers = {name.decode(): value.decode("latin-1") for name, value in head.headers}
    parsed = json.loads(body) if body else None
    return Recorded(head.method.decode(), head.target.decode(), headers, parsed, number)


@asynccontextmanager
async def serve(
    responses: Iterable[Response] = (), *, fallback: Responder | None = None, port: int = 0
) -> AsyncIterator[ModelServer]:
    """Run a server on a free port of 127.0.0.1 for as long as the context is open."""
    server = ModelServer(fallback)
    server.script(*responses)
    async with trio.open_nursery() as nursery:
        serve_tcp = partial(trio.serve_tcp, server.handle, port, host="127.0.0.1")
        listeners = await nursery.start(serve_tcp)
        server.url = f"http://127.0.0.1:{listeners[0].socket.getsockname()[1]}"
        try:
            yield server
        finally:
            nursery.cancel_scope.cancel()


def main(arguments: list[str] | None = None) -> None:
    """Serve until killed; print the URL on the first line."""
    parser = argparse.ArgumentParser(description="A scripted model server on loopback.")
    parser.add_argument("--port", type=int, default=0)
    parser.add_argument("--script", type=pathlib.Path, help="a JSON file: a list of responses")
    options = parser.parse_args(arguments)
    scripted = json.loads(options.script.read_text()) if options.script else []

    async def run() -> None:
        async with serve([response_from_json(one) for one in scripted], port=options.port) as server:
            sys.stdout.write(server.url + "\n")
            sys.stdout.flush()
            await trio.sleep_forever()

    trio.run(run)


if __name__ == "__main__":
    main()
