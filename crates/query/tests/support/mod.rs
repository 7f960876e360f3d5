//! Three shards whose tables lie in ranges made by hand, and the same tables whole in another database: what a
//! statement returns must be the same.
#![allow(dead_code, missing_docs, reason = "each test file uses a part")]

use bytes::{Buf, Bytes, BytesMut};
use pgherd_local_cluster::{LocalCluster, SERVICE_ROLE, SUPERUSER};
use pgherd_model::{
    Bound, Column, Epoch, KeyBound, KeyType, KeyValue, Name, Range, RangeId, RangeMap, ServerError, ShardId, Sharded,
    Snapshot, Table, TableId, TableKind,
};
use pgherd_query::{Engine, Limits, Statement, describe, explain, select};
use pgherd_shards::{Backend, Identity, Options, ShardConfig, Shards, parse_data_row};
use pgherd_transaction::{CommitIdentity, Coordinator, Isolation, Mode, Transaction};
use std::collections::BTreeMap;
use std::sync::Arc;

pub const SHARDS: usize = 3;
/// How many statements of `plan.sql` are on tier 2's list; those behind fall to tier 3.
pub const PLANNED: usize = 40;

pub struct Fixture {
    pub cluster: LocalCluster,
    pub shards: Arc<Shards>,
    pub snapshot: Snapshot,
    pub engine: Engine,
    pub who: Identity,
    /// of [`Fixture::transaction`]
    pub isolation: Option<Isolation>,
    coordinator: Arc<Coordinator>,
    plain: Backend,
    tables: u32,
}

/// What a statement returned, as lines.
pub type Answer = Result<Vec<String>, String>;

impl Fixture {
    pub async fn start() -> Self {
        let cluster = LocalCluster::ephemeral(SHARDS).await.expect("cluster");
        let configs = cluster.shards().iter().enumerate().map(|(i, server)| ShardConfig {
            id: ShardId(i as u32 + 1),
            name: server.name().to_owned(),
            host: server.socket_dir().display().to_string(),
            port: server.port(),
            tls: None,
        });
        let shards = Shards::new(Options::new(configs.collect(), SERVICE_ROLE));
        let who = Identity::new(SUPERUSER, "postgres");
        let mut home = shards.checkout(ShardId(1), &who).await.expect("home");
        home.simple("CREATE DATABASE plain").await.expect("database");
        let plain = shards
            .checkout(ShardId(1), &Identity::new(SUPERUSER, "plain"))
            .await
            .expect("plain");
        pgherd_catalog::install(&shards, "postgres", "test", "secret")
            .await
            .expect("install");
        let identity = CommitIdentity {
            cluster: "test".into(),
            gateway: "gateway".into(),
            incarnation: 1,
            secret: "secret".into(),
        };
        let coordinator = Coordinator::open(shards.clone(), "postgres", identity)
            .await
            .expect("coordinator");
        Self {
            coordinator,
            cluster,
            shards,
            snapshot: Snapshot {
                epoch: Epoch(1),
                shards: (1..=SHARDS as u32).map(ShardId).collect(),
                ..Snapshot::default()
            },
            engine: Engine::new(Limits::default()).expect("engine"),
            who,
            plain,
            tables: 0,
            isolation: None,
        }
    }

    pub async fn on(&self, shard: u32, sql: &str) {
        let mut backend = self.shards.checkout(ShardId(shard), &self.who).await.expect("checkout");
        backend.simple(sql).await.unwrap_or_else(|e| panic!("{sql}: {e}"));
    }

    pub async fn on_shards(&mut self, sql: &str) {
        for shard in 1..=SHARDS as u32 {
            self.on(shard, sql).await;
        }
    }

    pub async fn on_plain(&mut self, sql: &str) {
        self.plain.simple(sql).await.unwrap_or_else(|e| panic!("{sql}: {e}"));
    }

    /// On every shard and in the plain database.
    pub async fn everywhere(&mut self, sql: &str) {
        self.on_shards(sql).await;
        self.on_plain(sql).await;
    }

    /// A table on the home shard.
    pub async fn local(&mut self, sql: &str) {
        self.on(1, sql).await;
        self.on_plain(sql).await;
    }

