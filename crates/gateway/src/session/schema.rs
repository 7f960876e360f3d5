//! Schema change, pgherd's procedures and maintenance: the operations room does them in this session's transaction.

use super::block::{Block, notice};
use super::forward::no_block;
use super::serializable::unseen;
use super::stored::with_position;
use super::temporary::TEMPORARY;
use super::{Mode, Problem, Session, Unit};
use pgherd_model::{Epoch, Resolved, ServerError, Snapshot, SqlState, quote_identifier, quote_literal};
use pgherd_operations::{Distribution, Outcome};
use pgherd_sql::{Ddl, DdlKind, Kind};
use pgherd_transaction::Isolation;
use std::sync::atomic::Ordering;

/// How often a change is begun at most, where others come between.
const MOST_ATTEMPTS: usize = 6;

impl Session {
    /// DDL and CALL pgherd.….
    pub(crate) async fn change_schema(&mut self, unit: Unit<'_>) -> Result<(), Problem> {
        let result = self.run_schema_change(unit).await;
        if let Some(open) = self.block.open_mut() {
            open.has_changed_schema = true;
            open.transaction.changes_schema();
        }
        self.note_schema_change();
        if matches!(&result, Err(Problem::Error(error)) if error.sqlstate() == SqlState::FEATURE_NOT_SUPPORTED) {
            // What is no SQL is not refused for anything else.
            self.check_syntax(&unit.statement.text).await?;
        }
        result
    }

    /// Statements that backends keep prepared may be about tables and types that are others now, also of the same names.
    pub(crate) fn note_schema_change(&self) {
        self.gateway.schema_changes.fetch_add(1, Ordering::Relaxed);
    }

    async fn run_schema_change(&mut self, unit: Unit<'_>) -> Result<(), Problem> {
        if let Kind::Ddl(ddl) = &unit.statement.parsed.kind {
            // A materialized view may be refreshed concurrently in a block.
            if ddl.concurrently && ddl.kind != DdlKind::RefreshMaterializedView {
                if let Some(plain) = Box::pin(self.without_concurrently(unit, ddl)).await? {
                    let statements = self.database.cache.parse(&plain)?;
                    let statement = statements
                        .first()
                        .ok_or_else(|| ServerError::internal("no statement is left"))?;
                    return Box::pin(self.run_schema_change(Unit { statement, ..unit })).await;
                }
                return self.maintain(unit).await;
            }
            if ddl.kind == DdlKind::CreateTableAs {
                let (text, tokens) = (&unit.statement.text, &unit.statement.parsed.tokens);
                let name = ddl.relations.first();
                match name.and_then(|name| Some((name, pgherd_sql::table_as(text, tokens, name)?))) {
                    Some((name, parts)) if Box::pin(self.table_as(unit, ddl.temporary, name, &parts)).await? => {
                        return Ok(());
                    }
                    None if self.will_be_strict() => return Err(unseen("Its form is not understood.").into()),
                    _ => {}
                }
            }
            // A subscription makes a slot on another server, which PostgreSQL does in no block.
            if ddl.kind == DdlKind::OtherDdl && self.block.is_none() && is_subscription(unit) {
                return self.judged_by_home(unit).await;
            }
            let reads = [DdlKind::CreateMaterializedView, DdlKind::RefreshMaterializedView];
            if reads.contains(&ddl.kind) && self.is_strict() {
                return Err(ServerError::unsupported(
                    "materialized views cannot be filled in a SERIALIZABLE transaction over sharded tables",
                    "Fill it outside of the transaction.",
                )
                .into());
            }
            if let Some(temporary) = self.as_temporary_view(unit, ddl).await? {
                let statements = self.database.cache.parse(&temporary)?;
                let statement = statements
                    .first()
                    .ok_or_else(|| ServerError::internal("no view is left"))?;
                let made = Box::pin(self.run_schema_change(Unit { statement, ..unit })).await;
                let put = |p: u32| p.checked_sub(TEMPORARY.len() as u32).filter(|p| *p > 0).unwrap_or(p);
                return made.map_err(|problem| with_position(problem, |position| position.map(put)));
            }
            if self.is_temporary(ddl) && !self.is_temporary_view_of_sharded(unit, ddl).await? {
                return self.temporary_ddl(unit, ddl).await;
            }
            self.refuse_under_cursor(unit, ddl)?;
        }
        if let Kind::CallPgherd { procedure, arguments } = &unit.statement.parsed.kind
            && procedure == "resolve"
        {
            return Box::pin(self.resolve_in_doubt(unit, arguments)).await;
        }
        self.change_in_transaction(unit).await
    }

