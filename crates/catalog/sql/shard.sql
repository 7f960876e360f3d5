-- What every shard's database has: the schemas, the cluster's secret, and the functions through which a gateway
-- changes what clients must not change themselves. Run by the service role, a superuser, in one transaction.
--
-- A gateway's statements run as the client's role. Whatever it may do beyond that role's rights goes through a
-- SECURITY DEFINER function that checks a keyed hash over the payload and this backend's process id.

CREATE SCHEMA IF NOT EXISTS pgherd;
CREATE SCHEMA IF NOT EXISTS pgherd_data;
GRANT USAGE ON SCHEMA pgherd, pgherd_data TO PUBLIC;

CREATE TABLE IF NOT EXISTS pgherd.installation (
    one boolean PRIMARY KEY DEFAULT true CHECK (one),
    version integer NOT NULL,
    cluster text NOT NULL,
    secret text NOT NULL,
    shard integer NOT NULL,
    -- of the statements that made all this
    digest text,
    -- and how new they are
    revision integer NOT NULL DEFAULT 0
);
ALTER TABLE pgherd.installation ADD COLUMN IF NOT EXISTS digest text;
ALTER TABLE pgherd.installation ADD COLUMN IF NOT EXISTS revision integer NOT NULL DEFAULT 0;
REVOKE ALL ON pgherd.installation FROM PUBLIC;

-- sha256(secret || sha256(secret || pid || '/' || payload)): nested, so that nobody can lengthen a payload.
CREATE OR REPLACE FUNCTION pgherd.check_signature(payload text, signature text) RETURNS void
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    key bytea;
BEGIN
    SELECT convert_to(secret, 'UTF8') INTO key FROM pgherd.installation;
    IF key IS NULL OR signature IS NULL
        OR encode(sha256(key || sha256(key || convert_to(pg_backend_pid() || '/' || payload, 'UTF8'))), 'hex') <> signature
    THEN
        RAISE EXCEPTION 'permission denied for the catalog of pgherd'
            USING ERRCODE = '42501', HINT = 'Only gateways of this cluster change it.';
    END IF;
END $$;
REVOKE ALL ON FUNCTION pgherd.check_signature(text, text) FROM PUBLIC;

-- Moves new children, made by the client's role beside their parent, into pgherd_data under their own names.
-- payload: [{"schema": "public", "from": "pgherd_t1_r2", "to": "t1_r2"}, …]
CREATE OR REPLACE FUNCTION pgherd.adopt(payload text, signature text) RETURNS void
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    child record;
BEGIN
    PERFORM pgherd.check_signature('adopt ' || payload, signature);
    FOR child IN SELECT * FROM json_to_recordset(payload::json) AS c(schema text, "from" text, "to" text) LOOP
        EXECUTE format('ALTER TABLE %I.%I SET SCHEMA pgherd_data', child.schema, child."from");
        EXECUTE format('ALTER TABLE pgherd_data.%I RENAME TO %I', child."from", child."to");
    END LOOP;
END $$;

-- Makes and removes fences. payload: {"create": ["fence_1_1"], "drop": ["fence_1_0"]}
CREATE OR REPLACE FUNCTION pgherd.change_fences(payload text, signature text) RETURNS void
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    fence text;
BEGIN
    PERFORM pgherd.check_signature('change_fences ' || payload, signature);
    FOR fence IN SELECT json_array_elements_text(payload::json -> 'drop') LOOP
        EXECUTE format('DROP TABLE IF EXISTS pgherd_data.%I', fence);
    END LOOP;
    FOR fence IN SELECT json_array_elements_text(payload::json -> 'create') LOOP
        EXECUTE format('CREATE TABLE pgherd_data.%I ()', fence);
        -- LOCK TABLE … IN ACCESS SHARE MODE wants SELECT.
        EXECUTE format('GRANT SELECT ON pgherd_data.%I TO PUBLIC', fence);
    END LOOP;
END $$;

-- Grants on `child`, or on its column, what the access list says.
CREATE OR REPLACE FUNCTION pgherd.copy_grants(child regclass, acl aclitem[], column_name name) RETURNS void
LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    item record;
BEGIN
    FOR item IN
        SELECT grantee, privilege_type, is_grantable FROM aclexplode(acl)
        WHERE grantee <> (SELECT relowner FROM pg_class WHERE oid = child)
    LOOP
        EXECUTE format('GRANT %s%s ON TABLE %s TO %s%s', item.privilege_type,
            CASE WHEN column_name IS NULL THEN '' ELSE format(' (%I)', column_name) END, child,
            CASE WHEN item.grantee = 0 THEN 'PUBLIC' ELSE quote_ident(pg_get_userbyid(item.grantee)) END,
            CASE WHEN item.is_grantable THEN ' WITH GRANT OPTION' ELSE '' END);
    END LOOP;
END $$;
REVOKE ALL ON FUNCTION pgherd.copy_grants(regclass, aclitem[], name) FROM PUBLIC;

