//! A MERGE's text, taken apart at the key words that stand outside of all parentheses and CASEs.

use super::super::shape::{Reader, Shape, Value, assignments};
use pgherd_model::ServerError;
use pgherd_sql::lexer::{Token, depths, tokenize};
use std::ops::Range;

/// What a WHEN does.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Action {
    /// DO NOTHING
    Nothing,
    /// DELETE
    Delete,
    /// UPDATE SET
    Update(Vec<(String, Value)>),
    /// INSERT
    Insert {
        /// the columns named; None for all
        columns: Option<Vec<String>>,
        /// None for DEFAULT VALUES
        values: Option<Vec<Value>>,
        /// OVERRIDING USER VALUE
        ignores_identity: bool,
    },
}

/// A WHEN.
#[derive(Debug)]
pub(super) struct Clause {
    /// WHEN MATCHED, else WHEN NOT MATCHED
    pub matched: bool,
    /// what follows AND, bytes of the statement
    pub condition: Option<Range<usize>>,
    pub action: Action,
}

/// The parts, as bytes of the statement.
#[derive(Debug)]
pub(super) struct MergeShape {
    /// the target, as in an UPDATE without SET
    pub target: Shape,
    /// what follows USING
    pub source: Range<usize>,
    /// what the source's columns are qualified with; of a join, all names
    pub source_aliases: Vec<String>,
    /// what follows ON
    pub on: Range<usize>,
    pub clauses: Vec<Clause>,
}

/// Reads the parts. Errors: 0A000 for a form that is not known.
pub(super) fn parse(text: &str) -> Result<MergeShape, ServerError> {
    find(text).ok_or_else(|| {
        ServerError::unsupported(
            "this form of MERGE is not supported where it needs rows of more than one shard",
            "Give INSERT whole columns, set parts of columns by constant subscripts, without ONLY.",
        )
    })
}

/// Parentheses and brackets that are open before each token, CASEs among them.
fn depths_with_cases(text: &str, tokens: &[Token]) -> Vec<i32> {
    let mut cases = 0;
    let mut depths = depths(text, tokens);
    for (i, depth) in depths.iter_mut().enumerate() {
        let is_name = i > 0 && tokens[i - 1].is(text, ".");
        if !is_name && tokens[i].is_word(text, "end") {
            cases -= 1;
        }
        *depth += cases;
        if !is_name && tokens[i].is_word(text, "case") {
            cases += 1;
        }
    }
    depths
}

fn find(text: &str) -> Option<MergeShape> {
    let tokens = tokenize(text).ok()?;
    let r = Reader {
        text,
        tokens: &tokens,
        depths: depths_with_cases(text, &tokens),
    };
    let start = match r.word(0, "with") {
        true => r.find(1, &["merge"]).filter(|at| r.word(at + 1, "into"))?,
        false => 0,
    };
    let first = start + 2;
    let using = r.find(first, &["using"])?;
    let when = r.find(using, &["when"])?;
    // The source may be a join with conditions of its own: the last one is the MERGE's.
    let on = (using..when).rev().find(|&i| r.depths[i] == 0 && r.word(i, "on"))?;
    let whens: Vec<usize> = (when..tokens.len())
        .filter(|&i| r.depths[i] == 0 && r.word(i, "when"))
        .collect();
    let ends = whens.iter().skip(1).copied().chain([tokens.len()]);
    let clauses: Option<Vec<_>> = whens
        .iter()
        .zip(ends)
        .map(|(at, end)| clause(&r, *at + 1..end))
        .collect();
    Some(MergeShape {
        target: target(&r, start, first..using)?,
        source: r.span(using + 1..on)?,
        source_aliases: source_aliases(&r, using + 1..on)?,
        on: r.span(on + 1..when)?,
        clauses: clauses?,
    })
}

