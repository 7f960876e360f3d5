//! INSERT, UPDATE and DELETE, in all forms whose result is fixed.

use super::Grammar;
use super::expression::Scope;
use super::node::{Node, all, list, text};
use super::schema::{Column, Table};
use super::source::{Source, scope};
use super::types::Type;

impl Grammar<'_> {
    /// A statement that writes, and the table that it writes to.
    pub(super) fn write(&mut self) -> (Node, String) {
        let table = self.chance.pick(&self.schema.tables).clone();
        let node = self.write_to(&table);
        (node, table.name)
    }

    /// The same for one table.
    pub(super) fn write_to(&mut self, table: &Table) -> Node {
        let kind = self.chance.below(18);
        self.writes_rows |= kind > 2;
        match kind {
            0..=2 => self.insert_values(table),
            3 | 4 => self.insert_select(table),
            5..=7 => self.update(table),
            8 | 9 => self.delete(table),
            10 | 11 => match self.merge(table) {
                Some(merge) => merge,
                None => self.delete(table),
            },
            12 | 13 => self.with_write(table),
            _ => self.rare_write(table),
        }
    }

    fn insert_values(&mut self, table: &Table) -> Node {
        let columns = self.some_columns(table);
        let count = *self.chance.pick(&[1, 1, 2, 3, 5]);
        self.writes_rows |= count > 1;
        let rows = (0..count)
            .map(|_| {
                let values = columns.iter().map(|column| self.inserted(column)).collect();
                list("(", values, ")")
            })
            .collect();
        let conflict = self.on_conflict(table);
        let returning = self.returning(&Source::of_table(table, &table.name));
        all([
            insert_into(table, &columns),
            list("VALUES ", rows, ""),
            conflict,
            returning,
        ])
    }

    /// INSERT with all that the new row has.
    pub(super) fn insert_returning(&mut self, table: &Table) -> Node {
        let columns = self.some_columns(table);
        let values = columns.iter().map(|column| self.inserted(column)).collect();
        let row = list("VALUES (", values, ")");
        all([insert_into(table, &columns), row, text(" RETURNING *")])
    }

    /// UPDATE of rows that stay where they are, with all that they have then.
    pub(super) fn update_returning(&mut self, table: &Table) -> Node {
        let inner = scope(&Scope::default(), &[Source::of_table(table, &table.name)]);
        let set = self.assignments(table, &inner, false);
        let filter = self.conditions(" WHERE ", &inner);
        let head = text(format!("UPDATE {}", table.name));
        all([head, list(" SET ", set, ""), filter, text(" RETURNING *")])
    }

    /// DELETE with all that the rows had.
    pub(super) fn delete_returning(&mut self, table: &Table) -> Node {
        let inner = scope(&Scope::default(), &[Source::of_table(table, &table.name)]);
        let filter = self.conditions(" WHERE ", &inner);
        all([
            text(format!("DELETE FROM {}", table.name)),
            filter,
            text(" RETURNING *"),
        ])
    }

    fn inserted(&mut self, column: &Column) -> Node {
        match self.chance.below(10) {
            0 => self.expression(column.of, &Scope::default(), 1),
            1 => text("DEFAULT"),
            _ => self.bare_constant(column.of),
        }
    }

    fn insert_select(&mut self, table: &Table) -> Node {
        let columns = self.some_columns(table);
        let types: Vec<_> = columns.iter().map(|column| column.of).collect();
        let query = self.query(&Scope::default(), 1, Some(&types));
        if table.key > 0 && self.chance.one_in(2) {
            // A row that loses against another row of the same statement may be any of them, but for its key.
            self.picks_rows = true;
            return all([
                insert_into(table, &columns),
                query.node,
                text(" ON CONFLICT DO NOTHING"),
            ]);
        }
        let returning = self.returning(&Source::of_table(table, &table.name));
        all([insert_into(table, &columns), query.node, returning])
    }

    fn on_conflict(&mut self, table: &Table) -> Node {
        if table.key == 0 || self.chance.one_in(2) {
            return all([]);
        }
        let key: Vec<_> = table
            .key_columns()
            .iter()
            .map(|column| text(column.name.clone()))
            .collect();
        let target = list(" ON CONFLICT (", key, ")");
        if self.chance.one_in(3) {
            return all([target, text(" DO NOTHING")]).optional();
        }
        let own = Source::of_table(table, &table.name);
        let excluded = Source::of_table(table, "excluded");
        let inner = scope(&Scope::default(), &[own, excluded]);
        let set = self.assignments(table, &inner, false);
        let filter = if self.chance.one_in(3) {
            self.conditions(" WHERE ", &inner)
        } else {
            all([])
        };
        all([target, list(" DO UPDATE SET ", set, ""), filter]).optional()
    }

    fn update(&mut self, table: &Table) -> Node {
        let alias = self.alias('u');
        let own = Source::of_table(table, &alias);
        let inner = scope(&Scope::default(), std::slice::from_ref(&own));
        let head = text(format!("UPDATE {} AS {alias}", table.name));
        if self.chance.one_in(4)
            && let Some((other, source, link)) = self.one_row_each(&own)
        {
            let both = scope(&Scope::default(), &[own.clone(), source]);
            let set = self.assignments(table, &both, false);
            let filter = self.conditions(" AND ", &both);
            let returning = self.returning(&own);
            return all([
                head,
                list(" SET ", set, ""),
                text(" FROM "),
                other,
                text(" WHERE "),
                link,
                filter,
                returning,
            ]);
        }
        let moves = self.chance.one_in(4);
        self.may_collide = moves;
        let set = self.assignments(table, &inner, moves);
        let filter = if self.chance.one_in(5) {
            all([])
        } else {
            self.conditions(" WHERE ", &inner)
        };
        let returning = self.returning(&own);
        all([head, list(" SET ", set, ""), filter, returning])
    }

    fn delete(&mut self, table: &Table) -> Node {
        let alias = self.alias('u');
        let own = Source::of_table(table, &alias);
        let inner = scope(&Scope::default(), std::slice::from_ref(&own));
        let head = text(format!("DELETE FROM {} AS {alias}", table.name));
        if self.chance.one_in(3) {
            // A row goes once, however many rows it meets.
            let (other, source) = self.table_source();
            let both = scope(&Scope::default(), &[own.clone(), source]);
            let filter = self.conditions(" WHERE ", &both);
            let returning = self.returning(&own);
            return all([head, text(" USING "), other, filter, returning]);
        }
        let filter = if self.chance.one_in(6) {
            all([])
        } else {
            self.conditions(" WHERE ", &inner)
        };
        let returning = self.returning(&own);
        all([head, filter, returning])
    }

    /// Another table of which each row of the target meets one row at most, and how.
    pub(super) fn one_row_each(&mut self, own: &Source) -> Option<(Node, Source, Node)> {
        let (other, source) = self.table_source();
        let of = |source: &Source, name: &str| source.columns.iter().find(|(has, _)| has == name).map(|(_, of)| *of);
        let mut links = Vec::new();
        for name in &source.unique {
            let wanted = of(&source, name)?;
            let fitting: Vec<_> = own.columns.iter().filter(|(_, of)| *of == wanted).collect();
            if fitting.is_empty() {
                return None;
            }
            let (column, _) = *self.chance.pick(&fitting);
            links.push(text(format!("{}.{name} = {}.{column}", source.alias, own.alias)));
        }
        let link = Node::List {
            before: "",
            items: links.clone(),
            between: " AND ",
            after: "",
            least: links.len(),
        };
        (!links.is_empty()).then_some((other, source, link))
    }

    pub(super) fn assignments(&mut self, table: &Table, scope: &Scope, moves: bool) -> Vec<Node> {
        let mut assignments = Vec::new();
        if moves && let Some(column) = table.key_columns().first() {
            let value = match column.of {
                // Numbers that are shifted stay apart from each other, mostly.
                Type::Int4 | Type::Int8 if self.chance.one_in(2) => {
                    let own = scope
                        .columns
                        .iter()
                        .find(|(_, node)| matches!(node, Node::Text(words) if words.ends_with(".k0")));
                    own.map_or_else(|| text("7"), |(_, node)| all([text("("), node.clone(), text(" # 5)")]))
                }
                of => self.expression(of, scope, 1),
            };
            assignments.push(all([text(format!("{} = ", column.name)), value]));
        }
        let others: Vec<_> = table.columns[table.key..]
            .iter()
            .filter(|column| !column.is_generated() || self.chance.one_in(20))
            .collect();
        if others.is_empty() && assignments.is_empty() {
            let column = self.chance.pick(&table.columns).clone();
            assignments.push(text(format!("{0} = {0}", column.name)));
        }
        if assignments.is_empty() && others.len() > 1 && self.chance.one_in(8) {
            let values = others[..2]
                .iter()
                .map(|column| self.expression(column.of, scope, 1))
                .collect();
            let names = format!("({}, {}) = ", others[0].name, others[1].name);
            assignments.push(all([text(names), list("ROW(", values, ")")]));
        } else if assignments.is_empty() || !others.is_empty() && self.chance.one_in(2) {
            let column = (*self.chance.pick(&others)).clone();
            let value = match self.chance.one_in(12) {
                true => text("DEFAULT"),
                false => self.expression(column.of, scope, 2),
            };
            assignments.push(all([text(format!("{} = ", column.name)), value]));
        }
        assignments
    }

    fn returning(&mut self, source: &Source) -> Node {
        if !self.chance.one_in(3) {
            return all([]);
        }
        if self.chance.one_in(3) {
            return text(format!(" RETURNING {}.*", source.alias)).optional();
        }
        let inner = scope(&Scope::default(), std::slice::from_ref(source));
        let items = (0..self.chance.between(1, 3))
            .map(|_| {
                let (of, _) = self.any_column(&inner);
                self.nesting += 9;
                let value = self.expression(of, &inner, 1);
                self.nesting -= 9;
                value
            })
            .collect();
        list(" RETURNING ", items, "").optional()
    }

    /// The key's columns and some others, in any order.
    pub(super) fn some_columns(&mut self, table: &Table) -> Vec<Column> {
        let must = table.key.max(1);
        let mut columns = table.columns[..must].to_vec();
        for column in &table.columns[must.min(table.columns.len())..] {
            if !column.is_generated() && !self.chance.one_in(3) {
                let at = self.chance.below(columns.len() + 1);
                columns.insert(at, column.clone());
            }
        }
        columns
    }
}

fn insert_into(table: &Table, columns: &[Column]) -> Node {
    let names: Vec<_> = columns.iter().map(|column| column.name.as_str()).collect();
    text(format!("INSERT INTO {} ({}) ", table.name, names.join(", ")))
}
