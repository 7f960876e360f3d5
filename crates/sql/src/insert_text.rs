//! The texts of an INSERT … VALUES: the query for what the home shard must give, and the INSERT of some of its rows.

use crate::insert::{CellKind, InsertPlan, Slot};
use crate::placed::is_home_default;
use crate::relations::substitute;
use crate::route::{Drawn, Replaced};
use crate::scalar::{Parameters, Scalar};
use pgherd_model::{Column, KeyType, Name, ServerError, Snapshot, quote_identifier, quote_literal};
use std::collections::BTreeSet;
use std::ops::Range;
use std::sync::Arc;

/// The home shard's answers: a row of text values for each inserted row, in the order of `places`.
pub(crate) struct Given<'a> {
    /// what each row needs
    pub slots: &'a [Vec<Slot>],
    pub places: Vec<Slot>,
    pub answers: &'a [Vec<Option<String>>],
}

impl Given<'_> {
    /// The answer for a row's slot; None where the row does not need it.
    pub fn answer(&self, row: usize, slot: Slot) -> Option<Option<&str>> {
        self.slots[row].contains(&slot).then_some(())?;
        let place = self.places.iter().position(|p| *p == slot)?;
        Some(self.answers[row][place].as_deref())
    }
}

impl InsertPlan {
    /// The query that gives all slots: one row per inserted row, NULL where a row does not need a slot.
    pub fn query(
        &self,
        text: &str,
        slots: &[Vec<Slot>],
        union: &BTreeSet<Slot>,
        parameters: Parameters,
    ) -> Result<String, ServerError> {
        let uniform = slots.iter().all(|s| s.len() == union.len())
            && union.iter().all(|slot| match slot {
                Slot::Omitted(_) => true,
                Slot::Cell(place) => self
                    .rows
                    .iter()
                    .all(|r| matches!(r.cells[*place].kind, CellKind::Default)),
            });
        let judge = self.judge(text, slots, parameters)?.unwrap_or_default();
        if uniform {
            let exprs: Result<Vec<_>, _> = union.iter().map(|&s| self.expression(text, 0, s, parameters)).collect();
            return Ok(format!(
                "{judge}SELECT {} FROM generate_series(1, {})",
                exprs?.join(", "),
                self.rows.len()
            ));
        }
        let mut rows = Vec::with_capacity(slots.len());
        for (row, needed) in slots.iter().enumerate() {
            let mut exprs = Vec::with_capacity(union.len());
            for slot in union {
                exprs.push(match needed.contains(slot) {
                    true => self.expression(text, row, *slot, parameters)?,
                    false => "NULL::text".to_owned(),
                });
            }
            rows.push(format!("({})", exprs.join(", ")));
        }
        Ok(format!("{judge}VALUES {}", rows.join(", ")))
    }

    /// The answer's columns for which sequences are asked.
    pub fn drawn(&self, union: &BTreeSet<Slot>, snapshot: &Snapshot) -> Vec<Drawn> {
        let columns = union.iter().enumerate().filter_map(|(at, slot)| {
            let default = self.table.columns[self.column_of(*slot)].default.as_deref()?;
            is_home_default(default, snapshot).then(|| Drawn {
                column: at,
                sequence: drawn_sequence(default),
            })
        });
        columns.collect()
    }

    fn column_of(&self, slot: Slot) -> usize {
        match slot {
            Slot::Cell(place) => self.columns[place],
            Slot::Omitted(column) => column,
        }
    }

