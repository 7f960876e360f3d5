//! Schema change: which command and which relations, from tokens.

use crate::cursor::Cursor;
use crate::kind::{DatabaseChange, Ddl, DdlKind, Kind, ObjectName};
use crate::lexer::TokenKind;

fn make(kind: DdlKind, relations: Vec<ObjectName>) -> Ddl {
    Ddl {
        kind,
        relations,
        object: None,
        partition: None,
        temporary: false,
        concurrently: false,
    }
}

fn plain(kind: DdlKind, relations: Vec<ObjectName>) -> Option<Kind> {
    Some(Kind::Ddl(make(kind, relations)))
}

/// SELECT … INTO [TEMPORARY | UNLOGGED] [TABLE] t.
pub(crate) fn select_into(c: &mut Cursor) -> Option<Kind> {
    c.at = c.find_outside(&["into"])? + 1;
    let temporary = c.accept_any(&["temporary", "temp", "local temporary", "local temp", "global temporary"]);
    c.accept("unlogged");
    c.accept("table");
    let mut ddl = make(DdlKind::CreateTableAs, vec![c.object_name()?]);
    ddl.temporary = temporary;
    Some(Kind::Ddl(ddl))
}

/// A statement that begins with `word`; None when it is no schema change.
pub(crate) fn ddl(c: &mut Cursor, word: &str) -> Option<Kind> {
    c.at += 1;
    match word {
        "create" => create(c),
        "alter" => alter(c),
        "drop" => drop(c),
        "truncate" => {
            c.accept("table");
            plain(DdlKind::Truncate, c.object_names())
        }
        "comment" => comment(c),
        "security" => plain(DdlKind::SecurityLabel, Vec::new()),
        "grant" | "revoke" => grant(c, word),
        "refresh" => {
            c.accept("materialized view").then_some(())?;
            let concurrently = c.accept("concurrently");
            let mut ddl = make(DdlKind::RefreshMaterializedView, vec![c.object_name()?]);
            ddl.concurrently = concurrently;
            Some(Kind::Ddl(ddl))
        }
        "reassign" => plain(DdlKind::ReassignOwned, Vec::new()),
        "import" => plain(DdlKind::OtherDdl, Vec::new()),
        _ => None,
    }
}

/// Objects that are not relations, by the words behind CREATE, ALTER and DROP.
const OBJECTS: [(&str, [DdlKind; 3]); 18] = {
    use DdlKind::*;
    [
        ("sequence", [CreateSequence, AlterSequence, DropSequence]),
        ("schema", [CreateSchema, AlterSchema, DropSchema]),
        ("type", [CreateType, AlterType, DropType]),
        ("domain", [CreateDomain, AlterDomain, DropDomain]),
        ("function", [CreateFunction, AlterFunction, DropFunction]),
        ("procedure", [CreateFunction, AlterFunction, DropFunction]),
        ("routine", [CreateFunction, AlterFunction, DropFunction]),
        ("aggregate", [CreateFunction, AlterFunction, DropFunction]),
        ("extension", [CreateExtension, AlterExtension, DropExtension]),
        // Beside its foreign server, and no user.
        ("user mapping", [OtherDdl, OtherDdl, OtherDdl]),
        ("role", [CreateRole, AlterRole, DropRole]),
        ("user", [CreateRole, AlterRole, DropRole]),
        ("group", [CreateRole, AlterRole, DropRole]),
        ("view", [CreateView, AlterView, DropView]),
        ("recursive view", [CreateView, AlterView, DropView]),
        ("materialized view", [CreateMaterializedView, AlterView, DropView]),
        ("foreign table", [OtherDdl, OtherDdl, OtherDdl]),
        ("statistics", [CreateStatistics, AlterStatistics, DropStatistics]),
    ]
};

/// Objects on a table: `… name … ON table`.
const ON_TABLE: [(&str, [DdlKind; 3]); 5] = {
    use DdlKind::*;
    [
        ("trigger", [CreateTrigger, AlterTrigger, DropTrigger]),
        ("constraint trigger", [CreateTrigger, AlterTrigger, DropTrigger]),
        ("event trigger", [OtherDdl, OtherDdl, OtherDdl]),
        ("rule", [CreateRule, AlterRule, DropRule]),
        ("policy", [CreatePolicy, AlterPolicy, DropPolicy]),
    ]
};

fn whole_server(c: &mut Cursor) -> bool {
    c.accept_any(&["tablespace", "system"])
}

