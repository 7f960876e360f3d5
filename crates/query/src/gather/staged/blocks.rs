//! A statement as query blocks: every SELECT with its FROM, its conditions, and where it stands in the others.
//!
//! A block is known by the byte at which its SELECT begins. Columns are resolved through derived tables down to the relation
//! that they come from, as long as the value is passed on unchanged.

use super::text;
use crate::metadata::Metadata;
use crate::relations::{Mention, fold};
use crate::render::conjuncts;
use crate::views::ParsedQuery;
use sqlparser::ast::{
    BinaryOperator, Expr, GroupByExpr, JoinConstraint, JoinOperator, Query, Select, SelectItem, SetExpr, TableFactor,
    TableWithJoins, Visit, Visitor,
};
use std::collections::HashMap;
use std::ops::{ControlFlow, Range};

/// What a block is to the block around it.
#[derive(Debug, Clone, PartialEq)]
pub(super) enum Role {
    /// the statement itself
    Top,
    /// a WITH query
    With,
    /// a subquery in FROM, which sees nothing of what is around it
    Derived,
    /// `left IN (…)`
    In { left: Box<Expr>, negated: bool },
    /// `EXISTS (…)`
    Exists,
    /// a subquery that stands for a value
    Scalar,
    /// anything else, such as a side of a UNION
    Other,
}

/// One entry of a FROM.
#[derive(Debug, Clone)]
pub(super) struct Item {
    /// the relation: its place among the mentions
    pub mention: Option<usize>,
    /// the derived table's block
    pub derived: Option<usize>,
    /// what qualifies its columns
    pub name: Option<String>,
    /// its columns, where they are known
    pub columns: Option<Vec<String>>,
    /// on the right of a LEFT JOIN
    pub nullable: bool,
}

/// A LEFT JOIN: the item on its right, the items on its left, its condition.
#[derive(Debug, Clone)]
pub(super) struct LeftJoin {
    pub right: usize,
    pub left: Range<usize>,
    pub on: Vec<Expr>,
}

/// One SELECT.
#[derive(Debug, Clone)]
pub(super) struct Block {
    pub query: Query,
    pub select: Select,
    /// bytes of the whole query
    pub span: Range<usize>,
    pub role: Role,
    /// the block it stands in
    pub parent: Option<usize>,
    pub items: Vec<Item>,
    /// conditions of WHERE and of inner joins, which all hold
    pub conditions: Vec<Expr>,
    pub left_joins: Vec<LeftJoin>,
    /// its FROM or its grammar has something that is not understood here
    pub unclear: bool,
    /// it names a WITH query
    pub reads_with: bool,
    pub aggregates: bool,
}

/// A column of a relation: block, item, name.
pub(super) type ColumnId = (usize, usize, String);

/// All blocks of a statement.
pub(super) struct Blocks<'a> {
    pub parsed: &'a ParsedQuery,
    pub metadata: &'a Metadata,
    pub list: Vec<Block>,
}

/// Where a query's SELECT begins; None where it is no plain SELECT.
pub(super) fn start_of(query: &Query) -> Option<usize> {
    match &*query.body {
        SetExpr::Select(select) => (select.select_token.0.span.start.column as usize).checked_sub(1),
        _ => None,
    }
}

struct Walk<'a> {
    parsed: &'a ParsedQuery,
    roles: HashMap<usize, Role>,
    stack: Vec<Option<usize>>,
    list: Vec<Block>,
}

