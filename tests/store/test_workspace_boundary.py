"""What is outside stays outside: hostile paths, links, special files, races; by either way of opening them."""

import itertools
import os
import shutil
import socket
import sys
import threading
import time
from contextlib import suppress
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from protocol.mounts import Mount
from store.agent_path import PathReader
from store.confinement import openat2_beneath, strongest, walk_beneath
from store.workspace import FileMissingError, Protected, Workspace, WorkspaceDenied, WorkspaceError
from tests.support.accounts import unprivileged_folder

SECRET = "SECRET-7f3a"
MARK = b"WRITTEN-BY-THE-AGENT"
SIZE_MAX = 50 * 1024
ANN = "workspaces/users/ann"
GUEST = "workspaces/guests/0123456789abcdef"
REED = "workspaces/agents/reed"

TIERS = {
    "unknown": (GUEST, [Mount("platform", write=False), Mount(GUEST, write=True)]),
    "registered": (ANN, [Mount("platform", write=False), Mount(ANN, write=True)]),
    "standing": (REED, [Mount("platform", write=True), Mount("workspaces", write=True)]),
}
OPENERS = {"strongest": strongest(), "walk": walk_beneath}
PROTECTED = ("constitution.md", "constitution.yaml", "roster.yaml", "mandates/reed.md")


def build(base):
    """Lay out a root with something in it that nobody may reach, and neighbours around it."""
    root = base / "root"
    for folder in (
        "outside/folder",
        "root-sibling",
        "root/platform/mandates",
        "root/platform/methods",
        "root/.git",
    ):
        (base / folder).mkdir(parents=True)
    for folder in (".state/keys", "users/ann", "users/bob", f"../{GUEST}", f"../{REED}"):
        (root / "workspaces" / folder).mkdir(parents=True)
    for file in (
        "outside/secret.txt",
        "outside/folder/secret.txt",
        "root-sibling/secret.txt",
        "secret.txt",
        "root/secret.txt",
        "root/.git/config",
        "root/workspaces/.state/operator.token",
        "root/workspaces/.state/agent-runner.db",
        "root/workspaces/.state/keys/runner.key",
        "root/workspaces/users/bob/secret.txt",
    ):
        (base / file).write_text(SECRET)
    for name in PROTECTED:
        (root / "platform" / name).write_text("as people wrote it\n")
    (root / "platform/methods/filing.md").write_text("file by date\n")
    return root


def lay_traps(base, root, own):
    """Fill a folder with every kind of link and special file; returns their names."""
    folder = root / own
    up = "/".join([".."] * len(Path(own).parts))
    (folder / "below").mkdir()
    (folder / "below/fine.txt").write_text("fine\n")
    links = {
        "to-slash": "/",
        "to-etc": "/etc",
        "to-outside": base / "outside",
        "to-secret": base / "outside/secret.txt",
        "to-new": base / "outside/new.txt",
        "to-sibling": f"{up}/../root-sibling",
        "relative-outside": f"{up}/../outside",
        "relative-secret": f"{up}/../outside/secret.txt",
        "relative-new": f"{up}/../outside/new.txt",
        "up": "..",
        "up-up": "../..",
        "to-root": up,
        "to-root-absolute": root,
        "to-state": f"{up}/workspaces/.state",
        "to-token": f"{up}/workspaces/.state/operator.token",
        "to-key-twice": "to-state/keys/runner.key",
        "to-constitution": f"{up}/platform/constitution.md",
        "to-roster-absolute": root / "platform/roster.yaml",
        "to-mandates": f"{up}/platform/mandates",
        "to-platform": f"{up}/platform",
        "to-bob": f"{up}/workspaces/users/bob",
        "chain-1": "chain-2",
        "chain-2": "below/../chain-3",
        "chain-3": "relative-outside",
        "loop-1": "loop-2",
        "loop-2": "loop-1",
        "self": "self",
        "here": ".",
        "dangling": "nothing/here",
        "proc-root": "/proc/self/root",
        "proc-cwd": "/proc/self/cwd",
        "proc-fd": "/proc/self/fd",
        "dev-stdin": "/dev/stdin",
        "below/up": "..",
        "below/far-up": f"../{up}/..",
    }
    for name, target in links.items():
        (folder / name).symlink_to(target)
    names = list(links)
    for name, target in (
        ("hard-secret", base / "outside/secret.txt"),
        ("hard-token", root / "workspaces/.state/operator.token"),
        ("hard-constitution", root / "platform/constitution.md"),
        ("hard-bob", root / "workspaces/users/bob/secret.txt"),
    ):
        os.link(target, folder / name)
        names.append(name)
    os.mkfifo(folder / "pipe")
    with socket.socket(socket.AF_UNIX) as listening:
        handle = os.open(folder, os.O_PATH)
        listening.bind(f"/proc/self/fd/{handle}/socket")  # a socket's own path is limited to 108 bytes
        os.close(handle)
    names += ["pipe", "socket"]
    if os.geteuid() == 0:
        try:
            os.mknod(folder / "device", 0o600 | 0o020000, os.makedev(1, 3))
            names.append("device")
        except PermissionError:  # a container without the capability
            pass
    return names


