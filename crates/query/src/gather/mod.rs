//! Tier 3, gather: exact for every SELECT, because PostgreSQL itself runs the statement.
//!
//! 1. [`reading`] and [`source`] find the relations, the conditions that can run where their rows are, and the columns that are
//!    needed.
//! 2. One cut is opened over all shards: a SELECT per relation and shard.
//! 3. The rows go, as bytes, to a scratch connection to the home shard: few as arrays within the statement ([`few`]), many into
//!    temporary tables ([`load`]).
//! 4. The statement runs there with the relations' names replaced; its rows go to the client as bytes.
//!
//! The scratch connection is not a participant: a transaction that has used a temporary table cannot be prepared. Its
//! transaction is rolled back afterwards. What a statement would do beside reading therefore must not happen there: it
//! runs READ ONLY when it calls a volatile function of a user, and is refused where that is not enough.

pub(crate) mod clock;
mod few;
mod grouped_by;
mod load;
mod own_transaction;
mod reading;
mod row_arguments;
mod source;
mod staged;
mod versions;

use crate::edit::Edited;
use crate::metadata::{self, Metadata, UserFunction};
use crate::plan::engine::Engine;
use crate::read_ahead::ReadAhead;
use crate::relay;
use crate::rows::{MapError, Rows, Scratch};
use crate::statement::Statement;
use crate::{Fragment, Transaction, refusal};
use bytes::Bytes;
use pgherd_model::{ServerError, ShardId};
use postgres_protocol::message::frontend;
pub(crate) use reading::Reading;
use source::Gathered;
pub(crate) use source::IDENTITY;
pub(crate) use staged::{select as select_staged, steps};
use std::collections::BTreeMap;
use std::ops::Range;
pub(crate) use versions::are_read as reads_versions;

/// What a gather will do, for running it and for EXPLAIN.
pub(crate) struct Plan {
    reading: Reading,
    /// the transaction's time in place of `now()` and its kin, and which rows they are behind the select list
    more_edits: Vec<(Range<usize>, String)>,
    /// some relations are marked, for which there must be temporary tables
    has_marks: bool,
    /// rows are of a relation's own type
    has_typed_rows: bool,
    /// a function that may read what the transaction has written
    reads_written: Option<String>,
    pub sources: Vec<Gathered>,
    /// nothing may be written where the statement runs
    read_only: bool,
    /// session state may be left behind on the scratch connection
    leaves_traces: bool,
}

/// Plans a gather of what was read, with what the home shard says of it.
async fn plan(
    statement: &Statement<'_>,
    reading: Reading,
    metadata: &Metadata,
    marks: Option<&Marks>,
    transaction: &mut Transaction,
) -> Result<Plan, ServerError> {
    let target = reading.target;
    let parsed = &reading.parsed;
    let volatile = metadata.functions.iter().any(|function| function.volatile);
    let home_functions = &statement.snapshot.home_functions;
    let may_read = |f: &&UserFunction| !f.shows_body || home_functions.contains(&f.name);
    let reading_function = metadata.functions.iter().filter(|_| metadata.wrote).find(may_read);
    let mut sources = source::sources(statement, parsed, &reading.resolutions, metadata, target);
    if !metadata.text_is_exact {
        let types: Vec<_> = sources.iter().flat_map(Gathered::types_as_text).collect();
        let home = transaction.participant(statement.snapshot.home()).await?;
        if !metadata::inexact_types(home, &types).await?.is_empty() {
            return Err(metadata::text_is_not_exact());
        }
    }
    if reading.runs_inside(statement) && metadata.text_is_exact {
        // Rows travel to the transaction itself as arrays, which not every type can be an element of.
        sources.iter_mut().for_each(Gathered::suit_arrays);
    }
    let versions = versions::find(parsed).unwrap_or_default();
    let mut more_edits = Vec::new();
    if let Some(marks) = marks {
        more_edits.push(marks.edit(&reading.resolutions, &mut sources)?);
    }
    more_edits.extend(versions::edits(&versions, &reading.resolutions, &mut sources)?);
    let row_arguments = row_arguments::edits(parsed, &reading.resolutions, &sources, &metadata.row_functions);
    let has_typed_rows = !row_arguments.is_empty() || sources.iter().any(Gathered::has_typed_rows);
    more_edits.extend(row_arguments);
    if !clock::edits(parsed, "").is_empty() {
        // The transaction's first shard tells the time.
        transaction.participant(statement.snapshot.home()).await?;
        let now = transaction.clock().await?.unwrap_or_default();
        more_edits.extend(clock::edits(parsed, &now));
    }
    Ok(Plan {
        more_edits,
        has_marks: marks.is_some() || !versions.is_empty(),
        has_typed_rows,
        reads_written: reading_function.map(|function| function.name.clone()),
        sources,
        read_only: volatile,
        leaves_traces: volatile || parsed.words.iter().any(|w| w == "nextval" || w == "setval"),
        reading,
    })
}

