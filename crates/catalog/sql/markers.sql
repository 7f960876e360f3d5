-- Markers: what a transaction over several shards leaves on each of them, in every database of every shard.
-- The installer runs this text as the service role (a superuser) after it made schema pgherd, and then once
--   SELECT pgherd.set_commit_secret('<the cluster''s secret>')
-- Running it again changes nothing. docs/life-of-a-commit.md explains how markers are used.

-- A row of state p ("prepared") is written inside the transaction itself, so it becomes visible in the very moment
-- in which the transaction does. A row of state a ("aborted") is a fence: it keeps a late p out by the primary key.
CREATE TABLE IF NOT EXISTS pgherd.dtx (
    gid        text NOT NULL,
    state      text NOT NULL, -- p or a. A CHECK would be parsed anew by every commit, and only functions of ours write here
    -- Both are parts of the gid, which they identify. One short key under a plain byte order: every participant of every
    -- commit pays for it.
    sequence   text COLLATE "C" NOT NULL, -- <gateway>:<incarnation>.<generation>
    number     bigint NOT NULL,           -- counts up within its sequence
    written_at timestamptz NOT NULL DEFAULT clock_timestamp(),
    PRIMARY KEY (sequence, number)
) WITH (autovacuum_vacuum_scale_factor = 0, autovacuum_vacuum_threshold = 2000,
        autovacuum_vacuum_insert_scale_factor = 0, autovacuum_vacuum_insert_threshold = 10000);

CREATE TABLE IF NOT EXISTS pgherd.commit_secret (
    the_only_row boolean PRIMARY KEY DEFAULT true CHECK (the_only_row),
    secret       bytea NOT NULL
);
CREATE OR REPLACE FUNCTION pgherd.commit_secret() RETURNS bytea
LANGUAGE sql STABLE SET search_path = pg_catalog, pg_temp AS $$ SELECT secret FROM pgherd.commit_secret $$;
REVOKE ALL ON FUNCTION pgherd.commit_secret() FROM PUBLIC;

-- Who may write markers. A row exists before the first marker of its sequence, and stays for a day after the last, or for a minute
-- where the gateway itself has ended it.
CREATE TABLE IF NOT EXISTS pgherd.dtx_sequence (
    sequence      text COLLATE "C" PRIMARY KEY,
    gateway       text NOT NULL,
    incarnation   bigint NOT NULL,
    -- every transaction with a number up to this is settled: visible on all its shards, or rolled back on all
    settled       bigint NOT NULL DEFAULT -1,
    -- its gateway was found dead: no marker of this sequence is accepted any more
    closed        boolean NOT NULL DEFAULT false,
    settled_at    timestamptz NOT NULL DEFAULT now(),
    registered_at timestamptz NOT NULL DEFAULT now(),
    -- the cluster's, here as well so that a marker needs to look at one table only
    secret        bytea NOT NULL DEFAULT pgherd.commit_secret()
);

-- Its gateway has settled all that it began, and begins nothing more under this name.
ALTER TABLE pgherd.dtx_sequence ADD COLUMN IF NOT EXISTS ended boolean NOT NULL DEFAULT false;

-- Locked, never filled: shared by every transaction from its marker to its COMMIT PREPARED, exclusively by a reader for
-- the moment in which it takes its snapshots, when too many commits keep it from finding a consistent set of them.
CREATE TABLE IF NOT EXISTS pgherd.commit_gate ();

-- A transaction with one snapshot would look at dtx_sequence as it was long ago. A sequence of PostgreSQL has its newest value in
-- every snapshot: here, the transaction that closed a sequence or deleted a fence last. Who does not see that transaction
-- may not see others of the kind, and writes no marker. They come one after the other, so that the last stands for all.
CREATE SEQUENCE IF NOT EXISTS pgherd.last_refusal MINVALUE 0 START 0;
CREATE TABLE IF NOT EXISTS pgherd.refusing ();
CREATE OR REPLACE FUNCTION pgherd.note_refusal() RETURNS trigger
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
BEGIN
    LOCK TABLE pgherd.refusing IN EXCLUSIVE MODE;
    PERFORM setval('pgherd.last_refusal', int8in(xid8out(pg_current_xact_id())));
    RETURN CASE tg_op WHEN 'DELETE' THEN OLD ELSE NEW END;
END $$;
CREATE OR REPLACE TRIGGER note_closing BEFORE INSERT OR UPDATE OF closed ON pgherd.dtx_sequence
    FOR EACH ROW WHEN (NEW.closed) EXECUTE FUNCTION pgherd.note_refusal();
-- Its number is settled then, which alone keeps a late message from being taken.
CREATE OR REPLACE TRIGGER note_lost_fence BEFORE DELETE ON pgherd.dtx
    FOR EACH ROW WHEN (OLD.state = 'a') EXECUTE FUNCTION pgherd.note_refusal();

REVOKE ALL ON pgherd.dtx, pgherd.dtx_sequence, pgherd.commit_secret, pgherd.commit_gate, pgherd.last_refusal, pgherd.refusing
    FROM PUBLIC;

