-- What schema change asks of PostgreSQL's own catalogs, on the home shard. Run with the caller's rights. Constants in what is made again are
-- written so that any session reads them as the same.

-- The first of the relation's types that is, or has in it, a local relation's row: other shards have no such type.
CREATE OR REPLACE FUNCTION pgherd.local_type(relation oid) RETURNS text
LANGUAGE sql STABLE SECURITY DEFINER SET search_path = pg_catalog AS $$
    WITH RECURSIVE used(oid) AS (
        SELECT a.atttypid FROM pg_attribute a
        WHERE a.attrelid = relation AND a.attnum > 0 AND NOT a.attisdropped AND a.atttypid >= 16384
        UNION SELECT part.oid FROM used JOIN pg_type t ON t.oid = used.oid CROSS JOIN LATERAL (
            SELECT t.typelem UNION SELECT t.typbasetype
            UNION SELECT a.atttypid FROM pg_attribute a WHERE a.attrelid = t.typrelid AND a.attnum > 0 AND NOT a.attisdropped) part(oid)
        WHERE part.oid >= 16384)
    SELECT format_type(t.oid, NULL) FROM used JOIN pg_type t ON t.oid = used.oid JOIN pg_class r ON r.oid = t.typrelid
    WHERE r.relkind <> 'c' AND r.oid NOT IN (SELECT s.relation FROM pgherd.sharded_table s) LIMIT 1
$$;

