//! Values on their way: arguments of EXECUTE and variables of DO under settings that change what they look like, whole rows as
//! values, columns that a sequence fills, and recursion with SEARCH and CYCLE.

use super::Grammar;
use super::expression::Scope;
use super::node::{Node, all, list, text};
use super::schema::{Column, Table};
use super::script::SETTINGS;
use super::types::Type;

impl Grammar<'_> {
    pub(super) fn values_on_their_way(&mut self, steps: &mut Vec<Node>) {
        let table = self.chance.pick(&self.schema.tables).clone();
        match self.chance.below(6) {
            0 | 1 => self.computed_arguments(&table, steps),
            2 => self.variables(&table, steps),
            3 | 4 => self.row_values(&table, steps),
            _ if self.chance.one_in(2) => self.numbered_column(&table, steps),
            _ => self.walk(&table, steps),
        }
    }

    /// A column that values can be compared with, and an expression of its type without subqueries.
    fn compared(&mut self, table: &Table, with_key: bool) -> Option<(Column, Node)> {
        let from = if with_key { 0 } else { table.key };
        let usable = |column: &&Column| column.of.is_ordered() && !column.is_generated();
        let fitting: Vec<_> = table.columns[from..].iter().filter(usable).cloned().collect();
        if fitting.is_empty() {
            return None;
        }
        let column = self.chance.pick(&fitting).clone();
        self.nesting += 9;
        let value = self.expression(column.of, &Scope::default(), 2);
        self.nesting -= 9;
        Some((column, value))
    }

    fn some_settings(&mut self, steps: &mut Vec<Node>) {
        for _ in 0..self.chance.below(3) {
            let setting = *self.chance.pick(SETTINGS);
            steps.push(text(format!("SET LOCAL {setting}")));
        }
    }

    /// PREPARE with types, and EXECUTE with expressions.
    fn computed_arguments(&mut self, table: &Table, steps: &mut Vec<Node>) {
        let Some((column, first)) = self.compared(table, true) else {
            return;
        };
        let Some((_, second)) = self.compared(table, true) else {
            return;
        };
        let name = self.alias('p');
        self.some_settings(steps);
        let of = column.of.sql();
        steps.push(text(format!(
            "PREPARE {name} ({of}, text) AS SELECT count(*), count(*) FILTER (WHERE {0} IS NOT DISTINCT FROM $1), $1::text, $2 FROM {1}",
            column.name, table.name
        )));
        for _ in 0..self.chance.between(1, 2) {
            let arguments = vec![first.clone(), all([text("("), second.clone(), text(")::text")])];
            let execute = text(format!("EXECUTE {name}"));
            steps.push(all([execute, text("("), list("", arguments, ""), text(")")]));
            self.some_settings(steps);
        }
    }

    /// A DO block with a variable that goes into a table, and is looked for there.
    fn variables(&mut self, table: &Table, steps: &mut Vec<Node>) {
        let Some((column, value)) = self.compared(table, false) else {
            return;
        };
        self.some_settings(steps);
        let source = super::source::Source::of_table(table, &table.name);
        let inner = super::source::scope(&Scope::default(), &[source]);
        let filter = self.conditions(" WHERE ", &inner);
        let (name, at) = (&table.name, &column.name);
        steps.push(all([
            text(format!("DO $body$ DECLARE given {} := ", column.of.sql())),
            value,
            text(format!("; found_rows int; BEGIN UPDATE {name} SET {at} = given")),
            filter,
            text(format!(
                "; SELECT count(*) INTO found_rows FROM {name} WHERE {at} IS NOT DISTINCT FROM given; \
                 IF found_rows > 1 THEN DELETE FROM {name} WHERE {at} IS NOT DISTINCT FROM given; END IF; END $body$"
            )),
        ]));
        steps.push(text(format!("SELECT * FROM {name}")));
    }

    /// A function of a table's rows, and rows as values of all kinds.
    fn row_values(&mut self, table: &Table, steps: &mut Vec<Node>) {
        let (name, row) = (self.alias('n'), self.alias('x'));
        let (of, first) = (&table.name, &table.columns[0].name);
        steps.push(text(format!(
            "CREATE FUNCTION {name}({of}) RETURNS text LANGUAGE sql STABLE AS 'SELECT $1.{first}::text || ''!'''"
        )));
        for _ in 0..self.chance.between(2, 4) {
            let (other, source) = self.table_source();
            let theirs = format!("{}.{}", source.alias, source.columns[0].0);
            let node = match self.chance.below(9) {
                0 => text(format!("SELECT {name}({row}), {row}.{name} FROM {of} AS {row}")),
                1 => all([
                    text(format!("SELECT {name}({row}), {row} IS NULL, {theirs} FROM ")),
                    other,
                    text(format!(
                        " LEFT JOIN {of} AS {row} ON {name}({row}) = {theirs}::text || '!'"
                    )),
                ]),
                2 => text(format!(
                    "SELECT pg_typeof({row})::text, count(*) FROM {of} AS {row} GROUP BY 1"
                )),
                3 => text(format!(
                    "SELECT {name}({row}::{of}), ({row}).{first} FROM {of} AS {row}"
                )),
                4 => all([
                    text(format!(
                        "SELECT {name}(coalesce({row}, NULL::{of})) FROM {of} AS {row} CROSS JOIN "
                    )),
                    other,
                ]),
                5 => text(format!(
                    "WITH w AS (SELECT {row} FROM {of} AS {row}) SELECT {name}(w.{row}), (w.{row}).{first} FROM w"
                )),
                6 => text(format!("SELECT cardinality(array_agg({row})) FROM {of} AS {row}")),
                7 => {
                    let view = self.alias('v');
                    steps.push(text(format!(
                        "CREATE VIEW {view} AS SELECT {row} AS r FROM {of} AS {row}"
                    )));
                    text(format!("SELECT {name}(r), (r).{first} FROM {view}"))
                }
                _ => text(format!(
                    "SELECT {name}({row}), count(*) FROM {of} AS {row} GROUP BY {row}.{first}, {row}"
                )),
            };
            steps.push(node);
            if self.chance.one_in(4) {
                self.script_write_to(table, steps);
            }
        }
    }

    /// A column with values of a sequence. Which row has which is nobody's promise, so it is gone at the end.
    fn numbered_column(&mut self, table: &Table, steps: &mut Vec<Node>) {
        let (savepoint, name) = (self.alias('s'), self.alias('n'));
        steps.push(text(format!("SAVEPOINT {savepoint}")));
        let added = match self.chance.below(3) {
            0 => format!("{name} bigserial"),
            1 => format!("{name} int GENERATED BY DEFAULT AS IDENTITY"),
            _ => {
                let sequence = self.alias('n');
                steps.push(text(format!("CREATE SEQUENCE {sequence} START 5 INCREMENT 3")));
                format!("{name} bigint DEFAULT nextval('{sequence}') + 1")
            }
        };
        steps.push(text(format!("ALTER TABLE {} ADD COLUMN {added}", table.name)));
        steps.push(text(format!(
            "SELECT count(*), count(DISTINCT {name}), min({name}), max({name}) FROM {}",
            table.name
        )));
        steps.push(text(format!("ROLLBACK TO {savepoint}")));
    }

    /// Recursion along two columns of one type, with an order or an end of cycles.
    fn walk(&mut self, table: &Table, steps: &mut Vec<Node>) {
        let of = *self.chance.pick(&[Type::Int4, Type::Int8, Type::Text]);
        let fitting: Vec<_> = table.columns.iter().filter(|column| column.of == of).collect();
        let [from, .., to] = fitting[..] else { return };
        let (from, to) = (&from.name, &to.name);
        let how = *self.chance.pick(&[
            "SEARCH DEPTH FIRST BY a SET way",
            "SEARCH BREADTH FIRST BY a, b SET way",
            "CYCLE a SET again USING way",
            "CYCLE a, b SET again TO 'yes' DEFAULT 'no' USING way",
            "SEARCH BREADTH FIRST BY b SET level CYCLE a SET again USING way",
        ]);
        let union = *self.chance.pick(&["UNION ALL", "UNION"]);
        steps.push(text(format!(
            "WITH RECURSIVE w (a, b, d) AS (SELECT {from}, {to}, 1 FROM {0} {union} SELECT t.{from}, t.{to}, d + 1 FROM {0} AS t JOIN w ON t.{from} = w.b \
             WHERE d < 4) {how} SELECT * FROM w",
            table.name
        )));
    }
}
