"""The Anthropic backend: the Messages API over HTTP, streamed. The only module that talks HTTP to a model server.

One client and one pool of kept connections serve the whole daemon. A call is tried again only until the first byte of
its answer: what a model has begun to say cannot be unsaid. Calls that failed for good, one after the other, open the
breaker (`actors.runtime.breaker`). The retry loop is our own, some twenty lines: stamina
measures by the machine's clock and draws its jitter from the global generator, so that no test could state its waits.
"""

from __future__ import annotations

import datetime as dt
import email.utils
import itertools
import os
import random
import re
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Mapping
from contextlib import aclosing, asynccontextmanager
from typing import Any, Final

import httpx
import orjson
import structlog
import trio

from actors.runtime.anthropic_environment import MODEL_DEFAULT, Connection, read_environment
from actors.runtime.base import SessionIdentity, TurnRequest
from actors.runtime.breaker import Breaker
from actors.runtime.messages_loop import MessagesRuntime, ModelSettings, Payload
from protocol.errors import BackendError
from protocol.messages import error_of, excerpt
from protocol.sse import EventStreamParser

API_VERSION: Final = "2023-06-01"
"""The `anthropic-version` whose stream events `protocol.messages` reads."""

TRIES_MAX: Final = 4
WAIT_MAX_S: Final = 60.0
"""The longest wait before another try; a server that asks for a longer one is not tried again."""

BODY_SIZE_MAX: Final = 64 * 1024
"""Bytes of an error's body that are read."""

_RETRIED: Final = frozenset({408, 429, 500, 502, 503, 504, 529})
_CODES: Final = {429: "rate_limited", 503: "backend_overloaded", 529: "backend_overloaded"}
_NEXT_STEPS: Final = {
    400: "The request is at fault: see the reason, and the model and thinking settings.",
    401: "Check ANTHROPIC_API_KEY.",
    403: "The key may not do this: check ANTHROPIC_API_KEY and what its workspace allows.",
    404: "Check the model's name (roster, AGENT_RUNNER_MODEL) and ANTHROPIC_BASE_URL.",
    413: "The request is too large: lower history_tokens_max in constitution.yaml.",
    429: "Wait, or ask for a higher rate limit.",
}

_log = structlog.get_logger(__name__)


class _TryFailedError(Exception):
    """One try failed before the first byte of an answer; `error` is what to raise if it was the last."""

    def __init__(self, error: BackendError, *, is_retried: bool) -> None:
        super().__init__(error.message)
        self.error = error
        self.is_retried = is_retried


class _Line:
    """The way of a request from a client's settings to its transport, worked out once.

    `AsyncClient.send` does for every request what a model call has no use for: it merges URLs and headers, steps
    through an auth flow, looks for cookies and redirects. That is a third of what httpx costs a call.
    """

    def __init__(self, client: httpx.AsyncClient) -> None:
        self._request = client.build_request("POST", "/v1/messages")
        del self._request.headers["content-length"]  # of no content; each request has its own
        url = self._request.url
        if url.username or url.password:
            next(httpx.BasicAuth(url.username, url.password).auth_flow(self._request))
        # The environment may name a proxy for this URL; only the client knows.
        self._transport = client._transport_for_url(url)  # noqa: SLF001

    async def post(self, content: bytes) -> httpx.Response:
        """Send a request and return the response as soon as its head is there; raises httpx.HTTPError."""
        draft = self._request
        request = httpx.Request(
            draft.method, draft.url, headers=draft.headers, content=content, extensions=draft.extensions
        )
        return await self._transport.handle_async_request(request)


