"""The clients: each keeps a session busy over every life of the daemon and writes down what it was told."""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Final

import trio

from actors.client import Client, DisconnectedError, Reply, UnreachableError, connect
from protocol.errors import RequestError
from tests.chaos.record import Asked, Kept, Mailed, Posted, Stream, Told
from tests.support.daemon import Daemon

PATIENCE_S: Final = 60.0
"""How long a living daemon may take for any answer on a machine that has other work."""

AGENTS: Final = (
    "kavi",
    "lina",
    "veda",
    "rune",
    "calli",
    "reed",
    "cora",
    "dwara",
    "scout",
    "naga",
    "lumen",
    "via",
)
GUEST_EVERY: Final = 7
ADDRESSES: Final = (*AGENTS, "triage", "infrastructure-steward", "tag:security", "tag:operations")
PROBE: Final = {"name": "chaos_probe", "description": "Probe.", "input_schema": {"type": "object"}}


class DroppedError(Exception):
    """The client let its connection go, as a network does."""


@dataclass(slots=True)
class Watch:
    """Who waits for a moment: `expect` names what clients are told at it, `seen` is set at its `count`-th time."""

    expect: str = ""
    count: int = 0
    reached: Callable[[], None] | None = None

    def note(self, what: str) -> None:
        """Count what a client was told just now."""
        if what == self.expect and self.reached is not None:
            self.count -= 1
            if self.count <= 0:
                reached, self.reached = self.reached, None
                reached()


@dataclass(slots=True)
class Load:
    """What all clients share: the record, the watch for a moment, and names that never repeat."""

    told: Told
    watch: Watch = field(default_factory=Watch)
    living: bool = True
    numbers: int = 0

    def name(self, kind: str) -> str:
        """Return a new word."""
        self.numbers += 1
        return f"{kind}-{self.numbers}"


