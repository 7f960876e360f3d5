#!/usr/bin/env python3
"""Runs the published test suites of drivers and ORMs on plain PostgreSQL and on pgherd, and compares test by test.

    driver-tests/run.py --psycopg DIR --tokio-postgres DIR --asyncpg DIR --write

DIR is a folder with the project's sources. A suite whose folder is not given is not run, and the table says so. Python's
packages must be there (a virtual environment; the table's notes say which), and tokio-postgres' test program must have been
compiled in DIR by whoever fetched it. On pgherd, new tables are sharded by their primary key over three shards, split at
small keys, so that a handful of rows lies on all of them. Nothing else is set, and no test is changed.

A test counts where it passes on plain PostgreSQL. `differences.txt` explains those that then do not pass on pgherd; one that
is not explained there makes this program fail. With --write, docs/drivers.md gets the table.
"""

import argparse
import collections
import json
import os
import pathlib
import shutil
import sys
import tempfile

from explained import explanations, reason, write_section
from servers import REPOSITORY, ROLES, herd, plain, psql, say
from suites import SUITES

EXTENSIONS = ["hstore", "citext", "ltree"]
SIDES = ["PostgreSQL", "pgherd"]


def prepare(port, is_plain):
    """Roles, extensions and databases that the suites' own instructions ask for."""
    if is_plain:
        psql(port, "CREATE DATABASE psycopg")
    for role, method in ROLES.items():
        kind = "md5" if method == "md5" else "scram-sha-256"
        psql(port, f"SET password_encryption TO '{kind}'; CREATE ROLE {role} PASSWORD 'password' LOGIN")
    psql(port, "CREATE ROLE ssl_user LOGIN")
    for extension in EXTENSIONS:
        psql(port, f"CREATE EXTENSION {extension}")


def read_outcomes(folder, suite, side):
    file = folder / f"{suite}-{side}.json"
    return json.loads(file.read_text()) if file.exists() else None


def compare(suite, expected, found, known):
    """The table's row, the explained differences, and the others."""
    counted = [test for test, outcome in expected.items() if outcome == "passed"]
    different = [test for test in counted if found.get(test) != "passed"]
    explained, others = collections.Counter(), []
    for test in different:
        why = reason(suite, test, known)
        if why:
            explained[why] += 1
        else:
            others.append(test)
    passed = len(counted) - len(different)
    share = f"{100 * passed / len(counted):.1f} %" if counted else ""
    return f"| {suite} | {len(counted)} | {passed} | {share} |", explained, others


def write(rows, reasons):
    text = ["| suite | PostgreSQL | pgherd | |", "|---|---|---|---|", *rows, ""]
    text += [f"* {suite}: {count} × {why}" for suite, why, count in reasons]
    write_section("run", text)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for suite in SUITES:
        parser.add_argument(f"--{suite}", metavar="DIR", help=SUITES[suite][1])
    parser.add_argument("--pgherd", default=REPOSITORY / "target/debug/pgherd", help="the program")
    parser.add_argument("--port", type=int, default=5433, help="where the servers listen; tokio-postgres' tests want 5433")
    parser.add_argument("--write", action="store_true", help="write docs/drivers.md")
    parser.add_argument("--keep", metavar="DIR", help="keep what the suites print here, and their outcomes")
    parser.add_argument("--resume", action="store_true", help="do not run again what has its outcomes in the folder of --keep")
    arguments = parser.parse_args()
    folders = {suite: getattr(arguments, suite.replace("-", "_")) for suite in SUITES}
    program = pathlib.Path(arguments.pgherd).resolve()
    outcomes = collections.defaultdict(dict)
    with tempfile.TemporaryDirectory(prefix="pgherd-drivers") as scratch:
        os.chmod(scratch, 0o755)
        kept = pathlib.Path(arguments.keep or scratch).resolve()
        for side in SIDES:
            if arguments.resume:
                for suite in SUITES:
                    outcomes[suite][side] = read_outcomes(kept, suite, side)
            wanted = [suite for suite in SUITES if folders[suite] and not outcomes[suite].get(side)]
            if not wanted:
                continue
            folder = pathlib.Path(scratch) / side
            folder.mkdir()
            with plain(folder, arguments.port) if side == "PostgreSQL" else herd(folder, arguments.port, program, databases=["psycopg"]):
                prepare(arguments.port, side == "PostgreSQL")
                for suite in wanted:
                    say(f"{suite} on {side}")
                    target = kept / f"{suite}-{side}"
                    shutil.rmtree(target, ignore_errors=True)
                    target.mkdir(parents=True)
                    found = SUITES[suite][0](os.path.abspath(folders[suite]), target, arguments.port)
                    outcomes[suite][side] = found
                    (kept / f"{suite}-{side}.json").write_text(json.dumps(found, indent=0))
    known, rows, reasons, unexplained = explanations(), [], [], 0
    for suite in SUITES:
        if not all(outcomes[suite].get(side) for side in SIDES):
            rows.append(f"| {suite} | not run | | |")
            continue
        row, explained, others = compare(suite, outcomes[suite]["PostgreSQL"], outcomes[suite]["pgherd"], known)
        rows.append(row)
        reasons += [(suite, why, count) for why, count in explained.items()]
        for test in others:
            say(f"{suite}: {test} differs, and is not explained")
        unexplained += len(others)
    print("\n".join(rows))
    if arguments.write:
        write(rows, reasons)
    return 1 if unexplained else 0


if __name__ == "__main__":
    sys.exit(main())
