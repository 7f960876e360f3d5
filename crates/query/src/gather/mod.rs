//! Tier 3, gather: exact for every SELECT, because PostgreSQL itself runs the statement.
//!
//! 1. [`source`] finds the relations, the conditions that can run where their rows are, and the columns that are needed.
//! 2. One cut is opened over all shards: a SELECT per relation and shard.
//! 3. [`load`] copies the rows, as bytes, into temporary tables on a scratch connection to the home shard.
//! 4. The statement runs there with the relations' names replaced; its rows go to the client as bytes.
//!
//! The scratch connection is not a participant: a transaction that has used a temporary table cannot be prepared. Its
//! transaction is rolled back afterwards. What a statement would do beside reading therefore must not happen there: it
//! runs READ ONLY when it calls a volatile function of a user, and is refused where that is not enough.

pub(crate) mod clock;
mod load;
mod source;
mod staged;

use crate::edit::Edited;
use crate::metadata;
use crate::rows::{Rows, Scratch};
use crate::statement::Statement;
use crate::views;
use crate::{Fragment, Transaction, refusal};
use pgherd_model::{ServerError, ShardId};
use postgres_protocol::message::frontend;
use source::Gathered;
pub(crate) use source::IDENTITY;
use std::collections::BTreeMap;

/// What a gather will do, for running it and for EXPLAIN.
pub(crate) struct Plan {
    /// the statement with views expanded, before names are replaced
    expanded: String,
    /// views were expanded, so positions mean nothing to the client
    has_views: bool,
    edited: Edited,
    pub sources: Vec<Gathered>,
    /// nothing may be written where the statement runs
    read_only: bool,
    /// session state may be left behind on the scratch connection
    leaves_traces: bool,
}

/// Plans a gather. Asks the home participant for types and keys, in one round trip.
async fn plan(
    statement: &Statement<'_>,
    target: Option<usize>,
    marks: Option<&Marks>,
    transaction: &mut Transaction,
) -> Result<Plan, ServerError> {
    let expanded = views::expand(statement, target)?;
    let target = expanded.at;
    let parsed = views::parse_query(&expanded.text)?;
    refusal::check(&parsed)?;
    let mentions = source::resolve(statement, &parsed)?;
    let names: Vec<String> = mentions.iter().map(|m| m.lookup.clone()).collect();
    let home = transaction.participant(statement.snapshot.home()).await?;
    let metadata = metadata::read(home, &names, &parsed.words).await?;
    let volatile = metadata.functions.iter().any(|(_, volatile)| *volatile);
    if metadata.wrote
        && let Some((name, _)) = metadata.functions.first()
    {
        return Err(ServerError::unsupported(
            format!("a query over several shards cannot call {name}() after its transaction has written"),
            "Declare the function IMMUTABLE if it reads no tables, or run the query before the transaction writes.",
        ));
    }
    let mut sources = source::sources(statement, &parsed, &mentions, &metadata, target);
    if !metadata.text_is_exact && sources.iter().any(|source| !source.binary) {
        return Err(metadata::text_is_not_exact());
    }
    let mut edits = source::edits(&parsed, &mentions, &sources);
    if let Some(marks) = marks {
        edits.push(marks.edit(&mentions, &mut sources)?);
    }
    if !clock::edits(&parsed, "").is_empty() {
        let now = transaction.clock().await?.unwrap_or_default();
        edits.extend(clock::edits(&parsed, &now));
    }
    let edited = Edited::new(&expanded.text, edits);
    Ok(Plan {
        has_views: expanded.has_views,
        expanded: expanded.text,
        edited,
        sources,
        read_only: volatile,
        leaves_traces: volatile || parsed.words.iter().any(|w| w == "nextval" || w == "setval"),
    })
}

/// What a gather would read, with the relation that each piece is of; for EXPLAIN.
pub(crate) async fn fragments(
    statement: &Statement<'_>,
    target: Option<usize>,
    transaction: &mut Transaction,
) -> Result<Vec<(Option<String>, Fragment)>, ServerError> {
    let plan = plan(statement, target, None, transaction).await?;
    let labelled = |source: &Gathered| {
        let name = source.relation_sql();
        let fragments = source.fragments(statement);
        fragments
            .into_iter()
            .map(move |fragment| (Some(name.clone()), fragment))
    };
    Ok(plan.sources.iter().flat_map(labelled).collect())
}

