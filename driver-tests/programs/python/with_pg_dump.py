"""pg_dump and pg_restore: a database with a bit of everything is dumped in each format and restored twice, and compared.

Where to connect is in PGHOST and so on, PostgreSQL's programs in PGPROGRAMS; PGOTHER is the port of another server, a plain
PostgreSQL, that what was dumped must be good for as well. It prints the same on PostgreSQL and on pgherd.
"""

import os
import pathlib
import subprocess
import tempfile

PROGRAMS = pathlib.Path(os.environ["PGPROGRAMS"])

SCHEMA = r"""
CREATE EXTENSION hstore;
CREATE EXTENSION pg_trgm;
CREATE SCHEMA shop;
CREATE TYPE shop.mood AS ENUM ('sad', 'ok', 'happy');
CREATE TYPE shop.place AS (street text, town text);
CREATE DOMAIN shop.percent AS int CHECK (VALUE BETWEEN 0 AND 100);
CREATE TYPE shop.span AS RANGE (subtype = date);
CREATE FUNCTION shop.stamp() RETURNS trigger LANGUAGE plpgsql AS $$BEGIN NEW.changed := '2024-01-01'; RETURN NEW; END$$;
CREATE FUNCTION shop.add(a int, b int DEFAULT 1) RETURNS int LANGUAGE sql IMMUTABLE STRICT AS 'SELECT a + b';
CREATE PROCEDURE shop.nothing() LANGUAGE sql AS 'SELECT 1';
CREATE AGGREGATE shop.total (int) (SFUNC = int4pl, STYPE = int, INITCOND = '0');
CREATE TABLE shop.spread (
    id int PRIMARY KEY,
    name varchar(30) NOT NULL DEFAULT 'no "name"',
    mood shop.mood,
    home shop.place,
    share shop.percent DEFAULT 50,
    price numeric(12,3),
    doubled numeric GENERATED ALWAYS AS (price * 2) STORED,
    raw bytea, words text[], details jsonb, tags hstore, valid shop.span, at timestamptz, changed date,
    CONSTRAINT named CHECK (name <> ''),
    EXCLUDE USING btree (id WITH =)
);
CREATE TABLE shop.numbered (id bigint GENERATED ALWAYS AS IDENTITY (START 5 INCREMENT 5) PRIMARY KEY, body text COLLATE "C", UNIQUE (id, body));
CREATE TABLE shop.keyed (code text, part int, v float8, PRIMARY KEY (code, part));
CREATE TABLE shop.parent (id serial PRIMARY KEY, label text UNIQUE);
CREATE TABLE shop.child (id int PRIMARY KEY, parent int REFERENCES shop.parent ON DELETE CASCADE);
CREATE TABLE shop.loose (v int, w text);
CREATE TABLE shop.ranged (k int NOT NULL, v text) PARTITION BY RANGE (k);
CREATE TABLE shop.ranged_low PARTITION OF shop.ranged FOR VALUES FROM (MINVALUE) TO (10);
CREATE TABLE shop.ranged_high PARTITION OF shop.ranged FOR VALUES FROM (10) TO (MAXVALUE);
CREATE TABLE shop.listed (k text, v int) PARTITION BY LIST (k);
CREATE TABLE shop.listed_a PARTITION OF shop.listed FOR VALUES IN ('a');
CREATE TABLE shop.listed_rest PARTITION OF shop.listed DEFAULT;
CREATE INDEX spread_name ON shop.spread USING gin (name gin_trgm_ops);
CREATE INDEX spread_lower ON shop.spread (lower(name) DESC NULLS LAST) INCLUDE (price) WHERE price > 0;
CREATE UNIQUE INDEX keyed_again ON shop.keyed (code, part, v);
CREATE STATISTICS shop.spread_statistics (dependencies) ON name, price FROM shop.spread;
CREATE TRIGGER stamping BEFORE INSERT OR UPDATE ON shop.spread FOR EACH ROW EXECUTE FUNCTION shop.stamp();
CREATE VIEW shop.cheap AS SELECT s.id, s.name, n.body FROM shop.spread s LEFT JOIN shop.numbered n ON n.id = s.id WHERE s.price < 4;
CREATE VIEW shop.cheaper WITH (security_barrier) AS SELECT * FROM shop.cheap WHERE id < 5;
CREATE MATERIALIZED VIEW shop.kept AS SELECT v, count(*) AS n FROM shop.loose GROUP BY v;
CREATE SEQUENCE shop.tickets AS smallint START 7 INCREMENT 3 MAXVALUE 999 CYCLE CACHE 4;
CREATE RULE not_zero AS ON INSERT TO shop.loose WHERE NEW.v = 0 DO INSTEAD NOTHING;
ALTER TABLE shop.loose ENABLE ROW LEVEL SECURITY;
CREATE POLICY own ON shop.loose FOR SELECT USING (v > 1);
COMMENT ON TABLE shop.spread IS 'lies on all shards; it''s "spread"';
COMMENT ON COLUMN shop.spread.price IS 'what it costs';
COMMENT ON CONSTRAINT named ON shop.spread IS 'not empty';
COMMENT ON INDEX shop.spread_lower IS 'an index';
COMMENT ON VIEW shop.cheap IS 'a view';
COMMENT ON TYPE shop.mood IS 'a type';
COMMENT ON FUNCTION shop.add IS 'a function';
GRANT USAGE ON SCHEMA shop TO dump_reader;
GRANT SELECT ON shop.spread, shop.cheap TO dump_reader WITH GRANT OPTION;
GRANT UPDATE (price, name) ON shop.spread TO dump_reader;
GRANT USAGE ON SEQUENCE shop.tickets TO dump_reader;
GRANT EXECUTE ON FUNCTION shop.add TO dump_reader;
ALTER TABLE shop.keyed OWNER TO dump_reader;
ALTER DEFAULT PRIVILEGES IN SCHEMA shop GRANT SELECT ON TABLES TO dump_reader;
INSERT INTO shop.spread (id, name, mood, home, price, raw, words, details, tags, valid, at)
    SELECT n, 'name ' || n || E'\t\\', (ARRAY['sad', 'ok', 'happy'])[1 + n % 3]::shop.mood, ROW('street, "' || n, NULL)::shop.place, n * 1.125,
        decode(lpad(to_hex(n), 4, '0'), 'hex'), ARRAY['a', NULL, n::text], jsonb_build_object('n', n), hstore('k', n::text), daterange('2024-01-01', '2024-02-01')::text::shop.span,
        '2024-02-29 10:00+00'::timestamptz + n * interval '1 hour' FROM generate_series(-3, 15) n;
INSERT INTO shop.numbered (body) SELECT 'body ' || n FROM generate_series(1, 9) n;
INSERT INTO shop.keyed SELECT chr(96 + n % 26), n, n / 3.0 FROM generate_series(1, 60) n;
INSERT INTO shop.parent (label) SELECT 'label ' || n FROM generate_series(1, 9) n;
INSERT INTO shop.child SELECT n, n FROM generate_series(1, 9) n;
INSERT INTO shop.loose SELECT n % 4, 'w' || n FROM generate_series(1, 12) n;
INSERT INTO shop.ranged SELECT n, 'r' || n FROM generate_series(1, 20) n;
INSERT INTO shop.listed VALUES ('a', 1), ('b', 2), (NULL, 3);
REFRESH MATERIALIZED VIEW shop.kept;
SELECT setval('shop.tickets', 22), nextval('shop.tickets');
SELECT lo_from_bytea(4711, 'a large object');
COMMENT ON LARGE OBJECT 4711 IS 'large';
"""

