//! Through what a statement could reach a sharded table without naming it: views, functions, triggers, rules, foreign
//! keys. What runs inside a shard sees that shard's part only, so each of these is expanded or refused.
//!
//! What calls an unsafe function by itself goes the same way: tables with such defaults, checks, policies or index
//! expressions, domains, operators, casts, and functions with such defaults of their arguments.
//!
//! Functions are judged by the words of their bodies: a sharded table's name, another unsafe function's name, or dynamic
//! SQL make one unsafe. That errs on the side of refusing.

use super::body::Body;
use super::watched::Watchable;
use super::yielding::Search;
use super::{ByOid, ColumnEntry, column, home};
use pgherd_model::functions::READ_WHAT_IS_NAMED;
use pgherd_model::{Name, Table, TableKind, UNREAD_DEFINITION};
use serde::Deserialize;
use std::collections::{BTreeMap, HashMap, HashSet};

#[derive(Debug, Clone, Deserialize)]
pub(super) struct View {
    pub(super) oid: u32,
    pub(super) schema: String,
    pub(super) name: String,
    materialized: bool,
    definition: Option<String>,
    columns: Vec<ColumnEntry>,
    pub(super) relations: Vec<u32>,
    functions: Vec<u32>,
    /// what it shows, where its rows are those of one relation
    pub(super) source: Option<super::stand_in::Source>,
    #[serde(default)]
    read_only: bool,
    /// Its text would have to be waited for; see [`super::held`].
    #[serde(default)]
    pub(super) held: bool,
    #[serde(default)]
    pub(super) version: String,
}

impl View {
    /// Takes from what the same view was before what its text says.
    pub(super) fn take_text(&mut self, known: &View) {
        self.definition = known.definition.clone();
        self.source = known.source.clone();
        self.read_only = known.read_only;
    }
}

#[derive(Debug, Deserialize)]
pub(super) struct Rule {
    pub(super) oid: u32,
    schema: String,
    table: String,
    pub(super) name: String,
    /// none while it would have to be waited for; see [`super::held`]
    pub(super) body: Option<String>,
    #[serde(default)]
    pub(super) version: String,
}

#[derive(Debug, Deserialize)]
pub(super) struct Trigger {
    /// its table's
    pub(super) oid: u32,
    schema: String,
    table: String,
    pub(super) name: String,
    pub(super) function: u32,
}

/// What calls a function by itself.
#[derive(Debug, Deserialize)]
pub(super) struct Dependent {
    function: u32,
    kind: DependentKind,
    oid: u32,
    schema: String,
    name: String,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
enum DependentKind {
    /// in a default, a check, a policy, an index or the like
    Relation,
    /// as the default of an argument
    Function,
    /// an operator, or a type that has a domain's check or a cast
    Word,
}

#[derive(Debug, Deserialize)]
pub(super) struct ForeignKey {
    schema: String,
    table: String,
    name: String,
    relation: u32,
    referenced: u32,
}

#[derive(Debug, Deserialize)]
pub(super) struct Function {
    pub(super) oid: u32,
    pub(super) name: String,
    pub(super) language: String,
    /// none while it would have to be waited for; see [`super::held`]
    pub(super) body: Option<String>,
    /// where the body is not kept as text
    pub(super) version: Option<String>,
    /// an aggregate's functions
    pub(super) parts: Option<Vec<u32>>,
    #[serde(default)]
    pub(super) immutable: bool,
    /// its body names a local relation
    #[serde(default)]
    pub(super) local: bool,
}

/// What reaches sharded tables.
#[derive(Debug, Default)]
pub(super) struct Reach {
    /// names of unsafe functions
    pub functions: HashSet<String>,
    /// names of operators and types that call one
    pub words: HashSet<String>,
    /// names of functions that are to be watched: they are not among the unsafe ones
    pub watched: HashSet<String>,
    /// local tables that can be changed where it is watched
    watched_relations: HashSet<Name>,
    /// names of functions that need the home shard
    pub home: HashSet<String>,
    /// why a relation is refused
    refused: HashMap<Name, String>,
    /// those of them that are refused for a trigger only
    readable: HashSet<Name>,
    /// sharded tables that should be local, with the reason
    pub yielding: BTreeMap<Name, String>,
    /// views to expand, by OID
    expanded: HashSet<u32>,
}

/// Lower-case names through which a body could reach a sharded table.
#[derive(Debug, Default, Clone)]
struct Names {
    relations: HashSet<String>,
    /// of functions, operators, types
    others: HashSet<String>,
}

impl Names {
    fn are_in(&self, body: &Body) -> bool {
        self.others.iter().any(|name| body.mentions(name)) || self.relations.iter().any(|n| body.mentions_relation(n))
    }

