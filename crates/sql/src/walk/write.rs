//! The walk over INSERT, UPDATE and DELETE.

use super::{Assigned, RowByRow, Scope, Walk};
use crate::condition::{Comparison, Condition, strip};
use crate::facts::{Column, Fact};
use crate::relations::{Role, ident_span, identifier, object_name};
use crate::scalar::Scalar;
use sqlparser::ast::{
    AssignmentTarget, Delete, Expr, FromTable, GroupByExpr, Insert, ObjectName as AstName, OnConflictAction, OnInsert,
    Query, Select, SelectItem, SetExpr, TableObject, Update, UpdateTableFromKind, WildcardAdditionalOptions,
};

/// The table that a SELECT's rows go into, and its columns in the order of the select list.
pub(super) struct Target {
    item: usize,
    order: Vec<String>,
    /// the source is one SELECT, and the INSERT the whole statement
    plain: bool,
}

/// What a select list gives a column.
enum Given<'e> {
    Expr(&'e Expr),
    Column(Column),
}

impl Walk<'_> {
    pub(super) fn update(&mut self, update: &Update) {
        let group = self.facts.group(None);
        self.scopes.push(Scope::default());
        let mut conditions = Vec::new();
        self.strange |= !update.table.joins.is_empty()
            || update.or.is_some()
            || update.output.is_some()
            || !update.order_by.is_empty()
            || update.limit.is_some();
        let target = self.factor(&update.table.relation, group, Role::Update, &mut conditions);
        match &update.from {
            None => {}
            Some(UpdateTableFromKind::AfterSet(from)) => {
                from.iter()
                    .for_each(|f| self.table_with_joins(f, group, &mut conditions));
            }
            Some(UpdateTableFromKind::BeforeSet(_)) => self.strange = true,
        }
        conditions.extend(update.selection.iter().map(|s| (group, s)));
        self.conditions(&conditions);
        self.within(&update.assignments);
        self.within(&update.selection);
        self.returning(update.returning.as_deref());
        for &item in &target {
            for assignment in &update.assignments {
                self.assign(item, &assignment.target, &assignment.value);
            }
        }
        self.scopes.pop();
    }

    fn returning(&mut self, returning: Option<&[SelectItem]>) {
        for item in returning.unwrap_or_default() {
            self.within(item);
        }
        self.count_wildcards(returning.unwrap_or_default());
    }

    /// Notes a column that is set to something else than itself.
    pub(super) fn assign(&mut self, item: usize, target: &AssignmentTarget, value: &Expr) {
        let names: Vec<&AstName> = match target {
            AssignmentTarget::ColumnName(name) => vec![name],
            AssignmentTarget::Tuple(names) => names.iter().collect(),
        };
        let values = match strip(value) {
            Expr::Tuple(values) if names.len() > 1 && values.len() == names.len() => values.iter().map(Some).collect(),
            single if names.len() == 1 => vec![Some(single)],
            _ => vec![None; names.len()],
        };
        for (name, value) in names.into_iter().zip(values) {
            let Some(table) = self.items[item]
                .reference
                .and_then(|r| self.references[r].table.clone())
            else {
                return;
            };
            // `c`, or `c.field` of a composite column: the first part names the column, whatever the alias.
            let first = name.0.first().and_then(|p| p.as_ident()).map(identifier);
            let Some(column) = table.columns.iter().position(|c| Some(&c.name) == first.as_ref()) else {
                continue;
            };
            self.sets_always |= table.columns[column].identity == Some(true);
            let same = value.and_then(|v| self.column(v)) == Some(Column { item, column })
                // The row that was found is equal in every column of the unique index, and each has the shard key's.
                || (self.excluded && value.is_some_and(|v| is_excluded(v, &table.columns[column].name)));
            if !same {
                self.assigned.push(Assigned {
                    item,
                    column,
                    value: value.and_then(Scalar::from_expr),
                });
            }
        }
    }

    pub(super) fn delete(&mut self, delete: &Delete) {
        let group = self.facts.group(None);
        self.scopes.push(Scope::default());
        let mut conditions = Vec::new();
        self.strange |= !delete.tables.is_empty()
            || delete.output.is_some()
            || !delete.order_by.is_empty()
            || delete.limit.is_some();
        match &delete.from {
            FromTable::WithFromKeyword(from) if from.len() == 1 && from[0].joins.is_empty() => {
                self.factor(&from[0].relation, group, Role::Delete, &mut conditions);
            }
            _ => self.strange = true,
        }
        for from in delete.using.iter().flatten() {
            self.table_with_joins(from, group, &mut conditions);
        }
        conditions.extend(delete.selection.iter().map(|s| (group, s)));
        self.conditions(&conditions);
        self.within(&delete.selection);
        self.returning(delete.returning.as_deref());
        self.scopes.pop();
    }

    pub(super) fn insert(&mut self, insert: &Insert) {
        self.strange |= insert.or.is_some()
            || insert.overwrite
            || insert.partitioned.is_some()
            || !insert.assignments.is_empty()
            || !insert.after_columns.is_empty()
            || insert.replace_into
            || insert.multi_table_insert_type.is_some()
            || insert.insert_alias.is_some()
            || insert.output.is_some();
        let TableObject::TableName(name) = &insert.table else {
            self.strange = true;
            return;
        };
        let Some(name) = object_name(name) else {
            self.strange = true;
            return;
        };
        let whole = self.items.is_empty() && self.ctes.is_empty();
        self.seen += 1;
        let end = insert
            .table_alias
            .as_ref()
            .map_or(name.span.end, |a| ident_span(&a.alias).end);
        let alias = insert.table_alias.as_ref().map(|a| identifier(&a.alias));
        let reference = self.refer(name, alias.clone(), end, Role::Insert);
        let known = &self.references[reference];
        let exposed = alias.unwrap_or_else(|| known.name.name.clone());
        let columns: Option<Vec<String>> = known
            .table
            .as_ref()
            .map(|t| t.columns.iter().map(|c| c.name.clone()).collect());
        let group = self.facts.group(None);
        self.scopes.push(Scope::default());
        let item = self.item(Some(exposed), columns.clone(), Some(reference), group);
        if let Some(source) = &insert.source {
            let named: Vec<_> = insert.columns.iter().filter_map(object_name).map(|n| n.name).collect();
            let order = if named.is_empty() { columns } else { Some(named) };
            let plain = whole && is_plain(source);
            self.query_into(source, order.map(|order| Target { item, order, plain }).as_ref());
        }
        if let Some(OnInsert::OnConflict(conflict)) = &insert.on
            && let OnConflictAction::DoUpdate(update) = &conflict.action
        {
            self.within(&update.assignments);
            self.within(&update.selection);
            self.excluded = true;
            for assignment in &update.assignments {
                self.assign(item, &assignment.target, &assignment.value);
            }
            self.excluded = false;
        }
        self.returning(insert.returning.as_deref());
        self.scopes.pop();
    }

    /// INSERT … SELECT: the target's columns equal what the select list gives them, unless the assignment may
    /// change it (a length, precision or scale).
    pub(super) fn link(&mut self, target: &Target, group: usize, select: &Select) {
        self.facts.place(target.item, group);
        let Some(values) = self.select_list(select) else {
            return;
        };
        let mut given = Vec::new();
        for (name, value) in target.order.iter().zip(values) {
            let Some(column) = self.column_of(target.item, name) else {
                continue;
            };
            let modifier = self.type_modifier(column);
            let (scalar, source) = match value {
                Given::Expr(expr) => (Scalar::from_expr(expr), self.column(expr)),
                Given::Column(source) => (None, Some(source)),
            };
            given.push((column.column, source.filter(|_| scalar.is_none()).map(|s| s.column)));
            if let Some(scalar) = scalar {
                if modifier >= 0 {
                    continue;
                }
                let condition = Condition::Compare(column.column, Comparison::Equal, scalar);
                self.facts.add(Fact::Restrict(group, target.item, condition));
            } else if let Some(source) = source
                && (modifier < 0 || modifier == self.type_modifier(source))
            {
                self.facts.add(Fact::Equal(group, column, source));
            }
        }
        let source = target.item + 1;
        let reads_one = self.items.len() == source + 1 && self.items[source].reference.is_some();
        if target.plain && reads_one && gives_row_by_row(select) {
            self.row_by_row = Some(RowByRow {
                target: target.item,
                source,
                given,
            });
        }
    }

    /// What a select list gives, column by column; None where that is not known.
    fn select_list<'e>(&self, select: &'e Select) -> Option<Vec<Given<'e>>> {
        let mut values = Vec::new();
        for item in &select.projection {
            match item {
                SelectItem::UnnamedExpr(expr) | SelectItem::ExprWithAlias { expr, .. } => {
                    values.push(Given::Expr(expr));
                }
                SelectItem::Wildcard(options) if *options == WildcardAdditionalOptions::default() => {
                    let [item] = self.scopes.last()?.items[..] else {
                        return None;
                    };
                    let columns = self.items[item].columns.as_ref()?.len();
                    values.extend((0..columns).map(|column| Given::Column(Column { item, column })));
                }
                _ => return None,
            }
        }
        Some(values)
    }
}

/// `excluded.column`.
fn is_excluded(value: &Expr, column: &str) -> bool {
    match strip(value) {
        Expr::CompoundIdentifier(parts) => {
            matches!(&parts[..], [row, name] if identifier(row) == "excluded" && identifier(name) == column)
        }
        _ => false,
    }
}

/// A SELECT and nothing around it.
fn is_plain(source: &Query) -> bool {
    matches!(*source.body, SetExpr::Select(_))
        && source.with.is_none()
        && source.order_by.is_none()
        && source.limit_clause.is_none()
        && source.fetch.is_none()
        && source.locks.is_empty()
}

/// Whether each row of its one table gives its own rows, whatever other rows there are; window functions are the caller's to
/// look for.
fn gives_row_by_row(select: &Select) -> bool {
    let ungrouped =
        matches!(&select.group_by, GroupByExpr::Expressions(by, modifiers) if by.is_empty() && modifiers.is_empty());
    ungrouped && select.distinct.is_none() && select.having.is_none() && select.named_window.is_empty()
}
