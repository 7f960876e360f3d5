//! In which order relations are read, and what bounds each of them: values that are known by then.

use super::blocks::{Blocks, ColumnId, Role};
use super::choose::{Choice, Size, bounded};
use super::first::{self, Given};
use super::keys::{self, KeyQuery};
use super::reduce::Bound;
use super::{By, Fetch, FetchBound, prune};
use crate::gather::source::Gathered;
use std::collections::HashMap;

/// The stage that reads a mention: its block's, or that of the innermost stage around it where a subquery of its HAVING is a stage.
pub(super) fn stage_of(choice: &Choice<'_>, mention: usize) -> Option<usize> {
    let inside = (0..choice.stages.len()).filter(|&s| choice.reads(&choice.stages[s], mention));
    inside.min_by_key(|&s| choice.blocks.list[choice.stages[s].block].span.len())
}

/// The sources, each behind those that bound it, with their bounds.
pub(super) fn in_order(
    mut sources: Vec<Gathered>,
    stage_of: &[Option<usize>],
    keys: &[KeyQuery],
    choice: &Choice<'_>,
) -> Vec<Fetch> {
    let blocks = choice.blocks;
    let sizes = keys::sizes(keys, choice.sizes, choice.bounds);
    let mentions: Vec<usize> = sources.iter().flat_map(|s| s.mentions.iter().copied()).collect();
    let order = bounded(&mentions, &sizes, choice.bounds, &|m, c| choice.is_unique(m, c));
    let mut given = first::given(blocks, &choice.stages);
    // What is run before everything else bounds better.
    given.retain(|g| {
        !keys
            .iter()
            .any(|query| query.stage.block == choice.stages[g.stage].block)
    });
    let behind = |source: &Gathered| is_behind_stages(source, stage_of, &given, choice);
    sources.sort_by_key(|source| {
        (
            behind(source),
            order.iter().rposition(|(m, _)| source.mentions.contains(m)),
        )
    });
    let rows: HashMap<usize, f64> = order.into_iter().collect();
    let mut fetches: Vec<Fetch> = Vec::new();
    for mut source in sources {
        let known = prune::known(blocks, &source);
        prune::prune(blocks, &mut source, &known);
        let mut fetch = Fetch {
            known,
            stage: stage_of[source.mentions[0]],
            bounds: Vec::new(),
            behind_stages: is_behind_stages(&source, stage_of, &given, choice),
            collects: Vec::new(),
            index: index(blocks, &source),
            source,
        };
        for (slot, &mention) in fetch.source.mentions.iter().enumerate() {
            for bound in choice.bounds.iter().filter(|b| b.mention == mention) {
                let stage = given
                    .iter()
                    .find(|g| fetch.behind_stages && may_bound(g, bound, choice));
                let by = match (keys.iter().position(|query| query.gives(bound)), stage) {
                    (Some(query), _) => Some(By::Keys(query)),
                    (None, Some(given)) => Some(By::Stage {
                        stage: given.stage,
                        place: given.place,
                        output: given.output,
                    }),
                    (None, None) => by_fetch(bound, &fetches, &rows, &sizes),
                };
                let (Some(by), Some(by_type)) = (by, type_of(bound, choice)) else {
                    continue;
                };
                if let By::Fetch { at, place } = by {
                    fetches[at].collects.push(place);
                }
                fetch.bounds.push(FetchBound {
                    slot,
                    column: bound.column.clone(),
                    by,
                    by_type,
                    values: values(bound, choice),
                    by_rows: sizes[bound.by].rows,
                });
            }
        }
        fetch.source.distinct = fetch.stage.is_none() && only_existence(blocks, &fetch.source);
        fetches.push(fetch);
    }
    for fetch in &mut fetches {
        fetch.collects.sort_unstable();
        fetch.collects.dedup();
    }
    fetches
}

/// The type of the column that bounds.
fn type_of(bound: &Bound, choice: &Choice<'_>) -> Option<(u32, String)> {
    let columns = &choice.blocks.metadata.relations[bound.by].as_ref()?.columns;
    let column = columns.iter().find(|c| c.name == bound.by_column)?;
    Some((column.type_oid, column.type_sql.clone()))
}

/// Whether a stage knows a bound's values: the mention that is bounded is not one of its own.
fn may_bound(given: &Given, bound: &Bound, choice: &Choice<'_>) -> bool {
    let own = choice.mentions(choice.stages[given.stage].block);
    given.gives(bound) && !own.contains(&bound.mention)
}