    fn without(&self, relation: &str) -> Self {
        let mut others = self.clone();
        others.relations.remove(relation);
        others
    }

    fn len(&self) -> usize {
        self.relations.len() + self.others.len()
    }
}

impl Dependent {
    /// The function and the relation that calls it, where it is one.
    pub(super) fn call(&self) -> Option<(u32, &str)> {
        matches!(self.kind, DependentKind::Relation).then_some((self.function, self.name.as_str()))
    }
}

impl Trigger {
    /// The function and the relation that calls it.
    pub(super) fn call(&self) -> (u32, &str) {
        (self.function, &self.table)
    }

    pub(super) fn table(&self) -> Name {
        Name::new(&self.schema, &self.table)
    }
}

impl Function {
    pub(super) fn body(&self, schemas: &HashSet<String>) -> Body {
        let text = self.body.as_deref().unwrap_or_default();
        match self.language.as_str() {
            "sql" | "plpgsql" => Body::of_sql(text, schemas),
            _ => Body::new(text),
        }
    }

    /// Whether it may run SQL that its body does not show.
    pub(super) fn is_dynamic(&self, body: &Body) -> bool {
        let has = |names: &[&str]| names.iter().any(|n| body.words.contains(*n));
        match self.language.as_str() {
            "c" | "internal" => false,
            // By DO it runs a block that is PL/pgSQL.
            "sql" => has(&["do"]) && has(&["execute"]) || body.hides_names(),
            "plpgsql" => has(&["execute"]) && !body.executes_constants || body.hides_names(),
            // Other languages build the SQL they run from strings.
            _ => has(&["execute", "prepare", "plpy", "cursor"]) || body.contains("spi_"),
        }
    }
}

impl Reach {
    /// `bodies`: those of the document's functions.
    pub(super) fn compute(
        tables: &[Table],
        roots: &ByOid<Name>,
        document: &super::Document,
        bodies: &[(&Function, Body)],
    ) -> Self {
        let super::Document {
            views,
            rules,
            triggers,
            foreign_keys,
            dependents,
            ..
        } = document;
        let mut reach = Self::default();
        let mut names = Names {
            relations: tables.iter().map(|t| t.name.name.to_lowercase()).collect(),
            others: READ_WHAT_IS_NAMED.iter().map(|n| n.to_lowercase()).collect(),
        };
        names.others.insert("pgherd_data".into());
        let mut relations: HashSet<u32> = roots.keys().copied().collect();
        for key in foreign_keys {
            reach.refuse_foreign_key(key, roots, &mut names);
        }
        let mut unsafe_oids: HashSet<u32> = HashSet::new();
        // Each round can only add, and there are finitely many things to add.
        loop {
            let before = (unsafe_oids.len(), relations.len(), names.len());
            for dependent in dependents
                .iter()
                .filter(|d| unsafe_oids.contains(&d.function))
                .collect::<Vec<_>>()
            {
                reach.add_dependent(dependent, &mut unsafe_oids, &mut relations, &mut names);
            }
            for (function, body) in bodies {
                let by_parts = function.parts.iter().flatten().any(|p| unsafe_oids.contains(p));
                if !unsafe_oids.contains(&function.oid) && (by_parts || function.is_dynamic(body) || names.are_in(body))
                {
                    unsafe_oids.insert(function.oid);
                    names.others.insert(function.name.to_lowercase());
                    reach.functions.insert(function.name.clone());
                }
            }
            reach.add_views(views, &unsafe_oids, &mut relations, &mut names);
            for trigger in triggers.iter().filter(|t| unsafe_oids.contains(&t.function)) {
                let reason = format!(
                    "Trigger {} runs a function that may read or write a sharded table.",
                    trigger.name
                );
                let name = Name::new(&trigger.schema, &trigger.table);
                let is_local = !reach.refused.contains_key(&name) && tables.iter().all(|t| t.name != name);
                if is_local {
                    reach.readable.insert(name);
                }
                reach.refuse(&trigger.schema, &trigger.table, reason, &mut names);
                relations.insert(trigger.oid);
            }
            for rule in rules {
                // A rule's own table is in its text; on a local table without more that is no reason.
                let others = names.without(&rule.table.to_lowercase());
                if relations.contains(&rule.oid) || others.are_in(&Body::new(rule.body.as_deref().unwrap_or_default()))
                {
                    let reason = format!("Rule {} would run on one shard's part of a sharded table.", rule.name);
                    reach.refuse(&rule.schema, &rule.table, reason, &mut names);
                    relations.insert(rule.oid);
                }
            }
            if before == (unsafe_oids.len(), relations.len(), names.len()) {
                break;
            }
        }
        reach.find_watched(bodies, &unsafe_oids, document, tables);
        let home = reach.find_home_functions(bodies, &unsafe_oids, triggers, roots, &mut names);
        reach.yielding = Search {
            tables,
            roots,
            views,
            triggers,
            functions: bodies,
            reaching: &unsafe_oids,
            home: &home,
        }
        .yielding();
        reach
    }

