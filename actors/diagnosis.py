"""What the daemon needs of a machine and a root, looked at without changing anything; each finding has its fix."""

from __future__ import annotations

import errno
import os
import shutil
import socket
import stat
import subprocess
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from importlib.metadata import packages_distributions
from importlib.util import find_spec
from pathlib import Path
from typing import Final, Literal
from urllib.parse import urlsplit

import apsw

from actors.runtime.anthropic_environment import read_environment
from protocol.errors import AgentRunnerError, ConfigurationError
from store.content import MANDATES, PROSE, ROSTER, RULES, ContentError, load_content
from store.database import OutdatedError, open_reader
from store.figures import database_bytes
from store.keeper import find_keeper
from store.kernel_features import has_openat2, landlock_abi
from store.root import Root

State = Literal["ok", "warning", "failed"]

PYTHON_MIN: Final = (3, 11)
SQLITE_MIN: Final = (3, 37, 0)
"""The first with STRICT tables."""

FREE_BYTES_MIN: Final = 64 * 1024 * 1024
FREE_BYTES_GOOD: Final = 1024 * 1024 * 1024
NAMES: Final = ("actors", "protocol", "store")
"""The packages that this distribution brings: no other may bring one of the same name."""


@dataclass(frozen=True, slots=True)
class Finding:
    """One line: what was looked at, how it is, and what to do where that is not `ok`."""

    name: str
    state: State
    text: str
    fix: str | None = None


def _ok(name: str, text: str) -> Finding:
    return Finding(name, "ok", text)


def _failed(name: str, text: str, fix: str) -> Finding:
    return Finding(name, "failed", text, fix)


def _warning(name: str, text: str, fix: str) -> Finding:
    return Finding(name, "warning", text, fix)


@dataclass(frozen=True, slots=True)
class Examined:
    """What is looked at: a root, the address that the daemon would have, and the environment that it would run in."""

    root: Root
    host: str
    port: int
    environment: Mapping[str, str]


def diagnose(examined: Examined) -> Iterator[Finding]:
    """Yield a finding for each thing that matters; a look that itself fails is a finding too."""
    for look in LOOKS:
        try:
            yield from look(examined)
        except (AgentRunnerError, OSError, apsw.Error) as error:
            name = look.__name__.strip("_").replace("_", " ")
            yield _failed(name, f"cannot be looked at: {error}", "Mend that first, then run this again.")


# --- the machine


def _python(_examined: Examined) -> Iterator[Finding]:
    found = ".".join(map(str, sys.version_info[:3]))
    if sys.version_info[:2] >= PYTHON_MIN:
        yield _ok("python", f"{found} ({sys.executable})")
    else:
        wanted = ".".join(map(str, PYTHON_MIN))
        yield _failed("python", found, f"Install Python {wanted} or newer and make the environment with it.")


def _sqlite(_examined: Examined) -> Iterator[Finding]:
    version = apsw.sqlite_lib_version()
    fix = "Install a newer apsw in this environment: pip install -U apsw"
    if tuple(int(part) for part in version.split(".")[:3]) < SQLITE_MIN:
        yield _failed("sqlite", f"{version}, older than {'.'.join(map(str, SQLITE_MIN))}", fix)
        return
    try:
        database = apsw.Connection(":memory:")
        database.execute("CREATE TABLE t (a TEXT PRIMARY KEY) STRICT, WITHOUT ROWID")
        database.execute("SELECT json_extract('{\"a\": 1}', '$.a')").fetchall()
        database.close()
    except apsw.Error as error:
        yield _failed("sqlite", f"{version} lacks what is needed: {error}", fix)
        return
    if "THREADSAFE=0" in apsw.compile_options:
        yield _failed("sqlite", f"{version} was built without threads", fix)
        return
    yield _ok("sqlite", f"{version} (strict tables, JSON, threads)")


def _openat2(_examined: Examined) -> Iterator[Finding]:
    if has_openat2():
        yield _ok("openat2", "the kernel keeps paths inside their folders")
    else:
        yield _warning(
            "openat2",
            "this kernel does not offer it; paths are walked name by name instead, which is slower",
            "Use Linux 5.6 or newer, or a container profile that allows openat2.",
        )


