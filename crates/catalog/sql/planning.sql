-- A client's settings for the planner are about its own queries. Under `enable_nestloop = off` and the like, the functions that read the catalogs
-- for a schema change took seconds each, most of them for compiling (jit) what only looked dear. They plan as by default.
-- Nor is how a client writes its strings: with `standard_conforming_strings = off`, their regular expressions would be others.
-- The functions that every transaction calls are not among them: each setting costs a call some microseconds.
DO $$
DECLARE
    function regprocedure;
    setting text;
BEGIN
    FOR function IN
        SELECT p.oid::regprocedure FROM pg_catalog.pg_proc p
        WHERE p.pronamespace = 'pgherd'::regnamespace
            AND p.proname = ANY ('{inspect,definition,vanished,snapshot,bodies_mention,twin_views,adopt,change_fences,name_foreign_keys,
                open_children,keep_children,close_sequences,open_sequences,change_copies,has_views,keep_views,shown_facts,added_up,encoding_tables}'::text[])
    LOOP
        EXECUTE pg_catalog.format('ALTER FUNCTION %s SET jit TO off SET standard_conforming_strings TO on', function);
        FOREACH setting IN ARRAY '{seqscan,indexscan,indexonlyscan,bitmapscan,hashjoin,nestloop,mergejoin,sort,hashagg}'::text[] LOOP
            EXECUTE pg_catalog.format('ALTER FUNCTION %s SET enable_%s TO on', function, setting);
        END LOOP;
    END LOOP;
END $$;

-- What these do is not the user's: their event triggers do not fire, which would run under these functions' search_path. pgherd's own always do.
DO $$
DECLARE
    object regprocedure;
    name name;
BEGIN
    FOR object IN
        SELECT p.oid::regprocedure FROM pg_catalog.pg_proc p WHERE p.pronamespace = 'pgherd'::regnamespace AND p.prosecdef
            AND p.proname = ANY ('{adopt,change_fences,open_children,keep_children,close_sequences,open_sequences,change_copies,keep_views}'::text[])
    LOOP
        EXECUTE pg_catalog.format('ALTER FUNCTION %s SET session_replication_role TO replica', object);
    END LOOP;
    FOR name IN SELECT e.evtname FROM pg_catalog.pg_event_trigger e WHERE e.evtname LIKE 'pgherd\_%' LOOP
        EXECUTE pg_catalog.format('ALTER EVENT TRIGGER %I ENABLE ALWAYS', name);
    END LOOP;
END $$;
