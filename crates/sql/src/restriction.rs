//! From a condition on a table's key to the ranges that can hold a row that meets it.
//!
//! A condition becomes a list of boxes. A box has a domain for each key column (all, some values, an interval)
//! and intervals of whole keys (from row comparisons). A range is needed if it overlaps some box. Where a list
//! grows too long it is widened; so ranges are asked too many, never too few.

use crate::condition::{Comparison, Condition};
use crate::scalar::{Evaluated, Parameters, Scalar};
use pgherd_model::key::Edge;
use pgherd_model::{KeyInterval, KeyType, KeyValue, Sharded};

/// Beyond this many boxes or keys, a condition is widened.
const MOST: usize = 4096;

/// A table's condition over its key columns, by their place in the key.
#[derive(Debug, Clone)]
pub(crate) struct Restriction {
    condition: Condition,
    /// one constant for each key column, where the condition says so: the common case, without boxes
    point: Option<Vec<Scalar>>,
}

impl Restriction {
    pub fn new(condition: Condition, key_columns: usize) -> Self {
        let point = (0..key_columns).map(|i| equal_to(&condition, i).cloned()).collect();
        Self { condition, point }
    }

    /// The constant that a key column must equal.
    pub fn fixed(&self, column: usize) -> Option<&Scalar> {
        equal_to(&self.condition, column)
    }

    /// The places of the ranges, ascending.
    pub fn ranges(&self, sharded: &Sharded, parameters: Parameters) -> Vec<usize> {
        match self.find(sharded, parameters) {
            Found::One(index) => vec![index],
            Found::None => Vec::new(),
            Found::Undecided => self.overlapping(sharded, parameters),
        }
    }

    /// The range of a fixed key, without allocating more than the key.
    pub fn find(&self, sharded: &Sharded, parameters: Parameters) -> Found {
        let Some(point) = &self.point else {
            return Found::Undecided;
        };
        let found = |index: Option<usize>| index.map_or(Found::None, Found::One);
        if let ([scalar], [key_type]) = (point.as_slice(), sharded.key_types.as_slice()) {
            return match scalar.evaluate(*key_type, parameters) {
                Evaluated::Value(value) => found(sharded.ranges.find_index(&[value])),
                Evaluated::Null => Found::None,
                Evaluated::Unknown => Found::Undecided,
            };
        }
        let mut key = Vec::with_capacity(point.len());
        for (scalar, key_type) in point.iter().zip(&sharded.key_types) {
            match scalar.evaluate(*key_type, parameters) {
                Evaluated::Value(value) => key.push(value),
                Evaluated::Null => return Found::None,
                Evaluated::Unknown => return Found::Undecided,
            }
        }
        found(sharded.ranges.find_index(&key))
    }

    fn overlapping(&self, sharded: &Sharded, parameters: Parameters) -> Vec<usize> {
        let ranges = sharded.ranges.ranges();
        let mut needed = vec![false; ranges.len()];
        for one in boxes(&self.condition, &sharded.key_types, parameters) {
            one.mark(sharded, &mut needed);
        }
        (0..ranges.len()).filter(|&i| needed[i]).collect()
    }
}

/// Where a fixed key lies.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Found {
    One(usize),
    /// in no range: nothing matches
    None,
    /// the key is not fixed, or not understood
    Undecided,
}

/// The scalar that a column must equal.
fn equal_to(condition: &Condition, column: usize) -> Option<&Scalar> {
    match condition {
        Condition::Compare(c, Comparison::Equal, scalar) if *c == column => Some(scalar),
        Condition::All(inner) => inner.iter().find_map(|c| equal_to(c, column)),
        _ => None,
    }
}

/// What one key column may be.
#[derive(Debug, Clone)]
enum Domain {
    All,
    /// sorted
    Values(Vec<KeyValue>),
    /// with whether the end is inside
    Between(Option<(KeyValue, bool)>, Option<(KeyValue, bool)>),
}

impl Domain {
    fn holds(&self, value: &KeyValue) -> bool {
        match self {
            Self::All => true,
            Self::Values(values) => values.binary_search(value).is_ok(),
            Self::Between(from, to) => {
                from.as_ref()
                    .is_none_or(|(v, inside)| value > v || (*inside && value == v))
                    && to
                        .as_ref()
                        .is_none_or(|(v, inside)| value < v || (*inside && value == v))
            }
        }
    }

