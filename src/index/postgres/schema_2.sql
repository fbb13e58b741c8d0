-- The order in which rows would go: by when they were last stored or served.
CREATE INDEX artifact_recency ON artifact
    (remote, greatest(stored_at_us, coalesce(last_used_us, stored_at_us)));
