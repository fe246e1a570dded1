-- Version 3: turns that a client can ask for again.

ALTER TABLE turns ADD COLUMN idempotency_key TEXT; -- NULL: it was asked for without one
ALTER TABLE turns ADD COLUMN request_hash TEXT;    -- BLAKE3 of what was asked for with the key
CREATE UNIQUE INDEX turns_by_key ON turns (session_id, idempotency_key) WHERE idempotency_key IS NOT NULL;
