-- Locks for transactions at SERIALIZABLE over shards (docs/designs/0013-serializable.md): what a statement reads is locked
-- before it reads. LOCK TABLE in these modes wants more than SELECT; whoever may read a table may lock it here, and nobody
-- else. What a statement would read without being seen (in functions, triggers, rules, policies) is refused.

-- Whether a function may read tables, or is too hard to tell: judged by the words of its body. Functions in C and
-- PostgreSQL's own read none; those that run SQL from a string are refused by name, by the gateway.
CREATE OR REPLACE FUNCTION pgherd.may_read_tables(function oid) RETURNS boolean
LANGUAGE plpgsql STABLE SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    called record;
    body text;
BEGIN
    SELECT p.oid, p.proname, p.prokind, l.lanname INTO called
        FROM pg_proc p JOIN pg_language l ON l.oid = p.prolang WHERE p.oid = function AND p.oid >= 16384
            AND p.pronamespace <> ALL (ARRAY['pg_catalog', 'information_schema', 'pgherd']::regnamespace[]::oid[]);
    IF called IS NULL THEN
        RETURN false;
    END IF;
    IF called.prokind = 'a' THEN
        RETURN EXISTS (SELECT FROM pg_aggregate a, unnest(ARRAY[a.aggtransfn::oid, a.aggfinalfn, a.aggcombinefn, a.aggserialfn,
            a.aggdeserialfn, a.aggmtransfn, a.aggminvtransfn, a.aggmfinalfn]) AS part
            WHERE a.aggfnoid = function AND part >= 16384 AND pgherd.may_read_tables(part));
    END IF;
    IF called.lanname IN ('c', 'internal') THEN
        RETURN false;
    END IF;
    IF called.lanname NOT IN ('sql', 'plpgsql') THEN
        RETURN true;
    END IF;
    SELECT lower(coalesce(pg_get_function_sqlbody(p.oid), '') || ' ' || p.prosrc) INTO body FROM pg_proc p WHERE p.oid = function;
    -- One that changes the schema would change what this was judged by.
    RETURN body ~ '\m(from|join|table|using|execute|insert|update|delete|merge|copy|call|truncate|refresh|fetch|create|alter|drop|import)\M'
        OR body ~ '(_to_xml|ts_stat|ts_rewrite|crosstab|dblink|connectby|xpath_table)'
        -- Another function of a user's, by its name anywhere.
        OR EXISTS (SELECT FROM pg_proc o JOIN pg_language l ON l.oid = o.prolang
            WHERE o.oid >= 16384 AND o.oid <> function AND l.lanname NOT IN ('c', 'internal')
                AND o.pronamespace <> ALL (ARRAY['pg_catalog', 'information_schema', 'pgherd']::regnamespace[]::oid[])
                AND CASE WHEN o.proname ~ '^\w+$' THEN body ~ ('\m' || lower(o.proname) || '\M')
                    ELSE position(lower(o.proname) IN body) > 0 END);
END $$;

-- The tables that a view reads, and whom the view reads them as: its owner, or whoever asks.
CREATE OR REPLACE FUNCTION pgherd.read_through(relation oid, asking oid)
RETURNS TABLE (relation_read oid, reads_as oid) LANGUAGE sql STABLE SET search_path = pg_catalog, pg_temp AS $$
    WITH RECURSIVE reached(relation, reads_as) AS (
        SELECT $1, $2
      UNION
        SELECT d.refobjid, CASE WHEN 'security_invoker=true' = ANY (v.reloptions) OR 'security_invoker=on' = ANY (v.reloptions)
            THEN $2 ELSE v.relowner END
        FROM reached r JOIN pg_class v ON v.oid = r.relation AND v.relkind = 'v'
            AND v.relnamespace <> ALL (ARRAY['pg_catalog', 'information_schema', 'pgherd']::regnamespace[]::oid[])
        JOIN pg_rewrite w ON w.ev_class = v.oid
        JOIN pg_depend d ON d.classid = 'pg_rewrite'::regclass AND d.objid = w.oid AND d.refclassid = 'pg_class'::regclass
            AND d.refobjid <> v.oid
    )
    SELECT relation, reads_as FROM reached
$$;

