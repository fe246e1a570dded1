"""`python -m tests.simulation`: run a campaign of seeds, or one seed again."""

from __future__ import annotations

import argparse
import sys

from tests.simulation.campaign import run_campaign
from tests.simulation.simulator import simulate, template


def main() -> int:
    """Run what the arguments say; 1 where an invariant did not hold."""
    parser = argparse.ArgumentParser(prog="python -m tests.simulation", description=__doc__)
    parser.add_argument("--seeds", type=int, default=20, metavar="N", help="how many seeds to run")
    parser.add_argument("--first", type=int, default=1, metavar="N", help="the first of them")
    parser.add_argument("--jobs", type=int, default=1, metavar="N", help="how many processes to use")
    parser.add_argument("--stop-at-first", action="store_true", help="end with the first seed that fails")
    parser.add_argument("--seed", type=int, metavar="N", help="run this one alone and print its hash")
    parser.add_argument("--trace", action="store_true", help="with --seed: print every event")
    arguments = parser.parse_args()
    if arguments.seed is None:
        seeds = range(arguments.first, arguments.first + arguments.seeds)
        report = run_campaign(seeds, jobs=arguments.jobs, stop_at_first=arguments.stop_at_first)
        _say(*report.lines())
        return 1 if report.failed else 0
    with template() as root:
        result = simulate(arguments.seed, root, kept=arguments.trace)
    _say(*result.lines, *(f"FAILED {violation}" for violation in result.violations))
    _say(f"seed {result.seed}: {result.length} events, hash {result.digest}")
    return 1 if result.violations else 0


def _say(*lines: str) -> None:
    sys.stdout.write("".join(f"{line}\n" for line in lines))


if __name__ == "__main__":
    sys.exit(main())
