"""For every agent, every tier and every tool: what is blocked never reaches the request to the model."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import msgspec
import pytest

from actors.runtime.base import ToolDefinition
from actors.runtime.messages_loop import ModelSettings, Payload, build_payload
from actors.service import Caller
from actors.tools.registry import standard_tools
from protocol.canonical import blake3_hex
from protocol.constitution import Condition, Rule
from protocol.events import PolicyGate
from protocol.tiers import Tier
from store.content import load_content, shipped_platform
from tests.support.office import GUEST, OPERATOR, Office, open_office, say

SHIPPED = load_content(shipped_platform())
AGENTS = [identity.id for identity in SHIPPED.roster.standing()]
STANDARD = [tool.definition for tool in standard_tools()]
BROUGHT = [
    ToolDefinition(name, f"Does {name}.", {"type": "object", "properties": {}})
    for name in ("bash", "mcp__github__create_issue", "mcp__files__read", "deploy")
]
TOOLS = [*STANDARD, *BROUGHT]
NAMES = [tool.name for tool in TOOLS]

CALLERS: dict[Tier, tuple[Caller, bool]] = {
    Tier.STANDING: (OPERATOR, False),
    Tier.REGISTERED: (OPERATOR, True),  # carrying a guest's mail, which makes it so
    Tier.UNKNOWN: (GUEST, False),
}


class Recorder:
    """Writes down the body of the request that would go to a model server."""

    def __init__(self) -> None:
        self.payload: Payload = {}

    async def __call__(self, session, request, host) -> str:
        self.payload = build_payload(session, request, list(request.messages), ModelSettings(model="m"))
        say(host, "Yes.")
        return "end_turn"

    @property
    def tools(self) -> list[str]:
        return [tool["name"] for tool in self.payload.get("tools", [])]

    @property
    def prompt(self) -> str:
        return self.payload["system"][0]["text"]


def enact(office: Office, rules: Sequence[Rule]) -> None:
    """Put these rules in force, as the court does."""
    constitution = msgspec.structs.replace(SHIPPED.constitution, tool_rules=list(rules))
    rules_hash = blake3_hex(msgspec.json.encode(constitution))
    office.enacted.content = replace(office.enacted.content, constitution=constitution, rules_hash=rules_hash)


def rule(name: str, verdict: str, **condition) -> Rule:
    return Rule(name=name, condition=Condition(**condition), verdict=verdict, reason=f"{name} says so")  # type: ignore[arg-type]


EVERYTHING = rule("everything", "allowed")


def test_there_are_26_agents_and_every_tool_is_among_those_that_are_tried():
    assert len(AGENTS) == 26
    assert len(set(NAMES)) == len(NAMES) == len(STANDARD) + len(BROUGHT)


async def offered(
    office: Office, recorder: Recorder, agent: str, tier: Tier
) -> tuple[list[str], dict[str, str]]:
    """Run a turn; return the tools in the request, and the verdict that the client was shown on each."""
    caller, is_tainted = CALLERS[tier]
    ref = await office.open(f"{agent}:test:{tier}", caller)
    if is_tainted:
        await office.mail(agent, "Hello.", sender="guest:0123456789abcdef", tier=Tier.UNKNOWN)
    ended = await office.turn(ref, "hello", caller, TOOLS)
    assert ended.status == "complete"
    gates = [event.entry.payload for event in ended.events if isinstance(event, PolicyGate)]
    assert {gate["trust"] for gate in gates} == {str(tier)}
    assert f"Your trust tier in this turn is: {tier}." in recorder.prompt
    return recorder.tools, {gate["tool"]: gate["verdict"] for gate in gates}


@pytest.mark.parametrize("tier", list(Tier))
async def test_a_tool_that_is_blocked_for_a_tier_is_in_no_request_of_it_and_all_others_are(
    tmp_path: Path, tier: Tier
):
    recorder = Recorder()
    async with open_office(tmp_path / "root", recorder) as office:
        for name in NAMES:
            blocking = rule("no", "blocked", agent_trust=tier, tool_name_matches=[name])
            enact(office, [blocking, EVERYTHING])
            for agent in AGENTS:
                tools, verdicts = await offered(office, recorder, agent, tier)
                assert tools == [one for one in NAMES if one != name]
                assert [one for one in NAMES if verdicts[one] == "blocked"] == [name]
                listed = recorder.prompt.partition("Your tools: ")[2].partition(".\n")[0].split(", ")
                assert name not in listed
        office.check_ledger()


@pytest.mark.parametrize("tier", list(Tier))
async def test_a_rule_for_another_tier_takes_nothing_away(tmp_path: Path, tier: Tier):
    recorder = Recorder()
    async with open_office(tmp_path / "root", recorder) as office:
        others = [rule(f"no-{other}", "blocked", agent_trust=other) for other in Tier if other is not tier]
        enact(office, [*others, EVERYTHING])
        for agent in AGENTS:
            assert (await offered(office, recorder, agent, tier))[0] == NAMES


@pytest.mark.parametrize("tier", list(Tier))
async def test_without_a_rule_that_matches_nothing_is_offered(tmp_path: Path, tier: Tier):
    recorder = Recorder()
    async with open_office(tmp_path / "root", recorder) as office:
        for rules in (
            [],
            [rule("no", "blocked")],
            [rule("glob", "blocked", tool_name_matches=["*"]), EVERYTHING],
        ):
            enact(office, rules)
            for agent in AGENTS:
                assert (await offered(office, recorder, agent, tier))[0] == []
                assert "tools" not in recorder.payload


async def test_the_shipped_rules_offer_each_tier_what_they_say(tmp_path: Path):
    standard = [tool.name for tool in STANDARD] + ["bash"]  # bash is a standard name, whoever brings it
    wanted = {
        Tier.STANDING: NAMES,
        Tier.REGISTERED: NAMES,
        Tier.UNKNOWN: [name for name in standard if name not in ("spawn_subagent", "post_board")],
    }
    recorder = Recorder()
    async with open_office(tmp_path / "root", recorder) as office:
        for agent in AGENTS:
            for tier in Tier:
                assert (await offered(office, recorder, agent, tier))[0] == wanted[tier]


async def test_rules_stay_out_of_prompts_and_reasons_are_for_those_who_miss_a_tool(tmp_path: Path):
    recorder = Recorder()
    condition = Condition(tool_name_matches=["post_board"])
    secret = Rule(
        name="a-rule-of-some-name", condition=condition, verdict="blocked", reason="Write a letter."
    )
    async with open_office(tmp_path / "root", recorder) as office:
        enact(office, [secret, EVERYTHING])
        for tier in Tier:
            await offered(office, recorder, "reed", tier)
            assert "a-rule-of-some-name" not in str(recorder.payload)
            assert ("- post_board: Write a letter." in recorder.prompt) == (tier is Tier.UNKNOWN)


@pytest.mark.parametrize("agent", AGENTS)
async def test_each_agent_speaks_with_its_own_mandate_for_the_operator_and_with_none_for_a_guest(
    tmp_path: Path, agent: str
):
    recorder = Recorder()
    async with open_office(tmp_path / "root", recorder) as office:
        mandates = office.enacted.content.mandates
        await offered(office, recorder, agent, Tier.STANDING)
        assert [name for name, text in mandates.items() if text.strip() in recorder.prompt] == [agent]
        await offered(office, recorder, agent, Tier.UNKNOWN)
        assert [name for name, text in mandates.items() if text.strip() in recorder.prompt] == []
        assert office.enacted.content.constitution.default_mandate.strip() in recorder.prompt