impl Visitor for Walk<'_> {
    type Break = ();

    fn pre_visit_query(&mut self, query: &Query) -> ControlFlow<()> {
        for cte in query.with.iter().flat_map(|with| &with.cte_tables) {
            if let Some(start) = start_of(&cte.query) {
                self.roles.insert(start, Role::With);
            }
        }
        let parent = self.stack.last().copied().flatten();
        let (SetExpr::Select(select), Some(start)) = (&*query.body, start_of(query)) else {
            self.stack.push(None);
            return ControlFlow::Continue(());
        };
        let role = match self.roles.remove(&start) {
            Some(role) => role,
            None if self.stack.is_empty() => Role::Top,
            None => Role::Other,
        };
        let mut unclear = query.fetch.is_some()
            || !query.locks.is_empty()
            || !query.pipe_operators.is_empty()
            || !select.named_window.is_empty()
            || select.into.is_some()
            || select.qualify.is_some();
        let span = text::span_of(self.parsed, start).unwrap_or_else(|| {
            unclear = true;
            start..start
        });
        self.stack.push(Some(self.list.len()));
        self.list.push(Block {
            select: (**select).clone(),
            query: query.clone(),
            span,
            role,
            parent,
            items: Vec::new(),
            conditions: Vec::new(),
            left_joins: Vec::new(),
            unclear,
            reads_with: false,
            aggregates: false,
        });
        ControlFlow::Continue(())
    }

    fn post_visit_query(&mut self, _: &Query) -> ControlFlow<()> {
        self.stack.pop();
        ControlFlow::Continue(())
    }

    fn pre_visit_table_factor(&mut self, factor: &TableFactor) -> ControlFlow<()> {
        if let TableFactor::Derived {
            lateral: false,
            subquery,
            ..
        } = factor
            && let Some(start) = start_of(subquery)
        {
            self.roles.insert(start, Role::Derived);
        }
        ControlFlow::Continue(())
    }

    fn pre_visit_expr(&mut self, expr: &Expr) -> ControlFlow<()> {
        let (subquery, role) = match expr {
            Expr::InSubquery {
                expr,
                subquery,
                negated,
            } => (
                subquery,
                Role::In {
                    left: expr.clone(),
                    negated: *negated,
                },
            ),
            Expr::Exists { subquery, .. } => (subquery, Role::Exists),
            Expr::Subquery(subquery) => (subquery, Role::Scalar),
            Expr::Function(function) => {
                if super::calls::is_aggregate(function)
                    && let Some(Some(block)) = self.stack.last()
                {
                    self.list[*block].aggregates = true;
                }
                return ControlFlow::Continue(());
            }
            _ => return ControlFlow::Continue(()),
        };
        if let Some(start) = start_of(subquery) {
            self.roles.insert(start, role);
        }
        ControlFlow::Continue(())
    }
}

impl<'a> Blocks<'a> {
    /// All blocks, the one around before those inside.
    pub fn of(parsed: &'a ParsedQuery, metadata: &'a Metadata) -> Self {
        let mut walk = Walk {
            parsed,
            roles: HashMap::new(),
            stack: Vec::new(),
            list: Vec::new(),
        };
        let _ = parsed.query.visit(&mut walk);
        let mut this = Self {
            parsed,
            metadata,
            list: walk.list,
        };
        // Derived tables lie behind the blocks that name them, and their outputs are asked for.
        for block in (0..this.list.len()).rev() {
            this.read_from(block);
        }
        this
    }

    fn read_from(&mut self, block: usize) {
        let from = self.list[block].select.from.clone();
        let mut conditions: Vec<Expr> = Vec::new();
        for tree in &from {
            self.read_tree(block, tree, &mut conditions);
        }
        if let Some(condition) = &self.list[block].select.selection {
            conditions.extend(conjuncts(condition).into_iter().cloned());
        }
        self.list[block].conditions = conditions;
    }

    fn read_tree(&mut self, block: usize, tree: &TableWithJoins, conditions: &mut Vec<Expr>) {
        let first = self.list[block].items.len();
        self.read_factor(block, &tree.relation, false);
        for join in &tree.joins {
            use JoinOperator as J;
            let right = self.list[block].items.len();
            match &join.join_operator {
                J::Join(JoinConstraint::On(on)) | J::Inner(JoinConstraint::On(on)) => {
                    self.read_factor(block, &join.relation, false);
                    conditions.extend(conjuncts(on).into_iter().cloned());
                }
                J::CrossJoin(JoinConstraint::None) => self.read_factor(block, &join.relation, false),
                J::Left(JoinConstraint::On(on)) | J::LeftOuter(JoinConstraint::On(on)) => {
                    self.read_factor(block, &join.relation, true);
                    let on = conjuncts(on).into_iter().cloned().collect();
                    let left = first..right;
                    self.list[block].left_joins.push(LeftJoin { right, left, on });
                }
                _ => {
                    self.read_factor(block, &join.relation, true);
                    self.list[block].unclear = true;
                }
            }
        }
    }

