"""The strict loader: what it accepts, and what it refuses with file, line and fix."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import yaml
from blake3 import blake3

from protocol.errors import ConfigurationError
from protocol.tiers import Tier
from store import strict_yaml
from store.content import SIZE_MAX, ContentError, find_platform, load_content, shipped_platform

RULES = """\
tool_rules:
  - name: no-shell-for-guests
    condition:
      agent_trust: unknown
      tool_name_matches: [bash]
    verdict: blocked
    reason: Ask cora.
  - name: the-rest
    condition: {}
    verdict: allowed
    reason: The workspace bounds it.
limits:
  queued_turns: 4
default_mandate: |
  Do what was asked.
"""

ROSTER = """\
identities:
  - id: reed
    kind: role
    state: live
    role: steward
    model: null
    mandate: mandates/reed.md
    pubkey: null
    tags: [on-call]
  - id: ann
    kind: user
    state: live
"""


@pytest.fixture(autouse=True, params=["libyaml", "python"])
def _parser(request, monkeypatch):
    """Both parsers of PyYAML must see the same: not every installation has libyaml."""
    if request.param == "python":
        monkeypatch.setattr(strict_yaml, "_PARSER", yaml.SafeLoader)
    elif not hasattr(yaml, "CSafeLoader"):
        pytest.skip("PyYAML is built without libyaml")


@pytest.fixture
def platform(tmp_path) -> Path:
    folder = tmp_path / "platform"
    (folder / "mandates" / "sub").mkdir(parents=True)
    (folder / "constitution.md").write_text("# Constitution\n")
    (folder / "constitution.yaml").write_text(RULES)
    (folder / "roster.yaml").write_text(ROSTER)
    (folder / "mandates" / "reed.md").write_text("You are reed.\n")
    return folder


def refusals(platform: Path) -> list[tuple[str, int | None, str, str]]:
    with pytest.raises(ContentError) as caught:
        load_content(platform)
    error = caught.value
    first = error.errors[0]
    assert (error.path, error.line, error.problem, error.fix) == (
        first.path,
        first.line,
        first.problem,
        first.fix,
    )
    for each in error.errors:
        assert re.match(r"[A-Z`].*\.$", each.fix), f"not a sentence: {each.fix!r}"
        assert not each.problem.endswith("."), each.problem
    return [(Path(each.path).name, each.line, each.problem, each.fix) for each in error.errors]


def refusal_of_rules(platform: Path, text: str) -> tuple[int | None, str, str]:
    """Return the only refusal of constitution.yaml with this text."""
    (platform / "constitution.yaml").write_text(text)
    found = refusals(platform)
    assert len(found) == 1, found
    name, line, problem, fix = found[0]
    assert name == "constitution.yaml"
    return line, problem, fix


def line_with(text: str, part: str) -> int:
    return next(number for number, line in enumerate(text.split("\n"), 1) if part in line)


def test_content_is_typed_hashed_and_whole(platform):
    content = load_content(platform)
    assert [rule.name for rule in content.constitution.tool_rules] == ["no-shell-for-guests", "the-rest"]
    assert content.constitution.tool_rules[0].condition.agent_trust is Tier.UNKNOWN
    assert content.constitution.limits.queued_turns == 4
    assert content.constitution.limits.turn_timeout_s == 900
    assert content.constitution_hash == blake3(b"# Constitution\n").hexdigest()
    assert content.rules_hash == blake3(RULES.encode()).hexdigest()
    assert content.mandates == {"reed": "You are reed.\n"}
    assert content.prose == "# Constitution\n"
    assert content.roster.get("ann").kind == "user"
    assert content.platform_dir == platform


def test_the_shipped_content_loads():
    content = load_content(shipped_platform())
    standing = content.roster.standing()
    assert len(standing) == 26
    assert set(content.mandates) == {identity.id for identity in standing}
    assert find_platform() == shipped_platform()


def test_the_content_of_a_root_goes_before_the_shipped_one(platform):
    assert find_platform(platform.parent) == platform
    assert find_platform(platform / "mandates") == shipped_platform()


def test_a_byte_order_mark_is_read_over_and_hashed(platform):
    data = b"\xef\xbb\xbf" + RULES.encode()
    (platform / "constitution.yaml").write_bytes(data)
    assert load_content(platform).rules_hash == blake3(data).hexdigest()


@pytest.mark.parametrize("ending", ["\r\n", "\n"])
def test_line_endings_do_not_move_lines(platform, ending):
    text = RULES.replace("verdict: blocked", "verdict: blokced")
    (platform / "constitution.yaml").write_bytes(text.replace("\n", ending).encode())
    assert refusals(platform)[0][1] == line_with(text, "blokced")


SURPRISES = [
    ("on", "boolean"),
    ("No", "boolean"),
    ("yes", "boolean"),
    ("y", "boolean"),
    ("OFF", "boolean"),
    ("012", "octal"),
    ("0o12", "number"),
    ("0x1F", "number"),
    ("0b11", "number"),
    ("1_000", "plain decimal"),
    ("+1", "plain decimal"),
    (".5", "plain decimal"),
    ("5.", "plain decimal"),
    ("1e3", "number"),
    ("12e03", "number"),
    (".inf", "number"),
    ("-.INF", "number"),
    (".nan", "number"),
    ("12:30", "base 60"),
    ("1:2:3", "base 60"),
    ("2026-01-02", "date"),
    ("2026-01-02T10:00:00Z", "date"),
    ("2026-01-02 10:00:00", "date"),
    ("=", "meaning"),
    ("12345678901234567890", "plain decimal"),
]


@pytest.mark.parametrize(("written", "word"), SURPRISES)
def test_what_yaml_reads_in_two_ways_is_refused_as_a_value(platform, written, word):
    text = RULES.replace("Ask cora.", written)
    line, problem, fix = refusal_of_rules(platform, text)
    assert line == line_with(text, f"reason: {written}")
    assert word in problem
    assert f"`{written}`" in problem
    assert f'"{written}"' in fix


@pytest.mark.parametrize(("written", "word"), SURPRISES)
def test_what_yaml_reads_in_two_ways_is_text_in_quotes(platform, written, word):
    (platform / "constitution.yaml").write_text(RULES.replace("Ask cora.", f'"{written}"'))
    assert load_content(platform).constitution.tool_rules[0].reason == written


def test_a_key_that_is_a_boolean_to_some_is_refused(platform):
    text = RULES.replace("condition: {}", "condition: {argument_matches: {on: x}}")
    line, problem, fix = refusal_of_rules(platform, text)
    assert line == line_with(text, "{on: x}")
    assert "`on` is a boolean" in problem
    assert '"on"' in fix


@pytest.mark.parametrize(
    ("written", "found"),
    [
        ("1.10", "`1.10`, which is a number"),
        ("8", "`8`, which is a number"),
        ("true", "`true`, which is a boolean"),
    ],
)
def test_a_number_or_boolean_where_text_is_expected_is_refused(platform, written, found):
    text = RULES.replace("Ask cora.", written)
    line, problem, fix = refusal_of_rules(platform, text)
    assert line == line_with(text, f"reason: {written}")
    assert problem == f"`reason` must be text, not {found}"
    assert fix == f'Put it in quotes: "{written}".'


@pytest.mark.parametrize(
    ("old", "new", "at", "problem", "fix"),
    [
        ("limits:", "lmits:", "lmits", "no key `lmits`", "Did you mean limits?"),
        ("agent_trust", "trust", "trust: unknown", "`condition` has no key `trust`", "tool_name_matches"),
        ("    verdict: allowed\n", "", "the-rest", "lacks the key `verdict`", "verdict:"),
        (
            "verdict: allowed",
            "verdict: allow",
            "verdict: allow",
            "`verdict` cannot be `allow`",
            "Did you mean allowed?",
        ),
        (
            "unknown",
            "guest",
            "agent_trust: guest",
            "`agent_trust` cannot be `guest`",
            "unknown, registered, standing",
        ),
        (
            "agent_trust: unknown",
            "agent_trust:",
            "agent_trust:",
            "`agent_trust` has no value",
            "take the key out",
        ),
        ("[bash]", "bash", "bash", "`tool_name_matches` must be a list", "[bash]"),
        ("[bash]", "[bash, 1.10]", "1.10", "item 2 of `tool_name_matches` must be text", '"1.10"'),
        ("[bash]", "[]", "tool_name_matches: []", "can never match", "leave tool_name_matches out"),
        ("[bash]", '[""]', '[""]', "no tool has an empty name", "Name a tool"),
        ("[bash]", "['ba[sh]']", "ba[sh]", "brackets and braces", "one by one"),
        ("condition: {}", "condition: # all", "# all", "`condition` has no value", "Write one"),
        (
            "condition: {}",
            "condition: []",
            "condition: []",
            "`condition` must be a mapping, not a list",
            "agent_trust",
        ),
        (
            "condition: {}",
            "condition: {argument_matches: {}}",
            "argument_matches",
            "is empty",
            "leave argument_matches",
        ),
        ("condition: {}", "condition: {argument_matches: {a: b**}}", "b**", "must stand alone", "Write *"),
        (
            "condition: {}",
            "condition: {argument_matches: {to: 5}}",
            "{to: 5}",
            "`to` of `argument_matches`",
            '"5"',
        ),
        ("the-rest", "no-shell-for-guests", "- name: no-shell", "two rules are named", "name of its own"),
        ("the-rest", "workspace-boundary", "workspace-boundary", "is taken", "another name"),
        ("the-rest", '"the\\trest"', "trest", "do not print", "hyphens"),
        ("the-rest", '""', '""', "`name` is empty", "Write a text"),
        ("the-rest", "r" * 129, "rrr", "longer than 128", "Shorten"),
        ("Ask cora.", "'  '", "'  '", "the reason is empty", "in words for people"),
        ("queued_turns: 4", "queued_turns: 0", "queued_turns", "cannot be 0", "from 1 to 10000"),
        ("queued_turns: 4", "queued_turns: -1", "queued_turns", "cannot be -1", "from 1 to 10000"),
        ("queued_turns: 4", "queued_turns: 4.0", "queued_turns", "must be a whole number", "from 1"),
        ("queued_turns: 4", "queued_turns: '4'", "queued_turns", "must be a whole number", "without quotes"),
        ("queued_turns: 4", "queued_turns: true", "queued_turns", "must be a whole number", "without quotes"),
        ("queued_turns: 4", "queued_turns: 99999", "queued_turns", "cannot be 99999", "from 1 to 10000"),
        ("  Do what was asked.", "  ", "default_mandate", "no text in default_mandate", "Write what"),
        ("limits:", "limits: &a", "limits: &a", "&a is an anchor", "Take it out"),
        ("condition: {}", "condition: !x {}", "!x", "is a tag", "Take it out"),
        ("tool_rules:", "---\ntool_rules:\n---\na: b\n---", "---\na: b", "second document", "Keep one"),
    ],
)
def test_a_fault_is_refused_with_its_line_and_fix(platform, *, old, new, at, problem, fix):
    text = RULES.replace(old, new)
    assert text != RULES
    (platform / "constitution.yaml").write_text(text)
    found = refusals(platform)
    assert len(found) <= 2
    assert any(problem in each[2] and fix in each[3] for each in found), found
    lines = [each[1] for each in found if problem in each[2]]
    if new == "no-shell-for-guests":
        assert lines == [8]
    elif "---" not in new:
        assert lines == [line_with(text, at)]


def test_a_duplicate_key_is_refused_and_names_the_first(platform):
    text = RULES.replace("    verdict: allowed\n", "    verdict: allowed\n    verdict: blocked\n")
    line, problem, fix = refusal_of_rules(platform, text)
    assert (line, problem) == (11, "the key `verdict` stands here a second time (first on line 10)")
    assert fix == "Keep one of the two."


def test_aliases_and_merges_are_refused_each(platform):
    text = RULES.replace("condition: {}", "condition: {<<: *common}").replace("limits:", "limits: &common")
    text = text.replace("limits: &common\n  queued_turns: 4\n", "") + "x: &common {}\n"
    text = "x: &common {}\n" + text.replace("x: &common {}\n", "")
    (platform / "constitution.yaml").write_text(text)
    problems = [(line, problem) for _, line, problem, _ in refusals(platform)]
    assert (1, "&common is an anchor") in problems
    assert (10, "`<<` merges another mapping into this one") in problems
    assert (10, "*common repeats what stands elsewhere") in problems


@pytest.mark.parametrize(
    ("text", "line", "fix"),
    [
        ("tool_rules:\n\t- name: x\n", 2, "Indent with blanks"),
        ("tool_rules: []\ndefault_mandate: a: b\n", 2, "in quotes"),
        ('tool_rules: []\ndefault_mandate: "abc\n', 3, "Close the quotes"),
        ("tool_rules: [a\nb: c\n", 2, "bracket"),
        ("tool_rules: []\ndefault_mandate: @x\n", 2, "in quotes"),
        ("tool_rules: []\ndefault_mandate: *x\n", 2, "in quotes"),
        ("tool_rules: []\ndefault_mandate: a\x07b\n", 2, "control character"),
    ],
)
def test_what_is_not_yaml_is_refused_with_its_line(platform, text, line, fix):
    (platform / "constitution.yaml").write_text(text)
    found = refusals(platform)
    assert any(each[1] in (line, line - 1) and fix in each[3] for each in found), found


def test_deep_nesting_is_refused_and_does_not_overflow(platform):
    (platform / "constitution.yaml").write_text("tool_rules: " + "[" * 5000 + "]" * 5000 + "\n")
    assert any("nested deeper" in problem for _, _, problem, _ in refusals(platform))


def test_all_faults_of_all_files_are_reported_together(platform):
    (platform / "constitution.md").unlink()
    (platform / "constitution.yaml").write_text(
        RULES.replace("blocked", "no").replace("queued_turns: 4", "turns: 4")
    )
    (platform / "roster.yaml").write_text(ROSTER.replace("kind: user", "kind: person"))
    found = refusals(platform)
    assert [(name, line) for name, line, _, _ in found] == [
        ("constitution.md", None),
        ("constitution.yaml", 6),
        ("constitution.yaml", 13),
        ("roster.yaml", 11),
    ]


@pytest.mark.parametrize("name", ["constitution.md", "constitution.yaml", "roster.yaml"])
@pytest.mark.parametrize(
    ("data", "line", "problem", "fix"),
    [
        (None, None, "the file is missing", "agent-runner init"),
        (b"", None, "the file is empty", "copy the shipped one"),
        (b" \n\n", None, "the file is empty", "copy the shipped one"),
        (b"a: b\nc: \xff\n", 2, "byte 0xff is not UTF-8", "Save the file as UTF-8."),
        (b"x" * (SIZE_MAX + 1), None, "larger than 1048576 bytes", "Shorten it."),
    ],
)
def test_a_file_that_holds_no_text_is_refused(platform, *, name, data, line, problem, fix):
    (platform / name).unlink()
    if data is not None:
        (platform / name).write_bytes(data)
    ((found, at, what, how),) = refusals(platform)
    assert (found, at) == (name, line)
    assert problem in what
    assert fix in how


def test_a_folder_in_place_of_a_file_is_refused(platform):
    (platform / "roster.yaml").unlink()
    (platform / "roster.yaml").mkdir()
    assert refusals(platform)[0][2] == "this is not a file"


def test_a_file_of_comments_is_refused(platform):
    line, problem, _ = refusal_of_rules(platform, "# nothing yet\n")
    assert (line, problem) == (None, "the file holds nothing")


def test_a_list_in_place_of_the_rules_is_refused(platform):
    line, problem, fix = refusal_of_rules(platform, "- a\n")
    assert (line, problem) == (1, "the file must be a mapping, not a list")
    assert "tool_rules, workspaces, limits, default_mandate" in fix


@pytest.mark.parametrize(
    ("path", "problem"),
    [
        ("/srv", "lies outside platform/ and workspaces/"),
        (".", "lies outside"),
        ("secrets", "lies outside"),
        ("workspaces/../.git", "is not a plain folder"),
        ("workspaces//x", "is not a plain folder"),
        ("workspaces/", "is not a plain folder"),
        ("workspaces/{nmae}", "is not a plain folder"),
        ("workspaces/.state", "keys and the database"),
        ("workspaces/.state/keys", "keys and the database"),
    ],
)
def test_a_mount_outside_what_may_be_given_is_refused(platform, path, problem):
    text = RULES + f"workspaces:\n  unknown:\n    - {{path: '{path}', access: read}}\n"
    line, what, _ = refusal_of_rules(platform, text)
    assert line == line_with(text, "access: read")
    assert problem in what


def test_a_mount_given_twice_is_refused(platform):
    entry = "    - {path: platform, access: read}\n"
    text = RULES + "workspaces:\n  unknown:\n" + entry + entry.replace("read", "write")
    line, what, _ = refusal_of_rules(platform, text)
    assert (line, what) == (len(text.splitlines()), "'platform' stands here twice")


ROSTER_FAULTS = [
    ("id: ann", "id: reed", 10, "two identities have the id 'reed'", "id of its own"),
    ("id: ann", "id: Ann", 10, "'Ann' is not an id", "lower-case"),
    ("id: ann", "id: a.n", 10, "'a.n' is not an id", "lower-case"),
    ("id: ann", "id: operator", 10, "'operator' is reserved", "another word"),
    ("id: ann", "id: all", 10, "'all' is reserved", "another word"),
    ("id: ann", "id: 'guest:1'", 10, "is not an id", "lower-case"),
    ("id: ann", "id: no", 10, "`no` is a boolean", '"no"'),
    ("role: steward", "role: ann", 5, "is also the id of another identity", "another word"),
    ("role: steward", "role: all", 5, "'all' is reserved", "another word"),
    ("[on-call]", "[On Call]", 9, "'On Call' is not a tag", "lower-case"),
    (
        "kind: user\n    state: live",
        "kind: user\n    state: asleep",
        12,
        "`state` cannot be `asleep`",
        "dead, frozen, live",
    ),
    ("kind: user", "kind: human", 11, "`kind` cannot be `human`", "role, user"),
    ("model: null", "model:", 6, "`model` has no value", "take the key out"),
    ("model: null", "model: 4.5", 6, "`model` must be text", '"4.5"'),
    ("mandates/reed.md", "mandates/gone.md", 7, "mandates/gone.md of reed is missing", "set mandate to null"),
    ("mandates/reed.md", "../reed.md", 7, "is not a file in mandates/", "mandates/reed.md"),
    ("mandates/reed.md", "/etc/passwd", 7, "is not a file in mandates/", "mandates/reed.md"),
    ("mandates/reed.md", "mandates/sub", None, "this is not a file", "regular file"),
    ("pubkey: null", "pubkey: -----BEGIN PRIVATE KEY-----", 8, "looks like a private key", "public half"),
]


@pytest.mark.parametrize(("old", "new", "line", "problem", "fix"), ROSTER_FAULTS)
def test_a_fault_in_the_roster_is_refused_with_its_line_and_fix(platform, *, old, new, line, problem, fix):
    (platform / "roster.yaml").write_text(ROSTER.replace(old, new))
    assert any(at == line and problem in what and fix in how for _, at, what, how in refusals(platform)), (
        refusals(platform)
    )


@pytest.mark.parametrize(
    ("data", "problem"), [(b"", "the file is empty"), (b"\xff", "byte 0xff is not UTF-8")]
)
def test_a_mandate_that_holds_no_text_is_refused(platform, data, problem):
    (platform / "mandates" / "reed.md").write_bytes(data)
    ((name, _, what, _),) = refusals(platform)
    assert (name, what) == ("reed.md", problem)


@pytest.mark.parametrize("place", ["secret.md", "platform/methods.md"])
def test_a_mandate_that_is_a_link_to_what_agents_may_write_is_refused(platform, tmp_path, place):
    (tmp_path / place).write_text("secret")
    (platform / "mandates" / "reed.md").unlink()
    (platform / "mandates" / "reed.md").symlink_to(tmp_path / place)
    ((name, line, what, _),) = refusals(platform)
    assert (name, line) == ("roster.yaml", 7)
    assert "leads out" in what


def test_a_dead_identity_needs_no_mandate_file(platform):
    (platform / "mandates" / "reed.md").unlink()
    (platform / "roster.yaml").write_text(ROSTER.replace("state: live\n    role", "state: dead\n    role"))
    assert load_content(platform).mandates == {}


def test_a_refusal_is_a_configuration_error_that_says_where(platform):
    (platform / "constitution.yaml").write_text(RULES.replace("blocked", "maybe"))
    with pytest.raises(ConfigurationError, match=r"constitution\.yaml:6: .* Use one of allowed, blocked\.$"):
        load_content(platform)
