//! Whether a block can run on each shard with that shard's rows of some colocated tables and a copy of everything else, so that
//! the shards' results together are the block's result.
//!
//! Say that lineitem and orders are colocated by their order's key, and all other tables are copied to every shard. A join is
//! right shard by shard when the colocated tables in it are tied together by equal keys: then all rows that make one row of the
//! result are on one shard. A subquery is right when it reads copies only, or is tied by the key to the row that it is asked for.
//! A grouping is right when the key is grouped by. Nothing may be on the right of a LEFT JOIN whose left side is a copy: each shard
//! would add its own rows of NULLs.

use super::blocks::{Blocks, ColumnId, Role, item_expr, start_of};
use sqlparser::ast::{Expr, Query, Visit, Visitor};
use std::collections::HashSet;
use std::ops::ControlFlow;

/// What stays where it is: for each mention of the statement, the column that is its shard key, if it is one of the colocated
/// tables.
pub(super) type Anchors = Vec<Option<String>>;

/// What a block gives on each shard.
#[derive(Debug, Clone)]
pub(super) enum Spread {
    /// the same everywhere
    Copied,
    /// each row on one shard, by a key that is equal to all of these columns
    ByKey(HashSet<ColumnId>),
}

struct Subqueries(Vec<Query>, usize);

impl Visitor for Subqueries {
    type Break = ();

    fn pre_visit_query(&mut self, query: &Query) -> ControlFlow<()> {
        if self.1 == 0 {
            self.0.push(query.clone());
        }
        self.1 += 1;
        ControlFlow::Continue(())
    }

    fn post_visit_query(&mut self, _: &Query) -> ControlFlow<()> {
        self.1 -= 1;
        ControlFlow::Continue(())
    }
}

/// The subqueries of an expression that are not inside one another.
pub(super) fn subqueries(expr: &Expr) -> Vec<Query> {
    let mut found = Subqueries(Vec::new(), 0);
    let _ = expr.visit(&mut found);
    found.0
}

/// The columns that are equal to one of `seed`.
pub(super) fn equal_to(seed: ColumnId, equalities: &[(ColumnId, ColumnId)]) -> HashSet<ColumnId> {
    let mut class = HashSet::from([seed]);
    loop {
        let before = class.len();
        for (a, b) in equalities {
            if class.contains(a) != class.contains(b) {
                class.insert(a.clone());
                class.insert(b.clone());
            }
        }
        if class.len() == before {
            return class;
        }
    }
}

/// As what a block is looked at.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum As {
    /// what is sent to the shards, with partial aggregates: only its joins and conditions count
    Partial,
    /// what is sent to the shards whole, but for its limit
    Whole,
    /// a derived table
    Table,
    /// a subquery in an expression, asked for one row of what is around it
    Asked,
}

/// How a block lies, seen from inside blocks that lie by `outer`; None where it is not right shard by shard.
pub(super) fn spread(
    blocks: &Blocks<'_>,
    block: usize,
    anchors: &Anchors,
    outer: &HashSet<ColumnId>,
    look: As,
) -> Option<Spread> {
    let own = &blocks.list[block];
    if own.unclear || own.reads_with || own.query.with.is_some() || super::calls::has_windows(&own.select) {
        return None;
    }
    let mut equalities = blocks.equalities(block);
    // What is tied to the outer key is tied together.
    let outer_list: Vec<_> = outer.iter().collect();
    equalities.extend(outer_list.windows(2).map(|w| (w[0].clone(), w[1].clone())));
    let mut keys: Vec<Option<Vec<ColumnId>>> = Vec::new();
    for (i, item) in own.items.iter().enumerate() {
        keys.push(match (item.mention, item.derived) {
            (Some(mention), _) => anchors[mention].as_ref().map(|key| vec![(block, i, key.clone())]),
            (_, Some(inner)) => match spread(blocks, inner, anchors, &HashSet::new(), As::Table)? {
                Spread::Copied => None,
                Spread::ByKey(class) => {
                    equalities.extend(blocks.equalities(inner));
                    Some(class.into_iter().collect())
                }
            },
            _ => return None,
        });
    }
    let first = keys.iter().flatten().next().and_then(|k| k.first().cloned());
    let class = match first {
        None => None,
        Some(first) => Some(joined(blocks, block, &keys, first, &equalities)?),
    };
    let nothing = HashSet::new();
    let inside = class.as_ref().unwrap_or(&nothing);
    for (expr, is_condition) in expressions(blocks, block, look) {
        for query in subqueries(&expr) {
            let inner = blocks
                .list
                .iter()
                .position(|b| Some(b.span.start) == start_of(&query))?;
            subquery(blocks, block, inner, anchors, inside, is_condition.then_some(&expr))?;
        }
    }
    // Which rows a limit leaves may differ from copy to copy.
    let limited = own.query.limit_clause.is_some();
    match class {
        None if limited => None,
        None => Some(Spread::Copied),
        Some(_) if look == As::Table && limited => None,
        Some(class) if matches!(look, As::Whole | As::Table) => {
            is_whole(blocks, block, &class)?.then_some(Spread::ByKey(class))
        }
        Some(class) => Some(Spread::ByKey(class)),
    }
}

