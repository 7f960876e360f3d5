//! Subqueries of IN that the shards can answer by themselves are run first, where their values bound what is copied: with
//! `o_orderkey IN (SELECT l_orderkey FROM lineitem GROUP BY l_orderkey HAVING sum(l_quantity) > 300)`, a few orders are read in place of
//! all. As long as the values are not too many, they also stand in the subquery's place from then on, so that it runs once.

use super::choose::{Choice, Size, Stage, bounded};
use super::reduce::Bound;
use super::{Blocks, Role};
use sqlparser::ast::Expr;

/// How many rows a relation is expected to have that is bounded so.
const EXPECTED: f64 = 1000.0;

/// A subquery that is run first.
pub(super) struct KeyQuery {
    /// how it runs
    pub stage: Stage,
    /// the column whose values it gives: the mention, and the name
    pub mention: usize,
    pub column: String,
    pub type_oid: u32,
    pub type_sql: String,
}

impl KeyQuery {
    /// Whether it knows all values that can matter.
    pub fn gives(&self, bound: &Bound) -> bool {
        self.mention == bound.by && self.column == bound.by_column
    }
}

/// The subqueries that are worth it for reading these mentions.
pub(super) fn find(choice: &Choice<'_>, mentions: &[usize]) -> Vec<KeyQuery> {
    let read = bounded(mentions, choice.sizes, choice.bounds, &|m, c| choice.is_unique(m, c));
    let is_large = |mention: usize| read.iter().any(|(m, rows)| *m == mention && *rows > choice.many_rows);
    let mut found: Vec<KeyQuery> = Vec::new();
    for block in 0..choice.blocks.list.len() {
        let at = choice.blocks.list[block].span.start;
        let is_inside = |query: &KeyQuery| choice.blocks.list[query.stage.block].span.contains(&at);
        if found.iter().any(is_inside) {
            continue;
        }
        let Some(query) = key_query(choice, block) else {
            continue;
        };
        let own = choice.mentions(block);
        let is_bounded = |b: &Bound| query.gives(b) && is_large(b.mention) && !own.contains(&b.mention);
        if choice.bounds.iter().any(is_bounded) {
            found.push(query);
        }
    }
    found
}

fn key_query(choice: &Choice<'_>, block: usize) -> Option<KeyQuery> {
    let blocks = choice.blocks;
    let own = &blocks.list[block];
    if !is_condition(blocks, block) || own.select.projection.len() != 1 || !blocks.is_plain(block) {
        return None;
    }
    let output = blocks.output(block, 0)?;
    let mention = blocks.list[output.0].items[output.1].mention?;
    let relation = blocks.metadata.relations[mention].as_ref()?;
    let column = relation.columns.iter().find(|c| c.name == output.2)?;
    Some(KeyQuery {
        stage: choice.by_itself(block)?,
        mention,
        type_oid: column.type_oid,
        type_sql: column.type_sql.clone(),
        column: output.2,
    })
}

/// Whether the block is the subquery of an IN that must hold: NULL is as good as false there, so NULLs among its values do not
/// matter.
fn is_condition(blocks: &Blocks<'_>, block: usize) -> bool {
    let own = &blocks.list[block];
    let (Role::In { negated: false, .. }, Some(parent)) = (&own.role, own.parent) else {
        return false;
    };
    blocks.list[parent].conditions.iter().any(|condition| match condition {
        Expr::InSubquery {
            subquery,
            negated: false,
            ..
        } => super::blocks::start_of(subquery) == Some(own.span.start),
        _ => false,
    })
}

/// The sizes, when what these subqueries bound is small.
pub(super) fn sizes(queries: &[KeyQuery], sizes: &[Size], bounds: &[Bound]) -> Vec<Size> {
    let mut sizes = sizes.to_vec();
    for bound in bounds {
        if queries.iter().any(|query| query.gives(bound)) {
            let wanted = &mut sizes[bound.mention].wanted;
            *wanted = wanted.min(EXPECTED);
        }
    }
    sizes
}