    /// The change, in the open block or in a transaction of its own, which is begun anew where another change has come between.
    async fn change_in_transaction(&mut self, unit: Unit<'_>) -> Result<(), Problem> {
        let mut attempts = if self.block.is_none() { MOST_ATTEMPTS } else { 1 };
        loop {
            attempts -= 1;
            let epoch = self.catalog().snapshot().epoch;
            match self.change_once(unit).await {
                Err(Problem::Error(error)) if attempts > 0 && pgherd_operations::has_met_another_change(&error) => {}
                // What it waited for has dropped or renamed a table: what its name is now, PostgreSQL looks up again.
                Err(Problem::Error(error))
                    if attempts > 0
                        && error.sqlstate() == SqlState::UNDEFINED_TABLE
                        && self.is_newer_than(epoch).await? => {}
                done => return done,
            }
        }
    }

    /// Whether the catalog is another one than that of `epoch`; the gateway has it then.
    async fn is_newer_than(&mut self, epoch: Epoch) -> Result<bool, Problem> {
        let shown = self.ask_home(pgherd_operations::SHOWN_EPOCH).await?;
        let shown = pgherd_operations::read_epoch(shown.first().and_then(|r| r.text(0, 0)))?;
        if shown > epoch {
            self.catalog().reach(shown).await?;
        }
        Ok(shown > epoch)
    }

    async fn change_once(&mut self, unit: Unit<'_>) -> Result<(), Problem> {
        let made = self.ensure_block();
        if let (true, Some(open)) = (made, self.block.open_mut()) {
            // A schema change is the same at every level, and rows that it moves must be the newest.
            let isolation = Some(Isolation::ReadCommitted);
            let mode = pgherd_transaction::Mode {
                isolation,
                ..open.transaction.mode().clone()
            };
            open.transaction.set_mode(mode);
        }
        let result = self.change_in_one_snapshot(unit).await;
        if let Kind::Ddl(ddl) = &unit.statement.parsed.kind
            && ddl.temporary
            && result.is_ok()
        {
            self.temporary
                .extend(ddl.relations.iter().map(|name| name.name.clone()));
            self.temporary_changed = true;
        }
        self.finish_statement(made, result).await
    }

    /// A table that an open cursor reads is in use: PostgreSQL renames it, and changes nothing else. The rows of a cursor over several
    /// shards are elsewhere, where it would not notice.
    fn refuse_under_cursor(&self, unit: Unit<'_>, ddl: &Ddl) -> Result<(), ServerError> {
        let verb = match ddl.kind {
            DdlKind::AlterTable => "ALTER TABLE",
            DdlKind::DropTable => "DROP TABLE",
            DdlKind::CreateIndex => "CREATE INDEX",
            DdlKind::Truncate => "TRUNCATE",
            _ => return Ok(()),
        };
        let Some(open) = self.block.open() else { return Ok(()) };
        let (text, tokens) = (&unit.statement.text, &unit.statement.parsed.tokens);
        let follows = |first, then| {
            let pair = |t: &[pgherd_sql::lexer::Token]| t[0].is_word(text, first) && t[1].is_word(text, then);
            tokens.windows(2).any(pair)
        };
        let renames = tokens.iter().any(|t| t.is_word(text, "rename")) || follows("set", "schema");
        if ddl.kind == DdlKind::AlterTable && renames {
            return Ok(());
        }
        let snapshot = self.present_snapshot();
        for name in &ddl.relations {
            let resolved = snapshot.resolve(name.schema.as_deref(), &name.name, &self.settings.search_path);
            if matches!(resolved, Resolved::Known(table) if open.has_cursor_over(&table.name)) {
                let message = format!(
                    "cannot {verb} \"{}\" because it is being used by active queries in this session",
                    name.name
                );
                return Err(ServerError::new(SqlState::OBJECT_IN_USE, message));
            }
        }
        Ok(())
    }

