//! SELECT, UPDATE, DELETE, MERGE and INSERT … SELECT: each sharded table they refer to has a restriction; where all
//! that can matter lies on one shard, that shard runs the statement whole.

use crate::analysis::Context;
use crate::clock::timed_default;
use crate::functions;
use crate::kind::{Kind, ObjectName};
use crate::lexer::{Token, TokenKind};
use crate::relations::{Reference, Role};
use crate::restriction::{Found, Restriction};
use crate::route::{Merge, Part, Route};
use crate::scalar::{Evaluated, Parameters, Scalar};
use crate::system_columns;
use crate::walk::Walk;
use pgherd_model::{Column, ServerError, ShardId, Sharded, Snapshot, Table, TableKind, quote_identifier};
use std::ops::Range;
use std::sync::{Arc, OnceLock};

/// One use of a sharded table, or of one of its declared partitions.
#[derive(Debug)]
struct Use {
    /// the sharded table
    table: Arc<Table>,
    role: Role,
    /// a declared partition, which keeps its name and is this range whatever the predicates say
    partition: Option<usize>,
    restriction: Restriction,
    address: Address,
}

/// Where and how the text names a table.
#[derive(Debug)]
pub(crate) struct Address {
    /// bytes in the statement
    pub span: Range<usize>,
    /// ` AS "t"` behind a child's name, so that the user's references still find it
    pub suffix: String,
    /// a child may stand in the table's place
    pub direct: bool,
}

/// A column of the key that an UPDATE sets.
#[derive(Debug)]
struct KeyUpdate {
    of: usize,
    column: usize,
    value: Option<Scalar>,
}

#[derive(Debug)]
pub(crate) struct Placed {
    uses: Vec<Use>,
    /// it also needs what only the home shard has
    home_bound: bool,
    /// may be run as it is on each of several shards
    scatters: bool,
    /// an INSERT … SELECT, or MERGE, whose rows stay on their shards: the places of what it fills and of what it reads among the uses
    stays: Option<(usize, usize)>,
    plans: bool,
    /// an UPDATE, DELETE or MERGE that writes nothing but its target
    gathers: bool,
    key_updates: Vec<KeyUpdate>,
    /// a system column that it finds rows by, which tells rows of one range apart only
    found_by: Option<&'static str>,
    /// by range, for a statement over one table
    ready: Box<[OnceLock<Part>]>,
}

impl Use {
    fn sharded(&self) -> &Sharded {
        placement(&self.table)
    }

    fn ranges(&self, parameters: Parameters) -> Vec<usize> {
        match self.partition {
            Some(range) => vec![range],
            None => self.restriction.ranges(self.sharded(), parameters),
        }
    }
}

/// The placement of a table that is known to be sharded.
pub(crate) fn placement(table: &Table) -> &Sharded {
    match &table.kind {
        TableKind::Sharded(sharded) => sharded,
        _ => unreachable!("only sharded tables are placed"),
    }
}

/// The sharded table that a relation is or belongs to, and the place of the range if it is a partition.
pub(crate) fn sharded_of(table: &Arc<Table>, snapshot: &Snapshot) -> Option<(Arc<Table>, Option<usize>)> {
    match &table.kind {
        TableKind::Sharded(_) => Some((table.clone(), None)),
        TableKind::Partition { parent, range } => {
            let parent = snapshot.table(parent)?;
            let place = parent.sharded()?.ranges.ranges().iter().position(|r| r.id == *range)?;
            Some((parent.clone(), Some(place)))
        }
        _ => None,
    }
}

/// Whether the home shard's sequences give it its values.
fn from_sequence(column: &Column, snapshot: &Snapshot) -> bool {
    column.identity.is_some() || column.default.as_deref().is_some_and(|d| is_home_default(d, snapshot))
}

/// A default that must be computed on the home shard.
pub(crate) fn is_home_default(default: &str, snapshot: &Snapshot) -> bool {
    crate::lexer::tokenize(default).is_ok_and(|tokens| functions::bound_to_home(default, &tokens, snapshot))
}

