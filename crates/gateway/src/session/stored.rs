//! PREPARE, EXECUTE and DEALLOCATE in SQL: they share the names of the protocol's prepared statements, as in
//! PostgreSQL. Arguments are evaluated by the home shard.

use super::exact_text::EXACT_STYLE;
use super::extended::{Prepared, Told, no_statement};
use super::{Problem, Session, Unit};
use bytes::Bytes;
use pgherd_model::{ServerError, SqlState};
use pgherd_query::{Description, text_is_not_exact};
use pgherd_shards::{SimpleResult, TransactionStatus};
use pgherd_sql::Kind;
use pgherd_sql::lexer::{Token, depths};
use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::SystemTime;

impl Session {
    /// Runs one of the three.
    pub(crate) async fn stored(&mut self, unit: Unit<'_>) -> Result<(), Problem> {
        match &unit.statement.parsed.kind {
            Kind::Prepare { name, types, inner } => {
                self.prepare(name, types, inner.clone(), &unit.statement.text).await
            }
            Kind::Execute(name) => self.execute_stored(name, unit).await,
            Kind::Deallocate(name) => {
                match name {
                    Some(name) => {
                        self.prepared.remove(name).ok_or_else(|| no_statement(name))?;
                        self.client.put_tag("DEALLOCATE");
                    }
                    None => {
                        self.prepared.clear();
                        self.client.put_tag("DEALLOCATE ALL");
                    }
                }
                Ok(())
            }
            _ => Err(ServerError::internal("not PREPARE, EXECUTE or DEALLOCATE").into()),
        }
    }

    /// `inner`: the bytes of the statement that is prepared.
    async fn prepare(
        &mut self,
        name: &str,
        types: &[String],
        inner: Range<usize>,
        text: &Arc<str>,
    ) -> Result<(), Problem> {
        let mut oids = Vec::with_capacity(types.len());
        for type_name in types {
            oids.push(if type_name.eq_ignore_ascii_case("unknown") {
                0
            } else {
                let at = text[..inner.start].rfind(type_name.as_str());
                let position = at.map(|at| text[..at].chars().count() as u32 + 1);
                self.type_oid(type_name)
                    .await
                    .map_err(|p| with_position(p, |_| position))?
            });
        }
        let before = text[..inner.start].chars().count() as u32;
        let behind = |problem| with_position(problem, |position| position.map(|p| p + before));
        let parsed = self.database.cache.parse(&text[inner]);
        if !parsed
            .as_ref()
            .is_ok_and(|statements| statements.first().is_some_and(|s| can_be_prepared(&s.parsed.kind)))
        {
            self.check_syntax(text).await?;
        }
        let statements = parsed.map_err(|e| behind(e.into()))?;
        let statement = statements.first().cloned();
        let mut prepared = Prepared {
            reading: self.reading(statement.as_ref()),
            statement,
            types: oids,
            named: true,
            text: text.clone(),
            offset: before,
            from_sql: true,
            prepared_at: SystemTime::now(),
            told: Default::default(),
        };
        // PostgreSQL judges the statement now, and settles the types of its parameters.
        if let Some(statement) = prepared.statement.clone() {
            let mode = super::Mode::Simple;
            let unit = Unit {
                statement: &statement,
                types: &prepared.types,
                parameters: &[],
                mode,
                template: None,
            };
            let entered = self.enter(unit).await.map_err(behind)?;
            let described = self.description(unit, &entered.snapshot).await.map_err(behind)?;
            prepared.types = described.parameter_types.clone();
            let version = self.schema_version(entered.snapshot.epoch.0);
            *prepared.told.get_mut() = Some(Told::new(version, described));
            drop(entered);
            prepared.statement = Some(self.at_this_moment(statement, &prepared.types).await);
        }
        if self.prepared.contains_key(name) {
            return Err(ServerError::new(
                SqlState::DUPLICATE_PREPARED_STATEMENT,
                format!("prepared statement \"{name}\" already exists"),
            )
            .into());
        }
        self.prepared.insert(name.to_owned(), Arc::new(prepared));
        self.client.put_tag("PREPARE");
        Ok(())
    }

