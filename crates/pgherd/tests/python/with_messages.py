"""Messages in orders that few drivers send, over a bare socket; prints the same on PostgreSQL and on pgherd."""

import os
import socket
import struct
import threading


def message(letter, body=b""):
    return letter + struct.pack("!i", len(body) + 4) + body


def extended(sql):
    """Parse, Bind, Describe and Execute of the unnamed statement."""
    return (
        message(b"P", b"\0" + sql.encode() + b"\0\0\0")
        + message(b"B", b"\0\0\0\0\0\0\0\0")
        + message(b"D", b"P\0")
        + message(b"E", b"\0\0\0\0\0")
    )


def simple(sql):
    return message(b"Q", sql.encode() + b"\0")


def execute(portal, rows):
    return message(b"E", portal.encode() + b"\0" + struct.pack("!i", rows))


SYNC = message(b"S")
FLUSH = message(b"H")


class Connection:
    def __init__(self, application="messages", database=os.environ["PGDATABASE"]):
        self.socket = socket.create_connection((os.environ["PGHOST"], int(os.environ["PGPORT"])), timeout=30)
        start = struct.pack("!i", 196608)
        start += f"user\0{os.environ['PGUSER']}\0database\0{database}\0application_name\0{application}\0\0".encode()
        self.socket.sendall(struct.pack("!i", len(start) + 4) + start)
        self.file = self.socket.makefile("rb")
        self.started = self.until_ready(1)

    def read(self):
        letter = self.file.read(1)
        (length,) = struct.unpack("!i", self.file.read(4))
        return letter, self.file.read(length - 4)

    def until_ready(self, count):
        """What comes until so many ReadyForQuery: letters, tags, codes of errors, values."""
        said = []
        while count:
            letter, body = self.read()
            count -= letter == b"Z" or b"SFATAL" in body
            if letter in b"CZ":
                said.append(f"{letter.decode()}({body.rstrip(bytes(1)).decode()})")
            elif letter == b"E":
                fields = dict((field[:1], field[1:].decode()) for field in body.split(b"\0") if field)
                said.append(f"E({fields[b'C']})")
            elif letter == b"D":
                said.append(f"D({body[6:].decode()})")
            else:
                said.append(letter.decode())
        return " ".join(said)

    def say(self, ready, *messages):
        self.socket.sendall(b"".join(messages))
        print(self.until_ready(ready))


