//! A small catalog: three shards, the first of them home.

use pgherd_model::{
    Bound, Column, Epoch, KeyBound, KeyType, Name, Range, RangeId, RangeMap, ShardId, Sharded, Snapshot, Table,
    TableId, TableKind, ThroughView,
};
use std::sync::Arc;

pub fn path() -> Vec<Arc<str>> {
    vec!["public".into()]
}

fn column(number: usize, name: &str, oid: u32) -> Column {
    let type_name = match oid {
        20 => "bigint",
        23 => "integer",
        25 => "text",
        1082 => "date",
        1184 => "timestamp with time zone",
        1114 => "timestamp without time zone",
        1700 => "numeric",
        2950 => "uuid",
        1043 => "character varying",
        _ => "other",
    };
    Column {
        name: name.into(),
        number: number as i16 + 1,
        type_oid: oid,
        type_modifier: -1,
        type_name: type_name.into(),
        not_null: false,
        default: None,
        generated: false,
        identity: None,
    }
}

/// `a int, b text` as `[("a", 23), ("b", 25)]`; the key's columns; the bounds between ranges, each with as many
/// texts as the key has columns (`-` is MINVALUE); the shards of the ranges.
pub fn sharded(
    id: u32,
    name: &str,
    columns: &[(&str, u32)],
    key: &[&str],
    bounds: &[&[&str]],
    shards: &[u32],
) -> Table {
    let columns: Vec<_> = columns
        .iter()
        .enumerate()
        .map(|(i, (n, oid))| column(i, n, *oid))
        .collect();
    let key_types: Vec<_> = key
        .iter()
        .map(|k| KeyType::from_oid(columns.iter().find(|c| c.name == *k).unwrap().type_oid).unwrap())
        .collect();
    let key_oid = columns.iter().find(|c| c.name == key[0]).unwrap().type_oid;
    let mut edges = vec![KeyBound::min(key.len())];
    edges.extend(bounds.iter().map(|bound| {
        let one = |(text, t): (&&str, &KeyType)| match *text {
            "-" => Bound::Min,
            text => Bound::Value(t.parse_text(text).unwrap()),
        };
        KeyBound(bound.iter().zip(&key_types).map(one).collect())
    }));
    edges.push(KeyBound::max(key.len()));
    let ranges = shards.iter().enumerate().map(|(i, shard)| Range {
        id: RangeId(i as u32 + 1),
        from: edges[i].clone(),
        to: edges[i + 1].clone(),
        shard: ShardId(*shard),
        child: Name::new("pgherd_data", &format!("t{id}_r{}", i + 1)),
        declared: false,
    });
    Table {
        name: Name::new("public", name),
        columns,
        kind: TableKind::Sharded(Box::new(Sharded {
            id: TableId(id),
            key: key.iter().map(|k| (*k).to_owned()).collect(),
            key_types,
            ranges: RangeMap::new(ranges.collect()),
            fence: Name::new("pgherd_data", &format!("fence_{id}_5")),
            // Tables with an int key like that of `t` are colocated.
            colocation: match (key, bounds, shards) {
                ([_], [["3"], ["7"]], [1, 2, 3]) if key_oid == 23 => 1,
                _ => id,
            },
            direct: true,
            automatic: true,
            by_default: false,
            fence_number: 5,
            next_range: 100,
            relation: 0,
            through_view: None,
            unique: Vec::new(),
            foreign_keys: Vec::new(),
            is_linked: false,
            acts_on: Vec::new(),
        })),
    }
}

fn change(table: Table, f: impl Fn(&mut Table)) -> Table {
    let mut table = table;
    f(&mut table);
    table
}

fn placed(table: &mut Table, f: impl Fn(&mut Sharded)) {
    if let TableKind::Sharded(sharded) = &mut table.kind {
        f(sharded);
    }
}

fn other(name: &str, columns: &[(&str, u32)], kind: TableKind) -> Table {
    let columns = columns
        .iter()
        .enumerate()
        .map(|(i, (n, oid))| column(i, n, *oid))
        .collect();
    Table {
        name: Name::new("public", name),
        columns,
        kind,
    }
}