# What two databases are compared by, besides their dumps.
TABLES = ["spread", "numbered", "keyed", "parent", "child", "loose", "ranged", "ranged_low", "listed", "cheap", "cheaper", "kept"]


def run(name, *arguments, port=None, database=None, text=None):
    environment = dict(os.environ)
    environment.update({"PGPORT": port} if port else {})
    environment.update({"PGDATABASE": database} if database else {})
    done = subprocess.run([PROGRAMS / name, *arguments], env=environment, input=text, capture_output=True, text=True)
    complaint = done.stderr.strip()
    # NOTICEs say where pgherd puts tables.
    told = [line for line in complaint.splitlines() if "NOTICE:" not in line]
    if done.returncode or told:
        print(name, *arguments[:3], "exit", done.returncode)
        print("   ", "\n    ".join(told[:6]))
    return done.stdout


def psql(sql, **where):
    return run("psql", "-X", "-q", "-A", "-t", "-v", "ON_ERROR_STOP=1", text=sql, **where)


def content(**where):
    """All rows of all tables, with what sequences would say next."""
    rows = {table: psql(f"SELECT t FROM shop.{table} t ORDER BY t::text", **where) for table in TABLES}
    rows["tickets"] = psql("SELECT last_value, is_called FROM shop.tickets", **where)
    rows["identity"] = psql("SELECT last_value FROM shop.numbered_id_seq", **where)
    rows["large object"] = psql("SELECT lo_get(4711)", **where)
    return rows