-- A relation as far as placing it needs: NULL when there is none.
CREATE OR REPLACE FUNCTION pgherd.inspect(relation regclass) RETURNS text
LANGUAGE sql STABLE SET search_path = pg_catalog SET datestyle = 'ISO, MDY' SET intervalstyle = 'postgres' SET extra_float_digits = 1 AS $$
    SELECT json_build_object('oid', c.oid::bigint, 'schema', n.nspname, 'name', c.relname, 'kind', c.relkind,
        'persistence', c.relpersistence, 'typed', c.reloftype <> 0, 'row_security', c.relrowsecurity,
        'published', EXISTS (SELECT FROM pg_publication b WHERE b.puballtables)
            OR EXISTS (SELECT FROM pg_publication_namespace b WHERE b.pnnspid = c.relnamespace)
            OR EXISTS (SELECT FROM pg_publication_rel b WHERE b.prrelid = c.oid),
        'is_partition', c.relispartition, 'options', coalesce(to_json(c.reloptions), '[]'), 'method', m.amname,
        'bound', pg_get_expr(c.relpartbound, c.oid),
        'parent', (SELECT i.inhparent::bigint FROM pg_inherits i WHERE i.inhrelid = c.oid LIMIT 1),
        'inherits', EXISTS (SELECT FROM pg_inherits i WHERE i.inhrelid = c.oid OR i.inhparent = c.oid),
        'strategy', p.partstrat,
        'usual_order', (SELECT coalesce(bool_and(o.opcdefault), true) FROM unnest(p.partclass::oid[]) AS u(class)
            JOIN pg_opclass o ON o.oid = u.class),
        -- NULL among the names is an expression.
        'key', (SELECT json_agg(json_build_object('name', a.attname, 'type', a.atttypid::bigint, 'type_name', format_type(a.atttypid, NULL),
                'ordered_by_bytes', a.attcollation = 0 OR (SELECT CASE WHEN k.collprovider = 'd' THEN d.datcollate ELSE k.collcollate END
                    IN ('C', 'POSIX', 'C.UTF-8', 'C.utf8', 'ucs_basic') OR k.collname IN ('C', 'POSIX', 'ucs_basic', 'C.UTF-8', 'C.utf8')
                    FROM pg_collation k, pg_database d WHERE k.oid = a.attcollation AND d.datname = current_database()))
                ORDER BY key.n)
            FROM unnest(coalesce(p.partattrs::int2[],
                (SELECT x.indkey::int2[] FROM pg_index x WHERE x.indrelid = c.oid AND x.indisprimary))) WITH ORDINALITY AS key(attnum, n)
            LEFT JOIN pg_attribute a ON a.attrelid = c.oid AND a.attnum = key.attnum AND key.attnum > 0),
        'columns', (SELECT coalesce(json_agg(json_build_object('name', a.attname, 'type', a.atttypid::bigint,
                'type_name', format_type(a.atttypid, NULL), 'generated', a.attgenerated <> '',
                'ordered_by_bytes', a.attcollation = 0 OR (SELECT CASE WHEN k.collprovider = 'd' THEN d.datcollate ELSE k.collcollate END
                    IN ('C', 'POSIX', 'C.UTF-8', 'C.utf8', 'ucs_basic') OR k.collname IN ('C', 'POSIX', 'ucs_basic', 'C.UTF-8', 'C.utf8')
                    FROM pg_collation k, pg_database d WHERE k.oid = a.attcollation AND d.datname = current_database()))
                ORDER BY a.attnum), '[]')
            FROM pg_attribute a WHERE a.attrelid = c.oid AND a.attnum > 0 AND NOT a.attisdropped),
        'local_type', pgherd.local_type(c.oid),
        'primary_key', EXISTS (SELECT FROM pg_index x WHERE x.indrelid = c.oid AND x.indisprimary),
        'unique', (SELECT coalesce(json_agg(json_build_object('name', i.relname, 'plain', x.indexprs IS NULL,
                'exclusion', x.indisexclusion, 'columns',
                (SELECT coalesce(json_agg(a.attname ORDER BY k.n), '[]') FROM unnest(x.indkey::int2[]) WITH ORDINALITY AS k(attnum, n)
                    JOIN pg_attribute a ON a.attrelid = c.oid AND a.attnum = k.attnum WHERE k.n <= x.indnkeyatts))), '[]')
            FROM pg_index x JOIN pg_class i ON i.oid = x.indexrelid
            WHERE x.indrelid = c.oid AND (x.indisunique OR x.indisexclusion)),
        'foreign_keys', (SELECT coalesce(json_agg(json_build_object('name', k.conname, 'relation', k.conrelid::bigint,
                'referenced', k.confrelid::bigint, 'referenced_name', k.confrelid::regclass::text, 'relation_name', k.conrelid::regclass::text,
                'columns', pgherd.column_names(k.conrelid, k.conkey), 'referenced_columns', pgherd.column_names(k.confrelid, k.confkey),
                'valid', k.convalidated,
                'draws', 'd' IN (k.confdeltype, k.confupdtype) AND EXISTS (SELECT FROM pg_attribute a LEFT JOIN pg_attrdef f ON f.adrelid = a.attrelid
                    AND f.adnum = a.attnum LEFT JOIN pg_depend d ON d.classid = 'pg_attrdef'::regclass AND d.objid = f.oid
                        AND d.refclassid = 'pg_class'::regclass LEFT JOIN pg_class s ON s.oid = d.refobjid AND s.relkind = 'S'
                    WHERE a.attrelid = k.conrelid AND a.attnum = ANY (k.conkey) AND (a.attidentity <> '' OR s.oid IS NOT NULL)),
                 'definition', written.definition, 'comment', obj_description(k.oid, 'pg_constraint'))
                ORDER BY k.oid), '[]')
            -- NULL of one that somebody has just dropped: the other table's change need not have a name in common with ours.
            FROM pg_constraint k CROSS JOIN LATERAL (SELECT pg_get_constraintdef(k.oid) AS definition OFFSET 0) written
            WHERE k.contype = 'f' AND k.conparentid = 0 AND (k.conrelid = c.oid OR k.confrelid = c.oid)
                AND written.definition IS NOT NULL),
        'triggers', (SELECT coalesce(json_agg(t.tgname), '[]') FROM pg_trigger t WHERE t.tgrelid = c.oid AND NOT t.tgisinternal),
        'rules', (SELECT coalesce(json_agg(r.rulename), '[]') FROM pg_rewrite r WHERE r.ev_class = c.oid AND r.rulename <> '_RETURN'),
        'policies', (SELECT coalesce(json_agg(o.polname), '[]') FROM pg_policy o WHERE o.polrelid = c.oid),
        'newest_index', (SELECT i.relname FROM pg_index x JOIN pg_class i ON i.oid = x.indexrelid WHERE x.indrelid = c.oid
            ORDER BY x.indexrelid DESC LIMIT 1),
        'table_of_index', (SELECT x.indrelid::regclass::text FROM pg_index x WHERE x.indexrelid = c.oid),
        'is_unique_index', (SELECT x.indisunique FROM pg_index x WHERE x.indexrelid = c.oid)
    )::text
    FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace
    LEFT JOIN pg_partitioned_table p ON p.partrelid = c.oid LEFT JOIN pg_am m ON m.oid = c.relam
    WHERE c.oid = relation
