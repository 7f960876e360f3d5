"""A shop in asyncpg, which speaks binary and prepares everything; prints the same on PostgreSQL and on pgherd."""

import asyncio
import datetime
import decimal
import json
import os

import asyncpg

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


async def fill(connection):
    rows = [(n, f"customer {n}", CITIES[n % 4], datetime.date(2020, 1, 1) + datetime.timedelta(days=n)) for n in range(1, 101)]
    await connection.executemany("INSERT INTO customer (id, name, city, since) VALUES ($1, $2, $3, $4)", rows)
    purchases = [
        (n, n % 100 + 1, decimal.Decimal(n * 37 % 9901) / 100, n % 2 == 0, json.dumps({"n": n}), START + datetime.timedelta(minutes=n))
        for n in range(1, 3001)
    ]
    columns = ["id", "customer", "price", "paid", "details", "at"]
    print(await connection.copy_records_to_table("purchase", records=purchases, columns=columns))


async def read(connection):
    print(dict(await connection.fetchrow("SELECT * FROM purchase WHERE id = $1", 1234)))
    statement = await connection.prepare("SELECT name, city FROM customer WHERE id = $1")
    print([kind.name for kind in statement.get_parameters()], [attribute.name for attribute in statement.get_attributes()])
    for n in (1, 34, 67, 100, 101):
        print(await statement.fetchrow(n))
    joined = await connection.fetch(
        """SELECT c.city, count(*) AS n, sum(p.price) AS total, max(p.at) AS latest
           FROM customer c JOIN purchase p ON p.customer = c.id
           WHERE p.price > $1 GROUP BY c.city ORDER BY c.city NULLS LAST""",
        decimal.Decimal(50),
    )
    for row in joined:
        print(tuple(row))
    print(await connection.fetchval("SELECT array_agg(id ORDER BY id) FROM customer WHERE id = ANY($1::int[])", [99, 2, 50]))
    async with connection.transaction():
        ids = [row["id"] async for row in connection.cursor("SELECT id FROM customer ORDER BY id", prefetch=30)]
    print(len(ids), ids[0], ids[-1])


async def portals(connection):
    """A portal of the protocol is a cursor for SQL."""
    for query in ["SELECT generate_series(0, 20)", "SELECT id FROM customer ORDER BY id", "SELECT id FROM customer WHERE id = 5"]:
        async with connection.transaction():
            cursor = await connection.cursor(query)
            seen = [await cursor.forward(2), await cursor.fetchrow(), await cursor.fetch(3), await cursor.forward(5), await cursor.fetchrow()]
            print(query, [tuple(row) if isinstance(row, asyncpg.Record) else row for row in seen])
            await cursor.fetch(200)
            print(await cursor.forward(1), await cursor.fetchrow())
    async with connection.transaction():
        await connection.execute("CREATE TABLE once (id int); INSERT INTO once VALUES (0), (1)")
        print([row["id"] async for row in connection.cursor("SELECT * FROM once")])
        # It was closed at its end.
        await connection.execute("DROP TABLE once")


async def prepare_anew(connection, another):
    """asyncpg prepares a statement of its own again when it hears that its columns are others now."""
    await connection.execute("CREATE TABLE changing (a int PRIMARY KEY, b int); INSERT INTO changing VALUES (1, 2)")
    for who in [connection, another]:
        print(tuple(await who.fetchrow("SELECT * FROM changing")))
    await connection.execute("ALTER TABLE changing ALTER COLUMN b SET DATA TYPE text")
    for who in [connection, another]:
        print(tuple(await who.fetchrow("SELECT * FROM changing")))
    await connection.execute("DROP TABLE changing")
    process = await another.fetchval("SELECT pg_backend_pid()")
    sleeping = asyncio.create_task(another.execute("SELECT pg_sleep(20)"))
    await asyncio.sleep(0.2)
    print(await connection.fetchval("SELECT pg_terminate_backend($1)", process))
    try:
        await sleeping
    except Exception as error:
        print(type(error).__name__)


async def change(connection):
    async with connection.transaction():
        print(await connection.execute("UPDATE purchase SET paid = true WHERE customer = $1", 7))
        try:
            async with connection.transaction():
                await connection.execute("UPDATE customer SET name = 'nobody'")
                await connection.execute("INSERT INTO customer (id, name) VALUES (50, 'twice')")
        except asyncpg.UniqueViolationError as error:
            print(error.sqlstate, error.constraint_name, error.table_name)
    print(await connection.fetchval("SELECT count(*) FROM customer WHERE name = 'nobody'"))
    print(sorted(row["id"] for row in await connection.fetch("DELETE FROM purchase WHERE id IN (5, 1500, 2500) RETURNING id")))
    print(tuple(await connection.fetchrow("SELECT count(*) FILTER (WHERE paid), sum(price) FROM purchase")))


async def errors(connection):
    for statement in ["SELECT * FROM nothing", "SELECT nothing FROM customer", "SELEC 1", "SELECT 1/0", "INSERT INTO customer (id) VALUES (500)"]:
        try:
            await connection.fetch(statement)
        except asyncpg.PostgresError as error:
            print(error.sqlstate, error.message)
    print(await connection.fetchval("SELECT 'still here'"))


async def together(pool):
    """Many sessions at once, each with transactions over two shards."""

    async def pay(n):
        async with pool.acquire() as connection, connection.transaction():
            await connection.execute("UPDATE customer SET since = since + 1 WHERE id = $1", n)
            await connection.execute("UPDATE customer SET since = since - 1 WHERE id = $1", n + 50)

    await asyncio.gather(*(pay(n) for n in range(1, 51)))
    print(await pool.fetchval("SELECT sum(since - date '2020-01-01') FROM customer"))


async def main():
    where = {"host": os.environ["PGHOST"], "port": int(os.environ["PGPORT"]), "user": "postgres", "database": "postgres"}
    connection = await asyncpg.connect(**where)
    await connection.execute(SCHEMA)
    await fill(connection)
    await read(connection)
    await portals(connection)
    await prepare_anew(connection, await asyncpg.connect())
    await change(connection)
    await errors(connection)
    await connection.close()
    async with asyncpg.create_pool(**where, min_size=4, max_size=8) as pool:
        await together(pool)


asyncio.run(main())
