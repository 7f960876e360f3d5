-- The catalog as one JSON text, for gateways: one statement, so one snapshot. Cheap while no table is sharded.
-- Every schema change reads it. Where a function is PL/pgSQL though it is one query, its plan is kept: a function in SQL is planned anew at
-- each call, which took half of the time.

CREATE OR REPLACE FUNCTION pgherd.columns_of(relation oid) RETURNS json
LANGUAGE sql STABLE SET search_path = pg_catalog AS $$
    SELECT coalesce(json_agg(json_build_object(
        'name', a.attname, 'number', a.attnum, 'type_oid', a.atttypid::bigint, 'type_modifier', a.atttypmod,
        'type_name', format_type(a.atttypid, a.atttypmod), 'not_null', a.attnotnull,
        'default', CASE
            WHEN a.attgenerated <> '' THEN NULL
            -- An identity column's value comes from its sequence, which lives on the home shard like any other.
            WHEN a.attidentity <> '' THEN format('nextval(%L::regclass)', pg_get_serial_sequence(relation::regclass::text, a.attname))
            -- A default names no column, so it is read without its table, which pg_get_expr would lock. Without one, a domain's holds.
            ELSE coalesce(pg_get_expr(d.adbin, 0), pg_get_expr(t.typdefaultbin, 0)) END,
        'generated', a.attgenerated <> '',
        'identity', CASE a.attidentity WHEN 'a' THEN true WHEN 'd' THEN false END) ORDER BY a.attnum), '[]')
    FROM pg_attribute a JOIN pg_type t ON t.oid = a.atttypid LEFT JOIN pg_attrdef d ON d.adrelid = a.attrelid AND d.adnum = a.attnum
    WHERE a.attrelid = relation AND a.attnum > 0 AND NOT a.attisdropped
$$;

-- What an open transaction of somebody else has locked against reading, or waits to, and what names that in a rule. PostgreSQL locks
-- the relations of a view before it shows the view's text, and no gateway may wait for a client's transaction.
CREATE OR REPLACE FUNCTION pgherd.held_relations() RETURNS oid[]
LANGUAGE plpgsql STABLE SET search_path = pg_catalog AS $$
BEGIN
    RETURN (
    WITH RECURSIVE locks AS MATERIALIZED (
        SELECT l.relation AS oid, l.pid IS NOT DISTINCT FROM pg_backend_pid() AND l.granted AS own, l.mode FROM pg_locks l
        WHERE l.locktype = 'relation' AND l.database = (SELECT d.oid FROM pg_database d WHERE d.datname = current_database())
    ), held(oid) AS (
        SELECT l.oid FROM locks l WHERE l.mode = 'AccessExclusiveLock' AND NOT EXISTS (SELECT FROM locks o WHERE o.own AND o.oid = l.oid)
        UNION SELECT w.ev_class FROM held h
        JOIN pg_depend d ON d.refclassid = 'pg_class'::regclass AND d.refobjid = h.oid AND d.classid = 'pg_rewrite'::regclass
        JOIN pg_rewrite w ON w.oid = d.objid)
    SELECT coalesce(array_agg(held.oid), '{}') FROM held);
END $$;

-- Another one whenever the text of this rule or function may be another one: with its own row (`own`), and with the rows of what it names.
CREATE OR REPLACE FUNCTION pgherd.text_version(class oid, object oid, own xid) RETURNS text
LANGUAGE sql STABLE SET search_path = pg_catalog AS $$
    SELECT md5(own::text || coalesce(string_agg(concat_ws(' ', d.refobjid, d.refobjsubid, c.xmin, a.xmin, p.xmin, t.xmin, n.nspname), ','
        ORDER BY d.refobjid, d.refobjsubid, d.refclassid), ''))
    FROM pg_depend d
    LEFT JOIN pg_class c ON d.refclassid = 'pg_class'::regclass AND c.oid = d.refobjid
    LEFT JOIN pg_attribute a ON d.refclassid = 'pg_class'::regclass AND a.attrelid = d.refobjid AND a.attnum = d.refobjsubid
    LEFT JOIN pg_proc p ON d.refclassid = 'pg_proc'::regclass AND p.oid = d.refobjid
    LEFT JOIN pg_type t ON d.refclassid = 'pg_type'::regclass AND t.oid = d.refobjid
    LEFT JOIN pg_namespace n ON n.oid = coalesce(c.relnamespace, p.pronamespace, t.typnamespace)
    WHERE d.classid = class AND d.objid = object
