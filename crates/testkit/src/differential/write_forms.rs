//! Rarer forms of what `write` makes: ON CONFLICT of every kind, UPDATE from several tables, WITH with several parts that write.

use super::Grammar;
use super::expression::Scope;
use super::node::{Node, all, list, text};
use super::schema::Table;
use super::source::{Source, scope};

impl Grammar<'_> {
    /// One of the rarer forms, where the table has what it needs.
    pub(super) fn rare_write(&mut self, table: &Table) -> Node {
        match self.chance.below(6) {
            0 | 1 if table.key > 0 => self.upsert(table),
            2 => self.update_from_several(table),
            3 => self.update_by_subquery(table),
            4 => self.with_writes(table),
            _ => self.insert_into_alias(table),
        }
    }

    /// INSERT of a table's own rows, of others or of constants, that meets rows by a constraint's name, by columns or by anything.
    fn upsert(&mut self, table: &Table) -> Node {
        let columns = self.some_columns(table);
        let names: Vec<_> = columns.iter().map(|column| column.name.as_str()).collect();
        let alias = self.alias('u');
        let head = format!("INSERT INTO {} AS {alias} ({}) ", table.name, names.join(", "));
        let rows = match self.chance.below(3) {
            0 => {
                // Each row of the table meets itself, once.
                let own = self.alias('x');
                let source = scope(&Scope::default(), &[Source::of_table(table, &own)]);
                let items = columns
                    .iter()
                    .map(
                        |column| match table.key_columns().iter().any(|key| key.name == column.name) {
                            true => text(format!("{own}.{}", column.name)),
                            false => self.expression(column.of, &source, 1),
                        },
                    )
                    .collect();
                let filter = self.conditions(" WHERE ", &source);
                all([
                    list("SELECT ", items, ""),
                    text(format!(" FROM {} AS {own}", table.name)),
                    filter,
                ])
            }
            _ => {
                let rows = (0..self.chance.between(1, 3))
                    .map(|_| {
                        let values = columns.iter().map(|column| self.bare_constant(column.of)).collect();
                        list("(", values, ")")
                    })
                    .collect();
                list("VALUES ", rows, "")
            }
        };
        let key: Vec<_> = table.key_columns().iter().map(|column| column.name.as_str()).collect();
        let target = match self.chance.below(3) {
            0 => format!(" ON CONFLICT ON CONSTRAINT {}_pkey", table.name),
            1 => format!(" ON CONFLICT ({}) WHERE {} IS NOT NULL", key.join(", "), key[0]),
            _ => format!(" ON CONFLICT ({})", key.join(", ")),
        };
        let both = [Source::of_table(table, &alias), Source::of_table(table, "excluded")];
        let inner = scope(&Scope::default(), &both);
        let moves = self.chance.one_in(6);
        self.may_collide |= moves;
        let set = self.assignments(table, &inner, moves);
        let filter = match self.chance.one_in(3) {
            true => self.conditions(" WHERE ", &inner),
            false => all([]),
        };
        let returning = *self.chance.pick(&["", " RETURNING *", " RETURNING 1"]);
        all([
            text(head),
            rows,
            text(target),
            list(" DO UPDATE SET ", set, ""),
            filter,
            text(returning).optional(),
        ])
    }

    /// `UPDATE … FROM` two relations, of which each row meets one row at most.
    fn update_from_several(&mut self, table: &Table) -> Node {
        let own = Source::of_table(table, &self.alias('u'));
        let (Some((first, one, link)), Some((second, two, other_link))) =
            (self.one_row_each(&own), self.one_row_each(&own))
        else {
            return self.update_by_subquery(table);
        };
        let inner = scope(&Scope::default(), &[own.clone(), one, two]);
        let set = self.assignments(table, &inner, false);
        let filter = self.conditions(" AND ", &inner);
        let head = text(format!("UPDATE {} AS {}", table.name, own.alias));
        let returning = text(format!(" RETURNING {}.*", own.alias)).optional();
        let tables = match self.chance.one_in(2) {
            true => all([
                first,
                text(", "),
                second,
                text(" WHERE "),
                link,
                text(" AND "),
                other_link,
            ]),
            // Rows that the second one has nothing for get NULLs.
            false => all([
                first,
                text(" CROSS JOIN "),
                second,
                text(" WHERE "),
                link,
                text(" AND "),
                other_link,
            ]),
        };
        all([head, list(" SET ", set, ""), text(" FROM "), tables, filter, returning])
    }

    /// `SET (a, b) = (SELECT …)`, and values from subqueries that are about the row.
    fn update_by_subquery(&mut self, table: &Table) -> Node {
        let own = Source::of_table(table, &self.alias('u'));
        let inner = scope(&Scope::default(), std::slice::from_ref(&own));
        let plain: Vec<_> = table.columns[table.key..]
            .iter()
            .filter(|column| !column.is_generated())
            .collect();
        let head = text(format!("UPDATE {} AS {} SET ", table.name, own.alias));
        let filter = self.conditions(" WHERE ", &inner);
        let returning = text(format!(" RETURNING {}.*", own.alias)).optional();
        let [first, second, ..] = plain[..] else {
            let set = self.assignments(table, &inner, false);
            return all([head, list("", set, ""), filter, returning]);
        };
        let names = text(format!("({}, {}) = (SELECT ", first.name, second.name));
        let (from, source) = self.table_source();
        let both = scope(&inner, std::slice::from_ref(&source));
        let (Some(one), Some(two)) = (self.aggregate(first.of, &both), self.aggregate(second.of, &both)) else {
            let values = vec![
                self.scalar_subquery(first.of, &inner),
                self.expression(second.of, &inner, 1),
            ];
            let names = text(format!("({}, {}) = ", first.name, second.name));
            return all([head, names, list("(", values, ")"), filter, returning]);
        };
        let end = all([text(" FROM "), from, self.conditions(" WHERE ", &both), text(")")]);
        all([head, names, one, text(", "), two, end, filter, returning])
    }

    /// WITH whose parts write to one table or two, and read what the ones before return.
    fn with_writes(&mut self, table: &Table) -> Node {
        let (first, second) = (self.alias('w'), self.alias('w'));
        let one = match self.chance.below(3) {
            0 => self.update_returning(table),
            1 => self.delete_returning(table),
            _ => self.insert_returning(table),
        };
        let other = self.chance.pick(&self.schema.tables).clone();
        if other.name == table.name {
            // What two parts do to the same row is nobody's promise.
            return self.with_write(table);
        }
        let own = Source::of_table(&other, &self.alias('u'));
        let inner = scope(&Scope::default(), std::slice::from_ref(&own));
        let head = match self.chance.one_in(2) {
            true => text(format!("DELETE FROM {} AS {}", other.name, own.alias)),
            false => {
                let set = self.assignments(&other, &inner, false);
                let head = text(format!("UPDATE {} AS {}", other.name, own.alias));
                all([head, list(" SET ", set, "")])
            }
        };
        let filter = match self.chance.below(3) {
            0 => text(format!(" WHERE EXISTS (SELECT 1 FROM {first})")),
            1 => text(format!(
                " WHERE {0}.{1}::text IN (SELECT {2}::text FROM {first})",
                own.alias, other.columns[0].name, table.columns[0].name
            )),
            _ => self.conditions(" WHERE ", &inner),
        };
        let end = match self.chance.below(3) {
            0 => format!("SELECT * FROM {first}"),
            1 => format!(
                "SELECT (SELECT count(*) FROM {first}), (SELECT count(*) FROM {second}), (SELECT count(*) FROM {})",
                other.name
            ),
            _ => format!("SELECT * FROM {second}"),
        };
        all([
            text(format!("WITH {first} AS (")),
            one,
            text(format!("), {second} AS (")),
            head,
            filter,
            text(format!(" RETURNING {}.*) {end}", own.alias)),
        ])
    }

    /// INSERT under an alias, with DEFAULT VALUES, OVERRIDING, or a query that is VALUES or a table.
    fn insert_into_alias(&mut self, table: &Table) -> Node {
        let columns: Vec<_> = table
            .columns
            .iter()
            .filter(|column| !column.is_generated())
            .cloned()
            .collect();
        let names: Vec<_> = columns.iter().map(|column| column.name.as_str()).collect();
        let names = names.join(", ");
        let alias = self.alias('u');
        let returning = text(format!(" RETURNING {alias}.*")).optional();
        let inserted = match self.chance.below(4) {
            0 => text(format!("INSERT INTO {} AS {alias} DEFAULT VALUES", table.name)),
            1 => {
                self.picks_rows = true;
                text(format!(
                    "INSERT INTO {} AS {alias} ({names}) SELECT {names} FROM {} ON CONFLICT DO NOTHING",
                    table.name, table.name
                ))
            }
            2 => {
                let values = columns.iter().map(|column| self.constant(column.of)).collect();
                let head = format!(
                    "INSERT INTO {} AS {alias} ({names}) OVERRIDING SYSTEM VALUE ",
                    table.name
                );
                all([text(head), list("SELECT ", values, "")])
            }
            _ => {
                let rows = (0..2)
                    .map(|_| {
                        let values = columns.iter().map(|column| self.constant(column.of)).collect();
                        list("(", values, ")")
                    })
                    .collect();
                let head = format!("INSERT INTO {} AS {alias} ({names}) SELECT * FROM ", table.name);
                all([text(head), list("(VALUES ", rows, ") AS given")])
            }
        };
        all([inserted, returning])
    }
}
