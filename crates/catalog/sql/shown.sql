-- PostgreSQL's catalogs as clients of a gateway see them: a sharded table whose ranges are pgherd's is one table. Its ranges do
-- not show, and its numbers are those of all shards. The gateway calls these in the place of PostgreSQL's own, with what it has
-- asked the shards: an object of tables and indexes by OID, see pgherd.shown_facts() and the gateway's shown_catalogs. `listed`
-- is true for a statement that lists what there is: it does not see schema pgherd.

-- Earlier forms.
DROP FUNCTION IF EXISTS pgherd.pg_class(jsonb), pgherd.pg_inherits(jsonb), pgherd.pg_tables(jsonb), pgherd.pg_indexes(jsonb),
    pgherd.pg_stat_all_tables(jsonb), pgherd.pg_stat_user_tables(jsonb);

-- Whether one row is in a sample of so many percent; with a seed, the same one each time.
CREATE OR REPLACE FUNCTION pgherd.in_sample(percent real, seed double precision DEFAULT 0, row_text text DEFAULT '') RETURNS boolean
    LANGUAGE plpgsql VOLATILE SET search_path = pg_catalog AS $$
BEGIN
    IF percent IS NULL THEN
        RAISE invalid_tablesample_argument USING MESSAGE = 'TABLESAMPLE parameter cannot be null';
    ELSIF NOT percent BETWEEN 0 AND 100 THEN
        RAISE invalid_tablesample_argument USING MESSAGE = 'sample percentage must be between 0 and 100';
    ELSIF seed IS NULL THEN
        RAISE invalid_tablesample_repeat USING MESSAGE = 'TABLESAMPLE REPEATABLE parameter cannot be null';
    ELSIF row_text = '' THEN
        RETURN random() * 100 < percent;
    END IF;
    RETURN abs(hashtextextended(row_text, hashfloat8extended(seed, 0)) % 1000000) < percent::float8 * 10000;
END $$;

