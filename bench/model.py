"""A loopback Messages server that costs little: what is measured is the runner, and not this.

One thread, one loop, no parsing beyond what an answer depends on. `POST …/v1/messages` is answered with nine events in
chunked encoding, each sent by itself as a real server does: a text; or, where the user's last message holds
`FOUR_CALLS`, four calls of `read_file`. `GET /_bodies` returns the last two requests' bodies as a JSON array,
`GET /_arrivals` when requests arrived (seconds, `time.time()`) since it was last asked. Prints its URL on the first
line and serves until it is ended.
"""

from __future__ import annotations

import selectors
import socket
import sys
import time
from collections import deque
from typing import Any, Final

import orjson

FOUR_CALLS: Final = "[four calls]"
FILES: Final = tuple(f"workspaces/shared/bench-{number}.md" for number in range(4))

_HEAD: Final = (
    b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream; charset=utf-8\r\nrequest-id: req_bench\r\n"
    b"transfer-encoding: chunked\r\n\r\n"
)


def _event(kind: str, **fields: Any) -> bytes:
    text = b"event: %b\ndata: %b\n\n" % (kind.encode(), orjson.dumps({"type": kind, **fields}))
    return b"%x\r\n%b\r\n" % (len(text), text)


def _answer(stop_reason: str, *blocks: list[bytes]) -> list[bytes]:
    message: dict[str, Any] = {
        "id": "msg_bench",
        "type": "message",
        "role": "assistant",
        "model": "bench",
        "content": [],
        "stop_reason": None,
        "stop_sequence": None,
        "usage": {"input_tokens": 10, "output_tokens": 1},
    }
    return [
        _HEAD,
        _event("message_start", message=message),
        *(event for block in blocks for event in block),
        _event(
            "message_delta",
            delta={"stop_reason": stop_reason, "stop_sequence": None},
            usage={"output_tokens": 5},
        ),
        _event("message_stop") + b"0\r\n\r\n",
    ]


def _block(index: int, block: dict[str, Any], *deltas: dict[str, Any]) -> list[bytes]:
    return [
        _event("content_block_start", index=index, content_block=block),
        *(_event("content_block_delta", index=index, delta=delta) for delta in deltas),
        _event("content_block_stop", index=index),
    ]


def _text(*pieces: str) -> list[bytes]:
    return _block(
        0, {"type": "text", "text": ""}, *({"type": "text_delta", "text": piece} for piece in pieces)
    )


def _call(index: int, call_id: str, path: str) -> list[bytes]:
    block = {"type": "tool_use", "id": call_id, "name": "read_file", "input": {}}
    written = orjson.dumps({"path": path}).decode()
    return _block(index, block, {"type": "input_json_delta", "partial_json": written})


class Server:
    """The server's state: its connections, and what it remembers of requests."""

    def __init__(self) -> None:
        self.listener = socket.create_server(("127.0.0.1", 0), backlog=256)
        self._selector = selectors.DefaultSelector()
        self._selector.register(self.listener, selectors.EVENT_READ, None)
        self._bodies: deque[bytes] = deque(maxlen=2)
        self._arrivals: list[float] = []
        self._saying = _answer("end_turn", _text("Hello ", "from the ", "model server."))
        self._calls = 0

    def serve(self) -> None:
        """Serve for ever."""
        while True:
            for key, _ in self._selector.select():
                if key.data is None:
                    connection, _ = self.listener.accept()
                    connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                    self._selector.register(connection, selectors.EVENT_READ, bytearray())
                else:
                    assert isinstance(key.fileobj, socket.socket)
                    self._read(key.fileobj, key.data)

    def _read(self, connection: socket.socket, buffer: bytearray) -> None:
        try:
            data = connection.recv(262_144)
            buffer += data
            while data and self._take(connection, buffer):
                pass
        except OSError:
            data = b""  # the client left: its right
        if not data:
            self._selector.unregister(connection)
            connection.close()

    def _take(self, connection: socket.socket, buffer: bytearray) -> bool:
        """Answer the first request in the buffer; whether there was a whole one."""
        end = buffer.find(b"\r\n\r\n")
        if end < 0:
            return False
        head = bytes(buffer[:end]).lower()
        length = 0
        if b"content-length:" in head:
            length = int(head.partition(b"content-length:")[2].partition(b"\r\n")[0])
        if len(buffer) < end + 4 + length:
            return False
        body = bytes(buffer[end + 4 : end + 4 + length])
        del buffer[: end + 4 + length]
        for part in self._parts(head, body):
            connection.sendall(part)
        return True

    def _parts(self, head: bytes, body: bytes) -> list[bytes]:
        if head.startswith(b"get /_bodies"):
            return [_plain(b"[%b]" % b",".join(self._bodies))]
        if head.startswith(b"get /_arrivals"):
            found, self._arrivals = self._arrivals, []
            return [_plain(orjson.dumps(found))]
        self._arrivals.append(time.time())
        self._bodies.append(body)
        # What a JSON text says of roles and types is escaped, so these can only be the message's own.
        last = body[body.rfind(b'"role":"user"') :]
        if FOUR_CALLS.encode() not in last or b'"type":"tool_result"' in last:
            return self._saying
        self._calls += 1
        blocks = [_call(index, f"toolu_{self._calls}_{index}", path) for index, path in enumerate(FILES)]
        return _answer("tool_use", *blocks)


def _plain(body: bytes) -> bytes:
    return b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: %d\r\n\r\n%b" % (
        len(body),
        body,
    )


def main() -> None:
    """Serve until ended; print the URL on the first line."""
    server = Server()
    sys.stdout.write(f"http://127.0.0.1:{server.listener.getsockname()[1]}\n")
    sys.stdout.flush()
    server.serve()


if __name__ == "__main__":
    main()
