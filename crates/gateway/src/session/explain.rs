//! EXPLAIN. PostgreSQL's own where only local tables are concerned; else what runs where, with each shard's own plan, and with
//! ANALYZE what the statement took when it was run.
//!
//! A shard runs its part of a SELECT once more for its plan's ANALYZE. What writes runs once, so its shards tell plans only.

use super::enter::Entered;
use super::forward::no_block;
use super::stored::with_position;
use super::{Mode, Problem, Session, Unit};
use crate::client::Discarded;
use crate::explain_text::{Actual, Distributed, ShardPlan};
use pgherd_model::{ServerError, SqlState};
use pgherd_query::Explained;
use pgherd_sql::{Ddl, DdlKind, ExplainFormat, ExplainOptions, Kind, Part, Route};
use std::time::Instant;

/// What a statement used while EXPLAIN ANALYZE ran it.
#[derive(Debug, Default, Clone)]
pub(crate) struct Used {
    /// bytes from each shard
    pub(crate) received: Vec<(pgherd_model::ShardId, u64)>,
    /// of the gateway's own computing
    pub(crate) statistics: Option<pgherd_query::Statistics>,
}

/// A problem's position behind what stands before the text that it is of; none where that is not known.
fn behind(problem: Problem, before: Option<&str>) -> Problem {
    let characters = before.map(|before| before.chars().count() as u32);
    with_position(problem, |position| Some(position? + characters?))
}

impl Session {
    /// Runs an EXPLAIN.
    pub(crate) async fn explain(&mut self, unit: Unit<'_>) -> Result<(), Problem> {
        if let Kind::Explain { inner, .. } = &unit.statement.parsed.kind {
            let (head, inner) = unit.statement.text.split_at_checked(inner.start).unwrap_or_default();
            let statements = self.database.cache.parse(inner)?;
            if let Some(execute) = statements.first()
                && let Kind::Execute(name) = &execute.parsed.kind
            {
                let execute = Unit {
                    statement: execute,
                    ..unit
                };
                return self.explain_stored(execute, name, head).await;
            }
        }
        let entered = self.enter(unit).await?;
        self.begin_strict_for_one(&entered.snapshot);
        let sharded = entered.analysis.touches_sharded;
        drop(entered);
        let Kind::Explain { analyze, inner } = &unit.statement.parsed.kind else {
            return Err(ServerError::internal("EXPLAIN without its parts").into());
        };
        let inner_text = unit.statement.text.get(inner.clone()).unwrap_or_default();
        if *analyze {
            self.lock_inner(unit, inner_text).await?;
        }
        if !sharded {
            return self.routed(unit).await;
        }
        let statements = self.database.cache.parse(inner_text)?;
        let statement = statements
            .first()
            .ok_or_else(|| ServerError::new(SqlState::SYNTAX_ERROR, "syntax error at end of input"))?;
        if let Kind::Ddl(ddl) = &statement.parsed.kind
            && [DdlKind::CreateTableAs, DdlKind::CreateMaterializedView].contains(&ddl.kind)
        {
            return self
                .explain_table_as(unit, Unit { statement, ..unit }, ddl, *analyze)
                .await;
        }
        // PostgreSQL shows the plan of the cursor's query, and declares none.
        if let Kind::Declare { inner, .. } = &statement.parsed.kind {
            let query = statement.text.get(inner.clone()).unwrap_or_default();
            return self.explain_instead(unit, query).await;
        }
        let entered = self.enter(Unit { statement, ..unit }).await?;
        if let Some(instead) = entered.analysis.instead.clone() {
            drop(entered);
            let statements = self.database.cache.parse(&instead.text)?;
            let statement = statements
                .first()
                .ok_or_else(|| ServerError::internal("a statement in other words is no statement"))?;
            let entered = self.enter(Unit { statement, ..unit }).await?;
            return self.explain_inner(unit, Unit { statement, ..unit }, entered).await;
        }
        self.explain_inner(unit, Unit { statement, ..unit }, entered).await
    }

    /// The same EXPLAIN of another statement.
    async fn explain_instead(&mut self, unit: Unit<'_>, query: &str) -> Result<(), Problem> {
        let Kind::Explain { inner, .. } = &unit.statement.parsed.kind else {
            return Err(ServerError::internal("EXPLAIN without its parts").into());
        };
        let head = unit.statement.text.get(..inner.start).unwrap_or_default();
        let statements = self.database.cache.parse(&format!("{head}{query}"))?;
        let statement = statements
            .first()
            .ok_or_else(|| ServerError::new(SqlState::SYNTAX_ERROR, "syntax error at end of input"))?;
        let explained = Box::pin(self.explain(Unit { statement, ..unit })).await;
        let before = unit.statement.text.get(inner.start..).unwrap_or_default();
        let before = before.find(query).and_then(|at| before.get(..at));
        explained.map_err(|problem| behind(problem, before))
    }

