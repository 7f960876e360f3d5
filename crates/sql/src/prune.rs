//! The ranges that a condition leaves, for a planner that reads one table at a time.

use crate::condition::Condition;
use crate::restriction::Restriction;
use crate::route::ParameterValue;
use crate::scalar::Parameters;
use pgherd_model::{RangeId, Sharded};
use sqlparser::ast::Expr;

/// The ranges of a table that can hold rows for which `condition` is true, in key order. `key_column` says which column of
/// the key (by its place in the key) an expression names, if it names one. May give too many, never too few.
pub fn ranges_of(
    condition: Option<&Expr>,
    sharded: &Sharded,
    key_column: &dyn Fn(&Expr) -> Option<usize>,
    parameters: &[ParameterValue],
) -> Vec<RangeId> {
    let ranges = sharded.ranges.ranges();
    let Some(condition) = condition else {
        return ranges.iter().map(|r| r.id).collect();
    };
    let types: Vec<u32> = parameters.iter().map(|p| p.type_oid).collect();
    let parameters = Parameters {
        values: parameters,
        types: &types,
    };
    let condition = Condition::from_expr(condition, false, key_column);
    let restriction = Restriction::new(condition, sharded.key.len());
    restriction
        .ranges(sharded, parameters)
        .into_iter()
        .map(|place| ranges[place].id)
        .collect()
}
