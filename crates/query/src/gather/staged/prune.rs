//! Conditions that a relation was read with hold for all its rows: they are left out of what is run over those rows, and so are
//! columns that only they mention.
//!
//! Without them PostgreSQL's planner would take them for more than they are. It has no statistics for an array's elements, and none
//! that know of the reading.

use super::blocks::{Block, Blocks};
use super::text;
use crate::gather::source::Gathered;
use crate::render::{Names, plain_column, render};
use sqlparser::ast::{BinaryOperator, Expr, JoinConstraint, JoinOperator};
use std::collections::HashSet;
use std::ops::Range;

/// Sees the columns of one relation in one block.
struct OneMention<'a> {
    blocks: &'a Blocks<'a>,
    block: usize,
    mention: usize,
    nullable: bool,
}

impl Names for OneMention<'_> {
    fn column(&self, qualifier: Option<&str>, name: &str) -> Option<String> {
        let (block, item) = self.blocks.owner(self.block, qualifier, name)?;
        let entry = &self.blocks.list[block].items[item];
        let own = block == self.block && entry.mention == Some(self.mention);
        (own && entry.nullable == self.nullable).then(|| plain_column(name))?
    }

    fn parameter(&self, _: usize) -> bool {
        true
    }
}

/// The conditions that AND ties, those in parentheses whole.
fn tied_by_and(expr: &Expr) -> Vec<&Expr> {
    match expr {
        Expr::BinaryOp {
            left,
            op: BinaryOperator::And,
            right,
        } => [tied_by_and(left), tied_by_and(right)].concat(),
        other => vec![other],
    }
}

/// A condition's text and tree, and the item on the right of the LEFT JOIN that it belongs to.
pub(super) type Piece<'a> = (Range<usize>, &'a Expr, Option<usize>);

/// All conditions of a block; None where some cannot be told apart in its text.
pub(super) fn all_conditions<'a>(blocks: &Blocks<'_>, block: &'a Block) -> Option<Vec<Piece<'a>>> {
    let found = pieces(blocks, block);
    let mut expected = block.select.selection.as_ref().map_or(0, |s| tied_by_and(s).len());
    for join in block.select.from.iter().flat_map(|tree| &tree.joins) {
        use JoinOperator as J;
        match &join.join_operator {
            J::Join(JoinConstraint::On(on))
            | J::Inner(JoinConstraint::On(on))
            | J::Left(JoinConstraint::On(on))
            | J::LeftOuter(JoinConstraint::On(on)) => expected += tied_by_and(on).len(),
            _ => {}
        }
    }
    (found.len() == expected).then_some(found)
}

/// Those conditions of a block that can be told apart in its text.
fn pieces<'a>(blocks: &Blocks<'_>, block: &'a Block) -> Vec<Piece<'a>> {
    let mut found = Vec::new();
    let Some(clauses) = text::clauses(blocks.parsed, block.span.start) else {
        return found;
    };
    let mut add = |range: &Range<usize>, expr: &'a Expr, right: Option<usize>| {
        let conditions = tied_by_and(expr);
        if let Some(ranges) = text::conditions(blocks.parsed, range)
            && ranges.len() == conditions.len()
        {
            found.extend(ranges.into_iter().zip(conditions).map(|(range, c)| (range, c, right)));
        }
    };
    if let (Some(range), Some(selection)) = (&clauses.selection, &block.select.selection) {
        add(range, selection, None);
    }
    let mut item = 0;
    let mut joins: Vec<(&Expr, Option<usize>)> = Vec::new();
    for tree in &block.select.from {
        item += 1;
        for join in &tree.joins {
            use JoinOperator as J;
            match &join.join_operator {
                J::Join(JoinConstraint::On(on)) | J::Inner(JoinConstraint::On(on)) => joins.push((on, None)),
                J::Left(JoinConstraint::On(on)) | J::LeftOuter(JoinConstraint::On(on)) => joins.push((on, Some(item))),
                _ => {}
            }
            item += 1;
        }
    }
    let ranges = text::on_ranges(blocks.parsed, &clauses.from).unwrap_or_default();
    if ranges.len() == joins.len() {
        for (range, (on, right)) in ranges.iter().zip(joins) {
            add(range, on, right);
        }
    }
    found
}

/// The places of the conditions that all rows of a source meet. Only for one that has a single mention: others are read with the
/// conditions of one mention or another.
pub(super) fn known(blocks: &Blocks<'_>, source: &Gathered) -> Vec<Range<usize>> {
    let ([mention], [filters]) = (source.mentions.as_slice(), source.filters.as_slice()) else {
        return Vec::new();
    };
    let mut found = Vec::new();
    for (b, block) in blocks.list.iter().enumerate() {
        let Some(item) = block.items.iter().position(|i| i.mention == Some(*mention)) else {
            continue;
        };
        if block.unclear {
            continue;
        }
        for (range, condition, right) in pieces(blocks, block) {
            // What ON says of the right side holds for all rows there, and WHERE speaks of those that are joined.
            let nullable = block.items[item].nullable;
            if right.is_some_and(|right| right != item) || right.is_some() != nullable {
                continue;
            }
            let names = OneMention {
                blocks,
                block: b,
                mention: *mention,
                nullable,
            };
            if render(condition, &names).is_some_and(|sql| filters.contains(&sql)) {
                found.push(range);
            }
        }
    }
    found
}

/// The identifiers of the statement outside of these places.
pub(super) fn words_without(blocks: &Blocks<'_>, places: &[Range<usize>]) -> HashSet<String> {
    let text = &blocks.parsed.text;
    let tokens = blocks.parsed.tokens.iter();
    let outside = tokens.filter(|t| {
        !places
            .iter()
            .any(|p| p.start <= t.start as usize && (t.end as usize) <= p.end)
    });
    outside.filter_map(|t| t.identifier(text)).collect()
}

/// Leaves out columns that nothing outside of these places mentions.
pub(super) fn prune(blocks: &Blocks<'_>, source: &mut Gathered, places: &[Range<usize>]) {
    if places.is_empty() || source.all_columns {
        return;
    }
    let words = words_without(blocks, places);
    let columns = &source.relation.columns;
    let is_wanted = |&c: &usize| words.contains(&columns[c].name) || (source.with_key && columns[c].primary);
    let kept: Vec<usize> = source.wanted.iter().copied().filter(is_wanted).collect();
    if !kept.is_empty() {
        source.wanted = kept;
        source.binary = source.wanted.iter().all(|&c| columns[c].binary);
    }
}
