//! One walk over a statement's tree: every relation it refers to, and per query block what its predicates say
//! about columns of the tables that are known.
//!
//! A query block's FROM is a tree of *groups*: inner-joined items share one; the side of an outer join that may be
//! filled with NULLs is a group below. A predicate belongs to a group (WHERE to the block's root, ON to the group
//! that it decides about) and restricts items of that group and of those below: a row that fails it takes no
//! part in the result. See [`crate::facts`] for what is made of them.

mod merge;
mod write;

use crate::condition::{Condition, strip};
use crate::facts::{Column, Fact, Facts};
use crate::kind::ObjectName;
use crate::relations::{Reference, ResolveTable, Role, ident_span, identifier, object_name};
use crate::scalar::Scalar;
use sqlparser::ast::{
    BinaryOperator, Expr, Join, JoinConstraint, JoinOperator, ObjectName as AstName, Query, Select, SelectItem,
    SetExpr, Statement, TableAlias, TableFactor, TableWithJoins, Visit, Visitor,
};
use std::collections::HashMap;
use std::ops::ControlFlow;
use write::Target;

/// Something in a FROM list.
#[derive(Debug)]
pub(crate) struct Item {
    /// alias or name
    exposed: Option<String>,
    /// the columns by the names they have here; None when not known
    columns: Option<Vec<String>>,
    /// of [`Walk::references`]
    pub reference: Option<usize>,
}

#[derive(Default)]
struct Scope {
    items: Vec<usize>,
    /// columns of USING; None where the merged column is neither side's
    merged: HashMap<String, Option<Column>>,
    /// a NATURAL join: unqualified names are not looked into
    natural: bool,
}

/// An UPDATE (or ON CONFLICT DO UPDATE) that sets a column.
pub(crate) struct Assigned {
    pub item: usize,
    pub column: usize,
    /// None for what is no constant
    pub value: Option<Scalar>,
}

/// An INSERT … SELECT that makes one row, or none, of each row of one table; or a MERGE that joins two by columns.
#[derive(Debug)]
pub(crate) struct RowByRow {
    /// the items: what is filled, what is read
    pub target: usize,
    pub source: usize,
    /// the target's columns that are given a value, and the source's column that is taken over as it is
    pub given: Vec<(usize, Option<usize>)>,
}

pub(crate) struct Walk<'a> {
    resolve: ResolveTable<'a>,
    pub references: Vec<Reference>,
    pub items: Vec<Item>,
    pub facts: Facts,
    pub assigned: Vec<Assigned>,
    /// a column that is GENERATED ALWAYS AS IDENTITY is set: PostgreSQL judges that by the parent, which alone has the identity
    pub sets_always: bool,
    /// within SET of ON CONFLICT, where `excluded` is the row that was to be inserted
    excluded: bool,
    pub row_by_row: Option<RowByRow>,
    /// a table that it changes, with a trigger that is to be watched
    pub changed_watched: Option<String>,
    /// select-list items `t.*`: whole-row references elsewhere look the same in the tokens
    pub wildcards: usize,
    pub subqueries: usize,
    scopes: Vec<Scope>,
    ctes: Vec<String>,
    seen: usize,
    strange: bool,
}

impl<'a> Walk<'a> {
    pub fn new(resolve: ResolveTable<'a>) -> Self {
        Self {
            resolve,
            references: Vec::new(),
            items: Vec::new(),
            facts: Facts::default(),
            assigned: Vec::new(),
            sets_always: false,
            excluded: false,
            row_by_row: None,
            wildcards: 0,
            changed_watched: None,
            subqueries: 0,
            scopes: Vec::new(),
            ctes: Vec::new(),
            seen: 0,
            strange: false,
        }
    }

    /// Whether everything was understood and no relation was passed over.
    pub fn is_whole(&self, statement: &Statement) -> bool {
        let mut counter = Counter(0);
        let _ = statement.visit(&mut counter);
        !self.strange && counter.0 == self.seen
    }

    pub fn statement(&mut self, statement: &Statement) {
        match statement {
            Statement::Query(query) => self.query(query),
            Statement::Insert(insert) => self.insert(insert),
            Statement::Update(update) => self.update(update),
            Statement::Delete(delete) => self.delete(delete),
            Statement::Merge(merge) => self.merge(merge),
            Statement::CreateTable(create) => create.query.iter().for_each(|q| self.query(q)),
            Statement::CreateView(create) => self.query(&create.query),
            _ => self.strange = true,
        }
    }

