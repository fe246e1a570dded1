"""The 26 mandates: complete, consistent with one another, and each unmistakably somebody's own."""

import itertools
import re
from collections import Counter
from pathlib import Path

import pytest
import yaml

PLATFORM = Path(__file__).parents[2] / "platform"

AGENTS = [
    "reed",
    "veda",
    "naga",
    "lina",
    "kavi",
    "nexo",
    "cora",
    "rune",
    "dwara",
    "lumen",
    "haak-00",
    "calli",
    "via",
    "sill",
    "librarian",
    "auditor",
    "strategist",
    "historian",
    "editor",
    "reviewer",
    "writer",
    "copy-editor",
    "planner",
    "curator",
    "scout",
    "herald",
]

SECTIONS = ["Duties", "What wakes you", "Mail", "Tools", "Limits", "Hands over to", "When to ask a person"]

STANDARD_TOOLS = {
    "read_file",
    "list_files",
    "search",
    "write_file",
    "edit_file",
    "bash",
    "send_message",
    "read_mailbox",
    "read_board",
    "post_board",
    "spawn_subagent",
}

ADDRESSES = {*AGENTS, "operator"}
"""To whom a mandate can hand over: the standing agents and the person who runs the daemon."""


def mandate(agent: str) -> str:
    return (PLATFORM / "mandates" / f"{agent}.md").read_text(encoding="utf-8")


def sections(agent: str) -> dict[str, str]:
    parts = re.split(r"^## (.+)$", mandate(agent), flags=re.MULTILINE)
    return dict(zip(parts[1::2], parts[2::2], strict=True))


def blocks(text: str) -> list[str]:
    """Return the paragraphs and list items of a text, one line each, headings left out."""
    items = re.split(r"\n\s*\n|\n(?=- |\d+\. )", text)
    return [" ".join(item.split()) for item in items if item.strip() and not item.lstrip().startswith("#")]


def normalised(block: str) -> str:
    return " ".join(re.findall(r"[a-z0-9]+", block.lower()))


def handovers(agent: str) -> dict[str, str]:
    """Return what an agent hands over, by the address that it goes to."""
    items = (re.fullmatch(r"- `([^`]+)`: (.+)", block) for block in blocks(sections(agent)["Hands over to"]))
    return {item[1]: item[2] for item in items if item}


def shingles(agent: str, size: int) -> set[tuple[str, ...]]:
    """Return all runs of `size` words of a mandate without headings, names of agents and their folders."""
    text = " ".join(blocks(mandate(agent)))
    for name in AGENTS:
        text = re.sub(rf"\b{re.escape(name)}\b", " ", text, flags=re.IGNORECASE)
    words = normalised(text).split()
    return set(zip(*(words[start:] for start in range(size)), strict=False))


def test_mandates_are_those_of_the_26_standing_agents() -> None:
    assert sorted(path.name for path in (PLATFORM / "mandates").iterdir()) == sorted(
        f"{name}.md" for name in AGENTS
    )


@pytest.mark.parametrize("agent", AGENTS)
def test_mandate_has_every_section_in_order_and_none_empty(agent: str) -> None:
    assert list(sections(agent)) == SECTIONS
    assert [heading for heading, text in sections(agent).items() if len(text.split()) < 12] == []


@pytest.mark.parametrize("agent", AGENTS)
def test_mandate_says_first_who_it_is_for(agent: str) -> None:
    title, opening = mandate(agent).split("\n", 1)[0], blocks(mandate(agent))[0]
    name = agent.replace("-", " ?-?")
    assert re.match(rf"# (The )?{name}\b", title, re.IGNORECASE)
    assert re.match(rf"You are (the )?{name}\b", opening, re.IGNORECASE)


@pytest.mark.parametrize("agent", AGENTS)
def test_mandate_is_long_enough_to_work_by_and_short_enough_to_be_read(agent: str) -> None:
    assert 40 <= len(mandate(agent).splitlines()) <= 80


def test_no_two_mandates_share_a_paragraph_or_a_list_item() -> None:
    owners = [(normalised(block), agent) for agent in AGENTS for block in blocks(mandate(agent))]
    shared = {text for text, count in Counter(text for text, _ in owners).items() if count > 1}
    assert [(agent, text) for text, agent in owners if text in shared] == []


