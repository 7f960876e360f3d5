-- What a function does to the schema, it does on the home shard alone. That is right for what only the home shard has. What it does to a sharded
-- table, or to the schema, types and functions that its rows on other shards depend on, is refused: other shards would go on as before.

-- The types that users have made and that sharded tables' columns have, themselves or inside of others.
CREATE OR REPLACE FUNCTION pgherd.types_of_sharded_tables() RETURNS SETOF oid LANGUAGE sql STABLE SET search_path = pg_catalog AS $$
    WITH RECURSIVE used(oid) AS (
        SELECT a.atttypid FROM pgherd.sharded_table s JOIN pg_attribute a ON a.attrelid = s.relation
        WHERE a.attnum > 0 AND NOT a.attisdropped AND a.atttypid >= 16384
        UNION SELECT part.oid FROM used JOIN pg_type t ON t.oid = used.oid CROSS JOIN LATERAL (
            SELECT t.typelem UNION SELECT t.typbasetype
            UNION SELECT a.atttypid FROM pg_attribute a WHERE a.attrelid = t.typrelid AND a.attnum > 0 AND NOT a.attisdropped) part(oid)
        WHERE part.oid >= 16384)
    SELECT oid FROM used
$$;

-- What a command has changed that other shards have as well, or NULL.
CREATE OR REPLACE FUNCTION pgherd.changed_elsewhere(tag text, class oid, object oid) RETURNS text LANGUAGE sql STABLE SET search_path = pg_catalog AS $$
    SELECT CASE
        WHEN tag = 'ALTER TABLE' AND object IN (SELECT s.relation FROM pgherd.sharded_table s) THEN format('sharded table %s', object::regclass)
        WHEN tag = 'ALTER SCHEMA' AND EXISTS (SELECT FROM pgherd.sharded_table s JOIN pg_class c ON c.oid = s.relation WHERE c.relnamespace = object)
            THEN format('schema %s', object::regnamespace)
        WHEN tag IN ('ALTER TYPE', 'ALTER DOMAIN') AND EXISTS (SELECT FROM pgherd.types_of_sharded_tables() u JOIN pg_type t ON t.oid = u
                WHERE CASE class WHEN 'pg_type'::regclass THEN t.oid = object WHEN 'pg_class'::regclass THEN t.typrelid = object END)
            THEN format('a type of sharded tables (%s)', CASE class WHEN 'pg_type'::regclass THEN object::regtype::text ELSE object::regclass::text END)
        -- One that is new is on the home shard alone, and is called there. Those of triggers run where the trigger's table is.
        WHEN (tag IN ('ALTER FUNCTION', 'ALTER PROCEDURE', 'ALTER ROUTINE')
                OR tag IN ('CREATE FUNCTION', 'CREATE PROCEDURE') AND current_setting('pgherd.functions', true) = (SELECT count(*) FROM pg_proc)::text)
            AND EXISTS (SELECT FROM pgherd.sharded_table)
            AND EXISTS (SELECT FROM pg_proc p WHERE p.oid = object AND (p.prorettype NOT IN ('trigger'::regtype, 'event_trigger'::regtype)
                OR EXISTS (SELECT FROM pg_trigger g JOIN pgherd.sharded_table s ON s.relation = g.tgrelid WHERE g.tgfoid = p.oid)))
            THEN format('function %s', object::regprocedure)
        -- It does not say of which tables.
        WHEN tag IN ('GRANT', 'REVOKE') THEN (SELECT format('privileges on sharded table %s', c.oid::regclass) FROM pg_class c
            JOIN pgherd.sharded_table s ON s.relation = c.oid WHERE c.xmin = pg_current_xact_id()::xid LIMIT 1)
    END
$$;

CREATE OR REPLACE FUNCTION pgherd.refuse_inner_change() RETURNS event_trigger
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    stack text;
    changed text;
BEGIN
    GET DIAGNOSTICS stack = PG_CONTEXT;
    -- The first line is about this function. A client's own statement, which gateways run on every shard, has no other.
    IF strpos(stack, E'\n') = 0 OR substr(stack, strpos(stack, E'\n')) LIKE '%function pgherd.%' THEN
        RETURN;
    END IF;
    -- With as many functions afterwards as before, one has been replaced.
    IF tg_event = 'ddl_command_start' THEN
        PERFORM set_config('pgherd.functions', (SELECT count(*) FROM pg_proc)::text, true);
        RETURN;
    END IF;
    IF tg_event = 'sql_drop' THEN
        SELECT format('sharded table %s', d.object_identity) INTO changed FROM pg_event_trigger_dropped_objects() d
        WHERE d.classid = 'pg_class'::regclass AND d.objid IN (SELECT s.relation FROM pgherd.sharded_table s) LIMIT 1;
    ELSE
        SELECT w.changed INTO changed FROM pg_event_trigger_ddl_commands() c
        CROSS JOIN LATERAL pgherd.changed_elsewhere(c.command_tag, c.classid, c.objid) w(changed)
        WHERE NOT coalesce(c.in_extension, false) AND w.changed IS NOT NULL LIMIT 1;
    END IF;
    IF changed IS NOT NULL THEN
        RAISE EXCEPTION USING ERRCODE = 'feature_not_supported', MESSAGE = format('%s within a function would change %s on one shard only', tg_tag, changed),
            HINT = 'Send the statement by itself, or in a DO block.';
    END IF;
END $$;
