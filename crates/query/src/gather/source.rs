//! The relations that a gather reads: which rows, which columns, from where, into what.

use super::grouped_by::GroupedBy;
use super::row_arguments;
use crate::Fragment;
use crate::fragment::{self, Place};
use crate::metadata::{Metadata, Relation};
use crate::pushdown::{self, Columns};
use crate::relations::Mention;
use crate::statement::Statement;
use crate::views::ParsedQuery;
use pgherd_model::{RangeId, Resolved, ServerError, Table, TableKind, quote_identifier};
use pgherd_sql::Sample;
use sqlparser::ast::{Expr, JoinConstraint, JoinOperator, Select, SelectItem, TableFactor, Visit, Visitor};
use std::collections::{BTreeMap, HashMap, HashSet};
use std::ops::{ControlFlow, Range};
use std::sync::Arc;

/// A mention with what the catalog says about it.
pub(super) struct Resolution {
    pub mention: Mention,
    /// the name under which the home shard knows it
    pub lookup: String,
    /// None for a relation of the home shard
    pub table: Option<Arc<Table>>,
}

/// The column that tells the rows of a statement's target apart: `shard/tableoid/ctid/xmin`, by which the row is found
/// again as long as nobody has changed it.
pub(crate) const IDENTITY: &str = "pgherd_row";

/// Whether each row has [`IDENTITY`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Identity {
    None,
    /// as one more column
    Column,
    /// in a table that inherits from the one that the statement reads, which has no such column
    Beside,
}

/// One temporary table to be.
#[derive(Clone)]
pub(crate) struct Gathered {
    /// its name in pg_temp
    pub temporary: String,
    pub(super) relation: Relation,
    /// indices of the columns that are filled; the others stay NULL, which nothing looks at
    pub(super) wanted: Vec<usize>,
    /// rows are copied in binary
    pub binary: bool,
    pub(super) places: Vec<Place>,
    /// for each mention the conditions that all hold; a mention without any needs all rows
    pub(super) filters: Vec<Vec<String>>,
    /// equal rows count once
    pub(super) distinct: bool,
    /// a `*` or a whole row takes all columns
    pub(super) all_columns: bool,
    /// a name that may be the relation's row as one value
    pub(super) whole_rows: bool,
    /// a whole row of it is looked at, and has to have the relation's own type
    pub(super) typed_rows: bool,
    /// a SELECT that reads it may rely on its primary key for GROUP BY
    pub(super) with_key: bool,
    /// a SELECT may group by all columns of its primary key
    pub(super) groups_by_key: bool,
    /// each row has [`IDENTITY`] beside its columns
    pub(super) identity: Identity,
    /// bytes at which the statement names it
    named_at: Vec<usize>,
    /// number of the first portal
    pub(super) first_portal: usize,
    /// places in the statement
    pub(super) mentions: Vec<usize>,
}

/// Resolves every mention. Errors: 0A000 for what the catalog refuses.
pub(super) fn resolve(statement: &Statement<'_>, parsed: &ParsedQuery) -> Result<Vec<Resolution>, ServerError> {
    let mentions = parsed.relations.mentions.iter();
    mentions
        .map(|mention| {
            let resolved = statement
                .snapshot
                .resolve(mention.schema.as_deref(), &mention.name, statement.search_path);
            let (lookup, table) = match resolved {
                Resolved::Home => (home_name(mention), None),
                Resolved::Known(table) if table.is_readable_only() => (home_name(mention), None),
                Resolved::Known(table) => {
                    let table = table.placed();
                    let lookup = match &table.kind {
                        TableKind::Refused { reason, .. } => {
                            return Err(ServerError::unsupported(
                                format!("relation \"{}\" cannot be read over several shards", mention.name),
                                "Read the sharded tables themselves.",
                            )
                            .with_detail(reason.clone()));
                        }
                        TableKind::Partition { parent, .. } => parent.to_string(),
                        _ => table.name.to_string(),
                    };
                    (lookup, Some(table))
                }
            };
            Ok(Resolution {
                mention: mention.clone(),
                lookup,
                table,
            })
        })
        .collect()
}

fn home_name(mention: &Mention) -> String {
    let name = quote_identifier(&mention.name);
    match &mention.schema {
        Some(schema) => format!("{}.{name}", quote_identifier(schema)),
        None => name,
    }
}

/// The columns of each mention, as [`pushdown`] asks for them.
struct Known<'a> {
    by_place: HashMap<usize, &'a [String]>,
    parameter_types: &'a [u32],
}

