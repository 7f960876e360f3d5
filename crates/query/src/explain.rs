//! EXPLAIN of a statement over several shards: the tier and why it is that one, and the SQL that each shard gets with the
//! shard's own plan for it. Nothing is run, unless a shard is to run its SELECT (`head` says ANALYZE).
//!
//! What the statement itself does when it is run is the gateway's to measure; [`Rows::statistics`](crate::Rows::statistics) has the
//! part that only this room knows.

use crate::relay;
use crate::statement::Statement;
use crate::{Engine, Fragment, Transaction, gather, insert, locking, plan, write};
use pgherd_model::{ServerError, ShardId};
use pgherd_shards::ColumnDescription;
use sqlparser::ast::{Expr, Query, Select, SetExpr, Statement as Ast, Visit, Visitor};
use std::collections::BTreeSet;
use std::ops::ControlFlow;

/// What is done where.
#[derive(Debug, Default)]
pub struct Explained {
    /// plan, gather or write
    pub tier: &'static str,
    /// why it is that tier
    pub reason: String,
    /// what the gateway, or the home shard, does with the shards' rows
    pub combine: String,
    /// what the shards are asked
    pub fragments: Vec<ExplainedFragment>,
}

/// What one shard is asked.
#[derive(Debug)]
pub struct ExplainedFragment {
    /// who
    pub shard: ShardId,
    /// what the rows are for, where it is not the only thing
    pub relation: Option<String>,
    /// the SQL
    pub sql: String,
    /// what the shard's EXPLAIN says: its lines, or one JSON document
    pub plan: Vec<String>,
}

/// Explains a statement that routing gives to this room. `head` is the EXPLAIN that is put before each shard's SQL.
///
/// # Errors
/// 0A000 for what would be refused, and PostgreSQL's own.
pub async fn explain(
    statement: Statement<'_>,
    columns: &[ColumnDescription],
    head: &str,
    transaction: &mut Transaction,
    engine: &Engine,
) -> Result<Explained, ServerError> {
    if statement.leaves_workers_to_us() {
        transaction.divide_workers();
    }
    let (mut explained, fragments) = match statement.ast {
        Ast::Insert(_) => insert_of(&statement, transaction).await?,
        Ast::Update(_) | Ast::Delete(_) => write_of(&statement, transaction).await?,
        Ast::Merge(_) => write_of(&statement, transaction).await?,
        Ast::Query(query) => match &*query.body {
            SetExpr::Insert(_) => insert_of(&statement, transaction).await?,
            SetExpr::Update(_) | SetExpr::Delete(_) | SetExpr::Merge(_) => write_of(&statement, transaction).await?,
            _ => select_of(&statement, query, columns, transaction, engine).await?,
        },
        _ => {
            return Err(ServerError::unsupported(
                "EXPLAIN of this statement is not supported over several shards",
                "Run it without EXPLAIN.",
            ));
        }
    };
    let shards: BTreeSet<_> = fragments.iter().map(|(_, fragment)| fragment.shard).collect();
    for (relation, fragment) in fragments {
        let plan = ask(head, &fragment, shards.len(), transaction).await?;
        explained.fragments.push(ExplainedFragment {
            shard: fragment.shard,
            relation,
            sql: fragment.sql,
            plan,
        });
    }
    Ok(explained)
}

/// A fragment, and the relation that it reads where several are read.
type Labelled = (Option<String>, Fragment);

fn labelled(fragments: Vec<Fragment>) -> Vec<Labelled> {
    fragments.into_iter().map(|fragment| (None, fragment)).collect()
}

async fn select_of(
    statement: &Statement<'_>,
    query: &Query,
    columns: &[ColumnDescription],
    transaction: &mut Transaction,
    engine: &Engine,
) -> Result<(Explained, Vec<Labelled>), ServerError> {
    if let Some(plan) = plan::plan(statement, columns) {
        let explained = Explained {
            tier: "plan",
            reason:
                "one sharded table, and every expression is computed by the shards or has keys to put rows together by"
                    .to_owned(),
            combine: plan.summary(),
            ..Explained::default()
        };
        return Ok((explained, labelled(plan.fragments)));
    }
    if locking::is_locking(statement) {
        let explained = Explained {
            tier: "gather",
            reason: "rows of a join or of a query that only PostgreSQL knows are locked".to_owned(),
            combine: "Run the statement on the home shard over copies of the rows, then lock each where it is"
                .to_owned(),
            ..Explained::default()
        };
        return Ok((explained, locking::fragments(statement, transaction).await?));
    }
    let mut reason = why_gathered(query);
    let mut are_few = false;
    if let Ok(reading) = gather::Reading::of(statement, None)
        && reading.home_function.is_none()
        && !reading.draws
    {
        let rows = reading.rows(transaction, engine).await?;
        are_few = engine.are_few(&rows);
        if let Some(steps) = gather::steps(statement, &reading, &rows, transaction, engine).await? {
            return Ok((in_stages(steps, reason), Vec::new()));
        }
    }
    let join = plan::join_run::plan(statement, columns);
    if are_few && join.is_some() {
        reason = "a plan for joining such small tables would take longer".to_owned();
    }
    if let Some(plan) = join.filter(|_| !are_few) {
        let explained = Explained {
            tier: "plan",
            reason: "the tables are joined by equal columns".to_owned(),
            combine: "Join".to_owned(),
            ..Explained::default()
        };
        return Ok((explained, labelled(plan.fragments)));
    }
    let explained = Explained {
        tier: "gather",
        reason,
        combine: "Run the statement on the home shard over copies of the rows".to_owned(),
        ..Explained::default()
    };
    Ok((explained, gather::fragments(statement, None, transaction).await?))
}