-- PostgreSQL makes a constraint for each child on either side of a foreign key, and an error names that one: one of the
-- referencing child, which gets the key's own name, or one of the referencing table towards a child of the referenced one, for which
-- PostgreSQL takes a name that is free, so that the user's own names may not be. That gets a name of the form t1_r2$key. They
-- cannot be renamed with ALTER TABLE, and a name is all that is changed here.
CREATE OR REPLACE FUNCTION pgherd.name_foreign_keys(relation oid) RETURNS void
LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    item record;
BEGIN
    FOR item IN
        WITH RECURSIVE tree AS (
            SELECT k.oid AS root, k.oid, k.conname AS key, k.conrelid FROM pg_constraint k
            WHERE k.contype = 'f' AND k.conparentid = 0 AND (k.conrelid = relation OR k.confrelid = relation)
            UNION ALL
            SELECT t.root, k.oid, t.key, t.conrelid FROM tree t JOIN pg_constraint k ON k.conparentid = t.oid AND k.contype = 'f'
        )
        SELECT k.oid, k.conname AS has, CASE
            WHEN k.conrelid <> t.conrelid THEN t.key::text
            WHEN octet_length(c.relname || '$' || t.key) < 64 THEN c.relname || '$' || t.key
            ELSE c.relname || '$#' || left(md5(t.key), 16) END AS wants
        FROM tree t JOIN pg_constraint k ON k.oid = t.oid AND k.conparentid <> 0
        JOIN pg_class c ON c.oid = CASE WHEN k.conrelid <> t.conrelid THEN k.conrelid ELSE k.confrelid END
            AND c.relnamespace = 'pgherd_data'::regnamespace
    LOOP
        IF item.has <> item.wants THEN
            UPDATE pg_constraint SET conname = item.wants WHERE oid = item.oid;
        END IF;
    END LOOP;
END $$;
REVOKE ALL ON FUNCTION pgherd.name_foreign_keys(oid) FROM PUBLIC;

-- PostgreSQL makes an index of a partitioned table in each partition's schema, and asks for the role's right to create there. It has that
-- while its schema change runs: given and taken away in one transaction, nobody else sees it. One at a time: both change the same row.
CREATE OR REPLACE FUNCTION pgherd.open_children(payload text, signature text) RETURNS void
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    -- Whoever called this function, which runs as its owner.
    role text := coalesce(nullif(current_setting('role'), 'none'), session_user);
BEGIN
    PERFORM pgherd.check_signature('open_children ' || payload, signature);
    IF (SELECT rolsuper FROM pg_roles WHERE rolname = role) THEN
        RETURN;
    END IF;
    IF (payload::json ->> 'open')::boolean THEN
        PERFORM pg_advisory_xact_lock(8100519743350871104);
        EXECUTE format('GRANT CREATE ON SCHEMA pgherd_data TO %I', role);
    ELSE
        EXECUTE format('REVOKE CREATE ON SCHEMA pgherd_data FROM %I', role);
    END IF;
END $$;

-- Gives the children in pgherd_data the owner and the grants of their parents, and their indexes names from which an
-- error's parent index can be told: t1_r2$t_pkey, or t1_r2$#<start of the name's md5> where that would be too long.
-- Where the parent has row level security, the children get no grants: statements go through the parent.
-- payload: ["public.t", …] as regclass reads it
CREATE OR REPLACE FUNCTION pgherd.keep_children(payload text, signature text) RETURNS void
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    item record;
    attribute record;
BEGIN
    PERFORM pgherd.check_signature('keep_children ' || payload, signature);
    FOR item IN
        SELECT c.oid::regclass AS child, c.relname, c.relowner, c.relacl, p.relowner AS owner, p.relacl AS acl, p.oid AS parent,
            p.relrowsecurity
        FROM json_array_elements_text(payload::json) AS n(name)
        JOIN pg_class p ON p.oid = to_regclass(n.name)
        JOIN pg_inherits i ON i.inhparent = p.oid
        JOIN pg_class c ON c.oid = i.inhrelid AND c.relnamespace = 'pgherd_data'::regnamespace
        ORDER BY c.oid
    LOOP
        IF item.relowner <> item.owner THEN
            EXECUTE format('ALTER TABLE %s OWNER TO %I', item.child, pg_get_userbyid(item.owner));
        END IF;
        IF item.relacl IS DISTINCT FROM item.acl OR item.relrowsecurity THEN
            EXECUTE format('REVOKE ALL ON TABLE %s FROM PUBLIC', item.child);
            FOR attribute IN SELECT DISTINCT a.grantee FROM aclexplode(item.relacl) a WHERE a.grantee NOT IN (0, item.owner) LOOP
                EXECUTE format('REVOKE ALL ON TABLE %s FROM %I CASCADE', item.child, pg_get_userbyid(attribute.grantee));
            END LOOP;
            IF NOT item.relrowsecurity THEN
                PERFORM pgherd.copy_grants(item.child, item.acl, NULL);
            END IF;
        END IF;
        FOR attribute IN
            SELECT c.attname, c.attacl, p.attacl AS acl FROM pg_attribute c
            JOIN pg_attribute p ON p.attrelid = item.parent AND p.attname = c.attname
            WHERE c.attrelid = item.child AND c.attnum > 0 AND NOT c.attisdropped AND (c.attacl IS DISTINCT FROM p.attacl OR p.attacl IS NOT NULL)
        LOOP
            EXECUTE (
                SELECT coalesce(string_agg(format('REVOKE ALL (%I) ON TABLE %s FROM %s CASCADE', attribute.attname, item.child,
                    CASE WHEN grantee = 0 THEN 'PUBLIC' ELSE quote_ident(pg_get_userbyid(grantee)) END), ';'), 'SELECT 1')
                FROM (SELECT DISTINCT grantee FROM aclexplode(attribute.attacl)) g);
            IF NOT item.relrowsecurity THEN
                PERFORM pgherd.copy_grants(item.child, attribute.acl, attribute.attname);
            END IF;
        END LOOP;
        FOR attribute IN
            SELECT x.indexrelid::regclass AS index, ci.relname AS has, CASE
                WHEN octet_length(item.relname || '$' || pi.relname) < 64 THEN item.relname || '$' || pi.relname
                ELSE item.relname || '$#' || left(md5(pi.relname), 16) END AS wants
            FROM pg_index x
            JOIN pg_class ci ON ci.oid = x.indexrelid
            JOIN pg_inherits xi ON xi.inhrelid = x.indexrelid
            JOIN pg_class pi ON pi.oid = xi.inhparent
            WHERE x.indrelid = item.child
        LOOP
            IF attribute.has <> attribute.wants THEN
                EXECUTE format('ALTER INDEX %s RENAME TO %I', attribute.index, attribute.wants);
            END IF;
        END LOOP;
    END LOOP;
    FOR item IN SELECT to_regclass(n.name)::oid AS oid FROM json_array_elements_text(payload::json) AS n(name) LOOP
        PERFORM pgherd.name_foreign_keys(item.oid);
    END LOOP;
