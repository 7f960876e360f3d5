"""What a session keeps, as psycopg uses it: notifications, prepared statements, encodings, cursors, process ids, COPY into a
table of the same transaction, databases. Prints the same on PostgreSQL and on pgherd."""

import time

import psycopg
from psycopg import sql


def connect(**arguments):
    return psycopg.connect(autocommit=True, **arguments)


def notifications():
    with connect() as listener, connect() as sender:
        listener.execute("LISTEN news")
        sender.execute("NOTIFY news, 'from another'")
        with sender.transaction():
            sender.execute("SELECT pg_notify('news', 'committed')")
        with sender.transaction(force_rollback=True):
            sender.execute("NOTIFY news, 'rolled back'")
        # Two connections of the cluster may be slower than one: the count is what ends it.
        told = list(listener.notifies(timeout=10, stop_after=2))
        print("told", [(n.channel, n.payload) for n in told])
        listener.execute("NOTIFY news, 'from itself'")
        own = next(listener.notifies(timeout=10, stop_after=1))
        print("own", own.payload, own.pid == listener.info.backend_pid)
        listener.execute("UNLISTEN *")
        sender.execute("NOTIFY news, 'too late'")
        print("after", list(listener.notifies(timeout=0.3)))


def prepared_statements():
    with connect(prepare_threshold=0) as conn:
        conn.execute("CREATE TABLE local_one (a int, b text)")
        conn.execute("INSERT INTO local_one VALUES (%s, %s)", [1, "x"])
        conn.execute("PREPARE by_hand AS SELECT 1")
        rows = conn.execute(
            "SELECT statement, parameter_types, from_sql FROM pg_prepared_statements ORDER BY statement, from_sql",
            prepare=False,
        )
        print("prepared", rows.fetchall())
        print("row", conn.execute("SELECT * FROM local_one WHERE a = %s", [1]).fetchone())
        with connect() as other:
            other.execute("ALTER TABLE local_one ADD c int DEFAULT 7")
        with connect(prepare_threshold=0) as fresh:
            print("altered", fresh.execute("SELECT * FROM local_one WHERE a = %s", [1]).fetchone())
    for _ in range(2):
        # The same text, of a type that is another each time.
        with connect(prepare_threshold=0) as conn, conn.transaction(force_rollback=True):
            conn.execute("CREATE TYPE mood AS ENUM ('good', 'bad')")
            print("mood", conn.execute("SELECT %s::mood", ["good"]).fetchone())


def encodings():
    with connect(client_encoding="latin1") as conn:
        print("encoding", conn.execute("SHOW client_encoding").fetchone(), conn.info.encoding)
        conn.execute("CREATE TABLE words (id int PRIMARY KEY, word text)")
        conn.cursor().executemany("INSERT INTO words VALUES (%s, %s)", [(n, "caf\u00e9 %d" % n) for n in range(8)])
        print("text", conn.execute("SELECT word FROM words ORDER BY id").fetchall())
        print("binary", conn.execute("SELECT id, word FROM words WHERE word = %b", ["caf\u00e9 5"], binary=True).fetchall())
        for word in ["SELECT chr(8364)", "SELECT 1"]:
            try:
                print("word", conn.execute(word).fetchone())
            except psycopg.Error as error:
                print("error", error.sqlstate, error.diag.message_primary)
        conn.execute("SELECT set_config('client_encoding', %s, false)", ["utf8"])
        print("back", conn.info.encoding, conn.execute("SELECT length(word), word FROM words WHERE id = 1").fetchone())