    /// Visits the subqueries in something that is no query itself.
    fn within(&mut self, part: &impl Visit) {
        let mut finder = Subqueries { walk: self, depth: 0 };
        let _ = part.visit(&mut finder);
    }

    pub fn query(&mut self, query: &Query) {
        self.query_into(query, None);
    }

    fn query_into(&mut self, query: &Query, target: Option<&Target>) {
        let mark = self.ctes.len();
        if let Some(with) = &query.with {
            let names: Vec<_> = with.cte_tables.iter().map(|c| identifier(&c.alias.name)).collect();
            if with.recursive {
                self.ctes.extend(names.iter().cloned());
            }
            for (cte, name) in with.cte_tables.iter().zip(names) {
                self.query(&cte.query);
                if !with.recursive {
                    self.ctes.push(name);
                }
            }
        }
        self.strange |= query.for_clause.is_some()
            || query.settings.is_some()
            || query.format_clause.is_some()
            || !query.pipe_operators.is_empty();
        self.set_expr(&query.body, target);
        self.within(&query.order_by);
        self.within(&query.limit_clause);
        self.within(&query.fetch);
        self.ctes.truncate(mark);
    }

    fn set_expr(&mut self, body: &SetExpr, target: Option<&Target>) {
        match body {
            SetExpr::Select(select) => self.select(select, target),
            SetExpr::Query(query) => self.query_into(query, target),
            SetExpr::SetOperation { left, right, .. } => {
                self.set_expr(left, None);
                self.set_expr(right, None);
            }
            SetExpr::Values(values) => self.within(values),
            SetExpr::Insert(statement)
            | SetExpr::Update(statement)
            | SetExpr::Delete(statement)
            | SetExpr::Merge(statement) => self.statement(statement),
            SetExpr::Table(_) => self.strange = true,
        }
    }

    fn select(&mut self, select: &Select, target: Option<&Target>) {
        let group = self.facts.group(None);
        self.scopes.push(Scope::default());
        let mut conditions = Vec::new();
        for from in &select.from {
            self.table_with_joins(from, group, &mut conditions);
        }
        conditions.extend(select.selection.iter().map(|s| (group, s)));
        self.conditions(&conditions);
        if let Some(target) = target {
            self.link(target, group, select);
        }
        self.within(&select.projection);
        self.within(&select.selection);
        self.within(&select.distinct);
        self.within(&select.group_by);
        self.within(&select.having);
        self.within(&select.named_window);
        self.count_wildcards(&select.projection);
        self.strange |= select.top.is_some()
            || !select.lateral_views.is_empty()
            || select.prewhere.is_some()
            || !select.connect_by.is_empty()
            || select.qualify.is_some()
            || select.exclude.is_some()
            || select.value_table_mode.is_some()
            || !select.cluster_by.is_empty()
            || !select.distribute_by.is_empty()
            || !select.sort_by.is_empty();
        self.scopes.pop();
    }

    fn count_wildcards(&mut self, items: &[SelectItem]) {
        let qualified = |i: &&SelectItem| matches!(i, SelectItem::QualifiedWildcard(..));
        self.wildcards += items.iter().filter(qualified).count();
    }

    /// `a JOIN b … LEFT JOIN c …`: groups are given from the last join back, since a RIGHT or FULL join puts
    /// all that stands left of it below.
    fn table_with_joins<'e>(
        &mut self,
        from: &'e TableWithJoins,
        group: usize,
        conditions: &mut Vec<(usize, &'e Expr)>,
    ) {
        let mut left = group;
        let mut groups = Vec::with_capacity(from.joins.len());
        for join in from.joins.iter().rev() {
            let whole = left;
            let (mut right, mut decides) = (whole, Some(whole));
            match side(&join.join_operator) {
                Some(Side::Inner) => {}
                Some(Side::Left) => {
                    right = self.facts.group(Some(whole));
                    decides = Some(right);
                }
                Some(Side::Right) => {
                    left = self.facts.group(Some(whole));
                    decides = Some(left);
                }
                Some(Side::Full) => {
                    right = self.facts.group(Some(whole));
                    left = self.facts.group(Some(whole));
                    decides = None;
                }
                None => self.strange = true,
            }
            groups.push((right, decides));
        }
        let mut items = self.factor(&from.relation, left, Role::Read, conditions);
        for (join, (right, decides)) in from.joins.iter().zip(groups.into_iter().rev()) {
            let joined = self.factor(&join.relation, right, Role::Read, conditions);
            self.join(join, &items, &joined, decides, conditions);
            items.extend(joined);
        }
    }