    /// CREATE and DROP INDEX CONCURRENTLY for a sharded table, which PostgreSQL does not do to partitioned ones, and DETACH
    /// PARTITION CONCURRENTLY, which it does in two transactions: the same
    /// without it, on all shards in one transaction. None for other tables, and in a block, where PostgreSQL refuses it.
    async fn without_concurrently(&mut self, unit: Unit<'_>, ddl: &Ddl) -> Result<Option<String>, Problem> {
        if !self.block.is_none() {
            return Ok(None);
        }
        let (text, tokens) = (&unit.statement.text, &unit.statement.parsed.tokens);
        let snapshot = self.catalog().snapshot();
        let is_sharded = match ddl.kind {
            DdlKind::CreateIndex | DdlKind::AlterTable => ddl.relations.first().is_some_and(|name| {
                let resolved = snapshot.resolve(name.schema.as_deref(), &name.name, &self.settings.search_path);
                matches!(resolved, Resolved::Known(table) if table.sharded().is_some())
            }),
            DdlKind::DropIndex => self.is_index_of_sharded(ddl, &snapshot).await?,
            _ => false,
        };
        let word = tokens.iter().find(|t| t.is_word(text, "concurrently"));
        let Some(word) = word.filter(|_| is_sharded) else {
            return Ok(None);
        };
        if ddl.kind == DdlKind::CreateIndex {
            let message = "CREATE INDEX CONCURRENTLY on a sharded table blocks writes while the index is built";
            self.put_notice(&notice("NOTICE", SqlState::SUCCESS, message));
        }
        // Blanks keep every position.
        let span = word.start as usize..word.end as usize;
        let mut plain = text.to_string();
        plain.replace_range(span.clone(), &" ".repeat(span.len()));
        Ok(Some(plain))
    }

    async fn is_index_of_sharded(&mut self, ddl: &Ddl, snapshot: &Snapshot) -> Result<bool, Problem> {
        for name in &ddl.relations {
            let index = match &name.schema {
                Some(schema) => format!("{}.{}", quote_identifier(schema), quote_identifier(&name.name)),
                None => quote_identifier(&name.name),
            };
            let sql = format!(
                "SELECT indrelid FROM pg_catalog.pg_index WHERE indexrelid = pg_catalog.to_regclass({})",
                quote_literal(&index)
            );
            let results = self.ask_home(&sql).await?;
            let table: Option<u32> = results.first().and_then(|r| r.text(0, 0)).and_then(|t| t.parse().ok());
            let mut sharded = snapshot.sharded().filter_map(|t| t.sharded());
            if sharded.any(|s| Some(s.relation) == table) {
                return Ok(true);
            }
        }
        Ok(false)
    }

    /// Where one snapshot serves the whole transaction, procedures stay on the home shard: elsewhere they would copy, and
    /// decide by, rows as they were before they had locked anything. PostgreSQL's own statements look at the newest rows at every level, on
    /// each shard; what would have a gateway move rows is refused where it comes to that.
    pub(super) async fn change_in_one_snapshot(&mut self, unit: Unit<'_>) -> Result<Option<String>, Problem> {
        if !self
            .block
            .open()
            .is_some_and(|open| open.transaction.shows_one_snapshot())
        {
            return self.change_in_block(unit).await;
        }
        self.check_catalog_is_shown(true)?;
        let level = self.block.open().and_then(|open| open.transaction.mode().isolation);
        if level == Some(Isolation::RepeatableRead) && matches!(unit.statement.parsed.kind, Kind::Ddl(_)) {
            return self.change_in_block(unit).await;
        }
        let home = self.gateway.shards.home();
        let confine = |block: &mut Block, to| {
            if let Some(open) = block.open_mut() {
                open.transaction.confine(to);
            }
        };
        confine(&mut self.block, Some(home));
        let result = self.change_in_block(unit).await;
        confine(&mut self.block, None);
        result
    }