/// What the steps ask; their shards' own plans depend on rows that only a run has.
fn in_stages(steps: Vec<(String, Fragment)>, reason: String) -> Explained {
    let fragments = steps.into_iter().map(|(name, fragment)| ExplainedFragment {
        shard: fragment.shard,
        relation: Some(name),
        sql: fragment.sql,
        plan: Vec::new(),
    });
    Explained {
        tier: "gather",
        reason: format!("{reason}; the tables are large, so it runs in stages"),
        combine: "Run what is left of the statement on the home shard".to_owned(),
        fragments: fragments.collect(),
    }
}

async fn insert_of(
    statement: &Statement<'_>,
    transaction: &mut Transaction,
) -> Result<(Explained, Vec<Labelled>), ServerError> {
    let fragments = insert::fragments(statement, transaction).await?;
    let explained = Explained {
        tier: "write",
        reason: "the rows of the query are spread by their keys".to_owned(),
        combine: "Insert each row on the shard of its key".to_owned(),
        ..Explained::default()
    };
    Ok((explained, fragments))
}

async fn write_of(
    statement: &Statement<'_>,
    transaction: &mut Transaction,
) -> Result<(Explained, Vec<Labelled>), ServerError> {
    let is_merge = match statement.ast {
        Ast::Query(query) => matches!(&*query.body, SetExpr::Merge(_)),
        ast => matches!(ast, Ast::Merge(_)),
    };
    let fragments = match is_merge {
        true => write::merge_fragments(statement, transaction).await?,
        false => write::fragments(statement, transaction).await?,
    };
    let explained = Explained {
        tier: "write",
        reason: "rows of several shards decide what is written, or rows move between shards".to_owned(),
        combine: "Find the rows on the home shard, then write each where it is".to_owned(),
        ..Explained::default()
    };
    Ok((explained, fragments))
}

/// What keeps a query from tier 2, as far as its form shows it.
fn why_gathered(query: &Query) -> String {
    let mut form = Form::default();
    let _ = query.visit(&mut form);
    let found = [
        (query.with.is_some(), "WITH"),
        (form.set_operation, "a set operation"),
        (form.subqueries > 0, "a subquery"),
        (form.window, "window functions"),
        (
            form.many_relations,
            "a join that is not a plain one of equal columns of sharded tables",
        ),
    ];
    let parts: Vec<_> = found.iter().filter(|(is, _)| *is).map(|(_, what)| *what).collect();
    match parts.is_empty() {
        true => "an expression, a type or a relation in it is only known to PostgreSQL".to_owned(),
        false => format!("it has {}", parts.join(", ")),
    }
}

#[derive(Default)]
struct Form {
    depth: usize,
    subqueries: usize,
    set_operation: bool,
    window: bool,
    many_relations: bool,
}

impl Visitor for Form {
    type Break = ();

    fn pre_visit_query(&mut self, query: &Query) -> ControlFlow<()> {
        self.depth += 1;
        self.subqueries += usize::from(self.depth > 1);
        self.set_operation |= matches!(&*query.body, SetExpr::SetOperation { .. });
        ControlFlow::Continue(())
    }

    fn pre_visit_select(&mut self, select: &Select) -> ControlFlow<()> {
        self.many_relations |= select.from.len() > 1 || select.from.iter().any(|tree| !tree.joins.is_empty());
        ControlFlow::Continue(())
    }

    fn pre_visit_expr(&mut self, expr: &Expr) -> ControlFlow<()> {
        self.window |= matches!(expr, Expr::Function(function) if function.over.is_some());
        ControlFlow::Continue(())
    }
}

/// What the shard says about a fragment, which is for one of so many shards.
pub(crate) async fn ask(
    head: &str,
    fragment: &Fragment,
    one_of: usize,
    transaction: &mut Transaction,
) -> Result<Vec<String>, ServerError> {
    transaction.participant(fragment.shard).await?;
    let fences = fragment.fences.iter().map(|f| &**f).collect();
    transaction.queue_before_fragment(fragment.shard, &fences, one_of);
    let backend = transaction.participant(fragment.shard).await?;
    let sql = format!("{head}{}", fragment.sql);
    relay::send(backend, &sql, &fragment.parameter_types, &fragment.parameters, &[]).await?;
    relay::lines(backend).await
}

/// A number of the first node of a plan as EXPLAIN tells it, such as the one behind ` rows=`: `Hash Join  (cost=1.07..2.30 rows=3 width=8)`.
pub(crate) fn estimate(first_line: &str, behind: &str) -> Option<f64> {
    let (_, numbers) = first_line.split_once("  (cost=")?;
    let (_, number) = numbers.split_once(behind)?;
    number.split(' ').next()?.parse().ok()
}

/// What the first node of a plan costs, up to its last row.
pub(crate) const TOTAL_COST: &str = "..";
pub(crate) const ROWS: &str = " rows=";

#[cfg(test)]
mod tests {
    use super::{ROWS, TOTAL_COST, estimate};

    #[test]
    fn numbers_of_a_plan_are_read() {
        let line = "Index Scan using \"a..b rows=1\" on t  (cost=73669.10..74040.18 rows=37108 width=8)";
        assert_eq!(estimate(line, TOTAL_COST), Some(74040.18));
        assert_eq!(estimate(line, ROWS), Some(37108.0));
        assert_eq!(estimate("Result", ROWS), None);
    }
}
