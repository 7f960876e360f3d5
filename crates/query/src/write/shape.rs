//! An UPDATE's or DELETE's text, taken apart at the key words that stand outside of all parentheses.
//!
//! Pieces keep the client's own words, so that PostgreSQL reads them as it would have read them in the whole.

use pgherd_model::ServerError;
use pgherd_sql::lexer::{Token, TokenKind, depths, tokenize};
use std::ops::Range;

/// What a column of SET is given.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Value {
    /// an expression, as SQL
    Expression(String),
    /// the key word DEFAULT
    Default,
    /// a part of the column is given a value
    Part {
        /// which one, behind the column's name: `[1].x`
        part: String,
        /// the same with other subscripts, which has the same type
        alike: String,
        /// the value, as SQL
        sql: String,
    },
}

impl Value {
    /// The part of the column that is meant, or nothing.
    pub fn part(&self) -> &str {
        match self {
            Self::Part { part, .. } => part,
            _ => "",
        }
    }
}

/// The parts, as bytes of the statement.
#[derive(Debug, Clone)]
pub(super) struct Shape {
    /// a DELETE, else an UPDATE
    pub deletes: bool,
    /// `WITH …` in front, or empty
    pub with: Range<usize>,
    /// the target's schema, where it is given
    pub schema: Option<String>,
    /// the target's name as the catalog has it
    pub name: String,
    /// the target's name in the text
    pub name_span: Range<usize>,
    /// the name with its alias
    pub target: Range<usize>,
    /// what the target's columns are qualified with
    pub alias: String,
    /// SET
    pub set: Vec<(String, Value)>,
    /// what follows FROM or USING
    pub from: Option<Range<usize>>,
    /// what follows WHERE
    pub condition: Option<Range<usize>>,
    /// the items of RETURNING, as tokens
    pub returning: Vec<Range<usize>>,
    /// all tokens
    pub tokens: Vec<Token>,
}

/// Reads the parts. Errors: 0A000 for a form that is not known.
pub(super) fn parse(text: &str) -> Result<Shape, ServerError> {
    find(text).ok_or_else(|| {
        ServerError::unsupported(
            "this form of UPDATE or DELETE is not supported where it needs rows of more than one shard",
            "Set whole columns, or parts by constant subscripts, without ONLY and WHERE CURRENT OF, or name the shard key in WHERE.",
        )
    })
}

/// Looks at tokens.
pub(crate) struct Reader<'a> {
    pub text: &'a str,
    pub tokens: &'a [Token],
    /// how many parentheses and brackets are open before each token
    pub depths: Vec<i32>,
}

impl Reader<'_> {
    pub fn word(&self, at: usize, word: &str) -> bool {
        self.tokens.get(at).is_some_and(|t| t.is_word(self.text, word))
    }

    pub fn symbol(&self, at: usize, symbol: &str) -> bool {
        self.tokens.get(at).is_some_and(|t| t.is(self.text, symbol))
    }

    pub fn identifier(&self, at: usize) -> Option<String> {
        self.tokens.get(at)?.identifier(self.text)
    }

    /// The first of `words` from this token on, outside of parentheses.
    pub fn find(&self, from: usize, words: &[&str]) -> Option<usize> {
        (from..self.tokens.len()).find(|&i| {
            let distinct = i > 0 && self.word(i, "from") && self.word(i - 1, "distinct");
            self.depths[i] == 0 && !distinct && words.iter().any(|w| self.word(i, w))
        })
    }

    /// Bytes of these tokens.
    pub fn span(&self, tokens: Range<usize>) -> Option<Range<usize>> {
        let (first, last) = (
            self.tokens.get(tokens.start)?,
            self.tokens.get(tokens.end.checked_sub(1)?)?,
        );
        (tokens.start < tokens.end).then_some(first.start as usize..last.end as usize)
    }

    pub fn piece(&self, tokens: Range<usize>) -> Option<String> {
        self.span(tokens).map(|span| self.text[span].to_owned())
    }

    /// Splits at the commas that are as deep as the first token.
    pub fn split(&self, tokens: Range<usize>) -> Vec<Range<usize>> {
        let (mut parts, mut start) = (Vec::new(), tokens.start);
        let depth = self.depths.get(start).copied().unwrap_or(0);
        for i in tokens.clone() {
            if self.symbol(i, ",") && self.depths[i] == depth {
                parts.push(start..i);
                start = i + 1;
            }
        }
        parts.push(start..tokens.end);
        parts
    }

    /// `(…)`: what is inside, if the closing one is the last of these tokens.
    pub fn inside(&self, tokens: &Range<usize>) -> Option<Range<usize>> {
        let depth = *self.depths.get(tokens.start)?;
        let close = (tokens.start + 1..tokens.end).find(|&i| self.symbol(i, ")") && self.depths[i] == depth + 1)?;
        (self.symbol(tokens.start, "(") && close + 1 == tokens.end).then_some(tokens.start + 1..close)
    }
}