    async fn change_in_block(&mut self, unit: Unit<'_>) -> Result<Option<String>, Problem> {
        let home = self.gateway.shards.home();
        let catalog = self.database.catalog.clone();
        let shards = self.gateway.shards.clone();
        let search_path = self.settings.search_path.clone();
        let distribution = Distribution::from_settings(
            Some(&self.settings.default_distribution),
            Some(&self.settings.initial_bounds),
        )?;
        self.cancel.slot.clear();
        self.note_own_change();
        let open = self.block.open_mut().ok_or_else(no_block)?;
        let snapshot = open.overlay.clone().unwrap_or_else(|| catalog.snapshot());
        refuse_hidden_reads(unit, &snapshot)?;
        let session = pgherd_operations::Session {
            catalog: &catalog,
            shards: &shards,
            search_path: &search_path,
            distribution,
            snapshot,
        };
        let statement = unit.statement;
        let (transaction, change) = (&mut open.transaction, &mut open.change);
        let outcome = match &statement.parsed.kind {
            Kind::CallPgherd { procedure, arguments } => {
                pgherd_operations::call(&session, transaction, procedure, arguments, change).await?
            }
            _ => {
                let changed =
                    pgherd_operations::schema_change(&session, transaction, &statement.parsed, &statement.text, change);
                match changed.await {
                    Ok(outcome) => outcome,
                    Err(failure) => {
                        self.put_notices(failure.notices);
                        return Err(failure.error.into());
                    }
                }
            }
        };
        if outcome.catalog_changed {
            let backend = open.transaction.participant(home).await?;
            open.overlay = Some(catalog.load_through(backend).await?);
        }
        Ok(Some(self.put_outcome(unit, outcome)))
    }

    pub(crate) fn put_notices(&mut self, notices: Vec<ServerError>) {
        for notice in notices {
            let notice = self.as_client_sees(notice);
            self.put_notice(&notice);
        }
    }

    /// Puts notices and rows; returns the tag.
    fn put_outcome(&mut self, unit: Unit<'_>, outcome: Outcome) -> String {
        self.put_notices(outcome.notices);
        if !outcome.columns.is_empty() {
            if matches!(unit.mode, Mode::Simple) {
                self.client.put_row_description(&outcome.columns, &[]);
            }
            for row in &outcome.rows {
                let values: Vec<Option<&[u8]>> = row.iter().map(|v| v.as_deref()).collect();
                self.client.put_row(&values);
            }
        }
        outcome.tag
    }

    /// VACUUM, ANALYZE, REINDEX, CLUSTER, CREATE INDEX CONCURRENTLY.
    pub(crate) async fn maintain(&mut self, unit: Unit<'_>) -> Result<(), Problem> {
        if let Kind::Analyze(_) = unit.statement.parsed.kind
            && self.block.open().is_some()
        {
            return self.analyze_in_block(unit).await;
        }
        // PostgreSQL does some of it in a block, to plain tables, and refuses the rest in its own words. A sharded table is a
        // partitioned one, for which it does none.
        if self.block.open().is_some() {
            return self.judged_by_home(unit).await;
        }
        let entered = self.enter(unit).await?;
        if !entered.analysis.touches_sharded && self.who.pin.is_some() {
            drop(entered);
            return self.routed(unit).await;
        }
        let catalog = self.database.catalog.clone();
        let shards = self.gateway.shards.clone();
        let search_path = self.settings.search_path.clone();
        let session = pgherd_operations::Session {
            catalog: &catalog,
            shards: &shards,
            search_path: &search_path,
            distribution: Distribution::default(),
            snapshot: entered.snapshot.clone(),
        };
        let who = self.who.clone();
        let statement = unit.statement;
        let outcome = pgherd_operations::maintenance(
            &session,
            &self.database.coordinator,
            &who,
            &statement.parsed,
            &statement.text,
        )
        .await?;
        let tag = self.put_outcome(unit, outcome);
        self.client.put_tag(&tag);
        Ok(())
    }