$$;

CREATE OR REPLACE FUNCTION pgherd.column_names(relation oid, numbers smallint[]) RETURNS json
LANGUAGE sql STABLE SET search_path = pg_catalog AS $$
    SELECT coalesce(json_agg(a.attname ORDER BY u.n), '[]') FROM unnest(numbers) WITH ORDINALITY AS u(number, n)
    JOIN pg_attribute a ON a.attrelid = relation AND a.attnum = u.number
$$;

-- All sharded tables. One query over sets: every schema change reads this, also in a database of many tables.
CREATE OR REPLACE FUNCTION pgherd.tables_json() RETURNS json
LANGUAGE plpgsql STABLE SET search_path = pg_catalog AS $$
BEGIN
    RETURN (
    WITH t AS MATERIALIZED (
        SELECT s.*, c.oid, n.nspname, c.relname, c.relrowsecurity, p.partattrs::int2[] AS key
        FROM pgherd.sharded_table s JOIN pg_class c ON c.oid = s.relation JOIN pg_namespace n ON n.oid = c.relnamespace
        JOIN pg_partitioned_table p ON p.partrelid = c.oid
    ), keys AS (
        SELECT t.oid, json_agg(json_build_object('name', a.attname, 'type', a.atttypid::bigint) ORDER BY k.n) AS list
        FROM t CROSS JOIN unnest(t.key) WITH ORDINALITY AS k(attnum, n)
        JOIN pg_attribute a ON a.attrelid = t.oid AND a.attnum = k.attnum
        GROUP BY t.oid
    ), ranges AS (
        SELECT r.table_id, json_agg(json_build_object('id', r.id, 'from', r.lower, 'to', r.upper, 'shard', r.shard,
            'schema', r.child_schema, 'name', r.child, 'declared', r.declared)) AS list
        FROM pgherd.table_range r GROUP BY r.table_id
    ), uniques AS (
        SELECT x.indrelid, json_agg(json_build_object('name', i.relname, 'primary', x.indisprimary, 'columns',
                (SELECT json_agg(a.attname ORDER BY k.n) FROM unnest(x.indkey::int2[]) WITH ORDINALITY AS k(attnum, n)
                    JOIN pg_attribute a ON a.attrelid = x.indrelid AND a.attnum = k.attnum WHERE k.n <= x.indnkeyatts))
                ORDER BY x.indisprimary DESC, i.relname) AS list
        FROM t JOIN pg_index x ON x.indrelid = t.oid JOIN pg_class i ON i.oid = x.indexrelid
        WHERE x.indisunique AND x.indisvalid AND x.indpred IS NULL AND x.indexprs IS NULL
        GROUP BY x.indrelid
    ), foreign_keys AS (
        SELECT k.conrelid, json_agg(json_build_object('name', k.conname, 'digest', left(md5(k.conname), 16),
                'referenced', k.confrelid::bigint, 'on_delete', k.confdeltype, 'on_update', k.confupdtype, 'deferrable', k.condeferrable,
                'columns', pgherd.column_names(k.conrelid, k.conkey), 'referenced_columns', pgherd.column_names(k.confrelid, k.confkey))
                ORDER BY k.oid) AS list
        FROM t JOIN pg_constraint k ON k.conrelid = t.oid
        WHERE k.contype = 'f' AND k.conparentid = 0
        GROUP BY k.conrelid
    )
    SELECT coalesce(json_agg(json_build_object(
        'id', t.id, 'oid', t.oid::bigint, 'schema', t.nspname, 'name', t.relname,
        'automatic', t.automatic, 'by_default', t.by_default, 'colocation', t.colocation, 'fence', t.fence,
        'next_range', t.next_range,
        'columns', pgherd.columns_of(t.oid), 'key', keys.list, 'ranges', coalesce(ranges.list, '[]'),
        'unique', coalesce(uniques.list, '[]'), 'foreign_keys', coalesce(foreign_keys.list, '[]'),
        'direct', NOT t.relrowsecurity
            AND NOT EXISTS (SELECT FROM pg_rewrite w WHERE w.ev_class = t.oid)
            AND NOT EXISTS (SELECT FROM pg_trigger g WHERE g.tgrelid = t.oid AND NOT g.tgisinternal AND g.tgtype & 1 = 0))
        ORDER BY t.id), '[]')
    FROM t LEFT JOIN keys ON keys.oid = t.oid LEFT JOIN ranges ON ranges.table_id = t.id
    LEFT JOIN uniques ON uniques.indrelid = t.oid LEFT JOIN foreign_keys ON foreign_keys.conrelid = t.oid);
