//! What takes several statements: cursors, savepoints, prepared statements, settings, and with them what `script_schema` and
//! `script_copy` make. All of a script is in one transaction block, which is rolled back.

use super::Grammar;
use super::expression::Scope;
use super::node::{Node, all, list, quoted, text};
use super::query::{as_numbered, order_by};
use super::source::{Source, scope};

/// How far FETCH and MOVE go; the first ones only forward.
const DIRECTIONS: &[&str] = &[
    "NEXT",
    "",
    "1",
    "3",
    "FORWARD",
    "FORWARD 2",
    "ALL",
    "FORWARD ALL",
    "RELATIVE 2",
    "PRIOR",
    "FIRST",
    "LAST",
    "ABSOLUTE 3",
    "ABSOLUTE -2",
    "ABSOLUTE 0",
    "RELATIVE -1",
    "RELATIVE 0",
    "0",
    "-2",
    "BACKWARD",
    "BACKWARD 3",
    "BACKWARD ALL",
];
const FORWARD: usize = 9;

/// What changes how values are read, written or planned.
pub(super) const SETTINGS: &[&str] = &[
    "TimeZone = 'Asia/Kathmandu'",
    "TimeZone = 'America/St_Johns'",
    "TimeZone = '-03:30'",
    "DateStyle = 'SQL, DMY'",
    "DateStyle = 'German'",
    "DateStyle = 'Postgres, MDY'",
    "DateStyle = 'ISO, DMY'",
    "IntervalStyle = 'postgres_verbose'",
    "IntervalStyle = 'sql_standard'",
    "IntervalStyle = 'iso_8601'",
    "extra_float_digits = 0",
    "extra_float_digits = -5",
    "bytea_output = 'escape'",
    "standard_conforming_strings = off",
    "array_nulls = off",
    "transform_null_equals = on",
    "quote_all_identifiers = on",
    "default_text_search_config = 'pg_catalog.english'",
    "xmlbinary = 'hex'",
    "plan_cache_mode = 'force_generic_plan'",
    "enable_hashagg = off",
    "enable_sort = off",
    "work_mem = '64kB'",
];

