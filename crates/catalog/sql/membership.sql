-- pg_dump leaves out what belongs to an extension. pgherd's own objects are the cluster's and not the database's: a dump is for
-- another cluster, which has its own, or for a plain PostgreSQL. Every database has plpgsql, which they need anyway. VERB is ADD when
-- all of them have been made and granted, and DROP before they are made anew, since members cannot be dropped.
DO $$
DECLARE
    object record;
BEGIN
    FOR object IN
        WITH objects AS (
            SELECT 'pg_catalog.pg_namespace'::regclass AS class, n.oid FROM pg_catalog.pg_namespace n WHERE n.nspname IN ('pgherd', 'pgherd_data')
            UNION ALL
            SELECT 'pg_catalog.pg_proc'::regclass, p.oid FROM pg_catalog.pg_proc p WHERE p.pronamespace = to_regnamespace('pgherd')
            UNION ALL
            SELECT 'pg_catalog.pg_event_trigger'::regclass, e.oid FROM pg_catalog.pg_event_trigger e WHERE e.evtname LIKE 'pgherd\_%'
            UNION ALL
            -- Sequences of identity columns belong to their tables.
            SELECT 'pg_catalog.pg_class'::regclass, c.oid FROM pg_catalog.pg_class c
            WHERE c.relnamespace = to_regnamespace('pgherd') AND c.relkind IN ('r', 'v', 'S')
                AND NOT EXISTS (SELECT FROM pg_catalog.pg_depend d WHERE d.classid = 'pg_catalog.pg_class'::regclass AND d.objid = c.oid AND d.deptype = 'i')
        )
        SELECT i.type, i.identity FROM objects o CROSS JOIN LATERAL pg_catalog.pg_identify_object(o.class, o.oid, 0) i
        WHERE ('VERB' = 'DROP') = EXISTS (SELECT FROM pg_catalog.pg_depend d WHERE d.classid = o.class AND d.objid = o.oid AND d.deptype = 'e')
    LOOP
        EXECUTE format('ALTER EXTENSION plpgsql VERB %s %s', object.type, object.identity);
    END LOOP;
END $$;
