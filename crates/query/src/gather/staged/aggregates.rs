//! Aggregates, divided between the shards and the shard that puts their results together: each shard sends a row per group with
//! partial results, and the statement is written anew over those rows, so that PostgreSQL itself adds them up.
//!
//! | written | each shard | over their rows |
//! |---|---|---|
//! | `count(x)` | `count(x)` | `CAST(coalesce(sum(p), 0) AS int8)` |
//! | `sum(x)` | `sum(x)` | `sum(p)`, cast back to its type |
//! | `avg(x)` | `sum(x)`, `count(x)` | `sum(p) / sum(n)`, as numeric's own average divides |
//! | `min(x)`, `max(x)` | the same | the same |
//! | `f(DISTINCT x)` | groups by `x` as well | `f(DISTINCT x)` |
//!
//! Sums and averages of floating point numbers depend on the order of addition: they are not divided.

use super::blocks::{Blocks, item_expr, output_name, start_of};
use super::calls::{DIVIDED, found, is_aggregate, name_of};
use super::text::{self, Clauses};
use crate::relations::fold;
use pgherd_model::quote_identifier;
use sqlparser::ast::{Distinct, DuplicateTreatment, Expr, Function, FunctionArguments, OrderByKind, Query, SelectItem};
use std::ops::Range;

/// A block for the shards, and what puts its rows together. Both are SQL with the client's relation names.
#[derive(Debug, Clone)]
pub(super) struct Divided {
    /// the SELECT list for the shards, in pieces that are named by their place: `c1`, `c2`, …
    pub select: Vec<String>,
    /// DISTINCT on the shards
    pub distinct: bool,
    /// ` GROUP BY …`, ` HAVING …`, ` ORDER BY …`, ` LIMIT …`, as far as the shards do that
    pub tail: String,
    /// what stands in the block's place; `{rows}` is the table with the shards' rows
    pub instead: String,
    /// partial results whose type must not be a floating point number
    pub exact: Vec<usize>,
    /// the places of GROUP BY's expressions
    pub groups: Vec<usize>,
    /// places with a sum, and where `instead` names its type as `{type N}`
    pub sums: Vec<usize>,
}

/// The column of a place, as SQL.
pub(super) fn column(place: usize) -> String {
    format!("\"c{}\"", place + 1)
}

struct Divider<'a> {
    blocks: &'a Blocks<'a>,
    block: usize,
    clauses: Clauses,
    /// relations' names for the shards
    edits: &'a [(Range<usize>, String)],
    /// relations' names, and blocks, in what is left of the statement
    rest: &'a [(Range<usize>, String)],
    out: Divided,
}

impl<'a> Divider<'a> {
    fn new(
        blocks: &'a Blocks<'a>,
        block: usize,
        edits: &'a [(Range<usize>, String)],
        rest: &'a [(Range<usize>, String)],
    ) -> Option<Self> {
        let own = &blocks.list[block];
        let clauses = text::clauses(blocks.parsed, own.span.start)?;
        (clauses.items.len() == own.select.projection.len()).then_some(Self {
            blocks,
            block,
            clauses,
            edits,
            rest,
            out: Divided {
                select: Vec::new(),
                distinct: false,
                tail: String::new(),
                instead: String::new(),
                exact: Vec::new(),
                groups: Vec::new(),
                sums: Vec::new(),
            },
        })
    }

    /// A piece as the shards run it.
    fn shard_text(&self, range: &Range<usize>) -> String {
        text::edited(&self.blocks.parsed.text, range, self.edits)
    }

    /// The bytes of an output without its alias.
    fn item_range(&self, place: usize) -> Option<Range<usize>> {
        let range = self.clauses.items[place].clone();
        match &self.blocks.list[self.block].select.projection[place] {
            SelectItem::UnnamedExpr(_) => Some(range),
            SelectItem::ExprWithAlias { alias, .. } => {
                let name = (alias.span.start.column as usize).checked_sub(1)?;
                let tokens = &self.blocks.parsed.tokens;
                let place = tokens.iter().position(|t| t.start as usize == name)?;
                let before = tokens.get(place.checked_sub(1)?)?;
                let end = match before.is_word(&self.blocks.parsed.text, "as") {
                    true => tokens.get(place.checked_sub(2)?)?.end,
                    false => before.end,
                };
                Some(range.start..end as usize)
            }
            _ => None,
        }
    }