-- What a write of this table runs by itself: triggers, and functions in defaults, constraints and indexes, also of the tables
-- below it. Returns the first that may read.
CREATE OR REPLACE FUNCTION pgherd.hidden_reader_below(written oid) RETURNS text
LANGUAGE sql STABLE SET search_path = pg_catalog, pg_temp AS $$
    WITH RECURSIVE below(relation) AS (
        SELECT written
      UNION
        SELECT n.inhrelid FROM below b JOIN pg_inherits n ON n.inhparent = b.relation
    )
    SELECT reader FROM (SELECT pgherd.hidden_reader(relation) AS reader FROM below OFFSET 0) AS each WHERE reader IS NOT NULL LIMIT 1
$$;

-- The same of one table alone.
CREATE OR REPLACE FUNCTION pgherd.hidden_reader(written oid) RETURNS text
LANGUAGE plpgsql STABLE SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    found text;
BEGIN
    SELECT format('Trigger %s calls function %s.', t.tgname, t.tgfoid::regprocedure) INTO found FROM pg_trigger t
        WHERE t.tgrelid = written AND NOT t.tgisinternal AND t.tgenabled <> 'D' AND pgherd.may_read_tables(t.tgfoid) LIMIT 1;
    IF found IS NULL THEN
        -- OFFSET keeps the few objects outside, and an index within, whatever is known of these tables' sizes.
        SELECT format('%s calls function %s.', pg_describe_object(o.classid, o.objid, 0), d.function::regprocedure) INTO found
        FROM (SELECT 'pg_attrdef'::regclass::oid AS classid, a.oid AS objid FROM pg_attrdef a WHERE a.adrelid = written
              UNION ALL SELECT 'pg_constraint'::regclass, c.oid FROM pg_constraint c WHERE c.conrelid = written
              UNION ALL SELECT 'pg_class'::regclass, i.indexrelid FROM pg_index i WHERE i.indrelid = written) AS o
        CROSS JOIN LATERAL (SELECT d.refobjid AS function FROM pg_depend d WHERE d.classid = o.classid AND d.objid = o.objid
            AND d.refclassid = 'pg_proc'::regclass AND d.refobjid >= 16384 OFFSET 0) AS d
        WHERE pgherd.may_read_tables(d.function) LIMIT 1;
    END IF;
    RETURN found;
END $$;

-- Operators, casts and domains are used without being named: the first whose function may read tables.
CREATE OR REPLACE FUNCTION pgherd.unnamed_reader() RETURNS text
LANGUAGE plpgsql STABLE SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    found text;
BEGIN
    -- Asked so, an index answers.
    IF (SELECT max(oid) FROM pg_operator) < 16384 AND (SELECT max(oid) FROM pg_cast) < 16384
        AND NOT EXISTS (SELECT FROM pg_constraint WHERE contypid <> 0 AND oid >= 16384) THEN
        RETURN NULL;
    END IF;
    SELECT format('%s calls function %s.', pg_describe_object(d.classid, d.objid, d.objsubid), d.refobjid::regprocedure)
    FROM pg_depend d
    WHERE d.refclassid = 'pg_proc'::regclass AND d.refobjid >= 16384 AND (d.classid, d.objid) IN (
            SELECT 'pg_operator'::regclass::oid, o.oid FROM pg_operator o WHERE o.oid >= 16384
          UNION ALL
            SELECT 'pg_cast'::regclass, c.oid FROM pg_cast c WHERE c.oid >= 16384
          UNION ALL
            SELECT 'pg_constraint'::regclass, c.oid FROM pg_constraint c WHERE c.contypid <> 0 AND c.oid >= 16384)
        AND pgherd.may_read_tables(d.refobjid)
    LIMIT 1 INTO found;
    RETURN found;
END $$;

-- Locks what a statement reads, to the end of the transaction. `named` are relations as the statement names them, or ranges of
-- sharded tables; `written` are those that it writes without reading, which are looked at and not locked; `called` are names
-- that may be functions'. The role asking is the session's, or SET ROLE's. Returns the version of the schema in which nothing
-- reads unseen; `judged` says that the caller knows that already, and will ask for the version before the transaction ends.
DROP FUNCTION IF EXISTS pgherd.lock_reads(regclass[], regclass[], text[], boolean);
CREATE OR REPLACE FUNCTION pgherd.lock_reads(named regclass[], written regclass[], called text[], read_only boolean, judged boolean)
RETURNS bigint
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    asking oid := (CASE current_setting('role') WHEN 'none' THEN session_user ELSE current_setting('role') END)::regrole;
    reached oid[] := named::oid[] || written::oid[];
    reads_as oid[];
    targets oid[] := '{}';
    unlocked oid[] := ARRAY['pg_catalog', 'information_schema', 'pgherd', 'pg_toast']::regnamespace[]::oid[];
    item record;
    reader text;
    -- Before anything is looked at: what changes meanwhile has another version.
    version bigint := pgherd.schema_version();