fn create_database(c: &mut Cursor) -> Option<Kind> {
    let name = c.identifier()?;
    let mut template = None;
    while !c.done() {
        if c.accept("template") {
            c.accept_symbol("=");
            template = c.peek().and_then(|t| t.string(c.text).or_else(|| t.identifier(c.text)));
        }
        c.at += 1;
    }
    // The word is how one asks for the default.
    let template = template.filter(|t| t != "default");
    Some(Kind::Database(DatabaseChange::Create { name, template }))
}

fn drop_database(c: &mut Cursor) -> Option<Kind> {
    let if_exists = c.accept("if exists");
    let name = c.identifier()?;
    let force = c.tokens[c.at..].iter().any(|t| t.is_word(c.text, "force"));
    Some(Kind::Database(DatabaseChange::Drop { name, if_exists, force }))
}

fn create(c: &mut Cursor) -> Option<Kind> {
    if c.accept("database") {
        return create_database(c);
    }
    if whole_server(c) {
        return Some(Kind::WholeServer);
    }
    c.accept("or replace");
    c.accept_any(&["trusted", "procedural"]);
    let temporary = c.accept_any(&[
        "local temporary",
        "local temp",
        "global temporary",
        "global temp",
        "temporary",
        "temp",
    ]);
    c.accept("unlogged");
    let mut ddl = if c.accept("table") {
        create_table(c)?
    } else if c.accept_any(&["index", "unique index"]) {
        create_index(c)?
    } else {
        object(c, 0)?
    };
    ddl.temporary = temporary;
    Some(Kind::Ddl(ddl))
}

fn create_table(c: &mut Cursor) -> Option<Ddl> {
    c.accept("if not exists");
    let name = c.object_name()?;
    let mut ddl = make(DdlKind::CreateTable, vec![name]);
    if c.accept("partition of") {
        ddl.partition = c.object_name();
    }
    let query = c.find_outside(&["as"]).is_some_and(|at| {
        let next = c.tokens.get(at + 1);
        let words = ["select", "with", "values", "table", "execute"];
        next.is_some_and(|t| t.is(c.text, "(") || words.iter().any(|w| t.is_word(c.text, w)))
    });
    if query {
        ddl.kind = DdlKind::CreateTableAs;
    }
    Some(ddl)
}

fn create_index(c: &mut Cursor) -> Option<Ddl> {
    let concurrently = c.accept("concurrently");
    c.accept("if not exists");
    let object = if c.is("on") && !c.is_ahead(1, "on") {
        None
    } else {
        c.object_name()
    };
    c.accept("on").then_some(())?;
    c.accept("only");
    let mut ddl = make(DdlKind::CreateIndex, vec![c.object_name()?]);
    ddl.object = object;
    ddl.concurrently = concurrently;
    Some(ddl)
}

/// Everything with a name behind the words; `action` is 0 for CREATE, 1 for ALTER, 2 for DROP.
fn object(c: &mut Cursor, action: usize) -> Option<Ddl> {
    for (words, kinds) in ON_TABLE {
        if c.accept(words) {
            c.accept_any(&["if not exists", "if exists"]);
            let object = c.object_name()?;
            let mut ddl = make(kinds[action], Vec::new());
            // CREATE RULE says ON event TO table, the others ON table.
            let mark = if words == "rule" && action == 0 { "to" } else { "on" };
            if let Some(at) = c.find_outside(&[mark]).filter(|_| words != "event trigger") {
                c.at = at + 1;
                c.accept("only");
                ddl.relations.extend(c.object_name());
            }
            ddl.object = Some(object);
            return Some(ddl);
        }
    }
    for (words, kinds) in OBJECTS {
        if c.accept(words) {
            let concurrently = c.accept("concurrently");
            c.accept_any(&["if not exists", "if exists"]);
            let names = if action == 2 {
                c.object_names()
            } else {
                c.object_name().into_iter().collect()
            };
            let mut ddl = make(kinds[action], names);
            ddl.concurrently = concurrently;
            if words == "statistics" && action == 0 {
                ddl.object = ddl.relations.pop();
                c.at = c.find_outside(&["from"])? + 1;
                ddl.relations = c.object_names();
            }
            return Some(ddl);
        }
    }
    Some(make(DdlKind::OtherDdl, Vec::new()))
}