impl Columns for Known<'_> {
    fn columns_at(&self, at: usize) -> Option<&[String]> {
        self.by_place.get(&at).copied()
    }

    fn parameter(&self, number: usize) -> bool {
        // A user-made type has another OID on another shard.
        let oid = number.checked_sub(1).and_then(|i| self.parameter_types.get(i));
        oid.is_some_and(|oid| (1..16384).contains(oid))
    }
}

/// What the SELECTs of a tree say about the rows and columns they need.
struct Needs<'a> {
    known: &'a Known<'a>,
    /// functions that take rows, which `t.f` calls as well
    row_functions: &'a [String],
    /// conditions by the place of the relation's name
    conditions: HashMap<usize, Vec<String>>,
    /// relations of which a `*` or a NATURAL JOIN takes all columns
    all_columns: HashSet<usize>,
    /// names that stand alone in expressions: a relation's own is its whole row
    lone: HashSet<String>,
    /// relations of a SELECT that groups, which may rely on their primary keys
    grouped: HashSet<usize>,
    /// and what they group by
    grouped_by: GroupedBy,
    /// where the SELECTs of EXISTS begin, whose outputs nobody looks at
    exists: HashSet<usize>,
}

impl Visitor for Needs<'_> {
    type Break = ();

    fn pre_visit_select(&mut self, select: &Select) -> ControlFlow<()> {
        for (at, conditions) in pushdown::conditions(select, self.known) {
            self.conditions.insert(at, conditions);
        }
        // What a `x.*` takes, `may_be_starred` says.
        let wildcard = |item: &SelectItem| matches!(item, SelectItem::Wildcard(_));
        let natural = select
            .from
            .iter()
            .any(|tree| tree.joins.iter().any(|j| is_natural(&j.join_operator)));
        let looked_at = !self
            .exists
            .contains(&(select.select_token.0.span.start.column as usize));
        if natural || (looked_at && select.projection.iter().any(wildcard)) {
            let all = &mut self.all_columns;
            select.from.iter().for_each(|tree| places_in(tree, all));
        }
        let groups = match &select.group_by {
            sqlparser::ast::GroupByExpr::Expressions(list, _) => !list.is_empty(),
            sqlparser::ast::GroupByExpr::All(_) => true,
        };
        if groups {
            self.grouped_by.add(select);
            let grouped = &mut self.grouped;
            select.from.iter().for_each(|tree| places_in(tree, grouped));
        }
        ControlFlow::Continue(())
    }

    fn pre_visit_table_factor(&mut self, factor: &TableFactor) -> ControlFlow<()> {
        match factor {
            // `t AS a (x, y)` gives columns other names.
            TableFactor::Table { alias: Some(alias), .. } if !alias.columns.is_empty() => {
                place_of(factor, &mut self.all_columns);
            }
            TableFactor::NestedJoin {
                table_with_joins,
                alias,
            } if alias.is_some() => places_in(table_with_joins, &mut self.all_columns),
            _ => {}
        }
        ControlFlow::Continue(())
    }

    fn pre_visit_expr(&mut self, expr: &Expr) -> ControlFlow<()> {
        if let Expr::Exists { subquery, .. } = expr
            && let sqlparser::ast::SetExpr::Select(select) = &*subquery.body
        {
            self.exists.insert(select.select_token.0.span.start.column as usize);
        }
        match expr {
            Expr::Identifier(ident) => {
                self.lone.insert(crate::relations::fold(ident));
            }
            Expr::CompoundIdentifier(idents) => {
                if let [row, function] = &idents[..]
                    && self.row_functions.contains(&crate::relations::fold(function))
                {
                    self.lone.insert(crate::relations::fold(row));
                }
            }
            _ => {}
        }
        ControlFlow::Continue(())
    }
}

fn is_natural(operator: &JoinOperator) -> bool {
    use JoinOperator as J;
    matches!(
        operator,
        J::Join(JoinConstraint::Natural)
            | J::Inner(JoinConstraint::Natural)
            | J::Left(JoinConstraint::Natural)
            | J::LeftOuter(JoinConstraint::Natural)
            | J::Right(JoinConstraint::Natural)
            | J::RightOuter(JoinConstraint::Natural)
            | J::FullOuter(JoinConstraint::Natural)
    )
}