/// The columns that are equal to the key which ties all items together; None where they are not tied.
fn joined(
    blocks: &Blocks<'_>,
    block: usize,
    keys: &[Option<Vec<ColumnId>>],
    first: ColumnId,
    equalities: &[(ColumnId, ColumnId)],
) -> Option<HashSet<ColumnId>> {
    let own = &blocks.list[block];
    let class = equal_to(first, equalities);
    for (i, keys_here) in keys.iter().enumerate() {
        let Some(right) = keys_here else { continue };
        let tied = match own.left_joins.iter().find(|j| j.right == i) {
            None => right.iter().any(|k| class.contains(k)),
            Some(join) => {
                // The rows on the left that find no partner must be on one shard, and the partners with them.
                let mut on = equalities.to_vec();
                on.extend(join.on.iter().flat_map(|c| blocks.equalities_of(block, c)));
                let partner = |k: &ColumnId| equal_to(k.clone(), &on).iter().any(|c| class.contains(c));
                join.left.clone().any(|l| keys[l].is_some()) && right.iter().any(partner)
            }
        };
        if !tied {
            return None;
        }
    }
    Some(class)
}

/// The block's expressions that may hold subqueries; whether each is one of the conditions that all hold.
fn expressions(blocks: &Blocks<'_>, block: usize, look: As) -> Vec<(Expr, bool)> {
    let own = &blocks.list[block];
    let mut all: Vec<(Expr, bool)> = own.conditions.iter().map(|c| (c.clone(), true)).collect();
    all.extend(
        own.left_joins
            .iter()
            .flat_map(|j| j.on.iter().map(|c| (c.clone(), false))),
    );
    all.extend(blocks.groups(block).unwrap_or_default().into_iter().map(|e| (e, false)));
    if look != As::Partial {
        let outputs = own.select.projection.iter().filter_map(item_expr);
        all.extend(outputs.chain(&own.select.having).map(|e| (e.clone(), false)));
    }
    all
}

/// Whether a subquery gives on each shard what it gives for the rows that are there.
fn subquery(
    blocks: &Blocks<'_>,
    block: usize,
    inner: usize,
    anchors: &Anchors,
    outer: &HashSet<ColumnId>,
    condition: Option<&Expr>,
) -> Option<()> {
    let Spread::ByKey(class) = spread(blocks, inner, anchors, outer, As::Asked)? else {
        return Some(());
    };
    if class.iter().any(|c| outer.contains(c)) {
        return Some(());
    }
    // `key IN (SELECT key …)`: rows of other shards have other keys.
    let is_alone = condition.is_some_and(|c| matches!(c, Expr::InSubquery { negated: false, .. }));
    let Role::In { left, negated: false } = &blocks.list[inner].role else {
        return None;
    };
    let left = blocks.resolve(block, left)?;
    let first = blocks.output(inner, 0)?;
    spread(blocks, inner, anchors, outer, As::Table)?;
    (is_alone && outer.contains(&left) && class.contains(&first)).then_some(())
}

/// Whether grouping and DISTINCT of a block can be done shard by shard.
fn is_whole(blocks: &Blocks<'_>, block: usize, class: &HashSet<ColumnId>) -> Option<bool> {
    let own = &blocks.list[block];
    let in_class = |expr: &Expr| blocks.resolve(block, expr).is_some_and(|c| class.contains(&c));
    let groups = blocks.groups(block)?;
    let grouped = own.aggregates || !groups.is_empty() || own.select.having.is_some();
    if grouped && !groups.iter().any(in_class) {
        return Some(false);
    }
    // Groups that are whole may still have equal outputs on several shards.
    match &own.select.distinct {
        None | Some(sqlparser::ast::Distinct::All) => Some(true),
        Some(sqlparser::ast::Distinct::Distinct) => {
            Some(own.select.projection.iter().filter_map(item_expr).any(in_class))
        }
        Some(sqlparser::ast::Distinct::On(_)) => Some(false),
    }
}

/// Whether a block stands for itself: every column in it belongs to a relation in it.
pub(super) fn is_uncorrelated(blocks: &Blocks<'_>, block: usize) -> bool {
    struct Columns<'a, 'b> {
        blocks: &'a Blocks<'b>,
        top: usize,
        stack: Vec<usize>,
    }
    impl Visitor for Columns<'_, '_> {
        type Break = ();
        fn pre_visit_query(&mut self, query: &Query) -> ControlFlow<()> {
            let list = &self.blocks.list;
            match list.iter().position(|b| Some(b.span.start) == start_of(query)) {
                Some(block) => self.stack.push(block),
                None => return ControlFlow::Break(()),
            }
            ControlFlow::Continue(())
        }
        fn post_visit_query(&mut self, _: &Query) -> ControlFlow<()> {
            self.stack.pop();
            ControlFlow::Continue(())
        }
        fn pre_visit_expr(&mut self, expr: &Expr) -> ControlFlow<()> {
            use crate::relations::fold;
            let (qualifier, column) = match expr {
                Expr::Identifier(column) => (None, fold(column)),
                Expr::CompoundIdentifier(parts) => match parts.as_slice() {
                    [table, column] => (Some(fold(table)), fold(column)),
                    _ => return ControlFlow::Break(()),
                },
                _ => return ControlFlow::Continue(()),
            };
            let Some(&block) = self.stack.last() else {
                return ControlFlow::Break(());
            };
            if let Some((owner, _)) = self.blocks.owner(block, qualifier.as_deref(), &column) {
                // Blocks come in the order of their SELECTs; those inside lie within the span.
                let span = &self.blocks.list[self.top].span;
                return match span.contains(&self.blocks.list[owner].span.start) {
                    true => ControlFlow::Continue(()),
                    false => ControlFlow::Break(()),
                };
            }
            // ORDER BY and GROUP BY may name an output.
            let outputs = self.blocks.list[block]
                .select
                .projection
                .iter()
                .map(super::blocks::output_name);
            match qualifier.is_none() && outputs.flatten().any(|name| name == column) {
                true => ControlFlow::Continue(()),
                false => ControlFlow::Break(()),
            }
        }
    }
    let mut columns = Columns {
        blocks,
        top: block,
        stack: Vec::new(),
    };
    blocks.list[block].query.visit(&mut columns).is_continue()
}
