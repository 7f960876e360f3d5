//! What is known of a statement before its parameters are: which tables, where it may run, how its text
//! would change. Made once per text, epoch and search path; routing an execution is then cheap.

mod refusals;
mod routing;

use crate::blind::is_blind;
use crate::clock;
use crate::functions;
use crate::insert::InsertPlan;
use crate::instead::{self, Instead, Only};
use crate::kind::{CopySource, Ddl, DdlKind, Kind, ObjectName};
use crate::lexer::{self, Token};
use crate::lock_table::LockTable;
use crate::locks::names_called;
use crate::parse::Parsed;
use crate::placed::Placed;
use crate::point::{Point, point};
use crate::prepared_xacts;
use crate::relations::{Reference, Role, references};
use crate::walk::Walk;
use pgherd_model::{Resolved, ServerError, Snapshot, Table, TableKind};
pub use refusals::{hidden_name, hides_a_name};
use refusals::{holds_a_range, not_understood, one_range, refused, unsafe_function};
use sqlparser::ast::{SetExpr, Statement};
use std::sync::Arc;

/// A statement, analysed. Immutable but for texts it remembers; good for the epoch and search path it was made
/// for.
#[derive(Debug)]
pub struct Analysis {
    /// [`name_hash`] of every relation name that the statement refers to, and perhaps of more names: a
    /// statement must wait while one of them changes its schema
    pub names: Vec<u64>,
    /// it refers to a sharded table, or to something that reaches one
    pub touches_sharded: bool,
    /// a SELECT that neither locks rows nor has a data-modifying WITH; functions that it calls may still write
    pub read_only: bool,
    /// a SELECT that locks rows
    pub locking: bool,
    /// the sharded tables it names, each once
    pub sharded: Vec<Arc<Table>>,
    /// it names a declared partition of a sharded table
    pub names_partition: bool,
    /// it takes advisory locks that the session keeps
    pub locks_session: bool,
    /// an INSERT, UPDATE or DELETE with RETURNING
    pub returning: bool,
    /// it finds one row of a sharded table by a whole unique key
    pub point: Option<Point>,
    /// an INSERT, UPDATE or DELETE that shows nothing of what was there before
    pub blind: bool,
    /// what must be run in its place
    pub instead: Option<Instead>,
    /// where it takes the transaction's time from
    pub clock: Clock,
    pub(crate) tokens: Arc<[Token]>,
    pub(crate) text: Arc<str>,
    pub(crate) types: Vec<u32>,
    pub(crate) decision: Decision,
    /// all relations that it refers to; None where its grammar is not understood whole
    pub(crate) references: Option<Vec<Reference>>,
}

/// Whether a statement has the transaction's time in it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Clock {
    /// it has not
    None,
    /// in its text
    Text,
    /// in defaults of the table that it inserts into
    Defaults,
}

#[derive(Debug)]
pub(crate) enum Decision {
    Home,
    Refuse(ServerError),
    Plan,
    /// an UPDATE, DELETE or MERGE of one table that reads views over sharded ones
    GatherWrite,
    Placed(Box<Placed>),
    Insert(Box<InsertPlan>),
    /// on the home shard, where it is looked at afterwards what this function, or the trigger of this table, has used
    Watched(String),
    /// LOCK TABLE: everywhere the tables are
    Lock(LockTable),
}

/// A stable hash of a relation's name (without schema, as stored), the same in every process: FNV-1a.
pub fn name_hash(name: &str) -> u64 {
    name.bytes().fold(0xcbf2_9ce4_8422_2325, |hash, byte| {
        (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3)
    })
}

/// Stands for what SERIALIZABLE means, among the names that a change closes and that statements use: no relation has it.
pub fn level_hash() -> u64 {
    name_hash("\0serializable")
}

/// What an analysis looks things up in.
pub(crate) struct Context<'a> {
    pub text: &'a str,
    pub tokens: &'a [Token],
    pub snapshot: &'a Snapshot,
    pub search_path: &'a [Arc<str>],
    pub temporary: &'a dyn Fn(&str) -> bool,
}

impl Context<'_> {
    pub fn resolve(&self, schema: Option<&str>, name: &str) -> Option<Arc<Table>> {
        if !self.snapshot.relations.contains_key(name) || (schema.is_none() && (self.temporary)(name)) {
            return None;
        }
        match self.snapshot.resolve(schema, name, self.search_path) {
            Resolved::Known(table) => Some(table.placed()),
            Resolved::Home => None,
        }
    }
}