TAILS = (
    "",
    "/secret.txt",
    "/new.txt",
    "/outside/secret.txt",
    "/root/secret.txt",
    "/.state/operator.token",
    "/workspaces/.state/agent-runner.db",
    "/operator.token",
    "/constitution.md",
    "/platform/mandates/reed.md",
    "/reed.md",
    "/etc/passwd",
    "/../secret.txt",
    "/../../../../outside/secret.txt",
    "/new/folder/file",
)


def corpus(base, root, own, traps):
    """Yield hostile paths: every trap with every tail, and what needs no trap."""
    depth = len(Path(own).parts)
    yield from (f"{own}/{trap}{tail}" for trap, tail in itertools.product(traps, TAILS))
    yield from (f"{own}/below/../{trap}/." for trap in traps)
    for dots in range(1, depth + 4):
        for tail in (
            "outside/secret.txt",
            "root/secret.txt",
            "secret.txt",
            "workspaces/.state/operator.token",
        ):
            yield f"{own}/{'../' * dots}{tail}"
            yield f"{own}/{'/./../' * dots}{tail}"
            yield "../" * dots + tail
            yield "platform/" + "../" * dots + tail
    targets = [
        base / "outside/secret.txt",
        base / "root-sibling/secret.txt",
        root / "secret.txt",
        root / ".git/config",
        root / "workspaces/.state/operator.token",
        root / "workspaces/users/bob/secret.txt" if own != REED else root / ".git/config",
        "/etc/passwd",
        "/proc/self/environ",
        "/proc/self/root/etc/passwd",
        "/proc/self/fd/0",
        "/dev/null",
        "/dev/zero",
    ]
    for target in map(str, targets):
        yield from (target, f"//{target}", f"{root}/../..{target}", f"{own}/{target}", f"{own}/..{target}")
        yield from (f"file://{target}", f"~{target}", f"{target}/", f"{target}\0.md", f"{own}/x\0{target}")
        yield f"/proc/self/root{target}"
        yield f"/proc/{os.getpid()}/root{target}"
    yield from (
        "",
        " ",
        "/",
        "//",
        ".",
        "..",
        "~",
        "~root",
        "-",
        "\0",
        "\ud800",
        "\udcff",
        f"{own}/\udcff",
        "*",
        "C:\\x",
    )
    yield from (
        "x" * 4097,
        f"{own}/" + "x" * 256,
        f"{own}/" + "é" * 200,
        "../" * 1400,
        f"{own}/" + "d/" * 200 + "f",
    )
    yield from (f"{own}/..\\..\\secret.txt", f"{own}/%2e%2e/%2e%2e/secret.txt", f"{own}/．．/secret.txt")
    yield from (
        f"{own}/‥/secret.txt",
        f"{own}/..\u200b/secret.txt",
        f"{own}/\u202e../secret.txt",
        f"{own}∕..∕secret",
    )
    yield from ("Platform/constitution.md", "platform/CONSTITUTION.MD/", "WORKSPACES/.state/operator.token")
    yield from (
        "workspaces/.State/operator.token",
        "workspaces/.state",
        "workspaces/.state/",
        "workspaces/.state/new",
    )
    yield from (f"platform/{name}" for name in PROTECTED)
    yield from (f"./platform//methods/../{name}" for name in PROTECTED)
    yield from (
        "platform/mandates",
        "platform/mandates/new.md",
        "platform/mandates/a/b.md",
        ".git/config",
        "secret.txt",
    )