    /// The same as the shards run it.
    fn item_text(&self, place: usize) -> Option<String> {
        Some(self.shard_text(&self.item_range(place)?))
    }

    fn add(&mut self, sql: String) -> usize {
        let found = self.out.select.iter().position(|s| *s == sql);
        found.unwrap_or_else(|| {
            self.out.select.push(sql);
            self.out.select.len() - 1
        })
    }

    /// ` AS "name"` for an output that what is around may name.
    fn named(&self, place: usize) -> String {
        let name = output_name(&self.blocks.list[self.block].select.projection[place]);
        name.map_or(String::new(), |n| format!(" AS {}", quote_identifier(&n)))
    }

    fn limit(&self) -> String {
        let text = &self.blocks.parsed.text;
        self.clauses
            .limit
            .clone()
            .map_or(String::new(), |l| format!(" {}", &text[l]))
    }
}

/// LIMIT plus OFFSET, where both are written as numbers.
pub(super) fn rows_wanted(query: &Query) -> Option<u64> {
    use sqlparser::ast::{LimitClause, Value};
    let number = |expr: &Expr| match expr {
        Expr::Value(v) => match &v.value {
            Value::Number(n, _) => n.parse::<u64>().ok(),
            _ => None,
        },
        _ => None,
    };
    match query.limit_clause.as_ref()? {
        LimitClause::LimitOffset {
            limit: Some(limit),
            offset,
            limit_by,
        } if limit_by.is_empty() => {
            let offset = offset.as_ref().map_or(Some(0), |o| number(&o.value))?;
            number(limit)?.checked_add(offset)
        }
        _ => None,
    }
}

/// ` ASC`, ` DESC`, ` NULLS FIRST`, ` NULLS LAST`, as it was written.
pub(super) fn order_options(options: &sqlparser::ast::OrderByOptions) -> String {
    let mut sql = String::new();
    match options.asc {
        Some(true) => sql.push_str(" ASC"),
        Some(false) => sql.push_str(" DESC"),
        None => {}
    }
    match options.nulls_first {
        Some(true) => sql.push_str(" NULLS FIRST"),
        Some(false) => sql.push_str(" NULLS LAST"),
        None => {}
    }
    sql
}

/// A block whose rows or groups are whole on each shard: they are only put in order and counted.
pub(super) fn whole(blocks: &Blocks<'_>, block: usize, edits: &[(Range<usize>, String)]) -> Option<Divided> {
    let mut divider = Divider::new(blocks, block, edits, &[])?;
    let own = &blocks.list[block];
    divider.out.distinct = matches!(own.select.distinct, Some(Distinct::Distinct));
    for place in 0..own.select.projection.len() {
        // Each keeps its place, also where two are the same.
        let sql = divider.item_text(place)?;
        divider.out.select.push(sql);
    }
    let outputs = own.select.projection.len();
    if divider.clauses.group.is_some() {
        let groups = blocks.groups(block)?;
        let list: Option<Vec<String>> = (0..groups.len())
            .map(|i| group_sql(blocks, &divider, &groups, i))
            .collect();
        divider.out.tail = format!(" GROUP BY {}", list?.join(", "));
    }
    if let Some(range) = &divider.clauses.having {
        let having = format!(" HAVING {}", divider.shard_text(range));
        divider.out.tail.push_str(&having);
    }
    let mut order = Vec::new();
    for (place, item) in order_by(&own.query)?.into_iter().enumerate() {
        let column_place = match output_of(blocks, block, &item.expr)? {
            Some(place) => place,
            None if divider.out.distinct => return None,
            None => {
                let range = divider.clauses.order.get(place)?.clone();
                let sql = divider.shard_text(&expression_range(blocks, &range, &item));
                divider.out.select.push(format!("({sql})"));
                divider.out.select.len() - 1
            }
        };
        order.push((column_place, order_options(&item.options)));
    }
    let listed = |name: &dyn Fn(usize) -> String| {
        let items: Vec<_> = order
            .iter()
            .map(|(place, options)| format!("{}{options}", name(*place)))
            .collect();
        match items.is_empty() {
            true => String::new(),
            false => format!(" ORDER BY {}", items.join(", ")),
        }
    };
    if let Some(rows) = rows_wanted(&own.query) {
        let sorted = listed(&|place| (place + 1).to_string());
        divider.out.tail.push_str(&format!("{sorted} LIMIT {rows}"));
    }
    let items: Vec<_> = (0..outputs)
        .map(|p| format!("{}{}", column(p), divider.named(p)))
        .collect();
    let sorted = listed(&|place| format!("pgherd_rows.{}", column(place)));
    divider.out.instead = format!(
        "SELECT {} FROM {{rows}} AS pgherd_rows{sorted}{}",
        items.join(", "),
        divider.limit()
    );
    Some(divider.out)
}

