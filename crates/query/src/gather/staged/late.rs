//! A grouping by a key: tables of which a group meets one row each are joined to the groups, not to the rows.
//!
//! ```sql
//! SELECT c.id, c.name, c.address, sum(o.price) AS spent FROM customers c, orders o
//! WHERE c.id = o.customer GROUP BY c.id, c.name, c.address ORDER BY spent DESC LIMIT 20
//! ```
//! All orders of a group are one customer's, whom the group's key names. So this is the same, and the wide columns of customers do not
//! travel beside every order:
//! ```sql
//! SELECT c.id, c.name, c.address, pgherd_groups.pgherd_a1 AS spent FROM customers AS c,
//!   (SELECT o.customer AS pgherd_k1, sum(o.price) AS pgherd_a1 FROM orders AS o GROUP BY o.customer) AS pgherd_groups
//! WHERE c.id = pgherd_groups.pgherd_k1 ORDER BY spent DESC LIMIT 20
//! ```
//! The inner block has all that a stage needs: it runs on the shards of orders, and its keys bound what is read of customers. With a
//! limit, only the customers of the first groups are looked at ([`super::first`]).
//!
//! It is the same when each table that is joined late is tied by its primary key to a column that is one value per group, directly or
//! through another such table, and when nothing that can fail is computed for groups that the join leaves out: aggregates of plain
//! columns and of numerics' sums and products, compared with constants.

use super::aggregates::{order_by, order_options, output_of, rows_wanted};
use super::blocks::{Blocks, ColumnId, Role, item_expr, output_name};
use super::calls::{Found, found, is_aggregate, name_of};
use super::spread::equal_to;
use super::{prune, text};
use crate::gather::source::Resolution;
use pgherd_model::quote_identifier;
use sqlparser::ast::{
    BinaryOperator, Distinct, Expr, Function, FunctionArg, FunctionArgExpr, FunctionArguments, Value,
};
use std::ops::Range;

/// What the groups are called in the statement that is run instead.
pub(super) const GROUPS: &str = "pgherd_groups";

/// The statement in other words.
#[derive(Debug)]
pub(super) struct Late {
    pub text: String,
    /// which groups can be among the first
    pub first: Option<FirstGroups>,
    /// mentions of the client's statement that have the groups' key
    pub keyed: Vec<usize>,
    /// those that are joined late
    pub tables: Vec<usize>,
    /// how many columns a group has
    pub columns: usize,
}

/// Groups that come first, as far as the groups themselves tell: the order over the columns of [`GROUPS`], and how many rows are wanted.
#[derive(Debug, Clone)]
pub(super) struct FirstGroups {
    pub order: String,
    pub rows: u64,
}

/// The statement with such tables joined to the groups; None where there are none, or where it might not be the same.
pub(super) fn late(blocks: &Blocks<'_>, resolutions: &[Resolution]) -> Option<Late> {
    // ONLY stands outside of the name; names of ours are not to be found twice.
    let words = &blocks.parsed.words;
    if words.iter().any(|w| w == "only" || w.starts_with("pgherd_")) || blocks.parsed.relations.names_schemas() {
        return None;
    }
    let block = blocks.list.iter().position(|b| b.role == Role::Top)?;
    let mut rewrite = Rewrite::new(blocks, resolutions, block)?;
    let mut may = rewrite.may_be_late()?;
    loop {
        rewrite.choose_late(&may)?;
        match rewrite.export()? {
            // More groups than the client asked for: these tables belong to the rows.
            Some(items) => items.into_iter().for_each(|item| may[item] = false),
            None => break,
        }
    }
    rewrite.others_are_joined()?;
    rewrite.write()
}

/// A condition of the block: its text, and the items whose columns it names.
struct Condition<'a> {
    range: Range<usize>,
    expr: &'a Expr,
    items: Vec<usize>,
}

struct Rewrite<'a> {
    blocks: &'a Blocks<'a>,
    resolutions: &'a [Resolution],
    block: usize,
    clauses: text::Clauses,
    groups: Vec<ColumnId>,
    conditions: Vec<Condition<'a>>,
    /// by item, whether it is joined late
    late: Vec<bool>,
    /// columns of the others that the outer block sees
    exported: Vec<ColumnId>,
    /// the aggregates' texts
    aggregates: Vec<String>,
}