fn find(text: &str) -> Option<Shape> {
    let tokens = tokenize(text).ok()?;
    let r = Reader {
        text,
        tokens: &tokens,
        depths: depths(text, &tokens),
    };
    let start = match r.word(0, "with") {
        true => (1..tokens.len()).find(|&i| {
            let verb = r.word(i, "update") || r.word(i, "delete");
            r.depths[i] == 0 && verb && !r.word(i + 1, "as") && !r.symbol(i + 1, "(")
        })?,
        false => 0,
    };
    let deletes = r.word(start, "delete");
    let mut at = start + 1 + usize::from(deletes);
    if r.word(at, "only") {
        return None;
    }
    let first = at;
    let (mut schema, mut name) = (None, r.identifier(at)?);
    at += 1;
    while r.symbol(at, ".") {
        schema = Some(std::mem::replace(&mut name, r.identifier(at + 1)?));
        at += 2;
    }
    let name_span = r.span(first..at)?;
    let clauses: &[&str] = if deletes {
        &["using", "where", "returning"]
    } else {
        &["set"]
    };
    let mut alias = name.clone();
    if r.word(at, "as") {
        alias = r.identifier(at + 1)?;
        at += 2;
    } else if at < tokens.len() && !clauses.iter().any(|w| r.word(at, w)) {
        alias = r.identifier(at)?;
        at += 1;
    }
    let target = r.span(first..at)?;
    let known_end = at == tokens.len() || clauses.iter().any(|w| r.word(at, w));
    if !known_end || r.symbol(at, "*") {
        return None;
    }
    let (from_word, after) = if deletes { ("using", at) } else { ("from", at + 1) };
    let from = r.find(after, &[from_word]);
    let condition = r.find(from.unwrap_or(after), &["where"]);
    let returning = r.find(condition.or(from).unwrap_or(after), &["returning"]);
    let end = tokens.len();
    let next = |from: Option<usize>, later: [Option<usize>; 2]| {
        from.map(|from| from + 1..later.into_iter().flatten().min().unwrap_or(end))
    };
    let set = match deletes {
        true => Vec::new(),
        false => {
            let until = [from, condition, returning].into_iter().flatten().min().unwrap_or(end);
            assignments(&r, after..until)?
        }
    };
    if condition.is_some_and(|w| r.word(w + 1, "current") && r.word(w + 2, "of")) {
        return None;
    }
    Some(Shape {
        deletes,
        with: if start > 0 { r.span(0..start)? } else { 0..0 },
        schema,
        name,
        name_span,
        target,
        alias,
        set,
        from: match next(from, [condition, returning]) {
            Some(tokens) => Some(r.span(tokens)?),
            None => None,
        },
        condition: match next(condition, [returning, None]) {
            Some(tokens) => Some(r.span(tokens)?),
            None => None,
        },
        returning: returning.map_or(Vec::new(), |at| r.split(at + 1..end)),
        tokens,
    })
}

/// A column, or a part of one (`a[1]`, `b.x`), with what it is given. Subscripts are constants: others would be computed where the row is written.
fn of_part(r: &Reader<'_>, target: Range<usize>, value: Value) -> Option<(String, Value)> {
    let name = r.identifier(target.start)?;
    if target.len() == 1 {
        return Some((name, value));
    }
    let (mut alike, mut at) = (String::new(), target.start + 1);
    while at < target.end {
        if r.symbol(at, ".") {
            alike.push_str(&r.piece(at..at + 2)?);
            at += 2;
            continue;
        }
        let close = (at..target.end)
            .find(|&i| r.symbol(i, "]"))
            .filter(|_| r.symbol(at, "["))?;
        let is_constant = |i: usize| {
            let kind = r.tokens[i].kind;
            matches!(kind, TokenKind::Number | TokenKind::String) || r.symbol(i, ":") || r.symbol(i, "-")
        };
        (at + 1..close).all(is_constant).then_some(())?;
        let is_slice = (at + 1..close).any(|i| r.symbol(i, ":"));
        alike.push_str(if is_slice { "[1:1]" } else { "[1]" });
        at = close + 1;
    }
    let Value::Expression(sql) = value else { return None };
    let part = r.piece(target.start + 1..target.end)?;
    Some((name, Value::Part { part, alike, sql }))
}

