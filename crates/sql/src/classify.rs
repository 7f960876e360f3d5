//! From tokens to [`Kind`]: by leading words, without a grammar of expressions.

use crate::cursor::Cursor;
use crate::kind::{Isolation, Kind, SetValue};
use crate::lexer::{Token, TokenKind};
use crate::{classify_copy, classify_ddl, literal};

/// What the statement is. `text` is the statement's own, `tokens` its tokens.
pub(crate) fn classify(text: &str, tokens: &[Token]) -> Kind {
    let mut c = Cursor::new(text, tokens);
    known(&mut c).unwrap_or(Kind::Other)
}

fn known(c: &mut Cursor) -> Option<Kind> {
    if c.is_symbol("(") {
        return Some(select(c));
    }
    let first = c.peek()?;
    if first.kind != TokenKind::Word {
        return None;
    }
    let word = first.text(c.text).to_ascii_lowercase();
    match word.as_str() {
        "select" | "values" | "table" => {
            if word == "select" && c.find_outside(&["into"]).is_some() && !has_set_operation_before_into(c) {
                return classify_ddl::select_into(c);
            }
            Some(select(c))
        }
        "with" => with(c),
        "insert" => Some(Kind::Insert),
        "update" => Some(Kind::Update),
        "delete" => Some(Kind::Delete),
        "merge" => Some(Kind::Merge),
        "begin" | "start" | "commit" | "end" | "rollback" | "abort" | "savepoint" | "release" => transaction(c, &word),
        "prepare" => prepare(c),
        "set" => set(c),
        "reset" | "show" | "discard" => setting(c, &word),
        "copy" => classify_copy::copy(c),
        "call" => call(c),
        "do" => Some(Kind::Do),
        "explain" => explain(c),
        "execute" => {
            c.at += 1;
            Some(Kind::Execute(c.identifier()?))
        }
        "deallocate" => {
            c.at += 1;
            if c.is("prepare") && c.tokens.len() > c.at + 1 {
                c.at += 1;
            }
            Some(Kind::Deallocate(if c.is("all") { None } else { Some(c.identifier()?) }))
        }
        "declare" | "fetch" | "move" | "close" => cursor(c, &word),
        "listen" | "unlisten" | "notify" => notification(c, &word),
        "vacuum" | "analyze" | "analyse" | "reindex" | "cluster" | "lock" => maintenance(c, &word),
        "checkpoint" | "load" => Some(Kind::Server),
        _ => classify_ddl::ddl(c, &word),
    }
}

/// INTO behind UNION and the like is an error of PostgreSQL's own.
fn has_set_operation_before_into(c: &Cursor) -> bool {
    let set = c.find_outside(&["union", "intersect", "except"]);
    set.is_some() && set < c.find_outside(&["into"])
}

fn select(c: &Cursor) -> Kind {
    let mut here = *c;
    let (mut locking, mut writes) = (false, false);
    while let Some(token) = here.peek() {
        here.at += 1;
        if token.is_word(c.text, "for") {
            locking |= ["update", "share"].iter().any(|w| here.is(w));
            locking |= here.is("no") && here.is_ahead(1, "key") || here.is("key") && here.is_ahead(1, "share");
        } else if token.is(c.text, "(") {
            writes |= ["insert", "update", "delete", "merge"].iter().any(|w| here.is(w)) && !here.call_like();
        }
    }
    Kind::Select { locking, writes }
}

impl Cursor<'_> {
    /// A word that is a column here, not a statement: `(update)`, `(delete, …)`, `(insert = 1)`.
    fn call_like(&self) -> bool {
        let next = self.tokens.get(self.at + 1);
        next.is_none_or(|t| t.kind != TokenKind::Word && t.kind != TokenKind::Quoted)
    }
}