    /// A table split at `bounds` of its int key; range `i` lies on shard `i % 3 + 1`.
    pub async fn sharded(&mut self, name: &str, columns: &str, key: &str, bounds: &[i64]) {
        self.tables += 1;
        let id = self.tables;
        self.on_plain(&format!("CREATE TABLE {name} ({columns})")).await;
        self.on_shards(&format!(
            "CREATE TABLE {name} ({columns}) PARTITION BY RANGE ({key}); CREATE TABLE pgherd_data.fence_{id}_1 ()"
        ))
        .await;
        let value = |i: usize| Bound::Value(KeyValue::Int(bounds[i]));
        let mut ranges = Vec::new();
        for i in 0..=bounds.len() {
            let from = if i == 0 { Bound::Min } else { value(i - 1) };
            let to = if i == bounds.len() { Bound::Max } else { value(i) };
            let shard = (i % SHARDS) as u32 + 1;
            self.on(
                shard,
                &format!("CREATE TABLE pgherd_data.t{id}_r{i} PARTITION OF {name} FOR VALUES FROM ({from}) TO ({to})"),
            )
            .await;
            ranges.push(Range {
                id: RangeId(i as u32),
                from: KeyBound(vec![from]),
                to: KeyBound(vec![to]),
                shard: ShardId(shard),
                child: Name::new("pgherd_data", &format!("t{id}_r{i}")),
                declared: false,
            });
        }
        let kind = TableKind::Sharded(Box::new(Sharded {
            id: TableId(id),
            key: vec![key.to_owned()],
            key_types: vec![KeyType::Int],
            ranges: RangeMap::new(ranges),
            fence: Name::new("pgherd_data", &format!("fence_{id}_1")),
            colocation: id,
            direct: true,
            automatic: true,
            through_view: None,
            unique: Vec::new(),
            foreign_keys: Vec::new(),
            is_linked: false,
            acts_on: Vec::new(),
            by_default: false,
            fence_number: 1,
            next_range: bounds.len() as u32 + 1,
            relation: 0,
        }));
        self.known(name, kind).await;
    }

    /// Statements over any number of rows are planned in stages from now on, in one snapshot per transaction.
    pub fn plan_in_stages(&mut self) {
        self.isolation = Some(Isolation::RepeatableRead);
        self.engine = Engine::new(Limits {
            staged_from_rows: 0,
            ..Limits::default()
        })
        .expect("engine");
    }

    /// Joins are planned however few rows they have from now on.
    pub fn plan_joins(&mut self) {
        self.engine = Engine::new(Limits {
            few_rows: 0,
            ..Limits::default()
        })
        .expect("engine");
    }

    /// Says that two tables, whose bounds are the same, stay together.
    pub fn colocate(&mut self, name: &str, with: &str) {
        let placement = |snapshot: &Snapshot, name: &str| {
            let table = snapshot.table(&Name::new("public", name)).expect("a table");
            (**table).clone()
        };
        let number = placement(&self.snapshot, with).sharded().expect("sharded").colocation;
        let mut table = placement(&self.snapshot, name);
        if let TableKind::Sharded(sharded) = &mut table.kind {
            sharded.colocation = number;
        }
        let entries = self.snapshot.relations.get_mut(name).expect("a relation");
        *entries = vec![("public".into(), Some(Arc::new(table)))];
    }

    /// A view over sharded tables.
    pub async fn view(&mut self, name: &str, definition: &str) {
        self.everywhere(&format!("CREATE VIEW {name} AS {definition}")).await;
        let mut home = self.shards.checkout(ShardId(1), &self.who).await.expect("home");
        let sql = format!("SET search_path = ''; SELECT pg_get_viewdef('public.{name}'::regclass); RESET search_path");
        let definition = home.simple(&sql).await.expect("viewdef")[1]
            .text(0, 0)
            .expect("definition")
            .to_owned();
        self.known(
            name,
            TableKind::View {
                definition,
                stand_in: None,
                read_only: false,
            },
        )
        .await;
    }