impl Placed {
    /// `walk` has been over the whole statement and refers to at least one relation of the catalog.
    pub fn new(walk: &Walk, context: &Context, kind: &Kind) -> Result<Self, ServerError> {
        let tables: Vec<_> = walk
            .items
            .iter()
            .map(|item| item.reference.and_then(|r| walk.references[r].table.as_deref()))
            .collect();
        let conditions = walk.facts.conditions(&tables);
        let direct = DirectCheck::new(walk, context);
        let mut home_bound = functions::bound_to_home(context.text, context.tokens, context.snapshot);
        let has_word = |word: &str| context.tokens.iter().any(|t| t.is_word(context.text, word));
        let (mut uses, mut use_of_item) = (Vec::new(), vec![None; walk.items.len()]);
        for (item, condition) in conditions.iter().enumerate() {
            let Some(reference) = walk.items[item].reference.map(|r| &walk.references[r]) else {
                continue;
            };
            let placed = reference.table.as_ref().and_then(|t| sharded_of(t, context.snapshot));
            let Some((table, partition)) = placed else {
                home_bound = true;
                continue;
            };
            // What the home shard's sequences would fill in cannot come from another shard.
            let fills = match reference.role {
                Role::Insert => fills_from_home(&table, walk, context),
                // `SET v = DEFAULT` is such a value as well.
                Role::Update => has_word("default") && table.columns.iter().any(|c| from_sequence(c, context.snapshot)),
                Role::Merge => {
                    (has_word("insert") || has_word("default"))
                        && table.columns.iter().any(|c| from_sequence(c, context.snapshot))
                }
                _ => false,
            };
            home_bound |= fills;
            let sharded = placement(&table);
            let key: Vec<_> = sharded
                .key
                .iter()
                .map(|k| table.columns.iter().position(|c| c.name == *k))
                .collect();
            let to_key = |column: usize| key.iter().position(|&k| k == Some(column));
            use_of_item[item] = Some(uses.len());
            let mut address = direct.address(reference, sharded, partition.is_some());
            // INSERT … SELECT fills the columns in the parent's order.
            address.direct &= reference.role != Role::Insert;
            address.direct &= reference.role != Role::Update || !walk.sets_always;
            uses.push(Use {
                role: reference.role,
                partition,
                restriction: Restriction::new(condition.mapped(&to_key), sharded.key.len()),
                address,
                table,
            });
        }
        let mut key_updates = Vec::new();
        for assigned in &walk.assigned {
            let Some(of) = use_of_item[assigned.item] else { continue };
            let table = &uses[of].table;
            let name = &table.columns[assigned.column].name;
            if let Some(column) = placement(table).place_in_key(name) {
                let value = assigned.value.clone();
                key_updates.push(KeyUpdate { of, column, value });
            }
        }
        let ready = match uses.as_slice() {
            [one] => one.sharded().ranges.ranges().len(),
            _ => 0,
        };
        let written = walk.references.iter().filter(|r| r.role != Role::Read).count();
        let alone = uses.len() == 1 && walk.items.len() == 1 && walk.subqueries == 0;
        let stays = match home_bound {
            false => rows_that_stay(walk, &uses, &use_of_item, context),
            true => None,
        };
        Ok(Self {
            home_bound,
            scatters: matches!(kind, Kind::Update | Kind::Delete) && alone && !home_bound || stays.is_some(),
            stays,
            plans: matches!(kind, Kind::Select { writes: false, .. } | Kind::Insert),
            gathers: matches!(kind, Kind::Update | Kind::Delete | Kind::Merge) && written == 1,
            key_updates,
            found_by: system_columns::found_by(context.text, context.tokens, kind),
            ready: (0..ready).map(|_| OnceLock::new()).collect(),
            uses,
        })
    }

