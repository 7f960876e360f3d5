#!/usr/bin/env python3
"""Runs programs that know nothing of pgherd on plain PostgreSQL and on pgherd with one and with three shards, and compares
what they print.

    driver-tests/programs.py [--only psql,django] [--write]

On pgherd every table with a primary key is sharded, split at small keys. A program whose tools are not there is not run, and the
table says so: Python's packages must be in the Python that runs this; node-postgres in NODE_PATH; JDBC's driver in JDBC_JAR.
Lines that differ must be explained in `differences.txt` by a pattern for the line (`-` of PostgreSQL, `+` of pgherd); one that is
not makes this program fail. With --write, docs/drivers.md gets the table.
"""

import argparse
import collections
import difflib
import importlib.util
import os
import pathlib
import re
import shutil
import subprocess
import sys
import tempfile

from explained import explanations, reason, write_section
from servers import REPOSITORY, free_port, herd, plain, programs, psql, say

FOLDER = pathlib.Path(__file__).resolve().parent / "programs"
SIDES = {"PostgreSQL": 0, "1 shard": 1, "3 shards": 3}


def has_packages(*names):
    return lambda: all(importlib.util.find_spec(name) for name in names)


def has_node(*names):
    folders = [pathlib.Path(f) for f in os.environ.get("NODE_PATH", "").split(":") if f]
    return lambda: bool(shutil.which("node")) and all(any((f / name).exists() for f in folders) for name in names)


def has_jdbc():
    return bool(shutil.which("java")) and pathlib.Path(os.environ.get("JDBC_JAR", "nowhere")).exists()


def python(name):
    return [sys.executable, FOLDER / "python" / f"{name}.py"]


NODE_ORMS = ["sequelize", "typeorm", "reflect-metadata", "knex", "drizzle-orm", "kysely", "pg-promise", "postgres", "pg"]
# Command, whether it can be run here, and what it is.
PROGRAMS = {
    "psql": (lambda: [f"{programs()}/psql", "-X", "-f", FOLDER / "psql" / "session.sql"], lambda: True, "psql: a session with its \\-commands"),
    "catalogs": (lambda: [f"{programs()}/psql", "-X", "-f", FOLDER / "psql" / "catalogs.sql"], lambda: True, "what Rails, Hibernate, Prisma, PostgREST, DBeaver, pgcli and drivers ask the catalogs"),
    "pgbench": (lambda: ["bash", FOLDER / "shell" / "pgbench.sh"], lambda: True, "pgbench: -i, built-in scripts in all protocols, own scripts, pipelines"),
    "pg_dump": (lambda: python("with_pg_dump"), lambda: True, "pg_dump and pg_restore: five formats, restored into itself and into plain PostgreSQL"),
    "sqlalchemy": (lambda: python("with_sqlalchemy"), has_packages("sqlalchemy", "alembic", "psycopg", "asyncpg", "greenlet"), "SQLAlchemy 2 (psycopg 3, asyncpg) with Alembic"),
    "django": (lambda: python("with_django"), has_packages("django", "psycopg"), "Django: migrations, ORM, transactions, administration, inspectdb"),
    "node-postgres": (lambda: ["node", FOLDER / "node" / "with_pg.js"], has_node("pg", "pg-cursor", "pg-query-stream"), "node-postgres with pg-cursor and pg-query-stream"),
    "python-orms": (lambda: python("with_small_orms"), has_packages("peewee", "psycopg2", "pony", "tortoise", "sqlmodel", "psycopg", "asyncpg"), "Peewee, Pony, Tortoise, SQLModel"),
    "node-orms": (lambda: ["node", FOLDER / "node" / "with_orms.js"], has_node(*NODE_ORMS), "Sequelize, TypeORM, Knex, Drizzle, Kysely, pg-promise, postgres.js"),
    "jdbc": (lambda: ["java", "-cp", os.environ["JDBC_JAR"], FOLDER / "java" / "WithJdbc.java"], has_jdbc, "JDBC in its query modes, with COPY, large objects, metadata"),
}


