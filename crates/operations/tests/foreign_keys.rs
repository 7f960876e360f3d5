//! Foreign keys between sharded tables: what is made with them, and that each move of ranges brings them along, valid.

mod cluster;
use cluster::Cluster;

/// Every foreign key of a shard between these tables: its table, and whether PostgreSQL holds all of it for checked.
const KEYS: &str = "SELECT string_agg(conrelid::regclass || ' ' || conname || ' ' || bool, ', ' ORDER BY conrelid::regclass::text, conname) FROM (
    SELECT conrelid, conname, bool_and(convalidated)::text AS bool FROM pg_constraint
    WHERE contype = 'f' AND conparentid = 0 AND connamespace = 'public'::regnamespace GROUP BY 1, 2) k(conrelid, conname, bool)";

async fn orders_and_items(c: &Cluster) {
    c.ok("CREATE TABLE orders (id int PRIMARY KEY, v text)").await;
    let made = c
        .ok("CREATE TABLE items (n int, order_id int REFERENCES orders ON DELETE CASCADE, PRIMARY KEY (n, order_id))")
        .await;
    assert!(made.notices.is_empty(), "{:?}", made.notices);
}

/// A row in each of three ranges, and its items.
async fn fill(c: &Cluster) {
    for (shard, id) in [(1, 1), (2, 5), (3, 8)] {
        c.on(
            shard,
            &format!("INSERT INTO orders VALUES ({id}, 'x'), ({id} + 1, 'y'); INSERT INTO items VALUES (1, {id}), (2, {id}), (1, {id} + 1)"),
        )
        .await;
    }
    assert_eq!(c.on_all("SELECT count(*) FROM items").await, ["3"; 3]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_table_is_made_beside_the_one_that_it_refers_to() {
    let mut c = Cluster::start(3).await;
    c.by_primary_key();
    orders_and_items(&c).await;
    assert_eq!(c.ranges("items").await, c.ranges("orders").await);
    assert_eq!(
        c.on(1, "SELECT pg_get_partkeydef('items'::regclass)").await,
        "RANGE (order_id)"
    );
    assert_eq!(c.on_all(KEYS).await, ["items items_order_id_fkey true"; 3]);
    let names = "SELECT string_agg(DISTINCT conname, ',') FROM pg_constraint WHERE contype = 'f' AND conparentid <> 0";
    assert_eq!(
        c.on(2, names).await,
        "items_order_id_fkey,t1_r2$items_order_id_fkey",
        "the user's names are free"
    );
    fill(&c).await;
    let failed = c.on(2, "INSERT INTO pgherd_data.t2_r2 VALUES (1, 4)").await;
    assert!(
        failed.contains("23503") && failed.contains("\"items_order_id_fkey\""),
        "{failed}"
    );
    // Rows of another shard are not there.
    assert!(c.on(2, "INSERT INTO items VALUES (1, 8)").await.starts_with("23514"));
    assert_eq!(
        c.on(
            3,
            "DELETE FROM pgherd_data.t1_r3 WHERE id = 8; SELECT count(*) FROM items"
        )
        .await,
        "1"
    );

    // By another column than the key's it cannot be checked, and both are local.
    let other = c
        .ok("CREATE TABLE notes (id int PRIMARY KEY, order_id int REFERENCES orders)")
        .await;
    let said: Vec<_> = other.notices.iter().map(|n| n.fields().message.clone()).collect();
    assert_eq!(said.len(), 3, "{said:?}");
    assert!(c.catalog.snapshot().relations.is_empty());
    assert_eq!(c.on(1, "SELECT count(*) FROM items").await, "7");
    assert_eq!(
        c.on(1, KEYS).await,
        "items items_order_id_fkey true, notes notes_order_id_fkey true"
    );
    assert_eq!(c.on(2, "SELECT to_regclass('items')").await, "NULL");
    c.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_split_moves_both_tables_and_their_key_stays_valid() {
    let mut c = Cluster::start(3).await;
    c.by_primary_key();
    orders_and_items(&c).await;
    c.ok("ALTER TABLE orders ADD COLUMN first int").await;
    // In a circle, so that no order of moving would do.
    c.ok("ALTER TABLE orders ADD CONSTRAINT first_item FOREIGN KEY (id, first) REFERENCES items (order_id, n)")
        .await;
    c.ok("COMMENT ON CONSTRAINT first_item ON orders IS 'a circle'").await;
    fill(&c).await;
    c.on_all("UPDATE orders SET first = 1").await;
    c.ok("CALL pgherd.split('items', 6, to => 'shard1')").await;
    assert_eq!(c.ranges("items").await, c.ranges("orders").await);
    assert_eq!(c.on_all("SELECT count(*) FROM items").await, ["4", "2", "3"]);
    assert_eq!(
        c.on_all(KEYS).await,
        ["items items_order_id_fkey true, orders first_item true"; 3]
    );
    assert_eq!(
        c.on(
            1,
            "SELECT obj_description(oid) FROM pg_constraint WHERE conname = 'first_item' AND conparentid = 0"
        )
        .await,
        "a circle"
    );
    let unnamed = "SELECT count(*) FROM pg_constraint WHERE contype = 'f' AND conparentid <> 0 AND conname !~ '^(t[12]_r\\d+\\$)?(items_order_id_fkey|first_item)$'";
    assert_eq!(c.on_all(unnamed).await, ["0"; 3]);
    assert!(c.on(1, "INSERT INTO items VALUES (9, 0)").await.starts_with("23503"));
    assert!(
        c.on(2, "DELETE FROM items WHERE n = 1 AND order_id = 5")
            .await
            .starts_with("23503")
    );
    c.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn conversions_bring_all_linked_tables_along() {
    let c = Cluster::start(3).await;
    for sql in [
        "CREATE TABLE tenants (id int PRIMARY KEY)",
        "CREATE TABLE folders (tenant int REFERENCES tenants, id int, up int, PRIMARY KEY (tenant, id), FOREIGN KEY (tenant, up) REFERENCES folders)",
        "CREATE TABLE files (tenant int, folder int, id int, PRIMARY KEY (tenant, id), FOREIGN KEY (tenant, folder) REFERENCES folders ON DELETE CASCADE DEFERRABLE)",
    ] {
        c.ok(sql).await;
    }
    c.on(
        1,
        "INSERT INTO tenants SELECT generate_series(1, 9); INSERT INTO folders SELECT i, 1, NULL FROM generate_series(1, 9) i;
         INSERT INTO folders SELECT i, 2, 1 FROM generate_series(1, 9) i; INSERT INTO files SELECT i, 2, 7 FROM generate_series(1, 9) i",
    )
    .await;
    let roots = "SELECT string_agg(conname || pg_get_constraintdef(oid), ';' ORDER BY conname) FROM pg_constraint WHERE contype = 'f' AND conparentid = 0 AND connamespace = 'public'::regnamespace";
    let before = c.on(1, roots).await;
    let done = c.ok("CALL pgherd.distribute('folders', 'tenant')").await;
    assert_eq!(done.notices.len(), 2, "{:?}", done.notices);
    assert_eq!(c.on_all("SELECT count(*) FROM files").await, ["2", "4", "3"]);
    assert_eq!(c.ranges("tenants").await, c.ranges("files").await);
    let keys =
        "files files_tenant_folder_fkey true, folders folders_tenant_fkey true, folders folders_tenant_up_fkey true";
    assert_eq!(c.on_all(KEYS).await, [keys; 3]);
    assert_eq!(c.on_all(roots).await, [before.as_str(); 3]);

    c.ok("CALL pgherd.split('files', 5, to => 'shard3')").await;
    assert_eq!(c.on_all("SELECT count(*) FROM folders").await, ["4", "4", "10"]);
    assert_eq!(c.on_all(KEYS).await, [keys; 3]);

    let undone = c.ok("CALL pgherd.undistribute('tenants')").await;
    assert_eq!(undone.notices.len(), 2, "{:?}", undone.notices);
    assert_eq!(c.on(1, roots).await, before);
    assert_eq!(c.on(1, "SELECT count(*) FROM folders").await, "18");

    // Each table of the circle would want another key.
    c.ok("CREATE TABLE odd (id int PRIMARY KEY, tenant int REFERENCES tenants)")
        .await;
    assert_eq!(c.refused("CALL pgherd.distribute('tenants', 'id')").await, "0A000");
    c.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_key_that_is_added_later_brings_the_table_beside_the_other() {
    let mut c = Cluster::start(3).await;
    c.by_primary_key();
    c.ok("CREATE TABLE orders (id int PRIMARY KEY)").await;
    c.distribution =
        pgherd_operations::Distribution::from_settings(Some("primary_key"), Some("int 2,8")).expect("settings");
    c.ok("CREATE TABLE items (order_id int, n int, PRIMARY KEY (order_id, n))")
        .await;
    c.ok("CREATE TABLE parts (order_id int, n int, p int, PRIMARY KEY (order_id, n, p), FOREIGN KEY (order_id, n) REFERENCES items)")
        .await;
    for (shard, orders, items) in [(1, "1, 2", "1"), (2, "5", "5"), (3, "8", "8")] {
        c.on(
            shard,
            &format!("INSERT INTO orders SELECT unnest('{{{orders}}}'::int[])"),
        )
        .await;
        c.on(
            shard,
            &format!(
                "INSERT INTO items SELECT unnest('{{{items}}}'::int[]), 1; INSERT INTO parts SELECT *, 1 FROM items"
            ),
        )
        .await;
    }
    c.on(2, "INSERT INTO items VALUES (2, 1); INSERT INTO parts VALUES (2, 1, 1)")
        .await;
    let added = c
        .ok("ALTER TABLE items ADD FOREIGN KEY (order_id) REFERENCES orders NOT VALID")
        .await;
    assert!(added.notices.is_empty(), "{:?}", added.notices);
    assert_eq!(c.ranges("items").await, c.ranges("orders").await);
    assert_eq!(c.ranges("parts").await, c.ranges("orders").await);
    assert_eq!(c.on_all("SELECT count(*) FROM parts").await, ["2", "1", "1"]);
    let keys = "items items_order_id_fkey true, parts parts_order_id_n_fkey true";
    assert_eq!(c.on_all(KEYS).await, [keys; 3]);
    c.ok("CALL pgherd.split('parts', 4)").await;
    assert_eq!(c.ranges("orders").await, c.ranges("parts").await);

    // A row that breaks it: PostgreSQL keeps such a key unchecked, which it can on a local table only.
    c.on(1, "INSERT INTO orders VALUES (0)").await;
    c.ok("CREATE TABLE notes (order_id int, n int, PRIMARY KEY (order_id, n))")
        .await;
    c.on_all("INSERT INTO notes VALUES (0, 1)").await;
    assert_eq!(
        c.on(1, "INSERT INTO notes VALUES (-5, 1) RETURNING order_id").await,
        "-5"
    );
    assert_eq!(
        c.refused("ALTER TABLE notes ADD FOREIGN KEY (order_id) REFERENCES orders")
            .await,
        "23503"
    );
    let added = c
        .ok("ALTER TABLE notes ADD FOREIGN KEY (order_id) REFERENCES orders NOT VALID")
        .await;
    assert_eq!(added.notices.len(), 4, "{:?}", added.notices);
    assert!(c.catalog.snapshot().relations.is_empty());
    c.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn declared_partitions_go_where_their_keys_are() {
    let c = Cluster::start(3).await;
    c.ok("CREATE TABLE a (id int PRIMARY KEY) PARTITION BY RANGE (id)")
        .await;
    c.ok("CREATE TABLE b (id int, n int, PRIMARY KEY (id, n)) PARTITION BY RANGE (id)")
        .await;
    for i in 0..3 {
        c.ok(&format!(
            "CREATE TABLE a_{i} PARTITION OF a FOR VALUES FROM ({i}0) TO ({i}9)"
        ))
        .await;
    }
    c.ok("CREATE TABLE b_1 PARTITION OF b FOR VALUES FROM (10) TO (15)")
        .await;
    // b_1 is on the first shard, and a_1 on the second.
    assert_eq!(
        c.refused("ALTER TABLE b ADD FOREIGN KEY (id) REFERENCES a").await,
        "0A000"
    );
    c.ok("DROP TABLE b_1").await;
    c.ok("ALTER TABLE b ADD FOREIGN KEY (id) REFERENCES a").await;
    c.ok("CREATE TABLE b_2 PARTITION OF b FOR VALUES FROM (20) TO (25)")
        .await;
    assert_eq!(
        c.on_all("SELECT count(*) FROM pg_class WHERE relname = 'b_2'").await,
        ["1", "0", "1"]
    );
    assert_eq!(
        c.refused("CREATE TABLE b_3 PARTITION OF b FOR VALUES FROM (0) TO (20)")
            .await,
        "0A000"
    );
    assert_eq!(c.refused("ALTER TABLE a DETACH PARTITION a_2").await, "0A000");
    assert_eq!(c.refused("DROP TABLE a_2").await, "2BP01");
    c.ok("DROP TABLE a CASCADE").await;
    assert_eq!(c.on_all(KEYS).await, ["NULL"; 3]);
    c.stop().await;
}
