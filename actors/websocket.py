"""A trio-websocket connection made fit to face clients.

trio-websocket 0.12 does the handshake and reads frames here. The rest is overridden, because of what a client could
do to its server otherwise:

- a PING after the server's close frame raises in the reader and takes the whole server down: pings are noted for the
  writer, and nothing is answered once a close is under way;
- messages that nobody takes fill a queue, and then neither pong nor close gets through: there is no queue, the reader
  hands each message over at once;
- the size limit counts characters and no fragments: here it counts bytes, and empty fragments weigh nothing;
- several tasks send, and a send that is cancelled half-way leaves a torn frame: one writer sends everything, several
  frames to a TCP segment, and after a send that missed its deadline the stream is dropped, never written again;
- a send to a client that does not read waits for ever: the outbox is bounded, and so is every send;
- broken frames end the stream without a word: here the close frame says why (1002, 1007);
- closing waits for a silent peer: the stream is half-closed, drained and dropped within `disconnect_timeout_s`.

The overridden methods are private to trio-websocket, so its version is bounded in pyproject.toml.
"""

from __future__ import annotations

import io
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

import trio
from trio_websocket import ConnectionClosed, WebSocketConnection, WebSocketRequest
from wsproto import ConnectionType, WSConnection
from wsproto.connection import ConnectionState
from wsproto.events import BytesMessage, CloseConnection, Ping, Pong, Request, TextMessage

from protocol.native.frames import FRAME_BYTES_MAX

GOING_AWAY: Final = 1001
MESSAGE_TOO_BIG: Final = 1009
TRY_AGAIN_LATER: Final = 1013

_RECEIVE_BYTES: Final = 16 * 1024  # also bounds how many small frames are handled without letting others run
_SEND_BYTES: Final = 64 * 1024


@dataclass(frozen=True, slots=True)
class SocketLimits:
    """What one connection may cost: bytes, frames, and seconds."""

    frame_bytes_max: int = FRAME_BYTES_MAX
    outbox_frames_max: int = 8192
    outbox_bytes_max: int = 8 * 1024 * 1024
    connect_timeout_s: float = 10.0
    send_timeout_s: float = 10.0  # for each 64 KiB
    ping_interval_s: float = 20.0  # also how long the answer may take
    disconnect_timeout_s: float = 3.0


def text_header(size: int) -> bytes:
    """Return the header of an unmasked, unfragmented text frame of `size` bytes (RFC 6455, section 5.2)."""
    if size < 126:
        return bytes((0x81, size))
    if size < 65_536:
        return b"\x81\x7e" + size.to_bytes(2, "big")
    return b"\x81\x7f" + size.to_bytes(8, "big")


