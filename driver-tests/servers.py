"""Starts what the programs and suites here run against: a plain PostgreSQL, and pgherd clusters on this machine.

Both listen on the same port, one after the other, and know the same roles, so that a client cannot tell them apart. Needs
PostgreSQL's programs; as root the servers run as the account `postgres`.
"""

import contextlib
import glob
import os
import pathlib
import random
import shutil
import signal
import socket
import subprocess
import sys
import time

REPOSITORY = pathlib.Path(__file__).resolve().parent.parent
# Split points so small that a handful of rows lies on all shards.
BOUNDS = "int 3,7; bigint 3,7; smallint 3,7; numeric 3,7; text h,q; varchar h,q"
SETTINGS = {
    "max_prepared_transactions": "200",
    "wal_level": "logical",
    "max_connections": "300",
    "max_locks_per_transaction": "256",
    "fsync": "off",
}
ROLES = {"pass_user": "scram-sha-256", "md5_user": "md5", "scram_user": "scram-sha-256"}


def say(text):
    print(text, file=sys.stderr, flush=True)


def free_port():
    """A port on which nobody listens now, below those that the system gives to clients."""
    for port in random.sample(range(20000, 30000), 100):
        with socket.socket() as tried:
            if tried.connect_ex(("127.0.0.1", port)) != 0:
                return port
    sys.exit("no port is free")


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


def psql(port, sql, database="postgres"):
    command = [f"{programs()}/psql", "-X", "-q", "-v", "ON_ERROR_STOP=1", "-h", "127.0.0.1", "-p", str(port), "-U", "postgres"]
    done = subprocess.run(command + ["-d", database, "-c", sql], capture_output=True, text=True)
    if done.returncode:
        sys.exit(f"psql, {sql}: {done.stderr}")


def database(port, name):
    """A database of the suite's own; PostgreSQL takes pgherd's settings as it takes any with a dot."""
    psql(port, f"CREATE DATABASE {name}")
    psql(port, f"ALTER DATABASE {name} SET pgherd.default_distribution = 'primary_key'")
    psql(port, f"ALTER DATABASE {name} SET pgherd.initial_bounds = '{BOUNDS}'")


@contextlib.contextmanager
def plain(folder, port):
    """A plain PostgreSQL with a shard's settings."""
    owner, data = as_owner(folder), folder / "data"
    run = lambda *c: subprocess.run(owner + [f"{programs()}/{c[0]}", *c[1:]], check=True, capture_output=True, cwd="/")
    run("initdb", "-D", data, "-U", "postgres", "--locale=C.UTF-8", "-E", "UTF8", "-A", "trust")
    settings = dict(SETTINGS, port=str(port), listen_addresses="127.0.0.1,::1", unix_socket_directories=str(folder))
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
def herd(folder, port, program, shards=3, databases=()):
    """A pgherd cluster, where new tables of `postgres` and of these further databases are sharded by their primary keys."""
    up = [program, "up", "--data", folder / "herd", "--listen", f"127.0.0.1:{port}", "--metrics-listen", "off"]
    up += ["--shards", str(shards)]

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
        (folder / "log").rename(folder / "log.old")

    stop(start())
    config = folder / "herd" / "pgherd.toml"
    lines = ", ".join(f'"{rule}"' for rule in rules(False))
    gateway = f"[gateway]\naccess = [{lines}]\n"
    if certificate(folder / "herd"):
        gateway += 'tls_certificate = "server.crt"\ntls_key = "server.key"\n'
    config.write_text(config.read_text().replace("[gateway]\n", gateway, 1))
    process = start()
    try:
        for database in databases:
            psql(port, f"CREATE DATABASE {database}")
        for database in ["postgres", *databases]:
            psql(port, f"ALTER DATABASE {database} SET pgherd.default_distribution = 'primary_key'")
            psql(port, f"ALTER DATABASE {database} SET pgherd.initial_bounds = '{BOUNDS}'")
        yield
    finally:
        stop(process)
