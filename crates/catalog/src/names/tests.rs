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
