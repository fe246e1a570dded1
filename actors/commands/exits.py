"""The exit codes, and how an error is told to a person: what happened and the next step, without a traceback."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final

import apsw

from actors.commands.output import complain
from protocol.errors import AgentRunnerError, ConfigurationError, LedgerError, RequestError

OK: Final = 0
FAILED: Final = 1
USAGE: Final = 2
NOT_RUNNING: Final = 3
LEDGER_BROKEN: Final = 5
BAD_CONFIGURATION: Final = 78
"""EX_CONFIG of sysexits.h."""


NEXT_STEPS: Final = {
    "agent_frozen": "`agent-runner agents thaw ID` lets it live again",
    "backend_error": "`agent-runner doctor` looks at key and settings, `agent-runner logs` has the whole answer",
    "backend_overloaded": "try again in a while",
    "internal": "`agent-runner logs` has what went wrong",
    "shutting_down": "try again when it has been started again",
    "unauthorized": "the daemon took another token at its start: `agent-runner stop`, then start it again",
    "unknown_session": "`agent-runner sessions list` names those that there are",
}
"""What a person can do about an error of the protocol, where its message alone does not say."""


class NotRunningError(AgentRunnerError):
    """No daemon keeps the root; the message names the command that starts one."""


def exit_code_of(error: BaseException) -> int | None:
    """Return the exit code for what is raised on purpose and for a closed root, None for a fault of this project."""
    if isinstance(error, BaseExceptionGroup):
        codes = [exit_code_of(one) for one in error.exceptions]
        return None if None in codes else codes[0]
    if isinstance(error, NotRunningError):
        return NOT_RUNNING
    if isinstance(error, ConfigurationError):
        return BAD_CONFIGURATION
    if isinstance(error, LedgerError):
        return LEDGER_BROKEN
    return FAILED if isinstance(error, AgentRunnerError | apsw.Error | PermissionError) else None


def holds(error: BaseException, kind: type[BaseException]) -> bool:
    """Return whether an error is one of a kind, or a group with one in it."""
    if isinstance(error, BaseExceptionGroup):
        return error.subgroup(kind) is not None
    return isinstance(error, kind)


def report(error: BaseException) -> None:
    """Write an error to stderr; of configuration, every fault on a line of its own as `file:line: problem. fix`."""
    for line in _lines(error):
        complain(line)


def _lines(error: BaseException) -> Iterator[str]:
    if isinstance(error, BaseExceptionGroup):
        for one in error.exceptions:
            yield from _lines(one)
    elif isinstance(error, ConfigurationError):
        yield from (str(one) for one in getattr(error, "errors", (error,)))
    elif isinstance(error, apsw.Error):
        yield f"error: the database cannot be read ({error}); `agent-runner ledger verify` says how far it is whole"
    elif isinstance(error, PermissionError):
        yield (
            f"error: {error.filename}: {error.strerror}; run as the user that owns it, or name another root with "
            "--root"
        )
    elif isinstance(error, RequestError) and error.code in NEXT_STEPS:
        yield f"error: {error}; {NEXT_STEPS[error.code]}"
    else:
        yield f"error: {error}"