/// `WITH a AS (…), b (x) AS NOT MATERIALIZED (…) … <statement>`.
fn with(c: &mut Cursor) -> Option<Kind> {
    c.at += 1;
    c.accept("recursive");
    loop {
        c.identifier()?;
        if c.is_symbol("(") {
            c.skip_parentheses();
        }
        c.accept("as").then_some(())?;
        c.accept("not");
        c.accept("materialized");
        c.is_symbol("(").then_some(())?;
        c.skip_parentheses();
        // SEARCH … SET x and CYCLE … SET x USING y stand between a query and the comma, and have commas of their own.
        for (begins, ends) in [("search", "set"), ("cycle", "using")] {
            if c.accept(begins) {
                while !c.accept(ends) {
                    c.peek()?;
                    c.at += 1;
                }
                c.identifier()?;
            }
        }
        while !c.is_symbol(",") {
            match c.peek() {
                None => return None,
                Some(t) if t.kind == TokenKind::Word => {
                    let word = t.text(c.text).to_ascii_lowercase();
                    match word.as_str() {
                        "select" | "values" | "table" => {
                            let whole = Cursor { at: 0, ..*c };
                            return match c.find_outside(&["into"]) {
                                Some(_) => classify_ddl::select_into(c),
                                None => Some(select(&whole)),
                            };
                        }
                        "insert" => return Some(Kind::Insert),
                        "update" => return Some(Kind::Update),
                        "delete" => return Some(Kind::Delete),
                        "merge" => return Some(Kind::Merge),
                        _ => c.at += 1,
                    }
                }
                Some(t) if t.is(c.text, "(") => return Some(select(&Cursor { at: 0, ..*c })),
                Some(_) => c.at += 1,
            }
        }
        c.at += 1;
    }
}

#[derive(Default)]
struct Modes {
    isolation: Option<Isolation>,
    read_only: Option<bool>,
    deferrable: Option<bool>,
}

/// None where it is no list of modes by PostgreSQL's grammar, in which commas may be left out.
fn modes(c: &mut Cursor) -> Option<Modes> {
    let mut modes = Modes::default();
    let mut wanted = false;
    loop {
        if c.accept("isolation level") {
            modes.isolation = Some(isolation_level(c)?);
        } else if c.accept("read only") {
            modes.read_only = Some(true);
        } else if c.accept("read write") {
            modes.read_only = Some(false);
        } else if c.accept("deferrable") {
            modes.deferrable = Some(true);
        } else if c.accept("not deferrable") {
            modes.deferrable = Some(false);
        } else {
            return (!wanted).then_some(modes);
        }
        wanted = c.accept_symbol(",");
    }
}

fn isolation_level(c: &mut Cursor) -> Option<Isolation> {
    [
        ("read uncommitted", Isolation::ReadUncommitted),
        ("read committed", Isolation::ReadCommitted),
        ("repeatable read", Isolation::RepeatableRead),
        ("serializable", Isolation::Serializable),
    ]
    .into_iter()
    .find_map(|(words, level)| c.accept(words).then_some(level))
}

/// `AND CHAIN` at the end; None when something else is left.
fn chain(c: &mut Cursor) -> Option<bool> {
    c.accept_any(&["work", "transaction"]);
    let chain = c.accept("and chain");
    if !chain {
        c.accept("and no chain");
    }
    c.done().then_some(chain)
}

/// What is not understood to its last word is [`Kind::Other`]: PostgreSQL says what is wrong with it.
fn transaction(c: &mut Cursor, word: &str) -> Option<Kind> {
    c.at += 1;
    match word {
        "begin" | "start" => {
            if word == "start" {
                c.accept("transaction").then_some(())?;
            } else {
                c.accept_any(&["work", "transaction"]);
            }
            let modes = modes(c)?;
            c.done().then_some(Kind::Begin {
                isolation: modes.isolation,
                read_only: modes.read_only,
                deferrable: modes.deferrable,
            })
        }
        "commit" if c.accept("prepared") => Some(Kind::CommitPrepared(transaction_name(c)?)),
        "commit" | "end" => Some(Kind::Commit { chain: chain(c)? }),
        "rollback" if c.accept("prepared") => Some(Kind::RollbackPrepared(transaction_name(c)?)),
        "rollback" | "abort" => {
            let before = c.at;
            if word == "rollback" {
                c.accept_any(&["work", "transaction"]);
                if c.accept("to") {
                    if c.is("savepoint") && c.at + 1 < c.tokens.len() {
                        c.at += 1;
                    }
                    let name = c.identifier()?;
                    return c.done().then_some(Kind::RollbackTo(name));
                }
            }
            c.at = before;
            Some(Kind::Rollback { chain: chain(c)? })
        }
        "savepoint" => {
            let name = c.identifier()?;
            c.done().then_some(Kind::Savepoint(name))
        }
        _ => {
            if c.is("savepoint") && c.at + 1 < c.tokens.len() {
                c.at += 1;
            }
            let name = c.identifier()?;
            c.done().then_some(Kind::Release(name))
        }
    }
}