$$;

CREATE OR REPLACE FUNCTION pgherd.sequence_clause(sequence oid) RETURNS text
LANGUAGE sql STABLE SET search_path = pg_catalog AS $$
    SELECT format('INCREMENT BY %s MINVALUE %s MAXVALUE %s START WITH %s CACHE %s%s', s.seqincrement, s.seqmin, s.seqmax, s.seqstart,
        s.seqcache, CASE WHEN s.seqcycle THEN ' CYCLE' ELSE ' NO CYCLE' END)
    FROM pg_sequence s WHERE s.seqrelid = sequence
$$;

-- All that it takes to make a function or procedure again: itself, its privileges, comment and owner.
CREATE OR REPLACE FUNCTION pgherd.routine_statements(routine oid) RETURNS json
LANGUAGE sql STABLE SET search_path = pg_catalog SET datestyle = 'ISO, MDY' SET intervalstyle = 'postgres' SET extra_float_digits = 1 AS $$
    WITH defaults AS (
        SELECT g.grantee FROM pg_proc p JOIN pg_default_acl d ON d.defaclobjtype = 'f' AND d.defaclnamespace IN (0, p.pronamespace),
            aclexplode(d.defaclacl) g WHERE p.oid = routine),
    -- Privileges that nobody has touched are NULL, and stay so.
    given AS (
        SELECT p.proowner AS owner, coalesce(p.proacl, acldefault('f', p.proowner)) AS acl FROM pg_proc p
        WHERE p.oid = routine AND (p.proacl IS NOT NULL OR EXISTS (SELECT FROM defaults)))
    SELECT json_agg(text ORDER BY n) FROM (
        SELECT 1 AS n, pg_get_functiondef(routine) AS text
        UNION ALL SELECT 2, format('REVOKE ALL ON ROUTINE %s FROM %s', routine::regprocedure,
            CASE WHEN g.grantee = 0 THEN 'PUBLIC' ELSE quote_ident(pg_get_userbyid(g.grantee)) END)
        FROM given, (SELECT 0::oid AS grantee UNION SELECT grantee FROM defaults) g WHERE g.grantee <> given.owner
        UNION ALL SELECT 3, format('GRANT EXECUTE ON ROUTINE %s TO %s%s', routine::regprocedure,
            CASE WHEN g.grantee = 0 THEN 'PUBLIC' ELSE quote_ident(pg_get_userbyid(g.grantee)) END,
            CASE WHEN g.is_grantable THEN ' WITH GRANT OPTION' ELSE '' END)
        FROM given, aclexplode(given.acl) g WHERE g.grantee <> given.owner
        UNION ALL SELECT 4, format('COMMENT ON ROUTINE %s IS %L', routine::regprocedure, o.description)
        FROM pg_description o WHERE o.classoid = 'pg_proc'::regclass AND o.objoid = routine
        UNION ALL SELECT 5, format('ALTER ROUTINE %s OWNER TO %I', routine::regprocedure, pg_get_userbyid(p.proowner))
        FROM pg_proc p WHERE p.oid = routine) statements
$$;

