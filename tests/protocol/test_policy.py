"""The gate, held against an interpreter of the rules that is too simple to be wrong."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from protocol.constitution import WORKSPACE_RULE, Condition, Constitution, Rule
from protocol.coverage import covering_rules
from protocol.mounts import Mount, mount_of
from protocol.policy import NO_MATCH, REMEMBERED_MAX, compile_gate
from protocol.tiers import Tier
from tests.support.naive_globs import matches_names, matches_text

ROOT = "/srv/root"
TOOLS = ["read_file", "write_file", "send_message", "mcp__git"]
PATH_ARGUMENTS = {
    "read_file": {"path": "read"},
    "write_file": {"path": "write"},
    "copy_file": {"source": "read", "target": "write"},
}
MOUNTS = (Mount("platform", write=False), Mount("workspaces/users/ann", write=True))


def rule(name, verdict="allowed", tier=None, tools=None, arguments=None):
    condition = Condition(agent_trust=tier, tool_name_matches=tools, argument_matches=arguments)
    return Rule(name=name, condition=condition, verdict=verdict, reason=f"because of {name}")


def gate_of(*rules, tier=Tier.REGISTERED, mounts=MOUNTS, root=ROOT, **bars):
    return compile_gate(Constitution(tool_rules=list(rules)), tier, mounts, PATH_ARGUMENTS, root=root, **bars)


ALL = rule("all")


def walk(path: str) -> list[str] | None:
    """Return the names of a path from the root down, or None where it is outside."""
    at = [] if path.startswith("/") else ROOT.split("/")[1:]
    for name in path.split("/"):
        if name == "..":
            if at == ROOT.split("/")[1:] and not path.startswith("/"):
                return None
            at = at[:-1]
        elif name not in ("", "."):
            at = [*at, name]
    root = ROOT.split("/")[1:]
    return at[len(root) :] if at[: len(root)] == root else None


def holds(one: Rule, tier: Tier, tool: str, arguments: dict) -> bool:
    condition = one.condition
    if condition.agent_trust not in (None, tier):
        return False
    names = condition.tool_name_matches
    if names is not None and not any(matches_text(name, tool) for name in names):
        return False
    for name, pattern in (condition.argument_matches or {}).items():
        value = arguments.get(name)
        if not isinstance(value, str):
            return False
        if name in PATH_ARGUMENTS.get(tool, {}):
            names_of = walk(value)
            if names_of is None or not matches_names(pattern.split("/"), names_of or ["."]):
                return False
        elif not matches_text(pattern, value):
            return False
    return True


def first_match(rules: list[Rule], tier: Tier, tool: str, arguments: dict) -> Rule | None:
    return next((one for one in rules if holds(one, tier, tool, arguments)), None)


SEGMENTS = st.sampled_from(
    ["a", "b", ".", "..", "", "platform", "workspaces", "users", "ann", "anna", "bob", ".state", "..."],
)
PATHS = st.builds(
    lambda start, names: start + "/".join(names),
    st.sampled_from(
        ["", "/", f"{ROOT}/", f"{ROOT}/workspaces/", "workspaces/users/ann/", "platform/", "//", "./"]
    ),
    st.lists(SEGMENTS, max_size=6),
)
PATTERNS = st.sampled_from(
    ["**", "a/**", "platform/**", "workspaces/users/*/a", "*/a", "platform/?", "**/b", "cora", "*"]
)
RULES = st.lists(
    st.builds(
        rule,
        name=st.uuids().map(str),
        verdict=st.sampled_from(["allowed", "blocked"]),
        tier=st.sampled_from([None, *Tier]),
        tools=st.none()
        | st.lists(st.sampled_from([*TOOLS, "*_file", "mcp__*", "*"]), min_size=1, max_size=2),
        arguments=st.none()
        | st.dictionaries(st.sampled_from(["path", "to"]), PATTERNS, min_size=1, max_size=2),
    ),
    max_size=5,
)
ARGUMENTS = st.fixed_dictionaries(
    {},
    optional={"path": PATHS | st.none() | st.integers(), "to": st.sampled_from(["cora", "a/b", "reed", 5])},
)
CALLS = st.tuples(st.sampled_from(list(Tier)), st.sampled_from([*TOOLS, "unheard"]), ARGUMENTS)


@given(rules=RULES, call=CALLS)
@settings(max_examples=300)
def test_the_first_rule_that_matches_decides(rules, call):
    tier, tool, arguments = call
    verdict = gate_of(*rules, tier=tier).judge(tool, arguments)
    if isinstance(path := arguments.get("path"), str) and tool in PATH_ARGUMENTS and walk(path) is None:
        assert not verdict.allowed  # what leaves the root is blocked whatever a rule says
        return
    wanted = first_match(rules, tier, tool, arguments)
    if wanted is None:
        assert verdict == NO_MATCH
    elif wanted.verdict == "blocked" or verdict.rule != WORKSPACE_RULE:
        assert (verdict.allowed, verdict.rule, verdict.reason) == (
            wanted.verdict == "allowed",
            wanted.name,
            wanted.reason,
        )


@given(rules=RULES, call=CALLS)
@settings(max_examples=200)
def test_an_offer_is_never_stricter_than_a_call(rules, call):
    tier, tool, arguments = call
    gate = gate_of(*rules, tier=tier)
    if gate.judge(tool, arguments).allowed:
        assert gate.offer(tool).allowed


@given(rules=RULES, tier=st.sampled_from(list(Tier)), tool=st.sampled_from(TOOLS))
def test_an_offer_passes_over_what_would_block_by_arguments(rules, tier, tool):
    known = [one for one in rules if one.verdict == "allowed" or not one.condition.argument_matches]
    bare = [
        rule(one.name, one.verdict, one.condition.agent_trust, one.condition.tool_name_matches)
        for one in known
    ]
    wanted = first_match(bare, tier, tool, {})
    verdict = gate_of(*rules, tier=tier).offer(tool)
    assert verdict.rule == (None if wanted is None else wanted.name)
    assert verdict.allowed == (wanted is not None and wanted.verdict == "allowed")


MOUNT_SETS = st.lists(
    st.builds(
        Mount,
        st.sampled_from(["platform", "workspaces", "workspaces/users", "workspaces/users/ann", "platform/a"]),
        st.booleans(),
    ),
    max_size=4,
)
BARRED = st.lists(st.sampled_from(["workspaces/.state", "platform/a", "workspaces/users/ann/b"]), max_size=2)


@given(mounts=MOUNT_SETS, path=PATHS, unreadable=BARRED, unwritable=BARRED, tool=st.sampled_from(TOOLS[:2]))
@settings(max_examples=500)
def test_no_path_passes_that_the_mounts_do_not_hold(mounts, path, unreadable, unwritable, tool):
    verdict = gate_of(ALL, mounts=mounts, unreadable=unreadable, unwritable=unwritable).judge(
        tool, {"path": path}
    )
    writes = tool == "write_file"
    names = walk(path)
    mount = None if names is None else mount_of(mounts, names)
    barred = [*unreadable, *unwritable] if writes else unreadable
    allowed = (names == [] and not writes) or (
        names is not None
        and mount is not None
        and (mount.write or not writes)
        and not any(names[: len(bar.split("/"))] == bar.split("/") for bar in barred)
    )
    assert verdict.allowed == allowed, (path, names, mount)
    assert verdict.rule == ("all" if allowed else WORKSPACE_RULE)


@given(rules=RULES, calls=st.lists(CALLS, min_size=1, max_size=4))
@settings(max_examples=200)
def test_a_rule_called_unreachable_decides_no_call(rules, calls):
    dead = {
        one.name
        for index, one in enumerate(rules)
        if covering_rules([other.condition for other in rules[:index]], one.condition)
    }
    for tier, tool, arguments in calls:
        decided = first_match(rules, tier, tool, arguments)
        assert decided is None or decided.name not in dead


@pytest.mark.parametrize(
    "path",
    [
        "workspaces/users/bob/x",
        "workspaces/users/anna/x",
        "workspaces/users",
        "workspaces/users/ann/../bob/x",
        "workspaces/users/ann/..",
        "platform/../.git/config",
        "../root/platform/x",
        "../../etc/passwd",
        "/etc/passwd",
        "/srv/root2/platform/x",
        "/srv/root/../other/platform/x",
        "/",
        "Platform/x",
        "platform\\x",
        "~/x",
        "\0platform/x",
    ],
)
def test_a_path_outside_the_mounts_is_blocked(path):
    verdict = gate_of(ALL).judge("read_file", {"path": path})
    assert (verdict.allowed, verdict.rule) == (False, WORKSPACE_RULE)
    assert verdict.reason.endswith(
        "cannot be read here; the folders of this session are: platform (read), workspaces/users/ann (read and write)",
    )


@pytest.mark.parametrize(
    "path",
    [
        "platform",
        "platform/",
        "./platform/x",
        "platform//x",
        "workspaces/../platform/x",
        "/srv/root/platform/x",
        "//srv/root/./platform",
        "workspaces/users/ann/.hidden",
        "workspaces/users/ann/a/../b",
        "workspaces/users/ann/..x",
    ],
)
def test_a_path_in_a_mount_passes_however_it_is_written(path):
    assert gate_of(ALL).judge("read_file", {"path": path}).allowed


@pytest.mark.parametrize("path", ["", ".", "./", "/srv/root", "/srv/root/", "platform/.."])
def test_the_root_is_read_as_the_list_of_the_mounts_and_never_written(path):
    assert gate_of(ALL).judge("read_file", {"path": path}).allowed
    assert gate_of(ALL).judge("write_file", {"path": path}).rule == WORKSPACE_RULE


def test_writing_needs_a_mount_that_lets_write():
    gate = gate_of(ALL)
    assert gate.judge("write_file", {"path": "workspaces/users/ann/x"}).allowed
    verdict = gate.judge("write_file", {"path": "platform/x"})
    assert (verdict.allowed, verdict.rule) == (False, WORKSPACE_RULE)
    assert verdict.reason.startswith("'platform/x' cannot be written here")


PROTECTED = {
    "mounts": [
        Mount("platform", write=True),
        Mount("workspaces", write=True),
        Mount("workspaces/x", write=False),
    ],
    "unreadable": ["workspaces/.state"],
    "unwritable": ["platform/roster.yaml", "platform/mandates"],
}


@pytest.mark.parametrize(
    ("path", "reads", "writes"),
    [
        ("workspaces/.state", False, False),
        ("workspaces/.state/keys", False, False),
        ("workspaces//.state/keys", False, False),
        ("workspaces/./.state", False, False),
        (f"{ROOT}/workspaces/.state/keys", False, False),
        ("workspaces/.stately", True, True),
        ("platform/roster.yaml", True, False),
        ("platform//roster.yaml", True, False),
        ("platform/./roster.yaml", True, False),
        ("platform/mandates", True, False),
        ("platform/mandates/reed.md", True, False),
        ("platform//mandates/reed.md", True, False),
        (f"{ROOT}/platform//mandates/reed.md", True, False),
        ("platform/mandatesx", True, True),
        ("workspaces/x", True, False),
        ("workspaces/x/", True, False),
        ("workspaces/x/y", True, False),
        ("workspaces//x/y", True, False),
        ("workspaces/./x", True, False),
        ("workspaces/xy", True, True),
    ],
)
def test_what_is_barred_or_mounted_inside_a_mount_has_its_own_access(path, reads, writes):
    gate = gate_of(ALL, **PROTECTED)
    assert gate.judge("read_file", {"path": path}).allowed is reads
    assert gate.judge("write_file", {"path": path}).allowed is writes


def test_a_mount_inside_what_is_barred_opens_nothing():
    gate = gate_of(
        ALL, mounts=[Mount("workspaces/.state/keys", write=True)], unreadable=["workspaces/.state"]
    )
    assert not gate.judge("read_file", {"path": "workspaces/.state/keys/x"}).allowed


def test_every_path_argument_is_held_to_the_mounts():
    gate = gate_of(ALL)
    inside = {"source": "platform/x", "target": "workspaces/users/ann/x"}
    assert gate.judge("copy_file", inside).allowed
    assert not gate.judge("copy_file", {**inside, "source": "workspaces/x"}).allowed
    assert not gate.judge("copy_file", {**inside, "target": "platform/x"}).allowed


def test_no_rule_widens_the_mounts():
    gate = gate_of(rule("open", tools=["read_file"], arguments={"path": "**"}), ALL)
    assert gate.judge("read_file", {"path": "/etc/passwd"}).rule == WORKSPACE_RULE


def test_a_path_argument_left_out_is_for_the_tool_to_fill():
    gate = gate_of(ALL)
    assert gate.judge("read_file", {}).allowed
    assert gate.judge("read_file", {"path": None}).allowed


@pytest.mark.parametrize("path", [5, True, ["platform/x"], {"a": 1}, 1.5])
def test_a_path_that_is_not_text_is_blocked(path):
    assert gate_of(ALL).judge("read_file", {"path": path}).rule == WORKSPACE_RULE


def test_an_argument_of_a_tool_without_paths_is_held_to_no_mount():
    assert gate_of(ALL).judge("mcp__git", {"path": "/etc/passwd"}).allowed


def test_without_mounts_nothing_is_read():
    verdict = gate_of(ALL, mounts=()).judge("read_file", {"path": "platform/x"})
    assert verdict.reason == "'platform/x' cannot be read here; the folders of this session are: none"


def test_without_a_root_every_absolute_path_is_outside():
    gate = gate_of(ALL, root=None)
    assert gate.judge("read_file", {"path": "platform/x"}).allowed
    assert not gate.judge("read_file", {"path": "/srv/root/platform/x"}).allowed


def test_a_rule_on_a_path_sees_it_normalised():
    gate = gate_of(rule("secret", "blocked", arguments={"path": "workspaces/users/ann/secrets/**"}), ALL)
    for path in [
        "workspaces/users/ann/secrets/key",
        "workspaces/users/ann/./x/../secrets/key",
        "workspaces//users/ann/secrets",
        f"{ROOT}/workspaces/users/ann/secrets/key",
    ]:
        assert gate.judge("read_file", {"path": path}).rule == "secret"
    assert gate.judge("read_file", {"path": "workspaces/users/ann/secretsx"}).rule == "all"


@pytest.mark.parametrize(
    "pattern", ["platform/secrets/", "./platform/secrets/**", f"{ROOT}/platform//secrets/**"]
)
def test_a_pattern_for_a_path_may_be_written_loosely(pattern):
    gate = gate_of(rule("secret", "blocked", arguments={"path": pattern}), ALL)
    assert gate.judge("read_file", {"path": "platform/secrets/key"}).rule == "secret"


def test_a_rule_on_text_sees_it_as_it_is():
    gate = gate_of(rule("triage", tools=["send_message"], arguments={"to": "cora"}))
    assert gate.judge("send_message", {"to": "cora"}).rule == "triage"
    for other in ["Cora", "cora ", "reed", "", None, ["cora"]]:
        assert gate.judge("send_message", {"to": other}) == NO_MATCH
    assert gate.judge("send_message", {}) == NO_MATCH
    assert gate.offer("send_message").allowed


def test_no_match_is_blocked_and_says_so():
    gate = gate_of(rule("guests", tier=Tier.UNKNOWN))
    for verdict in (gate.offer("bash"), gate.judge("bash", {})):
        assert (verdict.allowed, verdict.rule, verdict.reason) == (False, None, "no matching policy rule")


def test_a_rule_gives_one_verdict_object():
    gate = gate_of(ALL)
    assert gate.judge("bash", {}) is gate.judge("read_file", {"path": "platform/x"})


@pytest.mark.parametrize(
    "tool", ["", "a b", "*", "?", "\n", "\ud800", "read_file\0", "Read_File", "x" * 10_000]
)
def test_a_tool_name_can_be_any_text(tool):
    gate = gate_of(rule("files", tools=["read_file"]))
    assert gate.offer(tool) == NO_MATCH
    assert gate.judge(tool, {"path": "/etc/passwd"}) == NO_MATCH


def test_what_is_remembered_of_tool_names_is_bounded_and_changes_nothing():
    gate = gate_of(rule("even", tools=["tool-*0"]))
    for number in range(REMEMBERED_MAX + 50):
        name = f"tool-{number}"
        assert gate.offer(name).allowed == gate.judge(name, {}).allowed == name.endswith("0")
    assert len(gate._plans) == len(gate._offers) == REMEMBERED_MAX


def test_a_reason_is_short_and_can_be_recorded():
    reason = gate_of(ALL).judge("read_file", {"path": "\udc80" + "x" * 100_000}).reason
    assert len(reason) < 400
    assert reason.encode()


def test_a_root_must_be_absolute():
    with pytest.raises(ValueError, match="not absolute"):
        gate_of(ALL, root="srv/root")
