"""Types that users made, in binary: enums, composite types, arrays and ranges of them, domains. asyncpg checks the numbers of types
that stand in the values. Prints the same on PostgreSQL and on pgherd."""

import asyncio
import io
import os
import struct

import asyncpg

SCHEMA = """
CREATE TYPE mood AS ENUM ('sad', 'ok', 'happy');
CREATE TYPE part AS (state mood, n int, states mood[]);
CREATE DOMAIN parts AS part[] CHECK (cardinality(VALUE) < 9);
CREATE TYPE whole AS (name text, parts parts);
CREATE TABLE thing (id int PRIMARY KEY, state mood, states mood[], first part, rest parts, whole whole) PARTITION BY RANGE (id);
CREATE TABLE thing_1 PARTITION OF thing FOR VALUES FROM (MINVALUE) TO (10);
CREATE TABLE thing_2 PARTITION OF thing FOR VALUES FROM (10) TO (20);
CREATE TABLE thing_3 PARTITION OF thing FOR VALUES FROM (20) TO (MAXVALUE);
"""


def show(label, rows):
    # Rows that are written come in any order.
    print(label, sorted((tuple(row.values()) for row in rows), key=lambda row: row[0] if isinstance(row[0], int) else 0))


async def write(connection):
    for n in (1, 2, 11, 12, 21, 22):
        part = ("ok", n, ["sad", None, "happy"])
        await connection.execute(
            "INSERT INTO thing VALUES ($1, $2, $3, $4, $5, $6)", n, "sad", ["ok", "happy"], part, [part, None], ("w", [part])
        )
    part = ("happy", None, [])
    show("inserted", await connection.fetch("INSERT INTO thing (id, first, rest) VALUES ($1, $3, $4), ($2, $3, $4) RETURNING *", 3, 23, part, [part]))
    show("updated", await connection.fetch("UPDATE thing SET states = $1 WHERE id % 10 = 1 RETURNING id, states, whole", ["sad"]))
    show("moved", await connection.fetch("UPDATE thing SET id = id + 14 WHERE id IN (3, 12) RETURNING id, first, rest"))
    show("copied", await connection.fetch("INSERT INTO thing SELECT id + 100, state, states, first, rest, whole FROM thing WHERE id < 3 RETURNING *"))
    show("deleted", await connection.fetch("DELETE FROM thing WHERE id > 100 RETURNING *"))


async def read(connection):
    for n in (1, 11, 21):
        show("one", await connection.fetch("SELECT * FROM thing WHERE id = $1", n))
        show("row", await connection.fetch("SELECT ROW(state, states), ARRAY[first], rest[1] FROM thing WHERE id = $1", n))
    show("all", await connection.fetch("SELECT * FROM thing ORDER BY id"))
    show("joined", await connection.fetch("SELECT a.rest, b.whole FROM thing a JOIN thing b ON b.id = a.id + 10 ORDER BY a.id"))
    show("grouped", await connection.fetch("SELECT array_agg(first ORDER BY id), states FROM thing GROUP BY states ORDER BY states"))
    show("asked", await connection.fetch("SELECT id FROM thing WHERE first = $1::part OR states = $2 ORDER BY id", ("happy", None, []), ["sad"]))
    async with connection.transaction():
        # A portal that stops and goes on, on one shard and over all of them.
        show("some", [row async for row in connection.cursor("SELECT * FROM thing WHERE id BETWEEN 20 AND 29 ORDER BY id", prefetch=1)])
        show("more", [row async for row in connection.cursor("SELECT id, rest FROM thing ORDER BY id", prefetch=2)])


async def copy(connection):
    """The numbers of types inside of a binary COPY's values, in both directions."""
    await connection.copy_records_to_table("thing", records=[(n, ["happy", "sad"], ("ok", n, ["sad"])) for n in (5, 15, 25)], columns=["id", "states", "first"])
    show("copied in", await connection.fetch("SELECT id, states, first FROM thing WHERE id % 10 = 5 ORDER BY id"))
    mood = struct.pack("!I", await connection.fetchval("SELECT 'mood'::regtype::oid"))
    sources = [f"SELECT states FROM thing WHERE id = {n}" for n in (5, 15, 25)] + ["SELECT states FROM thing ORDER BY id"]
    for source in sources + ["SELECT first FROM thing WHERE id = 25", "SELECT states FROM thing WHERE id = 29"]:
        out = io.BytesIO()
        await connection.copy_from_query(source, output=out, format="binary")
        print(source, out.getvalue().count(mood))
    for table in ("thing", "thing_3"):
        out = io.BytesIO()
        await connection.copy_from_query(f"SELECT * FROM {table}", output=out, format="binary")
        print(table, out.getvalue().count(mood))
    out = io.BytesIO()
    await connection.copy_from_table("thing_3", columns=["states"], output=out, format="binary")
    print("thing_3", out.getvalue().count(mood))


async def main():
    connection = await asyncpg.connect()
    await connection.execute(SCHEMA)
    await write(connection)
    await read(connection)
    await copy(connection)
    # One who has never asked about these types.
    another = await asyncpg.connect(statement_cache_size=0)
    await read(another)
    await another.close()
    await connection.close()


assert os.environ["PGPORT"]
asyncio.run(main())