END $$;

-- The sequences that these tables' columns use, or that are named themselves: ["public.t", "public.s"] as regclass reads it
CREATE OR REPLACE FUNCTION pgherd.sequences_of(names text) RETURNS SETOF oid LANGUAGE sql STABLE SET search_path = pg_catalog, pg_temp AS $$
    WITH named AS (SELECT to_regclass(name)::oid AS oid FROM json_array_elements_text(names::json) AS n(name))
    SELECT s.seqrelid FROM pg_sequence s
    WHERE s.seqrelid IN (SELECT oid FROM named)
       OR s.seqrelid IN (SELECT d.objid FROM pg_depend d WHERE d.classid = 'pg_class'::regclass
            AND d.refclassid = 'pg_class'::regclass AND d.refobjid IN (SELECT oid FROM named) AND d.deptype IN ('a', 'i'))
       OR s.seqrelid IN (SELECT d.refobjid FROM pg_depend d JOIN pg_attrdef a ON a.oid = d.objid
            WHERE d.classid = 'pg_attrdef'::regclass AND d.refclassid = 'pg_class'::regclass
            AND a.adrelid IN (SELECT oid FROM named))
$$;

-- Where they are: {"public.s": 5}
CREATE OR REPLACE FUNCTION pgherd.sequence_values(names text) RETURNS text LANGUAGE sql STABLE SET search_path = pg_catalog, pg_temp AS $$
    SELECT json_object_agg(format('%I.%I', n.nspname, c.relname), coalesce(pg_sequence_last_value(c.oid), s.seqstart))::text
    FROM pgherd.sequences_of(names) AS o(oid) JOIN pg_sequence s ON s.seqrelid = o.oid
    JOIN pg_class c ON c.oid = o.oid JOIN pg_namespace n ON n.oid = c.relnamespace
$$;

-- Before a statement gives such sequences other bounds, in which their end would not lie: they stand where the home shard's do, until they are
-- closed again in the same transaction, which RESTART belongs to. payload: what sequence_values told there
CREATE OR REPLACE FUNCTION pgherd.open_sequences(payload text, signature text) RETURNS void
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    item record;
BEGIN
    PERFORM pgherd.check_signature('open_sequences ' || payload, signature);
    FOR item IN
        SELECT s.seqrelid AS oid, int8in(textout(v.value)) AS value FROM json_each_text(payload::json) v JOIN pg_sequence s ON s.seqrelid = to_regclass(v.key)::oid
    LOOP
        EXECUTE format('ALTER SEQUENCE %s RESTART WITH %s', item.oid::regclass, item.value);
    END LOOP;
END $$;

-- Sequences have their values on the home shard only. Elsewhere the ones that these tables' columns use (or these sequences
-- themselves) are set to their end, so that a default which runs there by mistake fails (2200H) instead of giving a
-- value twice. payload: ["public.t", "public.s"] as regclass reads it
CREATE OR REPLACE FUNCTION pgherd.close_sequences(payload text, signature text) RETURNS void
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    item record;
BEGIN
    PERFORM pgherd.check_signature('close_sequences ' || payload, signature);
    FOR item IN
        SELECT s.seqrelid AS oid, s.seqincrement > 0 AS ascending, s.seqmin, s.seqmax, s.seqcycle FROM pg_sequence s
        WHERE s.seqrelid IN (SELECT pgherd.sequences_of(payload))
    LOOP
        IF item.seqcycle THEN
            EXECUTE format('ALTER SEQUENCE %s NO CYCLE', item.oid::regclass);
        END IF;
        PERFORM setval(item.oid, CASE WHEN item.ascending THEN item.seqmax ELSE item.seqmin END, true);
    END LOOP;
END $$;

-- For the transaction that fills a materialized view: locks tables that its owner may only read, and makes and drops copies of other
-- shards' ranges on the home shard, which has an empty stand-in of each declared partition.
-- payload: {"lock": ["public.t"], "makes": true where copies are made}, or {"make": [{"name": "t1_copy_2", "parent": "public.t", "values": "FOR VALUES …",
-- "instead": "public.t_x"}, …]}, or the same under "drop"
CREATE OR REPLACE FUNCTION pgherd.change_copies(payload text, signature text) RETURNS void
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp SET client_min_messages = warning AS $$
DECLARE
    item record;