def main():
    connection = Connection()
    # A simple query is behind what came before it, Sync or not.
    connection.say(2, extended("BEGIN"), simple("SAVEPOINT a"), extended("SELECT 1"), SYNC)
    connection.say(1, simple("COMMIT"))
    connection.say(2, extended("SELECT 1"), simple("SELECT 2"), SYNC)
    connection.say(3, extended("BEGIN"), simple("SELECT 3"), extended("COMMIT"), SYNC, simple("SELECT 4"))
    # Behind an error all is skipped up to Sync, simple queries too.
    connection.say(2, extended("SELECT 1 / (SELECT 0)"), simple("SELECT 5"), extended("SELECT 6"), SYNC, simple("SELECT 7"))
    connection.say(2, extended("SELECT 8"), extended("SELECT 1 / (SELECT 0)"), simple("SELECT 9"), SYNC, extended("SELECT 10"), SYNC)
    # Flush begins a COPY before its Sync, which then comes where data is expected and means nothing.
    connection.say(1, simple("CREATE TEMPORARY TABLE copied (a int)"))
    connection.say(1, extended("COPY copied FROM STDIN"), FLUSH, SYNC, message(b"d", b"7\n"), message(b"c", b""), SYNC)
    connection.say(1, extended("SELECT sum(a) FROM copied"), SYNC)
    # What is wrong with a statement in itself is said instead of ParseComplete, and its name is free.
    connection.say(1, message(b"P", b"named\0SELECT nothing\0\0\0"), message(b"B", b"\0named\0" + bytes(6)), message(b"E", b"\0" + bytes(4)), SYNC)
    connection.say(1, message(b"P", b"named\0SELECT 11\0\0\0"), message(b"B", b"\0named\0" + bytes(6)), message(b"E", b"\0" + bytes(4)), SYNC)
    # A portal that has failed is not run again, nor is any other before the block has ended.
    connection.say(1, simple("BEGIN"))
    connection.say(1, message(b"P", b"\0SELECT 6 / (3 - n) FROM generate_series(1, 5) n\0\0\0"), message(b"B", b"some\0\0" + bytes(6)), execute("some", 1), SYNC)
    connection.say(1, execute("some", 5), SYNC)
    connection.say(1, execute("some", 1), SYNC)
    connection.say(1, simple("ROLLBACK"))
    # Only the statements of one text can be prepared without BEGIN.
    connection.say(1, simple("SET client_min_messages = error"))
    connection.say(1, extended("SELECT 12"), FLUSH, extended("PREPARE TRANSACTION 'pipeline'"), extended("SELECT gid FROM pg_prepared_xacts"), SYNC)
    connection.say(1, simple("SELECT 13; PREPARE TRANSACTION 'text'"))
    connection.say(1, simple("SELECT gid FROM pg_prepared_xacts"))
    connection.say(1, simple("ROLLBACK PREPARED 'text'"))
    connection.say(1, simple("RESET client_min_messages"))
    # FETCH gives a portal's rows in the formats of its own result.
    connection.say(1, simple("BEGIN"))
    connection.say(1, message(b"P", b"\0SELECT n FROM generate_series(7, 12) n\0\0\0"), message(b"B", b"bin\0\0\0\0\0\0\0\1\0\1"), SYNC)
    connection.say(1, simple("FETCH 2 FROM bin"))
    connection.say(1, simple("MOVE 1 FROM bin"), )
    connection.say(1, simple("FETCH ALL FROM bin"))
    connection.say(1, message(b"P", b"\0SELECT n FROM generate_series(7, 9) n\0\0\0"), message(b"B", b"text\0\0\0\0\0\0\0\0"), execute("text", 1), SYNC)
    connection.say(1, simple("FETCH 1 FROM text"))
    connection.say(1, execute("text", 1), SYNC)
    connection.say(1, simple("ROLLBACK"))
    # What is said of a long statement is read while it is sent: else each side would wait for the other to read.
    connection.say(1, simple("SET client_min_messages = debug5"))
    numbers = range(1, 65001)
    text = "VALUES " + ", ".join(f"(${number}::text)" for number in numbers)
    values = b"".join(struct.pack("!i", 5) + f"{number:05}".encode() for number in numbers)
    bound = bytes(2) + struct.pack("!hH", 0, len(numbers)) + values + bytes(2)
    sent = message(b"P", b"\0" + text.encode() + b"\0\0\0") + message(b"B", bound) + execute("", 0) + SYNC
    sender = threading.Thread(target=connection.socket.sendall, args=[sent])
    sender.start()
    print(connection.until_ready(1).count("D("))
    sender.join()
    connection.say(1, simple("RESET client_min_messages"))
    # Portals are cursors; one without a name is that of the statement which asks.
    listed = "SELECT name || ' ' || statement || (creation_time > now() - interval '1 minute')::text || is_holdable || is_binary || is_scrollable FROM pg_cursors ORDER BY name"
    connection.say(1, simple("BEGIN"))
    connection.say(1, message(b"P", b"\0SELECT n FROM generate_series(7, 9) n\0\0\0"), message(b"B", b"bound\0\0" + bytes(6)), SYNC)
    connection.say(1, message(b"P", b"\0SELECT n FROM generate_series(7, 9) n\0\0\0"), message(b"B", b"C_1\0\0" + bytes(6)), execute("C_1", 1), SYNC)
    connection.say(1, simple(listed))
    connection.say(1, extended(listed) + SYNC)
    connection.say(1, message(b"C", b"PC_1\0"), SYNC)
    connection.say(1, simple(listed))
    connection.say(1, simple("ROLLBACK"))
    connection.say(1, simple(listed))
    # What is not severe enough stays unsaid.
    connection.say(1, simple("COMMIT"))
    connection.say(1, simple("SET client_min_messages = error"))
    connection.say(1, simple("COMMIT"))
    connection.say(1, simple("BEGIN"))
    connection.say(1, simple("SET LOCAL client_min_messages = warning"))
    connection.say(1, simple("BEGIN"))
    connection.say(1, simple("ROLLBACK"))
    connection.say(1, simple("ROLLBACK"))
    connection.say(1, simple("RESET client_min_messages"))
    connection.say(1, simple("ROLLBACK"))
    # An answer does not wait for the statement that was sent behind it.
    holder = Connection()
    holder.say(1, simple("SELECT pg_advisory_lock(20110)"))
    for first, second in [(extended("SELECT 1") + SYNC, extended("SELECT pg_advisory_lock(20110)") + SYNC), (simple("SELECT 2"), simple("SELECT pg_advisory_lock(20110)"))]:
        connection.say(1, first, second)
        holder.say(1, simple("SELECT pg_advisory_unlock(20110)"))
        print(connection.until_ready(1))
        connection.say(1, simple("SELECT pg_advisory_unlock(20110)"))
        holder.say(1, simple("SELECT pg_advisory_lock(20110)"))
    # What fails in a block that keeps others from a table, behind a savepoint still, is told and waits for nobody.
    connection.say(1, simple("CREATE TABLE held (a int)"))
    for keeps in ("LOCK TABLE held", "ALTER TABLE held ADD b int"):
        connection.say(1, simple("BEGIN"))
        connection.say(1, simple(keeps))
        connection.say(1, simple("SAVEPOINT a"))
        connection.socket.sendall(extended("SELECT length(a) FROM held") + SYNC)
        print(" ".join(part for part in connection.until_ready(1).split() if part[0] in "EZ"))
        connection.say(1, simple("ROLLBACK"))
    # What the protocol has prepared, without types, EXECUTE runs in SQL: here and in a block, with expressions.
    connection.say(1, simple("CREATE TABLE pair (a int PRIMARY KEY, b text, c int)"))
    for name, sql in (("put", "INSERT INTO pair VALUES ($1, $2)"), ("got", "SELECT a + $1 FROM pair WHERE a = $2 OR b = $3")):
        connection.say(1, message(b"P", f"{name}\0{sql}\0".encode() + b"\0\0"), SYNC)
    connection.say(1, simple("EXECUTE put(1 + 1, 'x' || 'y')"))
    connection.say(1, simple("EXECUTE put('9', NULL)"))
    connection.say(4, simple("BEGIN"), simple("EXECUTE got(40, 2, 'z')"), simple("EXECUTE got(1)"), simple("ROLLBACK"))
    connection.say(1, message(b"B", b"\0got\0\0\0" + struct.pack("!h", 3) + (struct.pack("!i", 1) + b"9") * 3 + b"\0\0") + execute("", 0), SYNC)
    # Parameters keep the types that were found at Parse, whatever becomes of the columns.
    connection.say(1, message(b"P", b"fill\0UPDATE pair SET c = $1 WHERE a = 2\0\0\0") + message(b"D", b"Sfill\0"), SYNC)
    filled = message(b"B", b"\0fill\0\0\0\0\1\0\0\0\x0212\0\0") + execute("", 0)
    for changed in ("numeric", "date USING NULL", "bigint USING 9"):
        connection.say(1, simple(f"ALTER TABLE pair ALTER c TYPE {changed}"))
        for _ in range(2):
            connection.socket.sendall(filled + SYNC)
            print(" ".join(part for part in connection.until_ready(1).split() if part[0] in "CEZ"))
    # The data of a COPY right behind its Execute, without a Sync or a Flush between them.
    for table in ("pair", "held"):
        begun = message(b"P", f"\0COPY {table} FROM STDIN\0\0\0".encode()) + message(b"B", b"\0\0\0\0\0\0\0\0")
        first, second = (b"7\tseven\t1\n", b"5\tfive\t\\N\n") if table == "pair" else (b"7\n", b"5\n")
        connection.say(1, begun, execute("", 0), message(b"d", first), message(b"d", second), message(b"c"), SYNC)
        connection.say(2, simple("BEGIN"), begun, FLUSH, execute("", 0), message(b"d", b"1" + first), message(b"c"), simple("COMMIT"))
        connection.say(2, begun, execute("", 0), message(b"d", b"6\n"), message(b"f", b"no\0"), SYNC, simple("SELECT 1"))
        connection.say(1, simple(f"SELECT count(*) FROM {table}"))
    connection.say(1, simple("DROP TABLE pair"))
    # At SERIALIZABLE over sharded tables, what is read is kept from others as well.
    connection.say(1, simple("CREATE TABLE ranges (k int) PARTITION BY RANGE (k)"))
    connection.say(1, simple("BEGIN ISOLATION LEVEL SERIALIZABLE"))
    connection.say(1, simple("SELECT a FROM held"))
    connection.say(1, simple("SAVEPOINT a"))
    connection.socket.sendall(extended("UPDATE held SET a = length(a)") + SYNC)
    print(" ".join(part for part in connection.until_ready(1).split() if part[0] in "EZ"))
    connection.say(1, simple("ROLLBACK"))
    connection.say(1, simple("DROP TABLE held, ranges"))
    # A DO block that listens, as Postgrex does it when it connects again.
    connection.say(1, simple("DO $$ BEGIN LISTEN one; EXECUTE 'LISTEN two'; END $$"))
    connection.say(1, simple("SELECT string_agg(c, ',' ORDER BY c) FROM pg_listening_channels() c"))
    connection.socket.sendall(simple("NOTIFY two"))
    print(sorted(connection.until_ready(1).split()))
    connection.say(1, simple("UNLISTEN *"))
    # A client is told that it is authenticated, then that there is no such database.
    print(Connection(database="absent").started)
    # A name that is cut is told of once.
    connection = Connection("x" * 65)
    connection.socket.sendall(simple(f"SET application_name = '{'y' * 64}'"))
    print(connection.started.count("N"), connection.until_ready(1).count("N"))


if __name__ == "__main__":
    main()