-- Rows of a view of statistics as one: counts are added up; of times, the last one counts.
CREATE OR REPLACE FUNCTION pgherd.added_up(counted jsonb[]) RETURNS jsonb LANGUAGE sql IMMUTABLE SET search_path = pg_catalog AS $$
    SELECT coalesce(jsonb_object_agg(field, coalesce(to_jsonb(added), to_jsonb(last))), '{}') FROM (
        SELECT e.key AS field, max(e.value #>> '{}') FILTER (WHERE jsonb_typeof(e.value) = 'string') AS last,
            sum((e.value #>> '{}')::numeric) FILTER (WHERE jsonb_typeof(e.value) = 'number') AS added
        FROM unnest(counted) one CROSS JOIN jsonb_each(one) e
        WHERE e.key NOT IN ('relid', 'indexrelid', 'schemaname', 'relname', 'indexrelname') AND e.value <> 'null' GROUP BY e.key) sums
$$;

-- What this shard has of some tables ([schema, name] each) and of their indexes, by name: the OID, which table it is or belongs to, and sums
-- over the ranges, of those that are wanted: class, sizes, activity.
CREATE OR REPLACE FUNCTION pgherd.shown_facts(tables jsonb, wanted text[]) RETURNS jsonb LANGUAGE sql STABLE SET search_path = pg_catalog AS $$
    WITH RECURSIVE named AS (
        SELECT c.oid, format('%I.%I', n.nspname, c.relname) AS name, t AS table_name FROM jsonb_array_elements(tables) t
        JOIN pg_namespace n ON n.nspname = t ->> 0 JOIN pg_class c ON c.relnamespace = n.oid AND c.relname = t ->> 1
    ), relations AS (
        SELECT oid, name, table_name, false AS is_index FROM named
        UNION ALL
        SELECT x.indexrelid, format('%I.%I', n.nspname, c.relname), named.table_name, true FROM named JOIN pg_index x ON x.indrelid = named.oid
        JOIN pg_class c ON c.oid = x.indexrelid JOIN pg_namespace n ON n.oid = c.relnamespace
    ), tree AS (
        SELECT oid AS root, oid FROM relations
        UNION ALL
        SELECT tree.root, i.inhrelid FROM tree JOIN pg_inherits i ON i.inhparent = tree.oid
    )
    SELECT coalesce(jsonb_object_agg(r.name, jsonb_build_object('oid', r.oid::text, 'table', r.table_name, 'is_index', r.is_index,
        -- An empty stand-in of a partition that lies elsewhere has a check of its own.
        'checks', (SELECT c.relchecks - 1 FROM pg_class c JOIN pg_constraint k ON k.conrelid = c.oid AND k.conname = 'pgherd_elsewhere' WHERE c.oid = r.oid),
        'class', CASE WHEN 'class' = ANY (wanted) THEN (SELECT jsonb_build_object('reltuples', coalesce(sum(c.reltuples) FILTER (WHERE c.reltuples >= 0), -1),
                'relpages', coalesce(sum(c.relpages), 0), 'relallvisible', coalesce(sum(c.relallvisible), 0),
                -- PostgreSQL lets no partitioned table have any.
                'reloptions', (array_agg(to_jsonb(c.reloptions)) FILTER (WHERE c.reloptions IS NOT NULL))[1])
            FROM tree JOIN pg_class c ON c.oid = tree.oid WHERE tree.root = r.oid AND c.relkind IN ('r', 'i')) END,
        'sizes', CASE WHEN 'sizes' = ANY (wanted) THEN (SELECT jsonb_build_object('main', coalesce(sum(pg_relation_size(c.oid)), 0), 'table', coalesce(sum(pg_table_size(c.oid)), 0),
                'indexes', coalesce(sum(pg_indexes_size(c.oid)), 0), 'total', coalesce(sum(pg_total_relation_size(c.oid)), 0))
            FROM tree JOIN pg_class c ON c.oid = tree.oid WHERE tree.root = r.oid AND c.relkind IN ('r', 'i')) END,
        -- What PostgreSQL counts of tables and indexes, as its views show it.
        'activity', CASE WHEN 'activity' = ANY (wanted) THEN (SELECT pgherd.added_up(array_agg(to_jsonb(s))) FROM tree JOIN pg_stat_all_tables s ON s.relid = tree.oid WHERE tree.root = r.oid) END,
        'index_activity', CASE WHEN 'index_activity' = ANY (wanted) THEN (SELECT pgherd.added_up(array_agg(to_jsonb(s))) FROM tree JOIN pg_stat_all_indexes s ON s.indexrelid = tree.oid WHERE tree.root = r.oid) END,
        'blocks', CASE WHEN 'blocks' = ANY (wanted) THEN (SELECT pgherd.added_up(array_agg(to_jsonb(s))) FROM tree JOIN pg_statio_all_tables s ON s.relid = tree.oid WHERE tree.root = r.oid) END,
        'index_blocks', CASE WHEN 'index_blocks' = ANY (wanted) THEN (SELECT pgherd.added_up(array_agg(to_jsonb(s))) FROM tree JOIN pg_statio_all_indexes s ON s.indexrelid = tree.oid WHERE tree.root = r.oid) END
    )), '{}') FROM relations r
$$;

-- Whether a relation is one of those that hold ranges.
CREATE OR REPLACE FUNCTION pgherd.is_inside(relation oid) RETURNS boolean LANGUAGE sql STABLE PARALLEL SAFE AS $$
    SELECT EXISTS (SELECT FROM pg_catalog.pg_class c JOIN pg_catalog.pg_namespace n ON n.oid OPERATOR(pg_catalog.=) c.relnamespace
        WHERE c.oid OPERATOR(pg_catalog.=) relation AND n.nspname OPERATOR(pg_catalog.=) 'pgherd_data')
$$;

-- Schemas that a client is not shown.
CREATE OR REPLACE FUNCTION pgherd.hidden_schemas(listed boolean) RETURNS oid[] LANGUAGE sql STABLE PARALLEL SAFE AS $$
    SELECT ARRAY(SELECT n.oid FROM pg_catalog.pg_namespace n WHERE n.nspname OPERATOR(pg_catalog.=) 'pgherd_data' OR (listed AND n.nspname OPERATOR(pg_catalog.=) 'pgherd'))
$$;
CREATE OR REPLACE FUNCTION pgherd.hidden_schema_names(listed boolean) RETURNS text[] LANGUAGE sql IMMUTABLE PARALLEL SAFE AS
$$ SELECT CASE WHEN listed THEN '{pgherd,pgherd_data}'::pg_catalog.text[] ELSE '{pgherd_data}' END $$;

CREATE OR REPLACE FUNCTION pgherd.pg_class(shown jsonb, listed boolean) RETURNS SETOF pg_catalog.pg_class LANGUAGE sql STABLE AS $$
    SELECT c.* FROM pg_catalog.pg_class c WHERE NOT (shown OPERATOR(pg_catalog.?) c.oid::pg_catalog.text)
        AND c.relnamespace OPERATOR(pg_catalog.<>) ALL ((SELECT pgherd.hidden_schemas(listed))::pg_catalog.oid[])
    UNION ALL
    SELECT (r).* FROM (SELECT pg_catalog.jsonb_populate_record(c, shown OPERATOR(pg_catalog.->) c.oid::pg_catalog.text OPERATOR(pg_catalog.->) 'class') AS r
        FROM pg_catalog.pg_class c WHERE c.oid OPERATOR(pg_catalog.=) ANY (ARRAY(SELECT k::pg_catalog.oid FROM pg_catalog.jsonb_object_keys(shown) k)) OFFSET 0) s
$$;
CREATE OR REPLACE FUNCTION pgherd.pg_inherits(listed boolean) RETURNS SETOF pg_catalog.pg_inherits LANGUAGE sql STABLE AS
$$ SELECT i.* FROM pg_catalog.pg_inherits i WHERE NOT pgherd.is_inside(i.inhrelid) $$;
CREATE OR REPLACE FUNCTION pgherd.pg_partitioned_table(shown jsonb, listed boolean) RETURNS SETOF pg_catalog.pg_partitioned_table LANGUAGE sql STABLE AS $$
    SELECT p.* FROM pg_catalog.pg_partitioned_table p WHERE NOT pgherd.is_inside(p.partrelid)
        AND shown OPERATOR(pg_catalog.->) p.partrelid::pg_catalog.text OPERATOR(pg_catalog.->>) 'plain' IS DISTINCT FROM 'true'
$$;
CREATE OR REPLACE FUNCTION pgherd.pg_indexes(shown jsonb, listed boolean) RETURNS SETOF pg_catalog.pg_indexes LANGUAGE sql STABLE AS $$
    SELECT x.schemaname, x.tablename, x.indexname, x.tablespace, CASE WHEN EXISTS (SELECT FROM pg_catalog.pg_class c
            JOIN pg_catalog.pg_namespace n ON n.oid OPERATOR(pg_catalog.=) c.relnamespace
            WHERE n.nspname OPERATOR(pg_catalog.=) x.schemaname AND c.relname OPERATOR(pg_catalog.=) x.indexname
            AND shown OPERATOR(pg_catalog.->) c.oid::pg_catalog.text OPERATOR(pg_catalog.->>) 'plain' OPERATOR(pg_catalog.=) 'true')
        THEN pg_catalog.regexp_replace(x.indexdef, ' ON ONLY ', ' ON ') ELSE x.indexdef END
    FROM pg_catalog.pg_indexes x WHERE x.schemaname OPERATOR(pg_catalog.<>) ALL (pgherd.hidden_schema_names(listed))
$$;
-- PostgreSQL's views of statistics, with the sums of all shards. A view that leaves out partitioned tables or indexes has no row for those
-- that are given: they are added.
CREATE OR REPLACE FUNCTION pgherd.pg_stat_all_tables(shown jsonb, listed boolean) RETURNS SETOF pg_catalog.pg_stat_all_tables LANGUAGE sql STABLE AS $$
    SELECT (r).* FROM (SELECT pg_catalog.jsonb_populate_record(s, coalesce(shown OPERATOR(pg_catalog.->) s.relid::pg_catalog.text OPERATOR(pg_catalog.->) 'activity', '{}')) AS r
        FROM pg_catalog.pg_stat_all_tables s WHERE s.schemaname OPERATOR(pg_catalog.<>) ALL (pgherd.hidden_schema_names(listed)) OFFSET 0) s
$$;
CREATE OR REPLACE FUNCTION pgherd.shown_relations(shown jsonb) RETURNS TABLE (relid oid, schemaname name, relname name, relkind "char") LANGUAGE sql STABLE AS $$
    SELECT c.oid, n.nspname, c.relname, c.relkind FROM pg_catalog.pg_class c JOIN pg_catalog.pg_namespace n ON n.oid OPERATOR(pg_catalog.=) c.relnamespace
    WHERE c.oid OPERATOR(pg_catalog.=) ANY (ARRAY(SELECT k::pg_catalog.oid FROM pg_catalog.jsonb_object_keys(shown) k))
$$;
CREATE OR REPLACE FUNCTION pgherd.shown_indexes(shown jsonb) RETURNS TABLE (relid oid, indexrelid oid, schemaname name, relname name, indexrelname name) LANGUAGE sql STABLE AS $$
    SELECT c.oid, i.relid, n.nspname, c.relname, i.relname FROM pgherd.shown_relations(shown) i
    JOIN pg_catalog.pg_index x ON x.indexrelid OPERATOR(pg_catalog.=) i.relid JOIN pg_catalog.pg_class c ON c.oid OPERATOR(pg_catalog.=) x.indrelid
    JOIN pg_catalog.pg_namespace n ON n.oid OPERATOR(pg_catalog.=) c.relnamespace WHERE i.relkind OPERATOR(pg_catalog.=) 'I'
$$;
CREATE OR REPLACE FUNCTION pgherd.pg_statio_all_tables(shown jsonb, listed boolean) RETURNS SETOF pg_catalog.pg_statio_all_tables LANGUAGE sql STABLE AS $$
    SELECT (r).* FROM (SELECT pg_catalog.jsonb_populate_record(NULL::pg_catalog.pg_statio_all_tables, pg_catalog.to_jsonb(s) OPERATOR(pg_catalog.||)
            coalesce(shown OPERATOR(pg_catalog.->) s.relid::pg_catalog.text OPERATOR(pg_catalog.->) 'blocks', '{}')) AS r
        FROM (SELECT v.* FROM pg_catalog.pg_statio_all_tables v WHERE v.schemaname OPERATOR(pg_catalog.<>) ALL (pgherd.hidden_schema_names(listed))
            UNION ALL
            SELECT t.relid, t.schemaname, t.relname, 0, 0, NULL, NULL, NULL, NULL, NULL, NULL FROM pgherd.shown_relations(shown) t
            WHERE t.relkind OPERATOR(pg_catalog.=) 'p') s OFFSET 0) s
$$;
CREATE OR REPLACE FUNCTION pgherd.pg_stat_all_indexes(shown jsonb, listed boolean) RETURNS SETOF pg_catalog.pg_stat_all_indexes LANGUAGE sql STABLE AS $$
    SELECT (r).* FROM (SELECT pg_catalog.jsonb_populate_record(NULL::pg_catalog.pg_stat_all_indexes, pg_catalog.to_jsonb(s) OPERATOR(pg_catalog.||)
            coalesce(shown OPERATOR(pg_catalog.->) s.indexrelid::pg_catalog.text OPERATOR(pg_catalog.->) 'index_activity', '{}')) AS r
        FROM (SELECT v.* FROM pg_catalog.pg_stat_all_indexes v WHERE v.schemaname OPERATOR(pg_catalog.<>) ALL (pgherd.hidden_schema_names(listed))
            UNION ALL SELECT i.*, 0, 0, 0 FROM pgherd.shown_indexes(shown) i) s OFFSET 0) s
$$;
CREATE OR REPLACE FUNCTION pgherd.pg_statio_all_indexes(shown jsonb, listed boolean) RETURNS SETOF pg_catalog.pg_statio_all_indexes LANGUAGE sql STABLE AS $$
    SELECT (r).* FROM (SELECT pg_catalog.jsonb_populate_record(NULL::pg_catalog.pg_statio_all_indexes, pg_catalog.to_jsonb(s) OPERATOR(pg_catalog.||)
            coalesce(shown OPERATOR(pg_catalog.->) s.indexrelid::pg_catalog.text OPERATOR(pg_catalog.->) 'index_blocks', '{}')) AS r
        FROM (SELECT v.* FROM pg_catalog.pg_statio_all_indexes v WHERE v.schemaname OPERATOR(pg_catalog.<>) ALL (pgherd.hidden_schema_names(listed))
            UNION ALL SELECT i.*, 0, 0 FROM pgherd.shown_indexes(shown) i) s OFFSET 0) s
$$;
-- The same of users' tables only, as PostgreSQL's own views say it.
DO $do$
DECLARE
    kind text;
BEGIN
    FOREACH kind IN ARRAY '{stat_%s_tables,statio_%s_tables,stat_%s_indexes,statio_%s_indexes}'::text[] LOOP
        EXECUTE pg_catalog.format('CREATE OR REPLACE FUNCTION pgherd.%I(shown jsonb, listed boolean) RETURNS SETOF pg_catalog.%1$I LANGUAGE sql STABLE AS '
            '$$ SELECT s.* FROM pgherd.%I(shown, listed) s WHERE s.schemaname OPERATOR(pg_catalog.<>) ALL (''{pg_catalog,information_schema}''::pg_catalog.name[]) '
            'AND s.schemaname OPERATOR(pg_catalog.!~) ''^pg_toast'' $$', 'pg_' || pg_catalog.format(kind, 'user'), 'pg_' || pg_catalog.format(kind, 'all'));
    END LOOP;
END $do$;
-- What is each shard's own, without the schemas that a client is not shown.
DO $do$
DECLARE
    view text;
BEGIN
    FOREACH view IN ARRAY '{pg_stat_xact_all_tables,pg_stat_xact_user_tables,pg_statio_all_sequences,pg_statio_user_sequences,pg_publication_tables,
        pg_stat_user_functions}'::text[] LOOP
        EXECUTE pg_catalog.format('CREATE OR REPLACE FUNCTION pgherd.%I(listed boolean) RETURNS SETOF pg_catalog.%1$I LANGUAGE sql STABLE AS '
            '$$ SELECT s.* FROM pg_catalog.%1$I s WHERE s.schemaname OPERATOR(pg_catalog.<>) ALL (pgherd.hidden_schema_names(listed)) $$', view);
    END LOOP;
END $do$;
-- What ANALYZE estimated. A table that was made as a plain one has no children.
CREATE OR REPLACE FUNCTION pgherd.pg_stats(shown jsonb, listed boolean) RETURNS SETOF pg_catalog.pg_stats LANGUAGE sql STABLE AS $$
    SELECT (r).* FROM (SELECT CASE WHEN EXISTS (SELECT FROM pgherd.shown_relations(shown) t WHERE t.schemaname OPERATOR(pg_catalog.=) s.schemaname
                AND t.relname OPERATOR(pg_catalog.=) s.tablename AND shown OPERATOR(pg_catalog.->) t.relid::pg_catalog.text OPERATOR(pg_catalog.->>) 'plain' OPERATOR(pg_catalog.=) 'true')
            THEN pg_catalog.jsonb_populate_record(s, '{"inherited": false}') ELSE s END AS r
        FROM pg_catalog.pg_stats s WHERE s.schemaname OPERATOR(pg_catalog.<>) ALL (pgherd.hidden_schema_names(listed)) OFFSET 0) s
$$;

-- What is in those schemas, and they themselves.
CREATE OR REPLACE FUNCTION pgherd.pg_namespace(listed boolean) RETURNS SETOF pg_catalog.pg_namespace LANGUAGE sql STABLE AS
$$ SELECT n.* FROM pg_catalog.pg_namespace n WHERE n.nspname OPERATOR(pg_catalog.<>) ALL (pgherd.hidden_schema_names(listed)) $$;
-- No gateway lets anybody into template1. What works through all databases that allow connections, such as pg_dumpall and vacuumdb --all, is to pass it by.
CREATE OR REPLACE FUNCTION pgherd.pg_database(listed boolean) RETURNS SETOF pg_catalog.pg_database LANGUAGE sql STABLE AS $$
    SELECT r.* FROM pg_catalog.pg_database d CROSS JOIN LATERAL pg_catalog.jsonb_populate_record(d,
        CASE WHEN d.datname OPERATOR(pg_catalog.=) 'template1' THEN '{"datallowconn": false}' ELSE '{}' END::pg_catalog.jsonb) r
$$;
CREATE OR REPLACE FUNCTION pgherd.pg_proc(listed boolean) RETURNS SETOF pg_catalog.pg_proc LANGUAGE sql STABLE AS
$$ SELECT p.* FROM pg_catalog.pg_proc p WHERE p.pronamespace OPERATOR(pg_catalog.<>) ALL ((SELECT pgherd.hidden_schemas(listed))::pg_catalog.oid[]) $$;
CREATE OR REPLACE FUNCTION pgherd.pg_type(listed boolean) RETURNS SETOF pg_catalog.pg_type LANGUAGE sql STABLE AS
$$ SELECT t.* FROM pg_catalog.pg_type t WHERE t.typnamespace OPERATOR(pg_catalog.<>) ALL ((SELECT pgherd.hidden_schemas(listed))::pg_catalog.oid[]) $$;
CREATE OR REPLACE FUNCTION pgherd.pg_constraint(listed boolean) RETURNS SETOF pg_catalog.pg_constraint LANGUAGE sql STABLE AS $$
    SELECT k.* FROM pg_catalog.pg_constraint k WHERE k.conname OPERATOR(pg_catalog.<>) 'pgherd_elsewhere'
        -- Of a foreign key PostgreSQL has one for each range on either side.
        AND (k.conparentid OPERATOR(pg_catalog.=) 0 OR k.confrelid OPERATOR(pg_catalog.=) 0 OR NOT pgherd.is_inside(k.confrelid))
        AND k.connamespace OPERATOR(pg_catalog.<>) ALL ((SELECT pgherd.hidden_schemas(listed))::pg_catalog.oid[])
$$;
CREATE OR REPLACE FUNCTION pgherd.pg_attrdef(listed boolean) RETURNS SETOF pg_catalog.pg_attrdef LANGUAGE sql STABLE AS $$
    SELECT d.* FROM pg_catalog.pg_attrdef d WHERE NOT EXISTS (SELECT FROM pg_catalog.pg_class c WHERE c.oid OPERATOR(pg_catalog.=) d.adrelid
        AND c.relnamespace OPERATOR(pg_catalog.=) ANY ((SELECT pgherd.hidden_schemas(listed))::pg_catalog.oid[]))
$$;
CREATE OR REPLACE FUNCTION pgherd.pg_event_trigger(listed boolean) RETURNS SETOF pg_catalog.pg_event_trigger LANGUAGE sql STABLE AS
$$ SELECT e.* FROM pg_catalog.pg_event_trigger e WHERE NOT (listed AND e.evtname OPERATOR(pg_catalog.~~) 'pgherd\_%') $$;
CREATE OR REPLACE FUNCTION pgherd.pg_rewrite(listed boolean) RETURNS SETOF pg_catalog.pg_rewrite LANGUAGE sql STABLE AS $$
    SELECT w.* FROM pg_catalog.pg_rewrite w WHERE NOT EXISTS (SELECT FROM pg_catalog.pg_class c WHERE c.oid OPERATOR(pg_catalog.=) w.ev_class
        AND c.relnamespace OPERATOR(pg_catalog.=) ANY ((SELECT pgherd.hidden_schemas(listed))::pg_catalog.oid[]))
$$;
CREATE OR REPLACE FUNCTION pgherd.pg_tables(listed boolean) RETURNS SETOF pg_catalog.pg_tables LANGUAGE sql STABLE AS
$$ SELECT t.* FROM pg_catalog.pg_tables t WHERE t.schemaname OPERATOR(pg_catalog.<>) ALL (pgherd.hidden_schema_names(listed)) $$;
CREATE OR REPLACE FUNCTION pgherd.pg_views(listed boolean) RETURNS SETOF pg_catalog.pg_views LANGUAGE sql STABLE AS
$$ SELECT v.* FROM pg_catalog.pg_views v WHERE v.schemaname OPERATOR(pg_catalog.<>) ALL (pgherd.hidden_schema_names(listed)) $$;
CREATE OR REPLACE FUNCTION pgherd.pg_sequences(listed boolean) RETURNS SETOF pg_catalog.pg_sequences LANGUAGE sql STABLE AS
$$ SELECT s.* FROM pg_catalog.pg_sequences s WHERE s.schemaname OPERATOR(pg_catalog.<>) ALL (pgherd.hidden_schema_names(listed)) $$;

CREATE OR REPLACE FUNCTION pgherd.is_part_of_key(schema text, name text) RETURNS boolean LANGUAGE sql STABLE AS $$
    SELECT EXISTS (SELECT FROM pg_catalog.pg_constraint k JOIN pg_catalog.pg_namespace n ON n.oid OPERATOR(pg_catalog.=) k.connamespace
        WHERE k.conname OPERATOR(pg_catalog.=) name AND n.nspname OPERATOR(pg_catalog.=) schema
          AND k.contype OPERATOR(pg_catalog.=) 'f' AND k.conparentid OPERATOR(pg_catalog.<>) 0 AND pgherd.is_inside(k.confrelid))
$$;

-- The views of information_schema likewise: pgherd.information_schema_tables() and so on, by the columns that name a schema.
DO $do$
DECLARE
    shown_view record;
BEGIN
    FOR shown_view IN
        SELECT c.relname, pg_catalog.string_agg(pg_catalog.format(CASE a.attname
                WHEN 'constraint_name' THEN 'v.%I IS DISTINCT FROM ''pgherd_elsewhere'' AND NOT pgherd.is_part_of_key(v.constraint_schema::pg_catalog.text, v.constraint_name::pg_catalog.text)'
                ELSE '(v.%I IS NULL OR v.%1$I::pg_catalog.text OPERATOR(pg_catalog.<>) ALL (pgherd.hidden_schema_names(listed)))' END, a.attname), ' AND ') AS condition
        FROM pg_catalog.pg_class c JOIN pg_catalog.pg_attribute a ON a.attrelid = c.oid
        WHERE c.relnamespace = 'information_schema'::pg_catalog.regnamespace AND a.attname IN ('schema_name', 'table_schema', 'constraint_schema',
                'sequence_schema', 'routine_schema', 'specific_schema', 'object_schema', 'trigger_schema', 'view_schema', 'constraint_name')
            AND c.relname IN ('check_constraints', 'column_column_usage', 'column_domain_usage', 'column_privileges', 'column_udt_usage', 'columns',
                'constraint_column_usage', 'constraint_table_usage', 'data_type_privileges', 'element_types',
                'key_column_usage', 'parameters', 'referential_constraints', 'role_column_grants', 'role_routine_grants', 'role_table_grants',
                'routine_privileges', 'routines', 'schemata', 'sequences', 'table_constraints', 'table_privileges', 'tables', 'triggers',
                'view_column_usage', 'view_table_usage', 'views')
        GROUP BY c.relname
    LOOP
        EXECUTE pg_catalog.format('CREATE OR REPLACE FUNCTION pgherd.%I(listed boolean) RETURNS SETOF information_schema.%I LANGUAGE sql STABLE AS '
            '$$ SELECT v.* FROM information_schema.%2$I v WHERE %s $$', 'information_schema_' || shown_view.relname, shown_view.relname, shown_view.condition);
    END LOOP;
END $do$;

-- A table that was made as a plain one is no partitioned one; one whose ranges are pgherd's has no partitions.
CREATE OR REPLACE FUNCTION pgherd.pg_get_partkeydef(shown jsonb, relation oid) RETURNS text LANGUAGE sql STABLE PARALLEL SAFE AS $$
    SELECT CASE WHEN shown OPERATOR(pg_catalog.->) relation::pg_catalog.text OPERATOR(pg_catalog.->>) 'plain' OPERATOR(pg_catalog.=) 'true'
        THEN NULL ELSE pg_catalog.pg_get_partkeydef(relation) END
$$;
CREATE OR REPLACE FUNCTION pgherd.pg_partition_tree(shown jsonb, relation regclass, OUT relid regclass, OUT parentrelid regclass, OUT isleaf boolean,
    OUT level integer) RETURNS SETOF record LANGUAGE sql STABLE PARALLEL SAFE AS $$
    SELECT t.relid, t.parentrelid, t.isleaf, t.level FROM pg_catalog.pg_partition_tree(relation) t WHERE NOT pgherd.is_inside(t.relid)
        AND shown OPERATOR(pg_catalog.->) t.relid::pg_catalog.oid::pg_catalog.text OPERATOR(pg_catalog.->>) 'plain' IS DISTINCT FROM 'true'
$$;

-- Sizes of all shards together.
CREATE OR REPLACE FUNCTION pgherd.shown_size(shown jsonb, relation regclass, which text) RETURNS bigint LANGUAGE sql STABLE PARALLEL SAFE AS
$$ SELECT (shown OPERATOR(pg_catalog.->) relation::pg_catalog.oid::pg_catalog.text OPERATOR(pg_catalog.->) 'sizes' OPERATOR(pg_catalog.->>) which)::pg_catalog.int8 $$;
CREATE OR REPLACE FUNCTION pgherd.pg_relation_size(shown jsonb, relation regclass) RETURNS bigint LANGUAGE sql VOLATILE PARALLEL SAFE AS
$$ SELECT coalesce(pgherd.shown_size(shown, relation, 'main'), pg_catalog.pg_relation_size(relation)) $$;
CREATE OR REPLACE FUNCTION pgherd.pg_relation_size(shown jsonb, relation regclass, fork text) RETURNS bigint LANGUAGE sql VOLATILE PARALLEL SAFE AS
$$ SELECT coalesce(CASE WHEN fork OPERATOR(pg_catalog.=) 'main' THEN pgherd.shown_size(shown, relation, 'main') END, pg_catalog.pg_relation_size(relation, fork)) $$;
CREATE OR REPLACE FUNCTION pgherd.pg_table_size(shown jsonb, relation regclass) RETURNS bigint LANGUAGE sql VOLATILE PARALLEL SAFE AS
$$ SELECT coalesce(pgherd.shown_size(shown, relation, 'table'), pg_catalog.pg_table_size(relation)) $$;
CREATE OR REPLACE FUNCTION pgherd.pg_indexes_size(shown jsonb, relation regclass) RETURNS bigint LANGUAGE sql VOLATILE PARALLEL SAFE AS
$$ SELECT coalesce(pgherd.shown_size(shown, relation, 'indexes'), pg_catalog.pg_indexes_size(relation)) $$;
CREATE OR REPLACE FUNCTION pgherd.pg_total_relation_size(shown jsonb, relation regclass) RETURNS bigint LANGUAGE sql VOLATILE PARALLEL SAFE AS
$$ SELECT coalesce(pgherd.shown_size(shown, relation, 'total'), pg_catalog.pg_total_relation_size(relation)) $$;

-- An index of a table that was made as a plain one was not made ON ONLY it.
CREATE OR REPLACE FUNCTION pgherd.shown_index(shown jsonb, index oid, definition text) RETURNS text LANGUAGE sql STABLE PARALLEL SAFE AS $$
    SELECT CASE WHEN shown OPERATOR(pg_catalog.->) index::pg_catalog.text OPERATOR(pg_catalog.->>) 'plain' OPERATOR(pg_catalog.=) 'true'
        THEN pg_catalog.regexp_replace(definition, ' ON ONLY ', ' ON ') ELSE definition END
$$;
CREATE OR REPLACE FUNCTION pgherd.pg_get_indexdef(shown jsonb, index oid) RETURNS text LANGUAGE sql STABLE PARALLEL SAFE AS
$$ SELECT pgherd.shown_index(shown, index, pg_catalog.pg_get_indexdef(index)) $$;
CREATE OR REPLACE FUNCTION pgherd.pg_get_indexdef(shown jsonb, index oid, place integer, pretty boolean) RETURNS text LANGUAGE sql STABLE PARALLEL SAFE AS
$$ SELECT pgherd.shown_index(shown, index, pg_catalog.pg_get_indexdef(index, place, pretty)) $$;