def definition(**where):
    """The schema as pg_dump writes it, without what differs from run to run."""
    lines = run("pg_dump", "--schema-only", **where).splitlines()
    return [line for line in lines if line and not line.startswith(("--", "\\restrict", "\\unrestrict"))]


def compare(what, found, expected):
    if isinstance(expected, dict):
        wrong = [key for key in expected if found[key] != expected[key]]
    else:
        wrong = [line for line in expected if line not in found] + ["+ " + line for line in found if line not in expected]
    print(what, *(wrong[:10] or ["same"]), sep="\n    ")


def main():
    other = os.environ["PGOTHER"]
    psql("CREATE ROLE dump_reader", database="postgres")
    psql("CREATE ROLE dump_reader", port=other, database="postgres")
    psql("CREATE DATABASE dump_source", database="postgres")
    psql("SET pgherd.default_distribution = 'primary_key'; SET pgherd.initial_bounds = 'int 3,7; bigint 15,30; text h,q';" + SCHEMA, database="dump_source")
    rows, schema = content(database="dump_source"), definition(database="dump_source")
    for table, text in rows.items():
        print(table, text.count("\n"), "rows")
    with tempfile.TemporaryDirectory() as folder:
        for name, options in {"plain": ["-Fp"], "inserts": ["-Fp", "--rows-per-insert=5"], "custom": ["-Fc"], "directory": ["-Fd", "-j2"], "tar": ["-Ft"]}.items():
            file = f"{folder}/{name}"
            run("pg_dump", *options, "-b", "-f", file, database="dump_source")
            for side, port in {"here": os.environ["PGPORT"], "elsewhere": other}.items():
                psql("CREATE DATABASE dump_target", port=port, database="postgres")
                where = {"port": port, "database": "dump_target"}
                if options[0] == "-Fp":
                    run("psql", "-X", "-q", "-v", "ON_ERROR_STOP=1", "-o", "/dev/null", "-f", file, **where)
                else:
                    run("pg_restore", "--exit-on-error", *(["-j2"] if name == "directory" else ["-1"]), "-d", "dump_target", file, **where)
                compare(f"{name} {side}: rows", content(**where), rows)
                compare(f"{name} {side}: schema", definition(**where), schema)
                psql("DROP DATABASE dump_target", port=port, database="postgres")
        run("pg_dump", "--data-only", "-t", "shop.spread", "-f", f"{folder}/data", database="dump_source")
        psql("DELETE FROM shop.spread", database="dump_source")
        run("psql", "-X", "-q", "-o", "/dev/null", "-f", f"{folder}/data", database="dump_source")
        compare("data of a table", content(database="dump_source"), rows)
        run("pg_dump", "-Fc", "-n", "shop", "--clean", "-f", f"{folder}/clean", database="dump_source")
        run("pg_restore", "-l", f"{folder}/clean")
        run("pg_restore", "--clean", "--if-exists", "--single-transaction", "-d", "dump_source", f"{folder}/clean", database="dump_source")
        compare("restored over itself", content(database="dump_source"), rows)
        globals_ = run("pg_dumpall", "--globals-only", database="postgres")
        print("role" if "CREATE ROLE dump_reader;" in globals_ else globals_)
    psql("DROP DATABASE dump_source", database="postgres")
    psql("DROP ROLE dump_reader", database="postgres")
    psql("DROP ROLE dump_reader", port=other, database="postgres")


main()
