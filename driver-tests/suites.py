"""The suites that `run.py` runs: for each, how its tests are started from a folder with its sources, and its outcomes by test.

Every function here takes the folder with the sources, a folder for what the suite prints, and the server's port, and returns
"passed", "failed" or "skipped" for each test's name.
"""

import glob
import json
import os
import pathlib
import re
import shutil
import subprocess
import sys
import xml.etree.ElementTree as ElementTree

from orm_suites import ORM_SUITES
from servers import database, psql, say

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


def peewee(folder, target, port):
    database(port, "peewee_test")
    psql(port, "CREATE EXTENSION hstore", "peewee_test")
    environment = {
        "PEEWEE_TEST_BACKEND": "postgres",
        "PEEWEE_PSQL_HOST": "127.0.0.1",
        "PEEWEE_PSQL_PORT": str(port),
        "PEEWEE_PSQL_USER": "postgres",
        # A test that waits for ever inside of libpq is not ended by pytest.
        "PGOPTIONS": "-c statement_timeout=20s",
        "PYTHONDONTWRITEBYTECODE": "1",
    }
    # SQLite's files, which some of its tests make, must be new ones.
    copy = target / "sources"
    shutil.copytree(folder, copy)
    return pytest(["--timeout=60", "-p", "no:cacheprovider", "-o", "python_files=*.py", "tests/__init__.py"], copy, environment, target)


def knex(folder, target, port):
    """Its packages must be installed in the folder; those of other servers are not needed."""
    database(port, "knex_test")
    psql(port, "CREATE ROLE knex SUPERUSER LOGIN PASSWORD 'knex'")
    connection = f'adapter: "postgresql", host: "127.0.0.1", port: {port}, database: "knex_test", user: "knex", password: "knex"'
    (target / "config.js").write_text(f"module.exports = {{ postgres: {{ {connection} }} }};\n")
    others = re.compile("dialects/(mssql|mysql|oracle|sqlite|better|cockroach|maria)")
    tests = sorted(str(p.relative_to(folder)) for p in (pathlib.Path(folder) / "test" / "integration2").rglob("*.spec.js"))
    files = ["test/prep-db-mocha.js", "test/integration-test-suite.js", *(t for t in tests if not others.search(t))]
    report = target / "report.xml"
    command = ["node_modules/.bin/mocha", "--exit", "-t", "60000", "--reporter", "xunit", "--reporter-options", f"output={report}", *files]
    environment = dict(os.environ, DB="postgres", KNEX_TEST=str(target / "config.js"), KNEX_TEST_TIMEOUT="60000")
    with open(target / "output", "w") as output:
        subprocess.run(command, cwd=folder, env=environment, stdout=output, stderr=output)
    return junit(report) if report.exists() else {}


# How its own program for tests goes on after a failure and what it prints, for a machine to read; with more time, for a busy one.
POSTGRES_JS_RUNNER = [
    ("let done = 0", "process.on('unhandledRejection', () => {})\nlet done = 0"),
    ("failed\n      ? (ignored++, ignore)\n      : fn()", "fn()"),
    ("t.timeout = 5", "t.timeout = 20"),
    ("options.timeout || t.timeout", "options.timeout ? options.timeout * 4 : t.timeout"),
    ("++done ===", "console.log('\\nOUTCOME', tests[line].succeeded ? 'passed' : 'failed', name)\n      ++done ==="),
]


