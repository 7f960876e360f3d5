-- The version of this shard's schema: a number that every change of what statements may run by themselves (functions, triggers,
-- defaults, policies, views, operators) replaces by another one, also a change that no gateway knows of. What was found in the
-- catalogs under one version holds as long as the version does (docs/designs/0013-serializable.md).

-- The version is the exclusive or of all tokens. A change only adds a row, so that changes do not wait for each other, and
-- one row may take the place of several. Tokens are random: a number that was rolled back must not come again.
CREATE TABLE IF NOT EXISTS pgherd.schema_change (token bigint NOT NULL);
GRANT SELECT ON pgherd.schema_change TO PUBLIC;
-- A publication FOR ALL TABLES has it too, and would keep its rows, which no key tells apart, from being merged.
DO $$ BEGIN
    IF (SELECT c.relreplident <> 'f' FROM pg_catalog.pg_class c WHERE c.oid = 'pgherd.schema_change'::pg_catalog.regclass) THEN
        ALTER TABLE pgherd.schema_change REPLICA IDENTITY FULL;
    END IF;
END $$;

CREATE OR REPLACE FUNCTION pgherd.random_token() RETURNS bigint LANGUAGE sql VOLATILE SET search_path = pg_catalog, pg_temp AS $$
    SELECT ('x' || left(replace(gen_random_uuid()::text, '-', ''), 16))::bit(64)::bigint
$$;

INSERT INTO pgherd.schema_change SELECT pgherd.random_token() WHERE NOT EXISTS (SELECT FROM pgherd.schema_change);

CREATE OR REPLACE FUNCTION pgherd.schema_version() RETURNS bigint LANGUAGE sql STABLE AS $$
    SELECT pg_catalog.bit_xor(c.token) FROM pgherd.schema_change c
$$;

-- Fails (PGH02) where the version is another one: the schema has changed meanwhile.
CREATE OR REPLACE FUNCTION pgherd.expect_schema_version(expected bigint) RETURNS void LANGUAGE plpgsql STABLE AS $$
BEGIN
    IF (SELECT pg_catalog.bit_xor(c.token) FROM pgherd.schema_change c) OPERATOR(pg_catalog.<>) expected THEN
        RAISE EXCEPTION 'the schema has changed' USING ERRCODE = 'PGH02';
    END IF;
END $$;

-- Runs within each command that changes the schema. What it writes becomes visible in the same moment as the change.
CREATE OR REPLACE FUNCTION pgherd.note_schema_change() RETURNS event_trigger
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
BEGIN
    -- Nothing begins to run by itself through these. Before CREATE INDEX, which may run in several transactions, the other
    -- trigger has noted it in the first of them.
    IF tg_event = 'ddl_command_end' AND tg_tag IN ('ALTER PUBLICATION', 'ALTER SEQUENCE', 'ALTER SUBSCRIPTION', 'ANALYZE', 'COMMENT',
        'CREATE INDEX', 'CREATE PUBLICATION', 'CREATE SEQUENCE', 'CREATE STATISTICS', 'CREATE SUBSCRIPTION', 'CREATE TABLE AS',
        'GRANT', 'REFRESH MATERIALIZED VIEW', 'REINDEX', 'REVOKE', 'SECURITY LABEL', 'SELECT INTO') OR tg_tag LIKE 'DROP %' THEN
        RETURN;
    END IF;
    -- A temporary table is looked at each time; gathering makes many of them.
    IF tg_event = 'ddl_command_end' AND tg_tag IN ('ALTER TABLE', 'CREATE TABLE') AND NOT EXISTS (
        SELECT FROM pg_event_trigger_ddl_commands() c WHERE c.schema_name IS DISTINCT FROM 'pg_temp')
    THEN
        RETURN;
    END IF;
    INSERT INTO pgherd.schema_change VALUES (pgherd.random_token());
    -- Rows that others' transactions are just merging are passed by. In one snapshot, a row that is gone would be an error.
    IF current_setting('transaction_isolation') = 'read committed' AND (SELECT count(*) > 30 FROM pgherd.schema_change) THEN
        WITH old AS (SELECT c.ctid AS place FROM pgherd.schema_change c FOR UPDATE SKIP LOCKED),
            gone AS (DELETE FROM pgherd.schema_change c USING old WHERE c.ctid = old.place RETURNING c.token)
        INSERT INTO pgherd.schema_change SELECT bit_xor(token) FROM gone HAVING count(*) > 0;
    END IF;
END $$;

DROP EVENT TRIGGER IF EXISTS pgherd_schema_change;
CREATE EVENT TRIGGER pgherd_schema_change ON ddl_command_end EXECUTE FUNCTION pgherd.note_schema_change();
DROP EVENT TRIGGER IF EXISTS pgherd_schema_change_begins;
CREATE EVENT TRIGGER pgherd_schema_change_begins ON ddl_command_start WHEN TAG IN ('CREATE INDEX')
    EXECUTE FUNCTION pgherd.note_schema_change();
