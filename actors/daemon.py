"""The daemon: the supervisor tree, top to bottom, and how it begins and ends.

daemon (rest_for_one)
├─ ledger_writer          permanent; nothing governed runs without it
├─ court                  permanent; holds the enacted constitution
├─ sessions (dynamic)     a child per session key, transient
├─ standing (one_for_one) a permanent child per standing agent
├─ evictor                permanent; closes idle sessions
├─ retention              permanent; throws away what has outlived its time
├─ timers                 permanent; ticks who is due, also when that was before a restart
├─ schedule               permanent; keeps a timer for each standing agent, and one for the retention
├─ continuation           permanent, with --resume-turns; goes on with what a crash cut off
├─ health                 permanent; sees what is wrong, and tries whether it is well again
├─ gateway (one_for_one)  connections (dynamic) and the listener
└─ watchdog               permanent; says who is stuck, and whether the loop turns
"""

from __future__ import annotations

import gc
import os
import resource
import signal
import time
from collections.abc import AsyncIterator, Callable, Iterable, Sequence
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from functools import cached_property
from typing import Final

import apsw
import structlog
import trio

from actors.api import Api, Doors
from actors.continuation import Continuation
from actors.court import Court, Enacted, Reload
from actors.directory import CutOff, Directory, SessionSupervisor
from actors.eviction import Evictor
from actors.gateway import Gateway
from actors.health import Found, Health, HealthWatch
from actors.journal import Journal
from actors.kernel import (
    ActorDeadError,
    ChildSpec,
    ChildStartError,
    Intensity,
    MailboxFullError,
    Ref,
    RootFailedError,
    Strategy,
    Supervisor,
    SupervisorRef,
    System,
    Timers,
    TimersRef,
    Watchdog,
    open_system,
)
from actors.ledger_writer import LedgerWriter, WriterFigures
from actors.overview import Overview
from actors.retention import Retention
from actors.runtime.anthropic import AnthropicRuntime
from actors.runtime.base import AgentRuntime
from actors.runtime.constitutional import ConstitutionalRuntime
from actors.runtime.rehearsal import RehearsalRuntime
from actors.schedule import Schedule
from actors.session_services import PASSIVATE_AFTER_S, SessionServices
from actors.standing import (
    LookForMail,
    RosterEnacted,
    StandingAgent,
    StandingMemory,
    StandingSupervisor,
)
from actors.subagents import Subagents
from actors.timer_table import TimerTable
from actors.tools.base import ToolServices
from actors.tools.registry import Registry, standard_tools
from protocol.acting import RUNNER
from protocol.errors import AgentRunnerError, ConfigurationError
from store.clock import StrictClock, unix_now
from store.content import Content, load_content
from store.damage import Damage
from store.database import open_reader, open_writer
from store.event_log import EventLog
from store.ledger import last_timestamp, read_entries
from store.mailbox import Mail
from store.restore import finish_restore
from store.root import Lock, Root, RunnerFile, checked_platform, lay_out, session_secret
from store.version import program_version
from store.workspace import Protected

DRAIN_S: Final = 10.0
"""How long turns may go on after the first SIGTERM."""

RESTART_EXPECTED_MS: Final = 5_000

LOG_GRACE_S: Final = 0.5
"""Time for the thread of the log to write its last lines."""

FILES_WANTED: Final = 65_536
"""Enough open files for as many sessions as there may be."""

_log = structlog.get_logger("daemon")


@dataclass(frozen=True, slots=True)
class Settings:
    """How a daemon is run; lengths of time may be fractions. `passivate_after_min` 0 keeps idle sessions in memory."""

    root: Root
    bind: str = "127.0.0.1"
    port: int = 18789
    backend: str = "auto"
    ttl_min: float = 30.0
    passivate_after_min: float = PASSIVATE_AFTER_S / 60
    heartbeat_interval_s: float = 300.0
    heartbeat: bool = True
    resume_turns: bool = False


@dataclass(frozen=True, slots=True)
class Ready:
    """What the ready line says."""

    url: str
    backend: str
    model: str | None
    agents: int
    pid: int


def choose_backend(name: str) -> AgentRuntime:
    """Return the backend of a name; `auto` is anthropic where ANTHROPIC_API_KEY is set, else rehearsal.

    Raises ConfigurationError for another name, or for settings that the backend cannot use.
    """
    if name == "auto":
        name = "anthropic" if os.environ.get("ANTHROPIC_API_KEY", "").strip() else "rehearsal"
    if name == "anthropic":
        return AnthropicRuntime.from_environment()
    if name == "rehearsal":
        return RehearsalRuntime()
    raise ConfigurationError(
        "--backend", None, f"{name!r} is not a backend", "Use auto, anthropic or rehearsal."
    )


