use super::*;
use crate::snapshot_from_json;
use pgherd_model::{ShardId, SqlState};

fn snapshot() -> Snapshot {
    let json = r#"{"epoch": 3, "tables": [{"id": 4, "oid": 1, "schema": "public", "name": "orders", "automatic": true,
        "by_default": false, "colocation": 4, "fence": 1, "next_range": 2, "columns": [{"name": "id", "number": 1,
        "type_oid": 23, "type_modifier": -1, "type_name": "integer", "not_null": true, "default": null, "generated": false, "identity": null}], "key": [{"name": "id", "type": 23}],
        "ranges": [{"id": 1, "from": ["<"], "to": [">"], "shard": 1, "schema": "pgherd_data", "name": "t4_r1", "declared": false}],
        "unique": [{"name": "orders_pkey", "columns": ["id"]}], "direct": true}]}"#;
    snapshot_from_json(json, [ShardId(1)].into_iter()).unwrap()
}

#[test]
fn a_duplicate_key_names_the_parents_constraint() {
    let text = "duplicate key value violates unique constraint \"t4_r1$orders_pkey\"";
    let mut error = ServerError::new(SqlState::UNIQUE_VIOLATION, text);
    error.fields_mut().other = vec![
        (b's', "pgherd_data".into()),
        (b't', "t4_r1".into()),
        (b'n', "t4_r1$orders_pkey".into()),
    ];
    restore_parent_names(&mut error, &snapshot());
    assert_eq!(
        error.fields().message,
        "duplicate key value violates unique constraint \"orders_pkey\""
    );
    let other = &error.fields().other;
    assert_eq!(other[0].1, "public");
    assert_eq!(other[1].1, "orders");
    assert_eq!(other[2].1, "orders_pkey");
}

#[test]
fn a_null_names_the_parent_and_odd_index_names_are_kept_whole() {
    let said = |text: &str| {
        let mut error = ServerError::new(SqlState::UNIQUE_VIOLATION, text);
        restore_parent_names(&mut error, &snapshot());
        error.fields().message.clone()
    };
    assert_eq!(
        said("null value in column \"v\" of relation \"t4_r1\" violates not-null constraint"),
        "null value in column \"v\" of relation \"orders\" violates not-null constraint"
    );
    assert_eq!(
        said("constraint \"t4_r1$my index, 2\" failed"),
        "constraint \"my index, 2\" failed"
    );
    assert_eq!(
        said("relation \"t9_r1\" of no known table"),
        "relation \"t9_r1\" of no known table"
    );
    assert_eq!(said("at4_r1 is another word"), "at4_r1 is another word");
    assert_eq!(
        said("constraint k on table items depends on table pgherd_data.t4_r1"),
        "constraint k on table items depends on table orders"
    );
    assert_eq!(
        said("k depends on index pgherd_data.\"t4_r1$orders_pkey\", and on index pgherd_data.\"t4_r1$My key\""),
        "k depends on index orders_pkey, and on index \"My key\""
    );
}

#[test]
fn a_null_key_breaks_not_null() {
    let said = |detail: &str| {
        let mut error = ServerError::new(
            SqlState::CHECK_VIOLATION,
            "no partition of relation \"orders\" found for row",
        )
        .with_detail(detail);
        error.fields_mut().other = vec![(b's', "public".into()), (b't', "orders".into())];
        restore_not_null(&mut error, &snapshot());
        (error.sqlstate(), error.fields().message.clone())
    };
    assert_eq!(
        said("Partition key of the failing row contains (id) = (null)."),
        (
            SqlState::NOT_NULL_VIOLATION,
            "null value in column \"id\" of relation \"orders\" violates not-null constraint".to_owned()
        )
    );
    assert_eq!(
        said("Partition key of the failing row contains (id) = (7).").0,
        SqlState::CHECK_VIOLATION
    );
}

#[test]
fn a_table_and_its_ranges_are_told_once() {
    let told = |message: &str, detail: &str| {
        let mut notice = ServerError::new(SqlState::SUCCESS, message).with_detail(detail);
        restore_parent_names(&mut notice, &snapshot());
        (notice.fields().message.clone(), notice.fields().detail.clone())
    };
    let column = |table: &str| format!("drop cascades to column m of table {table}");
    let two = format!("{}\n{}", column("orders"), column("t4_r1"));
    assert_eq!(told("drop cascades to 2 other objects", &two), (column("orders"), None));
    let three = format!("{two}\ndrop cascades to view v");
    let rest = format!("{}\ndrop cascades to view v", column("orders"));
    assert_eq!(
        told("drop cascades to 3 other objects", &three),
        ("drop cascades to 2 other objects".to_owned(), Some(rest))
    );
    let other = told("cannot drop type mood", "a depends on mood\nb depends on mood");
    assert_eq!(other.1.as_deref(), Some("a depends on mood\nb depends on mood"));
}
