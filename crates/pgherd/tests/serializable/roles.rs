//! Who may read may read at SERIALIZABLE, and nobody locks what he may not read.

use super::{BEGIN, Bed, refused, run};

#[tokio::test(flavor = "multi_thread")]
async fn select_is_enough_to_read_and_nothing_is_locked_without() {
    let bed = Bed::start().await;
    let owner = bed.client(0).await;
    for sql in [
        "CREATE ROLE teller LOGIN; CREATE ROLE clerk LOGIN NOINHERIT; CREATE ROLE auditor",
        "GRANT auditor TO clerk",
        "GRANT SELECT ON t, near TO teller; GRANT SELECT (k) ON t TO auditor",
        "CREATE VIEW ones AS SELECT k FROM near WHERE v = 0; GRANT SELECT ON ones TO clerk",
        "CREATE SCHEMA his; GRANT ALL ON SCHEMA his TO clerk",
    ] {
        run(&owner, sql).await;
    }
    let connect = async |role: &str| {
        let mut config = bed.gateways[1].config();
        let (client, connection) = config
            .user(role)
            .connect(tokio_postgres::NoTls)
            .await
            .expect("a connection");
        tokio::spawn(connection);
        client
    };
    let (teller, clerk) = (connect("teller").await, connect("clerk").await);
    for mode in ["", "READ ONLY"] {
        run(&teller, &format!("{BEGIN} {mode}")).await;
        assert_eq!(run(&teller, "SELECT sum(v) FROM t").await, "0");
        assert_eq!(run(&teller, "SELECT v FROM t WHERE k = 5").await, "0");
        assert_eq!(run(&teller, "SELECT v FROM t WHERE k = 55").await, "");
        assert_eq!(run(&teller, "SELECT count(*) FROM t JOIN near USING (k)").await, "2");
        run(&teller, "COMMIT").await;
    }
    let t = "SELECT count(*) FROM t";
    let outcomes = [
        (BEGIN, t, "42501"),
        // As a member of a role, only while he is that role.
        (
            "SET ROLE auditor; SET default_transaction_isolation = 'serializable'",
            "SELECT v FROM t",
            "42501",
        ),
        (BEGIN, "SELECT * FROM near", "42501"),
        (BEGIN, "UPDATE t SET v = 1 WHERE k = 1", "42501"),
        (
            BEGIN,
            "SELECT pgherd.lock_reads(ARRAY['t'::regclass], '{}', '{}', false, true)",
            "42501",
        ),
        // His own view does not open what he may not read.
        (BEGIN, "SELECT * FROM his.peek", "42501"),
    ];
    run(&clerk, "CREATE VIEW his.peek AS SELECT * FROM near").await;
    for (begin, statement, state) in outcomes {
        run(&clerk, begin).await;
        assert_eq!(refused(&clerk, statement).await, state, "{statement}");
        run(&clerk, "ROLLBACK; RESET ROLE; RESET default_transaction_isolation").await;
    }
    run(&clerk, "SET ROLE auditor").await;
    run(&clerk, BEGIN).await;
    assert_eq!(run(&clerk, "SELECT max(k) FROM t").await, "9");
    run(&clerk, "ROLLBACK; RESET ROLE").await;
    run(&clerk, BEGIN).await;
    assert_eq!(run(&clerk, "SELECT count(*) FROM ones").await, "2");
    run(&clerk, "COMMIT").await;
    bed.stop().await;
}