    /// The query's casts are explicit and would take what an assignment refuses (`true` for an integer): a
    /// statement before it lets PostgreSQL assign the same expressions to the table's columns, without running them.
    fn judge(&self, text: &str, slots: &[Vec<Slot>], parameters: Parameters) -> Result<Option<String>, ServerError> {
        let written = |row: usize, place: usize| {
            slots[row].contains(&Slot::Cell(place)) && self.needs_judgement(row, place, parameters)
        };
        let places: Vec<_> = (0..self.columns.len())
            .filter(|&place| (0..slots.len()).any(|row| written(row, place)))
            .collect();
        if places.is_empty() {
            return Ok(None);
        }
        let mut rows = Vec::new();
        for row in (0..slots.len()).filter(|&row| places.iter().any(|&p| written(row, p))) {
            let mut values = Vec::with_capacity(places.len());
            for &place in &places {
                values.push(match written(row, place) {
                    true => self.inlined(text, self.rows[row].cells[place].span.clone(), parameters)?,
                    false => "DEFAULT".to_owned(),
                });
            }
            rows.push(format!("({})", values.join(", ")));
        }
        let columns: Vec<_> = places.iter().map(|&p| self.columns[p]).collect();
        let overriding = if self.overriding {
            " OVERRIDING SYSTEM VALUE"
        } else {
            ""
        };
        Ok(Some(format!(
            "EXPLAIN INSERT INTO {} ({}){overriding} VALUES {}; ",
            self.parent,
            self.names(&columns),
            rows.join(", ")
        )))
    }

    /// All but NULL and what has no type of its own, which PostgreSQL gives the column's.
    fn needs_judgement(&self, row: usize, place: usize, parameters: Parameters) -> bool {
        match &self.rows[row].cells[place].kind {
            CellKind::Default | CellKind::Scalar(Scalar::Null | Scalar::Text(_)) => false,
            CellKind::Scalar(Scalar::Parameter(number, None)) => parameters.type_oid(*number) != 0,
            CellKind::Scalar(_) | CellKind::Expression { .. } => true,
        }
    }

    fn expression(&self, text: &str, row: usize, slot: Slot, parameters: Parameters) -> Result<String, ServerError> {
        let (column, written) = match slot {
            Slot::Omitted(column) => (column, None),
            Slot::Cell(place) => {
                let cell = &self.rows[row].cells[place];
                let written = match cell.kind {
                    CellKind::Default => None,
                    _ => Some(self.inlined(text, cell.span.clone(), parameters)?),
                };
                (self.columns[place], written)
            }
        };
        let described = &self.table.columns[column];
        let expression = written.unwrap_or_else(|| match &described.default {
            Some(default) if described.identity.is_none() => default.clone(),
            _ => next_identity(&self.table.name, described),
        });
        let cast = format!("CAST(({expression}) AS {})", cast_name(described));
        // JSON has date, timestamp and timestamptz in ISO form whatever DateStyle is.
        Ok(match described.type_oid {
            1082 | 1114 | 1184 => format!("to_json({cast})#>>'{{}}'"),
            _ => format!("{cast}::text"),
        })
    }

    /// Whether an expression's parameters are of types known here.
    pub fn can_inline(&self, span: &Range<usize>, parameters: Parameters) -> bool {
        let inside = self
            .parameters
            .iter()
            .filter(|(at, _)| at.start >= span.start && at.end <= span.end);
        inside.into_iter().all(|(_, n)| literal(*n, parameters).is_some())
    }

    /// An expression with its parameters as literals.
    fn inlined(&self, text: &str, span: Range<usize>, parameters: Parameters) -> Result<String, ServerError> {
        let mut replacements = Vec::new();
        for (at, number) in &self.parameters {
            if at.start >= span.start && at.end <= span.end {
                let literal = literal(*number, parameters).ok_or_else(|| {
                    ServerError::unsupported(
                        format!(
                            "parameter ${} has a type that cannot be used in a shard key here",
                            number + 1
                        ),
                        "Give the parameter the key's own type.",
                    )
                })?;
                replacements.push((at.start - span.start..at.end - span.start, literal));
            }
        }
        Ok(substitute(&text[span], &replacements).0)
    }