def _landlock(_examined: Examined) -> Iterator[Finding]:
    abi = landlock_abi()
    if abi:
        yield _ok("landlock", f"ABI {abi}")
    else:
        yield _warning(
            "landlock",
            "this kernel does not offer it: one containment less around commands of agents",
            "Use Linux 5.13 or newer, with landlock among `lsm=` at boot.",
        )


def _bwrap(_examined: Examined) -> Iterator[Finding]:
    path = shutil.which("bwrap")
    fix = "Install bubblewrap, for instance: apt install bubblewrap"
    if path is None:
        yield _warning(
            "bwrap", "not found; no shell tool runs without it (this version brings none yet)", fix
        )
        return
    done = subprocess.run([path, "--version"], capture_output=True, text=True, timeout=10, check=False)  # noqa: S603
    if done.returncode:
        yield _warning(
            "bwrap", f"{path} does not run; no shell tool runs without it (this version brings none yet)", fix
        )
    else:
        yield _ok("bwrap", f"{done.stdout.strip()} ({path})")


def _names(_examined: Examined) -> Iterator[Finding]:
    owners = packages_distributions()
    others = {name: sorted({owner for owner in owners.get(name, ()) if not _is_own(owner)}) for name in NAMES}
    places = {name: _places_beside(name) for name in NAMES}
    problems = [f"{name} is also brought by {', '.join(found)}" for name, found in others.items() if found]
    problems += [
        f"{name} is also at {', '.join(map(str, found))}"
        for name, found in places.items()
        if found and not others[name]
    ]
    if problems:
        yield _failed(
            "names", "; ".join(problems), "Install agent-runner in an environment of its own: python3 -m venv"
        )
    else:
        yield _ok("names", f"nothing else here is called {', '.join(NAMES)}")


def _is_own(distribution: str) -> bool:
    return distribution.lower().replace("_", "-") == "agent-runner"


def _places_beside(name: str) -> list[Path]:
    """Return where, on the path of imports, something else of a name lies than what is used."""
    spec = find_spec(name)
    used = None if spec is None or spec.origin is None else Path(spec.origin).resolve().parent
    found = []
    for entry in dict.fromkeys(sys.path):
        for place in (Path(entry or ".") / name, Path(entry or ".") / f"{name}.py"):
            is_code = (place / "__init__.py").is_file() if place.suffix != ".py" else place.is_file()
            if is_code and place.resolve() != used:
                found.append(place.absolute())
    return found


# --- the root


def _root(examined: Examined) -> Iterator[Finding]:
    root = examined.root
    missing = [path for path in (root.platform, root.state, root.token_file) if not path.exists()]
    if missing:
        yield _failed(
            "root",
            f"{root.path} is not laid out: {', '.join(str(path.relative_to(root.path)) for path in missing)} "
            "is not there",
            f"Lay it out: agent-runner --root {root.path} init",
        )
    else:
        yield _ok("root", str(root.path))


def _content(examined: Examined) -> Iterator[Finding]:
    platform = examined.root.platform
    if not platform.is_dir():
        return
    try:
        content = load_content(platform)
    except ContentError as error:
        yield from (_failed(_part_of(one), f"{_where(one)}: {one.problem}", one.fix) for one in error.errors)
        return
    rules = len(content.constitution.tool_rules)
    yield _ok("constitution", f"{rules} rules, prose {content.constitution_hash[:16]}")
    standing = len(content.roster.standing())
    yield _ok("roster", f"{len(content.roster.identities)} identities, {standing} standing agents")
    yield _ok("mandates", f"{len(content.mandates)} load")


def _where(error: ConfigurationError) -> str:
    return error.path if error.line is None else f"{error.path}:{error.line}"


def _part_of(error: ConfigurationError) -> str:
    path = Path(error.path)
    if path.name in (PROSE, RULES):
        return "constitution"
    return (
        "mandates"
        if MANDATES in path.parts or "mandate" in error.problem
        else path.name.removesuffix(Path(ROSTER).suffix)
    )