    async fn type_oid(&mut self, name: &str) -> Result<u32, Problem> {
        let sql = format!("SELECT {}::regtype::oid", pgherd_model::quote_literal(name));
        let results = self.ask_home(&sql).await?;
        let oid = results.first().and_then(|r| r.text(0, 0)).and_then(|t| t.parse().ok());
        Ok(oid.ok_or_else(|| ServerError::internal("regtype gave no oid"))?)
    }

    async fn execute_stored(&mut self, name: &str, unit: Unit<'_>) -> Result<(), Problem> {
        let Some(prepared) = self.prepared.get(name).cloned() else {
            self.check_syntax(&unit.statement.text).await?;
            return Err(no_statement(name).into());
        };
        let Some(statement) = &prepared.statement else {
            self.client.put(b'I', &[]);
            return Ok(());
        };
        self.check_arguments(unit).await?;
        let types = self.settled_types(&prepared).await?;
        let parameters = self.evaluate(name, unit, &types).await?;
        let as_read = self.as_read(statement, &types, prepared.reading.as_ref()).await?;
        let inner = Unit {
            statement: as_read.as_ref().unwrap_or(statement),
            types: &types,
            parameters: &parameters,
            mode: unit.mode,
            template: None,
        };
        let in_preparation = |problem| with_position(problem, |position| position.map(|p| p + prepared.offset));
        self.check_told(inner, &prepared).await.map_err(in_preparation)?;
        let result = match (inner.mode, parameters.is_empty()) {
            // Without parameters the simple protocol can carry it as it is.
            (_, true) | (super::Mode::Extended { .. }, _) => Box::pin(self.run(inner)).await,
            (super::Mode::Simple | super::Mode::SimplePrepared, false) => {
                let mark = self.client.out.len();
                let result = Box::pin(self.run(Unit { mode: BOUND, ..inner })).await;
                drop_no_data(&mut self.client.out, mark);
                result
            }
        };
        // Positions in the prepared text mean nothing in this one; PostgreSQL leaves them out.
        result.map_err(|problem| with_position(problem, |_| None))
    }

    /// The types of a prepared statement's parameters. PREPARE has settled them; a Parse may have left them for PostgreSQL to find.
    async fn settled_types(&mut self, prepared: &Prepared) -> Result<Vec<u32>, Problem> {
        let Some(statement) = prepared.statement.as_ref().filter(|_| !prepared.from_sql) else {
            return Ok(prepared.types.clone());
        };
        let unit = Unit {
            types: &prepared.types,
            ..Unit::plain(statement)
        };
        let entered = self.enter(unit).await?;
        let described = self.description(unit, &entered.snapshot).await?;
        Ok(described.parameter_types.clone())
    }

    /// The home shard computes arguments: they must call nothing that may read sharded tables.
    async fn check_arguments(&mut self, unit: Unit<'_>) -> Result<(), Problem> {
        if arguments(unit).is_none() {
            return Ok(());
        }
        let entered = self.enter(unit).await?;
        match entered.analysis.route(&entered.snapshot, &[]) {
            pgherd_sql::Route::Refuse(error) => Err(error.into()),
            _ => Ok(()),
        }
    }

    /// The text behind an EXECUTE, and its parameters' values.
    pub(crate) async fn stored_query(&mut self, name: &str, unit: Unit<'_>) -> Result<StoredQuery, Problem> {
        let prepared = self.prepared.get(name).cloned().ok_or_else(|| no_statement(name))?;
        self.check_arguments(unit).await?;
        let types = self.settled_types(&prepared).await?;
        let text = match &prepared.statement {
            None => None,
            Some(statement) => {
                let as_read = self.as_read(statement, &types, prepared.reading.as_ref()).await?;
                Some(as_read.as_ref().unwrap_or(statement).text.to_string())
            }
        };
        let parameters = self.evaluate(name, unit, &types).await?;
        Ok(StoredQuery {
            text: text.unwrap_or_default(),
            types,
            parameters,
        })
    }

