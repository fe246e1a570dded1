-- Version 1. JSON columns are canonical text; what is absent is NULL; times are RFC 3339 UTC.

CREATE TABLE sessions (
    id            TEXT PRIMARY KEY,          -- BLAKE3 of agent_id:session_key:created_at
    agent_id      TEXT NOT NULL,             -- what was asked for, not what was proved
    session_key   TEXT NOT NULL UNIQUE,
    owner         TEXT NOT NULL,             -- operator, runner, a registered user, or guest:<first 16 of id>
    backend       TEXT NOT NULL,
    model         TEXT,
    mode          TEXT NOT NULL CHECK (mode IN ('persistent', 'domain', 'oneshot')),
    state         TEXT NOT NULL CHECK (state IN ('idle', 'running', 'closed')),
    pubkey        TEXT,
    last_activity TEXT NOT NULL,
    created_at    TEXT NOT NULL
) STRICT;

CREATE TABLE turns (
    id            TEXT PRIMARY KEY,
    session_id    TEXT NOT NULL REFERENCES sessions (id),
    seq           INTEGER NOT NULL,          -- per session, from 0
    status        TEXT NOT NULL CHECK (status IN ('running', 'complete', 'cancelled', 'failed', 'interrupted')),
    cid           TEXT,                      -- of its ledger entry, once it has ended
    prev_cid      TEXT,                      -- of the previous ended turn
    input_hash    TEXT,
    output_hash   TEXT,
    stop_reason   TEXT,
    usage         TEXT,
    started_at    TEXT NOT NULL,
    completed_at  TEXT,
    proof         TEXT
) STRICT;
CREATE UNIQUE INDEX turns_of_session ON turns (session_id, seq);
CREATE INDEX turns_running ON turns (session_id) WHERE status = 'running';

CREATE TABLE history (
    id            INTEGER PRIMARY KEY,
    session_id    TEXT NOT NULL REFERENCES sessions (id),
    turn_id       TEXT NOT NULL REFERENCES turns (id),
    seq           INTEGER NOT NULL,          -- per session, from 0
    role          TEXT NOT NULL CHECK (role IN ('user', 'assistant')),
    content       TEXT NOT NULL,             -- canonical JSON: text or a list of blocks
    created_at    TEXT NOT NULL,
    mail          INTEGER NOT NULL DEFAULT 0 -- 1 for the message in which a turn carried its mail
) STRICT;
CREATE UNIQUE INDEX history_of_session ON history (session_id, seq);
CREATE INDEX history_of_turn ON history (turn_id);

CREATE TABLE ledger (
    seq           INTEGER PRIMARY KEY,       -- the order of the ledger; not part of the entry
    cid           TEXT NOT NULL UNIQUE,
    quality       TEXT NOT NULL,
    entity_id     TEXT NOT NULL,
    target        TEXT NOT NULL,
    timestamp     TEXT NOT NULL,
    source        TEXT NOT NULL,
    actor         TEXT NOT NULL,
    parents       TEXT NOT NULL,
    tags          TEXT NOT NULL,
    payload       TEXT NOT NULL,
    proof         TEXT,
    envelope      TEXT
) STRICT;
CREATE INDEX ledger_of_entity ON ledger (entity_id, quality, seq);
CREATE TRIGGER ledger_is_never_updated BEFORE UPDATE ON ledger
    BEGIN SELECT RAISE (ABORT, 'ledger entries are never updated'); END;
CREATE TRIGGER ledger_is_never_deleted BEFORE DELETE ON ledger
    BEGIN SELECT RAISE (ABORT, 'ledger entries are never deleted'); END;

CREATE TABLE mail (
    number        INTEGER PRIMARY KEY,       -- the order of sending
    id            TEXT NOT NULL UNIQUE,
    sender        TEXT NOT NULL,
    recipient     TEXT NOT NULL,             -- an identity, a role, tag:NAME or all
    subject       TEXT NOT NULL,
    body          TEXT NOT NULL,
    thread        TEXT NOT NULL,             -- the id of the message that began it
    sent_at       TEXT NOT NULL,
    expires_at    TEXT,
    tier          TEXT NOT NULL,             -- the trust under which it was sent
    hops          INTEGER NOT NULL
) STRICT;
CREATE INDEX mail_to ON mail (recipient, number);
CREATE TABLE mail_receipts (
    mail_id       TEXT NOT NULL REFERENCES mail (id),
    reader        TEXT NOT NULL,
    read_at       TEXT NOT NULL,
    PRIMARY KEY (mail_id, reader)
) STRICT, WITHOUT ROWID;
CREATE TABLE mail_claims (                   -- the turn that carries a message until it ends
    mail_id       TEXT NOT NULL REFERENCES mail (id),
    reader        TEXT NOT NULL,
    turn_id       TEXT NOT NULL,
    PRIMARY KEY (mail_id, reader)
) STRICT, WITHOUT ROWID;
CREATE INDEX mail_claims_of_turn ON mail_claims (turn_id);

CREATE TABLE board (
    number        INTEGER PRIMARY KEY,
    agent         TEXT NOT NULL,
    text          TEXT NOT NULL,             -- one line
    posted_at     TEXT NOT NULL
) STRICT;

CREATE TABLE usage (                         -- tokens spent, for the daily limits
    agent         TEXT NOT NULL,
    day           TEXT NOT NULL,             -- UTC, YYYY-MM-DD
    input_tokens  INTEGER NOT NULL,
    output_tokens INTEGER NOT NULL,
    PRIMARY KEY (agent, day)
) STRICT, WITHOUT ROWID;

CREATE TABLE wakes (                         -- when a standing agent last woke by itself
    agent         TEXT PRIMARY KEY,
    last_wake     TEXT NOT NULL
) STRICT, WITHOUT ROWID;