/// ORDER BY's items; None for what is not PostgreSQL's.
pub(super) fn order_by(query: &Query) -> Option<Vec<sqlparser::ast::OrderByExpr>> {
    match &query.order_by {
        None => Some(Vec::new()),
        Some(order) => match &order.kind {
            OrderByKind::Expressions(list) => Some(list.clone()),
            OrderByKind::All(_) => None,
        },
    }
}

/// The bytes of an ORDER BY item without ASC, DESC and NULLS.
fn expression_range(blocks: &Blocks<'_>, range: &Range<usize>, item: &sqlparser::ast::OrderByExpr) -> Range<usize> {
    let words = usize::from(item.options.asc.is_some()) + 2 * usize::from(item.options.nulls_first.is_some());
    let tokens = &blocks.parsed.tokens;
    let last = tokens.iter().position(|t| t.end as usize == range.end).unwrap_or(0);
    let end = last.checked_sub(words).and_then(|i| tokens.get(i));
    range.start..end.map_or(range.end, |t| t.end as usize)
}

/// The output that an ORDER BY item is, by number, name, or because it is written the same; `Some(None)` for none.
pub(super) fn output_of(blocks: &Blocks<'_>, block: usize, expr: &Expr) -> Option<Option<usize>> {
    let projection = &blocks.list[block].select.projection;
    match expr {
        Expr::Value(value) => {
            let number: usize = value.value.to_string().parse().ok()?;
            (1..=projection.len()).contains(&number).then_some(Some(number - 1))
        }
        Expr::Identifier(name) => {
            let name = fold(name);
            let mut named = (0..projection.len()).filter(|&i| output_name(&projection[i]).as_ref() == Some(&name));
            let first = named.next();
            // Several outputs of one name: only PostgreSQL says whether they are the same.
            match named.next() {
                Some(_) => None,
                None => Some(first),
            }
        }
        _ => Some(projection.iter().position(|item| item_expr(item) == Some(expr))),
    }
}

