"""What agents do all day in their folders, by either way of opening them."""

import os
import stat
import threading
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from protocol.mounts import Mount, mount_of, mounts_beneath
from store.confinement import openat2_beneath, strongest, walk_beneath
from store.globs import Glob
from store.workspace import (
    EditMismatchError,
    FileMissingError,
    FileTooLargeError,
    Protected,
    Workspace,
    WorkspaceDenied,
    WorkspaceError,
)

OWN = "workspaces/users/ann"
SIZE_MAX = 50 * 1024


@pytest.fixture
def root(tmp_path):
    for folder in ("platform/mandates", "platform/methods", OWN, "workspaces/.state", "workspaces/users/bob"):
        (tmp_path / folder).mkdir(parents=True)
    (tmp_path / "platform/constitution.md").write_text("We the people.\n")
    (tmp_path / "platform/mandates/reed.md").write_text("Keep the services.\n")
    (tmp_path / "platform/methods/filing.md").write_text("File by date.\nNever by Mood.\n")
    (tmp_path / "workspaces/.state/operator.token").write_text("secret")
    (tmp_path / "workspaces/users/bob/diary.md").write_text("private")
    return tmp_path


@pytest.fixture(params=[strongest(), walk_beneath], ids=["strongest", "walk"])
def workspace(request, root):
    mounts = [Mount("platform", write=False), Mount(OWN, write=True)]
    with Workspace(root, mounts, Protected(root), open_beneath=request.param) as made:
        yield made


def standing(root, opener=None):
    mounts = [Mount("platform", write=True), Mount("workspaces", write=True)]
    return Workspace(root, mounts, Protected(root), open_beneath=opener)


def open_handles():
    return len(list(Path("/proc/self/fd").iterdir()))


def test_this_system_has_openat2_or_says_so():
    assert strongest() in {openat2_beneath, walk_beneath}


# Reading


def test_a_file_is_read_by_its_path_from_the_root(workspace):
    text = workspace.read_file("platform/constitution.md", SIZE_MAX)
    assert (text.text, text.truncated, text.size_bytes) == ("We the people.\n", False, 15)
    assert text.path == "platform/constitution.md"


def test_an_absolute_path_inside_the_root_is_taken_as_such(workspace, root):
    assert workspace.read_file(f"{root}/platform/constitution.md", SIZE_MAX).text == "We the people.\n"
    assert workspace.read_file(f"/{root}/./x/../platform//constitution.md", SIZE_MAX).size_bytes == 15


def test_a_root_reached_through_a_link_is_stripped_in_both_its_forms(root, tmp_path_factory):
    alias = tmp_path_factory.mktemp("alias") / "home"
    alias.symlink_to(root)
    with Workspace(alias, [Mount("platform", write=False)], Protected(alias)) as workspace:
        for prefix in (alias, root):
            assert workspace.read_file(f"{prefix}/platform/constitution.md", SIZE_MAX).size_bytes == 15


def test_dots_and_doubled_slashes_are_tidied_by_name(workspace):
    assert workspace.read_file("./platform//methods/.././constitution.md", SIZE_MAX).size_bytes == 15


def test_reading_stops_at_the_limit_and_says_so(workspace, root):
    (root / OWN / "long.txt").write_bytes(b"x" * (SIZE_MAX + 1))
    (root / OWN / "exact.txt").write_bytes(b"x" * SIZE_MAX)
    long, exact = (workspace.read_file(f"{OWN}/{name}.txt", SIZE_MAX) for name in ("long", "exact"))
    assert (len(long.text), long.truncated, long.size_bytes) == (SIZE_MAX, True, SIZE_MAX + 1)
    assert (len(exact.text), exact.truncated) == (SIZE_MAX, False)