impl<'a> Rewrite<'a> {
    fn new(blocks: &'a Blocks<'a>, resolutions: &'a [Resolution], block: usize) -> Option<Self> {
        let own = &blocks.list[block];
        let plain_items = own
            .items
            .iter()
            .all(|i| i.mention.is_some() && i.name.is_some() && !i.nullable);
        let plain_distinct = matches!(own.select.distinct, None | Some(Distinct::Distinct));
        let is_plain = !own.unclear && !own.reads_with && own.query.with.is_none() && own.left_joins.is_empty();
        if !plain_items || !plain_distinct || !is_plain || super::calls::has_windows(&own.select) {
            return None;
        }
        let groups: Option<Vec<ColumnId>> = blocks.groups(block)?.iter().map(|g| blocks.resolve(block, g)).collect();
        let mut this = Self {
            blocks,
            resolutions,
            block,
            clauses: text::clauses(blocks.parsed, own.span.start)?,
            groups: groups.filter(|groups| !groups.is_empty())?,
            conditions: Vec::new(),
            late: vec![false; own.items.len()],
            exported: Vec::new(),
            aggregates: Vec::new(),
        };
        if this.clauses.items.len() != own.select.projection.len() {
            return None;
        }
        for (range, expr, _) in prune::all_conditions(blocks, own)? {
            let named = found(expr);
            if named.subqueries {
                return None;
            }
            let items = this.items_of(&named)?;
            this.conditions.push(Condition { range, expr, items });
        }
        Some(this)
    }

    /// A column of this block.
    fn column(&self, expr: &Expr) -> Option<ColumnId> {
        self.blocks.resolve(self.block, expr).filter(|c| c.0 == self.block)
    }

    /// The items that columns belong to, each once; None where one is not a column of this block.
    fn items_of(&self, named: &Found) -> Option<Vec<usize>> {
        let items: Option<Vec<usize>> = named.columns.iter().map(|(_, c)| Some(self.column(c)?.1)).collect();
        let mut items = items?;
        items.sort_unstable();
        items.dedup();
        Some(items)
    }

    /// The expressions of outputs, HAVING and ORDER BY, where aggregates can be.
    fn expressions(&self) -> Option<Vec<Expr>> {
        let own = &self.blocks.list[self.block];
        let mut all: Vec<Expr> = own
            .select
            .projection
            .iter()
            .map(|i| item_expr(i).cloned())
            .collect::<Option<_>>()?;
        all.extend(own.select.having.clone());
        for item in order_by(&own.query)? {
            if output_of(self.blocks, self.block, &item.expr)?.is_none() {
                all.push(item.expr);
            }
        }
        Some(all)
    }

    /// Which items may be joined late: those that no condition of their own bounds, and whose columns no aggregate reads.
    fn may_be_late(&self) -> Option<Vec<bool>> {
        let own = &self.blocks.list[self.block];
        let mut may: Vec<bool> = (0..own.items.len())
            .map(|item| self.primary_key(item).is_some())
            .collect();
        for condition in &self.conditions {
            if let [item] = condition.items.as_slice() {
                may[*item] = false;
            }
        }
        for expr in self.expressions()? {
            let named = found(&expr);
            if named.subqueries {
                return None;
            }
            for call in named.calls.iter().filter(|f| is_aggregate(f)) {
                for item in self.items_of(&found(&Expr::Function((*call).clone())))? {
                    may[item] = false;
                }
            }
        }
        Some(may)
    }

    /// Chooses from these: those whose primary key equals a column of the others, or of one that is joined late already.
    fn choose_late(&mut self, may: &[bool]) -> Option<()> {
        self.late = vec![false; may.len()];
        loop {
            let tied = |item: usize| {
                let key = self.primary_key(item);
                let ties = self
                    .conditions
                    .iter()
                    .filter(|c| c.items.len() == 2 && c.items.contains(&item));
                let equalities = ties.flat_map(|c| self.blocks.equalities_of(self.block, c.expr));
                equalities.into_iter().any(|(a, b)| {
                    let (own, other) = if a.1 == item { (a, b) } else { (b, a) };
                    own.1 == item && Some(&own.2) == key.as_ref() && (!may[other.1] || self.late[other.1])
                })
            };
            let next = (0..may.len()).find(|&item| may[item] && !self.late[item] && tied(item));
            match next {
                Some(item) => self.late[item] = true,
                None => break,
            }
        }
        (self.late.contains(&true) && self.late.contains(&false)).then_some(())
    }

    /// Whether the items that are not joined late hang together by their own conditions: else the groups would be of their product.
    fn others_are_joined(&self) -> Option<()> {
        let mut joined: Vec<usize> = self.late.iter().position(|late| !late).into_iter().collect();
        loop {
            let inner = self.conditions.iter().filter(|c| !self.is_outer(c));
            let reaches = |c: &&Condition<'_>| c.items.iter().any(|i| joined.contains(i));
            let next = inner
                .filter(reaches)
                .flat_map(|c| &c.items)
                .find(|i| !joined.contains(i));
            match next {
                Some(&item) => joined.push(item),
                None => break,
            }
        }
        (joined.len() == self.late.iter().filter(|late| !**late).count()).then_some(())
    }