    async fn known(&mut self, name: &str, kind: TableKind) {
        let mut home = self.shards.checkout(ShardId(1), &self.who).await.expect("home");
        let sql = format!(
            "SELECT attname, attnum, atttypid, atttypmod, format_type(atttypid, atttypmod), attnotnull, attgenerated \
             FROM pg_attribute WHERE attrelid = '{name}'::regclass AND attnum > 0 AND NOT attisdropped ORDER BY attnum"
        );
        let results = home.simple(&sql).await.expect("columns");
        let text = |row, column| results[0].text(row, column).expect("not null");
        let columns = (0..results[0].rows.len())
            .map(|r| Column {
                name: text(r, 0).to_owned(),
                number: text(r, 1).parse().expect("number"),
                type_oid: text(r, 2).parse().expect("oid"),
                type_modifier: text(r, 3).parse().expect("modifier"),
                type_name: text(r, 4).to_owned(),
                not_null: text(r, 5) == "t",
                default: None,
                generated: text(r, 6) == "s",
                identity: None,
            })
            .collect();
        let table = Table {
            name: Name::new("public", name),
            columns,
            kind,
        };
        let entry = ("public".into(), Some(Arc::new(table)));
        self.snapshot.relations.entry(name.into()).or_default().push(entry);
    }

    /// Inserts rows, given as `(…)`, into the plain table and into the range of each.
    pub async fn insert(&mut self, name: &str, rows: &[(i64, String)]) {
        let Some((_, Some(table))) = self.snapshot.relations[name].first() else {
            panic!("{name} is not sharded")
        };
        let ranges = table.sharded().expect("sharded").ranges.clone();
        for chunk in rows.chunks(500) {
            let list: Vec<_> = chunk.iter().map(|(_, row)| row.as_str()).collect();
            self.on_plain(&format!("INSERT INTO {name} VALUES {}", list.join(",")))
                .await;
        }
        for range in ranges.ranges() {
            let own = |key: i64| ranges.find(&[KeyValue::Int(key)]).map(|r| r.id) == Some(range.id);
            let list: Vec<_> = rows
                .iter()
                .filter(|(k, _)| own(*k))
                .map(|(_, row)| row.as_str())
                .collect();
            for chunk in list.chunks(500) {
                self.on(
                    range.shard.0,
                    &format!("INSERT INTO {} VALUES {}", range.child, chunk.join(",")),
                )
                .await;
            }
        }
    }

    pub fn transaction(&self) -> Transaction {
        let mode = Mode {
            implicit: true,
            isolation: self.isolation,
            ..Mode::default()
        };
        self.coordinator.begin(self.who.clone(), mode)
    }

    /// Our answer in text format.
    pub async fn ours(&self, sql: &str, parameters: &[Option<&str>]) -> Answer {
        let mut transaction = self.transaction();
        let answer = self.ours_in(&mut transaction, sql, parameters, 0).await;
        transaction.rollback().await.expect("participants can be used again");
        answer.map_err(|e| {
            eprintln!("{sql}\n  {e}");
            e.sqlstate().to_string()
        })
    }

    /// What other shards call types of parameters that users have made.
    async fn types_elsewhere(&self, types: &[u32]) -> BTreeMap<(ShardId, u32), u32> {
        let mut elsewhere = BTreeMap::new();
        for &own in types.iter().filter(|own| **own >= 16384) {
            let mut home = self.shards.checkout(ShardId(1), &self.who).await.expect("home");
            let named = home
                .simple(&format!("SELECT {own}::regtype::text"))
                .await
                .expect("its name");
            let name = named[0].text(0, 0).expect("its name").to_owned();
            for shard in [ShardId(2), ShardId(3)] {
                let mut other = self.shards.checkout(shard, &self.who).await.expect("a shard");
                let sql = format!("SELECT to_regtype('{name}')::oid::text");
                let found = other.simple(&sql).await.expect("its number");
                let number = found[0].text(0, 0).and_then(|n| n.parse().ok()).expect("its number");
                elsewhere.insert((shard, own), number);
            }
        }
        elsewhere
    }

