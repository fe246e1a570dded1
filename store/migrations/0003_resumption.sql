-- Version 3: turns that a client can ask for again, and that can be gone on with.

ALTER TABLE turns ADD COLUMN idempotency_key TEXT; -- NULL: it was asked for without one
ALTER TABLE turns ADD COLUMN request_hash TEXT;    -- BLAKE3 of what was asked for with the key
CREATE UNIQUE INDEX turns_by_key ON turns (session_id, idempotency_key) WHERE idempotency_key IS NOT NULL;

-- 1: nothing of its client's own (tools, system prompt) is needed to go on with it after a crash.
ALTER TABLE turns ADD COLUMN continuable INTEGER NOT NULL DEFAULT 0;
ALTER TABLE turns ADD COLUMN continues TEXT;       -- the turn that a crash cut off and this one goes on with

CREATE TABLE mail_again (                          -- mail whose turn did not end well: it is delivered again
    mail_id       TEXT NOT NULL REFERENCES mail (id),
    reader        TEXT NOT NULL,
    calls         TEXT NOT NULL,                   -- those of that turn that had run, for people and models to read
    PRIMARY KEY (mail_id, reader)
) STRICT, WITHOUT ROWID;