    /// The INSERT of these rows, into `child` where given.
    pub fn rewrite(
        &self,
        text: &Arc<str>,
        rows: &[usize],
        child: Option<&Name>,
        given: Option<&Given>,
    ) -> (Arc<str>, Vec<Replaced>, Option<Vec<u16>>) {
        let mut replacements: Vec<(Range<usize>, String)> = Vec::new();
        if let Some(child) = child {
            replacements.push((self.address.span.clone(), format!("{child}{}", self.address.suffix)));
        }
        let places = given.iter().flat_map(|g| &g.places);
        let omitted: Vec<_> = places
            .filter_map(|slot| match slot {
                Slot::Omitted(column) => Some(*column),
                Slot::Cell(_) => None,
            })
            .collect();
        let omitted = omitted.as_slice();
        self.column_list(child.is_some(), omitted, &mut replacements);
        // What was drawn is given as a value.
        if let Some(ignoring) = &self.ignoring {
            replacements.push((ignoring.clone(), "OVERRIDING SYSTEM VALUE".to_owned()));
        }
        let supplied = given.is_some_and(|g| g.places.iter().any(|&slot| self.is_always(slot)));
        if supplied && !self.overriding && !self.default_values {
            replacements.push((
                self.values_at.start..self.values_at.start,
                "OVERRIDING SYSTEM VALUE ".into(),
            ));
        }
        if self.default_values {
            if !omitted.is_empty() {
                let values: Vec<_> = omitted
                    .iter()
                    .map(|&c| self.value(given, 0, Slot::Omitted(c)))
                    .collect();
                let overriding = if supplied { "OVERRIDING SYSTEM VALUE " } else { "" };
                let names = self.names(omitted);
                replacements.push((
                    self.values_at.clone(),
                    format!("({names}) {overriding}VALUES ({})", values.join(", ")),
                ));
            }
        } else {
            self.rows_text(rows, omitted, given, &mut replacements);
        }
        let numbers = self.renumber(&mut replacements);
        if replacements.is_empty() {
            return (text.clone(), Vec::new(), None);
        }
        let (text, replaced) = substitute(text, &replacements);
        (text.into(), replaced, numbers)
    }

    fn is_always(&self, slot: Slot) -> bool {
        self.table.columns[self.column_of(slot)].identity == Some(true)
    }

    pub fn names(&self, columns: &[usize]) -> String {
        let names: Vec<_> = columns
            .iter()
            .map(|&c| quote_identifier(&self.table.columns[c].name))
            .collect();
        names.join(", ")
    }

    /// Columns that the statement leaves out join the list; without a list, one is made, since a child's columns may
    /// have another order.
    pub fn column_list(&self, child: bool, omitted: &[usize], replacements: &mut Vec<(Range<usize>, String)>) {
        if self.default_values {
            return;
        }
        match &self.list {
            Some(list) if !omitted.is_empty() => {
                replacements.push((list.end - 1..list.end - 1, format!(", {}", self.names(omitted))));
            }
            None if child || !omitted.is_empty() => {
                let columns: Vec<_> = self.columns.iter().chain(omitted).copied().collect();
                let list = format!(" ({})", self.names(&columns));
                match replacements.last_mut() {
                    // The child's name stands directly before the list.
                    Some((span, name)) if span.end == self.behind_name => name.push_str(&list),
                    _ => replacements.push((self.behind_name..self.behind_name, list)),
                }
            }
            _ => {}
        }
    }

    /// Takes the other rows out, and puts given values in.
    fn rows_text(
        &self,
        rows: &[usize],
        omitted: &[usize],
        given: Option<&Given>,
        out: &mut Vec<(Range<usize>, String)>,
    ) {
        let (first, last) = (rows[0], rows[rows.len() - 1]);
        if first > 0 {
            out.push((self.rows[0].span.start..self.rows[first].span.start, String::new()));
        }
        for (i, &row) in rows.iter().enumerate() {
            if let Some(before) = i.checked_sub(1).map(|b| rows[b]).filter(|b| b + 1 != row) {
                out.push((self.rows[before].span.end..self.rows[row].span.start, ", ".into()));
            }
            for (place, cell) in self.rows[row].cells.iter().enumerate() {
                let slot = Slot::Cell(place);
                if given.is_some_and(|g| g.slots[row].contains(&slot)) {
                    out.push((cell.span.clone(), self.value(given, row, slot)));
                }
            }
            if !omitted.is_empty() {
                let values: Vec<_> = omitted
                    .iter()
                    .map(|&c| self.value(given, row, Slot::Omitted(c)))
                    .collect();
                let close = self.rows[row].span.end - 1;
                out.push((close..close, format!(", {}", values.join(", "))));
            }
        }
        let end = self.rows[self.rows.len() - 1].span.end;
        if last + 1 < self.rows.len() {
            out.push((self.rows[last].span.end..end, String::new()));
        }
    }