    fn and(self, other: Self) -> Self {
        match (self, other) {
            (Self::All, any) | (any, Self::All) => any,
            (Self::Values(values), other) | (other, Self::Values(values)) => {
                Self::Values(values.into_iter().filter(|v| other.holds(v)).collect())
            }
            (Self::Between(from_a, to_a), Self::Between(from_b, to_b)) => {
                // The higher lower end, and of two equal ones the one that is outside.
                let from = match (from_a, from_b) {
                    (Some(a), Some(b)) => Some(if (&a.0, !a.1) >= (&b.0, !b.1) { a } else { b }),
                    (a, b) => a.or(b),
                };
                let to = match (to_a, to_b) {
                    (Some(a), Some(b)) => Some(if (&a.0, a.1) <= (&b.0, b.1) { a } else { b }),
                    (a, b) => a.or(b),
                };
                Self::Between(from, to)
            }
        }
    }

    fn is_empty(&self) -> bool {
        match self {
            Self::All => false,
            Self::Values(values) => values.is_empty(),
            Self::Between(Some((from, a)), Some((to, b))) => from > to || (from == to && !(*a && *b)),
            Self::Between(..) => false,
        }
    }
}

#[derive(Debug, Clone)]
struct Box {
    columns: Vec<Domain>,
    rows: Vec<KeyInterval>,
}

impl Box {
    fn all(columns: usize) -> Self {
        Self {
            columns: vec![Domain::All; columns],
            rows: Vec::new(),
        }
    }

    fn with(mut self, column: usize, domain: Domain) -> Self {
        let old = std::mem::replace(&mut self.columns[column], Domain::All);
        self.columns[column] = old.and(domain);
        self
    }

    fn and(&self, other: &Self) -> Self {
        let columns = self
            .columns
            .iter()
            .zip(&other.columns)
            .map(|(a, b)| a.clone().and(b.clone()));
        Self {
            columns: columns.collect(),
            rows: self.rows.iter().chain(&other.rows).cloned().collect(),
        }
    }

    fn is_empty(&self) -> bool {
        self.columns.iter().any(Domain::is_empty)
    }

    /// Marks the ranges that overlap it.
    fn mark(&self, sharded: &Sharded, needed: &mut [bool]) {
        let ranges = sharded.ranges.ranges();
        let in_rows = |i: usize| self.rows.iter().all(|r| r.overlaps(&ranges[i].from, &ranges[i].to));
        // Values of the leading columns multiply to prefixes; the first column without values ends them.
        let mut prefixes: Vec<Vec<KeyValue>> = vec![Vec::new()];
        let mut ending = &Domain::All;
        for domain in &self.columns {
            match domain {
                Domain::Values(values) if prefixes.len() * values.len() <= MOST => {
                    let extend = |p: &Vec<KeyValue>| {
                        let p = p.clone();
                        values
                            .iter()
                            .map(move |v| p.iter().chain([v]).cloned().collect::<Vec<_>>())
                    };
                    prefixes = prefixes.iter().flat_map(extend).collect();
                }
                other => {
                    ending = other;
                    break;
                }
            }
        }
        for prefix in prefixes {
            if prefix.len() == self.columns.len() {
                if let Some(i) = sharded.ranges.find_index(&prefix).filter(|&i| in_rows(i)) {
                    needed[i] = true;
                }
                continue;
            }
            let interval = interval(prefix, ending);
            for (i, range) in ranges.iter().enumerate() {
                if !needed[i] && interval.overlaps(&range.from, &range.to) && in_rows(i) {
                    needed[i] = true;
                }
            }
        }
    }
}

fn interval(prefix: Vec<KeyValue>, next: &Domain) -> KeyInterval {
    let edge = |end: Option<(&KeyValue, bool)>| match end {
        None => Edge {
            prefix: prefix.clone(),
            inclusive: true,
        },
        Some((value, inclusive)) => Edge {
            prefix: prefix.iter().chain([value]).cloned().collect(),
            inclusive,
        },
    };
    let (from, to) = match next {
        Domain::All => (None, None),
        Domain::Between(from, to) => (from.as_ref().map(|(v, i)| (v, *i)), to.as_ref().map(|(v, i)| (v, *i))),
        // Too many values to list: from the first to the last.
        Domain::Values(values) => (values.first().map(|v| (v, true)), values.last().map(|v| (v, true))),
    };
    KeyInterval {
        from: edge(from),
        to: edge(to),
    }
}

