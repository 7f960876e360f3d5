-- The catalog, on the home shard: who owns what, which gateways serve, which changes are under way.
-- Run by the service role after shard.sql, in the same transaction. Clients read the views only.

CREATE TABLE IF NOT EXISTS pgherd.shard (
    id integer PRIMARY KEY,
    name text NOT NULL,
    host text NOT NULL,
    port integer NOT NULL,
    home boolean NOT NULL
);

-- The version of everything below; grows with each finished change.
CREATE TABLE IF NOT EXISTS pgherd.epoch (
    one boolean PRIMARY KEY DEFAULT true CHECK (one),
    epoch bigint NOT NULL
);
INSERT INTO pgherd.epoch VALUES (true, 1) ON CONFLICT DO NOTHING;

-- Never goes back, so that a table's number is never used again.
CREATE SEQUENCE IF NOT EXISTS pgherd.table_number;

CREATE TABLE IF NOT EXISTS pgherd.sharded_table (
    id integer PRIMARY KEY,
    -- the parent on the home shard: columns, key, constraints and names are read from PostgreSQL's own catalog
    relation oid NOT NULL UNIQUE,
    -- pgherd made the ranges, and they cover all keys
    automatic boolean NOT NULL,
    -- pgherd.default_distribution made it sharded, so a constraint that cannot hold may make it local again
    by_default boolean NOT NULL DEFAULT false,
    colocation integer NOT NULL,
    -- the number in the fence's name
    fence integer NOT NULL DEFAULT 1,
    -- the number of the next range
    next_range integer NOT NULL DEFAULT 1
);

-- Has a row since the database's first sharded table: from then on SERIALIZABLE is strict locking, for good, since it and
-- PostgreSQL's own must never run side by side.
CREATE TABLE IF NOT EXISTS pgherd.ever_sharded (one boolean PRIMARY KEY DEFAULT true CHECK (one));
INSERT INTO pgherd.ever_sharded SELECT true WHERE EXISTS (SELECT FROM pgherd.sharded_table) ON CONFLICT DO NOTHING;

CREATE TABLE IF NOT EXISTS pgherd.table_range (
    table_id integer NOT NULL REFERENCES pgherd.sharded_table ON DELETE CASCADE,
    id integer NOT NULL,
    -- one element per key column: '<' is MINVALUE, '>' is MAXVALUE, '=' and the value's text otherwise
    lower text[] NOT NULL,
    upper text[] NOT NULL,
    shard integer NOT NULL REFERENCES pgherd.shard,
    child_schema text NOT NULL,
    child text NOT NULL,
    declared boolean NOT NULL,
    PRIMARY KEY (table_id, id)
);

CREATE TABLE IF NOT EXISTS pgherd.gateway_lease (
    incarnation text PRIMARY KEY,
    name text NOT NULL,
    address text NOT NULL,
    started_at timestamptz NOT NULL DEFAULT clock_timestamp(),
    lease_until timestamptz NOT NULL
);

-- A change that gateways have to acknowledge before it takes effect, and that keeps its names closed until it is over.
CREATE TABLE IF NOT EXISTS pgherd.change (
    id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    -- the first change of the same transaction
    root bigint NOT NULL,
    owner text NOT NULL,
    -- hashes of unqualified names; 0 stands for all names
    names bigint[] NOT NULL,
    description text NOT NULL,
    announced_at timestamptz NOT NULL DEFAULT clock_timestamp()
);

CREATE TABLE IF NOT EXISTS pgherd.change_acknowledgement (
    change bigint NOT NULL REFERENCES pgherd.change ON DELETE CASCADE,
    incarnation text NOT NULL,
    PRIMARY KEY (change, incarnation)
);

-- Written by the changing transaction itself. While it is undecided the key is locked; when somebody else got the key
-- first, the transaction fails. So whoever clears a dead gateway's change knows that it is over, and how it ended.
CREATE TABLE IF NOT EXISTS pgherd.change_hold (
    change bigint PRIMARY KEY,
    -- the transaction that wrote it
    holder xid8 NOT NULL DEFAULT pg_current_xact_id(),
    held_at timestamptz NOT NULL DEFAULT clock_timestamp()
);
ALTER TABLE pgherd.change_hold ADD COLUMN IF NOT EXISTS holder xid8 NOT NULL DEFAULT pg_current_xact_id();

-- Transactions over several shards that wait for a lock, published by their gateways while they do: where the search for
-- deadlocks begins. Nothing of it is worth keeping over a crash.
CREATE UNLOGGED TABLE IF NOT EXISTS pgherd.waiting_transaction (
    -- of its gateway
    incarnation bigint NOT NULL,
    -- unique in its gateway
    number bigint NOT NULL,
    -- which of its statements waits
    statement bigint NOT NULL,
    -- microseconds since 1970 by its gateway's clock
    started_us bigint NOT NULL,
    -- shard/pid/since, one for each participant; - where it does not wait
    backends text NOT NULL,
    -- it is to give way: what its client is told
    victim text,
    PRIMARY KEY (incarnation, number)
);