    /// EXPLAIN of CREATE TABLE AS and of CREATE MATERIALIZED VIEW shows the query's plan, as PostgreSQL does. With ANALYZE the table is made, and then the query runs for
    /// its plan.
    async fn explain_table_as(
        &mut self,
        unit: Unit<'_>,
        inner: Unit<'_>,
        ddl: &Ddl,
        analyze: bool,
    ) -> Result<(), Problem> {
        let (text, tokens) = (&inner.statement.text, &inner.statement.parsed.tokens);
        let parts = ddl
            .relations
            .first()
            .and_then(|name| pgherd_sql::table_as(text, tokens, name));
        let Some(parts) = parts.filter(|p| p.with_data || !analyze) else {
            return Err(ServerError::unsupported(
                "EXPLAIN ANALYZE of this form of CREATE TABLE AS is not supported on sharded tables",
                "Explain its query.",
            )
            .into());
        };
        if analyze {
            self.client.discard();
            let made = Box::pin(self.change_schema(inner)).await;
            self.client.keep();
            let head = unit.statement.text.strip_suffix(&**text);
            made.map_err(|problem| behind(problem, head))?;
        }
        self.explain_instead(unit, &parts.query).await
    }

    async fn explain_inner(&mut self, unit: Unit<'_>, inner: Unit<'_>, entered: Entered) -> Result<(), Problem> {
        let inner = Unit {
            mode: Mode::HIDDEN,
            ..inner
        };
        let options = ExplainOptions::read(&unit.statement.text, &unit.statement.parsed.tokens);
        // What is wrong with the statement in itself, PostgreSQL says first, and where.
        if let Err(Problem::Error(error)) = self.description(inner, &entered.snapshot).await {
            let head = unit.statement.text.strip_suffix(&*inner.statement.text);
            return Err(behind(error.into(), head));
        }
        let types = self.parameter_types(inner, &entered).await?;
        let route = entered.analysis.route(&entered.snapshot, &inner.values(&types));
        let in_parts = super::execute::needs_parts(inner, &entered, &route).is_some();
        if let (Route::Refuse(error), false) = (&route, in_parts) {
            return Err(self.refused(inner, &entered, error.clone()).await);
        }
        if options.format == ExplainFormat::Other {
            return self.judged_by_home(unit).await;
        }
        let made = self.ensure_block();
        self.explains_alone = made && !in_parts;
        let result = match in_parts {
            true => {
                drop(entered);
                self.explain_in_parts(inner, &options).await
            }
            false => self.explain_in_block(inner, entered, &route, &options).await,
        };
        self.explains_alone = false;
        let result = match result {
            Ok(distributed) => {
                self.put_plan(unit, &options, &distributed);
                Ok(Some("EXPLAIN".to_owned()))
            }
            Err(Problem::Error(error)) => Err(self.as_client_sees(error).with_position(None).into()),
            Err(other) => Err(other),
        };
        self.finish_statement(made, result).await
    }

    async fn explain_in_block(
        &mut self,
        inner: Unit<'_>,
        entered: Entered,
        route: &Route,
        options: &ExplainOptions,
    ) -> Result<Distributed, Problem> {
        let began = Instant::now();
        let reads = entered.analysis.read_only;
        // On one shard, the shard's ANALYZE is the whole: it runs the statement.
        let alone = matches!(route, Route::Forward(_));
        let analyze_parts = options.analyze && (reads || alone);
        let head = options.head(analyze_parts);
        let mut distributed = Distributed::default();
        if !options.analyze || !reads {
            distributed = self.what_runs_where(inner, &entered, route, &head).await?;
        }
        let planning_ms = began.elapsed().as_secs_f64() * 1e3;
        if !options.analyze {
            distributed.planning_ms = Some(planning_ms);
            return Ok(distributed);
        }
        if alone {
            let began = Instant::now();
            if reads {
                distributed = self.what_runs_where(inner, &entered, route, &head).await?;
            }
            distributed.execution_ms = Some(began.elapsed().as_secs_f64() * 1e3);
            return Ok(distributed);
        }
        drop(entered);
        self.run_explained(inner, &mut distributed).await?;
        if reads {
            let entered = self.enter(inner).await?;
            let plan = self.what_runs_where(inner, &entered, route, &head).await?;
            distributed = Distributed {
                execution_ms: distributed.execution_ms,
                actual: distributed.actual,
                ..plan
            };
        }
        Ok(distributed)
    }

    /// Runs the statement with its rows thrown away, and notes what it took.
    pub(super) async fn run_explained(
        &mut self,
        inner: Unit<'_>,
        distributed: &mut Distributed,
    ) -> Result<(), Problem> {
        let began = Instant::now();
        self.client.discard();
        let run = Box::pin(self.routed(inner)).await;
        let Discarded { tag, bytes, .. } = self.client.keep();
        let used = self.used.take().unwrap_or_default();
        run?;
        distributed.execution_ms = Some(began.elapsed().as_secs_f64() * 1e3);
        distributed.actual = Some(Actual {
            rows: tag.rsplit(' ').next().and_then(|n| n.parse().ok()).unwrap_or(0),
            bytes,
            used,
        });
        Ok(())
    }

