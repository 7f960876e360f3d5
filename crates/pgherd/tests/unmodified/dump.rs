//! pg_dump of a database through the gateway: what is the cluster's own stays out of it.

use super::{cluster, program};
use pgherd_testkit::herd;

#[tokio::test(flavor = "multi_thread")]
async fn a_dump_has_nothing_of_the_cluster() {
    let (herd, gateway) = cluster().await;
    let client = gateway.connect().await.expect("connect");
    client
        .batch_execute("CREATE TABLE notes (id int PRIMARY KEY, body text); INSERT INTO notes VALUES (1, 'one')")
        .await
        .expect("table");
    let pg_dump = program(&herd, &gateway, "pg_dump");
    let said = herd::run("pg_dump", pg_dump)
        .await
        .unwrap_or_else(|error| panic!("{error}"));
    assert!(
        said.contains("CREATE TABLE public.notes") && said.contains("\n1\tone\n"),
        "{said}"
    );
    assert!(!said.contains("pgherd"), "{said}");
    let dropped = client.batch_execute("DROP EXTENSION plpgsql CASCADE").await;
    let code = dropped.expect_err("refused").code().map(|c| c.code().to_owned());
    assert_eq!(code.as_deref(), Some("2BP01"));
    assert!(gateway.stop().await);
}