    fn join<'e>(
        &mut self,
        join: &'e Join,
        left: &[usize],
        right: &[usize],
        decides: Option<usize>,
        conditions: &mut Vec<(usize, &'e Expr)>,
    ) {
        match constraint(&join.join_operator) {
            Some(JoinConstraint::On(expr)) => {
                self.within(expr);
                conditions.extend(decides.map(|group| (group, expr)));
            }
            Some(JoinConstraint::Using(columns)) => {
                for name in columns.iter().filter_map(object_name) {
                    let (a, b) = (self.among(left, &name.name), self.among(right, &name.name));
                    if let (Some(a), Some(b), Some(group)) = (a, b, decides) {
                        self.facts.add(Fact::Equal(group, a, b));
                    }
                    let merged = match side(&join.join_operator) {
                        Some(Side::Inner) => a.or(b),
                        Some(Side::Left) => a,
                        Some(Side::Right) => b,
                        _ => None,
                    };
                    if let Some(scope) = self.scopes.last_mut() {
                        scope.merged.insert(name.name, merged);
                    }
                }
            }
            Some(JoinConstraint::Natural) => {
                if let Some(scope) = self.scopes.last_mut() {
                    scope.natural = true;
                }
            }
            _ => {}
        }
    }

    /// The one of `items` that has the column.
    fn among(&self, items: &[usize], name: &str) -> Option<Column> {
        if let Some(merged) = self.scopes.last().and_then(|s| s.merged.get(name)) {
            return merged.filter(|c| items.contains(&c.item));
        }
        let mut found = items.iter().filter_map(|&item| self.column_of(item, name));
        let first = found.next()?;
        found.next().is_none().then_some(first)
    }

    fn column_of(&self, item: usize, name: &str) -> Option<Column> {
        let place = self.items[item].columns.as_ref()?.iter().position(|c| c == name)?;
        Some(Column { item, column: place })
    }

    fn factor<'e>(
        &mut self,
        factor: &'e TableFactor,
        group: usize,
        role: Role,
        conditions: &mut Vec<(usize, &'e Expr)>,
    ) -> Vec<usize> {
        match factor {
            TableFactor::Table {
                name,
                alias,
                args: None,
                version: None,
                json_path: None,
                partitions,
                index_hints,
                with_hints,
                ..
            } => {
                self.strange |= !partitions.is_empty() || !index_hints.is_empty() || !with_hints.is_empty();
                self.seen += 1;
                self.table(name, alias.as_ref(), group, role).into_iter().collect()
            }
            TableFactor::Derived { subquery, alias, .. } => {
                self.query(subquery);
                vec![self.unknown(alias.as_ref(), group)]
            }
            TableFactor::NestedJoin {
                table_with_joins,
                alias: None,
            } => {
                let before = self.items.len();
                self.table_with_joins(table_with_joins, group, conditions);
                let scope = self.scopes.last();
                (before..self.items.len())
                    .filter(|i| scope.is_some_and(|s| s.items.contains(i)))
                    .collect()
            }
            TableFactor::NestedJoin {
                table_with_joins,
                alias,
            } => {
                self.scopes.push(Scope::default());
                let mut own = Vec::new();
                self.table_with_joins(table_with_joins, group, &mut own);
                self.conditions(&own);
                self.scopes.pop();
                vec![self.unknown(alias.as_ref(), group)]
            }
            TableFactor::Table {
                alias, args: Some(_), ..
            }
            | TableFactor::Function { alias, .. }
            | TableFactor::TableFunction { alias, .. }
            | TableFactor::UNNEST { alias, .. }
            | TableFactor::JsonTable { alias, .. }
            | TableFactor::XmlTable { alias, .. } => {
                self.within(factor);
                vec![self.unknown(alias.as_ref(), group)]
            }
            _ => {
                self.strange = true;
                Vec::new()
            }
        }
    }