def binary_in_another_encoding():
    with connect(client_encoding="latin1") as conn:
        conn.execute("CREATE TYPE dish AS ENUM ('caf\u00e9', 'cr\u00e8me')")
        conn.execute("CREATE TYPE course AS (n int, dish dish, name text)")
        conn.execute("CREATE DOMAIN taste AS varchar(10)")
        conn.execute("CREATE TYPE tastes AS RANGE (subtype = text)")
        conn.execute(
            "CREATE TABLE menu (id int PRIMARY KEY, dish dish, dishes dish[], course course, words text[], taste taste, tastes tastes, j jsonb)"
        )
        conn.cursor().executemany(
            "INSERT INTO menu VALUES (%s, %s, %s, ROW(%s, %s, %s), %s, %s, tastes(%s, NULL), %s)",
            [
                (n, "caf\u00e9", ["cr\u00e8me", None], n, "caf\u00e9", "\u00e9t\u00e9", ["\u00e0", "b"], "\u00e2cre", "\u00e9", '{"\u00e9": 1}')
                for n in range(8)
            ],
        )
        columns = "id, dish, dishes, words, taste, course, courses, tastes, j"
        query = f"SELECT {columns} FROM (SELECT *, ARRAY[course] AS courses FROM menu) AS m WHERE id %% 3 = %s ORDER BY id"
        cursor = conn.cursor(binary=True)
        cursor.execute(query, [2])
        result = cursor.pgresult
        # Without the OIDs of types.
        print("values", [[result.get_value(row, i) for i in (1, 3, 4)] for row in range(result.ntuples)])
        for i in (2, 5, 6, 7, 8):
            value = result.get_value(0, i)
            print("length", len(value), value.count(b"caf\xe9"), value.count(b"\xe9"), b"caf\xc3" in value)
        row = conn.execute("SELECT count(*) FROM menu WHERE words = %b AND taste = %b", [["\u00e0", "b"], "\u00e2cre"]).fetchone()
        print("given", row)
        with conn.cursor().copy("COPY (SELECT id, dish, words FROM menu ORDER BY id) TO STDOUT (FORMAT binary)") as copy:
            data = b"".join(bytes(piece) for piece in copy)
        print("copied", len(data), data.count(b"caf\xe9"), data.count(b"\xc3"))
        with conn.cursor().copy("COPY menu (id, dish, words) FROM STDIN (FORMAT binary)") as copy:
            copy.set_types(["int4", "text", "text[]"])
            for n in range(20, 26):
                copy.write_row((n, "cr\u00e8me", ["\u00ef", None]))
        with conn.cursor().copy("COPY menu (id, dish, words) TO STDOUT (FORMAT binary)") as copy:
            copy.set_types(["int4", "text", "text[]"])
            print("rows", sorted(copy.rows()))
        conn.execute("DO $$ BEGIN EXECUTE 'UPDATE menu SET taste = ''\u00fc'' WHERE id > 22'; RAISE NOTICE 'd\u00e9j\u00e0'; END $$")
        conn.execute("SELECT set_config('client_encoding', 'utf8', false)")
        print("after", conn.execute("SELECT id, dish, words, taste FROM menu WHERE id > 21 ORDER BY id").fetchall())
        conn.execute("SET client_encoding = latin1")
        try:
            conn.cursor(binary=True).execute("SELECT ARRAY['\u00e9', chr(8364)]").fetchone()
        except psycopg.Error as error:
            print("error", error.sqlstate)


def cursors_and_processes():
    with psycopg.connect() as conn, connect() as other:
        cursor = conn.cursor("named", scrollable=True)
        cursor.execute("SELECT id, word FROM words ORDER BY id")
        print("columns", [(c.name, c.type_code) for c in cursor.description], len(cursor.fetchmany(3)))
        cursor.scroll(-2)
        print("scrolled", cursor.fetchone()[0])
        cursor.close()
        print("pid", conn.execute("SELECT pg_backend_pid()").fetchone()[0] == conn.info.backend_pid)
        print("ended", other.execute("SELECT pg_terminate_backend(%s)", [conn.info.backend_pid]).fetchone())
        try:
            conn.execute("SELECT 1")
        except psycopg.Error as error:
            print("error", error.sqlstate, conn.closed)
        try:
            other.execute("SELECT pg_terminate_backend(pg_backend_pid())")
        except psycopg.Error as error:
            print("error", error.sqlstate, other.closed)


def copies():
    for binary in ["", " (FORMAT binary)"]:
        with psycopg.connect() as conn:
            conn.execute("CREATE TABLE copied (id serial PRIMARY KEY, a int, b text)")
            with conn.cursor().copy("COPY copied (a, b) FROM STDIN" + binary) as copy:
                copy.set_types(["int4", "text"])
                for n in range(9):
                    copy.write_row((n, "row %d" % n))
            print("copied", conn.execute("SELECT * FROM copied ORDER BY id").fetchall())
            try:
                with conn.cursor().copy("COPY copied (a, b) FROM STDIN" + binary) as copy:
                    copy.set_types(["int4", "text"])
                    copy.write_row((1, "x"))
                    copy.write_row((1, "x", "y") if not binary else (1,))
            except psycopg.Error as error:
                print("error", error.sqlstate, error.diag.message_primary)
            conn.rollback()
    # The schema of the block is its own: the home shard's part of the stream waits.
    with psycopg.connect() as conn:
        conn.execute("CREATE TABLE altered (id int PRIMARY KEY, a int)")
        conn.execute("ALTER TABLE altered ADD b text")
        for lines in [[], ["1\t2\tx\n", "8\t9\ty\n"]]:
            with conn.cursor().copy("COPY altered FROM STDIN (HEADER match)") as copy:
                for line in ["id\ta\tb\n", *lines]:
                    copy.write(line)
        print("altered", conn.execute("SELECT * FROM altered ORDER BY id").fetchall())
        conn.rollback()


