"""More of what `run.py` runs: suites of ORMs and query builders in other languages. See `suites.py` for what each function is to do."""

import json
import os
import pathlib
import re
import shutil
import subprocess
import sys
import xml.etree.ElementTree as ElementTree

from servers import BOUNDS, database, psql


def run(command, folder, environment, output):
    with open(output, "w") as said:
        subprocess.run(command, cwd=folder, env=dict(os.environ, **environment), stdout=said, stderr=subprocess.STDOUT)
    return pathlib.Path(output).read_text(errors="replace")


def cases(report):
    """Outcomes of a report in JUnit's format, as mocha and PHPUnit write it."""
    outcomes = {}
    if not report.exists():
        return outcomes
    for case in ElementTree.parse(report).getroot().iter("testcase"):
        tags = {child.tag for child in case}
        outcome = "failed" if tags & {"failure", "error"} else "skipped" if "skipped" in tags else "passed"
        name = f"{case.get('classname')}::{case.get('name')}"
        outcomes[name] = "failed" if outcomes.get(name) == "failed" else outcome
    return outcomes


def mocha(folder, target, environment, files):
    report = target / "report.xml"
    command = ["node_modules/.bin/mocha", "--no-config", "--exit", "--timeout", "60000", "--reporter", "xunit"]
    run([*command, "--reporter-options", f"output={report}", *files], folder, environment, target / "output")
    return cases(report)


def objection(folder, target, port):
    """Its packages must be installed in the folder; those of other servers are not needed."""
    database(port, "objection_test")
    psql(port, "CREATE ROLE objection SUPERUSER LOGIN")
    return mocha(folder, target, {"DATABASES": "postgres", "PGPORT": str(port)}, ["tests/integration/index.js"])


def kysely(folder, target, port):
    """It and its tests (test/node) must have been compiled in the folder."""
    database(port, "kysely_test")
    psql(port, "CREATE ROLE kysely SUPERUSER LOGIN")
    # Beside the compiled tests, since they name the library by its place.
    copy = pathlib.Path(folder) / "test" / "node" / "run"
    shutil.rmtree(copy, ignore_errors=True)
    shutil.copytree(copy.parent / "dist", copy)
    setup = copy / "test-setup.js"
    setup.write_text(re.sub(r"port: 5434\b", f"port: {port}", setup.read_text()))
    files = sorted(str(p.relative_to(folder)) for p in copy.rglob("*.test.js"))
    outcomes = mocha(folder, target, {"DIALECTS": "postgres"}, files)
    shutil.rmtree(copy)
    return outcomes


def sequel(folder, target, port):
    """Ruby with pg, minitest-hooks and minitest-global_expectations."""
    database(port, "sequel_test")
    address = f"postgres://postgres@127.0.0.1:{port}/sequel_test"
    environment = {"SEQUEL_POSTGRES_URL": address, "SEQUEL_INTEGRATION_URL": address}
    requires = {"adapter": 'require "./spec/adapters/postgres_spec.rb"', "integration": 'Dir["./spec/integration/*_test.rb"].sort.each{|f| require f}'}
    outcomes = {}
    for part, script in requires.items():
        # With one seed for both servers.
        command = ["ruby", "-W0", "-Ilib", "-Ispec", "-e", script, "--", "-v", "--seed", "1"]
        said = run(command, folder, environment, target / part)
        for name, mark in re.findall(r"^(\S.*#test_.*?) = \d+\.\d+ s = (.)$", said, re.M):
            outcomes[f"{part}: {name}"] = {".": "passed", "S": "skipped"}.get(mark, "failed")
    return outcomes