class AnthropicRuntime(MessagesRuntime):
    """Asks a server that speaks the Messages API.

    `transport` replaces the network, `rng` gives the jitter of retries, `now` the time that a `retry-after` date is
    compared with. Close it with `aclose`.
    """

    name = "anthropic"

    def __init__(
        self,
        connection: Connection,
        settings: ModelSettings | None = None,
        *,
        transport: httpx.AsyncBaseTransport | None = None,
        rng: random.Random | None = None,
        now: Callable[[], dt.datetime] = lambda: dt.datetime.now(dt.UTC),
    ) -> None:
        super().__init__(settings or ModelSettings(model=MODEL_DEFAULT))
        self.connection = connection
        self._transport = transport
        self._rng = rng or random.Random()
        self._now = now
        self.breaker = Breaker(self.name, rng=self._rng, now=now)
        self._client: httpx.AsyncClient | None = None
        self._line: _Line | None = None
        self._calls = 0
        self._retries = 0
        self._last_error: str | None = None

    @classmethod
    def from_environment(cls, environment: Mapping[str, str] = os.environ) -> AnthropicRuntime:
        """Return the backend that the environment describes; see `read_environment`."""
        return cls(*read_environment(environment))

    async def aclose(self) -> None:
        """Close the pool of connections."""
        client, self._client, self._line = self._client, None, None
        if client is not None:
            await client.aclose()

    def status(self) -> dict[str, Any]:
        """Return name, model, server, health (`unused`, `ok` or the last error), and counts of calls and retries."""
        return {
            "name": self.name,
            "model": self.settings.model,
            "base_url": self.connection.public_url,
            "health": self._last_error or ("ok" if self._calls else "unused"),
            "calls": self._calls,
            "retries": self._retries,
            "breaker": self.breaker.status(),
        }

    async def ensure_session(self, session: SessionIdentity) -> None:
        """Raise BackendError while the server is left alone."""
        del session
        self.breaker.check()

    def retry_in_s(self) -> float:
        """Return how long the server is left alone yet."""
        return self.breaker.retry_in_s

    @asynccontextmanager
    async def open_stream(
        self, session: SessionIdentity, request: TurnRequest, payload: Payload
    ) -> AsyncIterator[AsyncGenerator[bytes, None]]:
        """Ask the server and yield its answer; an answer begins with its first byte, until then it is tried again."""
        del request
        try:
            async with self.breaker.call():
                self._calls += 1
                response, body, first = await self._begin(session, payload)
                try:
                    async with aclosing(self._chunks(body, first)) as chunks:
                        yield chunks
                finally:
                    await _abandon(response, body)
        except BackendError as error:
            self._last_error = error.message
            raise
        self._last_error = None

    async def _begin(
        self, session: SessionIdentity, payload: Payload
    ) -> tuple[httpx.Response, AsyncIterator[bytes], bytes]:
        try:
            content = orjson.dumps(payload)
        except TypeError as error:
            problem = f"the request cannot be written as JSON: {error}"
            raise BackendError("backend_error", problem, is_request_at_fault=True) from error
        for attempt in itertools.count(1):
            try:
                return await self._try(content)
            except _TryFailedError as failure:
                # A server that others have found to be down, and one that is probed, is asked once.
                is_retried = failure.is_retried and self.breaker.state == "closed"
                wait_s = self._wait_s(attempt, failure.error.retry_after_s) if is_retried else None
                if wait_s is None:
                    raise failure.error from failure.__cause__
                _log.warning(
                    "model_call_tried_again",
                    session=session.session_id,
                    attempt=attempt,
                    wait_s=round(wait_s, 2),
                    reason=failure.error.message,
                )
            self._retries += 1
            await trio.sleep(wait_s)
        raise AssertionError("the loop above ends by returning or raising")

    def _wait_s(self, attempt: int, retry_after_s: float | None) -> float | None:
        """Return how long to wait before the next try, or None if there is to be none."""
        if attempt >= TRIES_MAX or (retry_after_s is not None and retry_after_s > WAIT_MAX_S):
            return None
        if retry_after_s is not None:
            # Never earlier than asked; a little later, so that 26 agents do not come back in one instant.
            return min(WAIT_MAX_S, retry_after_s + self._rng.uniform(0.0, 0.05 + retry_after_s / 10))
        return float(2 ** (attempt - 1)) * self._rng.uniform(0.5, 1.0)

    async def _try(self, content: bytes) -> tuple[httpx.Response, AsyncIterator[bytes], bytes]:
        if self._line is None:
            self._line = _Line(self._open_client())
        try:
            with trio.fail_after(self.connection.head_timeout_s):
                response = await self._line.post(content)
        except httpx.HTTPError as error:
            raise self._failed(error) from error
        except trio.TooSlowError as error:
            # Its head came in dribbles, none of which was late.
            raise _TryFailedError(BackendError("backend_error", self._silence()), is_retried=False) from error
        body = response.aiter_bytes()
        is_begun = False
        try:
            if response.status_code != 200:
                raise self._refused(response, await _read_bounded(body))
            media_type = response.headers.get("content-type", "text/event-stream").partition(";")[0].strip()
            if media_type != "text/event-stream":
                text = self._clean(await _read_bounded(body))
                raise _TryFailedError(
                    BackendError(
                        "backend_error",
                        f"the model server answered with {excerpt(media_type, 60)!r} instead of an event stream: "
                        f"{text!r}. Check ANTHROPIC_BASE_URL.",
                    ),
                    is_retried=False,
                )
            first = await anext(body, b"")
            self._check_first(first)
            is_begun = True
        except httpx.HTTPError as error:
            raise self._failed(error) from error
        finally:
            if not is_begun:
                await _abandon(response, body)
        return response, body, first

    def _open_client(self) -> httpx.AsyncClient:
        # Made on first use: a client reads the certificates of the system, which would delay the daemon's start.
        if self._client is None:
            connection = self.connection
            self._client = httpx.AsyncClient(
                base_url=connection.base_url,
                headers={
                    "x-api-key": connection.api_key,
                    "anthropic-version": API_VERSION,
                    "content-type": "application/json",
                    "accept": "text/event-stream",
                    "accept-encoding": "identity",  # compression would hold small events back
                    "user-agent": "agent-runner",
                },
                timeout=httpx.Timeout(
                    connect=connection.connect_timeout_s,
                    read=connection.read_timeout_s,
                    write=connection.write_timeout_s,
                    pool=None,
                ),
                limits=httpx.Limits(
                    max_connections=None, max_keepalive_connections=32, keepalive_expiry=55.0
                ),
                transport=self._transport,
            )
        return self._client

    async def _chunks(self, body: AsyncIterator[bytes], first: bytes) -> AsyncGenerator[bytes, None]:
        yield first
        last_line = trio.current_time()
        try:
            async for chunk in body:
                # A byte a second is no silence to the socket; of a stream that lives, a line is complete in time.
                if b"\n" in chunk:
                    last_line = trio.current_time()
                elif trio.current_time() - last_line > self.connection.read_timeout_s:
                    raise BackendError("backend_error", self._silence())
                yield chunk
        except httpx.TimeoutException as error:
            raise BackendError("backend_error", self._silence()) from error
        except httpx.HTTPError as error:
            raise BackendError(
                "backend_error",
                f"the connection to the model server was lost in the middle of an answer ({type(error).__name__})."
                " Run the turn again.",
            ) from error

    def _check_first(self, first: bytes) -> None:
        """Raise if the answer is over before it began: an empty body, or nothing but an error event."""
        if not first:
            error = BackendError("backend_error", "the model server sent an empty answer")
            raise _TryFailedError(error, is_retried=True)
        if first.startswith(b"event: error"):
            for event in EventStreamParser().feed(first):
                try:
                    fields = orjson.loads(event.data)
                except ValueError:
                    return  # the reader of the stream says what is wrong with it
                if isinstance(fields, dict):
                    error = error_of(fields)
                    raise _TryFailedError(error, is_retried=error.code != "backend_error")

    def _failed(self, error: httpx.HTTPError) -> _TryFailedError:
        where = self.connection.public_url
        if isinstance(error, httpx.ConnectTimeout):
            reason = (
                f"no connection to the model server at {where} within {self.connection.connect_timeout_s:g} s"
            )
        elif isinstance(error, httpx.ConnectError):
            reason = f"no connection to the model server at {where} ({self._clean(str(error))})"
        elif isinstance(error, httpx.TimeoutException):
            # It may be at work on the answer: asking again would only double its load.
            return _TryFailedError(BackendError("backend_error", self._silence()), is_retried=False)
        else:
            reason = f"the model server at {where} broke the connection off ({type(error).__name__})"
        is_retried = not isinstance(error, httpx.UnsupportedProtocol | httpx.LocalProtocolError)
        return _TryFailedError(
            BackendError("backend_error", f"{reason}. Check ANTHROPIC_BASE_URL and the network."),
            is_retried=is_retried,
        )

    def _silence(self) -> str:
        return (
            f"the model server was silent for {self.connection.read_timeout_s:g} s."
            " Run the turn again, or raise AGENT_RUNNER_READ_TIMEOUT."
        )

    def _refused(self, response: httpx.Response, body: bytes) -> _TryFailedError:
        status = response.status_code
        code, reason = _CODES.get(status, "backend_error"), self._clean(body)
        reported = _reported(body)
        if reported is not None:
            code = reported.code if reported.code != "backend_error" else code
            reason = self._clean(reported.message)
        step = _NEXT_STEPS.get(status, "Try again later." if status >= 500 else "")
        message = (
            f"the model server answered {status} ({reason or response.reason_phrase or 'no reason'}). {step}"
        )
        retry_after_s = _retry_after_s(response.headers.get("retry-after"), self._now())
        is_request_at_fault = 400 <= status < 500 and status not in _RETRIED
        error = BackendError(code, message.rstrip(), retry_after_s, is_request_at_fault=is_request_at_fault)
        return _TryFailedError(error, is_retried=status in _RETRIED)

    def _clean(self, body: bytes | str) -> str:
        """Return a short excerpt of what a server said, without markup and without the key."""
        text = body.decode("utf-8", "replace") if isinstance(body, bytes) else body
        text = re.sub(r"(?is)<(script|style)\b.*?</\1\s*>|<[^>]*>", " ", text)
        return excerpt(text.replace(self.connection.api_key, "[key]"), 200)


