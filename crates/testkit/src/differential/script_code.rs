//! Code that runs inside of a server: functions over tables, DO blocks, and triggers of every kind, with what then meets them.

use super::Grammar;
use super::expression::Scope;
use super::node::{Node, all, text};
use super::schema::Table;
use super::source::{Source, scope};
use super::types::Type;

/// Begins and ends a body, which may have quotes of its own.
const QUOTE: &str = "$body$";

impl Grammar<'_> {
    /// A function over a table's rows, a DO block, or a trigger.
    pub(super) fn code(&mut self, steps: &mut Vec<Node>) {
        let table = self.chance.pick(&self.schema.tables).clone();
        match self.chance.below(8) {
            0..=2 => self.reading_function(&table, steps),
            3 => self.writing_function(&table, steps),
            4 | 5 => self.do_block(&table, steps),
            6 => self.audit(&table, steps),
            _ => self.refusing_trigger(&table, steps),
        }
    }

    /// Rows of a table that fulfil something: `FROM t AS x WHERE …`, the order of its key, and the source.
    fn some_rows(&mut self, table: &Table) -> (Node, Node, Source) {
        let source = Source::of_table(table, &self.alias('x'));
        let inner = scope(&Scope::default(), std::slice::from_ref(&source));
        let filter = self.conditions(" WHERE ", &inner);
        let from = all([text(format!(" FROM {} AS {}", table.name, source.alias)), filter]);
        let key: Vec<_> = table
            .key_columns()
            .iter()
            .map(|column| format!("{}.{}", source.alias, column.name))
            .collect();
        let order = match key.is_empty() {
            true => text(""),
            false => text(format!(" ORDER BY {}", key.join(", "))),
        };
        (from, order, source)
    }

    fn reading_function(&mut self, table: &Table, steps: &mut Vec<Node>) {
        let (name, (from, order, _)) = (self.alias('n'), self.some_rows(table));
        let volatility = *self.chance.pick(&["STABLE", "STABLE", "VOLATILE"]);
        let function = |returns: &str, language: &str, body: Vec<Node>| {
            let head =
                format!("CREATE FUNCTION {name}() RETURNS {returns} LANGUAGE {language} {volatility} AS {QUOTE} ");
            let mut pieces = vec![text(head)];
            pieces.extend(body);
            pieces.push(text(format!(" {QUOTE}")));
            all(pieces)
        };
        let (node, returns_rows) = match self.chance.below(7) {
            0 => (function("bigint", "sql", vec![text("SELECT count(*)"), from]), false),
            1 => (
                function(&format!("SETOF {}", table.name), "sql", vec![text("SELECT *"), from]),
                true,
            ),
            2 => {
                let head = text(format!(
                    "CREATE FUNCTION {name}() RETURNS bigint BEGIN ATOMIC SELECT count(*)"
                ));
                (all([head, from, text("; END")]), false)
            }
            3 => {
                let body = vec![
                    text("DECLARE rec record; total int := 0; BEGIN FOR rec IN SELECT *"),
                    from,
                    order,
                    text(" LOOP total := total + 1; END LOOP; RETURN total; END"),
                ];
                (function("bigint", "plpgsql", body), false)
            }
            4 => {
                let body = vec![text("BEGIN RETURN QUERY SELECT *"), from, text("; END")];
                (function(&format!("SETOF {}", table.name), "plpgsql", body), true)
            }
            5 => {
                let body = vec![
                    text("DECLARE total bigint; BEGIN IF EXISTS (SELECT 1"),
                    from.clone(),
                    text(") THEN SELECT count(*) INTO STRICT total"),
                    from,
                    text("; ELSE total := -1; END IF; RETURN total; END"),
                ];
                (function("bigint", "plpgsql", body), false)
            }
            _ => {
                let body = vec![
                    text("DECLARE total bigint; BEGIN EXECUTE 'SELECT count(*) FROM "),
                    text(table.name.clone()),
                    text("' INTO total; RETURN total; END"),
                ];
                (function("bigint", "plpgsql", body), false)
            }
        };
        steps.push(node);
        self.call(&name, returns_rows, steps);
        self.script_write_to(table, steps);
        self.call(&name, returns_rows, steps);
    }

    /// Uses of a function without arguments.
    fn call(&mut self, name: &str, returns_rows: bool, steps: &mut Vec<Node>) {
        let (other, _) = self.table_source();
        let node = match (returns_rows, self.chance.below(4)) {
            (true, 0 | 1) => text(format!("SELECT * FROM {name}()")),
            (true, 2) => all([
                text(format!("SELECT count(*) FROM {name}() AS called CROSS JOIN ")),
                other,
            ]),
            (true, _) => text(format!("SELECT {name}()")),
            (false, 0) => text(format!("SELECT {name}()")),
            (false, 1) => text(format!("SELECT * FROM {name}() AS called")),
            (false, 2) => all([text(format!("SELECT {name}(), count(*) FROM ")), other]),
            (false, _) => all([text("SELECT 1 FROM "), other, text(format!(" WHERE {name}() > 3"))]),
        };
        steps.push(node);
    }

    /// A function that changes rows, and says how many.
    fn writing_function(&mut self, table: &Table, steps: &mut Vec<Node>) {
        let name = self.alias('n');
        let Some(write) = self.fixed_write(table) else { return };
        let read = text(format!("SELECT * FROM {}", table.name));
        let head =
            format!("CREATE FUNCTION {name}() RETURNS bigint LANGUAGE plpgsql AS {QUOTE} DECLARE total bigint; BEGIN ");
        let tail = format!("; GET DIAGNOSTICS total = ROW_COUNT; RETURN total; END {QUOTE}");
        steps.push(all([text(head), write, text(tail)]));
        steps.push(text(format!("SELECT {name}()")));
        steps.push(read.clone());
        if self.chance.one_in(2) {
            steps.push(text(format!("SELECT 1 FROM {name}()")));
            steps.push(read);
        }
    }

    /// A write whose result is fixed, if the grammar finds one at once.
    fn fixed_write(&mut self, table: &Table) -> Option<Node> {
        (0..4).find_map(|_| {
            let node = self.write_to(table);
            let open = std::mem::take(&mut self.picks_rows) | std::mem::take(&mut self.may_collide);
            (!open).then_some(node)
        })
    }

    fn do_block(&mut self, table: &Table, steps: &mut Vec<Node>) {
        let mut body = vec![text(format!("DO {QUOTE} DECLARE rec record; total int := 0; BEGIN "))];
        for _ in 0..self.chance.between(1, 3) {
            let statement = self.do_statement(table);
            body.push(all([statement, text("; ")]).optional());
        }
        body.push(text(format!("END {QUOTE}")));
        steps.push(all(body));
        steps.push(text(format!("SELECT * FROM {}", table.name)));
    }

    fn do_statement(&mut self, table: &Table) -> Node {
        let (from, order, source) = self.some_rows(table);
        let write = self.fixed_write(table).unwrap_or_else(|| text("NULL"));
        match self.chance.below(8) {
            0 => all([
                text("IF EXISTS (SELECT 1"),
                from,
                text(") THEN "),
                write,
                text("; END IF"),
            ]),
            1 if table.key > 0 => {
                let inner = scope(&Scope::default(), std::slice::from_ref(&source));
                let set = self.assignments(table, &inner, false);
                let same: Vec<_> = table
                    .key_columns()
                    .iter()
                    .map(|column| format!("{0}.{1} = rec.{1}", source.alias, column.name))
                    .collect();
                let update = format!(
                    " LOOP total := total + 1; UPDATE {} AS {} SET ",
                    table.name, source.alias
                );
                let end = format!(" WHERE {}; END LOOP", same.join(" AND "));
                let set = super::node::list("", set, "");
                all([text("FOR rec IN SELECT *"), from, order, text(update), set, text(end)])
            }
            2 => all([
                text("BEGIN "),
                write,
                text("; PERFORM 1 / (total - total); EXCEPTION WHEN division_by_zero THEN total := 7; END"),
            ]),
            3 => {
                let failing = self.failing_statement();
                let start = text("BEGIN PERFORM count(*) FROM (");
                let end = text(") AS failing; EXCEPTION WHEN OTHERS THEN ");
                all([start, failing, end, write, text("; END")])
            }
            4 => all([
                text("SELECT count(*) INTO total"),
                from,
                text("; IF total > 2 THEN "),
                write,
                text("; END IF"),
            ]),
            5 => all([
                text("PERFORM 1"),
                from,
                text("; IF FOUND THEN "),
                write,
                text("; END IF"),
            ]),
            6 => all([
                text("FOR i IN 1..2 LOOP EXECUTE $dynamic$ "),
                write,
                text(" $dynamic$; EXIT WHEN i = 1; END LOOP"),
            ]),
            _ => write,
        }
    }

    /// A trigger that writes down what happens to the rows of a table: row by row, or once for each statement with its rows.
    fn audit(&mut self, table: &Table, steps: &mut Vec<Node>) {
        let (name, log) = (self.alias('n'), self.alias('n'));
        steps.push(text(format!(
            "CREATE TABLE {log} (id serial PRIMARY KEY, op text, n bigint, old text, new text)"
        )));
        let event = *self.chance.pick(&["INSERT", "UPDATE", "DELETE"]);
        let body = |values: &str| {
            text(format!(
                "CREATE FUNCTION {name}() RETURNS trigger LANGUAGE plpgsql AS {QUOTE} BEGIN INSERT INTO {log} (op, n, old, new) {values}; RETURN NULL; END {QUOTE}"
            ))
        };
        let trigger = match self.chance.below(3) {
            0 => {
                steps.push(body("VALUES (TG_OP || TG_WHEN || TG_LEVEL, 1, OLD::text, NEW::text)"));
                format!("AFTER INSERT OR UPDATE OR DELETE ON {} FOR EACH ROW", table.name)
            }
            1 => {
                steps.push(body(
                    "SELECT TG_OP, count(*), min(c::text), max(c::text) FROM changed AS c",
                ));
                let which = if event == "DELETE" { "OLD" } else { "NEW" };
                format!(
                    "AFTER {event} ON {} REFERENCING {which} TABLE AS changed FOR EACH STATEMENT",
                    table.name
                )
            }
            _ => {
                steps.push(body(
                    "VALUES (TG_OP || TG_TABLE_NAME || TG_NARGS, 0, TG_ARGV[0], TG_NAME)",
                ));
                let when = *self.chance.pick(&["BEFORE", "AFTER"]);
                format!("{when} {event} OR TRUNCATE ON {} FOR EACH STATEMENT", table.name)
            }
        };
        steps.push(text(format!(
            "CREATE TRIGGER {name} {trigger} EXECUTE FUNCTION {name}('given')"
        )));
        for _ in 0..self.chance.between(1, 2) {
            self.script_write_to(table, steps);
        }
        // In which order rows came is nobody's promise.
        steps.push(text(format!("SELECT op, n, old, new FROM {log}")));
        steps.push(text(format!("SELECT count(*), count(DISTINCT id) FROM {log}")));
    }

    /// A trigger that keeps some rows from being written, or raises an error for them.
    fn refusing_trigger(&mut self, table: &Table, steps: &mut Vec<Node>) {
        let name = self.alias('n');
        let fitting = |of| matches!(of, Type::Int4 | Type::Int8 | Type::Text | Type::Numeric | Type::Date);
        let Some(column) = table.columns.iter().find(|column| fitting(column.of)).cloned() else {
            return;
        };
        let value = self.constant(column.of);
        let refuse = *self.chance.pick(&[
            "RETURN NULL",
            "RETURN NULL",
            "RAISE EXCEPTION 'no: %', OLD.k0 USING ERRCODE = 'P0077'",
        ]);
        steps.push(all([
            text(format!(
                "CREATE FUNCTION {name}() RETURNS trigger LANGUAGE plpgsql AS {QUOTE} BEGIN IF OLD.{} < ",
                column.name
            )),
            value,
            text(format!(
                " THEN {refuse}; END IF; IF TG_OP = 'DELETE' THEN RETURN OLD; END IF; RETURN NEW; END {QUOTE}"
            )),
        ]));
        let event = *self.chance.pick(&["UPDATE", "DELETE", "UPDATE OR DELETE"]);
        steps.push(text(format!(
            "CREATE TRIGGER {name} BEFORE {event} ON {} FOR EACH ROW EXECUTE FUNCTION {name}()",
            table.name
        )));
        for _ in 0..self.chance.between(1, 2) {
            self.script_write_to(table, steps);
        }
        steps.push(text(format!("SELECT * FROM {}", table.name)));
    }
}