/// `s.t AS a`
fn target(r: &Reader<'_>, start: usize, tokens: Range<usize>) -> Option<Shape> {
    if r.word(tokens.start, "only") {
        return None;
    }
    let (mut at, mut schema, mut name) = (tokens.start + 1, None, r.identifier(tokens.start)?);
    while r.symbol(at, ".") {
        schema = Some(std::mem::replace(&mut name, r.identifier(at + 1)?));
        at += 2;
    }
    let name_span = r.span(tokens.start..at)?;
    at += usize::from(r.word(at, "as"));
    let alias = match tokens.end - at {
        0 => name.clone(),
        1 => r.identifier(at)?,
        _ => return None,
    };
    Some(Shape {
        deletes: false,
        with: if start > 0 { r.span(0..start)? } else { 0..0 },
        schema,
        name,
        name_span,
        target: r.span(tokens)?,
        alias,
        set: Vec::new(),
        from: None,
        condition: None,
        returning: Vec::new(),
        tokens: Vec::new(),
    })
}

/// The names of what is joined; that of the source alone where it is no join.
fn source_aliases(r: &Reader<'_>, tokens: Range<usize>) -> Option<Vec<String>> {
    const JOINS: [&str; 8] = ["natural", "left", "right", "full", "inner", "outer", "cross", "join"];
    let depth = *r.depths.get(tokens.start)?;
    let own = |i: usize| r.depths[i] == depth;
    let is_join = |i: usize| own(i) && JOINS.iter().any(|word| r.word(i, word));
    let ends = |i: usize| is_join(i) || own(i) && (r.word(i, "on") || r.word(i, "using") && r.symbol(i + 1, "("));
    let (mut aliases, mut start) = (Vec::new(), tokens.start);
    loop {
        let end = (start + 1..tokens.end).find(|&i| ends(i)).unwrap_or(tokens.end);
        aliases.extend(item_aliases(r, start..end)?);
        match (end..tokens.end).find(|&i| own(i) && r.word(i, "join")) {
            Some(join) => start = join + 1,
            None => return Some(aliases),
        }
    }
}

/// The same of an element of a join: those inside of parentheses where they have no name of their own.
fn item_aliases(r: &Reader<'_>, tokens: Range<usize>) -> Option<Vec<String>> {
    let last = tokens.end.checked_sub(1)?;
    let opens = r.symbol(tokens.start, "(") && r.symbol(last, ")");
    let is_whole = opens && (tokens.start + 1..last).all(|i| r.depths[i] > r.depths[tokens.start]);
    match is_whole {
        true => source_aliases(r, tokens.start + 1..last),
        false => Some(vec![source_alias(r, tokens)?]),
    }
}

/// The last name, in front of a list of columns if there is one.
fn source_alias(r: &Reader<'_>, tokens: Range<usize>) -> Option<String> {
    let sample = r.find(tokens.start, &["tablesample"]).filter(|at| tokens.contains(at));
    let mut last = sample.unwrap_or(tokens.end).checked_sub(1)?;
    if r.symbol(last, ")") {
        let depth = r.depths[last] - 1;
        let open = tokens
            .clone()
            .rev()
            .find(|&i| r.symbol(i, "(") && r.depths[i] == depth)?;
        last = open.checked_sub(1).filter(|last| tokens.contains(last))?;
    }
    r.identifier(last)
}

/// `[NOT] MATCHED [AND …] THEN …`
fn clause(r: &Reader<'_>, tokens: Range<usize>) -> Option<Clause> {
    let matched = !r.word(tokens.start, "not");
    let at = tokens.start + usize::from(!matched);
    let then = r.find(at, &["then"]).filter(|then| tokens.contains(then))?;
    let condition = match r.word(at + 1, "and") {
        true => Some(r.span(at + 2..then)?),
        false => (at + 1 == then).then_some(None)?,
    };
    let verb = then + 1;
    let action = match r.identifier(verb)?.as_str() {
        "do" => Action::Nothing,
        "delete" => Action::Delete,
        "update" => Action::Update(assignments(r, verb + 2..tokens.end)?),
        "insert" => insert(r, verb + 1..tokens.end)?,
        _ => return None,
    };
    Some(Clause {
        matched,
        condition,
        action,
    })
}