def doctrine_dbal(folder, target, port):
    """The library that is installed for PHP (Debian: php-doctrine-dbal), with the functional tests of the same version; phpunit."""
    database(port, "doctrine_tests")
    (target / "bootstrap.php").write_text(
        "<?php require '/usr/share/php/Doctrine/DBAL/autoload.php';\n"
        "spl_autoload_register(function ($c) { $p = 'Doctrine\\\\DBAL\\\\Tests\\\\'; if (strpos($c, $p) === 0) {\n"
        f"  $f = '{folder}/tests/' . strtr(substr($c, strlen($p)), '\\\\', '/') . '.php'; if (is_file($f)) require $f; }} }});\n"
    )
    named = {"db_driver": "pdo_pgsql", "db_host": "127.0.0.1", "db_port": port, "db_user": "postgres", "db_password": "", "db_dbname": "doctrine_tests"}
    variables = "".join(f'<var name="{name}" value="{value}"/>' for name, value in named.items())
    (target / "phpunit.xml").write_text(
        f'<phpunit bootstrap="{target}/bootstrap.php"><php>{variables}</php>'
        f"<testsuites><testsuite name='dbal'><directory>{folder}/tests/Functional</directory></testsuite></testsuites></phpunit>"
    )
    report = target / "report.xml"
    run(["phpunit", "-c", str(target / "phpunit.xml"), "--log-junit", str(report)], folder, {}, target / "output")
    return cases(report)


def ecto_sql(folder, target, port):
    """Elixir; its dependencies must be in the folder."""
    # It makes its database itself.
    psql(port, f"ALTER ROLE postgres SET pgherd.default_distribution = 'primary_key'; ALTER ROLE postgres SET pgherd.initial_bounds = '{BOUNDS}'")
    server = {"PGHOST": "127.0.0.1", "PGPORT": str(port), "PGUSER": "postgres", "PGPASSWORD": "postgres"}
    environment = dict(server, MIX_ENV="test", ECTO_ADAPTER="pg", PG_URL=f"postgres:postgres@127.0.0.1:{port}")
    said = run(["mix", "test", "--trace", "--seed", "1"], folder, environment, target / "output")
    psql(port, "ALTER ROLE postgres RESET pgherd.default_distribution; ALTER ROLE postgres RESET pgherd.initial_bounds")
    outcomes, module = {}, ""
    for line in re.sub(r"\x1b\[[0-9;]*m", "", said).splitlines():
        if named := re.match(r"(\S+) \[\S+\]$", line):
            module = named[1]
        for test, how in re.findall(r"\* (test .*?) \((\d[\d.]*ms|excluded|skipped)\)", line):
            outcomes[f"{module}: {test}"] = "passed" if how.endswith("ms") else "skipped"
        if failed := re.match(r" +\d+\) (test .*?) \((\S+)\)$", line):
            outcomes[f"{failed[2]}: {failed[1]}"] = "failed"
    return outcomes


def tap(files, folder, target, environment):
    """Perl's tests, one file after the other; numbers and addresses differ from run to run."""
    outcomes = {}
    for file in files:
        said = run(["perl", "-Ilib", "-It/lib", str(file.relative_to(folder))], folder, environment, target / file.name)
        for bad, what, why in re.findall(r"^ *(not )?ok \d+(?: - )?(.*?)( # (?:TODO|skip).*)?$", said, re.M | re.I):
            name = f"{file.name}: " + re.sub(r"0x[0-9a-f]+|\b\d{4,}\b", "N", what)
            # Several tests have one name.
            while name in outcomes:
                name += "'"
            outcomes[name] = "skipped" if why else "failed" if bad else "passed"
    return outcomes


def dbix_class(folder, target, port):
    """The repository without its Makefile.PL, which would want every optional module; Perl with DBD::Pg and Test::Exception."""
    folder = pathlib.Path(folder)
    database(port, "dbixtest")
    address = {"DSN": f"dbi:Pg:dbname=dbixtest;host=127.0.0.1;port={port}", "USER": "postgres", "PASS": "x"}
    files = [file for file in sorted(folder.glob("t/**/*.t")) if re.search("PG_|Pg", file.read_text(errors="replace"))]
    return tap(files, folder, target, {f"DBICTEST_PG_{name}": value for name, value in address.items()})


def rose_db_object(folder, target, port):
    """The module's folder in its repository; Perl with Rose::DB and what Rose::DB::Object wants."""
    folder = pathlib.Path(folder)
    database(port, "rose")
    address = {"DSN": f"dbi:Pg:dbname=rose;host=127.0.0.1;port={port}", "USER": "postgres", "PASS": "x"}
    environment = {f"RDBO_PG_{name}": value for name, value in address.items()}
    return tap(sorted(folder.glob("t/*.t")), folder, target, dict(environment, PGUSER="postgres"))