    /// The column that is a sharded table's primary key. One that others inherit from would not have its rows' keys for itself.
    fn primary_key(&self, item: usize) -> Option<String> {
        let mention = self.blocks.list[self.block].items[item].mention?;
        self.resolutions[mention].table.as_ref()?.sharded()?;
        let columns = &self.blocks.metadata.relations[mention].as_ref()?.columns;
        let mut key = columns.iter().filter(|c| c.primary);
        let first = key.next()?;
        key.next().is_none().then(|| first.name.clone())
    }

    /// Finds the columns that the inner block groups by: those of the client's GROUP BY, and those that tie the tables that are joined
    /// late. Where the latter could make more groups than the client asked for, the tables that they tie.
    fn export(&mut self) -> Option<Option<Vec<usize>>> {
        let mut exported: Vec<ColumnId> = self.groups.iter().filter(|g| !self.late[g.1]).cloned().collect();
        let equalities = self.blocks.equalities(self.block);
        for condition in self.conditions.iter().filter(|c| self.is_outer(c)) {
            for (_, column) in found(condition.expr).columns {
                let column = self.column(&column)?;
                if self.late[column.1] || exported.contains(&column) {
                    continue;
                }
                let same = equal_to(column.clone(), &equalities);
                if !self.groups.iter().any(|g| same.contains(g)) {
                    let late = condition.items.iter().copied().filter(|&item| self.late[item]);
                    return Some(Some(late.collect()));
                }
                exported.push(column);
            }
        }
        self.exported = exported;
        (!self.exported.is_empty()).then_some(None)
    }

    /// Whether a condition is the outer block's.
    fn is_outer(&self, condition: &Condition<'_>) -> bool {
        condition.items.iter().any(|&item| self.late[item])
    }

    fn piece(&self, range: &Range<usize>) -> &str {
        &self.blocks.parsed.text[range.clone()]
    }

    /// A relation in a FROM.
    fn item_text(&self, item: usize) -> Option<String> {
        let item = &self.blocks.list[self.block].items[item];
        let mention = &self.blocks.parsed.relations.mentions[item.mention?];
        let name = quote_identifier(item.name.as_ref()?);
        Some(format!("{} AS {name}", self.piece(&mention.span)))
    }

    fn items_text(&self, late: bool) -> Option<Vec<String>> {
        let items = (0..self.late.len()).filter(|&item| self.late[item] == late);
        items.map(|item| self.item_text(item)).collect()
    }

    /// A piece of the client's text in the outer block: aggregates and exported columns are the groups'.
    fn outer(&mut self, expr: &Expr, range: &Range<usize>) -> Option<String> {
        let named = found(expr);
        let mut edits: Vec<(Range<usize>, String)> = Vec::new();
        for call in named.calls.iter().filter(|f| is_aggregate(f)) {
            let span = self.call_span(call)?;
            let place = self.aggregate(call, &span)?;
            edits.push((span, place));
        }
        for (span, column) in &named.columns {
            if edits
                .iter()
                .any(|(call, _)| call.start <= span.start && span.end <= call.end)
            {
                continue;
            }
            let id = self.column(column)?;
            if !self.late[id.1] {
                let place = self.exported.iter().position(|e| *e == id)?;
                edits.push((span.clone(), format!("{GROUPS}.pgherd_k{}", place + 1)));
            }
        }
        Some(text::edited(&self.blocks.parsed.text, range, &edits))
    }

    fn call_span(&self, call: &Function) -> Option<Range<usize>> {
        let start = call.name.0.first()?.as_ident()?.span.start.column as usize;
        text::call_span(self.blocks.parsed, start.checked_sub(1)?)
    }

    /// The name of an aggregate's result.
    fn aggregate(&mut self, call: &Function, span: &Range<usize>) -> Option<String> {
        if !self.cannot_fail(call) {
            return None;
        }
        let sql = self.piece(span).to_owned();
        let found = self.aggregates.iter().position(|a| *a == sql);
        let place = found.unwrap_or_else(|| {
            self.aggregates.push(sql);
            self.aggregates.len() - 1
        });
        Some(format!("{GROUPS}.pgherd_a{}", place + 1))
    }