/// The name of a prepared transaction, and nothing behind it. `Some(None)` is a name that PostgreSQL may know how to read:
/// it must not reach a shard unread, where the cluster's own names are.
fn transaction_name(c: &mut Cursor) -> Option<Option<String>> {
    let token = c.peek().filter(|t| t.kind == TokenKind::String)?;
    c.at += 1;
    match c.done() {
        true => Some(token.string(c.text)),
        false => c.is("uescape").then_some(None),
    }
}

fn prepare(c: &mut Cursor) -> Option<Kind> {
    c.at += 1;
    if c.is("transaction") && c.tokens.get(c.at + 1).is_some_and(|t| t.kind == TokenKind::String) {
        c.at += 1;
        return Some(Kind::PrepareTransaction(transaction_name(c)?));
    }
    let name = c.identifier()?;
    let mut types = Vec::new();
    if c.is_symbol("(") {
        let inside = c.skip_parentheses();
        types = literal::split_commas(c, inside)
            .into_iter()
            .map(|r| c.text[c.bytes(r)].to_owned())
            .collect();
    }
    c.accept("as").then_some(())?;
    Some(Kind::Prepare {
        name,
        types,
        inner: c.rest(),
    })
}

fn set(c: &mut Cursor) -> Option<Kind> {
    c.at += 1;
    if c.accept("constraints") {
        return Some(Kind::SetConstraints);
    }
    if c.accept("session characteristics as transaction") {
        return set_transaction(c, true);
    }
    if c.is("transaction") && !c.is_ahead(1, "to") {
        c.at += 1;
        return set_transaction(c, false);
    }
    let local = c.is("local") && !followed_by_value(c) && {
        c.at += 1;
        true
    };
    if !local && c.is("session") && !c.is_ahead(1, "authorization") && !followed_by_value(c) {
        c.at += 1;
    }
    let set = |name: &str, value| {
        Some(Kind::Set {
            name: name.to_owned(),
            local,
            value,
        })
    };
    if c.accept("time zone") {
        let value = match c.is("local") && c.at + 1 == c.tokens.len() {
            true => SetValue::Default,
            false => set_value(c),
        };
        return set("timezone", value);
    }
    if c.accept("session authorization") {
        return set("session_authorization", set_value(c));
    }
    for (words, name) in [
        ("names", "client_encoding"),
        ("schema", "search_path"),
        ("role", "role"),
        ("xml option", "xmloption"),
    ] {
        if !followed_by_value(c) && c.accept(words) {
            return set(name, set_value(c));
        }
    }
    let name = setting_name(c)?;
    if c.accept("from current") {
        return set(&name, SetValue::Default);
    }
    (c.accept("to") || c.accept_symbol("=")).then_some(())?;
    set(&name, set_value(c))
}

/// `name TO` or `name =` comes next, so that the word is a setting's name.
fn followed_by_value(c: &Cursor) -> bool {
    c.is_ahead(1, "to") || c.tokens.get(c.at + 1).is_some_and(|t| t.is(c.text, "="))
}

fn set_transaction(c: &mut Cursor, session: bool) -> Option<Kind> {
    let mut snapshot = None;
    if !session && c.accept("snapshot") {
        snapshot = Some(c.string()?);
    }
    let begins = c.at;
    let modes = match snapshot {
        Some(_) => Modes::default(),
        None => modes(c).filter(|_| c.at > begins)?,
    };
    c.done().then_some(Kind::SetTransaction {
        isolation: modes.isolation,
        read_only: modes.read_only,
        deferrable: modes.deferrable,
        session,
        snapshot,
    })
}

/// Custom settings have dots: `pgherd.initial_bounds`.
fn setting_name(c: &mut Cursor) -> Option<String> {
    let mut name = c.identifier()?.to_ascii_lowercase();
    while c.accept_symbol(".") {
        name = format!("{name}.{}", c.identifier()?.to_ascii_lowercase());
    }
    Some(name)
}

fn set_value(c: &mut Cursor) -> SetValue {
    if c.is("default") && c.at + 1 == c.tokens.len() {
        return SetValue::Default;
    }
    let rest = c.at..c.tokens.len();
    let values = literal::split_commas(c, rest).into_iter().map(|range| {
        let tokens = &c.tokens[range.clone()];
        match tokens {
            [one] => one
                .string(c.text)
                .or_else(|| one.identifier(c.text))
                .unwrap_or_else(|| one.text(c.text).to_owned()),
            _ => c.text[c.bytes(range)].to_owned(),
        }
    });
    SetValue::Values(values.collect())
}