/// A block with partial aggregates. `rest` is what replaces relations and blocks in the subqueries that stay behind.
pub(super) fn partial(
    blocks: &Blocks<'_>,
    block: usize,
    edits: &[(Range<usize>, String)],
    rest: &[(Range<usize>, String)],
) -> Option<Divided> {
    let mut divider = Divider::new(blocks, block, edits, rest)?;
    let own = &blocks.list[block];
    if own.select.distinct.is_some() {
        return None;
    }
    let groups = blocks.groups(block)?;
    let mut shard_groups = Vec::new();
    let mut places = Vec::new();
    for (i, group) in groups.iter().enumerate() {
        let same = own
            .select
            .projection
            .iter()
            .position(|item| item_expr(item) == Some(group));
        let sql = match same {
            Some(item) => divider.item_text(item)?,
            None => group_text(blocks, &divider, i)?,
        };
        let place = divider.add(sql);
        places.push(place);
        shard_groups.push(place);
    }
    let group_of = |expr: &Expr| {
        groups
            .iter()
            .position(|g| same_column(blocks, block, g, expr))
            .map(|i| places[i])
    };
    let mut items = Vec::new();
    for (i, item) in own.select.projection.iter().enumerate() {
        let expr = item_expr(item)?;
        let sql = match groups.iter().position(|g| g == expr) {
            Some(group) => column(places[group]),
            None => {
                let range = divider.item_range(i)?;
                divider.rewrite(expr, &range, &group_of, &mut shard_groups)?
            }
        };
        items.push(format!("{sql}{}", divider.named(i)));
    }
    let having = match (&own.select.having, divider.clauses.having.clone()) {
        (Some(expr), Some(range)) => {
            format!(
                " HAVING {}",
                divider.rewrite(expr, &range, &group_of, &mut shard_groups)?
            )
        }
        _ => String::new(),
    };
    let mut order = Vec::new();
    for (i, item) in order_by(&own.query)?.into_iter().enumerate() {
        let sql = match output_of(blocks, block, &item.expr)? {
            Some(output) => (output + 1).to_string(),
            None => {
                let range = expression_range(blocks, divider.clauses.order.get(i)?, &item);
                format!(
                    "({})",
                    divider.rewrite(&item.expr, &range, &group_of, &mut shard_groups)?
                )
            }
        };
        order.push(format!("{sql}{}", order_options(&item.options)));
    }
    if !groups.is_empty() || !shard_groups.is_empty() {
        let list: Vec<_> = shard_groups.iter().map(|p| (p + 1).to_string()).collect();
        divider.out.tail = format!(" GROUP BY {}", list.join(", "));
    }
    divider.out.groups = places.clone();
    let grouped: Vec<_> = places.iter().map(|p| column(*p)).collect();
    let grouped = match grouped.is_empty() {
        true => String::new(),
        false => format!(" GROUP BY {}", grouped.join(", ")),
    };
    let sorted = match order.is_empty() {
        true => String::new(),
        false => format!(" ORDER BY {}", order.join(", ")),
    };
    divider.out.instead = format!(
        "SELECT {} FROM {{rows}} AS pgherd_rows{grouped}{having}{sorted}{}",
        items.join(", "),
        divider.limit()
    );
    Some(divider.out)
}

/// A GROUP BY item for the shards: the number of the output that it is, or as it is written.
fn group_sql(blocks: &Blocks<'_>, divider: &Divider<'_>, groups: &[Expr], place: usize) -> Option<String> {
    let projection = &blocks.list[divider.block].select.projection;
    match projection
        .iter()
        .position(|item| item_expr(item) == Some(&groups[place]))
    {
        Some(output) => Some((output + 1).to_string()),
        None => group_text(blocks, divider, place),
    }
}

/// A GROUP BY item that is no output, as the shards run it.
fn group_text(blocks: &Blocks<'_>, divider: &Divider<'_>, place: usize) -> Option<String> {
    let range = divider.clauses.group.clone()?;
    let list = text::split(blocks.parsed, &range)?;
    (list.len() == blocks.groups(divider.block)?.len()).then(|| divider.shard_text(&list[place]))
}

/// Whether two expressions are the same column, or are written the same.
fn same_column(blocks: &Blocks<'_>, block: usize, a: &Expr, b: &Expr) -> bool {
    if a == b {
        return true;
    }
    let name = |expr: &Expr| match expr {
        Expr::Identifier(column) => Some((None, fold(column))),
        Expr::CompoundIdentifier(parts) if parts.len() == 2 => Some((Some(fold(&parts[0])), fold(&parts[1]))),
        _ => None,
    };
    let owner = |(qualifier, column): (Option<String>, String)| {
        Some((blocks.owner(block, qualifier.as_deref(), &column)?, column))
    };
    match (name(a).and_then(owner), name(b).and_then(owner)) {
        (Some(a), Some(b)) => a == b,
        _ => false,
    }
}