/// Where the relations of a FROM's entry are named.
fn places_in(tree: &sqlparser::ast::TableWithJoins, found: &mut HashSet<usize>) {
    place_of(&tree.relation, found);
    tree.joins.iter().for_each(|join| place_of(&join.relation, found));
}

fn place_of(factor: &TableFactor, found: &mut HashSet<usize>) {
    match factor {
        TableFactor::Table { name, .. } => {
            if let Some(ident) = name.0.first().and_then(|p| p.as_ident()) {
                found.insert((ident.span.start.column as usize).saturating_sub(1));
            }
        }
        TableFactor::NestedJoin { table_with_joins, .. } => places_in(table_with_joins, found),
        _ => {}
    }
}

/// One source per relation that the statement mentions, with what all its mentions need. The one mentioned at `target`
/// has a source of its own, with [`IDENTITY`].
pub(super) fn sources(
    statement: &Statement<'_>,
    parsed: &ParsedQuery,
    resolutions: &[Resolution],
    metadata: &Metadata,
    target: Option<usize>,
) -> Vec<Gathered> {
    apart(statement, parsed, resolutions, metadata, target, &|_| Some(0))
}

/// The same, where mentions that are given different numbers have sources of their own, and those that are given none have
/// no source.
pub(super) fn apart(
    statement: &Statement<'_>,
    parsed: &ParsedQuery,
    resolutions: &[Resolution],
    metadata: &Metadata,
    target: Option<usize>,
    number: &dyn Fn(usize) -> Option<usize>,
) -> Vec<Gathered> {
    let relation = |i: usize| metadata.relations[i].as_ref().filter(|r| !r.is_system());
    let known = Known {
        by_place: (0..resolutions.len())
            .filter_map(|i| Some((resolutions[i].mention.span.start, relation(i)?.column_names.as_slice())))
            .collect(),
        parameter_types: statement.parameter_types,
    };
    let mut needs = Needs {
        known: &known,
        row_functions: &metadata.row_functions,
        conditions: HashMap::new(),
        all_columns: HashSet::new(),
        lone: HashSet::new(),
        grouped: HashSet::new(),
        grouped_by: GroupedBy::default(),
        exists: HashSet::new(),
    };
    let _ = parsed.query.visit(&mut needs);
    let is_target = |i: usize| target == Some(resolutions[i].mention.span.start);
    let mut grouped: BTreeMap<(u32, Option<RangeId>, bool, usize), Vec<usize>> = BTreeMap::new();
    for (i, resolution) in resolutions.iter().enumerate() {
        if let (Some(relation), Some(number)) = (relation(i), number(i)) {
            let partition = resolution.table.as_ref().and_then(|t| match t.kind {
                TableKind::Partition { range, .. } => Some(range),
                _ => None,
            });
            grouped
                .entry((relation.oid, partition, is_target(i), number))
                .or_default()
                .push(i);
        }
    }
    let mut sources: Vec<Gathered> = Vec::new();
    for mentions in grouped.into_values() {
        let first_portal = sources.last().map_or(0, |s| s.first_portal + s.places.len());
        let Some(relation) = relation(mentions[0]) else {
            continue;
        };
        let places = places(statement, relation, resolutions[mentions[0]].table.as_deref());
        let all_columns = takes_all(parsed, resolutions, &mentions, &needs);
        let is_grouped = |&m: &usize| needs.grouped.contains(&resolutions[m].mention.span.start);
        let with_key = mentions.iter().any(is_grouped);
        let wanted = wanted(parsed, all_columns, with_key, relation);
        let conditions = mentions
            .iter()
            .map(|&m| needs.conditions.get(&resolutions[m].mention.span.start));
        let filters = conditions.map(|c| c.cloned().unwrap_or_default()).collect();
        sources.push(Gathered {
            temporary: format!("pgherd_{}", sources.len() + 1),
            binary: wanted.iter().all(|&c| relation.columns[c].binary),
            wanted,
            places,
            filters,
            distinct: false,
            all_columns,
            whole_rows: names_row(resolutions, &mentions, &needs),
            typed_rows: false,
            with_key,
            groups_by_key: (relation.columns.iter().filter(|c| c.primary)).all(|c| needs.grouped_by.may_have(&c.name)),
            identity: match is_target(mentions[0]) {
                true => Identity::Column,
                false => Identity::None,
            },
            named_at: mentions.iter().map(|&m| resolutions[m].mention.span.start).collect(),
            first_portal,
            relation: relation.clone(),
            mentions,
        });
    }
    let typed: Vec<_> = sources
        .iter()
        .map(|source| shows_rows(source, &sources, parsed, resolutions, &needs))
        .collect();
    sources
        .iter_mut()
        .zip(typed)
        .for_each(|(source, typed)| source.typed_rows = typed);
    sources
}

