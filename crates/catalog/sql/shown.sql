-- PostgreSQL's catalogs as clients of a gateway see them: a sharded table whose ranges are pgherd's is one table. Its ranges do
-- not show, and its numbers are those of all shards. The gateway calls these in the place of PostgreSQL's own, with what it has
-- asked the shards: an object of tables and indexes by OID, see pgherd.shown_facts() and the gateway's shown_catalogs.

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
        'class', CASE WHEN 'class' = ANY (wanted) THEN (SELECT jsonb_build_object('reltuples', coalesce(sum(c.reltuples) FILTER (WHERE c.reltuples >= 0), -1),
                'relpages', coalesce(sum(c.relpages), 0), 'relallvisible', coalesce(sum(c.relallvisible), 0))
            FROM tree JOIN pg_class c ON c.oid = tree.oid WHERE tree.root = r.oid AND c.relkind IN ('r', 'i')) END,
        'sizes', CASE WHEN 'sizes' = ANY (wanted) THEN (SELECT jsonb_build_object('main', coalesce(sum(pg_relation_size(c.oid)), 0), 'table', coalesce(sum(pg_table_size(c.oid)), 0),
                'indexes', coalesce(sum(pg_indexes_size(c.oid)), 0), 'total', coalesce(sum(pg_total_relation_size(c.oid)), 0))
            FROM tree JOIN pg_class c ON c.oid = tree.oid WHERE tree.root = r.oid AND c.relkind IN ('r', 'i')) END,
        -- Counts are added up; of times, the last one counts.
        'activity', CASE WHEN 'activity' = ANY (wanted) THEN (SELECT coalesce(jsonb_object_agg(field, coalesce(to_jsonb(added), to_jsonb(last))), '{}') FROM (
            SELECT e.key AS field, max(e.value #>> '{}') FILTER (WHERE jsonb_typeof(e.value) = 'string') AS last,
                sum((e.value #>> '{}')::numeric) FILTER (WHERE jsonb_typeof(e.value) = 'number') AS added
            FROM tree JOIN pg_stat_all_tables s ON s.relid = tree.oid CROSS JOIN jsonb_each(to_jsonb(s)) e
            WHERE tree.root = r.oid AND e.key NOT IN ('relid', 'schemaname', 'relname') AND e.value <> 'null' GROUP BY e.key) sums) END
    )), '{}') FROM relations r
$$;

-- Whether a relation is one of those that hold ranges.
CREATE OR REPLACE FUNCTION pgherd.is_inside(relation oid) RETURNS boolean LANGUAGE sql STABLE PARALLEL SAFE AS $$
    SELECT EXISTS (SELECT FROM pg_catalog.pg_class c JOIN pg_catalog.pg_namespace n ON n.oid OPERATOR(pg_catalog.=) c.relnamespace
        WHERE c.oid OPERATOR(pg_catalog.=) relation AND n.nspname OPERATOR(pg_catalog.=) 'pgherd_data')
$$;

CREATE OR REPLACE FUNCTION pgherd.pg_class(shown jsonb) RETURNS SETOF pg_catalog.pg_class LANGUAGE sql STABLE AS $$
    SELECT c.* FROM pg_catalog.pg_class c WHERE NOT (shown OPERATOR(pg_catalog.?) c.oid::pg_catalog.text)
        AND c.relnamespace OPERATOR(pg_catalog.<>) ALL (SELECT n.oid FROM pg_catalog.pg_namespace n WHERE n.nspname OPERATOR(pg_catalog.=) 'pgherd_data')
    UNION ALL
    SELECT (r).* FROM (SELECT pg_catalog.jsonb_populate_record(c, shown OPERATOR(pg_catalog.->) c.oid::pg_catalog.text OPERATOR(pg_catalog.->) 'class') AS r
        FROM pg_catalog.pg_class c WHERE c.oid OPERATOR(pg_catalog.=) ANY (ARRAY(SELECT k::pg_catalog.oid FROM pg_catalog.jsonb_object_keys(shown) k)) OFFSET 0) s
$$;
CREATE OR REPLACE FUNCTION pgherd.pg_inherits(shown jsonb) RETURNS SETOF pg_catalog.pg_inherits LANGUAGE sql STABLE AS
$$ SELECT i.* FROM pg_catalog.pg_inherits i WHERE NOT pgherd.is_inside(i.inhrelid) $$;
CREATE OR REPLACE FUNCTION pgherd.pg_tables(shown jsonb) RETURNS SETOF pg_catalog.pg_tables LANGUAGE sql STABLE AS
$$ SELECT t.* FROM pg_catalog.pg_tables t WHERE t.schemaname OPERATOR(pg_catalog.<>) 'pgherd_data' $$;
CREATE OR REPLACE FUNCTION pgherd.pg_indexes(shown jsonb) RETURNS SETOF pg_catalog.pg_indexes LANGUAGE sql STABLE AS $$
    SELECT x.schemaname, x.tablename, x.indexname, x.tablespace, CASE WHEN EXISTS (SELECT FROM pg_catalog.pg_class c
            JOIN pg_catalog.pg_namespace n ON n.oid OPERATOR(pg_catalog.=) c.relnamespace
            WHERE n.nspname OPERATOR(pg_catalog.=) x.schemaname AND c.relname OPERATOR(pg_catalog.=) x.indexname
            AND shown OPERATOR(pg_catalog.->) c.oid::pg_catalog.text OPERATOR(pg_catalog.->>) 'plain' OPERATOR(pg_catalog.=) 'true')
        THEN pg_catalog.regexp_replace(x.indexdef, ' ON ONLY ', ' ON ') ELSE x.indexdef END
    FROM pg_catalog.pg_indexes x WHERE x.schemaname OPERATOR(pg_catalog.<>) 'pgherd_data'
$$;
CREATE OR REPLACE FUNCTION pgherd.pg_stat_all_tables(shown jsonb) RETURNS SETOF pg_catalog.pg_stat_all_tables LANGUAGE sql STABLE AS $$
    SELECT (r).* FROM (SELECT pg_catalog.jsonb_populate_record(s, coalesce(shown OPERATOR(pg_catalog.->) s.relid::pg_catalog.text OPERATOR(pg_catalog.->) 'activity', '{}')) AS r
        FROM pg_catalog.pg_stat_all_tables s WHERE s.schemaname OPERATOR(pg_catalog.<>) 'pgherd_data' OFFSET 0) s
$$;
CREATE OR REPLACE FUNCTION pgherd.pg_stat_user_tables(shown jsonb) RETURNS SETOF pg_catalog.pg_stat_user_tables LANGUAGE sql STABLE AS $$
    SELECT (r).* FROM (SELECT pg_catalog.jsonb_populate_record(s, coalesce(shown OPERATOR(pg_catalog.->) s.relid::pg_catalog.text OPERATOR(pg_catalog.->) 'activity', '{}')) AS r
        FROM pg_catalog.pg_stat_user_tables s WHERE s.schemaname OPERATOR(pg_catalog.<>) 'pgherd_data' OFFSET 0) s
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
