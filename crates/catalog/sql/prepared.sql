-- Transactions that clients prepare themselves (PREPARE TRANSACTION 'name'), on every shard. Run by the installer after
-- markers.sql. docs/life-of-a-commit.md explains them.

-- Writes the marker of a transaction that a client prepares, as the last statement before PREPARE TRANSACTION. As
-- pgherd.write_marker, but that it does not pass the commit gate: what is prepared may stay for hours, and readers must be able
-- to close the gate meanwhile. Nobody fences these: the catalog's row decides, so there is no lock to be found by, and a sequence
-- that was registered after this transaction's snapshot need not be seen here.
CREATE OR REPLACE FUNCTION pgherd.write_client_marker(gid text, proof text) RETURNS void
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    own_sequence text := split_part(gid, ':', 5) || ':' || split_part(gid, ':', 6);
BEGIN
    PERFORM set_config('statement_timeout', '0', true);
    IF current_setting('lock_timeout') = '0' THEN
        PERFORM set_config('lock_timeout', '10s', true);
    END IF;
    IF current_setting('synchronous_commit') IN ('off', 'local', 'remote_write') THEN
        PERFORM set_config('synchronous_commit', 'on', true);
    END IF;
    INSERT INTO pgherd.dtx (gid, state, sequence, number)
    SELECT write_client_marker.gid, 'p', own_sequence, int8in(textout(split_part(write_client_marker.gid, ':', 7)))
    FROM pgherd.commit_secret AS c
    WHERE proof = encode(sha256(c.secret || sha256(c.secret || convert_to(write_client_marker.gid, 'UTF8'))), 'hex');
    IF NOT FOUND THEN
        RAISE insufficient_privilege USING MESSAGE = 'markers are written by gateways only';
    END IF;
END
$$;