impl Grammar<'_> {
    /// One to three passages, and a look at what they leave.
    pub(super) fn script(&mut self) -> Vec<Node> {
        let mut steps = Vec::new();
        for _ in 0..self.chance.between(1, 3) {
            // An error ends the block but for what a savepoint saves.
            let savepoint = self.chance.one_in(2).then(|| self.alias('s'));
            if let Some(name) = &savepoint {
                steps.push(text(format!("SAVEPOINT {name}")));
            }
            match self.chance.below(19) {
                16..=18 => self.values_on_their_way(&mut steps),
                10..=12 => self.code(&mut steps),
                13..=15 => self.tables(&mut steps),
                0 | 1 => self.cursor(&mut steps),
                2 => self.savepoints(&mut steps),
                3 => self.prepared(&mut steps),
                4 => self.settings(&mut steps),
                5 | 6 => self.copy(&mut steps),
                _ => self.schema_change(&mut steps),
            }
            if let Some(name) = &savepoint {
                let end = *self.chance.pick(&["ROLLBACK TO ", "RELEASE "]);
                steps.push(text(format!("{end}{name}")));
            }
        }
        if self.chance.one_in(2) {
            steps.push(self.statement());
        }
        steps
    }

    /// A write whose result is fixed, where the grammar finds one, and mostly what the table has then.
    pub(super) fn script_write(&mut self, steps: &mut Vec<Node>) {
        let table = self.chance.pick(&self.schema.tables).clone();
        self.script_write_to(&table, steps);
    }

    pub(super) fn script_write_to(&mut self, table: &super::schema::Table, steps: &mut Vec<Node>) {
        let node = self.write_to(table);
        if !std::mem::take(&mut self.picks_rows) && !std::mem::take(&mut self.may_collide) {
            steps.push(node);
            if self.chance.one_in(2) {
                steps.push(text(format!("SELECT * FROM {}", table.name)));
            }
        }
    }

    /// A query whose rows have one order only.
    pub(super) fn ordered_query(&mut self) -> Node {
        for _ in 0..8 {
            let from = self.from(&Scope::default(), 1);
            let Some(unique) = from.unique() else { continue };
            let filter = match self.chance.one_in(2) {
                true => self.conditions(" WHERE ", &from.scope),
                false => all([]),
            };
            let types = self.types(None, &from.scope);
            let items = types.iter().map(|of| self.expression(*of, &from.scope, 1)).collect();
            let least = unique.len();
            let select = list("SELECT ", as_numbered(items), "");
            return all([select, from.node, filter, order_by(unique, least), Node::TotalOrder]);
        }
        text("SELECT a FROM generate_series(1, 9) AS g(a) ORDER BY a").then(Node::TotalOrder)
    }

    /// Some of a relation's rows, in order where its key is known.
    pub(super) fn look_at(&mut self, name: &str, mut source: Source) -> Node {
        source.alias = self.alias('x');
        let inner = scope(&Scope::default(), std::slice::from_ref(&source));
        let items = (0..self.chance.between(1, 3))
            .map(|_| {
                let (of, _) = self.any_column(&inner);
                self.expression(of, &inner, 1)
            })
            .collect();
        let filter = match self.chance.one_in(2) {
            true => self.conditions(" WHERE ", &inner),
            false => all([]),
        };
        let key: Vec<_> = source
            .unique
            .iter()
            .map(|name| text(format!("{}.{name}", source.alias)))
            .collect();
        let from = text(format!(" FROM {name} AS {}", source.alias));
        let mut pieces = vec![list("SELECT ", items, ""), from, filter];
        if !key.is_empty() {
            let least = key.len();
            pieces.extend([order_by(key, least), Node::TotalOrder]);
        }
        all(pieces)
    }

    fn cursor(&mut self, steps: &mut Vec<Node>) {
        let name = self.alias('c');
        // Without a word about it, the plan decides whether a cursor may go back.
        let (scroll, goes_back) =
            *self
                .chance
                .pick(&[("SCROLL ", true), ("INSENSITIVE SCROLL ", true), ("NO SCROLL ", false)]);
        let hold = *self.chance.pick(&["", "", "", " WITH HOLD", " WITHOUT HOLD"]);
        let query = self.ordered_query();
        steps.push(all([text(format!("DECLARE {name} {scroll}CURSOR{hold} FOR ")), query]));
        for _ in 0..self.chance.between(2, 6) {
            if self.chance.one_in(8) {
                // The cursor goes on showing what was there before.
                self.script_write(steps);
            }
            let all_directions = goes_back || self.chance.one_in(8);
            let most = if all_directions { DIRECTIONS.len() } else { FORWARD };
            let direction = DIRECTIONS[self.chance.below(most)];
            let verb = *self.chance.pick(&["FETCH", "FETCH", "FETCH", "MOVE"]);
            let from = if direction.is_empty() { "" } else { " FROM" };
            steps.push(text(format!("{verb} {direction}{from} {name}")).then(Node::TotalOrder));
        }
        if self.chance.one_in(3) {
            let close = *self.chance.pick(&["ALL", name.as_str()]);
            steps.push(text(format!("CLOSE {close}")));
        }
    }

    fn savepoints(&mut self, steps: &mut Vec<Node>) {
        let (outer, inner) = (self.alias('s'), self.alias('s'));
        steps.push(text(format!("SAVEPOINT {outer}")));
        self.script_write(steps);
        steps.push(text(format!("SAVEPOINT {inner}")));
        if self.chance.one_in(3) {
            steps.push(self.failing_statement());
        } else {
            self.script_write(steps);
        }
        let back = *self
            .chance
            .pick(&["ROLLBACK TO ", "ROLLBACK TO SAVEPOINT ", "RELEASE "]);
        steps.push(text(format!("{back}{inner}")));
        if self.chance.one_in(2) {
            self.script_write(steps);
        }
        // The inner one is gone with the outer one, and of the same name there may be two.
        let end = match self.chance.below(4) {
            0 => format!("RELEASE {outer}"),
            1 => format!("ROLLBACK TO {outer}"),
            2 => format!("SAVEPOINT {outer}"),
            _ => format!("ROLLBACK TO {inner}"),
        };
        steps.push(text(end));
        steps.push(self.statement());
    }

    /// A prepared query, run before and after something has changed.
    fn prepared(&mut self, steps: &mut Vec<Node>) {
        let name = self.alias('p');
        let query = if self.chance.one_in(3) {
            let table = self.chance.pick(&self.schema.tables).clone();
            self.writes_rows = true;
            self.delete_returning(&table)
        } else {
            self.statement()
        };
        let rendered = query.render(true);
        steps.push(text(format!("PREPARE {name} AS {}", rendered.sql)));
        let values: Vec<_> = rendered
            .parameters
            .iter()
            .map(|value| value.as_deref().map_or_else(|| "NULL".to_owned(), quoted))
            .collect();
        let execute = match values.is_empty() {
            true => format!("EXECUTE {name}"),
            false => format!("EXECUTE {name}({})", values.join(", ")),
        };
        steps.push(text(execute.clone()));
        match self.chance.below(3) {
            0 => self.schema_change(steps),
            1 => self.script_write(steps),
            _ => {
                let setting = *self.chance.pick(SETTINGS);
                steps.push(text(format!("SET LOCAL {setting}")));
            }
        }
        steps.push(text(execute));
        if self.chance.one_in(3) {
            steps.push(text(format!("DEALLOCATE {name}")));
        }
    }

    fn settings(&mut self, steps: &mut Vec<Node>) {
        for _ in 0..self.chance.between(1, 2) {
            let setting = *self.chance.pick(SETTINGS);
            steps.push(text(format!("SET LOCAL {setting}")));
        }
        let table = self.chance.pick(&self.schema.tables).clone();
        steps.push(self.look_at(&table.name, Source::of_table(&table, "")));
        self.script_write(steps);
        steps.push(self.statement());
    }
}
