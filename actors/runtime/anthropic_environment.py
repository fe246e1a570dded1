"""What the environment says of the model server: where it is, with which key, model and limits.

The names that begin with ANTHROPIC are those of the official clients.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

import httpx

from actors.runtime.messages_loop import ModelSettings, Thinking
from protocol.errors import ConfigurationError
from protocol.messages import excerpt

MODEL_DEFAULT: Final = "claude-sonnet-5-5"
"""The model of sessions that name none; `AGENT_RUNNER_MODEL` overrides it."""

BASE_URL_DEFAULT: Final = "https://api.anthropic.com"


@dataclass(frozen=True, slots=True)
class Connection:
    """Where the server is, and how long it may be silent."""

    api_key: str
    base_url: str = BASE_URL_DEFAULT
    connect_timeout_s: float = 10.0
    read_timeout_s: float = 120.0
    write_timeout_s: float = 30.0

    @property
    def head_timeout_s(self) -> float:
        """How long it may take in all until the head of an answer is there."""
        return self.connect_timeout_s + self.write_timeout_s + self.read_timeout_s

    @property
    def public_url(self) -> str:
        """The base URL as it may be shown: without a user name and a password."""
        return str(httpx.URL(self.base_url).copy_with(userinfo=b"")).rstrip("/")


def read_environment(environment: Mapping[str, str]) -> tuple[Connection, ModelSettings]:
    """Return what the environment describes.

    Reads ANTHROPIC_API_KEY, ANTHROPIC_BASE_URL, AGENT_RUNNER_MODEL, AGENT_RUNNER_MAX_TOKENS,
    AGENT_RUNNER_THINKING (`adaptive`, `between_tools`, `disabled` or a budget of at least 1024 tokens) and
    AGENT_RUNNER_READ_TIMEOUT (seconds). Raises ConfigurationError for a value that cannot be used.
    """
    key = environment.get("ANTHROPIC_API_KEY", "").strip()
    if not key or not key.isascii() or not key.isprintable() or " " in key:
        raise ConfigurationError(
            "ANTHROPIC_API_KEY", None, "no usable key is set", "Set it to the key as the console shows it."
        )
    connection = Connection(
        api_key=key,
        base_url=_base_url(environment.get("ANTHROPIC_BASE_URL", "").strip() or BASE_URL_DEFAULT),
        read_timeout_s=_positive(environment, "AGENT_RUNNER_READ_TIMEOUT", 120),
    )
    settings = ModelSettings(
        model=environment.get("AGENT_RUNNER_MODEL", "").strip() or MODEL_DEFAULT,
        tokens_max=_positive(environment, "AGENT_RUNNER_MAX_TOKENS", 32_000),
        thinking=_thinking(environment),
    )
    return connection, settings


def _base_url(value: str) -> str:
    try:
        url = httpx.URL(value)
    except httpx.InvalidURL as error:
        raise _unusable("ANTHROPIC_BASE_URL", value, f"it is no URL ({error})", BASE_URL_DEFAULT) from error
    if url.scheme not in ("http", "https") or not url.host:
        raise _unusable("ANTHROPIC_BASE_URL", value, "it is no http or https URL", BASE_URL_DEFAULT)
    return value.rstrip("/")


def _positive(environment: Mapping[str, str], name: str, default: int) -> int:
    value = environment.get(name, "").strip()
    if not value:
        return default
    if not (value.isascii() and value.isdigit() and int(value) > 0):
        raise _unusable(name, value, "it is no whole number above 0", str(default))
    return int(value)


def _thinking(environment: Mapping[str, str]) -> Thinking:
    value = environment.get("AGENT_RUNNER_THINKING", "").strip()
    if not value:
        return None
    if value in ("adaptive", "between_tools", "disabled"):
        return value  # type: ignore[return-value] # one of the three literals
    if value.isascii() and value.isdigit() and int(value) >= 1024:
        return int(value)
    raise _unusable(
        "AGENT_RUNNER_THINKING",
        value,
        "it is neither a mode nor a budget of at least 1024 tokens",
        "adaptive",
    )


def _unusable(name: str, value: str, problem: str, example: str) -> ConfigurationError:
    return ConfigurationError(
        name,
        None,
        f"{excerpt(value, 80)!r} cannot be used: {problem}",
        f"Set it to something like {example}.",
    )
