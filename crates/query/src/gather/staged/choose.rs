//! Which blocks run on the shards, with which tables left in place, and which relations are copied: decided by how many bytes
//! would travel.

use super::aggregates::{self, Divided};
use super::blocks::{Blocks, Role, start_of};
use super::by_range;
use super::reduce::{self, Bound};
use super::spread::{self, Anchors, As, Spread, is_uncorrelated, subqueries};
use crate::gather::source::Resolution;
use crate::render::FUNCTIONS;
use pgherd_model::ShardId;
use sqlparser::ast::{DataType, Expr, Query, Visit, Visitor};
use std::collections::{BTreeMap, HashSet};
use std::ops::ControlFlow;

/// What is known of a mention's rows.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Size {
    /// in the whole relation
    pub rows: f64,
    /// that meet the conditions on it alone
    pub wanted: f64,
    /// bytes of a row, as far as its columns are wanted
    pub width: f64,
}

/// A block that runs on the shards.
#[derive(Debug, Clone)]
pub(super) struct Stage {
    pub block: usize,
    pub anchors: Anchors,
    /// with partial aggregates
    pub partial: bool,
    pub shards: Vec<ShardId>,
    /// what ties columns of relations that are sent along to keys of those that stay in place
    pub ties: Vec<Bound>,
}

impl Stage {
    /// Whether rows of a mention matter only on the shards that have their key.
    fn ties(&self, mention: usize) -> bool {
        self.ties.iter().any(|tie| tie.mention == mention)
    }
}

/// What groups that travel cost: so many rows of so many columns.
pub(super) fn cost_of_groups(rows: f64, columns: usize) -> f64 {
    const COLUMN: f64 = 12.0;
    GATHERED * rows * (ROW + COLUMN * columns as f64)
}

/// A row costs as much as this many bytes before it has any.
const ROW: f64 = 30.0;
/// A byte that is copied into a temporary table and analysed there, against one that only travels.
const GATHERED: f64 = 2.2;
/// A byte that is sent to one shard in an array, against one that travels from the shards.
const SENT: f64 = 0.5;
/// Beyond this, nothing is copied to every shard: it has to fit into the gateway's memory.
const MOST_COPIED: f64 = 150e6;

/// A copy of at most so many rows may be looked through again and again.
const LOOKED_THROUGH: f64 = 50.0;

pub(super) struct Choice<'a> {
    pub blocks: &'a Blocks<'a>,
    pub resolutions: &'a [Resolution],
    pub sizes: &'a [Size],
    pub bounds: &'a [Bound],
    /// whether `$number` can be sent to a shard
    pub parameter: &'a dyn Fn(usize) -> bool,
    /// it is not worth a step of its own to spare fewer rows than this
    pub many_rows: f64,
    pub stages: Vec<Stage>,
}

/// How many rows of each of these mentions will be read, when those that are small bound the others; in the order in which they
/// are read.
pub(super) fn bounded(
    mentions: &[usize],
    sizes: &[Size],
    bounds: &[Bound],
    unique: &dyn Fn(usize, &str) -> bool,
) -> Vec<(usize, f64)> {
    let mut read: Vec<(usize, f64)> = Vec::new();
    let mut left: Vec<usize> = mentions.to_vec();
    while !left.is_empty() {
        let estimate = |mention: usize| {
            let mut columns: BTreeMap<&str, f64> = BTreeMap::new();
            for bound in bounds.iter().filter(|b| b.mention == mention) {
                if let Some((_, known)) = read.iter().find(|(m, _)| *m == bound.by)
                    && unique(bound.by, &bound.by_column)
                    && sizes[bound.by].rows > 0.0
                {
                    let share = (known / sizes[bound.by].rows).min(1.0);
                    let least = columns.entry(&bound.column).or_insert(1.0);
                    *least = least.min(share);
                }
            }
            sizes[mention].wanted * columns.values().product::<f64>()
        };
        let estimates: Vec<f64> = left.iter().map(|&m| estimate(m)).collect();
        let smallest = (0..left.len())
            .min_by(|&a, &b| estimates[a].total_cmp(&estimates[b]))
            .unwrap_or(0);
        read.push((left.remove(smallest), estimates[smallest]));
    }
    read
}

