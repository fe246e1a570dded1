"""What a decision of the policy gate costs, and what it would cost without compiling.

    python -m bench.gate [--quick]

Judges calls under a constitution of 61 rules, with the compiled gate and with an interpreter that reads the rules as
they stand, in turns, in one process. Nanoseconds a decision: the best, the median and the 99th percentile over batches,
in time of the processor, the loop around it included. A machine that others use too is slower all the same: compare
within one run, and with the first row, which measures the machine.
"""

from __future__ import annotations

import fnmatch
import gc
import posixpath
import time
from collections.abc import Callable, Mapping
from typing import Any, Final

from bench.measure import Goal, Report, Table, command, median, quantile
from protocol.constitution import WORKSPACE_RULE, Condition, Constitution, Rule
from protocol.mounts import Mount, mount_of
from protocol.policy import NO_MATCH, Verdict, compile_gate
from protocol.tiers import Tier

BATCH: Final = 1_000
BATCHES: Final = 200
RULES: Final = 61
ROOT: Final = "/srv/agents"
FILE: Final = "workspaces/users/ann/notes/2026/today.md"
PATH_ARGUMENTS: Final = {"read_file": {"path": "read"}, "write_file": {"path": "write"}}
STANDARD: Final = ["read_file", "write_file", "list_files", "search", "bash", "send_message", "read_mailbox"]
MOUNTS: Final = {
    Tier.REGISTERED: (Mount("platform", write=False), Mount("workspaces/users/ann", write=True)),
    Tier.STANDING: (Mount("platform", write=True), Mount("workspaces", write=True)),
}
BARRED: Final = {
    "unreadable": ["workspaces/.state"],
    "unwritable": ["platform/roster.yaml", "platform/mandates"],
}
QUESTIONS: Final[list[tuple[str, Tier, str, dict[str, Any]]]] = [
    ("no path", Tier.REGISTERED, "bash", {"command": "ls -l"}),
    ("no path, blocked", Tier.REGISTERED, "mcp__server_7__push", {"branch": "main"}),
    ("relative path", Tier.REGISTERED, "read_file", {"path": FILE}),
    ("absolute path", Tier.REGISTERED, "read_file", {"path": f"{ROOT}/{FILE}"}),
    ("absolute path, written", Tier.REGISTERED, "write_file", {"path": f"{ROOT}/{FILE}", "content": "x"}),
    ("absolute path, standing", Tier.STANDING, "read_file", {"path": f"{ROOT}/{FILE}"}),
    ("path with dots", Tier.REGISTERED, "read_file", {"path": "workspaces/users/ann/../ann/today.md"}),
    ("path outside, blocked", Tier.REGISTERED, "read_file", {"path": "/etc/passwd"}),
]


def constitution() -> Constitution:
    """Return RULES rules: servers' tools blocked one by one, guests held back, the standard tools open."""
    rules = [
        Rule(
            name=f"server-{number}",
            condition=Condition(tool_name_matches=[f"mcp__server_{number}__*"]),
            verdict="blocked",
            reason="This server is not connected.",
        )
        for number in range(RULES - 2)
    ]
    guests = Condition(agent_trust=Tier.UNKNOWN, tool_name_matches=["spawn_*"])
    rules.append(Rule(name="guests", condition=guests, verdict="blocked", reason="Ask cora."))
    standard = Condition(tool_name_matches=STANDARD)
    rules.append(
        Rule(name="standard", condition=standard, verdict="allowed", reason="The workspace bounds it.")
    )
    return Constitution(tool_rules=rules, default_mandate="Do what was asked.")


def interpret(
    given: Constitution, tier: Tier, mounts: tuple[Mount, ...], tool: str, arguments: Mapping[str, Any]
) -> Verdict:
    """Judge by reading the rules as they stand: what the gate is compared with."""
    verdict = NO_MATCH
    for rule in given.tool_rules:
        condition = rule.condition
        if condition.agent_trust not in (None, tier):
            continue
        names = condition.tool_name_matches
        if names is not None and not any(fnmatch.fnmatchcase(tool, name) for name in names):
            continue
        verdict = Verdict(allowed=rule.verdict == "allowed", rule=rule.name, reason=rule.reason)
        break
    if not verdict.allowed:
        return verdict
    for name, access in PATH_ARGUMENTS.get(tool, {}).items():
        path = posixpath.normpath(posixpath.join(ROOT, arguments[name]))
        mount = mount_of(mounts, posixpath.relpath(path, ROOT).split("/"))
        if mount is None or (access == "write" and not mount.write):
            return Verdict(allowed=False, rule=WORKSPACE_RULE, reason=f"{path} is outside {mounts}")
    return verdict


def batch(
    judge: Callable[[str, dict[str, Any]], object], tool: str, arguments: dict[str, Any], size: int
) -> float:
    """Return the nanoseconds of one decision, over `size` of them."""
    turns = range(size)
    start = time.thread_time_ns()
    for _ in turns:
        judge(tool, arguments)
    return (time.thread_time_ns() - start) / size


def judge_both(
    tier: Tier, tool: str, arguments: dict[str, Any], batches: int
) -> tuple[list[float], list[float]]:
    """Return nanoseconds a decision, batch by batch: of the gate and of the interpreter."""
    given = constitution()
    gate = compile_gate(given, tier, MOUNTS[tier], PATH_ARGUMENTS, root=ROOT, **BARRED)

    def naive(tool: str, arguments: dict[str, Any]) -> Verdict:
        return interpret(given, tier, MOUNTS[tier], tool, arguments)

    ours, theirs = gate.judge(tool, arguments), naive(tool, arguments)
    assert (ours.allowed, ours.rule) == (theirs.allowed, theirs.rule), (ours, theirs)
    compiled, interpreted = [], []
    for _ in range(batches):
        compiled.append(batch(gate.judge, tool, arguments, BATCH))
        interpreted.append(batch(naive, tool, arguments, BATCH // 100))
    return compiled, interpreted


def _slice(text: str, _arguments: dict[str, Any]) -> str:
    return text[:20]


def measure(*, quick: bool) -> Report:
    """Judge every question in batches."""
    gc.disable()
    batches = BATCHES // 10 if quick else BATCHES
    slices = [batch(_slice, FILE, {}, BATCH) for _ in range(batches)]
    rows: list[list[float | str]] = [
        ["(a call that slices a text)", min(slices), median(slices), quantile(slices, 0.99), "", ""]
    ]
    medians: dict[str, float] = {}
    for label, tier, tool, arguments in QUESTIONS:
        compiled, interpreted = judge_both(tier, tool, arguments, batches)
        ours, naive = median(compiled), median(interpreted)
        medians[label] = ours
        rows.append([label, min(compiled), ours, quantile(compiled, 0.99), naive, f"{naive / ours:.0f}x"])
    table = Table.of(
        f"A decision under {RULES} rules (ns)", ["", "best", "p50", "p99", "interpreted p50", "ratio"], rows
    )
    return Report(
        [table],
        [
            Goal("with an absolute path, p50", medians["absolute path"], 601, "ns"),
            Goal("without a path, p50", medians["no path"], 120, "ns"),
        ],
    )


if __name__ == "__main__":
    command(measure, __doc__)
