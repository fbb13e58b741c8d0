-- What the rows of each remote take up, kept by the triggers below in the transaction of each
-- change, so that no sum over all rows is ever taken.
CREATE TABLE artifact_usage (
    remote text COLLATE "C" NOT NULL,
    -- Connections count in different slots, so that they seldom wait for each other. One slot
    -- alone may be negative: only their sum means something.
    slot integer NOT NULL,
    artifacts bigint NOT NULL,
    bytes numeric NOT NULL,
    hits numeric NOT NULL,
    PRIMARY KEY (remote, slot)
) WITH (fillfactor = 50);

CREATE FUNCTION artifact_usage_add(of_remote text, more_artifacts bigint, more_bytes numeric, more_hits numeric)
RETURNS void LANGUAGE sql SET search_path FROM CURRENT AS $$
    INSERT INTO artifact_usage AS held
    VALUES (of_remote, pg_backend_pid() % 32, more_artifacts, more_bytes, more_hits)
    ON CONFLICT (remote, slot) DO UPDATE SET
        artifacts = held.artifacts + excluded.artifacts,
        bytes = held.bytes + excluded.bytes,
        hits = held.hits + excluded.hits
$$;

-- Remotes are taken in one order, so that two writers never wait for each other.
CREATE FUNCTION artifact_usage_changes() RETURNS trigger LANGUAGE plpgsql SET search_path FROM CURRENT AS $$
BEGIN
    IF TG_OP = 'INSERT' THEN
        PERFORM artifact_usage_add(remote, n, bytes, hits) FROM (
            SELECT remote, count(*) AS n, sum(size_bytes) AS bytes, sum(hits) AS hits
            FROM new_rows GROUP BY remote ORDER BY remote) AS changes;
    ELSIF TG_OP = 'DELETE' THEN
        PERFORM artifact_usage_add(remote, -n, -bytes, -hits) FROM (
            SELECT remote, count(*) AS n, sum(size_bytes) AS bytes, sum(hits) AS hits
            FROM old_rows GROUP BY remote ORDER BY remote) AS changes;
    ELSIF TG_OP = 'UPDATE' THEN
        PERFORM artifact_usage_add(remote, n, bytes, hits) FROM (
            SELECT remote, sum(n) AS n, sum(bytes) AS bytes, sum(hits) AS hits
            FROM (SELECT remote, 1 AS n, size_bytes::numeric AS bytes, hits::numeric FROM new_rows
                UNION ALL SELECT remote, -1, -size_bytes, -hits FROM old_rows) AS both_rows
            GROUP BY remote HAVING sum(n) <> 0 OR sum(bytes) <> 0 OR sum(hits) <> 0
            ORDER BY remote) AS changes;
    ELSE
        TRUNCATE artifact_usage;
    END IF;
    RETURN NULL;
END $$;

-- To be called by hand after rows were written while the triggers were off, or the two tables
-- were filled one by one, as a restore of the data alone does.
CREATE FUNCTION artifact_usage_recount() RETURNS void LANGUAGE sql SET search_path FROM CURRENT AS $$
    LOCK TABLE artifact IN SHARE ROW EXCLUSIVE MODE;
    DELETE FROM artifact_usage;
    INSERT INTO artifact_usage
        SELECT remote, 0, count(*), sum(size_bytes), sum(hits) FROM artifact GROUP BY remote;
$$;

SELECT artifact_usage_recount();
CREATE TRIGGER artifact_usage_insert AFTER INSERT ON artifact
    REFERENCING NEW TABLE AS new_rows FOR EACH STATEMENT EXECUTE FUNCTION artifact_usage_changes();
CREATE TRIGGER artifact_usage_delete AFTER DELETE ON artifact
    REFERENCING OLD TABLE AS old_rows FOR EACH STATEMENT EXECUTE FUNCTION artifact_usage_changes();
CREATE TRIGGER artifact_usage_update AFTER UPDATE ON artifact
    REFERENCING OLD TABLE AS old_rows NEW TABLE AS new_rows FOR EACH STATEMENT EXECUTE FUNCTION artifact_usage_changes();
CREATE TRIGGER artifact_usage_truncate AFTER TRUNCATE ON artifact
    FOR EACH STATEMENT EXECUTE FUNCTION artifact_usage_changes();
