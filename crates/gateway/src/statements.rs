//! Parsed and analysed statements, shared by all sessions of a database and keyed by their text.

use crate::session::read_constants::Readings;
use crate::session::{own_state, shown_catalogs};
use ahash::AHashMap;
use parking_lot::Mutex;
use pgherd_model::{Epoch, ServerError, Snapshot};
use pgherd_query::Description;
use pgherd_sql::lexer::Token;
use pgherd_sql::{Analysis, CopySource, Kind, Parsed};
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};

/// How many texts are kept.
const CAPACITY: usize = 4096;
/// How many bytes of texts are kept. With its tokens, tree and analysis, a statement takes some 100 times as much as its text.
const MOST_TEXT_BYTES: usize = 2 << 20;
/// How many prepared texts are known by number, and of how many bytes.
const MOST_IDS: usize = 65_536;
const MOST_ID_BYTES: usize = 16 << 20;
/// Longer texts (bulk INSERTs) are not kept.
const LONGEST_CACHED: usize = 16 * 1024;

/// Uses are counted up to here.
const OFTEN: u32 = 100;

/// The databases that relations of a statement are named with.
fn named_databases(text: &str, parsed: &Parsed) -> Box<[String]> {
    let is_dot = |at: usize| parsed.tokens.get(at).is_some_and(|t| t.is(text, "."));
    if !(1..parsed.tokens.len()).any(|at| is_dot(at) && is_dot(at + 2)) {
        return Box::default();
    }
    let names = match (&parsed.kind, parsed.ast.as_deref()) {
        (Kind::Copy(copy), _) => match &copy.source {
            CopySource::Table(name) => vec![name.span.clone()],
            CopySource::Query(_) => Vec::new(),
        },
        (_, Some(tree)) => {
            let found = pgherd_sql::relations::references(tree, &|_, _| None).unwrap_or_default();
            found.into_iter().map(|reference| reference.name.span).collect()
        }
        _ => Vec::new(),
    };
    let database = |span: std::ops::Range<usize>| {
        let within = parsed.tokens.iter();
        let mut parts = within
            .filter(|t| span.contains(&(t.start as usize)))
            .filter_map(|t| t.identifier(text));
        let first = parts.next()?;
        (parts.count() == 2).then_some(first)
    };
    names.into_iter().filter_map(database).collect()
}

/// One statement of a text.
pub(crate) struct Statement {
    /// the statement's own text, without the `;` (but for PREPARE and DECLARE that come alone)
    pub(crate) text: Arc<str>,
    /// characters of the client's text before it, to map error positions
    pub(crate) offset_chars: u32,
    pub(crate) parsed: Parsed,
    /// calls set_config, which is SET by another name
    pub(crate) sets_config: bool,
    /// calls nextval, currval, lastval or setval: what they say belongs to one session
    pub(crate) uses_sequences: bool,
    /// asks for the session's process id, its prepared statements, or the end of another session
    pub(crate) asks_session: bool,
    /// reads catalogs of PostgreSQL's that show ranges, or the numbers of one shard
    pub(crate) reads_catalogs: bool,
    /// is NOTIFY, or calls pg_notify()
    pub(crate) notifies: bool,
    /// calls no function that a user may have made
    pub(crate) calls_builtins_only: bool,
    /// names current_setting or pg_settings, which may show the level of a block whose shards' blocks are at another one
    pub(crate) shows_settings: bool,
    /// how often it was looked up; stops counting when it is often
    uses: AtomicU32,
    /// calls the functions of schema pgherd that stand for `now()`, for which the transaction's time must be set
    pub(crate) shared_clock: bool,
    /// has constants that a prepared statement keeps as they were read
    pub(crate) readings: Readings,
    /// has the words WHERE CURRENT OF
    pub(crate) names_cursor: bool,
    /// has `$1` …
    pub(crate) has_parameters: bool,
    /// databases that relations are named with, as in `d.s.t`
    databases: Box<[String]>,
    analysed: Mutex<Option<Analysed>>,
    described: Mutex<Option<Described>>,
}

struct Analysed {
    epoch: Epoch,
    search_path: u64,
    types: Vec<u32>,
    analysis: Arc<Analysis>,
}

struct Described {
    epoch: Epoch,
    search_path: u64,
    types: Vec<u32>,
    description: Arc<Description>,
}

