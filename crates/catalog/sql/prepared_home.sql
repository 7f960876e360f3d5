-- Which transactions clients have prepared, on the home shard. Run by the installer after home.sql.

CREATE TABLE IF NOT EXISTS pgherd.client_transaction (
    -- the client's name for it
    name text PRIMARY KEY,
    -- its name on the shards
    gid text NOT NULL UNIQUE,
    -- who prepared it; that role may finish it, or a superuser
    owner oid NOT NULL,
    -- preparing: not all shards have it yet. prepared: they have; only a client ends it. commit, rollback: decided, and under
    -- way on the shards. Each change is the only one that can come next, by whoever commits it first.
    state text NOT NULL CHECK (state IN ('preparing', 'prepared', 'commit', 'rollback')),
    -- a transaction that is READ ONLY can have no marker, and its end leaves no trace
    marked boolean NOT NULL,
    prepared_at timestamptz
);
REVOKE ALL ON pgherd.client_transaction FROM PUBLIC;

-- What a client sees in place of PostgreSQL's view of that name: its own names, and not the cluster's own two phases.
CREATE OR REPLACE VIEW pgherd.pg_prepared_xacts AS
    SELECT x.transaction, t.name AS gid, t.prepared_at AS prepared, pg_get_userbyid(t.owner) AS owner,
        current_database() AS database
    FROM pgherd.client_transaction t LEFT JOIN pg_catalog.pg_prepared_xacts x ON x.gid = t.gid
    WHERE t.state = 'prepared';
GRANT SELECT ON pgherd.pg_prepared_xacts TO PUBLIC;
