"""A shop in psycopg 3: makes two sharded tables, fills, joins and changes them, and prints what it sees.

It runs unchanged on PostgreSQL and on pgherd, and prints the same on both. Where to connect is in PGHOST and so on.
"""

import datetime
import decimal

import psycopg
from psycopg.rows import dict_row
from psycopg.types.json import Jsonb

SCHEMA = """
CREATE TABLE customer (id int PRIMARY KEY, name text NOT NULL, city text, since date) PARTITION BY RANGE (id);
CREATE TABLE customer_1 PARTITION OF customer FOR VALUES FROM (MINVALUE) TO (34);
CREATE TABLE customer_2 PARTITION OF customer FOR VALUES FROM (34) TO (67);
CREATE TABLE customer_3 PARTITION OF customer FOR VALUES FROM (67) TO (MAXVALUE);
CREATE TABLE purchase (id bigint PRIMARY KEY, customer int NOT NULL, price numeric(10,2) NOT NULL,
    paid bool NOT NULL DEFAULT false, details jsonb, at timestamptz) PARTITION BY RANGE (id);
CREATE TABLE purchase_1 PARTITION OF purchase FOR VALUES FROM (MINVALUE) TO (1000);
CREATE TABLE purchase_2 PARTITION OF purchase FOR VALUES FROM (1000) TO (2000);
CREATE TABLE purchase_3 PARTITION OF purchase FOR VALUES FROM (2000) TO (MAXVALUE);
"""

CITIES = ["Bern", "Lyon", "Oslo", None]
START = datetime.datetime(2024, 1, 1, tzinfo=datetime.timezone.utc)


def fill(connection):
    with connection.transaction(), connection.cursor() as cursor:
        cursor.executemany(
            "INSERT INTO customer (id, name, city, since) VALUES (%s, %s, %s, %s)",
            [(n, f"customer {n}", CITIES[n % 4], datetime.date(2020, 1, 1) + datetime.timedelta(days=n)) for n in range(1, 101)],
        )
        print("inserted", cursor.rowcount)
    with connection.cursor() as cursor, cursor.copy(
        "COPY purchase (id, customer, price, details, at) FROM STDIN"
    ) as copy:
        for n in range(1, 3001):
            price = decimal.Decimal(n * 37 % 9901) / 100
            copy.write_row((n, n % 100 + 1, price, Jsonb({"n": n, "tags": ["a", str(n % 3)]}), START + datetime.timedelta(minutes=n)))
    print("purchases", connection.execute("SELECT count(*) FROM purchase").fetchone()[0])


def read(connection):
    row = connection.execute("SELECT * FROM purchase WHERE id = %s", (1234,)).fetchone()
    print(row[0], row[1], row[2], row[3], row[4], row[5].astimezone(datetime.timezone.utc))
    # More than five times: psycopg prepares the statement on the server.
    for n in range(1, 3000, 300):
        print(connection.execute("SELECT price FROM purchase WHERE id = %s", (n,)).fetchone()[0], end=" ")
    print()
    joined = connection.execute(
        """SELECT c.city, count(*), sum(p.price) FROM customer c JOIN purchase p ON p.customer = c.id
           WHERE p.price > %s GROUP BY c.city ORDER BY c.city NULLS LAST""",
        (decimal.Decimal("50"),),
    )
    for row in joined:
        print(*row)
    with connection.cursor(row_factory=dict_row) as cursor:
        cursor.execute("SELECT id, name, since FROM customer WHERE id = ANY(%s) ORDER BY id", ([99, 2, 50],))
        print(cursor.fetchall())
    with connection.cursor(binary=True) as cursor:
        cursor.execute("SELECT id, price, at, details FROM purchase WHERE id BETWEEN 999 AND 1001 ORDER BY id")
        for row in cursor:
            print(row[0], row[1], row[2].astimezone(datetime.timezone.utc), row[3]["n"])