impl Plan {
    /// Refuses what cannot run on a connection that does not see what the transaction wrote.
    fn check_beside(&self, statement: &Statement<'_>) -> Result<(), ServerError> {
        if statement.schema_is_own && self.has_typed_rows {
            // Another connection would wait for this transaction's own lock on the relation.
            return Err(ServerError::unsupported(
                "a query over several shards cannot use whole rows after its transaction has changed the schema",
                "Commit the change first, or name the columns.",
            ));
        }
        let Some(name) = &self.reads_written else {
            return Ok(());
        };
        Err(ServerError::unsupported(
            format!("a query over several shards cannot call {name}() after its transaction has written"),
            "Declare the function IMMUTABLE if it reads no tables, or run the query before the transaction writes.",
        ))
    }

    /// Refuses a function that must run in the transaction itself, where the statement cannot; or where what it does would be undone.
    fn check_home_function(&self) -> Result<(), ServerError> {
        match self.reading.home_function {
            Some(function) if self.read_only || !self.has_arrays() => Err(refusal::not_here(function)),
            _ => Ok(()),
        }
    }

    fn fragments(&self, statement: &Statement<'_>) -> Vec<Fragment> {
        self.sources.iter().flat_map(|s| s.fragments(statement)).collect()
    }

    /// The statement over the temporary tables.
    fn edited(&self) -> Edited {
        let parsed = &self.reading.parsed;
        let loaded = |at: usize| self.sources[at].loaded_sql();
        let mut edits = source::edits(parsed, &self.reading.resolutions, &self.sources, &loaded);
        edits.extend(self.more_edits.iter().cloned());
        Edited::new(&parsed.text, edits)
    }
}

async fn read_and_plan(
    statement: &Statement<'_>,
    target: Option<usize>,
    marks: Option<&Marks>,
    transaction: &mut Transaction,
) -> Result<Plan, ServerError> {
    let reading = Reading::of(statement, target)?;
    if let Some(function) = reading.home_function {
        return Err(refusal::not_here(function));
    }
    let metadata = reading.metadata(statement, transaction, None).await?;
    plan(statement, reading, &metadata, marks, transaction).await
}

/// What a gather would read, with the relation that each piece is of; for EXPLAIN.
pub(crate) async fn fragments(
    statement: &Statement<'_>,
    target: Option<usize>,
    transaction: &mut Transaction,
) -> Result<Vec<(Option<String>, Fragment)>, ServerError> {
    let plan = read_and_plan(statement, target, None, transaction).await?;
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
    let plan = read_and_plan(statement, None, Some(marks), transaction).await?;
    let of = |at: &usize| {
        let source = plan.sources.iter().find(|s| s.is_named_at(*at));
        source.map(|source| Marked {
            name: source.relation_sql(),
            places: source.places.iter().map(|p| (p.shard, p.relation.clone())).collect(),
        })
    };
    let marked = marks.relations.iter().filter_map(|(at, _)| of(at)).collect();
    Ok((run(statement, plan, transaction).await?, marked))
}

/// Runs a SELECT by gathering what it reads.
pub(crate) async fn select(
    statement: &Statement<'_>,
    reading: Reading,
    transaction: &mut Transaction,
    engine: &Engine,
) -> Result<Rows<'static>, ServerError> {
    let metadata = reading.metadata(statement, transaction, Some(engine)).await?;
    let plan = plan(statement, reading, &metadata, None, transaction).await?;
    run(statement, plan, transaction).await
}

