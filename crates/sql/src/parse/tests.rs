use super::*;

/// Splits `text` and shows each statement with its kind and whether sqlparser made a tree of it.
fn check(text: &str, expected: &[&str]) {
    let shown: Vec<_> = parse(text)
        .unwrap()
        .iter()
        .map(|p| {
            let tree = if p.ast.is_some() { "+" } else { "" };
            format!("{}: {}{tree}", p.text(text), kind(&p.kind, text))
        })
        .collect();
    assert_eq!(shown, expected, "{text}");
}

fn kind(kind: &Kind, text: &str) -> String {
    match kind {
        Kind::Ddl(ddl) => {
            let names: Vec<_> = ddl
                .relations
                .iter()
                .map(|r| r.schema.iter().map(|s| format!("{s}.")).collect::<String>() + &r.name)
                .collect();
            let mut out = format!("{:?}({})", ddl.kind, names.join(", "));
            if let Some(object) = &ddl.object {
                out += &format!(" object {}", object.name);
            }
            if let Some(partition) = &ddl.partition {
                out += &format!(" partition {}", partition.name);
            }
            out + if ddl.temporary { " temporary" } else { "" } + if ddl.concurrently { " concurrently" } else { "" }
        }
        Kind::Explain { analyze, inner } => format!("Explain analyze={analyze} [{}]", &text[inner.clone()]),
        Kind::Prepare { name, types, inner } => format!("Prepare {name} {types:?} [{}]", &text[inner.clone()]),
        Kind::Declare { name, hold, inner } => format!("Declare {name} hold={hold} [{}]", &text[inner.clone()]),
        other => format!("{other:?}"),
    }
}

#[test]
fn splits() {
    check("", &[]);
    check(" ; ; -- nothing\n;", &[]);
    check(
        "select 1; select 2;",
        &[
            "select 1: Select { locking: false, writes: false }+",
            "select 2: Select { locking: false, writes: false }+",
        ],
    );
    check(
        "do $$ begin; end $$; begin",
        &[
            "do $$ begin; end $$: Do",
            "begin: Begin { isolation: None, read_only: None, deferrable: None }",
        ],
    );
    check(
        "select E'\\';', 'a;', \"x;\" /* ; /* ; */ */ from t",
        &["select E'\\';', 'a;', \"x;\" /* ; /* ; */ */ from t: Select { locking: false, writes: false }+"],
    );
    let function = "create function f() returns int begin atomic select case when true then 1 end; select 2; end";
    check(
        &format!("{function}; commit"),
        &[
            &format!("{function}: CreateFunction(f)"),
            "commit: Commit { chain: false }",
        ],
    );
    let rule = "create rule r as on insert to t do also (delete from a; delete from b)";
    check(&format!("{rule};"), &[&format!("{rule}: CreateRule(t) object r")]);
    check("select 'open", &["select 'open: Other"]);
}

#[test]
fn transactions() {
    for (text, expected) in [
        (
            "BEGIN WORK",
            "Begin { isolation: None, read_only: None, deferrable: None }",
        ),
        (
            "start transaction isolation level serializable, read only, not deferrable",
            "Begin { isolation: Some(Serializable), read_only: Some(true), deferrable: Some(false) }",
        ),
        (
            "begin isolation level repeatable read read write",
            "Begin { isolation: Some(RepeatableRead), read_only: Some(false), deferrable: None }",
        ),
        ("begin isolation level nonsense", "Other"),
        ("end", "Commit { chain: false }"),
        ("commit work and chain", "Commit { chain: true }"),
        ("abort transaction and no chain", "Rollback { chain: false }"),
        ("rollback to savepoint \"A\"", "RollbackTo(\"A\")"),
        ("rollback work to a", "RollbackTo(\"a\")"),
        ("rollback to savepoint", "RollbackTo(\"savepoint\")"),
        ("release b", "Release(\"b\")"),
        ("savepoint s", "Savepoint(\"s\")"),
        ("savepoint", "Other"),
        ("prepare transaction 'x'", "PrepareTransaction(Some(\"x\"))"),
        ("prepare transaction 'x' y", "Other"),
        ("commit prepared e'x\\x41'", "CommitPrepared(Some(\"xA\"))"),
        ("commit prepared U&'x!0041' uescape '!'", "CommitPrepared(None)"),
        ("commit prepared x", "Other"),
        ("rollback prepared $$x$$", "RollbackPrepared(Some(\"x\"))"),
        (
            "set transaction isolation level read committed",
            "SetTransaction { isolation: Some(ReadCommitted), read_only: None, deferrable: None, session: false, snapshot: None }",
        ),
        ("set transaction", "Other"),
        ("set transaction read only,", "Other"),
        ("begin isolation level", "Other"),
        (
            "begin read only read write",
            "Begin { isolation: None, read_only: Some(false), deferrable: None }",
        ),
        (
            "set session characteristics as transaction read only",
            "SetTransaction { isolation: None, read_only: Some(true), deferrable: None, session: true, snapshot: None }",
        ),
    ] {
        check(text, &[&format!("{text}: {expected}")]);
    }
}