def copies_in_their_own_encoding():
    for client in ["utf8", "latin1"]:
        for table, kind in [("spelt", "TABLE"), ("apart", "TEMPORARY TABLE")]:
            with connect(client_encoding=client) as conn:
                conn.execute(f"CREATE {kind} {table} (id int PRIMARY KEY, word text)")
                conn.execute(f"INSERT INTO {table} SELECT n, 'caf' || chr(233) FROM generate_series(1, 9) n")
                for own in ["UTF8", "latin1", "SJIS", "nothing"]:
                    for statement in [
                        f"COPY {table} TO STDOUT (ENCODING '{own}')",
                        f"COPY (SELECT word FROM {table} WHERE id = 8) TO STDOUT WITH CSV ENCODING '{own}'",
                        f"COPY {table} TO STDOUT (FORMAT binary, ENCODING '{own}')",
                    ]:
                        try:
                            with conn.cursor().copy(statement) as copy:
                                print(own, sorted(bytes(part) for part in copy)[:2])
                        except psycopg.Error as error:
                            print("error", error.sqlstate, error.diag.message_primary)
                    conn.execute("BEGIN")
                    try:
                        with conn.cursor().copy(f"COPY {table} FROM STDIN (ENCODING '{own}')") as copy:
                            for line in [b"11\tcaf\xe9\n", b"12\tcaf\xc3\xa9\n"]:
                                copy.write(line)
                        print(own, conn.execute(f"SELECT word FROM {table} WHERE id > 10 ORDER BY id").fetchall())
                    except psycopg.Error as error:
                        print("error", error.sqlstate, error.diag.message_primary)
                    conn.execute("ROLLBACK")
                print("afterwards", conn.execute(f"SELECT word FROM {table} WHERE id = 2").fetchone())
                conn.execute(f"DROP TABLE {table}")


def databases():
    with connect() as conn:
        name = sql.Identifier("Another")
        conn.execute(sql.SQL("CREATE DATABASE {}").format(name))
        with connect(dbname="Another") as there:
            there.execute("CREATE TABLE t (a int PRIMARY KEY)")
            there.execute("INSERT INTO t SELECT generate_series(1, 9)")
            print("there", there.execute("SELECT current_database(), count(*), sum(a) FROM t").fetchone())
            try:
                conn.execute(sql.SQL("DROP DATABASE {}").format(name))
            except psycopg.Error as error:
                print("error", error.sqlstate, error.diag.message_primary, error.diag.message_detail)
        renames = ["ALTER DATABASE {} RENAME TO " + to for to in ["postgres", '"Renamed"', '"Other"']]
        back = ['ALTER DATABASE "Renamed" RENAME TO {}', "ALTER DATABASE postgres RENAME TO {}"]
        drops = ["DROP DATABASE {}", "DROP DATABASE {}", "DROP DATABASE IF EXISTS {}"]
        for statement in ["CREATE DATABASE {}", *renames, *back, *drops]:
            try:
                print(conn.execute(sql.SQL(statement).format(name)).statusmessage)
            except psycopg.Error as error:
                print("error", error.sqlstate, error.diag.message_primary)
        try:
            connect(dbname="Another")
        except psycopg.Error as error:
            print("gone", "does not exist" in str(error))
        conn.execute("BEGIN")
        try:
            conn.execute("CREATE DATABASE x")
        except psycopg.Error as error:
            print("error", error.sqlstate, error.diag.message_primary)
        conn.execute("ROLLBACK")