/// Relations of a SELECT of which the rows of the result are to be known.
pub(crate) struct Marks {
    /// the byte at which each is named, and what qualifies its columns
    pub relations: Vec<(usize, String)>,
    /// the byte behind the select list, and whether it has anything
    pub list_end: usize,
    pub has_list: bool,
}

/// Where a marked relation is.
pub(crate) struct Marked {
    /// its full name, as SQL
    pub name: String,
    /// what it is on each shard, as SQL
    pub places: BTreeMap<ShardId, String>,
}

impl Marks {
    /// Marks the relations' sources. The edit puts behind the select list, for each relation, which row it is: it stands beside the
    /// copy of the row, where no `*` and no whole row sees it.
    fn edit(
        &self,
        mentions: &[source::Resolution],
        sources: &mut [Gathered],
    ) -> Result<(std::ops::Range<usize>, String), ServerError> {
        let mut list = Vec::new();
        for (at, alias) in &self.relations {
            let source = self.source(*at, mentions, sources).ok_or_else(|| {
                let hint = "Lock rows of tables of your own.";
                ServerError::unsupported(
                    "rows of this relation cannot be locked in a query over several shards",
                    hint,
                )
            })?;
            let source = &mut sources[source];
            source.marks();
            let alias = pgherd_model::quote_identifier(alias);
            list.push(format!(
                "(SELECT pgherd_marks.{IDENTITY} FROM pg_temp.{} AS pgherd_marks WHERE pgherd_marks.ctid = {alias}.ctid)",
                source.marked()
            ));
        }
        let comma = if self.has_list && !list.is_empty() { ", " } else { " " };
        Ok((self.list_end..self.list_end, format!("{comma}{}", list.join(", "))))
    }

    fn source(&self, at: usize, mentions: &[source::Resolution], sources: &[Gathered]) -> Option<usize> {
        let mention = mentions.iter().position(|m| m.mention.span.start == at)?;
        sources.iter().position(|source| source.mentions.contains(&mention))
    }
}

/// Runs a SELECT with the identity of the marked relations' rows behind each row, as text, and says where they are.
pub(crate) async fn select_marked(
    statement: &Statement<'_>,
    marks: &Marks,
    transaction: &mut Transaction,
) -> Result<(Rows<'static>, Vec<Marked>), ServerError> {
    let (plan, scratch) = gather(statement, None, Some(marks), transaction).await?;
    let of = |at: &usize| {
        let source = plan.sources.iter().find(|s| s.is_named_at(*at));
        source.map(|source| Marked {
            name: source.relation_sql(),
            places: source.places.iter().map(|p| (p.shard, p.relation.clone())).collect(),
        })
    };
    let marked = marks.relations.iter().filter_map(|(at, _)| of(at)).collect();
    Ok((run(statement, plan, scratch).await?, marked))
}

/// Runs a SELECT by gathering what it reads.
pub(crate) async fn select(
    statement: &Statement<'_>,
    transaction: &mut Transaction,
) -> Result<Rows<'static>, ServerError> {
    select_target(statement, None, transaction).await
}

/// The same for large tables, leaving as much as can be on the shards; None where [`select`] is to be used.
pub(crate) async fn select_staged(
    statement: &Statement<'_>,
    transaction: &mut Transaction,
    engine: &crate::Engine,
) -> Result<Option<Rows<'static>>, ServerError> {
    staged::select(statement, transaction, engine).await
}

/// The same, where the relation named at the byte `target` has a column more: [`IDENTITY`].
pub(crate) async fn select_target(
    statement: &Statement<'_>,
    target: Option<usize>,
    transaction: &mut Transaction,
) -> Result<Rows<'static>, ServerError> {
    let (plan, scratch) = gather(statement, target, None, transaction).await?;
    run(statement, plan, scratch).await
}

