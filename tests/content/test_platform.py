"""The shipped platform folder: what is in it, what its rules come to, and that its pages agree."""

import fnmatch
import re
from collections.abc import Hashable, Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

PLATFORM = Path(__file__).parents[2] / "platform"

STANDARD_TOOLS = [
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
]

TIERS = ("unknown", "registered", "standing")


class UniqueKeyLoader(yaml.SafeLoader):
    """A loader that refuses a mapping in which a key stands twice."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Hashable, Any]:
        keys = [self.construct_object(key, deep=True) for key, _ in node.value]
        assert len(keys) == len(set(keys)), f"{node.start_mark}: a key stands twice in {keys}"
        return super().construct_mapping(node, deep)


def load(name: str) -> dict[str, Any]:
    text = (PLATFORM / name).read_text(encoding="utf-8")
    content: dict[str, Any] = yaml.load(text, UniqueKeyLoader)  # noqa: S506 (a SafeLoader)
    return content


@pytest.fixture(scope="module")
def constitution() -> dict[str, Any]:
    return load("constitution.yaml")


@pytest.fixture(scope="module")
def identities() -> list[dict[str, Any]]:
    entries: list[dict[str, Any]] = load("roster.yaml")["identities"]
    return entries


def files() -> Iterator[str]:
    """Yield the path of each file that ships, hidden ones and left-overs of an interpreter included."""
    return (path.relative_to(PLATFORM).as_posix() for path in sorted(PLATFORM.rglob("*")) if path.is_file())


def decision(constitution: dict[str, Any], tier: str, tool: str, **arguments: str) -> tuple[str, str]:
    """Return the verdict and the rule on a call: the plain reading of the file, without the runner's compiler."""
    for rule in constitution["tool_rules"]:
        condition = rule["condition"]
        names = condition.get("tool_name_matches", ["*"])
        wanted = condition.get("argument_matches", {})
        if (
            condition.get("agent_trust", tier) == tier
            and any(fnmatch.fnmatchcase(tool, name) for name in names)
            and all(fnmatch.fnmatchcase(arguments.get(key, ""), glob) for key, glob in wanted.items())
        ):
            return rule["verdict"], rule["name"]
    return "blocked", "no matching policy rule"


def test_platform_holds_content_and_no_programs() -> None:
    assert [name for name in files() if name.endswith((".py", ".pyc", ".pyi", ".so"))] == []


def test_loader_of_these_tests_sees_a_key_that_stands_twice() -> None:
    with pytest.raises(AssertionError, match="stands twice"):
        yaml.load("a: 1\nb: 2\na: 3\n", UniqueKeyLoader)  # noqa: S506 (a SafeLoader)


def test_index_lists_exactly_the_files_that_are_there() -> None:
    index = (PLATFORM / "index.md").read_text(encoding="utf-8").split("## Withdrawn", 1)[0]
    listed = re.findall(r"^\| `([^`]+)` \|", index, flags=re.MULTILINE)
    assert listed == sorted(listed)
    assert listed == sorted(files())


def test_pages_refer_only_to_platform_files_that_exist() -> None:
    pages = [PLATFORM / name for name in files() if name.endswith((".md", ".yaml"))]
    missing = [
        (page.name, path)
        for page in pages
        for path in re.findall(r"`(platform/[^`\s<]+)`", page.read_text(encoding="utf-8"))
        if not (PLATFORM.parent / path).exists()
    ]
    assert missing == []


def test_roster_entries_have_exactly_the_fields_of_the_specification(
    identities: list[dict[str, Any]],
) -> None:
    fields = ["id", "kind", "state", "role", "model", "mandate", "pubkey", "tags"]
    assert [entry["id"] for entry in identities if list(entry) != fields] == []


def test_roster_ships_26_live_standing_agents_each_with_its_mandate(identities: list[dict[str, Any]]) -> None:
    assert len(identities) == 26
    for entry in identities:
        assert (entry["kind"], entry["state"], entry["model"], entry["pubkey"]) == (
            "role",
            "live",
            None,
            None,
        )
        assert entry["mandate"] == f"mandates/{entry['id']}.md"
        assert (PLATFORM / entry["mandate"]).is_file()


def test_no_address_of_the_roster_means_two_things(identities: list[dict[str, Any]]) -> None:
    addresses = [entry["id"] for entry in identities] + [entry["role"] for entry in identities]
    reserved = {"operator", "runner", "all"}
    assert len(set(addresses)) == len(addresses)
    assert not reserved & set(addresses)
    assert [name for name in addresses if not re.fullmatch(r"[a-z][a-z0-9]*(-[a-z0-9]+)*", name)] == []


def test_every_tag_is_a_group_that_mail_can_be_sent_to(identities: list[dict[str, Any]]) -> None:
    assert [
        entry["id"]
        for entry in identities
        if not entry["tags"] or len(set(entry["tags"])) != len(entry["tags"])
    ] == []
    assert all(re.fullmatch(r"[a-z]+(-[a-z]+)*", tag) for entry in identities for tag in entry["tags"])


