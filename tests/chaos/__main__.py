"""Kill a daemon under load, again and again, and compare what clients were told with what the store holds.

    python -m tests.chaos [--kills 500] [--seed N] [--minutes M] [--sessions 40] [--keep FOLDER] [--json FILE]
        [--warm]

Prints a report at the end, also after Ctrl-C; exits with 1 where a promise was broken.
"""

from __future__ import annotations

import argparse
import json
import random
import sys
from pathlib import Path

import trio

from tests.chaos.campaign import Campaign, Order
from tests.chaos.report import Report


def read_order(arguments: list[str] | None = None) -> tuple[Order, Path | None]:
    """Return what the command line asks for, and where the JSON is to go."""
    parser = argparse.ArgumentParser(
        prog="python -m tests.chaos", description=(__doc__ or "").partition("\n")[0]
    )
    parser.add_argument("--kills", type=int, default=500, help="end after so many (default 500)")
    parser.add_argument(
        "--seed", type=int, default=random.randrange(10**6), help="of every choice; default: any"
    )
    parser.add_argument("--minutes", type=float, default=1_000.0, help="end after so long")
    parser.add_argument("--sessions", type=int, default=40, help="clients at once (default 40)")
    parser.add_argument("--keep", type=Path, help="a folder in which the roots stay")
    parser.add_argument(
        "--warm",
        action="store_true",
        help="start daemons from a process that has the program loaded: more kills an hour",
    )
    parser.add_argument("--json", type=Path, help="a file for the report as JSON")
    given = parser.parse_args(arguments)
    return Order(given.kills, given.seed, given.minutes, given.sessions, given.keep, given.warm), given.json


def main(arguments: list[str] | None = None) -> int:
    """Run a campaign; return the exit code."""
    order, json_file = read_order(arguments)
    campaign = Campaign(order, say=lambda line: print(line, file=sys.stderr, flush=True))
    try:
        trio.run(campaign.run)
    except* KeyboardInterrupt:
        pass
    finally:
        _tell(campaign.report, json_file)
    return 1 if campaign.report.violations else 0


def _tell(report: Report, json_file: Path | None) -> None:
    report.finish()
    sys.stdout.write(report.text() + "\n")
    if json_file is not None:
        json_file.write_text(json.dumps(report.plain(), indent=1), encoding="utf-8")


if __name__ == "__main__":
    sys.exit(main())
