//! What the actions of foreign keys write is written by the statement that causes it.

use super::{BEGIN, Bed, ask, ended, refused, run, spawn};

async fn orders_and_items(bed: &Bed) {
    let client = bed.client(0).await;
    for sql in [
        "SET pgherd.default_distribution = 'primary_key'",
        "SET pgherd.initial_bounds = 'int 3,7'",
        "CREATE TABLE orders (id int PRIMARY KEY)",
        "CREATE TABLE items (order_id int REFERENCES orders ON DELETE CASCADE, n int, v int, PRIMARY KEY (order_id, n))",
        "INSERT INTO orders SELECT generate_series(1, 9)",
        "INSERT INTO items SELECT i, 1, 0 FROM generate_series(1, 9) i",
    ] {
        run(&client, sql).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn an_action_waits_for_who_has_read_the_table_that_it_writes() {
    let bed = Bed::start().await;
    orders_and_items(&bed).await;
    let (reader, writer) = (bed.client(0).await, bed.client(1).await);
    run(&reader, BEGIN).await;
    assert_eq!(run(&reader, "SELECT count(*) FROM items WHERE order_id > 4").await, "5");
    let deleted = spawn(&writer, &format!("{BEGIN}; DELETE FROM orders WHERE id = 8; COMMIT"));
    bed.until_waiting(1, "a DELETE that cascades").await;
    assert_eq!(run(&reader, "SELECT count(*) FROM items WHERE order_id > 4").await, "5");
    run(&reader, "COMMIT").await;
    ended(deleted).await.expect("the DELETE");
    assert_eq!(run(&reader, "SELECT count(*) FROM items WHERE order_id > 4").await, "4");
    bed.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn triggers_of_the_tables_that_actions_write_must_not_read() {
    let bed = Bed::start().await;
    orders_and_items(&bed).await;
    let client = bed.client(0).await;
    for sql in [
        "CREATE FUNCTION looks() RETURNS trigger LANGUAGE plpgsql AS 'BEGIN PERFORM count(*) FROM pg_class; RETURN OLD; END'",
        "CREATE TRIGGER looks BEFORE DELETE ON items FOR EACH ROW EXECUTE FUNCTION looks()",
        "SET default_transaction_isolation = 'serializable'",
    ] {
        run(&client, sql).await;
    }
    for sql in ["DELETE FROM orders WHERE id = 1", "DELETE FROM orders WHERE id > 4"] {
        assert_eq!(refused(&client, sql).await, "0A000", "{sql}");
    }
    let pointed = client.execute("DELETE FROM orders WHERE id = $1", &[&1]).await;
    assert_eq!(pointed.expect_err("it reads").code().map(|c| c.code()), Some("0A000"));
    assert_eq!(run(&client, "SELECT count(*) FROM items").await, "9");
    bed.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_key_that_failed_has_told_something() {
    let bed = Bed::start().await;
    orders_and_items(&bed).await;
    let client = bed.client(0).await;
    run(&client, BEGIN).await;
    run(&client, "SELECT v FROM items WHERE order_id = 1").await;
    run(&client, "SAVEPOINT s").await;
    assert_eq!(refused(&client, "INSERT INTO items VALUES (0, 1)").await, "23503");
    run(&client, "ROLLBACK TO s").await;
    assert_eq!(
        refused(&client, "SELECT v FROM items WHERE order_id = 9").await,
        "0A000"
    );
    let _ = ask(&client, "ROLLBACK").await;
    bed.stop().await;
}
