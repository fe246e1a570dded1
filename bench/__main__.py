"""Measure everything and write `bench/RESULTS.md`.

    python -m bench [NAME …] [--quick]

Each module is run in a process of its own, one after the other. With names, only those are run and nothing is written.
"""

from __future__ import annotations

import argparse
import datetime as dt
import subprocess
import sys
import time
from importlib import import_module
from pathlib import Path
from typing import Final

from bench.measure import Report, machine

NAMES: Final = ("gate", "turn", "ledger", "wake", "actors", "memory", "restart")
RESULTS: Final = Path(__file__).with_name("RESULTS.md")

_HEAD: Final = """\
# What it costs

Written by `python -m bench`; each part alone by `python -m bench.NAME`. Trust the ratios inside one table before any
number: the first row of a table is what the others are compared with, measured in the same run.
"""


def run(name: str, *, quick: bool) -> Report:
    """Have a module measure in a process of its own."""
    command = [sys.executable, "-m", f"bench.{name}", "--json", *(["--quick"] if quick else [])]
    done = subprocess.run(command, cwd=RESULTS.parents[1], stdout=subprocess.PIPE, check=True, text=True)
    return Report.from_json(done.stdout)


def page(facts: dict[str, str], reports: dict[str, Report]) -> str:
    """Return the page of results."""
    parts = [_HEAD, "\n".join(f"- {name}: {value}" for name, value in facts.items())]
    for name, report in reports.items():
        document = (import_module(f"bench.{name}").__doc__ or "").partition("\n")[0]
        parts += [f"## {name}", document, report.markdown()]
    return "\n\n".join(part.strip() for part in parts) + "\n"


def main() -> None:
    """Run the modules, print what each found, write the page."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("names", nargs="*", choices=[*NAMES, []], metavar="NAME", help=", ".join(NAMES))
    parser.add_argument(
        "--quick", action="store_true", help="whether it works, not what it costs; writes nothing"
    )
    options = parser.parse_args()
    facts = {"date": dt.datetime.now(dt.UTC).strftime("%Y-%m-%d %H:%M UTC"), **machine()}
    print("\n".join(f"{name}: {value}" for name, value in facts.items()))
    reports = {}
    for name in options.names or NAMES:
        began = time.perf_counter()
        reports[name] = run(name, quick=options.quick)
        print(f"\n--- {name} ({time.perf_counter() - began:.0f} s)\n\n{reports[name].text()}", flush=True)
    if not options.names and not options.quick:
        RESULTS.write_text(page(facts, reports), encoding="utf-8")
        print(f"\nwritten to {RESULTS}")


if __name__ == "__main__":
    main()