    fn write(mut self) -> Option<Late> {
        let own = &self.blocks.list[self.block];
        let projection = own.select.projection.clone();
        let mut items = Vec::new();
        for (place, item) in projection.iter().enumerate() {
            let range = self.clauses.items[place].clone();
            let mut sql = self.outer(item_expr(item)?, &range)?;
            if let (sqlparser::ast::SelectItem::UnnamedExpr(_), Some(name)) = (item, output_name(item)) {
                sql.push_str(&format!(" AS {}", quote_identifier(&name)));
            }
            items.push(sql);
        }
        let order = self.order()?;
        let first = self.first();
        let having = match (&own.select.having, self.clauses.having.clone()) {
            (None, _) => String::new(),
            (Some(expr), Some(range)) if self.may_come_early(expr) => format!(" HAVING {}", self.piece(&range)),
            _ => return None,
        };
        let mut from = self.items_text(true)?;
        from.push(format!("({}{having}) AS {GROUPS}", self.inner()?));
        let mut conditions = Vec::new();
        for condition in std::mem::take(&mut self.conditions) {
            if self.is_outer(&condition) {
                conditions.push(format!("({})", self.outer(condition.expr, &condition.range)?));
            }
        }
        let distinct = if own.select.distinct.is_some() { "DISTINCT " } else { "" };
        let limit = self
            .clauses
            .limit
            .clone()
            .map_or(String::new(), |l| format!(" {}", self.piece(&l)));
        let text = format!(
            "SELECT {distinct}{} FROM {} WHERE {}{order}{limit}",
            items.join(", "),
            from.join(", "),
            conditions.join(" AND ")
        );
        let keyed = self.exported.iter().filter_map(|c| own.items[c.1].mention).collect();
        let tables = (0..self.late.len()).filter(|&i| self.late[i]);
        let tables = tables.filter_map(|i| own.items[i].mention).collect();
        Some(Late {
            tables,
            text,
            first,
            keyed,
            columns: self.exported.len() + self.aggregates.len(),
        })
    }

    /// The groups, without their HAVING.
    fn inner(&self) -> Option<String> {
        let own = &self.blocks.list[self.block];
        let names: Vec<String> = self
            .exported
            .iter()
            .map(|(_, item, column)| {
                let name = own.items[*item].name.as_deref().unwrap_or_default();
                format!("{}.{}", quote_identifier(name), quote_identifier(column))
            })
            .collect();
        let keys = names
            .iter()
            .enumerate()
            .map(|(i, name)| format!("{name} AS pgherd_k{}", i + 1));
        let results = self.aggregates.iter().enumerate();
        let results = results.map(|(i, sql)| format!("{sql} AS pgherd_a{}", i + 1));
        let items: Vec<String> = keys.chain(results).collect();
        let conditions = self.conditions.iter().filter(|c| !self.is_outer(c));
        let conditions: Vec<String> = conditions.map(|c| format!("({})", self.piece(&c.range))).collect();
        let selection = match conditions.is_empty() {
            true => String::new(),
            false => format!(" WHERE {}", conditions.join(" AND ")),
        };
        Some(format!(
            "SELECT {} FROM {}{selection} GROUP BY {}",
            items.join(", "),
            self.items_text(false)?.join(", "),
            names.join(", ")
        ))
    }

    /// ORDER BY of the outer block.
    fn order(&mut self) -> Option<String> {
        let own = &self.blocks.list[self.block];
        let mut order = Vec::new();
        for (place, item) in order_by(&own.query)?.into_iter().enumerate() {
            let range = self.clauses.order.get(place)?.clone();
            order.push(match (&item.expr, output_of(self.blocks, self.block, &item.expr)?) {
                // A number, or an output's name.
                (Expr::Value(_) | Expr::Identifier(_), Some(_)) => self.piece(&range).to_owned(),
                (expr, _) => self.outer(expr, &range)?,
            });
        }
        Some(match order.is_empty() {
            true => String::new(),
            false => format!(" ORDER BY {}", order.join(", ")),
        })
    }

    /// The part of the order that the groups themselves tell, when there is a limit.
    fn first(&mut self) -> Option<FirstGroups> {
        let own = &self.blocks.list[self.block];
        let rows = rows_wanted(&own.query).filter(|rows| *rows <= MOST_FIRST)?;
        if own.select.distinct.is_some() {
            return None;
        }
        let mut order = Vec::new();
        for item in order_by(&own.query)? {
            let expr = match output_of(self.blocks, self.block, &item.expr)? {
                Some(output) => item_expr(own.select.projection.get(output)?)?.clone(),
                None => item.expr.clone(),
            };
            let name = match &expr {
                Expr::Function(call) if is_aggregate(call) => {
                    let span = self.call_span(call)?;
                    self.aggregate(call, &span)?
                }
                column => match self
                    .column(column)
                    .and_then(|id| self.exported.iter().position(|e| *e == id))
                {
                    Some(place) => format!("{GROUPS}.pgherd_k{}", place + 1),
                    None => break,
                },
            };
            order.push(format!("{name}{}", order_options(&item.options)));
        }
        (!order.is_empty()).then(|| FirstGroups {
            order: order.join(", "),
            rows,
        })
    }
}