    pub fn route(&self, text: &Arc<str>, snapshot: &Snapshot, parameters: Parameters) -> Route {
        if let [one] = self.uses.as_slice()
            && !self.home_bound
            && self.key_updates.is_empty()
        {
            let found = match one.partition {
                Some(range) => Found::One(range),
                None => one.restriction.find(one.sharded(), parameters),
            };
            if let Found::One(range) = found {
                return Route::Forward(self.one_range(text, one, range));
            }
        }
        let mut ranges: Vec<_> = self.uses.iter().map(|u| u.ranges(parameters)).collect();
        if let Some(column) = self.found_by
            && self
                .uses
                .iter()
                .zip(&ranges)
                .any(|(one, ranges)| spans_hidden_ranges(one, ranges))
        {
            // What a SELECT does with it is looked at closer where it is planned.
            return match self.plans {
                true => Route::Plan,
                false => Route::Refuse(system_columns::not_over_ranges(column)),
            };
        }
        if let Some((target, source)) = self.stays {
            ranges[target] = ranges[source].clone();
        }
        let mut shards: Vec<ShardId> = Vec::new();
        for (one, ranges) in self.uses.iter().zip(&ranges) {
            shards.extend(ranges.iter().map(|&i| one.sharded().ranges.ranges()[i].shard));
        }
        if self.home_bound || shards.is_empty() {
            shards.push(snapshot.home());
        }
        shards.sort();
        shards.dedup();
        // ON CONFLICT DO UPDATE moves no row to another partition, wherever that is.
        let upserts = |update: &KeyUpdate| self.uses[update.of].role == Role::Insert;
        if self.plans && !self.home_bound && self.key_updates.iter().any(upserts) {
            return Route::Plan;
        }
        if let Some(error) = self.moves_rows(&ranges, &shards, parameters) {
            return match self.gathers {
                true => Route::GatherWrite,
                false => Route::Refuse(error),
            };
        }
        match shards.as_slice() {
            [shard] => Route::Forward(self.part(text, *shard, &ranges)),
            _ if self.plans && !self.scatters => Route::Plan,
            several if self.scatters => Route::Scatter {
                parts: several.iter().map(|&s| self.part(text, s, &ranges)).collect(),
                merge: Merge::Concatenate,
            },
            _ if self.gathers => Route::GatherWrite,
            _ => Route::Refuse(self.several_shards()),
        }
    }

    fn one_range(&self, text: &Arc<str>, one: &Use, range: usize) -> Part {
        let make = || {
            let shard = one.sharded().ranges.ranges()[range].shard;
            self.part(text, shard, &[vec![range]])
        };
        self.ready
            .get(range)
            .map_or_else(make, |ready| ready.get_or_init(make).clone())
    }

    /// The statement for one shard: children where a table has one range there, else the parent behind its fence.
    fn part(&self, text: &Arc<str>, shard: ShardId, ranges: &[Vec<usize>]) -> Part {
        let (mut replacements, mut fences) = (Vec::new(), Vec::<Arc<str>>::new());
        for (i, (one, ranges)) in self.uses.iter().zip(ranges).enumerate() {
            if one.partition.is_some() {
                continue;
            }
            let sharded = one.sharded();
            let mut here = ranges
                .iter()
                .map(|&r| &sharded.ranges.ranges()[r])
                .filter(|r| r.shard == shard);
            // A new key may belong to another range of this shard: the parent moves the row there.
            let keeps = self.key_updates.iter().all(|u| u.of != i);
            match (here.next(), here.next()) {
                (Some(range), None) if one.address.direct && keeps => {
                    let name = format!("{}{}", range.child, one.address.suffix);
                    replacements.push((one.address.span.clone(), name));
                }
                _ => {
                    let fence: Arc<str> = sharded.fence.to_string().into();
                    if !fences.contains(&fence) {
                        fences.push(fence);
                    }
                }
            }
        }
        replacements.sort_by_key(|(span, _)| span.start);
        Part::new(shard, text, &replacements, fences)
    }

    /// Whether it takes rows from one table into another, shard by shard.
    pub fn copies_rows(&self) -> bool {
        self.stays.is_some()
    }

    /// The ranges in which each use of a sharded table may find rows, with its role.
    pub fn ranges_read(&self, parameters: Parameters) -> impl Iterator<Item = (&Arc<Table>, Role, Vec<usize>)> {
        self.uses.iter().map(move |u| (&u.table, u.role, u.ranges(parameters)))
    }

