"""Server-Sent Events, read incrementally: bytes in, events out (WHATWG HTML, section 9.2.6).

Fields are found with `split` and `startswith`, since a stream of a model is thousands of small events and this is on
the path of every one. Line ends are made uniform once a chunk, so a chunk without a CR pays one search for it.
"""

from __future__ import annotations

from typing import Final, NamedTuple

from protocol.errors import BackendError

EVENT_SIZE_MAX: Final = 8 * 1024 * 1024
"""Bytes of one event, fields and comments included; a longer one is refused."""

_BYTE_ORDER_MARK: Final = b"\xef\xbb\xbf"


class ServerSentEvent(NamedTuple):
    """One event: its type (`message` where none was named), its data as UTF-8 bytes, and the last id seen."""

    type: str
    data: bytes
    id: str

    @property
    def text(self) -> str:
        """The data as text; bytes that are not UTF-8 become U+FFFD, as the standard asks."""
        return self.data.decode("utf-8", "replace")


class EventStreamParser:
    """Turns the bytes of one response into events, however they are cut.

    `event_size_max` bounds one event in bytes. After a BackendError the parser is of no further use.
    """

    __slots__ = (
        "_data",
        "_event_size_max",
        "_id",
        "_partial",
        "_size",
        "_skip_line_feed",
        "_started",
        "_type",
    )

    def __init__(self, event_size_max: int = EVENT_SIZE_MAX) -> None:
        self._event_size_max = event_size_max
        self._partial: list[bytes] = []  # pieces of the line that has not ended yet
        self._size = 0  # bytes of the event being read, its unfinished line included
        self._skip_line_feed = False  # the last chunk ended with a CR: a LF that follows belongs to it
        self._started = False
        self._type = b""
        self._data: list[bytes] = []
        self._id = b""

    def feed(self, chunk: bytes) -> list[ServerSentEvent]:
        """Take the next bytes and return the events that they complete.

        Raises BackendError when one event is larger than the limit.
        """
        if not chunk:
            return []
        if self._skip_line_feed:
            self._skip_line_feed = False
            if chunk[:1] == b"\n":
                chunk = chunk[1:]
        if b"\r" in chunk:
            self._skip_line_feed = chunk.endswith(b"\r")
            chunk = chunk.replace(b"\r\n", b"\n").replace(b"\r", b"\n")
        if b"\n" not in chunk:
            # Pieces of one line are joined once, when it ends: a server that dribbles costs linear time.
            self._partial.append(chunk)
            self._grow(len(chunk))
            return []
        lines = chunk.split(b"\n")
        rest = lines.pop()
        if self._partial:
            self._size -= sum(map(len, self._partial))  # counted again as part of its line
            lines[0] = b"".join(self._partial) + lines[0]
            self._partial.clear()
        events = self._take_lines(lines)
        if rest:
            self._partial.append(rest)
            self._grow(len(rest))
        return events

    def finish(self) -> list[ServerSentEvent]:
        """Return the event that the end of the stream completes, if there is one.

        The standard discards an event that is not followed by an empty line. Servers that end with the last data line
        exist, and a data line that was cut is not JSON and is noticed by its reader; so what is complete is given.
        """
        line = b"".join(self._partial)
        self._partial.clear()
        return self._take_lines([line, b""])

    def _grow(self, size: int) -> None:
        self._size += size
        if self._size > self._event_size_max:
            raise BackendError(
                "backend_error",
                f"the model server sent one event of more than {self._event_size_max} bytes",
            )

    def _take_lines(self, lines: list[bytes]) -> list[ServerSentEvent]:
        events: list[ServerSentEvent] = []
        for whole in lines:
            line = whole
            if not self._started:
                self._started = True
                line = line.removeprefix(_BYTE_ORDER_MARK)
            if not line:
                if self._data:
                    events.append(self._complete())
                self._type = b""
                self._size = 0
                continue
            self._grow(len(line) + 1)
            if line.startswith(b"data:"):
                self._data.append(line[6:] if line[5:6] == b" " else line[5:])
            else:
                self._take_field(line)
        return events

    def _take_field(self, line: bytes) -> None:
        name, _, value = line.partition(b":")
        value = value.removeprefix(b" ")
        if name == b"event":
            self._type = value
        elif name == b"data":  # a line of the name alone
            self._data.append(value)
        elif name == b"id" and b"\0" not in value:
            self._id = value
        # A comment has an empty name. `retry` concerns reconnection, which a model's answer does not know.

    def _complete(self) -> ServerSentEvent:
        data = self._data[0] if len(self._data) == 1 else b"\n".join(self._data)
        self._data.clear()
        return ServerSentEvent(
            self._type.decode("utf-8", "replace") or "message",
            data,
            self._id.decode("utf-8", "replace"),
        )
