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
import contextlib
import fnmatch
import glob
import os
import pathlib
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import xml.etree.ElementTree as ElementTree

HERE = pathlib.Path(__file__).resolve().parent
REPOSITORY = HERE.parent
# tokio-postgres' tests have this port in their sources; both servers use it, one after the other.
PORT = 5433
BOUNDS = "int 3,7; bigint 3,7; smallint 3,7; numeric 3,7; text h,q; varchar h,q"
SETTINGS = {
    "max_prepared_transactions": "200",
    "wal_level": "logical",
    "max_connections": "300",
    "max_locks_per_transaction": "256",
    "fsync": "off",
}
ROLES = {"pass_user": "scram-sha-256", "md5_user": "md5", "scram_user": "scram-sha-256"}
EXTENSIONS = ["hstore", "citext", "ltree"]


def say(text):
    print(text, file=sys.stderr, flush=True)


def programs():
    """The folder of PostgreSQL's programs."""
    named = os.environ.get("PGHERD_PG_BINDIR")
    found = sorted(glob.glob("/usr/lib/postgresql/*/bin"), key=lambda p: int(p.split("/")[-2]))
    return named or found[0]


def as_owner(folder):
    """What goes before a command that must not run as root."""
    if os.getuid() != 0:
        return []
    shutil.chown(folder, "postgres")
    return ["setpriv", "--reuid=postgres", "--regid=postgres", "--init-groups"]


def certificate(folder):
    """A certificate and its key for localhost; None without openssl."""
    paths = [folder / "server.crt", folder / "server.key"]
    command = ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "30", "-subj", "/CN=localhost"]
    try:
        subprocess.run(command + ["-out", paths[0], "-keyout", paths[1]], check=True, capture_output=True)
    except (OSError, subprocess.CalledProcessError):
        return None
    for path in paths:
        path.chmod(0o600)
        if os.getuid() == 0:
            shutil.chown(path, "postgres")
    return paths


def rules(cleartext):
    """Who may connect how, as tokio-postgres' tests want it; both servers read the same format."""
    lines = []
    for address in ["127.0.0.1/32", "::1/128"]:
        for role, method in ROLES.items():
            method = "password" if cleartext and role == "pass_user" else method
            lines.append(f"host all {role} {address} {method}")
        lines += [f"hostssl all ssl_user {address} trust", f"host all ssl_user {address} reject"]
        lines.append(f"host all all {address} trust")
    return lines


def psql(sql, database="postgres"):
    command = [f"{programs()}/psql", "-X", "-q", "-v", "ON_ERROR_STOP=1", "-h", "127.0.0.1", "-p", str(PORT), "-U", "postgres"]
    subprocess.run(command + ["-d", database, "-c", sql], check=True, capture_output=True)


@contextlib.contextmanager
def plain(folder):
    """A plain PostgreSQL with a shard's settings."""
    owner, data = as_owner(folder), folder / "data"
    run = lambda *c: subprocess.run(owner + [f"{programs()}/{c[0]}", *c[1:]], check=True, capture_output=True, cwd="/")
    run("initdb", "-D", data, "-U", "postgres", "--locale=C.UTF-8", "-E", "UTF8", "-A", "trust")
    settings = dict(SETTINGS, port=str(PORT), listen_addresses="127.0.0.1,::1", unix_socket_directories=str(folder))
    if certificate(data):
        settings["ssl"] = "on"
    with open(data / "postgresql.conf", "a") as file:
        file.writelines(f"{name} = '{value}'\n" for name, value in settings.items())
    (data / "pg_hba.conf").write_text("\n".join(rules(True) + ["local all all trust"]) + "\n")
    run("pg_ctl", "-D", data, "-l", folder / "log", "-w", "start")
    try:
        yield
    finally:
        run("pg_ctl", "-D", data, "-m", "immediate", "-w", "stop")


