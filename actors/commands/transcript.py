"""A turn as a person reads it: each event becomes text, as it arrives."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any, Final

from actors.commands.output import clean, one_line, paint, shortened

INPUT_CHARACTERS_MAX: Final = 300
RESULT_LINES_MAX: Final = 8
RESULT_CHARACTERS_MAX: Final = 800


class Transcript:
    """Takes the events of one turn in order and writes them; `write` is given text without an end of its own.

    What the agent says is plain, what it thinks and what tools give is dim, what the court blocked is red. Verdicts
    on what is offered are counted, and only those that block are told one by one.
    """

    def __init__(self, write: Callable[[str], None]) -> None:
        self._write = write
        self._at_line_start = True
        self._aside = False
        self._offered = 0
        self._usage: dict[str, Any] = {}

    def take(self, event: dict[str, Any]) -> None:
        """Write one event; an event of an unknown type is passed over, as the protocol asks."""
        kind = str(event.get("type"))
        if self._offered and kind != "policy_gate":
            self._line(f"the court offers {self._offered} tools", dim=True)
            self._offered = 0
        handle = getattr(self, f"_on_{kind}", None)
        if handle is not None:
            handle(event)

    def _on_text_delta(self, event: dict[str, Any]) -> None:
        self._text(event["text"], aside=False)

    def _on_reasoning_delta(self, event: dict[str, Any]) -> None:
        self._text(event["text"], aside=True)

    def _on_tool_output(self, event: dict[str, Any]) -> None:
        self._text(event["delta"], aside=True)

    def _on_tool_call(self, event: dict[str, Any]) -> None:
        written = shortened(json.dumps(event["input"], ensure_ascii=False), INPUT_CHARACTERS_MAX)
        self._line(f"{paint('tool', fg='cyan')} {paint(one_line(event['name']), bold=True)} {written}")

    def _on_tool_result(self, event: dict[str, Any]) -> None:
        content = _as_text(event["content"])
        style: dict[str, Any] = {"fg": "red"} if event["is_error"] else {"dim": True}
        lines = clean(content[:RESULT_CHARACTERS_MAX]).splitlines()
        for line in lines[:RESULT_LINES_MAX]:
            self._line(f"  | {line}", **style)
        if len(content) > RESULT_CHARACTERS_MAX or len(lines) > RESULT_LINES_MAX:
            self._line(f"  | … ({len(content)} characters)", **style)

    def _on_policy_gate(self, event: dict[str, Any]) -> None:
        verdict = event["entry"]["payload"]
        tool = one_line(str(verdict["tool"]))
        if verdict["verdict"] == "blocked":
            when = "withheld" if verdict["phase"] == "offer" else "blocked"
            self._line(f"{when} {tool}: {one_line(str(verdict['reason']))}", fg="red")
        elif verdict["phase"] == "offer":
            self._offered += 1
        else:
            self._line(f"allowed {tool} ({one_line(str(verdict['rule']))})", dim=True)

    def _on_mailbox_injected(self, event: dict[str, Any]) -> None:
        sender = one_line(event["entry"]["payload"]["sender"])
        self._line(f"mail from {sender} is in this turn", fg="yellow")

    def _on_usage_update(self, event: dict[str, Any]) -> None:
        self._usage = event

    def _on_done(self, event: dict[str, Any]) -> None:
        reason = event["stop_reason"]
        words = [] if reason == "end_turn" else [f"ended: {one_line(reason)}"]
        if self._usage:
            words.append(f"{self._usage['input_tokens']} tokens in, {self._usage['output_tokens']} out")
        if words:
            self._line(", ".join(words), dim=True)

    def end(self) -> None:
        """End a line that was begun."""
        if not self._at_line_start:
            self._put("\n")

    def _put(self, text: str) -> None:
        self._write(text)
        self._at_line_start = text.endswith("\n")

    def _line(self, text: str, **style: Any) -> None:
        self.end()
        self._put((paint(text, **style) if style else text) + "\n")

    def _text(self, text: str, *, aside: bool) -> None:
        if not text:
            return
        if aside != self._aside:
            self.end()
            self._aside = aside
        cleaned = clean(text)
        self._write(paint(cleaned, dim=True) if aside else cleaned)
        self._at_line_start = cleaned.endswith("\n")


def _as_text(content: str | list[dict[str, Any]]) -> str:
    """Return what a tool gave as text; what is no text is named by its kind."""
    if isinstance(content, str):
        return content
    return "\n".join(
        str(block["text"]) if block.get("type") == "text" else f"[{block.get('type')}]" for block in content
    )
