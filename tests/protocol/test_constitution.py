"""The typed constitution: mounts of a scope, and rules that could never decide anything."""

from __future__ import annotations

import pytest

from protocol.constitution import Condition, Constitution, Limits, MountTemplate, Rule, Workspaces, mounts_for
from protocol.coverage import covering_rules
from protocol.faults import constitution_faults
from protocol.mounts import Mount
from protocol.tiers import Tier

SESSION = "0123456789abcdef" * 4


def condition(tier=None, tools=None, **arguments):
    return Condition(agent_trust=tier, tool_name_matches=tools, argument_matches=arguments or None)


def constitution(*rules, **fields):
    return Constitution(tool_rules=list(rules), default_mandate="Do what was asked.", **fields)


@pytest.mark.parametrize(
    ("scope", "mounts"),
    [
        (
            "unknown",
            [Mount("platform", write=False), Mount("workspaces/guests/0123456789abcdef", write=True)],
        ),
        ("registered", [Mount("platform", write=False), Mount("workspaces/users/ann", write=True)]),
        ("standing", [Mount("platform", write=True), Mount("workspaces", write=True)]),
        ("tainted", [Mount("platform", write=False), Mount("workspaces/agents/ann", write=True)]),
    ],
)
def test_the_default_scopes_are_those_of_the_specification(scope, mounts):
    assert list(mounts_for(constitution(), scope, name="ann", session_id=SESSION)) == mounts


@pytest.mark.parametrize(
    "name", ["", ".", "..", ".state", "a/b", "../x", "a\0b", "ann\n", " ann", "-x", "a" * 129, "é"]
)
def test_a_name_that_is_no_plain_folder_is_refused(name):
    with pytest.raises(ValueError, match="not a plain folder name"):
        mounts_for(constitution(), "registered", name=name, session_id=SESSION)


@pytest.mark.parametrize("session_id", ["", "../../..", "/etc"])
def test_a_session_that_is_no_plain_folder_is_refused(session_id):
    with pytest.raises(ValueError, match="not a plain folder name"):
        mounts_for(constitution(), "unknown", name="ann", session_id=session_id)


def test_a_name_that_no_folder_needs_is_not_looked_at():
    assert mounts_for(constitution(), "unknown", name="../x", session_id=SESSION)
    assert mounts_for(constitution(), "standing", name="../x", session_id="")


def test_of_two_templates_for_one_folder_the_narrower_holds():
    templates = [
        MountTemplate(path="workspaces/users/{name}", access="write"),
        MountTemplate(path="workspaces/users/ann", access="read"),
        MountTemplate(path="workspaces/users/{name}", access="write"),
    ]
    given = constitution(workspaces=Workspaces(registered=templates))
    assert mounts_for(given, "registered", name="ann", session_id=SESSION) == (
        Mount("workspaces/users/ann", write=False),
    )


def test_the_default_limits_are_those_of_the_specification():
    limits = Limits()
    assert {name: getattr(limits, name) for name in limits.__struct_fields__} == {
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


@pytest.mark.parametrize(
    ("earlier", "later"),
    [
        ([condition()], condition(Tier.UNKNOWN, ["bash"], path="a/**")),
        ([condition(tools=["mcp__*"])], condition(tools=["mcp__git__push", "mcp__git__*"])),
        ([condition(tools=["a"]), condition(tools=["b"])], condition(tools=["a", "b"])),
        ([condition(tier) for tier in Tier], condition()),
        ([condition(tools=["bash"]), condition(Tier.UNKNOWN)], condition(Tier.UNKNOWN, ["bash", "x"])),
        ([condition(path="a/**")], condition(path="a/b/*")),
        ([condition(path="a/**")], condition(path="a/b", to="cora")),
        ([condition(path="a/")], condition(path="a/")),
        ([condition(path="/srv/**")], condition(path="/srv/**")),
        ([condition(path="**")], condition(path="/srv/a")),
    ],
)
def test_what_is_decided_before_is_seen(earlier, later):
    assert covering_rules(earlier, later) == list(range(len(earlier)))


@pytest.mark.parametrize(
    ("earlier", "later"),
    [
        ([], condition()),
        ([condition(Tier.UNKNOWN)], condition()),
        ([condition(Tier.UNKNOWN), condition(Tier.STANDING)], condition()),
        ([condition(tools=["bash"])], condition()),
        ([condition(tools=["bash"])], condition(tools=["bas?"])),
        ([condition(path="**")], condition()),
        ([condition(path="**", to="*")], condition(path="**")),
        # as a path `*` stays in one name, as text it does not
        ([condition(path="*")], condition(path="a/b")),
        ([condition(path="a/*")], condition(path="a/**")),
        # as a path `a/**` is also `a`, as text it is not
        ([condition(path="a/**")], condition(path="a")),
        # as a path these are one, as text they are two
        ([condition(path="a/b")], condition(path="a//b")),
        ([condition(path="a/b")], condition(path="./a/b")),
        # what is left of these without the root is not known here
        ([condition(path="/srv/**")], condition(path="/srv/root/a")),
        ([condition(path="/**")], condition(path="/srv/root/a")),
        ([condition(path="*/*")], condition(path="/a")),
    ],
)
def test_a_rule_that_could_decide_something_is_never_called_dead(earlier, later):
    assert covering_rules(earlier, later) == []


def test_a_dead_rule_names_what_decides_before_it():
    rules = [
        Rule(name=name, condition=when, verdict="blocked", reason="Ask.")
        for name, when in [
            ("guests", condition(Tier.UNKNOWN)),
            ("users", condition(Tier.REGISTERED)),
            ("shell", condition(Tier.UNKNOWN, ["bash"])),
        ]
    ]
    (fault,) = constitution_faults(constitution(*rules))
    assert fault.where == ("tool_rules", 2)
    assert (
        fault.problem == "the rule 'shell' can never match: all that it says is decided before it by 'guests'"
    )


def test_a_constitution_without_rules_is_sound_and_blocks_all():
    assert list(constitution_faults(constitution())) == []
