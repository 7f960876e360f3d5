//! VALUES as the source of an INSERT that runs as a query: PostgreSQL assigns each of its expressions to the column, with DEFAULT
//! among them, where a query's VALUES has one type for a column, no DEFAULT and no functions that return sets.

use super::columns::TargetColumn;
use super::target::Target;
use pgherd_model::{ServerError, quote_identifier};
use pgherd_sql::lexer::{Token, depths, tokenize};
use std::ops::Range;

/// An expression of a row: its bytes in the source; None for DEFAULT.
type Cell = Option<Range<usize>>;

/// The rows of `VALUES (…), (…)`; None for another source.
pub(super) fn rows(source: &str) -> Option<Vec<Vec<Cell>>> {
    let tokens = tokenize(source).ok()?;
    let depths = depths(source, &tokens);
    let symbol = |at: usize, symbol: &str| tokens.get(at).is_some_and(|t| t.is(source, symbol));
    tokens.first()?.is_word(source, "values").then_some(())?;
    let (mut rows, mut at) = (Vec::new(), 1);
    loop {
        symbol(at, "(").then_some(())?;
        let close = (at + 1..tokens.len()).find(|&i| depths[i] == 1 && symbol(i, ")"))?;
        let commas = (at + 1..close).filter(|&i| depths[i] == 1 && symbol(i, ","));
        let ends: Vec<usize> = commas.chain([close]).collect();
        let mut start = at + 1;
        let mut row = Vec::new();
        for end in ends {
            row.push(cell(source, tokens.get(start..end)?)?);
            start = end + 1;
        }
        rows.push(row);
        at = close + 1;
        if at == tokens.len() {
            return Some(rows);
        }
        symbol(at, ",").then_some(())?;
        at += 1;
    }
}

fn cell(source: &str, tokens: &[Token]) -> Option<Cell> {
    let (first, last) = (tokens.first()?, tokens.last()?);
    Some(match tokens {
        [only] if only.is_word(source, "default") => None,
        _ => Some(first.start as usize..last.end as usize),
    })
}

/// The INSERT with each expression in the type of its column, and what DEFAULT stands for. A column that no row gives a value is
/// left out of the list. None where the source is no VALUES, or as good as it is.
pub(super) fn assigned(text: &str, target: &Target, columns: &[TargetColumn]) -> Result<Option<String>, ServerError> {
    let source = text[target.source.clone()].trim_end();
    let Some(rows) = rows(source) else { return Ok(None) };
    let width = rows.first().map_or(0, Vec::len);
    let has_default = rows.iter().flatten().any(Option::is_none);
    // Only in a SELECT are they allowed, which is what PostgreSQL takes one row for.
    let has_sets = rows.len() == 1 && pgherd_sql::calls_set_returning(source, &tokenize(source).unwrap_or_default());
    if !has_default && !has_sets && rows.len() == 1 || rows.iter().any(|row| row.len() != width) {
        return Ok(None);
    }
    let given: Option<Vec<&TargetColumn>> = match &target.columns {
        Some(names) => names
            .iter()
            .map(|name| columns.iter().find(|c| c.name == *name))
            .collect(),
        None => columns.get(..width).map(|columns| columns.iter().collect()),
    };
    let Some(given) = given.filter(|given| given.len() == width) else {
        return Ok(None);
    };
    let ignores = text[target.overriding.clone()].to_ascii_lowercase().contains("user");
    if has_default && ignores {
        return Err(ServerError::unsupported(
            "DEFAULT beside a subquery and OVERRIDING USER VALUE are not supported over several shards",
            "Leave the identity column out of the list.",
        ));
    }
    let kept: Vec<usize> = (0..width)
        .filter(|&i| rows.iter().any(|row| row[i].is_some()))
        .collect();
    if kept.is_empty() {
        return Ok(None);
    }
    let value = |row: &[Cell], at: usize| match &row[at] {
        Some(cell) => format!("CAST(({}) AS {})", &source[cell.clone()], given[at].base_sql),
        None => {
            let default = given[at].default.as_deref().unwrap_or("NULL");
            format!("CAST(({default}) AS {})", given[at].base_sql)
        }
    };
    let row = |row: &Vec<Cell>| {
        let values: Vec<_> = kept.iter().map(|&at| value(row, at)).collect();
        values.join(", ")
    };
    let given_rows = match (&rows[..], has_sets) {
        ([one], true) => format!("SELECT {}", row(one)),
        (rows, _) => {
            let rows: Vec<_> = rows.iter().map(|r| format!("({})", row(r))).collect();
            format!("VALUES {}", rows.join(", "))
        }
    };
    let names: Vec<_> = kept.iter().map(|&at| quote_identifier(&given[at].name)).collect();
    Ok(Some(format!(
        "{} ({}) {} {given_rows} {}",
        &text[target.head.clone()],
        names.join(", "),
        &text[target.overriding.clone()],
        &text[target.tail.clone()]
    )))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn cells_are_found() {
        let source = "VALUES (1, f(2, 3), DEFAULT), ((SELECT a FROM (VALUES (1)) v(a)), ARRAY[1, 2], \"default\")";
        let show = |cell: &Cell| cell.clone().map_or("-", |c| &source[c]).to_owned();
        let rows: Vec<Vec<String>> = rows(source)
            .unwrap()
            .iter()
            .map(|row| row.iter().map(show).collect())
            .collect();
        assert_eq!(
            rows,
            [
                vec!["1", "f(2, 3)", "-"],
                vec!["(SELECT a FROM (VALUES (1)) v(a))", "ARRAY[1, 2]", "\"default\""]
            ]
        );
        assert!(super::rows("VALUES (1) ORDER BY 1").is_none());
        assert!(super::rows("SELECT 1").is_none());
    }

    #[test]
    fn defaults_are_written_down() {
        let text = "INSERT INTO t (a, b, c) VALUES (1, DEFAULT, DEFAULT), ((SELECT 2), 'x', DEFAULT) RETURNING a";
        let column = |name: &str, sql: &str, default: Option<&str>| TargetColumn {
            name: name.to_owned(),
            type_sql: sql.to_owned(),
            base_sql: sql.to_owned(),
            default: default.map(str::to_owned),
            generated: false,
        };
        let columns = [
            column("a", "integer", None),
            column("b", "text", Some("'y'::text")),
            column("c", "date", None),
        ];
        let target = super::super::target::parse(text).unwrap();
        assert_eq!(
            assigned(text, &target, &columns).unwrap().unwrap(),
            "INSERT INTO t (\"a\", \"b\")  VALUES (CAST((1) AS integer), CAST(('y'::text) AS text)), \
             (CAST(((SELECT 2)) AS integer), CAST(('x') AS text)) RETURNING a"
        );
    }
}