END $$;

-- Where a view has the rows of one relation, row by row, and nothing stands between: that relation, and for each column of the
-- view that shows one of its columns unchanged, which one. PostgreSQL itself says whether a view is of that kind; sub-queries, an order,
-- whole rows and system columns are left to gateways.
CREATE OR REPLACE FUNCTION pgherd.view_source(view oid) RETURNS json
LANGUAGE sql STABLE SET search_path = pg_catalog AS $$
    SELECT json_build_object('relation', source.oid, 'columns', (
        -- Of each variable what stands behind it, where that is a column's: ' :resno 1 :resname k :ressortgroupref 0 :resorigtbl 16385 :resorigcol 1
        -- :resjunk false', with blanks and braces in names escaped. Split, since a regular expression takes a millisecond for each view.
        SELECT json_object_agg(split_part(shown.text, ' ', 3), int4in(textout(split_part(origin.text, ' ', 5))))
        FROM unnest(string_to_array(w.action, '{VAR ')) variable(text)
        CROSS JOIN LATERAL (SELECT split_part(variable.text, '}', 2)) shown(text)
        CROSS JOIN LATERAL (SELECT split_part(shown.text, ' :ressortgroupref ', 2)) origin(text)
        WHERE shown.text LIKE ' :resno %' AND split_part(origin.text, ' ', 7) = 'false' AND split_part(origin.text, ' ', 3) = source.oid::text))
    FROM (SELECT oid, ev_action::text AS action FROM pg_rewrite WHERE ev_class = view AND rulename = '_RETURN') w
    CROSS JOIN LATERAL (SELECT min(d.refobjid::bigint) AS oid FROM pg_depend d
        WHERE d.classid = 'pg_rewrite'::regclass AND d.objid = w.oid AND d.refclassid = 'pg_class'::regclass AND d.refobjid <> view
        HAVING count(DISTINCT d.refobjid) = 1) source
    -- 1 << CMD_DELETE
    WHERE pg_relation_is_updatable(view, false) & 16 <> 0
      AND length(w.action) - length(replace(w.action, '{QUERY ', '')) = 7 AND w.action !~ ':varattno (-|0 )'
      AND w.action ~ ':sortClause <>' AND pg_get_viewdef(view) !~ '\mONLY\M'
      AND NOT EXISTS (SELECT FROM pg_rewrite o WHERE o.ev_class = view AND o.oid <> w.oid)
      AND NOT EXISTS (SELECT FROM pg_trigger g WHERE g.tgrelid = view)
$$;