@given(text=st.text(min_size=1, max_size=12), size_max=st.integers(0, 40))
def test_a_cut_never_leaves_half_a_letter(tmp_path_factory, text, size_max):
    root = tmp_path_factory.mktemp("cut")
    (root / "platform").mkdir()
    (root / "platform/letters").write_bytes(text.encode())
    with Workspace(root, [Mount("platform", write=False)], Protected(root)) as workspace:
        read = workspace.read_file("platform/letters", size_max)
    assert text.startswith(read.text)
    assert read.truncated == (len(text.encode()) > size_max)
    assert len(text.encode()[:size_max]) - len(read.text.encode()) < 4


def test_bytes_that_are_no_utf8_are_replaced_not_refused(workspace, root):
    (root / OWN / "latin.txt").write_bytes("caf\xe9!".encode("latin-1"))
    assert workspace.read_file(f"{OWN}/latin.txt", SIZE_MAX).text == "caf�!"


def test_a_missing_file_is_missing_and_the_next_step_is_named(workspace):
    with pytest.raises(FileMissingError, match="list_files") as caught:
        workspace.read_file(f"{OWN}/nothing.md", SIZE_MAX)
    assert caught.value.path == f"{OWN}/nothing.md"


@pytest.mark.parametrize("path", [OWN, "platform/methods", "platform"])
def test_a_folder_is_not_read_but_the_tool_for_it_is_named(workspace, path):
    with pytest.raises(WorkspaceError, match=r"is a folder.*list_files"):
        workspace.read_file(path, SIZE_MAX)


def test_names_are_case_sensitive(workspace):
    with pytest.raises(FileMissingError):
        workspace.read_file("platform/Constitution.md", SIZE_MAX)
    with pytest.raises(WorkspaceDenied):
        workspace.read_file("Platform/constitution.md", SIZE_MAX)


def test_links_inside_a_mount_are_followed(workspace, root):
    own = root / OWN
    (own / "deep/er").mkdir(parents=True)
    (own / "deep/er/note.md").write_text("found")
    (own / "short").symlink_to("deep/er")
    (own / "deep/er/back").symlink_to("../../short/note.md")
    assert workspace.read_file(f"{OWN}/short/note.md", SIZE_MAX).text == "found"
    assert workspace.read_file(f"{OWN}/short/back", SIZE_MAX).text == "found"


# Listing


def test_without_a_path_the_mounts_are_listed(workspace):
    assert workspace.list_files(None, None, 200).entries == ("platform/", f"{OWN}/")
    assert workspace.list_files(".", None, 200).entries == ("platform/", f"{OWN}/")


def test_a_folder_above_the_mounts_shows_only_them(workspace):
    assert workspace.list_files("workspaces", None, 200).entries == (f"{OWN}/",)
    assert workspace.list_files("workspaces/users", None, 200).entries == (f"{OWN}/",)


def test_a_folder_is_listed_sorted_with_paths_from_the_root(workspace):
    assert workspace.list_files("platform", None, 200).entries == (
        "platform/constitution.md",
        "platform/mandates/",
        "platform/methods/",
    )


def test_a_pattern_without_a_slash_finds_names_at_every_depth(workspace):
    assert workspace.list_files("platform", "*.md", 200).entries == (
        "platform/constitution.md",
        "platform/mandates/reed.md",
        "platform/methods/filing.md",
    )


@pytest.mark.parametrize(
    "pattern", ["m*/r*.md", "**/reed.md", "platform/mandates/*", "mandates/**/*.{md,txt}"]
)
def test_a_pattern_with_a_slash_is_relative_to_the_folder_or_the_root(workspace, pattern):
    assert workspace.list_files("platform", pattern, 200).entries == ("platform/mandates/reed.md",)


def test_a_pattern_without_a_path_goes_through_every_mount_once(root):
    (root / OWN / "reed.md").write_text("mine")
    mounts = [Mount("platform", write=False), Mount("workspaces", write=True), Mount(OWN, write=True)]
    with Workspace(root, mounts, Protected(root)) as workspace:
        found = workspace.list_files(None, "reed.md", 200).entries
    assert found == ("platform/mandates/reed.md", f"{OWN}/reed.md")


