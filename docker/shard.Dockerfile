# A PostgreSQL that can be a shard: `docker build -f docker/shard.Dockerfile -t pgherd-shard docker`.
# It is PostgreSQL's own image with the settings that `pgherd init` checks, a deadlock_timeout for SERIALIZABLE over shards, and the
# role that gateways use.

FROM postgres:15
# pgherd orders text keys by bytes, as this locale does.
ENV POSTGRES_INITDB_ARGS="--locale=C.UTF-8 --encoding=UTF8"
COPY shard.sql /docker-entrypoint-initdb.d/10-pgherd.sql
CMD ["postgres", \
     "-c", "max_prepared_transactions=200", \
     "-c", "wal_level=logical", \
     "-c", "max_connections=300", \
     "-c", "max_locks_per_transaction=256", \
     "-c", "deadlock_timeout=200ms"]