-- Which gateway looks for deadlocks at the moment.
CREATE UNLOGGED TABLE IF NOT EXISTS pgherd.deadlock_detector (
    one boolean PRIMARY KEY DEFAULT true CHECK (one),
    incarnation bigint NOT NULL,
    until timestamptz NOT NULL
);

-- Transactions that wait between the two phases for longer than a commit takes, on whichever shards: gateways write down
-- each second what they find.
CREATE UNLOGGED TABLE IF NOT EXISTS pgherd.in_doubt (
    gid text PRIMARY KEY,
    gateway text NOT NULL,
    role text NOT NULL,
    participants integer[] NOT NULL,
    prepared_on integer[] NOT NULL,
    since timestamptz NOT NULL,
    -- its own gateway is alive and commits it
    live boolean NOT NULL,
    seen_at timestamptz NOT NULL DEFAULT clock_timestamp()
);

REVOKE ALL ON ALL TABLES IN SCHEMA pgherd FROM PUBLIC;
REVOKE ALL ON ALL SEQUENCES IN SCHEMA pgherd FROM PUBLIC;
-- What everybody reads on every shard.
GRANT SELECT ON pgherd.schema_change, pgherd.pg_settings TO PUBLIC;

-- The changing transaction's own mark, written before what it changes. Written again before each of its schema changes,
-- since a rollback to a savepoint takes it back. payload: ids of changes, [1, 2]
CREATE OR REPLACE FUNCTION pgherd.hold_changes(payload text, signature text) RETURNS void
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
BEGIN
    PERFORM pgherd.check_signature('hold_changes ' || payload, signature);
    INSERT INTO pgherd.change_hold (change) SELECT int8in(json_out(value)) FROM json_array_elements(payload::json)
        ON CONFLICT DO NOTHING;
    IF EXISTS (SELECT FROM json_array_elements(payload::json) WHERE NOT EXISTS (
        SELECT FROM pgherd.change_hold h WHERE h.change = int8in(json_out(value)) AND h.holder = pg_current_xact_id()))
    THEN
        RAISE EXCEPTION 'could not serialize schema change: this gateway''s lease was over'
            USING ERRCODE = '40001', HINT = 'Repeat the transaction.';
    END IF;
END $$;

-- Announces a change unless another transaction's change has one of the names.
-- Returns its id; nothing while it has to wait; 57P03 when the gateway has no lease.
CREATE OR REPLACE FUNCTION pgherd.announce_change(gateway text, root_change bigint, hashes bigint[], what text)
RETURNS TABLE (change_id bigint)
LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp AS $$
BEGIN
    LOCK TABLE pgherd.change IN SHARE ROW EXCLUSIVE MODE;
    IF NOT EXISTS (SELECT FROM pgherd.gateway_lease l WHERE l.incarnation = gateway AND l.lease_until > clock_timestamp()) THEN
        RAISE EXCEPTION 'this gateway has no lease' USING ERRCODE = '57P03';
    END IF;
    IF EXISTS (SELECT FROM pgherd.change c WHERE c.root IS DISTINCT FROM root_change
            AND (c.names && hashes OR 0 = ANY (c.names) OR 0 = ANY (hashes))) THEN
        RETURN;
    END IF;
    INSERT INTO pgherd.change AS c (root, owner, names, description) VALUES (coalesce(root_change, 0), gateway, hashes, what)
        RETURNING c.id INTO change_id;
    IF root_change IS NULL THEN
        UPDATE pgherd.change c SET root = c.id WHERE c.id = change_id;
    END IF;
    RETURN NEXT;
END $$;

-- How many other gateways with a live lease have not acknowledged.
CREATE OR REPLACE FUNCTION pgherd.unacknowledged(of_change bigint, by_gateway text) RETURNS bigint
LANGUAGE sql VOLATILE SET search_path = pg_catalog, pg_temp AS $$
    SELECT count(*) FROM pgherd.gateway_lease l
    WHERE l.lease_until > clock_timestamp() AND l.incarnation <> by_gateway
      AND NOT EXISTS (SELECT FROM pgherd.change_acknowledgement a WHERE a.change = of_change AND a.incarnation = l.incarnation)
$$;

-- Ends a change whose transaction is over; 55P03 while it is not. Returns whether it had committed.
CREATE OR REPLACE FUNCTION pgherd.clear_change(of_change bigint, patience text) RETURNS boolean
LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    inserted bigint;
BEGIN
    PERFORM set_config('lock_timeout', patience, true);
    INSERT INTO pgherd.change_hold (change) VALUES (of_change) ON CONFLICT DO NOTHING RETURNING change INTO inserted;
    PERFORM set_config('lock_timeout', '0', true);
    DELETE FROM pgherd.change WHERE id = of_change;
    IF FOUND AND inserted IS NULL THEN
        UPDATE pgherd.epoch SET epoch = epoch + 1;
    END IF;
    DELETE FROM pgherd.change_hold h WHERE h.held_at < clock_timestamp() - interval '1 day'
        AND NOT EXISTS (SELECT FROM pgherd.change c WHERE c.id = h.change);
    RETURN inserted IS NULL;
