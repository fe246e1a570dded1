"""`python -m tests.mutants`: seed one bug at a time and report which suite kills it."""

from __future__ import annotations

import argparse
import signal
import sys
from collections.abc import Sequence

from tests.mutants.campaign import SUITES, Campaign, Row, run_campaign
from tests.mutants.catalogue import ALL, FIFTEEN
from tests.mutants.mutant import Mutant, StaleMutantError

WIDTH = max(len(mutant.name) for mutant in ALL) + 2


def main() -> int:
    """Run what the arguments say; 1 where a bug survives, the baseline fails or a bug no longer fits."""
    arguments = parse()
    mutants = [m for m in ALL if not arguments.only or any(word in m.name for word in arguments.only)]
    if arguments.fifteen:
        mutants = [mutant for mutant in mutants if mutant in FIFTEEN]
    if not mutants:
        print(f"no bug has {arguments.only} in its name; see --list")
        return 1
    if arguments.list:
        print("\n".join(f"{mutant.name:{WIDTH}}{mutant.file}" for mutant in mutants))
        return 0
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))  # so that what runs is ended
    campaign = Campaign(arguments.suites, arguments.seeds)
    print(line("bug", arguments.suites), flush=True)

    def report(row: Row) -> None:
        cells = [str(row.verdicts.get(suite, "-")) for suite in arguments.suites]
        if row.mutant is None:
            cells = [
                f"{row.verdicts[suite].word} {row.verdicts[suite].seconds:.0f} s"
                for suite in arguments.suites
            ]
        print(line("(none)" if row.mutant is None else row.mutant.name, cells), flush=True)
        for suite, verdict in row.verdicts.items():
            if verdict.word == "broke" or (row.mutant is None and verdict.word != "passed"):
                print(f"--- {suite}:\n{verdict.output}")
            elif arguments.verbose:
                print(f"--- {suite}:\n{verdict.output[-1_500:]}")

    try:
        rows = run_campaign(campaign, mutants, jobs=arguments.jobs, report=report)
    except StaleMutantError as error:
        print(error)
        return 1
    return summarise(rows, mutants, arguments.suites)


def parse() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(prog="python -m tests.mutants", description=__doc__)
    parser.add_argument(
        "--only", action="append", metavar="WORDS", help="bugs with these words in their names"
    )
    parser.add_argument("--fifteen", action="store_true", help="the fifteen classic ones only")
    parser.add_argument("--list", action="store_true", help="list the bugs and run nothing")
    parser.add_argument("--jobs", type=int, default=1, metavar="N", help="how many bugs at a time")
    parser.add_argument("--suites", nargs="+", choices=SUITES, default=SUITES, help="which suites to run")
    parser.add_argument("--seeds", type=int, default=10, metavar="N", help="seeds of each simulation")
    parser.add_argument("--verbose", action="store_true", help="show the end of what each suite printed")
    return parser.parse_args()


def line(name: str, cells: Sequence[str]) -> str:
    """Return one line of the table."""
    return f"{name:{WIDTH}}" + "".join(f"{cell:<18}" for cell in cells)


def summarise(rows: Sequence[Row], mutants: Sequence[Mutant], suites: Sequence[str]) -> int:
    """Print the totals; return the exit code."""
    found = [row for row in rows if row.mutant is not None]
    if not found:
        print("the tests fail on the source as it is: no bug was tried")
        return 1
    for suite in suites:
        given = [row for row in found if suite in row.verdicts]
        kills = sum(row.verdicts[suite].kills for row in given)
        classic = [row for row in given if row.mutant in FIFTEEN]
        of_them = sum(row.verdicts[suite].kills for row in classic)
        print(f"{suite} alone kills {kills} of {len(given)}; {of_them} of the classic {len(classic)}")
    survivors = [row.mutant.name for row in found if row.mutant is not None and not row.killed]
    broken = [row.mutant.name for row in found if row.mutant is not None and row.broken]
    print(f"killed: {len(found) - len(survivors)} of {len(mutants)}")
    if survivors:
        print(f"survived everything: {', '.join(survivors)}")
    if broken:
        print(f"could not be run: {', '.join(broken)}")
    return 1 if survivors or broken else 0


if __name__ == "__main__":
    sys.exit(main())
