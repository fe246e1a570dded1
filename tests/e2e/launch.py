"""Starts a daemon as a process of its own (`python -m tests.e2e.launch --root DIR`); one ready line on stdout."""

import argparse
import dataclasses
import json
import sys
from pathlib import Path

import structlog
import trio

from actors.daemon import Ready, Settings, run_daemon
from protocol.errors import AgentRunnerError, ConfigurationError
from store.root import Root


def announce(ready: Ready) -> None:
    sys.stdout.write(f"{json.dumps(dataclasses.asdict(ready))}\n")
    sys.stdout.flush()


def main() -> int:
    parser = argparse.ArgumentParser()
    parser.add_argument("--root", type=Path, required=True)
    parser.add_argument("--bind", default="127.0.0.1")
    parser.add_argument("--port", type=int, default=0)
    parser.add_argument("--backend", default="auto")
    parser.add_argument("--ttl", type=float, default=30.0)
    parser.add_argument("--heartbeat-interval", type=float, default=300.0)
    parser.add_argument("--no-heartbeat", action="store_true")
    options = parser.parse_args()
    settings = Settings(
        root=Root(options.root),
        bind=options.bind,
        port=options.port,
        backend=options.backend,
        ttl_min=options.ttl,
        heartbeat_interval_s=options.heartbeat_interval,
        heartbeat=not options.no_heartbeat,
    )
    structlog.configure(logger_factory=structlog.PrintLoggerFactory(sys.stderr))
    try:
        trio.run(run_daemon, settings, announce)
    except AgentRunnerError as error:
        sys.stderr.write(f"{error}\n")
        return 78 if isinstance(error, ConfigurationError) else 1
    except BaseExceptionGroup as group:
        for error in group.exceptions:
            sys.stderr.write(f"{error}\n")
        return 78 if all(isinstance(error, ConfigurationError) for error in group.exceptions) else 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