/// Whether a whole row of the source stands in an expression: under a name that is no column's, or as `(t.*)` or `t.*::type`.
fn shows_rows(
    source: &Gathered,
    sources: &[Gathered],
    parsed: &ParsedQuery,
    resolutions: &[Resolution],
    needs: &Needs<'_>,
) -> bool {
    let is_column = |name: &str| {
        sources
            .iter()
            .any(|s| s.relation.column_names.iter().any(|c| c == name))
    };
    source.mentions.iter().any(|&m| {
        let mention = &resolutions[m].mention;
        let name = mention.alias.as_ref().unwrap_or(&mention.name);
        (needs.lone.contains(name) && !is_column(name)) || row_arguments::is_row_with_star(parsed, name)
    })
}

/// Where the rows are.
fn places(statement: &Statement<'_>, relation: &Relation, table: Option<&Table>) -> Vec<Place> {
    let at = |shard, relation| Place {
        shard,
        relation,
        fences: Vec::new(),
    };
    match table.map(|t| (t, &t.kind)) {
        Some((table, TableKind::Sharded(sharded))) => {
            let all: Vec<_> = sharded.ranges.ranges().iter().map(|r| r.id).collect();
            fragment::places(table, &all).unwrap_or_default()
        }
        Some((_, TableKind::Partition { parent, range })) => {
            let parent = statement.snapshot.table(parent).and_then(|t| t.sharded());
            let range = parent.and_then(|s| s.ranges.get(*range));
            range.map(|r| at(r.shard, r.child.to_string())).into_iter().collect()
        }
        _ => vec![at(statement.snapshot.home(), relation.sql())],
    }
}

/// Whether a `*` or whole row takes all columns.
fn takes_all(parsed: &ParsedQuery, resolutions: &[Resolution], mentions: &[usize], needs: &Needs<'_>) -> bool {
    let starred = |&m: &usize| needs.all_columns.contains(&resolutions[m].mention.span.start);
    let dotted = |&m: &usize| parsed.dotted_star && may_be_starred(parsed, resolutions, m);
    mentions.iter().any(dotted) || names_row(resolutions, mentions, needs) || mentions.iter().any(starred)
}

/// Whether a `x.*` may be of this mention: of no other does it take columns, for which the role may have no right. What is no mention's
/// name may be a join's, and so may one that stands behind a parenthesis.
fn may_be_starred(parsed: &ParsedQuery, resolutions: &[Resolution], mention: usize) -> bool {
    let (text, tokens) = (&parsed.text, &parsed.tokens);
    let exposed = |m: usize| {
        let mention = &resolutions[m].mention;
        mention.alias.as_ref().unwrap_or(&mention.name)
    };
    let stars = (1..tokens.len()).filter(|&i| tokens[i - 1].is(text, ".") && tokens[i].is(text, "*"));
    let mut names = stars.map(|i| i.checked_sub(2).and_then(|before| tokens[before].identifier(text)));
    names.any(|name| {
        let Some(name) = name else { return true };
        let behind = |i: usize| {
            tokens
                .get(i)
                .is_some_and(|t| t.identifier(text).as_ref() == Some(&name))
        };
        let is_alias = |i: usize| {
            let skipped = usize::from(tokens.get(i + 1).is_some_and(|t| t.is_word(text, "as")));
            tokens[i].is(text, ")") && behind(i + 1 + skipped)
        };
        let is_mention = (0..resolutions.len()).any(|m| *exposed(m) == name);
        *exposed(mention) == name || !is_mention || (0..tokens.len()).any(is_alias)
    })
}

/// Whether a mention's own name stands alone in an expression, where it is its whole row, if it is no column.
fn names_row(resolutions: &[Resolution], mentions: &[usize], needs: &Needs<'_>) -> bool {
    let own_name = |&m: &usize| {
        let mention = &resolutions[m].mention;
        needs.lone.contains(mention.alias.as_ref().unwrap_or(&mention.name))
    };
    mentions.iter().any(own_name)
}