#[test]
fn settings() {
    for (text, expected) in [
        (
            "set search_path to a, \"B\", 'c'",
            "Set { name: \"search_path\", local: false, value: Values([\"a\", \"B\", \"c\"]) }",
        ),
        (
            "set local pgherd.Initial_Bounds = 'int 3,7'",
            "Set { name: \"pgherd.initial_bounds\", local: true, value: Values([\"int 3,7\"]) }",
        ),
        (
            "set session work_mem = -1",
            "Set { name: \"work_mem\", local: false, value: Values([\"-1\"]) }",
        ),
        (
            "set time zone 'UTC'",
            "Set { name: \"timezone\", local: false, value: Values([\"UTC\"]) }",
        ),
        (
            "set time zone local",
            "Set { name: \"timezone\", local: false, value: Default }",
        ),
        (
            "set role = 'x'",
            "Set { name: \"role\", local: false, value: Values([\"x\"]) }",
        ),
        (
            "set role none",
            "Set { name: \"role\", local: false, value: Values([\"none\"]) }",
        ),
        (
            "set local role x",
            "Set { name: \"role\", local: true, value: Values([\"x\"]) }",
        ),
        (
            "set session authorization default",
            "Set { name: \"session_authorization\", local: false, value: Default }",
        ),
        (
            "set names 'utf8'",
            "Set { name: \"client_encoding\", local: false, value: Values([\"utf8\"]) }",
        ),
        ("set x to default", "Set { name: \"x\", local: false, value: Default }"),
        ("set constraints all deferred", "SetConstraints"),
        ("reset all", "Reset(None)"),
        ("reset DateStyle", "Reset(Some(\"datestyle\"))"),
        (
            "show transaction isolation level",
            "Show { name: Some(\"transaction_isolation\") }",
        ),
        ("show all", "Show { name: None }"),
        ("discard temporary", "Discard(\"TEMP\")"),
    ] {
        check(text, &[&format!("{text}: {expected}")]);
    }
}