BEGIN
    PERFORM pgherd.check_signature('change_copies ' || payload, signature);
    FOR item IN SELECT name FROM json_array_elements_text(payload::json -> 'lock') AS l(name) LOOP
        IF payload::json ->> 'makes' = 'true' THEN
            -- What adds and drops partitions wants this in the end; a weaker one first would invite deadlocks.
            EXECUTE format('LOCK TABLE ONLY %s IN ACCESS EXCLUSIVE MODE', item.name::regclass);
        END IF;
        EXECUTE format('LOCK TABLE %s IN SHARE MODE', item.name::regclass);
    END LOOP;
    FOR item IN SELECT * FROM json_to_recordset(payload::json -> 'make') AS c(name text, parent text, "values" text, instead text) LOOP
        IF item.instead IS NOT NULL THEN
            EXECUTE format('ALTER TABLE %s DETACH PARTITION %s', item.parent::regclass, item.instead::regclass);
        END IF;
        EXECUTE format('CREATE UNLOGGED TABLE pgherd_data.%I PARTITION OF %s %s', item.name, item.parent::regclass, item.values);
        -- The rows have been written before; nothing happens to them here.
        EXECUTE format('ALTER TABLE pgherd_data.%I DISABLE TRIGGER ALL', item.name);
        -- No other transaction will ever see it.
        EXECUTE format('GRANT INSERT ON pgherd_data.%I TO PUBLIC', item.name);
    END LOOP;
    FOR item IN SELECT * FROM json_to_recordset(payload::json -> 'drop') AS c(name text, parent text, "values" text, instead text) LOOP
        -- PostgreSQL drops no partition that a foreign key refers to, and detaches none whose rows have others that refer to them.
        IF EXISTS (SELECT FROM pg_constraint k WHERE k.contype = 'f' AND k.confrelid = format('pgherd_data.%I', item.name)::regclass) THEN
            EXECUTE format('DELETE FROM pgherd_data.%I', item.name);
            EXECUTE format('ALTER TABLE %s DETACH PARTITION pgherd_data.%I', item.parent::regclass, item.name);
        END IF;
        EXECUTE format('DROP TABLE pgherd_data.%I', item.name);
        IF item.instead IS NOT NULL THEN
            EXECUTE format('ALTER TABLE %s ATTACH PARTITION %s %s', item.parent::regclass, item.instead::regclass, item.values);
        END IF;
    END LOOP;
END $$;

-- Whether a view is a user's, and not an extension's.
CREATE OR REPLACE FUNCTION pgherd.is_users_view(view oid) RETURNS boolean
LANGUAGE sql STABLE SET search_path = pg_catalog AS $$
    SELECT c.relkind = 'v' AND c.relpersistence = 'p' AND n.nspname NOT IN ('information_schema', 'pgherd', 'pgherd_data') AND n.nspname !~ '^pg_'
        AND NOT EXISTS (SELECT FROM pg_depend d WHERE d.classid = 'pg_class'::regclass AND d.objid = view AND d.deptype = 'e')
    FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace WHERE c.oid = view
$$;

-- The statements that make a view with all that belongs to it: the same text on all servers on which it is the same view.
CREATE OR REPLACE FUNCTION pgherd.view_text(view oid) RETURNS text
LANGUAGE sql STABLE SET search_path = pg_catalog AS $$
    SELECT concat_ws('; ',
        format('CREATE VIEW %s (%s)%s AS %s', v.name,
            (SELECT string_agg(quote_ident(a.attname), ', ' ORDER BY a.attnum) FROM pg_attribute a WHERE a.attrelid = view AND a.attnum > 0),
            ' WITH (' || array_to_string(c.reloptions, ', ') || ')', rtrim(pg_get_viewdef(view), ';')),
        (SELECT string_agg(format('ALTER VIEW %s ALTER COLUMN %I SET DEFAULT %s', v.name, a.attname, pg_get_expr(d.adbin, view)), '; ' ORDER BY a.attnum)
            FROM pg_attrdef d JOIN pg_attribute a ON a.attrelid = view AND a.attnum = d.adnum WHERE d.adrelid = view),
        format('ALTER VIEW %s OWNER TO %I', v.name, pg_get_userbyid(c.relowner)),
        CASE WHEN c.relacl IS NOT NULL THEN format('REVOKE ALL ON %s FROM %I', v.name, pg_get_userbyid(c.relowner)) END,
        (SELECT string_agg(text, '; ' ORDER BY text) FROM (
            SELECT DISTINCT format('GRANT %s ON %s TO %s%s', g.privilege_type, v.name,
                CASE WHEN g.grantee = 0 THEN 'PUBLIC' ELSE quote_ident(pg_get_userbyid(g.grantee)) END,
                CASE WHEN g.is_grantable THEN ' WITH GRANT OPTION' ELSE '' END) AS text FROM aclexplode(c.relacl) g
            UNION SELECT format('GRANT %s (%I) ON %s TO %s%s', g.privilege_type, a.attname, v.name,
                CASE WHEN g.grantee = 0 THEN 'PUBLIC' ELSE quote_ident(pg_get_userbyid(g.grantee)) END,
                CASE WHEN g.is_grantable THEN ' WITH GRANT OPTION' ELSE '' END)
            FROM pg_attribute a, aclexplode(a.attacl) g WHERE a.attrelid = view AND a.attacl IS NOT NULL) grants))
    FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace CROSS JOIN LATERAL (SELECT format('%I.%I', n.nspname, c.relname) AS name) v
    WHERE c.oid = view
$$;