/// Whether no two rows of a mention have the same value in a column.
pub(super) fn is_unique(resolutions: &[Resolution], mention: usize, column: &str) -> bool {
    let sharded = resolutions[mention].table.as_ref().and_then(|t| t.sharded());
    sharded.is_some_and(|s| {
        s.unique
            .iter()
            .any(|(_, columns)| columns.len() == 1 && columns[0] == column)
    })
}

impl Choice<'_> {
    /// Decides for all blocks.
    pub fn decide(&mut self) {
        for root in 0..self.blocks.list.len() {
            if self.blocks.list[root].parent.is_none() {
                self.descend(root);
            }
        }
    }

    /// Decides for the blocks inside the statement's own.
    pub fn decide_inside(&mut self) {
        for block in 0..self.blocks.list.len() {
            let parent = self.blocks.list[block].parent;
            if parent.is_some_and(|parent| self.blocks.list[parent].parent.is_none()) {
                self.descend(block);
            }
        }
    }

    fn descend(&mut self, block: usize) {
        if let Some(stage) = self.best(block) {
            let partial = stage.partial;
            self.stages.push(stage);
            if !partial {
                return;
            }
            // Subqueries of outputs and HAVING stay behind.
            let select = self.blocks.list[block].select.clone();
            let outputs = select.projection.iter().filter_map(super::blocks::item_expr);
            for query in outputs.chain(&select.having).flat_map(subqueries) {
                if let Some(inner) = self
                    .blocks
                    .list
                    .iter()
                    .position(|b| Some(b.span.start) == start_of(&query))
                {
                    self.descend(inner);
                }
            }
            return;
        }
        for inner in 0..self.blocks.list.len() {
            if self.blocks.list[inner].parent == Some(block) {
                self.descend(inner);
            }
        }
    }

    /// The mentions inside a block, subqueries included.
    pub fn mentions(&self, block: usize) -> Vec<usize> {
        let span = &self.blocks.list[block].span;
        let inside = |m: &usize| span.contains(&self.resolutions[*m].mention.span.start);
        (0..self.resolutions.len()).filter(inside).collect()
    }

    pub fn is_unique(&self, mention: usize, column: &str) -> bool {
        is_unique(self.resolutions, mention, column)
    }

    fn bytes(&self, mentions: &[usize], sizes: &[Size]) -> f64 {
        self.weighted(mentions, sizes, &|_| 1.0)
    }

    fn weighted(&self, mentions: &[usize], sizes: &[Size], weight: &dyn Fn(usize) -> f64) -> f64 {
        let rows = bounded(mentions, sizes, self.bounds, &|m, c| self.is_unique(m, c));
        rows.iter()
            .map(|(m, rows)| weight(*m) * rows * (sizes[*m].width + ROW))
            .sum()
    }

    /// What a stage costs before it gives anything: the relations that are sent to its shards, each row to one of them where a key says which.
    fn cost_of(&self, stage: &Stage, copied: &[usize]) -> f64 {
        let to = |mention| match stage.ties(mention) {
            true => 1,
            false => stage.shards.len(),
        };
        self.weighted(copied, self.sizes, &|mention| 1.0 + SENT * to(mention) as f64)
    }

    fn copied(&self, stage: &Stage) -> Vec<usize> {
        let is_copied = |m: &usize| stage.anchors[*m].is_none() && self.reads(stage, *m);
        self.mentions(stage.block).into_iter().filter(is_copied).collect()
    }

    /// What was decided costs, but for what stages give: `unstaged` are gathered, with these sizes.
    pub fn cost(&self, unstaged: &[usize], sizes: &[Size]) -> f64 {
        let stages = self.stages.iter().map(|stage| self.cost_of(stage, &self.copied(stage)));
        stages.sum::<f64>() + GATHERED * self.bytes(unstaged, sizes)
    }

    fn best(&self, block: usize) -> Option<Stage> {
        let mentions = self.mentions(block);
        let mut best: Option<(f64, Stage)> = None;
        for stage in self.possible(block) {
            let copied = self.copied(&stage);
            let bytes = self.bytes(&copied, self.sizes);
            let cost = self.cost_of(&stage, &copied);
            let copyable = copied.iter().all(|&m| self.can_be_copied(m)) && !self.looks_up(&copied);
            if bytes > MOST_COPIED || !copyable || best.as_ref().is_some_and(|(least, _)| *least <= cost) {
                continue;
            }
            best = Some((cost, stage));
        }
        let (cost, stage) = best?;
        (cost <= GATHERED * self.bytes(&mentions, self.sizes)).then_some(stage)
    }

    /// The way in which the shards run a block whole without a copy of anything.
    pub fn by_itself(&self, block: usize) -> Option<Stage> {
        let mentions = self.mentions(block);
        let stays = |stage: &Stage| mentions.iter().all(|&m| stage.anchors[m].is_some());
        self.possible(block)
            .into_iter()
            .find(|stage| !stage.partial && stays(stage))
    }

    /// The ways in which a block can run on the shards: one per colocation group of its tables.
    fn possible(&self, block: usize) -> Vec<Stage> {
        if !self.may_leave(block) || !is_uncorrelated(self.blocks, block) {
            return Vec::new();
        }
        let mentions = self.mentions(block);
        let bounds = reduce::bounds_inside(self.blocks, block);
        let with = |group: u32| {
            let mut anchors: Anchors = vec![None; self.resolutions.len()];
            let mut shards: Vec<ShardId> = Vec::new();
            for &mention in &mentions {
                if let Some(sharded) = self.resolutions[mention].table.as_ref().and_then(|t| t.sharded())
                    && sharded.colocation == group
                {
                    anchors[mention] = Some(sharded.key[0].clone());
                    shards.extend(sharded.ranges.ranges().iter().map(|r| r.shard));
                }
            }
            shards.sort();
            shards.dedup();
            let partial = self.runs(block, &anchors)?;
            Some(Stage {
                block,
                ties: by_range::ties(&bounds, &anchors),
                anchors,
                partial,
                shards,
            })
        };
        self.groups(&mentions).into_iter().filter_map(with).collect()
    }

    /// Whether the shards can run a block whole (`false`) or in part (`true`).
    fn runs(&self, block: usize, anchors: &Anchors) -> Option<bool> {
        let by_key = |look| {
            matches!(
                spread::spread(self.blocks, block, anchors, &HashSet::new(), look),
                Some(Spread::ByKey(_))
            )
        };
        if by_key(As::Whole) && self.divided(block, false).is_some() {
            return Some(false);
        }
        let own = &self.blocks.list[block];
        let grouped = own.aggregates || self.blocks.groups(block).is_some_and(|g| !g.is_empty());
        (grouped && by_key(As::Partial) && self.divided(block, true).is_some()).then_some(true)
    }

    fn divided(&self, block: usize, partial: bool) -> Option<Divided> {
        match partial {
            true => aggregates::partial(self.blocks, block, &[], &[]),
            false => aggregates::whole(self.blocks, block, &[]).filter(|_| self.columns_are_grouped(block)),
        }
    }

    /// Outputs of a grouping are what is grouped by: a primary key that stands for its row's other columns is not known on copies.
    fn columns_are_grouped(&self, block: usize) -> bool {
        let span = &self.blocks.list[block].span;
        let inside = (0..self.blocks.list.len()).filter(|&b| span.contains(&self.blocks.list[b].span.start));
        inside
            .filter(|&b| self.blocks.groups(b).is_some_and(|g| !g.is_empty()))
            .all(|b| aggregates::outputs_are_grouped(self.blocks, b))
    }

    /// The colocation groups of tables with one key column.
    fn groups(&self, mentions: &[usize]) -> Vec<u32> {
        let tables = mentions.iter().filter_map(|&m| self.resolutions[m].table.as_ref());
        let sharded = tables.filter_map(|t| t.sharded()).filter(|s| s.key.len() == 1);
        let mut groups: Vec<u32> = sharded.map(|s| s.colocation).collect();
        groups.sort_unstable();
        groups.dedup();
        groups
    }

    /// Whether a subquery would look through a copy for each row of what is around it: a copy has no index.
    fn looks_up(&self, copied: &[usize]) -> bool {
        let rows = bounded(copied, self.sizes, self.bounds, &|m, c| self.is_unique(m, c));
        self.blocks.list.iter().enumerate().any(|(b, block)| {
            let large = |item: &super::blocks::Item| {
                rows.iter()
                    .any(|(m, rows)| item.mention == Some(*m) && *rows > LOOKED_THROUGH)
            };
            block.role == Role::Scalar && block.items.iter().any(large) && !is_uncorrelated(self.blocks, b)
        })
    }

    /// Copies travel in arrays of values in binary, which lose a column's own collation.
    fn can_be_copied(&self, mention: usize) -> bool {
        let relation = self.blocks.metadata.relations[mention].as_ref();
        relation.is_some_and(|r| r.columns.iter().all(|c| c.binary && c.collation_sql.is_empty()))
    }

    /// Whether everything in a block means the same on every shard.
    fn may_leave(&self, block: usize) -> bool {
        struct Check<'a>(&'a dyn Fn(usize) -> bool);
        impl Visitor for Check<'_> {
            type Break = ();
            fn pre_visit_expr(&mut self, expr: &Expr) -> ControlFlow<()> {
                let fine = match expr {
                    Expr::Function(function) => {
                        let name = crate::relations::parts(&function.name).and_then(|parts| match parts.as_slice() {
                            [name] => Some(crate::relations::fold(name)),
                            _ => None,
                        });
                        super::calls::is_aggregate(function)
                            || name.is_some_and(|n| function.over.is_none() && FUNCTIONS.contains(&n.as_str()))
                    }
                    Expr::Cast { data_type, .. } => !matches!(data_type, DataType::Custom(..) | DataType::Regclass),
                    Expr::TypedString(typed) => !matches!(typed.data_type, DataType::Custom(..) | DataType::Regclass),
                    Expr::Value(value) => match &value.value {
                        sqlparser::ast::Value::Placeholder(name) => {
                            let number = name.strip_prefix('$').and_then(|n| n.parse().ok());
                            number.is_some_and(self.0)
                        }
                        _ => true,
                    },
                    _ => true,
                };
                match fine {
                    true => ControlFlow::Continue(()),
                    false => ControlFlow::Break(()),
                }
            }
            fn pre_visit_query(&mut self, query: &Query) -> ControlFlow<()> {
                match query.locks.is_empty() {
                    true => ControlFlow::Continue(()),
                    false => ControlFlow::Break(()),
                }
            }
        }
        let own = &self.blocks.list[block];
        own.query.visit(&mut Check(self.parameter)).is_continue() && !self.blocks.parsed.relations.names_schemas()
    }
}

impl Choice<'_> {
    /// Whether a mention is read by the part of a block that runs on the shards: not by the subqueries of a divided block's outputs and
    /// HAVING, which stay behind.
    pub fn reads(&self, stage: &Stage, mention: usize) -> bool {
        let at = self.resolutions[mention].mention.span.start;
        let own = &self.blocks.list[stage.block];
        if !own.span.contains(&at) {
            return false;
        }
        if !stage.partial {
            return true;
        }
        let outputs = own.select.projection.iter().filter_map(super::blocks::item_expr);
        let behind = outputs.chain(&own.select.having).flat_map(subqueries);
        !behind
            .filter_map(|query| self.blocks.list.iter().find(|b| Some(b.span.start) == start_of(&query)))
            .any(|inner| inner.span.contains(&at))
    }
}
