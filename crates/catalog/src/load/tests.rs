use super::*;

const HEAD: &str = r#""epoch": 3, "tables": [{"id": 4, "oid": 100, "schema": "public", "name": "t", "automatic": true,
    "by_default": false, "colocation": 4, "fence": 2, "next_range": 3, "columns": [], "key": [{"name": "id", "type": 23}],
    "ranges": [{"id": 1, "from": ["<"], "to": ["=5"], "shard": 1, "schema": "pgherd_data", "name": "t4_r1", "declared": false},
               {"id": 2, "from": ["=5"], "to": [">"], "shard": 2, "schema": "public", "name": "t_high", "declared": true}],
    "unique": [], "direct": true}]"#;

fn load(more: &str) -> Snapshot {
    snapshot_from_json(&format!("{{{HEAD}{more}}}"), [ShardId(2), ShardId(1)].into_iter()).unwrap()
}

#[test]
fn ranges_fences_and_declared_partitions() {
    let snapshot = load("");
    let table = snapshot.table(&Name::new("public", "t")).unwrap();
    let sharded = table.sharded().unwrap();
    assert_eq!(snapshot.home(), ShardId(1));
    assert_eq!(sharded.fence, Name::new("pgherd_data", "fence_4_2"));
    assert_eq!(
        sharded.ranges.find(&[pgherd_model::KeyValue::Int(5)]).unwrap().shard,
        ShardId(2)
    );
    let partition = snapshot.table(&Name::new("public", "t_high")).unwrap();
    assert!(matches!(
        &partition.kind,
        TableKind::Partition { range: RangeId(2), .. }
    ));
}

#[test]
fn functions_are_unsafe_by_mention_by_call_and_by_dynamic_sql() {
    let function = |oid: u32, name: &str, language: &str, body: &str| serde_json::json!({"oid": oid, "name": name, "language": language, "body": body, "parts": null});
    let functions = serde_json::json!([
        function(1, "reads", "sql", "SELECT count(*) FROM T"),
        function(2, "calls", "sql", "SELECT reads()"),
        function(3, "harmless", "sql", "SELECT 1 FROM treads"),
        function(4, "dynamic", "plpgsql", "BEGIN EXECUTE q; END"),
        function(5, "quoted", "plpgsql", "BEGIN RETURN 1; END"),
    ]);
    let snapshot = load(&format!(", \"functions\": {functions}"));
    for name in ["reads", "calls", "dynamic", "query_to_xml"] {
        assert!(snapshot.unsafe_functions.contains(name), "{name}");
    }
    for name in ["harmless", "quoted"] {
        assert!(!snapshot.unsafe_functions.contains(name), "{name}");
    }
}

#[test]
fn views_are_expanded_and_what_cannot_be_is_refused() {
    let snapshot = load(
        r#", "views": [
        {"oid": 200, "schema": "public", "name": "v", "materialized": false, "definition": "SELECT 1", "columns": [], "relations": [100], "functions": []},
        {"oid": 201, "schema": "public", "name": "w", "materialized": false, "definition": "SELECT 2", "columns": [], "relations": [200], "functions": []},
        {"oid": 202, "schema": "public", "name": "m", "materialized": true, "definition": "SELECT 3", "columns": [], "relations": [201], "functions": []},
        {"oid": 203, "schema": "public", "name": "local", "materialized": false, "definition": "SELECT 4", "columns": [], "relations": [999], "functions": []}],
        "functions": [{"oid": 1, "name": "f", "language": "plpgsql", "body": "insert into w", "parts": null}],
        "triggers": [{"oid": 999, "schema": "public", "table": "plain", "name": "g", "function": 1}]"#,
    );
    let kind = |name: &str| snapshot.table(&Name::new("public", name)).map(|t| t.kind.clone());
    assert!(matches!(kind("v"), Some(TableKind::View { .. })));
    assert!(matches!(kind("w"), Some(TableKind::View { .. })));
    assert!(matches!(kind("m"), Some(TableKind::Refused { .. })));
    assert!(matches!(kind("plain"), Some(TableKind::Refused { .. })));
}

#[test]
fn without_sharded_tables_nothing_is_known() {
    let snapshot = snapshot_from_json(r#"{"epoch": 7}"#, [ShardId(1)].into_iter()).unwrap();
    assert!(snapshot.relations.is_empty() && snapshot.unsafe_functions.is_empty());
    assert_eq!(snapshot.epoch, Epoch(7));
}
