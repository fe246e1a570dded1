"""When the system itself refuses: no handles, no space, no permission. Said clearly, and nothing half done."""

import errno
import os
import resource
import signal
import subprocess
from contextlib import closing, contextmanager
from pathlib import Path

import pytest

from protocol.mounts import Mount
from store.confinement import ancestors, identity_of, open_regular, openat2_beneath, strongest, walk_beneath
from store.reach import Reach
from store.replacement import replace
from store.workspace import FileMissingError, Protected, Workspace, WorkspaceDenied, WorkspaceError
from store.workspace_errors import explain, plain, shown
from tests.support.accounts import unprivileged_folder

OWN = "workspaces/users/ann"
SIZE_MAX = 4 * 1024 * 1024
AS_ROOT = os.geteuid() == 0


@pytest.fixture(params=[strongest(), walk_beneath], ids=["strongest", "walk"])
def opener(request):
    return request.param


@pytest.fixture
def root(tmp_path):
    for folder in ("platform", OWN, "workspaces/.state"):
        (tmp_path / folder).mkdir(parents=True)
    (tmp_path / OWN / "note").write_text("kept\n")
    return tmp_path


@pytest.fixture
def workspace(root, opener):
    mounts = [Mount("platform", write=False), Mount(OWN, write=True)]
    with Workspace(root, mounts, Protected(root), open_beneath=opener) as made:
        yield made


def names(folder):
    return sorted(path.name for path in folder.iterdir())


def open_handles():
    return len(names(Path("/proc/self/fd")))