-- The views that every shard has, those that others read first: those over sharded tables that have a source. One that reads what another
-- transaction is changing, itself or through others, stays as it is: no text. Views of local tables are not looked at.
CREATE OR REPLACE FUNCTION pgherd.twin_views() RETURNS text
LANGUAGE plpgsql STABLE SECURITY DEFINER SET search_path = pg_catalog AS $$
BEGIN
    RETURN (
    WITH RECURSIVE held AS MATERIALIZED (SELECT unnest(pgherd.held_relations()) AS oid),
    over_sharded(oid) AS (
        SELECT t.relation::oid FROM pgherd.sharded_table t
        UNION SELECT w.ev_class FROM over_sharded o JOIN pg_depend d ON d.refclassid = 'pg_class'::regclass AND d.refobjid = o.oid
            AND d.classid = 'pg_rewrite'::regclass JOIN pg_rewrite w ON w.oid = d.objid AND w.rulename = '_RETURN'),
    users AS MATERIALIZED (SELECT o.oid, o.oid IN (SELECT oid FROM held) AS held FROM over_sharded o WHERE pgherd.is_users_view(o.oid)),
    source AS MATERIALIZED (
        SELECT u.oid, oidin(textout(pgherd.view_source(u.oid) ->> 'relation')) AS relation FROM users u WHERE NOT u.held),
    twin(oid, depth) AS (
        SELECT t.relation::oid, 0 FROM pgherd.sharded_table t
        UNION ALL SELECT s.oid, twin.depth + 1 FROM twin JOIN source s ON s.relation = twin.oid)
    SELECT coalesce(json_agg(json_build_object('schema', n.nspname, 'name', c.relname,
            'text', CASE WHEN v.depth > 0 THEN pgherd.view_text(c.oid) END) ORDER BY v.depth, n.nspname, c.relname), '[]')::text
    FROM (SELECT oid, depth FROM twin WHERE depth > 0 UNION SELECT oid, 0 FROM users WHERE held) v
    JOIN pg_class c ON c.oid = v.oid JOIN pg_namespace n ON n.oid = c.relnamespace);
END $$;

-- Whether a function's body names a local relation behind FROM, INTO and the like: it needs the home shard.
CREATE OR REPLACE FUNCTION pgherd.mentions_local(body text) RETURNS boolean
LANGUAGE sql STABLE SET search_path = pg_catalog AS $$
    SELECT EXISTS (SELECT FROM regexp_matches(lower(body),
            '\m(?:from|join|into|update|using|table|copy)\s+(?:only\s+)?(?:"?[[:alnum:]_$]+"?\s*\.\s*)?"?([[:alnum:]_$]{1,63})', 'g') m
        JOIN pg_class c ON c.relname = m[1]::name AND c.relkind IN ('r', 'p', 'v', 'm', 'f')
        JOIN pg_namespace n ON n.oid = c.relnamespace
        WHERE n.nspname NOT IN ('pg_catalog', 'information_schema', 'pgherd', 'pgherd_data', 'pg_toast')
          AND c.oid NOT IN (SELECT relation FROM pgherd.sharded_table))
$$;