/// What an expression in an aggregate is made of.
#[derive(PartialEq)]
enum Number {
    Whole,
    Numeric,
}

impl Rewrite<'_> {
    /// Whether an aggregate gives a result for all rows there may be. Groups that find no partner are computed as well, and PostgreSQL,
    /// which joins first, would not have failed for them.
    fn cannot_fail(&self, call: &Function) -> bool {
        let is_plain = call.filter.is_none()
            && call.within_group.is_empty()
            && call.null_treatment.is_none()
            && matches!(call.parameters, FunctionArguments::None);
        let (Some(name), FunctionArguments::List(list)) = (name_of(call), &call.args) else {
            return false;
        };
        let [argument] = list.args.as_slice() else {
            return false;
        };
        if !is_plain || !list.clauses.is_empty() {
            return false;
        }
        match (name.as_str(), argument) {
            ("count", FunctionArg::Unnamed(FunctionArgExpr::Wildcard)) => true,
            (
                "count" | "min" | "max" | "bool_and" | "bool_or" | "every",
                FunctionArg::Unnamed(FunctionArgExpr::Expr(e)),
            ) => self.column(e).is_some() || self.number(e).is_some(),
            ("sum" | "avg", FunctionArg::Unnamed(FunctionArgExpr::Expr(e))) => {
                found(e).columns.len() <= MOST_FACTORS && self.number(e).is_some()
            }
            _ => false,
        }
    }

    /// Sums and products of numerics of a declared precision, and whole numbers that are added up as they are: none can leave its
    /// type's range.
    fn number(&self, expr: &Expr) -> Option<Number> {
        match expr {
            Expr::Nested(inner) => self.number(inner),
            Expr::Value(value) => match &value.value {
                Value::Number(text, _) if text.len() < 10 && text.bytes().all(|b| b.is_ascii_digit()) => {
                    Some(Number::Whole)
                }
                Value::Number(text, _) if text.len() < 100 && !text.contains(['e', 'E']) => Some(Number::Numeric),
                _ => None,
            },
            Expr::BinaryOp {
                left,
                op: BinaryOperator::Plus | BinaryOperator::Minus | BinaryOperator::Multiply,
                right,
            } => {
                let (left, right) = (self.number(left)?, self.number(right)?);
                (left == Number::Numeric || right == Number::Numeric).then_some(Number::Numeric)
            }
            column => {
                let (block, item, name) = self.column(column)?;
                let mention = self.blocks.list[block].items[item].mention?;
                let columns = &self.blocks.metadata.relations[mention].as_ref()?.columns;
                let column = columns.iter().find(|c| c.name == name)?;
                match column.type_oid {
                    20 | 21 | 23 => Some(Number::Whole),
                    1700 if column.type_sql.contains('(') => Some(Number::Numeric),
                    _ => None,
                }
            }
        }
    }

    /// Whether HAVING can be asked of groups that find no partner: it only compares.
    fn may_come_early(&self, expr: &Expr) -> bool {
        use BinaryOperator as B;
        let operand = |expr: &Expr| match expr {
            Expr::Value(value) => matches!(value.value, Value::Number(..) | Value::SingleQuotedString(_)),
            Expr::Function(call) => is_aggregate(call) && self.cannot_fail(call),
            column => self.column(column).is_some_and(|id| self.exported.contains(&id)),
        };
        match expr {
            Expr::Nested(inner) => self.may_come_early(inner),
            Expr::BinaryOp {
                left,
                op: B::And | B::Or,
                right,
            } => self.may_come_early(left) && self.may_come_early(right),
            Expr::BinaryOp {
                left,
                op: B::Lt | B::LtEq | B::Gt | B::GtEq | B::Eq | B::NotEq,
                right,
            } => operand(left) && operand(right),
            Expr::IsNull(inner) | Expr::IsNotNull(inner) => operand(inner),
            _ => false,
        }
    }
}

/// With more rows than this, looking at the first groups alone spares little.
const MOST_FIRST: u64 = 10_000;

/// A product of more columns could have more digits than numeric holds.
const MOST_FACTORS: usize = 32;