def postgres_js(folder, target, port):
    """What its bootstrap does with ALTER SYSTEM is done here: the servers have TLS, and passwords of both kinds."""
    copy = target / "sources"
    shutil.copytree(folder, copy)
    for kind in ["", "md5", "scram"]:
        encryption = "md5" if kind == "md5" else "scram-sha-256"
        role = "_".join(filter(None, ["postgres_js_test", kind]))
        psql(port, f"SET password_encryption = '{encryption}'; CREATE ROLE {role} LOGIN PASSWORD '{role}'")
    database(port, "postgres_js_test")
    psql(port, "ALTER DATABASE postgres_js_test OWNER TO postgres_js_test")
    bootstrap, runner, index = (copy / "tests" / name for name in ["bootstrap.js", "test.js", "index.js"])
    text = bootstrap.read_text()
    bootstrap.write_text("import { spawnSync } from 'child_process'\n" + text[text.index("export function exec") :])
    text = runner.read_text()
    for before, after in POSTGRES_JS_RUNNER:
        if before not in text:
            say(f"postgres.js: its test runner is another one: {before}")
            return {}
        text = text.replace(before, after)
    runner.write_text(text)
    index.write_text(re.sub(r"(localhost:|socket\.connect\()5432", rf"\g<1>{port}", index.read_text()))
    environment = dict(os.environ, PGHOST="localhost", PGPORT=str(port), PGUSER="postgres", PGDATABASE="postgres")
    with open(target / "output", "w") as output:
        try:
            subprocess.run(["node", "tests/index.js"], cwd=copy, env=environment, stdout=output, stderr=output, timeout=300)
        except subprocess.TimeoutExpired:
            pass
    said = (target / "output").read_text(errors="replace")
    return {name: outcome for outcome, name in re.findall(r"^OUTCOME (passed|failed) (.+)$", said, re.M)}


def go_test(folder, target, environment, packages):
    """Go's modules must be there already."""
    # Counted, a test is run: else what it said of the other server is said again.
    command = ["go", "test", "-count=1", "-vet=off", "-p", "1", "-timeout", "600s", "-json", *packages]
    with open(target / "output", "w") as output, open(target / "errors", "w") as errors:
        subprocess.run(command, cwd=folder, env=dict(os.environ, **environment), stdout=output, stderr=errors)
    words = {"pass": "passed", "fail": "failed", "skip": "skipped"}
    outcomes = {}
    for line in (target / "output").read_text(errors="replace").splitlines():
        event = json.loads(line) if line.startswith("{") else {}
        if event.get("Test") and event["Action"] in words:
            outcomes[f"{event['Package']}: {event['Test']}"] = words[event["Action"]]
    return outcomes


def pgx(folder, target, port):
    database(port, "pgx_test")
    psql(port, "CREATE EXTENSION hstore; CREATE EXTENSION ltree; CREATE DOMAIN uint64 AS numeric(20,0)", "pgx_test")
    # Its tests show that such a name may stand in an access right.
    psql(port, """CREATE ROLE " tricky, ' } "" \\ test user " SUPERUSER PASSWORD 'secret'""")
    address = f"host=127.0.0.1 port={port} user=postgres dbname=pgx_test"
    environment = {"PGX_TEST_DATABASE": address, "PGX_TEST_TCP_CONN_STRING": address}
    packages = [".", "./pgconn", "./pgproto3", "./pgtype", "./pgtype/zeronull", "./pgxpool", "./stdlib", "./tracelog", "./log/testingadapter"]
    return go_test(folder, target, environment, packages)


def lib_pq(folder, target, port):
    database(port, "pqgotest")
    environment = {"PGHOST": "127.0.0.1", "PGPORT": str(port), "PGUSER": "postgres", "PGDATABASE": "pqgotest", "PGSSLMODE": "disable"}
    return go_test(folder, target, environment, ["./..."])


def dbd_pg(folder, target, port):
    """The module that is installed, with the tests of the same version."""
    database(port, "dbdpg")
    copy = target / "sources"
    # Beside the sources, Perl would take the module itself from there, which is not compiled.
    shutil.copytree(folder, copy, ignore=shutil.ignore_patterns("Pg.pm", "README.testdatabase"))
    address = {"DBI_DSN": f"dbi:Pg:host=127.0.0.1;port={port};dbname=dbdpg", "DBI_USER": "postgres", "DBI_PASS": ""}
    outcomes = {}
    for file in sorted(copy.glob("t/[0-3]*.t")) + [copy / "t" / "99cleanup.t"]:
        if file.name.startswith("00_"):
            continue
        done = subprocess.run(
            ["perl", f"t/{file.name}"], cwd=copy, env=dict(os.environ, **address, DBDPG_TEST_ALWAYS_ENV="1"),
            stdout=subprocess.PIPE, stderr=subprocess.STDOUT, timeout=300,
        )
        said = done.stdout.decode(errors="replace")
        (target / file.name).write_text(said)
        for bad, what, todo in re.findall(r"^(not )?ok \d+ - (.*?)( # (?:TODO|skip).*)?$", said, re.M | re.I):
            name = f"{file.name}: {what}"
            # Several tests have one name.
            while name in outcomes:
                name += "'"
            outcomes[name] = "skipped" if todo else "failed" if bad else "passed"
    return outcomes