impl Divider<'_> {
    /// An expression over the shards' rows: aggregates of partial results, and columns that are grouped by. None where it needs
    /// anything else.
    fn rewrite(
        &mut self,
        expr: &Expr,
        range: &Range<usize>,
        group_of: &dyn Fn(&Expr) -> Option<usize>,
        shard_groups: &mut Vec<usize>,
    ) -> Option<String> {
        let found = found(expr);
        if found.windows {
            return None;
        }
        let mut edits: Vec<(Range<usize>, String)> = Vec::new();
        for function in found.calls.iter().filter(|f| is_aggregate(f)) {
            let start = function.name.0.first()?.as_ident()?.span.start.column as usize;
            let span = text::call_span(self.blocks.parsed, start.checked_sub(1)?)?;
            let sql = self.divide(function, &span, shard_groups)?;
            edits.push((span, sql));
        }
        for (span, column_expr) in &found.columns {
            if edits
                .iter()
                .any(|(call, _)| call.start <= span.start && span.end <= call.end)
            {
                continue;
            }
            edits.push((span.clone(), column(group_of(column_expr)?)));
        }
        for query in super::spread::subqueries(expr) {
            let inner = self
                .blocks
                .list
                .iter()
                .position(|b| Some(b.span.start) == start_of(&query))?;
            if !super::spread::is_uncorrelated(self.blocks, inner) {
                return None;
            }
        }
        edits.extend(self.rest.iter().cloned());
        Some(text::edited(&self.blocks.parsed.text, range, &edits))
    }

    /// One aggregate: partial results for the shards, and the whole over them.
    fn divide(&mut self, function: &Function, span: &Range<usize>, shard_groups: &mut Vec<usize>) -> Option<String> {
        let plain = function.filter.is_none()
            && function.null_treatment.is_none()
            && function.within_group.is_empty()
            && matches!(function.parameters, FunctionArguments::None);
        let name = name_of(function).filter(|n| plain && DIVIDED.contains(&n.as_str()))?;
        let FunctionArguments::List(list) = &function.args else {
            return None;
        };
        let has_subquery = found(&Expr::Function(function.clone())).subqueries;
        if !list.clauses.is_empty() || list.args.len() != 1 || has_subquery {
            return None;
        }
        let argument = text::argument_span(self.blocks.parsed, span)?;
        let argument = text::edited(&self.blocks.parsed.text, &argument, self.edits);
        if matches!(list.duplicate_treatment, Some(DuplicateTreatment::Distinct))
            && !matches!(name.as_str(), "min" | "max")
        {
            let place = self.add(format!("({argument})"));
            if name != "count" {
                self.out.exact.push(place);
            }
            if !shard_groups.contains(&place) {
                shard_groups.push(place);
            }
            return Some(format!("pg_catalog.{name}(DISTINCT {})", column(place)));
        }
        Some(match name.as_str() {
            "count" => {
                let count = self.add(format!("pg_catalog.count({argument})"));
                format!(
                    "CAST(coalesce(pg_catalog.sum({}), 0) AS pg_catalog.int8)",
                    column(count)
                )
            }
            "sum" => {
                let sum = self.add(format!("pg_catalog.sum({argument})"));
                self.out.exact.push(sum);
                self.out.sums.push(sum);
                format!("CAST(pg_catalog.sum({}) AS {{type {sum}}})", column(sum))
            }
            "avg" => {
                let sum = self.add(format!("pg_catalog.sum({argument})"));
                let count = self.add(format!("pg_catalog.count({argument})"));
                self.out.exact.push(sum);
                format!(
                    "(CAST(pg_catalog.sum({}) AS pg_catalog.numeric) / pg_catalog.sum({}))",
                    column(sum),
                    column(count)
                )
            }
            _ => {
                let extreme = self.add(format!("pg_catalog.{name}({argument})"));
                format!("pg_catalog.{name}({})", column(extreme))
            }
        })
    }
}

/// Whether the columns in outputs and HAVING, outside of aggregates, are among those that are grouped by.
pub(super) fn outputs_are_grouped(blocks: &Blocks<'_>, block: usize) -> bool {
    let Some(groups) = blocks.groups(block) else {
        return false;
    };
    let own = &blocks.list[block];
    let exprs = own
        .select
        .projection
        .iter()
        .map(item_expr)
        .chain(own.select.having.iter().map(Some));
    exprs.into_iter().all(|expr| {
        let Some(expr) = expr else { return false };
        if groups.contains(expr) {
            return true;
        }
        let found = found(expr);
        let calls: Option<Vec<Range<usize>>> = found
            .calls
            .iter()
            .filter(|f| is_aggregate(f))
            .map(|f| {
                let start = f.name.0.first()?.as_ident()?.span.start.column as usize;
                text::call_span(blocks.parsed, start.checked_sub(1)?)
            })
            .collect();
        calls.is_some_and(|calls| {
            found.columns.iter().all(|(span, column)| {
                calls.iter().any(|c| c.start <= span.start && span.end <= c.end)
                    || groups.iter().any(|g| same_column(blocks, block, g, column))
            })
        })
    })
}