/// Analyses one statement of `text`. `temporary` tells whether the session has a temporary table of a name;
/// `parameter_types` are the OIDs that Parse declared, 0 for none.
///
/// # Errors
/// None today: what cannot run becomes [`Route::Refuse`](crate::Route::Refuse).
pub fn analyze(
    parsed: &Parsed,
    text: &str,
    snapshot: &Snapshot,
    search_path: &[Arc<str>],
    temporary: &dyn Fn(&str) -> bool,
    parameter_types: &[u32],
) -> Result<Analysis, ServerError> {
    let own = parsed.text(text);
    let context = Context {
        text: own,
        tokens: &parsed.tokens,
        snapshot,
        search_path,
        temporary,
    };
    let (read_only, locking) = match parsed.kind {
        Kind::Select { locking, writes } => (!locking && !writes, locking),
        _ => (false, false),
    };
    let mut analysis = Analysis {
        names: Vec::new(),
        touches_sharded: false,
        read_only,
        locking,
        sharded: Vec::new(),
        names_partition: false,
        locks_session: false,
        returning: false,
        point: None,
        blind: false,
        instead: None,
        clock: Clock::None,
        tokens: parsed.tokens.clone(),
        text: own.into(),
        types: parameter_types.to_vec(),
        decision: Decision::Home,
        references: None,
    };
    analysis.decide(parsed, &context);
    Ok(analysis)
}

impl Analysis {
    fn decide(&mut self, parsed: &Parsed, context: &Context) {
        self.locks_session = match parsed.kind {
            Kind::Do => functions::block_takes_session_lock(context.text, context.snapshot),
            _ => functions::takes_session_lock(context.text, context.tokens, context.snapshot),
        };
        if hides_a_name(context.text, context.tokens) && context.snapshot.sharded().next().is_some() {
            self.touches_sharded = true;
            self.decision = Decision::Refuse(hidden_name());
            return;
        }
        let walked = matches!(
            parsed.kind,
            Kind::Select { .. } | Kind::Insert | Kind::Update | Kind::Delete | Kind::Merge
        );
        if walked && self.decide_only(parsed, context) {
            return;
        }
        if walked && let Some(instead) = prepared_xacts::instead(parsed.ast.as_deref(), context) {
            self.note_identifiers(context);
            self.instead = Some(instead);
            self.decision = Decision::Refuse(not_understood(&parsed.kind));
            return;
        }
        let tree = parsed.ast.as_deref().filter(|_| walked);
        let whole = tree.is_some_and(|tree| self.decide_tree(parsed, tree, context));
        if !whole {
            self.decide_tokens(parsed, context);
        }
        if let Decision::Refuse(_) = self.decision {
            return;
        }
        if walked {
            self.clock = self.find_clock(context);
            let (is_point, rows) = (self.point.is_some(), self.inserted_rows());
            self.blind = !self.returning && is_blind(&parsed.kind, is_point, rows, context.text, context.tokens);
        }
        let sharded = &self.sharded;
        let is_column = |name: &str| sharded.iter().any(|t| t.column(name).is_some());
        let called = functions::unsafe_call(context.text, context.tokens, context.snapshot, &is_column);
        let runs = walked
            || matches!(
                parsed.kind,
                Kind::Call
                    | Kind::Do
                    | Kind::Copy(_)
                    | Kind::Explain { .. }
                    | Kind::Declare { .. }
                    | Kind::Execute(_)
                    | Kind::Other
            );
        if let Some(name) = called.filter(|_| runs) {
            self.touches_sharded = true;
            self.decision = Decision::Refuse(unsafe_function(&name));
            return;
        }
        let called = functions::watched_call(context.text, context.tokens, context.snapshot, &is_column);
        if let Some(name) = called.filter(|_| runs && !matches!(self.decision, Decision::Watched(_))) {
            self.watch(name, walked || matches!(parsed.kind, Kind::Call));
        }
    }

    /// A function, or a table with a trigger, that is to be watched: on the home shard, if nothing else is needed than what is there.
    fn watch(&mut self, name: String, can_be: bool) {
        self.decision = match self.decision {
            Decision::Home if can_be && !self.touches_sharded => Decision::Watched(name),
            _ => Decision::Refuse(unsafe_function(&name)),
        };
        self.touches_sharded = true;
    }

    /// ONLY, which sqlparser does not know; false where there is none to decide about.
    fn decide_only(&mut self, parsed: &Parsed, context: &Context) -> bool {
        let Some(only) = instead::only(context) else {
            return false;
        };
        self.note_identifiers(context);
        self.decision = match only {
            Only::Parents(references) => {
                references
                    .iter()
                    .for_each(|r| self.note(&r.name.name, r.table.as_ref()));
                Decision::Home
            }
            Only::Unclear(error) => Decision::Refuse(error),
            Only::Nothing(instead) => {
                self.instead = Some(instead);
                Decision::Refuse(not_understood(&parsed.kind))
            }
        };
        true
    }