/// A column is needed when its name is a word of the statement, or all are; those of the primary key where it is relied on.
fn wanted(parsed: &ParsedQuery, all: bool, with_key: bool, relation: &Relation) -> Vec<usize> {
    let is_wanted = |c: &crate::metadata::Column| all || (with_key && c.primary) || parsed.words.contains(&c.name);
    let columns = relation.columns.iter().enumerate();
    let mut wanted: Vec<_> = columns.filter(|(_, c)| is_wanted(c)).map(|(i, _)| i).collect();
    if wanted.is_empty() && !relation.columns.is_empty() {
        // Rows are only counted; COPY still wants a column.
        wanted.push(relation.columns.iter().position(|c| c.binary).unwrap_or(0));
    }
    wanted
}

/// What replaces the relations' names in the statement: for the source at each place, the SQL that has its rows.
pub(super) fn edits(
    parsed: &ParsedQuery,
    resolutions: &[Resolution],
    sources: &[Gathered],
    rows_sql: &dyn Fn(usize) -> String,
) -> Vec<(Range<usize>, String)> {
    let mut edits = Vec::new();
    for (at, source) in sources.iter().enumerate() {
        let sql = rows_sql(at);
        for &m in &source.mentions {
            let mention = &resolutions[m].mention;
            let alias = match mention.alias {
                Some(_) => String::new(),
                None => format!(" AS {}", quote_identifier(&parsed.relations.alias(mention))),
            };
            // PostgreSQL takes samples of tables, which the temporary one is, and of nothing else.
            let sample = sample(parsed, mention).filter(|_| sql.contains('('));
            let rows = match &sample {
                Some(sample) if source.has_typed_rows() => sample.typed_rows_sql(&sql),
                Some(sample) => sample.rows_sql(&sql),
                None => sql.clone(),
            };
            edits.push((mention.span.clone(), format!("{rows}{alias}")));
            edits.extend(sample.map(|sample| (sample.clause, String::new())));
        }
    }
    edits.extend(parsed.relations.requalified(|_| true));
    edits
}

/// The sample that the statement takes of a relation that it names there.
fn sample(parsed: &ParsedQuery, mention: &Mention) -> Option<Sample> {
    let (text, tokens) = (&parsed.text, &parsed.tokens);
    let behind = tokens.iter().position(|t| t.start as usize >= mention.span.end)?;
    let is = |at: usize, word: &str| tokens.get(at).is_some_and(|t| t.is_word(text, word));
    let alias = if is(behind, "as") { 2 } else { 1 };
    let at = [behind, behind + alias].into_iter().find(|&at| is(at, "tablesample"))?;
    Sample::at(text, tokens, at)
}

impl Gathered {
    /// The types of the columns that are filled, where rows are copied as text.
    pub(super) fn types_as_text(&self) -> impl Iterator<Item = u32> {
        let wanted = self.wanted.iter().filter(|_| !self.binary);
        wanted.map(|&column| self.relation.columns[column].type_oid)
    }

    /// The shards that have rows of it.
    pub fn shards(&self) -> Vec<pgherd_model::ShardId> {
        self.places.iter().map(|place| place.shard).collect()
    }

    /// The SELECTs that read it, one per shard.
    pub fn fragments(&self, statement: &Statement<'_>) -> Vec<Fragment> {
        let places = self.places.iter().enumerate();
        places
            .map(|(i, place)| {
                let identity = match self.identity != Identity::None {
                    true => format!(
                        ", pg_catalog.concat('{}/', tableoid, '/', ctid, '/', xmin)",
                        place.shard.0
                    ),
                    false => String::new(),
                };
                let distinct = if self.distinct { "DISTINCT " } else { "" };
                let sql = format!(
                    "SELECT {distinct}{}{identity} FROM {}{}",
                    self.columns_sql(),
                    place.relation,
                    self.where_sql()
                );
                let (parameter_types, parameters) = fragment::parameters(statement, &sql, place.shard);
                Fragment {
                    shard: place.shard,
                    portal: format!("f{}", self.first_portal + i),
                    sql,
                    parameter_types,
                    parameters,
                    result_formats: vec![i16::from(self.binary)],
                    fences: place.fences.clone(),
                }
            })
            .collect()
    }

    /// The statements that lock the rows which it reads, one per shard.
    pub fn locks(&self, statement: &Statement<'_>) -> Vec<Fragment> {
        let mut fragments = self.fragments(statement);
        for (fragment, place) in fragments.iter_mut().zip(&self.places) {
            fragment.sql = format!(
                "SELECT pg_catalog.count(*) FROM (SELECT 1 FROM {}{} FOR UPDATE) AS pgherd_locked",
                place.relation,
                self.where_sql()
            );
        }
        fragments
    }