def operations(workspace, path, base):
    """Do everything that can be done with a path; yield what came back or was said.

    Nothing is written where a write that got out would reach further than `base`: a broken build must not cost
    anybody a system.
    """
    attempts = [
        ("read", lambda: workspace.read_file(path, SIZE_MAX)),
        ("list", lambda: workspace.list_files(path, None, 200)),
        ("find", lambda: workspace.list_files(path, "**/*", 200)),
        ("search", lambda: workspace.search(SECRET, path, None, 100, 5)),
    ]
    if stays_near(base, path):
        attempts += [
            ("edit", lambda: workspace.edit_file(path, SECRET, "taken", SIZE_MAX)),
            ("edit", lambda: workspace.edit_file(path, "people", "agents", SIZE_MAX)),
            ("write", lambda: workspace.write_file(path, MARK, SIZE_MAX)),
        ]
    for name, attempt in attempts:
        try:
            yield name, repr(attempt()), None
        except WorkspaceError as error:
            yield name, str(error), error


def stays_near(base, path):
    """Return whether a path, opened without any confinement, would stay within `base`."""
    try:
        reached = Path(os.path.realpath(base / "root" / path))
    except (ValueError, OSError):  # no path for any system call
        return True
    return reached.is_relative_to(base)


def names(folder):
    return sorted(path.name for path in folder.iterdir())


def open_handles():
    return len(names(Path("/proc/self/fd")))


def picture(*folders):
    """Return everything that lies in folders: names, kinds and contents."""
    seen = {}
    for folder in folders:
        for path in sorted(folder.rglob("*")):
            seen[path] = (
                path.read_bytes() if path.is_file() and not path.is_symlink() else path.lstat().st_mode
            )
    return seen


@pytest.fixture
def handles():
    """No operation may leave a handle open, whatever it met."""
    before = open_handles()
    yield
    assert open_handles() == before


@pytest.fixture
def base(request, tmp_path):
    if request.param == "this account":
        yield tmp_path
    else:
        with unprivileged_folder() as folder:
            yield folder


@pytest.mark.usefixtures("handles")
@pytest.mark.parametrize(
    ("base", "opener"),
    [("this account", "strongest"), ("this account", "walk"), ("unprivileged", "strongest")],
    indirect=["base"],
)
@pytest.mark.parametrize("tier", TIERS)
def test_no_hostile_path_reads_or_writes_outside(base, tier, opener):
    root = build(base)
    own, mounts = TIERS[tier]
    traps = lay_traps(base, root, own)
    paths = list(dict.fromkeys(corpus(base, root, own, traps)))
    assert len(paths) > 500
    kept = [
        base / "outside",
        base / "root-sibling",
        root / "workspaces/.state",
        root / "platform/mandates",
    ]
    if tier != "standing":
        kept += [root / "platform", root / "workspaces/users/bob"]
    before = picture(*kept), names(root), names(base)
    said_yes = 0
    with Workspace(root, mounts, Protected(root), open_beneath=OPENERS[opener]) as workspace:
        for path in paths:
            for name, said, error in operations(workspace, path, base):
                # Bob's secret and its hard link are in the standing tier's reach, by their own name only.
                if not (tier == "standing" and "bob" in said):
                    assert SECRET not in said.replace(path, ""), (name, path)
                if error is None:
                    said_yes += 1
                else:
                    assert str(base) in path or str(base) not in said, (name, path)
                    assert said.isprintable(), (name, path)
    assert (picture(*kept), names(root), names(base)) == before
    for name in PROTECTED:
        assert (root / "platform" / name).read_text() == "as people wrote it\n"
    assert (root / "secret.txt").read_text() == SECRET
    assert not list(base.rglob(".write-*"))
    assert said_yes > 20


@pytest.mark.skipif(strongest() is not openat2_beneath, reason="this kernel has no openat2 to compare with")
@pytest.mark.parametrize("tier", ["registered", "standing"])
def test_the_walk_says_what_the_kernel_says(tmp_path, tier):
    """The same paths in the same trees, so that a system without openat2 is no different to its agents."""
    own, mounts = TIERS[tier]
    answers = []
    for opener in (openat2_beneath, walk_beneath):
        base = tmp_path / "same"
        root = build(base)
        traps = lay_traps(base, root, own)
        with Workspace(root, mounts, Protected(root), open_beneath=opener) as workspace:
            answers.append(
                [
                    (path, name, said if error is None else type(error))
                    for path in corpus(base, root, own, traps)
                    for name, said, error in operations(workspace, path, base)
                ],
            )
        shutil.rmtree(base)
    assert len(answers[0]) > 3500
    assert answers[0] == answers[1]