    fn read_factor(&mut self, block: usize, factor: &TableFactor, nullable: bool) {
        let mut item = Item {
            mention: None,
            derived: None,
            name: None,
            columns: None,
            nullable,
        };
        match factor {
            TableFactor::Table {
                name,
                alias,
                args: None,
                sample: None,
                ..
            } => {
                let place = name.0.first().and_then(|p| p.as_ident());
                let at = place.map_or(0, |i| (i.span.start.column as usize).saturating_sub(1));
                let mentions = &self.parsed.relations.mentions;
                item.mention = mentions.iter().position(|m: &Mention| m.span.start == at);
                let relation = item.mention.and_then(|m| self.metadata.relations[m].as_ref());
                item.columns = relation.map(|r| r.column_names.clone());
                self.list[block].reads_with |= item.mention.is_none();
                let renamed = alias.as_ref().is_some_and(|a| !a.columns.is_empty());
                self.list[block].unclear |= renamed || (item.mention.is_some() && relation.is_none());
                item.name = match alias {
                    Some(alias) => Some(fold(&alias.name)),
                    None => name.0.last().and_then(|p| p.as_ident()).map(fold),
                };
            }
            TableFactor::Derived {
                lateral: false,
                subquery,
                alias: Some(alias),
                sample: None,
            } => {
                let start = start_of(subquery);
                item.derived = self.list.iter().position(|b| Some(b.span.start) == start);
                item.name = Some(fold(&alias.name));
                let own: Vec<_> = alias.columns.iter().map(|c| fold(&c.name)).collect();
                item.columns = item.derived.and_then(|inner| {
                    let mut names = self.output_names(inner)?;
                    for (name, own) in names.iter_mut().zip(own) {
                        *name = own;
                    }
                    Some(names)
                });
                self.list[block].unclear |= item.columns.is_none();
            }
            _ => self.list[block].unclear = true,
        }
        self.list[block].items.push(item);
    }

    /// The names of a block's outputs; None where one is not known, or has `*`.
    pub fn output_names(&self, block: usize) -> Option<Vec<String>> {
        let items = self.list[block].select.projection.iter();
        items.map(output_name).collect()
    }

    /// Whether a block gives each of its rows (or groups) as long as they meet its conditions, whatever other rows there are.
    pub fn is_plain(&self, block: usize) -> bool {
        let block = &self.list[block];
        block.query.limit_clause.is_none()
            && block.query.with.is_none()
            && !matches!(block.select.distinct, Some(sqlparser::ast::Distinct::On(_)))
            && !block.unclear
            && !super::calls::has_windows(&block.select)
    }

    /// The expressions of GROUP BY, with numbers replaced by what they stand for; None for grouping sets.
    pub fn groups(&self, block: usize) -> Option<Vec<Expr>> {
        let select = &self.list[block].select;
        let GroupByExpr::Expressions(list, modifiers) = &select.group_by else {
            return None;
        };
        if !modifiers.is_empty() {
            return None;
        }
        let group = |expr: &Expr| match expr {
            Expr::Value(value) => {
                let number: usize = value.value.to_string().parse().ok()?;
                item_expr(select.projection.get(number.checked_sub(1)?)?).cloned()
            }
            Expr::GroupingSets(_) | Expr::Cube(_) | Expr::Rollup(_) => None,
            // A column of FROM comes first, then an output.
            Expr::Identifier(name) if self.owner(block, None, &fold(name)).is_none() => {
                let named = |item: &&SelectItem| matches!(item, SelectItem::ExprWithAlias { alias, .. } if fold(alias) == fold(name));
                item_expr(select.projection.iter().find(named)?).cloned()
            }
            other => Some(other.clone()),
        };
        list.iter().map(group).collect()
    }

    /// The column of a relation that an expression in this block is.
    pub fn resolve(&self, block: usize, expr: &Expr) -> Option<ColumnId> {
        let (qualifier, column) = match expr {
            Expr::Identifier(column) => (None, fold(column)),
            Expr::CompoundIdentifier(parts) if parts.len() == 2 => (Some(fold(&parts[0])), fold(&parts[1])),
            Expr::Nested(inner) => return self.resolve(block, inner),
            _ => return None,
        };
        let (block, item) = self.owner(block, qualifier.as_deref(), &column)?;
        self.canonical((block, item, column))
    }

    /// The item that a column belongs to, in this block or one that it sees.
    pub fn owner(&self, block: usize, qualifier: Option<&str>, column: &str) -> Option<(usize, usize)> {
        let mut block = block;
        loop {
            let items = &self.list[block].items;
            if items.iter().any(|i| i.columns.is_none()) {
                return None;
            }
            let has = |item: &Item| {
                qualifier.is_none_or(|q| item.name.as_deref() == Some(q))
                    && item.columns.iter().flatten().any(|c| c == column)
            };
            let mut owners = (0..items.len()).filter(|&i| has(&items[i]));
            match (owners.next(), owners.next()) {
                (Some(item), None) => return Some((block, item)),
                (Some(_), Some(_)) => return None,
                (None, _) => {}
            }
            match self.list[block].role {
                Role::In { .. } | Role::Exists | Role::Scalar => block = self.list[block].parent?,
                _ => return None,
            }
        }
    }