    /// The relation's name, as SQL.
    pub fn relation_sql(&self) -> String {
        self.relation.sql()
    }

    /// Bytes of a row, roughly.
    pub(super) fn width(&self) -> f64 {
        let width = |&c: &usize| match self.relation.columns[c].type_oid {
            16 | 18 | 21 => 2.0,
            23 | 26 | 700 | 1082 => 4.0,
            20 | 701 | 1114 | 1184 => 8.0,
            1700 => 10.0,
            1042 => 15.0,
            _ => 30.0,
        };
        self.wanted.iter().map(width).sum::<f64>() + 4.0 * self.wanted.len() as f64
    }

    /// Whether it is the target's.
    pub fn has_identity(&self) -> bool {
        self.identity == Identity::Column
    }

    /// Notes which row each copy is, beside it.
    pub fn marks(&mut self) {
        self.identity = Identity::Beside;
    }

    /// The temporary table in which that stands.
    pub fn marked(&self) -> String {
        format!("{}_rows", self.temporary)
    }

    /// Whether the statement names it there.
    pub fn is_named_at(&self, at: usize) -> bool {
        self.named_at.contains(&at)
    }

    fn columns_sql(&self) -> String {
        let names = self
            .wanted
            .iter()
            .map(|&c| quote_identifier(&self.relation.columns[c].name));
        names.collect::<Vec<_>>().join(", ")
    }

    /// The condition on its rows, with WHERE; empty for all rows.
    pub(super) fn where_sql(&self) -> String {
        if self.filters.iter().any(Vec::is_empty) {
            return String::new();
        }
        let alternatives: Vec<_> = self
            .filters
            .iter()
            .map(|all| format!("({})", all.join(" AND ")))
            .collect();
        format!(" WHERE {}", alternatives.join(" OR "))
    }

    /// Makes the temporary table.
    pub fn create_sql(&self) -> String {
        let columns: Vec<_> = self
            .relation
            .columns
            .iter()
            .map(|c| format!("{} {}{}", quote_identifier(&c.name), c.type_sql, c.collation_sql))
            .chain(
                self.has_identity()
                    .then(|| format!("{IDENTITY} pg_catalog.text COLLATE \"C\"")),
            )
            .collect();
        let beside = match self.identity {
            Identity::Beside => format!(
                "; CREATE TEMPORARY TABLE {} ({IDENTITY} pg_catalog.text COLLATE \"C\") INHERITS ({}) ON COMMIT DROP",
                self.marked(),
                self.temporary
            ),
            _ => String::new(),
        };
        format!(
            "CREATE TEMPORARY TABLE {} ({}) ON COMMIT DROP{beside}",
            self.temporary,
            columns.join(", ")
        )
    }

    /// Starts the COPY into it.
    pub fn copy_sql(&self) -> String {
        let format = if self.binary { "binary" } else { "text" };
        let table = match self.identity {
            Identity::Beside => self.marked(),
            _ => self.temporary.clone(),
        };
        // A table without columns has no list of them.
        let columns = match (self.columns_sql(), self.identity != Identity::None) {
            (columns, true) => format!(" ({columns}, {IDENTITY})"),
            (columns, false) if columns.is_empty() => columns,
            (columns, false) => format!(" ({columns})"),
        };
        format!("COPY pg_temp.{table}{columns} FROM STDIN (FORMAT {format})")
    }

    /// What makes a loaded table behave and plan like the relation it stands for.
    pub fn finish_sql(&self, rows: u64) -> Vec<String> {
        let mut sql = Vec::new();
        let key: Vec<_> = self
            .relation
            .columns
            .iter()
            .filter(|c| c.primary)
            .map(|c| quote_identifier(&c.name))
            .collect();
        if self.with_key && !key.is_empty() {
            sql.push(format!(
                "ALTER TABLE pg_temp.{} ADD PRIMARY KEY ({})",
                self.temporary,
                key.join(", ")
            ));
        }
        if rows >= ANALYZE_ROWS {
            sql.push(format!("ANALYZE pg_temp.{}", self.temporary));
        }
        sql
    }

    /// How many portals it reads.
    pub fn portals(&self) -> usize {
        self.places.len()
    }
}

/// A temporary table with fewer rows plans well enough without statistics.
pub(super) const ANALYZE_ROWS: u64 = 1000;
