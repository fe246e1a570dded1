"""What a campaign came to: for people, and as JSON."""

from __future__ import annotations

from collections import Counter
from dataclasses import asdict, dataclass, field
from typing import Any

from bench.measure import median, quantile
from tests.chaos.check import Checker
from tests.chaos.record import Life, Told, Violation

FILES_GROWN_MAX = 20
"""More open files at the end of a campaign than at its beginning, in the middle of many lives: they leak."""


@dataclass(slots=True)
class Report:
    """What was done, what was checked, what was broken; `totals` counts what clients did and what the store held."""

    seed: int = 0
    kills: int = 0
    lives: list[Life] = field(default_factory=list)
    totals: Counter[str] = field(default_factory=Counter)
    checks: Counter[str] = field(default_factory=Counter)
    violations: list[Violation] = field(default_factory=list)
    log_read: dict[str, int] = field(default_factory=dict)

    @property
    def usual_start_s(self) -> float:
        """How long a start took so far, in the middle; two seconds as long as nobody knows."""
        return median([life.ready_s for life in self.lives if life.ready_s] or [2.0])

    def count(self, told: Told, checker: Checker) -> None:
        """Add what was told and held at one root."""
        ends = Counter(end.payload["status"] for ends in checker.view.ends.values() for end in ends)
        self.totals.update({f"turns {status}": count for status, count in ends.items()})
        self.totals.update(
            {
                "turns asked for": len(told.asked),
                "streams resumed or asked for again": checker.streams_again,
                "mails acknowledged": sum(mail.id is not None for mail in told.mails),
                "board lines acknowledged": sum(post.line is not None for post in told.posts),
                "sessions opened": sum(len(kept.opened) for kept in told.sessions.values()),
                "sessions closed": sum(kept.closed for kept in told.sessions.values()),
                "mails carried": sum(status == "complete" for _, _, status in checker.view.carried),
                "mails carried by a turn that was cut off": sum(
                    status == "interrupted" for _, _, status in checker.view.carried
                ),
                "ledger entries": len(checker.view.entries),
                "half-written files left": checker.left_behind,
                "roots": 1,
            }
        )
        self.checks.update(checker.checks)

    def phases(self) -> dict[str, int]:
        """Return how many kills there were, by where they struck."""
        return dict(
            Counter(life.plan.partition(":")[0] for life in self.lives if life.end == "killed").most_common()
        )

    def starts(self) -> dict[str, float]:
        """Return the seconds from start to ready."""
        times = [life.ready_s for life in self.lives if life.ready_s is not None]
        if not times:
            return {}
        return {"starts": len(times), "p50": median(times), "p99": quantile(times, 0.99), "max": max(times)}

    def files(self) -> dict[str, int]:
        """Return the open files of daemons that were just ready: in the first quarter of the campaign, in the last."""
        counts = [life.files_at_ready for life in self.lives if life.files_at_ready is not None]
        if not counts:
            return {}
        quarter = max(1, len(counts) // 4)
        return {
            "first quarter": int(median(counts[:quarter])),
            "last quarter": int(median(counts[-quarter:])),
            "most under load": max(life.files_at_end or 0 for life in self.lives),
        }

    def finish(self) -> None:
        """Make the checks that need the whole campaign."""
        files = self.files()
        if files:
            self.checks["open files do not grow"] += 1
            if files["last quarter"] > files["first quarter"] + FILES_GROWN_MAX:
                self.violations.append(Violation("open files do not grow", str(files), self.seed))
        self.checks["half-written files are bounded"] += 1
        if self.totals["half-written files left"] > self.kills:
            self.violations.append(Violation("half-written files are bounded", str(self.totals), self.seed))

    def plain(self) -> dict[str, Any]:
        """Return all of it as JSON takes it."""
        return {
            "seed": self.seed,
            "kills": self.kills,
            "kills_by_phase": self.phases(),
            "totals": dict(self.totals),
            "checks": dict(self.checks),
            "start_to_ready_s": self.starts(),
            "open_files": self.files(),
            "violations": [asdict(violation) for violation in self.violations],
            "lives": [asdict(life) for life in self.lives],
        }

    def text(self) -> str:
        """Return the report for a terminal."""
        lines = [f"{self.kills} kills in {len(self.lives)} lives of the daemon, seed {self.seed}"]
        for title, table in (
            ("kills by phase", self.phases()),
            ("what was done", dict(sorted(self.totals.items()))),
            ("what was compared", dict(sorted(self.checks.items()))),
            ("start to ready, seconds", self.starts()),
            ("open files", self.files()),
        ):
            lines.append(f"\n{title}")
            lines += [
                f"  {value:>10,.3f}  {name}" if isinstance(value, float) else f"  {value:>10,}  {name}"
                for name, value in table.items()
            ]
        lines.append(f"\nviolations: {len(self.violations)}")
        for rule, count in Counter(violation.rule for violation in self.violations).most_common():
            lines.append(f"  {count:>10,}  {rule}")
        lines += [
            f"\n  {found.rule}\n    seed {found.seed}, life {found.life}, {found.moment}\n    {found.evidence[:1000]}"
            for found in self.violations[:20]
        ]
        return "\n".join(lines)