class ServerSocket(WebSocketConnection):
    """The server's end of one WebSocket.

    `on_text` and `on_binary` are called by the reader for each message; they must not wait and not raise. `post` and
    `close` never wait. In one nursery run `read`, await `handshake`, then run `write` and `keep_alive`. The connection
    is over when `write` returns, when `read` returns and nothing is `closing`, and when one of them raises: cancel
    the nursery then, and await `finish`.
    """

    def __init__(
        self,
        stream: trio.abc.HalfCloseableStream,
        on_text: Callable[[str], None],
        on_binary: Callable[[], None],
        limits: SocketLimits,
    ) -> None:
        super().__init__(stream, WSConnection(ConnectionType.SERVER), receive_buffer_size=_RECEIVE_BYTES)
        self._half_closeable = stream
        self._on_text = on_text
        self._on_binary = on_binary
        self._limits = limits
        self.host = ""
        self.closing: tuple[int, str] | None = None  # the code and the reason, once a close is under way
        self._close_sent = False
        self._outbox: deque[bytes] = deque()
        self._outbox_bytes = 0
        self._idle = trio.lowlevel.ParkingLot()
        self._sent = trio.lowlevel.ParkingLot()
        self._pong_due: bytes | None = None
        self._ping_due = False
        self._heard_at = 0.0
        self._text = io.StringIO()

    # -- reading -------------------------------------------------------------------------------------------------

    async def read(self) -> None:
        """Read frames until the peer is gone or a close is under way."""
        try:
            await self._reader_task()
        except UnicodeError as error:
            if self._wsproto.state is not ConnectionState.CONNECTING:
                raise
            # wsproto decodes some headers without a thought for what clients write there.
            raise trio.BrokenResourceError(f"a header of the handshake is not text: {error}") from error

    async def handshake(self) -> WebSocketRequest:
        """Return the client's upgrade request, to be accepted or refused; raises trio.TooSlowError."""
        with trio.fail_after(self._limits.connect_timeout_s):
            return await self._get_request()

    async def refuse(
        self, request: WebSocketRequest, status: int, why: str, *headers: tuple[bytes, bytes]
    ) -> None:
        """Answer an upgrade request with an HTTP error and a line of text."""
        plain = [(b"content-type", b"text/plain; charset=utf-8"), (b"connection", b"close")]
        with trio.fail_after(self._limits.send_timeout_s):
            await request.reject(status, extra_headers=[*plain, *headers], body=f"{why}\n".encode())
        self._close_sent = True

    async def _handle_request_event(self, event: Request) -> None:
        self.host = event.host
        await super()._handle_request_event(event)

    async def _handle_message_event(self, event: BytesMessage | TextMessage) -> None:
        self._heard_at = trio.current_time()
        if self.closing is not None:
            return
        data = event.data
        self._message_size += (
            len(data.encode()) if isinstance(data, str) and not data.isascii() else len(data)
        )
        if self._message_size > self._limits.frame_bytes_max:
            self.close(
                MESSAGE_TOO_BIG, f"a message is at most {self._limits.frame_bytes_max} bytes", discard=True
            )
            return
        if isinstance(data, str):
            self._text.write(data)
        if event.message_finished:
            self._message_size = 0
            if isinstance(data, str):
                text, self._text = self._text.getvalue(), io.StringIO()
                self._on_text(text)
            else:
                self._on_binary()

    async def _handle_ping_event(self, event: Ping) -> None:
        self._heard_at = trio.current_time()
        # Of several pings the last needs an answer (RFC 6455, section 5.5.3).
        self._pong_due = bytes(event.payload)
        self._wake()

    async def _handle_pong_event(self, event: Pong) -> None:  # noqa: ARG002 - any pong is a sign of life
        self._heard_at = trio.current_time()

    async def _handle_close_connection_event(self, event: CloseConnection) -> None:
        # The peer's close frame, which is answered with the same code, or broken frames, for which wsproto names one.
        self.close(event.code, event.reason or "", discard=True)
        raise ConnectionClosed(None)  # ends the reader; the writer has the last word

    # -- writing -------------------------------------------------------------------------------------------------

    def post(self, message: bytes) -> None:
        """Queue a text message (UTF-8) for the writer; a client that lets too much pile up is closed with 1013."""
        if self.closing is not None:
            return
        size = self._outbox_bytes + len(message)
        if self._outbox and (
            size > self._limits.outbox_bytes_max or len(self._outbox) >= self._limits.outbox_frames_max
        ):
            self.close(TRY_AGAIN_LATER, "the client reads too slowly", discard=True)
            return
        self._outbox.append(message)
        self._outbox_bytes = size
        self._wake()

    async def room(self) -> None:
        """Wait until the outbox is at most a quarter full, or the connection is closing."""
        await trio.lowlevel.checkpoint()
        while self.closing is None and (
            self._outbox_bytes > self._limits.outbox_bytes_max // 4
            or len(self._outbox) > self._limits.outbox_frames_max // 4
        ):
            await self._sent.park()

    def close(self, code: int, reason: str, *, discard: bool = False) -> None:
        """Have the writer end the connection, after what is queued or, with `discard`, instead of it."""
        if discard:
            self._outbox.clear()
            self._outbox_bytes = 0
        if self.closing is None:
            self.closing = (code, reason)
            self._sent.unpark_all()
        self._wake()

    def _wake(self) -> None:
        if self._idle:
            self._idle.unpark()

    async def write(self) -> None:
        """Send what is posted until the close frame is sent.

        Raises trio.TooSlowError when the peer takes nothing for `send_timeout_s`, trio.BrokenResourceError when it
        is gone.
        """
        while not self._close_sent:
            chunk = self._next_chunk()
            if self._sent:
                self._sent.unpark_all()
            if not chunk and not self._close_sent:
                await self._idle.park()
            view = memoryview(chunk)
            for start in range(0, len(chunk), _SEND_BYTES):
                # As trio.fail_after does, without its generator: this runs several times a turn.
                with trio.CancelScope(deadline=trio.current_time() + self._limits.send_timeout_s) as scope:
                    await self._stream.send_all(view[start : start + _SEND_BYTES])
                if scope.cancelled_caught:
                    raise trio.TooSlowError

    def _next_chunk(self) -> bytes:
        """Return the bytes of the next frames: control frames first, messages up to 64 KiB, a close frame last."""
        parts: list[bytes] = []
        if self._wsproto.state is not ConnectionState.OPEN:
            self._outbox.clear()
        elif self.closing is None:
            parts.extend(self._control_frames())
        size = 0
        while self._outbox and size < _SEND_BYTES:
            message = self._outbox.popleft()
            parts.append(text_header(len(message)))
            parts.append(message)
            size += len(message)
        self._outbox_bytes = self._outbox_bytes - size if self._outbox else 0
        if self.closing is not None and not self._outbox:
            parts.append(self._close_frame(*self.closing))
            self._close_sent = True
        return b"".join(parts)

    def _control_frames(self) -> list[bytes]:
        frames = []
        if self._pong_due is not None:
            frames.append(self._wsproto.send(Pong(payload=self._pong_due)))
            self._pong_due = None
        if self._ping_due:
            frames.append(self._wsproto.send(Ping()))
            self._ping_due = False
        return frames

    def _close_frame(self, code: int, reason: str) -> bytes:
        if self._wsproto.state not in (ConnectionState.OPEN, ConnectionState.REMOTE_CLOSING):
            return b""
        return self._wsproto.send(CloseConnection(code=code, reason=reason))

    # -- living and ending ---------------------------------------------------------------------------------------

    async def keep_alive(self) -> None:
        """Ping the peer every `ping_interval_s`; raises trio.TooSlowError when nothing came since the last ping."""
        asked_at = -1.0
        while True:
            await trio.sleep(self._limits.ping_interval_s)
            if self._heard_at < asked_at:
                raise trio.TooSlowError(f"no sign of life for {self._limits.ping_interval_s} s")
            asked_at = trio.current_time()
            self._ping_due = True
            self._wake()

    async def finish(self) -> None:
        """Close the stream; call it when neither `read` nor `write` runs any more.

        After a close frame of ours the stream is half-closed and drained until the peer's, its end, or at most
        `disconnect_timeout_s`: closing a socket with unread data resets it, and the close frame would be lost.
        """
        try:
            if self._close_sent and self._wsproto.state is ConnectionState.LOCAL_CLOSING:
                with trio.move_on_after(self._limits.disconnect_timeout_s):
                    await self._half_closeable.send_eof()
                    while (
                        data := await self._half_closeable.receive_some(_SEND_BYTES)
                    ) and not self._said_bye(data):
                        pass
        except (trio.BrokenResourceError, trio.ClosedResourceError):
            pass  # the peer was faster
        finally:
            await trio.aclose_forcefully(self._half_closeable)

    def _said_bye(self, data: bytes | bytearray) -> bool:
        self._wsproto.receive_data(bytes(data))
        return any(isinstance(event, CloseConnection) for event in self._wsproto.events())
