//! What all sessions share: DataFusion's runtime with its memory limit, and what was learned about tables.

use crate::metadata::Relation;
use datafusion::common::DataFusionError;
use datafusion::execution::memory_pool::{FairSpillPool, MemoryConsumer, MemoryReservation};
use datafusion::execution::runtime_env::{RuntimeEnv, RuntimeEnvBuilder};
use datafusion::physical_plan::{ExecutionPlan, SendableRecordBatchStream, execute_stream};
use datafusion::prelude::{DataFrame, SessionConfig, SessionContext};
use pgherd_model::{Epoch, ServerError, SqlState, Table};
use std::collections::HashMap;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

/// How much the gateway may use for queries.
#[derive(Debug, Clone)]
pub struct Limits {
    /// bytes that all statements together may hold in memory; more is spilled to disk
    pub memory_bytes: usize,
    /// from so many rows in its tables on, a statement is worth a plan in several steps
    pub staged_from_rows: u64,
    /// tables of at most so many rows are joined by PostgreSQL, over arrays: making a plan of DataFusion's takes longer
    pub few_rows: u64,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            memory_bytes: 1 << 30,
            staged_from_rows: 20_000,
            few_rows: 1_000,
        }
    }
}

/// For how long a number of rows is believed.
const ROWS_ARE_FRESH: Duration = Duration::from_secs(30);
/// Facts are forgotten beyond this many tables.
const MOST_TABLES: usize = 10_000;

/// What was learned of tables, by the address of a table's description, which is kept so that the address stays its own.
#[derive(Debug)]
struct Facts<T>(Mutex<HashMap<usize, (Arc<Table>, T)>>);

impl<T> Default for Facts<T> {
    fn default() -> Self {
        Self(Mutex::default())
    }
}

impl<T: Clone> Facts<T> {
    fn of(&self, table: &Arc<Table>) -> Option<T> {
        let facts = self.0.lock().ok()?;
        facts.get(&(Arc::as_ptr(table) as usize)).map(|(_, fact)| fact.clone())
    }

    fn learn(&self, table: &Arc<Table>, fact: T) {
        if let Ok(mut facts) = self.0.lock() {
            if facts.len() >= MOST_TABLES {
                facts.clear();
            }
            facts.insert(Arc::as_ptr(table) as usize, (table.clone(), fact));
        }
    }
}

/// What all sessions share.
pub struct Engine {
    runtime: Arc<RuntimeEnv>,
    config: SessionConfig,
    bytewise: Facts<bool>,
    /// estimated rows, and when that was asked
    rows: Facts<(f64, Instant)>,
    /// what the home shard said of a table in an epoch
    relations: Facts<(Epoch, Arc<Relation>)>,
    staged_from_rows: f64,
    few_rows: f64,
}

impl std::fmt::Debug for Engine {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Engine")
    }
}

impl Engine {
    /// With these limits.
    pub fn new(limits: Limits) -> Result<Self, ServerError> {
        let pool = Arc::new(FairSpillPool::new(limits.memory_bytes));
        let runtime = RuntimeEnvBuilder::new()
            .with_memory_pool(pool)
            .build_arc()
            .map_err(error)?;
        let config = SessionConfig::new().with_information_schema(false);
        Ok(Self {
            runtime,
            config,
            bytewise: Facts::default(),
            rows: Facts::default(),
            relations: Facts::default(),
            staged_from_rows: limits.staged_from_rows as f64,
            few_rows: limits.few_rows as f64,
        })
    }

    /// A context for one statement.
    pub(crate) fn context(&self) -> SessionContext {
        SessionContext::new_with_config_rt(self.config.clone(), self.runtime.clone())
    }

    /// A part of the memory that all statements together may use, for what is kept beside DataFusion's plans.
    pub(crate) fn memory(&self, what: &str) -> MemoryReservation {
        MemoryConsumer::new(what).register(&self.runtime.memory_pool)
    }

    /// Whether all text of the table compares by bytes, where that is known.
    pub(crate) fn is_bytewise(&self, table: &Arc<Table>) -> Option<bool> {
        self.bytewise.of(table)
    }

    pub(crate) fn learn_bytewise(&self, table: &Arc<Table>, bytewise: bool) {
        self.bytewise.learn(table, bytewise);
    }
}

/// A plan's rows, and the plan.
pub(crate) type Started = (SendableRecordBatchStream, Arc<dyn ExecutionPlan>);

/// Starts a plan of DataFusion's. The plan comes along, for what it tells about itself when it is done.
pub(crate) async fn start(frame: DataFrame) -> Result<Started, DataFusionError> {
    let task = Arc::new(frame.task_ctx());
    let plan = frame.create_physical_plan().await?;
    Ok((execute_stream(plan.clone(), task)?, plan))
}

/// What a plan used: (memory, spilled) in bytes, summed over its steps.
pub(crate) fn used(plan: &dyn ExecutionPlan) -> (usize, usize) {
    let (mut memory, mut spilled) = (0, 0);
    if let Some(metrics) = plan.metrics() {
        spilled += metrics.spilled_bytes().unwrap_or(0);
        for name in ["peak_mem_used", "build_mem_used"] {
            memory += metrics.sum_by_name(name).map_or(0, |value| value.as_usize());
        }
    }
    for child in plan.children() {
        let (more_memory, more_spilled) = used(child.as_ref());
        memory += more_memory;
        spilled += more_spilled;
    }
    (memory, spilled)
}

impl Engine {
    /// From so many rows in its tables on, a statement is worth a plan in several steps.
    pub(crate) fn staged_from_rows(&self) -> f64 {
        self.staged_from_rows
    }

    /// Whether tables of so many rows are too small for a plan of DataFusion's.
    pub(crate) fn are_few(&self, rows: &[f64]) -> bool {
        rows.iter().all(|rows| *rows <= self.few_rows)
    }

    /// How many rows the table has, as far as that was asked lately.
    pub(crate) fn rows_of(&self, table: &Arc<Table>) -> Option<f64> {
        let (rows, asked) = self.rows.of(table)?;
        (asked.elapsed() < ROWS_ARE_FRESH).then_some(rows)
    }

    pub(crate) fn learn_rows(&self, table: &Arc<Table>, rows: f64) {
        self.rows.learn(table, (rows, Instant::now()));
    }

    /// What the home shard said of the table in this epoch.
    pub(crate) fn relation_of(&self, table: &Arc<Table>, epoch: Epoch) -> Option<Arc<Relation>> {
        let (of, relation) = self.relations.of(table)?;
        (of == epoch).then_some(relation)
    }

    pub(crate) fn learn_relation(&self, table: &Arc<Table>, epoch: Epoch, relation: Relation) {
        self.relations.learn(table, (epoch, Arc::new(relation)));
    }
}

/// DataFusion's error as PostgreSQL would report it: an error of ours from inside passes through whole.
pub(crate) fn error(error: DataFusionError) -> ServerError {
    match error.find_root() {
        DataFusionError::External(inner) => match inner.downcast_ref::<ServerError>() {
            Some(server) => server.clone(),
            None => ServerError::internal(inner.to_string()),
        },
        DataFusionError::ResourcesExhausted(message) => ServerError::new(SqlState::OUT_OF_MEMORY, "out of memory")
            .with_detail(message.clone())
            .with_hint("Raise the gateway's memory for queries, or let the query return or group fewer rows."),
        other => ServerError::internal(other.to_string()),
    }
}
