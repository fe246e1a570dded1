"""What an operator sees of the daemon: one picture, made when it is asked for."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, TypeVar

import apsw
import msgspec
import structlog

from actors.directory import Directory
from actors.health import Found, Health
from actors.kernel import SupervisorRef, System, View, find, find_by_id
from actors.ledger_writer import WriterFigures
from actors.session_services import SessionServices
from actors.spending import spending
from actors.standing import StandingMemory
from protocol.acting import session_key_of
from protocol.errors import RequestError
from protocol.roster import Roster
from store.clock import StrictClock
from store.figures import database_bytes
from store.ledger import count_entries
from store.mailbox import count_unread, reader_of
from store.sessions import count_open_sessions, last_wakes, session_states
from store.timers import next_heartbeats, stored_timers
from store.version import program_version

FOLD_ABOVE: Final = 30
"""With more children than this under one supervisor, the quiet ones are counted and not shown."""

SHOWN_MAX: Final = 200
"""At most so many children of one supervisor are shown where the quiet ones are folded."""

PAGE_MAX: Final = 500
"""So many come at once where nobody is folded: with the longest keys that there can be they stay within a frame."""

LETTERS_SHOWN: Final = 10

Read = TypeVar("Read")

_log = structlog.get_logger("overview")


def list_agents(
    database: apsw.Connection | None,
    roster: Roster,
    clock: StrictClock,
    *,
    restarts: Callable[[str], int] = lambda _agent: 0,
    parked: Callable[[str], bool] = lambda _agent: False,
    default_model: str | None = None,
) -> list[dict[str, Any]]:
    """Return one record for each identity of the roster, as `agents list --json` prints them.

    `session_state` is None while the agent has no session; `last_wake`, and `next_heartbeat` when it looks for mail
    that woke nobody, are RFC 3339 or None. Without a database (a root
    whose daemon never ran) nothing is unread.
    """
    keys = [session_key_of(identity.id) for identity in roster.identities]
    states = {} if database is None or not keys else session_states(database, keys)
    wakes = {} if database is None else last_wakes(database)
    heartbeats = {} if database is None else next_heartbeats(database)
    now = clock.stamp()
    return [
        {
            "id": identity.id,
            "role": identity.role,
            "kind": identity.kind,
            "state": identity.state,
            "session_state": states.get(session_key_of(identity.id)),
            "unread": 0 if database is None else count_unread(database, reader_of(identity), now),
            "last_wake": wakes.get(identity.id),
            "next_heartbeat": heartbeats.get(identity.id),
            "restarts": restarts(identity.id),
            "model": identity.model or default_model,
            "parked": parked(identity.id),
        }
        for identity in roster.identities
    ]


@dataclass(frozen=True, slots=True)
class Overview:
    """Gathers the picture from the parts of a running daemon."""

    system: Callable[[], System]
    services: Callable[[], SessionServices]
    directory: Directory
    standing: Callable[[], SupervisorRef]
    memories: dict[str, StandingMemory]
    writer: WriterFigures
    url: Callable[[], str]
    began_at: Callable[[], str]
    connections: Callable[[], int]
    health: Health

    def agents(self) -> list[dict[str, Any]]:
        """Return the roster with the state of each agent."""
        services = self.services()
        return list_agents(
            services.database,
            services.enacted.content.roster,
            services.clock,
            restarts=self._restarts,
            parked=self._parked,
            default_model=services.runtime.status().get("model"),
        )

    def _restarts(self, agent: str) -> int:
        ref = self.standing().child(agent)
        return 0 if ref is None else max(0, ref.generation - 1)

    def _parked(self, agent: str) -> bool:
        memory = self.memories.get(agent)
        ref = self.standing().child(agent)
        return (memory is not None and memory.parked) or (ref is not None and ref.state == "parked")

    def tree(self, path: str | None, *, unfolded: bool, skip: int) -> dict[str, Any]:
        """Return the result of `runner.tree`: what each actor does, and what the whole system has lost.

        `path` is a path with or without the root's id, or the id alone of one actor. Raises RequestError where it
        names none, or several.
        """
        system = self.system()
        place = None
        if path is not None:
            place = find(system.root, path)
            others = [] if place is not None else find_by_id(system.root, path)
            if len(others) > 1:
                paths = ", ".join(ref.path for ref, _ in others)
                raise RequestError("invalid_params", f"`params.path`: several actors are {path!r}: {paths}")
            place = others[0] if others else place
            if place is None:
                raise RequestError("invalid_params", f"`params.path`: there is no actor {path!r}")
        view = View(shown_max=PAGE_MAX, skip=skip) if unfolded else View(FOLD_ABOVE, SHOWN_MAX)
        letters = system.dead_letters
        return {
            "at": self.services().clock.stamp(),
            "tree": msgspec.to_builtins(system.tree(place, view)),
            "dead_letters": {
                "undelivered": letters.undelivered_count,
                "dropped": letters.dropped_count,
                "recent": [msgspec.to_builtins(letter) for letter in list(letters.recent)[-LETTERS_SHOWN:]],
            },
            "stuck": self._stuck(),
        }

    def _stuck(self) -> list[dict[str, Any]]:
        """Return who is at one thing for too long, and who was cancelled and does not end."""
        system = self.system()
        now = system.now()
        found: list[dict[str, Any]] = [
            {"path": one.path, "what": one.what, "age_s": now - one.since, "at": one.place}
            for ref, one in system.overdue.items()
            if one.still_holds(ref.incarnation)
        ]
        named = {one["path"] for one in found}
        return found + [
            {"path": path, "what": "its end", "age_s": None, "at": None}
            for path in system.stuck
            if path not in named
        ]

    def conditions(self) -> Iterator[Found]:
        """Yield what is wrong with parts of the daemon, for `health`."""
        services = self.services()
        breaker = services.runtime.status().get("breaker")
        if breaker is not None and breaker["state"] != "closed":
            when = (
                "with the next turn"
                if breaker["retry_at"] is None
                else f"at {breaker['retry_at'][11:19]} UTC"
            )
            yield Found(
                "backend_down",
                "failing",
                f"the model server failed {breaker['failures']} times in a row ({breaker['reason']})",
                f"Turns are refused meanwhile; it is tried again by itself, {when}.",
            )
        if services.enacted.problem is not None:
            yield Found(
                "constitution_refused",
                "warning",
                services.enacted.problem,
                "Mend the file; what was enacted before is in force.",
            )
        if stuck := self._stuck():
            yield Found(
                "actors_stuck",
                "warning",
                f"at one thing for too long: {', '.join(one['path'] for one in stuck)}",
                "`agent-runner tree` says what they do; a new start ends them.",
            )
        roster = services.enacted.content.roster
        if parked := [identity.id for identity in roster.standing() if self._parked(identity.id)]:
            yield Found(
                "agents_parked",
                "warning",
                f"gave up after failing again and again: {', '.join(parked)}",
                "Mend what `problem` in `status` says, then `agent-runner agents retry ID`.",
            )

    def _read(self, read: Callable[[], Read]) -> Read | None:
        """Return what the store says, or None where it cannot be read, which `health` then says."""
        try:
            return read()
        except apsw.CorruptError as error:
            self.health.damage.note(apsw.SQLITE_CORRUPT, str(error))
        except apsw.Error as error:
            _log.warning("status_not_read", why=str(error))
        return None

    def status(self) -> dict[str, Any]:
        """Return the result of `runner.status`; what a damaged database does not tell is None or empty."""
        services = self.services()
        content = services.enacted.content
        database, writer = services.database, self.writer
        agents = self._read(self.agents) or list_agents(None, content.roster, services.clock)
        status: dict[str, Any] = {
            "pid": os.getpid(),
            "url": self.url(),
            "version": program_version(),
            "started_at": self.began_at(),
            "backend": services.runtime.status(),
            "constitution": {
                "constitution_hash": content.constitution_hash,
                "rules_hash": content.rules_hash,
                "problem": services.enacted.problem,
            },
            "connections": self.connections(),
            "sessions": {
                "open": self._read(lambda: count_open_sessions(database)),
                "running": self._read(lambda: count_open_sessions(database, running=True)),
                "in_memory": len(self.directory.live()),
                "passive": self.directory.count_passive(),
            },
            "agents": agents,
            "ledger": {
                "entries": self._read(lambda: count_entries(database)),
                "units": writer.units,
                "commits": writer.commits,
                "failing": writer.failing,
            },
            "spending": self._read(lambda: spending(services)) or {},
            "database": {"bytes": database_bytes(Path(database.filename))},
            "held_back": {
                name: memory.held_back for name, memory in sorted(self.memories.items()) if memory.held_back
            },
            "problems": {
                name: memory.last_problem
                for name, memory in sorted(self.memories.items())
                if memory.last_problem
            },
            "timers": [
                {
                    "name": timer.name,
                    "target": timer.target,
                    "due_at": timer.due_at,
                    "interval_s": timer.interval_s,
                }
                for timer in self._read(lambda: stored_timers(database)) or ()
            ],
            "dead_letters": self.system().dead_letters.total,
            "stuck": self._stuck(),
        }
        # Looked at last: what was read above may have met a damaged page.
        conditions = self.health.look()
        state = conditions[0]["severity"] if conditions else "ok"
        return {"health": {"state": state, "conditions": conditions}, **status}
