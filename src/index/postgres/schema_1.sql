-- Rows by artifact. Times are microseconds since 1970.
CREATE SEQUENCE artifact_generation;

CREATE TABLE artifact (
    remote text COLLATE "C" NOT NULL,
    -- SHA-256 of the path: a path may have 4,096 bytes, and an index tuple no more than 2,704.
    path_sha256 bytea NOT NULL CHECK (octet_length(path_sha256) = 32),
    path text COLLATE "C" NOT NULL,
    blob_key text NOT NULL,
    blob_version text NOT NULL,
    size_bytes bigint NOT NULL CHECK (size_bytes >= 0),
    sha256 bytea NOT NULL CHECK (octet_length(sha256) = 32),
    content_type text,
    content_encoding text,
    etag text,
    last_modified text,
    stored_at_us bigint NOT NULL,
    validated_at_us bigint NOT NULL,
    head_sha256 bytea CHECK (octet_length(head_sha256) = 32),
    -- Unique among all rows there ever were: a row that was removed and written again is
    -- never taken for the earlier one.
    generation bigint NOT NULL DEFAULT nextval('artifact_generation'),
    unproven boolean NOT NULL,
    -- NULL while it was never served.
    last_used_us bigint,
    hits bigint NOT NULL DEFAULT 0,
    PRIMARY KEY (remote, path_sha256)
-- Room in each page, so that counting a use rewrites the row beside itself.
) WITH (fillfactor = 90);

-- Scans go by the byte order of paths; what is alike in 512 characters is sorted on the way.
CREATE INDEX artifact_scan ON artifact (remote, left(path, 512));