    fn find_clock(&self, context: &Context) -> Clock {
        match &self.decision {
            _ if !clock::replacements(context.text, context.tokens).is_empty() => Clock::Text,
            Decision::Insert(plan) if plan.has_moments() => Clock::Text,
            Decision::Insert(plan) if plan.has_timed_defaults() => Clock::Defaults,
            _ => Clock::None,
        }
    }

    /// The statement with the time of the shard that the transaction began on, in its text and in the defaults of the
    /// rows that it inserts; None where it has no time in it.
    pub fn with_shared_clock(&self) -> Option<Instead> {
        if self.clock == Clock::None {
            return None;
        }
        let mut replacements = clock::replacements(&self.text, &self.tokens);
        if let Decision::Insert(plan) = &self.decision {
            plan.write_timed_defaults(&mut replacements);
        }
        replacements.sort_by_key(|(span, _)| (span.start, span.end));
        Some(Instead::new(&self.text, &replacements))
    }

    /// Whether all relations that it refers to are known here, so that the epoch tells when one of them changes.
    pub fn is_told_by_epoch(&self) -> bool {
        let references = self.references.as_deref();
        self.touches_sharded && references.is_some_and(|all| all.iter().all(|r| r.table.is_some()))
    }

    /// All relations that it refers to, but for names of WITH; None where its grammar is not understood whole.
    pub fn references(&self) -> Option<&[Reference]> {
        self.references.as_deref()
    }

    /// Whether the home shard runs functions for an INSERT that may write there: they do so in its transaction.
    pub fn defaults_may_write(&self, snapshot: &Snapshot) -> bool {
        let in_defaults = |table: &Arc<Table>| {
            let mut defaults = table.columns.iter().filter_map(|c| c.default.as_deref());
            defaults.any(|d| lexer::tokenize(d).is_ok_and(|t| functions::calls_home_function(d, &t, snapshot)))
        };
        !snapshot.home_functions.is_empty()
            && (functions::calls_home_function(&self.text, &self.tokens, snapshot)
                || self.sharded.iter().any(in_defaults))
    }

    /// Whether it is an INSERT … SELECT that each shard can do by itself.
    pub fn copies_rows(&self) -> bool {
        matches!(&self.decision, Decision::Placed(placed) if placed.copies_rows())
    }

    /// Rows that an INSERT … VALUES has; 0 for other statements.
    pub fn inserted_rows(&self) -> usize {
        match &self.decision {
            Decision::Insert(plan) => plan.rows.len(),
            _ => 0,
        }
    }

    /// Notes a relation's name, and what it is.
    fn note(&mut self, name: &str, table: Option<&Arc<Table>>) {
        let hash = name_hash(name);
        if !self.names.contains(&hash) {
            self.names.push(hash);
        }
        if let Some(table) = table {
            self.touches_sharded = true;
            self.names_partition |= matches!(table.kind, TableKind::Partition { .. });
            if table.sharded().is_some() && !self.sharded.iter().any(|t| t.name == table.name) {
                self.sharded.push(table.clone());
            }
        }
    }