-- Whether this shard's views of users are those of the list, for `keep_views`. To read a view's text waits for whoever is changing what is in
-- it: that of a view which the list does not ask for, since another transaction changes it, is not read.
CREATE OR REPLACE FUNCTION pgherd.has_views(payload text) RETURNS boolean
LANGUAGE sql STABLE SET search_path = pg_catalog AS $$
    WITH wanted AS MATERIALIZED (SELECT w.schema, w.name, w.text FROM json_to_recordset(payload::json) AS w(schema text, name text, text text)),
    here AS MATERIALIZED (SELECT n.nspname::text AS schema, c.relname::text AS name, c.oid FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace
        WHERE c.relkind = 'v' AND c.oid >= 16384 AND pgherd.is_users_view(c.oid))
    SELECT NOT EXISTS (SELECT FROM here LEFT JOIN wanted w USING (schema, name) WHERE w.name IS NULL)
        AND NOT EXISTS (SELECT FROM wanted w LEFT JOIN here h USING (schema, name)
            WHERE CASE WHEN w.text IS NULL THEN false WHEN h.oid IS NULL THEN true ELSE pgherd.view_text(h.oid) IS DISTINCT FROM w.text END)
$$;

-- Whoever changes views on several shards holds this, on the home shard first: without it, two that each made a view would make each other's
-- as well, or drop what the other one has committed here and not yet on the home shard. Until the transaction ends, on each of its shards.
CREATE TABLE IF NOT EXISTS pgherd.changing_views ();
REVOKE ALL ON pgherd.changing_views FROM PUBLIC;

CREATE OR REPLACE FUNCTION pgherd.hold_views(payload text, signature text) RETURNS void
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
BEGIN
    PERFORM pgherd.check_signature('hold_views ' || payload, signature);
    LOCK TABLE pgherd.changing_views IN EXCLUSIVE MODE;
END $$;

-- The catalog, the views that every shard has (both on the home shard), or whether this shard has those of the list: as an open transaction of a client sees them. To
-- read a view's text locks the relations in it until the transaction ends, and others could not change these tables for as long as a
-- client likes; a subtransaction that is rolled back gives the locks up.
CREATE OR REPLACE FUNCTION pgherd.seen_within(what text, payload text DEFAULT NULL) RETURNS text
LANGUAGE plpgsql VOLATILE SET search_path = pg_catalog AS $$
DECLARE
    found text;
BEGIN
    FOR attempt IN 1 .. 10 LOOP
        BEGIN
            -- What is known to be changed by others is left out. What they begin to change just now is so the next time.
            PERFORM set_config('lock_timeout', '100ms', true);
            IF what = 'snapshot' THEN
                found := pgherd.snapshot();
            ELSIF what = 'twin_views' THEN
                found := pgherd.twin_views();
            ELSE
                found := pgherd.has_views(payload)::text;
            END IF;
            RAISE EXCEPTION USING ERRCODE = 'PH001';
        EXCEPTION
            WHEN SQLSTATE 'PH001' THEN
                RETURN found;
            WHEN lock_not_available OR internal_error OR undefined_table THEN
                -- "could not open relation with OID": another transaction has dropped it since the list of views was read.
                IF what = 'has_views' THEN
                    RETURN 'false';
                ELSIF attempt = 10 THEN
                    RAISE;
                END IF;
        END;
    END LOOP;
END $$;

-- Makes the views of users on this shard, which is not the home shard, those of the list.
-- payload: [{"schema": "public", "name": "v", "text": "CREATE VIEW …"}, …], a view behind those that it reads; one without a text stays as it is
CREATE OR REPLACE FUNCTION pgherd.keep_views(payload text, signature text) RETURNS void
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp SET client_min_messages = warning AS $$
DECLARE
    item record;
    others text[];
    view text;
    patience text := current_setting('lock_timeout');
BEGIN
    PERFORM pgherd.check_signature('keep_views ' || payload, signature);
    LOCK TABLE pgherd.changing_views IN EXCLUSIVE MODE;
    -- Who is changing one of these here may wait for this transaction on the home shard: it is asked there again.
    PERFORM set_config('lock_timeout', '100ms', true);
    others := ARRAY(
        SELECT format('%I.%I', n.nspname, c.relname) FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace
        WHERE c.relkind = 'v' AND c.oid >= 16384 AND pgherd.is_users_view(c.oid) AND NOT EXISTS (
            SELECT FROM json_to_recordset(payload::json) AS w(schema text, name text, text text)
            WHERE w.schema = n.nspname AND w.name = c.relname AND (w.text IS NULL OR w.text = pgherd.view_text(c.oid))));
    PERFORM set_config('lock_timeout', patience, true);
    FOREACH view IN ARRAY others LOOP
        EXECUTE format('DROP VIEW IF EXISTS %s CASCADE', view);
    END LOOP;
    FOR item IN SELECT * FROM json_to_recordset(payload::json) AS w(schema text, name text, text text) WHERE w.text IS NOT NULL LOOP
        IF to_regclass(format('%I.%I', item.schema, item.name)) IS NULL THEN
            BEGIN
                EXECUTE item.text;
            EXCEPTION
                -- It calls what only the home shard has: no statement is sent here for it.
                WHEN undefined_function OR undefined_object OR undefined_table THEN NULL;
            END;
        END IF;
    END LOOP;
END $$;

