//! Aggregate and window functions as templates.

use super::types::Type::{self, *};

/// An aggregate: text with places, the arguments' types, the result's type, whether its result depends on the order of addition.
pub(super) struct Aggregate {
    pub(super) text: &'static str,
    pub(super) arguments: &'static [Type],
    pub(super) result: Type,
    pub(super) inexact: bool,
}

const fn exact(text: &'static str, arguments: &'static [Type], result: Type) -> Aggregate {
    Aggregate {
        text,
        arguments,
        result,
        inexact: false,
    }
}

const fn inexact(text: &'static str, arguments: &'static [Type], result: Type) -> Aggregate {
    Aggregate {
        text,
        arguments,
        result,
        inexact: true,
    }
}

/// All but `min`, `max`, and `count`, which take any type.
pub(super) const AGGREGATES: &[Aggregate] = &[
    exact("count(*)", &[], Int8),
    exact("sum({0})", &[Int2], Int8),
    exact("sum({0})", &[Int4], Int8),
    exact("sum(DISTINCT {0})", &[Int4], Int8),
    exact("sum({0})", &[Int8], Numeric),
    exact("sum({0})", &[Numeric], Numeric),
    exact("sum({0})", &[Money], Money),
    exact("sum({0})", &[Interval], Interval),
    exact("avg({0})", &[Int4], Numeric),
    exact("avg({0})", &[Int8], Numeric),
    exact("avg({0})", &[Numeric], Numeric),
    exact("avg(DISTINCT {0})", &[Int2], Numeric),
    inexact("sum({0})", &[Float8], Float8),
    inexact("sum({0})", &[Float4], Float4),
    inexact("avg({0})", &[Float8], Float8),
    inexact("stddev_samp({0})", &[Float8], Float8),
    inexact("corr({0}, {1})", &[Float8, Float8], Float8),
    inexact("regr_slope({0}, {1})", &[Float8, Float8], Float8),
    inexact("var_pop({0})", &[Float4], Float8),
    exact("regr_count({0}, {1})", &[Float8, Float8], Int8),
    exact("stddev({0})", &[Int4], Numeric),
    exact("variance({0})", &[Numeric], Numeric),
    exact("bool_and({0})", &[Bool], Bool),
    exact("bool_or({0})", &[Bool], Bool),
    exact("every({0})", &[Bool], Bool),
    exact("bit_and({0})", &[Int4], Int4),
    exact("bit_xor({0})", &[Int8], Int8),
    exact("bit_or({0})", &[Bit], Bit),
    exact("string_agg({0}, ',' ORDER BY {0})", &[Text], Text),
    exact("string_agg(DISTINCT {0}, '' ORDER BY {0})", &[Bytea], Bytea),
    exact("array_agg({0} ORDER BY {0} DESC)", &[Int4], Int4Array),
    exact("array_agg(DISTINCT {0} ORDER BY {0})", &[Text], TextArray),
    exact("array_agg({0} ORDER BY {0} NULLS FIRST)", &[Mood], MoodArray),
    exact("json_agg({0} ORDER BY {0})", &[Date], Json),
    exact("jsonb_agg({0} ORDER BY {0})", &[Int8], Jsonb),
    exact(
        "json_object_agg(coalesce({0}::text, ''), {0} ORDER BY {0})",
        &[Uuid],
        Json,
    ),
    exact("range_agg({0})", &[Int4Range], Int4Multirange),
    exact("range_intersect_agg({0})", &[Int4Range], Int4Range),
    exact("percentile_disc(0.5) WITHIN GROUP (ORDER BY {0})", &[Int4], Int4),
    exact("percentile_disc(0.25) WITHIN GROUP (ORDER BY {0} DESC)", &[Text], Text),
    inexact("percentile_cont(0.5) WITHIN GROUP (ORDER BY {0})", &[Float8], Float8),
    exact(
        "percentile_cont(0.25) WITHIN GROUP (ORDER BY {0})",
        &[Interval],
        Interval,
    ),
    exact("mode() WITHIN GROUP (ORDER BY {0})", &[Date], Date),
    exact("mode() WITHIN GROUP (ORDER BY {0})", &[Int8], Int8),
    exact("rank(3) WITHIN GROUP (ORDER BY {0})", &[Int4], Int8),
    exact("percent_rank('b') WITHIN GROUP (ORDER BY {0})", &[Text], Float8),
    exact(
        "dense_rank(2, 'a') WITHIN GROUP (ORDER BY {0} DESC, {1})",
        &[Int4, Text],
        Int8,
    ),
    inexact("cume_dist(1.5) WITHIN GROUP (ORDER BY {0})", &[Numeric], Float8),
    exact(
        "percentile_disc(ARRAY[0, 0.5, 1]) WITHIN GROUP (ORDER BY {0})",
        &[Int4],
        Int4Array,
    ),
    exact("array_agg({0} ORDER BY {0})", &[Numeric], NumericArray),
    exact("array_agg({0} ORDER BY {0})", &[Pair], PairArray),
    exact("array_agg(DISTINCT {0})", &[Date], DateArray),
    exact(
        "jsonb_object_agg(coalesce({0}, ''), {1} ORDER BY {1}, {0})",
        &[Text, Int4],
        Jsonb,
    ),
    exact("json_agg({0} ORDER BY {0})", &[Wide], Json),
    exact("string_agg({0}, {1} ORDER BY {0}, {1})", &[Text, Text], Text),
    exact("count(DISTINCT ({0}, {1}))", &[Int4, Text], Int8),
    exact("count(ALL {0})", &[Jsonb], Int8),
    exact("range_agg({0})", &[Int4Multirange], Int4Multirange),
    exact("sum(DISTINCT {0})", &[Numeric], Numeric),
    exact("avg({0})", &[Interval], Interval),
    exact("var_samp({0})", &[Int8], Numeric),
    inexact("covar_pop({0}, {1})", &[Float8, Float8], Float8),
];