/// ALTER DATABASE name SET or RESET: settings, which every shard has, in a transaction.
fn alter_database(c: &mut Cursor) -> Option<Kind> {
    let name = c.identifier()?;
    if c.is("reset") || (c.is("set") && !c.is_ahead(1, "tablespace")) {
        return plain(DdlKind::AlterDatabase, Vec::new());
    }
    let change = if c.accept("rename to") {
        let to = Some(c.identifier()?);
        DatabaseChange::Move { name, to }
    } else if c.is("set") {
        DatabaseChange::Move { name, to: None }
    } else {
        DatabaseChange::Alter { name }
    };
    Some(Kind::Database(change))
}

fn alter(c: &mut Cursor) -> Option<Kind> {
    if c.accept("database") {
        return alter_database(c);
    }
    if whole_server(c) {
        return Some(Kind::WholeServer);
    }
    if c.accept("default privileges") {
        return plain(DdlKind::AlterDefaultPrivileges, Vec::new());
    }
    if c.accept("table") {
        c.accept("if exists");
        c.accept("only");
        let table = c.object_name()?;
        let mut ddl = make(DdlKind::AlterTable, vec![table]);
        c.accept_symbol("*");
        if c.accept_any(&["attach partition", "detach partition"]) {
            ddl.partition = c.object_name();
            ddl.concurrently = c.accept("concurrently");
        }
        return Some(Kind::Ddl(ddl));
    }
    if c.accept("index") {
        c.accept("if exists");
        return plain(DdlKind::AlterIndex, c.object_name().into_iter().collect());
    }
    object(c, 1).map(Kind::Ddl)
}

fn drop(c: &mut Cursor) -> Option<Kind> {
    if c.accept("database") {
        return drop_database(c);
    }
    if whole_server(c) {
        return Some(Kind::WholeServer);
    }
    if c.accept("owned") {
        return plain(DdlKind::DropOwned, Vec::new());
    }
    let kind = if c.accept("table") {
        DdlKind::DropTable
    } else if c.accept("index") {
        DdlKind::DropIndex
    } else {
        return object(c, 2).map(Kind::Ddl);
    };
    let concurrently = c.accept("concurrently");
    c.accept("if exists");
    let mut ddl = make(kind, c.object_names());
    ddl.concurrently = concurrently;
    Some(Kind::Ddl(ddl))
}

/// COMMENT ON kind name [ON table] IS …
fn comment(c: &mut Cursor) -> Option<Kind> {
    c.accept("on").then_some(())?;
    let column = c.accept("column");
    let relation = column
        || c.accept_any(&[
            "table",
            "index",
            "sequence",
            "materialized view",
            "view",
            "foreign table",
        ]);
    let mut ddl = make(DdlKind::Comment, Vec::new());
    if relation {
        let start = c.at;
        let mut name = c.object_name()?;
        if column {
            // table.column or schema.table.column: the last part is the column.
            let parts = &c.tokens[start..c.at];
            let identifier = |i: usize| parts.get(i).and_then(|t| t.identifier(c.text));
            name = ObjectName {
                schema: identifier(0).filter(|_| parts.len() > 3),
                name: identifier(parts.len().checked_sub(3)?)?,
                span: parts[0].start as usize..parts[parts.len() - 3].end as usize,
            };
        }
        ddl.relations.push(name);
    } else if let Some(at) = c.find_outside(&["on"]) {
        c.at = at + 1;
        ddl.relations.extend(c.object_name());
    }
    Some(Kind::Ddl(ddl))
}

/// GRANT privileges ON [TABLE] a, b TO …: the relations, where it is about relations.
fn grant(c: &mut Cursor, word: &str) -> Option<Kind> {
    let kind = if word == "grant" {
        DdlKind::Grant
    } else {
        DdlKind::Revoke
    };
    let Some(at) = c.find_outside(&["on"]) else {
        return plain(kind, Vec::new());
    };
    c.at = at + 1;
    let other = [
        "all",
        "sequence",
        "database",
        "domain",
        "foreign",
        "function",
        "procedure",
        "routine",
        "language",
        "large",
        "parameter",
        "schema",
        "tablespace",
        "type",
    ];
    if !c.accept("table")
        && other.iter().any(|w| c.is(w))
        && c.tokens.get(c.at + 1).is_some_and(|t| t.kind == TokenKind::Word)
    {
        return plain(kind, Vec::new());
    }
    plain(kind, c.object_names())
}