def snapshots():
    """What one transaction sees, others see, as the workers of pg_dump do."""
    with connect() as leader, connect() as worker, connect() as writer:
        writer.execute("CREATE TABLE seen (k int PRIMARY KEY, v int)")
        writer.execute("INSERT INTO seen SELECT n, 1 FROM generate_series(1, 9) n")
        leader.execute("BEGIN ISOLATION LEVEL REPEATABLE READ")
        name = leader.execute("SELECT pg_catalog.pg_export_snapshot()").fetchone()[0]
        writer.execute("UPDATE seen SET v = 2")
        writer.execute("DELETE FROM seen WHERE k = 8")
        total = "SELECT count(*), sum(v) FROM seen"
        print("writer", writer.execute(total).fetchone())
        worker.execute("BEGIN ISOLATION LEVEL REPEATABLE READ READ ONLY")
        print(worker.execute(sql.SQL("SET TRANSACTION SNAPSHOT {}").format(name)).statusmessage)
        print("worker", worker.execute(total).fetchone(), worker.execute("SELECT v FROM seen WHERE k = 8").fetchone())
        print("leader", leader.execute(total).fetchone())
        worker.execute("COMMIT")
        leader.execute("COMMIT")
        for begin, wrong in [
            ("BEGIN ISOLATION LEVEL REPEATABLE READ", name),
            ("BEGIN ISOLATION LEVEL REPEATABLE READ", "nothing like it"),
            ("BEGIN", name),
            ("BEGIN ISOLATION LEVEL REPEATABLE READ; SELECT count(*) FROM seen", name),
        ]:
            # Connections of pgherd's own hold what was exported: they end a moment after the transaction.
            for _ in range(50):
                worker.execute(begin)
                try:
                    worker.execute(sql.SQL("SET TRANSACTION SNAPSHOT {}").format(wrong))
                except psycopg.Error as error:
                    print("error", error.sqlstate, error.diag.message_primary.replace(name, "NAME"))
                    break
                finally:
                    worker.execute("ROLLBACK")
                time.sleep(0.1)
        writer.execute("DROP TABLE seen")


def parameters():
    """What PostgreSQL reports of settings, also when a block's end undoes them: psycopg reads times by it."""
    with connect() as conn:
        conn.execute("CREATE TABLE timed (k int PRIMARY KEY, at timestamptz)")
        conn.execute("INSERT INTO timed SELECT n, '2026-01-02 03:04:05+00' FROM generate_series(1, 9) n")

        def told(when):
            row = conn.execute("SELECT at FROM timed WHERE k = 8").fetchone()
            print(when, conn.info.parameter_status("TimeZone"), conn.info.parameter_status("application_name"), row[0])

        conn.execute("SET TIME ZONE 'UTC'")
        conn.execute("SET application_name = 'first'")
        told("before")
        for end in ["COMMIT", "ROLLBACK"]:
            conn.execute("BEGIN")
            conn.execute("SET LOCAL TIME ZONE 'Asia/Tokyo'")
            conn.execute("SET LOCAL application_name = 'local'")
            told("local")
            conn.execute(end)
            told(end)
        conn.execute("BEGIN")
        told("in the block")
        conn.execute("SET TIME ZONE 'Asia/Tokyo'")
        conn.execute("SAVEPOINT s")
        conn.execute("SET TIME ZONE 'America/New_York'")
        told("set")
        conn.execute("ROLLBACK TO s")
        told("to the savepoint")
        conn.execute("ROLLBACK")
        told("undone")
        conn.execute("BEGIN")
        conn.execute("SET TIME ZONE 'Asia/Tokyo'")
        try:
            conn.execute("SELECT 1 / 0")
        except psycopg.Error as error:
            print("error", error.sqlstate, conn.info.parameter_status("TimeZone"))
        conn.execute("COMMIT")
        told("failed")
        for before in ["SELECT 1", "SET TIME ZONE 'Asia/Kolkata'"]:
            conn.execute("BEGIN")
            conn.execute(before)
            conn.execute("SAVEPOINT s")
            conn.execute("SET TIME ZONE 'Asia/Tokyo'")
            try:
                conn.execute("ROLLBACK TO nowhere")
            except psycopg.Error as error:
                print("error", error.sqlstate, conn.info.parameter_status("TimeZone"))
            conn.execute("ROLLBACK TO s")
            told("behind the savepoint")
            conn.execute("ROLLBACK")
        conn.execute("BEGIN")
        conn.execute("SELECT set_config('TimeZone', 'Asia/Tokyo', true)")
        told("by function")
        conn.execute("COMMIT")
        told("ended")
        conn.execute("DROP TABLE timed")


with connect() as setup:
    setup.execute("ALTER ROLE postgres SET pgherd.default_distribution = 'primary_key'")
    setup.execute("ALTER ROLE postgres SET pgherd.initial_bounds = 'int 3,7'")
for part in [notifications, prepared_statements, encodings, binary_in_another_encoding, cursors_and_processes, copies, copies_in_their_own_encoding, databases, snapshots, parameters]:
    part()
