"""The file tools as a model meets them: through the registry, with whatever input it writes."""

import threading

import apsw
import pytest
import trio

from actors.runtime.base import ToolUse
from actors.tools.base import ToolContext, ToolServices
from actors.tools.files import (
    ENTRIES_MAX,
    MATCHES_MAX,
    READ_BYTES_MAX,
    THREADS_MAX,
    EditFile,
    ListFiles,
    ReadFile,
    Search,
    WriteFile,
)
from actors.tools.registry import Registry
from protocol.constitution import Limits
from protocol.mounts import Mount
from protocol.roster import Roster
from protocol.tiers import Acting, Tier
from store.clock import StrictClock
from store.confinement import strongest
from store.workspace import Protected, Workspace

OWN = "workspaces/guests/0123456789abcdef"
TOOLS = (ReadFile, ListFiles, Search, WriteFile, EditFile)


async def no_child(prompt, working_dir):
    raise AssertionError("file tools start no child")


def context_of(workspace):
    guest = "guest:0123456789abcdef"
    acting = Acting(guest, "somebody", None, None, guest, Tier.UNKNOWN, "")
    services = ToolServices(apsw.Connection(":memory:"), StrictClock(), lambda: Roster([]), Limits)
    return ToolContext(
        call_id="call-1",
        session_id="0123456789abcdef" * 4,
        session_key="somebody:ws:1",
        turn_id="turn-1",
        acting=acting,
        reader=None,
        tier=Tier.UNKNOWN,
        workspace=workspace,
        hops=0,
        thread=None,
        services=services,
        run_child=no_child,
    )


@pytest.fixture
def root(tmp_path):
    (tmp_path / "platform/mandates").mkdir(parents=True)
    (tmp_path / OWN).mkdir(parents=True)
    (tmp_path / "workspaces/.state").mkdir()
    (tmp_path / "workspaces/.state/operator.token").write_text("secret")
    (tmp_path / "platform/constitution.md").write_text("We the people.\n")
    return tmp_path


@pytest.fixture
def call(root):
    """Call a tool by name as a turn does, and return what the model gets."""
    registry = Registry([tool() for tool in TOOLS])
    workspace = Workspace(root, [Mount("platform", write=False), Mount(OWN, write=True)], Protected(root))
    context = context_of(workspace)

    async def run(name, /, **arguments):
        return await registry.run(ToolUse("call-1", name, arguments), context)

    yield run
    workspace.close()
    context.services.database.close()


# What a model sees


@pytest.mark.parametrize("tool", TOOLS)
def test_a_definition_says_all_that_a_model_needs(tool):
    schema = tool.definition.input_schema
    assert schema["type"] == "object"
    assert schema["additionalProperties"] is False
    assert set(schema.get("required", [])) <= set(schema["properties"])
    assert all(property_["description"] for property_ in schema["properties"].values())
    assert len(tool.definition.description) > 60
    assert set(tool.path_arguments) == {"path"}


def test_required_arguments_are_those_of_the_specification():
    required = {
        tool.definition.name: tuple(tool.definition.input_schema.get("required", [])) for tool in TOOLS
    }
    assert required == {
        "read_file": ("path",),
        "list_files": (),
        "search": ("query",),
        "write_file": ("path", "content"),
        "edit_file": ("path", "old", "new"),
    }


def test_paths_are_held_to_the_right_access():
    access = {tool.definition.name: tool.path_arguments["path"] for tool in TOOLS}
    assert [name for name, kind in access.items() if kind == "write"] == ["write_file", "edit_file"]


# Everyday use


async def test_a_file_is_written_found_edited_and_read(call):
    outcome = await call("write_file", path=f"{OWN}/notes/day.md", content="one\ntwo\n")
    assert (outcome.content, outcome.is_error) == (f"Made {OWN}/notes/day.md (8 bytes).", False)
    outcome = await call("write_file", path=f"{OWN}/notes/day.md", content="one\ntwo\nthree\n")
    assert outcome.content == f"Replaced {OWN}/notes/day.md (14 bytes)."
    outcome = await call("edit_file", path=f"{OWN}/notes/day.md", old="two", new="2")
    assert outcome.content == f"Changed {OWN}/notes/day.md at line 2; it now has 12 bytes."
    assert (await call("read_file", path=f"{OWN}/notes/day.md")).content == "one\n2\nthree\n"
    assert (await call("search", query="THREE".lower())).content == f"{OWN}/notes/day.md:3: three"
    assert (await call("list_files", path=OWN, pattern="*.md")).content == f"{OWN}/notes/day.md"


