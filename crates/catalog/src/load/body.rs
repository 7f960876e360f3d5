//! The text of a function, rule or default, and which names are in it.

use super::constant_sql::constant_sql;
use std::collections::HashSet;

/// A body, and how to look for names in it. Names are searched in lower case: one too many refuses a statement or takes a slower way,
/// one too few would be a wrong answer.
pub(super) struct Body {
    text: String,
    /// all of its words
    pub(super) words: HashSet<String>,
    /// those that may name a relation
    relations: HashSet<String>,
    /// a block in it may catch errors
    pub(super) catches: bool,
    /// what it runs by EXECUTE is all in its text
    pub(super) executes_constants: bool,
}

/// Of SQL and PL/pgSQL, the words one of which stands in front of every relation that a statement reads or changes: in queries
/// behind FROM, JOIN, USING and TABLE, in others behind what the statement begins with.
const BEFORE_RELATIONS: [&str; 27] = [
    "alter", "analyze", "cluster", "comment", "copy", "create", "delete", "drop", "execute", "from", "grant", "import",
    "insert", "into", "join", "lock", "merge", "refresh", "reindex", "revoke", "rowtype", "security", "table",
    "truncate", "update", "using", "vacuum",
];

/// The lower-case words of a text: runs of letters, digits, `_` and `$`.
pub(super) fn words(text: &str) -> HashSet<String> {
    split(text).map(str::to_lowercase).collect()
}

fn is_word(c: char) -> bool {
    c.is_alphanumeric() || c == '_' || c == '$'
}

fn split(text: &str) -> impl Iterator<Item = &str> {
    text.split(|c: char| !is_word(c)).filter(|w| !w.is_empty())
}

impl Body {
    /// Any text: every word of it may name a relation.
    pub(super) fn new(text: &str) -> Self {
        let words = words(text);
        Self {
            text: text.to_lowercase(),
            relations: words.clone(),
            catches: words.contains("exception"),
            executes_constants: false,
            words,
        }
    }

    /// SQL or PL/pgSQL: what only comments and messages say names nothing, and neither does a field of a row (`NEW.status`), where no
    /// schema has the row's name. Where no word is one that stands in front of relations, as in `SELECT price * amount`, none is named: a
    /// table may be called what an argument or a variable is called. `schemas` are all of them, in lower case.
    pub(super) fn of_sql(text: &str, schemas: &HashSet<String>) -> Self {
        let mut body = Self::new(text);
        if let Some(code) = code(&body.text, &body.words) {
            body.words = words(&code);
            body.relations = if keeps_strings(&body.words) || BEFORE_RELATIONS.iter().any(|w| body.words.contains(*w)) {
                not_fields(&code, schemas)
            } else {
                HashSet::new()
            };
            body.catches = catches(&code);
            let executed = constant_sql(&body.text);
            body.text = code;
            if let Some(sql) = executed {
                body.add_executed(&sql);
            }
        }
        body
    }

    /// What it runs by EXECUTE, which stands in its strings. Every word of it counts.
    fn add_executed(&mut self, sql: &str) {
        let words = words(sql);
        self.executes_constants = ["execute", "prepare"].iter().all(|word| !words.contains(*word));
        self.relations.extend(words.iter().cloned());
        self.words.extend(words);
        self.text.push('\n');
        self.text.push_str(sql);
    }

    /// A name in it may be written so that no search finds it: `U&"s\0065en"`, `"se""en"`.
    pub(super) fn hides_names(&self) -> bool {
        self.text.contains("u&\"") || self.text.contains("\"\"")
    }

    pub(super) fn contains(&self, part: &str) -> bool {
        self.text.contains(part)
    }

    /// Whether it has this lower-case name: as a word, or anywhere when the name is no word.
    pub(super) fn mentions(&self, name: &str) -> bool {
        self.has(&self.words, name)
    }

    /// The same where the name is a relation's.
    pub(super) fn mentions_relation(&self, name: &str) -> bool {
        self.has(&self.relations, name)
    }

    fn has(&self, words: &HashSet<String>, name: &str) -> bool {
        if name.chars().all(is_word) {
            words.contains(name)
        } else {
            self.text.contains(name)
        }
    }
}

/// The text without comments and strings; none where it is not certain where those end. Strings stay where they may name a relation:
/// `'t'::regclass`, `pg_relation_size('t')`.
fn code(text: &str, words: &HashSet<String>) -> Option<String> {
    let keeps_strings = keeps_strings(words);
    // It may hide the end of a string.
    if text.contains('\\') {
        return None;
    }
    let mut found = String::with_capacity(text.len());
    let mut rest = text;
    while let Some(c) = rest.chars().next() {
        let end = match c {
            // A dollar-quoted string, and not a parameter or part of a word.
            '$' if !found.ends_with(is_word) && !rest[1..].starts_with(|c: char| c.is_ascii_digit()) => return None,
            '-' if rest.starts_with("--") => {
                let end = rest.find('\n').unwrap_or(rest.len());
                found.push(' ');
                rest = &rest[end..];
                continue;
            }
            '/' if rest.starts_with("/*") => {
                let end = rest.find("*/")? + 2;
                if rest[2..end].contains("/*") {
                    return None;
                }
                found.push(' ');
                rest = &rest[end..];
                continue;
            }
            '\'' | '"' => rest[1..].find(c)? + 2,
            c => c.len_utf8(),
        };
        if c != '\'' || keeps_strings {
            found.push_str(&rest[..end]);
        } else {
            found.push_str("''");
        }
        rest = &rest[end..];
    }
    (!runs_block(&found)).then_some(found)
}