def output(name, side, folder, port, other_port):
    """What the program prints, with its exit status in the last line."""
    environment = {k: v for k, v in os.environ.items() if not k.startswith("PG")}
    environment.update(PGHOST="127.0.0.1", PGPORT=str(port), PGUSER="postgres", PGDATABASE="postgres")
    environment.update(PGPROGRAMS=programs(), PGOTHER=str(other_port), PYTHONDONTWRITEBYTECODE="1", TZ="UTC")
    command, _, _ = PROGRAMS[name]
    try:
        done = subprocess.run(command(), env=environment, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, timeout=900)
        status, said = done.returncode, done.stdout
    except subprocess.TimeoutExpired as expired:
        status, said = "none: it did not end in time", expired.stdout or b""
    lines = said.decode(errors="replace").splitlines() + [f"exit status {status}"]
    (folder / f"{name}-{side.replace(' ', '-')}").write_text("\n".join(lines) + "\n")
    return lines


def differing(expected, found):
    """The lines that are on one side only: `-` of PostgreSQL's, `+` of pgherd's. Spaces and lines of dashes do not count."""
    strip = lambda lines: [text for text in (re.sub(r"\s+", " ", re.sub(r"[-+]{3,}", "", line)).strip() for line in lines) if text]
    compared = difflib.unified_diff(strip(expected), strip(found), lineterm="", n=0)
    return [line for line in compared if not line.startswith(("---", "+++", "@@"))]


def run_all(chosen, sides, program, folder):
    printed = collections.defaultdict(dict)
    port, other_port = free_port(), free_port()
    for side, shards in sides.items():
        own, other = folder / side.replace(" ", "-"), folder / f"other-{shards}"
        for made in [own, other]:
            made.mkdir()
        with plain(other, other_port), plain(own, port) if shards == 0 else herd(own, port, program, shards):
            # Where a table is placed is told in NOTICEs.
            psql(port, "ALTER ROLE postgres SET client_min_messages = warning")
            for name in chosen:
                say(f"{name} on {side}")
                printed[name][side] = output(name, side, folder, port, other_port)
    return printed


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", help="names of programs, with commas: " + ", ".join(PROGRAMS))
    parser.add_argument("--pgherd", default=REPOSITORY / "target/debug/pgherd", help="the program")
    parser.add_argument("--shards", type=int, choices=[1, 3], help="one cluster instead of both")
    parser.add_argument("--keep", metavar="DIR", help="keep what the programs print here")
    parser.add_argument("--write", action="store_true", help="write docs/drivers.md")
    arguments = parser.parse_args()
    sides = {name: shards for name, shards in SIDES.items() if shards == 0 or arguments.shards in (None, shards)}
    wanted = arguments.only.split(",") if arguments.only else list(PROGRAMS)
    chosen = [name for name in wanted if PROGRAMS[name][1]()]
    known, rows, reasons, unexplained = explanations(), [], collections.Counter(), 0
    with tempfile.TemporaryDirectory(prefix="pgherd-programs") as scratch:
        os.chmod(scratch, 0o755)
        printed = run_all(chosen, sides, pathlib.Path(arguments.pgherd).resolve(), pathlib.Path(scratch))
        if arguments.keep:
            shutil.copytree(scratch, arguments.keep, dirs_exist_ok=True, ignore=lambda folder, names: [n for n in names if (pathlib.Path(folder) / n).is_dir()])
    for name in wanted:
        cells = []
        for side in list(sides)[1:] if name in printed else []:
            lines = differing(printed[name]["PostgreSQL"], printed[name][side])
            cells.append(f"{len(lines)} lines differ" if lines else "same")
            for line in lines:
                why = reason(name, line, known)
                reasons[(name, side, why)] += bool(why)
                if not why:
                    unexplained += 1
                    say(f"{name} on {side}: {line}")
        status = f"{len(printed[name]['PostgreSQL'])} lines" if name in printed else "not run"
        rows.append("| " + " | ".join([PROGRAMS[name][2], status, *(cells or [""] * (len(sides) - 1))]) + " |")
    print("\n".join(rows))
    if arguments.write:
        heads = ["program", "PostgreSQL prints", *(f"pgherd, {side}" for side in list(sides)[1:])]
        text = ["| " + " | ".join(heads) + " |", "|---" * len(heads) + "|", *rows, ""]
        text += [f"* {name}, {side}: {count} lines: {why}" for (name, side, why), count in reasons.items() if why]
        write_section("programs", text)
    return 1 if unexplained else 0


if __name__ == "__main__":
    sys.exit(main())
