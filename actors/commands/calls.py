"""Asking the running daemon: who it is, and one call with the operator's token."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import trio

from actors.client import Client, UnreachableError, connect
from actors.commands.environment import not_running
from store.root import Root


@asynccontextmanager
async def connect_to(root: Root) -> AsyncIterator[Client]:
    """Connect to the daemon that keeps the root, as its operator.

    Raises NotRunningError where none does, RootError where the token cannot be read.
    """
    runner = root.read_runner()
    if runner is None:
        raise not_running(root)
    token = root.read_token()
    try:
        async with connect(runner.url, token) as client:
            yield client
    except UnreachableError as error:
        raise not_running(root) from error


def ask(root: Root, method: str, params: dict[str, Any] | None = None) -> dict[str, Any]:
    """Return the daemon's result of one method; raises like `connect_to` and `Client.call`."""

    async def _ask() -> dict[str, Any]:
        async with connect_to(root) as client:
            return await client.call(method, params)

    return trio.run(_ask)