/// What an analysis depends on besides the text.
pub(crate) struct Context<'a> {
    pub(crate) snapshot: &'a Snapshot,
    pub(crate) search_path: &'a [Arc<str>],
    pub(crate) search_path_id: u64,
    pub(crate) temporary: &'a dyn Fn(&str) -> bool,
    pub(crate) types: &'a [u32],
    /// the session's own
    pub(crate) database: &'a str,
    /// false for a transaction's own uncommitted schema and for sessions with temporary tables
    pub(crate) cacheable: bool,
}

impl Statement {
    fn new(text: &str, offset_chars: u32, parsed: Parsed) -> Self {
        let lower = text.to_ascii_lowercase();
        Self {
            text: text.into(),
            offset_chars,
            sets_config: lower.contains("set_config"),
            uses_sequences: ["nextval", "currval", "lastval", "setval"]
                .iter()
                .any(|f| lower.contains(f)),
            asks_session: own_state::asks_session(&lower),
            reads_catalogs: shown_catalogs::reads_catalogs(&lower),
            notifies: lower.contains("notify"),
            calls_builtins_only: pgherd_sql::calls_builtins_only(text, &parsed.tokens),
            shows_settings: ["current_setting", "pg_settings"].iter().any(|f| lower.contains(f)),
            shared_clock: pgherd_sql::clock::uses_shared_clock(text, &parsed.tokens),
            names_cursor: names_cursor(text, &parsed.tokens),
            readings: Readings::of(text, &parsed.tokens),
            has_parameters: parsed
                .tokens
                .iter()
                .any(|t| t.kind == pgherd_sql::lexer::TokenKind::Parameter),
            databases: named_databases(text, &parsed),
            parsed,
            uses: AtomicU32::new(0),
            analysed: Mutex::default(),
            described: Mutex::default(),
        }
    }

    /// Whether it names a relation with a database that is not this one.
    pub(crate) fn names_another(&self, database: &str) -> bool {
        self.databases.iter().any(|name| name != database)
    }

    /// Whether it has to do with what this session is or keeps, so that it takes more than its constants to run it.
    pub(crate) fn is_about_session(&self) -> bool {
        self.uses_sequences || self.sets_config || self.asks_session || self.reads_catalogs
    }

    /// Whether it is a SELECT that neither writes nor locks rows.
    pub(crate) fn only_reads(&self) -> bool {
        matches!(
            self.parsed.kind,
            Kind::Select {
                locking: false,
                writes: false
            }
        )
    }

    /// How often it has been run, or so.
    pub(crate) fn uses(&self) -> u32 {
        self.uses.load(Ordering::Relaxed)
    }

    /// The analysis under `context`.
    pub(crate) fn analysis(&self, context: &Context<'_>) -> Result<Arc<Analysis>, ServerError> {
        if self.uses() < OFTEN {
            self.uses.fetch_add(1, Ordering::Relaxed);
        }
        if context.cacheable
            && let Some(cached) = &*self.analysed.lock()
            && cached.epoch == context.snapshot.epoch
            && cached.search_path == context.search_path_id
            && cached.types == context.types
        {
            return Ok(cached.analysis.clone());
        }
        // Names with another database's are none of this one's relations, which is for PostgreSQL to say.
        let of_others = self.names_another(context.database);
        let nothing_sharded = of_others.then(|| Snapshot {
            relations: Default::default(),
            ..context.snapshot.clone()
        });
        let analysis = Arc::new(pgherd_sql::analyze(
            &self.parsed,
            &self.text,
            nothing_sharded.as_ref().unwrap_or(context.snapshot),
            context.search_path,
            context.temporary,
            context.types,
        )?);
        if context.cacheable {
            *self.analysed.lock() = Some(Analysed {
                epoch: context.snapshot.epoch,
                search_path: context.search_path_id,
                types: context.types.to_vec(),
                analysis: analysis.clone(),
            });
        }
        Ok(analysis)
    }

    /// A description made earlier under the same context.
    pub(crate) fn description(&self, context: &Context<'_>) -> Option<Arc<Description>> {
        let described = self.described.lock();
        let cached = described.as_ref()?;
        (context.cacheable
            && cached.epoch == context.snapshot.epoch
            && cached.search_path == context.search_path_id
            && cached.types == context.types)
            .then(|| cached.description.clone())
    }