class DaemonFailedError(AgentRunnerError):
    """A part of the tree failed again and again, and with it the daemon."""

    def __init__(self, cause: RootFailedError) -> None:
        super().__init__(f"the daemon failed for good: {cause}; see the log, then start it again")


class Trunk(Supervisor):
    """The root of the tree; it lets its children find each other through `wiring`."""

    def __init__(self, wiring: Wiring, children: Sequence[ChildSpec]) -> None:
        super().__init__(children, strategy=Strategy.REST_FOR_ONE, intensity=Intensity(5, 60.0))
        self._wiring = wiring

    async def on_start(self) -> None:
        """Publish the address under which the children are found."""
        ref = self.ref
        if isinstance(ref, SupervisorRef):
            self._wiring.trunk = ref
            self._wiring.system = ref.system


@dataclass
class Wiring:
    """Every part of one daemon, and how the parts find each other; built anew for each run.

    `watch_health` is False where the machine is not this one: what a simulation has of disk and memory is its own.
    """

    settings: Settings
    content: Content
    backend: AgentRuntime
    trunk: SupervisorRef = field(init=False)
    system: System = field(init=False)
    figures: WriterFigures = field(default_factory=WriterFigures)
    memories: dict[str, StandingMemory] = field(default_factory=dict)
    damage: Damage = field(default_factory=Damage)
    overview: Overview | None = None
    watch_health: bool = True
    hurry: trio.Event = field(default_factory=trio.Event)
    cut_off: list[CutOff] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.enacted = Enacted(self.content)
        self.directory = Directory(lambda: self.trunk.supervisor("sessions"), lambda: self.services)
        state = self.settings.root.state
        self.health = Health(state, self.figures, self.damage, lambda: self.clock, self._conditions)
        self.subagents = Subagents(lambda: self.directory)
        self.enacted.listeners.append(self._roster_enacted)

    # --- what lasts

    @cached_property
    def database(self) -> apsw.Connection:
        """The connection that the loop reads with; the file exists once the ledger writer has started."""
        return open_reader(self.settings.root.database)

    @cached_property
    def clock(self) -> StrictClock:
        """The clock of the ledger, which goes on behind its last entry."""
        return StrictClock(last_timestamp(self.database))

    @cached_property
    def began_at(self) -> str:
        """When this run began (RFC 3339)."""
        return self.clock.stamp()

    @cached_property
    def registry(self) -> Registry:
        """The standard tools."""
        return Registry(standard_tools())

    @cached_property
    def services(self) -> SessionServices:
        """What sessions work with."""
        root = self.settings.root
        runtime = ConstitutionalRuntime(
            self.backend,
            enacted=self.enacted,
            registry=self.registry,
            database=self.database,
            root=root.path,
            protected=Protected(root.path),
            services=ToolServices(
                self.database,
                self.clock,
                lambda: self.enacted.content.roster,
                lambda: self.enacted.content.constitution.limits,
            ),
        )
        return SessionServices(
            writer=self.writer,
            clock=self.clock,
            enacted=self.enacted,
            runtime=runtime,
            registry=self.registry,
            database=self.database,
            secret=session_secret(root),
            tokens_limited=self.backend.name != "rehearsal",
            announce=self.announce,
            run_child=self.subagents.run,
            events=EventLog(root.events),
            hurry=self.hurry,
            passivate_after_s=self.settings.passivate_after_min * 60 or None,
        )

    # --- who lives

    @property
    def writer(self) -> Ref:
        """The ledger writer."""
        return self._child("ledger_writer")

    @property
    def court(self) -> Ref:
        """The policy court."""
        return self._child("court")

    @property
    def standing(self) -> SupervisorRef:
        """The supervisor of the standing agents."""
        return self.trunk.supervisor("standing")

    @property
    def timers(self) -> TimersRef:
        """What ticks who is due."""
        ref = self._child("timers")
        if not isinstance(ref, TimersRef):
            raise TypeError("the child timers is no Timers actor")
        return ref

    def _child(self, name: str) -> Ref:
        ref = self.trunk.child(name)
        if ref is None:
            raise ActorDeadError(f"the daemon has no {name}")
        return ref

    def announce(self, mails: Sequence[Mail]) -> None:
        """Wake those to whom mail was sent; called when it is durable."""
        roster = self.enacted.content.roster
        for name in {identity.id for mail in mails for identity in roster.resolve(mail.recipient)}:
            ref = self.standing.child(name)
            if ref is not None:
                with suppress(ActorDeadError, MailboxFullError):
                    ref.tell(LookForMail())

    def _conditions(self) -> Iterable[Found]:
        return () if self.overview is None else self.overview.conditions()

    def end_turns(self) -> None:
        """Cut running turns off: they are recorded as interrupted, and their clients are told."""
        self.hurry.set()
        for ref in self.directory.live():
            ref.stop()

    def _roster_enacted(self, content: Content) -> None:
        self.standing.tell(RosterEnacted(content.roster))
        self._child("schedule").tell(RosterEnacted(content.roster))

    def tree(self, gateway: ChildSpec) -> ChildSpec:
        """Return the spec of the whole tree, whose port is `gateway`."""
        settings = self.settings
        children = [
            ChildSpec(
                "ledger_writer", lambda: LedgerWriter(self._open_writer, self.figures), shutdown_s=10.0
            ),
            ChildSpec("court", self._court),
            ChildSpec(
                "sessions",
                lambda: SessionSupervisor(lambda: self.services, self.cut_off),
                shutdown_s=DRAIN_S + 5,
            ),
            ChildSpec("standing", self._standing_supervisor),
            ChildSpec(
                "evictor",
                lambda: Evictor(lambda: self.directory, lambda: self.services, settings.ttl_min * 60),
            ),
            ChildSpec("retention", self._retention),
            ChildSpec("timers", self._timers),
            ChildSpec("schedule", self._schedule),
            *(
                [ChildSpec("continuation", lambda: Continuation(lambda: self.directory, self.cut_off))]
                if settings.resume_turns
                else []
            ),
            *(
                [
                    ChildSpec(
                        "health",
                        lambda: HealthWatch(self.health, lambda: self.writer, settings.root.database),
                    )
                ]
                if self.watch_health
                else []
            ),
            gateway,
            # Last, so that its own end takes nobody with it.
            ChildSpec("watchdog", Watchdog),
        ]
        return ChildSpec("daemon", lambda: Trunk(self, children))

    def _open_writer(self) -> apsw.Connection:
        return open_writer(self.settings.root.database)

    def _retention(self) -> Retention:
        settings = self.settings
        return Retention(lambda: self.services, settings.root.workspaces, settings.ttl_min * 60)

    def _timers(self) -> Timers:
        return Timers(TimerTable(lambda: self.database, lambda: self.writer), self.trunk.find, now=unix_now)

    def _schedule(self) -> Schedule:
        settings = self.settings
        heartbeat_s = settings.heartbeat_interval_s if settings.heartbeat else None
        return Schedule(lambda: self.timers, self.enacted, heartbeat_s, unix_now)

    def _court(self) -> Court:
        return Court(
            self.enacted, self.settings.root.platform, self._runner_journal, self._last_configuration
        )

    def _last_configuration(self) -> list[str]:
        found = read_entries(
            self.database, entity_id=RUNNER, quality="configuration", limit=1, newest_first=True
        )
        return [entry.cid for _, entry in found]

    def _runner_journal(self) -> Journal:
        return Journal(self.writer, self.clock, entity_id=RUNNER, actor=RUNNER)

    def _standing_supervisor(self) -> StandingSupervisor:
        return StandingSupervisor(self.enacted.content.roster, self._standing_agent)

    def _standing_agent(self, name: str) -> StandingAgent:
        memory = self.memories.setdefault(name, StandingMemory(name))
        return StandingAgent(memory, lambda: self.services, lambda: self.directory, self.began_at)


