//! MERGE, and WITH whose parts write: statements that read and write at once.

use super::Grammar;
use super::expression::Scope;
use super::node::{Node, all, list, text};
use super::schema::Table;
use super::source::{Source, scope};

impl Grammar<'_> {
    /// MERGE over a source of which each row of the target meets one row at most, where there is such a source.
    pub(super) fn merge(&mut self, table: &Table) -> Option<Node> {
        let alias = self.alias('u');
        let own = Source::of_table(table, &alias);
        let (other, source, link) = self.one_row_each(&own)?;
        let both = scope(&Scope::default(), &[own, source.clone()]);
        let only = scope(&Scope::default(), std::slice::from_ref(&source));
        let mut whens = Vec::new();
        for _ in 0..self.chance.between(1, 2) {
            let condition = self.conditions(" AND ", &both);
            let action = match self.chance.below(4) {
                0 => text(" THEN DELETE"),
                1 => text(" THEN DO NOTHING"),
                _ => list(" THEN UPDATE SET ", self.assignments(table, &both, false), ""),
            };
            whens.push(all([text(" WHEN MATCHED"), condition, action]));
        }
        if self.chance.one_in(2) {
            // Two rows of the source may want the same key, and which one comes first is anybody's choice.
            self.may_collide = true;
            let columns = self.some_columns(table);
            let names: Vec<_> = columns.iter().map(|column| column.name.as_str()).collect();
            let head = format!(" THEN INSERT ({}) ", names.join(", "));
            let values = columns.iter().map(|column| self.leaf(column.of, &only)).collect();
            let condition = self.conditions(" AND ", &only);
            let insert = all([text(head), list("VALUES (", values, ")")]);
            whens.push(all([text(" WHEN NOT MATCHED"), condition, insert]));
        }
        let whens = Node::List {
            before: "",
            items: whens,
            between: "",
            after: "",
            least: 1,
        };
        Some(all([
            text(format!("MERGE INTO {} AS {alias} USING ", table.name)),
            other,
            text(" ON "),
            link,
            whens,
        ]))
    }

    /// `WITH w AS (… RETURNING …) SELECT … FROM w`, which may read the table that is written as it was before.
    pub(super) fn with_write(&mut self, table: &Table) -> Node {
        let name = self.alias('w');
        let write = match self.chance.below(3) {
            0 => self.update_returning(table),
            1 => self.delete_returning(table),
            _ => self.insert_returning(table),
        };
        let entry = all([text(format!("WITH {name} AS (")), write, text(") ")]);
        let source = Source::of_table(table, &name);
        if self.chance.one_in(2) {
            let inner = scope(&Scope::default(), std::slice::from_ref(&source));
            let filter = self.conditions(" WHERE ", &inner);
            return all([entry, text(format!("SELECT {name}.* FROM {name}")), filter]);
        }
        let (other, second) = self.table_source();
        let both = scope(&Scope::default(), &[source, second]);
        let items = (0..self.chance.between(1, 3))
            .map(|_| {
                let (of, _) = self.any_column(&both);
                self.expression(of, &both, 1)
            })
            .collect();
        let filter = self.conditions(" WHERE ", &both);
        all([
            entry,
            list("SELECT ", items, ""),
            text(format!(" FROM {name} CROSS JOIN ")),
            other,
            filter,
        ])
    }
}
