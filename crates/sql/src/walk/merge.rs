//! The walk over MERGE.

use super::{RowByRow, Scope, Walk};
use crate::condition::strip;
use crate::relations::{Role, identifier, object_name};
use sqlparser::ast::{BinaryOperator, Expr, Merge, MergeAction, MergeInsertKind, TableFactor, Visit, Visitor};
use std::ops::ControlFlow;

impl Walk<'_> {
    /// No predicate of a MERGE restricts: what does not match is inserted.
    pub(super) fn merge(&mut self, merge: &Merge) {
        let group = self.facts.group(None);
        let whole = self.items.is_empty() && self.ctes.is_empty();
        self.scopes.push(Scope::default());
        self.strange |= merge.output.is_some();
        let targets = self.factor(&merge.table, group, Role::Merge, &mut Vec::new());
        let sources = self.factor(&merge.source, group, Role::Read, &mut Vec::new());
        self.within(&*merge.on);
        self.within(&merge.clauses);
        for clause in &merge.clauses {
            if let (MergeAction::Update(update), [target]) = (&clause.action, &targets[..]) {
                for assignment in &update.assignments {
                    self.assign(*target, &assignment.target, &assignment.value);
                }
            }
        }
        if let ([target], [source], true) = (&targets[..], &sources[..], whole && is_table(&merge.source)) {
            self.row_by_row = self.pairs(merge, *target, *source);
        }
        self.scopes.pop();
    }

    /// The columns by which rows of the source meet rows of the target, as far as what is inserted has them too.
    fn pairs(&self, merge: &Merge, target: usize, source: usize) -> Option<RowByRow> {
        let mut given = Vec::new();
        self.equal_columns(&merge.on, target, source, &mut given);
        for clause in &merge.clauses {
            let MergeAction::Insert(insert) = &clause.action else {
                continue;
            };
            let MergeInsertKind::Values(values) = &insert.kind else {
                return None;
            };
            let [row] = &values.rows[..] else { return None };
            let names: Vec<String> = match insert.columns.is_empty() {
                true => self.items[target].columns.clone()?,
                false => insert
                    .columns
                    .iter()
                    .map(|name| object_name(name).map(|n| n.name))
                    .collect::<Option<_>>()?,
            };
            let of = |(name, value): (&String, &Expr)| {
                let column = self.column_of(target, name)?.column;
                // Behind NOT MATCHED only the source's names are seen.
                let from = self.column_in(value, source);
                Some((column, from))
            };
            let inserted: Vec<_> = names.iter().zip(&row.content).filter_map(of).collect();
            given.retain(|pair| inserted.contains(pair));
        }
        let mut whole = WholeRows {
            names: [target, source].map(|item| self.items[item].exposed.clone().unwrap_or_default()),
            found: false,
        };
        let _ = merge.visit(&mut whole);
        (!whole.found).then_some(RowByRow { target, source, given })
    }

    /// The column of this item that an expression names.
    fn column_in(&self, expr: &Expr, item: usize) -> Option<usize> {
        match strip(expr) {
            Expr::Identifier(ident) => self.column_of(item, &identifier(ident)).map(|c| c.column),
            expr => self.column(expr).filter(|c| c.item == item).map(|c| c.column),
        }
    }

    /// `t.a = s.b` among conditions that all hold.
    fn equal_columns(&self, on: &Expr, target: usize, source: usize, pairs: &mut Vec<(usize, Option<usize>)>) {
        let Expr::BinaryOp { left, op, right } = strip(on) else {
            return;
        };
        match op {
            BinaryOperator::And => {
                self.equal_columns(left, target, source, pairs);
                self.equal_columns(right, target, source, pairs);
            }
            BinaryOperator::Eq => {
                let (Some(a), Some(b)) = (self.column(left), self.column(right)) else {
                    return;
                };
                if (a.item, b.item) == (target, source) {
                    pairs.push((a.column, Some(b.column)));
                } else if (b.item, a.item) == (target, source) {
                    pairs.push((b.column, Some(a.column)));
                }
            }
            _ => {}
        }
    }
}

fn is_table(factor: &TableFactor) -> bool {
    matches!(
        factor,
        TableFactor::Table {
            args: None,
            sample: None,
            ..
        }
    )
}

/// Whether a whole row is named, which is another type where the source is read through a subquery.
struct WholeRows {
    names: [String; 2],
    found: bool,
}

impl Visitor for WholeRows {
    type Break = ();

    fn pre_visit_expr(&mut self, expr: &Expr) -> ControlFlow<()> {
        self.found |= matches!(expr, Expr::Identifier(ident) if self.names.contains(&identifier(ident)));
        ControlFlow::Continue(())
    }
}