def test_listing_stops_at_its_limit_and_says_so(workspace, root):
    for number in range(6):
        (root / OWN / f"{number}.txt").touch()
    assert workspace.list_files(OWN, None, 6).truncated is False
    cut = workspace.list_files(OWN, None, 5)
    assert (len(cut.entries), cut.truncated) == (5, True)
    assert workspace.list_files(OWN, "*.txt", 5).truncated is True


def test_names_that_could_forge_a_line_are_written_out(workspace, root):
    (root / OWN / "a\nplatform").touch()
    (root / OWN / "b\x1b[31m").touch()
    os.close(os.open(os.fsencode(root / OWN) + b"/c\xff", os.O_CREAT))
    assert workspace.list_files(OWN, None, 200).entries == (
        f"{OWN}/a\\nplatform",
        f"{OWN}/b\\x1b[31m",
        f"{OWN}/c\\xff",
    )


def test_a_file_is_not_listed_but_the_tool_for_it_is_named(workspace):
    with pytest.raises(WorkspaceError, match=r"is a file.*read_file"):
        workspace.list_files("platform/constitution.md", None, 200)


def test_state_is_neither_listed_nor_entered(root):
    with standing(root) as workspace:
        assert workspace.list_files("workspaces", None, 200).entries == ("workspaces/users/",)
        assert workspace.list_files("workspaces", "*token*", 200).entries == ()
        assert workspace.search("secret", "workspaces", None, 100, 5).lines == ()


# A mount that does not exist yet


@pytest.fixture
def scratch(root):
    mount = Mount("workspaces/guests/0123456789abcdef", write=True)
    with Workspace(root, [Mount("platform", write=False), mount], Protected(root)) as workspace:
        yield workspace, mount.path, root / mount.path


def test_a_folder_that_does_not_exist_yet_is_empty(scratch):
    workspace, path, folder = scratch
    assert workspace.list_files(path, None, 200).entries == ()
    assert workspace.search("x", path, None, 100, 5).lines == ()
    assert workspace.list_files(None, "*", 200).truncated is False
    with pytest.raises(FileMissingError):
        workspace.read_file(f"{path}/note.md", SIZE_MAX)
    with pytest.raises(FileMissingError):
        workspace.list_files(f"{path}/notes", None, 200)
    assert not folder.exists()


def test_the_first_write_makes_it_for_its_owner_alone(scratch):
    workspace, path, folder = scratch
    workspace.write_file(f"{path}/note.md", b"hello", SIZE_MAX)
    assert stat.S_IMODE(folder.stat().st_mode) == 0o700
    assert workspace.list_files(path, None, 200).entries == (f"{path}/note.md",)


def test_a_folder_removed_meanwhile_is_made_anew(scratch):
    workspace, path, folder = scratch
    for text in ("one", "two", "three"):
        workspace.write_file(f"{path}/note.md", text.encode(), SIZE_MAX)
        assert workspace.read_file(f"{path}/note.md", SIZE_MAX).text == text
        (folder / "note.md").unlink()
        folder.rmdir()
    assert workspace.list_files(path, None, 200).entries == ()


def test_a_link_in_place_of_a_mount_moves_nobody(root):
    (root / "workspaces/guests").mkdir()
    (root / "workspaces/guests/abc").symlink_to("../users/bob")
    with Workspace(root, [Mount("workspaces/guests/abc", write=True)], Protected(root)) as workspace:
        for attempt in (
            lambda: workspace.read_file("workspaces/guests/abc/diary.md", SIZE_MAX),
            lambda: workspace.write_file("workspaces/guests/abc/x", b"x", SIZE_MAX),
            lambda: workspace.list_files("workspaces/guests/abc", None, 10),
        ):
            with pytest.raises(WorkspaceDenied, match="tell the operator"):
                attempt()