/// Whether a source is read after the stages: they bound it, it is large, and no stage waits for what it bounds.
fn is_behind_stages(source: &Gathered, stage_of: &[Option<usize>], given: &[Given], choice: &Choice<'_>) -> bool {
    let is_own = |mention: usize| source.mentions.contains(&mention);
    let by_stage = |b: &Bound| is_own(b.mention) && given.iter().any(|g| may_bound(g, b, choice));
    let is_sent = |mention: usize| stage_of[mention].is_some_and(|s| choice.stages[s].anchors[mention].is_none());
    let spares = |by: usize| choice.sizes[by].wanted <= choice.sizes[by].rows * ALMOST_ALL;
    let for_stage = |b: &Bound| is_own(b.by) && is_sent(b.mention) && spares(b.by);
    source
        .mentions
        .iter()
        .all(|&m| stage_of[m].is_none() && choice.sizes[m].wanted > choice.many_rows)
        && choice.bounds.iter().any(by_stage)
        && !choice.bounds.iter().any(for_stage)
}

/// A larger part of a relation's rows than this bounds nothing.
pub(super) const ALMOST_ALL: f64 = 0.7;
/// Of a relation with fewer rows, what part is read is known only when it has been read.
const SMALL: f64 = 100.0;

/// The earlier fetch that knows a bound's values, where anything is gained by them.
fn by_fetch(bound: &Bound, fetches: &[Fetch], rows: &HashMap<usize, f64>, sizes: &[Size]) -> Option<By> {
    let at = fetches.iter().position(|f| f.source.mentions.contains(&bound.by))?;
    // Nothing is where all values are there.
    let all = sizes[bound.by].rows;
    if all > SMALL && rows[&bound.by] > all * ALMOST_ALL && all >= sizes[bound.mention].rows / 50.0 {
        return None;
    }
    let source = &fetches[at].source;
    let is_column = |c: &usize| source.relation.columns[*c].name == bound.by_column;
    let place = source.wanted.iter().position(is_column)?;
    Some(By::Fetch { at, place })
}

/// How many values a bounded column has without the bound: as many as a unique column that it equals has.
fn values(bound: &Bound, choice: &Choice<'_>) -> Option<f64> {
    let same = choice
        .bounds
        .iter()
        .filter(|b| b.mention == bound.mention && b.column == bound.column);
    let unique = same.filter(|b| choice.is_unique(b.by, &b.by_column));
    unique.map(|b| choice.sizes[b.by].rows).reduce(f64::max)
}

/// Whether a source's rows are only asked whether they are there: it stands alone in EXISTS and IN.
fn only_existence(blocks: &Blocks<'_>, source: &Gathered) -> bool {
    source.mentions.iter().all(|&mention| {
        blocks.list.iter().any(|block| {
            let alone = block.items.len() == 1 && block.items[0].mention == Some(mention);
            let plain = !block.aggregates && block.query.limit_clause.is_none() && !block.unclear;
            let no_groups =
                matches!(&block.select.group_by, sqlparser::ast::GroupByExpr::Expressions(l, _) if l.is_empty());
            alone
                && plain
                && no_groups
                && block.select.having.is_none()
                && block.query.with.is_none()
                && matches!(block.role, Role::Exists | Role::In { .. })
        })
    })
}

/// The columns by which correlated subqueries look up a source's rows, when all its mentions agree on them.
fn index(blocks: &Blocks<'_>, source: &Gathered) -> Vec<String> {
    let mut found: Vec<String> = Vec::new();
    for (b, block) in blocks.list.iter().enumerate() {
        let own = |item: usize| block.items[item].mention.is_some_and(|m| source.mentions.contains(&m));
        if !matches!(block.role, Role::Scalar) || !(0..block.items.len()).any(own) {
            continue;
        }
        let mut columns: Vec<String> = Vec::new();
        let mut add = |a: &ColumnId, other: &ColumnId| {
            if a.0 == b && own(a.1) && other.0 != b && !columns.contains(&a.2) {
                columns.push(a.2.clone());
            }
        };
        for (a, c) in blocks.equalities(b) {
            add(&a, &c);
            add(&c, &a);
        }
        if !columns.is_empty() && found.is_empty() {
            found = columns;
        }
    }
    found
}