-- What calls a user's function by itself: a table through a default, check, policy, index or trigger, a domain, an operator,
-- a cast, a function through the default of an argument. Types and operators are followed to what uses them.
CREATE OR REPLACE FUNCTION pgherd.dependents() RETURNS json
LANGUAGE plpgsql STABLE SET search_path = pg_catalog AS $$
BEGIN
    RETURN (
    WITH RECURSIVE found(class, object, function) AS (
        SELECT 'pg_proc'::regclass::oid, p.oid, p.oid FROM pg_proc p JOIN pg_namespace n ON n.oid = p.pronamespace
        WHERE n.nspname NOT IN ('pg_catalog', 'information_schema', 'pgherd')
        UNION
        SELECT u.class, u.object, f.function
        FROM found f JOIN pg_depend d ON d.refclassid = f.class AND d.refobjid = f.object
        CROSS JOIN LATERAL (
            SELECT 'pg_class'::regclass::oid, a.adrelid FROM pg_attrdef a
                WHERE d.classid = 'pg_attrdef'::regclass AND a.oid = d.objid
            UNION ALL SELECT 'pg_class'::regclass, k.conrelid FROM pg_constraint k
                WHERE d.classid = 'pg_constraint'::regclass AND k.oid = d.objid AND k.conrelid <> 0
            UNION ALL SELECT 'pg_type'::regclass, k.contypid FROM pg_constraint k
                WHERE d.classid = 'pg_constraint'::regclass AND k.oid = d.objid AND k.contypid <> 0
            UNION ALL SELECT 'pg_class'::regclass, p.polrelid FROM pg_policy p
                WHERE d.classid = 'pg_policy'::regclass AND p.oid = d.objid
            UNION ALL SELECT 'pg_class'::regclass, s.stxrelid FROM pg_statistic_ext s
                WHERE d.classid = 'pg_statistic_ext'::regclass AND s.oid = d.objid
            UNION ALL SELECT 'pg_class'::regclass, t.tgrelid FROM pg_trigger t
                WHERE d.classid = 'pg_trigger'::regclass AND t.oid = d.objid AND t.tgfoid <> f.object
            UNION ALL SELECT 'pg_class'::regclass, w.ev_class FROM pg_rewrite w
                WHERE d.classid = 'pg_rewrite'::regclass AND w.oid = d.objid AND f.class <> 'pg_proc'::regclass
            UNION ALL SELECT 'pg_class'::regclass, coalesce(i.indrelid, c.oid) FROM pg_class c LEFT JOIN pg_index i ON i.indexrelid = c.oid
                WHERE d.classid = 'pg_class'::regclass AND c.oid = d.objid AND c.relkind <> 'c'
            UNION ALL SELECT 'pg_type'::regclass, c.reltype FROM pg_class c
                WHERE d.classid = 'pg_class'::regclass AND c.oid = d.objid AND c.relkind = 'c'
            UNION ALL SELECT 'pg_type'::regclass, t.oid FROM pg_type t
                WHERE d.classid = 'pg_type'::regclass AND t.oid = d.objid AND (t.typtype = 'd' OR f.class = 'pg_type'::regclass)
            UNION ALL SELECT 'pg_operator'::regclass, d.objid WHERE d.classid = 'pg_operator'::regclass
            UNION ALL SELECT 'pg_type'::regclass, t.oid FROM pg_cast x JOIN pg_type t ON t.oid IN (x.castsource, x.casttarget)
                WHERE d.classid = 'pg_cast'::regclass AND x.oid = d.objid AND t.oid >= 16384 AND f.class = 'pg_proc'::regclass
            UNION ALL SELECT 'pg_proc'::regclass, d.objid WHERE d.classid = 'pg_proc'::regclass
        ) u(class, object)
        WHERE f.class IN ('pg_operator'::regclass, 'pg_type'::regclass) OR f.class = 'pg_proc'::regclass AND f.object = f.function
    )
    SELECT coalesce(json_agg(json_build_object('function', function::bigint, 'kind', kind, 'oid', object::bigint,
        'schema', schema, 'name', name)), '[]')
    FROM (
        SELECT f.function, 'relation' AS kind, f.object, n.nspname AS schema, c.relname AS name
        FROM found f JOIN pg_class c ON c.oid = f.object JOIN pg_namespace n ON n.oid = c.relnamespace
        WHERE f.class = 'pg_class'::regclass AND c.relkind IN ('r', 'p', 'v', 'm', 'f') AND n.nspname <> 'pgherd_data'
        UNION ALL
        SELECT f.function, 'function', f.object, '', p.proname FROM found f JOIN pg_proc p ON p.oid = f.object
        WHERE f.class = 'pg_proc'::regclass AND f.object <> f.function
        UNION ALL
        SELECT f.function, 'word', f.object, '', o.oprname FROM found f JOIN pg_operator o ON o.oid = f.object
        WHERE f.class = 'pg_operator'::regclass
        UNION ALL
        SELECT f.function, 'word', f.object, '', t.typname FROM found f JOIN pg_type t ON t.oid = f.object
        WHERE f.class = 'pg_type'::regclass
    ) all_dependents);
END $$;

-- The sharded tables, their declared partitions and their ranges that this transaction has used on this shard, as its locks show, which last
-- as long as the transaction does. Users' own SQL takes the names of tables and partitions; gateways may go to ranges directly.
CREATE OR REPLACE FUNCTION pgherd.used_tables(OUT name text, OUT is_range boolean) RETURNS SETOF record
LANGUAGE sql VOLATILE SECURITY DEFINER SET search_path = pg_catalog AS $$
    SELECT DISTINCT c.relname, n.nspname = 'pgherd_data'
    FROM pg_locks l JOIN pg_class c ON c.oid = l.relation JOIN pg_namespace n ON n.oid = c.relnamespace
    WHERE l.pid = pg_backend_pid() AND l.locktype = 'relation' AND (n.nspname = 'pgherd_data'
        OR c.oid IN (SELECT t.relation FROM pgherd.sharded_table t)
        OR (n.nspname, c.relname) IN (SELECT r.child_schema, r.child FROM pgherd.table_range r WHERE r.declared))
