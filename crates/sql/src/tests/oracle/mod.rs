//! PostgreSQL as the judge: random statements run as they are on a database that has all rows, and as routed on
//! databases that have one shard's rows each. Whatever is routed must give the same rows.

mod generate;
mod server;

use super::fixture::{path, snapshot};
use crate::{Part, Route, analyze, parse};
use generate::Generator;
use pgherd_model::{Snapshot, Table};
use server::{Answer, Server};

/// Statements per run. The seed is fixed, so a failure comes again; PGHERD_SEED gives others.
const STATEMENTS: usize = 2500;
const SEED: u64 = 20_261_122;

const TABLES: [&str; 5] = ["t", "u", "c", "tx", "two"];

fn column_list(table: &Table) -> String {
    let columns: Vec<_> = table
        .columns
        .iter()
        .map(|c| format!("{} {}", c.name, c.type_name))
        .collect();
    columns.join(", ")
}

/// All rows of a table as VALUES.
fn rows(table: &str) -> String {
    let int = |v: usize| {
        if v % 10 == 9 {
            "NULL".to_owned()
        } else {
            (v % 10).to_string()
        }
    };
    let word = |v: usize| ["'a'", "'h'", "'q'", "NULL", "'5'"][v % 5];
    let row = |i: usize| match table {
        "t" | "two" => format!("({i}, {}, {})", word(i), int(i * 7)),
        "u" => format!("({}, {}, {})", i % 9, word(i * 3), int(i * 3)),
        "c" => format!("({i}, {}, {})", ["'a'", "'m'", "'z'"][i % 3], int(i)),
        "tx" => format!("('{}', {})", ["a", "h", "hz", "p", "q", "z"][i % 6], int(i)),
        _ => format!("({i}, {}, {})", int(i * 3), word(i)),
    };
    let count = if table == "u" { 14 } else { 10 };
    (0..count).map(row).collect::<Vec<_>>().join(", ")
}

/// One database with all rows, and one per shard: local tables only on the first.
fn fill(server: &Server, snapshot: &Snapshot) {
    let local = format!(
        "CREATE TABLE loc (id int, k int, s text); INSERT INTO loc VALUES {};",
        rows("loc")
    );
    // The database with everything is first, and has all ranges.
    let mut databases = [local.clone(), local, String::new(), String::new()];
    for name in TABLES {
        let table = snapshot.relations[name][0].1.as_ref().unwrap();
        let sharded = table.sharded().unwrap();
        let (columns, key) = (column_list(table), sharded.key.join(", "));
        for (i, sql) in databases.iter_mut().enumerate() {
            *sql += &format!(
                "CREATE SCHEMA IF NOT EXISTS pgherd_data; CREATE TABLE {name} ({columns}) PARTITION BY RANGE ({key});"
            );
            *sql += &format!(
                "CREATE TABLE staging ({columns}); INSERT INTO staging VALUES {};",
                rows(name)
            );
            let mine = sharded
                .ranges
                .ranges()
                .iter()
                .filter(|r| i == 0 || r.shard.0 as usize == i);
            for range in mine {
                *sql += &format!(
                    "CREATE TABLE {child} PARTITION OF {name} FOR VALUES FROM ({from}) TO ({to}); \
                     DO $$ DECLARE r staging; BEGIN FOR r IN SELECT * FROM staging LOOP \
                     BEGIN INSERT INTO {child} VALUES (r.*); EXCEPTION WHEN check_violation THEN NULL; END; END LOOP; END $$;",
                    child = range.child,
                    from = range.from,
                    to = range.to,
                );
            }
            *sql += "DROP TABLE staging;";
        }
    }
    for (i, sql) in databases.iter().enumerate() {
        server.database(&database(i), sql);
    }
}

/// The database of a shard; 0 is the one with everything.
fn database(shard: usize) -> String {
    match shard {
        0 => "everything".into(),
        shard => format!("shard{shard}"),
    }
}

/// A statement whose rows come back as one sorted text; what it changes is rolled back.
fn wrapped(sql: &str, changes: bool) -> String {
    let rows = "SELECT coalesce(string_agg(q::text, E'\\n' ORDER BY q::text COLLATE \"C\"), '')";
    match changes {
        true => format!("BEGIN; WITH q AS ({sql}) {rows} FROM q; ROLLBACK;"),
        false => format!("{rows} FROM ({sql}) q;"),
    }
}

struct Case {
    sql: String,
    changes: bool,
    parts: Vec<Part>,
}

#[test]
fn routed_statements_give_the_same_rows() {
    let snapshot = snapshot();
    let seed = std::env::var("PGHERD_SEED")
        .ok()
        .and_then(|s| s.parse().ok())
        .unwrap_or(SEED);
    let mut generator = Generator::new(seed);
    let mut cases = Vec::new();
    let mut planned = 0;
    while cases.len() < STATEMENTS {
        let (sql, changes) = generator.statement();
        let parsed = parse(&sql).unwrap();
        let analysis = analyze(&parsed[0], &sql, &snapshot, &path(), &|_| false, &[]).unwrap();
        let parts = match analysis.route(&snapshot, &[]) {
            Route::Forward(part) => vec![part],
            Route::Scatter { parts, .. } => parts,
            _ => {
                planned += 1;
                assert!(planned < 100 * STATEMENTS, "nearly nothing is routed");
                continue;
            }
        };
        // What is wholly local says nothing about routing.
        if analysis.touches_sharded {
            cases.push(Case { sql, changes, parts });
        }
    }
    let server = Server::start();
    fill(&server, &snapshot);
    judge(&server, &cases);
}

fn judge(server: &Server, cases: &[Case]) {
    let whole: Vec<_> = cases.iter().map(|c| wrapped(&c.sql, c.changes)).collect();
    let expected = server.run(&database(0), &whole);
    let mut answers: Vec<Vec<Answer>> = cases.iter().map(|_| Vec::new()).collect();
    for shard in 1..=3 {
        let mine: Vec<_> = cases
            .iter()
            .enumerate()
            .flat_map(|(i, c)| {
                c.parts
                    .iter()
                    .filter(|p| p.shard.0 == shard)
                    .map(move |p| (i, wrapped(&p.text, c.changes)))
            })
            .collect();
        let texts: Vec<_> = mine.iter().map(|(_, text)| text.clone()).collect();
        for ((i, _), answer) in mine.iter().zip(server.run(&database(shard as usize), &texts)) {
            answers[*i].push(answer);
        }
    }
    let mut compared = 0;
    for ((case, expected), answers) in cases.iter().zip(&expected).zip(&answers) {
        // Which of two errors comes first, and whether a row is reached that raises one, PostgreSQL leaves open.
        let Answer::Rows(expected) = expected else { continue };
        compared += 1;
        let mut rows = Vec::new();
        for answer in answers {
            match answer {
                Answer::Rows(some) => rows.extend(some.iter().cloned()),
                Answer::Error(error) => panic!("{}\nrouted as {:?}\n{error}", case.sql, case.parts),
            }
        }
        rows.sort();
        assert_eq!(&rows, expected, "{}\nrouted as {:#?}", case.sql, case.parts);
    }
    println!("{compared} of {} statements compared", cases.len());
    assert!(
        compared > cases.len() / 2,
        "most statements were errors: {compared} of {}",
        cases.len()
    );
}