-- What a statement calls in place of now() and its kin where its transaction has several shards: the time of the first one,
-- which the gateway sets before the statement. The names are PostgreSQL's, since they become names of columns.
CREATE OR REPLACE FUNCTION pgherd.transaction_timestamp() RETURNS timestamptz LANGUAGE sql STABLE PARALLEL SAFE AS
$$ SELECT COALESCE(pg_catalog.current_setting('pgherd.transaction_time', true)::pg_catalog.timestamptz, pg_catalog.now()) $$;
CREATE OR REPLACE FUNCTION pgherd.now() RETURNS timestamptz LANGUAGE sql STABLE PARALLEL SAFE AS
$$ SELECT pgherd.transaction_timestamp() $$;
CREATE OR REPLACE FUNCTION pgherd."current_timestamp"() RETURNS timestamptz LANGUAGE sql STABLE PARALLEL SAFE AS
$$ SELECT pgherd.transaction_timestamp() $$;
CREATE OR REPLACE FUNCTION pgherd."localtimestamp"() RETURNS timestamp LANGUAGE sql STABLE PARALLEL SAFE AS
$$ SELECT pgherd.transaction_timestamp()::pg_catalog.timestamp $$;
CREATE OR REPLACE FUNCTION pgherd."current_date"() RETURNS date LANGUAGE sql STABLE PARALLEL SAFE AS
$$ SELECT pgherd.transaction_timestamp()::pg_catalog.date $$;
CREATE OR REPLACE FUNCTION pgherd."current_time"() RETURNS timetz LANGUAGE sql STABLE PARALLEL SAFE AS
$$ SELECT pgherd.transaction_timestamp()::pg_catalog.timetz $$;
CREATE OR REPLACE FUNCTION pgherd."localtime"() RETURNS time LANGUAGE sql STABLE PARALLEL SAFE AS
$$ SELECT pgherd.transaction_timestamp()::pg_catalog.time $$;

-- What a session asks about itself: the gateway knows, and gives the answer as the argument.
CREATE OR REPLACE FUNCTION pgherd.pg_backend_pid(pid integer) RETURNS integer LANGUAGE sql STABLE PARALLEL SAFE AS
$$ SELECT pid $$;
CREATE OR REPLACE FUNCTION pgherd.inet_client_addr(address inet) RETURNS inet LANGUAGE sql STABLE PARALLEL SAFE AS
$$ SELECT address $$;
CREATE OR REPLACE FUNCTION pgherd.inet_client_port(port integer) RETURNS integer LANGUAGE sql STABLE PARALLEL SAFE AS
$$ SELECT port $$;
CREATE OR REPLACE FUNCTION pgherd.inet_server_addr(address inet) RETURNS inet LANGUAGE sql STABLE PARALLEL SAFE AS
$$ SELECT address $$;
CREATE OR REPLACE FUNCTION pgherd.inet_server_port(port integer) RETURNS integer LANGUAGE sql STABLE PARALLEL SAFE AS
$$ SELECT port $$;
-- The client's own arguments stay, so that its parameters have a place and a type.
DROP FUNCTION IF EXISTS pgherd.pg_terminate_backend(boolean), pgherd.pg_cancel_backend(boolean);
CREATE OR REPLACE FUNCTION pgherd.pg_terminate_backend(done boolean, pid integer, timeout bigint DEFAULT 0) RETURNS boolean LANGUAGE sql VOLATILE AS
$$ SELECT done $$;
CREATE OR REPLACE FUNCTION pgherd.pg_cancel_backend(done boolean, pid integer) RETURNS boolean LANGUAGE sql VOLATILE AS
$$ SELECT done $$;
-- The same for process ids that are computed. sessions: of each process id that means a session {"pid": …, "refused": why it may not be
-- signalled, "own": …}. The gateway acts on the message, and hands it on to nobody; INFO is sent whatever client_min_messages says.
-- A session that signals itself waits for it here.
CREATE OR REPLACE FUNCTION pgherd.signal_session(session jsonb, why text) RETURNS boolean LANGUAGE plpgsql VOLATILE
SET search_path = pg_catalog, pg_temp AS $$
BEGIN
    IF session ->> 'refused' IS NOT NULL THEN
        RAISE insufficient_privilege USING MESSAGE = session ->> 'refused';
    END IF;
    RAISE INFO USING ERRCODE = 'PH002', MESSAGE = why || ' ' || (session ->> 'pid');
    IF session -> 'own' THEN
        PERFORM pg_sleep(10);
    END IF;
    RETURN true;
END $$;
CREATE OR REPLACE FUNCTION pgherd.pg_terminate_backend(sessions jsonb, pid integer, timeout bigint DEFAULT 0) RETURNS boolean
LANGUAGE sql VOLATILE AS
$$ SELECT CASE WHEN sessions OPERATOR(pg_catalog.?) pid::pg_catalog.text
               THEN pgherd.signal_session(sessions OPERATOR(pg_catalog.->) pid::pg_catalog.text, 'terminate')
               ELSE pg_catalog.pg_terminate_backend(pid, timeout) END $$;
CREATE OR REPLACE FUNCTION pgherd.pg_cancel_backend(sessions jsonb, pid integer) RETURNS boolean LANGUAGE sql VOLATILE AS
$$ SELECT CASE WHEN sessions OPERATOR(pg_catalog.?) pid::pg_catalog.text
               THEN pgherd.signal_session(sessions OPERATOR(pg_catalog.->) pid::pg_catalog.text, 'cancel')
               ELSE pg_catalog.pg_cancel_backend(pid) END $$;