/// `a = 1, (b, c) = (2, DEFAULT), (d, e) = (SELECT …)`
pub(crate) fn assignments(r: &Reader<'_>, tokens: Range<usize>) -> Option<Vec<(String, Value)>> {
    let mut set = Vec::new();
    for item in r.split(tokens) {
        let value_of = |tokens: Range<usize>| match tokens.len() == 1 && r.word(tokens.start, "default") {
            true => Some(Value::Default),
            false => r.piece(tokens).map(Value::Expression),
        };
        if !r.symbol(item.start, "(") {
            let equals = item
                .clone()
                .find(|&i| r.depths[i] == r.depths[item.start] && r.symbol(i, "="))?;
            let value = value_of(equals + 1..item.end)?;
            set.push(of_part(r, item.start..equals, value)?);
            continue;
        }
        let close = (item.start..item.end).find(|&i| r.symbol(i, ")") && r.depths[i] == r.depths[item.start] + 1)?;
        let names = r.split(item.start + 1..close);
        if !r.symbol(close + 1, "=") {
            return None;
        }
        let row = usize::from(r.word(close + 2, "row"));
        let inside = r.inside(&(close + 2 + row..item.end))?;
        let is_query = ["select", "with", "values"].iter().any(|w| r.word(inside.start, w));
        if is_query && row == 0 {
            // Each column asks the whole subquery: more than one row is an error, none is NULL, as in PostgreSQL.
            let query = r.piece(inside)?;
            let columns: Vec<_> = (1..=names.len()).map(|i| format!("c{i}")).collect();
            for (name, column) in names.into_iter().zip(&columns) {
                let list = columns.join(", ");
                let value = format!("(SELECT pgherd_s.{column} FROM ({query}) AS pgherd_s ({list}))");
                set.push(of_part(r, name, Value::Expression(value))?);
            }
            continue;
        }
        let values = r.split(inside);
        (values.len() == names.len()).then_some(())?;
        for (name, value) in names.into_iter().zip(values) {
            set.push(of_part(r, name, value_of(value)?)?);
        }
    }
    Some(set)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn show(text: &str) -> String {
        let Some(shape) = find(text) else {
            return "unknown".into();
        };
        let at = |span: &Option<Range<usize>>| span.clone().map_or("-", |s| &text[s]).to_owned();
        let set = shape.set.iter().map(|(name, value)| match value {
            Value::Default => format!("{name}: default"),
            Value::Expression(sql) => format!("{name}: {sql}"),
            Value::Part { part, alike, sql } => format!("{name}{part} like {alike}: {sql}"),
        });
        format!(
            "{}|{}|{}|{}|{}|{}|{}",
            &text[shape.with.clone()],
            &text[shape.target.clone()],
            shape.alias,
            set.collect::<Vec<_>>().join("; "),
            at(&shape.from),
            at(&shape.condition),
            shape.returning.len(),
        )
    }

    #[test]
    fn parts_are_found() {
        for (text, parts) in [
            (
                "UPDATE t SET a[1] = b[2], (c.x[1:2], d) = (SELECT 1, 2), e[f] = 1",
                "unknown",
            ),
            (
                "UPDATE t SET a[1] = b[2], (c.x[1:2], d) = (3, DEFAULT)",
                "|t|t|a[1] like [1]: b[2]; c.x[1:2] like .x[1:1]: 3; d: default|-|-|0",
            ),
            ("UPDATE t SET a = 1", "|t|t|a: 1|-|-|0"),
            (
                "update s.\"T\" x set a = b is distinct from c, b = DEFAULT from f, g where x.a = f.a returning a, f(1, 2), *",
                "|s.\"T\" x|x|a: b is distinct from c; b: default|f, g|x.a = f.a|3",
            ),
            (
                "WITH u AS (UPDATE q SET a = 1) UPDATE t AS u SET (a, b) = (1, ROW(2, 3)) WHERE extract(day FROM d) = 1",
                "WITH u AS (UPDATE q SET a = 1)|t AS u|u|a: 1; b: ROW(2, 3)|-|extract(day FROM d) = 1|0",
            ),
            (
                "UPDATE t SET (a, b) = (SELECT 1, 2)",
                "|t|t|a: (SELECT pgherd_s.c1 FROM (SELECT 1, 2) AS pgherd_s (c1, c2)); \
                 b: (SELECT pgherd_s.c2 FROM (SELECT 1, 2) AS pgherd_s (c1, c2))|-|-|0",
            ),
            ("UPDATE t SET a[k] = 2", "unknown"),
            ("UPDATE ONLY t SET a = 2", "unknown"),
            ("UPDATE t * SET a = 2", "unknown"),
            ("UPDATE t SET a = 2 WHERE CURRENT OF c", "unknown"),
            ("DELETE FROM t", "|t|t||-|-|0"),
            (
                "DELETE FROM t USING (SELECT 1 FROM b WHERE true) b WHERE t.a = b.a RETURNING t.*",
                "|t|t||(SELECT 1 FROM b WHERE true) b|t.a = b.a|1",
            ),
        ] {
            assert_eq!(show(text), parts, "{text}");
        }
    }
}