@dataclass(slots=True)
class Visitor:
    """One client with one session; `rng` alone decides what it does. Every seventh proves nothing: a guest."""

    number: int
    load: Load
    rng: random.Random
    kept: Kept = field(init=False)
    _open: list[Asked] = field(default_factory=list)

    def __post_init__(self) -> None:
        self._choose_session(0)

    def _choose_session(self, attempt: int) -> None:
        is_guest = self.number % GUEST_EVERY == GUEST_EVERY - 1
        agent = f"visitor-{self.number}" if is_guest else AGENTS[self.number % len(AGENTS)]
        self.kept = Kept(f"{agent}:chaos:{self.number}.{attempt}", agent, is_guest)
        self.load.told.sessions[self.kept.key] = self.kept

    # --- one life of the daemon

    async def live(self, house: Daemon) -> None:
        """Do one thing after another until the daemon is gone; what was cut off is taken up first."""
        while self.load.living:
            try:
                async with connect(house.url, None if self.kept.is_guest else house.token) as client:
                    await self._take_part(client)
            except DroppedError:
                continue
            except (DisconnectedError, UnreachableError, OSError, trio.BrokenResourceError):
                return
            except RequestError as error:
                if error.code != "shutting_down":
                    self.load.told.fault("no fault is told", f"{self.kept.key}: {error}")
                return

    async def _take_part(self, client: Client) -> None:
        await self._init(client)
        for asked in list(self._open):
            await self._settle(client, asked)
        while self.load.living:
            await self._do_something(client)

    async def _call(self, client: Client, method: str, **params: Any) -> dict[str, Any]:
        with patience(self.load, f"{method} in {self.kept.key}"):
            result = await client.call(method, params)
            self.load.watch.note(method)
            return result
        raise DroppedError

    @property
    def _proof(self) -> dict[str, Any]:
        return {"session_token": self.kept.opened[-1]["session_token"]} if self.kept.is_guest else {}

    async def _init(self, client: Client) -> None:
        kept = self.kept
        kept.is_closed = False
        known = self._proof if kept.opened else {}
        try:
            answer = await self._call(
                client, "session.init", agent_id=kept.agent, session_key=kept.key, **known
            )
        except RequestError as error:
            if error.code == "unauthorized" and kept.is_guest and not kept.opened:
                # The session was made and its token never arrived: it is nobody's now.
                self._choose_session(self.rng.randrange(1, 10**6))
                raise DroppedError from error
            raise
        kept.opened.append(answer)

    async def _do_something(self, client: Client) -> None:
        dice = self.rng.random()
        if dice < 0.68:
            await self._turn(client, self._think_of_a_turn())
        elif dice < 0.76:
            # Two at once: one waits in line behind the other.
            async with trio.open_nursery() as nursery:
                for _ in range(2):
                    nursery.start_soon(self._turn_in_line, client, self._think_of_a_turn())
            if any(asked.is_open for asked in self._open):
                raise DroppedError
        elif dice < 0.86 and not self.kept.is_guest:
            await self._mail(client)
        elif dice < 0.94 and not self.kept.is_guest:
            post = Posted(f"news {self.load.name('post')} of {self.kept.agent}")
            self.load.told.posts.append(post)
            post.line = (await self._call(client, "board.post", text=post.text))["line"]
        elif dice < 0.97:
            await self._call(client, "session.close", session_key=self.kept.key, **self._proof)
            self.kept.closed += 1
            self.kept.is_closed = True
            if self.rng.random() < 0.5:
                await trio.sleep(self.rng.uniform(0, 0.3))
            await self._init(client)
        else:
            await self._call(client, "session.status", session_key=self.kept.key, **self._proof)

    async def _mail(self, client: Client) -> None:
        mail = Mailed(self.load.name("mail"), self.rng.choice(ADDRESSES))
        self.load.told.mails.append(mail)
        words = self.rng.choice(
            (
                f"note {mail.token} for you",
                f"post: got {mail.token} here",
                f"say {mail.token} it is",
                f"slow 5 10ms\n{mail.token}",
            )
        )
        if self.rng.random() < 0.05:
            words = (
                f"mail {self.rng.choice(AGENTS)} about {mail.token}: reply to this: ping {mail.token} pong"
            )
        answer = await self._call(client, "mail.send", to=mail.to, subject=f"about {mail.token}", body=words)
        mail.id = answer["id"]

    # --- turns

    def _think_of_a_turn(self) -> Asked:
        rng, token = self.rng, self.load.name("ask")
        asked = Asked(self.kept.key, token, "", token if rng.random() < 0.7 else None)
        folder = (
            f"guests/{self.kept.opened[-1]['session_id'][:16]}"
            if self.kept.is_guest
            else f"agents/{self.kept.agent}"
        )
        words = ""
        match rng.randrange(12):
            case 0 | 1:
                asked.words = rng.randint(1, 30)
                words = f"slow {asked.words} {rng.randint(1, 20)}ms"
            case 2 | 3:
                asked.path, asked.content = f"workspaces/{folder}/{token}.txt", f"{token} was here"
                words = f"write {asked.path}: {asked.content}"
            case 4:
                words = f"read platform/index.md and also post: {token} has read it"
            case 5:
                words = f"mail {rng.choice(AGENTS)} about {token}: note {token} by an agent"
            case 6:
                words = f"list platform and also read platform/README.md then say {token} is done"
            case 7:
                asked.words = 4
                words = f"read platform/index.md then slow 4 {rng.randint(1, 30)}ms then check mail"
            case 8:
                words = f"spawn: say {token} from below"
            case 9:
                words = f'think about {token} then tool chaos_probe {{"token": "{token}"}}'
            case 10:
                words = rng.choice(("fail", "fail cut", f"say {token}", "read platform/nothing.md"))
            case _:
                words = f"post: {token} then mail {rng.choice(AGENTS)} about {token}: say {token} then list workspaces"
        asked.message = f"[[{token}]]\n{words}"
        self.load.told.asked.append(asked)
        self._open.append(asked)
        return asked

    def _request(self, asked: Asked) -> dict[str, Any]:
        params: dict[str, Any] = {"session_key": asked.session, "message": asked.message, **self._proof}
        if asked.key is not None:
            params["idempotency_key"] = asked.key
        if PROBE["name"] in asked.message:
            params |= {"tools": [PROBE], "execute": "client"}
        return params

    async def _turn(self, client: Client, asked: Asked) -> None:
        """Run a turn, sometimes cancelled or left in the middle; raises what ended the connection."""
        drop_at = self.rng.randint(1, 30) if self.rng.random() < 0.1 else None
        async with trio.open_nursery() as nursery:
            if self.rng.random() < 0.07:
                nursery.start_soon(self._cancel_later, client, self.rng.uniform(0, 0.3))
            lost = await self._follow(client, asked, client.turn(self._request(asked)), 0, drop_at)
            nursery.cancel_scope.cancel()
        if lost is not None:
            raise lost

    async def _turn_in_line(self, client: Client, asked: Asked) -> None:
        await self._follow(client, asked, client.turn(self._request(asked)), 0, None)

    async def _cancel_later(self, client: Client, delay_s: float) -> None:
        await trio.sleep(delay_s)
        try:
            await self._call(client, "session.cancel", session_key=self.kept.key, **self._proof)
        except (RequestError, DisconnectedError, DroppedError):
            return

    async def _follow(
        self, client: Client, asked: Asked, reply: Reply, from_seq: int, drop_at: int | None
    ) -> Exception | None:
        """Write down what comes; return what ended the connection before the turn's end, or None."""
        stream = Stream(from_seq)
        asked.streams.append(stream)
        try:
            with patience(self.load, f"the turn {asked.token} in {asked.session}"):
                async for event in reply:
                    stream.events.append(event)
                    self.load.watch.note(event["type"])
                    if event["type"] == "tool_execute":
                        await self._answer_call(client, event)
                    if drop_at is not None and len(stream.events) >= drop_at:
                        return DroppedError()
                stream.result = reply.result
        except RequestError as error:
            if error.code == "shutting_down" and not _tells_the_end(stream):
                # Nobody waits for it any more; the turn itself, if it began, is recorded when the daemon ends.
                await trio.sleep(0.05)
                return DroppedError()
            stream.refusal = (error.code, error.message)
        except (DisconnectedError, DroppedError) as error:
            return error
        if stream.has_ended:
            self._end(asked)
            return None
        return DroppedError()

    async def _answer_call(self, client: Client, event: dict[str, Any]) -> None:
        try:
            await self._call(
                client,
                "tool.result",
                session_key=self.kept.key,
                id=event["id"],
                content="probed",
                **self._proof,
            )
        except RequestError:
            return  # cancelled meanwhile

    def _end(self, asked: Asked) -> None:
        asked.is_open = False
        if asked in self._open:
            self._open.remove(asked)

    # --- what was cut off

    async def _settle(self, client: Client, asked: Asked) -> None:
        """Learn how a turn ended whose connection was lost: ask for its events, for itself again, or for both."""
        seen = asked.known
        if asked.turn_id is None and asked.key is None:
            self._end(asked)  # whether it ran, nobody can say
            return
        if asked.turn_id is None:
            # Asked for again with its key, it is the same turn; if it never ran, it runs now.
            await self._again(client, asked, client.turn(self._request(asked)), 0)
            return
        where = {"session_key": asked.session, "turn_id": asked.turn_id, **self._proof}
        if self.rng.random() < 0.7:
            after = len(seen) if sorted(seen) == list(range(len(seen))) else 0
            await self._again(client, asked, client.resume({**where, "from_seq": after}), after)
        if asked.key is not None and self.rng.random() < 0.5:
            await self._again(client, asked, client.turn(self._request(asked)), 0)
        await self._again(client, asked, client.resume({**where, "from_seq": 0}), 0)

    async def _again(self, client: Client, asked: Asked, reply: Reply, from_seq: int) -> None:
        asked.is_open = True
        lost = await self._follow(client, asked, reply, from_seq, None)
        if lost is not None:
            if asked not in self._open:
                self._open.append(asked)
            raise lost


def _tells_the_end(stream: Stream) -> bool:
    return bool(stream.events) and stream.events[-1]["type"] == "error"


class patience:  # noqa: N801 - it is used like a function
    """Note a fault where the daemon lives and gives no answer in time."""

    def __init__(self, load: Load, what: str) -> None:
        self._load, self._what = load, what
        self._scope = trio.move_on_after(PATIENCE_S)

    def __enter__(self) -> None:
        """Begin to wait."""
        self._scope.__enter__()

    def __exit__(self, *exc_info: object) -> bool | None:
        """End the waiting."""
        swallowed = self._scope.__exit__(*exc_info)
        if self._scope.cancelled_caught:
            self._load.told.fault("every request is answered", f"no answer to {self._what} in {PATIENCE_S} s")
        return swallowed