-- pg_stat_activity with the gateway's sessions in place of the processes that its pools use, and without the cluster's service connections,
-- if their role is given. Times are in seconds. What a session waits for is told by the process that runs its statement here, if there is one.
CREATE OR REPLACE FUNCTION pgherd.pg_stat_activity(sessions jsonb, pooled jsonb, service name) RETURNS SETOF pg_catalog.pg_stat_activity
LANGUAGE sql STABLE SET search_path = pg_catalog, pg_temp AS $$
    SELECT a.* FROM pg_catalog.pg_stat_activity a
    WHERE NOT pooled @> to_jsonb(a.pid) AND NOT coalesce(a.usename = service AND a.application_name = 'pgherd service', false)
    UNION ALL
    SELECT shown.* FROM jsonb_array_elements(sessions) AS s
    LEFT JOIN pg_catalog.pg_database d ON d.datname = s ->> 'datname'
    LEFT JOIN pg_catalog.pg_roles r ON r.rolname = s ->> 'usename'
    LEFT JOIN pg_catalog.pg_stat_activity h ON h.pid = int4in(textout(s ->> 'at')),
    LATERAL jsonb_populate_record(NULL::pg_catalog.pg_stat_activity, jsonb_build_object('datid', d.oid, 'datname', s ->> 'datname', 'pid', s -> 'pid',
        'usesysid', r.oid, 'usename', s ->> 'usename', 'application_name', s ->> 'application_name') ||
        CASE WHEN pg_has_role('pg_read_all_stats', 'USAGE') OR pg_has_role(r.oid, 'USAGE') THEN
            jsonb_build_object('client_addr', s ->> 'client_addr', 'client_port', s -> 'client_port', 'state', s ->> 'state', 'query', s ->> 'query',
                'backend_start', to_timestamp((s ->> 'backend_start')::float8), 'xact_start', to_timestamp((s ->> 'xact_start')::float8),
                'query_start', to_timestamp((s ->> 'query_start')::float8), 'state_change', to_timestamp((s ->> 'state_change')::float8),
                'backend_xid', h.backend_xid, 'backend_xmin', h.backend_xmin, 'query_id', h.query_id, 'backend_type', 'client backend') ||
            CASE WHEN s ->> 'state' <> 'active' THEN '{"wait_event_type": "Client", "wait_event": "ClientRead"}' ELSE
                jsonb_build_object('wait_event_type', h.wait_event_type, 'wait_event', h.wait_event) END
        ELSE '{"query": "<insufficient privilege>"}' END) AS shown
$$;
CREATE OR REPLACE FUNCTION pgherd.pg_export_snapshot(name text) RETURNS text LANGUAGE sql VOLATILE AS
$$ SELECT name $$;
CREATE OR REPLACE FUNCTION pgherd.pg_prepared_statements(statements jsonb) RETURNS SETOF pg_catalog.pg_prepared_statements
LANGUAGE sql STABLE SET search_path = pg_catalog AS
$$ SELECT (jsonb_populate_recordset(NULL::pg_catalog.pg_prepared_statements, (SELECT jsonb_agg(s ||
       jsonb_build_object('prepare_time', to_timestamp((s ->> 'prepared_at')::float8))) FROM jsonb_array_elements(statements) AS s))).* $$;
-- The session's cursors: those of this connection, and rows of those elsewhere, portals with their time in seconds; with the client's
-- texts, null for what the client has not made.
CREATE OR REPLACE FUNCTION pgherd.pg_cursors(elsewhere jsonb, texts jsonb) RETURNS SETOF pg_catalog.pg_cursors
LANGUAGE sql STABLE SET search_path = pg_catalog AS $$
    SELECT c.name, coalesce(texts ->> c.name, c.statement), c.is_holdable, c.is_binary, c.is_scrollable, c.creation_time FROM (
        SELECT * FROM pg_catalog.pg_cursors p WHERE texts -> p.name IS DISTINCT FROM 'null'
        UNION ALL SELECT r.* FROM jsonb_array_elements(elsewhere) AS e, jsonb_populate_record(NULL::pg_catalog.pg_cursors, e ||
            CASE WHEN e ? 'bound_at' THEN jsonb_build_object('creation_time', to_timestamp((e ->> 'bound_at')::float8)) ELSE '{}' END) AS r) c
$$;

-- The sessions of the gateway that is asked. As in pg_stat_activity, only who may use a session's role sees what it does.
CREATE OR REPLACE FUNCTION pgherd.sessions(of_gateway text, listed jsonb)
RETURNS TABLE (gateway text, pid integer, database text, role text, client_addr inet, client_port integer, started_at timestamptz, state text,
    pinned boolean, pinned_by text[], home_pid integer)
LANGUAGE plpgsql STABLE SET search_path = pg_catalog, pg_temp AS $$
BEGIN
    IF listed IS NULL THEN
        RAISE feature_not_supported USING MESSAGE = 'pgherd.sessions cannot be read within a view or function',
            HINT = 'A gateway knows its sessions: send it a SELECT from pgherd.sessions itself.';
    END IF;
    RETURN QUERY SELECT of_gateway, s.pid, s.database, s.role, r.client_addr, r.client_port, to_timestamp(r.started_at), r.state,
        r.pinned, r.pinned_by, r.home_pid
    FROM jsonb_array_elements(listed) AS e, jsonb_to_record(e) AS s (pid integer, database text, role text)
    LEFT JOIN LATERAL jsonb_to_record(e) AS r (client_addr inet, client_port integer, started_at float8, state text, pinned boolean,
        pinned_by text[], home_pid integer)
        ON pg_has_role('pg_read_all_stats', 'USAGE') OR pg_has_role(to_regrole(quote_ident(s.role)), 'USAGE')
    ORDER BY s.pid;
END $$;
CREATE OR REPLACE VIEW pgherd.sessions AS SELECT * FROM pgherd.sessions(NULL, NULL);
GRANT SELECT ON pgherd.sessions TO PUBLIC;