BEGIN
    IF called <> '{}' AND NOT judged THEN
        SELECT format('It may call function %s.', p.oid::regprocedure) INTO reader FROM pg_proc p
            WHERE p.proname = ANY (called::name[]) AND p.oid >= 16384 AND pgherd.may_read_tables(p.oid) LIMIT 1;
    END IF;
    IF reader IS NULL AND NOT judged THEN
        reader := pgherd.unnamed_reader();
    END IF;
    IF reached <> '{}' AND EXISTS (SELECT FROM pg_class c WHERE c.oid = ANY (reached) AND c.relkind = 'v') THEN
        -- A view stays what it is until the statement has run.
        FOR item IN SELECT c.oid FROM pg_class c WHERE c.oid = ANY (reached) AND c.relkind = 'v' ORDER BY c.oid LOOP
            IF has_any_column_privilege(asking, item.oid, 'SELECT') THEN
                EXECUTE format('LOCK TABLE %s IN ACCESS SHARE MODE', item.oid::regclass);
            END IF;
        END LOOP;
        SELECT array_agg(r.relation_read), array_agg(r.reads_as) INTO reached, reads_as
            FROM unnest(reached) AS n(relation) CROSS JOIN LATERAL pgherd.read_through(n.relation, asking) AS r;
    ELSE
        reads_as := array_fill(asking, ARRAY[cardinality(reached)]);
    END IF;
    -- One by one, so that each is looked up by an index.
    FOR i IN 1 .. coalesce(cardinality(reached), 0) LOOP
        SELECT c.oid, c.relkind, c.relname, reads_as[i] AS reads_as,
            -- Whoever may read a table may read its ranges through it.
            j.oid AS named_as, c.relhasrules OR j.relhasrules AS ruled, c.relrowsecurity OR j.relrowsecurity AS policed,
            c.oid = ANY (written) AS is_written, c.oid <> ALL (named) AND c.oid = ANY (written) AS only_written,
            c.relpersistence = 't' AS is_temporary
        INTO item FROM pg_class c
        JOIN pg_class j ON j.oid = CASE WHEN c.relispartition
            THEN (SELECT n.inhparent FROM pg_inherits n WHERE n.inhrelid = c.oid) ELSE c.oid END
        WHERE c.oid = reached[i] AND c.relnamespace <> ALL (unlocked) AND c.relkind <> 'S';
        CONTINUE WHEN NOT FOUND;
        IF NOT item.only_written AND NOT (has_any_column_privilege(item.reads_as, item.oid, 'SELECT, UPDATE')
                OR has_table_privilege(item.reads_as, item.oid, 'DELETE')
                OR has_any_column_privilege(item.reads_as, item.named_as, 'SELECT, UPDATE')
                OR has_table_privilege(item.reads_as, item.named_as, 'DELETE')) THEN
            RAISE EXCEPTION 'permission denied for %', format(CASE item.relkind WHEN 'v' THEN 'view %s' ELSE 'table %s' END,
                (SELECT relname FROM pg_class WHERE oid = item.named_as)) USING ERRCODE = '42501';
        END IF;
        IF judged THEN
            IF item.relkind IN ('r', 'p') AND NOT item.only_written AND NOT item.is_temporary THEN
                targets := targets || item.oid;
            END IF;
            CONTINUE;
        END IF;
        IF reader IS NULL AND item.relkind IN ('m', 'f') AND NOT item.only_written THEN
            reader := format('"%s" is a %s.', item.relname,
                CASE item.relkind WHEN 'm' THEN 'materialized view' ELSE 'foreign table' END);
        END IF;
        IF reader IS NULL AND item.policed THEN
            SELECT format('Policy %s of "%s" reads more than its row.', p.polname, item.relname) INTO reader
                FROM pg_policy p JOIN pg_depend d ON d.classid = 'pg_policy'::regclass AND d.objid = p.oid
                WHERE p.polrelid IN (item.oid, item.named_as) AND (d.refclassid = 'pg_class'::regclass AND d.refobjid <> p.polrelid
                    OR d.refclassid = 'pg_proc'::regclass AND pgherd.may_read_tables(d.refobjid)) LIMIT 1;
        END IF;
        IF reader IS NULL AND item.ruled THEN
            SELECT format('Rule %s of "%s" adds to the statement.', w.rulename, item.relname) INTO reader
                FROM pg_rewrite w WHERE w.ev_class IN (item.oid, item.named_as) AND w.rulename <> '_RETURN' LIMIT 1;
        END IF;
        IF reader IS NULL AND item.relkind = 'v' THEN
            SELECT format('View "%s" calls function %s.', item.relname, d.refobjid::regprocedure) INTO reader
                FROM pg_rewrite w JOIN pg_depend d ON d.classid = 'pg_rewrite'::regclass AND d.objid = w.oid
                WHERE w.ev_class = item.oid AND d.refclassid = 'pg_proc'::regclass AND pgherd.may_read_tables(d.refobjid) LIMIT 1;
            IF reader IS NULL AND pg_get_viewdef(item.oid) ~ '(_to_xml|ts_stat|ts_rewrite|crosstab|dblink|connectby|xpath_table)' THEN
                reader := format('View "%s" calls a function that reads what its arguments name.', item.relname);
            END IF;
        END IF;
        IF reader IS NULL AND item.is_written THEN
            reader := coalesce(pgherd.hidden_reader_below(item.oid),
                CASE WHEN item.named_as <> item.oid THEN pgherd.hidden_reader(item.named_as) END);
        END IF;
        IF reader IS NOT NULL THEN
            EXIT;
        END IF;
        IF item.relkind IN ('r', 'p') AND NOT item.only_written AND NOT item.is_temporary THEN
            targets := targets || item.oid;
        END IF;
    END LOOP;
    IF reader IS NOT NULL THEN
        RAISE EXCEPTION 'this statement may read what it does not name, which is not supported at isolation level SERIALIZABLE over sharded tables'
            USING ERRCODE = '0A000', DETAIL = reader,
                HINT = 'Use REPEATABLE READ, or write what is read into the statement.';
    END IF;
    IF targets <> '{}' THEN
        -- In one order everywhere, so that readers of the same tables do not wait for each other in a circle.
        EXECUTE format('LOCK TABLE %s IN %s MODE',
            (SELECT string_agg(t.relation::regclass::text, ', ' ORDER BY t.relation) FROM (SELECT DISTINCT unnest(targets)) AS t(relation)),
            CASE WHEN read_only THEN 'SHARE' ELSE 'SHARE ROW EXCLUSIVE' END);
    END IF;
    RETURN version;
