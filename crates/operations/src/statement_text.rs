//! Edits of a statement's text by its tokens: what is put in, taken out or looked for never depends on how it is
//! spaced, quoted or commented.

use pgherd_model::{ServerError, Table};
use pgherd_sql::lexer::{Token, TokenKind};
use pgherd_sql::relations::{ResolveTable, references};
use pgherd_sql::{ObjectName, Parsed, TableAs};
use std::ops::Range;
use std::sync::Arc;

/// A statement with its tokens.
pub(crate) struct StatementText<'a> {
    pub text: &'a str,
    tokens: &'a [Token],
    parsed: &'a Parsed,
}

/// A foreign key as a statement writes it.
#[derive(Debug)]
pub(crate) struct ForeignKeyClause {
    pub columns: Vec<String>,
    pub referenced: ObjectName,
    /// empty where it means the primary key
    pub referenced_columns: Vec<String>,
    /// where it says NOT VALID
    pub not_valid: Option<Range<usize>>,
}

impl<'a> StatementText<'a> {
    /// `text` may be the statement's own text or the whole query string that it is part of.
    pub fn new(statement: &'a Parsed, text: &'a str) -> Self {
        let whole = text.len() == statement.span.len();
        Self {
            text: if whole { text } else { statement.text(text) },
            tokens: &statement.tokens,
            parsed: statement,
        }
    }

    /// The relations that its query reads and that `resolve` knows; None where the grammar is not understood whole.
    pub fn tables_read(&self, resolve: ResolveTable<'_>) -> Option<Vec<Arc<Table>>> {
        let read = references(self.parsed.ast.as_deref()?, resolve)?;
        Some(read.into_iter().filter_map(|reference| reference.table).collect())
    }

    /// Its two statements, where it makes the table `name` of a query.
    pub fn table_as(&self, name: &ObjectName) -> Option<TableAs> {
        pgherd_sql::table_as(self.text, self.tokens, name)
    }

    /// ALTER TABLE as ALTER SEQUENCE.
    pub fn as_of_sequence(&self) -> Option<String> {
        let table = &self.tokens[self.find(&["alter", "table"])? + 1];
        let (before, behind) = (&self.text[..table.start as usize], &self.text[table.end as usize..]);
        Some(format!("{before}SEQUENCE{behind}"))
    }

    /// The same with more behind it.
    pub fn with_more(self, text: &'a str) -> Self {
        Self { text, ..self }
    }

    /// Whether these words stand one behind the other somewhere.
    pub fn has(&self, words: &[&str]) -> bool {
        self.find(words).is_some()
    }

    /// Whether the identifier is in it, quoted or not.
    pub fn mentions(&self, identifier: &str) -> bool {
        let is = |t: &Token| t.identifier(self.text).is_some_and(|name| name == identifier);
        self.tokens.iter().any(is)
    }

    /// The place of the first of these consecutive words.
    pub fn find(&self, words: &[&str]) -> Option<usize> {
        (0..self.tokens.len()).find(|&at| {
            words.iter().enumerate().all(|(i, word)| {
                let token = self.tokens.get(at + i);
                token.is_some_and(|t| t.is_word(self.text, word))
            })
        })
    }

