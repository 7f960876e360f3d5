-- What calls pgherd.refuse_inner_change(). The last that is made: a catalog of another version is made anew beside sharded tables.
CREATE EVENT TRIGGER pgherd_inner_change ON ddl_command_end
    WHEN TAG IN ('ALTER TABLE', 'ALTER SCHEMA', 'ALTER TYPE', 'ALTER DOMAIN', 'CREATE FUNCTION', 'CREATE PROCEDURE', 'ALTER FUNCTION', 'ALTER PROCEDURE',
        'ALTER ROUTINE', 'GRANT', 'REVOKE')
    EXECUTE FUNCTION pgherd.refuse_inner_change();
CREATE EVENT TRIGGER pgherd_inner_change_begins ON ddl_command_start WHEN TAG IN ('CREATE FUNCTION', 'CREATE PROCEDURE')
    EXECUTE FUNCTION pgherd.refuse_inner_change();
CREATE EVENT TRIGGER pgherd_inner_drop ON sql_drop EXECUTE FUNCTION pgherd.refuse_inner_change();