def test_no_two_mandates_share_a_sentence() -> None:
    owners = [
        (normalised(sentence), agent)
        for agent in AGENTS
        for block in blocks(mandate(agent))
        for sentence in re.split(r"(?<=[.?!])\s+", block)
        if len(sentence.split()) > 4
    ]
    shared = {text for text, count in Counter(text for text, _ in owners).items() if count > 1}
    assert [(agent, text) for text, agent in owners if text in shared] == []


def test_mandates_stay_unlike_one_another_once_the_names_are_removed() -> None:
    words = {agent: shingles(agent, 1) for agent in AGENTS}
    runs = {agent: shingles(agent, 3) for agent in AGENTS}
    too_alike = [
        (one, other)
        for one, other in itertools.combinations(AGENTS, 2)
        if overlap(words[one], words[other]) > 0.40 or overlap(runs[one], runs[other]) > 0.03
    ]
    assert too_alike == []


def overlap(one: set[tuple[str, ...]], other: set[tuple[str, ...]]) -> float:
    """Return the Jaccard similarity: 0 for nothing in common, 1 for the same."""
    return len(one & other) / len(one | other)


@pytest.mark.parametrize("agent", AGENTS)
def test_every_handover_names_an_address_that_exists(agent: str) -> None:
    stated = blocks(sections(agent)["Hands over to"])
    assert len(handovers(agent)) == len(stated) >= 2
    assert set(handovers(agent)) <= ADDRESSES - {agent}


@pytest.mark.parametrize("agent", AGENTS)
def test_whoever_is_handed_a_matter_expects_it_from_there(agent: str) -> None:
    """What one mandate gives away, another takes: the receiver's section on mail names the sender."""
    receivers = set(handovers(agent)) - {"operator"}
    assert [name for name in sorted(receivers) if f"`{agent}`" not in sections(name)["Mail"]] == []


def test_every_agent_can_be_reached_by_a_handover() -> None:
    assert set(AGENTS) <= {target for agent in AGENTS for target in handovers(agent)}


def test_triage_hands_over_to_whom_its_table_says() -> None:
    table = (PLATFORM / "methods" / "triage.md").read_text(encoding="utf-8")
    owners = re.findall(r"^\|[^|]+\|[^|]+\| `([^`]+)` \|$", table, flags=re.MULTILINE)
    assert sorted(owners) == sorted(handovers("cora"))


@pytest.mark.parametrize("agent", AGENTS)
def test_mandate_names_only_tools_that_exist(agent: str) -> None:
    without_paths = re.sub(r"`[^`]*/[^`]*`", "", mandate(agent))
    assert set(re.findall(r"\b[a-z]+(?:_[a-z]+)+\b", without_paths)) <= STANDARD_TOOLS
    quoted = set(re.findall(r"`([a-z_-]+[0-9]*)`", sections(agent)["Tools"]))
    assert quoted - STANDARD_TOOLS <= {*ADDRESSES, "all", "doctor"}
    assert quoted & STANDARD_TOOLS


@pytest.mark.parametrize("agent", AGENTS)
def test_mandate_says_where_the_operator_is_asked(agent: str) -> None:
    assert "`operator`" in sections(agent)["When to ask a person"]


@pytest.mark.parametrize("agent", AGENTS)
def test_paths_in_a_mandate_lie_in_the_two_folders_and_those_of_the_platform_exist(agent: str) -> None:
    paths = re.findall(r"`([\w.-]+/[^`]*)`", mandate(agent))
    placed = [path for path in paths if path.startswith(("platform/", "workspaces/"))]
    assert [
        path for path in placed if path.startswith("platform/") and not (PLATFORM.parent / path).exists()
    ] == []
    assert [path for path in placed if re.match(r"workspaces/(?!agents/|shared/|users/|$)", path)] == []
    assert placed, "an agent that does not say where its work lies cannot be checked"


@pytest.mark.parametrize("agent", AGENTS)
def test_mandate_writes_only_to_its_own_folder_among_those_of_the_agents(agent: str) -> None:
    folders = set(re.findall(r"`workspaces/agents/([\w-]+)/", mandate(agent)))
    assert folders <= {agent}


@pytest.mark.parametrize("agent", AGENTS)
def test_mandate_repeats_no_rule_of_the_constitution(agent: str) -> None:
    rules = yaml.safe_load((PLATFORM / "constitution.yaml").read_text(encoding="utf-8"))["tool_rules"]
    text = normalised(mandate(agent))
    assert [
        rule["name"]
        for rule in rules
        if normalised(rule["name"]) in text or normalised(rule["reason"]) in text
    ] == []