    /// A prepared query with its parameters' values in its text.
    pub(crate) async fn with_values(&mut self, query: &StoredQuery) -> Result<String, Problem> {
        if query.parameters.is_empty() {
            return Ok(query.text.clone());
        }
        let names = self.type_names(&query.types).await?;
        let values = query.parameters.iter().zip(&names).map(|((_, value), name)| {
            let value = value.as_ref().map(|v| String::from_utf8_lossy(v));
            let literal = value.map_or_else(|| "NULL".to_owned(), |v| pgherd_model::quote_literal(&v));
            format!("CAST({literal} AS {name})")
        });
        let values: Vec<String> = values.collect();
        pgherd_sql::with_constants(&query.text, &values).ok_or_else(|| {
            let hint = "Write the query into the statement.";
            ServerError::unsupported("the values of this prepared query cannot be put in its text", hint).into()
        })
    }

    /// How SQL writes these types.
    pub(super) async fn type_names(&mut self, types: &[u32]) -> Result<Vec<String>, Problem> {
        let asked: Vec<_> = types
            .iter()
            .map(|oid| format!("pg_catalog.format_type({oid}, -1)"))
            .collect();
        let results = self.ask_home(&format!("SELECT {}", asked.join(", "))).await?;
        let name = |i| results.first().and_then(|r| r.text(0, i)).unwrap_or("text").to_owned();
        Ok((0..types.len()).map(name).collect())
    }

    /// EXPLAIN EXECUTE: explains the prepared query, with the values. Its positions mean nothing to the client.
    pub(crate) async fn explain_stored(&mut self, unit: Unit<'_>, name: &str, head: &str) -> Result<(), Problem> {
        let query = self.stored_query(name, unit).await?;
        let statements = self.database.cache.parse(&format!("{head}{}", query.text))?;
        let statement = statements
            .first()
            .ok_or_else(|| ServerError::new(SqlState::SYNTAX_ERROR, "syntax error at end of input"))?;
        let mode = match (unit.mode, query.parameters.is_empty()) {
            (super::Mode::Simple | super::Mode::SimplePrepared, false) => BOUND,
            (mode, _) => mode,
        };
        let whole = Unit {
            statement,
            types: &query.types,
            parameters: &query.parameters,
            mode,
            template: None,
        };
        Box::pin(self.explain(whole))
            .await
            .map_err(|problem| with_position(problem, |_| None))
    }

    /// The statement behind an EXECUTE, described.
    pub(crate) async fn describe_stored(&mut self, unit: Unit<'_>) -> Result<Arc<Description>, Problem> {
        let Kind::Execute(name) = &unit.statement.parsed.kind else {
            return Err(ServerError::internal("not EXECUTE").into());
        };
        let prepared = self.prepared.get(name).cloned().ok_or_else(|| no_statement(name))?;
        let Some(statement) = &prepared.statement else {
            return Ok(Arc::new(Description {
                parameter_types: Vec::new(),
                columns: None,
            }));
        };
        let inner = Unit {
            statement,
            types: &prepared.types,
            ..unit
        };
        let entered = self.enter(inner).await?;
        let described = self.description(inner, &entered.snapshot).await?;
        Ok(Arc::new(Description {
            parameter_types: Vec::new(),
            columns: described.columns.clone(),
        }))
    }