END $$;

-- Settings as such a transaction shows them: it is SERIALIZABLE, and the shard's block is not. Read in the place of
-- PostgreSQL's own in no other transaction.
CREATE OR REPLACE FUNCTION pgherd.current_setting(name text) RETURNS text LANGUAGE sql STABLE AS $$
    SELECT CASE WHEN pg_catalog.lower($1) OPERATOR(pg_catalog.=) 'transaction_isolation' THEN 'serializable'
        ELSE pg_catalog.current_setting($1) END
$$;
CREATE OR REPLACE FUNCTION pgherd.current_setting(name text, missing_ok boolean) RETURNS text LANGUAGE sql STABLE AS $$
    SELECT CASE WHEN pg_catalog.lower($1) OPERATOR(pg_catalog.=) 'transaction_isolation' THEN 'serializable'
        ELSE pg_catalog.current_setting($1, $2) END
$$;
CREATE OR REPLACE VIEW pgherd.pg_settings AS
    SELECT name, CASE name WHEN 'transaction_isolation' THEN 'serializable' ELSE setting END AS setting, unit, category, short_desc,
        extra_desc, context, vartype, source, min_val, max_val, enumvals, boot_val, reset_val, sourcefile, sourceline, pending_restart
    FROM pg_catalog.pg_settings;
GRANT SELECT ON pgherd.pg_settings TO PUBLIC;