    /// An UPDATE of the key can only be run by one shard where the row stays there.
    fn moves_rows(&self, ranges: &[Vec<usize>], shards: &[ShardId], parameters: Parameters) -> Option<ServerError> {
        let first = self.key_updates.first()?;
        let refuse = || {
            let name = &self.uses[first.of].table.name.name;
            Some(ServerError::unsupported(
                format!(
                    "updating the shard key of \"{name}\" is not supported where it may move rows to another shard"
                ),
                "Delete the row and insert it with its new key, in one transaction.",
            ))
        };
        let [shard] = shards else { return refuse() };
        for (i, one) in self.uses.iter().enumerate() {
            let updates: Vec<_> = self.key_updates.iter().filter(|u| u.of == i).collect();
            let (false, false) = (updates.is_empty(), ranges[i].is_empty()) else {
                continue;
            };
            let sharded = one.sharded();
            // All of the table on this shard: PostgreSQL moves the row, or has no partition for it. Out of a partition
            // that is named itself, it moves none.
            if one.partition.is_some() || sharded.ranges.ranges().iter().all(|r| r.shard == *shard) {
                continue;
            }
            let mut key = Vec::new();
            for (column, key_type) in sharded.key_types.iter().enumerate() {
                let scalar = match updates.iter().find(|u| u.column == column) {
                    Some(update) => update.value.as_ref(),
                    None => one.restriction.fixed(column),
                };
                match scalar.map(|s| s.evaluate(*key_type, parameters)) {
                    Some(Evaluated::Value(value)) => key.push(value),
                    _ => return refuse(),
                }
            }
            let modified = sharded
                .key
                .iter()
                .any(|k| one.table.column(k).is_some_and(|c| c.type_modifier >= 0));
            let stays = sharded.ranges.find(&key).is_some_and(|r| r.shard == *shard);
            if modified || !stays {
                return refuse();
            }
        }
        None
    }

    fn several_shards(&self) -> ServerError {
        let name = self.uses.first().map_or("", |u| &u.table.name.name);
        ServerError::unsupported(
            format!("this statement on sharded table \"{name}\" needs rows of more than one shard"),
            "Name the shard key in WHERE with constants or parameters, or read first and then write.",
        )
    }
}

/// Whether several ranges are read that the client has not declared: for it they are one table.
fn spans_hidden_ranges(one: &Use, ranges: &[usize]) -> bool {
    let all = one.sharded().ranges.ranges();
    ranges.len() > 1 && ranges.iter().any(|&range| !all[range].declared)
}

/// Whether an INSERT leaves a column of this table to what the home shard's sequences give.
fn fills_from_home(table: &Table, walk: &Walk, context: &Context) -> bool {
    let asks_for_default = context.tokens.iter().any(|t| t.is_word(context.text, "default"));
    let given = walk.row_by_row.as_ref().filter(|_| !asks_for_default);
    let is_given = |column: usize| given.is_some_and(|g| g.given.iter().any(|(c, _)| *c == column));
    let left: Vec<_> = (0..table.columns.len()).filter(|&c| !is_given(c)).collect();
    left.into_iter()
        .any(|c| from_sequence(&table.columns[c], context.snapshot))
}

/// Whether each row of this INSERT … SELECT or MERGE belongs to the shard on which the row is that it is made of: both tables are
/// colocated and the key is taken over. What would be computed of several rows, or differ from shard to shard, is not of this kind.
fn rows_that_stay(
    walk: &Walk,
    uses: &[Use],
    use_of_item: &[Option<usize>],
    context: &Context,
) -> Option<(usize, usize)> {
    let inserted = walk.row_by_row.as_ref()?;
    let (target, source) = (use_of_item[inserted.target]?, use_of_item[inserted.source]?);
    let (to, from) = (&uses[target], &uses[source]);
    let whole = to.partition.is_none() && from.partition.is_none();
    if walk.items.len() != 2 || walk.subqueries > 0 || !whole {
        return None;
    }
    // A window looks at all rows.
    if context.tokens.iter().any(|t| t.is_word(context.text, "over")) {
        return None;
    }
    let key = |one: &Use| -> Option<Vec<usize>> {
        let columns = &one.table.columns;
        let places = one.sharded().key.iter();
        places.map(|k| columns.iter().position(|c| c.name == *k)).collect()
    };
    let kept = key(to)?.into_iter().zip(key(from)?).all(|(to_column, from_column)| {
        let (a, b) = (&to.table.columns[to_column], &from.table.columns[from_column]);
        let unchanged = a.type_oid == b.type_oid && a.type_modifier == b.type_modifier;
        unchanged && inserted.given.contains(&(to_column, Some(from_column)))
    });
    let is_given = |column: usize| inserted.given.iter().any(|(c, _)| *c == column);
    // The transaction's time is to be one on all shards.
    let timed = (0..to.table.columns.len()).any(|c| !is_given(c) && timed_default(&to.table.columns[c]).is_some());
    let colocated = to.sharded().colocation == from.sharded().colocation;
    (colocated && kept && !timed).then_some((target, source))
}