CREATE OR REPLACE FUNCTION pgherd.set_config(setting_name text, new_value text, is_local boolean) RETURNS text LANGUAGE sql STABLE AS
$$ SELECT new_value $$;
DROP FUNCTION IF EXISTS pgherd.encoding_characters(text);
-- What PostgreSQL makes of each code of an encoding and of each character: codes (hexadecimal, with spaces between) and their
-- characters; codes that are well formed, but mean nothing; characters and the codes that they go out as. No conversion to these
-- encodings has characters beyond the basic plane.
CREATE OR REPLACE FUNCTION pgherd.encoding_tables(encoding text, OUT codes text, OUT characters text, OUT unmapped text,
    OUT outgoing text, OUT outgoing_codes text) LANGUAGE plpgsql STABLE SET search_path = pg_catalog AS $$
DECLARE
    code bytea;
    one text;
    many bool := pg_encoding_max_length(pg_char_to_encoding(encoding)) > 1;
    known_codes text[] := '{}';
    known text[] := '{}';
    unknown_codes text[] := '{}';
    sent text[] := '{}';
    sent_codes text[] := '{}';
BEGIN
    FOR code IN
        SELECT set_byte('\x00', 0, a) FROM generate_series(128, 255) a
        UNION ALL
        SELECT set_byte(set_byte('\x0000', 0, a), 1, b) FROM generate_series(128, 255) a, generate_series(1, 255) b WHERE many
        UNION ALL
        SELECT set_byte(set_byte('\x8f0000', 1, a), 2, b) FROM generate_series(161, 254) a, generate_series(161, 254) b
        WHERE encoding IN ('EUC_JP', 'EUC_KR', 'JOHAB')
        UNION ALL
        SELECT set_byte(set_byte(set_byte('\x8e000000', 1, p), 2, a), 3, b)
        FROM generate_series(161, 176) p, generate_series(161, 254) a, generate_series(161, 254) b WHERE encoding = 'EUC_TW'
    LOOP
        BEGIN
            one := convert_from(code, encoding);
            IF length(one) = 1 THEN
                known_codes := known_codes || encode(code, 'hex');
                known := known || one;
            END IF;
        EXCEPTION
            WHEN untranslatable_character THEN
                unknown_codes := unknown_codes || encode(code, 'hex');
            WHEN character_not_in_repertoire THEN
                NULL;
        END;
    END LOOP;
    FOR one IN SELECT chr(p) FROM generate_series(128, 65535) p WHERE p NOT BETWEEN 55296 AND 57343 LOOP
        BEGIN
            code := convert_to(one, encoding);
            sent := sent || one;
            sent_codes := sent_codes || encode(code, 'hex');
        EXCEPTION WHEN untranslatable_character THEN
            NULL;
        END;
    END LOOP;
    codes := array_to_string(known_codes, ' ');
    characters := array_to_string(known, '');
    unmapped := array_to_string(unknown_codes, ' ');
    outgoing := array_to_string(sent, '');
    outgoing_codes := array_to_string(sent_codes, ' ');
END $$;

-- `tableoid` of a table whose ranges are pgherd's.
CREATE OR REPLACE FUNCTION pgherd.tableoid(relation oid) RETURNS oid LANGUAGE sql IMMUTABLE PARALLEL SAFE AS
$$ SELECT relation $$;

-- Where the newest version of a row is, for one who locks rows that he was shown: currtid2() wants SELECT on the whole table, and he
-- may have it on some columns, or through the table that this is a range of.
CREATE OR REPLACE FUNCTION pgherd.newest_version(relation oid, place tid) RETURNS tid
LANGUAGE sql VOLATILE SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS
$$ SELECT currtid2(relation::regclass::text, place) $$;

-- What this connection has drawn last, and from each of these sequences, behind an INSERT that has drawn from all of them. NULL where it
-- cannot tell: in a block, an error would be the client's.
CREATE OR REPLACE FUNCTION pgherd.drawn(sequences text[]) RETURNS text LANGUAGE plpgsql VOLATILE AS $$
BEGIN
    RETURN pg_catalog.concat_ws(' ', pg_catalog.lastval(), (SELECT pg_catalog.string_agg(pg_catalog.currval(s.name::pg_catalog.regclass)::pg_catalog.text, ' ' ORDER BY s.place)
        FROM pg_catalog.unnest(sequences) WITH ORDINALITY AS s (name, place)));
EXCEPTION WHEN OTHERS THEN
    RETURN NULL;
END $$;
-- currval() and lastval() of a session whose INSERTs drew numbers for defaults on changing connections: what this connection
-- has drawn itself is newer than what the gateway remembers (a JSON object of numbers by OID, and the last number).
CREATE OR REPLACE FUNCTION pgherd.currval(sequence regclass) RETURNS bigint LANGUAGE plpgsql VOLATILE AS $$
DECLARE
    remembered bigint := int8in(textout(nullif(current_setting('pgherd.drawn_numbers', true), '')::json ->> sequence::oid::text));
BEGIN
    RETURN pg_catalog.currval(sequence);
EXCEPTION WHEN object_not_in_prerequisite_state THEN
    IF remembered IS NULL THEN
        RAISE;
    END IF;
    RETURN remembered;
END $$;
CREATE OR REPLACE FUNCTION pgherd.lastval() RETURNS bigint LANGUAGE plpgsql VOLATILE AS $$
DECLARE
    remembered bigint := nullif(current_setting('pgherd.drawn_last', true), '');
BEGIN
    RETURN pg_catalog.lastval();
EXCEPTION WHEN object_not_in_prerequisite_state THEN
    IF remembered IS NULL THEN
        RAISE;
    END IF;
    RETURN remembered;
END $$;