/// Runs a SELECT that is not the client's own. The relation named at the byte `target` has a column more: [`IDENTITY`].
pub(crate) async fn select_target(
    statement: &Statement<'_>,
    target: Option<usize>,
    transaction: &mut Transaction,
) -> Result<Rows<'static>, ServerError> {
    let plan = read_and_plan(statement, target, None, transaction).await?;
    run(statement, plan, transaction).await
}

/// Runs a planned gather.
async fn run(
    statement: &Statement<'_>,
    plan: Plan,
    transaction: &mut Transaction,
) -> Result<Rows<'static>, ServerError> {
    plan.check_home_function()?;
    if plan.reading.runs_inside(statement) && plan.has_arrays() {
        return own_transaction::run(statement, plan, transaction).await;
    }
    plan.check_beside(statement)?;
    let fragments = plan.fragments(statement);
    transaction.open_cut(&fragments).await?;
    let ran = async {
        // All shards start at once; each is held back by its socket until its turn comes.
        relay::execute_all(&fragments, transaction).await?;
        let mut ahead = ReadAhead::new(fragments.len());
        let limits = (few::MOST_ROWS, few::MOST_BYTES);
        let are_few = plan.suits_arrays() && few::read(&plan, &fragments, &mut ahead, transaction, limits).await?;
        let mut scratch = checkout(statement, transaction).await?;
        if are_few {
            let inlined = plan.inline(statement, &ahead)?;
            if few::start(statement, &plan, &inlined, &mut scratch).await? {
                return Ok((inlined.edited, scratch));
            }
        }
        start_over_copies(statement, &plan, &fragments, &mut ahead, transaction, scratch).await
    };
    let ran: Result<(Edited, Scratch), ServerError> = ran.await;
    relay::finish(transaction, ran.is_ok()).await?;
    let (edited, scratch) = ran?;
    Ok(Rows::scratch(scratch, plan.explain_errors(edited, statement)))
}

/// Starts the statement over temporary tables.
async fn start_over_copies(
    statement: &Statement<'_>,
    plan: &Plan,
    fragments: &[Fragment],
    ahead: &mut ReadAhead,
    transaction: &mut Transaction,
    mut scratch: Scratch,
) -> Result<(Edited, Scratch), ServerError> {
    copy(statement, plan, fragments, ahead, transaction, &mut scratch).await?;
    let edited = plan.edited();
    start(statement, &edited.text, scratch.backend()).await?;
    Ok((edited, scratch))
}

impl Plan {
    /// An error of the statement that was run becomes one of the client's.
    fn explain_errors(self, edited: Edited, statement: &Statement<'_>) -> MapError {
        let expanded = self.reading.parsed.text;
        let has_positions = !self.reading.has_views && expanded == statement.text;
        Box::new(move |error: ServerError| {
            let error = edited.map_back(&expanded, error);
            let error = if has_positions {
                error
            } else {
                error.with_position(None)
            };
            refusal::explain_read_only(error)
        })
    }
}

/// A connection to the home shard that is no participant.
async fn checkout(statement: &Statement<'_>, transaction: &Transaction) -> Result<Scratch, ServerError> {
    let who = transaction.who().clone();
    Ok(Scratch::new(
        transaction.shards().checkout(statement.snapshot.home(), &who).await?,
    ))
}

/// Opens the scratch connection's transaction, with the session's settings.
fn begin_sql(statement: &Statement<'_>) -> String {
    format!("{BEGIN}; {}", statement.settings_sql)
}

/// The same for rows that come as arrays. PostgreSQL has no statistics of them, and takes joins of many relations for next to nothing: one nested
/// loop in another, each over whole arrays.
fn begin_arrays_sql(statement: &Statement<'_>, relations: usize) -> String {
    const MANY: usize = 4;
    // A forbidden loop that is needed all the same counts as so expensive that it would be compiled.
    const BY_HASH: &str = "SET LOCAL enable_nestloop = off; SET LOCAL jit = off";
    match relations < MANY || statement.may_ask_settings() {
        true => begin_sql(statement),
        false => format!("{BEGIN}; {BY_HASH}; {}", statement.settings_sql),
    }
}

/// The same for copies. Their statistics, which serve one statement, come from fewer rows than PostgreSQL would look at, where nobody has
/// said how many or may ask.
fn begin_copies_sql(statement: &Statement<'_>) -> String {
    const FEWER: &str = "SET LOCAL default_statistics_target = 30";
    match statement.may_ask_settings() {
        true => begin_sql(statement),
        false => format!("{BEGIN}; {FEWER}; {}", statement.settings_sql),
    }
}