@contextmanager
def limited(kind, soft):
    before = resource.getrlimit(kind)
    resource.setrlimit(kind, (soft, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(kind, before)


def attempts(workspace):
    return (
        lambda: workspace.read_file(f"{OWN}/note", SIZE_MAX),
        lambda: workspace.list_files(OWN, None, 10),
        lambda: workspace.list_files(OWN, "**/*", 10),
        lambda: workspace.search("kept", OWN, None, 10, 5),
        lambda: workspace.write_file(f"{OWN}/note", b"new", SIZE_MAX),
        lambda: workspace.edit_file(f"{OWN}/note", "kept", "new", SIZE_MAX),
    )


@pytest.mark.parametrize("spare", range(6))
def test_without_file_handles_an_operation_says_so_and_leaves_nothing(root, opener, spare):
    """Whichever open is the one that finds no handle: the operation ends in a sentence, or is done whole."""
    mounts = [Mount(OWN, write=True)]
    for number in range(6):
        before = open_handles()
        with Workspace(root, mounts, Protected(root), open_beneath=opener) as workspace:
            first_free = os.open("/", os.O_RDONLY)
            os.close(first_free)
            with limited(resource.RLIMIT_NOFILE, first_free + spare):
                try:
                    attempts(workspace)[number]()
                    said = None
                except WorkspaceError as error:
                    said = error.reason
            assert said is None or "no file handle free" in said
            assert said is not None or spare > 0
            (root / OWN / "note").write_text("kept\n")
            attempts(workspace)[number]()
        assert open_handles() == before
        assert names(root / OWN) == ["note"]
        (root / OWN / "note").write_text("kept\n")


def test_a_write_that_the_disk_cuts_short_changes_nothing(root, workspace):
    before = signal.getsignal(signal.SIGXFSZ)
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    try:
        with limited(resource.RLIMIT_FSIZE, 100_000):
            for attempt in (
                lambda: workspace.write_file(f"{OWN}/note", b"x" * 200_000, SIZE_MAX),
                lambda: workspace.edit_file(f"{OWN}/note", "kept", "x" * 200_000, SIZE_MAX),
                lambda: workspace.write_file(f"{OWN}/new", b"x" * 200_000, SIZE_MAX),
            ):
                with pytest.raises(WorkspaceError, match="larger than the disk allows"):
                    attempt()
    finally:
        signal.signal(signal.SIGXFSZ, before)
    assert names(root / OWN) == ["note"]
    assert (root / OWN / "note").read_text() == "kept\n"


@pytest.fixture
def small_disk(root):
    """A disk of 64 KiB in place of ann's folder."""
    folder = root / OWN
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", folder],
        check=False,
        capture_output=True,
    )
    if mounted.returncode != 0:
        pytest.skip("this account may not mount a small disk")
    (folder / "note").write_text("kept\n")
    try:
        yield folder
    finally:
        subprocess.run(["umount", folder], check=True)


def test_a_full_disk_keeps_the_old_file_and_no_scrap_of_the_new(root, opener, small_disk):
    with Workspace(root, [Mount(OWN, write=True)], Protected(root), open_beneath=opener) as workspace:
        for path in ("note", "new"):
            with pytest.raises(WorkspaceError, match=r"no space left.*nothing was changed"):
                workspace.write_file(f"{OWN}/{path}", b"x" * 200_000, SIZE_MAX)
        assert workspace.write_file(f"{OWN}/note", b"small", SIZE_MAX).size_bytes == 5
    assert names(small_disk) == ["note"]


def test_a_read_only_disk_is_said_and_still_read(root, opener, small_disk):
    subprocess.run(["mount", "-o", "remount,ro", small_disk], check=True)
    with Workspace(root, [Mount(OWN, write=True)], Protected(root), open_beneath=opener) as workspace:
        assert workspace.read_file(f"{OWN}/note", SIZE_MAX).text == "kept\n"
        for path in ("note", "new", "folder/new"):
            with pytest.raises(WorkspaceError, match="read-only, nothing was changed"):
                workspace.write_file(f"{OWN}/{path}", b"x", SIZE_MAX)


@pytest.fixture
def plain_folder(tmp_path):
    """A folder in which permissions count: root is denied nothing, so root becomes somebody else for it."""
    if not AS_ROOT:
        yield tmp_path
    else:
        with unprivileged_folder() as folder:
            yield folder


def test_permissions_of_the_account_are_said_and_heeded(plain_folder, opener):
    root, own = plain_folder, plain_folder / OWN
    own.mkdir(parents=True)
    (own / "note").write_text("kept")
    workspace = Workspace(root, [Mount(OWN, write=True)], Protected(root), open_beneath=opener)
    (own / "unreadable").write_text("x")
    (own / "unreadable").chmod(0)
    (own / "read-only").write_text("x")
    (own / "read-only").chmod(0o444)
    (own / "closed").mkdir()
    (own / "closed/inside").write_text("needle")
    (own / "closed").chmod(0)
    (own / "fixed").mkdir()
    (own / "fixed").chmod(0o555)
    try:
        for attempt in (
            lambda: workspace.read_file(f"{OWN}/unreadable", SIZE_MAX),
            lambda: workspace.write_file(f"{OWN}/read-only", b"y", SIZE_MAX),
            lambda: workspace.read_file(f"{OWN}/closed/inside", SIZE_MAX),
            lambda: workspace.list_files(f"{OWN}/closed", None, 10),
            lambda: workspace.write_file(f"{OWN}/fixed/new", b"y", SIZE_MAX),
        ):
            with pytest.raises(WorkspaceError, match="own account may not"):
                attempt()
        found = workspace.search("needle", OWN, None, 10, 5)
        assert (found.lines, found.unread) == ((), 2)
        assert len(workspace.list_files(OWN, "**/*", 10).entries) == 5
    finally:
        workspace.close()
        (own / "closed").chmod(0o700)
        (own / "fixed").chmod(0o700)


@pytest.mark.skipif(not AS_ROOT, reason="a mark that only root can set")
def test_a_file_that_the_system_holds_fast_is_not_replaced(root, workspace):
    marked = subprocess.run(["chattr", "+i", root / OWN / "note"], check=False, capture_output=True)
    if marked.returncode != 0:
        pytest.skip("this file system has no immutable files")
    try:
        with pytest.raises(WorkspaceError, match="does not let the runner change it"):
            workspace.write_file(f"{OWN}/note", b"new", SIZE_MAX)
    finally:
        subprocess.run(["chattr", "-i", root / OWN / "note"], check=True)
    assert names(root / OWN) == ["note"]


def test_a_file_changed_between_reading_and_writing_is_not_overwritten(root, opener):
    reach = Reach(root, [Mount(OWN, write=True)], Protected(root), opener)
    with closing(reach), closing(reach.place(f"{OWN}/note", write=True)) as place:
        handle, status = reach.open_regular(place)
        os.close(handle)
        (root / OWN / "note").write_text("somebody else's\n")
        with pytest.raises(WorkspaceError, match=r"changed by somebody else.*read it and edit again"):
            replace(place, b"ours\n", status, unchanged=True)
    assert (root / OWN / "note").read_text() == "somebody else's\n"
    assert names(root / OWN) == ["note"]


def test_every_system_error_becomes_a_sentence_without_a_host_path():
    for number in sorted(errno.errorcode):
        error = explain(OSError(number, os.strerror(number), "/srv/host/path"), "notes.md")
        assert '"notes.md"' in error.reason
        assert "/srv" not in error.reason
        assert error.reason.endswith(".")
        assert error.path == "notes.md"
    assert isinstance(explain(OSError(errno.EXDEV, ""), "x"), WorkspaceDenied)
    assert isinstance(explain(OSError(errno.ENOENT, ""), "x"), FileMissingError)
    assert "unknown error" in explain(OSError("no number"), "x").reason


@pytest.mark.parametrize(
    ("name", "written"),
    [
        ("plain name.md", "plain name.md"),
        ("a\nb\tc\0", r"a\nb\tc\x00"),
        ("\x1b[2J", r"\x1b[2J"),
        ("\udcff\udc80", r"\xff\x80"),
        ("\ud800", r"\ud800"),
        ("\u202egnp", r"\u202egnp"),
        ("é 日本", "é 日本"),
    ],
)
def test_names_are_shown_on_one_line_and_as_valid_text(name, written):
    assert plain(name) == written
    assert shown(name) == f'"{written}"'
    shown(name).encode()


# The layer beneath


@pytest.fixture
def folder(root):
    handle = os.open(root / OWN, os.O_PATH | os.O_DIRECTORY)
    yield handle
    os.close(handle)


@pytest.mark.parametrize(
    ("path", "problem"),
    [
        (b"..", errno.EXDEV),
        (b"a/../..", errno.EXDEV),
        (b"/etc", errno.EXDEV),
        (b"to-slash", errno.EXDEV),
        (b"to-up", errno.EXDEV),
        (b"loop", errno.ELOOP),
        (b"long-0", errno.ELOOP),
        (b"missing", errno.ENOENT),
        (b"missing/..", errno.ENOENT),
        (b"note/..", errno.ENOTDIR),
        (b"note/", errno.ENOTDIR),
        (b"to-note/", errno.ENOTDIR),
        (b"to-note-slash", errno.ENOTDIR),
        (b"", errno.ENOENT),
    ],
)
def test_both_ways_of_opening_refuse_with_the_same_error(root, folder, opener, path, problem):
    own = root / OWN
    (own / "a").mkdir()
    (own / "to-slash").symlink_to("/")
    (own / "to-up").symlink_to("a/../..")
    (own / "loop").symlink_to("loop")
    (own / "to-note").symlink_to("note")
    (own / "to-note-slash").symlink_to("note/")
    for number in range(45):
        (own / f"long-{number}").symlink_to(f"long-{number + 1}" if number < 44 else "a")
    with pytest.raises(OSError) as caught:  # noqa: PT011 (the number is the claim)
        opener(folder, path, os.O_RDONLY)
    assert caught.value.errno == problem


@pytest.mark.parametrize(
    "path", [b".", b"./", b"a/..", b"a/../a/./..", b"here", b"a/back", b"here/here/a/back/."]
)
def test_both_ways_of_opening_agree_where_a_path_leads(root, folder, opener, path):
    own = root / OWN
    (own / "a").mkdir()
    (own / "here").symlink_to(".")
    (own / "a/back").symlink_to("../a/../here")
    handle = opener(folder, path, os.O_RDONLY | os.O_DIRECTORY)
    try:
        assert identity_of(os.fstat(handle)) == identity_of(own.stat())
        assert os.get_inheritable(handle) is False
    finally:
        os.close(handle)


def test_a_link_at_the_end_is_not_followed_when_that_was_asked(root, folder, opener):
    (root / OWN / "link").symlink_to("note")
    with pytest.raises(OSError) as caught:  # noqa: PT011 (the number is the claim)
        opener(folder, b"link", os.O_RDONLY | os.O_NOFOLLOW)
    assert caught.value.errno == errno.ELOOP


def test_a_hard_link_that_is_gone_again_is_not_taken_for_a_plain_file(root, folder, opener):
    """Another name of a secret stands at the name for the open alone: a moment later the secret has one name again."""
    own, secret = root / OWN, root / "platform/secret"
    secret.write_text("secret")
    rounds = []

    def meddling(directory, path, flags):
        rounds.append(path)
        if len(rounds) > 3:
            return opener(directory, path, flags)
        (own / "note").rename(own / "aside")
        os.link(secret, own / "note")
        handle = opener(directory, path, flags)
        (own / "aside").rename(own / "note")
        return handle

    handle, status = open_regular(meddling, folder, b"note")
    os.close(handle)
    assert identity_of(status) == identity_of((own / "note").stat())
    assert len(rounds) == 4


def test_a_path_that_c_would_cut_short_is_a_mistake_of_the_caller(folder):
    with pytest.raises(ValueError, match="NUL"):
        openat2_beneath(folder, b"note\0/../..", os.O_RDONLY)
    with pytest.raises(ValueError, match="O_DIRECTORY"):
        walk_beneath(folder, b"note", os.O_PATH)


def test_a_folder_that_is_not_beneath_another_has_no_ancestors_there(root, folder):
    own = identity_of(os.fstat(folder))
    assert ancestors(folder, own) == (own,)
    top = identity_of(root.stat())
    assert len(ancestors(folder, top)) == 4
    with pytest.raises(OSError) as caught:  # noqa: PT011 (the number is the claim)
        ancestors(folder, identity_of((root / "platform").stat()))
    assert caught.value.errno == errno.EXDEV