CREATE OR REPLACE FUNCTION pgherd.set_commit_secret(new_secret text) RETURNS void
LANGUAGE sql SET search_path = pg_catalog, pg_temp AS $$
    INSERT INTO pgherd.commit_secret (secret) VALUES (convert_to(new_secret, 'UTF8'))
    ON CONFLICT (the_only_row) DO UPDATE SET secret = excluded.secret WHERE commit_secret.secret <> excluded.secret;
    UPDATE pgherd.dtx_sequence AS s SET secret = c.secret FROM pgherd.commit_secret AS c WHERE s.secret <> c.secret;
$$;
REVOKE ALL ON FUNCTION pgherd.set_commit_secret(text) FROM PUBLIC;

-- Writes the marker of state p, as the last statement before PREPARE TRANSACTION, on the client's own connection.
-- The proof is sha256(secret || sha256(secret || gid)) in hexadecimal: only a gateway can make it, so no client can
-- write a marker or keep one from being written. It comes as a parameter, never in a query's text, which others can see.
CREATE OR REPLACE FUNCTION pgherd.write_marker(gid text, proof text) RETURNS void
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    own_sequence text := split_part(gid, ':', 5) || ':' || split_part(gid, ':', 6);
BEGIN
    -- A cancelled wait for the standby would answer success; an endless one for a lock could not be broken once others are prepared.
    -- Looked at before they are set, and at once: what a commit pays for is the number of expressions.
    IF current_setting('lock_timeout') = '0' THEN
        PERFORM set_config('lock_timeout', '10s', true);
    END IF;
    IF current_setting('statement_timeout') <> '0' OR current_setting('synchronous_commit') IN ('off', 'local', 'remote_write') THEN
        PERFORM set_config('statement_timeout', '0', true);
        PERFORM set_config('synchronous_commit', 'on', true)
        WHERE current_setting('synchronous_commit') IN ('off', 'local', 'remote_write');
    END IF;
    LOCK TABLE pgherd.commit_gate IN ROW SHARE MODE;
    -- The advisory lock lets recovery find who holds this gid, before and after PREPARE. Shared and never waited for.
    IF NOT pg_try_advisory_xact_lock_shared(hashtext(own_sequence), hashtext(gid)) THEN
        RAISE lock_not_available USING MESSAGE = 'the advisory lock of this commit is held by a client';
    END IF;
    IF current_setting('transaction_isolation') <> 'read committed' THEN
        IF NOT pg_visible_in_snapshot((SELECT last_value FROM pgherd.last_refusal)::text::xid8, pg_current_snapshot()) THEN
            RAISE serialization_failure USING
                MESSAGE = 'could not serialize access: a gateway was taken for dead after this transaction''s snapshot was taken',
                HINT = 'Run the transaction again.';
        END IF;
    END IF;
    -- A later statement than the lock's, with a later snapshot: whoever closes the sequence either is seen here, or sees the lock.
    INSERT INTO pgherd.dtx (gid, state, sequence, number)
    SELECT write_marker.gid, 'p', own_sequence, int8in(textout(split_part(write_marker.gid, ':', 7)))
    FROM pgherd.dtx_sequence AS s
    WHERE s.sequence = own_sequence AND NOT s.closed
      -- A message can be on its way for longer than a fence is kept: no number comes after it was settled.
      AND s.settled < int8in(textout(split_part(write_marker.gid, ':', 7)))
      AND proof = encode(sha256(s.secret || sha256(s.secret || convert_to(write_marker.gid, 'UTF8'))), 'hex');
    IF FOUND THEN
        RETURN;
    END IF;
    PERFORM FROM pgherd.commit_secret AS c
    WHERE proof = encode(sha256(c.secret || sha256(c.secret || convert_to(write_marker.gid, 'UTF8'))), 'hex');
    IF NOT FOUND THEN
        RAISE insufficient_privilege USING MESSAGE = 'markers are written by gateways only';
    END IF;
    RAISE SQLSTATE 'PGH01' USING
        MESSAGE = 'this gateway was taken for dead and may not commit under its old number';
END
$$;

-- The gids of state p that this snapshot shows, without those known to be settled: for a cut.
-- known[i] = settled_through[i] is the watermark of a sequence; a sequence that is not in known is listed whole.
-- STABLE, so that it sees with the snapshot of the statement that calls it. By the key, whatever PostgreSQL believes: where its statistics
-- are of a moment in which one sequence had all the markers, it would read those of the last half minute for the few behind a watermark.
CREATE OR REPLACE FUNCTION pgherd.visible_markers(known text[], settled_through bigint[]) RETURNS text[]
LANGUAGE plpgsql STABLE SECURITY DEFINER SET search_path = pg_catalog, pg_temp
SET enable_seqscan = off SET enable_bitmapscan = off SET jit = off AS $$
BEGIN
    RETURN ARRAY(
        SELECT d.gid
        FROM pgherd.dtx_sequence s
        LEFT JOIN unnest(known, settled_through) AS w (sequence, number) ON w.sequence = s.sequence
        CROSS JOIN LATERAL (
            SELECT m.gid FROM pgherd.dtx m
            WHERE m.sequence = s.sequence AND m.number > coalesce(w.number, -1) AND m.state = 'p'
            OFFSET 0
        ) d
        WHERE w.number IS DISTINCT FROM 9223372036854775807
    );