$$;

-- Whether the body of a user's function has one of these names in it, perhaps only as a part of a word.
CREATE OR REPLACE FUNCTION pgherd.bodies_mention(VARIADIC names text[]) RETURNS boolean
LANGUAGE sql STABLE SET search_path = pg_catalog AS $$
    SELECT EXISTS (SELECT FROM pg_proc p JOIN pg_namespace n ON n.oid = p.pronamespace CROSS JOIN unnest(names) name
        WHERE n.nspname NOT IN ('pg_catalog', 'information_schema', 'pgherd')
          AND (strpos(lower(p.prosrc), lower(name)) > 0 OR p.prosqlbody IS NOT NULL))
$$;

-- The epoch as the transaction's snapshot shows it. A change becomes a new epoch a moment after its transaction has committed: one that shows,
-- and is not the transaction's own, counts already.
CREATE OR REPLACE FUNCTION pgherd.shown_epoch() RETURNS bigint LANGUAGE sql STABLE SECURITY DEFINER SET search_path = pg_catalog AS
$$ SELECT e.epoch + (SELECT count(*) FROM pgherd.change c JOIN pgherd.change_hold h ON h.change = c.id
    WHERE h.holder IS DISTINCT FROM pg_current_xact_id_if_assigned()) FROM pgherd.epoch e $$;

-- What may take advisory locks that a session keeps, where no table is sharded: all functions, if one of them mentions such a lock, and what calls
-- them by itself.
CREATE OR REPLACE FUNCTION pgherd.locking() RETURNS jsonb
LANGUAGE plpgsql STABLE SET search_path = pg_catalog AS $$
BEGIN
    RETURN (
    SELECT CASE WHEN NOT EXISTS (SELECT FROM pg_proc p JOIN pg_namespace n ON n.oid = p.pronamespace
        WHERE n.nspname NOT IN ('pg_catalog', 'information_schema', 'pgherd') AND p.prosrc LIKE '%advisory_lock%') THEN '{}'
    ELSE jsonb_build_object(
        'functions', (SELECT jsonb_agg(jsonb_build_object('oid', p.oid::bigint, 'name', p.proname, 'language', l.lanname, 'body', ' ' || p.prosrc))
            FROM pg_proc p JOIN pg_namespace n ON n.oid = p.pronamespace JOIN pg_language l ON l.oid = p.prolang
            WHERE n.nspname NOT IN ('pg_catalog', 'information_schema', 'pgherd')),
        'triggers', (SELECT coalesce(jsonb_agg(jsonb_build_object('oid', c.oid::bigint, 'schema', n.nspname, 'table', c.relname,
                'name', g.tgname, 'function', g.tgfoid::bigint)), '[]')
            FROM pg_trigger g JOIN pg_class c ON c.oid = g.tgrelid JOIN pg_namespace n ON n.oid = c.relnamespace
            WHERE NOT g.tgisinternal AND g.tgparentid = 0),
        'dependents', pgherd.dependents()::jsonb) END);
END $$;

