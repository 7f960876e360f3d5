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
        function(
            6,
            "handles",
            "plpgsql",
            "BEGIN EXECUTE q; EXCEPTION WHEN OTHERS THEN NULL; END"
        ),
        function(7, "names", "plpgsql", "BEGIN EXECUTE q || (SELECT a FROM t); END"),
        function(8, "asks", "sql", "SELECT dynamic()"),
        function(9, "asks_both", "sql", "SELECT dynamic(), handles()"),
        function(5, "quoted", "plpgsql", "BEGIN RETURN 1; END"),
    ]);
    let snapshot = load(&format!(", \"functions\": {functions}"));
    for name in ["reads", "calls", "handles", "names", "asks_both", "dblink"] {
        assert!(snapshot.unsafe_functions.contains(name), "{name}");
        assert!(!snapshot.watched_functions.contains(name), "{name}");
    }
    for name in ["dynamic", "asks", "query_to_xml"] {
        assert!(!snapshot.unsafe_functions.contains(name), "{name}");
        assert!(snapshot.watched_functions.contains(name), "{name}");
    }
    for name in ["harmless", "quoted"] {
        assert!(!snapshot.may_reach(name), "{name}");
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
    assert!(kind("m").is_none(), "its rows are its own");
    assert!(matches!(kind("plain"), Some(TableKind::Refused { .. })));
}

#[test]
fn views_of_one_table_row_by_row_have_stand_ins() {
    let column = |number: i16, name: &str, default: Option<&str>| {
        serde_json::json!({"name": name, "number": number, "type_oid": 23,
        "type_modifier": -1, "type_name": "integer", "not_null": false, "default": default, "generated": false, "identity": null})
    };
    let view = |oid: u32,
                name: &str,
                definition: &str,
                columns: serde_json::Value,
                relation: u32,
                shows: serde_json::Value| {
        serde_json::json!({"oid": oid, "schema": "public", "name": name, "materialized": false, "definition": definition,
            "columns": columns, "relations": [relation], "functions": [], "read_only": false,
            "source": {"relation": relation, "columns": shows}})
    };
    let (id, own) = (column(1, "key", None), column(2, "x", Some("7")));
    let views = serde_json::json!([
        view(
            201,
            "over",
            "SELECT",
            serde_json::json!([column(1, "k", None)]),
            200,
            serde_json::json!({"1": 1})
        ),
        view(
            200,
            "v",
            "SELECT",
            serde_json::json!([id, own]),
            100,
            serde_json::json!({"1": 1, "2": 2})
        ),
        view(
            202,
            "hides",
            "SELECT",
            serde_json::json!([column(1, "x", None)]),
            100,
            serde_json::json!({"1": 2})
        ),
        view(
            203,
            "timed",
            "SELECT Now()",
            serde_json::json!([column(1, "key", None)]),
            100,
            serde_json::json!({"1": 1})
        ),
    ]);
    let table_columns = serde_json::json!([column(1, "id", None), column(2, "n", Some("nextval('s'::regclass)"))]);
    let head = HEAD.replace("\"columns\": []", &format!("\"columns\": {table_columns}"));
    let json = format!("{{{head}, \"views\": {views}}}");
    let snapshot = snapshot_from_json(&json, [ShardId(1), ShardId(2)].into_iter()).unwrap();
    let stand_in = |name: &str| {
        let view = snapshot.table(&Name::new("public", name)).unwrap().clone();
        view.placed()
    };
    for (name, key) in [("v", "key"), ("over", "k"), ("hides", "")] {
        let table = stand_in(name);
        let sharded = table.sharded().expect(name);
        assert_eq!((&*table.name.name, sharded.key[0].as_str()), (name, key));
        assert!(!sharded.direct && sharded.fence.name.ends_with("_2"));
    }
    let no_insert = |name: &str| {
        let through = stand_in(name).sharded().unwrap().through_view.clone();
        through.unwrap().no_insert.is_some()
    };
    assert!(!no_insert("v") && !no_insert("over") && !no_insert("hides"));
    let default = |name: &str, column: &str| stand_in(name).column(column).unwrap().default.clone();
    assert_eq!(default("v", "x").as_deref(), Some("7"), "the view's own comes first");
    assert_eq!(default("hides", "x").as_deref(), Some("nextval('s'::regclass)"));
    assert!(stand_in("timed").sharded().is_none());
}

