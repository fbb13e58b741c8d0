-- The embedded index, version 1. Read it with: sqlite3 index.sqlite
-- While artifactapi runs, only read: it keeps rows in memory and does not see what others write.

CREATE TABLE artifact (
    remote        TEXT    NOT NULL,
    path          TEXT    NOT NULL,  -- decoded, with the query behind the first '?'
    blob          TEXT    NOT NULL,  -- the file below DATA_DIR/blobs, or the object's key
    version       TEXT    NOT NULL,  -- of the blob; on disk: stat -c %s-%.9Y FILE
    size          INTEGER NOT NULL,  -- bytes
    sha256        TEXT    NOT NULL,
    content_type  TEXT,              -- as upstream sent it, like the next three
    etag          TEXT,
    last_modified TEXT,
    content_encoding TEXT,
    head          TEXT,              -- of a member: the sha256 of the head it was confirmed with
    stored_at     INTEGER NOT NULL,  -- microseconds since 1970: datetime(stored_at / 1000000, 'unixepoch')
    validated_at  INTEGER NOT NULL,  -- likewise
    last_used     INTEGER,           -- likewise; NULL = never served from the store
    hits          INTEGER NOT NULL DEFAULT 0,
    generation    INTEGER NOT NULL,  -- grows with every write of any row
    unproven      INTEGER NOT NULL DEFAULT 0,  -- 1 = its writer could not vouch for the bytes
    PRIMARY KEY (remote, path)
) STRICT, WITHOUT ROWID;

-- One row: where the current run is.
CREATE TABLE run (
    only    INTEGER PRIMARY KEY CHECK (only = 1),
    number  INTEGER NOT NULL,        -- counts the times the index was opened for writing
    vouched INTEGER NOT NULL         -- the last generation whose blob is known to be on the disk
) STRICT;
INSERT INTO run (only, number, vouched) VALUES (1, 0, 0);

-- Generations whose blobs a crash of the machine may have taken.
CREATE TABLE doubt (
    first INTEGER PRIMARY KEY,
    last  INTEGER NOT NULL
) STRICT;