    /// Functions that may run where it is looked at afterwards what they have used.
    fn find_watched(
        &mut self,
        bodies: &[(&Function, Body)],
        unsafe_oids: &HashSet<u32>,
        document: &super::Document,
        tables: &[Table],
    ) {
        let views = document.views.iter().filter(|v| self.expanded.contains(&v.oid));
        let reaching = tables.iter().map(|t| t.name.name.to_lowercase());
        let by_argument = document.dependents.iter();
        let by_argument = by_argument.filter(|d| matches!(d.kind, DependentKind::Function));
        let watched = Watchable {
            functions: bodies,
            reaching: unsafe_oids,
            by_argument: by_argument.map(|d| d.oid).collect(),
            words: self.words.iter().map(|w| w.to_lowercase()).collect(),
            relations: reaching.chain(views.map(|v| v.name.to_lowercase())).collect(),
            refused: self.refused.keys().collect(),
            readable: &self.readable,
            triggers: &document.triggers,
        }
        .find();
        self.functions.retain(|name| !watched.functions.contains(name));
        self.home.extend(watched.functions.iter().cloned());
        self.watched = watched.functions;
        self.watched_relations = watched.relations;
    }

    /// Functions that are not refused, but need the home shard, whose OIDs are returned; and triggers that would run them elsewhere.
    fn find_home_functions(
        &mut self,
        bodies: &[(&Function, Body)],
        unsafe_oids: &HashSet<u32>,
        triggers: &[Trigger],
        roots: &ByOid<Name>,
        names: &mut Names,
    ) -> HashSet<u32> {
        let others: Vec<_> = bodies.iter().filter(|(f, _)| !unsafe_oids.contains(&f.oid)).collect();
        let home = home::bound(&others);
        let called = others.iter().filter(|(f, _)| home.contains(&f.oid));
        self.home.extend(called.map(|(f, _)| f.name.clone()));
        for trigger in triggers {
            if roots.contains_key(&trigger.oid) && home.contains(&trigger.function) {
                let reason = format!(
                    "Trigger {} needs local tables, sequences, advisory locks, notifications or its table's own name, which only the home shard has.",
                    trigger.name
                );
                self.refuse(&trigger.schema, &trigger.table, reason, names);
            }
        }
        home
    }

