use super::*;
use proptest::prelude::*;

fn int(v: i64) -> KeyValue {
    KeyValue::Int(v)
}

fn bound(values: &[Option<i64>]) -> KeyBound {
    KeyBound(
        values
            .iter()
            .map(|v| v.map_or(Bound::Max, |v| Bound::Value(int(v))))
            .collect(),
    )
}

#[test]
fn a_point_lies_in_the_range_that_starts_with_it() {
    let (three, seven) = (bound(&[Some(3)]), bound(&[Some(7)]));
    let point = |v| KeyInterval::prefix(vec![int(v)]);
    assert!(!point(2).overlaps(&three, &seven));
    assert!(point(3).overlaps(&three, &seven));
    assert!(point(6).overlaps(&three, &seven));
    assert!(!point(7).overlaps(&three, &seven));
    assert!(KeyInterval::all().overlaps(&KeyBound::min(1), &three));
}

#[test]
fn dates_and_timestamps_read_and_write() {
    let text = |t: KeyType, s: &str| t.parse_text(s).map(|v| v.to_text());
    assert_eq!(text(KeyType::Date, "2000-01-01"), Some("2000-01-01".into()));
    assert_eq!(KeyType::Date.parse_text("2000-03-01"), Some(KeyValue::Date(60)));
    assert_eq!(KeyType::Date.parse_text("1999-12-31"), Some(KeyValue::Date(-1)));
    assert_eq!(KeyType::Date.parse_text("2023-02-29"), None);
    assert_eq!(KeyType::Date.parse_text("01/02/2003"), None, "depends on DateStyle");
    assert_eq!(
        KeyType::TimestampTz.parse_text("2000-01-01 00:00:00"),
        None,
        "depends on TimeZone"
    );
    assert_eq!(
        KeyType::TimestampTz.parse_text("2000-01-01 02:00:00+02"),
        Some(KeyValue::Timestamp(0))
    );
    assert_eq!(
        text(KeyType::Timestamp, "1999-12-31 23:59:59.5"),
        Some("1999-12-31 23:59:59.500000+00".into())
    );
}

#[test]
fn years_before_christ_and_of_many_digits() {
    let date = |s| KeyType::Date.parse_text(s);
    // As PostgreSQL has them: date '…' - date '2000-01-01'.
    assert_eq!(date("0044-03-15 BC"), Some(KeyValue::Date(-746_117)));
    assert_eq!(date("0001-12-31 BC"), Some(KeyValue::Date(-730_120)));
    assert_eq!(date("0001-01-01"), Some(KeyValue::Date(-730_119)));
    assert_eq!(date("0001-02-29 BC"), Some(KeyValue::Date(-730_426)), "a leap year");
    assert_eq!(date("0002-02-29 BC"), None);
    assert_eq!(date("0000-01-01 BC"), None);
    assert_eq!(date("4714-11-24 BC"), Some(KeyValue::Date(-2_451_545)));
    assert_eq!(date("4714-11-23 BC"), None, "out of range");
    assert_eq!(date("5874897-12-31"), Some(KeyValue::Date(2_145_031_948)));
    assert_eq!(date("5874898-01-01"), None, "out of range");
    let stamp = |t: KeyType, s| t.parse_text(s);
    let noon = Some(KeyValue::Timestamp(-746_117 * 86_400_000_000 + 43_200_000_000));
    assert_eq!(stamp(KeyType::Timestamp, "0044-03-15 12:00:00 BC"), noon);
    assert_eq!(stamp(KeyType::TimestampTz, "0044-03-15 12:00:00+00 BC"), noon);
    assert_eq!(stamp(KeyType::TimestampTz, "0044-03-15 12:53:28+00:53:28 BC"), noon);
    assert_eq!(
        stamp(KeyType::TimestampTz, "0044-03-15 BC"),
        None,
        "depends on TimeZone"
    );
    assert_eq!(
        stamp(KeyType::Timestamp, "294276-12-31 23:59:59.999999"),
        Some(KeyValue::Timestamp(9_223_371_331_199_999_999))
    );
    assert_eq!(stamp(KeyType::Timestamp, "294277-01-01"), None, "out of range");
    assert_eq!(stamp(KeyType::Timestamp, "9999999-01-01"), None, "out of range");
    assert_eq!(stamp(KeyType::TimestampTz, "2000-01-01 00:00:00+é€"), None);
}

#[test]
fn a_timestamp_reads_its_own_text_back() {
    for key_type in [KeyType::Timestamp, KeyType::TimestampTz] {
        let value = KeyValue::Timestamp(1_500_000);
        assert_eq!(key_type.parse_text(&value.to_text()), Some(value));
    }
}

#[test]
fn numerics_agree_in_text_and_binary() {
    // 12345.678 as numeric_send writes it: digits 1 2345 6780, weight 1, dscale 3
    let bytes: Vec<u8> = [3i16, 1, 0, 3, 1, 2345, 6780]
        .iter()
        .flat_map(|w| w.to_be_bytes())
        .collect();
    assert_eq!(
        KeyType::Numeric.parse_binary(&bytes),
        KeyType::Numeric.parse_text("12345.678")
    );
    assert_eq!(KeyType::Numeric.parse_text("1.50"), KeyType::Numeric.parse_text("1.5"));
    assert!(KeyType::Numeric.parse_text("NaN") > KeyType::Numeric.parse_text("Infinity"));
}

proptest! {
    /// overlaps() may say yes too often, never no for a key that is in both.
    #[test]
    fn overlap_never_misses_a_key(
        from in prop::collection::vec(prop::option::weighted(0.8, 0i64..5), 2),
        to in prop::collection::vec(prop::option::weighted(0.8, 0i64..5), 2),
        low in prop::collection::vec(0i64..5, 0..3), low_in: bool,
        high in prop::collection::vec(0i64..5, 0..3), high_in: bool,
        key in prop::collection::vec(0i64..5, 2),
    ) {
        let (from, to) = (bound(&from), bound(&to));
        let edge = |v: &Vec<i64>, inclusive| Edge { inclusive: inclusive || v.is_empty(), prefix: v.iter().map(|&v| int(v)).collect() };
        let interval = KeyInterval { from: edge(&low, low_in), to: edge(&high, high_in) };
        let above = key[..low.len()] > low[..] || (key[..low.len()] == low[..] && interval.from.inclusive);
        let below = key[..high.len()] < high[..] || (key[..high.len()] == high[..] && interval.to.inclusive);
        let key: Key = key.into_iter().map(int).collect();
        let inside = from.compare_key(&key) != Ordering::Greater && to.compare_key(&key) == Ordering::Greater;
        if above && below && inside {
            prop_assert!(interval.overlaps(&from, &to));
        }
    }

    #[test]
    fn dates_round_trip(days in prop_oneof![-2_451_545i32..2_145_031_949, -1_000_000i32..1_000_000]) {
        let text = KeyValue::Date(days).to_text();
        prop_assert_eq!(KeyType::Date.parse_text(&text), Some(KeyValue::Date(days)));
    }

    #[test]
    fn timestamps_round_trip(us in -211_813_488_000_000_000i64..9_223_371_331_200_000_000) {
        let text = KeyValue::Timestamp(us).to_text();
        prop_assert_eq!(KeyType::TimestampTz.parse_text(&text), Some(KeyValue::Timestamp(us)));
    }
}