@pytest.mark.parametrize("arguments", [{}, {"path": ""}, {"path": "", "pattern": ""}])
async def test_without_a_path_the_folders_and_their_access_are_listed(call, arguments):
    outcome = await call("list_files", **arguments)
    assert outcome.content == f"platform/ (read only)\n{OWN}/ (read and write)"


async def test_nothing_found_is_a_result(call):
    for name, arguments, says in (
        ("search", {"query": "nowhere"}, "No matches."),
        ("search", {"query": "people", "glob": "*.txt"}, "No matches."),
        ("list_files", {"path": OWN}, "The folder is empty."),
        ("list_files", {"path": OWN, "pattern": "*.md"}, "Nothing matches the pattern."),
    ):
        outcome = await call(name, **arguments)
        assert (outcome.content, outcome.is_error) == (says, False)


async def test_an_empty_file_is_said_to_be_empty(call):
    await call("write_file", path=f"{OWN}/empty", content="")
    assert (await call("read_file", path=f"{OWN}/empty")).content == "The file is empty."


async def test_a_long_file_ends_in_a_mark(call, root):
    (root / OWN / "long").write_text("x" * READ_BYTES_MAX + "needle")
    content = (await call("read_file", path=f"{OWN}/long")).content
    assert content.startswith("x" * READ_BYTES_MAX + "\n[cut here: 51200 of 51206 bytes")
    assert "needle" not in content


async def test_a_long_listing_ends_in_a_mark(call, root):
    for number in range(ENTRIES_MAX + 1):
        (root / OWN / f"{number:03}").touch()
    lines = (await call("list_files", path=OWN)).content.split("\n")
    assert len(lines) == ENTRIES_MAX + 1
    assert "more than these 200" in lines[-1]


async def test_a_long_search_ends_in_a_mark(call, root):
    (root / OWN / "many").write_text("needle\n" * (MATCHES_MAX + 1))
    lines = (await call("search", query="needle")).content.split("\n")
    assert len(lines) == MATCHES_MAX + 1
    assert "more than 100 matches" in lines[-1]


# Refusals


@pytest.mark.parametrize(
    ("name", "arguments", "says"),
    [
        ("read_file", {}, "needs the argument 'path'"),
        ("read_file", {"path": 7}, "'path' of read_file must be of type string"),
        ("read_file", {"path": None}, "'path' of read_file must be of type string"),
        ("read_file", {"path": ""}, "'path' of read_file must not be empty"),
        ("read_file", {"path": "platform/constitution.md", "offset": 3}, "has no argument 'offset'"),
        ("list_files", {"path": ["platform"]}, "'path' of list_files must be of type string"),
        ("list_files", {"pattern": True}, "'pattern' of list_files must be of type string"),
        ("search", {"path": "platform"}, "needs the argument 'query'"),
        ("search", {"query": ""}, "'query' of search must not be empty"),
        ("search", {"query": "a\nb"}, "query must be one line"),
        ("search", {"query": "a", "glob": "{a,b}" * 20}, "pattern"),
        ("write_file", {"path": f"{OWN}/x"}, "needs the argument 'content'"),
        (
            "write_file",
            {"path": f"{OWN}/x", "content": {"text": "x"}},
            "'content' of write_file must be of type string",
        ),
        ("write_file", {"path": f"{OWN}/x", "content": "\ud800"}, "content holds half of a surrogate pair"),
        ("write_file", {"path": f"{OWN}/\ud800", "content": "x"}, "surrogate pair"),
        ("write_file", {"path": f"{OWN}/x", "content": "x" * (4 * 1024 * 1024 + 1)}, "at most 4194304"),
        ("edit_file", {"path": f"{OWN}/x", "old": "", "new": "x"}, "'old' of edit_file must not be empty"),
        (
            "edit_file",
            {"path": f"{OWN}/x", "old": "x", "new": "\udfff"},
            "new holds half of a surrogate pair",
        ),
        ("edit_file", {"path": f"{OWN}/x", "old": "x", "new": "y"}, "no such file"),
    ],
)
async def test_input_that_is_wrong_is_an_error_that_names_it(call, root, name, arguments, says):
    outcome = await call(name, **arguments)
    assert outcome.is_error
    assert says in outcome.content
    assert list((root / OWN).iterdir()) == []