@contextlib.contextmanager
def herd(folder, program):
    """A pgherd cluster of three shards."""
    up = [program, "up", "--data", folder / "herd", "--listen", f"127.0.0.1:{PORT}", "--metrics-listen", "off"]

    def start():
        log = open(folder / "log", "a+")
        process = subprocess.Popen(up, stdout=log, stderr=log)
        for _ in range(600):
            if "ready:" in (folder / "log").read_text():
                return process
            if process.poll() is not None:
                break
            time.sleep(0.1)
        process.kill()
        sys.exit(f"pgherd did not start: {(folder / 'log').read_text()}")

    def stop(process):
        process.send_signal(signal.SIGTERM)
        process.wait()
        (folder / "log").unlink()

    stop(start())
    config = folder / "herd" / "pgherd.toml"
    lines = ", ".join(f'"{rule}"' for rule in rules(False))
    gateway = f"[gateway]\naccess = [{lines}]\n"
    if certificate(folder / "herd"):
        gateway += 'tls_certificate = "server.crt"\ntls_key = "server.key"\n'
    config.write_text(config.read_text().replace("[gateway]\n", gateway, 1))
    process = start()
    try:
        for name, value in [("default_distribution", "primary_key"), ("initial_bounds", BOUNDS)]:
            for database in ["postgres", "psycopg"]:
                if database == "psycopg" and name == "default_distribution":
                    psql("CREATE DATABASE psycopg")
                psql(f"ALTER DATABASE {database} SET pgherd.{name} = '{value}'")
        yield
    finally:
        stop(process)


def prepare(is_plain):
    """Roles, extensions and databases that the suites' own instructions ask for."""
    if is_plain:
        psql("CREATE DATABASE psycopg")
    for role, method in ROLES.items():
        kind = "md5" if method == "md5" else "scram-sha-256"
        psql(f"SET password_encryption TO '{kind}'; CREATE ROLE {role} PASSWORD 'password' LOGIN")
    psql("CREATE ROLE ssl_user LOGIN")
    for extension in EXTENSIONS:
        psql(f"CREATE EXTENSION {extension}")


def junit(path):
    """Outcomes of pytest's report."""
    outcomes = {}
    for case in ElementTree.parse(path).getroot().iter("testcase"):
        tags = {child.tag for child in case}
        bad = "failure" in tags or "error" in tags
        outcome = "failed" if bad else "skipped" if "skipped" in tags else "passed"
        name = f"{case.get('classname')}::{case.get('name')}"
        # A test may be there twice: once for itself, once for what its teardown said.
        outcomes[name] = "failed" if outcomes.get(name) == "failed" else outcome
    return outcomes


def pytest(arguments, folder, environment, target):
    report = target / "report.xml"
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:randomly", "-o", "junit_family=xunit1", f"--junitxml={report}"]
    with open(target / "output", "w") as output:
        subprocess.run(command + arguments, cwd=folder, env=dict(os.environ, **environment), stdout=output, stderr=output)
    return junit(report) if report.exists() else {}


def psycopg(folder, target):
    environment = {
        "PYTHONPATH": f"{folder}/psycopg:{folder}/psycopg_pool",
        "PSYCOPG_IMPL": "python",
        "PYTHONDONTWRITEBYTECODE": "1",
        "PSYCOPG_TEST_DSN": f"host=127.0.0.1 port={PORT} dbname=psycopg user=postgres",
    }
    return pytest(["-m", "not slow", "--ignore=tests/crdb", "--timeout=60", "tests"], folder, environment, target)


def asyncpg(folder, target):
    environment = {
        "PGHOST": "127.0.0.1",
        "PGPORT": str(PORT),
        "PGUSER": "postgres",
        "PGDATABASE": "postgres",
        "PYTHONDONTWRITEBYTECODE": "1",
    }
    tests = target / "tests"
    # Beside the sources, Python would take the driver itself from there, which is not compiled.
    shutil.copytree(pathlib.Path(folder) / "tests", tests)
    return pytest(["--timeout=60", "tests"], target, environment, target)