const BEGIN: &str = "BEGIN ISOLATION LEVEL READ COMMITTED READ WRITE";

/// Copies what a SELECT reads to temporary tables of a scratch connection.
async fn copy(
    statement: &Statement<'_>,
    plan: &Plan,
    fragments: &[Fragment],
    ahead: &mut ReadAhead,
    transaction: &mut Transaction,
    scratch: &mut Scratch,
) -> Result<(), ServerError> {
    if plan.leaves_traces {
        scratch.backend().taint();
    }
    let mut setup = begin_copies_sql(statement);
    for source in &plan.sources {
        setup.push_str("; ");
        setup.push_str(&source.create_sql());
    }
    scratch.backend().simple(&setup).await?;
    load::load(&plan.sources, fragments, ahead, transaction, scratch.backend()).await?;
    if plan.read_only {
        scratch.backend().simple("SET TRANSACTION READ ONLY").await?;
    }
    Ok(())
}

/// Declares a cursor over a SELECT: `head` is the text before the query. PostgreSQL keeps it on the scratch connection, over the
/// rows as they are now, which is what its own cursors show too.
pub(crate) async fn declare(
    statement: &Statement<'_>,
    head: &str,
    transaction: &mut Transaction,
) -> Result<Scratch, ServerError> {
    let plan = read_and_plan(statement, None, None, transaction).await?;
    plan.check_beside(statement)?;
    let fragments = plan.fragments(statement);
    transaction.open_cut(&fragments).await?;
    let copied = async {
        relay::execute_all(&fragments, transaction).await?;
        let mut scratch = checkout(statement, transaction).await?;
        let mut ahead = ReadAhead::new(fragments.len());
        copy(statement, &plan, &fragments, &mut ahead, transaction, &mut scratch).await?;
        Ok(scratch)
    };
    let copied: Result<Scratch, ServerError> = copied.await;
    relay::finish(transaction, copied.is_ok()).await?;
    let mut scratch = copied?;
    let text = format!("{head}{}", plan.edited().text);
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
    let plan = read_and_plan(statement, Some(target), None, transaction).await?;
    let target = plan.sources.iter().filter(|s| s.has_identity());
    let fragments: Vec<_> = target.flat_map(|s| s.locks(statement)).collect();
    for fragment in &fragments {
        let backend = transaction.participant(fragment.shard).await?;
        for fence in &fragment.fences {
            backend.queue_silent(&format!("LOCK TABLE {fence} IN ACCESS SHARE MODE"));
        }
        relay::send(
            backend,
            &fragment.sql,
            &fragment.parameter_types,
            &fragment.parameters,
            &[],
        )
        .await?;
        // One shard after the other: whoever locks so as well does it in the same order.
        backend.drain().await?;
    }
    Ok(())
}

/// Sends the statement with the client's parameters and result formats.
async fn start(statement: &Statement<'_>, text: &str, scratch: &mut pgherd_shards::Backend) -> Result<(), ServerError> {
    bind(statement, text, &[], scratch)?;
    relay::queue_execute(scratch, "")?;
    relay::sync(scratch).await
}

/// Queues its Parse and Bind, with more parameters behind the client's: types and binary values.
fn bind(
    statement: &Statement<'_>,
    text: &str,
    more: &[(u32, Bytes)],
    scratch: &mut pgherd_shards::Backend,
) -> Result<(), ServerError> {
    let out = scratch.outbox();
    let too_large = |_| ServerError::internal("a message to the home shard cannot be encoded");
    let types = statement.parameter_types.iter().copied();
    frontend::parse("", text, types.chain(more.iter().map(|(oid, _)| *oid)), out).map_err(too_large)?;
    match more.is_empty() {
        true => crate::fragment::bind("", statement.parameters, statement.result_formats, out)?,
        false => {
            let own = statement.parameters.iter().cloned();
            let all: Vec<_> = own
                .chain(more.iter().map(|(_, value)| (true, Some(value.clone()))))
                .collect();
            crate::fragment::bind("", &all, statement.result_formats, out)?;
        }
    }
    Ok(())
}