    /// Keeps a description.
    pub(crate) fn keep_description(&self, context: &Context<'_>, description: &Arc<Description>) {
        if context.cacheable {
            *self.described.lock() = Some(Described {
                epoch: context.snapshot.epoch,
                search_path: context.search_path_id,
                types: context.types.to_vec(),
                description: description.clone(),
            });
        }
    }
}

fn names_cursor(text: &str, tokens: &[Token]) -> bool {
    let is = |at: usize, word: &str| tokens.get(at).is_some_and(|t| t.is_word(text, word));
    (0..tokens.len()).any(|i| is(i, "current") && is(i + 1, "of"))
}

/// The statements of one text.
pub(crate) type Statements = Arc<[Arc<Statement>]>;

/// Numbers of prepared statements on backends. Forgetting one only costs a Parse.
#[derive(Default)]
struct Ids {
    known: AHashMap<(Arc<str>, Vec<u32>, u64), u64>,
    /// of the texts among them
    bytes: usize,
}

/// Texts with their statements, the least used one first to go.
struct Texts {
    kept: lru::LruCache<Arc<str>, Statements, ahash::RandomState>,
    /// of all texts
    bytes: usize,
}

impl Texts {
    fn put(&mut self, text: &str, statements: Statements) {
        self.bytes += text.len();
        if let Some((gone, _)) = self.kept.push(text.into(), statements) {
            self.bytes -= gone.len();
        }
        while self.bytes > MOST_TEXT_BYTES
            && let Some((gone, _)) = self.kept.pop_lru()
        {
            self.bytes -= gone.len();
        }
    }
}

/// The last number given. None is used again, also not for a database that is dropped and made anew.
static LAST_ID: AtomicU64 = AtomicU64::new(0);

/// The cache.
pub(crate) struct StatementCache {
    texts: Mutex<Texts>,
    ids: Mutex<Ids>,
}

impl Default for StatementCache {
    fn default() -> Self {
        let capacity = std::num::NonZeroUsize::new(CAPACITY).expect("not zero");
        Self {
            texts: Mutex::new(Texts {
                kept: lru::LruCache::with_hasher(capacity, ahash::RandomState::new()),
                bytes: 0,
            }),
            ids: Mutex::default(),
        }
    }
}

impl StatementCache {
    /// The text's statements, parsed now or earlier.
    pub(crate) fn parse(&self, text: &str) -> Result<Statements, ServerError> {
        if text.len() <= LONGEST_CACHED
            && let Some(statements) = self.texts.lock().kept.get(text)
        {
            return Ok(statements.clone());
        }
        let mut parsed = pgherd_sql::parse(text)?;
        let statements: Statements = if parsed.len() == 1 && parsed[0].span.start == 0 {
            let parsed = parsed.remove(0);
            let own = match parsed.kind {
                // PostgreSQL shows these texts, and with all that was sent.
                Kind::Prepare { .. } | Kind::Declare { .. } => text,
                _ => &text[parsed.span.clone()],
            };
            Arc::new([Arc::new(Statement::new(own, 0, parsed))])
        } else {
            // Each on its own, so that all byte offsets count from the statement's start.
            let mut statements = Vec::with_capacity(parsed.len());
            for span in parsed.into_iter().map(|p| p.span) {
                let offset_chars = text[..span.start].chars().count() as u32;
                let own = &text[span];
                if let Some(parsed) = pgherd_sql::parse(own)?.into_iter().next() {
                    statements.push(Arc::new(Statement::new(own, offset_chars, parsed)));
                }
            }
            statements.into()
        };
        if text.len() <= LONGEST_CACHED {
            self.texts.lock().put(text, statements.clone());
        }
        Ok(statements)
    }

    /// The number that names a prepared statement of this text and these types on every backend (`s<id>`). `kept` tells
    /// apart what must not be taken for the same although its text is.
    pub(crate) fn id(&self, text: &Arc<str>, types: &[u32], kept: u64) -> u64 {
        let mut ids = self.ids.lock();
        let key = (text.clone(), types.to_vec(), kept);
        if let Some(id) = ids.known.get(&key) {
            return *id;
        }
        if ids.known.len() >= MOST_IDS || ids.bytes > MOST_ID_BYTES {
            ids.known.clear();
            ids.bytes = 0;
        }
        ids.bytes += text.len();
        let id = LAST_ID.fetch_add(1, Ordering::Relaxed) + 1;
        ids.known.insert(key, id);
        id
    }
}
