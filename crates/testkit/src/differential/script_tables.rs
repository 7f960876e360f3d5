//! Tables that users partition, foreign keys of every kind, views over views, and rows that are locked.

use super::Grammar;
use super::expression::Scope;
use super::node::{Node, all, text};
use super::schema::{Column, Table};
use super::source::{Source, numbered, scope};
use super::types::Type;

/// What a query may say about locks.
const LOCKS: &[&str] = &[
    "FOR UPDATE",
    "FOR NO KEY UPDATE",
    "FOR SHARE",
    "FOR KEY SHARE",
    "FOR UPDATE NOWAIT",
    "FOR SHARE SKIP LOCKED",
    "FOR KEY SHARE FOR UPDATE",
];

impl Grammar<'_> {
    /// Partitions of a user's, foreign keys, nested views, locks or plans.
    pub(super) fn tables(&mut self, steps: &mut Vec<Node>) {
        let table = self.chance.pick(&self.schema.tables).clone();
        match self.chance.below(9) {
            0 | 1 => self.partitioned(&table, steps),
            2 | 3 => self.foreign_key(&table, steps),
            4 | 5 => self.nested_views(&table, steps),
            6 => self.locking(&table, steps),
            _ => self.explained(&table, steps),
        }
    }

    /// The table's columns and rows in partitions that are declared.
    fn partitioned(&mut self, table: &Table, steps: &mut Vec<Node>) {
        let name = self.alias('n');
        let column = table.columns[0].clone();
        let (first, second) = (self.alias('n'), self.alias('n'));
        let of = |part: &str, bounds: Vec<Node>| {
            let mut pieces = vec![text(format!("CREATE TABLE {part} PARTITION OF {name} "))];
            pieces.extend(bounds);
            all(pieces)
        };
        let value = loop {
            let value = self.bare_constant(column.of);
            if value.render(false).sql != "NULL" {
                break value;
            }
        };
        let (how, bounds): (&str, [Vec<Node>; 2]) = match self.chance.below(3) {
            0 => (
                "RANGE",
                [
                    vec![text("FOR VALUES FROM (MINVALUE) TO ("), value.clone(), text(")")],
                    vec![text("FOR VALUES FROM ("), value, text(") TO (MAXVALUE)")],
                ],
            ),
            1 => (
                "LIST",
                [vec![text("FOR VALUES IN ("), value, text(")")], vec![text("DEFAULT")]],
            ),
            _ => (
                "HASH",
                [
                    vec![text("FOR VALUES WITH (MODULUS 2, REMAINDER 0)")],
                    vec![text("FOR VALUES WITH (MODULUS 2, REMAINDER 1)")],
                ],
            ),
        };
        steps.push(text(format!(
            "CREATE TABLE {name} (LIKE {} INCLUDING ALL) PARTITION BY {how} ({})",
            table.name, column.name
        )));
        let [lower, upper] = bounds;
        steps.push(of(&first, lower.clone()));
        if !self.chance.one_in(5) {
            steps.push(of(&second, upper));
        }
        let names: Vec<_> = table
            .columns
            .iter()
            .filter(|column| !column.is_generated())
            .map(|column| column.name.as_str())
            .collect();
        let names = names.join(", ");
        steps.push(text(format!(
            "INSERT INTO {name} ({names}) SELECT {names} FROM {}",
            table.name
        )));
        let whole = table.seen_as(&name, table.columns.clone());
        self.script_write_to(&whole, steps);
        steps.push(self.look_at(&name, Source::of_table(&whole, "")));
        steps.push(text(format!("SELECT * FROM {first}")));
        match self.chance.below(5) {
            0 => steps.push(text(format!("ALTER TABLE {name} DETACH PARTITION {first}"))),
            1 => {
                steps.push(text(format!("ALTER TABLE {name} DETACH PARTITION {first}")));
                let attach = text(format!("ALTER TABLE {name} ATTACH PARTITION {first} "));
                steps.push(all([vec![attach], lower].concat()));
            }
            2 => steps.push(text(format!("DROP TABLE {first}"))),
            3 => steps.push(text(format!("TRUNCATE {first}"))),
            _ => self.script_write_to(&table.seen_as(&first, table.columns.clone()), steps),
        }
        self.script_write_to(&whole, steps);
        steps.push(text(format!("SELECT tableoid::regclass::text, * FROM {name}")));
    }

    /// A foreign key that is not the key of both tables, or of one table to itself.
    fn foreign_key(&mut self, table: &Table, steps: &mut Vec<Node>) {
        if table.key != 1 {
            return self.nested_views(table, steps);
        }
        let name = self.alias('n');
        let key = table.columns[0].clone();
        let actions = ["", " NO ACTION", " RESTRICT", " CASCADE", " SET NULL", " SET DEFAULT"];
        let mut action = String::new();
        for event in ["DELETE", "UPDATE"] {
            let does = *self.chance.pick(&actions);
            if !does.is_empty() {
                action += &format!(" ON {event}{does}");
            }
        }
        let late = *self
            .chance
            .pick(&["", "", " DEFERRABLE", " DEFERRABLE INITIALLY DEFERRED"]);
        let of = key.of.sql();
        let distribution = match self.chance.one_in(2) {
            true => table.distribution(),
            false => vec!["SET pgherd.default_distribution = 'local'".to_owned()],
        };
        // PostgreSQL knows such settings as well: nobody has told it what they are for.
        steps.extend(distribution.into_iter().map(text));
        match self.chance.below(3) {
            0 => steps.push(text(format!(
                "CREATE TABLE {name} (id int PRIMARY KEY, {0} {of} REFERENCES {1}{action}{late})",
                key.name, table.name
            ))),
            1 => steps.push(text(format!(
                "CREATE TABLE {name} (id int, {0} {of} DEFAULT NULL, FOREIGN KEY ({0}) REFERENCES {1} ({0}){action}{late})",
                key.name, table.name
            ))),
            _ => {
                steps.push(text(format!("CREATE TABLE {name} (id int PRIMARY KEY, {} {of})", key.name)));
                steps.push(text(format!(
                    "ALTER TABLE {name} ADD FOREIGN KEY ({0}) REFERENCES {1}{action}{late}",
                    key.name, table.name
                )));
            }
        }
        let source = Source::of_table(table, &table.name);
        let inner = scope(&Scope::default(), &[source]);
        let filter = self.conditions(" WHERE ", &inner);
        let fill = format!(
            "INSERT INTO {name} SELECT row_number() OVER (ORDER BY {0}), {0} FROM {1}",
            key.name, table.name
        );
        steps.push(all([text(fill), filter]));
        let referencing = Table::keyed(
            &name,
            vec![Column::plain("id", Type::Int4), Column::plain(&key.name, key.of)],
        );
        for _ in 0..self.chance.between(1, 3) {
            match self.chance.below(4) {
                0 => self.script_write_to(&referencing, steps),
                1 => {
                    let (old, new) = (self.bare_constant(key.of), self.bare_constant(key.of));
                    let head = text(format!("UPDATE {} SET {} = ", table.name, key.name));
                    steps.push(all([head, new, text(format!(" WHERE {} = ", key.name)), old]));
                }
                _ => self.script_write_to(table, steps),
            }
        }
        if !late.is_empty() {
            steps.push(text("SET CONSTRAINTS ALL IMMEDIATE").optional());
        }
        steps.push(text(format!("SELECT * FROM {name}")));
        steps.push(text(format!("SELECT * FROM {}", table.name)));
    }

    /// A view, another one over it, and writes through the upper one.
    fn nested_views(&mut self, table: &Table, steps: &mut Vec<Node>) {
        let (lower, upper) = (self.alias('v'), self.alias('v'));
        if self.chance.one_in(2) {
            let query = self.query(&Scope::default(), 1, None);
            let columns = numbered(&query.columns);
            let source = Source {
                alias: self.alias('x'),
                columns,
                unique: Vec::new(),
            };
            steps.push(all([text(format!("CREATE VIEW {lower} AS ")), query.node]));
            let inner = scope(&Scope::default(), std::slice::from_ref(&source));
            let (of, by) = self.ordered_column(&inner);
            self.note_ambiguous(of);
            steps.push(all([
                text(format!("CREATE VIEW {upper} AS SELECT ")),
                by,
                text(format!(
                    " AS o1, count(*) AS o2 FROM {lower} AS {} GROUP BY 1",
                    source.alias
                )),
            ]));
            let source = Source {
                alias: String::new(),
                columns: vec![("o1".to_owned(), of), ("o2".to_owned(), Type::Int8)],
                unique: Vec::new(),
            };
            steps.push(self.look_at(&upper, source));
            steps.push(text(format!("SELECT * FROM {upper}")));
            self.script_write(steps);
            steps.push(text(format!("SELECT * FROM {upper}")));
            return;
        }
        let source = Source::of_table(table, &table.name);
        let inner = scope(&Scope::default(), &[source]);
        let filter = self.conditions(" WHERE ", &inner);
        steps.push(all([
            text(format!("CREATE VIEW {lower} AS SELECT * FROM {}", table.name)),
            filter,
        ]));
        let source = Source::of_table(table, &lower);
        let inner = scope(&Scope::default(), &[source]);
        let columns = self.some_columns(table);
        let names: Vec<_> = columns.iter().map(|column| column.name.as_str()).collect();
        let filter = self.conditions(" WHERE ", &inner);
        let check = *self
            .chance
            .pick(&["", " WITH CASCADED CHECK OPTION", " WITH LOCAL CHECK OPTION"]);
        let head = format!("CREATE VIEW {upper} AS SELECT {} FROM {lower}", names.join(", "));
        steps.push(all([text(head), filter, text(check).optional()]));
        let view = table.seen_as(&upper, columns);
        for _ in 0..self.chance.between(1, 2) {
            self.script_write_to(&view, steps);
        }
        steps.push(self.look_at(&upper, Source::of_table(&view, "")));
        if self.chance.one_in(3) {
            self.instead_of(&view, steps);
        }
        steps.push(text(format!("SELECT * FROM {}", table.name)));
    }

    /// A trigger INSTEAD OF what is done to a view, which does nothing or does it to another relation.
    fn instead_of(&mut self, view: &Table, steps: &mut Vec<Node>) {
        let name = self.alias('n');
        let gives = *self.chance.pick(&["NULL", "NEW", "NEW"]);
        steps.push(text(format!(
            "CREATE FUNCTION {name}() RETURNS trigger LANGUAGE plpgsql AS $body$ BEGIN IF TG_OP = 'DELETE' THEN RETURN OLD; END IF; RETURN {gives}; END $body$"
        )));
        steps.push(text(format!(
            "CREATE TRIGGER {name} INSTEAD OF INSERT OR UPDATE OR DELETE ON {} FOR EACH ROW EXECUTE FUNCTION {name}()",
            view.name
        )));
        for _ in 0..2 {
            self.script_write_to(view, steps);
        }
    }

    /// Rows that are locked, and then changed.
    fn locking(&mut self, table: &Table, steps: &mut Vec<Node>) {
        let lock = *self.chance.pick(LOCKS);
        let node = match self.chance.below(3) {
            0 => self.ordered_query(),
            1 => {
                let from = self.from(&Scope::default(), 1);
                let (of, value) = self.any_column(&from.scope);
                let filter = self.conditions(" WHERE ", &from.scope);
                all([text("SELECT "), value.typed(of), from.node, filter])
            }
            _ => self.look_at(&table.name, Source::of_table(table, "")),
        };
        steps.push(all([node, text(format!(" {lock}"))]));
        self.script_write_to(table, steps);
        steps.push(text(format!(
            "SELECT count(*) FROM (SELECT * FROM {} {lock}) AS locked",
            table.name
        )));
    }

    /// Plans, which there are wherever the statement itself runs.
    fn explained(&mut self, table: &Table, steps: &mut Vec<Node>) {
        let options = *self.chance.pick(&[
            "EXPLAIN ",
            "EXPLAIN (COSTS OFF) ",
            "EXPLAIN (ANALYZE, TIMING OFF) ",
            "EXPLAIN (VERBOSE, FORMAT JSON) ",
            "EXPLAIN ANALYZE ",
        ]);
        let node = match self.chance.below(6) {
            0 | 1 => self.statement(),
            2 => self.query(&Scope::default(), 1, None).node,
            3 => {
                let query = self.query(&Scope::default(), 1, None).node;
                let name = self.alias('n');
                let kind = *self.chance.pick(&["TABLE", "MATERIALIZED VIEW", "TEMP TABLE"]);
                all([text(format!("CREATE {kind} {name} AS ")), query])
            }
            4 => self.with_write(table),
            _ => self.write_to(table),
        };
        steps.push(all([text(options), node, Node::Plan]));
        if options.contains("ANALYZE")
            && !std::mem::take(&mut self.picks_rows)
            && !std::mem::take(&mut self.may_collide)
        {
            steps.push(text(format!("SELECT * FROM {}", table.name)));
        }
    }
}