    /// The values of an EXECUTE's arguments as text. The home shard computes them, by an EXECUTE of a statement with the same types of
    /// parameters, so that they are converted, and refused, as PostgreSQL does it.
    async fn evaluate(
        &mut self,
        name: &str,
        unit: Unit<'_>,
        types: &[u32],
    ) -> Result<Vec<(bool, Option<Bytes>)>, Problem> {
        let text = &unit.statement.text;
        let given = arguments(unit);
        let count = given.as_ref().map_or(0, |given| given.count);
        if count != types.len() || !given.as_ref().is_none_or(|given| given.ends) {
            self.check_syntax(text).await?;
            return Err(wrong_count(name, count, types.len()));
        }
        let Some(Given { text: arguments, .. }) = given.filter(|given| given.count > 0) else {
            return Ok(Vec::new());
        };
        self.check_calls(arguments).await?;
        let names = self.type_names(types).await?;
        let mut list: Vec<_> = (1..=types.len()).map(|n| format!("${n}")).collect();
        let mut back = String::new();
        if let Some(as_text) = self.text_of(types.iter().copied()).await? {
            if !as_text.nulls_are_exact {
                return Err(text_is_not_exact().into());
            }
            if !as_text.style_is_exact {
                list.push(EXACT_STYLE.to_owned());
                back = as_text.back + "; ";
            }
        }
        // Where a failed block is in the way, it stays until the connection is closed; the next one has another name.
        let own = format!("pgherd_arguments_{}", NEXT_NAME.fetch_add(1, Ordering::Relaxed));
        let head = format!(
            "PREPARE {own}({}) AS SELECT {}; EXECUTE {own}(",
            names.join(", "),
            list.join(", ")
        );
        let computed = self
            .compute(&format!("{head}{arguments}\n); {back}DEALLOCATE {own}"), &own)
            .await;
        // A string that does not end goes on in what was put behind it, and would be told with that.
        if computed.as_ref().is_err_and(|e| e.sqlstate() == SqlState::SYNTAX_ERROR) {
            self.check_syntax(text).await?;
        }
        let results = computed.map_err(|error| {
            let start = arguments.as_ptr() as usize - text.as_ptr() as usize;
            let before = text[..start].chars().count() as i64 - head.chars().count() as i64;
            let moved = |position| u32::try_from(i64::from(position) + before).ok();
            let position = error.fields().position.and_then(moved);
            error.with_position(position)
        })?;
        let row = results
            .into_iter()
            .find(|result| !result.columns.is_empty())
            .and_then(|r| r.rows.into_iter().next())
            .unwrap_or_default();
        Ok(row.into_iter().take(types.len()).map(|value| (false, value)).collect())
    }

    /// Runs a text on the home shard that prepares a statement, and takes that away again.
    async fn compute(&mut self, sql: &str, own: &str) -> Result<Vec<SimpleResult>, ServerError> {
        let home = self.gateway.shards.home();
        let mut alone;
        let backend = match self.block.open_mut() {
            Some(open) if open.transaction.enlisted(home) => open.transaction.participant_to_set(home).await?,
            _ => {
                alone = self.home_backend().await?;
                &mut alone
            }
        };
        let results = backend.simple(sql).await;
        if results.is_err() && backend.status() != TransactionStatus::Failed && !backend.is_broken() {
            // It may not have come so far as to be there.
            let _ = backend.simple(&format!("DEALLOCATE {own}")).await;
        }
        Ok(results?)
    }
}

/// Numbers the statements that compute arguments.
static NEXT_NAME: AtomicU64 = AtomicU64::new(0);

/// What PREPARE takes by PostgreSQL's grammar (gram.y, PreparableStmt).
fn can_be_prepared(kind: &Kind) -> bool {
    let writes = matches!(kind, Kind::Insert | Kind::Update | Kind::Delete | Kind::Merge);
    writes || matches!(kind, Kind::Select { .. })
}

/// An error with another position.
pub(super) fn with_position(problem: Problem, position: impl Fn(Option<u32>) -> Option<u32>) -> Problem {
    match problem {
        Problem::Error(error) => {
            let position = position(error.fields().position);
            error.with_position(position).into()
        }
        other => other,
    }
}

/// A prepared query with values for its parameters.
pub(crate) struct StoredQuery {
    pub(crate) text: String,
    pub(crate) types: Vec<u32>,
    pub(crate) parameters: Vec<(bool, Option<Bytes>)>,
}

