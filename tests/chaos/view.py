"""What the store holds, read for a comparison: the ledger once, entry by entry, and the other tables as they are."""

from __future__ import annotations

from collections import Counter, defaultdict
from dataclasses import dataclass, field
from typing import Any

import apsw
import orjson

from protocol.entry import Entry
from store.ledger import read_entries

SETTLED = ("complete", "cancelled")
"""How a turn ended whose mail is read."""


@dataclass(slots=True)
class LedgerView:
    """The ledger by what is looked for in it; `read` takes what is new, for nothing in it ever changes."""

    entries: dict[str, Entry] = field(default_factory=dict)
    last: int = 0
    calls: dict[str, list[Entry]] = field(default_factory=lambda: defaultdict(list))
    results: dict[str, list[Entry]] = field(default_factory=lambda: defaultdict(list))
    ends: dict[str, list[Entry]] = field(default_factory=lambda: defaultdict(list))
    interrupted: dict[str, Entry] = field(default_factory=dict)
    lifecycle: Counter[tuple[str, str]] = field(default_factory=Counter)
    carried: list[tuple[str, str, str]] = field(default_factory=list)
    called: set[tuple[str, str]] = field(default_factory=set)
    answered: set[tuple[str, str]] = field(default_factory=set)
    _open: dict[str, list[str]] = field(default_factory=lambda: defaultdict(list))

    def read(self, database: apsw.Connection) -> None:
        """Take the entries that came since."""
        for seq, entry in read_entries(database, after=self.last):
            self.last = seq
            self._take(entry)

    def _take(self, entry: Entry) -> None:
        self.entries[entry.cid] = entry
        payload = entry.payload
        match entry.quality:
            case "tool_call":
                self.calls[payload["input_hash"]].append(entry)
                self.called.add((entry.entity_id, entry.target))
            case "tool_result":
                self.results[entry.parents[0]].append(entry)
                self.answered.add((entry.entity_id, entry.target))
            case "mailbox_inject":
                self._open[entry.entity_id].append(payload["message_id"])
            case "turn":
                self.ends[payload["turn_id"]].append(entry)
                # Turns of a session follow one another: what was injected belongs to the next that ends.
                for message in self._open.pop(entry.entity_id, ()):
                    self.carried.append((message, payload["agent"], payload["status"]))
            case "session_lifecycle":
                self.lifecycle[entry.entity_id, payload["event"]] += 1
                if payload["event"] == "interrupted":
                    self.interrupted[entry.parents[0]] = entry

    def completed(self, input_hash: str) -> int:
        """Return how many calls with that input are recorded as completed."""
        return sum(
            result.payload["outcome"] == "completed"
            for call in self.calls.get(input_hash, ())
            for result in self.results.get(call.cid, ())
        )


def texts_of_turn(database: apsw.Connection, turn: str) -> str:
    """Return what the assistant said in a turn, as the history has it."""
    rows = database.execute(
        "SELECT content FROM history WHERE turn_id = ? AND role = 'assistant' ORDER BY seq", (turn,)
    )
    return "".join(
        block["text"]
        for (content,) in rows
        for block in _blocks(orjson.loads(content))
        if block["type"] == "text"
    )


def read_by_tool(database: apsw.Connection) -> dict[str, list[str]]:
    """Return, by agent, what `read_mailbox` gave in turns that ended so that their mail is read."""
    found: dict[str, list[str]] = defaultdict(list)
    calls: set[str] = set()
    rows = database.execute(
        "SELECT s.agent_id, h.content FROM history h JOIN turns t ON t.id = h.turn_id "
        "JOIN sessions s ON s.id = h.session_id WHERE t.status IN ('complete', 'cancelled') "
        "AND s.owner IN ('operator', 'runner') AND h.content LIKE '%tool%' ORDER BY h.id"
    )
    for agent, content in rows:
        for block in _blocks(orjson.loads(content)):
            if block["type"] == "tool_use" and block["name"] == "read_mailbox":
                calls.add(block["id"])
            elif block["type"] == "tool_result" and block["tool_use_id"] in calls:
                found[agent].append(str(block["content"]))
    return found


def _blocks(content: Any) -> list[dict[str, Any]]:
    return [{"type": "text", "text": content}] if isinstance(content, str) else content