fn setting(c: &mut Cursor, word: &str) -> Option<Kind> {
    c.at += 1;
    if word == "discard" {
        let what = c.identifier()?.to_ascii_uppercase();
        return Some(Kind::Discard(if what == "TEMPORARY" { "TEMP".into() } else { what }));
    }
    let name = if c.accept("all") {
        None
    } else if c.accept("time zone") {
        Some("timezone".to_owned())
    } else if c.accept("session authorization") {
        Some("session_authorization".to_owned())
    } else if c.accept("transaction isolation level") {
        Some("transaction_isolation".to_owned())
    } else {
        Some(setting_name(c)?)
    };
    c.done().then_some(())?;
    Some(if word == "reset" {
        Kind::Reset(name)
    } else {
        Kind::Show { name }
    })
}

fn call(c: &mut Cursor) -> Option<Kind> {
    c.at += 1;
    let name = c.object_name()?;
    if name.schema.as_deref() != Some("pgherd") || !c.is_symbol("(") {
        return Some(Kind::Call);
    }
    let inside = c.skip_parentheses();
    Some(Kind::CallPgherd {
        procedure: name.name,
        arguments: literal::arguments(c, inside),
    })
}

fn explain(c: &mut Cursor) -> Option<Kind> {
    c.at += 1;
    let mut analyze = false;
    if c.is_symbol("(") && !["select", "with", "values", "table"].iter().any(|w| c.is_ahead(1, w)) {
        let inside = c.skip_parentheses();
        for option in literal::split_commas(c, inside) {
            let option = &c.tokens[option];
            let named = option
                .first()
                .is_some_and(|t| t.is_word(c.text, "analyze") || t.is_word(c.text, "analyse"));
            if named {
                let value = option
                    .get(1)
                    .map(|t| t.string(c.text).unwrap_or_else(|| t.text(c.text).to_owned()));
                let off = value.is_some_and(|v| ["false", "off", "0"].contains(&v.to_ascii_lowercase().as_str()));
                analyze = !off;
            }
        }
    } else {
        analyze = c.accept_any(&["analyze", "analyse"]);
        c.accept("verbose");
    }
    (!c.done()).then_some(())?;
    Some(Kind::Explain {
        analyze,
        inner: c.rest(),
    })
}

fn cursor(c: &mut Cursor, word: &str) -> Option<Kind> {
    c.at += 1;
    match word {
        "declare" => {
            let name = c.identifier()?;
            let at = c.find_outside(&["for"])?;
            let hold =
                (c.at..at).any(|i| c.tokens[i].is_word(c.text, "with") && c.tokens[i + 1].is_word(c.text, "hold"));
            c.at = at + 1;
            (!c.done()).then_some(())?;
            Some(Kind::Declare {
                name,
                hold,
                inner: c.rest(),
            })
        }
        "close" => Some(Kind::Close(if c.is("all") { None } else { Some(c.identifier()?) })),
        // The cursor is the last word; before it stand direction, count, FROM or IN.
        _ => {
            c.at = c.tokens.len() - 1;
            Some(Kind::Fetch {
                name: c.identifier()?,
                moves: word == "move",
            })
        }
    }
}

fn notification(c: &mut Cursor, word: &str) -> Option<Kind> {
    c.at += 1;
    match word {
        "listen" => Some(Kind::Listen(c.identifier()?)),
        "notify" => Some(Kind::Notify(c.identifier()?)),
        _ if c.is_symbol("*") => Some(Kind::Unlisten(None)),
        _ => Some(Kind::Unlisten(Some(c.identifier()?))),
    }
}

fn maintenance(c: &mut Cursor, word: &str) -> Option<Kind> {
    c.at += 1;
    if c.is_symbol("(") {
        c.skip_parentheses();
    }
    match word {
        "vacuum" => {
            while c.accept_any(&["full", "freeze", "verbose", "analyze", "analyse"]) {}
            Some(Kind::Vacuum(c.object_names()))
        }
        "analyze" | "analyse" => {
            c.accept("verbose");
            Some(Kind::Analyze(c.object_names()))
        }
        "lock" => {
            c.accept("table");
            Some(Kind::Lock(c.object_names()))
        }
        "cluster" => {
            c.accept("verbose");
            let first = c.object_name();
            // The old form names the index first: CLUSTER index ON table.
            let table = if c.accept("on") { c.object_name() } else { first };
            Some(Kind::Cluster(table))
        }
        _ => {
            let what = c.identifier()?.to_ascii_uppercase();
            c.accept("concurrently");
            Some(Kind::Reindex(what, c.object_name()))
        }
    }
}