    fn value(&self, given: Option<&Given>, row: usize, slot: Slot) -> String {
        let described = &self.table.columns[self.column_of(slot)];
        let type_name = cast_name(described);
        match given.and_then(|g| g.answer(row, slot)).flatten() {
            Some(text) => format!("{}::{type_name}", quote_literal(text)),
            None => "NULL".to_owned(),
        }
    }

    /// Where parameters went away with rows or values, the rest is numbered anew: PostgreSQL wants every number up
    /// to the highest, and a type for each.
    fn renumber(&self, replacements: &mut Vec<(Range<usize>, String)>) -> Option<Vec<u16>> {
        let gone = |span: &Range<usize>| {
            replacements
                .iter()
                .any(|(r, _)| r.start <= span.start && span.end <= r.end)
        };
        let kept: Vec<_> = self
            .parameters
            .iter()
            .filter(|(span, _)| !gone(span))
            .cloned()
            .collect();
        if kept.len() == self.parameters.len() {
            return None;
        }
        let numbers: BTreeSet<u16> = kept.iter().map(|(_, n)| *n).collect();
        let numbers: Vec<u16> = numbers.into_iter().collect();
        for (span, number) in kept {
            let place = numbers.iter().position(|n| *n == number).unwrap_or(0);
            replacements.push((span, format!("${}", place + 1)));
        }
        replacements.sort_by_key(|(span, _)| (span.start, span.end));
        Some(numbers)
    }
}

/// The next number of an identity column. PostgreSQL asks for no privilege on its sequence; who has none takes the slower way.
pub fn next_identity(table: &Name, column: &Column) -> String {
    let (table, name) = (quote_literal(&table.to_string()), quote_literal(&column.name));
    let for_all = format!("pgherd.next_identity({table}, {name})");
    let Some(sequence) = column.default.as_deref().and_then(drawn_sequence) else {
        return for_all;
    };
    let sequence = format!("{}::pg_catalog.regclass", quote_literal(&sequence));
    format!(
        "CASE WHEN pg_catalog.has_sequence_privilege({sequence}, 'USAGE, UPDATE') THEN pg_catalog.nextval({sequence}) ELSE {for_all} END"
    )
}

/// The sequence of `nextval('s'::regclass)`.
fn drawn_sequence(default: &str) -> Option<String> {
    let tokens = crate::lexer::tokenize(default).ok()?;
    let [name, open, sequence, cast, regclass, close] = tokens.as_slice() else {
        return None;
    };
    let whole = name.is_word(default, "nextval")
        && open.is(default, "(")
        && cast.is(default, "::")
        && regclass.is_word(default, "regclass")
        && close.is(default, ")");
    sequence.string(default).filter(|_| whole)
}

/// The type to cast a column's value to: casts to varchar(n) and char(n) would cut what an assignment refuses.
fn cast_name(column: &Column) -> &str {
    match column.type_oid {
        25 | 1043 => "text",
        1042 => "bpchar",
        _ => &column.type_name,
    }
}

/// A bound parameter as a literal of its own type; None for types that are not known here.
fn literal(number: u16, parameters: Parameters) -> Option<String> {
    let value = parameters.values.get(usize::from(number))?;
    let oid = parameters.type_oid(number);
    let known = KeyType::from_oid(oid);
    let Some(bytes) = value.bytes else {
        return Some("NULL".to_owned());
    };
    if value.binary {
        let known = known?;
        return Some(format!("({})", known.parse_binary(bytes)?.to_literal(known)));
    }
    let quoted = quote_literal(std::str::from_utf8(bytes).ok()?);
    let type_name = match oid {
        0 => return Some(quoted),
        16 => "boolean",
        20 => "bigint",
        21 => "smallint",
        23 => "integer",
        25 => "text",
        700 => "real",
        701 => "double precision",
        1042 => "bpchar",
        1043 => "varchar",
        1082 => "date",
        1114 => "timestamp",
        1184 => "timestamptz",
        1700 => "numeric",
        2950 => "uuid",
        _ => return None,
    };
    Some(format!("({quoted}::{type_name})"))
}
