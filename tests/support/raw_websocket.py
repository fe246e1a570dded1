"""A WebSocket client that does what a good one would not: sends any bytes, reads only when it is told to."""

from __future__ import annotations

from collections import deque
from typing import Any

import trio
from wsproto import ConnectionType, WSConnection
from wsproto.events import AcceptConnection, BytesMessage, CloseConnection, Event, Ping, Request, TextMessage


class RawWebSocket:
    """One client on a stream; frames are made and read by wsproto, or sent as bytes."""

    def __init__(self, stream: trio.abc.Stream) -> None:
        self.stream = stream
        self.wire = WSConnection(ConnectionType.CLIENT)
        self.events: deque[Event] = deque()
        self.ended = False

    async def shake_hands(self) -> None:
        await self.send(Request(host="127.0.0.1", target="/ws"))
        assert isinstance(await self.next_event(), AcceptConnection)

    async def send(self, *events: Event) -> None:
        await self.stream.send_all(b"".join(self.wire.send(event) for event in events))

    async def say(self, text: str) -> None:
        await self.send(TextMessage(data=text))

    async def next_event(self) -> Event | None:
        """Return the next event, None at the end of the stream."""
        while not self.events:
            if self.ended:
                return None
            try:
                data = await self.stream.receive_some(65_536)
            except trio.BrokenResourceError:
                data = b""
            if not data:
                self.ended = True
                continue
            self.wire.receive_data(bytes(data))
            self.events.extend(self.wire.events())
        return self.events.popleft()

    async def next_text(self) -> str:
        text = ""
        while True:
            event = await self.next_event()
            assert isinstance(event, TextMessage), event
            text += event.data
            if event.message_finished:
                return text

    async def close_code(self) -> int | None:
        """Read to the end; return the code of the close frame, None where there was none."""
        code = None
        while (event := await self.next_event()) is not None:
            if isinstance(event, CloseConnection):
                code = int(event.code)
        return code

    async def answer_pings(self, pings: list[Any]) -> None:
        """Read to the end, answering every ping."""
        while (event := await self.next_event()) is not None:
            if isinstance(event, Ping):
                pings.append(trio.current_time())
                await self.send(event.response())


def binary(data: bytes) -> BytesMessage:
    return BytesMessage(data=data)