-- All that it takes to make a table of the same columns, constraints, indexes, comments and grants, as SQL with full names.
CREATE OR REPLACE FUNCTION pgherd.definition(relation regclass) RETURNS text
LANGUAGE sql STABLE SET search_path = pg_catalog SET datestyle = 'ISO, MDY' SET intervalstyle = 'postgres' SET extra_float_digits = 1 AS $$
    WITH sequences AS (
        SELECT DISTINCT ON (s.seqrelid) s.seqrelid, q.relname, qn.nspname, a.attname, d.deptype, format_type(s.seqtypid, NULL) AS type
        FROM pg_sequence s JOIN pg_class q ON q.oid = s.seqrelid JOIN pg_namespace qn ON qn.oid = q.relnamespace
        LEFT JOIN pg_depend d ON d.classid = 'pg_class'::regclass AND d.objid = s.seqrelid AND d.refclassid = 'pg_class'::regclass
            AND d.refobjid = relation AND d.deptype IN ('a', 'i')
        LEFT JOIN pg_attribute a ON a.attrelid = relation AND a.attnum = d.refobjsubid
        WHERE d.objid IS NOT NULL OR s.seqrelid IN (SELECT e.refobjid FROM pg_depend e JOIN pg_attrdef f ON f.oid = e.objid
            WHERE e.classid = 'pg_attrdef'::regclass AND e.refclassid = 'pg_class'::regclass AND f.adrelid = relation)
        ORDER BY s.seqrelid
    )
    SELECT json_build_object(
        'owner', pg_get_userbyid(c.relowner),
        'partition_key', pg_get_partkeydef(relation),
        'columns', (SELECT coalesce(json_agg(format('%I %s%s%s%s', a.attname, format_type(a.atttypid, a.atttypmod),
                CASE WHEN a.attcollation <> 0 AND a.attcollation <> t.typcollation
                    THEN (SELECT format(' COLLATE %I.%I', kn.nspname, k.collname) FROM pg_collation k JOIN pg_namespace kn ON kn.oid = k.collnamespace
                        WHERE k.oid = a.attcollation) ELSE '' END,
                CASE WHEN a.attgenerated = 's' THEN format(' GENERATED ALWAYS AS (%s) STORED', pg_get_expr(d.adbin, d.adrelid))
                    WHEN a.attidentity <> '' THEN format(' GENERATED %s AS IDENTITY (SEQUENCE NAME %s %s)',
                        CASE a.attidentity WHEN 'a' THEN 'ALWAYS' ELSE 'BY DEFAULT' END,
                        (SELECT format('%I.%I', s.nspname, s.relname) FROM sequences s WHERE s.attname = a.attname AND s.deptype = 'i'),
                        (SELECT pgherd.sequence_clause(s.seqrelid) FROM sequences s WHERE s.attname = a.attname AND s.deptype = 'i'))
                    WHEN d.adbin IS NOT NULL THEN format(' DEFAULT %s', pg_get_expr(d.adbin, d.adrelid)) ELSE '' END,
                CASE WHEN a.attnotnull THEN ' NOT NULL' ELSE '' END) ORDER BY a.attnum), '[]')
            FROM pg_attribute a JOIN pg_type t ON t.oid = a.atttypid
            LEFT JOIN pg_attrdef d ON d.adrelid = a.attrelid AND d.adnum = a.attnum
            WHERE a.attrelid = relation AND a.attnum > 0 AND NOT a.attisdropped),
        'column_settings', (SELECT coalesce(json_agg(format('ALTER TABLE %%s ALTER COLUMN %I %s', a.attname, does) ORDER BY a.attnum), '[]')
            FROM pg_attribute a JOIN pg_type t ON t.oid = a.atttypid CROSS JOIN unnest(ARRAY[
                CASE WHEN a.attstorage <> t.typstorage THEN 'SET STORAGE ' || CASE a.attstorage WHEN 'p' THEN 'PLAIN' WHEN 'm' THEN 'MAIN'
                    WHEN 'e' THEN 'EXTERNAL' ELSE 'EXTENDED' END END,
                CASE a.attcompression WHEN 'p' THEN 'SET COMPRESSION pglz' WHEN 'l' THEN 'SET COMPRESSION lz4' END,
                CASE WHEN a.attstattarget >= 0 THEN 'SET STATISTICS ' || a.attstattarget END,
                -- Those of PostgreSQL's own making are made with the column.
                (SELECT 'SET (' || string_agg(o, ', ') || ')' FROM unnest(a.attoptions) o WHERE o !~ '^pg_')]) does
            WHERE a.attrelid = relation AND a.attnum > 0 AND NOT a.attisdropped AND does IS NOT NULL),
        'column_names', (SELECT coalesce(json_agg(a.attname ORDER BY a.attnum), '[]') FROM pg_attribute a
            WHERE a.attrelid = relation AND a.attnum > 0 AND NOT a.attisdropped AND a.attgenerated = ''),
        'builtin_types', (SELECT coalesce(bool_and(a.atttypid < 16384), true) FROM pg_attribute a
            WHERE a.attrelid = relation AND a.attnum > 0 AND NOT a.attisdropped),
        'constraints', (SELECT coalesce(json_agg(format('CONSTRAINT %I %s', k.conname, pg_get_constraintdef(k.oid)) ORDER BY k.contype DESC, k.oid), '[]')
            FROM pg_constraint k WHERE k.conrelid = relation AND k.contype IN ('c', 'p', 'x') AND k.convalidated),
        -- CREATE TABLE would make one of two that are about the same columns.
        'unique_constraints', (SELECT coalesce(json_agg(format('ALTER TABLE %%s ADD CONSTRAINT %I %s', k.conname, pg_get_constraintdef(k.oid)) ORDER BY k.oid), '[]')
            FROM pg_constraint k WHERE k.conrelid = relation AND k.contype = 'u'),
        -- Those that are NOT VALID, which rows that are there may break.
        'unchecked', (SELECT coalesce(json_agg(text), '[]') FROM (
            SELECT format('ALTER TABLE %I.%I ADD CONSTRAINT %I %s', n.nspname, c.relname, k.conname, pg_get_constraintdef(k.oid)) AS text
            FROM pg_constraint k WHERE k.conrelid = relation AND k.contype = 'c' AND NOT k.convalidated
            UNION ALL SELECT format('COMMENT ON CONSTRAINT %I ON %I.%I IS %L', k.conname, n.nspname, c.relname, o.description) FROM pg_description o
                JOIN pg_constraint k ON k.oid = o.objoid AND k.conrelid = relation AND k.contype = 'c' AND NOT k.convalidated
                WHERE o.classoid = 'pg_constraint'::regclass) unchecked),
        -- What only a table that is not partitioned has.
        'plain_settings', (SELECT coalesce(json_agg(format('ALTER TABLE %%s %s', does)), '[]') FROM (
            SELECT CASE c.relreplident WHEN 'f' THEN 'REPLICA IDENTITY FULL' WHEN 'n' THEN 'REPLICA IDENTITY NOTHING' END AS does
            UNION ALL SELECT format('REPLICA IDENTITY USING INDEX %I', i.relname) FROM pg_index x JOIN pg_class i ON i.oid = x.indexrelid
                WHERE x.indrelid = relation AND x.indisreplident
            UNION ALL SELECT format('CLUSTER ON %I', i.relname) FROM pg_index x JOIN pg_class i ON i.oid = x.indexrelid
                WHERE x.indrelid = relation AND x.indisclustered) settings WHERE does IS NOT NULL),
        'indexes', (SELECT coalesce(json_agg(pg_get_indexdef(x.indexrelid) ORDER BY x.indexrelid), '[]') FROM pg_index x
            WHERE x.indrelid = relation AND NOT EXISTS (SELECT FROM pg_constraint k WHERE k.conindid = x.indexrelid AND k.conrelid = relation)),
        'index_names', (SELECT coalesce(json_agg(format('%I.%I', n.nspname, i.relname)), '[]') FROM pg_index x JOIN pg_class i ON i.oid = x.indexrelid
            WHERE x.indrelid = relation),
        'sequences', (SELECT coalesce(json_agg(json_build_object('name', format('%I.%I', s.nspname, s.relname), 'plain_name', s.relname,
                'create', format('CREATE SEQUENCE IF NOT EXISTS %I.%I AS %s %s', s.nspname, s.relname, s.type, pgherd.sequence_clause(s.seqrelid)),
                'owned_by', s.attname, 'identity', coalesce(s.deptype = 'i', false))), '[]') FROM sequences s),
        'statistics', (SELECT coalesce(json_agg(text), '[]') FROM (
            SELECT pg_get_statisticsobjdef(e.oid) AS text FROM pg_statistic_ext e WHERE e.stxrelid = relation
            UNION ALL SELECT format('ALTER STATISTICS %I.%I SET STATISTICS %s', en.nspname, e.stxname, e.stxstattarget) FROM pg_statistic_ext e
                JOIN pg_namespace en ON en.oid = e.stxnamespace WHERE e.stxrelid = relation AND e.stxstattarget >= 0
            UNION ALL SELECT format('COMMENT ON STATISTICS %I.%I IS %L', en.nspname, e.stxname, o.description) FROM pg_statistic_ext e
                JOIN pg_namespace en ON en.oid = e.stxnamespace JOIN pg_description o ON o.classoid = 'pg_statistic_ext'::regclass AND o.objoid = e.oid
                WHERE e.stxrelid = relation) statistics),
        'statistics_names', (SELECT coalesce(json_agg(format('%I.%I', en.nspname, e.stxname)), '[]') FROM pg_statistic_ext e
            JOIN pg_namespace en ON en.oid = e.stxnamespace WHERE e.stxrelid = relation),
        'comments', (SELECT coalesce(json_agg(text), '[]') FROM (
            SELECT format('COMMENT ON TABLE %I.%I IS %L', n.nspname, c.relname, o.description) AS text FROM pg_description o
                WHERE o.classoid = 'pg_class'::regclass AND o.objoid = relation AND o.objsubid = 0
            UNION ALL SELECT format('COMMENT ON COLUMN %I.%I.%I IS %L', n.nspname, c.relname, a.attname, o.description) FROM pg_description o
                JOIN pg_attribute a ON a.attrelid = relation AND a.attnum = o.objsubid
                WHERE o.classoid = 'pg_class'::regclass AND o.objoid = relation AND o.objsubid > 0
            UNION ALL SELECT format('COMMENT ON CONSTRAINT %I ON %I.%I IS %L', k.conname, n.nspname, c.relname, o.description) FROM pg_description o
                JOIN pg_constraint k ON k.oid = o.objoid AND k.conrelid = relation AND k.contype <> 'f' AND k.convalidated WHERE o.classoid = 'pg_constraint'::regclass
            UNION ALL SELECT format('COMMENT ON INDEX %I.%I IS %L', n.nspname, i.relname, o.description) FROM pg_description o
                JOIN pg_index x ON x.indexrelid = o.objoid AND x.indrelid = relation JOIN pg_class i ON i.oid = x.indexrelid
                WHERE o.classoid = 'pg_class'::regclass) comments),
        'grants', (SELECT coalesce(json_agg(text), '[]') FROM (
            -- A new table has what default privileges give; the old one may have been made before them, or have had it revoked.
            SELECT DISTINCT format('REVOKE ALL ON TABLE %I.%I FROM %s', n.nspname, c.relname,
                CASE WHEN g.grantee = 0 THEN 'PUBLIC' ELSE quote_ident(pg_get_userbyid(g.grantee)) END) AS text
            FROM pg_default_acl d, aclexplode(d.defaclacl) g WHERE d.defaclobjtype = 'r' AND d.defaclnamespace IN (0, c.relnamespace)
                AND g.grantee <> d.defaclrole
            UNION ALL SELECT format('GRANT %s ON TABLE %I.%I TO %s%s', g.privilege_type, n.nspname, c.relname,
                CASE WHEN g.grantee = 0 THEN 'PUBLIC' ELSE quote_ident(pg_get_userbyid(g.grantee)) END,
                CASE WHEN g.is_grantable THEN ' WITH GRANT OPTION' ELSE '' END)
            FROM aclexplode(c.relacl) g WHERE g.grantee <> c.relowner
            UNION ALL SELECT format('GRANT %s (%I) ON TABLE %I.%I TO %s%s', g.privilege_type, a.attname, n.nspname, c.relname,
                CASE WHEN g.grantee = 0 THEN 'PUBLIC' ELSE quote_ident(pg_get_userbyid(g.grantee)) END,
                CASE WHEN g.is_grantable THEN ' WITH GRANT OPTION' ELSE '' END)
            FROM pg_attribute a, aclexplode(a.attacl) g WHERE a.attrelid = relation AND a.attacl IS NOT NULL AND NOT a.attisdropped) grants),
        -- What the owner has taken from itself; for when the table is its own.
        'own_grants', (SELECT coalesce(json_agg(format('REVOKE %s ON TABLE %I.%I FROM %I', g.privilege_type, n.nspname, c.relname, pg_get_userbyid(c.relowner))), '[]')
            FROM aclexplode(acldefault('r', c.relowner)) g WHERE c.relacl IS NOT NULL AND g.grantee = c.relowner
                AND NOT EXISTS (SELECT FROM aclexplode(c.relacl) h WHERE h.grantee = c.relowner AND h.privilege_type = g.privilege_type)),
        'publications', (SELECT coalesce(json_agg(format('publication %I', b.pubname)), '[]') FROM pg_publication_rel r JOIN pg_publication b ON b.oid = r.prpubid
            WHERE r.prrelid = relation),
        'views', (SELECT coalesce(json_agg(DISTINCT jsonb_build_object('name', format('%I.%I', vn.nspname, v.relname), 'kind', v.relkind,
                'options', array_to_string(v.reloptions, ', '), 'definition', pg_get_viewdef(v.oid))), '[]')
            FROM pg_depend d JOIN pg_rewrite w ON w.oid = d.objid JOIN pg_class v ON v.oid = w.ev_class JOIN pg_namespace vn ON vn.oid = v.relnamespace
            WHERE d.classid = 'pg_rewrite'::regclass AND d.refclassid = 'pg_class'::regclass AND d.refobjid = relation AND v.oid <> relation),
        'triggers', (SELECT coalesce(json_agg(text), '[]') FROM (
            SELECT pg_get_triggerdef(g.oid) AS text FROM pg_trigger g WHERE g.tgrelid = relation AND NOT g.tgisinternal
            UNION ALL SELECT format('ALTER TABLE %I.%I %s TRIGGER %I', n.nspname, c.relname,
                CASE g.tgenabled WHEN 'D' THEN 'DISABLE' WHEN 'R' THEN 'ENABLE REPLICA' ELSE 'ENABLE ALWAYS' END, g.tgname)
            FROM pg_trigger g WHERE g.tgrelid = relation AND NOT g.tgisinternal AND g.tgenabled <> 'O'
            UNION ALL SELECT format('COMMENT ON TRIGGER %I ON %I.%I IS %L', g.tgname, n.nspname, c.relname, o.description)
            FROM pg_trigger g JOIN pg_description o ON o.classoid = 'pg_trigger'::regclass AND o.objoid = g.oid
            WHERE g.tgrelid = relation AND NOT g.tgisinternal) triggers),
        'policies', (SELECT coalesce(json_agg(text), '[]') FROM (
            SELECT format('CREATE POLICY %I ON %I.%I AS %s FOR %s TO %s%s%s', p.polname, n.nspname, c.relname,
                CASE WHEN p.polpermissive THEN 'PERMISSIVE' ELSE 'RESTRICTIVE' END,
                CASE p.polcmd WHEN 'r' THEN 'SELECT' WHEN 'a' THEN 'INSERT' WHEN 'w' THEN 'UPDATE' WHEN 'd' THEN 'DELETE' ELSE 'ALL' END,
                (SELECT string_agg(CASE r WHEN 0 THEN 'PUBLIC' ELSE quote_ident(pg_get_userbyid(r)) END, ', ') FROM unnest(p.polroles) r),
                ' USING (' || pg_get_expr(p.polqual, relation) || ')', ' WITH CHECK (' || pg_get_expr(p.polwithcheck, relation) || ')') AS text
            FROM pg_policy p WHERE p.polrelid = relation
            UNION ALL SELECT format('COMMENT ON POLICY %I ON %I.%I IS %L', p.polname, n.nspname, c.relname, o.description)
            FROM pg_policy p JOIN pg_description o ON o.classoid = 'pg_policy'::regclass AND o.objoid = p.oid WHERE p.polrelid = relation
            UNION ALL SELECT format('ALTER TABLE %I.%I %s ROW LEVEL SECURITY', n.nspname, c.relname, does)
            FROM unnest(ARRAY[CASE WHEN c.relrowsecurity THEN 'ENABLE' END, CASE WHEN c.relforcerowsecurity THEN 'FORCE' END]) does
            WHERE does IS NOT NULL) policies),
        'functions', (SELECT coalesce(json_agg(json_build_object('name', p.oid::regprocedure::text,
                'stuck', p.prokind = 'a' OR EXISTS (SELECT FROM pg_depend o WHERE o.classid = 'pg_proc'::regclass AND o.objid = p.oid AND o.deptype IN ('e', 'i'))
                    OR EXISTS (SELECT FROM pg_depend o WHERE o.refclassid = 'pg_proc'::regclass AND o.refobjid = p.oid
                        AND NOT (o.classid = 'pg_proc'::regclass AND o.objid = ANY (f.oids))),
                'make', CASE WHEN p.prokind <> 'a' THEN pgherd.routine_statements(p.oid) END) ORDER BY p.oid), '[]')
            FROM (SELECT array_agg(d.objid) AS oids FROM pg_depend d
                WHERE d.classid = 'pg_proc'::regclass AND ((d.refclassid = 'pg_class'::regclass AND d.refobjid = relation)
                    OR (d.refclassid = 'pg_type'::regclass AND d.refobjid IN (c.reltype, (SELECT y.typarray FROM pg_type y WHERE y.oid = c.reltype))))) f
            JOIN pg_proc p ON p.oid = ANY (f.oids)),
        'others_policies', (SELECT coalesce(json_agg(DISTINCT format('policy %I of table %s', p.polname, p.polrelid::regclass)), '[]')
            FROM pg_depend d JOIN pg_policy p ON p.oid = d.objid
            WHERE d.classid = 'pg_policy'::regclass AND d.refclassid = 'pg_class'::regclass AND d.refobjid = relation AND p.polrelid <> relation),
        'row_columns', (SELECT coalesce(json_agg(DISTINCT d.objid::regclass::text), '[]')
            FROM pg_depend d WHERE d.classid = 'pg_class'::regclass AND d.objsubid > 0 AND d.refclassid = 'pg_type'::regclass
              AND d.refobjid IN (c.reltype, (SELECT y.typarray FROM pg_type y WHERE y.oid = c.reltype)))
    )::text
    FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace WHERE c.oid = relation
$$;

-- Sharded tables and declared partitions whose relation is gone: what a DROP with CASCADE took along.
CREATE OR REPLACE FUNCTION pgherd.vanished() RETURNS text
LANGUAGE sql STABLE SECURITY DEFINER SET search_path = pg_catalog AS $$
    SELECT json_build_object(
        'tables', (SELECT coalesce(json_agg(json_build_object('id', t.id, 'fence', t.fence)), '[]') FROM pgherd.sharded_table t
            WHERE NOT EXISTS (SELECT FROM pg_class c WHERE c.oid = t.relation)),
        'ranges', (SELECT coalesce(json_agg(json_build_object('table', r.table_id, 'id', r.id)), '[]') FROM pgherd.table_range r
            JOIN pgherd.sharded_table t ON t.id = r.table_id
            WHERE r.declared AND EXISTS (SELECT FROM pg_class c WHERE c.oid = t.relation)
              AND to_regclass(format('%I.%I', r.child_schema, r.child)) IS NULL))::text
$$;