/// Declared partitions `p1` [0, 10) on shard 2 and `p2` [20, 30) on shard 3; gaps elsewhere.
fn declared() -> [Table; 3] {
    let parent = change(
        sharded(9, "decl", &[("k", 23), ("v", 25)], &["k"], &[&["10"]], &[2, 3]),
        |table| {
            placed(table, |sharded| {
                let bound = |v: i64| KeyBound(vec![Bound::Value(pgherd_model::KeyValue::Int(v))]);
                let range = |id: u32, from, to, shard| Range {
                    id: RangeId(id),
                    from: bound(from),
                    to: bound(to),
                    shard: ShardId(shard),
                    child: Name::new("public", &format!("p{id}")),
                    declared: true,
                };
                sharded.ranges = RangeMap::new(vec![range(1, 0, 10, 2), range(2, 20, 30, 3)]);
                sharded.automatic = false;
            });
        },
    );
    let partition = |name: &str, range| {
        let kind = TableKind::Partition {
            parent: Name::new("public", "decl"),
            range: RangeId(range),
        };
        other(name, &[("k", 23), ("v", 25)], kind)
    };
    [parent, partition("p1", 1), partition("p2", 2)]
}

/// - `t`, `u`: key int, ranges to 3, 7 and on, on shards 1, 2, 3. `loose` is the same without direct addressing
/// - `c`: key (int, text), bounds (3, m) and (7, MINVALUE)
/// - `tx` text h q, `uu` uuid, `dd` date, `ts` timestamp, `nu` numeric, `vc` varchar(3)
/// - `two`: ranges to 3, 7 and on, on shards 1, 1, 2
/// - `seq`: serial key; `ident`: key int, an identity column; `dflt`: key with default 5
/// - `born`: columns with defaults now(), 'x' and random()
/// - `must`: the key is NOT NULL, ranges on shards 2 and 3; `mdecl` the same with declared partitions
/// - `keyed`: like `t`, with a primary key
/// - `decl` and its partitions `p1`, `p2`; view `tv`; refused `mat`
/// - `other.t` is local
pub fn snapshot() -> Snapshot {
    let b: &[&[&str]] = &[&["3"], &["7"]];
    let ktv = &[("k", 23), ("v", 25), ("n", 23)];
    let mut tables = vec![
        sharded(1, "t", ktv, &["k"], b, &[1, 2, 3]),
        sharded(2, "u", &[("k", 23), ("w", 25), ("m", 20)], &["k"], b, &[1, 2, 3]),
        change(sharded(3, "loose", ktv, &["k"], b, &[1, 2, 3]), |t| {
            placed(t, |s| s.direct = false)
        }),
        sharded(
            4,
            "c",
            &[("a", 23), ("b", 25), ("x", 23)],
            &["a", "b"],
            &[&["3", "m"], &["7", "-"]],
            &[1, 2, 3],
        ),
        sharded(5, "tx", &[("k", 25), ("v", 23)], &["k"], &[&["h"], &["q"]], &[1, 2, 3]),
        sharded(
            6,
            "uu",
            &[("id", 2950), ("v", 23)],
            &["id"],
            &[
                &["55555555-0000-0000-0000-000000000000"],
                &["aaaaaaaa-0000-0000-0000-000000000000"],
            ],
            &[1, 2, 3],
        ),
        sharded(
            7,
            "dd",
            &[("k", 1082), ("v", 23)],
            &["k"],
            &[&["2024-01-01"], &["2024-07-01"]],
            &[1, 2, 3],
        ),
        sharded(
            8,
            "nu",
            &[("k", 1700), ("v", 23)],
            &["k"],
            &[&["3"], &["7.5"]],
            &[1, 2, 3],
        ),
        sharded(10, "two", ktv, &["k"], b, &[1, 1, 2]),
        change(
            sharded(11, "seq", &[("id", 23), ("v", 25)], &["id"], b, &[1, 2, 3]),
            |t| {
                t.columns[0].default = Some("nextval('seq_id_seq'::regclass)".into());
            },
        ),
        change(
            sharded(12, "ident", &[("id", 20), ("k", 23), ("v", 25)], &["k"], b, &[1, 2, 3]),
            |t| {
                t.columns[0].identity = Some(true);
            },
        ),
        change(
            sharded(13, "dflt", &[("k", 23), ("v", 25)], &["k"], b, &[1, 2, 3]),
            |t| {
                t.columns[0].default = Some("5".into());
            },
        ),
        change(
            sharded(
                14,
                "vc",
                &[("k", 1043), ("v", 23)],
                &["k"],
                &[&["h"], &["q"]],
                &[1, 2, 3],
            ),
            |t| {
                t.columns[0].type_modifier = 7;
            },
        ),
        sharded(
            15,
            "ts",
            &[("k", 1114), ("v", 23)],
            &["k"],
            &[&["2024-01-01"], &["2024-07-01"]],
            &[1, 2, 3],
        ),
        sharded(16, "Mixed", &[("Key", 23), ("v", 25)], &["Key"], b, &[1, 2, 3]),
    ];
    let must = |id, name: &str| {
        change(
            sharded(id, name, &[("k", 23), ("v", 25)], &["k"], &[&["5"]], &[2, 3]),
            |t| t.columns[0].not_null = true,
        )
    };
    tables.push(must(17, "must"));
    tables.push(change(
        sharded(
            19,
            "born",
            &[("k", 23), ("at", 1184), ("v", 25), ("r", 20)],
            &["k"],
            b,
            &[1, 2, 3],
        ),
        |t| {
            t.columns[1].default = Some("now()".into());
            t.columns[2].default = Some("'x'::text".into());
            t.columns[3].default = Some("random()".into());
        },
    ));
    tables.push(change(must(18, "mdecl"), |t| placed(t, |s| s.automatic = false)));
    tables.push(change(sharded(21, "keyed", ktv, &["k"], b, &[1, 2, 3]), |t| {
        placed(t, |s| s.unique = vec![("keyed_pkey".into(), vec!["k".into()])])
    }));
    tables.extend(declared());
    let view = TableKind::View {
        stand_in: None,
        read_only: false,
        definition: "SELECT t.k, t.v FROM t".into(),
    };
    tables.push(other("tv", &[("k", 23), ("v", 25)], view));
    let shows = |name: &str, no_insert: Option<&str>| {
        let shown = sharded(1, name, &[("kk", 23), ("v", 25)], &["kk"], b, &[1, 2, 3]);
        let through_view = ThroughView {
            table: Name::new("public", "t"),
            other_names: Vec::new(),
            no_insert: no_insert.map(str::to_owned),
        };
        let table = change(shown, |t| {
            placed(t, |s| {
                s.direct = false;
                s.through_view = Some(through_view.clone());
            })
        });
        TableKind::View {
            stand_in: Some(Arc::new(table)),
            read_only: false,
            definition: "SELECT t.k AS kk, t.v FROM t".into(),
        }
    };
    tables.push(other("sv", &[("kk", 23), ("v", 25)], shows("sv", None)));
    tables.push(other(
        "sv_closed",
        &[("kk", 23), ("v", 25)],
        shows("sv_closed", Some("Why.")),
    ));
    let sums = TableKind::View {
        stand_in: None,
        read_only: true,
        definition: "SELECT sum(t.k) AS k FROM t".into(),
    };
    tables.push(other("sums", &[("k", 20)], sums));
    let reason = "It was made from one shard's rows.".to_owned();
    tables.push(other(
        "mat",
        &[("k", 23)],
        TableKind::Refused {
            reason,
            readable: false,
            watched: false,
            sharded: None,
        },
    ));
    let mut snapshot = Snapshot {
        epoch: Epoch(5),
        shards: vec![ShardId(1), ShardId(2), ShardId(3)],
        ..Snapshot::default()
    };
    for table in tables {
        let entry = (table.name.schema.clone(), Some(Arc::new(table.clone())));
        snapshot
            .relations
            .entry(table.name.name.clone())
            .or_default()
            .push(entry);
    }
    snapshot.relations.get_mut("t").unwrap().push(("other".into(), None));
    snapshot.relations.insert(
        "temp_t".into(),
        vec![(
            "public".into(),
            Some(Arc::new(sharded(20, "temp_t", ktv, &["k"], b, &[1, 2, 3]))),
        )],
    );
    snapshot.unsafe_functions.insert("count_t".into());
    snapshot.note_named_readers();
    snapshot
}