@given(path=st.text(st.sampled_from("./ab\\~\0\ud800é*\n "), max_size=40) | st.text(max_size=40))
def test_any_text_is_a_path_below_the_root_or_a_denial(path):
    try:
        parts = PathReader(Path("/srv/root")).parts(path)
    except WorkspaceDenied as denied:
        said = denied.reason
        parts = ()
    else:
        said = ""
    assert said == "" or said.isprintable()
    assert not {"", ".", ".."}.intersection(parts)
    assert not any("/" in part or "\0" in part for part in parts)


@settings(max_examples=40, deadline=None)
@given(data=st.data())
def test_random_links_and_paths_never_reach_the_secret(tmp_path_factory, data):
    base = tmp_path_factory.mktemp("random")
    root = build(base)
    word = st.sampled_from(
        ["..", ".", "a", "b", "c", "users", "bob", "outside", "secret.txt", ".state", "platform", ""]
    )
    path = st.lists(word, min_size=1, max_size=7).map("/".join)
    (root / ANN / "a").mkdir()
    for place in ("b", "c", "a/a", "a/b"):
        target = data.draw(path | path.map(lambda tail: f"{base}/{tail}"))
        if target:
            (root / ANN / place).symlink_to(target)
    with Workspace(root, TIERS["registered"][1], Protected(root)) as workspace:
        for asked in data.draw(st.lists(path.map(lambda tail: f"{ANN}/{tail}"), min_size=5, max_size=15)):
            for name, said, _ in operations(workspace, asked, base):
                assert SECRET not in said, (name, asked)
    assert (base / "outside/secret.txt").read_text() == SECRET
    assert MARK not in b"".join(
        content
        for path, content in picture(base).items()
        if isinstance(content, bytes) and root / ANN not in path.parents
    )


# What a link or a name says when it is refused


@pytest.fixture(params=list(OPENERS))
def opener(request):
    return OPENERS[request.param]


@pytest.fixture
def root(tmp_path):
    return build(tmp_path)


def session(root, tier, opener):
    return Workspace(root, TIERS[tier][1], Protected(root), open_beneath=opener)


@pytest.mark.parametrize(
    ("path", "says"),
    [
        ("", "empty"),
        ("a\0b", "NUL"),
        ("x" * 4097, "4097 characters"),
        ("\ud800", "surrogate"),
        ("../x", "above the root"),
        ("/etc/passwd", "outside the folders"),
        ("notes.md", f'outside your folders.*like "{ANN}/notes.md"'),
        ("workspaces/users/bob/secret.txt", "outside your folders"),
        (f"{ANN}/" + "x" * 256, "at most 255 bytes"),
        (f"{ANN}/" + "d/" * 200, "more than 128"),
    ],
)
def test_a_denial_names_what_is_wrong(root, opener, path, says):
    with (
        session(root, "registered", opener) as workspace,
        pytest.raises(WorkspaceDenied, match=says) as caught,
    ):
        workspace.read_file(path, SIZE_MAX)
    assert caught.value.path == path
    assert len(caught.value.reason) < 700


@pytest.mark.parametrize("trap", ["hard-secret", "pipe", "socket"])
def test_what_is_no_plain_file_is_named_and_left_alone(tmp_path, root, opener, trap):
    lay_traps(tmp_path, root, ANN)
    with session(root, "registered", opener) as workspace:
        for attempt in (
            lambda: workspace.read_file(f"{ANN}/{trap}", SIZE_MAX),
            lambda: workspace.write_file(f"{ANN}/{trap}", b"x", SIZE_MAX),
            lambda: workspace.edit_file(f"{ANN}/{trap}", "S", "x", SIZE_MAX),
        ):
            with pytest.raises(WorkspaceDenied, match="only regular files with one name"):
                attempt()


@pytest.mark.parametrize("path", ["dangling", "dangling/x", "into-nothing/x/y", "below/gone"])
def test_a_dangling_link_creates_nothing(root, opener, path):
    own = root / ANN
    (own / "below").mkdir()
    (own / "dangling").symlink_to("missing")
    (own / "into-nothing").symlink_to("below/missing")
    (own / "below/gone").symlink_to("../missing/file")
    before = picture(own)
    with (
        session(root, "registered", opener) as workspace,
        pytest.raises(WorkspaceDenied, match="leads nowhere"),
    ):
        workspace.write_file(f"{ANN}/{path}", b"x", SIZE_MAX)
    assert picture(own) == before