/// No box: nothing can match.
fn boxes(condition: &Condition, types: &[KeyType], parameters: Parameters) -> Vec<Box> {
    let all = || Box::all(types.len());
    match condition {
        Condition::Any => vec![all()],
        Condition::Never => Vec::new(),
        Condition::Compare(column, comparison, scalar) => match scalar.evaluate(types[*column], parameters) {
            Evaluated::Unknown => vec![all()],
            Evaluated::Null => Vec::new(),
            Evaluated::Value(value) => vec![all().with(*column, domain(*comparison, value))],
        },
        Condition::OneOf(column, list) => match list.evaluate(types[*column], parameters) {
            None => vec![all()],
            Some(values) if values.is_empty() => Vec::new(),
            Some(values) => vec![all().with(*column, Domain::Values(values))],
        },
        Condition::Row(columns, comparison, scalars) => row_box(columns, *comparison, scalars, types, parameters),
        Condition::Either(inner) => {
            let mut out = Vec::new();
            for one in inner {
                out.extend(boxes(one, types, parameters));
                if out.len() > MOST {
                    return vec![all()];
                }
            }
            out
        }
        Condition::All(inner) => {
            let mut out = vec![all()];
            for one in inner {
                let next = boxes(one, types, parameters);
                // Leaving a condition out widens.
                if out.len() * next.len() > MOST {
                    continue;
                }
                out = out
                    .iter()
                    .flat_map(|a| next.iter().map(|b| a.and(b)))
                    .filter(|b| !b.is_empty())
                    .collect();
            }
            out
        }
    }
}

fn domain(comparison: Comparison, value: KeyValue) -> Domain {
    match comparison {
        Comparison::Equal => Domain::Values(vec![value]),
        Comparison::Less => Domain::Between(None, Some((value, false))),
        Comparison::LessOrEqual => Domain::Between(None, Some((value, true))),
        Comparison::Greater => Domain::Between(Some((value, false)), None),
        Comparison::GreaterOrEqual => Domain::Between(Some((value, true)), None),
    }
}

/// A row comparison restricts whole keys where its columns are the key's first ones in order, and its first
/// column in any case.
fn row_box(
    columns: &[usize],
    comparison: Comparison,
    scalars: &[Scalar],
    types: &[KeyType],
    parameters: Parameters,
) -> Vec<Box> {
    let all = Box::all(types.len());
    let mut prefix = Vec::new();
    for (i, (&column, scalar)) in columns.iter().zip(scalars).enumerate() {
        if column != i {
            break;
        }
        match scalar.evaluate(types[column], parameters) {
            Evaluated::Value(value) => prefix.push(value),
            // The first decides alone when it is not equal, and gives NULL when it is NULL.
            Evaluated::Null if i == 0 => return Vec::new(),
            _ => break,
        }
    }
    if prefix.is_empty() {
        let first = match scalars[0].evaluate(types[columns[0]], parameters) {
            Evaluated::Unknown => return vec![all],
            Evaluated::Null => return Vec::new(),
            Evaluated::Value(value) => value,
        };
        let widened = match comparison {
            Comparison::Less | Comparison::LessOrEqual => Comparison::LessOrEqual,
            Comparison::Greater | Comparison::GreaterOrEqual => Comparison::GreaterOrEqual,
            Comparison::Equal => Comparison::Equal,
        };
        return vec![all.with(columns[0], domain(widened, first))];
    }
    let whole = prefix.len() == columns.len();
    let edge = |inclusive: bool| Edge {
        prefix: prefix.clone(),
        inclusive: inclusive || !whole,
    };
    let interval = match comparison {
        Comparison::Less | Comparison::LessOrEqual => KeyInterval {
            from: Edge::unbounded(),
            to: edge(comparison == Comparison::LessOrEqual),
        },
        Comparison::Greater | Comparison::GreaterOrEqual => KeyInterval {
            from: edge(comparison == Comparison::GreaterOrEqual),
            to: Edge::unbounded(),
        },
        Comparison::Equal => KeyInterval::prefix(prefix),
    };
    vec![Box {
        rows: vec![interval],
        ..all
    }]
}