def php_pgsql(folder, target, port):
    """PHP's sources, of the version that is installed: its tests of pgsql and pdo_pgsql, and those that PDO has for all drivers."""
    database(port, "phpt")
    copy = target / "sources"
    for part in ["pgsql", "pdo_pgsql", "pdo"]:
        shutil.copytree(f"{folder}/ext/{part}/tests", copy / "ext" / part / "tests")
    shutil.copy(f"{folder}/run-tests.php", copy)
    # Some tests do not ask the environment where the server is.
    for file in [*copy.glob("ext/*/tests/*.inc"), *copy.glob("ext/*/tests/*.phpt")]:
        text = file.read_bytes()
        for before, after in [(b"port=5432", b"port=%d" % port), (b"host=localhost", b"host=127.0.0.1"), (b"dbname=test", b"dbname=phpt")]:
            text = text.replace(before, after)
        file.write_bytes(text)
    address = f"host=127.0.0.1 port={port} dbname=phpt user=postgres"
    environment = {"PGSQL_TEST_CONNSTR": address, "PDO_PGSQL_TEST_DSN": f"pgsql:{address}", "PDOTEST_DSN": f"pgsql:{address}"}
    environment |= {"PDOTEST_USER": "postgres", "PDOTEST_PASS": "x", "NO_INTERACTION": "1", "SKIP_SLOW_TESTS": "1"}
    results = target / "results"
    command = ["php", "run-tests.php", "-p", shutil.which("php"), "--set-timeout", "60", "-q", "-W", str(results), "ext/pgsql/tests", "ext/pdo_pgsql/tests"]
    with open(target / "output", "w") as output:
        subprocess.run(command, cwd=copy, env=dict(os.environ, **environment), stdout=output, stderr=output)
    words = {"PASSED": "passed", "SKIPPED": "skipped", "XFAILED": "skipped"}
    lines = (line.split("\t", 1) for line in results.read_text().splitlines() if "\t" in line)
    return {name.replace(f"{copy}/", ""): words.get(word, "failed") for word, name in lines}


SUITES = {
    "psycopg": (psycopg, "psycopg 3, all tests but those marked slow; pytest, pytest-timeout, anyio, pproxy"),
    "psycopg2": (psycopg2, "psycopg2; psycopg2, pytest, pytest-timeout"),
    "pg8000": (pg8000, "pg8000, all but authentication; pg8000, pytest, pytest-timeout, pytest-benchmark, pytest-mock, pytz"),
    "tokio-postgres": (tokio_postgres, "tokio-postgres, with all its types"),
    "asyncpg": (asyncpg, "asyncpg, the tests that can use a server that runs; asyncpg, pytest, pytest-timeout, distro"),
    "sqlalchemy": (sqlalchemy, "SQLAlchemy's suite for dialects, and its tests of PostgreSQL's; psycopg, pytest, pytest-timeout"),
    "django": (django, "Django's tests that have to do with the database; psycopg, asgiref, sqlparse"),
    "node-postgres": (node_postgres, "node-postgres' integration tests, each file as one; pg, async, bluebird, co, pg-copy-streams in NODE_PATH"),
    "peewee": (peewee, "Peewee's tests, with psycopg2; psycopg2, pytest, pytest-timeout"),
    "knex": (knex, "Knex' integration tests; its packages installed in the folder"),
    "postgres-js": (postgres_js, "postgres.js' tests; Node.js"),
    "pgx": (pgx, "pgx' tests; Go, with the modules that it wants"),
    "lib-pq": (lib_pq, "lib/pq's tests; Go"),
    "dbd-pg": (dbd_pg, "DBD::Pg's tests; Perl with the same version of DBD::Pg"),
    "php-pgsql": (php_pgsql, "PHP's tests of pgsql and pdo_pgsql; PHP of the same version, with both"),
    **ORM_SUITES,
}