/// `[(a, b)] [OVERRIDING …] VALUES (…)` or `DEFAULT VALUES`
fn insert(r: &Reader<'_>, tokens: Range<usize>) -> Option<Action> {
    let mut at = tokens.start;
    let mut columns = None;
    if r.symbol(at, "(") {
        let depth = r.depths[at] + 1;
        let close = (at..tokens.end).find(|&i| r.symbol(i, ")") && r.depths[i] == depth)?;
        // `a[1]` and `a.b` give parts of a value.
        let name = |item: Range<usize>| (item.len() == 1).then(|| r.identifier(item.start)).flatten();
        columns = Some(
            r.split(at + 1..close)
                .into_iter()
                .map(name)
                .collect::<Option<Vec<_>>>()?,
        );
        at = close + 1;
    }
    let overriding = r.word(at, "overriding");
    let ignores_identity = overriding && r.word(at + 1, "user");
    at += if overriding { 3 } else { 0 };
    let values = match r.word(at, "default") {
        true => None,
        false => {
            let inside = r.inside(&(at + 1..tokens.end)).filter(|_| r.word(at, "values"))?;
            let value = |item: Range<usize>| match item.len() == 1 && r.word(item.start, "default") {
                true => Some(Value::Default),
                false => r.piece(item).map(Value::Expression),
            };
            Some(r.split(inside).into_iter().map(value).collect::<Option<Vec<_>>>()?)
        }
    };
    Some(Action::Insert {
        columns,
        values,
        ignores_identity,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn show(text: &str) -> String {
        let Some(shape) = find(text) else {
            return "unknown".into();
        };
        let clause = |clause: &Clause| {
            let condition = clause.condition.clone().map_or("-", |c| &text[c]);
            format!(
                "{}{condition}: {:?}",
                if clause.matched { "" } else { "not " },
                clause.action
            )
        };
        format!(
            "{}|{} {}|{} {}|{}|{}",
            &text[shape.target.with.clone()],
            &text[shape.target.target.clone()],
            shape.target.alias,
            &text[shape.source.clone()],
            shape.source_aliases.join(","),
            &text[shape.on.clone()],
            shape.clauses.iter().map(clause).collect::<Vec<_>>().join("; ")
        )
    }

    #[test]
    fn parts_are_found() {
        for (text, parts) in [
            (
                "MERGE INTO t USING s ON t.k = s.k WHEN MATCHED THEN DELETE WHEN NOT MATCHED THEN DO NOTHING",
                "|t t|s s|t.k = s.k|-: Delete; not -: Nothing",
            ),
            (
                "with w as (select 1) merge into a.t as x using (select * from b join c on true) s (k) on x.k = case when s.k > 1 \
                 then 1 end when matched and x.v > 1 and case when true then true end then update set v = default, (a, b) = (1, 2)",
                "with w as (select 1)|a.t as x x|(select * from b join c on true) s (k) s|x.k = case when s.k > 1 then 1 end\
                 |x.v > 1 and case when true then true end: Update([(\"v\", Default), (\"a\", Expression(\"1\")), (\"b\", Expression(\"2\"))])",
            ),
            (
                "MERGE INTO t USING generate_series(1, 2) ON true WHEN NOT MATCHED THEN INSERT (k, v) OVERRIDING USER VALUE \
                 VALUES (1, DEFAULT) WHEN NOT MATCHED THEN INSERT DEFAULT VALUES",
                "|t t|generate_series(1, 2) generate_series|true|not -: Insert { columns: Some([\"k\", \"v\"]), \
                 values: Some([Expression(\"1\"), Default]), ignores_identity: true }; \
                 not -: Insert { columns: None, values: None, ignores_identity: false }",
            ),
            (
                "MERGE INTO t USING s AS x TABLESAMPLE system (3.5) ON true WHEN MATCHED THEN DELETE",
                "|t t|s AS x TABLESAMPLE system (3.5) x|true|-: Delete",
            ),
            (
                "MERGE INTO t USING (s AS x LEFT JOIN (SELECT 1) y (a) ON x.a > 3) CROSS JOIN u USING (k) ON true WHEN MATCHED THEN DELETE",
                "|t t|(s AS x LEFT JOIN (SELECT 1) y (a) ON x.a > 3) CROSS JOIN u USING (k) x,y,u|true|-: Delete",
            ),
            ("MERGE INTO ONLY t USING s ON true WHEN MATCHED THEN DELETE", "unknown"),
            (
                "MERGE INTO t USING s ON true WHEN MATCHED THEN UPDATE SET a[s.k] = 2",
                "unknown",
            ),
        ] {
            assert_eq!(show(text), parts, "{text}");
        }
    }
}