# Protected files


def protected_attempts(workspace, path):
    yield lambda: workspace.write_file(path, MARK, SIZE_MAX)
    yield lambda: workspace.edit_file(path, "people", "agents", SIZE_MAX)


@pytest.mark.parametrize("name", PROTECTED)
def test_what_governs_agents_is_read_by_all_and_written_by_none(root, opener, name):
    for tier in TIERS:
        with session(root, tier, opener) as workspace:
            assert workspace.read_file(f"platform/{name}", SIZE_MAX).text == "as people wrote it\n"
            for attempt in protected_attempts(workspace, f"platform/{name}"):
                with pytest.raises(WorkspaceDenied):
                    attempt()
    assert (root / "platform" / name).read_text() == "as people wrote it\n"


def test_state_is_closed_to_every_tier(root, opener):
    for tier in TIERS:
        with session(root, tier, opener) as workspace:
            for path in ("operator.token", "keys/runner.key", "new", "keys/new", ""):
                for _, said, error in operations(workspace, f"workspaces/.state/{path}", root.parent):
                    assert isinstance(error, WorkspaceDenied), said


def test_state_does_not_tell_what_is_in_it(root, opener):
    with session(root, "standing", opener) as workspace:
        said = set()
        for name in ("operator.token", "missing", "keys/missing", "missing/missing"):
            with pytest.raises(WorkspaceDenied) as caught:
                workspace.read_file(f"workspaces/.state/{name}", SIZE_MAX)
            said.add(caught.value.reason.replace(name, "NAME"))
    assert len(said) == 1


def test_a_link_to_a_protected_file_is_the_protected_file(root, opener):
    platform = root / "platform/methods"
    (platform / "rules.md").symlink_to("../constitution.md")
    (platform / "people").symlink_to("../mandates")
    (platform / "chain").symlink_to("people/reed.md")
    os.link(root / "platform/roster.yaml", platform / "roster-too.yaml")
    (root / "workspaces/agents/state").symlink_to("../.state")
    (root / "workspaces/agents/token").symlink_to("../.state/operator.token")
    with session(root, "standing", opener) as workspace:
        for path in (
            "rules.md",
            "people/reed.md",
            "people/new.md",
            "people/new/x.md",
            "chain",
            "roster-too.yaml",
        ):
            for attempt in protected_attempts(workspace, f"platform/methods/{path}"):
                with pytest.raises((WorkspaceDenied, FileMissingError)):
                    attempt()
        for path in ("state/operator.token", "state/new", "state/keys/runner.key", "token", "state"):
            for name, said, error in operations(workspace, f"workspaces/agents/{path}", root.parent):
                assert isinstance(error, WorkspaceError), (name, said)
                assert SECRET not in said
    for name in PROTECTED:
        assert (root / "platform" / name).read_text() == "as people wrote it\n"
    assert names(root / "platform/mandates") == ["reed.md"]


def test_a_file_replaced_by_its_operator_stays_protected(root, opener):
    platform = root / "platform"
    (platform / "methods/rules.md").symlink_to("../constitution.md")
    with session(root, "standing", opener) as workspace:
        for _ in range(2):
            for path in ("platform/constitution.md", "platform/methods/rules.md"):
                with pytest.raises(WorkspaceDenied):
                    workspace.write_file(path, MARK, SIZE_MAX)
            (platform / "next").write_text("as people wrote it later\n")
            (platform / "next").rename(platform / "constitution.md")
        (platform / "mandates").rename(platform / "mandates-old")
        (platform / "mandates").mkdir()
        with pytest.raises(WorkspaceDenied):
            workspace.write_file("platform/mandates/reed.md", MARK, SIZE_MAX)
        assert workspace.write_file("platform/mandates-old/reed.md", MARK, SIZE_MAX).created is False
    assert (platform / "constitution.md").read_text() == "as people wrote it later\n"