/// Runs the statement over the copies.
async fn run(statement: &Statement<'_>, plan: Plan, mut scratch: Scratch) -> Result<Rows<'static>, ServerError> {
    start(statement, &plan.edited.text, scratch.backend()).await?;
    let (original, edited) = (statement.text.to_owned(), plan.edited);
    let (expanded, has_views) = (plan.expanded, plan.has_views);
    let explain_error = move |error: ServerError| {
        let error = edited.map_back(&expanded, error);
        let error = if has_views || expanded != original {
            error.with_position(None)
        } else {
            error
        };
        refusal::explain_read_only(error)
    };
    Ok(Rows::scratch(scratch, Box::new(explain_error)))
}

/// Copies what a SELECT reads to a scratch connection.
async fn gather(
    statement: &Statement<'_>,
    target: Option<usize>,
    marks: Option<&Marks>,
    transaction: &mut Transaction,
) -> Result<(Plan, Scratch), ServerError> {
    let plan = plan(statement, target, marks, transaction).await?;
    let fragments: Vec<_> = plan.sources.iter().flat_map(|s| s.fragments(statement)).collect();
    transaction.open_cut(&fragments).await?;
    let (home, who) = (statement.snapshot.home(), transaction.who().clone());
    let mut scratch = Scratch::new(transaction.shards().checkout(home, &who).await?);
    if plan.leaves_traces {
        scratch.backend().taint();
    }
    let mut setup = format!(
        "BEGIN ISOLATION LEVEL READ COMMITTED READ WRITE; {}",
        statement.settings_sql
    );
    for source in &plan.sources {
        setup.push_str("; ");
        setup.push_str(&source.create_sql());
    }
    scratch.backend().simple(&setup).await?;
    load::load(&plan.sources, &fragments, transaction, scratch.backend()).await?;
    if plan.read_only {
        scratch.backend().simple("SET TRANSACTION READ ONLY").await?;
    }
    Ok((plan, scratch))
}

/// Declares a cursor over a SELECT: `head` is the text before the query. PostgreSQL keeps it on the scratch connection, over the
/// rows as they are now, which is what its own cursors show too.
pub(crate) async fn declare(
    statement: &Statement<'_>,
    head: &str,
    transaction: &mut Transaction,
) -> Result<Scratch, ServerError> {
    let (plan, mut scratch) = gather(statement, None, None, transaction).await?;
    let text = format!("{head}{}", plan.edited.text);
    let declared = async {
        start(statement, &text, scratch.backend()).await?;
        Ok(scratch.backend().drain().await?)
    };
    declared
        .await
        .map_err(|error: ServerError| refusal::explain_read_only(error.with_position(None)))?;
    Ok(scratch)
}

/// Locks the rows that [`select_target`] would read of its target, against everybody who would change them.
pub(crate) async fn lock_target(
    statement: &Statement<'_>,
    target: usize,
    transaction: &mut Transaction,
) -> Result<(), ServerError> {
    let plan = plan(statement, Some(target), None, transaction).await?;
    let target = plan.sources.iter().filter(|s| s.has_identity());
    let fragments: Vec<_> = target.flat_map(|s| s.locks(statement)).collect();
    for fragment in &fragments {
        let backend = transaction.participant(fragment.shard).await?;
        for fence in &fragment.fences {
            backend.queue_silent(&format!("LOCK TABLE {fence} IN ACCESS SHARE MODE"));
        }
        let out = backend.outbox();
        let nul = |_| ServerError::internal("a message to a shard cannot be encoded");
        frontend::parse("", &fragment.sql, fragment.parameter_types.iter().copied(), out).map_err(nul)?;
        crate::fragment::bind("", &fragment.parameters, &[], out)?;
        crate::relay::queue_execute(backend, "")?;
        crate::relay::sync(backend).await?;
        // One shard after the other: whoever locks so as well does it in the same order.
        backend.drain().await?;
    }
    Ok(())
}

/// Sends the statement with the client's parameters and result formats.
pub(super) async fn start(
    statement: &Statement<'_>,
    text: &str,
    scratch: &mut pgherd_shards::Backend,
) -> Result<(), ServerError> {
    let out = scratch.outbox();
    let too_large = |_| ServerError::internal("a message to the home shard cannot be encoded");
    frontend::parse("", text, statement.parameter_types.iter().copied(), out).map_err(too_large)?;
    crate::fragment::bind("", statement.parameters, statement.result_formats, out)?;
    crate::relay::queue_execute(scratch, "")?;
    crate::relay::sync(scratch).await
}
