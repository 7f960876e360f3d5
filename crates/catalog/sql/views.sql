-- What users see of the catalog.

-- A bound as in FOR VALUES FROM (…), without the parentheses when it is one column.
CREATE OR REPLACE FUNCTION pgherd.bound_text(bound text[]) RETURNS text
LANGUAGE sql IMMUTABLE SET search_path = pg_catalog AS $$
    SELECT CASE WHEN count(*) = 1 THEN max(part) ELSE '(' || string_agg(part, ', ' ORDER BY n) || ')' END
    FROM (SELECT n, CASE left(b, 1) WHEN '<' THEN 'MINVALUE' WHEN '>' THEN 'MAXVALUE' ELSE substr(b, 2) END AS part
        FROM unnest(bound) WITH ORDINALITY AS u(b, n)) parts
$$;

CREATE OR REPLACE VIEW pgherd.shards AS
    SELECT s.id, s.name, s.host, s.port, s.home,
        (SELECT count(*) FROM pgherd.table_range r WHERE r.shard = s.id) AS ranges
    FROM pgherd.shard s ORDER BY s.id;

CREATE OR REPLACE VIEW pgherd.tables AS
    SELECT t.relation::regclass::text AS "table", pg_get_partkeydef(t.relation) AS key,
        (SELECT count(*) FROM pgherd.table_range r WHERE r.table_id = t.id) AS ranges,
        (SELECT count(DISTINCT r.shard) FROM pgherd.table_range r WHERE r.table_id = t.id) AS shards,
        t.automatic, t.colocation, t.id
    FROM pgherd.sharded_table t JOIN pg_class c ON c.oid = t.relation ORDER BY t.id;

CREATE OR REPLACE VIEW pgherd.ranges AS
    SELECT t.relation::regclass::text AS "table", r.id AS range, pgherd.bound_text(r.lower) AS "from",
        pgherd.bound_text(r.upper) AS "to", s.name AS shard, format('%I.%I', r.child_schema, r.child) AS child, r.declared
    FROM pgherd.sharded_table t JOIN pg_class c ON c.oid = t.relation
    JOIN pgherd.table_range r ON r.table_id = t.id JOIN pgherd.shard s ON s.id = r.shard
    ORDER BY t.id, r.id;

CREATE OR REPLACE VIEW pgherd.gateways AS
    SELECT name, address, started_at, lease_until, lease_until > clock_timestamp() AS alive, incarnation
    FROM pgherd.gateway_lease ORDER BY started_at;

-- Transactions that have waited between the two phases for a second or more. What no gateway has seen for a while is old
-- news.
DROP VIEW IF EXISTS pgherd.transactions;
CREATE VIEW pgherd.transactions AS
    SELECT d.gid, d.gateway, d.live, d.role, d.since, clock_timestamp() - d.since AS age,
        ARRAY(SELECT s.name FROM pgherd.shard s WHERE s.id = ANY (d.participants) ORDER BY s.id) AS participants,
        ARRAY(SELECT s.name FROM pgherd.shard s WHERE s.id = ANY (d.prepared_on) ORDER BY s.id) AS prepared_on
    FROM pgherd.in_doubt d WHERE d.seen_at > clock_timestamp() - interval '15 s' ORDER BY d.since;

GRANT SELECT ON pgherd.shards, pgherd.tables, pgherd.ranges, pgherd.gateways, pgherd.transactions TO PUBLIC;

-- Service functions: none for PUBLIC but those that check a signature or only read.
REVOKE ALL ON FUNCTION pgherd.announce_change(text, bigint, bigint[], text), pgherd.unacknowledged(bigint, text),
    pgherd.clear_change(bigint, text), pgherd.dead_changes(), pgherd.heartbeat(text, integer, bigint, bigint[]) FROM PUBLIC;