    fn unknown(&mut self, alias: Option<&TableAlias>, group: usize) -> usize {
        let exposed = alias.map(|a| identifier(&a.name));
        self.item(exposed, None, None, group)
    }

    fn item(
        &mut self,
        exposed: Option<String>,
        columns: Option<Vec<String>>,
        reference: Option<usize>,
        group: usize,
    ) -> usize {
        let index = self.items.len();
        self.items.push(Item {
            exposed,
            columns,
            reference,
        });
        self.facts.place(index, group);
        if let Some(scope) = self.scopes.last_mut() {
            scope.items.push(index);
        }
        index
    }

    fn table(&mut self, name: &AstName, alias: Option<&TableAlias>, group: usize, role: Role) -> Option<usize> {
        let Some(name) = object_name(name) else {
            self.strange = true;
            return None;
        };
        if role == Role::Read && name.schema.is_none() && self.ctes.contains(&name.name) {
            return Some(self.item(
                Some(alias.map_or(name.name, |a| identifier(&a.name))),
                None,
                None,
                group,
            ));
        }
        let columns = alias.map(|a| a.columns.iter().map(|c| identifier(&c.name)).collect::<Vec<_>>());
        let end = alias.map_or(name.span.end, |a| ident_span(&a.name).end);
        let alias = alias.map(|a| identifier(&a.name));
        let reference = self.refer(name, alias.clone(), end, role);
        let known = &self.references[reference];
        let exposed = alias.unwrap_or_else(|| known.name.name.clone());
        let names = known.table.as_ref().map(|table| {
            let mut names: Vec<_> = table.columns.iter().map(|c| c.name.clone()).collect();
            for (old, new) in names.iter_mut().zip(columns.unwrap_or_default()) {
                *old = new;
            }
            names
        });
        Some(self.item(Some(exposed), names, Some(reference), group))
    }

    fn refer(&mut self, name: ObjectName, alias: Option<String>, end: usize, role: Role) -> usize {
        let table = (self.resolve)(name.schema.as_deref(), &name.name);
        let is_watched = table.as_ref().is_some_and(|table| table.is_watched());
        if is_watched && role != Role::Read {
            self.changed_watched = Some(name.name.clone());
        }
        let table = table.filter(|table| !(is_watched || role == Role::Read && table.is_readable_only()));
        self.references.push(Reference {
            name,
            alias,
            end,
            role,
            table,
        });
        self.references.len() - 1
    }

    fn type_modifier(&self, column: Column) -> i32 {
        let table = self.items[column.item]
            .reference
            .and_then(|r| self.references[r].table.as_ref());
        table
            .and_then(|t| t.columns.get(column.column))
            .map_or(-1, |c| c.type_modifier)
    }

    /// The column that an expression names.
    fn column(&self, expr: &Expr) -> Option<Column> {
        match strip(expr) {
            Expr::Identifier(ident) => self.unqualified(&identifier(ident)),
            Expr::CompoundIdentifier(parts) => match parts.as_slice() {
                [table, column] => {
                    let table = identifier(table);
                    let named = |i: &&usize| self.items[**i].exposed.as_deref() == Some(table.as_str());
                    let item = self.scopes.iter().rev().find_map(|s| s.items.iter().find(named))?;
                    self.column_of(*item, &identifier(column))
                }
                _ => None,
            },
            _ => None,
        }
    }

    /// The innermost scope that has the name decides. An item with unknown columns may have it too; within one
    /// scope PostgreSQL then calls the name ambiguous, but it would hide the name from scopes further out.
    fn unqualified(&self, name: &str) -> Option<Column> {
        for scope in self.scopes.iter().rev() {
            if scope.natural {
                return None;
            }
            if let Some(merged) = scope.merged.get(name) {
                return *merged;
            }
            let mut found = scope.items.iter().filter_map(|&item| self.column_of(item, name));
            match (found.next(), found.next()) {
                (Some(column), None) => return Some(column),
                (Some(_), Some(_)) => return None,
                _ if scope.items.iter().any(|&i| self.items[i].columns.is_none()) => return None,
                _ => {}
            }
        }
        None
    }

