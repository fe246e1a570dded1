"""The content of platform/: found, read once, checked whole, and given out as typed objects."""

from __future__ import annotations

import os
import stat
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final, TypeVar

import msgspec

from protocol.canonical import blake3_hex, hash_of
from protocol.constitution import Constitution
from protocol.errors import ConfigurationError
from protocol.faults import Fault, constitution_faults
from protocol.roster import Roster, RosterFile, roster_faults
from store.strict_yaml import Node, Problems, parse_yaml
from store.typed_yaml import line_of, to_typed

SIZE_MAX: Final = 1024 * 1024
"""A content file larger than this many bytes is refused."""

PROSE: Final = "constitution.md"
RULES: Final = "constitution.yaml"
ROSTER: Final = "roster.yaml"
MANDATES: Final = "mandates"

Typed = TypeVar("Typed", bound=msgspec.Struct)


@dataclass(frozen=True)
class Content:
    """What is in force: one consistent reading of platform/.

    `constitution_hash`, `rules_hash` and `roster_hash` are BLAKE3 (64 lowercase hex characters) of the bytes of
    constitution.md, constitution.yaml and roster.yaml, `mandates_hash` that of the hashes of all mandates by id.
    `mandates` has the text of every identity that names a mandate and is not dead; `prose` is constitution.md.
    """

    constitution: Constitution
    constitution_hash: str
    rules_hash: str
    roster_hash: str
    mandates_hash: str
    roster: Roster
    mandates: dict[str, str]
    prose: str
    platform_dir: Path


class ContentError(ConfigurationError):
    """Content that does not load: the first error's fields, and all of them, file by file, in `errors`."""

    def __init__(self, errors: Sequence[ConfigurationError]) -> None:
        first = errors[0]
        super().__init__(first.path, first.line, first.problem, first.fix)
        self.errors = tuple(errors)


def shipped_platform() -> Path:
    """Return the content that comes with the code: a checkout's platform/, else the copy inside the installed package.

    Raises ConfigurationError where neither is there.
    """
    store = Path(__file__).resolve().parent
    for folder in (store.parent / "platform", store / "_platform"):
        if (folder / RULES).is_file():
            return folder
    raise ConfigurationError(
        str(store / "_platform"), None, "the shipped content is missing", "Install agent-runner again."
    )


def find_platform(root: Path | None = None) -> Path:
    """Return the platform/ of a root that has one, else the shipped content; raises like `shipped_platform`."""
    if root is not None and (root / "platform").is_dir():
        return root / "platform"
    return shipped_platform()


def load_content(platform_dir: Path, *, roster: bytes | None = None) -> Content:
    """Return the content of a platform/ folder; raises ContentError with everything that is wrong with it.

    `roster` is read in the place of roster.yaml where it is given: what the folder would hold with that file.
    """
    errors: list[ConfigurationError] = []
    prose = _read(platform_dir / PROSE, errors)
    rules = _read(platform_dir / RULES, errors)
    people = _read(platform_dir / ROSTER, errors) if roster is None else _given(platform_dir / ROSTER, roster)
    constitution = rules and _parse(rules, Constitution, constitution_faults, errors)
    identities = people and _parse(people, RosterFile, lambda found: roster_faults(found.identities), errors)
    mandates = _read_mandates(platform_dir, *identities, errors) if people and identities else {}
    if errors or not (prose and rules and constitution and people and identities):
        raise ContentError(errors)
    return Content(
        constitution=constitution[0],
        constitution_hash=blake3_hex(prose.data),
        rules_hash=blake3_hex(rules.data),
        roster_hash=blake3_hex(people.data),
        mandates_hash=hash_of({name: blake3_hex(text.encode()) for name, text in mandates.items()}),
        roster=Roster(identities[0].identities),
        mandates=mandates,
        prose=prose.text,
        platform_dir=platform_dir,
    )


@dataclass(frozen=True, slots=True)
class _File:
    path: Path
    data: bytes
    text: str


def _given(path: Path, data: bytes) -> _File:
    return _File(path, data, data.decode("utf-8-sig"))


def _read(path: Path, errors: list[ConfigurationError]) -> _File | None:
    """Return a file that holds text, or None with the reason among `errors`."""
    try:
        return _decode(path, _read_bytes(path))
    except ConfigurationError as error:
        errors.append(error)
        return None


def _read_bytes(path: Path) -> bytes:
    name = str(path)
    try:
        if not stat.S_ISREG(path.stat().st_mode):
            raise ConfigurationError(name, None, "this is not a file", "Put a regular file in its place.")
        with path.open("rb") as file:
            data = file.read(SIZE_MAX + 1)
    except FileNotFoundError as error:
        fix = "Put it back, or lay out a root with `agent-runner init`."
        raise ConfigurationError(name, None, "the file is missing", fix) from error
    except OSError as error:
        problem = f"the file cannot be read ({error.strerror})"
        raise ConfigurationError(
            name, None, problem, "Give the user that runs this the right to read it."
        ) from error
    if len(data) > SIZE_MAX:
        raise ConfigurationError(name, None, f"the file is larger than {SIZE_MAX} bytes", "Shorten it.")
    return data


def _decode(path: Path, data: bytes) -> _File:
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        problem = f"byte {data[error.start]:#04x} is not UTF-8"
        raise ConfigurationError(str(path), line, problem, "Save the file as UTF-8.") from error
    if not text.strip():
        fix = "Write what it should hold, or copy the shipped one."
        raise ConfigurationError(str(path), None, "the file is empty", fix)
    return _File(path, data, text)


def _parse(
    file: _File,
    wanted: type[Typed],
    faults: Callable[[Typed], Iterable[Fault]],
    errors: list[ConfigurationError],
) -> tuple[Typed, Node] | None:
    """Return the typed content of a YAML file and its tree; what is wrong is added to `errors` by line."""
    problems = Problems(str(file.path))
    tree = parse_yaml(file.text, problems)
    found = None if tree is None else to_typed(tree, wanted, problems)
    if found is not None and tree is not None:
        for fault in faults(found):
            problems.add(line_of(tree, fault.where), fault.problem, fault.fix)
    errors.extend(sorted(problems.errors, key=lambda error: error.line or 0))
    return None if found is None or tree is None else (found, tree)


def _read_mandates(
    platform_dir: Path,
    roster: RosterFile,
    tree: Node,
    errors: list[ConfigurationError],
) -> dict[str, str]:
    """Return the mandate of each identity that names one and is not dead."""
    mandates: dict[str, str] = {}
    inside = (platform_dir / MANDATES).resolve()
    for index, identity in enumerate(roster.identities):
        if identity.mandate is None or identity.state == "dead":
            continue
        path = platform_dir / identity.mandate
        problems = Problems(str(platform_dir / ROSTER), errors)
        line = line_of(tree, ("identities", index, "mandate"))
        called = f"the mandate {identity.mandate} of {identity.id}"
        if not Path(os.path.realpath(path)).is_relative_to(inside):
            problems.add(
                line,
                f"{called} leads out of {platform_dir / MANDATES}",
                "Put the file itself there, not a link.",
            )
        elif not os.path.exists(path):  # noqa: PTH110 - unlike Path.exists it does not raise for a closed folder
            problems.add(
                line, f"{called} is missing", "Write the file, or set mandate to null for the default one."
            )
        elif (file := _read(path, errors)) is not None:
            mandates[identity.id] = file.text
    return mandates
