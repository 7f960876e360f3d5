"""More of what `run.py` runs: suites of ORMs and query builders in other languages. See `suites.py` for what each function is to do."""

import os
import pathlib
import re
import shutil
import subprocess
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


ORM_SUITES = {
    "objection": (objection, "Objection's integration tests; its packages installed in the folder"),
    "kysely": (kysely, "Kysely's tests with Node.js; the folder compiled (tsc, tsc -p test/node)"),
    "sequel": (sequel, "Sequel's specs of its adapter and its integration; Ruby with pg"),
    "doctrine-dbal": (doctrine_dbal, "Doctrine DBAL's functional tests; PHP with pdo_pgsql, phpunit and the same version of DBAL"),
    "ecto-sql": (ecto_sql, "Ecto's integration tests; Elixir, its dependencies in the folder"),
}