def test_an_estate_on_another_disk_is_reached_by_the_operators_link(root, tmp_path_factory):
    elsewhere = tmp_path_factory.mktemp("disk") / "workspaces"
    (root / "workspaces").rename(elsewhere)
    (root / "workspaces").symlink_to(elsewhere)
    with standing(root) as workspace:
        workspace.write_file(f"{OWN}/note.md", b"there", SIZE_MAX)
        with pytest.raises(WorkspaceDenied):
            workspace.read_file("workspaces/.state/operator.token", SIZE_MAX)
    assert (elsewhere / "users/ann/note.md").read_text() == "there"


# Searching


def test_a_search_names_path_line_and_text(workspace):
    found = workspace.search("by date", None, None, 100, 5)
    assert found.lines == ("platform/methods/filing.md:1: File by date.",)
    assert (found.stopped, found.unread) == (None, 0)


def test_no_matches_is_a_result(workspace):
    assert workspace.search("no such text", None, None, 100, 5).lines == ()


def test_case_counts_only_where_the_query_has_a_capital(workspace):
    assert len(workspace.search("mood", "platform", None, 100, 5).lines) == 1
    assert len(workspace.search("Mood", "platform", None, 100, 5).lines) == 1
    assert len(workspace.search("MOOD", "platform", None, 100, 5).lines) == 0


def test_a_query_is_text_and_not_an_expression(workspace, root):
    (root / OWN / "maths.txt").write_text("f(x) = .*\nfx\n")
    assert workspace.search("f(x) = .*", OWN, None, 100, 5).lines == (f"{OWN}/maths.txt:1: f(x) = .*",)


def test_a_glob_chooses_the_files_and_a_path_may_be_one_file(workspace):
    assert len(workspace.search("e", "platform", "*.md", 100, 5).lines) == 4
    assert workspace.search("e", "platform", "*.txt", 100, 5).lines == ()
    assert len(workspace.search("e", "platform/methods/filing.md", None, 100, 5).lines) == 2


def test_binary_and_too_large_files_are_passed_over(workspace, root):
    (root / OWN / "binary").write_bytes(b"needle\0")
    with (root / OWN / "huge").open("wb") as huge:
        huge.truncate(5 * 1024 * 1024)
        huge.write(b"needle")
    found = workspace.search("needle", OWN, None, 100, 5)
    assert (found.lines, found.unread) == ((), 1)


def test_a_search_stops_at_its_matches_and_at_its_time(workspace, root):
    (root / OWN / "many.txt").write_text("needle\n" * 101)
    cut = workspace.search("needle", OWN, None, 100, 5)
    assert (len(cut.lines), cut.truncated) == (100, True)
    assert "more than 100" in cut.stopped
    assert workspace.search("needle", OWN, None, 101, 5).truncated is False
    late = workspace.search("needle", OWN, None, 100, -1)
    assert (late.lines, late.stopped) == ((), "the time was up before everything was looked at")


def test_long_lines_are_shown_around_the_match(workspace, root):
    (root / OWN / "long.txt").write_text("a" * 5000 + "needle" + "b" * 5000)
    (line,) = workspace.search("needle", OWN, None, 100, 5).lines
    assert "needle" in line
    assert len(line) < 400


@pytest.mark.parametrize("query", ["", "two\nlines"])
def test_a_query_that_cannot_be_searched_is_said_so(workspace, query):
    with pytest.raises(WorkspaceError, match="one line"):
        workspace.search(query, None, None, 100, 5)


def test_links_are_not_followed_by_a_search(workspace, root):
    (root / OWN / "loop").symlink_to(".")
    (root / OWN / "file").symlink_to("note.md")
    (root / OWN / "note.md").write_text("needle")
    assert workspace.search("needle", OWN, None, 100, 5).lines == (f"{OWN}/note.md:1: needle",)