def _modes(examined: Examined) -> Iterator[Finding]:
    root = examined.root
    secrets = [path for path in (root.token_file, root.keys / "sessions.key", root.database) if path.exists()]
    folders = [path for path in (root.state, root.keys) if path.exists()]
    problems = 0
    for path in (*folders, *secrets):
        status = path.stat()
        wanted = 0o700 if path in folders else 0o600
        if stat.S_IMODE(status.st_mode) & 0o077:
            problems += 1
            yield _failed(
                "modes",
                f"{path} is open to others ({stat.S_IMODE(status.st_mode):04o})",
                f"chmod {wanted:o} {path}",
            )
        elif status.st_uid != os.geteuid():
            problems += 1
            yield _warning(
                "modes",
                f"{path} belongs to another user (uid {status.st_uid})",
                "Run agent-runner as that user, or give the root to this one with chown -R.",
            )
    if not problems and secrets:
        yield _ok("modes", f"{len(secrets)} secrets are readable by their owner alone")


def _database(examined: Examined) -> Iterator[Finding]:
    path = examined.root.database
    if not path.exists():
        yield _ok("database", "none yet; the first start makes it")
        return
    try:
        database = open_reader(path)
        pages = database.pragma("page_count")
        database.close()
    except OutdatedError as error:
        yield _warning(
            "database",
            str(error),
            "The next start brings it up to date; make a backup first, if you may go back.",
        )
    except (AgentRunnerError, apsw.Error) as error:
        yield _failed(
            "database", str(error), "`agent-runner ledger verify` says how far it is whole; restore a backup."
        )
    else:
        yield _ok("database", f"{database_bytes(path):,} bytes, {pages:,} pages")


def _disk(examined: Examined) -> Iterator[Finding]:
    place = examined.root.path
    while not place.exists():
        place = place.parent
    free = shutil.disk_usage(place).free
    text = f"{free / 1024**3:.1f} GiB free at {place}"
    fix = "Free some space, or keep the root on another disk with --root."
    if free < FREE_BYTES_MIN:
        yield _failed("disk", text, fix)
    elif free < FREE_BYTES_GOOD:
        yield _warning("disk", text, fix)
    elif not os.access(place, os.W_OK):
        yield _failed(
            "disk", f"{place} cannot be written by this user", "Run this as its owner, or use --root."
        )
    else:
        yield _ok("disk", text)


# --- running


def _key(examined: Examined) -> Iterator[Finding]:
    environment = examined.environment
    backend = environment.get("AGENT_RUNNER_BACKEND") or "auto"
    if backend == "rehearsal" or (backend == "auto" and not environment.get("ANTHROPIC_API_KEY", "").strip()):
        yield _ok(
            "key", "none needed: the rehearsal backend asks no model (ANTHROPIC_API_KEY would change that)"
        )
        return
    try:
        connection, settings = read_environment(environment)
    except ConfigurationError as error:
        yield _failed("key", f"{error.path}: {error.problem}", error.fix)
    else:
        yield _ok("key", f"set, for {settings.model} at {connection.public_url}")


def _port(examined: Examined) -> Iterator[Finding]:
    keeper = find_keeper(examined.root) if examined.root.state.is_dir() else None
    if keeper is not None:
        runner = examined.root.read_runner()
        where = (
            "it is starting or ending" if runner is None else f"it listens at {urlsplit(runner.url).netloc}"
        )
        yield _ok("port", f"the daemon of this root runs (pid {keeper.pid}): {where}")
        return
    try:
        _bind(examined.host, examined.port)
    except OSError as error:
        if error.errno == errno.EADDRINUSE:
            text = f"{examined.port} of {examined.host} is taken by another program"
        else:
            text = f"{examined.port} of {examined.host} cannot be had: {error.strerror or error}"
        yield _failed(
            "port", text, "End that program, or choose another with `run --port` (0 picks a free one)."
        )
    else:
        yield _ok("port", f"{examined.port} of {examined.host} is free")


def _bind(host: str, port: int) -> None:
    """Bind as the gateway would; raises OSError where that cannot be."""
    for family, kind, protocol, _, address in socket.getaddrinfo(
        host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
    ):
        with socket.socket(family, kind, protocol) as bound:
            bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            if family == socket.AF_INET6:
                bound.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
            bound.bind(address)
            bound.listen(1)


LOOKS: Final[tuple[Callable[[Examined], Iterable[Finding]], ...]] = (
    _python,
    _sqlite,
    _openat2,
    _landlock,
    _bwrap,
    _names,
    _root,
    _content,
    _modes,
    _database,
    _disk,
    _key,
    _port,
)
"""What is looked at, in the order in which it is told."""
