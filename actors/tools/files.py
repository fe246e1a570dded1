"""The file tools: read_file, list_files, search, write_file, edit_file (section 7 of the specification).

What a path reaches is the workspace's affair; here are the schemas, the limits and the words for the model. File
operations block, so they run in worker threads with a limit of their own: a slow disk or a long search delays other
file tools, never the ledger. A read that is cancelled is left behind and ends by itself; a write is waited for, since
what it did must be known.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, ClassVar, Final

import trio

from actors.runtime.base import ToolDefinition
from actors.tools.base import Tool, ToolContext, ToolOutcome
from store.workspace import Workspace, WorkspaceError

READ_BYTES_MAX: Final = 50 * 1024
ENTRIES_MAX: Final = 200
MATCHES_MAX: Final = 100
SEARCH_TIME_S: Final = 10.0
FILE_BYTES_MAX: Final = 4 * 1024 * 1024
"""The largest file that is written or edited."""

THREADS_MAX: Final = 8
"""File operations at the same time, over all sessions."""

_threads: trio.lowlevel.RunVar[trio.CapacityLimiter] = trio.lowlevel.RunVar("file tool threads")


def _path(what: str) -> dict[str, Any]:
    return {
        "type": "string",
        "description": f"{what}, relative to the root, like the paths that list_files gives.",
    }


def _schema(properties: dict[str, Any], *required: str) -> dict[str, Any]:
    schema: dict[str, Any] = {"type": "object", "properties": properties, "additionalProperties": False}
    if required:
        schema["required"] = list(required)
    return schema


class ReadFile(Tool):
    """The text of a file."""

    definition: ClassVar = ToolDefinition(
        "read_file",
        "Read a text file. At most the first 50 KB are shown; a file that is longer says so at its end, and search "
        "finds a place in the rest. Names are case sensitive.",
        _schema({"path": {**_path("The file"), "minLength": 1}}, "path"),
    )
    path_arguments: ClassVar = {"path": "read"}

    async def run(self, arguments: dict[str, Any], context: ToolContext) -> ToolOutcome:
        """Return the text."""
        path: str = arguments["path"]
        return await _reading(context, lambda workspace: _read(workspace, path))


class ListFiles(Tool):
    """The files of a folder."""

    definition: ClassVar = ToolDefinition(
        "list_files",
        "List what is in a folder; without a path, the folders that you have. With a pattern, list everything beneath "
        "that matches: *.md finds names at every depth, notes/**/*.md goes by the path. At most 200 entries; a "
        "folder ends in a slash.",
        _schema(
            {
                "path": _path("The folder"),
                "pattern": {
                    "type": "string",
                    "description": "A glob: * and ? within a name, ** for any folders, {a,b} for either.",
                },
            },
        ),
    )
    path_arguments: ClassVar = {"path": "read"}

    async def run(self, arguments: dict[str, Any], context: ToolContext) -> ToolOutcome:
        """Return one path a line."""
        # Models fill in what they do not need with an empty text.
        path: str | None = arguments.get("path") or None
        pattern: str | None = arguments.get("pattern") or None
        return await _reading(context, lambda workspace: _list(workspace, path, pattern))


class Search(Tool):
    """The lines that hold a text."""

    definition: ClassVar = ToolDefinition(
        "search",
        "Find the lines that hold a text, in a file, in a folder and all beneath it, or, without a path, in all your "
        "folders. The query is plain text, not an expression; without capitals it matches in any case. At most 100 "
        "matches, each as path:line: text.",
        _schema(
            {
                "query": {
                    "type": "string",
                    "minLength": 1,
                    "description": "The text to find, within one line.",
                },
                "path": _path("A file or folder to search in"),
                "glob": {
                    "type": "string",
                    "description": "Search only files whose name or path matches, like *.md.",
                },
            },
            "query",
        ),
    )
    path_arguments: ClassVar = {"path": "read"}

    async def run(self, arguments: dict[str, Any], context: ToolContext) -> ToolOutcome:
        """Return one match a line; no matches are a result."""
        query: str = arguments["query"]
        path: str | None = arguments.get("path") or None
        glob: str | None = arguments.get("glob") or None
        return await _reading(context, lambda workspace: _search(workspace, query, path, glob))


class WriteFile(Tool):
    """A file written whole."""

    definition: ClassVar = ToolDefinition(
        "write_file",
        "Write a text file whole: makes it, with the folders on the way, or replaces what it held. To change a part "
        "of a file use edit_file.",
        _schema(
            {
                "path": {**_path("The file"), "minLength": 1},
                "content": {"type": "string", "description": "All that the file is to hold."},
            },
            "path",
            "content",
        ),
    )
    path_arguments: ClassVar = {"path": "write"}

    async def run(self, arguments: dict[str, Any], context: ToolContext) -> ToolOutcome:
        """Write it and say what was done."""
        path, content = str(arguments["path"]), str(arguments["content"])
        return await _writing(context, lambda workspace: _write(workspace, path, content))


class EditFile(Tool):
    """A place in a file changed."""

    definition: ClassVar = ToolDefinition(
        "edit_file",
        "Replace one piece of text in a file by another. The old text must occur in the file exactly once, white "
        "space and line breaks included: read the file first, and take in the lines around where it is not unique.",
        _schema(
            {
                "path": {**_path("The file"), "minLength": 1},
                "old": {
                    "type": "string",
                    "minLength": 1,
                    "description": "The text to replace, exactly as it stands.",
                },
                "new": {
                    "type": "string",
                    "description": "The text to put there; empty to take the old text out.",
                },
            },
            "path",
            "old",
            "new",
        ),
    )
    path_arguments: ClassVar = {"path": "write"}

    async def run(self, arguments: dict[str, Any], context: ToolContext) -> ToolOutcome:
        """Change it and say where."""
        path, old, new = str(arguments["path"]), str(arguments["old"]), str(arguments["new"])
        return await _writing(context, lambda workspace: _edit(workspace, path, old, new))


async def _reading(context: ToolContext, work: Callable[[Workspace], str]) -> ToolOutcome:
    return await _outcome(context, work, abandon_on_cancel=True)


async def _writing(context: ToolContext, work: Callable[[Workspace], str]) -> ToolOutcome:
    return await _outcome(context, work, abandon_on_cancel=False)


async def _outcome(
    context: ToolContext,
    work: Callable[[Workspace], str],
    *,
    abandon_on_cancel: bool,
) -> ToolOutcome:
    """Run blocking work in a thread; what the workspace refuses is an outcome with its reason."""
    workspace = context.workspace  # the one in force now: the turn's may become narrower while this one works
    try:
        limiter = _threads.get()
    except LookupError:
        limiter = trio.CapacityLimiter(THREADS_MAX)
        _threads.set(limiter)
    try:
        text = await trio.to_thread.run_sync(
            work, workspace, abandon_on_cancel=abandon_on_cancel, limiter=limiter
        )
    except WorkspaceError as error:
        return ToolOutcome(error.reason, is_error=True)
    return ToolOutcome(text)


def _read(workspace: Workspace, path: str) -> str:
    file = workspace.read_file(path, READ_BYTES_MAX)
    if not file.size_bytes:
        return "The file is empty."
    if not file.truncated:
        return file.text
    return (
        f"{file.text}\n[cut here: {READ_BYTES_MAX} of {file.size_bytes} bytes are shown; search finds a place in "
        "the rest]"
    )


def _list(workspace: Workspace, path: str | None, pattern: str | None) -> str:
    listing = workspace.list_files(path, pattern, ENTRIES_MAX)
    access = {
        f"{mount.path}/": "read and write" if mount.write else "read only" for mount in workspace.mounts
    }
    lines = [f"{entry} ({access[entry]})" if entry in access else entry for entry in listing.entries]
    if listing.truncated:
        lines.append(
            f"[there are more than these {len(listing.entries)}: name a folder or give a narrower pattern]"
        )
    if lines:
        return "\n".join(lines)
    if pattern is not None:
        return "Nothing matches the pattern."
    return "The folder is empty." if path is not None else "You have no folders in this session."


def _search(workspace: Workspace, query: str, path: str | None, glob: str | None) -> str:
    matches = workspace.search(query, path, glob, MATCHES_MAX, SEARCH_TIME_S)
    lines = list(matches.lines) or ["No matches."]
    if matches.stopped is not None:
        lines.append(f"[{matches.stopped}: name a folder, give a glob or a longer query]")
    if matches.unread:
        lines.append(f"[{matches.unread} files or folders could not be opened, or are too large to search]")
    return "\n".join(lines)


def _write(workspace: Workspace, path: str, content: str) -> str:
    try:
        data = content.encode()
    except UnicodeEncodeError as error:
        raise WorkspaceError(
            path,
            "content holds half of a surrogate pair, which no UTF-8 file can; write the character itself.",
        ) from error
    written = workspace.write_file(path, data, FILE_BYTES_MAX)
    done = "Made" if written.created else "Replaced"
    return f"{done} {written.path} ({written.size_bytes} bytes)."


def _edit(workspace: Workspace, path: str, old: str, new: str) -> str:
    edited = workspace.edit_file(path, old, new, FILE_BYTES_MAX)
    return f"Changed {edited.path} at line {edited.line}; it now has {edited.size_bytes} bytes."