    /// By the tree; false where it is not understood whole.
    fn decide_tree(&mut self, parsed: &Parsed, tree: &Statement, context: &Context) -> bool {
        let resolve = |schema: Option<&str>, name: &str| context.resolve(schema, name);
        let mut walk = Walk::new(&resolve);
        walk.statement(tree);
        if !walk.is_whole(tree) {
            return false;
        }
        for reference in &walk.references {
            self.note(&reference.name.name, reference.table.as_ref());
        }
        self.references = Some(walk.references.clone());
        self.returning = has_returning(tree);
        if let Some(table) = walk.changed_watched.take() {
            self.watch(table, true);
            return true;
        }
        if !self.touches_sharded {
            return true;
        }
        let instead = instead::tableoid(&walk.references, context)
            .or_else(|| instead::table_queries(context))
            .or_else(|| instead::without_redundant(context));
        if let Some(instead) = instead {
            self.instead = Some(instead);
            self.decision = Decision::Refuse(not_understood(&parsed.kind));
            return true;
        }
        self.decision = match refused(&walk.references) {
            Some(error) => Decision::Refuse(error),
            None if judged_at_home(&walk.references) => Decision::Home,
            None if reads_view(&walk.references) => match parsed.kind {
                Kind::Select { writes: false, .. } => Decision::Plan,
                Kind::Insert
                    if !walk
                        .references
                        .iter()
                        .any(|r| r.role != Role::Insert && r.role != Role::Read) =>
                {
                    Decision::Plan
                }
                Kind::Update | Kind::Delete | Kind::Merge
                    if walk.references.iter().filter(|r| r.role != Role::Read).count() == 1 =>
                {
                    Decision::GatherWrite
                }
                _ => Decision::Refuse(ServerError::unsupported(
                    "views over sharded tables cannot be used here yet",
                    "Write the view's query into the statement.",
                )),
            },
            None => match InsertPlan::new(tree, &walk, context) {
                Some(Ok(plan)) => Decision::Insert(Box::new(plan)),
                Some(Err(error)) => Decision::Refuse(error),
                None => match Placed::new(&walk, context, &parsed.kind) {
                    Ok(placed) => {
                        if let ([one], 0) = (&walk.references[..], walk.subqueries) {
                            self.point = one.table.as_ref().and_then(|table| point(tree, table));
                            let columns_only = |table: &Arc<Table>| {
                                let called = names_called(context.text, context.tokens);
                                called.is_some_and(|names| names.iter().all(|n| table.column(n).is_some()))
                            };
                            if let Some(point) = &mut self.point {
                                point.locks_row &= one.table.as_ref().is_some_and(columns_only);
                            }
                        }
                        Decision::Placed(Box::new(placed))
                    }
                    Err(error) => Decision::Refuse(error),
                },
            },
        };
        true
    }

    /// By the identifiers alone: if none can be a sharded table, the home shard judges.
    fn decide_tokens(&mut self, parsed: &Parsed, context: &Context) {
        let mut note_named = |names: &[ObjectName]| {
            for name in names {
                self.note(&name.name, context.resolve(name.schema.as_deref(), &name.name).as_ref());
            }
        };
        match &parsed.kind {
            Kind::Ddl(ddl) => {
                // What is temporary may have a sharded table's name, and hides it.
                if !(ddl.temporary && makes_of_query(ddl)) {
                    note_named(&ddl.relations);
                }
                note_named(ddl.object.as_slice());
                note_named(ddl.partition.as_slice());
            }
            Kind::Vacuum(names) | Kind::Analyze(names) | Kind::Lock(names) => note_named(names),
            Kind::Reindex(_, Some(name)) | Kind::Cluster(Some(name)) => note_named(std::slice::from_ref(name)),
            Kind::Copy(copy) => {
                if let CopySource::Table(name) = &copy.source {
                    note_named(std::slice::from_ref(name));
                }
            }
            _ => {}
        }
        match &parsed.kind {
            Kind::Lock(names) if names.iter().any(holds_a_range) => {
                self.decision = Decision::Refuse(one_range());
            }
            Kind::Copy(copy) if matches!(&copy.source, CopySource::Table(name) if holds_a_range(name)) => {
                self.decision = Decision::Refuse(one_range());
            }
            Kind::Lock(names) => {
                self.decision = match self.touches_sharded {
                    true => LockTable::new(names, context).map_or_else(Decision::Refuse, Decision::Lock),
                    false => Decision::Home,
                };
            }
            Kind::Copy(copy) => {
                if let CopySource::Query(_) = copy.source {
                    self.note_identifiers(context);
                }
                if self.touches_sharded {
                    self.decision = Decision::Plan;
                }
            }
            Kind::Do => self.decide_do(context),
            kind if looks_at_relations(kind) => {
                self.note_read(parsed, context);
                if self.touches_sharded {
                    self.decision = Decision::Refuse(not_understood(kind));
                }
            }
            _ => {}
        }
    }

    /// What the query of CREATE TABLE AS and CREATE VIEW reads, where its grammar is understood whole. Else each identifier may be a relation.
    fn note_read(&mut self, parsed: &Parsed, context: &Context) {
        let resolve = |schema: Option<&str>, name: &str| context.resolve(schema, name);
        let tree = parsed.ast.as_deref();
        let tree = tree.filter(|_| matches!(&parsed.kind, Kind::Ddl(ddl) if makes_of_query(ddl)));
        match tree.and_then(|tree| references(tree, &resolve)) {
            Some(read) => read.iter().for_each(|r| self.note(&r.name.name, r.table.as_ref())),
            None => self.note_identifiers(context),
        }
    }

    fn note_identifiers(&mut self, context: &Context) {
        for name in context.tokens.iter().filter_map(|t| t.identifier(context.text)) {
            let table = reaches_sharded(context, &name);
            self.note(&name, table);
        }
    }