def test_a_protected_file_that_is_missing_cannot_be_made(root, opener):
    shutil.rmtree(root / "workspaces/.state")
    shutil.rmtree(root / "platform/mandates")
    (root / "platform/roster.yaml").unlink()
    (root / "platform/methods/up").symlink_to("..")
    with session(root, "standing", opener) as workspace:
        for path in (
            "workspaces/.state",
            "workspaces/.state/operator.token",
            "platform/mandates/reed.md",
            "platform/methods/up/mandates/reed.md",
            "platform/methods/up/mandates",
            "platform/methods/up/roster.yaml",
            "platform/roster.yaml",
        ):
            with pytest.raises(WorkspaceDenied):
                workspace.write_file(path, MARK, SIZE_MAX)
    assert not (root / "workspaces/.state").exists()
    assert names(root / "platform") == ["constitution.md", "constitution.yaml", "methods"]


def test_protected_folders_that_are_links_themselves_are_protected_where_they_lie(root, opener, tmp_path):
    (root / "workspaces/.state").rename(root / "workspaces/users/hidden")
    (root / "workspaces/.state").symlink_to("users/hidden")
    (root / "platform/mandates").rename(root / "platform/methods/mandates")
    (root / "platform/mandates").symlink_to("methods/mandates")
    with session(root, "standing", opener) as workspace:
        assert workspace.list_files("workspaces/users", None, 10).entries == (
            "workspaces/users/ann/",
            "workspaces/users/bob/",
        )
        for path in ("workspaces/users/hidden/operator.token", "workspaces/.state/operator.token"):
            with pytest.raises(WorkspaceDenied):
                workspace.read_file(path, SIZE_MAX)
        for path in ("platform/methods/mandates/reed.md", "platform/mandates/reed.md", "platform/mandates"):
            with pytest.raises(WorkspaceDenied):
                workspace.write_file(path, MARK, SIZE_MAX)


def test_a_protected_file_that_is_a_link_itself_is_protected_where_it_lies(root, opener):
    methods = root / "platform/methods"
    (root / "platform/constitution.md").rename(methods / "rules.md")
    (root / "platform/constitution.md").symlink_to("methods/rules.md")
    (methods / "diary.md").write_text(SECRET)
    (root / "workspaces/diary").symlink_to(methods / "diary.md")
    protected = Protected(root, unreadable=("workspaces/diary",))
    with Workspace(root, TIERS["standing"][1], protected, open_beneath=opener) as workspace:
        for attempt in (
            *protected_attempts(workspace, "platform/methods/rules.md"),
            *protected_attempts(workspace, "platform/methods/diary.md"),
            lambda: workspace.read_file("platform/methods/diary.md", SIZE_MAX),
        ):
            with pytest.raises(WorkspaceDenied, match="protected"):
                attempt()
        assert workspace.list_files("platform/methods", None, 10).entries == (
            "platform/methods/filing.md",
            "platform/methods/rules.md",
        )
        assert workspace.search(SECRET, "platform", None, 10, 5).lines == ()
        with pytest.raises(WorkspaceDenied):
            workspace.search(SECRET, "platform/methods/diary.md", None, 10, 5)


def test_an_absolute_link_is_refused_and_not_read_as_a_relative_one(root, opener):
    (root / ANN / "note").write_text("mine")
    (root / ANN / "link").symlink_to("/note")
    with session(root, "registered", opener) as workspace:
        for attempt in (
            lambda: workspace.read_file(f"{ANN}/link", SIZE_MAX),
            lambda: workspace.write_file(f"{ANN}/link", MARK, SIZE_MAX),
        ):
            with pytest.raises(WorkspaceDenied, match="leads out"):
                attempt()


def test_a_mount_of_what_is_protected_opens_nothing(root, opener):
    (root / "alias").symlink_to("workspaces/.state")
    mounts = [
        Mount("workspaces/.state", write=True),
        Mount("alias", write=True),
        Mount("workspaces/.state/keys", write=True),
    ]
    with Workspace(root, mounts, Protected(root), open_beneath=opener) as workspace:
        for path in (
            "workspaces/.state/operator.token",
            "alias/operator.token",
            "workspaces/.state/keys/runner.key",
        ):
            for name, said, error in operations(workspace, path, root.parent):
                assert isinstance(error, WorkspaceDenied), (name, said)