    pub async fn ours_in(
        &self,
        transaction: &mut Transaction,
        sql: &str,
        parameters: &[Option<&str>],
        format: i16,
    ) -> Result<Vec<String>, ServerError> {
        let parsed = pgherd_sql::parse(sql)?.remove(0);
        let ast = parsed.ast.as_deref().unwrap_or_else(|| panic!("no tree: {sql}"));
        let home = transaction.participant(ShardId(1)).await.map_err(ServerError::from)?;
        let description = describe(home, sql, &[]).await?;
        let parameters: Vec<_> = parameters
            .iter()
            .map(|p| (false, p.map(|p| Bytes::copy_from_slice(p.as_bytes()))))
            .collect();
        let types_elsewhere = self.types_elsewhere(&description.parameter_types).await;
        let search_path = ["public".into()];
        let statement = Statement {
            text: sql,
            ast,
            parameter_types: &description.parameter_types,
            parameters: &parameters,
            result_formats: &[format],
            search_path: &search_path,
            snapshot: &self.snapshot,
            types_elsewhere: &types_elsewhere,
            settings_sql: "",
            alone: false,
            ends: false,
            told_by_epoch: false,
            schema_is_own: false,
        };
        let columns = description.columns.unwrap_or_default();
        let mut rows = select(statement, &columns, transaction, &self.engine).await?;
        let mut lines = Vec::new();
        while let Some(batch) = rows.next().await? {
            let before = lines.len();
            lines_of(batch.bytes, &mut lines);
            assert_eq!(lines.len() - before, batch.rows, "a batch counts its rows");
        }
        Ok(lines)
    }

    /// Tier, what is done with the rows, and the shards' SQL.
    pub async fn explain(&self, sql: &str) -> Vec<String> {
        let explained = self.explained(sql).await;
        let tier = explained.tier[..1].to_uppercase() + &explained.tier[1..];
        let mut lines = vec![format!("{tier}: {}", explained.combine)];
        for fragment in &explained.fragments {
            assert!(
                !fragment.plan.is_empty(),
                "{sql}: the shard has no plan for {}",
                fragment.sql
            );
            lines.push(format!("  ->  Shard {}: {}", fragment.shard, fragment.sql));
        }
        lines
    }

    /// The steps of a gather in stages, with the SQL of each.
    pub async fn explain_steps(&self, sql: &str) -> Vec<String> {
        let explained = self.explained(sql).await;
        let step =
            |f: &pgherd_query::ExplainedFragment| format!("{}: {}", f.relation.as_deref().unwrap_or_default(), f.sql);
        explained.fragments.iter().map(step).collect()
    }

    async fn explained(&self, sql: &str) -> pgherd_query::Explained {
        let parsed = pgherd_sql::parse(sql).expect(sql).remove(0);
        let mut home = self.shards.checkout(ShardId(1), &self.who).await.expect("home");
        let columns = describe(&mut home, sql, &[])
            .await
            .expect(sql)
            .columns
            .unwrap_or_default();
        let search_path = ["public".into()];
        let statement = Statement {
            text: sql,
            ast: parsed.ast.as_deref().expect(sql),
            parameter_types: &[],
            parameters: &[],
            result_formats: &[],
            search_path: &search_path,
            snapshot: &self.snapshot,
            types_elsewhere: &Default::default(),
            settings_sql: "",
            alone: false,
            ends: false,
            told_by_epoch: false,
            schema_is_own: false,
        };
        let mut transaction = self.transaction();
        let explained = explain(statement, &columns, "EXPLAIN ", &mut transaction, &self.engine)
            .await
            .expect(sql);
        transaction.rollback().await.expect("participants can be used again");
        explained
    }

    /// PostgreSQL's rows in binary.
    pub async fn theirs_binary(&self, sql: &str) -> Vec<String> {
        use postgres_protocol::message::frontend;
        let who = Identity::new(SUPERUSER, "plain");
        let mut plain = self.shards.checkout(ShardId(1), &who).await.expect("plain");
        let out = plain.outbox();
        frontend::parse("", sql, [], out).expect(sql);
        let nothing: [Option<&str>; 0] = [];
        let bound = frontend::bind("", "", [], nothing, |_, _| Ok(postgres_protocol::IsNull::Yes), [1], out);
        assert!(bound.is_ok(), "{sql}");
        frontend::execute("", 0, out).expect(sql);
        frontend::sync(out);
        plain.expect_ready();
        plain.flush().await.expect(sql);
        let mut lines = Vec::new();
        while plain.is_awaiting() {
            let message = plain.next_message().await.expect(sql);
            match message.tag {
                b'D' => lines.push(line(&parse_data_row(message.body))),
                b'E' => panic!("{sql}: {}", ServerError::from_body(&message.body)),
                _ => {}
            }
        }
        lines
    }