END
$$;

-- The same for a statement that takes its snapshot only when it is executed, an UPDATE or DELETE: the gateway adds a
-- subquery that calls this to its WHERE. It is evaluated once, with the statement's own snapshot, whatever rows there are. What
-- it finds is kept for the next statement of the transaction; what is known to be settled comes the same way.
CREATE OR REPLACE FUNCTION pgherd.note_markers() RETURNS boolean
LANGUAGE plpgsql STABLE SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
BEGIN
    PERFORM set_config('pgherd.noted_markers', pgherd.visible_markers(
        current_setting('pgherd.known_sequences', true)::text[],
        current_setting('pgherd.settled_through', true)::bigint[])::text, true);
    RETURN true;
END
$$;

-- Waits until the commits that are between their two phases here are visible here: those whose names are like this. For a
-- transaction that may have seen them on another shard. A prepared transaction is shown to new snapshots before it leaves the list.
-- Called on the client's connection, in front of its statement, so every name is qualified in place of a search_path.
CREATE OR REPLACE FUNCTION pgherd.wait_for_commits(of_names text) RETURNS void
LANGUAGE plpgsql AS $$
DECLARE
    waiting text[];
    since timestamptz;
BEGIN
    IF NOT EXISTS (SELECT FROM pg_catalog.pg_prepared_xact() AS x WHERE x.gid OPERATOR(pg_catalog.~) of_names) THEN
        RETURN;
    END IF;
    waiting := ARRAY(SELECT x.gid FROM pg_catalog.pg_prepared_xact() AS x WHERE x.gid OPERATOR(pg_catalog.~) of_names);
    since := pg_catalog.clock_timestamp();
    -- Those that come later were not seen anywhere yet.
    WHILE EXISTS (SELECT FROM pg_catalog.pg_prepared_xact() AS x WHERE x.gid OPERATOR(pg_catalog.=) ANY (waiting)) LOOP
        IF pg_catalog.clock_timestamp() OPERATOR(pg_catalog.>) (since OPERATOR(pg_catalog.+) interval '10 s') THEN
            RAISE serialization_failure USING
                MESSAGE = 'could not serialize access due to an unfinished commit over several shards',
                DETAIL = pg_catalog.format('Not visible on every shard within 10 s: %s.', pg_catalog.array_to_string(waiting, ', ')),
                HINT = 'A shard or a gateway may be down. Repeat the transaction.';
        END IF;
        PERFORM pg_catalog.pg_sleep(0.001);
    END LOOP;
END
$$;

-- Keeps a gid from ever being prepared here. 23505: somebody else decided; 55P03: a transaction holds the key.
CREATE OR REPLACE FUNCTION pgherd.fence_marker(gid text) RETURNS void
LANGUAGE sql SET search_path = pg_catalog, pg_temp SET lock_timeout = '250ms' AS $$
    INSERT INTO pgherd.dtx (gid, state, sequence, number)
    VALUES (gid, 'a', split_part(gid, ':', 5) || ':' || split_part(gid, ':', 6), int8in(textout(split_part(gid, ':', 7))))
$$;
REVOKE ALL ON FUNCTION pgherd.fence_marker(text) FROM PUBLIC;

-- Who holds the marker of a gid (NULL: every gid of the sequence): backends before PREPARE, pid NULL afterwards.
CREATE OR REPLACE FUNCTION pgherd.marker_holders(of_sequence text, of_gid text) RETURNS TABLE (pid integer)
LANGUAGE sql SET search_path = pg_catalog, pg_temp AS $$
    SELECT l.pid FROM pg_locks l
    WHERE l.locktype = 'advisory' AND l.objsubid = 2 AND l.granted
      AND l.database = (SELECT oid FROM pg_database WHERE datname = current_database())
      AND l.classid = (hashtext(of_sequence)::bigint & 4294967295)::oid
      AND (of_gid IS NULL OR l.objid = (hashtext(of_gid)::bigint & 4294967295)::oid)
$$;
REVOKE ALL ON FUNCTION pgherd.marker_holders(text, text) FROM PUBLIC;

-- What waits between the two phases on this shard, in this database.
CREATE OR REPLACE VIEW pgherd.prepared_here AS
    SELECT x.gid, split_part(x.gid, ':', 5) AS gateway, x.owner::text AS role, x.prepared AS prepared_at
    FROM pg_prepared_xacts x
    WHERE x.gid LIKE 'pgherd:%' AND x.database = current_database();
GRANT SELECT ON pgherd.prepared_here TO PUBLIC;
