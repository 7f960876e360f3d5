"""The suites that `run.py` runs: for each, how its tests are started from a folder with its sources, and its outcomes by test.

Every function here takes the folder with the sources, a folder for what the suite prints, and the server's port, and returns
"passed", "failed" or "skipped" for each test's name.
"""

import glob
import os
import pathlib
import re
import shutil
import subprocess
import sys
import xml.etree.ElementTree as ElementTree

from servers import psql, say

# Apps of Django's suite that have to do with the database.
DJANGO_APPS = ["backends", "transactions", "transaction_hooks", "select_for_update", "postgres_tests", "aggregation", "annotations"]
DJANGO_APPS += ["bulk_create", "constraints", "get_or_create", "schema", "migrations", "introspection", "inspectdb", "queries", "expressions", "lookup"]


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
    command = [sys.executable, "-m", "pytest", "-q", "--assert=plain", "-p", "no:randomly", "-o", "junit_family=xunit1", f"--junitxml={report}"]
    with open(target / "output", "w") as output:
        subprocess.run(command + arguments, cwd=folder, env=dict(os.environ, **environment), stdout=output, stderr=output)
    return junit(report) if report.exists() else {}


def psycopg(folder, target, port):
    environment = {
        "PYTHONPATH": f"{folder}/psycopg:{folder}/psycopg_pool",
        "PSYCOPG_IMPL": "python",
        "PYTHONDONTWRITEBYTECODE": "1",
        "PSYCOPG_TEST_DSN": f"host=127.0.0.1 port={port} dbname=psycopg user=postgres",
    }
    # Its own plugin for coroutines is anyio.
    return pytest(["-p", "no:asyncio", "-m", "not slow", "--ignore=tests/crdb", "--timeout=60", "tests"], folder, environment, target)


def asyncpg(folder, target, port):
    environment = {
        "PGHOST": "127.0.0.1",
        "PGPORT": str(port),
        "PGUSER": "postgres",
        "PGDATABASE": "postgres",
        "PYTHONDONTWRITEBYTECODE": "1",
    }
    tests = target / "tests"
    # Beside the sources, Python would take the driver itself from there, which is not compiled.
    shutil.copytree(pathlib.Path(folder) / "tests", tests)
    return pytest(["--timeout=60", "tests"], target, environment, target)


def psycopg2(folder, target, port):
    environment = {
        "PSYCOPG2_TESTDB": "psycopg",
        "PSYCOPG2_TESTDB_HOST": "127.0.0.1",
        "PSYCOPG2_TESTDB_PORT": str(port),
        "PSYCOPG2_TESTDB_USER": "postgres",
        # A test that waits for ever inside of libpq is not ended by pytest.
        "PGOPTIONS": "-c lock_timeout=20s",
        "PYTHONDONTWRITEBYTECODE": "1",
    }
    # Beside the sources, Python would take the driver itself from there, which is not compiled.
    shutil.copytree(pathlib.Path(folder) / "tests", target / "tests")
    return pytest(["--timeout=60", "tests"], target, environment, target)


def pg8000(folder, target, port):
    environment = {"PGHOST": "127.0.0.1", "PGPORT": str(port), "PGPASSWORD": "pw", "PYTHONDONTWRITEBYTECODE": "1"}
    shutil.copytree(pathlib.Path(folder) / "test", target / "test")
    # Those of authentication want servers that are set up for each method.
    authentication = [f"--ignore=test/{part}/auth" for part in ["dbapi", "legacy", "native"]]
    # A benchmark is run once: it is no measurement here.
    options = ["--timeout=60", "--benchmark-disable", *authentication, "--ignore=test/test_readme.py"]
    return pytest([*options, "test"], target, environment, target)


def tokio_postgres(folder, target, port):
    programs = glob.glob(f"{folder}/target/debug/deps/test-*[!.d]") + glob.glob(f"{folder}/../target/debug/deps/test-*[!.d]")
    programs = [p for p in programs if os.access(p, os.X_OK)]
    if not programs or port != 5433:
        say(f"{folder}: its test program is not compiled, or the port is not 5433, which is in its sources")
        return {}
    newest = max(programs, key=os.path.getmtime)
    output = subprocess.run([newest, "--test-threads", "4"], capture_output=True, text=True, cwd=folder).stdout
    (target / "output").write_text(output)
    found = re.findall(r"^test (\S+)(?: - should panic)? \.\.\. (\w+)", output, re.M)
    words = {"ok": "passed", "FAILED": "failed"}
    return {name: words.get(word, "skipped") for name, word in found}


