//! What a statement's predicates say together about each table: own conditions, and conditions that reach a
//! column through equalities.
//!
//! Why an equality may carry a condition: if rows of `x` outside of S take no part in the result, they can be
//! thought away; then rows of `y` whose key lies outside of S meet no row of `x` under `x.k = y.k`, and if that
//! equality decides about `y` (y is in its group or below), they take no part either. In the other direction it
//! does not follow: the preserved side of a LEFT JOIN stays whatever its ON says.

use crate::condition::Condition;
use pgherd_model::{KeyType, Table};

/// A column of a FROM item, by its place among the table's columns.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) struct Column {
    pub item: usize,
    pub column: usize,
}

#[derive(Debug)]
pub(crate) enum Fact {
    /// group, item, condition over the item's columns
    Restrict(usize, usize, Condition),
    /// group, and the columns that are equal in it
    Equal(usize, Column, Column),
}

/// Groups, items' places in them, facts.
#[derive(Debug, Default)]
pub(crate) struct Facts {
    parents: Vec<Option<usize>>,
    places: Vec<usize>,
    facts: Vec<Fact>,
}

impl Facts {
    /// A new group below `parent`.
    pub fn group(&mut self, parent: Option<usize>) -> usize {
        self.parents.push(parent);
        self.parents.len() - 1
    }

    /// Puts an item into a group.
    pub fn place(&mut self, item: usize, group: usize) {
        if self.places.len() <= item {
            self.places.resize(item + 1, group);
        }
        self.places[item] = group;
    }

    pub fn group_of(&self, item: usize) -> usize {
        self.places[item]
    }

    pub fn add(&mut self, fact: Fact) {
        self.facts.push(fact);
    }

    /// Whether `group` decides about the item: it is the item's own or above.
    fn decides(&self, group: usize, item: usize) -> bool {
        let mut at = Some(self.places[item]);
        while let Some(here) = at {
            if here == group {
                return true;
            }
            at = self.parents[here];
        }
        false
    }

    /// Each item's condition over its table's columns; `tables` gives the known tables by item.
    pub fn conditions(&self, tables: &[Option<&Table>]) -> Vec<Condition> {
        let mut conditions = vec![Vec::new(); tables.len()];
        for fact in &self.facts {
            if let Fact::Restrict(group, item, condition) = fact
                && self.decides(*group, *item)
            {
                conditions[*item].push(condition.clone());
            }
        }
        // Conditions on one column travel along equalities until nothing new comes: at most once per item.
        for _ in 0..tables.len() {
            let mut news = Vec::new();
            for fact in &self.facts {
                let Fact::Equal(group, a, b) = fact else { continue };
                for (from, to) in [(a, b), (b, a)] {
                    if !self.decides(*group, to.item) || !comparable(tables, *from, *to) {
                        continue;
                    }
                    for condition in conjuncts(&conditions[from.item]) {
                        if condition.only_column() != Some(from.column) {
                            continue;
                        }
                        let carried = condition.mapped(&|_| Some(to.column));
                        if !conjuncts(&conditions[to.item]).any(|c| *c == carried) {
                            news.push((to.item, carried));
                        }
                    }
                }
            }
            if news.is_empty() {
                break;
            }
            for (item, condition) in news {
                if !conditions[item].contains(&condition) {
                    conditions[item].push(condition);
                }
            }
        }
        conditions.into_iter().map(Condition::all).collect()
    }
}

fn conjuncts(conditions: &[Condition]) -> impl Iterator<Item = &Condition> {
    conditions.iter().flat_map(|c| match c {
        Condition::All(inner) => inner.as_slice(),
        other => std::slice::from_ref(other),
    })
}

/// Whether both columns have key types of one kind, so that a constant means the same to both.
fn comparable(tables: &[Option<&Table>], a: Column, b: Column) -> bool {
    let key_type = |c: Column| {
        let column = tables.get(c.item).copied().flatten()?.columns.get(c.column)?;
        KeyType::from_oid(column.type_oid)
    };
    match (key_type(a), key_type(b)) {
        (Some(a), Some(b)) => a.comparable(b),
        _ => false,
    }
}