    /// All identifiers, as the catalog stores them; key words among them.
    pub fn identifiers(&self) -> impl Iterator<Item = String> + '_ {
        self.tokens.iter().filter_map(|t| t.identifier(self.text))
    }

    /// All identifiers, each with the one before its point: a schema, where it is a relation's name.
    pub fn qualified(&self) -> impl Iterator<Item = (Option<String>, String)> + '_ {
        let text = self.text;
        let schema = move |at: usize| {
            let point = at.checked_sub(1).and_then(|before| self.tokens.get(before))?;
            let schema = at.checked_sub(2).and_then(|before| self.tokens.get(before))?;
            point.is(text, ".").then(|| schema.identifier(text)).flatten()
        };
        let all = self.tokens.iter().enumerate();
        all.filter_map(move |(at, token)| Some((schema(at), token.identifier(text)?)))
    }

    /// The schemas behind TABLES IN SCHEMA of a publication, as they are written.
    pub fn published_schemas(&self) -> Vec<String> {
        let Some(at) = self.find(&["tables", "in", "schema"]) else {
            return Vec::new();
        };
        let ends = |t: &&Token| !["with", "table"].iter().any(|w| t.is_word(self.text, w));
        let listed = self.tokens[at + 3..].iter().take_while(ends);
        listed.filter_map(|t| t.identifier(self.text)).collect()
    }

    /// The function's name behind EXECUTE in CREATE TRIGGER, as it is written.
    pub fn trigger_function(&self) -> Option<&'a str> {
        let at = ["function", "procedure"]
            .iter()
            .find_map(|word| self.find(&["execute", word]))?;
        let open = (at..self.tokens.len()).find(|&i| self.tokens[i].is(self.text, "("))?;
        self.text
            .get(self.tokens.get(at + 2)?.start as usize..self.tokens[open].start as usize)
    }

    /// CREATE SCHEMA without the statements for what is in it; None where there are none.
    pub fn schema_head(&self) -> Option<&'a str> {
        let begins = |t: &Token| ["create", "grant"].iter().any(|w| t.is_word(self.text, w));
        let first = self.tokens.iter().skip(1).find(|t| begins(t))?;
        Some(&self.text[..first.start as usize])
    }

    /// Where the first parenthesis that opens behind `from` (a byte) closes, as the byte behind it.
    fn parenthesis(&self, from: usize) -> Option<Range<usize>> {
        let open = self
            .tokens
            .iter()
            .position(|t| t.start as usize >= from && t.is(self.text, "("))?;
        let mut depth = 0;
        for token in &self.tokens[open..] {
            if token.is(self.text, "(") {
                depth += 1;
            } else if token.is(self.text, ")") {
                depth -= 1;
                if depth == 0 {
                    return Some(self.tokens[open].start as usize..token.end as usize);
                }
            }
        }
        None
    }

    /// `CREATE TABLE name (…) …` with PARTITION BY, and without the WITH (…), which goes to the children.
    pub fn partitioned(&self, name: &ObjectName, by: &str) -> Option<String> {
        let columns = self.parenthesis(name.span.end)?;
        let rest = columns.end;
        let mut tail = self.text[rest..].to_owned();
        let with = self
            .tokens
            .iter()
            .position(|t| t.start as usize >= rest && t.is_word(self.text, "with"));
        if let Some(at) = with {
            let from = self.tokens[at].start as usize;
            let options = self.parenthesis(from)?;
            tail = format!("{}{}", &self.text[rest..from], &self.text[options.end..]);
        }
        Some(format!("{} PARTITION BY {by}{tail}", &self.text[..rest]))
    }

    /// The text with the list of names (contiguous, `a, b, c`) replaced by `kept`.
    pub fn with_names(&self, names: &[ObjectName], kept: &[String]) -> String {
        match (names.first(), names.last()) {
            (Some(first), Some(last)) => format!(
                "{}{}{}",
                &self.text[..first.span.start],
                kept.join(", "),
                &self.text[last.span.end..]
            ),
            _ => self.text.to_owned(),
        }
    }

    /// The text without the word ONLY in front of a table's name.
    pub fn without_only(&self, name: &ObjectName) -> String {
        let before = self.tokens.iter().rfind(|t| (t.end as usize) <= name.span.start);
        match before.filter(|t| t.is_word(self.text, "only")) {
            Some(only) => format!(
                "{}{}",
                &self.text[..only.start as usize],
                &self.text[only.end as usize..]
            ),
            None => self.text.to_owned(),
        }
    }

    /// The text with blanks for the word ONLY in front of these names, so that all offsets stay.
    pub fn blank_only(&self, names: &[&ObjectName]) -> String {
        let mut text = self.text.to_owned();
        for name in names {
            let before = self.tokens.iter().rfind(|t| (t.end as usize) <= name.span.start);
            if let Some(only) = before.filter(|t| t.is_word(self.text, "only")) {
                text.replace_range(only.start as usize..only.end as usize, "    ");
            }
        }
        text
    }

    /// The table's name and the dot in front of columns, behind the place where the statement names its table.
    pub fn qualifiers(&self, table: &ObjectName) -> Vec<Range<usize>> {
        let is = |at: usize, symbol: &str| self.tokens.get(at).is_some_and(|t| t.is(self.text, symbol));
        let identifier = |at: usize| self.tokens.get(at).and_then(|t| t.identifier(self.text));
        let of_type =
            |at: usize| is(at, "::") || ["as", "collate"].iter().any(|w| self.tokens[at].is_word(self.text, w));
        let qualifier = |at: usize| {
            let behind = self.tokens[at].start as usize >= table.span.end;
            let before_column = is(at + 1, ".") && identifier(at + 2).is_some() && !is(at + 3, "(") && !is(at + 3, ".");
            if !behind || !before_column || identifier(at)? != table.name {
                return None;
            }
            let first = if is(at - 1, ".") { at - 2 } else { at };
            let of_schema = first < at && table.schema.is_some() && identifier(first) == table.schema;
            let is_column = (first == at || of_schema) && !of_type(first - 1) && !is(first - 1, ".");
            is_column.then(|| self.tokens[first].start as usize..self.tokens[at + 1].end as usize)
        };
        (2..self.tokens.len()).filter_map(qualifier).collect()
    }

    /// The same tokens in another text of the same offsets.
    pub fn over<'t>(&'t self, text: &'t str) -> StatementText<'t> {
        StatementText { text, ..*self }
    }

    /// `CREATE [UNIQUE] INDEX ON …` with a name put in.
    pub fn with_index_name(&self, name: &str) -> Option<String> {
        let at = self.find(&["index"])?;
        let end = self.tokens[at].end as usize;
        Some(format!("{} {name}{}", &self.text[..end], &self.text[end..]))
    }

    /// `ALTER/DROP SEQUENCE …` with IF EXISTS put in where it is missing.
    pub fn if_exists(&self, object: &str) -> String {
        match self.find(&[object]).filter(|_| !self.has(&[object, "if", "exists"])) {
            Some(at) => {
                let end = self.tokens[at].end as usize;
                format!("{} IF EXISTS{}", &self.text[..end], &self.text[end..])
            }
            None => self.text.to_owned(),
        }
    }

    /// The tables behind REFERENCES.
    pub fn referenced(&self) -> Vec<ObjectName> {
        let is_reference = |(_, token): &(usize, &Token)| token.is_word(self.text, "references");
        let found = self.tokens.iter().enumerate().filter(is_reference);
        found.filter_map(|(at, _)| self.name_at(at + 1)).collect()
    }

    /// The tables of `INHERITS (…)`, and the one behind INHERIT.
    pub fn inherited(&self) -> Vec<ObjectName> {
        if let Some(at) = self.find(&["inherit"]) {
            return self.name_at(at + 1).into_iter().collect();
        }
        let Some(mut at) = self.find(&["inherits"]).map(|at| at + 1) else {
            return Vec::new();
        };
        let mut found = Vec::new();
        // At the opening parenthesis, and then at each comma.
        while let Some(name) = self.name_at(at + 1) {
            let behind = self.tokens.iter().position(|t| t.start as usize >= name.span.end);
            found.push(name);
            match behind.filter(|behind| self.tokens[*behind].is(self.text, ",")) {
                Some(comma) => at = comma,
                None => break,
            }
        }
        found
    }

    /// `ALTER TABLE name SET (…)`, `RESET (…)`, several of these, or `SET WITHOUT CLUSTER`, from behind the name; None for all others.
    pub fn storage_action(&self, name: &ObjectName) -> Option<&'a str> {
        let first = self.tokens.iter().position(|t| t.start as usize >= name.span.end)?;
        let is = |at: usize, word: &str| self.tokens.get(at).is_some_and(|t| t.is_word(self.text, word));
        let mut at = first;
        let parameters = loop {
            let opens = self.tokens.get(at + 1).filter(|t| t.is(self.text, "("));
            let Some(open) = opens.filter(|_| is(at, "set") || is(at, "reset")) else {
                break false;
            };
            let end = self.parenthesis(open.start as usize)?.end;
            match self.tokens.iter().position(|t| t.start as usize >= end) {
                Some(comma) if self.tokens[comma].is(self.text, ",") => at = comma + 1,
                behind => break behind.is_none(),
            }
        };
        let clusters =
            is(first, "set") && is(first + 1, "without") && is(first + 2, "cluster") && self.tokens.len() == first + 3;
        let from = self.tokens[first].start as usize;
        (parameters || clusters).then(|| &self.text[from..])
    }

    /// Whether all that ALTER TABLE does is ENABLE or DISABLE TRIGGER.
    pub fn switches_triggers(&self, name: &ObjectName) -> bool {
        let Some(first) = self.tokens.iter().position(|t| t.start as usize >= name.span.end) else {
            return false;
        };
        let is = |at: usize, word: &str| self.tokens.get(at).is_some_and(|t| t.is_word(self.text, word));
        let word = match is(first, "enable") && (is(first + 1, "replica") || is(first + 1, "always")) {
            true => first + 2,
            false => first + 1,
        };
        (is(first, "enable") || is(first, "disable")) && is(word, "trigger") && self.tokens.len() == word + 2
    }

    /// Each `FOREIGN KEY (…) REFERENCES table [(…)]`. What is not understood is left out.
    pub fn foreign_keys(&self) -> Vec<ForeignKeyClause> {
        let tables = self.referenced();
        let found = (0..self.tokens.len()).filter_map(|at| {
            let is = |i: usize, word: &str| self.tokens.get(i).is_some_and(|t| t.is_word(self.text, word));
            if !is(at, "foreign") || !is(at + 1, "key") {
                return None;
            }
            let (columns, behind) = self.names_in_parentheses(at + 2)?;
            if !is(behind, "references") {
                return None;
            }
            let from = self.tokens[behind].end as usize;
            let referenced = tables.iter().find(|t| t.span.start >= from)?.clone();
            let next = self.tokens.iter().position(|t| t.start as usize >= referenced.span.end);
            let (referenced_columns, rest) = next
                .and_then(|next| self.names_in_parentheses(next))
                .unwrap_or((Vec::new(), next.unwrap_or(self.tokens.len())));
            Some(ForeignKeyClause {
                columns,
                referenced,
                referenced_columns,
                not_valid: self.not_valid(rest),
            })
        });
        found.collect()
    }

    /// `(a, b)` from this token on: the names, and the token behind.
    fn names_in_parentheses(&self, at: usize) -> Option<(Vec<String>, usize)> {
        let is = |i: usize, symbol: &str| self.tokens.get(i).is_some_and(|t| t.is(self.text, symbol));
        let (mut names, mut i) = (Vec::new(), at + 1);
        is(at, "(").then_some(())?;
        loop {
            names.push(self.tokens.get(i)?.identifier(self.text)?);
            match (is(i + 1, ","), is(i + 1, ")")) {
                (true, _) => i += 2,
                (_, true) => return Some((names, i + 2)),
                _ => return None,
            }
        }
    }

    /// NOT VALID among a constraint's attributes, which end at a comma.
    fn not_valid(&self, from: usize) -> Option<Range<usize>> {
        let tokens = self.tokens.get(from..)?;
        let end = tokens.iter().position(|t| t.is(self.text, ",")).unwrap_or(tokens.len());
        let word = |i: usize, word: &str| tokens[i].is_word(self.text, word);
        let at = (1..end).find(|&i| word(i, "valid") && word(i - 1, "not"))?;
        Some(tokens[at - 1].start as usize..tokens[at].end as usize)
    }

    /// The text with blanks in these places.
    pub fn blanked(&self, places: impl IntoIterator<Item = Range<usize>>) -> String {
        let mut text = self.text.to_owned();
        for place in places {
            let blanks = " ".repeat(place.len());
            text.replace_range(place, &blanks);
        }
        text
    }

    /// The text with blanks for `TABLESPACE pg_default`, the default tablespace by its name.
    pub fn blank_default_tablespace(&self) -> String {
        let mut text = self.text.to_owned();
        let is_default = |t: &Token| t.identifier(self.text).is_some_and(|name| name == "pg_default");
        let at = self.find(&["tablespace"]);
        if let Some(at) = at.filter(|at| self.tokens.get(at + 1).is_some_and(is_default)) {
            let span = self.tokens[at].start as usize..self.tokens[at + 1].end as usize;
            let blanks = " ".repeat(span.len());
            text.replace_range(span, &blanks);
        }
        text
    }

    /// The index behind ATTACH PARTITION of ALTER INDEX.
    pub fn attached(&self) -> Option<ObjectName> {
        self.name_at(self.find(&["attach", "partition"])? + 2)
    }

    /// The name that begins with this token.
    fn name_at(&self, at: usize) -> Option<ObjectName> {
        let word = |t: &Token| matches!(t.kind, TokenKind::Word | TokenKind::Quoted);
        let first = self.tokens.get(at).filter(|t| word(t))?;
        let dotted = self.tokens.get(at + 1).is_some_and(|t| t.is(self.text, "."));
        let second = self.tokens.get(at + 2).filter(|t| dotted && word(t));
        let (schema, name, end) = match second {
            Some(second) => (first.identifier(self.text), second.identifier(self.text), second.end),
            None => (None, first.identifier(self.text), first.end),
        };
        Some(ObjectName {
            schema,
            name: name?,
            span: first.start as usize..end as usize,
        })
    }

    /// The name behind `RENAME TO`.
    pub fn new_name(&self) -> Option<String> {
        let at = self.find(&["rename", "to"])?;
        self.tokens.get(at + 2)?.identifier(self.text)
    }

    /// The name that it gives to a unique constraint or index, if it gives one.
    pub fn unique_name(&self) -> Option<String> {
        let mut tokens = match (self.find(&["constraint"]), self.find(&["unique", "index"])) {
            (Some(at), _) => &self.tokens[at + 1..],
            (None, Some(at)) => &self.tokens[at + 2..],
            (None, None) => return None,
        };
        while let [first, rest @ ..] = tokens {
            let words = ["concurrently", "if", "not", "exists"];
            if !words.iter().any(|word| first.is_word(self.text, word)) {
                break;
            }
            tokens = rest;
        }
        let name = tokens.first().filter(|token| !token.is_word(self.text, "on"))?;
        name.identifier(self.text)
    }

    /// An error that names a range's index which could not be made, with the name that the statement gives to it.
    pub fn naming_unique(&self, mut error: ServerError) -> ServerError {
        let fields = error.fields_mut();
        let of_range = fields.message.starts_with("could not create unique index");
        let index = fields
            .other
            .iter()
            .find(|(letter, _)| *letter == b'n')
            .map(|(_, name)| name.clone());
        if let (true, Some(index), Some(name)) = (of_range, index, self.unique_name()) {
            fields.message = fields.message.replace(&index, &name);
            for (letter, text) in &mut fields.other {
                if *letter == b'n' {
                    *text = name.clone();
                }
            }
        }
        error
    }

    /// A name as written.
    pub fn written(&self, name: &ObjectName) -> &'a str {
        &self.text[name.span.clone()]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(sql: &str, edit: impl Fn(&StatementText, &[ObjectName]) -> String, expected: &str) {
        let parsed = pgherd_sql::parse(sql).unwrap().remove(0);
        let pgherd_sql::Kind::Ddl(ddl) = &parsed.kind else {
            panic!("{sql} is no schema change");
        };
        assert_eq!(edit(&StatementText::new(&parsed, sql), &ddl.relations), expected);
    }

    #[test]
    fn partition_by_goes_behind_the_columns_and_options_leave() {
        check(
            "create table \"A (\" (id int check (id > (1)) primary key) with (fillfactor=100)",
            |t, n| t.partitioned(&n[0], "RANGE (\"id\")").unwrap(),
            "create table \"A (\" (id int check (id > (1)) primary key) PARTITION BY RANGE (\"id\") ",
        );
    }

    #[test]
    fn lists_are_narrowed_and_only_is_dropped() {
        check(
            "truncate a, b /* , */ , c cascade",
            |t, n| t.with_names(n, &["\"public\".\"b\"".into()]),
            "truncate \"public\".\"b\" cascade",
        );
        check(
            "alter table only a add primary key (id)",
            |t, n| t.without_only(&n[0]),
            "alter table  a add primary key (id)",
        );
        check(
            "create unique index on a (id)",
            |t, _| t.with_index_name("\"x\"").unwrap(),
            "create unique index \"x\" on a (id)",
        );
    }

    #[test]
    fn storage_is_told_from_other_actions() {
        let of = |sql: &str| {
            let parsed = pgherd_sql::parse(sql).unwrap().remove(0);
            let pgherd_sql::Kind::Ddl(ddl) = &parsed.kind else {
                panic!("{sql} is no schema change");
            };
            let text = StatementText::new(&parsed, sql);
            text.storage_action(&ddl.relations[0]).map(str::to_owned)
        };
        for (sql, action) in [
            ("alter table a set (fillfactor = 70)", Some("set (fillfactor = 70)")),
            ("alter table only s.a Reset (fillfactor)", Some("Reset (fillfactor)")),
            ("alter table a set without cluster", Some("set without cluster")),
            ("alter table a set (fillfactor = 70), add b int", None),
            ("alter table a set schema b", None),
            ("alter table a alter b set (n_distinct = 5)", None),
        ] {
            assert_eq!(of(sql).as_deref(), action, "{sql}");
        }
    }

    #[test]
    fn references_are_found() {
        let parsed = pgherd_sql::parse("create table a (b int references s.\"C\" (x), d int references e)")
            .unwrap()
            .remove(0);
        let text = "create table a (b int references s.\"C\" (x), d int references e)";
        let found = StatementText::new(&parsed, text).referenced();
        let names: Vec<_> = found.iter().map(|n| (n.schema.as_deref(), n.name.as_str())).collect();
        assert_eq!(names, [(Some("s"), "C"), (None, "e")]);
    }

    #[test]
    fn qualifiers_of_columns_are_found() {
        for (sql, without) in [
            (
                "alter table a add check (a.b > 0 and A.\"C\" is null)",
                "alter table a add check (  b > 0 and   \"C\" is null)",
            ),
            (
                "alter table s.a add check (s.a.b > a.c)",
                "alter table s.a add check (    b >   c)",
            ),
            (
                "alter table a add check (b::a.c > a.f(1))",
                "alter table a add check (b::a.c > a.f(1))",
            ),
            (
                "alter table a add check (s.a.b > cast(b as a.c))",
                "alter table a add check (s.a.b > cast(b as a.c))",
            ),
        ] {
            check(sql, |t, n| t.blanked(t.qualifiers(&n[0])), without);
        }
    }

    #[test]
    fn foreign_keys_are_read() {
        let text = "alter table a add constraint k foreign key (x, \"Y\") references s.b (p, q) match full not valid, \
                    add foreign key (z) references c, add check (z > 0) not valid";
        let parsed = pgherd_sql::parse(text).unwrap().remove(0);
        let statement = StatementText::new(&parsed, text);
        let keys = statement.foreign_keys();
        let shown: Vec<_> = keys
            .iter()
            .map(|k| {
                let (columns, others) = (k.columns.join(","), k.referenced_columns.join(","));
                format!("{columns} -> {} {others} {}", k.referenced.name, k.not_valid.is_some())
            })
            .collect();
        assert_eq!(shown, ["x,Y -> b p,q true", "z -> c  false"]);
        let places = keys.into_iter().filter_map(|k| k.not_valid);
        assert_eq!(statement.blanked(places), text.replacen("not valid", "         ", 1));
    }
}