def tokio_postgres(folder, target):
    programs = glob.glob(f"{folder}/target/debug/deps/test-*[!.d]") + glob.glob(f"{folder}/../target/debug/deps/test-*[!.d]")
    programs = [p for p in programs if os.access(p, os.X_OK)]
    if not programs:
        say(f"{folder}: its test program is not compiled")
        return {}
    newest = max(programs, key=os.path.getmtime)
    output = subprocess.run([newest, "--test-threads", "4"], capture_output=True, text=True, cwd=folder).stdout
    (target / "output").write_text(output)
    found = re.findall(r"^test (\S+)(?: - should panic)? \.\.\. (\w+)", output, re.M)
    words = {"ok": "passed", "FAILED": "failed"}
    return {name: words.get(word, "skipped") for name, word in found}


SUITES = {
    "psycopg": (psycopg, "psycopg 3, all tests but those marked slow; pytest, pytest-timeout, anyio, pproxy"),
    "tokio-postgres": (tokio_postgres, "tokio-postgres, with all its types"),
    "asyncpg": (asyncpg, "asyncpg, the tests that can use a server that runs; asyncpg, pytest, pytest-timeout"),
}


def explanations():
    """Suite, pattern of test names, reason."""
    lines = (HERE / "differences.txt").read_text().splitlines()
    parts = [line.split(" | ") for line in lines if line.strip() and not line.startswith("#")]
    return [(suite.strip(), pattern.strip(), why.strip()) for suite, pattern, why in parts]


def reason(suite, test, known):
    matching = (why for of, pattern, why in known if of == suite and fnmatch.fnmatchcase(test, pattern))
    return next(matching, None)


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
    text = ["# Drivers' own tests", "", "What the published suites of drivers pass, run by `driver-tests/run.py`. *PostgreSQL*: tests that pass on plain"]
    text += ["PostgreSQL 15. *pgherd*: how many of those pass on three shards, where every table with a primary key is sharded and split", "at small keys."]
    text += ["", "| suite | PostgreSQL | pgherd | |", "|---|---|---|---|", *rows, "", "## What differs, and why", ""]
    text += [f"* {suite}: {count} × {why}" for suite, why, count in reasons] or ["Nothing."]
    (REPOSITORY / "docs" / "drivers.md").write_text("\n".join(text) + "\n")


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for suite in SUITES:
        parser.add_argument(f"--{suite}", metavar="DIR", help=SUITES[suite][1])
    parser.add_argument("--pgherd", default=REPOSITORY / "target/debug/pgherd", help="the program")
    parser.add_argument("--write", action="store_true", help="write docs/drivers.md")
    parser.add_argument("--keep", metavar="DIR", help="keep what the suites print here")
    arguments = parser.parse_args()
    folders = {suite: getattr(arguments, suite.replace("-", "_")) for suite in SUITES}
    program = pathlib.Path(arguments.pgherd).resolve()
    outcomes = collections.defaultdict(dict)
    with tempfile.TemporaryDirectory(prefix="pgherd-drivers") as scratch:
        os.chmod(scratch, 0o755)
        for side in ["PostgreSQL", "pgherd"]:
            folder = pathlib.Path(scratch) / side
            folder.mkdir()
            with plain(folder) if side == "PostgreSQL" else herd(folder, program):
                prepare(side == "PostgreSQL")
                for suite, (runs, _) in SUITES.items():
                    if not folders[suite]:
                        continue
                    say(f"{suite} on {side}")
                    target = pathlib.Path(arguments.keep or scratch).resolve() / f"{suite}-{side}"
                    shutil.rmtree(target, ignore_errors=True)
                    target.mkdir(parents=True)
                    outcomes[suite][side] = runs(os.path.abspath(folders[suite]), target)
    known, rows, reasons, unexplained = explanations(), [], [], 0
    for suite in SUITES:
        if not outcomes[suite].get("PostgreSQL"):
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