#[test]
fn without_sharded_tables_nothing_is_known() {
    let snapshot = snapshot_from_json(r#"{"epoch": 7}"#, [ShardId(1)].into_iter()).unwrap();
    assert!(snapshot.relations.is_empty() && snapshot.unsafe_functions.is_empty());
    assert_eq!(snapshot.epoch, Epoch(7));
}

#[test]
fn foreign_keys_link_and_their_actions_reach_on() {
    let table = |id: u32, name: &str, keys: &str| {
        format!(
            r#"{{"id": {id}, "oid": {id}00, "schema": "public", "name": "{name}", "automatic": true, "by_default": false, "colocation": 1,
            "fence": 1, "next_range": 1, "columns": [], "key": [{{"name": "id", "type": 23}}], "ranges": [], "unique": [], "direct": true,
            "foreign_keys": [{keys}]}}"#
        )
    };
    let key = |referenced: u32, action: char| {
        format!(
            r#"{{"name": "k", "digest": "d", "referenced": {referenced}, "columns": ["id", "a"], "referenced_columns": ["x", "id"],
            "on_delete": "{action}", "on_update": "a", "deferrable": false}}"#
        )
    };
    let tables = [
        table(1, "tenants", ""),
        table(2, "folders", &format!("{}, {}", key(100, 'c'), key(200, 'n'))),
        table(3, "files", &key(200, 'd')),
        table(4, "notes", &key(300, 'r')),
        table(5, "alone", &key(999, 'c')),
    ];
    let json = format!(r#"{{"epoch": 3, "tables": [{}]}}"#, tables.join(", "));
    let snapshot = snapshot_from_json(&json, [ShardId(1)].into_iter()).unwrap();
    let named = |name: &str| Name::new("public", name);
    let sharded = |name: &str| snapshot.table(&named(name)).unwrap().sharded().unwrap().clone();
    let acts_on = |name: &str| {
        let mut names: Vec<_> = sharded(name).acts_on.iter().map(|n| n.name.to_string()).collect();
        names.sort();
        names.join(" ")
    };
    assert_eq!(acts_on("tenants"), "files folders");
    assert_eq!(acts_on("folders"), "files folders");
    assert_eq!(acts_on("files"), "");
    let linked: Vec<_> = snapshot
        .linked(&named("files"))
        .iter()
        .map(|t| t.name.name.to_string())
        .collect();
    assert_eq!(linked, ["files", "tenants", "folders", "notes"]);
    assert!(sharded("alone").foreign_keys.is_empty());
    let keys = &sharded("files").foreign_keys;
    assert_eq!(keys[0].standing_for(&["id".into()]), Some(vec!["a".into()]));
    assert_eq!(keys[0].standing_for(&["y".into()]), None);
}

#[test]
fn tables_that_were_sharded_by_default_yield_to_functions() {
    let function = |oid: u32, name: &str, body: &str| serde_json::json!({"oid": oid, "name": name, "language": "plpgsql", "body": body, "parts": null});
    let of = |functions: serde_json::Value, head: &str| {
        let triggers = r#"[{"oid": 100, "schema": "public", "table": "t", "name": "g", "function": 7}]"#;
        let text = format!("{{{head}, \"functions\": {functions}, \"triggers\": {triggers}}}");
        let snapshot = snapshot_from_json(&text, [ShardId(1), ShardId(2)].into_iter()).unwrap();
        snapshot
            .yielding
            .into_iter()
            .map(|(name, why)| format!("{}: {why}", name.name))
            .collect::<Vec<_>>()
    };
    let by_default = HEAD.replace("\"by_default\": false", "\"by_default\": true");
    let uses = serde_json::json!([function(1, "uses", "SELECT FROM t")]);
    assert_eq!(of(uses.clone(), &by_default), ["t: function uses uses it"]);
    assert!(of(uses, HEAD).is_empty(), "a user sharded it");
    let dynamic = serde_json::json!([function(1, "uses", "SELECT FROM t; EXECUTE x")]);
    assert!(of(dynamic, &by_default).is_empty(), "it would be refused all the same");
    let other = serde_json::json!([
        function(1, "uses", "SELECT dynamic() FROM t"),
        function(2, "dynamic", "EXECUTE x")
    ]);
    assert!(of(other, &by_default).is_empty(), "through another function too");
    let trigger = serde_json::json!([function(7, "draws", "NEW.id := nextval('s')")]);
    assert_eq!(
        of(trigger, &by_default),
        ["t: the function of its trigger g needs the home shard"]
    );
}

#[test]
fn texts_that_are_held_are_those_that_were_read_before() {
    let document = |version: &str, held: bool| {
        let text = |text: &str| if held { serde_json::Value::Null } else { text.into() };
        let views = serde_json::json!([{"oid": 200, "schema": "public", "name": "v", "materialized": false, "columns": [],
            "relations": [100], "functions": [], "held": held, "version": version, "definition": text("SELECT 1"),
            "source": null, "read_only": held}]);
        let rules = serde_json::json!([{"oid": 300, "schema": "public", "table": "l", "name": "r", "version": version,
            "body": text("INSERT INTO t VALUES (1)")}]);
        let functions = serde_json::json!([{"oid": 400, "name": "f", "language": "sql", "body": text("SELECT count(*) FROM t"),
            "version": version, "parts": null}]);
        format!("{{{HEAD}, \"views\": {views}, \"rules\": {rules}, \"functions\": {functions}}}")
    };
    let mut remembered = Remembered::default();
    let mut load = |version, held| {
        snapshot_with(
            &document(version, held),
            [ShardId(1), ShardId(2)].into_iter(),
            &mut remembered,
        )
    };
    assert!(load("a", true).unwrap().incomplete, "nothing was read yet");
    let whole = load("a", false).unwrap();
    let held = load("a", true).unwrap();
    for snapshot in [&whole, &held] {
        let view = snapshot.table(&Name::new("public", "v")).unwrap();
        assert!(
            matches!(&view.kind, TableKind::View { definition, read_only: false, .. } if definition == "SELECT 1"),
            "{view:?}"
        );
        let ruled = snapshot.table(&Name::new("public", "l")).unwrap();
        assert!(matches!(ruled.kind, TableKind::Refused { .. }), "{ruled:?}");
        assert!(snapshot.unsafe_functions.contains("f"));
    }
    // Held again and again; but not when it is another one.
    assert!(load("a", true).is_ok());
    assert!(load("b", true).unwrap().incomplete);
    assert!(load("a", true).is_ok());
}