def _reported(body: bytes) -> BackendError | None:
    """Return the error that a body describes as the Messages API does, or None if it is something else."""
    try:
        fields = orjson.loads(body)
    except ValueError:
        return None
    if not isinstance(fields, dict) or not isinstance(fields.get("error"), dict):
        return None
    return error_of(fields)


async def _read_bounded(body: AsyncIterator[bytes]) -> bytes:
    parts = b""
    async for chunk in body:
        parts += chunk
        if len(parts) >= BODY_SIZE_MAX:
            break
    return parts[:BODY_SIZE_MAX]


async def _abandon(response: httpx.Response, body: AsyncIterator[bytes]) -> None:
    """Close a response at once, whatever is still to come; one that was read to its end goes back to the pool.

    httpx reads through a chain of generators, of which closing the outermost leaves the others to the garbage
    collector; reading from the closed connection ends them all.
    """
    with trio.CancelScope(shield=True):
        is_over = response.is_closed
        await response.aclose()
        if not is_over:
            try:
                async for _ in body:
                    pass
            except (httpx.HTTPError, httpx.StreamError):
                pass


def _retry_after_s(value: str | None, now: dt.datetime) -> float | None:
    """Read a `retry-after` header: seconds, or an HTTP date (RFC 9110, section 10.2.3); None if it is neither."""
    if value is None:
        return None
    try:
        seconds = float(value)
    except ValueError:
        try:
            moment = email.utils.parsedate_to_datetime(value)
        except ValueError:
            return None
        if moment.tzinfo is None:
            moment = moment.replace(tzinfo=dt.UTC)
        seconds = (moment - now).total_seconds()
    return max(0.0, seconds) if seconds == seconds else None  # noqa: PLR0124 - "nan" is a float too