# Writing


def test_a_file_is_written_whole_with_the_folders_it_needs(workspace, root):
    written = workspace.write_file(f"{OWN}/a/b/c.txt", b"hello", SIZE_MAX)
    assert (written.path, written.size_bytes, written.created) == (f"{OWN}/a/b/c.txt", 5, True)
    assert (root / OWN / "a/b/c.txt").read_bytes() == b"hello"
    assert workspace.write_file(f"{OWN}/a/b/c.txt", b"", SIZE_MAX).created is False
    assert [path.name for path in (root / OWN / "a/b").iterdir()] == ["c.txt"]


@pytest.mark.parametrize("mode", [0o600, 0o640, 0o755])
def test_an_existing_file_keeps_its_mode(workspace, root, mode):
    file = root / OWN / "script"
    file.write_text("old")
    file.chmod(mode)
    workspace.write_file(f"{OWN}/script", b"new", SIZE_MAX)
    workspace.edit_file(f"{OWN}/script", "new", "newer", SIZE_MAX)
    assert stat.S_IMODE(file.stat().st_mode) == mode


def test_a_set_user_id_bit_does_not_survive_a_write(workspace, root):
    file = root / OWN / "tool"
    file.write_text("old")
    file.chmod(0o4755)
    workspace.write_file(f"{OWN}/tool", b"new", SIZE_MAX)
    assert stat.S_IMODE(file.stat().st_mode) == 0o755


@pytest.mark.skipif(os.geteuid() != 0, reason="only root gives files away")
def test_an_existing_file_keeps_its_owner(workspace, root):
    file = root / OWN / "anns"
    file.write_text("old")
    os.chown(file, 12345, 12346)
    workspace.write_file(f"{OWN}/anns", b"new", SIZE_MAX)
    assert (file.stat().st_uid, file.stat().st_gid) == (12345, 12346)


def test_a_write_through_a_link_changes_the_file_and_keeps_the_link(workspace, root):
    (root / OWN / "real").write_text("old")
    (root / OWN / "link").symlink_to("real")
    workspace.write_file(f"{OWN}/link", b"new", SIZE_MAX)
    assert (root / OWN / "link").is_symlink()
    assert (root / OWN / "real").read_text() == "new"


def test_too_much_is_refused_before_anything_is_touched(workspace, root):
    with pytest.raises(FileTooLargeError) as caught:
        workspace.write_file(f"{OWN}/new/big", b"x" * 11, 10)
    assert (caught.value.size, caught.value.size_max) == (11, 10)
    assert not (root / OWN / "new").exists()


@pytest.mark.parametrize("path", ["platform/note.md", "platform/new/note.md", "platform"])
def test_a_read_only_mount_is_not_written_and_the_writable_one_is_named(workspace, root, path):
    before = sorted(root.rglob("*"))
    with pytest.raises(WorkspaceDenied, match=f"read-only.*{OWN}"):
        workspace.write_file(path, b"x", SIZE_MAX)
    assert sorted(root.rglob("*")) == before


@pytest.mark.parametrize("path", [f"{OWN}/", f"{OWN}/folder", f"{OWN}/folder/", f"{OWN}/new/", OWN])
def test_a_folder_is_not_overwritten(workspace, root, path):
    (root / OWN / "folder").mkdir()
    with pytest.raises(WorkspaceError, match="folder"):
        workspace.write_file(path, b"x", SIZE_MAX)
    assert [entry.name for entry in (root / OWN).iterdir()] == ["folder"]


def test_a_file_is_not_taken_for_a_folder(workspace, root):
    (root / OWN / "file").touch()
    with pytest.raises(WorkspaceError, match="is a file, not a folder"):
        workspace.write_file(f"{OWN}/file/below", b"x", SIZE_MAX)


