"""The errors of the agent runner.

Drawn as a tree, coded in the same order::

    AgentRunnerError
    ├── RequestError               the client's fault: it becomes an error reply with one of CODES
    ├── ConfigurationError         the operator's fault: file, line, problem and the fix
    ├── CanonicalError             a value that RFC 8785 cannot hold
    ├── BackendError               the model server's fault: backend_error, backend_overloaded, rate_limited
    └── LedgerError                an entry that is not what its CID says

A denial is not an error: it is a `protocol.policy.Verdict`.
"""

from __future__ import annotations

from typing import Final

CODES: Final = frozenset(
    {
        "parse_error",
        "invalid_request",
        "unknown_method",
        "invalid_params",
        "unknown_session",
        "session_closed",
        "agent_frozen",
        "queue_full",
        "unknown_tool_call",
        "unauthorized",
        "backend_error",
        "backend_overloaded",
        "rate_limited",
        "turn_timeout",
        "internal",
        "shutting_down",
    },
)
"""Every error code that the native protocol sends (section 2 of the specification)."""


class AgentRunnerError(Exception):
    """Everything that this project raises on purpose."""


class RequestError(AgentRunnerError):
    """A request that is refused, with the `code` of CODES and a `message` for people."""

    def __init__(self, code: str, message: str) -> None:
        if code not in CODES:
            raise ValueError(f"{code!r} is not an error code of the protocol")
        super().__init__(f"{code}: {message}")
        self.code = code
        self.message = message


class ConfigurationError(AgentRunnerError):
    """A file that the operator keeps is wrong: `path`, `line` (from 1, or None), `problem` and `fix`."""

    def __init__(self, path: str, line: int | None, problem: str, fix: str) -> None:
        where = path if line is None else f"{path}:{line}"
        super().__init__(f"{where}: {problem}. {fix}")
        self.path = path
        self.line = line
        self.problem = problem
        self.fix = fix


class CanonicalError(AgentRunnerError):
    """A value that canonical JSON cannot hold; `path` says where in the value it stands."""

    def __init__(self, path: str, problem: str) -> None:
        super().__init__(f"{path}: {problem}")
        self.path = path
        self.problem = problem


class BackendError(AgentRunnerError):
    """The model server failed.

    `code` is `backend_error`, `backend_overloaded` or `rate_limited`; `retry_after_s` is what the server
    asked for, or None. `is_request_at_fault`: the server is there and would refuse the same request again.
    """

    def __init__(
        self,
        code: str,
        message: str,
        retry_after_s: float | None = None,
        *,
        is_request_at_fault: bool = False,
    ) -> None:
        if code not in CODES:
            raise ValueError(f"{code!r} is not an error code of the protocol")
        super().__init__(message)
        self.code = code
        self.message = message
        self.retry_after_s = retry_after_s
        self.is_request_at_fault = is_request_at_fault

    @property
    def is_server_down(self) -> bool:
        """Whether the server failed, and would any other request."""
        return not self.is_request_at_fault and self.code != "rate_limited"


class LedgerError(AgentRunnerError):
    """An entry or a row that is not what its content identifier says."""