CREATE OR REPLACE FUNCTION pgherd.snapshot() RETURNS text
LANGUAGE plpgsql STABLE SECURITY DEFINER SET search_path = pg_catalog AS $$
BEGIN
    RETURN (
    SELECT CASE WHEN NOT EXISTS (SELECT FROM pgherd.sharded_table) THEN
        (jsonb_build_object('epoch', (SELECT epoch FROM pgherd.epoch), 'ever_sharded', EXISTS (SELECT FROM pgherd.ever_sharded)) || pgherd.locking())::text
    ELSE json_build_object(
        'epoch', (SELECT epoch FROM pgherd.epoch), 'ever_sharded', true,
        'tables', pgherd.tables_json(),
        -- Views and materialised views, with the relations and functions that their queries use.
        'views', (SELECT coalesce(json_agg(json_build_object(
                'oid', c.oid::bigint, 'schema', n.nspname, 'name', c.relname, 'materialized', c.relkind = 'm',
                'held', h.held, 'version', pgherd.text_version('pg_rewrite'::regclass, w.oid, w.xmin),
                'definition', CASE WHEN NOT h.held THEN pg_get_viewdef(c.oid) END, 'columns', pgherd.columns_of(c.oid),
                'relations', (SELECT coalesce(json_agg(DISTINCT d.refobjid::bigint), '[]') FROM pg_depend d
                    WHERE d.classid = 'pg_rewrite'::regclass AND d.objid = w.oid AND d.refclassid = 'pg_class'::regclass
                      AND d.refobjid <> c.oid),
                'functions', (SELECT coalesce(json_agg(DISTINCT d.refobjid::bigint), '[]') FROM pg_depend d
                    WHERE d.classid = 'pg_rewrite'::regclass AND d.objid = w.oid AND d.refclassid = 'pg_proc'::regclass),
                'source', CASE WHEN c.relkind = 'v' AND NOT h.held THEN pgherd.view_source(c.oid) END,
                'read_only', CASE WHEN NOT h.held THEN pg_relation_is_updatable(c.oid, true) = 0 ELSE true END)), '[]')
            FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace
            JOIN pg_rewrite w ON w.ev_class = c.oid AND w.rulename = '_RETURN'
            CROSS JOIN LATERAL (SELECT c.oid = ANY (all_held.oids) AS held) h
            WHERE c.relkind IN ('v', 'm') AND n.nspname NOT IN ('pg_catalog', 'information_schema', 'pgherd')),
        -- Other rules, by what they mention.
        'rules', (SELECT coalesce(json_agg(json_build_object('oid', c.oid::bigint, 'schema', n.nspname, 'table', c.relname,
                'name', w.rulename, 'version', pgherd.text_version('pg_rewrite'::regclass, w.oid, w.xmin),
                'body', CASE WHEN c.oid <> ALL (all_held.oids) THEN pg_get_ruledef(w.oid) END)), '[]')
            FROM pg_rewrite w JOIN pg_class c ON c.oid = w.ev_class JOIN pg_namespace n ON n.oid = c.relnamespace
            WHERE w.rulename <> '_RETURN' AND n.nspname NOT IN ('pg_catalog', 'information_schema', 'pgherd')),
        'triggers', (SELECT coalesce(json_agg(json_build_object('oid', c.oid::bigint, 'schema', n.nspname, 'table', c.relname,
                'name', g.tgname, 'function', g.tgfoid::bigint)), '[]')
            FROM pg_trigger g JOIN pg_class c ON c.oid = g.tgrelid JOIN pg_namespace n ON n.oid = c.relnamespace
            WHERE NOT g.tgisinternal AND g.tgparentid = 0),
        'foreign_keys', (SELECT coalesce(json_agg(json_build_object('schema', n.nspname, 'table', c.relname,
                'name', k.conname, 'relation', k.conrelid::bigint, 'referenced', k.confrelid::bigint)), '[]')
            FROM pg_constraint k JOIN pg_class c ON c.oid = k.conrelid JOIN pg_namespace n ON n.oid = c.relnamespace
            -- Between sharded tables they hold on each shard, and are these tables' own.
            WHERE k.contype = 'f' AND k.conparentid = 0
              AND (k.conrelid IN (SELECT relation FROM pgherd.sharded_table))
                <> (k.confrelid IN (SELECT relation FROM pgherd.sharded_table))),
        'functions', (SELECT coalesce(json_agg(json_build_object('oid', p.oid::bigint, 'name', p.proname, 'language', l.lanname,
                'version', CASE WHEN p.prosqlbody IS NOT NULL THEN pgherd.text_version('pg_proc'::regclass, p.oid, p.xmin) END,
                'body', b.body, 'immutable', p.provolatile = 'i',
                'local', p.provolatile <> 'i' AND l.lanname NOT IN ('c', 'internal') AND pgherd.mentions_local(b.body),
                'parts', (SELECT json_agg(x) FROM pg_aggregate a, unnest(ARRAY[a.aggtransfn::oid, a.aggfinalfn, a.aggcombinefn,
                    a.aggmtransfn, a.aggminvtransfn, a.aggmfinalfn]::bigint[]) x WHERE a.aggfnoid = p.oid))), '[]')
            FROM pg_proc p JOIN pg_namespace n ON n.oid = p.pronamespace JOIN pg_language l ON l.oid = p.prolang
            -- Of a function with a body in SQL that names what is held, NULL: its text would be waited for.
            CROSS JOIN LATERAL (SELECT CASE
                WHEN p.prosqlbody IS NULL THEN ' ' || p.prosrc
                WHEN NOT EXISTS (SELECT FROM pg_depend d WHERE d.classid = 'pg_proc'::regclass AND d.objid = p.oid
                    AND d.refclassid = 'pg_class'::regclass AND d.refobjid = ANY (all_held.oids))
                THEN coalesce(pg_get_function_sqlbody(p.oid), '') || ' ' || p.prosrc END AS body) b
            WHERE n.nspname NOT IN ('pg_catalog', 'information_schema', 'pgherd')),
        'dependents', pgherd.dependents(),
        'schemas', (SELECT json_agg(lower(nspname)) FROM pg_namespace),
        -- Names that more than one schema has: only such can shadow each other.
        'shadows', (SELECT coalesce(json_agg(json_build_object('schema', n.nspname, 'name', c.relname)), '[]')
            FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace
            WHERE c.relkind IN ('r', 'v', 'm', 'f', 'p', 'S') AND n.nspname !~ '^pg_(temp|toast)'
              AND n.nspname NOT IN ('pgherd', 'pgherd_data') AND EXISTS (
                SELECT FROM pg_class o JOIN pg_namespace m ON m.oid = o.relnamespace
                WHERE o.relname = c.relname AND o.oid <> c.oid AND m.nspname !~ '^pg_(temp|toast)'))
    )::text END
    FROM (SELECT pgherd.held_relations() AS oids OFFSET 0) all_held);