    /// Through derived tables to the relation.
    fn canonical(&self, (block, item, column): ColumnId) -> Option<ColumnId> {
        let entry = &self.list[block].items[item];
        let Some(inner) = entry.derived else {
            entry.mention?;
            return Some((block, item, column));
        };
        if !self.is_plain(inner) {
            return None;
        }
        let place = entry.columns.as_ref()?.iter().position(|c| *c == column)?;
        self.output(inner, place)
    }

    /// The column that an output of a block is. Behind a grouping, columns outside of aggregates are what is grouped by.
    pub fn output(&self, block: usize, place: usize) -> Option<ColumnId> {
        if self.list[block].aggregates && self.groups(block)?.is_empty() {
            return None;
        }
        self.resolve(block, item_expr(self.list[block].select.projection.get(place)?)?)
    }

    /// A column's type, as the home shard numbers it.
    pub fn type_of(&self, (block, item, column): &ColumnId) -> Option<u32> {
        let mention = self.list[*block].items[*item].mention?;
        let relation = self.metadata.relations[mention].as_ref()?;
        relation.columns.iter().find(|c| c.name == *column).map(|c| c.type_oid)
    }

    /// Columns that are equal in every row that meets the block's conditions.
    pub fn equalities(&self, block: usize) -> Vec<(ColumnId, ColumnId)> {
        let of_all =
            |conditions: &[Expr]| -> Vec<_> { conditions.iter().flat_map(|c| self.equalities_of(block, c)).collect() };
        of_all(&self.list[block].conditions)
    }

    /// The same for one condition.
    pub fn equalities_of(&self, block: usize, condition: &Expr) -> Vec<(ColumnId, ColumnId)> {
        match condition {
            Expr::BinaryOp {
                left,
                op: BinaryOperator::Eq,
                right,
            } => {
                let both = self.resolve(block, left).zip(self.resolve(block, right));
                both.filter(|(a, b)| self.comparable(a, b)).into_iter().collect()
            }
            // What all alternatives say holds.
            Expr::BinaryOp {
                left,
                op: BinaryOperator::Or,
                right,
            } => {
                let of = |side: &Expr| -> Vec<_> {
                    conjuncts(side)
                        .into_iter()
                        .flat_map(|c| self.equalities_of(block, c))
                        .collect()
                };
                let right = of(right);
                of(left).into_iter().filter(|e| right.contains(e)).collect()
            }
            Expr::Nested(inner) => self.equalities_of(block, inner),
            Expr::InSubquery {
                expr,
                subquery,
                negated: false,
            } => {
                let inner = start_of(subquery).and_then(|s| self.list.iter().position(|b| b.span.start == s));
                let column = inner.filter(|&i| self.is_plain(i)).and_then(|i| self.output(i, 0));
                let both = self.resolve(block, expr).zip(column);
                both.filter(|(a, b)| self.comparable(a, b)).into_iter().collect()
            }
            _ => Vec::new(),
        }
    }

    /// Whether equality of these columns is that of their binary values: types of which no two values are equal and different, and
    /// that only compare with themselves (whole numbers of any width with each other).
    fn comparable(&self, a: &ColumnId, b: &ColumnId) -> bool {
        let class = |oid| match oid {
            20 | 21 | 23 => Some(20),
            1082 | 1114 | 1184 | 2950 => Some(oid),
            _ => None,
        };
        let (a, b) = (self.type_of(a).and_then(class), self.type_of(b).and_then(class));
        a.is_some() && a == b
    }
}

/// A select item's expression.
pub(super) fn item_expr(item: &SelectItem) -> Option<&Expr> {
    match item {
        SelectItem::UnnamedExpr(expr) | SelectItem::ExprWithAlias { expr, .. } => Some(expr),
        _ => None,
    }
}

/// What PostgreSQL calls an output, as far as it is simple.
pub(super) fn output_name(item: &SelectItem) -> Option<String> {
    match item {
        SelectItem::ExprWithAlias { alias, .. } => Some(fold(alias)),
        SelectItem::UnnamedExpr(Expr::Identifier(column)) => Some(fold(column)),
        SelectItem::UnnamedExpr(Expr::CompoundIdentifier(parts)) => parts.last().map(fold),
        SelectItem::UnnamedExpr(Expr::Function(function)) => {
            function.name.0.last().and_then(|p| p.as_ident()).map(fold)
        }
        SelectItem::UnnamedExpr(_) => Some("?column?".into()),
        _ => None,
    }
}