#[test]
fn queries() {
    for (text, expected) in [
        ("values (1), (2)", "Select { locking: false, writes: false }+"),
        ("(select 1) union select 2", "Select { locking: false, writes: false }+"),
        (
            "select * from (select * from t for no key update) x",
            "Select { locking: true, writes: false }+",
        ),
        (
            "with a as (delete from t returning *) select * from a",
            "Select { locking: false, writes: true }+",
        ),
        (
            "with a as (select 1), b(x) as not materialized (select 2) insert into t select * from a",
            "Insert+",
        ),
        ("with a as (select 1) update t set x = 1", "Update+"),
        (
            "with insert as (select 1) select * from insert",
            "Select { locking: false, writes: false }+",
        ),
        ("select (update) from t", "Select { locking: false, writes: false }+"),
        ("select 1 into temp table x", "CreateTableAs(x) temporary+"),
        ("merge into t using s on t.a = s.a when matched then delete", "Merge+"),
        (
            "merge into t using s on true when matched then do nothing when not matched then do nothing",
            "Merge+",
        ),
        (
            "merge into t using s on true when not matched and s.a = 1 then insert default values \
             when not matched then insert (a) overriding user value values (1)",
            "Merge+",
        ),
        ("call f(1)", "Call"),
        (
            "call pgherd.split('t', at => (1, 'x'), to => 'shard3', n := -5, a => array['x', null], d => date '2024-01-01', e => 1 + 1)",
            "CallPgherd { procedure: \"split\", arguments: [(None, Text(\"t\")), (Some(\"at\"), Row([Number(\"1\"), Text(\"x\")])), \
          (Some(\"to\"), Text(\"shard3\")), (Some(\"n\"), Number(\"-5\")), (Some(\"a\"), Array([Text(\"x\"), Null])), \
          (Some(\"d\"), Text(\"2024-01-01\")), (Some(\"e\"), Other(\"1 + 1\"))] }",
        ),
        ("explain select 1", "Explain analyze=false [select 1]"),
        (
            "explain analyze verbose delete from t",
            "Explain analyze=true [delete from t]",
        ),
        (
            "explain (analyze off, costs off) select 1",
            "Explain analyze=false [select 1]",
        ),
        ("explain (verbose, analyze) select 1", "Explain analyze=true [select 1]"),
        (
            "prepare p (int, numeric(10,2)) as select $1",
            "Prepare p [\"int\", \"numeric(10,2)\"] [select $1]",
        ),
        ("execute p(1)", "Execute(\"p\")"),
        ("deallocate prepare p", "Deallocate(Some(\"p\"))"),
        ("deallocate all", "Deallocate(None)"),
        (
            "declare c no scroll cursor with hold for select 1",
            "Declare c hold=true [select 1]",
        ),
        ("fetch 10 from c", "Fetch { name: \"c\", moves: false }"),
        ("move forward all in \"C\"", "Fetch { name: \"C\", moves: true }"),
        ("close all", "Close(None)"),
        ("listen a", "Listen(\"a\")"),
        ("unlisten *", "Unlisten(None)"),
        ("notify a, 'x'", "Notify(\"a\")"),
        (
            "create database x with owner = y template template0",
            "Database(Create { name: \"x\", template: Some(\"template0\") })",
        ),
        (
            "drop database if exists \"X\" with (force)",
            "Database(Drop { name: \"X\", if_exists: true, force: true })",
        ),
        ("alter database x owner to y", "Database(Alter { name: \"x\" })"),
        (
            "alter database x rename to y",
            "Database(Move { name: \"x\", to: Some(\"y\") })",
        ),
        ("selec 1", "Other"),
    ] {
        check(text, &[&format!("{text}: {expected}")]);
    }
}

#[test]
fn schema_change() {
    for (text, expected) in [
        (
            "create table if not exists s.\"T\" (a int) partition by range (a)",
            "CreateTable(s.T)+",
        ),
        ("create temp table x as select 1", "CreateTableAs(x) temporary+"),
        (
            "create table p1 partition of s.t for values from (1) to (2)",
            "CreateTable(p1) partition t+",
        ),
        (
            "create unique index concurrently on only t (a)",
            "CreateIndex(t) concurrently",
        ),
        ("create index i on s.t (a)", "CreateIndex(s.t) object i+"),
        ("create or replace view v as select 1", "CreateView(v)+"),
        ("create materialized view m as select 1", "CreateMaterializedView(m)+"),
        (
            "create trigger g before insert on t for each row execute function f()",
            "CreateTrigger(t) object g+",
        ),
        ("alter table only s.t add column b int", "AlterTable(s.t)+"),
        (
            "alter table t detach partition p concurrently",
            "AlterTable(t) partition p concurrently",
        ),
        ("drop table if exists a, s.b cascade", "DropTable(a, s.b)+"),
        ("drop index concurrently i", "DropIndex(i) concurrently"),
        ("truncate only a *, b", "Truncate(a, b)"),
        ("comment on column s.t.c is 'x'", "Comment(s.t)"),
        ("comment on table t is 'x'", "Comment(t)+"),
        ("grant select (a), update on t, u to public", "Grant(t, u)+"),
        ("grant usage on schema s to public", "Grant()+"),
        ("revoke all on all tables in schema s from public", "Revoke()+"),
        ("create policy p on t using (true)", "CreatePolicy(t) object p+"),
        ("create statistics st on a, b from t", "CreateStatistics(t) object st"),
        ("alter system set x = 1", "WholeServer"),
        (
            "refresh materialized view concurrently m",
            "RefreshMaterializedView(m) concurrently",
        ),
        (
            "vacuum full analyze t",
            "Vacuum([ObjectName { schema: None, name: \"t\", span: 20..21 }])",
        ),
        (
            "lock table t, u in share mode",
            "Lock([ObjectName { schema: None, name: \"t\", span: 11..12 }, ObjectName { schema: None, name: \"u\", span: 14..15 }])",
        ),
    ] {
        let statements = parse(text).unwrap();
        let shown = kind(&statements[0].kind, text);
        // Whether sqlparser has the grammar is its own affair here.
        assert_eq!(shown, expected.trim_end_matches('+'), "{text}");
    }
}