def sqlalchemy(folder, target, port):
    for schema in ["test_schema", "test_schema_2"]:
        psql(port, f"CREATE SCHEMA IF NOT EXISTS {schema}", "psycopg")
    for extension in ["hstore", "citext", "btree_gist"]:
        psql(port, f"CREATE EXTENSION IF NOT EXISTS {extension}", "psycopg")
    uri = f"postgresql+psycopg://postgres@127.0.0.1:{port}/psycopg"
    arguments = ["-p", "no:warnings", "--timeout=60", "--maxfail=100000", "--dburi", uri, "test/dialect/postgresql", "test/dialect/test_suite.py"]
    return pytest(arguments, folder, {"PYTHONPATH": f"{folder}/lib", "PYTHONDONTWRITEBYTECODE": "1"}, target)


def django(folder, target, port):
    database = f"""dict(ENGINE="django.db.backends.postgresql", HOST="127.0.0.1", PORT="{port}", USER="postgres", """
    database += """OPTIONS=dict(options="-c pgherd.default_distribution=primary_key"), TEST=dict(NAME="django_{0}"), NAME="postgres")"""
    settings = f"""DATABASES = dict(default={database.format("one")}, other={database.format("two")})\n"""
    settings += 'SECRET_KEY = "not secret"\nUSE_TZ = False\nPASSWORD_HASHERS = ["django.contrib.auth.hashers.MD5PasswordHasher"]\n'
    settings += 'DEFAULT_AUTO_FIELD = "django.db.models.AutoField"\n'
    (target / "settings_for_pgherd.py").write_text(settings)
    command = [sys.executable, "runtests.py", "--settings=settings_for_pgherd", "--parallel=1", "--noinput", "-v2", *DJANGO_APPS]
    environment = dict(os.environ, PYTHONPATH=f"{target}:{folder}", PYTHONDONTWRITEBYTECODE="1")
    with open(target / "output", "w") as output:
        subprocess.run(command, cwd=f"{folder}/tests", env=environment, stdout=output, stderr=output)
    said = (target / "output").read_text()
    # A test with a description has it on a line of its own before the outcome.
    found = re.findall(r"^(\w+) \(([\w.]+)\)[^\n]*?(?:\n(?!\w+ \()[^\n]*?)? \.\.\. (ok|FAIL|ERROR|skipped|expected failure)", said, re.M)
    words = {"ok": "passed", "expected failure": "passed", "skipped": "skipped"}
    return {f"{path}": words.get(word, "failed") for _, path, word in found}


def node_postgres(folder, target, port):
    """Each file is a program of its own, and counts as one test. Its packages must be in NODE_PATH."""
    package, outcomes = pathlib.Path(folder) / "packages" / "pg", {}
    environment = dict(os.environ, PGHOST="127.0.0.1", PGPORT=str(port), PGUSER="postgres", PGDATABASE="postgres", PGTESTNOSSL="true")
    for file in sorted((package / "test" / "integration").rglob("*-tests.js")):
        name = str(file.relative_to(package))
        with open(target / name.replace("/", "_"), "w") as output:
            try:
                done = subprocess.run(["node", name], cwd=package, env=environment, stdout=output, stderr=output, timeout=60)
                outcomes[name] = "failed" if done.returncode else "passed"
            except subprocess.TimeoutExpired:
                outcomes[name] = "failed"
    return outcomes


SUITES = {
    "psycopg": (psycopg, "psycopg 3, all tests but those marked slow; pytest, pytest-timeout, anyio, pproxy"),
    "psycopg2": (psycopg2, "psycopg2; psycopg2, pytest, pytest-timeout"),
    "pg8000": (pg8000, "pg8000, all but authentication; pg8000, pytest, pytest-timeout, pytest-benchmark, pytest-mock, pytz"),
    "tokio-postgres": (tokio_postgres, "tokio-postgres, with all its types"),
    "asyncpg": (asyncpg, "asyncpg, the tests that can use a server that runs; asyncpg, pytest, pytest-timeout, distro"),
    "sqlalchemy": (sqlalchemy, "SQLAlchemy's suite for dialects, and its tests of PostgreSQL's; psycopg, pytest, pytest-timeout"),
    "django": (django, "Django's tests that have to do with the database; psycopg, asgiref, sqlparse"),
    "node-postgres": (node_postgres, "node-postgres' integration tests, each file as one; pg, async, bluebird, co, pg-copy-streams in NODE_PATH"),
}