    /// Takes predicates apart into facts, in the innermost scope.
    fn conditions(&mut self, conditions: &[(usize, &Expr)]) {
        let items = self.scopes.last().map(|s| s.items.clone()).unwrap_or_default();
        for &(group, expr) in conditions {
            let mut facts = Vec::new();
            self.equalities(group, expr, &mut facts);
            for &item in items.iter().filter(|&&i| self.items[i].columns.is_some()) {
                let nullable = self.facts.group_of(item) != group;
                let resolve = |e: &Expr| self.column(e).filter(|c| c.item == item).map(|c| c.column);
                match Condition::from_expr(expr, nullable, &resolve) {
                    Condition::Any => {}
                    condition => facts.push(Fact::Restrict(group, item, condition)),
                }
            }
            facts.into_iter().for_each(|fact| self.facts.add(fact));
        }
    }

    /// `a = b` among the conjuncts, rows included.
    fn equalities(&self, group: usize, expr: &Expr, facts: &mut Vec<Fact>) {
        match strip(expr) {
            Expr::BinaryOp { left, op, right } if *op == BinaryOperator::And => {
                self.equalities(group, left, facts);
                self.equalities(group, right, facts);
            }
            Expr::BinaryOp { left, op, right } if *op == BinaryOperator::Eq => match (strip(left), strip(right)) {
                (Expr::Tuple(a), Expr::Tuple(b)) if a.len() == b.len() => {
                    facts.extend(a.iter().zip(b).filter_map(|(a, b)| self.equality(group, a, b)));
                }
                (a, b) => facts.extend(self.equality(group, a, b)),
            },
            _ => {}
        }
    }

    fn equality(&self, group: usize, a: &Expr, b: &Expr) -> Option<Fact> {
        Some(Fact::Equal(group, self.column(a)?, self.column(b)?))
    }
}

enum Side {
    Inner,
    Left,
    Right,
    Full,
}

fn side(operator: &JoinOperator) -> Option<Side> {
    Some(match operator {
        JoinOperator::Join(_) | JoinOperator::Inner(_) | JoinOperator::CrossJoin(_) => Side::Inner,
        JoinOperator::Left(_) | JoinOperator::LeftOuter(_) => Side::Left,
        JoinOperator::Right(_) | JoinOperator::RightOuter(_) => Side::Right,
        JoinOperator::FullOuter(_) => Side::Full,
        _ => return None,
    })
}

fn constraint(operator: &JoinOperator) -> Option<&JoinConstraint> {
    match operator {
        JoinOperator::Join(c)
        | JoinOperator::Inner(c)
        | JoinOperator::CrossJoin(c)
        | JoinOperator::Left(c)
        | JoinOperator::LeftOuter(c)
        | JoinOperator::Right(c)
        | JoinOperator::RightOuter(c)
        | JoinOperator::FullOuter(c) => Some(c),
        _ => None,
    }
}

/// Hands the outermost queries of an expression to the walk.
struct Subqueries<'w, 'a> {
    walk: &'w mut Walk<'a>,
    depth: usize,
}

impl Visitor for Subqueries<'_, '_> {
    type Break = ();

    fn pre_visit_query(&mut self, query: &Query) -> ControlFlow<()> {
        if self.depth == 0 {
            self.walk.subqueries += 1;
            self.walk.query(query);
        }
        self.depth += 1;
        ControlFlow::Continue(())
    }

    fn post_visit_query(&mut self, _: &Query) -> ControlFlow<()> {
        self.depth -= 1;
        ControlFlow::Continue(())
    }
}

/// Counts the relations of a tree without understanding it.
struct Counter(usize);

impl Visitor for Counter {
    type Break = ();

    fn pre_visit_table_factor(&mut self, factor: &TableFactor) -> ControlFlow<()> {
        self.0 += usize::from(matches!(factor, TableFactor::Table { args: None, .. }));
        ControlFlow::Continue(())
    }

    fn pre_visit_statement(&mut self, statement: &Statement) -> ControlFlow<()> {
        self.0 += usize::from(matches!(statement, Statement::Insert(_)));
        ControlFlow::Continue(())
    }
}
