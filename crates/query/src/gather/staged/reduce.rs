//! Which rows of a relation can matter, once the rows of another are known: the other's key values bound what is read of it.
//!
//! A row of `orders` whose customer was not read cannot meet `o_custkey = c_custkey`, whatever else the statement does with it, when
//! that condition must hold in the block of `orders`, in a block around it, or in one that is tied to these by a join or `IN`.

use super::blocks::{Blocks, ColumnId, Role, start_of};
use super::spread::equal_to;
use sqlparser::ast::Expr;
use std::collections::HashSet;

/// The blocks whose conditions hold for every row of `block` that matters, of those that are `inside`.
fn around(blocks: &Blocks<'_>, block: usize, inside: &dyn Fn(usize) -> bool) -> HashSet<usize> {
    let mut found = HashSet::from([block]);
    let mut todo = vec![block];
    while let Some(next) = todo.pop() {
        let own = &blocks.list[next];
        let parent = match own.role {
            // What a limit or a window leaves depends on all rows; its own conditions come before.
            Role::Derived if !blocks.is_plain(next) => None,
            Role::Top | Role::With | Role::Other => None,
            Role::Derived => own.parent,
            Role::In { .. } | Role::Exists | Role::Scalar => own.parent,
        };
        let joined = own.items.iter().filter(|i| !i.nullable).filter_map(|i| i.derived);
        let members = own.conditions.iter().filter_map(|condition| match condition {
            Expr::InSubquery {
                subquery,
                negated: false,
                ..
            } => blocks
                .list
                .iter()
                .position(|b| Some(b.span.start) == start_of(subquery)),
            _ => None,
        });
        let within = joined.chain(members).filter(|&inner| blocks.is_plain(inner));
        for other in within.chain(parent) {
            if inside(other) && found.insert(other) {
                todo.push(other);
            }
        }
    }
    found
}

/// A bound: this column of the mention has only values that the other mention's column has.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Bound {
    pub mention: usize,
    pub column: String,
    pub by: usize,
    pub by_column: String,
}

/// All bounds between the mentions of a statement.
pub(super) fn bounds(blocks: &Blocks<'_>) -> Vec<Bound> {
    bounds_of(blocks, &|_| true)
}

/// Those that follow from a block's own conditions and from those of blocks in it: they hold wherever the block runs by itself.
pub(super) fn bounds_inside(blocks: &Blocks<'_>, block: usize) -> Vec<Bound> {
    let span = &blocks.list[block].span;
    bounds_of(blocks, &|inner| span.contains(&blocks.list[inner].span.start))
}

fn bounds_of(blocks: &Blocks<'_>, inside: &dyn Fn(usize) -> bool) -> Vec<Bound> {
    let mut found = Vec::new();
    for block in (0..blocks.list.len()).filter(|&block| inside(block)) {
        let around = around(blocks, block, inside);
        if around.iter().any(|&b| blocks.list[b].unclear) {
            continue;
        }
        let equalities: Vec<_> = around.iter().flat_map(|&b| blocks.equalities(b)).collect();
        let columns: HashSet<&ColumnId> = equalities
            .iter()
            .flat_map(|(a, b)| [a, b])
            .filter(|(b, item, _)| *b == block && !blocks.list[block].items[*item].nullable)
            .collect();
        for own in columns {
            let Some(mention) = blocks.list[own.0].items[own.1].mention else {
                continue;
            };
            for (b, item, by_column) in equal_to(own.clone(), &equalities) {
                let entry = &blocks.list[b].items[item];
                match entry.mention {
                    Some(by) if by != mention && around.contains(&b) => found.push(Bound {
                        mention,
                        column: own.2.clone(),
                        by,
                        by_column,
                    }),
                    _ => {}
                }
            }
        }
    }
    found
}