@asynccontextmanager
async def open_daemon(
    settings: Settings, on_stuck: Callable[[list[str]], None] | None = None
) -> AsyncIterator[tuple[Wiring, Gateway]]:
    """Run a daemon's tree inside the block: sessions recovered, agents alive, the port open; orderly stop behind it.

    `on_stuck` is that of `open_system`. Raises ConfigurationError, RootError or BindError when it cannot begin; nothing
    runs then.
    """
    root = settings.root
    damage = Damage()
    damage.listen()
    if finish_restore(root):
        _log.warning("a restore that was cut off is finished", root=str(root.path))
    if not root.token_file.exists():
        # Only what was never laid out: content that is gone from a root is missed, not replaced without a word.
        lay_out(root)
    with Lock(root) as lock:
        content = load_content(checked_platform(root))
        # A database that cannot be used is told to the operator here; later it would be a crash of the writer.
        await trio.to_thread.run_sync(lambda: open_writer(root.database).close())
        session_secret(root)  # the same: one line, and not a crash of what needs it
        wiring = Wiring(settings, content, choose_backend(settings.backend), damage=damage)
        overview = Overview(
            system=lambda: wiring.system,
            services=lambda: wiring.services,
            directory=wiring.directory,
            standing=lambda: wiring.standing,
            memories=wiring.memories,
            writer=wiring.figures,
            url=lambda: gateway.url,
            began_at=lambda: wiring.began_at,
            connections=lambda: gateway.connection_count,
            health=wiring.health,
        )
        wiring.overview = overview
        doors = Doors(
            wiring.directory, lambda: wiring.court, lambda: wiring.services, lambda: wiring.database, overview
        )
        gateway = Gateway(Api(doors, root.read_token()), host=settings.bind, port=settings.port)
        await gateway.open()
        try:
            async with _started(wiring.tree(gateway.child_spec()), on_stuck):
                lock.publish(RunnerFile(os.getpid(), gateway.url, wiring.began_at))
                try:
                    yield wiring, gateway
                finally:
                    lock.withdraw()
        finally:
            with trio.CancelScope(shield=True):
                await gateway.close()
                await wiring.backend.aclose()


