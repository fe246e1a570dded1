"""The page of the kernel: its example runs, and what it names is there."""

import re
import runpy
from pathlib import Path

import pytest
import trio
from trio.testing import MockClock

import actors.kernel

FOLDER = Path(actors.kernel.__file__).parent
PAGE = (FOLDER / "README.md").read_text(encoding="utf-8")


def test_example_runs_and_prints_what_the_page_says(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    [code] = re.findall(r"^```python\n(.*?)^```", PAGE, re.MULTILINE | re.DOTALL)
    [printed] = re.findall(r"^```text\n(.*?)^```", PAGE, re.MULTILINE | re.DOTALL)
    path = tmp_path / "example.py"
    path.write_text(code)
    example = runpy.run_path(str(path), run_name="example")
    trio.run(example["main"], clock=MockClock(autojump_threshold=0))
    assert capsys.readouterr().out == printed


def test_every_file_of_the_kernel_is_in_the_table_and_nothing_else():
    named = set(re.findall(r"`(\w+\.py)`", PAGE.split("## Where it is")[1]))
    assert named == {path.name for path in FOLDER.glob("*.py")} - {"__init__.py"}


def test_every_name_in_backticks_is_one_of_the_kernel():
    # Words of the kernel in capitals: classes, and the members of enums.
    names = set(re.findall(r"`([A-Z]\w+)`", PAGE))
    members = {
        member.name
        for kind in (actors.kernel.Overflow, actors.kernel.Strategy, actors.kernel.Restart)
        for member in kind
    }
    of_pykka = {"Timeout", "Envelope"}
    assert {name for name in names if not hasattr(actors.kernel, name)} - members - of_pykka == set()


@pytest.mark.parametrize("promise", range(1, 10))
def test_every_promise_has_its_place(promise: int):
    section = PAGE.split("## What it promises")[1].split("\n## ")[0]
    assert re.search(rf"^{promise}\. \*\*", section, re.MULTILINE)