    /// The body of a DO runs on one server: refused when it names a sharded table, calls an unsafe function or
    /// builds its SQL while running.
    fn decide_do(&mut self, context: &Context) {
        if context.snapshot.sharded().next().is_none() {
            return;
        }
        let mut bodies: Vec<_> = context.tokens.iter().filter_map(|t| t.string(context.text)).collect();
        while let Some(body) = bodies.pop() {
            let Ok(tokens) = lexer::tokenize(&body) else { continue };
            if runs_block(&body, &tokens) {
                bodies.extend(tokens.iter().filter_map(|t| t.string(&body)));
            }
            let dynamic = tokens
                .iter()
                .any(|t| t.is_word(&body, "execute") || t.is_word(&body, "uescape"));
            let named = tokens
                .iter()
                .filter_map(|t| t.identifier(&body))
                .find(|name| reaches_sharded(context, name).is_some());
            let called = functions::unsafe_call(&body, &tokens, context.snapshot, &|_| false)
                .or_else(|| functions::watched_call(&body, &tokens, context.snapshot, &|_| false));
            if dynamic || named.is_some() || called.is_some() {
                self.touches_sharded = true;
                self.decision = Decision::Refuse(
                    ServerError::unsupported(
                        "a DO block that may use sharded tables cannot run yet",
                        "It would run on one shard and see only that shard's rows. Send its statements one by one.",
                    )
                    .with_detail(match named.or(called) {
                        Some(name) => format!("It names \"{name}\"."),
                        None => "It builds SQL with EXECUTE.".to_owned(),
                    }),
                );
                return;
            }
        }
    }
}

/// Whether a block of PL/pgSQL has a DO of its own, whose block is one of its strings.
fn runs_block(text: &str, tokens: &[Token]) -> bool {
    let is_clause = |t: &Token| ["nothing", "update"].iter().any(|word| t.is_word(text, word));
    tokens
        .windows(2)
        .any(|pair| pair[0].is_word(text, "do") && !is_clause(&pair[1]))
}

/// A relation of this name, in any schema, through which a sharded table can be reached.
fn reaches_sharded<'a>(context: &Context<'a>, name: &str) -> Option<&'a Arc<Table>> {
    if (context.temporary)(name) && context.snapshot.relations.contains_key(name) {
        return None;
    }
    context
        .snapshot
        .relations
        .get(name)?
        .iter()
        .find_map(|(_, table)| table.as_ref())
}

fn has_returning(tree: &Statement) -> bool {
    match tree {
        Statement::Insert(insert) => insert.returning.is_some(),
        Statement::Update(update) => update.returning.is_some(),
        Statement::Delete(delete) => delete.returning.is_some(),
        Statement::Query(query) => match &*query.body {
            SetExpr::Insert(s) | SetExpr::Update(s) | SetExpr::Delete(s) => has_returning(s),
            _ => false,
        },
        _ => false,
    }
}

/// Kinds in which a sharded table's name matters and that nothing else has looked at.
fn makes_of_query(ddl: &Ddl) -> bool {
    matches!(ddl.kind, DdlKind::CreateTableAs | DdlKind::CreateView)
}

fn looks_at_relations(kind: &Kind) -> bool {
    matches!(
        kind,
        Kind::Select { .. }
            | Kind::Insert
            | Kind::Update
            | Kind::Delete
            | Kind::Merge
            | Kind::Ddl(_)
            | Kind::Vacuum(_)
            | Kind::Analyze(_)
            | Kind::Reindex(..)
            | Kind::Cluster(_)
            | Kind::Explain { .. }
            | Kind::Prepare { .. }
            | Kind::Declare { .. }
            | Kind::Other
    )
}

/// Whether PostgreSQL refuses the statement for what it would change a view: before it reads a row, on any shard.
fn judged_at_home(references: &[Reference]) -> bool {
    references.iter().any(|reference| {
        let kind = reference.table.as_ref().map(|table| &table.kind);
        match (kind, reference.role) {
            (_, Role::Read) => false,
            (Some(TableKind::View { read_only, .. }), _) => *read_only,
            (Some(TableKind::Sharded(sharded)), Role::Merge) => sharded.through_view.is_some(),
            _ => false,
        }
    })
}

fn reads_view(references: &[Reference]) -> bool {
    let view = |r: &Reference| {
        r.table
            .as_ref()
            .is_some_and(|t| matches!(t.kind, TableKind::View { .. }))
    };
    references.iter().any(view)
}
