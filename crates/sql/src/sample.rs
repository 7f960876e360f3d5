//! TABLESAMPLE, as a condition: PostgreSQL takes samples of tables only, and where rows come from a function or from arrays, each of them
//! is in the sample with the same chance instead. That is what BERNOULLI does, and one of the samples that SYSTEM may take.

use crate::lexer::{Token, TokenKind, depths};
use std::ops::Range;

/// Words that may stand in a percentage beside numbers: no names of columns, which would mean others in a subquery.
const WORDS: [&str; 12] = [
    "as",
    "cast",
    "double",
    "float4",
    "float8",
    "int",
    "int4",
    "integer",
    "null",
    "numeric",
    "precision",
    "real",
];

/// The clause behind a relation's name.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Sample {
    /// from TABLESAMPLE to the last parenthesis
    pub clause: Range<usize>,
    percent: String,
    seed: Option<String>,
}

impl Sample {
    /// The clause that begins at this token; None where there is none, or one of another method.
    pub fn at(text: &str, tokens: &[Token], at: usize) -> Option<Self> {
        let word = |at: usize, word: &str| tokens.get(at).is_some_and(|t| t.is_word(text, word));
        let known = word(at + 1, "bernoulli") || word(at + 1, "system");
        (word(at, "tablesample") && known).then_some(())?;
        let depths = depths(text, tokens);
        // What stands in the parentheses that open at this token, and where they close.
        let argument = |open: usize| -> Option<(String, usize)> {
            tokens.get(open)?.is(text, "(").then_some(())?;
            let close = (open + 1..tokens.len()).find(|&i| tokens[i].is(text, ")") && depths[i] == depths[open] + 1)?;
            let constant = |token: &Token| match token.kind {
                TokenKind::Word => WORDS.iter().any(|word| token.is_word(text, word)),
                TokenKind::Quoted => false,
                _ => !token.is(text, "."),
            };
            let inside = tokens.get(open + 1..close)?;
            let (first, last) = (inside.first()?, inside.last()?);
            let sql = text.get(first.start as usize..last.end as usize)?;
            inside.iter().all(constant).then(|| (sql.to_owned(), close))
        };
        let (percent, mut last) = argument(at + 2)?;
        let mut seed = None;
        if word(last + 1, "repeatable") {
            let (sql, close) = argument(last + 2)?;
            (seed, last) = (Some(sql), close);
        }
        Some(Self {
            clause: tokens[at].start as usize..tokens[last].end as usize,
            percent,
            seed,
        })
    }

    /// A sample of what stands in FROM without an alias, to stand there in its place.
    pub fn rows_sql(&self, rows: &str) -> String {
        format!("(SELECT * {})", self.sampled_sql(rows))
    }

    /// The same where the rows are values of a composite type, which they stay.
    pub fn typed_rows_sql(&self, rows: &str) -> String {
        format!("pg_catalog.unnest(ARRAY(SELECT pgherd_s {}))", self.sampled_sql(rows))
    }

    fn sampled_sql(&self, rows: &str) -> String {
        let percent = &self.percent;
        let seed = match &self.seed {
            Some(seed) => format!(", ({seed})::pg_catalog.float8, pgherd_s::pg_catalog.text"),
            None => String::new(),
        };
        format!("FROM {rows} AS pgherd_s WHERE pgherd.in_sample(({percent})::pg_catalog.float4{seed})")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rows(text: &str) -> Option<String> {
        let tokens = crate::lexer::tokenize(text).ok()?;
        let sample = Sample::at(text, &tokens, 0)?;
        Some(format!("{} … {}", sample.rows_sql("t"), &text[sample.clause.end..]))
    }

    #[test]
    fn samples_become_conditions() {
        for (text, sql) in [
            (
                "TABLESAMPLE system (3.1) WHERE true",
                "(SELECT * FROM t AS pgherd_s WHERE pgherd.in_sample((3.1)::pg_catalog.float4)) …  WHERE true",
            ),
            (
                "tablesample Bernoulli (($1 + 2) * 3) repeatable (5), u",
                "(SELECT * FROM t AS pgherd_s WHERE pgherd.in_sample((($1 + 2) * 3)::pg_catalog.float4, (5)::pg_catalog.float8, \
                 pgherd_s::pg_catalog.text)) … , u",
            ),
        ] {
            assert_eq!(rows(text).as_deref(), Some(sql));
        }
        for other in [
            "TABLESAMPLE system_rows (5)",
            "TABLESAMPLE system (a.b)",
            "TABLESAMPLE system (b)",
            "WHERE system (1)",
        ] {
            assert_eq!(rows(other), None, "{other}");
        }
    }
}
