//! Schema changes inside of a transaction block, and what is written and read through them.

use super::Grammar;
use super::expression::Scope;
use super::node::{Node, all, text};
use super::schema::{Column, Table};
use super::source::{Source, scope};
use super::types::Type;

impl Grammar<'_> {
    /// A change, and statements that meet it.
    pub(super) fn schema_change(&mut self, steps: &mut Vec<Node>) {
        let table = self.chance.pick(&self.schema.tables).clone();
        match self.chance.below(10) {
            0..=2 => self.new_column(&table, steps),
            3 | 4 => self.altered(&table, steps),
            5 | 6 => self.view(&table, steps),
            7 => self.referencing(&table, steps),
            8 => self.new_relation(&table, steps),
            _ => self.routine(&table, steps),
        }
    }

    fn new_column(&mut self, table: &Table, steps: &mut Vec<Node>) {
        let name = self.alias('n');
        let every: Vec<_> = Type::every().collect();
        let (column, node) = match self.chance.below(4) {
            0 => {
                let (of, words) = generated(table).unwrap_or((Type::Int8, "(7)".to_owned()));
                let words = format!(
                    "ALTER TABLE {} ADD COLUMN {name} {} GENERATED ALWAYS AS ({words}) STORED",
                    table.name,
                    of.sql()
                );
                (Column::generated(&name, of, String::new()), text(words))
            }
            n => {
                let of = *self.chance.pick(&every);
                let head = text(format!("ALTER TABLE {} ADD {name} {}", table.name, of.sql()));
                let default = all([text(" DEFAULT "), self.constant(of)]).optional();
                let end = if n == 1 { " NOT NULL" } else { "" };
                (Column::plain(&name, of), all([head, default, text(end).optional()]))
            }
        };
        steps.push(node);
        let changed = table.with_column(column);
        for _ in 0..self.chance.between(1, 2) {
            self.script_write_to(&changed, steps);
        }
        steps.push(self.look_at(&changed.name, Source::of_table(&changed, "")));
    }

    fn altered(&mut self, table: &Table, steps: &mut Vec<Node>) {
        let (name, new) = (&table.name, self.alias('n'));
        let column = self.chance.pick(&table.columns).clone();
        let at = &column.name;
        let alter = format!("ALTER TABLE {name}");
        let node = match self.chance.below(12) {
            0 => text(format!("{alter} DROP COLUMN {at}")),
            1 => text(format!("{alter} RENAME {at} TO {new}")),
            2 => text(format!("{alter} RENAME TO {new}")),
            3 => text(format!("{alter} ALTER {at} TYPE text USING {at}::text")),
            4 => text(format!("{alter} ALTER {at} SET NOT NULL")),
            5 => text(format!("{alter} ALTER {at} DROP NOT NULL")),
            6 => {
                let default = self.constant(column.of);
                all([text(format!("{alter} ALTER {at} SET DEFAULT ")), default])
            }
            7 => {
                let source = Source::of_table(table, name);
                let inner = scope(&Scope::default(), &[source]);
                let check = self.condition_without_queries(&inner);
                all([text(format!("{alter} ADD CONSTRAINT {new} CHECK (")), check, text(")")])
            }
            8 => {
                let key: Vec<_> = table.key_columns().iter().map(|column| column.name.as_str()).collect();
                let columns = [key, vec![at.as_str()]].concat().join(", ");
                text(format!("{alter} ADD CONSTRAINT {new} UNIQUE ({columns})"))
            }
            9 => text(format!("CREATE INDEX {new} ON {name} ({at} DESC NULLS LAST)")),
            10 => text(format!("TRUNCATE {name}")),
            _ => text(format!("COMMENT ON COLUMN {name}.{at} IS 'said'")),
        };
        steps.push(node);
        self.script_write_to(table, steps);
        steps.push(self.look_at(name, Source::of_table(table, "")));
        if self.chance.one_in(3) {
            steps.push(text(format!("SELECT * FROM {new}")));
        }
    }

    /// A view of one table's rows, written to as well.
    fn view(&mut self, table: &Table, steps: &mut Vec<Node>) {
        let name = self.alias('v');
        let source = Source::of_table(table, &table.name);
        let inner = scope(&Scope::default(), &[source]);
        let columns: Vec<_> = match self.chance.one_in(3) {
            true => table.columns.clone(),
            false => self.some_columns(table),
        };
        let names: Vec<_> = columns.iter().map(|column| column.name.as_str()).collect();
        let select = format!(" AS SELECT {} FROM {}", names.join(", "), table.name);
        let filter = match self.chance.one_in(2) {
            true => self.conditions(" WHERE ", &inner),
            false => all([]),
        };
        if self.chance.one_in(5) {
            let create = text(format!("CREATE MATERIALIZED VIEW {name}{select}"));
            steps.push(all([create, filter]));
            self.script_write_to(table, steps);
            steps.push(text(format!("SELECT * FROM {name}")));
            steps.push(text(format!("REFRESH MATERIALIZED VIEW {name}")));
            steps.push(text(format!("SELECT * FROM {name}")));
            return;
        }
        let options = *self
            .chance
            .pick(&["", "", " WITH (security_barrier)", " WITH (security_invoker)"]);
        let check = *self
            .chance
            .pick(&["", "", " WITH CHECK OPTION", " WITH LOCAL CHECK OPTION"]);
        let create = text(format!("CREATE VIEW {name}{options}{select}"));
        steps.push(all([create, filter, text(check).optional()]));
        let view = table.seen_as(&name, columns);
        steps.push(self.look_at(&name, Source::of_table(&view, "")));
        for _ in 0..self.chance.between(1, 2) {
            self.script_write_to(&view, steps);
        }
        steps.push(text(format!("SELECT * FROM {}", table.name)));
    }

    /// A table with a foreign key to the other one's key, and what that does to changes.
    fn referencing(&mut self, table: &Table, steps: &mut Vec<Node>) {
        if table.key == 0 {
            return self.altered(table, steps);
        }
        let name = self.alias('n');
        steps.extend(table.distribution().into_iter().map(text));
        let (columns, keys): (Vec<_>, Vec<_>) = table
            .key_columns()
            .iter()
            .map(|column| (format!("{} {}", column.name, column.of.sql()), column.name.as_str()))
            .unzip();
        let keys = keys.join(", ");
        let actions = [
            "",
            " ON DELETE CASCADE",
            " ON DELETE CASCADE ON UPDATE CASCADE",
            " ON DELETE RESTRICT",
            " ON DELETE SET NULL",
            " DEFERRABLE INITIALLY DEFERRED",
        ];
        let action = *self.chance.pick(&actions);
        steps.push(text(format!(
            "CREATE TABLE {name} ({}, v int DEFAULT 1, PRIMARY KEY ({keys}), FOREIGN KEY ({keys}) REFERENCES {}{action})",
            columns.join(", "),
            table.name
        )));
        let source = Source::of_table(table, &table.name);
        let inner = scope(&Scope::default(), &[source]);
        let filter = self.conditions(" WHERE ", &inner);
        let fill = format!("INSERT INTO {name} SELECT {keys} FROM {}", table.name);
        steps.push(all([text(fill), filter]));
        let referencing = table
            .seen_as(&name, table.key_columns().to_vec())
            .with_column(Column::plain("v", Type::Int4));
        for _ in 0..self.chance.between(1, 2) {
            let which = if self.chance.one_in(3) { &referencing } else { table };
            self.script_write_to(which, steps);
        }
        steps.push(text("SET CONSTRAINTS ALL IMMEDIATE").optional());
        steps.push(self.look_at(&name, Source::of_table(&referencing, "")));
    }

    fn new_relation(&mut self, table: &Table, steps: &mut Vec<Node>) {
        let name = self.alias('n');
        match self.chance.below(4) {
            0 => {
                let kind = *self.chance.pick(&["TABLE", "TEMP TABLE", "UNLOGGED TABLE"]);
                let query = self.query(&Scope::default(), 1, None);
                steps.push(all([text(format!("CREATE {kind} {name} AS ")), query.node]));
                steps.push(text(format!("SELECT * FROM {name}")));
            }
            1 => {
                steps.extend(table.distribution().into_iter().map(text));
                steps.push(text(format!("CREATE TABLE {name} (LIKE {} INCLUDING ALL)", table.name)));
                steps.push(text(format!("INSERT INTO {name} SELECT * FROM {}", table.name)));
                let like = table.seen_as(&name, table.columns.clone());
                self.script_write_to(&like, steps);
                steps.push(self.look_at(&name, Source::of_table(&like, "")));
            }
            2 => {
                let query = self.query(&Scope::default(), 1, None);
                steps.push(all([text(format!("CREATE VIEW {name} AS ")), query.node]));
                let source = Source {
                    alias: String::new(),
                    columns: super::source::numbered(&query.columns),
                    unique: Vec::new(),
                };
                steps.push(self.look_at(&name, source));
                steps.push(text(format!("SELECT count(*) FROM {name}")));
            }
            _ => {
                let column = self.chance.pick(&table.columns).clone();
                steps.push(text(format!(
                    "ALTER TABLE {} DROP COLUMN {} CASCADE",
                    table.name, column.name
                )));
                steps.push(text(format!("SELECT * FROM {}", table.name)));
            }
        }
    }

    /// A function, or a trigger that changes what is written.
    fn routine(&mut self, table: &Table, steps: &mut Vec<Node>) {
        let name = self.alias('n');
        let fitting = |column: &&Column| matches!(column.of, Type::Int4 | Type::Text | Type::Date | Type::Numeric);
        let Some(column) = table.columns[table.key..].iter().find(fitting).cloned() else {
            return self.altered(table, steps);
        };
        let of = column.of.sql();
        if self.chance.one_in(2) {
            let strict = *self.chance.pick(&["IMMUTABLE STRICT", "STABLE", "IMMUTABLE"]);
            steps.push(text(format!(
                "CREATE FUNCTION {name}({of}, int DEFAULT 2) RETURNS text LANGUAGE sql {strict} AS 'SELECT $1::text || $2'"
            )));
            let call = format!("{name}({})", column.name);
            steps.push(text(format!("SELECT {call}, count(*) FROM {} GROUP BY 1", table.name)));
            steps.push(text(format!(
                "SELECT * FROM {} WHERE {name}({}, 3) > '1'",
                table.name, column.name
            )));
            return;
        }
        let value = self.constant(column.of).render(false).sql.replace('\'', "''");
        steps.push(text(format!(
            "CREATE FUNCTION {name}() RETURNS trigger LANGUAGE plpgsql AS 'BEGIN NEW.{0} := coalesce(NEW.{0}, {value}); RETURN NEW; END'",
            column.name
        )));
        let event = *self.chance.pick(&["INSERT", "UPDATE", "INSERT OR UPDATE"]);
        steps.push(text(format!(
            "CREATE TRIGGER {name} BEFORE {event} ON {} FOR EACH ROW EXECUTE FUNCTION {name}()",
            table.name
        )));
        self.script_write_to(table, steps);
        self.script_write_to(table, steps);
        steps.push(text(format!("SELECT * FROM {}", table.name)));
    }

    /// A condition that a constraint may have.
    fn condition_without_queries(&mut self, scope: &Scope) -> Node {
        self.nesting += 9;
        let condition = self.condition(scope, 1);
        self.nesting -= 9;
        condition
    }
}

/// An expression of a table's columns that a generated column may have, with its type.
pub(super) fn generated(table: &Table) -> Option<(Type, String)> {
    table.columns.iter().rev().find_map(|column| match column.of {
        _ if column.is_generated() => None,
        Type::Int4 | Type::Int2 => Some((Type::Int8, format!("coalesce({}, 1)::int8 * 3", column.name))),
        Type::Text => Some((Type::Text, format!("upper({}) || '!'", column.name))),
        Type::Date => Some((Type::Bool, format!("isfinite({})", column.name))),
        _ => None,
    })
}
