"""The board: one line a post, oldest first."""

import apsw
import pytest

from store.board import Post, PostBoard, fold, last_posts
from tests.support.storage import at, commit


@pytest.mark.parametrize(
    ("text", "line"),
    [
        ("one line", "one line"),
        ("two\nlines\r\n and  more", "two lines and more"),
        ("\x1b[2Jcleared\x07", "[2Jcleared"),
        ("next\u0085line\u2028and\u2029paragraph", "next line and paragraph"),
        ("right\u202eto left", "right to left"),
        (" \n\t ", ""),
    ],
)
def test_a_post_is_one_line_without_control_characters(text: str, line: str):
    assert fold(text) == line
    assert fold(line) == line


def test_the_last_lines_come_oldest_first(database: apsw.Connection):
    for number in range(5):
        commit(database, PostBoard(Post("reed", f"line {number}", at(number))))
    assert [post.line for post in last_posts(database, 2)] == ["[reed] line 3", "[reed] line 4"]
    assert len(last_posts(database, 100)) == 5
