"""Which table's column a RowDescription says each column is, by names; prints the same on PostgreSQL and on pgherd."""

import struct

from with_messages import SYNC, Connection, extended, message, simple

MADE = """
SET pgherd.default_distribution = 'primary_key'
SET pgherd.initial_bounds = 'int 3,7'
CREATE TABLE a (gone int, id int PRIMARY KEY, x text, y int)
ALTER TABLE a DROP COLUMN gone
ALTER TABLE a ADD COLUMN z int DEFAULT 4
ALTER TABLE a DROP COLUMN y
INSERT INTO a (id, x) VALUES (1, 'a'), (4, 'b'), (8, 'c')
CREATE TABLE b (id int PRIMARY KEY, t text)
INSERT INTO b VALUES (1, 'a'), (4, 'b'), (8, 'c')
CREATE TABLE l (n int, m text)
INSERT INTO l VALUES (1, 'l')
CREATE VIEW va AS SELECT x AS xx, id FROM a
CREATE VIEW vl AS SELECT * FROM l
CREATE TABLE p (k int, dropped int, v text) PARTITION BY RANGE (k)
CREATE TABLE p_low PARTITION OF p FOR VALUES FROM (MINVALUE) TO (5)
ALTER TABLE p DROP COLUMN dropped
CREATE TABLE p_high PARTITION OF p FOR VALUES FROM (5) TO (MAXVALUE)
INSERT INTO p VALUES (1, 'x'), (9, 'y')
"""

ASKED = """
SELECT * FROM a WHERE id = 4
SELECT id + 1, x AS q, z, id FROM a WHERE id = 8
SELECT * FROM a ORDER BY id
SELECT count(*), max(x) FROM a
SELECT a.*, b.t FROM a JOIN b USING (id) WHERE id = 4
SELECT a.*, b.t FROM a JOIN b USING (id) ORDER BY a.id
SELECT l.m, a.x FROM l, a WHERE a.id = 4
SELECT * FROM l
SELECT * FROM va WHERE id = 4
SELECT * FROM va
SELECT * FROM vl
SELECT * FROM (SELECT id, x FROM a WHERE id = 8) AS s
SELECT * FROM a WHERE id = 4 FOR UPDATE
SELECT ctid, id FROM a WHERE id = 4
SELECT * FROM a WHERE id = 1 UNION ALL SELECT * FROM a WHERE id = 4
SELECT t FROM b AS t WHERE id = 4
SELECT * FROM p WHERE k = 1
SELECT * FROM p WHERE k = 9
SELECT * FROM p_low
SELECT * FROM p_high WHERE k = 9
SELECT p.v, p_high.v FROM p, p_high WHERE p.k = 9 AND p_high.k = 9
WITH w AS (SELECT * FROM a WHERE id = 4) SELECT * FROM w
INSERT INTO a (id, x) VALUES (2, 'n') RETURNING *
INSERT INTO a (id, x) VALUES (20, 'n'), (5, 'u'), (0, 'm') RETURNING x, id
UPDATE a SET x = 'up' WHERE id = 4 RETURNING *
UPDATE a SET x = 'up' RETURNING id, z
DELETE FROM a WHERE id > 9 RETURNING id, x
DELETE FROM a WHERE id = 5 RETURNING id, x
"""

# What only the transaction itself sees, and cursors, on one shard and over several.
IN_A_BLOCK = """
BEGIN
DECLARE one CURSOR FOR SELECT * FROM a WHERE id = 8
FETCH 1 FROM one
DECLARE several CURSOR FOR SELECT x, id FROM a ORDER BY id
FETCH 1 FROM several
CLOSE ALL
CREATE TABLE f (gone int, id int PRIMARY KEY, w text)
ALTER TABLE f DROP COLUMN gone
INSERT INTO f VALUES (1, 'a'), (4, 'b'), (8, 'c')
SELECT * FROM f WHERE id = 4
SELECT * FROM f WHERE id = 8
INSERT INTO f VALUES (9, 'b') RETURNING *
UPDATE f SET w = 'b' RETURNING *
ALTER TABLE a ADD COLUMN later text
SELECT * FROM a WHERE id = 1
COMMIT
SELECT * FROM a WHERE id = 1
ALTER TABLE f RENAME TO g
SELECT * FROM g WHERE id = 8
ALTER TABLE p DETACH PARTITION p_high
SELECT * FROM p_high WHERE k = 9
"""

COLUMNS = """SELECT c.oid, a.attnum, c.relname || '.' || a.attname FROM pg_class c JOIN pg_attribute a ON a.attrelid = c.oid
WHERE c.relnamespace = 'public'::regnamespace AND NOT a.attisdropped"""


def described(body):
    """The names and the origins in a RowDescription."""
    (count,) = struct.unpack("!h", body[:2])
    body, found = body[2:], []
    for _ in range(count):
        _, body = body.split(b"\0", 1)
        found.append(struct.unpack("!ih", body[:6]))
        body = body[18:]
    return found


def answer(connection, sent):
    """The last origins and the rows of an answer, or its error."""
    connection.socket.sendall(sent)
    origins, rows = [], []
    while True:
        letter, body = connection.read()
        if letter == b"T":
            origins = described(body)
        elif letter == b"D":
            at, values = 2, []
            while at < len(body):
                (length,) = struct.unpack("!i", body[at : at + 4])
                values.append(body[at + 4 : at + 4 + max(length, 0)].decode())
                at += 4 + max(length, 0)
            rows.append(values)
        elif letter == b"E":
            origins = [(body.replace(b"\0", b" ").decode(), 0)]
        elif letter == b"Z":
            return origins, rows


def show(connection, sql, names, how, sent):
    origins, _ = answer(connection, sent)
    if origins:
        print(how, sql, [names.get(origin, origin) for origin in origins])


def ask(connection, sql):
    # Asked on another connection, names are those that all see; a block's own tables are asked for in it.
    _, rows = answer(connection, simple(COLUMNS))
    names = {(int(oid), int(number)): name for oid, number, name in rows}
    names[0, 0] = "-"
    show(connection, sql, names, "simple", simple(sql))
    if sql.startswith(("SELECT", "FETCH")):
        for _ in range(3):
            show(connection, sql, names, "again", simple(sql))
        show(connection, sql, names, "portal", extended(sql) + SYNC)
        show(connection, sql, names, "statement", message(b"P", b"\0" + sql.encode() + b"\0\0\0") + message(b"D", b"S\0") + SYNC)


def main():
    connection = Connection()
    for sql in MADE.strip().splitlines():
        origins, _ = answer(connection, simple(sql))
        assert not origins, (sql, origins)
    for sql in (ASKED + IN_A_BLOCK).strip().splitlines():
        if sql:
            ask(connection, sql)


if __name__ == "__main__":
    main()
