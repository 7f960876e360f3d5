#!/bin/bash
# pgbench: its own tables, all built-in scripts in all protocols, and a script of its own. PGPROGRAMS is the folder of
# PostgreSQL's programs. It prints what must be the same on PostgreSQL and on pgherd: no times.
set -u
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
pgbench() {
    "$PGPROGRAMS/pgbench" "$@" > "$folder/said" 2>&1
    local status=$?
    echo "pgbench $*: exit $status" | sed "s|$folder/||g"
    grep -E 'number of transactions actually processed|number of failed|^scaling factor|^query mode|^pgbench: error|done in' "$folder/said" | sed 's/ in .*$/ in/'
    [ $status = 0 ] || tail -3 "$folder/said"
}
ask() { "$PGPROGRAMS/psql" -X -q -A -t -c "$1"; }

for steps in dtgvp dtGvpf; do
    pgbench -i -I $steps -s 1 -q
    ask 'SELECT count(*), sum(abalance), min(aid), max(aid) FROM pgbench_accounts'
    ask 'SELECT (SELECT count(*) FROM pgbench_tellers), (SELECT count(*) FROM pgbench_branches), (SELECT count(*) FROM pgbench_history)'
done
pgbench -i -I dtgvp -s 1 -q --partitions=3
ask "SELECT count(*) FROM pgbench_accounts"
pgbench -i -s 1 -q
for mode in simple extended prepared; do
    for script in tpcb-like simple-update select-only; do
        pgbench -n -M $mode -b $script -c 4 -t 20
    done
done
ask 'SELECT (SELECT sum(abalance) FROM pgbench_accounts) = (SELECT sum(delta) FROM pgbench_history), count(*) FROM pgbench_history'
ask 'SELECT (SELECT sum(tbalance) FROM pgbench_tellers) - (SELECT sum(bbalance) FROM pgbench_branches) AS differs_by_simple_updates FROM pgbench_branches LIMIT 0'
cat > "$folder/own.sql" <<'SQL'
\set aid random(1, 100000)
\set aid2 random(1, 100000)
BEGIN;
UPDATE pgbench_accounts SET abalance = abalance + 1 WHERE aid = :aid;
UPDATE pgbench_accounts SET abalance = abalance - 1 WHERE aid = :aid2;
SELECT sum(abalance) AS total FROM pgbench_accounts WHERE aid IN (:aid, :aid2) \gset
\if :total > 1000000
SELECT 1/0;
\endif
COMMIT;
SQL
cat > "$folder/pipeline.sql" <<'SQL'
\startpipeline
SELECT abalance FROM pgbench_accounts WHERE aid = 5;
UPDATE pgbench_branches SET bbalance = bbalance WHERE bid = 1;
SELECT count(*) FROM pgbench_tellers;
\endpipeline
SQL
pgbench -n -c 3 -t 10 --max-tries=20 -f "$folder/own.sql"
pgbench -n -c 3 -t 10 --max-tries=20 -M prepared -f "$folder/own.sql"
pgbench -n -c 2 -t 10 -M extended -f "$folder/pipeline.sql"
pgbench -n -C -c 2 -t 5 -S
pgbench -n -c 2 -t 10 -b tpcb-like@2 -b select-only@3 --report-per-command
ask 'SELECT (SELECT sum(abalance) FROM pgbench_accounts) = (SELECT sum(delta) FROM pgbench_history)'
pgbench -i -I d -q
ask "SELECT count(*) FROM pg_class WHERE relname LIKE 'pgbench%'"