def test_a_name_with_control_characters_is_not_made(workspace, root):
    with pytest.raises(WorkspaceDenied, match="control characters"):
        workspace.write_file(f"{OWN}/a\nb", b"x", SIZE_MAX)
    assert list((root / OWN).iterdir()) == []


@pytest.mark.parametrize("outer_writes", [True, False])
def test_of_overlapping_mounts_the_longest_holds(root, outer_writes):
    mounts = [Mount("workspaces", write=outer_writes), Mount(OWN, write=not outer_writes)]
    with Workspace(root, mounts, Protected(root)) as workspace:
        for path, may in ((f"{OWN}/x", not outer_writes), ("workspaces/users/bob/x", outer_writes)):
            if may:
                assert workspace.write_file(path, b"x", SIZE_MAX).created
            else:
                with pytest.raises(WorkspaceDenied, match="read-only"):
                    workspace.write_file(path, b"x", SIZE_MAX)


# Editing


def test_the_one_occurrence_is_replaced(workspace, root):
    (root / OWN / "note").write_text("one\ntwo\nthree\n")
    edited = workspace.edit_file(f"{OWN}/note", "two", "2", SIZE_MAX)
    assert (edited.path, edited.line, edited.size_bytes) == (f"{OWN}/note", 2, 12)
    assert (root / OWN / "note").read_text() == "one\n2\nthree\n"


MISMATCHES = [
    ("one\n", "two", 0, (), "does not occur"),
    ("a\nb\na\n", "a", 2, (1, 3), "2 times, in lines 1, 3"),
    ("aaa", "aa", 2, (1, 1), "2 times"),
    (
        "x\n" * 30,
        "x",
        30,
        tuple(range(1, 11)),
        "30 times, in lines 1, 2, 3, 4, 5, 6, 7, 8, 9, 10 and more",
    ),
    ("x" * 2000, "x", 1000, (1,) * 10, "1000 times or more"),
    ("a\r\nb\r\n", "a\nb", 0, (), r"end in \\r\\n"),
    ("  word\n", " word ", 0, (), "white space"),
]


@pytest.mark.parametrize("case", MISMATCHES)
def test_an_edit_that_is_not_exact_and_unique_changes_nothing(workspace, root, case):
    content, old, matches, lines, says = case
    file = root / OWN / "note"
    file.write_bytes(content.encode())
    with pytest.raises(EditMismatchError, match=says) as caught:
        workspace.edit_file(f"{OWN}/note", old, "new", SIZE_MAX)
    assert (caught.value.matches, caught.value.lines) == (matches, lines)
    assert file.read_bytes() == content.encode()


@pytest.mark.parametrize(("old", "new"), [("", "x"), ("same", "same"), ("\ud800", "x"), ("x", "\udfff")])
def test_an_edit_that_makes_no_sense_is_refused(workspace, root, old, new):
    (root / OWN / "note").write_text("same x")
    with pytest.raises(WorkspaceError):
        workspace.edit_file(f"{OWN}/note", old, new, SIZE_MAX)
    assert (root / OWN / "note").read_text() == "same x"


def test_an_edit_of_a_missing_file_makes_none(workspace, root):
    with pytest.raises(FileMissingError):
        workspace.edit_file(f"{OWN}/missing", "a", "b", SIZE_MAX)
    assert list((root / OWN).iterdir()) == []


def test_an_edit_holds_to_the_limit_before_and_after(workspace, root):
    (root / OWN / "note").write_text("0123456789")
    for limit, new in ((9, "y"), (11, "yyy")):
        with pytest.raises(FileTooLargeError):
            workspace.edit_file(f"{OWN}/note", "5", new, limit)
    assert workspace.edit_file(f"{OWN}/note", "5", "yy", 11).size_bytes == 11


def test_bytes_around_an_edit_stay_as_they_are(workspace, root):
    (root / OWN / "latin").write_bytes(b"\xff\xfe old \x80")
    workspace.edit_file(f"{OWN}/latin", "old", "näw", SIZE_MAX)
    assert (root / OWN / "latin").read_bytes() == b"\xff\xfe n\xc3\xa4w \x80"