/// How a statement with parameters runs for a client of the simple protocol.
const BOUND: super::Mode<'static> = super::Mode::Extended {
    formats: &[],
    describe: true,
    looks: false,
    max_rows: 0,
    named: true,
    portal: "",
};

fn wrong_count(name: &str, given: usize, expected: usize) -> Problem {
    ServerError::new(
        SqlState::SYNTAX_ERROR,
        format!("wrong number of parameters for prepared statement \"{name}\""),
    )
    .with_detail(format!("Expected {expected} parameters but got {given}."))
    .into()
}

/// What stands behind an EXECUTE's name.
struct Given<'t> {
    /// what stands between the parentheses
    text: &'t str,
    count: usize,
    /// nothing stands behind them, where the statement is the EXECUTE
    ends: bool,
}

/// What the EXECUTE that a statement is or has is given; None for nothing.
fn arguments(unit: Unit<'_>) -> Option<Given<'_>> {
    arguments_in(&unit.statement.text, &unit.statement.parsed.tokens)
}

fn arguments_in<'t>(text: &'t str, tokens: &[Token]) -> Option<Given<'t>> {
    let execute = tokens.iter().position(|t| t.is_word(text, "execute"))?;
    let tokens = &tokens[execute..];
    let ends = |at: usize| execute > 0 || tokens[at..].iter().all(|t| t.is(text, ";"));
    let open = 2;
    if !tokens.get(open).is_some_and(|t| t.is(text, "(")) {
        let ends = tokens.len() <= open || ends(open);
        return (!ends).then_some(Given {
            text: "",
            count: 0,
            ends,
        });
    }
    let depths = depths(text, tokens);
    let close = (open + 1..tokens.len()).find(|&i| depths[i] == 1 && tokens[i].is(text, ")"));
    // PostgreSQL wants an argument where there are parentheses.
    let Some(close) = close.filter(|&close| close > open + 1) else {
        return Some(Given {
            text: "",
            count: 0,
            ends: false,
        });
    };
    let commas = (open + 1..close).filter(|&i| depths[i] == 1 && tokens[i].is(text, ","));
    Some(Given {
        text: text[tokens[open].end as usize..tokens[close].start as usize].trim(),
        count: commas.count() + 1,
        ends: ends(close + 1),
    })
}

/// The simple protocol has no NoData: takes one out of what was put since `mark`.
fn drop_no_data(out: &mut bytes::BytesMut, mark: usize) {
    if out.len() >= mark + 5 && out[mark] == b'n' {
        let rest = out.split_off(mark + 5);
        out.truncate(mark);
        out.unsplit(rest);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use pgherd_sql::lexer::tokenize;

    #[test]
    fn arguments_are_counted_at_top_level() {
        let given = |text| {
            let tokens = tokenize(text).expect("tokens");
            arguments_in(text, &tokens).map(|given| (given.text, given.count, given.ends))
        };
        assert_eq!(
            given("EXECUTE p(1, f(2, 3), 'a,b')"),
            Some(("1, f(2, 3), 'a,b'", 3, true))
        );
        assert_eq!(
            given("EXECUTE p(E'\\',', $$a,b$$ /* , */)"),
            Some(("E'\\',', $$a,b$$ /* , */", 2, true))
        );
        assert_eq!(given("CREATE TABLE t (a, b) AS EXECUTE p(1)"), Some(("1", 1, true)));
        assert_eq!(given("EXECUTE p('a'),('b')"), Some(("'a'", 1, false)));
        assert_eq!(given("EXECUTE p"), None);
        assert_eq!(given("EXECUTE p;"), None);
        assert_eq!(given("CREATE TABLE t (a) AS EXECUTE p WITH DATA"), None);
        for unread in ["EXECUTE p ()", "EXECUTE p (", "EXECUTE p q", "EXECUTE p q (1)"] {
            assert_eq!(given(unread), Some(("", 0, false)), "{unread}");
        }
    }
}