    fn add_dependent(
        &mut self,
        dependent: &Dependent,
        unsafe_oids: &mut HashSet<u32>,
        relations: &mut HashSet<u32>,
        names: &mut Names,
    ) {
        let name = dependent.name.to_lowercase();
        match dependent.kind {
            DependentKind::Relation => {
                if relations.insert(dependent.oid)
                    || !self
                        .refused
                        .contains_key(&Name::new(&dependent.schema, &dependent.name))
                {
                    let reason =
                        "A default, check, policy or index of it calls a function that may read a sharded table.";
                    self.refuse(&dependent.schema, &dependent.name, reason.to_owned(), names);
                }
            }
            DependentKind::Function => {
                if unsafe_oids.insert(dependent.oid) {
                    names.others.insert(name);
                    self.functions.insert(dependent.name.clone());
                }
            }
            DependentKind::Word => {
                names.others.insert(name);
                self.words.insert(dependent.name.clone());
            }
        }
    }

    fn refuse(&mut self, schema: &str, table: &str, reason: String, names: &mut Names) {
        names.relations.insert(table.to_lowercase());
        let name = Name::new(schema, table);
        // A second reason is no trigger's, or another one's.
        if self.refused.get(&name).is_some_and(|first| *first != reason) && !reason.starts_with("Trigger ") {
            self.readable.remove(&name);
        }
        self.refused.entry(name).or_insert(reason);
    }

    fn refuse_foreign_key(&mut self, key: &ForeignKey, roots: &ByOid<Name>, names: &mut Names) {
        let other = roots.get(&key.referenced).or_else(|| roots.get(&key.relation));
        let reason = format!(
            "Foreign key {} would be checked on one shard's part of {} only.",
            key.name,
            other.map_or("a sharded table".into(), Name::to_string)
        );
        self.refuse(&key.schema, &key.table, reason, names);
    }

    fn add_views(
        &mut self,
        views: &[View],
        unsafe_oids: &HashSet<u32>,
        relations: &mut HashSet<u32>,
        names: &mut Names,
    ) {
        for view in views {
            let calls_unsafe = view.functions.iter().any(|f| unsafe_oids.contains(f));
            let reaches = view.relations.iter().any(|r| relations.contains(r));
            // A materialized view's rows are its own, and the home shard's.
            if !calls_unsafe && (!reaches || view.materialized) {
                continue;
            }
            relations.insert(view.oid);
            names.relations.insert(view.name.to_lowercase());
            if calls_unsafe {
                let reason = "It calls a function that may read a sharded table.".to_owned();
                self.refuse(&view.schema, &view.name, reason, names);
            } else if view.definition.is_none() {
                self.refuse(&view.schema, &view.name, UNREAD_DEFINITION.to_owned(), names);
            } else {
                self.expanded.insert(view.oid);
            }
        }
    }

    /// The views to expand and the relations to refuse.
    pub(super) fn relations(&self, views: &[View]) -> Vec<Table> {
        let mut tables: Vec<_> = views
            .iter()
            .filter(|v| self.expanded.contains(&v.oid))
            .map(|view| Table {
                name: Name::new(&view.schema, &view.name),
                columns: view.columns.iter().map(column).collect(),
                kind: TableKind::View {
                    definition: view.definition.clone().unwrap_or_default(),
                    stand_in: None,
                    read_only: view.read_only,
                },
            })
            .collect();
        tables.extend(self.refused.iter().map(|(name, reason)| Table {
            name: name.clone(),
            columns: Vec::new(),
            kind: TableKind::Refused {
                reason: reason.clone(),
                readable: self.readable.contains(name),
                watched: self.watched_relations.contains(name),
                sharded: None,
            },
        }));
        tables
    }
}