@pytest.mark.parametrize("tier", TIERS)
@pytest.mark.parametrize("tool", STANDARD_TOOLS)
def test_every_tier_has_the_standard_tools_but_for_what_guests_lack(
    constitution: dict[str, Any], tier: str, tool: str
) -> None:
    blocked = tier == "unknown" and tool in {"spawn_subagent", "post_board", "send_message"}
    assert decision(constitution, tier, tool, to="reed")[0] == ("blocked" if blocked else "allowed")


def test_mail_of_a_guest_reaches_triage_and_nobody_else(
    constitution: dict[str, Any], identities: list[dict[str, Any]]
) -> None:
    addresses = {entry["id"] for entry in identities} | {entry["role"] for entry in identities}
    addresses |= {"operator", "all", "tag:door", "Cora", "cora ", "cora,reed", ""}
    reached = [
        to for to in addresses if decision(constitution, "unknown", "send_message", to=to)[0] == "allowed"
    ]
    assert reached == ["cora"]


@pytest.mark.parametrize("tool", ["mcp__github__push", "web_fetch", "read_file2", "READ_FILE"])
def test_tools_outside_the_standard_set_are_not_for_guests(constitution: dict[str, Any], tool: str) -> None:
    verdicts = [decision(constitution, tier, tool)[0] for tier in TIERS]
    assert verdicts == ["blocked", "allowed", "allowed"]


def test_every_rule_decides_some_call(constitution: dict[str, Any]) -> None:
    tools = [*STANDARD_TOOLS, "mcp__calendar__list"]
    deciding = {
        decision(constitution, tier, tool, to=to)[1]
        for tier in TIERS
        for tool in tools
        for to in ("cora", "reed")
    }
    assert deciding == {rule["name"] for rule in constitution["tool_rules"]}


def test_no_rule_names_a_path_that_the_scopes_cover(constitution: dict[str, Any]) -> None:
    arguments = [rule["condition"].get("argument_matches", {}) for rule in constitution["tool_rules"]]
    assert [names for names in arguments if {"path", "working_dir"} & set(names)] == []


def test_every_refusal_tells_the_agent_what_to_do_instead(constitution: dict[str, Any]) -> None:
    refusals = [rule for rule in constitution["tool_rules"] if rule["verdict"] == "blocked"]
    assert refusals
    assert [rule["name"] for rule in refusals if "cora" not in rule["reason"]] == []
    assert [rule["name"] for rule in refusals if rule["name"] in rule["reason"]] == []


def test_scopes_and_limits_are_those_of_the_specification(constitution: dict[str, Any]) -> None:
    scopes = {
        tier: {mount["path"]: mount["access"] for mount in mounts}
        for tier, mounts in constitution["workspaces"].items()
    }
    assert scopes == {
        "unknown": {"platform": "read", "workspaces/guests/{session}": "write"},
        "registered": {"platform": "read", "workspaces/users/{name}": "write"},
        "standing": {"platform": "write", "workspaces": "write"},
        "tainted": {"platform": "read", "workspaces/agents/{name}": "write"},
    }
    assert constitution["limits"] == {
        "queued_turns": 8,
        "model_calls_per_turn": 50,
        "turn_timeout_s": 900,
        "delegated_tool_timeout_s": 120,
        "wakeups_per_10_min": 12,
        "mail_hops": 16,
        "history_tokens_max": 120_000,
        "tokens_per_agent_day": 2_000_000,
        "tokens_per_day": 20_000_000,
        "guest_session_days": 30,
        "history_days": None,
    }


def test_default_mandate_is_a_brief_and_not_a_list_of_rules(constitution: dict[str, Any]) -> None:
    text = constitution["default_mandate"]
    assert len(text.split()) > 80
    assert [
        rule["name"] for rule in constitution["tool_rules"] if rule["name"] in text or rule["reason"] in text
    ] == []


def test_constitution_says_in_prose_what_the_rules_carry_out() -> None:
    prose = (PLATFORM / "constitution.md").read_text(encoding="utf-8")
    for tier in TIERS:
        assert re.search(rf"^- \*\*{tier.capitalize()}\*\*:", prose, flags=re.MULTILINE)
    headings = re.findall(r"^## \d+\. (.+)$", prose, flags=re.MULTILINE)
    assert {
        "Purpose",
        "The three estates",
        "Principles",
        "Escalation",
        "What is never done",
        "Amendment",
    } <= set(headings)
    assert 150 <= len(prose.splitlines()) <= 250


def test_each_term_is_defined_once() -> None:
    page = (PLATFORM / "ontology" / "terms.md").read_text(encoding="utf-8")
    heads = re.findall(r"^((?:\*\*[^*]+\*\*(?:, )?)+)", page, flags=re.MULTILINE)
    terms = [term.lower() for head in heads for term in re.findall(r"\*\*([^*]+)\*\*", head)]
    assert len(terms) == len(set(terms))
    assert {
        "actor",
        "court",
        "ledger",
        "verdict",
        "principal",
        "tier",
        "mandate",
        "turn",
        "tainted",
        "hop",
    } <= set(terms)
