-- Run once, when a shard's data folder is made. Gateways use this role for their own work: the catalog, recovery, moves.
CREATE ROLE pgherd SUPERUSER LOGIN;
