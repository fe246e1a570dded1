-- Version 2: timers whose due times outlive the daemon.

CREATE TABLE timers (
    name          TEXT PRIMARY KEY,          -- heartbeat/reed
    target        TEXT NOT NULL,             -- path of the actor below the root of the tree: standing/reed
    payload       TEXT NOT NULL,             -- what the tick carries; empty where it says nothing
    due_at        TEXT NOT NULL,             -- of the next tick
    interval_s    REAL CHECK (interval_s > 0) -- NULL: it ticks once
) STRICT, WITHOUT ROWID;