/// Whether this code runs a block by DO, which stands in a string: `DO 'BEGIN DELETE FROM t; END'`.
fn runs_block(code: &str) -> bool {
    code.match_indices("do").any(|(at, word)| {
        let behind = &code[at + word.len()..];
        let next = behind.trim_start().split(|c: char| !is_word(c)).next();
        let is_clause = matches!(next, Some("nothing" | "update" | "also" | "instead"));
        !code[..at].ends_with(is_word) && !behind.starts_with(is_word) && !is_clause
    })
}

/// Whether strings in a text with these words may name relations.
fn keeps_strings(words: &HashSet<String>) -> bool {
    let takes_names = |w: &String| w.starts_with("pg_") || w.contains("regclass") || w.contains("xml");
    words.iter().any(takes_names)
}

/// Whether a block of this code has handlers: `EXCEPTION WHEN …`, where `RAISE EXCEPTION` is something else.
fn catches(code: &str) -> bool {
    code.match_indices("exception").any(|(at, word)| {
        let behind = code[at + word.len()..].trim_start();
        let next = behind.split(|c: char| !is_word(c)).next();
        !code[..at].ends_with(is_word) && next == Some("when")
    })
}

/// The words of this code but those behind `name.`, where no schema has that name.
fn not_fields(code: &str, schemas: &HashSet<String>) -> HashSet<String> {
    let start = code.as_ptr() as usize;
    let mut found = HashSet::new();
    for word in split(code) {
        let before = &code[..word.as_ptr() as usize - start];
        let qualified = before.trim_end_matches('"').trim_end().strip_suffix('.');
        let is_field = qualified.is_some_and(|before| {
            let row = before.trim_end().trim_end_matches('"');
            let name = row.rsplit(|c: char| !is_word(c)).next().unwrap_or_default();
            !name.is_empty() && !schemas.is_empty() && !schemas.contains(name)
        });
        if !is_field {
            found.insert(word.to_owned());
        }
    }
    found
}

#[cfg(test)]
mod tests {
    use super::Body;
    use std::collections::HashSet;

    fn relations(text: &str) -> Body {
        Body::of_sql(text, &HashSet::from(["public".to_owned()]))
    }

    #[test]
    fn comments_messages_and_fields_name_no_relation() {
        let body = relations(
            "BEGIN -- the users\n /* of orders */ RAISE NOTICE 'no items'; NEW.status := \"NEW\" . \"kind\" + public.t; SELECT x FROM U;END",
        );
        for name in ["users", "orders", "items", "status", "kind"] {
            assert!(!body.mentions_relation(name), "{name}");
        }
        for name in ["t", "u", "x"] {
            assert!(body.mentions_relation(name), "{name}");
        }
        assert!(body.mentions("status"), "a function can be called like a field");
    }

    #[test]
    fn an_expression_names_no_relation() {
        for text in [
            "SELECT price * amount",
            "WITH amount AS (SELECT 1) SELECT price",
            "DECLARE price int := 1; BEGIN RETURN price + amount; END",
        ] {
            let body = relations(text);
            assert!(
                !body.mentions_relation("price") && !body.mentions_relation("amount"),
                "{text}"
            );
            assert!(body.mentions("price"), "a function can be called like an argument");
        }
        for text in [
            "SELECT a FROM price",
            "TABLE price",
            "LOCK price",
            "SELECT count(*) INTO a FROM (VALUES (1)) v JOIN price ON true",
            "BEGIN DELETE FROM ONLY price; END",
            "DECLARE a price%ROWTYPE; BEGIN RETURN a; END",
            "SELECT 'price'::regclass",
            "SELECT pg_relation_size('price')",
        ] {
            assert!(relations(text).mentions_relation("price"), "{text}");
        }
    }

    #[test]
    fn constants_that_are_executed_are_code() {
        let body =
            relations("BEGIN EXECUTE 'SELECT ''a'' FROM t WHERE x = $1' INTO y USING z; RAISE EXCEPTION 'no u'; END");
        assert!(body.executes_constants && !body.catches);
        assert!(body.mentions_relation("t") && !body.mentions_relation("u"));
        let body = relations("BEGIN EXECUTE 'SELECT * FROM ' || t; EXCEPTION WHEN others THEN NULL; END");
        assert!(!body.executes_constants && body.catches);
        assert!(!relations("BEGIN EXECUTE 'EXECUTE p'; END").executes_constants);
    }

    #[test]
    fn where_it_is_not_certain_every_word_counts() {
        for text in [
            "SELECT E'\\'' -- users\n'",
            "EXECUTE $x$ SELECT ' -- users $x$",
            "SELECT /* /* */ users */ 1",
            "SELECT 'users'::regclass",
            "SELECT pg_relation_size('users')",
            "SELECT 'it''s' FROM users",
            "SELECT '--', * FROM users",
            "SELECT * FROM \"users\"",
            "DO 'BEGIN DELETE FROM users; END'",
            "BEGIN DO LANGUAGE plpgsql 'BEGIN DELETE FROM users; END'; END",
        ] {
            assert!(relations(text).mentions_relation("users"), "{text}");
        }
        let kept = relations("INSERT INTO a VALUES ('users') ON CONFLICT DO NOTHING");
        assert!(!kept.mentions_relation("users"));
        let odd = relations("SELECT 1 FROM \"My -- Users\" WHERE 'a' = \"it's\"");
        assert!(odd.mentions_relation("my -- users"));
    }
}