    /// ANALYZE may run in a block: on every participant that holds a part.
    async fn analyze_in_block(&mut self, unit: Unit<'_>) -> Result<(), Problem> {
        let entered = self.enter(unit).await?;
        if !entered.analysis.touches_sharded {
            drop(entered);
            return self.routed(unit).await;
        }
        let mut shards: Vec<_> = entered
            .analysis
            .sharded
            .iter()
            .filter_map(|t| t.sharded())
            .flat_map(|s| s.ranges.shards())
            .collect();
        shards.sort();
        shards.dedup();
        let open = self.block.open_mut().ok_or_else(no_block)?;
        for shard in shards {
            open.transaction.wrote(shard);
            open.transaction
                .participant(shard)
                .await?
                .simple(&unit.statement.text)
                .await?;
        }
        self.client.put_tag("ANALYZE");
        Ok(())
    }
}

/// A default, check, index expression or policy is evaluated inside one shard: it must call no function that may read
/// sharded tables, and a policy must not name one. Judged from the tokens, so that any grammar is covered.
fn refuse_hidden_reads(unit: Unit<'_>, snapshot: &Snapshot) -> Result<(), ServerError> {
    let parsed = &unit.statement.parsed;
    let Kind::Ddl(ddl) = &parsed.kind else { return Ok(()) };
    if pgherd_sql::hides_a_name(&unit.statement.text, &parsed.tokens) && snapshot.sharded().next().is_some() {
        return Err(pgherd_sql::hidden_name());
    }
    let policy = matches!(ddl.kind, DdlKind::CreatePolicy | DdlKind::AlterPolicy);
    let with_expressions = matches!(
        ddl.kind,
        DdlKind::CreateTable
            | DdlKind::AlterTable
            | DdlKind::CreateIndex
            | DdlKind::CreateDomain
            | DdlKind::AlterDomain
            | DdlKind::CreateStatistics
    );
    if !policy && !with_expressions {
        return Ok(());
    }
    let text = &unit.statement.text;
    let of_its_own = |name: &str| ddl.relations.iter().chain(&ddl.object).any(|r| r.name == name);
    let mut own_named = 0;
    for (i, token) in parsed.tokens.iter().enumerate() {
        let Some(name) = token.identifier(text) else { continue };
        let called = parsed.tokens.get(i + 1).is_some_and(|next| next.is(text, "("));
        if called && snapshot.may_reach(&name) && !(with_expressions && of_its_own(&name)) {
            return Err(hidden_read(&format!("It calls function \"{name}\".")));
        }
        if policy && !yields(snapshot, &name) {
            own_named += usize::from(of_its_own(&name));
            if !of_its_own(&name) || own_named > 1 {
                return Err(hidden_read(&format!("It names \"{name}\".")));
            }
        }
    }
    Ok(())
}

/// Whether all that a name may mean becomes local when a policy reads it.
fn yields(snapshot: &Snapshot, name: &str) -> bool {
    let mut found = snapshot.relations.get(name).into_iter().flatten();
    found.all(|(_, table)| {
        let whole = table.as_ref().and_then(|table| snapshot.whole(table));
        whole.is_some_and(|whole| whole.may_yield())
    })
}

fn hidden_read(detail: &str) -> ServerError {
    ServerError::unsupported(
        "an expression that may read sharded tables cannot be part of a table yet",
        "It would run on one shard and see only that shard's rows. Compute the value in the statement instead.",
    )
    .with_detail(detail)
}

/// CREATE, ALTER or DROP SUBSCRIPTION.
fn is_subscription(unit: Unit<'_>) -> bool {
    let mut words = unit.statement.parsed.identifiers(&unit.statement.text);
    words.nth(1).is_some_and(|word| word == "subscription")
}
