"""What the operator's pages tell to type is what the command line takes."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator
from pathlib import Path

import click
import pytest

from actors.commands.__main__ import cli
from tests.commands.conftest import CHECKOUT

PAGES = [CHECKOUT / "README.md", *sorted((CHECKOUT / "platform/guide").glob("*.md"))]
STARTS = "(?:.venv/bin/)?agent-runner "


def commands(page: Path) -> Iterator[str]:
    """Yield what a page tells to type: the lines of its shell blocks, and what stands in backticks with the name."""
    text = page.read_text(encoding="utf-8")
    for block in re.findall(r"^```sh\n(.*?)^```", text, re.MULTILINE | re.DOTALL):
        for line in block.splitlines():
            yield from re.findall(rf"(?:^|&& ){STARTS}(.*?)(?: \| .*| +#.*)?$", line)
    prose = re.sub(r"^```.*?^```", "", text, flags=re.MULTILINE | re.DOTALL)
    yield from re.findall(rf"`{STARTS}([^`]+)`", prose)


def parse(line: str) -> None:
    """Parse a line as the command line would, without running it; raises click.UsageError for what it does not take."""
    words = shlex.split(line.replace("[DIR]", ""))
    node: click.Command = cli
    context = click.Context(cli, info_name="agent-runner", **cli.context_settings)
    while isinstance(node, click.Group) and words:
        name, *words = words
        found = node.get_command(context, name)
        assert found is not None, f"there is no command {name!r}: {line}"
        node = found
    if words or not isinstance(node, click.Group):
        node.make_context("agent-runner", words, parent=context)


def test_what_is_not_taken_is_seen() -> None:
    with pytest.raises(click.NoSuchOption):
        parse("ledger show --newest 3")
    with pytest.raises(AssertionError, match="no command 'shew'"):
        parse("ledger shew")


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_every_command_of_a_page_is_taken(page: Path) -> None:
    found = list(commands(page))
    assert len(found) >= 2
    for line in found:
        parse(line)


def test_every_exit_code_of_the_pages_is_one_that_there_is() -> None:
    for page in PAGES:
        codes = set(re.findall(r"exit(?:s| code is| code)? (\d+)", page.read_text(encoding="utf-8").lower()))
        assert codes <= {"0", "1", "2", "3", "5", "78"}, page


def test_first_day_is_reached_from_the_readme() -> None:
    readme = PAGES[0].read_text(encoding="utf-8")
    assert {page.name for page in PAGES[1:]} == set(re.findall(r"platform/guide/([\w-]+\.md)", readme))