def change(connection):
    with connection.transaction():
        changed = connection.execute("UPDATE purchase SET paid = true WHERE customer = %s", (7,))
        print("paid", changed.rowcount)
        try:
            with connection.transaction():
                connection.execute("UPDATE customer SET name = 'nobody'")
                connection.execute("INSERT INTO customer (id, name) VALUES (50, 'twice')")
        except psycopg.errors.UniqueViolation as error:
            print(error.sqlstate, error.diag.constraint_name, error.diag.table_name)
    print(connection.execute("SELECT count(*) FROM customer WHERE name = 'nobody'").fetchone()[0])
    returned = connection.execute("DELETE FROM purchase WHERE id IN (5, 1500, 2500) RETURNING id, paid").fetchall()
    print(sorted(returned))
    print(connection.execute("SELECT count(*) FILTER (WHERE paid), sum(price) FROM purchase").fetchone())
    with connection.cursor() as cursor, cursor.copy(
        "COPY (SELECT id, city FROM customer WHERE id % 25 = 0 ORDER BY id) TO STDOUT"
    ) as copy:
        print([row for row in copy.rows()])


def pipeline(connection):
    with connection.pipeline():
        cursors = [connection.execute("SELECT name FROM customer WHERE id = %s", (n,)) for n in (1, 40, 80)]
        connection.execute("UPDATE customer SET city = 'Rome' WHERE id = %s", (80,))
        cursors.append(connection.execute("SELECT city FROM customer WHERE id = 80"))
    print([cursor.fetchone()[0] for cursor in cursors])


def errors(connection):
    for statement in ["SELECT * FROM nothing", "SELECT nothing FROM customer", "SELEC 1", "SELECT 1/0", "INSERT INTO customer (id) VALUES (500)"]:
        try:
            connection.execute(statement)
        except psycopg.Error as error:
            print(error.sqlstate, str(error).splitlines()[0])
    print(connection.execute("SELECT 'still here'").fetchone()[0])


def two_phases(connection):
    def pay(xid, *numbers, connection=connection):
        connection.tpc_begin(xid)
        for number in numbers:
            connection.execute("UPDATE purchase SET price = 0 WHERE id = %s", (number,))

    def free(*numbers):
        free = connection.execute("SELECT count(*) FROM purchase WHERE id = ANY(%s) AND price = 0", (list(numbers),))
        count = free.fetchone()[0]
        connection.rollback()
        return count

    xids = [connection.xid(7, f"gift {n}", "shop") for n in range(4)]
    pay(xids[0], 10, 1010, 2010)
    connection.tpc_prepare()
    connection.tpc_commit()
    pay(xids[1], 11, 1011)
    connection.tpc_prepare()
    connection.tpc_rollback()
    pay(xids[2], 12, 2012)
    connection.tpc_commit()
    # The session that prepared it goes away.
    leaving = psycopg.connect()
    pay(xids[3], 13, 1013, 2013, connection=leaving)
    leaving.tpc_prepare()
    leaving.close()
    with psycopg.connect() as recovering:
        for xid in recovering.tpc_recover():
            print(xid.format_id, xid.gtrid, xid.bqual, xid.owner, xid.database, xid.prepared is not None)
            recovering.tpc_commit(xid)
        print(recovering.tpc_recover())
    print(free(10, 1010, 2010), free(11, 1011), free(12, 2012), free(13, 1013, 2013))
    try:
        connection.tpc_commit(xids[3])
    except psycopg.Error as error:
        print(error.sqlstate, str(error).splitlines()[0])


with psycopg.connect(autocommit=True) as shop:
    shop.execute(SCHEMA)
    fill(shop)
    read(shop)
    change(shop)
    pipeline(shop)
    errors(shop)
with psycopg.connect() as other:
    other.execute("UPDATE customer SET city = 'Lima' WHERE id IN (1, 99)")
    other.rollback()
    print(other.execute("SELECT count(*) FROM customer WHERE city = 'Lima'").fetchone()[0])
    other.rollback()
    two_phases(other)