    /// The parts, with the shards' own plans.
    pub(super) async fn what_runs_where(
        &mut self,
        inner: Unit<'_>,
        entered: &Entered,
        route: &Route,
        head: &str,
    ) -> Result<Distributed, Problem> {
        match route {
            Route::Forward(part) => {
                let reason = "all rows that it needs are on one shard";
                self.explain_parts(
                    inner,
                    entered,
                    std::slice::from_ref(part),
                    head,
                    ("forward", reason, "Pass on"),
                )
                .await
            }
            Route::Scatter { parts, .. } => {
                let reason = "each shard finds its rows alone";
                let combine = if parts.len() > 1 {
                    "Add up the counts"
                } else {
                    "Pass on"
                };
                self.explain_parts(inner, entered, parts, head, ("scatter", reason, combine))
                    .await
            }
            Route::Defaults { .. } => Ok(Distributed {
                tier: "scatter",
                reason: "each row goes to the shard of its key, which is known when the statement runs".to_owned(),
                combine: "Ask the home shard for values of sequences and keys, then insert".to_owned(),
                ..Distributed::default()
            }),
            Route::Plan | Route::GatherWrite => {
                let description = self.description(inner, &entered.snapshot).await?;
                let surroundings = self
                    .surroundings(&description.parameter_types, &entered.snapshot)
                    .await?;
                let not_known = (
                    "EXPLAIN of this statement is not supported yet",
                    "Run it without EXPLAIN.",
                );
                let statement = pgherd_query::Statement {
                    alone: self.explains_alone && inner.statement.only_reads(),
                    ..surroundings.statement(inner, &description.parameter_types, &entered.snapshot, not_known)?
                };
                let columns = description.columns.as_deref().unwrap_or_default();
                let gateway = self.gateway.clone();
                let open = self.block.open_mut().ok_or_else(no_block)?;
                self.cancel.slot.start_all(open.transaction.cancel_tokens());
                let explained =
                    pgherd_query::explain(statement, columns, head, &mut open.transaction, &gateway.engine).await;
                self.cancel.slot.clear();
                Ok(explained?.into())
            }
            Route::Refuse(error) => Err(error.clone().into()),
        }
    }

    /// Each part's EXPLAIN by its shard.
    async fn explain_parts(
        &mut self,
        inner: Unit<'_>,
        entered: &Entered,
        parts: &[Part],
        head: &str,
        (tier, reason, combine): (&'static str, &str, &str),
    ) -> Result<Distributed, Problem> {
        let explained: Vec<Part> = parts
            .iter()
            .map(|part| Part {
                text: format!("{head}{}", part.text).into(),
                replaced: [].into(),
                ..part.clone()
            })
            .collect();
        let lines = self.lines_of_parts(inner, entered, &explained).await?;
        let shards = parts.iter().zip(lines).map(|(part, lines)| ShardPlan {
            shard: part.shard,
            relation: None,
            sql: part.text.to_string(),
            lines,
        });
        Ok(Distributed {
            tier,
            reason: reason.to_owned(),
            combine: combine.to_owned(),
            shards: shards.collect(),
            ..Distributed::default()
        })
    }

    fn put_plan(&mut self, unit: Unit<'_>, options: &ExplainOptions, distributed: &Distributed) {
        let times = options.shows_times();
        let (type_oid, lines) = match options.format {
            ExplainFormat::Json => (114, vec![distributed.json(times)]),
            ExplainFormat::Xml => (142, vec![distributed.xml(times)]),
            ExplainFormat::Yaml => (25, vec![distributed.yaml(times)]),
            ExplainFormat::Text | ExplainFormat::Other => (25, distributed.text(options.timing, times)),
        };
        if unit.mode.describes() {
            let column = pgherd_shards::ColumnDescription {
                name: "QUERY PLAN".into(),
                table_oid: 0,
                column_number: 0,
                type_oid,
                type_size: -1,
                type_modifier: -1,
                format: 0,
            };
            self.client.put_row_description(&[column], unit.mode.formats());
        }
        for line in lines {
            self.client.put_row(&[Some(line.as_bytes())]);
        }
    }
}

impl From<Explained> for Distributed {
    fn from(explained: Explained) -> Self {
        let shards = explained.fragments.into_iter().map(|fragment| ShardPlan {
            shard: fragment.shard,
            relation: fragment.relation,
            sql: fragment.sql,
            lines: fragment.plan,
        });
        Self {
            tier: explained.tier,
            reason: explained.reason,
            combine: explained.combine,
            shards: shards.collect(),
            ..Self::default()
        }
    }
}
