-- Version 2: what the rows take up, and the order in which they would go.

-- Microseconds since 1970: when the row was last stored or served, whichever was later.
ALTER TABLE artifact ADD COLUMN recency INTEGER
    GENERATED ALWAYS AS (max(stored_at, coalesce(last_used, stored_at))) VIRTUAL;
CREATE INDEX artifact_by_recency ON artifact (remote, recency, path);

-- Kept by the triggers below, in the transaction of each change, so that no sum over all rows
-- is ever taken. Sums stop at what an integer holds.
CREATE TABLE usage (
    remote    TEXT    PRIMARY KEY NOT NULL,
    artifacts INTEGER NOT NULL,
    bytes     INTEGER NOT NULL,
    hits      INTEGER NOT NULL
) STRICT, WITHOUT ROWID;
INSERT INTO usage SELECT remote, count(*), sum(size), sum(hits) FROM artifact GROUP BY remote;

CREATE TRIGGER usage_grows AFTER INSERT ON artifact BEGIN
    INSERT INTO usage VALUES (new.remote, 1, new.size, new.hits)
    ON CONFLICT (remote) DO UPDATE SET
        artifacts = artifacts + 1,
        bytes = min(bytes, 9223372036854775807 - new.size) + new.size,
        hits = min(hits, 9223372036854775807 - new.hits) + new.hits;
END;
CREATE TRIGGER usage_changes AFTER UPDATE OF size, hits ON artifact
WHEN new.size <> old.size OR new.hits <> old.hits BEGIN
    UPDATE usage SET
        bytes = min(max(bytes - old.size, 0), 9223372036854775807 - new.size) + new.size,
        hits = min(max(hits - old.hits, 0), 9223372036854775807 - new.hits) + new.hits
    WHERE remote = new.remote;
END;
CREATE TRIGGER usage_shrinks AFTER DELETE ON artifact BEGIN
    UPDATE usage SET
        artifacts = artifacts - 1,
        bytes = max(bytes - old.size, 0),
        hits = max(hits - old.hits, 0)
    WHERE remote = old.remote;
    DELETE FROM usage WHERE remote = old.remote AND artifacts <= 0;
END;