END $$;

-- A gateway's heartbeat: renews its lease (`lease` in milliseconds), stores what it has drained, and returns the pending
-- changes and, when the epoch is not the known one, the catalog. Reads changes before the catalog, so that a change
-- that is not listed any more is in the catalog.
CREATE OR REPLACE FUNCTION pgherd.heartbeat(gateway text, lease_ms integer, known_epoch bigint, drained bigint[]) RETURNS text
-- Where somebody locks a relation just before the catalog reads its text, the next heartbeat finds it held; the lease must not end meanwhile.
LANGUAGE plpgsql VOLATILE SET search_path = pg_catalog SET lock_timeout = '1s' AS $$
DECLARE
    pending json;
    now_epoch bigint;
BEGIN
    IF lease_ms > 0 THEN
        UPDATE pgherd.gateway_lease SET lease_until = clock_timestamp() + lease_ms * interval '1 ms' WHERE incarnation = gateway;
        IF NOT FOUND THEN
            RETURN json_build_object('gone', true);
        END IF;
    END IF;
    IF drained <> '{}' THEN
        INSERT INTO pgherd.change_acknowledgement (change, incarnation)
        SELECT c.id, gateway FROM pgherd.change c WHERE c.id = ANY (drained) ON CONFLICT DO NOTHING;
    END IF;
    SELECT coalesce(json_agg(json_build_object('id', c.id, 'root', c.root, 'owner', c.owner, 'names', c.names)), '[]')
        INTO pending FROM pgherd.change c;
    SELECT epoch INTO now_epoch FROM pgherd.epoch;
    RETURN json_build_object('changes', pending, 'epoch', now_epoch,
        'snapshot', CASE WHEN now_epoch <> known_epoch THEN pgherd.snapshot() END);
END $$;