@pytest.mark.parametrize(
    "path",
    [
        "/etc/passwd",
        "../x",
        "workspaces/.state/operator.token",
        "workspaces/users/ann/x",
        "x\0y",
        "secret.txt",
    ],
)
@pytest.mark.parametrize("tool", TOOLS)
async def test_no_file_tool_reaches_outside_the_folders(call, root, tool, path):
    required = tool.definition.input_schema.get("required", [])
    arguments = dict.fromkeys(required, "secret") | {"path": path}
    if "new" in required:
        arguments["new"] = "taken"
    outcome = await call(tool.definition.name, **arguments)
    assert outcome.is_error
    assert str(root) not in outcome.content
    assert (root / "workspaces/.state/operator.token").read_text() == "secret"


@pytest.mark.parametrize("name", ["write_file", "edit_file"])
async def test_the_constitution_is_not_written(call, root, name):
    content = {"content": "x"} if name == "write_file" else {"old": "people", "new": "agents"}
    outcome = await call(name, path="platform/constitution.md", **content)
    assert outcome.is_error
    assert (root / "platform/constitution.md").read_text() == "We the people.\n"


# Cancelling


class Gate:
    """A way of opening files that waits until it is let go."""

    def __init__(self):
        self.entered = threading.Event()
        self.release = threading.Event()

    def __call__(self, directory, path, flags):
        self.entered.set()
        assert self.release.wait(20)
        return strongest()(directory, path, flags)


async def start_and_cancel(workspace, gate, tool, arguments):
    """Cancel a call once its thread is at work; return the outcome, None where it was left behind."""
    outcomes = []
    async with trio.open_nursery() as nursery:

        async def run():
            outcomes.append(await tool.run(arguments, context_of(workspace)))

        nursery.start_soon(run)
        await trio.to_thread.run_sync(gate.entered.wait, 20)
        nursery.cancel_scope.cancel()
        if not isinstance(tool, ReadFile):
            gate.release.set()
    return outcomes[0] if outcomes else None


async def test_a_cancelled_read_does_not_wait_for_the_disk(root):
    gate = Gate()
    workspace = Workspace(root, [Mount("platform", write=False)], Protected(root), open_beneath=gate)
    try:
        assert (
            await start_and_cancel(workspace, gate, ReadFile(), {"path": "platform/constitution.md"}) is None
        )
    finally:
        workspace.close()  # the thread is still at work: its handles are kept until it has ended
        gate.release.set()


async def test_a_cancelled_write_is_waited_for_and_known(root):
    gate = Gate()
    with Workspace(root, [Mount(OWN, write=True)], Protected(root), open_beneath=gate) as workspace:
        outcome = await start_and_cancel(workspace, gate, WriteFile(), {"path": f"{OWN}/x", "content": "x"})
    assert outcome.content == f"Made {OWN}/x (1 bytes)."
    assert [path.name for path in (root / OWN).iterdir()] == ["x"]


async def test_slow_reads_leave_threads_for_others(root):
    """However many sessions wait for a disk, the ledger's thread is not theirs to take."""
    gate = Gate()
    with Workspace(root, [Mount("platform", write=False)], Protected(root), open_beneath=gate) as workspace:
        async with trio.open_nursery() as nursery:
            for _ in range(60):
                nursery.start_soon(
                    ReadFile().run, {"path": "platform/constitution.md"}, context_of(workspace)
                )
            await trio.to_thread.run_sync(gate.entered.wait, 20)
            limiter = trio.to_thread.current_default_thread_limiter()
            assert limiter.borrowed_tokens == 0
            assert limiter.total_tokens > THREADS_MAX
            gate.release.set()