def test_a_link_does_not_lead_past_a_narrower_mount(root, opener):
    """The wide mount lets write and the narrow one in it does not: a link in the wide one is no way around that."""
    (root / "workspaces/users/bob/to-ann").symlink_to("../ann")
    (root / ANN / "kept").write_text("kept")
    mounts = [Mount("workspaces", write=True), Mount(ANN, write=False)]
    with Workspace(root, mounts, Protected(root), open_beneath=opener) as workspace:
        assert workspace.read_file("workspaces/users/bob/to-ann/kept", SIZE_MAX).text == "kept"
        for path in ("to-ann/kept", "to-ann/new", "to-ann/new/folder"):
            with pytest.raises(WorkspaceDenied, match="read-only"):
                workspace.write_file(f"workspaces/users/bob/{path}", b"x", SIZE_MAX)
    assert names(root / ANN) == ["kept"]


def test_a_link_from_one_mount_into_another_is_refused(root, opener):
    (root / ANN / "rules").symlink_to("../../../platform/constitution.md")
    with session(root, "registered", opener) as workspace:
        assert workspace.read_file("platform/constitution.md", SIZE_MAX).size_bytes > 0
        with pytest.raises(WorkspaceDenied, match="leads out"):
            workspace.read_file(f"{ANN}/rules", SIZE_MAX)


# Races


@pytest.mark.usefixtures("handles")
@pytest.mark.parametrize("opener", OPENERS)
def test_no_race_is_won(tmp_path, opener):
    """While one thread swaps files and folders for links by rename, another reads and writes through them."""
    root = build(tmp_path)
    own = root / ANN
    swapped = own / "swapped"
    swapped.mkdir()
    targets = {"absolute": tmp_path / "outside/folder", "relative": "../../../../../outside/folder"}
    assert (swapped / targets["relative"] / "secret.txt").read_text() == SECRET
    before = picture(tmp_path / "outside", root / "workspaces/users/bob", root / "workspaces/.state")
    stop = threading.Event()
    swaps = []

    def swap_once(kind):
        coming, folder, file = own / "coming", swapped / "folder", swapped / "file"
        if kind == "real":
            coming.mkdir()
            (coming / "secret.txt").write_text("mine")
        else:
            coming.symlink_to(targets[kind])
        coming.rename(folder)
        coming.write_text("mine")
        coming.rename(file)
        os.link(tmp_path / "outside/secret.txt", coming)
        coming.rename(file)
        coming.symlink_to(tmp_path / "outside/secret.txt")
        coming.rename(file)
        swaps.append(kind)

    def swap():
        for kind in itertools.cycle(("real", "absolute", "real", "relative")):
            if stop.is_set():
                return
            with suppress(OSError):  # a write has made something in the way: taken away for the next round
                swap_once(kind)
            for left in (own / "coming", swapped / "folder"):
                with suppress(OSError):
                    left.unlink()
                shutil.rmtree(left, ignore_errors=True)

    swapper = threading.Thread(target=swap)
    interval = sys.getswitchinterval()
    sys.setswitchinterval(0.00005)
    swapper.start()
    outcomes = {"done": 0, "refused": 0}
    try:
        with session(root, "registered", OPENERS[opener]) as workspace:
            end = time.monotonic() + 1
            while time.monotonic() < end:
                for attempt in (
                    lambda: workspace.read_file(f"{ANN}/swapped/folder/secret.txt", SIZE_MAX).text,
                    lambda: workspace.read_file(f"{ANN}/swapped/file", SIZE_MAX).text,
                    lambda: repr(workspace.search(SECRET, f"{ANN}/swapped", None, 100, 1)),
                    lambda: workspace.write_file(f"{ANN}/swapped/folder/made/new.txt", MARK, SIZE_MAX).path,
                    lambda: workspace.write_file(f"{ANN}/swapped/file", MARK, SIZE_MAX).path,
                    lambda: workspace.edit_file(f"{ANN}/swapped/file", SECRET, "taken", SIZE_MAX).path,
                ):
                    try:
                        said = attempt()
                        outcomes["done"] += 1
                    except WorkspaceError as error:
                        said = str(error)
                        outcomes["refused"] += 1
                    assert SECRET not in said.replace(f'"{SECRET}"', "")
    finally:
        stop.set()
        swapper.join()
        sys.setswitchinterval(interval)
    assert picture(tmp_path / "outside", root / "workspaces/users/bob", root / "workspaces/.state") == before
    assert min(swaps.count(kind) for kind in ("real", *targets)) > 10
    assert min(outcomes.values()) > 0
