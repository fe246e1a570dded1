"""The board: one line a post, read by everybody (section 9 of the specification)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

import apsw

TEXT_CHARACTERS_MAX: Final = 2_000


@dataclass(frozen=True, slots=True)
class Post:
    """One line on the board."""

    agent: str
    text: str
    posted_at: str

    @property
    def line(self) -> str:
        """The post as it is shown: `[agent] text`."""
        return f"[{self.agent}] {self.text}"


def fold(text: str) -> str:
    """Return the text as one line: every run of white space and control characters becomes one space."""
    return " ".join("".join(c if c.isprintable() else " " for c in text).split())


@dataclass(frozen=True, slots=True)
class PostBoard:
    """Put a line on the board."""

    post: Post

    def apply(self, database: apsw.Connection) -> None:
        """Insert the row."""
        database.execute(
            "INSERT INTO board (agent, text, posted_at) VALUES (?,?,?)",
            (self.post.agent, self.post.text, self.post.posted_at),
        )


def last_posts(database: apsw.Connection, lines: int) -> list[Post]:
    """Return the last posts, oldest first."""
    rows = database.execute(
        # As a number: SQLite compiles a statement anew each time that its limit is bound.
        f"SELECT agent, text, posted_at FROM board ORDER BY number DESC LIMIT {lines:d}"
    ).fetchall()
    return [Post(*row) for row in reversed(rows)]
