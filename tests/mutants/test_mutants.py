"""The seeded bugs fit the source, and the campaign sees the difference between a bug and none."""

import ast
from pathlib import Path

import pytest

from tests.mutants import campaign as campaigns
from tests.mutants.campaign import ROOT, Campaign, run_campaign
from tests.mutants.catalogue import ALL, FIFTEEN
from tests.mutants.mutant import Mutant, StaleMutantError

QUICK = ("crashed message redelivered", "LIFO mailbox")


@pytest.mark.parametrize("mutant", ALL, ids=lambda mutant: mutant.name)
def test_seeded_bug_fits_the_source_once_and_compiles(mutant: Mutant):
    source = (ROOT / mutant.file).read_text()
    mutated = mutant.mutate(source)
    assert ast.dump(ast.parse(mutated)) != ast.dump(ast.parse(source))
    for path in mutant.tests:
        assert (ROOT / path).exists()


def test_the_fifteen_and_at_least_ten_more_are_there():
    assert len(FIFTEEN) == 15
    assert len({mutant.name for mutant in ALL}) == len(ALL) >= 25


def test_a_moved_source_is_named():
    with pytest.raises(StaleMutantError, match="0 times in a file"):
        Mutant("gone", "a file", "old", "new").mutate("something else")
    with pytest.raises(StaleMutantError, match="2 times"):
        Mutant("ambiguous", "a file", "old", "new").mutate("old old")


def test_seeded_bugs_are_killed_and_the_source_is_not():
    tests = ("tests/actors/kernel/test_promises.py", "tests/actors/kernel/test_actor.py")
    before = {path: path.read_bytes() for path in (ROOT / "actors" / "kernel").glob("*.py")}
    quick = [Mutant(m.name, m.file, m.old, m.new, tests) for m in ALL if m.name in QUICK]
    harmless = Mutant("harmless", quick[0].file, quick[0].old, quick[0].old + "\n", tests)
    rows = run_campaign(Campaign(["unit"], 0), [*quick, harmless], jobs=1, report=lambda row: None)
    assert [row.killed for row in rows] == [False, True, True, False]
    assert not any(row.broken for row in rows)
    assert before == {path: path.read_bytes() for path in before}


def test_a_suite_that_hangs_is_ended_and_counts_as_a_kill(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    (tmp_path / "test_it.py").write_text("import time\n\n\ndef test_it():\n    time.sleep(600)\n")
    tests = ("test_it.py",)
    verdict = Campaign(["unit"], 0, {("unit", tests): 3.0}).run_suite(tmp_path, "unit", tests)
    assert verdict.word == "hung"
    assert verdict.kills


def test_a_suite_that_cannot_run_is_no_kill(tmp_path: Path):
    (tmp_path / "test_it.py").write_text("import nothing_of_this_name\n")
    verdict = Campaign(["unit"], 0).run_suite(tmp_path, "unit", ("test_it.py",))
    assert verdict.word == "broke"
    assert not verdict.kills


def test_mutants_are_given_to_a_copy_only():
    assert "actors" in campaigns.COPIED
    assert not any(name.startswith("/") for name in campaigns.COPIED)