/// What a window function needs to have one result only.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Needs {
    /// Rows that are equal for the window's order get the same.
    Peers,
    /// The window's order must leave no choice.
    TotalOrder,
}

/// A window function: text with places, the arguments' types, the result's type, what it needs.
pub(super) type WindowFunction = (&'static str, &'static [Type], Type, Needs);

pub(super) const WINDOW_FUNCTIONS: &[WindowFunction] = &[
    ("rank()", &[], Int8, Needs::Peers),
    ("dense_rank()", &[], Int8, Needs::Peers),
    ("percent_rank()", &[], Float8, Needs::Peers),
    ("cume_dist()", &[], Float8, Needs::Peers),
    ("count(*)", &[], Int8, Needs::Peers),
    ("count({0})", &[Text], Int8, Needs::Peers),
    ("sum({0})", &[Int4], Int8, Needs::Peers),
    ("min({0})", &[Date], Date, Needs::Peers),
    ("max({0})", &[Text], Text, Needs::Peers),
    ("avg({0})", &[Int8], Numeric, Needs::Peers),
    ("bool_or({0})", &[Bool], Bool, Needs::Peers),
    ("sum({0})", &[Numeric], Numeric, Needs::Peers),
    ("row_number()", &[], Int8, Needs::TotalOrder),
    ("ntile(3)", &[], Int4, Needs::TotalOrder),
    ("lag({0})", &[Int4], Int4, Needs::TotalOrder),
    ("lead({0}, 2)", &[Text], Text, Needs::TotalOrder),
    ("lag({0}, 1, {1})", &[Date, Date], Date, Needs::TotalOrder),
    ("first_value({0})", &[Text], Text, Needs::TotalOrder),
    ("last_value({0})", &[Uuid], Uuid, Needs::TotalOrder),
    ("nth_value({0}, 2)", &[Numeric], Numeric, Needs::TotalOrder),
    ("array_agg({0})", &[Int4], Int4Array, Needs::TotalOrder),
    ("string_agg({0}, ',')", &[Text], Text, Needs::TotalOrder),
    ("count(*) FILTER (WHERE {0})", &[Bool], Int8, Needs::Peers),
    ("sum({0}) FILTER (WHERE {1})", &[Int4, Bool], Int8, Needs::Peers),
    ("max({0})", &[Numeric], Numeric, Needs::Peers),
    ("bit_or({0})", &[Int4], Int4, Needs::Peers),
    ("lead({0}, {1} % 3, {0})", &[Int8, Int4], Int8, Needs::TotalOrder),
    ("first_value({0})", &[Pair], Pair, Needs::TotalOrder),
    ("last_value({0})", &[MoodArray], MoodArray, Needs::TotalOrder),
    ("jsonb_agg({0})", &[Date], Jsonb, Needs::TotalOrder),
];

/// Frames for any order.
pub(super) const PEER_FRAMES: &[&str] = &[
    "",
    " RANGE BETWEEN UNBOUNDED PRECEDING AND UNBOUNDED FOLLOWING",
    " RANGE UNBOUNDED PRECEDING",
    " GROUPS BETWEEN 1 PRECEDING AND 1 FOLLOWING",
    " GROUPS BETWEEN CURRENT ROW AND UNBOUNDED FOLLOWING EXCLUDE GROUP",
    " GROUPS BETWEEN 2 PRECEDING AND 1 PRECEDING",
    " GROUPS BETWEEN UNBOUNDED PRECEDING AND 1 FOLLOWING EXCLUDE TIES",
    " RANGE BETWEEN CURRENT ROW AND UNBOUNDED FOLLOWING EXCLUDE NO OTHERS",
];

/// Frames that reach so far from a value, for one column to order by: numbers, and times.
pub(super) const NUMBER_FRAMES: &[&str] = &[
    " RANGE BETWEEN 2 PRECEDING AND 3 FOLLOWING",
    " RANGE BETWEEN CURRENT ROW AND 1 FOLLOWING EXCLUDE CURRENT ROW",
    " RANGE BETWEEN UNBOUNDED PRECEDING AND 1 PRECEDING",
];
pub(super) const TIME_FRAMES: &[&str] = &[
    " RANGE BETWEEN '1 mon' PRECEDING AND '1 day' FOLLOWING",
    " RANGE BETWEEN '10 days' FOLLOWING AND UNBOUNDED FOLLOWING",
];

/// Frames that count rows.
pub(super) const ROW_FRAMES: &[&str] = &[
    "",
    " ROWS BETWEEN 2 PRECEDING AND CURRENT ROW",
    " ROWS BETWEEN CURRENT ROW AND 1 FOLLOWING EXCLUDE CURRENT ROW",
    " ROWS BETWEEN UNBOUNDED PRECEDING AND 1 PRECEDING",
    " ROWS BETWEEN 1 FOLLOWING AND 3 FOLLOWING",
    " ROWS BETWEEN 3 PRECEDING AND 3 FOLLOWING EXCLUDE GROUP",
    " ROWS CURRENT ROW",
    " RANGE BETWEEN UNBOUNDED PRECEDING AND UNBOUNDED FOLLOWING EXCLUDE TIES",
];