def with_pytest(folder, target, environment, arguments):
    report = target / "report.xml"
    command = [sys.executable, "-m", "pytest", "-q", "--timeout=120", "-o", "junit_family=xunit1", f"--junitxml={report}"]
    run([*command, *arguments], folder, environment, target / "output")
    return cases(report)


def piccolo(folder, target, port):
    """Python with what its requirements/test-requirements.txt names."""
    database(port, "piccolo")
    environment = {"PICCOLO_CONF": "tests.postgres_conf", "PG_HOST": "127.0.0.1", "PG_PORT": str(port), "PYTHONPATH": "."}
    return with_pytest(folder, target, environment, ["-m", "not integration", "tests"])


def alembic(folder, target, port):
    """Python with SQLAlchemy, psycopg2 and pytest-timeout."""
    database(port, "alembic_test")
    psql(port, "CREATE SCHEMA test_schema; CREATE EXTENSION hstore", "alembic_test")
    address = f"postgresql+psycopg2://postgres:x@127.0.0.1:{port}/alembic_test"
    return with_pytest(folder, target, {}, ["--maxfail=1000", "--dburi", address, "tests"])


def gorm(folder, target, port):
    """The folder `tests` of its repository, whose go.mod names modules that are there; drivers of other servers may be stubs."""
    database(port, "gorm")
    address = f"user=postgres password=x dbname=gorm host=127.0.0.1 port={port} sslmode=disable TimeZone=Asia/Shanghai"
    command = ["go", "test", "-count=1", "-vet=off", "-v", "-timeout", "1800s", "."]
    said = run(command, folder, {"GORM_DIALECT": "postgres", "GORM_DSN": address}, target / "output")
    words = {"PASS": "passed", "FAIL": "failed", "SKIP": "skipped"}
    return {name: words[word] for word, name in re.findall(r"^ *--- (PASS|FAIL|SKIP): (\S+) ", said, re.M)}


def pg_boss(folder, target, port):
    """Its packages installed in the folder; Node.js 22. Tests of its command line, of other databases and of ORMs are left out."""
    database(port, "pgboss")
    others = re.compile("Type|pglite|speed|cli|multiMaster|coverage|navigator|adapter")
    files = sorted(f"test/{p.name}" for p in (pathlib.Path(folder) / "test").glob("*Test.ts") if not others.search(p.name))
    report = target / "report.json"
    command = ["node_modules/.bin/vitest", "run", "--typecheck.enabled=false", "--maxWorkers=1", "--testTimeout=60000", "--hookTimeout=60000"]
    command += ["--reporter=json", f"--outputFile={report}", *files]
    run(command, folder, {"POSTGRES_HOST": "127.0.0.1", "POSTGRES_PORT": str(port)}, target / "output")
    if not report.exists():
        return {}
    tests = (test for file in json.loads(report.read_text())["testResults"] for test in file["assertionResults"])
    return {test["fullName"]: {"passed": "passed", "failed": "failed"}.get(test["status"], "skipped") for test in tests}


ORM_SUITES = {
    "objection": (objection, "Objection's integration tests; its packages installed in the folder"),
    "kysely": (kysely, "Kysely's tests with Node.js; the folder compiled (tsc, tsc -p test/node)"),
    "sequel": (sequel, "Sequel's specs of its adapter and its integration; Ruby with pg"),
    "doctrine-dbal": (doctrine_dbal, "Doctrine DBAL's functional tests; PHP with pdo_pgsql, phpunit and the same version of DBAL"),
    "ecto-sql": (ecto_sql, "Ecto's integration tests; Elixir, its dependencies in the folder"),
    "dbix-class": (dbix_class, "DBIx::Class' tests that know PostgreSQL; Perl with DBD::Pg, the folder without Makefile.PL"),
    "rose-db-object": (rose_db_object, "Rose::DB::Object's tests; Perl with Rose::DB"),
    "piccolo": (piccolo, "Piccolo's tests; Python with its requirements"),
    "alembic": (alembic, "Alembic's tests; Python with SQLAlchemy and psycopg2"),
    "gorm": (gorm, "GORM's folder of tests; Go, with the modules that it wants"),
    "pg-boss": (pg_boss, "pg-boss' tests; Node.js 22, its packages installed in the folder"),
}