def _allow_files() -> None:
    """Raise this process's own limit of open files, as far as it may and it helps.

    Each session keeps a handle on each folder that it worked in, so that a thousand sessions would use up the 1,024
    that a process usually begins with, and then nobody could connect.
    """
    allowed, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = FILES_WANTED if most == resource.RLIM_INFINITY else min(FILES_WANTED, most)
    if allowed != resource.RLIM_INFINITY and allowed < wanted:
        resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, most))


@asynccontextmanager
async def _started(tree: ChildSpec, on_stuck: Callable[[list[str]], None] | None) -> AsyncIterator[System]:
    """Open the system; where a part cannot start for a reason that the operator can mend, that reason is raised."""
    try:
        async with open_system(tree, on_stuck=on_stuck) as system:
            yield system
    except RootFailedError as error:
        raise DaemonFailedError(error) from error
    except ChildStartError as error:
        cause: BaseException | None = error
        while cause is not None and not isinstance(cause, AgentRunnerError):
            cause = cause.__cause__
        if cause is None:
            raise
        raise cause from error


async def run_daemon(settings: Settings, on_ready: Callable[[Ready], None]) -> None:
    """Run a daemon until SIGTERM or SIGINT: the first one drains, a second one ends; SIGHUP reloads.

    Raises what `open_daemon` raises, and DaemonFailedError when the tree failed for good.
    """
    _allow_files()
    with trio.open_signal_receiver(signal.SIGTERM, signal.SIGINT, signal.SIGHUP) as signals:
        async with open_daemon(settings, leave_without) as (wiring, gateway):
            status = wiring.services.runtime.status()
            agents = len(wiring.enacted.content.roster.standing())
            _log.info(
                "ready",
                url=gateway.url,
                pid=os.getpid(),
                backend=wiring.backend.name,
                version=program_version(),
            )
            # What a daemon begins with stays as long as it does: the collector need not look at it again and again.
            gc.collect()
            gc.freeze()
            on_ready(Ready(gateway.url, wiring.backend.name, status.get("model"), agents, os.getpid()))
            async with trio.open_nursery() as nursery:
                nursery.start_soon(_end_with_tree, wiring.system, nursery.cancel_scope)
                async for number in signals:
                    if number == signal.SIGHUP:
                        # With so many reloads waiting already, or no court, this one adds nothing.
                        with suppress(ActorDeadError, MailboxFullError):
                            wiring.court.tell(Reload())
                        continue
                    break
                _log.info("draining", seconds=DRAIN_S)
                nursery.start_soon(_hurry_after, DRAIN_S, wiring)
                nursery.start_soon(_hurry_at_second_signal, signals, wiring)
                await gateway.drain(timeout_s=DRAIN_S, restart_expected_ms=RESTART_EXPECTED_MS)
                await wiring.system.stop()


def leave_without(paths: list[str]) -> None:
    """End the process at once, because the tasks of these actors cannot be ended; what was acknowledged is durable."""
    _log.critical("ending without those that do not end", actors=paths)
    time.sleep(LOG_GRACE_S)
    os._exit(os.EX_SOFTWARE)


async def _end_with_tree(system: System, scope: trio.CancelScope) -> None:
    await system.wait_stopped()
    scope.cancel()


async def _hurry_after(seconds: float, wiring: Wiring) -> None:
    await trio.sleep(seconds)
    wiring.end_turns()


async def _hurry_at_second_signal(signals: AsyncIterator[int], wiring: Wiring) -> None:
    async for number in signals:
        if number != signal.SIGHUP:
            wiring.end_turns()
            return


__all__ = ["DaemonFailedError", "Ready", "Settings", "choose_backend", "open_daemon", "run_daemon"]
