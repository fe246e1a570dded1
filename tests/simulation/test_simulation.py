"""A short campaign, and that the simulation repeats itself and can fail."""

from __future__ import annotations

import os
import subprocess
import sys

from tests.simulation.campaign import run_campaign
from tests.simulation.world import clean_up, simulate


def test_every_invariant_holds_over_a_dozen_seeds():
    report = run_campaign(range(1, 13))
    assert not report.failed, "\n".join(report.lines())
    assert report.seeds == 12


def test_a_seed_repeats_itself_to_the_last_event_whatever_the_hash_seed():
    here = simulate(7)
    clean_up()
    for hash_seed in ("1", "2"):
        output = subprocess.run(
            [sys.executable, "-m", "tests.simulation", "--seed", "7"],
            env={**os.environ, "PYTHONHASHSEED": hash_seed},
            capture_output=True,
            text=True,
            check=True,
        ).stdout
        assert output == f"seed 7: {here.length} events, hash {here.digest}\n"


def test_another_seed_is_another_history():
    assert simulate(3).digest != simulate(4).digest
    clean_up()
