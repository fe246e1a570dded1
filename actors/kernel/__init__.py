"""pykka's actors on trio tasks, supervised as Erlang/OTP does it; knows nothing of what is built on it."""

from actors.kernel.actor import Actor
from actors.kernel.child import AutoShutdown, Backoff, ChildSpec, Intensity, Restart, Strategy
from actors.kernel.commands import SupervisorRef
from actors.kernel.dynamic import DynamicSupervisor
from actors.kernel.errors import (
    ActorDeadError,
    ActorParkedError,
    AlreadyAnsweredError,
    AskCycleError,
    AskTimeoutError,
    ChildExistsError,
    ChildStartError,
    ChildStuckError,
    KernelError,
    LinkedExitError,
    MailboxFullError,
    RestartIntensityError,
    RootFailedError,
    SupervisionError,
    ThreadStuckError,
    TooManyChildrenError,
    UnknownChildError,
)
from actors.kernel.mailbox import Future, Overflow, Refusal
from actors.kernel.ref import Ref
from actors.kernel.signals import Down, Exit, ExitKind, ExitReason
from actors.kernel.supervisor import Supervisor
from actors.kernel.system import DeadLetter, DeadLetters, System, open_system, run
from actors.kernel.thread_actor import ThreadActor
from actors.kernel.timer import Tick, Timer, TimersRef, TimerState, TimerStore
from actors.kernel.timers import Timers
from actors.kernel.tree import TreeNode, View, find, find_by_id
from actors.kernel.watchdog import Watchdog
from actors.kernel.worker import ThreadWorker, Worker

__all__ = [
    "Actor",
    "ActorDeadError",
    "ActorParkedError",
    "AlreadyAnsweredError",
    "AskCycleError",
    "AskTimeoutError",
    "AutoShutdown",
    "Backoff",
    "ChildExistsError",
    "ChildSpec",
    "ChildStartError",
    "ChildStuckError",
    "DeadLetter",
    "DeadLetters",
    "Down",
    "DynamicSupervisor",
    "Exit",
    "ExitKind",
    "ExitReason",
    "Future",
    "Intensity",
    "KernelError",
    "LinkedExitError",
    "MailboxFullError",
    "Overflow",
    "Ref",
    "Refusal",
    "Restart",
    "RestartIntensityError",
    "RootFailedError",
    "Strategy",
    "SupervisionError",
    "Supervisor",
    "SupervisorRef",
    "System",
    "ThreadActor",
    "ThreadStuckError",
    "ThreadWorker",
    "Tick",
    "Timer",
    "TimerState",
    "TimerStore",
    "Timers",
    "TimersRef",
    "TooManyChildrenError",
    "TreeNode",
    "UnknownChildError",
    "View",
    "Watchdog",
    "Worker",
    "find",
    "find_by_id",
    "open_system",
    "run",
]