END $$;

-- Changes of gateways without a lease.
CREATE OR REPLACE FUNCTION pgherd.dead_changes() RETURNS SETOF bigint
LANGUAGE sql VOLATILE SET search_path = pg_catalog, pg_temp AS $$
    SELECT c.id FROM pgherd.change c WHERE NOT EXISTS (
        SELECT FROM pgherd.gateway_lease l WHERE l.incarnation = c.owner AND l.lease_until > clock_timestamp())
$$;

-- Writes ranges and tables in the changing transaction.
-- payload: [{"do": "table", "id": 1, "relation": 16400, …}, {"do": "range", …}, …]
CREATE OR REPLACE FUNCTION pgherd.write_catalog(payload text, signature text) RETURNS void
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    item json;
BEGIN
    PERFORM pgherd.check_signature('write_catalog ' || payload, signature);
    FOR item IN SELECT json_array_elements(payload::json) LOOP
        CASE item ->> 'do'
        WHEN 'table' THEN
            INSERT INTO pgherd.sharded_table (id, relation, automatic, by_default, colocation, fence)
            SELECT t.id, to_regclass(t.relation), t.automatic, t.by_default, t.colocation, t.fence
            FROM json_to_record(item) AS t(id integer, relation text, automatic boolean, by_default boolean,
                colocation integer, fence integer);
            INSERT INTO pgherd.ever_sharded VALUES (true) ON CONFLICT DO NOTHING;
        WHEN 'set' THEN
            UPDATE pgherd.sharded_table s SET automatic = coalesce(t.automatic, s.automatic),
                by_default = coalesce(t.by_default, s.by_default),
                colocation = coalesce(t.colocation, s.colocation), fence = coalesce(t.fence, s.fence)
            FROM json_to_record(item) AS t(id integer, automatic boolean, by_default boolean, colocation integer, fence integer)
            WHERE s.id = t.id;
        WHEN 'drop_table' THEN
            DELETE FROM pgherd.sharded_table WHERE id = int4in(textout(item ->> 'id'));
        WHEN 'range' THEN
            INSERT INTO pgherd.table_range (table_id, id, lower, upper, shard, child_schema, child, declared)
            SELECT r."table", r.id, r.lower, r.upper, r.shard, r.child_schema, r.child, r.declared
            FROM json_to_record(item) AS r("table" integer, id integer, lower text[], upper text[], shard integer,
                child_schema text, child text, declared boolean);
            UPDATE pgherd.sharded_table SET next_range = greatest(next_range, int4in(textout(item ->> 'id')) + 1)
            WHERE id = int4in(textout(item ->> 'table'));
        WHEN 'drop_range' THEN
            DELETE FROM pgherd.table_range
            WHERE table_id = int4in(textout(item ->> 'table')) AND id = int4in(textout(item ->> 'id'));
        WHEN 'name_range' THEN
            UPDATE pgherd.table_range SET child_schema = item ->> 'child_schema', child = item ->> 'child'
            WHERE table_id = int4in(textout(item ->> 'table')) AND id = int4in(textout(item ->> 'id'));
        ELSE
            RAISE EXCEPTION 'unknown catalog write %', item;
        END CASE;
    END LOOP;
END $$;

-- Which gateways are alive, as recovery asks: the transaction room reads this and nothing else of the catalog.
CREATE OR REPLACE VIEW pgherd.gateway AS
    SELECT name, incarnation::bigint AS incarnation, lease_until FROM pgherd.gateway_lease;

-- The next number of a column that is GENERATED … AS IDENTITY, for who may write the table: PostgreSQL asks for no privilege on its
-- sequence.
CREATE OR REPLACE FUNCTION pgherd.next_identity(relation text, attribute text) RETURNS bigint
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    caller text := CASE current_setting('role') WHEN 'none' THEN session_user ELSE current_setting('role') END;
    sequence oid := (SELECT d.objid FROM pg_depend d
        JOIN pg_attribute a ON a.attrelid = d.refobjid AND a.attnum = d.refobjsubid
        WHERE d.classid = 'pg_class'::regclass AND d.refclassid = 'pg_class'::regclass AND d.deptype = 'i'
          AND a.attrelid = to_regclass(relation) AND a.attname = attribute AND a.attidentity <> '');
BEGIN
    IF sequence IS NULL OR NOT has_any_column_privilege(caller, to_regclass(relation), 'INSERT, UPDATE') THEN
        RAISE EXCEPTION 'permission denied for table %', relation USING ERRCODE = '42501';
    END IF;
    RETURN nextval(sequence::regclass);
END $$;