/// Whether a child's name may stand in a table's place: PostgreSQL would see another row type and tableoid,
/// and would not find references that name the schema.
pub(crate) struct DirectCheck<'a> {
    context: &'a Context<'a>,
    /// the spans of relation names, which are no column references
    names: Vec<Range<usize>>,
    /// names that stand for tables of several schemas, which only the schema tells apart
    twins: Vec<String>,
    possible: bool,
}

impl<'a> DirectCheck<'a> {
    pub fn new(walk: &Walk, context: &'a Context<'a>) -> Self {
        let tokens = context.tokens;
        let is = |i: usize, symbol: &str| tokens.get(i).is_some_and(|t| t.is(context.text, symbol));
        let wildcards = (0..tokens.len())
            .filter(|&i| {
                is_name(&tokens[i])
                    && is(i + 1, ".")
                    && tokens.get(i + 2).is_some_and(|t| t.text(context.text).starts_with('*'))
            })
            .count();
        let tableoid = (0..tokens.len()).any(|i| tokens[i].is_word(context.text, "tableoid") && !is(i + 1, "("));
        Self {
            context,
            names: walk.references.iter().map(|r| r.name.span.start..r.end).collect(),
            twins: twins(&walk.references),
            possible: wildcards <= walk.wildcards && !tableoid,
        }
    }

    pub fn address(&self, reference: &Reference, sharded: &Sharded, partition: bool) -> Address {
        let exposed = reference.alias.as_ref().unwrap_or(&reference.name.name);
        let alone = !self.twins.contains(exposed) && !self.whole_row(exposed);
        let direct = sharded.direct && self.possible && !partition && reference.role != Role::Merge && alone;
        let suffix = match reference.alias {
            Some(_) => String::new(),
            None => format!(" AS {}", quote_identifier(exposed)),
        };
        Address {
            span: reference.name.span.clone(),
            suffix,
            direct,
        }
    }

    /// Whether some token may be a reference to a whole row of `exposed`, or to a column by schema.
    pub fn whole_row(&self, exposed: &str) -> bool {
        let Context { text, tokens, .. } = *self.context;
        let is = |i: usize, symbol: &str| tokens.get(i).is_some_and(|t| t.is(text, symbol));
        tokens.iter().enumerate().any(|(i, token)| {
            let inside = self.names.iter().any(|n| n.contains(&(token.start as usize)));
            if !is_name(token) || inside || token.identifier(text).as_deref() != Some(exposed) {
                return false;
            }
            let before = i.checked_sub(1);
            if before.is_some_and(|b| is(b, ".")) {
                // `s.t.c`; `x.t` is a column.
                return is(i + 1, ".");
            }
            let lists_name = before.is_some_and(|b| tokens[b].is_word(text, "of") || tokens[b].is_word(text, "as"));
            !is(i + 1, ".") && !lists_name
        })
    }
}

/// Names without an alias under which relations of several schemas are meant.
fn twins(references: &[Reference]) -> Vec<String> {
    let plain: Vec<_> = references
        .iter()
        .filter(|r| r.alias.is_none())
        .map(|r| &r.name)
        .collect();
    let is_twin = |one: &ObjectName| plain.iter().any(|o| o.name == one.name && o.schema != one.schema);
    let twins = plain.iter().filter(|name| is_twin(name));
    twins.map(|name| name.name.clone()).collect()
}

fn is_name(token: &Token) -> bool {
    matches!(token.kind, TokenKind::Word | TokenKind::Quoted)
}