    /// PostgreSQL's count and rows for an INSERT.
    pub async fn plain_insert(&mut self, sql: &str) -> Result<(u64, Vec<String>), String> {
        let results = self
            .plain
            .simple(sql)
            .await
            .map_err(|e| ServerError::from(e).sqlstate().to_string())?;
        let count = results[0]
            .tag
            .rsplit(' ')
            .next()
            .and_then(|n| n.parse().ok())
            .expect("a count");
        Ok((count, results[0].rows.iter().map(|row| line(row)).collect()))
    }

    /// Tells the catalog of a default.
    pub fn set_default(&mut self, table: &str, column: &str, default: &str) {
        let entry = self.snapshot.relations.get_mut(table).expect(table);
        let mut changed = (**entry[0].1.as_ref().expect(table)).clone();
        let column = changed.columns.iter_mut().find(|c| c.name == column).expect(column);
        column.default = Some(default.to_owned());
        entry[0].1 = Some(Arc::new(changed));
    }

    /// PostgreSQL's answer.
    pub async fn theirs(&mut self, sql: &str, parameters: &[Option<&str>]) -> Answer {
        let rows = self
            .plain
            .query(sql, parameters)
            .await
            .map_err(|e| ServerError::from(e).sqlstate().to_string())?;
        Ok(rows.iter().map(|row| line(row)).collect())
    }

    /// Every statement of `tests/queries/<file>`; all that differ are shown.
    pub async fn check_file(&mut self, file: &str) {
        let mut differences = Vec::new();
        for sql in statements(file) {
            differences.extend(self.difference(&sql, &[]).await);
        }
        assert!(
            differences.is_empty(),
            "{} statements differ\n\n{}",
            differences.len(),
            differences.join("\n\n")
        );
    }

    /// Both answers must be the same, in order where the statement orders; else what differs.
    pub async fn difference(&mut self, sql: &str, parameters: &[Option<&str>]) -> Option<String> {
        let mut theirs = self.theirs(sql, parameters).await;
        let mut ours = self.ours(sql, parameters).await;
        // An ORDER BY inside parentheses orders nothing outside.
        if !sql.rsplit(')').next().is_some_and(|end| end.contains("ORDER BY")) {
            ours.iter_mut().for_each(|lines| lines.sort());
            theirs.iter_mut().for_each(|lines| lines.sort());
        }
        if ours == theirs {
            return None;
        }
        let show = |answer: &Answer| match answer {
            Err(state) => format!("ERROR {state}"),
            Ok(lines) => format!(
                "{} rows\n    {}",
                lines.len(),
                lines[..lines.len().min(4)].join("\n    ")
            ),
        };
        Some(format!(
            "{sql}\n  ours: {}\n  PostgreSQL: {}",
            show(&ours),
            show(&theirs)
        ))
    }
}

/// The statements of `tests/queries/<file>`, one a line.
pub fn statements(file: &str) -> Vec<String> {
    let path = format!("{}/tests/queries/{file}", env!("CARGO_MANIFEST_DIR"));
    let text = std::fs::read_to_string(&path).expect(&path);
    let lines = text.lines().filter(|line| !line.is_empty() && !line.starts_with("--"));
    lines.map(str::to_owned).collect()
}

fn line(row: &[Option<Bytes>]) -> String {
    let values = row.iter().map(|v| match v {
        Some(v) => String::from_utf8_lossy(v).into_owned(),
        None => "∅".to_owned(),
    });
    values.collect::<Vec<_>>().join(" | ")
}

pub fn lines_of(mut bytes: BytesMut, lines: &mut Vec<String>) {
    while bytes.len() >= 5 {
        assert_eq!(bytes.get_u8(), b'D');
        let length = bytes.get_u32() as usize - 4;
        lines.push(line(&parse_data_row(bytes.split_to(length).freeze())));
    }
    assert!(bytes.is_empty(), "batches hold whole messages");
}