#[test]
fn copies() {
    let shape = |text: &str| match parse(text).unwrap().remove(0).kind {
        Kind::Copy(shape) => {
            let options = text[shape.options.clone()].to_owned();
            format!(
                "{:?} {:?} from={} {:?} {:?} [{options}] {:?} where={}",
                shape.source, shape.columns, shape.from, shape.target, shape.format, shape.option_list, shape.has_where
            )
        }
        other => format!("{other:?}"),
    };
    assert_eq!(
        shape("copy s.t (a, \"B\") from stdin with (format csv, header, null 'x')"),
        "Table(ObjectName { schema: Some(\"s\"), name: \"t\", span: 5..8 }) Some([\"a\", \"B\"]) from=true Client Csv \
         [with (format csv, header, null 'x')] [(\"format\", \"csv\"), (\"header\", \"\"), (\"null\", \"x\")] where=false"
    );
    assert_eq!(shape("copy (select 1) from stdin"), "Other");
    assert_eq!(
        shape("copy (select 1) to stdout csv delimiter as ';'"),
        "Query(6..14) None from=false Client Csv [csv delimiter as ';'] [(\"format\", \"csv\"), (\"delimiter\", \";\")] where=false"
    );
    assert_eq!(
        shape("copy binary t to '/tmp/x'"),
        "Table(ObjectName { schema: None, name: \"t\", span: 12..13 }) None from=false File Binary [] [] where=false"
    );
    assert_eq!(shape("copy t"), "Other");
}

#[test]
fn tree_spans_are_bytes() {
    use sqlparser::ast::Spanned;
    let text = "select 'ä',\n  x from größe";
    let parsed = parse(text).unwrap();
    let Some(Statement::Query(query)) = parsed[0].ast.as_deref() else {
        panic!()
    };
    let from = &query.body.as_select().unwrap().from[0].relation;
    let span = from.span();
    assert_eq!(
        &text[span.start.column as usize - 1..span.end.column as usize - 1],
        "größe"
    );
}

#[test]
fn parentheses_in_a_row_take_no_time() {
    let begun = std::time::Instant::now();
    for (before, inside, behind) in [
        ("SELECT a FROM ", "t", " WHERE a = 1"),
        ("SELECT ", "a", " FROM t WHERE a = 1"),
        ("SELECT a FROM t WHERE a IN ", "1, 2", ""),
        ("SELECT a FROM t WHERE ", "a = 1 AND b", " LIKE 'x'"),
        ("", "SELECT a FROM t", " UNION SELECT 1"),
        ("INSERT INTO t VALUES ", "1, 2", ""),
    ] {
        let text = format!("{before}{}{inside}{}{behind}", "(".repeat(35), ")".repeat(35));
        assert_eq!(parse(&text).expect("short").len(), 1, "{text}");
    }
    assert!(
        begun.elapsed() < std::time::Duration::from_secs(5),
        "{:?}",
        begun.elapsed()
    );
    let tree = |text: &str| parse(text).expect(text)[0].ast.as_ref().map(|tree| tree.to_string());
    assert_eq!(tree("SELECT ((((a)))) FROM t"), tree("SELECT ((a)) FROM t"));
    assert_eq!(
        tree("SELECT a IN ((((1, 2)))) FROM t"),
        tree("SELECT a IN ((1, 2)) FROM t")
    );
}