def test_edits_at_the_same_time_all_hold(root):
    count = 24
    (root / OWN / "list").write_text("".join(f"item {number};\n" for number in range(count)))
    with standing(root) as one, standing(root) as other:

        def edit(number):
            workspace = one if number % 2 else other
            workspace.edit_file(f"{OWN}/list", f"item {number};", f"done {number};", SIZE_MAX)

        threads = [threading.Thread(target=edit, args=(number,)) for number in range(count)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert (root / OWN / "list").read_text() == "".join(f"done {number};\n" for number in range(count))


# Handles


def test_no_handle_is_left_open(root):
    before = open_handles()
    with standing(root) as workspace:
        workspace.write_file(f"{OWN}/a/b/c", b"needle", SIZE_MAX)
        workspace.edit_file(f"{OWN}/a/b/c", "needle", "thread", SIZE_MAX)
        workspace.search("thread", None, None, 100, 5)
        workspace.list_files(None, "**/c", 0)
        workspace.search("e", None, None, 1, 5)
        for path in ("workspaces/.state/x", "nowhere", f"{OWN}/a/b/c/d", f"{OWN}/missing/x"):
            with pytest.raises(WorkspaceError):
                workspace.read_file(path, SIZE_MAX)
    assert open_handles() == before


def test_a_closed_workspace_says_so_and_closes_twice(root):
    before = open_handles()
    workspace = standing(root)
    workspace.list_files("platform", None, 10)
    workspace.close()
    workspace.close()
    assert open_handles() == before
    with pytest.raises(WorkspaceError, match="closed"):
        workspace.read_file("platform/constitution.md", SIZE_MAX)


def test_closing_waits_for_what_runs(root):
    """Handles freed under a running operation could be another file's by the time that they are used."""
    workspace = standing(root)
    entered, leave = threading.Event(), threading.Event()

    def slow(directory, path, flags):
        entered.set()
        assert leave.wait(10)
        return walk_beneath(directory, path, flags)

    workspace = Workspace(root, [Mount("platform", write=False)], Protected(root), open_beneath=slow)
    read = []
    thread = threading.Thread(
        target=lambda: read.append(workspace.read_file("platform/constitution.md", 100).text)
    )
    thread.start()
    assert entered.wait(10)
    workspace.close()
    leave.set()
    thread.join()
    assert read == ["We the people.\n"]


# Ordinary work


ORDINARY = [
    "README.md",
    "notes/2026-11-22.md",
    "a b/c d.txt",
    "-rf",
    "--help",
    ".hidden",
    "..almost",
    "...",
    "naïve/café.md",
    "日本語/メモ.txt",
    "emoji/🦊.md",
    "quotes/'single' \"double\".txt",
    "shell/$(whoami).txt",
    "shell/`id`; rm.txt",
    "star/*.txt",
    "question/what?.txt",
    "brackets/[1].txt",
    "braces/{a,b}.txt",
    "tilde/~",
    "~",
    "percent/100%.txt",
    "encoded/%2e%2e/file",
    "back\\slash.txt",
    "colon/12:30.txt",
    "hash/#tag.md",
    "at/@someone.md",
    "plus/a+b.txt",
    "equals/a=b.txt",
    "comma/a,b.txt",
    "caps/README.MD",
    "dots/archive.tar.gz",
    "deep/" + "/".join("abcdefghijklmnopqrst") + "/end.txt",
    "long/" + "n" * 255,
    "accents/e\u0301.txt",
    "right-to-left/שלום.txt",
    "zero-width/a\u200bb.txt",
    "nbsp/a\u00a0b.txt",
    "full-width-dots/．．/x",
    "con",
    "nul",
    "state/.state",
    ".state",
    "platform/constitution.md",
    "workspaces/.state/file",
    "mandates/reed.md",
    "roster.yaml",
    "trailing.",
    "trailing ",
    " leading",
    "1",
    "null.json",
    "__init__.py",
]


@pytest.mark.parametrize("name", ORDINARY)
def test_ordinary_files_are_written_found_edited_and_read(workspace, name):
    path = f"{OWN}/{name}"
    assert workspace.write_file(path, b"draft of needle\n", SIZE_MAX).created
    assert workspace.edit_file(path, "draft", "copy", SIZE_MAX).line == 1
    assert workspace.read_file(path, SIZE_MAX).text == "copy of needle\n"
    assert len(workspace.search("needle", OWN, None, 100, 5).lines) == 1
    assert workspace.list_files(OWN, "**/*", 200).entries[-1].startswith(f"{OWN}/")


# Mounts and globs


@pytest.mark.parametrize("path", ["", "/", "/etc", "a/", "a//b", ".", "..", "a/../b", "a/./b", "a\0b"])
def test_a_mount_is_a_plain_relative_folder(path):
    with pytest.raises(ValueError, match="no mount"):
        Mount(path, write=False)


def test_mounts_are_chosen_by_whole_names():
    mounts = [
        Mount("a", write=True),
        Mount("a/b", write=False),
        Mount("a/b", write=True),
        Mount("ab", write=True),
    ]
    assert mount_of(mounts, ("a", "x")) == mounts[0]
    assert mount_of(mounts, ("a", "b", "c")) == mounts[1]
    assert mount_of(reversed(mounts), ("a", "b")) == mounts[1]
    assert mount_of(mounts, ("abc",)) is None
    assert mount_of(mounts, ()) is None
    assert mounts_beneath(mounts, ("a",)) == (mounts[1], mounts[2])


@pytest.mark.parametrize(
    ("pattern", "path", "matches"),
    [
        ("*.md", "a/b/c.md", True),
        ("a/*.md", "a/b/c.md", False),
        ("a/**/*.md", "a/c.md", True),
        ("a/**/*.md", "a/x/y/c.md", True),
        ("**", "a/b", True),
        ("/a/b", "a/b", True),
        ("./a/b", "a/b", True),
        ("*.{py,md}", "x.py", True),
        ("*.{py,md}", "x.txt", False),
        ("{a,{b,c}}.md", "c.md", True),
        ("{x}.md", "{x}.md", True),
        ("[ab].md", "b.md", True),
        ("[!ab].md", "b.md", False),
        ("?.md", "ab.md", False),
        ("A.md", "a.md", False),
        ("a/**/b/**/c", "a/b/x/b/y/c", True),
    ],
)
def test_globs(pattern, path, matches):
    assert Glob(pattern).matches(path.split("/")) is matches


@given(
    pattern=st.text("ab*?[]!-{},/\\^.", min_size=1, max_size=30), path=st.text("ab/", min_size=1, max_size=30)
)
def test_no_pattern_breaks_a_glob(pattern, path):
    try:
        glob = Glob(pattern)
    except ValueError:
        return
    assert glob.matches(path.split("/")) in {True, False}


def test_a_pattern_made_to_stall_does_not():
    assert not Glob("*a" * 100 + "b").matches(["a" * 250])
    assert not Glob("**/a/" * 100 + "b").matches(["a"] * 250)


@pytest.mark.parametrize("pattern", ["", "x" * 600, "{a,b}" * 20])
def test_a_pattern_that_is_too_much_is_refused(workspace, pattern):
    with pytest.raises(WorkspaceError, match="pattern"):
        workspace.list_files("platform", pattern, 10)


def test_the_root_itself_may_be_missing_entirely(tmp_path):
    gone = Path(tmp_path / "gone")
    with Workspace(gone, [Mount("platform", write=False)], Protected(gone)) as workspace:
        assert workspace.list_files("platform", None, 10).entries == ()
